//! The way to one agent: its pipes, the lines they carry, what the lines mean, and what all of it may cost.

use std::collections::HashSet;
use std::time::Duration;

use bytes::BytesMut;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, sleep_until, timeout};

use super::error::{AgentExit, AgentFault};
use super::process::{AgentProcess, Pipes};
use super::workspace::Answered;
use crate::wire::lines::{Line, Lines};
use crate::wire::message::{Message, RpcError};
use crate::wire::{MAX_LINE_BYTES, Step, Wire};

/// How long output may follow an exit, and an exit the end of output: a child may hold the pipes for ever.
const DRAIN: Duration = Duration::from_millis(500);
/// What an agent may send in one turn.
const MAX_TURN_BYTES: u64 = 512 << 20;
/// What of it may be no records.
const MAX_GARBAGE_BYTES: u64 = 1 << 20;
/// What of a line that is no record is kept.
const GARBAGE_HEAD_BYTES: usize = 200;
const READ_BYTES: usize = 64 << 10;

/// The way to one agent.
pub(super) struct Link {
    wire: Wire,
    /// Our requests that wait for an answer.
    asked: HashSet<u64>,
    /// What the wire had to say by itself.
    understood: Vec<Message>,
    /// What comes after that.
    fault: Option<AgentFault>,
    pipes: Pipes,
    lines: Lines,
    buffer: BytesMut,
    exited: Option<AgentExit>,
    /// When an agent that has exited is taken to have said everything.
    drained: Option<Instant>,
    turn_bytes: u64,
    garbage_bytes: u64,
    /// How long the agent's log was when the turn began.
    log_before: u64,
    /// When the last record came; garbage is no sign of work, nor is an answer that nobody waits for.
    heard: Instant,
}

impl Link {
    pub(super) fn new(process: AgentProcess, wire: Wire) -> Self {
        Self {
            wire,
            asked: HashSet::new(),
            understood: Vec::new(),
            fault: None,
            pipes: Pipes::new(process),
            lines: Lines::new(MAX_LINE_BYTES),
            buffer: BytesMut::with_capacity(READ_BYTES),
            exited: None,
            drained: None,
            turn_bytes: 0,
            garbage_bytes: 0,
            log_before: 0,
            heard: Instant::now(),
        }
    }

    /// Sends a request to the agent.
    pub(super) fn request(&mut self, id: u64, method: &str, params: &Value) -> Result<(), AgentFault> {
        self.asked.insert(id);
        let step = self.wire.request(id, method, params);
        self.take(step)
    }

    /// Gives up waiting for an answer: one that comes late is one that nobody waits for.
    pub(super) fn forget(&mut self, id: u64) {
        self.asked.remove(&id);
    }

    /// Sends a notification to the agent.
    pub(super) fn notify(&mut self, method: &str, params: &Value) -> Result<(), AgentFault> {
        let step = self.wire.notify(method, params);
        self.take(step)
    }

    /// Answers a request of the agent.
    pub(super) fn answer(&mut self, id: &Value, outcome: &Result<Value, RpcError>) -> Result<(), AgentFault> {
        // What it waited for was ours.
        self.heard = Instant::now();
        let step = self.wire.answer(id, outcome);
        self.take(step)
    }

    /// Answers a request of the agent with what room was kept free for.
    pub(super) fn deliver(&mut self, id: &Value, answered: Answered) -> Result<(), AgentFault> {
        let Answered { outcome, room } = answered;
        let Some(mut room) = room else { return self.answer(id, &outcome) };
        self.heard = Instant::now();
        let step = self.wire.answer(id, &outcome);
        let bytes = step.lines.iter().map(Vec::len).sum();
        if let Err(error) = room.grow(bytes) {
            return self.answer(id, &Err(error));
        }
        let mut room = Some(room.into_permit());
        step.lines.into_iter().try_for_each(|line| self.pipes.send(line, room.take()))
    }

    /// Whether a cancellation may find nothing to cancel yet, and has to be said again.
    pub(super) fn repeats_cancel(&self) -> bool {
        self.wire.repeats_cancel()
    }

    /// Does what the wire wants done. Answers to nothing, or to what is answered already, go no further.
    fn take(&mut self, step: Step) -> Result<(), AgentFault> {
        for message in step.messages {
            let is_wanted = match &message {
                Message::Response { id, .. } => self.asked.remove(id),
                Message::Garbage | Message::Unasked => false,
                _ => true,
            };
            if is_wanted {
                self.understood.push(message);
            }
        }
        step.lines.into_iter().try_for_each(|line| self.pipes.send(line, None))
    }

    /// The end of the agent's log.
    pub(super) fn log(&self) -> String {
        self.pipes.log.text()
    }

    /// The end of what of it was written in this turn.
    pub(super) fn turn_log(&self) -> String {
        self.pipes.log.text_since(self.log_before)
    }

