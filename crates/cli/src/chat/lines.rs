//! Standard input, line by line, read as soon as it is there: so that what was typed before a question was asked is known
//! not to answer it.

use std::collections::VecDeque;
use std::io;

use rustix::termios::{QueueSelector, tcflush};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Lines that are read before anybody wants them; what is beyond waits where it comes from.
const AHEAD: usize = 64;

type Line = Result<String, io::Error>;

#[derive(Debug)]
pub(super) struct Lines {
    entered: mpsc::Receiver<Line>,
    /// What comes before those.
    ahead: VecDeque<Line>,
}

impl Lines {
    /// Begins to read. The thread ends with the input or with this process: no read of a terminal can be called off.
    pub(super) fn of_stdin() -> Result<Self, Failure> {
        let (send, entered) = mpsc::channel(AHEAD);
        let read = move || {
            for line in io::stdin().lines() {
                let failed = line.is_err();
                if send.blocking_send(line).is_err() || failed {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("input".to_owned()).spawn(read).map_err(Failure::Input)?;
        Ok(Self { entered, ahead: VecDeque::new() })
    }

    /// The next line; `None` at the end. A dropped call loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Failure> {
        match self.ahead.pop_front() {
            Some(line) => Some(line),
            None => self.entered.recv().await,
        }
        .transpose()
        .map_err(Failure::Input)
    }

    /// The next line of those that come from now on. A dropped call loses nothing.
    pub(super) async fn answer(&mut self) -> Result<Option<String>, Failure> {
        self.entered.recv().await.transpose().map_err(Failure::Input)
    }

    /// Keeps a line to be the next one.
    pub(super) fn put_back(&mut self, line: String) {
        self.ahead.push_front(Ok(line));
    }

    /// Whether a line is there that was entered before it was asked for.
    pub(super) fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Keeps what was typed so far from answering what is asked next: whole lines are kept for later, the beginning of
    /// one is dropped. True where something was kept.
    pub(super) fn set_aside(&mut self) -> bool {
        while let Ok(line) = self.entered.try_recv() {
            self.ahead.push_back(line);
        }
        // Refused where it is no terminal, which drops nothing.
        let _ = tcflush(io::stdin(), QueueSelector::IFlush);
        self.is_ahead()
    }
}
