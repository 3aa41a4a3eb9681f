//! The agent's side of a recording: `{"ms", "dir", "msg"}` a line, `->` what the client sent, `<-` what the agent did.
//!
//! What the agent said is said again, byte for byte but for the ids of its answers, which are those of the client's
//! requests at hand. Before it goes on beyond a message of the client, it waits for one: a request or a notification of
//! the same method, or the answer to the same request of the agent's. A notification is not waited for any longer when the
//! client goes on without it. Requests that the recording never has are answered with -32601. It ends with its input.

use std::io::{BufRead as _, BufReader, Stdin};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::agent::METHOD_NOT_FOUND;
use crate::wire::Wire;

#[derive(Debug, Deserialize)]
struct Entry<'a> {
    dir: &'a str,
    #[serde(borrow)]
    msg: &'a RawValue,
}

/// A message whose content stays as it was written.
#[derive(Debug, Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<&'a str>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

struct Replay {
    wire: Wire,
    input: BufReader<Stdin>,
    /// Messages of the client that came before their time.
    early: Vec<Value>,
    /// The client's ids, by those of the recording.
    ids: Vec<(Value, Value)>,
    /// What the client is still to say.
    to_come: Vec<Value>,
}

/// Plays one recording.
pub(crate) fn run(path: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let entries: Vec<Entry<'_>> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let client = entries.iter().filter(|entry| entry.dir == "->");
    let mut to_come =
        client.map(|entry| serde_json::from_str(entry.msg.get())).collect::<Result<Vec<Value>, _>>();
    if let Ok(to_come) = &mut to_come {
        to_come.reverse();
    }
    let to_come = to_come.map_err(|error| error.to_string())?;
    let input = BufReader::new(std::io::stdin());
    let mut replay = Replay { wire: Wire::default(), input, early: Vec::new(), ids: Vec::new(), to_come };
    for entry in &entries {
        if entry.dir == "->" {
            if !replay.hear()? {
                return Ok(());
            }
        } else {
            replay.say(entry.msg.get())?;
        }
    }
    while let Some(message) = replay.next() {
        replay.refuse(&message);
    }
    Ok(())
}

impl Replay {
    /// Waits for the client's next message of the recording; false at the end of the input.
    fn hear(&mut self) -> Result<bool, String> {
        let expected = self.to_come.pop().ok_or("the recording has no such message")?;
        let early = self.early.iter().position(|message| same(message, &expected));
        let message = match early {
            Some(at) => self.early.remove(at),
            None => loop {
                let Some(message) = self.next() else { return Ok(false) };
                if same(&message, &expected) {
                    break message;
                }
                if self.to_come.iter().any(|later| same(&message, later)) {
                    self.early.push(message);
                    // Nobody has to say what is not answered, and this client has gone on without it.
                    if is_notification(&expected) {
                        return Ok(true);
                    }
                } else {
                    self.refuse(&message);
                }
            },
        };
        if expected["method"].is_string() && expected.get("id").is_some() {
            self.ids.push((expected["id"].clone(), message["id"].clone()));
        }
        Ok(true)
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = self.input.read_until(b'\n', &mut line).ok()?;
            if count == 0 {
                return None;
            }
            if let Ok(message) = serde_json::from_slice(&line) {
                return Some(message);
            }
        }
    }

    fn refuse(&self, message: &Value) {
        if message["method"].is_string() && message.get("id").is_some() {
            let error = json!({ "code": METHOD_NOT_FOUND, "message": "the recording has no such request" });
            self.wire.error(&message["id"], &error);
        }
    }

    fn say(&mut self, text: &str) -> Result<(), String> {
        let said: Said<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Some(id) = said.id.filter(|_| said.method.is_none()) else {
            self.wire.bytes(format!("{text}\n").as_bytes());
            return Ok(());
        };
        let recorded: Value = serde_json::from_str(id.get()).map_err(|error| error.to_string())?;
        let at = self.ids.iter().position(|(known, _)| *known == recorded);
        let (_, id) = self.ids.swap_remove(at.ok_or("an answer to nothing")?);
        let (name, content) = match (said.result, said.error) {
            (Some(result), _) => ("result", result.get()),
            (None, Some(error)) => ("error", error.get()),
            (None, None) => ("result", "null"),
        };
        self.wire.bytes(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"{name}\":{content}}}\n").as_bytes());
        Ok(())
    }
}

fn is_notification(message: &Value) -> bool {
    message["method"].is_string() && message.get("id").is_none()
}

/// Whether a message of the client does what one of the recording did.
fn same(message: &Value, expected: &Value) -> bool {
    if expected["method"].is_string() {
        message["method"] == expected["method"] && message.get("id").is_some() == expected.get("id").is_some()
    } else {
        !message["method"].is_string() && message["id"] == expected["id"]
    }
}
