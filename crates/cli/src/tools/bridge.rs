//! MCP over standard input and output, for agents that take no tool servers over HTTP.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::{AbortHandle, Id, JoinSet};

use super::request::post;
use super::{MAX_REQUEST_BYTES, ToolsError};
use crate::failure::Failure;

/// A code of JSON-RPC for what is no JSON.
const PARSE_ERROR: i64 = -32_700;

/// Another one for what has gone wrong on the way.
const INTERNAL_ERROR: i64 = -32_603;

/// Requests that wait for their answers.
#[derive(Default)]
struct Waiting {
    tasks: HashMap<String, AbortHandle>,
    ids: HashMap<Id, String>,
}

/// Carries messages until standard input ends and every request has its answer.
pub(super) async fn run() -> Result<(), ToolsError> {
    let mut lines = BufReader::new(tokio::io::stdin());
    let mut stdout = tokio::io::stdout();
    let mut answers: JoinSet<Option<Value>> = JoinSet::new();
    let mut waiting = Waiting::default();
    let (mut line, mut open) = (Vec::new(), true);
    while open || !answers.is_empty() {
        tokio::select! {
            read = read_line(&mut lines, &mut line), if open => {
                open = read?;
                let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
                if !text.trim().is_empty() {
                    waiting.take(&mut answers, text);
                }
            }
            Some(answered) = answers.join_next_with_id() => {
                let (task, answer) = match answered {
                    Ok((task, answer)) => (task, answer),
                    // Cancelled: nobody wants an answer.
                    Err(error) => (error.id(), None),
                };
                waiting.done(task);
                if let Some(answer) = answer {
                    let text = format!("{answer}\n");
                    stdout.write_all(text.as_bytes()).await.map_err(Failure::from_stdout)?;
                    stdout.flush().await.map_err(Failure::from_stdout)?;
                }
            }
        }
    }
    Ok(())
}

/// Reads on to the end of a line; false where there is none any more. Cancellation safe: what was read stays in `line`.
async fn read_line<R>(input: &mut R, line: &mut Vec<u8>) -> Result<bool, ToolsError>
where
    R: tokio::io::AsyncBufRead + Unpin,
{
    // One more than there may be tells a line that is too long from the last one.
    let room = (MAX_REQUEST_BYTES + 1).saturating_sub(line.len() as u64);
    input.take(room).read_until(b'\n', line).await.map_err(ToolsError::Stdin)?;
    if line.len() as u64 > MAX_REQUEST_BYTES {
        return Err(ToolsError::TooLong);
    }
    Ok(line.ends_with(b"\n"))
}

impl Waiting {
    fn take(&mut self, answers: &mut JoinSet<Option<Value>>, text: String) {
        let message: Value = match serde_json::from_str(&text) {
            Ok(message) => message,
            Err(error) => {
                let answer = refusal(&Value::Null, PARSE_ERROR, &error.to_string());
                answers.spawn(std::future::ready(Some(answer)));
                return;
            }
        };
        if message["method"] == "notifications/cancelled"
            && let Some(task) = self.tasks.remove(&message["params"]["requestId"].to_string())
        {
            task.abort();
            return;
        }
        let id = message.get("id").cloned();
        let asked = id.clone();
        let task = answers.spawn(async move {
            match post(text).await {
                Ok(answer) => answer,
                Err(error) => asked.map(|id| refusal(&id, INTERNAL_ERROR, &error.to_string())),
            }
        });
        if let Some(id) = id {
            self.ids.insert(task.id(), id.to_string());
            self.tasks.insert(id.to_string(), task);
        }
    }

    fn done(&mut self, task: Id) {
        if let Some(id) = self.ids.remove(&task) {
            self.tasks.remove(&id);
        }
    }
}

fn refusal(id: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}
