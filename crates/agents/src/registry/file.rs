//! The built-in agents' files in `resources/agents`, read.
//!
//! A file that can't be read is a mistake of ours that a test finds before anybody else; should one slip through, the
//! other agents are there all the same.

use std::sync::LazyLock;

use serde::Deserialize;

use super::launch::{LaunchData, Layer, ToolServers};
use super::template::Template;
use super::{Agent, Launch, Package, Source};
use crate::configuration::Configuration;
use crate::provider::{AgentProvider, of_key};

/// In the order they are listed in.
const FILES: [(&str, &str); 6] = [
    ("pi", include_str!("../../../../resources/agents/pi.toml")),
    ("pi-cli", include_str!("../../../../resources/agents/pi-cli.toml")),
    ("opencode", include_str!("../../../../resources/agents/opencode.toml")),
    ("claude", include_str!("../../../../resources/agents/claude.toml")),
    ("codex", include_str!("../../../../resources/agents/codex.toml")),
    ("gemini", include_str!("../../../../resources/agents/gemini.toml")),
];

static BUILT_IN: LazyLock<Vec<Agent>> = LazyLock::new(|| {
    let read = |(id, text): &(&str, &str)| match parse(id, text) {
        Ok(agent) => Some(agent),
        Err(error) => {
            tracing::error!(agent = id, %error, "the data of a built-in agent can't be read");
            None
        }
    };
    FILES.iter().filter_map(read).collect()
});

/// The built-in agents.
pub(super) fn built_in() -> &'static [Agent] {
    &BUILT_IN
}

/// What is wrong with an agent's file.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("resources/agents/{id}.toml")]
    Toml {
        id: String,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("resources/agents/{id}.toml names the provider of {key}, which is unknown")]
    Provider { id: String, key: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    acp_adapter: String,
    agent_package: String,
    #[serde(default)]
    version: Option<String>,
    wire: Wire,
    #[serde(default)]
    node: bool,
    #[serde(default)]
    asks: bool,
    #[serde(default)]
    own_modules: Vec<String>,
    #[serde(default)]
    packages: Vec<PackageFile>,
    #[serde(default)]
    command: Vec<Template>,
    #[serde(default)]
    warm_up: Option<Layer>,
    #[serde(default)]
    resume: Layer,
    #[serde(default)]
    auth_method: Option<String>,
    #[serde(default)]
    mcp: ToolServers,
    #[serde(default)]
    state: Vec<Template>,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    base_urls: Vec<String>,
    #[serde(default)]
    providers: Vec<ProviderFile>,
    #[serde(default)]
    configuration: Vec<Configuration>,
    #[serde(default)]
    always: Layer,
    #[serde(default)]
    store: Layer,
    #[serde(default)]
    moved: Layer,
    #[serde(default)]
    demo: Layer,
    #[serde(default)]
    provider: Layer,
    #[serde(default)]
    ask: Layer,
    #[serde(default)]
    allow_all: Layer,
    #[serde(default)]
    instructions: Layer,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Wire {
    PiRpc,
    Acp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackageFile {
    #[serde(default)]
    key: Option<String>,
    name: String,
    version: String,
    /// The only processor that it is for, by the name Rust has for it.
    #[serde(default)]
    arch: Option<String>,
    integrity: String,
    tarball_bytes: u64,
    entry: String,
    #[serde(default)]
    only: Vec<String>,
    #[serde(default)]
    inside: Vec<PackageFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderFile {
    key: String,
    id: String,
    #[serde(default)]
    gateway: Layer,
}

fn parse(id: &str, text: &str) -> Result<Agent, FileError> {
    let file: File = toml::from_str(text)
        .map_err(|source| FileError::Toml { id: id.to_owned(), source: source.into() })?;
    let provider = |known: ProviderFile| match of_key(&known.key) {
        Some(provider) => Ok(AgentProvider { provider, id: known.id, gateway: known.gateway }),
        None => Err(FileError::Provider { id: id.to_owned(), key: known.key }),
    };
    let launch = match file.wire {
        Wire::PiRpc => Launch::PiRpc,
        Wire::Acp => Launch::Acp,
    };
    Ok(Agent {
        id: id.to_owned(),
        source: Source::Store { own_modules: file.own_modules },
        acp_adapter: file.acp_adapter,
        agent_package: file.agent_package,
        version: file.version,
        packages: for_this_processor(file.packages),
        needs_node: file.node,
        launch,
        asks: file.asks,
        data: LaunchData {
            command: file.command,
            always: file.always,
            store: file.store,
            moved: file.moved,
            demo: file.demo,
            provider: file.provider,
            ask: file.ask,
            allow_all: file.allow_all,
            instructions: file.instructions,
            warm_up: file.warm_up,
            resume: file.resume,
        },
        env: Default::default(),
        extra_args: Vec::new(),
        auth_method: file.auth_method,
        tool_servers: file.mcp,
        state: file.state,
        keys: file.keys,
        base_urls: file.base_urls,
        providers: file.providers.into_iter().map(provider).collect::<Result<_, _>>()?,
        configuration: file.configuration,
    })
}

fn for_this_processor(packages: Vec<PackageFile>) -> Vec<Package> {
    let here =
        |package: &PackageFile| package.arch.as_deref().is_none_or(|arch| arch == std::env::consts::ARCH);
    packages
        .into_iter()
        .filter(here)
        .map(|package| Package {
            key: package.key.unwrap_or_else(|| package.name.clone()),
            name: package.name,
            version: package.version,
            integrity: package.integrity,
            tarball_bytes: package.tarball_bytes,
            entry: package.entry,
            only: package.only,
            inside: for_this_processor(package.inside),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_read_and_every_text_of_it_can_be_filled() {
        for (id, text) in FILES {
            if let Err(error) = parse(id, text) {
                panic!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            }
        }
        assert_eq!(built_in().len(), FILES.len());
    }

    #[test]
    fn a_mistake_in_a_file_is_told_with_its_place() {
        for (mistake, told) in [
            ("colour = 1", "colour"),
            ("command = [\"{nod}\"]", "{nod}"),
            ("[demo]\nenv.X = { y = \"{z}\" }", "{z}"),
        ] {
            let text = format!("acp_adapter = \"a\"\nagent_package = \"p\"\nwire = \"acp\"\n{mistake}\n");
            let error = parse("mine", &text).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(error.to_string().contains("mine.toml") && source.contains(told), "{source}");
        }
        let unknown = "acp_adapter = \"a\"\nagent_package = \"p\"\nwire = \"acp\"\n[[providers]]\nkey = \"K\"\nid = \"k\"\n";
        assert!(parse("mine", unknown).unwrap_err().to_string().contains("provider of K"));
    }
}
