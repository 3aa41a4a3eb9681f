//! The way to one agent: its pipes, the lines they carry, what the lines mean, and what all of it may cost.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, sleep_until, timeout};

use super::error::{AgentExit, AgentFault};
use super::process::{AgentProcess, Pipes};
use crate::wire::lines::{Line, Lines};
use crate::wire::pi_rpc::{Command, MAX_LINE_BYTES, Output, Translator};

/// How long output may follow an exit, and an exit the end of output: a child may hold the pipes for ever.
const DRAIN: Duration = Duration::from_millis(500);
/// What an agent may send in one turn.
const MAX_TURN_BYTES: u64 = 512 << 20;
/// What of it may be text for the user: the reply repeats all of it, so all of it is kept in memory. A model's longest
/// answer is a few hundred kilobytes.
const MAX_TURN_TEXT_BYTES: usize = 16 << 20;
/// What of it may be no records.
const MAX_GARBAGE_BYTES: u64 = 1 << 20;
/// What of a line that is no record is kept.
const GARBAGE_HEAD_BYTES: usize = 200;
const READ_BYTES: usize = 64 << 10;

/// The way to one agent.
pub(super) struct Link {
    pub(super) translator: Translator,
    pipes: Pipes,
    lines: Lines,
    buffer: BytesMut,
    exited: Option<AgentExit>,
    /// When an agent that has exited is taken to have said everything.
    drained: Option<Instant>,
    turn_bytes: u64,
    garbage_bytes: u64,
    /// When the last record came; garbage is no sign of work.
    heard: Instant,
}

impl Link {
    pub(super) fn new(process: AgentProcess, cwd: &str) -> Self {
        Self {
            translator: Translator::new(cwd),
            pipes: Pipes::new(process),
            lines: Lines::new(MAX_LINE_BYTES),
            buffer: BytesMut::with_capacity(READ_BYTES),
            exited: None,
            drained: None,
            turn_bytes: 0,
            garbage_bytes: 0,
            heard: Instant::now(),
        }
    }

    /// Queues a command for the agent.
    pub(super) fn send(&self, command: &Command, id: &str) -> Result<(), AgentFault> {
        self.pipes.send(command.encode(id))
    }

    /// The end of the agent's log.
    pub(super) fn log(&self) -> String {
        self.pipes.log.text()
    }

    /// A new turn has a new budget.
    pub(super) fn begin_turn(&mut self) {
        self.turn_bytes = 0;
        self.garbage_bytes = 0;
        self.heard = Instant::now();
        self.translator.take_turn();
    }

    /// When the last record came, or the turn began.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// The meanings of the next output. An agent that has ended is a fault, after the last of its output. A dropped
    /// call loses nothing.
    pub(super) async fn read(&mut self) -> Result<Vec<Output>, AgentFault> {
        loop {
            let drained = self.drained;
            self.buffer.reserve(READ_BYTES);
            tokio::select! {
                // Output first: what the agent said before it ended belongs to its turn.
                biased;
                read = self.pipes.stdout.read_buf(&mut self.buffer) => match read {
                    Ok(count) if count > 0 => {
                        let chunk = self.buffer.split();
                        return self.understand(&chunk);
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

    /// Translates a chunk, within the turn's bounds.
    fn understand(&mut self, chunk: &[u8]) -> Result<Vec<Output>, AgentFault> {
        self.turn_bytes += chunk.len() as u64;
        if self.turn_bytes > MAX_TURN_BYTES {
            return Err(AgentFault::Flooded { limit_bytes: MAX_TURN_BYTES });
        }
        let mut outputs = Vec::new();
        self.lines.push(chunk);
        while let Some(line) = self.lines.next_line() {
            let meanings = self.translator.line(&line);
            if !meanings.contains(&Output::Garbage) {
                self.heard = Instant::now();
            }
            for output in meanings {
                match output {
                    Output::Garbage => self.garbage(&line)?,
                    Output::TooLong { length } => {
                        return Err(AgentFault::RecordTooLong { length, limit_bytes: MAX_LINE_BYTES });
                    }
                    output => outputs.push(output),
                }
            }
            if self.translator.turn().text.len() > MAX_TURN_TEXT_BYTES {
                return Err(AgentFault::TooMuchText { limit_bytes: MAX_TURN_TEXT_BYTES });
            }
        }
        Ok(outputs)
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
