//! Agents that the caller describes: a command of the VM, packages in its modules, or a built-in agent in other words.

use serde_json::Value;

use super::launch::{LaunchData, ToolServers};
use super::template::Template;
use super::{Agent, AgentConfig, BUILT_IN_ADAPTER, Launch, Source, file};

/// The agent of a description.
pub(super) fn agent(config: AgentConfig) -> Agent {
    if config.command.is_empty()
        && let Some(known) = file::built_in().iter().find(|known| is_described(known, &config))
    {
        let mut agent = known.clone();
        agent.id = config.id;
        agent.extra_args = config.launch_args;
        agent.env = config.default_env;
        return agent;
    }
    let source = if config.command.is_empty() { Source::Modules } else { Source::Command };
    let command = config.command.into_iter().map(Template::literal).collect();
    Agent {
        id: config.id,
        needs_node: source == Source::Modules,
        source,
        acp_adapter: config.acp_adapter,
        agent_package: config.agent_package,
        version: None,
        packages: Vec::new(),
        launch: Launch::Acp,
        asks: true,
        data: LaunchData { command, ..LaunchData::default() },
        env: config.default_env,
        extra_args: config.launch_args,
        auth_method: None,
        tool_servers: ToolServers::Acp,
        state: Vec::new(),
        keys: Vec::new(),
        base_urls: Vec::new(),
        providers: Vec::new(),
        configuration: Vec::new(),
    }
}

/// Whether a description means this built-in agent: it names its packages, or its package under its id.
fn is_described(known: &Agent, config: &AgentConfig) -> bool {
    let adapter = [BUILT_IN_ADAPTER, ""].contains(&config.acp_adapter.as_str()) && known.id == config.id;
    known.agent_package == config.agent_package && (adapter || known.acp_adapter == config.acp_adapter)
}

/// An adapter in the VM's own modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its command, in the VM.
    pub path: String,
    /// Whether that is a program for Node.
    pub runs_on_node: bool,
}

impl Adapter {
    /// The adapter at this path, whose content begins so. What npm installs need not be executable where it lies.
    #[must_use]
    pub fn at(path: String, begin: &[u8]) -> Self {
        let first_line = begin.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let by_node = first_line.starts_with(b"#!") && first_line.windows(4).any(|part| part == b"node");
        let runs_on_node = by_node || [".js", ".mjs", ".cjs"].iter().any(|end| path.ends_with(end));
        Self { path, runs_on_node }
    }
}

/// Why a package of the VM's own modules is no adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its `package.json` can't be read.
    #[error("{package}: its package.json can't be read as JSON")]
    Malformed {
        /// The package.
        package: String,
        /// Where it stops being JSON.
        #[source]
        source: serde_json::Error,
    },
    /// It has no command, or several of which none is named like itself.
    #[error("{package}: its package.json names no command that could be meant in `bin`")]
    NoCommand {
        /// The package.
        package: String,
    },
}

/// The path of a package's command within the package, by its `package.json`, the way npm takes it: the only one, or
/// the one that is named like the package.
pub fn adapter_entry(package: &str, package_json: &[u8]) -> Result<String, AdapterError> {
    let malformed = |source| AdapterError::Malformed { package: package.to_owned(), source };
    let manifest: Value = serde_json::from_slice(package_json).map_err(malformed)?;
    let name = package.rsplit('/').next().unwrap_or(package);
    let entry = match &manifest["bin"] {
        Value::String(path) => Some(path.as_str()),
        Value::Object(commands) if commands.len() == 1 => commands.values().next().and_then(Value::as_str),
        Value::Object(commands) => commands.get(name).and_then(Value::as_str),
        _ => None,
    };
    let inside = |path: &&str| !path.starts_with('/') && !path.split('/').any(|part| part == "..");
    match entry.map(|path| path.trim_start_matches("./")).filter(inside).filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.to_owned()),
        None => Err(AdapterError::NoCommand { package: package.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_for_node_runs_on_the_stores() {
        for (path, begin, on_node) in [
            ("/m/a/cli.js", "console.log()", true),
            ("/m/a/cli", "#!/usr/bin/env node\nx", true),
            ("/m/a/cli", "#!/bin/sh\nnode x", false),
            ("/m/a/cli", "\x7fELF node", false),
            ("/m/a/cli", "", false),
        ] {
            assert_eq!(Adapter::at(path.to_owned(), begin.as_bytes()).runs_on_node, on_node, "{begin}");
        }
    }

    #[test]
    fn an_adapters_command_is_the_only_one_or_its_namesake() {
        let entry = |json: &str| adapter_entry("@scope/my-acp", json.as_bytes());
        assert_eq!(entry(r#"{"bin": "./dist/cli.js"}"#).unwrap(), "dist/cli.js");
        assert_eq!(entry(r#"{"bin": {"other": "a.js"}}"#).unwrap(), "a.js");
        assert_eq!(entry(r#"{"bin": {"other": "a.js", "my-acp": "b.js"}}"#).unwrap(), "b.js");
        for json in [
            "{}",
            r#"{"bin": {"a": "a.js", "b": "b.js"}}"#,
            r#"{"bin": "../../etc/x"}"#,
            r#"{"bin": "/bin/sh"}"#,
            r#"{"bin": ""}"#,
        ] {
            let error = entry(json).unwrap_err();
            assert!(error.to_string().contains("@scope/my-acp"), "{error}");
        }
        assert!(matches!(entry("{"), Err(AdapterError::Malformed { .. })));
    }
}
