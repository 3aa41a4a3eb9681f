//! What the agent writes. It has no buffer: what is written is in the pipe when the call returns. An agent that nobody
//! listens to has no reason to go on, so a failed write ends it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// The exit status of an agent whose output can't be written.
const NOBODY_LISTENS: i32 = 74;
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// One line at a time.
    writing: Mutex<()>,
    next_id: AtomicU64,
    meta: AtomicBool,
}

impl Wire {
    pub(crate) fn use_meta(&self) {
        self.meta.store(true, Ordering::Relaxed);
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        put(bytes);
    }

    /// Writes `before`, `filler` bytes of x, and `after`.
    pub(crate) fn filled(&self, before: &[u8], filler: u64, after: &[u8]) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        put(before);
        let piece = [b'x'; PIECE_BYTES];
        let mut left = filler;
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            put(&piece[..count]);
            left -= count as u64;
        }
        put(after);
    }

    /// Writes one message.
    pub(crate) fn message(&self, mut message: Value) {
        if self.meta.load(Ordering::Relaxed) {
            mark(&mut message);
        }
        message["jsonrpc"] = json!("2.0");
        let mut line = message.to_string();
        line.push('\n');
        self.bytes(line.as_bytes());
    }

    pub(crate) fn notify(&self, method: &str, params: &Value) {
        self.message(json!({ "method": method, "params": params }));
    }

    pub(crate) fn update(&self, session: &str, update: &Value) {
        self.notify("session/update", &json!({ "sessionId": session, "update": update }));
    }

    pub(crate) fn result(&self, id: &Value, result: &Value) {
        self.message(json!({ "id": id, "result": result }));
    }

    pub(crate) fn error(&self, id: &Value, error: &Value) {
        self.message(json!({ "id": id, "error": error }));
    }

    /// An id for a request of the agent's own. Text, every other time: both are ids.
    pub(crate) fn fresh_id(&self) -> Value {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(2) { json!(number) } else { json!(format!("ask-{number}")) }
    }
}

/// Puts `_meta` wherever the protocol has a place for it.
fn mark(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for name in ["params", "result", "update", "content", "toolCall", "modes", "outcome"] {
        if let Some(inner @ Value::Object(_)) = fields.get_mut(name) {
            mark(inner);
            inner["_meta"] = json!({ "fake.example/deep": { "a": [null, 1, "x"] } });
        }
    }
}

fn put(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => std::process::exit(NOBODY_LISTENS),
        }
    }
}