    /// A new turn has a new budget.
    pub(super) fn begin_turn(&mut self) {
        self.turn_bytes = 0;
        self.garbage_bytes = 0;
        self.log_before = self.pipes.log.written();
        self.heard = Instant::now();
    }

    /// When the last record came, or the turn began.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// What the agent has said already; `None` where that is nothing.
    pub(super) async fn read_now(&mut self) -> Option<Result<Vec<Message>, AgentFault>> {
        tokio::select! {
            biased;
            messages = self.read() => Some(messages),
            // The second look comes after others had their turn, who may bring it.
            () = tokio::task::yield_now() => None,
        }
    }

    /// What the agent says next. An agent that has ended is a fault, after the last of its output. A dropped call loses
    /// nothing.
    pub(super) async fn read(&mut self) -> Result<Vec<Message>, AgentFault> {
        loop {
            if !self.understood.is_empty() {
                return Ok(std::mem::take(&mut self.understood));
            }
            if let Some(fault) = &self.fault {
                return Err(fault.clone());
            }
            let drained = self.drained;
            self.buffer.reserve(READ_BYTES);
            tokio::select! {
                // Output first: what the agent said before it ended belongs to its turn.
                biased;
                read = self.pipes.stdout.read_buf(&mut self.buffer) => match read {
                    Ok(count) if count > 0 => {
                        let chunk = self.buffer.split();
                        // What it said before it went wrong counts.
                        self.fault = self.understand(&chunk).err();
                    }
                    _ => return Err(self.died().await),
                },
                exit = &mut self.pipes.exit, if self.exited.is_none() => {
                    self.exited = Some(exit);
                    self.drained = Some(Instant::now() + DRAIN);
                }
                () = sleep_until(drained.unwrap_or_else(Instant::now)), if drained.is_some() => {
                    return Err(self.died().await);
                }
            }
        }
    }

    /// What is known of an agent that has ended.
    async fn died(&mut self) -> AgentFault {
        if self.exited.is_none() {
            self.exited = timeout(DRAIN, &mut self.pipes.exit).await.ok();
        }
        // A last line without its end is what a dying agent leaves.
        if let Some(Line::Whole(rest)) = self.lines.finish() {
            self.pipes.log.push(&rest);
        }
        let log = self.pipes.finished_log(DRAIN).await;
        AgentFault::Died { exit: self.exited.unwrap_or_default(), log }
    }

    /// Reads a chunk, within the turn's bounds.
    fn understand(&mut self, chunk: &[u8]) -> Result<(), AgentFault> {
        self.turn_bytes += chunk.len() as u64;
        if self.turn_bytes > MAX_TURN_BYTES {
            return Err(AgentFault::Flooded { limit_bytes: MAX_TURN_BYTES });
        }
        self.lines.push(chunk);
        while let Some(line) = self.lines.next_line() {
            if matches!(&line, Line::Whole(line) if line.is_empty()) {
                continue;
            }
            let step = self.wire.line(&line);
            let is_answer = |message: &Message| match message {
                Message::Response { id, .. } => self.asked.contains(id),
                Message::Unasked => false,
                _ => true,
            };
            if step.messages.contains(&Message::Garbage) {
                self.garbage(&line)?;
            } else if step.messages.is_empty() || step.messages.iter().any(is_answer) {
                self.heard = Instant::now();
            }
            if let Some(Message::TooLong { length }) =
                step.messages.iter().find(|message| matches!(message, Message::TooLong { .. }))
            {
                return Err(AgentFault::RecordTooLong { length: *length, limit_bytes: MAX_LINE_BYTES });
            }
            self.take(step)?;
        }
        Ok(())
    }

    /// Counts a line that is no record, and keeps its beginning for whoever asks why.
    fn garbage(&mut self, line: &Line) -> Result<(), AgentFault> {
        let Line::Whole(bytes) = line else { return Ok(()) };
        self.pipes.log.push(&bytes[..bytes.len().min(GARBAGE_HEAD_BYTES)]);
        self.pipes.log.push(b"\n");
        self.garbage_bytes += bytes.len() as u64 + 1;
        if self.garbage_bytes > MAX_GARBAGE_BYTES {
            return Err(AgentFault::Garbage { limit_bytes: MAX_GARBAGE_BYTES, log: self.log() });
        }
        Ok(())
    }

    /// Ends the agent's input, as a way of asking it to go.
    pub(super) fn hang_up(&mut self) {
        self.pipes.close_input();
    }

    /// Kills what is left of the agent and waits until it is gone, as long as that is allowed to take.
    pub(super) async fn kill(&mut self, at_most: Duration) {
        self.pipes.kill();
        if self.exited.is_none() {
            self.exited = timeout(at_most, &mut self.pipes.exit).await.ok();
        }
        if self.exited.is_none() {
            tracing::warn!("an agent's process is not gone after it was killed");
        }
    }
}
