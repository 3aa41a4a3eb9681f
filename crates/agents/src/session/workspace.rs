//! What an agent may have its client do for it: read and write text files, run programs. All of it happens where the
//! agent is, with no more rights than the agent has; whoever runs the agent provides it as a [`Workspace`].
//!
//! Agents that work on their VM's files by themselves are told that the client offers none of this; they are answered
//! all the same where they ask. A request for another session, or one that makes no sense, is refused.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::AgentExit;
use crate::wire::acp;
use crate::wire::message::RpcError;

/// Programs that one session may have running at once.
const MAX_TERMINALS: usize = 32;
/// What answers with content may hold in memory, from before it is read until it is written to the agent: two of the
/// largest files, whose records are a little longer than they are. Further ones wait for the agent to read.
const ANSWERS_BYTES: usize = 2 * (MAX_FILE_BYTES + UNIT_BYTES);
/// How long an answer waits for room before it is one that there is none.
const ROOM_TIMEOUT: Duration = Duration::from_secs(60);
/// Room is counted in these.
const UNIT_BYTES: usize = 64 << 10;
/// What is kept of a program's output, unless the agent wants less.
pub const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// The largest file that is read for an agent. What it has written comes in its request, which is smaller.
pub const MAX_FILE_BYTES: usize = 16 << 20;

/// Work that is under way.
pub type Work<T> = Pin<Box<dyn Future<Output = Result<T, WorkspaceError>> + Send>>;

/// Where an agent works, with the agent's own rights.
pub trait Workspace: Debug + Send + Sync {
    /// The content of a file, at most [`MAX_FILE_BYTES`] of it.
    fn read_file(&self, path: String) -> Work<Vec<u8>>;
    /// Writes a file.
    fn write_file(&self, path: String, content: String) -> Work<()>;
    /// Starts a program.
    fn run(&self, program: Program) -> Work<Arc<dyn Terminal>>;
}

/// A program to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The command, and nothing but the command.
    pub argv: Vec<String>,
    /// Variables beside the session's own.
    pub env: Vec<(String, String)>,
    /// Where it runs; the session's directory where it is absent.
    pub cwd: Option<String>,
    /// How much of the end of its output is kept.
    pub output_bytes: usize,
}

/// A running program. Dropped, it is killed.
pub trait Terminal: Debug + Send + Sync {
    /// The end of its output, and whether something before it was dropped.
    fn output(&self) -> (Vec<u8>, bool);
    /// How it ended, if it has.
    fn exit(&self) -> Option<AgentExit>;
    /// Resolves when it has ended.
    fn exited(&self) -> Pin<Box<dyn Future<Output = AgentExit> + Send>>;
    /// Kills it.
    fn kill(&self);
}

/// What could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WorkspaceError {
    /// Why, in words that may be told the agent.
    pub message: String,
}

/// One session's client side.
#[derive(Debug)]
pub(super) struct Client {
    workspace: Option<Arc<dyn Workspace>>,
    agent_session_id: String,
    terminals: Arc<Mutex<Terminals>>,
    room: Room,
}

/// Room for answers with content.
#[derive(Debug, Clone)]
struct Room(Arc<Semaphore>);

impl Room {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(ANSWERS_BYTES / UNIT_BYTES)))
    }

    /// Waits for room for content of so many bytes and what is around it in a record.
    async fn take(&self, bytes: usize) -> Result<Taken, RpcError> {
        let room = timeout(ROOM_TIMEOUT, Arc::clone(&self.0).acquire_many_owned(units(bytes) + 1)).await;
        room.ok().and_then(Result::ok).map(Taken).ok_or_else(|| {
            RpcError::new(acp::INTERNAL_ERROR, "answers to earlier requests wait to be read by the agent")
        })
    }
}

fn units(bytes: usize) -> u32 {
    // More than there is, all the same.
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX / 2)
}

/// Room that an answer has.
#[derive(Debug)]
pub(super) struct Taken(OwnedSemaphorePermit);

impl Taken {
    /// Makes it as large as the answer's record, which JSON makes up to six times as long as its content. There is no
    /// waiting: two answers that hold room while they wait for more would wait for each other.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), RpcError> {
        let more = units(bytes).saturating_sub(u32::try_from(self.0.num_permits()).unwrap_or(u32::MAX));
        match Arc::clone(self.0.semaphore()).try_acquire_many_owned(more) {
            Ok(more) => {
                self.0.merge(more);
                Ok(())
            }
            Err(_) => {
                let message = format!("there is no room for an answer whose record has {bytes} bytes");
                Err(RpcError::new(acp::INTERNAL_ERROR, message))
            }
        }
    }

    /// What is to be dropped once the answer is written.
    pub(super) fn into_permit(self) -> OwnedSemaphorePermit {
        self.0
    }
}

