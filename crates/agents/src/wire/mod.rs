//! Agents' protocols, without any I/O: bytes in, meanings out.
//!
//! [`lines`] cuts a byte stream into bounded lines; [`message`] reads and [`acp`] writes the Agent Client Protocol, which
//! every session speaks; [`pi`] is an agent that doesn't, made to look as if it did: ACP's requests become the commands
//! of `pi --mode rpc`, whose records ([`pi_rpc`]) become ACP's. Whatever an agent sends ends as a value here: a broken
//! line is counted, an unknown record is kept or left out, nothing panics.

pub mod acp;
pub mod fuzz;
pub mod lines;
pub mod message;
pub mod pi;
pub mod pi_rpc;
mod readable;
mod trouble;

use std::borrow::Cow;

use lines::Line;
use message::{Message, RpcError};
use readable::readable;
use serde_json::{Value, json};

/// The longest record that is read; agents cut tool output, images are a few megabytes.
pub const MAX_LINE_BYTES: usize = 32 << 20;

/// One agent's protocol.
#[derive(Debug)]
pub enum Wire {
    /// ACP itself.
    Acp,
    /// Pi's JSON lines.
    Pi(Box<pi::PiWire>),
}

/// What a wire wants done.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// Records for the agent, each with its LF.
    pub lines: Vec<Vec<u8>>,
    /// What is understood.
    pub messages: Vec<Message>,
}

impl Step {
    fn line(record: &Value) -> Self {
        Self { lines: vec![encode(record)], messages: Vec::new() }
    }

    fn message(message: Message) -> Self {
        Self { lines: Vec::new(), messages: vec![message] }
    }

    /// The answer to a request of ours.
    fn response(id: u64, outcome: Result<Value, RpcError>) -> Self {
        Self::message(Message::Response { id, outcome })
    }
}

impl Wire {
    /// A request to the agent.
    pub fn request(&mut self, id: u64, method: &str, params: &Value) -> Step {
        match self {
            Self::Acp => {
                Step::line(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
            }
            Self::Pi(pi) => pi.request(id, method, params),
        }
    }

    /// A notification to the agent.
    pub fn notify(&mut self, method: &str, params: &Value) -> Step {
        match self {
            Self::Acp => Step::line(&json!({ "jsonrpc": "2.0", "method": method, "params": params })),
            Self::Pi(pi) => pi.notify(method),
        }
    }

    /// The answer to a request of the agent.
    pub fn answer(&mut self, id: &Value, outcome: &Result<Value, RpcError>) -> Step {
        match (self, outcome) {
            (Self::Acp, Ok(result)) => Step::line(&json!({ "jsonrpc": "2.0", "id": id, "result": result })),
            (Self::Acp, Err(error)) => {
                Step::line(&json!({ "jsonrpc": "2.0", "id": id, "error": error.to_json() }))
            }
            // It asks nothing.
            (Self::Pi(_), _) => Step::default(),
        }
    }

    /// The meaning of a line of the agent.
    pub fn line(&mut self, line: &Line) -> Step {
        match (self, line) {
            (Self::Pi(pi), Line::Whole(bytes)) => match std::str::from_utf8(bytes).ok().and_then(readable) {
                Some(Cow::Owned(mended)) => pi.line(&Line::Whole(mended.into())),
                Some(Cow::Borrowed(_)) => pi.line(line),
                None if bytes.is_empty() => Step::default(),
                None => Step::message(Message::Garbage),
            },
            (Self::Pi(pi), line) => pi.line(line),
            (Self::Acp, Line::Whole(line)) if line.is_empty() => Step::default(),
            (Self::Acp, Line::Whole(line)) => Step::message(message::read(line)),
            (Self::Acp, Line::TooLong { length, .. }) => Step::message(Message::TooLong { length: *length }),
        }
    }

    /// Whether a cancellation may find nothing to cancel yet, and has to be said again.
    #[must_use]
    pub fn repeats_cancel(&self) -> bool {
        matches!(self, Self::Pi(_))
    }
}

fn encode(record: &Value) -> Vec<u8> {
    let mut line = record.to_string().into_bytes();
    line.push(b'\n');
    line
}
