//! Which model a session talks to: the user's provider, or the offline demo model.
//!
//! A pure rule over names, never over values: it is told which variables exist and answers with a kind and the
//! sentence that explains it. The sentence is shown to the user (`_agentos/model`), so it names its evidence.

use crate::registry::Agent;

/// What the caller asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ModelWish {
    /// The provider when something names one, else the demo model.
    #[default]
    Auto,
    /// The demo model, whatever is set.
    Demo,
    /// The agent's own configuration, untouched.
    Provider,
}

/// What a session talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// The offline scripted model.
    Demo,
    /// Whatever the agent is configured for.
    Provider,
}

impl ModelKind {
    /// The word for it in events and results.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Provider => "provider",
        }
    }
}

/// A decision and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChoice {
    /// What was chosen.
    pub kind: ModelKind,
    /// Why, as a sentence for the user.
    pub reason: String,
}

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct ModelRequest<'a> {
    /// What the caller asked for.
    pub wish: ModelWish,
    /// The agent, for the variables it looks for.
    pub agent: &'a Agent,
    /// The names in the session's environment.
    pub env_names: &'a [&'a str],
    /// The secrets declared on the VM that the gateway knows a provider for.
    pub declared: &'a [Declared<'a>],
    /// Why none of them can be used, if that is so: the VM has no network.
    pub unreachable: Option<&'a str>,
    /// Where the agent's own configuration in a mount names a provider, if it does.
    pub configured: Option<&'a str>,
    /// `AGENTOS_MODEL=provider`: the demo model is never a fallback.
    pub provider_required: bool,
}

/// A provider's key that is declared as a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// Where the gateway sends it.
    pub host: &'a str,
}

/// A provider is required and there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoModel {
    /// Nothing names one.
    #[error("no model for {agent}: AGENTOS_MODEL=provider is set and nothing names one; set one of {}", variables.join(", "))]
    Unnamed {
        /// The agent's id.
        agent: String,
        /// The variables that would name one.
        variables: Vec<String>,
    },
    /// A secret does, and can't be used.
    #[error(
        "no model for {agent}: AGENTOS_MODEL=provider is set and the secret {secret} can't be used: {why}"
    )]
    Unreachable {
        /// The agent's id.
        agent: String,
        /// The secret's name.
        secret: String,
        /// What stands in the way.
        why: String,
    },
    /// The demo model was asked for, and nobody knows how the agent is pointed to it.
    #[error(
        "no model for {agent}: how it is pointed to the demo model is not known; it uses what it is configured for"
    )]
    NoDemo {
        /// The agent's id.
        agent: String,
    },
}

impl NoModel {
    /// The agent's id.
    #[must_use]
    pub fn agent(&self) -> &str {
        match self {
            Self::Unnamed { agent, .. } | Self::Unreachable { agent, .. } | Self::NoDemo { agent } => agent,
        }
    }
}

/// How many variables a sentence to the user names; pi alone looks for more than thirty.
const NAMED_VARIABLES: usize = 6;

/// Decides which model a session talks to.
pub fn choose(request: &ModelRequest<'_>) -> Result<ModelChoice, NoModel> {
    let agent = request.agent;
    match request.wish {
        ModelWish::Demo if !agent.knows_demo_model() => {
            return Err(NoModel::NoDemo { agent: agent.id.clone() });
        }
        ModelWish::Demo => return Ok(demo("the demo model was asked for".to_owned())),
        ModelWish::Provider => return Ok(provider("the provider was asked for".to_owned())),
        ModelWish::Auto => {}
    }
    let looked_for = || agent.keys.iter().chain(&agent.base_urls);
    if let Some(name) = looked_for().find(|name| request.env_names.contains(&name.as_str())) {
        return Ok(provider(format!("{name} is set in the session's environment")));
    }
    let keys = || looked_for().filter_map(|name| request.declared.iter().find(|secret| secret.name == *name));
    let secret = keys().next();
    if let (Some(Declared { name, host }), None) = (secret, request.unreachable) {
        return Ok(provider(format!("{host}, key from {name}, kept outside the VM")));
    }
    if let Some(place) = request.configured {
        return Ok(provider(format!("{place} configures a provider")));
    }
    if !agent.knows_demo_model() {
        return Ok(provider(format!("which model {} uses is between it and its configuration", agent.id)));
    }
    let variables: Vec<String> = looked_for().take(NAMED_VARIABLES).cloned().collect();
    if let (Some(secret), Some(why)) = (secret, request.unreachable) {
        if request.provider_required {
            let (agent, secret) = (agent.id.clone(), secret.name.to_owned());
            return Err(NoModel::Unreachable { agent, secret, why: why.to_owned() });
        }
        return Ok(demo(format!("the secret {} can't be used: {why}", secret.name)));
    }
    if request.provider_required {
        return Err(NoModel::Unnamed { agent: agent.id.clone(), variables });
    }
    Ok(demo(format!(
        "nothing in the session's environment or in the configuration of {} names a provider; it looks for {} and others",
        agent.id,
        variables.join(", ")
    )))
}

