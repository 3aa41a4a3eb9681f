//! The prompt that an agent works on, and how long it may.
//!
//! ```text
//! begun ──► answered by the agent
//!   │ cancelled by its caller, or its time is over: the agent is told, and told again where it may not have listened
//!   └► cancelled ──► answered by the agent, or without it after 2 s
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::error::{PromptError, Trouble};
use super::{Prompt, PromptReply, Reply};

/// How long an agent may be silent within a turn, where the caller says nothing else.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A cancelled turn is answered after this, whether the agent has stopped or not.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// A cancellation that reaches some agents before they have begun finds nothing to cancel: it is repeated.
const CANCEL_AGAIN: Duration = Duration::from_millis(250);

/// The running prompt.
pub(super) struct Running {
    /// The id of its request.
    pub(super) number: u64,
    pub(super) reply: Reply<PromptReply>,
    /// How often the agent was told no although nobody has said so.
    pub(super) rejected: u32,
    idle: Duration,
    /// How long it may take in all, and until when that is.
    limit: Option<(Duration, Instant)>,
    cancelled: Option<Cancelled>,
}

/// A prompt that is being cancelled.
struct Cancelled {
    /// When it is answered even if the agent hasn't stopped.
    answer_at: Instant,
    again_at: Option<Instant>,
    /// Why, where it wasn't its caller's wish.
    because: Option<PromptError>,
}

/// What is to be done with a prompt whose deadline has come.
pub(super) enum Due {
    /// It is to be cancelled: its time is over.
    Over(PromptError),
    /// The agent is to be told once more.
    Again,
    /// It is to be answered although the agent goes on.
    Answer,
}

impl Running {
    pub(super) fn new(number: u64, prompt: &Prompt, reply: Reply<PromptReply>) -> Self {
        // A time that is too far away to be told is no deadline.
        let until = |limit: Duration| Some((limit, Instant::now().checked_add(limit)?));
        Self {
            number,
            reply,
            rejected: 0,
            idle: prompt.idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT),
            limit: prompt.timeout.and_then(until),
            cancelled: None,
        }
    }

    /// Begins the cancellation, if it wasn't begun before.
    pub(super) fn cancel(&mut self, because: Option<PromptError>, repeat: bool) -> bool {
        if self.cancelled.is_some() {
            return false;
        }
        let now = Instant::now();
        let again_at = repeat.then(|| now + CANCEL_AGAIN);
        self.cancelled = Some(Cancelled { answer_at: now + CANCEL_GRACE, again_at, because });
        true
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_some()
    }

    /// What its caller is told of a cancelled one: nothing else than what was asked for, or why its time was over.
    pub(super) fn cancelled(&mut self) -> Option<Result<(), PromptError>> {
        self.cancelled.take().map(|cancelled| cancelled.because.map_or(Ok(()), Err))
    }

    /// When something must happen although the agent says nothing. While something `works` for it, silence is none.
    pub(super) fn deadline(&self, heard: Instant, works: bool) -> Option<Instant> {
        let limit = self.limit.map(|(_, until)| until);
        match &self.cancelled {
            Some(Cancelled { answer_at, again_at, .. }) => {
                Some(again_at.unwrap_or(*answer_at).min(*answer_at))
            }
            None if works => limit,
            None => heard.checked_add(self.idle).into_iter().chain(limit).min(),
        }
    }

    /// What the deadline means that has come.
    pub(super) fn due(&mut self, now: Instant, trouble: Trouble) -> Due {
        match &mut self.cancelled {
            Some(cancelled) if now < cancelled.answer_at => {
                cancelled.again_at = Some(now + CANCEL_AGAIN);
                Due::Again
            }
            Some(_) => Due::Answer,
            None => Due::Over(match self.limit {
                Some((limit, until)) if until <= now => PromptError::Timeout { limit, trouble },
                _ => PromptError::IdleTimeout { idle: self.idle, trouble },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn running(idle_ms: u64, timeout_ms: Option<u64>) -> Running {
        let prompt = Prompt {
            idle_timeout: Some(Duration::from_millis(idle_ms)),
            timeout: timeout_ms.map(Duration::from_millis),
            ..Prompt::text("x")
        };
        Running::new(1, &prompt, oneshot::channel().0)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_the_limit_end_a_turn_and_work_only_excuses_silence() {
        let begun = Instant::now();
        let ms = |ms: u64| begun + Duration::from_millis(ms);
        let mut turn = running(100, Some(250));
        assert_eq!(turn.deadline(ms(50), false), Some(ms(150)));
        assert_eq!(turn.deadline(ms(200), false), Some(ms(250)), "whichever is earlier");
        assert_eq!(turn.deadline(ms(50), true), Some(ms(250)));
        assert_eq!(running(100, None).deadline(ms(0), true), None);
        assert!(matches!(turn.due(ms(150), Trouble::default()), Due::Over(PromptError::IdleTimeout { .. })));
        assert!(matches!(turn.due(ms(250), Trouble::default()), Due::Over(PromptError::Timeout { .. })));
        // No time is too long.
        let patient = Prompt { timeout: Some(Duration::MAX), ..Prompt::text("x") };
        let patient = Running::new(1, &patient, oneshot::channel().0);
        assert_eq!(patient.deadline(begun, true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_turn_is_told_again_and_then_answered_with_its_first_reason() {
        let begun = Instant::now();
        let mut turn = running(100, None);
        let error = PromptError::Timeout { limit: Duration::ZERO, trouble: Trouble::default() };
        assert!(turn.cancel(Some(error), true) && !turn.cancel(None, true) && turn.is_cancelled());
        assert_eq!(turn.deadline(begun, false), Some(begun + CANCEL_AGAIN));
        let again = begun + CANCEL_AGAIN;
        assert!(matches!(turn.due(again, Trouble::default()), Due::Again));
        assert_eq!(turn.deadline(begun, true), Some(again + CANCEL_AGAIN));
        assert!(matches!(turn.due(begun + CANCEL_GRACE, Trouble::default()), Due::Answer));
        assert!(matches!(turn.cancelled(), Some(Err(PromptError::Timeout { .. }))));
    }
}