#[derive(Debug, Default)]
struct Terminals {
    last: u64,
    by_id: HashMap<String, Arc<dyn Terminal>>,
}

/// What a request has come to.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) outcome: Result<Value, RpcError>,
    /// What the outcome takes in memory, where that is more than a line.
    pub(super) room: Option<Taken>,
}

impl From<Result<Value, RpcError>> for Answered {
    fn from(outcome: Result<Value, RpcError>) -> Self {
        Self { outcome, room: None }
    }
}

type Answer = Pin<Box<dyn Future<Output = Answered> + Send>>;

impl Client {
    pub(super) fn new(workspace: Option<Arc<dyn Workspace>>) -> Self {
        Self { workspace, agent_session_id: String::new(), terminals: Arc::default(), room: Room::new() }
    }

    /// From here on requests have to name the session.
    pub(super) fn serve(&mut self, agent_session_id: &str) {
        agent_session_id.clone_into(&mut self.agent_session_id);
    }

    /// What a request of the agent comes to. `acts` is whether it may change anything.
    pub(super) fn answer(&self, method: &str, params: &Value, acts: bool) -> Answer {
        let Some(workspace) = self.workspace.clone().filter(|_| is_ours(method)) else {
            return refuse(RpcError::new(
                acp::METHOD_NOT_FOUND,
                format!("Method not found: {}", short(method)),
            ));
        };
        if params["sessionId"].as_str() != Some(&self.agent_session_id) {
            return refuse(invalid("sessionId names no session of this client"));
        }
        if !acts && matches!(method, "fs/write_text_file" | "terminal/create") {
            let message = "the session's permission policy rejects everything that acts";
            return refuse(RpcError::new(acp::INVALID_REQUEST, message));
        }
        match method {
            "fs/read_text_file" => read_file(workspace, params, self.room.clone()),
            "fs/write_text_file" => write_file(&*workspace, params),
            "terminal/create" => self.create(&*workspace, params),
            _ => self.terminal(method, params),
        }
    }

    fn create(&self, workspace: &dyn Workspace, params: &Value) -> Answer {
        let program = match program(params) {
            Ok(program) => program,
            Err(error) => return refuse(error),
        };
        let terminals = Arc::clone(&self.terminals);
        if lock(&terminals).by_id.len() >= MAX_TERMINALS {
            return refuse(invalid(&format!("{MAX_TERMINALS} terminals are open; release some")));
        }
        let started = workspace.run(program);
        answer(async move {
            let terminal = started.await.map_err(failed)?;
            let mut terminals = lock(&terminals);
            // Others may have come meanwhile; this one ends with its handle.
            if terminals.by_id.len() >= MAX_TERMINALS {
                return Err(invalid(&format!("{MAX_TERMINALS} terminals are open; release some")));
            }
            terminals.last += 1;
            let id = format!("terminal-{}", terminals.last);
            terminals.by_id.insert(id.clone(), terminal);
            Ok(json!({ "terminalId": id }))
        })
    }

    fn terminal(&self, method: &str, params: &Value) -> Answer {
        let id = params["terminalId"].as_str().unwrap_or_default().to_owned();
        let mut terminals = lock(&self.terminals);
        let Some(terminal) = terminals.by_id.get(&id).cloned() else {
            return refuse(invalid(&format!("there is no terminal {}", short(&id))));
        };
        match method {
            "terminal/output" => in_room(self.room.clone(), MAX_OUTPUT_BYTES, async move {
                let (output, truncated) = terminal.output();
                let mut result =
                    json!({ "output": String::from_utf8_lossy(&output), "truncated": truncated });
                if let (Some(exit), Value::Object(result)) = (terminal.exit(), &mut result) {
                    result.insert("exitStatus".to_owned(), exit_status(exit));
                }
                Ok(result)
            }),
            "terminal/wait_for_exit" => answer(async move { Ok(exit_status(terminal.exited().await)) }),
            "terminal/kill" => {
                terminal.kill();
                answer(async { Ok(json!({})) })
            }
            _ => {
                terminals.by_id.remove(&id);
                terminal.kill();
                answer(async { Ok(json!({})) })
            }
        }
    }
}

fn lock(terminals: &Mutex<Terminals>) -> MutexGuard<'_, Terminals> {
    // Every change is one insertion or one removal.
    terminals.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_ours(method: &str) -> bool {
    const METHODS: [&str; 7] = [
        "fs/read_text_file",
        "fs/write_text_file",
        "terminal/create",
        "terminal/output",
        "terminal/wait_for_exit",
        "terminal/kill",
        "terminal/release",
    ];
    METHODS.contains(&method)
}

