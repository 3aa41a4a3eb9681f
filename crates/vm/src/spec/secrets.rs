//! The secrets of a VM among what it is made of, until the border takes them.

use agentos_netstack::border::{Route, Secret};

use super::{Environment, SpecError, SpecField, SpecProblem, VmSpec};

/// Checks what the VM's processes will see of the secrets: a variable of each one's name.
pub(super) fn check(secrets: &[Secret], environment: &Environment) -> Result<(), SpecError> {
    for (index, secret) in secrets.iter().enumerate() {
        let name = || secret.name().to_owned();
        let problem = if secret.name().contains('=') {
            SpecProblem::EnvironmentName(name())
        } else if secrets[..index].iter().any(|other| other.name() == secret.name()) {
            SpecProblem::DuplicateSecret(name())
        } else if environment.get(secret.name().as_bytes()).is_some() {
            SpecProblem::SecretInEnvironment(name())
        } else {
            continue;
        };
        return Err(SpecField::Secrets.refuse(problem));
    }
    Ok(())
}

impl VmSpec {
    /// Gives the secrets away, so that nothing but the border holds them.
    pub(crate) fn take_secrets(&mut self) -> (Vec<Secret>, Vec<Route>) {
        (std::mem::take(&mut self.network.secrets), std::mem::take(&mut self.network.routes))
    }

    /// Adds variables for every process where the user has set none of that name.
    pub(crate) fn add_env<'a>(&mut self, entries: impl IntoIterator<Item = (&'a str, &'a str)>) {
        for (name, value) in entries {
            self.environment = std::mem::take(&mut self.environment).or_insert(name, value);
        }
    }

    /// Whether a path of the VM lies in a directory that somebody mounts there, or is one.
    pub(crate) fn is_mounted(&self, path: &str) -> bool {
        let holds = |target: &[u8]| {
            path.as_bytes().strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        self.mounts.iter().any(|mount| holds(&mount.target))
    }
}
