//! A stored session, brought back in a VM.
//!
//! ```text
//! transcript + agent.tar ─► the wish it was created with ─► create, with its id, its agent's files and its former id
//! ```
//! What it can't be created with again is named in the event `_agentos/restored`: values of variables, and tool servers,
//! whose variables and headers may be secrets, are not kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use agentos_agents::model::ModelWish;
use agentos_agents::permission::{PathPattern, PermissionRule, RuleAction};
use agentos_agents::session::PermissionSetup;
use agentos_agents::transcript::StoredSession;
use agentos_agents::{PermissionPolicy, Session, Transcripts};
use agentos_proto::v1::ErrorKind;
use agentos_vm::Vm;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::kept::KeptFiles;
use super::{CreateSession, Creation, PreparedInstructions};
use crate::errors::Failure;
use crate::host::Host;

/// What [`super::details`] keeps of a session's options.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options {
    skip_os_instructions: bool,
    additional_instructions: String,
    model: Option<String>,
    permission_rules: Vec<Rule>,
    env: Vec<String>,
    mcp_servers: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    action: String,
    tool_kind: Option<String>,
    path: Option<String>,
}

/// What a session that is brought back has beside a new one.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(super) kept: Arc<KeptFiles>,
    pub(super) stored: StoredSession,
    pub(super) lost_cwd: Option<String>,
    pub(super) lost: Vec<String>,
}

impl Options {
    /// What of them a restored session has no more.
    fn lost(&self) -> Vec<String> {
        let mut lost: Vec<String> = self.env.iter().map(|name| format!("the variable {name}")).collect();
        if !self.mcp_servers.is_empty() {
            lost.push(format!("{} of its tool servers", self.mcp_servers.len()));
        }
        lost
    }
}

pub(super) const ACTIONS: [(RuleAction, &str); 3] =
    [(RuleAction::Allow, "allow"), (RuleAction::Reject, "reject"), (RuleAction::Ask, "ask")];
pub(super) const WISHES: [(ModelWish, &str); 3] =
    [(ModelWish::Auto, "auto"), (ModelWish::Demo, "demo"), (ModelWish::Provider, "provider")];

impl Host {
    /// Brings a stored session back. Its transcript stays, whatever comes of this.
    pub(crate) async fn restore_session(
        self: Arc<Self>,
        vm_id: String,
        (session_id, attempt): (String, u64),
        prepared: PreparedInstructions,
        progress: mpsc::Sender<agentos_agents::store::Progress>,
    ) -> Result<Session, Failure> {
        let hosted = self.vm(&vm_id)?;
        let sessions = self.sessions();
        let (transcripts, stored) = sessions.stored(&session_id).await?;
        if sessions.is_live(&session_id) {
            return Err(live(&session_id));
        }
        // One whose agent has died was there for its reason alone.
        sessions.live.remove(&session_id);
        let creation = Creation::of_stored(&self, &stored, attempt)?;
        // From here on no other sidecar writes into the transcript either.
        let kept = Arc::new(KeptFiles::take(sessions, creation.id()).await?);
        let mut reopened = Reopened { transcripts, id: session_id, kept: Some(Arc::clone(&kept)) };
        let stored = reopened.transcripts.reopen(&reopened.id).await?;
        let restored = async {
            let wish = CreateSession { prepared, ..wish_of(&hosted.vm, vm_id, stored, kept).await? };
            Arc::clone(&self).create_session(creation, wish, progress).await
        };
        let restored = restored.await;
        match &restored {
            Ok(_) => reopened.kept = None,
            Err(failure) => reopened.end(format!("not restored: {}", failure.message())).await,
        }
        restored
    }
}

/// A transcript that goes on. Dropped, the session is as dead as before.
struct Reopened {
    transcripts: Transcripts,
    id: String,
    /// The session's lock, held until its end is written. `None` where the session lives, or its end is written.
    kept: Option<Arc<KeptFiles>>,
}

