//! MCP over standard input and output, for agents that take no tool servers over HTTP.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
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
    carry(BufReader::new(tokio::io::stdin()), tokio::io::stdout()).await
}

/// Input that can't be read on is its end: what was asked before has its answer before that is told.
async fn carry(
    mut lines: impl AsyncBufRead + Unpin,
    mut stdout: impl AsyncWrite + Unpin,
) -> Result<(), ToolsError> {
    let mut answers: JoinSet<Option<Value>> = JoinSet::new();
    let mut waiting = Waiting::default();
    let (mut line, mut open, mut outcome) = (Vec::new(), true, Ok(()));
    while open || !answers.is_empty() {
        tokio::select! {
            read = read_line(&mut lines, &mut line), if open => match read {
                Ok(more) => {
                    open = more;
                    let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
                    if !text.trim().is_empty() {
                        waiting.take(&mut answers, text);
                    }
                }
                Err(error) => {
                    open = false;
                    outcome = Err(error);
                }
            },
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
    outcome
}

/// Reads on to the end of a line; false where there is none any more. Cancellation safe: what was read stays in `line`.
async fn read_line<R>(input: &mut R, line: &mut Vec<u8>) -> Result<bool, ToolsError>
where
    R: AsyncBufRead + Unpin,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_is_too_long_ends_the_bridge_behind_the_answers_that_are_due() {
        let long = vec![b'x'; usize::try_from(MAX_REQUEST_BYTES).unwrap() + 1];
        let input = [b"no JSON\n".as_slice(), &long, b"\n"].concat();
        let mut output = Vec::new();
        let error = carry(input.as_slice(), &mut output).await.unwrap_err();
        assert!(matches!(error, ToolsError::TooLong), "{error}");
        let answer: Value = serde_json::from_slice(&output).unwrap();
        assert_eq!(answer["error"]["code"], PARSE_ERROR);
    }
}
