//! What is kept of a session beside its events.

use rusqlite::Row;

use crate::permission::PermissionPolicy;

/// What is known of a session when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// The session.
    pub id: String,
    /// Which agent.
    pub agent_type: String,
    /// `demo` or `provider`.
    pub model: String,
    /// When it began, in ms since the epoch.
    pub created_ms: u64,
}

/// What listing and restoring a session need, known when its agent has answered. Absent where nobody has told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionDetails {
    /// Why it talks to its model.
    pub model_reason: Option<String>,
    /// Its working directory in the VM.
    pub cwd: Option<String>,
    /// The name or id of its VM.
    pub vm: Option<String>,
    /// The id that the agent knows it by.
    pub agent_session_id: Option<String>,
    /// The agent's version.
    pub agent_version: Option<String>,
    /// Who decides what the agent asks.
    pub permission_policy: Option<PermissionPolicy>,
    /// The other options it was created with, a JSON object. Of variables and headers the names alone: values may be
    /// secrets, and the database outlives them.
    pub options: Option<String>,
}

/// A session of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// Its place among all sessions: a later one has a larger key.
    pub key: u64,
    /// The session.
    pub id: String,
    /// Which agent.
    pub agent_type: String,
    /// `demo` or `provider`.
    pub model: String,
    /// The rest of what is known of it.
    pub details: SessionDetails,
    /// What it is about: the agent's title for it, else the beginning of the first prompt.
    pub title: Option<String>,
    /// When it began, in ms since the epoch.
    pub created_ms: u64,
    /// When its last event was kept, in ms since the epoch.
    pub updated_ms: u64,
    /// How it ended; `None` while it lives, and where nobody was left to tell.
    pub ended: Option<SessionEnd>,
    /// How many events are kept, which is the number of the last one.
    pub events: u64,
    /// What their texts take.
    pub bytes: u64,
}

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// When, in ms since the epoch.
    pub at_ms: u64,
    /// Why, in words.
    pub why: String,
}

/// Which sessions to list: the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Only those with a smaller key: the next page begins where the last one ended.
    pub before: Option<u64>,
    /// At most so many.
    pub limit: usize,
    /// Only those whose id begins with this.
    pub id_prefix: String,
}

/// What [`StoredSession::of`] reads, in its order. A session without events may have no tally.
pub(super) const SELECT: &str =
    "SELECT key, id, agent_type, model, created_ms, coalesce(updated_ms, created_ms), ended_ms, ended_why, title,
         coalesce(events, 0), coalesce(bytes, 0), model_reason, cwd, vm, agent_session_id, agent_version,
         permission_policy, options
     FROM sessions LEFT JOIN tallies ON tallies.session = sessions.key";

impl StoredSession {
    pub(super) fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let number = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
        let ended = match row.get::<_, Option<i64>>(6)? {
            Some(at) => {
                let why = row.get::<_, Option<String>>(7)?.unwrap_or_default();
                Some(SessionEnd { at_ms: at.cast_unsigned(), why })
            }
            None => None,
        };
        let policy: Option<String> = row.get(16)?;
        Ok(Self {
            key: number(0)?,
            id: row.get(1)?,
            agent_type: row.get(2)?,
            model: row.get(3)?,
            created_ms: number(4)?,
            updated_ms: number(5)?,
            ended,
            title: row.get(8)?,
            events: number(9)?,
            bytes: number(10)?,
            details: SessionDetails {
                model_reason: row.get(11)?,
                cwd: row.get(12)?,
                vm: row.get(13)?,
                agent_session_id: row.get(14)?,
                agent_version: row.get(15)?,
                permission_policy: policy.as_deref().and_then(policy_of),
                options: row.get(17)?,
            },
        })
    }
}

pub(super) fn policy_name(policy: PermissionPolicy) -> &'static str {
    match policy {
        PermissionPolicy::Ask => "ask",
        PermissionPolicy::AllowAll => "allow_all",
        PermissionPolicy::RejectAll => "reject_all",
    }
}

fn policy_of(name: &str) -> Option<PermissionPolicy> {
    let all = [PermissionPolicy::Ask, PermissionPolicy::AllowAll, PermissionPolicy::RejectAll];
    all.into_iter().find(|policy| policy_name(*policy) == name)
}
