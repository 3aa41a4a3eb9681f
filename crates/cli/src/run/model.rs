//! Which model a run talks to, and which of the caller's variables it is given for that.

use agentos::{AgentOs, ModelChoice};
use clap::ValueEnum;

use crate::failure::Failure;
use crate::guest::VmArgs;
use crate::spec::EnvSpec;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelArg {
    /// A provider when a key or base URL the agent looks for is given with --env, else the offline model
    #[default]
    Auto,
    /// The offline scripted model
    Demo,
    /// Whatever the agent's own configuration says, with the keys of your environment that the agent looks for
    Provider,
}

impl From<ModelArg> for ModelChoice {
    fn from(model: ModelArg) -> Self {
        match model {
            ModelArg::Auto => Self::Auto,
            ModelArg::Demo => Self::Demo,
            ModelArg::Provider => Self::Provider,
        }
    }
}

/// What the caller's environment has of the variables that the agent looks for.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Given to the session.
    pub taken: Vec<EnvSpec>,
    /// Set, and not given: no provider can be reached out of a VM without a network, so that `auto` would trade a run
    /// that works for a connection error. Who insists says `--model provider` or gives the variable with `--env`.
    pub left: Vec<EnvSpec>,
}

/// Looks for the agent's variables, unless the caller decided otherwise: by the model, or by giving one of them with
/// `--env`.
pub(super) async fn find(
    vm: &AgentOs,
    agent: &str,
    model: ModelArg,
    args: &VmArgs,
) -> Result<Found, Failure> {
    if model == ModelArg::Demo {
        return Ok(Found::default());
    }
    let agents = vm.list_agents().await?;
    let wanted =
        agents.into_iter().find(|entry| entry.id == agent).map(|entry| entry.model_env).unwrap_or_default();
    let set = pick(&wanted, args, |name| std::env::var(name).ok());
    let demanded = std::env::var("AGENTOS_MODEL").is_ok_and(|value| value == "provider");
    Ok(if model == ModelArg::Provider || demanded {
        Found { taken: set, left: Vec::new() }
    } else {
        Found { taken: Vec::new(), left: set }
    })
}

fn pick(wanted: &[String], args: &VmArgs, look: impl Fn(&str) -> Option<String>) -> Vec<EnvSpec> {
    if args.env.iter().any(|given| wanted.contains(&given.name)) {
        return Vec::new();
    }
    let set = |name: &String| {
        let value = look(name).filter(|value| !value.is_empty())?;
        Some(EnvSpec { name: name.clone(), value })
    };
    wanted.iter().filter_map(set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(flags: &[&str]) -> Vec<String> {
        let args = VmArgs::of(flags);
        let wanted = ["A_KEY", "B_KEY", "EMPTY_KEY"].map(str::to_owned);
        let look = |name: &str| match name {
            "A_KEY" | "OTHER" => Some("value".to_owned()),
            "EMPTY_KEY" => Some(String::new()),
            _ => None,
        };
        pick(&wanted, &args, look).into_iter().map(|env| env.name).collect()
    }

    #[test]
    fn only_what_the_agent_looks_for_is_taken() {
        assert_eq!(names(&[]), ["A_KEY"]);
    }

    #[test]
    fn a_key_that_is_given_is_the_only_one() {
        assert!(names(&["--env", "B_KEY=mine"]).is_empty());
        assert_eq!(names(&["--env", "UNRELATED=1"]), ["A_KEY"]);
    }
}
