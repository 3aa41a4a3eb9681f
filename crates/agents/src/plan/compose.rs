//! What the layers of an agent's data add up to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{PlanError, PlanFile, PlanRequest, node_binary, tool_servers};
use crate::registry::Agent;
use crate::registry::launch::Layer;
use crate::registry::template::{Gap, merge};

/// What fills the gaps of a session.
type Fill<'a> = &'a dyn Fn(&Gap) -> Result<String, PlanError>;

/// A launch on its way: later layers stand over earlier ones.
pub(super) struct Composition<'a> {
    agent: &'a Agent,
    value: Fill<'a>,
    argv: Vec<String>,
    env: BTreeMap<String, Value>,
    /// The variables that nobody's environment changes.
    fixed: BTreeSet<String>,
    files: BTreeMap<String, Value>,
    session: Value,
    mode: Option<String>,
}

/// A launch put together.
pub(super) struct Composed {
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) files: Vec<PlanFile>,
    pub(super) session: Map<String, Value>,
    pub(super) mode: Option<String>,
}

impl<'a> Composition<'a> {
    /// Begins with the agent's command.
    pub(super) fn new(agent: &'a Agent, value: Fill<'a>) -> Result<Self, PlanError> {
        let argv = agent.data.command.iter().map(|arg| arg.fill(&value)).collect::<Result<_, _>>()?;
        Ok(Self {
            agent,
            value,
            argv,
            env: BTreeMap::new(),
            fixed: BTreeSet::new(),
            files: BTreeMap::new(),
            session: Value::Object(Map::new()),
            mode: None,
        })
    }

    pub(super) fn add(&mut self, layer: &Layer) -> Result<(), PlanError> {
        self.add_with(layer, self.value)
    }

    /// Adds a layer whose gaps are filled in a way of its own.
    pub(super) fn add_with(&mut self, layer: &Layer, value: Fill<'_>) -> Result<(), PlanError> {
        for arg in &layer.args {
            self.argv.push(arg.fill(&value)?);
        }
        for (name, tree) in &layer.env {
            let added = tree.fill(&value)?;
            merge(self.env.entry(name.clone()).or_default(), added);
        }
        for (path, tree) in &layer.files {
            let added = tree.fill(&value)?;
            let file = self.files.entry(path.fill(&value)?).or_default();
            match (file, added) {
                (Value::String(text), Value::String(more)) => text.push_str(&more),
                (file, added) => merge(file, added),
            }
        }
        for (name, tree) in &layer.session {
            let added = tree.fill(&value)?;
            let member = Map::from_iter([(name.fill(&value)?, added)]);
            merge(&mut self.session, Value::Object(member));
        }
        if layer.mode.is_some() {
            self.mode.clone_from(&layer.mode);
        }
        Ok(())
    }

    /// Adds a layer whose variables stand over the user's.
    pub(super) fn add_fixed(&mut self, layer: &Layer) -> Result<(), PlanError> {
        self.fixed.extend(layer.env.keys().cloned());
        self.add(layer)
    }

    pub(super) fn set(&mut self, variable: &str, value: String) {
        self.env.insert(variable.to_owned(), Value::String(value));
    }

    /// Sets a variable over the user's.
    pub(super) fn fix(&mut self, variable: &str, value: String) {
        self.fixed.insert(variable.to_owned());
        self.set(variable, value);
    }

    /// Runs what the VM's own modules hold.
    pub(super) fn run_adapter(&mut self, request: &PlanRequest<'_>) -> Result<(), PlanError> {
        let agent = self.agent.id.clone();
        let adapter = request.adapter.ok_or(PlanError::Nothing { agent, what: "an adapter" })?;
        if adapter.runs_on_node {
            self.argv.push(node_binary(self.agent, request.installed)?);
        }
        self.argv.push(adapter.path.clone());
        Ok(())
    }

    /// Pi has no flag for tool servers, but for extensions.
    pub(super) fn add_pi_extension(&mut self, state: &str, request: &PlanRequest<'_>) {
        let path = format!("{state}/agentos-mcp.mjs");
        let (source, variables) = tool_servers::pi_extension(request.mcp_servers, request.host_tools);
        self.argv.extend(["--extension".to_owned(), path.clone()]);
        self.files.insert(path, Value::String(source));
        for (variable, value) in variables {
            self.set(&variable, value);
        }
    }

    /// Puts the user's environment over it and writes everything out.
    pub(super) fn finish(self, env: &BTreeMap<String, String>) -> Result<Composed, PlanError> {
        let Self { agent, mut argv, fixed, session, mode, .. } = self;
        argv.extend(agent.extra_args.iter().cloned());
        let written = |(name, value)| match value {
            Value::String(text) => (name, text),
            value => (name, value.to_string()),
        };
        let mut composed: BTreeMap<String, String> = self.env.into_iter().map(written).collect();
        let users = agent.env.iter().chain(env).filter(|(name, _)| !fixed.contains(*name));
        composed.extend(users.map(|(name, value)| (name.clone(), value.clone())));
        let files = self.files.into_iter().map(|(path, value)| write(agent, path, value));
        let session = match session {
            Value::Object(session) => session,
            _ => Map::new(),
        };
        Ok(Composed { argv, env: composed, files: files.collect::<Result<_, _>>()?, session, mode })
    }
}

/// A table as what the file's name says, a text as it is.
fn write(agent: &Agent, guest_path: String, value: Value) -> Result<PlanFile, PlanError> {
    let content = match value {
        Value::String(text) => text,
        table if guest_path.ends_with(".toml") => match toml::to_string(&table) {
            Ok(text) => text,
            Err(_) => return Err(PlanError::File { agent: agent.id.clone(), path: guest_path }),
        },
        value => format!("{value:#}\n"),
    };
    Ok(PlanFile { guest_path, content: content.into_bytes() })
}
