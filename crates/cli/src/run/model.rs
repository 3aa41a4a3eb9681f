//! Which model a run talks to, and what becomes of the caller's keys for it.
//!
//! ```text
//!                                    auto                          provider
//! key that the gateway knows         the first: a secret           all of them: secrets
//! any other that the agent knows     left                          given to the session
//! ```
//! A secret stays outside of the VM. What is given to a session is in the VM's reach: that is not done unasked.

use agentos::{AgentOs, AgentOsOptions, AgentOsSharedSidecarOptions, ModelChoice, Secret};
use clap::ValueEnum;

use crate::failure::Failure;
use crate::guest::VmArgs;
use crate::spec::EnvSpec;
use crate::terminal::notice;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelArg {
    /// A provider when a key that the agent looks for is in your environment, or given with --secret or --env, else the
    /// offline model
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

/// What the caller's environment has of the variables that the agent looks for, and what is done with it.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    kept: Vec<Kept>,
    /// Given to the session.
    given: Vec<EnvSpec>,
    /// Set, and not used.
    left: Vec<String>,
}

/// A provider whose key can stay outside of the VM.
struct Known<'a> {
    key: &'a str,
    base_url: &'a str,
    host: &'a str,
}

/// A key that does.
#[derive(Debug)]
struct Kept {
    name: String,
    secret: Secret,
    /// The variable by which the caller points the provider's clients elsewhere.
    base_url: Option<EnvSpec>,
    /// Where it goes.
    host: String,
}

impl Keys {
    /// Looks for the agent's variables, unless the caller decided otherwise: by the model, or by giving one of them with
    /// `--env` or `--secret`.
    pub(crate) async fn find(agent: &str, model: ModelArg, args: &VmArgs) -> Result<Self, Failure> {
        if model == ModelArg::Demo {
            return Ok(Self::default());
        }
        let sidecar = AgentOs::get_shared_sidecar(AgentOsSharedSidecarOptions::default()).await?;
        let agents = sidecar.list_agents().await?;
        let Some(entry) = agents.into_iter().find(|entry| entry.id == agent) else {
            return Ok(Self::default());
        };
        let demanded = std::env::var("AGENTOS_MODEL").is_ok_and(|value| value == "provider");
        let all = model == ModelArg::Provider || demanded;
        let look = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let known = entry.providers.iter();
        let known =
            known.map(|known| Known { key: &known.key, base_url: &known.base_url, host: &known.host });
        let known: Vec<Known<'_>> = known.collect();
        Ok(Self::pick(&known, &entry.model_env, args, &look).restricted(all))
    }

    fn pick(
        providers: &[Known<'_>],
        looked_for: &[String],
        args: &VmArgs,
        look: &impl Fn(&str) -> Option<String>,
    ) -> Self {
        let is_given = |name: &str| {
            args.env.iter().any(|given| given.name == name)
                || args.secret.iter().any(|secret| secret.name == name)
        };
        if looked_for.iter().any(|name| is_given(name)) {
            return Self::default();
        }
        let kept = providers.iter().filter_map(|provider| {
            let secret = Secret::new(provider.key, look(provider.key)?);
            // One that is given is in the VM's options already.
            let given = args.env.iter().find(|given| given.name == provider.base_url);
            let own = look(provider.base_url).filter(|_| given.is_none());
            let elsewhere = given.map(|given| &given.value).or(own.as_ref());
            let host = elsewhere.map_or(provider.host, |url| host_of(url)).to_owned();
            let base_url = own.map(|value| EnvSpec { name: provider.base_url.to_owned(), value });
            Some(Kept { name: provider.key.to_owned(), secret, base_url, host })
        });
        let kept: Vec<Kept> = kept.collect();
        let others = looked_for.iter().filter(|name| {
            providers.iter().all(|known| ![known.key, known.base_url].contains(&name.as_str()))
        });
        let set = |name: &String| Some(EnvSpec { name: name.clone(), value: look(name)? });
        Self { kept, given: others.filter_map(set).collect(), left: Vec::new() }
    }

    /// Unless all are wanted, the first that can be kept outside, and nothing that can't.
    fn restricted(mut self, all: bool) -> Self {
        if !all {
            self.kept.truncate(1);
            self.left = self.given.drain(..).map(|env| env.name).collect();
            if !self.kept.is_empty() {
                // There is a provider: nobody asks why another isn't used.
                self.left.clear();
            }
        }
        self
    }

    /// What the VM is made with.
    pub(crate) fn declare(&self, mut options: AgentOsOptions) -> AgentOsOptions {
        for key in &self.kept {
            options = options.secret(key.secret.clone());
            if let Some(EnvSpec { name, value }) = &key.base_url {
                options = options.env(name, value);
            }
        }
        options
    }

    /// What the session's environment has more.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&String, &String)> {
        self.given.iter().map(|env| (&env.name, &env.value))
    }

