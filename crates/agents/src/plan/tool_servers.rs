//! A session's tool servers, in the shapes that agents take.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{AcpHostTools, HostTools, McpServer};

/// As ACP has them: `session/new` carries them with their values.
pub(super) fn acp(servers: &[McpServer]) -> Vec<Value> {
    let pairs = |values: &BTreeMap<String, String>| -> Vec<Value> {
        values.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
    };
    let shaped = |(index, server): (usize, &McpServer)| {
        let name = format!("agentos-{}", index + 1);
        match server {
            McpServer::Local { command, args, env } => {
                json!({ "name": name, "command": command, "args": args, "env": pairs(env) })
            }
            McpServer::Remote { url, headers } => {
                json!({ "type": "http", "name": name, "url": url, "headers": pairs(headers) })
            }
        }
    };
    servers.iter().enumerate().map(shaped).collect()
}

/// The server of the host's tools.
pub(super) fn acp_host_tools(tools: &HostTools) -> AcpHostTools {
    let HostTools { name, url, command } = tools;
    let over_http = json!({ "type": "http", "name": name, "url": url, "headers": [] });
    let (program, args) = command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let over_stdio = json!({ "name": name, "command": program, "args": args, "env": [] });
    AcpHostTools { over_http, over_stdio }
}

/// An extension that registers the session's tool servers with pi, and the variables their values stand in.
///
/// Pi has no flag for tool servers, and its `mcp.json` belongs to the user. Values of env and headers may be secrets,
/// so the file only refers to variables of the agent's process, which pi fills in.
pub(super) fn pi_extension(
    servers: &[McpServer],
    host_tools: Option<&HostTools>,
) -> (String, BTreeMap<String, String>) {
    let mut variables = BTreeMap::new();
    let mut source = String::from("export default function (pi) {\n");
    for (index, server) in servers.iter().enumerate() {
        let number = index + 1;
        let mut refer = |kind: &str, values: &BTreeMap<String, String>| {
            let mut references = serde_json::Map::new();
            for (at, (name, value)) in values.iter().enumerate() {
                let variable = format!("AGENTOS_MCP_{number}_{kind}_{at}");
                references.insert(name.clone(), json!(format!("${{{variable}}}")));
                variables.insert(variable, value.clone());
            }
            references
        };
        let config = match server {
            McpServer::Local { command, args, env } => {
                json!({ "command": command, "args": args, "env": refer("ENV", env), "exposure": "direct" })
            }
            McpServer::Remote { url, headers } => {
                json!({ "url": url, "headers": refer("HEADER", headers), "exposure": "direct" })
            }
        };
        source.push_str(&format!("  pi.registerMcpServer(\"agentos-{number}\", {config});\n"));
    }
    if let Some(HostTools { name, url, .. }) = host_tools {
        let config = json!({ "url": url, "exposure": "direct" });
        source.push_str(&format!("  pi.registerMcpServer({}, {config});\n", json!(name)));
    }
    source.push_str("}\n");
    (source, variables)
}
