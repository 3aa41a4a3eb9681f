//! What holds whatever bytes an agent writes.

#![allow(clippy::panic, reason = "it is called by tests, which fail by panicking")]

use serde_json::Value;
use serde_json::value::RawValue;

use super::lines::Lines;
use super::message::{Message, Notification};
use super::pi::PiWire;
use super::{MAX_LINE_BYTES, Step, Wire};

/// Reads the bytes as the output of an agent of each wire.
///
/// # Panics
///
/// When a notification is one that a host can't take apart or that only a host may send, when a request's answer isn't
/// one record under the request's id, or when the second reading of the same bytes differs.
pub fn agent_lines(bytes: &[u8]) {
    let wires = || [Wire::Acp, Wire::Pi(Box::new(PiWire::new("/work", None)))];
    for (mut wire, mut again) in wires().into_iter().zip(wires()) {
        let messages = read(&mut wire, bytes, bytes.len());
        for message in &messages {
            match message {
                Message::Notification(notification) => check_notification(&wire, notification),
                Message::Request { id, .. } => check_answer(&mut wire, id),
                Message::Response { outcome: Err(error), .. } => assert!(!error.to_string().is_empty()),
                _ => {}
            }
        }
        assert_eq!(read(&mut again, bytes, 7), messages, "what is read depends on how it was cut");
    }
}

fn read(wire: &mut Wire, bytes: &[u8], chunk: usize) -> Vec<Message> {
    let mut lines = Lines::new(MAX_LINE_BYTES);
    let mut messages = Vec::new();
    for chunk in bytes.chunks(chunk.max(1)) {
        lines.push(chunk);
        while let Some(line) = lines.next_line() {
            let Step { messages: understood, .. } = wire.line(&line);
            messages.extend(understood);
        }
    }
    messages
}

fn check_notification(wire: &Wire, notification: &Notification) {
    let parsed: Result<Value, _> = serde_json::from_str(&notification.text);
    let method = parsed.as_ref().ok().and_then(|value| value["method"].as_str());
    assert!(method.is_some(), "{}: {parsed:?}", notification.text);
    assert!(!notification.text.contains('\n'), "one record is one line");
    if matches!(wire, Wire::Acp) {
        let forged = method.is_some_and(|method| method.starts_with("_agentos/"));
        assert!(!forged, "the agent speaks as the host: {}", notification.text);
    }
}

fn check_answer(wire: &mut Wire, id: &Value) {
    for line in wire.answer(id, &Ok(Value::Null)).lines {
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
        let record: Result<&RawValue, _> = serde_json::from_slice(&line);
        assert!(record.is_ok(), "{record:?}");
        let answered: Value = serde_json::from_slice(&line).unwrap_or_default();
        assert_eq!(answered["id"], *id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDINGS: [&str; 3] = [
        include_str!("../../tests/data/acp/gemini-permission.ndjson"),
        include_str!("../../tests/data/acp/opencode-permission.ndjson"),
        include_str!("../../tests/data/pi-rpc-1.5.2.ndjson"),
    ];

    /// What the agents of the recordings wrote, line by line.
    fn recorded() -> Vec<String> {
        let entries = RECORDINGS.iter().flat_map(|recording| recording.lines());
        let entries = entries.map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries.filter(|entry| entry["dir"] == "<-").map(|entry| entry["msg"].to_string()).collect()
    }

    #[test]
    fn what_was_recorded_is_read() {
        agent_lines(recorded().join("\n").as_bytes());
        let odd = include_bytes!("../../../../fuzz/seeds/agent_lines/odd");
        agent_lines(odd);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            agent_lines(&bytes);
        }

        #[test]
        fn damaged_recordings(start in any::<prop::sample::Index>(),
                              damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)) {
            let lines = recorded();
            let first = start.index(lines.len());
            let mut bytes = lines[first..lines.len().min(first + 4)].join("\n").into_bytes();
            bytes.push(b'\n');
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            agent_lines(&bytes);
        }

        #[test]
        fn records_of_any_shape(method in "(session/update|session/request_permission|.agentos/model|\\\\u005fagentos/x|fs/[a-z]{1,4})",
                                id in "(null|1|-1|1.5|1e999|\"a\"|\"\\\\ud800\"|\\[1\\]|true)",
                                value in "(\\{\\}|\\[\\]|7|null|\"\\\\udc00\"|\\{\"update\":\\{\"sessionUpdate\":\"[a-z_]{0,20}\"\\}\\})") {
            let all = format!(
                "{{\"method\":\"{method}\",\"params\":{value}}}\n{{\"id\":{id},\"method\":\"{method}\",\"params\":{value}}}\n\
                 {{\"id\":{id},\"result\":{value}}}\n{{\"id\":{id},\"error\":{value}}}\n{{\"type\":\"{method}\",\"x\":{value}}}\n"
            );
            agent_lines(all.as_bytes());
        }
    }
}