    /// Says what is done with keys that are not kept outside.
    pub(crate) fn tell(&self) {
        if !self.given.is_empty() {
            let names: Vec<&str> = self.given.iter().map(|env| env.name.as_str()).collect();
            let names = names.join(", ");
            notice(&format!("giving the agent {names} of your environment (--model demo: none)"));
        }
        if !self.left.is_empty() {
            notice(&format!(
                "not using {0} of your environment, which could not be kept outside the VM (--model provider: all the same)",
                self.left.join(", ")
            ));
        }
    }

    /// Says which provider has the model, if one of the keys leads there.
    pub(crate) fn tell_provider(&self) -> bool {
        let Some(Kept { host, name, .. }) = self.kept.first() else { return false };
        notice(&format!("model {host}, key from {name}, kept outside the VM"));
        true
    }
}

/// The host of a base URL, with its port. It is shown: a password that stands before it is not.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_base_url_is_not_shown() {
        for (url, host) in [
            ("https://proxy.example:8443/v1", "proxy.example:8443"),
            ("https://me:hidden@proxy.example/v1", "proxy.example"),
            ("https://proxy.example?key=hidden", "proxy.example"),
            ("proxy.example", "proxy.example"),
        ] {
            assert_eq!(host_of(url), host, "{url}");
        }
    }

    /// What is kept, given and left.
    fn names(flags: &[&str], all: bool, set: &[(&str, &str)]) -> [String; 3] {
        let args = VmArgs::of(flags);
        let known = |key, base_url| Known { key, base_url, host: "api.example" };
        let providers = [known("A_KEY", "A_BASE_URL"), known("B_KEY", "B_BASE_URL")];
        let looked_for = ["A_KEY", "B_KEY", "OTHER_KEY", "OTHER_BASE_URL"].map(str::to_owned);
        let look =
            |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let keys = Keys::pick(&providers, &looked_for, &args, &look).restricted(all);
        let kept: Vec<String> = keys.kept.iter().map(|key| format!("{}@{}", key.name, key.host)).collect();
        let given: Vec<&str> = keys.given.iter().map(|env| env.name.as_str()).collect();
        [kept.join(" "), given.join(" "), keys.left.join(" ")]
    }

    const BOTH: [(&str, &str); 4] = [("A_KEY", "a"), ("B_KEY", "b"), ("OTHER_KEY", "c"), ("UNRELATED", "d")];

    #[test]
    fn auto_keeps_one_key_outside_and_gives_none() {
        assert_eq!(names(&[], false, &BOTH), ["A_KEY@api.example", "", ""]);
        assert_eq!(names(&[], false, &BOTH[2..]), ["", "", "OTHER_KEY"]);
        assert_eq!(names(&[], false, &[]), ["", "", ""]);
    }

    #[test]
    fn who_wants_a_provider_gets_all_of_them() {
        assert_eq!(names(&[], true, &BOTH), ["A_KEY@api.example B_KEY@api.example", "OTHER_KEY", ""]);
    }

    #[test]
    fn a_key_that_is_given_is_the_only_one() {
        for flags in [["--env", "B_KEY=mine"], ["--env", "OTHER_BASE_URL=http://x"]] {
            assert_eq!(names(&flags, false, &BOTH), ["", "", ""], "{flags:?}");
        }
        assert_eq!(names(&["--env", "UNRELATED=1"], false, &BOTH)[0], "A_KEY@api.example");
    }

    #[test]
    fn a_base_url_goes_with_its_key() {
        let set =
            [("B_KEY", "b"), ("B_BASE_URL", "http://proxy.example:8080/v1"), ("A_BASE_URL", "http://a")];
        assert_eq!(names(&[], false, &set)[0], "B_KEY@proxy.example:8080");
        let given = names(&["--env", "B_BASE_URL=https://given.example"], false, &set);
        assert_eq!(given[0], "B_KEY@given.example");
    }
}
