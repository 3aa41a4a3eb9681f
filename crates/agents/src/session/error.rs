//! How sessions fail.

use std::fmt;
use std::time::Duration;

use crate::transcript::TranscriptError;

/// How an agent's process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentExit {
    /// The code it exited with.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl fmt::Display for AgentExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (_, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (Some(code), None) => write!(f, "exited with {code}"),
            (None, None) => write!(f, "closed its output"),
        }
    }
}

/// Why an agent can't go on. Every further call of its session answers with it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AgentFault {
    /// Its process is gone.
    #[error("the agent {exit}{}", log_suffix(log))]
    Died {
        /// How it ended.
        exit: AgentExit,
        /// The end of what it wrote to stderr, and of lines that were no records.
        log: String,
    },
    /// It sent more than any turn may hold.
    #[error("the agent sent more than {limit_bytes} bytes in one turn")]
    Flooded {
        /// The bound.
        limit_bytes: u64,
    },
    /// Its text of one turn is more than any reply may hold.
    #[error("the agent wrote more than {limit_bytes} bytes of text in one turn")]
    TooMuchText {
        /// The bound.
        limit_bytes: usize,
    },
    /// It goes on with a turn that was cancelled.
    #[error("the agent went on with a cancelled turn for {} s; it was ended", waited.as_secs())]
    Unstoppable {
        /// How long it had to stop.
        waited: Duration,
    },
    /// It sent things that are no records of its protocol.
    #[error("the agent sent more than {limit_bytes} bytes that are no records{}", log_suffix(log))]
    Garbage {
        /// The bound.
        limit_bytes: u64,
        /// The end of it.
        log: String,
    },
    /// It sent one record that is too long.
    #[error("the agent sent a record of {length} bytes; at most {limit_bytes} are read")]
    RecordTooLong {
        /// Its length.
        length: u64,
        /// The bound.
        limit_bytes: usize,
    },
    /// It doesn't take what is written to it.
    #[error("the agent doesn't read its input")]
    Deaf,
    /// Its events can't be kept, so they aren't delivered either.
    #[error("the transcript can't be written")]
    Transcript(#[source] TranscriptError),
    /// The session was closed.
    #[error("the session is closed")]
    Closed,
}

/// Why a session could not be started. Nothing of it runs then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The agent ended, or misbehaved, before it was ready.
    #[error("agent {agent} could not be started")]
    Agent {
        /// The agent's id.
        agent: String,
        /// What happened.
        #[source]
        source: AgentFault,
    },
    /// The agent wasn't ready in time.
    #[error("agent {agent} was not ready after {} s{}", waited.as_secs(), log_suffix(log))]
    NotReady {
        /// The agent's id.
        agent: String,
        /// How long it had.
        waited: Duration,
        /// The end of what it wrote to stderr.
        log: String,
    },
    /// The agent refused to begin.
    #[error("agent {agent} refused {method}: {reason}")]
    Refused {
        /// The agent's id.
        agent: String,
        /// What it was asked.
        method: &'static str,
        /// Its words.
        reason: String,
    },
    /// The agent speaks another version of ACP.
    #[error("agent {agent} speaks version {version} of the Agent Client Protocol; this client speaks 1")]
    Version {
        /// The agent's id.
        agent: String,
        /// The version, as the agent gave it.
        version: String,
    },
    /// The agent says that it can't reach tool servers over HTTP, and would leave them out without a word.
    #[error("agent {agent} takes no remote tool servers (mcpServers), only local ones: it says so itself")]
    NoRemoteToolServers {
        /// The agent's id.
        agent: String,
    },
    /// The agent wants its user to log in first.
    #[error("agent {agent} has no credentials: {reason}; it offers to log in by {}", methods.join(", "))]
    NotLoggedIn {
        /// The agent's id.
        agent: String,
        /// Its words.
        reason: String,
        /// Its ways to log in.
        methods: Vec<String>,
    },
}

/// A content block of a prompt that the agent can't be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// A prompt says something.
    #[error("the prompt is empty")]
    Empty,
    /// A block lacks what its type needs.
    #[error("content block {index} of type {kind} lacks {field}")]
    Incomplete {
        /// Its place in the prompt, from 0.
        index: usize,
        /// Its type.
        kind: String,
        /// What it lacks.
        field: &'static str,
    },
    /// The agent doesn't take this type.
    #[error("content block {index} is of a type the agent doesn't take: {kind}")]
    Unsupported {
        /// Its place in the prompt, from 0.
        index: usize,
        /// Its type.
        kind: String,
    },
}

/// What is known of why a turn gets nowhere: agents ask a model that fails again and again, some for minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trouble {
    /// What the agent has said of it last.
    pub told: Option<String>,
    /// The end of what it wrote to stderr in this turn.
    pub log: String,
}

/// A clause behind what has happened.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.told {
            Some(told) => write!(f, "; it has told of trouble with its model: {told}")?,
            None => f.write_str("; it has told no reason")?,
        }
        f.write_str(&log_suffix(&self.log))
    }
}

