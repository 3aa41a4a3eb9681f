//! What is kept of a session so that it can be listed, and restored in another VM.
//!
//! The database outlives its sessions, so nothing goes in that may be a secret: of variables and headers the names, of a
//! local tool server its command without arguments, of a remote one no more of the address than where it is.

use agentos_agents::permission::PermissionRule;
use agentos_agents::plan::McpServer;
use agentos_agents::transcript::{SessionDetails, StoredSession};
use serde_json::{Value, json};

use super::CreateSession;
use super::restore::{ACTIONS, WISHES};

/// What a wish for a session says of it.
pub(super) fn of(
    wish: &CreateSession,
    former: Option<&StoredSession>,
    cwd: &str,
    vm: String,
) -> SessionDetails {
    SessionDetails {
        cwd: Some(cwd.to_owned()),
        vm: Some(vm),
        permission_policy: Some(wish.permissions.policy),
        // Of a session that was brought back, what it was created with counts.
        options: match former {
            Some(stored) => stored.details.options.clone(),
            None => Some(options(wish).to_string()),
        },
        ..SessionDetails::default()
    }
}

fn options(wish: &CreateSession) -> Value {
    let rules: Vec<Value> = wish.permissions.rules.iter().map(rule).collect();
    let servers: Vec<Value> = wish.mcp_servers.iter().map(server).collect();
    json!({
        "env": wish.env.keys().collect::<Vec<_>>(),
        "mcpServers": servers,
        "permissionRules": rules,
        "skipOsInstructions": wish.skip_os_instructions,
        "additionalInstructions": wish.additional_instructions,
        "model": wish.model.and_then(|wish| name_of(&WISHES, wish)),
    })
}

fn rule(rule: &PermissionRule) -> Value {
    let action = name_of(&ACTIONS, rule.action);
    let path = rule.path.as_ref().map(ToString::to_string);
    json!({ "action": action, "toolKind": rule.tool_kind, "path": path })
}

fn name_of<T: PartialEq>(names: &[(T, &'static str)], what: T) -> Option<&'static str> {
    names.iter().find(|(known, _)| *known == what).map(|(_, name)| *name)
}

fn server(server: &McpServer) -> Value {
    match server {
        McpServer::Local { command, env, .. } => {
            json!({ "type": "local", "command": command, "env": env.keys().collect::<Vec<_>>() })
        }
        McpServer::Remote { url, headers } => {
            json!({ "type": "remote", "origin": origin(url), "headers": headers.keys().collect::<Vec<_>>() })
        }
    }
}

/// Scheme, host and port: tokens are found in paths, queries and before the `@`.
fn origin(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let port = authority.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{scheme}://{}{port}", authority.host()))
}

#[cfg(test)]
mod tests {
    use agentos_agents::PermissionPolicy;
    use agentos_agents::model::ModelWish;
    use agentos_agents::permission::{PathPattern, RuleAction};
    use agentos_agents::session::PermissionSetup;

    use super::super::PreparedInstructions;
    use super::*;

    #[test]
    fn options_name_what_may_be_secret_and_hold_none_of_it() {
        let map = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        let wish = CreateSession {
            vm_id: "vm".into(),
            agent_type: "pi".into(),
            cwd: String::new(),
            env: map("TOKEN", "hush-1"),
            mcp_servers: vec![
                McpServer::Local {
                    command: "npx".into(),
                    args: vec!["--key=hush-2".into()],
                    env: map("KEY", "hush-3"),
                },
                McpServer::Remote {
                    url: "https://user:hush-4@mcp.example.com:8443/hush-5?key=hush-6".into(),
                    headers: map("authorization", "hush-7"),
                },
                McpServer::Remote { url: "hush-8".into(), headers: Default::default() },
            ],
            skip_os_instructions: true,
            additional_instructions: "Be brief.".into(),
            permissions: PermissionSetup {
                policy: PermissionPolicy::Ask,
                rules: vec![PermissionRule {
                    action: RuleAction::Allow,
                    tool_kind: Some("edit".into()),
                    path: Some(PathPattern::parse("/work/**").unwrap()),
                }],
            },
            model: Some(ModelWish::Demo),
            may_install: true,
            provider_required: false,
            prepared: PreparedInstructions::default(),
            restored: None,
        };
        let kept = options(&wish);
        assert!(!kept.to_string().contains("hush"), "{kept}");
        let expected = json!({
            "env": ["TOKEN"],
            "mcpServers": [
                { "type": "local", "command": "npx", "env": ["KEY"] },
                { "type": "remote", "origin": "https://mcp.example.com:8443", "headers": ["authorization"] },
                { "type": "remote", "origin": null, "headers": [] },
            ],
            "permissionRules": [{ "action": "allow", "toolKind": "edit", "path": "/work/**" }],
            "skipOsInstructions": true,
            "additionalInstructions": "Be brief.",
            "model": "demo",
        });
        assert_eq!(kept, expected);
    }
}
