//! What the user brings for agents into a VM: modules at [`NODE_MODULES`], and configuration files.

use agentos_agents::Agent;
use agentos_agents::configuration;
use agentos_agents::registry::{Adapter, Source, adapter_entry};
use agentos_proto::v1::ErrorKind;
use agentos_vm::Vm;
use rustix::io::Errno;

use super::NODE_MODULES;
use crate::errors::Failure;

/// The agent in the VM's own modules.
#[derive(Debug)]
pub(super) struct OwnModules {
    /// What starts it, where we know no better.
    pub(super) adapter: Option<Adapter>,
}

/// Whether the user's own modules hold the agent; they win over the store's.
pub(super) async fn own_modules(vm: &Vm, agent: &Agent) -> Result<Option<OwnModules>, Failure> {
    let packages = agent.own_modules();
    for package in &packages {
        if !vm.exists(manifest(package).as_bytes()).await? {
            return match agent.source {
                Source::Modules => Err(not_there(agent, package)),
                _ => Ok(None),
            };
        }
    }
    match (&agent.source, packages.first()) {
        (Source::Modules, Some(package)) => {
            Ok(Some(OwnModules { adapter: Some(adapter(vm, package).await?) }))
        }
        (_, first) => Ok(first.map(|_| OwnModules { adapter: None })),
    }
}

fn manifest(package: &str) -> String {
    format!("{NODE_MODULES}/{package}/package.json")
}

fn not_there(agent: &Agent, package: &str) -> Failure {
    let message = format!(
        "Agent {}: its package {package} is not among those that agentOS installs, and the VM has no {}. Install it in a \
         directory of the host (npm install {package}) and mount that one's node_modules at {NODE_MODULES}, or give the \
         agent a command",
        agent.id,
        manifest(package)
    );
    Failure::new(ErrorKind::AgentNotInstalled, &agent.id, message)
}

async fn adapter(vm: &Vm, package: &str) -> Result<Adapter, Failure> {
    let path = manifest(package);
    let content = small_file(vm, &path).await?.unwrap_or_default();
    let entry = adapter_entry(package, &content).map_err(|error| {
        let message = crate::errors::chain(&error);
        Failure::new(ErrorKind::AgentFailed, package, message)
    })?;
    let path = format!("{NODE_MODULES}/{package}/{entry}");
    let begin = vm.read_file(path.as_bytes()).await?.next().await?.unwrap_or_default();
    Ok(Adapter::at(path, &begin))
}

/// The content of a configuration file in the VM, where there is one.
pub(super) async fn small_file(vm: &Vm, path: &str) -> Result<Option<Vec<u8>>, Failure> {
    let absent = [Errno::NOENT, Errno::NOTDIR].map(|errno| Some(errno.raw_os_error()));
    let mut content = match vm.read_file(path.as_bytes()).await {
        Ok(content) => content,
        Err(error) if absent.contains(&error.errno()) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut whole = Vec::new();
    while let Some(part) = content.next().await? {
        whole.extend_from_slice(&part);
        if whole.len() > configuration::MAX_FILE_BYTES {
            let message = format!(
                "{path} is larger than {} bytes, so that it can't be what it is named",
                configuration::MAX_FILE_BYTES
            );
            return Err(Failure::invalid(path, message));
        }
    }
    Ok(Some(whole))
}