/// Why a prompt failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PromptError {
    /// Another prompt of this session runs, or is just being cancelled.
    #[error("session {session} is busy with another prompt")]
    Busy {
        /// The session.
        session: String,
    },
    /// The prompt's content can't be given to the agent.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The agent didn't take the prompt.
    #[error("the agent refused the prompt: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The model, or the way to it, failed.
    #[error("{reason}")]
    Model {
        /// The agent's own words for it.
        reason: String,
    },
    /// The turn ended without a word and without a tool call.
    #[error("the agent ended its turn without text and without a tool call{}", log_suffix(log))]
    EmptyTurn {
        /// The end of what it wrote to stderr.
        log: String,
    },
    /// The agent did not answer a request.
    #[error("the agent did not answer {method} within {} s", waited.as_secs())]
    Unanswered {
        /// What it was asked.
        method: String,
        /// How long it had.
        waited: Duration,
    },
    /// Nothing came for too long, and no tool was running.
    #[error("the agent was silent for {} s{trouble}", idle.as_secs_f64())]
    IdleTimeout {
        /// How long.
        idle: Duration,
        /// What is known of the reason.
        trouble: Trouble,
    },
    /// The turn took longer than its caller allows.
    #[error("the turn was not over after {} s{trouble}", limit.as_secs_f64())]
    Timeout {
        /// How long it had.
        limit: Duration,
        /// What is known of the reason.
        trouble: Trouble,
    },
    /// The agent can't go on.
    #[error(transparent)]
    Agent(#[from] AgentFault),
}

/// A reply to a request for permission that can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PermissionError {
    /// Nothing waits under that id: it was answered, cancelled, out of time, or never asked.
    #[error("Permission request not found: {id}")]
    NotFound {
        /// The id.
        id: String,
    },
    /// The agent offers nothing that means no more than the reply. The request goes on waiting.
    #[error("the agent offers no option for {reply}; it offers {}", offered.join(", "))]
    NotOffered {
        /// The reply.
        reply: &'static str,
        /// The kinds of options that it offers.
        offered: Vec<String>,
    },
}

/// The kinds of failure a caller tells apart; one per error kind of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Another prompt runs.
    Busy,
    /// The request makes no sense.
    InvalidInput,
    /// The model failed.
    Model,
    /// The turn was empty.
    EmptyTurn,
    /// The agent was silent.
    Timeout,
    /// The agent failed.
    AgentFailed,
    /// The session is closed.
    Closed,
    /// There is no room to keep what the agent says.
    NoSpace,
    /// We failed.
    Internal,
}

impl FaultKind {
    /// The word for it in events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::InvalidInput => "invalidInput",
            Self::Model => "model",
            Self::EmptyTurn => "emptyTurn",
            Self::Timeout => "timeout",
            Self::AgentFailed => "agentFailed",
            Self::Closed => "closed",
            Self::NoSpace => "noSpace",
            Self::Internal => "internal",
        }
    }
}

impl StartError {
    /// Whether an agent that was to go on with a former session may do better without its own memory of that: it fell
    /// silent, ended or broke its protocol, rather than to say what it wants.
    #[must_use]
    pub fn may_be_memory(&self) -> bool {
        match self {
            Self::NotReady { .. } => true,
            Self::Agent { source, .. } => source.kind() == FaultKind::AgentFailed,
            Self::Refused { .. }
            | Self::Version { .. }
            | Self::NoRemoteToolServers { .. }
            | Self::NotLoggedIn { .. } => false,
        }
    }

    /// The same without the end of the agent's log, for where it is kept: what an agent logs may be anything, a secret
    /// too.
    #[must_use]
    pub fn without_log(mut self) -> Self {
        if let Self::NotReady { log, .. }
        | Self::Agent {
            source: AgentFault::Died { log, .. } | AgentFault::Garbage { log, .. }, ..
        } = &mut self
        {
            log.clear();
        }
        self
    }
}

impl PromptError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Busy { .. } => FaultKind::Busy,
            Self::Content(_) => FaultKind::InvalidInput,
            Self::Refused { .. } => FaultKind::AgentFailed,
            Self::Model { .. } => FaultKind::Model,
            Self::EmptyTurn { .. } => FaultKind::EmptyTurn,
            Self::IdleTimeout { .. } | Self::Timeout { .. } | Self::Unanswered { .. } => FaultKind::Timeout,
            Self::Agent(fault) => fault.kind(),
        }
    }
}

impl AgentFault {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Closed => FaultKind::Closed,
            Self::Transcript(error) if error.is_no_space() => FaultKind::NoSpace,
            Self::Transcript(_) => FaultKind::Internal,
            _ => FaultKind::AgentFailed,
        }
    }
}

/// The agent's own words behind ours, where it had any.
fn log_suffix(log: &str) -> String {
    let log = log.trim();
    if log.is_empty() { String::new() } else { format!("; its log ends: {log}") }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_is_kept_of_a_failed_start_says_what_happened_and_nothing_of_the_agents_log() {
        let agent = || "mine".to_owned();
        let log = || "KEY=sesame".to_owned();
        let exit = AgentExit { code: Some(3), signal: None };
        let of = |source| StartError::Agent { agent: agent(), source };
        for (error, kept) in [
            (of(AgentFault::Died { exit, log: log() }), "exited with 3"),
            (of(AgentFault::Garbage { limit_bytes: 7, log: log() }), "7 bytes that are no records"),
            (
                StartError::NotReady { agent: agent(), waited: Duration::from_secs(2), log: log() },
                "not ready after 2 s",
            ),
        ] {
            let said = |error: &StartError| {
                format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
            };
            assert!(said(&error).contains("sesame"), "whoever has asked is told");
            let error = said(&error.without_log());
            assert!(error.contains(kept) && !error.contains("sesame"), "{error}");
        }
    }
}
