//! `agentos sessions list`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentos::{AgentOsSidecar, PermissionPolicy, StoredSession};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::terminal::{harmless_line, json_line, notice, print, table};
use crate::vms::short;

/// Of an id, enough to name a session among thousands.
const SHOWN_ID_BYTES: usize = 8;
/// The sidecar gives so many at once.
const PAGE: u32 = 500;

pub(super) async fn run(sidecar: &AgentOsSidecar, limit: u32, json: bool) -> Result<(), Failure> {
    let mut sessions = Vec::new();
    let (mut before, mut left) = (None, limit);
    while left > 0 {
        let list = sidecar.stored_sessions().limit(left.min(PAGE));
        let page = match before {
            Some(before) => list.before(before).await?,
            None => list.await?,
        };
        left = left.saturating_sub(u32::try_from(page.sessions.len()).unwrap_or(u32::MAX));
        sessions.extend(page.sessions);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    if json {
        print(&sessions.iter().map(|session| json_line(&as_json(session))).collect::<String>())?;
    } else {
        print(&as_table(&sessions))?;
    }
    if before.is_some() {
        notice(&format!("there are older sessions than these {limit}; --limit shows more"));
    }
    Ok(())
}

fn as_json(session: &StoredSession) -> Value {
    json!({
        "sessionId": session.session_id,
        "agentType": session.agent_type,
        "agentVersion": session.agent_version,
        "agentSessionId": session.agent_session_id,
        "title": session.title,
        "cwd": session.cwd,
        "model": session.model.as_str(),
        "modelReason": session.model_reason,
        "vm": session.vm,
        "permissionPolicy": session.permission_policy.map(policy),
        "options": session.options,
        "createdAtMs": session.created_at_ms,
        "updatedAtMs": session.updated_at_ms,
        "ended": session.ended.as_ref().map(|end| json!({ "atMs": end.at_ms, "reason": end.reason })),
        "events": session.events,
        "bytes": session.bytes,
        "live": session.is_live,
    })
}

/// As the TypeScript SDK names it.
fn policy(policy: PermissionPolicy) -> &'static str {
    match policy {
        PermissionPolicy::Ask => "ask",
        PermissionPolicy::AllowAll => "allow_all",
        PermissionPolicy::RejectAll => "reject_all",
        _ => "unknown",
    }
}

fn as_table(sessions: &[StoredSession]) -> String {
    let mut rows = vec![["SESSION", "AGENT", "MODEL", "STATE", "AGE", "EVENTS", "TITLE"].map(str::to_owned)];
    for session in sessions {
        let last = UNIX_EPOCH + Duration::from_millis(session.updated_at_ms);
        // A clock that was set back makes a session young, not an error.
        let age = SystemTime::now().duration_since(last).unwrap_or_default();
        rows.push([
            harmless_line(session.session_id.get(..SHOWN_ID_BYTES).unwrap_or(&session.session_id)),
            harmless_line(&session.agent_type),
            session.model.as_str().to_owned(),
            state(session).to_owned(),
            short(age),
            session.events.to_string(),
            harmless_line(session.title.as_deref().unwrap_or("-")),
        ]);
    }
    table(&rows)
}

/// Of one that neither lives here nor has ended nobody knows: its sidecar was killed, or is another one.
fn state(session: &StoredSession) -> &'static str {
    match (session.is_live, &session.ended) {
        (true, _) => "live",
        (false, Some(_)) => "ended",
        (false, None) => "-",
    }
}
