//! What is kept of a session so that it can be listed, and restored in another VM.
//!
//! The database outlives its sessions, so nothing goes in that may be a secret: of variables and headers the names, of a
//! local tool server its command without arguments, of a remote one no more of the address than where it is.

use agentos_agents::Session;
use agentos_agents::plan::McpServer;
use agentos_agents::transcript::SessionDetails;
use serde_json::{Value, json};

use super::CreateSession;

/// The details of a session that was just created by this wish.
pub(super) fn of(session: &Session, wish: &CreateSession, cwd: &str, vm: String) -> SessionDetails {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    SessionDetails {
        model_reason: Some(session.model().reason.clone()),
        cwd: Some(cwd.to_owned()),
        vm: Some(vm),
        agent_session_id: text(&session.session_new()["sessionId"]),
        agent_version: text(&session.initialize()["agentInfo"]["version"]),
        permission_policy: Some(wish.permission_policy),
        options: Some(options(wish).to_string()),
    }
}

fn options(wish: &CreateSession) -> Value {
    let servers: Vec<Value> = wish.mcp_servers.iter().map(server).collect();
    json!({
        "env": wish.env.keys().collect::<Vec<_>>(),
        "mcpServers": servers,
        "skipOsInstructions": wish.skip_os_instructions,
        "additionalInstructions": wish.additional_instructions,
    })
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
            permission_policy: PermissionPolicy::Ask,
            model: None,
            may_install: true,
            provider_required: false,
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
            "skipOsInstructions": true,
            "additionalInstructions": "Be brief.",
        });
        assert_eq!(kept, expected);
    }
}
