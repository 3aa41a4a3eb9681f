//! Agents that the caller describes: packages, a command, an entry of the ACP registry; and how they are told what an agent
//! should know of its VM.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use serde::Deserialize;

use crate::convert::error::CallError;
use crate::error::Error;
use crate::vm::AgentOs;

/// An agent described by the caller.
#[derive(Clone, Default)]
pub struct AgentConfig {
    pub(crate) acp_adapter: String,
    pub(crate) agent_package: String,
    pub(crate) launch_args: Vec<String>,
    pub(crate) default_env: BTreeMap<String, String>,
    pub(crate) command: Vec<String>,
    pub(crate) prepare: Option<Prepare>,
}

type BoxError = Box<dyn StdError + Send + Sync>;
type Preparing = Pin<Box<dyn Future<Output = Result<PreparedInstructions, BoxError>> + Send>>;

/// How instructions are handed to an agent.
pub(crate) type Prepare = Arc<dyn Fn(AgentInstructions) -> Preparing + Send + Sync>;

/// What an agent is to be told of its VM.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentInstructions {
    /// The VM, where the text can be put into a file.
    pub vm: AgentOs,
    /// The session's working directory in the VM; `None` for the user's home.
    pub cwd: Option<String>,
    /// All of it: the base unless it is skipped, the host's tools, the VM's text, the session's.
    pub text: String,
}

/// How an agent gets its instructions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreparedInstructions {
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
}

impl PreparedInstructions {
    /// Adds an argument, behind those of the agent's own command line.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.args.push(argument.into());
        self
    }

    /// Sets a variable of the agent's process, unless the VM or the session sets it.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

impl AgentConfig {
    /// An agent whose ACP adapter and own package have these names.
    #[must_use]
    pub fn new(acp_adapter: impl Into<String>, agent_package: impl Into<String>) -> Self {
        Self { acp_adapter: acp_adapter.into(), agent_package: agent_package.into(), ..Self::default() }
    }

    /// An agent that is a command in the VM: a program and its arguments that speak ACP over their stdio.
    #[must_use]
    pub fn command(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { command: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The agent of an entry (`agent.json`) of the registry of the Agent Client Protocol.
    ///
    /// One that is an npm package (`npx`) is looked for in the VM's `/root/node_modules`, whatever version is there; one
    /// that is a Python package (`uvx`) is run by the VM's own `uvx`. An archive (`binary`) is not fetched.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for what is no entry, `Unsupported` for one that has archives alone; the message says what to do with
    /// those.
    pub fn from_registry_entry(entry: &str) -> Result<Self, Error> {
        let entry: Entry = serde_json::from_str(entry).map_err(CallError::RegistryEntry)?;
        let Distribution { npx, uvx, .. } = entry.distribution;
        let (config, package) = match (npx, uvx) {
            (Some(package), _) => {
                let name = package.name();
                (Self::new(name, name), package)
            }
            (None, Some(package)) => (Self::command(["uvx", package.package.as_str()]), package),
            (None, None) => return Err(CallError::ArchivedAgent { id: entry.id }.into()),
        };
        Ok(Self { launch_args: package.args, default_env: package.env, ..config })
    }

    /// Adds an argument to the adapter's command line.
    #[must_use]
    pub fn launch_arg(mut self, argument: impl Into<String>) -> Self {
        self.launch_args.push(argument.into());
        self
    }

    /// Sets a variable of the agent's process unless the session sets it.
    #[must_use]
    pub fn default_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.default_env.insert(name.into(), value.into());
        self
    }

    /// Hands the OS instructions to an agent that is not built in: `prepare` is called before each session of it, also before
    /// one that is restored, and says with which arguments and variables the agent is to be started. Without it such an
    /// agent is told nothing, and has `/etc/agentos/instructions.md` to read.
    ///
    /// It is called by the program that made the VM; an error of it fails the session with `AgentFailed`.
    #[must_use]
    pub fn prepare_instructions<F, Fut, E>(mut self, prepare: F) -> Self
    where
        F: Fn(AgentInstructions) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<PreparedInstructions, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        self.prepare = Some(Arc::new(move |instructions| {
            let preparing = prepare(instructions);
            Box::pin(async move { preparing.await.map_err(Into::into) })
        }));
        self
    }
}

impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConfig")
            .field("acp_adapter", &self.acp_adapter)
            .field("agent_package", &self.agent_package)
            .field("command", &self.command)
            .field("launch_args", &self.launch_args)
            .field("default_env", &self.default_env.keys())
            .field("prepares_instructions", &self.prepare.is_some())
            .finish()
    }
}

/// What we need of an entry. It has more, and its format grows.
#[derive(Deserialize)]
struct Entry {
    id: String,
    distribution: Distribution,
}

#[derive(Deserialize)]
struct Distribution {
    npx: Option<Package>,
    uvx: Option<Package>,
}

#[derive(Deserialize)]
struct Package {
    package: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

impl Package {
    /// Without its version. The names of scopes begin with the same character.
    fn name(&self) -> &str {
        match self.package.rfind('@') {
            Some(at) if at > 0 => self.package.get(..at).unwrap_or_default(),
            _ => &self.package,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn config(distribution: &str) -> Result<AgentConfig, Error> {
        let entry = format!(
            r#"{{"id": "walrus", "name": "Walrus", "version": "1.2.3", "x": [], "distribution": {distribution}}}"#
        );
        AgentConfig::from_registry_entry(&entry)
    }

    #[test]
    fn packages_of_the_registry_are_agents() {
        let npx = r#"{"npx": {"package": "@sea/walrus-acp@1.2.3", "args": ["--acp"], "env": {"A": "b"}}}"#;
        let config_of_npx = config(npx).unwrap();
        assert_eq!(config_of_npx.acp_adapter, "@sea/walrus-acp");
        assert_eq!(config_of_npx.launch_args, ["--acp"]);
        assert_eq!(config_of_npx.default_env["A"], "b");
        for (package, name) in [("walrus", "walrus"), ("walrus@2", "walrus"), ("@sea/walrus", "@sea/walrus")]
        {
            let npx = format!(r#"{{"npx": {{"package": "{package}"}}}}"#);
            assert_eq!(config(&npx).unwrap().agent_package, name);
        }
        let uvx = config(r#"{"uvx": {"package": "walrus==1", "args": ["serve"]}}"#).unwrap();
        assert_eq!(
            (uvx.command, uvx.launch_args),
            (vec!["uvx".into(), "walrus==1".into()], vec!["serve".into()])
        );
    }

    #[test]
    fn what_is_no_package_is_refused_with_what_to_do() {
        let archive =
            r#"{"binary": {"linux-x86_64": {"archive": "https://example.com/a.tgz", "cmd": "./a"}}}"#;
        let error = config(archive).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("walrus") && error.to_string().contains("AgentConfig::command"));
        for nonsense in ["{}", "[]", "{", r#"{"id": 1}"#] {
            assert_eq!(
                AgentConfig::from_registry_entry(nonsense).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
    }
}