fn demo(reason: String) -> ModelChoice {
    ModelChoice { kind: ModelKind::Demo, reason }
}

fn provider(reason: String) -> ModelChoice {
    ModelChoice { kind: ModelKind::Provider, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{AgentConfig, Registry};

    const DECLARED: [Declared<'_>; 1] = [Declared { name: "GEMINI_API_KEY", host: "gemini.example" }];

    fn check(change: impl FnOnce(&mut ModelRequest<'_>)) -> Result<ModelChoice, NoModel> {
        let registry = Registry::built_in();
        let agent = registry.find("pi").unwrap();
        let mut request = ModelRequest {
            wish: ModelWish::Auto,
            agent,
            env_names: &[],
            declared: &[],
            unreachable: None,
            configured: None,
            provider_required: false,
        };
        change(&mut request);
        choose(&request)
    }

    #[test]
    fn without_any_key_the_demo_model_answers_and_says_what_was_looked_for() {
        let choice = check(|_| {}).unwrap();
        assert_eq!(choice.kind, ModelKind::Demo);
        assert!(choice.reason.contains("ANTHROPIC_API_KEY"), "{}", choice.reason);
    }

    #[test]
    fn a_key_a_base_url_a_secret_or_a_configuration_names_the_provider() {
        for (choice, evidence) in [
            (check(|r| r.env_names = &["PATH", "OPENAI_API_KEY"]), "OPENAI_API_KEY"),
            (check(|r| r.env_names = &["AZURE_OPENAI_BASE_URL"]), "AZURE_OPENAI_BASE_URL"),
            (
                check(|r| r.declared = &DECLARED),
                "gemini.example, key from GEMINI_API_KEY, kept outside the VM",
            ),
            (check(|r| r.configured = Some("/home/user/.pi/agent/models.json")), "models.json"),
        ] {
            let choice = choice.unwrap();
            assert_eq!(choice.kind, ModelKind::Provider, "{evidence}");
            assert!(choice.reason.contains(evidence), "{}", choice.reason);
        }
    }

    #[test]
    fn a_variable_the_agent_does_not_look_for_changes_nothing() {
        assert_eq!(
            check(|r| r.env_names = &["CLAUDE_CODE_OAUTH_TOKEN", "HOME"]).unwrap().kind,
            ModelKind::Demo
        );
    }

    #[test]
    fn a_secret_that_nothing_can_carry_is_no_evidence_and_says_why() {
        let unreachable = |r: &mut ModelRequest<'_>| {
            r.declared = &DECLARED;
            r.unreachable = Some("VMs have no network on this host");
        };
        let choice = check(unreachable).unwrap();
        assert_eq!(choice.kind, ModelKind::Demo);
        assert_eq!(
            choice.reason,
            "the secret GEMINI_API_KEY can't be used: VMs have no network on this host"
        );
        let refused = check(|r| {
            unreachable(r);
            r.provider_required = true;
        });
        assert!(matches!(refused, Err(NoModel::Unreachable { .. })), "{refused:?}");
    }

    #[test]
    fn a_wish_wins_over_the_evidence() {
        let choice = check(|r| {
            r.wish = ModelWish::Demo;
            r.env_names = &["OPENAI_API_KEY"];
            r.provider_required = true;
        });
        assert_eq!(choice.unwrap().kind, ModelKind::Demo);
        assert_eq!(check(|r| r.wish = ModelWish::Provider).unwrap().kind, ModelKind::Provider);
    }

    #[test]
    fn production_refuses_the_fallback_and_names_the_variables() {
        let error = check(|r| r.provider_required = true).unwrap_err();
        assert!(
            matches!(&error, NoModel::Unnamed { variables, .. } if variables.iter().any(|name| name == "ANTHROPIC_API_KEY"))
        );
        assert!(error.to_string().contains("OPENAI_API_KEY"), "{error}");
        assert_eq!(
            check(|r| {
                r.provider_required = true;
                r.env_names = &["OPENAI_API_KEY"];
            })
            .unwrap()
            .kind,
            ModelKind::Provider
        );
    }

    #[test]
    fn an_agent_of_the_callers_uses_what_it_is_configured_for() {
        let own =
            AgentConfig { id: "mine".into(), command: vec!["my-agent".into()], ..AgentConfig::default() };
        let registry = Registry::with_configs(vec![own]);
        let check = |wish, provider_required| {
            choose(&ModelRequest {
                wish,
                agent: registry.find("mine").unwrap(),
                env_names: &[],
                declared: &[],
                unreachable: None,
                configured: None,
                provider_required,
            })
        };
        for required in [false, true] {
            assert_eq!(check(ModelWish::Auto, required).unwrap().kind, ModelKind::Provider);
        }
        let refused = check(ModelWish::Demo, false).unwrap_err();
        assert!(refused.to_string().contains("mine"), "{refused}");
    }
}