impl Reopened {
    async fn end(&mut self, why: String) {
        let ending = self.kept.take().map(|kept| ended(self.transcripts.clone(), self.id.clone(), why, kept));
        if let Some(ending) = ending {
            // Goes on by itself where the call is dropped. It fails where it panicked, with nothing more to be done.
            let _ = tokio::spawn(ending).await;
        }
    }
}

impl Drop for Reopened {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        let ending =
            ended(self.transcripts.clone(), self.id.clone(), "not restored: given up".to_owned(), kept);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(ending);
        }
    }
}

async fn ended(transcripts: Transcripts, id: String, why: String, kept: Arc<KeptFiles>) {
    if let Err(error) = transcripts.end(&id, &why).await {
        tracing::warn!(session = id, %error, "the end of a session that was not restored is not kept");
    }
    drop(kept);
}

pub(super) fn live(id: &str) -> Failure {
    Failure::new(ErrorKind::Busy, id, format!("Session {id} is live; close it first"))
}

/// The wish that a stored session was created by.
async fn wish_of(
    vm: &Vm,
    vm_id: String,
    stored: StoredSession,
    kept: Arc<KeptFiles>,
) -> Result<CreateSession, Failure> {
    let options = stored.details.options.as_deref().unwrap_or("{}");
    let options: Options = serde_json::from_str(options).map_err(|error| {
        Failure::new(
            ErrorKind::Internal,
            &stored.id,
            format!("what is kept of the session can't be read: {error}"),
        )
    })?;
    let cwd = stored.details.cwd.clone().unwrap_or_default();
    let lost_cwd = match cwd.as_str() {
        "" => None,
        cwd => (!vm.exists(cwd.as_bytes()).await?).then(|| cwd.to_owned()),
    };
    let lost = options.lost();
    let rules = options.permission_rules.iter().map(rule).collect::<Option<_>>();
    let policy = stored.details.permission_policy.unwrap_or(PermissionPolicy::Ask);
    Ok(CreateSession {
        vm_id,
        agent_type: stored.agent_type.clone(),
        cwd: if lost_cwd.is_some() { String::new() } else { cwd },
        env: BTreeMap::new(),
        mcp_servers: Vec::new(),
        skip_os_instructions: options.skip_os_instructions,
        additional_instructions: options.additional_instructions,
        // Without its rules everything is asked.
        permissions: PermissionSetup { policy, rules: rules.unwrap_or_default() },
        model: options
            .model
            .and_then(|name| WISHES.iter().find(|(_, known)| *known == name))
            .map(|(wish, _)| *wish),
        may_install: super::may_install(),
        provider_required: super::provider_required(),
        prepared: PreparedInstructions::default(),
        restored: Some(Box::new(Restored { kept, stored, lost_cwd, lost })),
    })
}

fn rule(rule: &Rule) -> Option<PermissionRule> {
    let (action, _) = ACTIONS.iter().find(|(_, name)| *name == rule.action)?;
    let path = rule.path.as_deref().map(PathPattern::parse).transpose().ok()?;
    Some(PermissionRule { action: *action, tool_kind: rule.tool_kind.clone(), path })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_and_the_wish_for_a_model_come_back_as_they_were() {
        for (action, name) in ACTIONS {
            let kept = json!({ "action": name, "toolKind": "edit", "path": "/a/**" });
            let back = rule(&serde_json::from_value(kept).unwrap()).unwrap();
            assert_eq!((back.action, back.path.unwrap().to_string()), (action, "/a/**".to_owned()));
            assert_eq!(back.tool_kind.as_deref(), Some("edit"));
        }
        assert!(rule(&Rule { action: "sometimes".to_owned(), tool_kind: None, path: None }).is_none());
    }

    #[test]
    fn what_is_not_kept_is_named() {
        let options = json!({ "env": ["TOKEN"], "mcpServers": [{}, {}], "later": 1 });
        let options: Options = serde_json::from_value(options).unwrap();
        assert_eq!(options.lost(), ["the variable TOKEN", "2 of its tool servers"]);
        assert!(serde_json::from_str::<Options>("{}").unwrap().lost().is_empty());
    }
}