fn read_file(workspace: Arc<dyn Workspace>, params: &Value, room: Room) -> Answer {
    let path = match absolute(params, "path") {
        Ok(path) => path,
        Err(error) => return refuse(error),
    };
    let number = |name: &str| params[name].as_u64().and_then(|number| usize::try_from(number).ok());
    let (first, count) = (number("line").unwrap_or(1).max(1), number("limit").unwrap_or(usize::MAX));
    in_room(room, MAX_FILE_BYTES, async move {
        let read = workspace.read_file(path);
        let content = String::from_utf8(read.await.map_err(failed)?)
            .map_err(|_| RpcError::new(acp::INTERNAL_ERROR, "the file is not text in UTF-8"))?;
        let lines = content.split_inclusive('\n').skip(first - 1).take(count);
        Ok(json!({ "content": lines.collect::<String>() }))
    })
}

fn write_file(workspace: &dyn Workspace, params: &Value) -> Answer {
    let (path, content) = match (absolute(params, "path"), params["content"].as_str()) {
        (Err(error), _) => return refuse(error),
        (_, None) => return refuse(invalid("content is missing")),
        (Ok(path), Some(content)) => (path, content.to_owned()),
    };
    let written = workspace.write_file(path, content);
    answer(async move { written.await.map(|()| json!({})).map_err(failed) })
}

fn program(params: &Value) -> Result<Program, RpcError> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let command = text(&params["command"]).filter(|command| !command.is_empty());
    let command = command.ok_or_else(|| invalid("command is missing"))?;
    let list = |name: &str| params[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let args: Option<Vec<String>> = list("args").iter().map(text).collect();
    let pair = |entry: &Value| Some((text(&entry["name"])?, text(&entry["value"])?));
    let env: Option<Vec<(String, String)>> = list("env").iter().map(pair).collect();
    let cwd = match &params["cwd"] {
        Value::Null => None,
        _ => Some(absolute(params, "cwd")?),
    };
    let wanted = params["outputByteLimit"].as_u64().and_then(|bytes| usize::try_from(bytes).ok());
    Ok(Program {
        argv: std::iter::once(command).chain(args.ok_or_else(|| invalid("args are texts"))?).collect(),
        env: env.ok_or_else(|| invalid("env is a list of names and values"))?,
        cwd,
        output_bytes: wanted.unwrap_or(MAX_OUTPUT_BYTES).min(MAX_OUTPUT_BYTES),
    })
}

fn absolute(params: &Value, name: &str) -> Result<String, RpcError> {
    match params[name].as_str() {
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(path.to_owned()),
        _ => Err(invalid(&format!("{name} must be an absolute path"))),
    }
}

fn exit_status(exit: AgentExit) -> Value {
    json!({ "exitCode": exit.code, "signal": exit.signal.map(|signal| signal.to_string()) })
}

fn invalid(message: &str) -> RpcError {
    RpcError::new(acp::INVALID_PARAMS, format!("Invalid params: {message}"))
}

fn failed(error: WorkspaceError) -> RpcError {
    RpcError::new(acp::INTERNAL_ERROR, error.message)
}

fn refuse(error: RpcError) -> Answer {
    answer(async move { Err(error) })
}

fn answer(outcome: impl Future<Output = Result<Value, RpcError>> + Send + 'static) -> Answer {
    Box::pin(async move { outcome.await.into() })
}

/// An answer that holds so much until the agent has it; what it says is not looked at before there is room for it.
fn in_room(
    room: Room,
    bytes: usize,
    outcome: impl Future<Output = Result<Value, RpcError>> + Send + 'static,
) -> Answer {
    Box::pin(async move {
        match room.take(bytes).await {
            Ok(room) => Answered { outcome: outcome.await, room: Some(room) },
            Err(error) => Err(error).into(),
        }
    })
}

/// A text of the agent as far as a message should repeat it.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_of_the_largest_files_have_room_and_a_longer_record_only_where_there_is_some_left() {
        let room = Room::new();
        let mut first = room.take(MAX_FILE_BYTES).await.unwrap();
        let second = room.take(MAX_FILE_BYTES).await.unwrap();
        room.take(1).await.unwrap_err();
        first.grow(MAX_FILE_BYTES + 100).unwrap();
        let error = first.grow(MAX_FILE_BYTES + 2 * UNIT_BYTES).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
        drop(second);
        first.grow(ANSWERS_BYTES).unwrap();
        first.grow(ANSWERS_BYTES + 1).unwrap_err();
        room.take(1).await.unwrap_err();
        // What is written is free again.
        drop(first.into_permit());
        room.take(MAX_FILE_BYTES).await.unwrap();
    }
}
