//! The environment processes of a VM start from.

use std::collections::BTreeMap;
use std::fmt;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::launcher::Base;

use super::{HOSTNAME, SpecError, SpecField, SpecProblem};
use crate::path::lossy;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Leaves room for arguments and a process's own environment below the kernel's limit for all strings of an exec.
const MAX_ENVIRONMENT_BYTES: usize = 4 * 1024 * 1024;

/// Names and values; shows the names alone, because values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<Vec<u8>, Vec<u8>>);

/// Why a name or value can't be in an environment.
#[derive(Debug)]
pub(crate) enum EnvironmentRefusal {
    Name(String),
    Value(String),
}

impl Environment {
    pub(super) fn validate(
        wish: Vec<(Vec<u8>, Vec<u8>)>,
        commands: &[Vec<u8>],
        base: &Base,
        root: bool,
    ) -> Result<Self, SpecError> {
        let user = if root { "root" } else { "user" };
        let base_entries = [
            ("HOME", home(root)),
            ("USER", user),
            ("LOGNAME", user),
            ("SHELL", shell(base)),
            ("LANG", "C.UTF-8"),
            ("HOSTNAME", HOSTNAME),
        ];
        let mut entries: BTreeMap<Vec<u8>, Vec<u8>> =
            base_entries.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        entries.insert(b"PATH".to_vec(), search_path(commands));
        let merged = Self(entries).merged(wish).map_err(|refusal| {
            SpecField::Env.refuse(match refusal {
                EnvironmentRefusal::Name(name) => SpecProblem::EnvironmentName(name),
                EnvironmentRefusal::Value(name) => SpecProblem::EnvironmentValue(name),
            })
        })?;
        let total: usize = merged.0.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if total > MAX_ENVIRONMENT_BYTES {
            return Err(SpecField::Env.refuse(SpecProblem::EnvironmentTooLong));
        }
        Ok(merged)
    }

    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// With these entries over it.
    pub(crate) fn merged(&self, over: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Self, EnvironmentRefusal> {
        let mut merged = self.clone();
        for (name, value) in over {
            if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
                return Err(EnvironmentRefusal::Name(lossy(&name).into_owned()));
            }
            if value.contains(&0) {
                return Err(EnvironmentRefusal::Value(lossy(&name).into_owned()));
            }
            merged.0.insert(name, value);
        }
        Ok(merged)
    }

    /// Adds an entry where there is none of that name.
    pub(crate) fn or_insert(mut self, name: &str, value: &str) -> Self {
        self.0.entry(name.into()).or_insert_with(|| value.into());
        self
    }

    /// As exec takes it: `NAME=value`.
    pub(crate) fn to_wire(&self) -> Vec<Bytes> {
        let entry = |(name, value): (&Vec<u8>, &Vec<u8>)| {
            let mut entry = Vec::with_capacity(name.len() + value.len() + 1);
            entry.extend_from_slice(name);
            entry.push(b'=');
            entry.extend_from_slice(value);
            Bytes::from(entry)
        };
        self.0.iter().map(entry).collect()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys().map(|name| lossy(name))).finish()
    }
}

pub(super) fn home(root: bool) -> &'static str {
    if root { "/root" } else { "/home/user" }
}

/// bash where the base is the host's /usr and has it. A directory as base is not looked into: links in it mean
/// something only inside the VM.
fn shell(base: &Base) -> &'static str {
    let host_has_bash = || std::path::Path::new("/usr/bin/bash").exists();
    match base {
        Base::Host { .. } if host_has_bash() => "/bin/bash",
        Base::Host { .. } | Base::Directory { .. } => "/bin/sh",
    }
}

/// PATH: command directories before those of the base.
fn search_path(commands: &[Vec<u8>]) -> Vec<u8> {
    [commands, &[PATH.into()]].concat().join(&b':')
}
