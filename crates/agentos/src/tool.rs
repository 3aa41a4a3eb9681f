//! Host tools: functions of this program that the agents, and all other programs, in a VM can call.
//!
//! ```
//! use agentos::{AgentOsOptions, HostTool, ToolKit};
//! use serde_json::{Value, json};
//!
//! let schema = json!({
//!     "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"],
//! });
//! let forecast = HostTool::new("The weather of tomorrow", schema, |input: Value| async move {
//!     match input["city"].as_str() {
//!         Some("Atlantis") => Err("nobody knows"),
//!         city => Ok(format!("sunny in {}", city.unwrap_or_default())),
//!     }
//! });
//! let options = AgentOsOptions::default()
//!     .tool_kit(ToolKit::new("weather", "What the sky does").tool("forecast", forecast));
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

/// What became of a call: a value, or why there is none, for whoever called.
pub(crate) type Outcome = Result<Value, String>;

type Handler = Arc<dyn Fn(Value) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// A function of this program that programs in a VM can call.
#[derive(Clone)]
pub struct HostTool {
    pub(crate) description: String,
    pub(crate) input_schema: Value,
    pub(crate) examples: Vec<(String, Value)>,
    pub(crate) timeout: Option<Duration>,
    handler: Handler,
}

impl HostTool {
    /// A tool that does what `handler` does. `input_schema` is a JSON Schema of type `object`, of at most 64 KiB, formats
    /// included; its references are places in it (`#/$defs/NAME`), never lead in a circle and go 32 deep. Input that does not
    /// fit is refused before it gets here, and so is one whose values, times those of the schema, are more than 250,000. Models
    /// choose by the description, which is needed and has at most 1,024 characters. `AgentOs::create` checks all of it.
    ///
    /// The handler runs on the runtime that created the VM, several calls at once, and must not block that: what blocks
    /// belongs into `tokio::task::spawn_blocking`. What it returns as an error the caller reads as a text; a panic is an error,
    /// too. Answers have at most 1 MiB. It is dropped in the middle when nobody waits for it any more.
    pub fn new<F, Fut, T, E>(description: impl Into<String>, input_schema: Value, handler: F) -> Self
    where
        F: Fn(Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Value>,
        E: fmt::Display,
    {
        let handler: Handler = Arc::new(move |input| {
            let answering = handler(input);
            Box::pin(async move { answering.await.map(Into::into).map_err(|error| error.to_string()) })
        });
        let (description, examples, timeout) = (description.into(), Vec::new(), None);
        Self { description, input_schema, examples, timeout, handler }
    }

    /// Adds an example of an input, which has to fit the schema; models are shown it. A tool's examples have at most 16 KiB
    /// together, and each needs its description.
    #[must_use]
    pub fn example(mut self, description: impl Into<String>, input: Value) -> Self {
        self.examples.push((description.into(), input));
        self
    }

    /// How long a call may take, waiting for others included: 30 s where this is not called, and at most an hour.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn call(&self, input: Value) -> impl Future<Output = Outcome> + Send + use<> {
        (self.handler)(input)
    }
}

impl fmt::Debug for HostTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTool")
            .field("description", &self.description)
            .field("input_schema", &self.input_schema)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Host tools that belong together. In the VM the tool `forecast` of the kit `weather` is known as `weather_forecast`.
#[derive(Debug, Clone)]
pub struct ToolKit {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) tools: BTreeMap<String, HostTool>,
}

impl ToolKit {
    /// A kit without tools. Its name is made of lower-case letters, digits and hyphens, a letter first; its description, of
    /// at most 1,024 characters, agents are told.
    pub fn new(name: impl Into<String>, description: impl Into<String>) -> Self {
        Self { name: name.into(), description: description.into(), tools: BTreeMap::new() }
    }

    /// Adds a tool, whose name is made of letters, digits, hyphens and underscores; one of that name is replaced. Kit and
    /// tool have at most 44 characters together.
    #[must_use]
    pub fn tool(mut self, name: impl Into<String>, tool: HostTool) -> Self {
        self.tools.insert(name.into(), tool);
        self
    }
}

/// Which host tools the programs of a VM may call. Of several rules that fit a tool, the last one decides.
///
/// This is enforced outside of the VM, whatever the permissions of an agent are: a session's policy decides what an agent
/// asks for, and no program but the agent keeps to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolPermissions {
    pub(crate) denied: bool,
    pub(crate) rules: Vec<(bool, String)>,
}

impl ToolPermissions {
    /// Every tool may be called where no rule denies it; this is the default.
    #[must_use]
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// No tool may be called where no rule allows it.
    #[must_use]
    pub fn deny_all() -> Self {
        Self { denied: true, rules: Vec::new() }
    }

    /// Allows the tools that `pattern` fits: a name such as `weather_forecast`, with `*` for any part of it.
    #[must_use]
    pub fn allow(mut self, pattern: impl Into<String>) -> Self {
        self.rules.push((false, pattern.into()));
        self
    }

    /// Denies the tools that `pattern` fits. Those are not listed, either.
    #[must_use]
    pub fn deny(mut self, pattern: impl Into<String>) -> Self {
        self.rules.push((true, pattern.into()));
        self
    }
}
