//! Standard input, line by line, read as soon as it is there: so that what was typed before a question was asked is known
//! not to answer it.
//!
//! A line carries the time at which it was read: one may have been read long before it is taken from the queue, because
//! the queue was full.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use rustix::termios::{QueueSelector, tcflush};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Lines that are read before anybody wants them; what is beyond waits where it comes from, but for one that the reader
/// holds in its hand.
const AHEAD: usize = 64;

type Line = Result<String, io::Error>;

#[derive(Debug)]
pub(super) struct Lines {
    /// With the time of the read.
    entered: mpsc::Receiver<(Instant, Line)>,
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
                if send.blocking_send((Instant::now(), line)).is_err() || failed {
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
            None => self.entered.recv().await.map(|(_, line)| line),
        }
        .transpose()
        .map_err(Failure::Input)
    }

    /// The next line of those that were read after a question was shown; earlier ones are kept for later. A dropped call
    /// loses nothing.
    pub(super) async fn answer(&mut self, shown: Instant) -> Result<Option<String>, Failure> {
        while let Some((read, line)) = self.entered.recv().await {
            if read > shown {
                return line.map(Some).map_err(Failure::Input);
            }
            self.ahead.push_back(line);
        }
        Ok(None)
    }

    /// Keeps a line to be the next one.
    pub(super) fn put_back(&mut self, line: String) {
        self.ahead.push_front(Ok(line));
    }

    /// Whether a line is there that was entered before it was asked for.
    pub(super) fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Keeps what was typed so far from answering what is asked next. Lines that were read are kept for later; what the
    /// terminal still holds is dropped: the beginning of a line, and whole lines where so many came at once that they
    /// weren't read yet. True where something was kept.
    pub(super) fn set_aside(&mut self) -> bool {
        while let Ok((_, line)) = self.entered.try_recv() {
            self.ahead.push_back(line);
        }
        // Refused where it is no terminal, which drops nothing.
        let _ = tcflush(io::stdin(), QueueSelector::IFlush);
        self.is_ahead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(line: &str) -> Line {
        Ok(line.to_owned())
    }

    #[tokio::test]
    async fn a_line_that_was_read_before_the_question_was_shown_does_not_answer_it() {
        let (send, entered) = mpsc::channel(AHEAD);
        let mut lines = Lines { entered, ahead: VecDeque::new() };
        let read = Instant::now();
        let shown = Instant::now();
        // The reader could not hand it over any sooner.
        send.send((read, whole("y"))).await.unwrap();
        send.send((Instant::now() + std::time::Duration::from_millis(1), whole("n"))).await.unwrap();
        assert_eq!(lines.answer(shown).await.unwrap().as_deref(), Some("n"));
        assert!(lines.is_ahead());
        assert_eq!(lines.next().await.unwrap().as_deref(), Some("y"), "it is the next prompt");
        drop(send);
        assert_eq!(lines.answer(shown).await.unwrap(), None, "the input has ended");
    }
}
