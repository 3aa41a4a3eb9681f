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
use agentos_agents::{PermissionPolicy, Session};
use agentos_proto::v1::ErrorKind;
use agentos_vm::Vm;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::kept::KeptFiles;
use super::{CreateSession, Creation};
use crate::errors::Failure;
use crate::host::Host;

/// The options of a session as its transcript keeps them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Options {
    skip_os_instructions: bool,
    additional_instructions: String,
    model: Option<String>,
    permission_rules: Vec<Rule>,
    env: Vec<String>,
    mcp_servers: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Rule {
    action: String,
    tool_kind: Option<String>,
    path: Option<String>,
}

/// What a session that is brought back has beside a new one.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(super) kept: KeptFiles,
    pub(super) stored: StoredSession,
    pub(super) lost_cwd: Option<String>,
    pub(super) lost: Vec<String>,
}

impl Options {
    pub(super) fn of(wish: &CreateSession) -> Self {
        let rule = |rule: &PermissionRule| Rule {
            action: action_name(rule.action).to_owned(),
            tool_kind: rule.tool_kind.clone(),
            path: rule.path.as_ref().map(ToString::to_string),
        };
        Self {
            skip_os_instructions: wish.skip_os_instructions,
            additional_instructions: wish.additional_instructions.clone(),
            model: wish.model.map(|model| wish_name(model).to_owned()),
            permission_rules: wish.permissions.rules.iter().map(rule).collect(),
            env: wish.env.keys().cloned().collect(),
            mcp_servers: wish.mcp_servers.len(),
        }
    }

    /// What of them a restored session has no more.
    fn lost(&self) -> Vec<String> {
        let mut lost: Vec<String> = self.env.iter().map(|name| format!("the variable {name}")).collect();
        if self.mcp_servers > 0 {
            lost.push(format!("{} of its tool servers", self.mcp_servers));
        }
        lost
    }
}

const ACTIONS: [(RuleAction, &str); 3] =
    [(RuleAction::Allow, "allow"), (RuleAction::Reject, "reject"), (RuleAction::Ask, "ask")];
const WISHES: [(ModelWish, &str); 3] =
    [(ModelWish::Auto, "auto"), (ModelWish::Demo, "demo"), (ModelWish::Provider, "provider")];

fn action_name(action: RuleAction) -> &'static str {
    ACTIONS.iter().find(|(known, _)| *known == action).map_or("ask", |(_, name)| name)
}

fn wish_name(wish: ModelWish) -> &'static str {
    WISHES.iter().find(|(known, _)| *known == wish).map_or("auto", |(_, name)| name)
}

impl Host {
    /// Brings a stored session back. Its transcript stays, whatever comes of this.
    pub(crate) async fn restore_session(
        self: Arc<Self>,
        vm_id: String,
        session_id: String,
        progress: mpsc::Sender<agentos_agents::store::Progress>,
    ) -> Result<Session, Failure> {
        let hosted = self.vm(&vm_id)?;
        let sessions = self.sessions();
        let transcripts = sessions.stored(&session_id).await?;
        if sessions.get(&session_id).is_ok() {
            return Err(live(&session_id));
        }
        let not_found =
            || Failure::new(ErrorKind::NotFound, &session_id, format!("Session not found: {session_id}"));
        let stored = transcripts.session(&session_id).await?.ok_or_else(not_found)?;
        let creation = Creation::of_stored(&self, &stored)?;
        // From here on no other sidecar writes into the transcript either.
        let kept = KeptFiles::take(&sessions.kept_dir()?, creation.id()).await?;
        let stored = transcripts.reopen(&session_id).await?;
        let wish = wish_of(&hosted.vm, vm_id, stored, kept).await?;
        self.create_session(creation, wish, progress).await
    }
}

pub(super) fn live(id: &str) -> Failure {
    Failure::new(ErrorKind::Busy, id, format!("Session {id} is live; close it first"))
}

/// The wish that a stored session was created by.
async fn wish_of(
    vm: &Vm,
    vm_id: String,
    stored: StoredSession,
    kept: KeptFiles,
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
    use super::*;

    #[test]
    fn rules_and_the_wish_for_a_model_come_back_as_they_were() {
        for (action, name) in ACTIONS {
            let kept = Rule {
                action: name.to_owned(),
                tool_kind: Some("edit".to_owned()),
                path: Some("/a/**".to_owned()),
            };
            let back = rule(&kept).unwrap();
            assert_eq!((back.action, back.path.unwrap().to_string()), (action, "/a/**".to_owned()));
            assert_eq!(action_name(action), name);
        }
        assert!(rule(&Rule { action: "sometimes".to_owned(), tool_kind: None, path: None }).is_none());
        assert!(WISHES.iter().all(|(wish, name)| wish_name(*wish) == *name));
    }

    #[test]
    fn what_is_not_kept_is_named() {
        let options = Options { env: vec!["TOKEN".to_owned()], mcp_servers: 2, ..Options::default() };
        assert_eq!(options.lost(), ["the variable TOKEN", "2 of its tool servers"]);
        let text = serde_json::to_string(&options).unwrap();
        let back: Options = serde_json::from_str(&text).unwrap();
        assert_eq!(back.lost(), options.lost());
        assert!(serde_json::from_str::<Options>("{\"later\":1}").unwrap().lost().is_empty());
    }
}
