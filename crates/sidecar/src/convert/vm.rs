//! A VM's options and state.

use std::collections::BTreeMap;
use std::time::Duration;

use agentos_proto::v1::{self, base::Kind};
use agentos_vm::network::{NetworkOptions, StackLimits};
use agentos_vm::spec::{BaseOptions, LimitOptions};
use agentos_vm::{StorageOptions, VmOptions, VmState};

use crate::convert::mount::mount_options;
use crate::convert::policy::egress_policy;
use crate::convert::session;
use crate::errors::Failure;
use crate::host::{CreateVm, HostedVm};
use crate::registry::Listed;
use crate::secrets::{self, ProviderKey};
use crate::sessions::SessionDefaults;
use crate::tools::{self, ToolOffer};

impl TryFrom<v1::CreateVmRequest> for CreateVm {
    type Error = Failure;

    fn try_from(request: v1::CreateVmRequest) -> Result<Self, Failure> {
        let mut env: BTreeMap<String, String> = request.env.into_iter().collect();
        let declared = secrets::declare(request.secrets, &mut env)?;
        let sessions = SessionDefaults {
            // The addresses of providers behind the gateway are the VM's own matter.
            env: without_gateway(&env, &declared.keys),
            keys: declared.keys,
            instructions: request.additional_instructions,
            model: session::model_wish(request.model)?,
            agents: request.agents.into_iter().map(session::agent_config).collect(),
        };
        let tools = ToolOffer::validate(request.tool_kits, request.tool_permissions)?;
        let mounts = request.mounts.into_iter().map(mount_options).collect::<Result<_, _>>()?;
        let ports = request.loopback_exempt_ports.into_iter().map(port).collect::<Result<_, _>>()?;
        let env = env.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes()));
        let options = VmOptions {
            env: env.collect(),
            mounts,
            command_dirs: request.command_dirs.into_iter().map(String::into_bytes).collect(),
            search_path: tools.iter().map(|_| tools::COMMAND_DIR.as_bytes().to_vec()).collect(),
            loopback_exempt_ports: ports,
            limits: request.limits.map(limits).unwrap_or_default(),
            dispose_grace: request.dispose_grace_ms.map(Duration::from_millis),
            base: base(request.base),
            root: request.root,
            storage: storage(request.storage),
            network: NetworkOptions {
                policy: request.network.map(egress_policy).transpose()?,
                dns_servers: request
                    .dns_servers
                    .iter()
                    .map(|server| super::network::socket_address(server))
                    .collect::<Result<_, _>>()?,
                limits: network_limits(request.limits.as_ref()),
                secrets: declared.secrets,
                routes: declared.routes,
            },
        };
        Ok(Self { lease: request.lease_id, name: request.detached_name, options, sessions, tools })
    }
}

/// What sessions are told of the VM's environment.
fn without_gateway(env: &BTreeMap<String, String>, keys: &[ProviderKey]) -> BTreeMap<String, String> {
    let mut env = env.clone();
    for key in keys {
        env.remove(key.provider.base_url);
    }
    env
}

/// TCP ports have 16 bits; the message has room for more.
pub(crate) fn port(port: u32) -> Result<u16, Failure> {
    match u16::try_from(port) {
        Ok(0) | Err(_) => {
            Err(Failure::invalid(port.to_string(), format!("Port must be between 1 and 65535: {port}")))
        }
        Ok(port) => Ok(port),
    }
}

fn network_limits(limits: Option<&v1::Limits>) -> StackLimits {
    let mut found = StackLimits::default();
    if let Some(connections) = limits.and_then(|limits| limits.connections) {
        found.connections = connections as usize;
    }
    found.bandwidth_bytes = limits.and_then(|limits| limits.bandwidth_bytes);
    found
}

fn limits(limits: v1::Limits) -> LimitOptions {
    LimitOptions {
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        processes: limits.processes,
        open_files: limits.open_files,
        disk_bytes: limits.disk_bytes,
    }
}

fn base(base: Option<v1::Base>) -> BaseOptions {
    match base.and_then(|base| base.kind) {
        Some(Kind::Directory(path)) => BaseOptions::Directory(path.into_bytes()),
        Some(Kind::Host(host)) => BaseOptions::Host { host_usr_local: host.host_usr_local },
        None => BaseOptions::default(),
    }
}

fn storage(storage: Option<v1::Storage>) -> StorageOptions {
    match storage.and_then(|storage| storage.kind) {
        Some(v1::storage::Kind::Directory(path)) => StorageOptions::Directory(path.into_bytes()),
        None => StorageOptions::Memory,
    }
}

pub(crate) fn vm_info(listed: Listed<std::sync::Arc<HostedVm>>) -> v1::VmInfo {
    let (state, reason) = match listed.vm.vm.state() {
        VmState::Failed(reason) => (v1::VmState::Failed, crate::errors::chain(&reason)),
        VmState::Running if !listed.disposing => (v1::VmState::Running, String::new()),
        _ => (v1::VmState::Disposing, String::new()),
    };
    v1::VmInfo {
        vm_id: listed.id.as_str().to_owned(),
        detached_name: listed.name,
        state: state.into(),
        reason,
        created_at_ms: listed.created_at_ms,
    }
}

#[cfg(test)]
mod tests {
    use agentos_vm::policy::EgressPolicy;

    use super::*;

    #[test]
    fn every_option_arrives() {
        let request = v1::CreateVmRequest {
            lease_id: "lease-1".into(),
            detached_name: "web".into(),
            env: [("A".to_owned(), "1".to_owned())].into(),
            command_dirs: vec!["/opt/bin".into()],
            loopback_exempt_ports: vec![8080],
            additional_instructions: "be brief".into(),
            model: v1::ModelChoice::Demo.into(),
            limits: Some(v1::Limits {
                memory_bytes: Some(1 << 30),
                processes: Some(64),
                connections: Some(5),
                bandwidth_bytes: Some(6),
                ..Default::default()
            }),
            dns_servers: vec!["192.0.2.53:53".into()],
            dispose_grace_ms: Some(250),
            base: Some(v1::Base { kind: Some(Kind::Directory("/srv/root".into())) }),
            root: true,
            network: Some(v1::EgressPolicy { base: v1::EgressBase::None.into(), rules: Vec::new() }),
            storage: Some(v1::Storage { kind: Some(v1::storage::Kind::Directory("/srv/state".into())) }),
            ..Default::default()
        };
        let wish = CreateVm::try_from(request).unwrap();
        assert_eq!((wish.lease.as_str(), wish.name.as_str()), ("lease-1", "web"));
        assert_eq!(wish.options.env, [(b"A".to_vec(), b"1".to_vec())]);
        assert_eq!(wish.options.command_dirs, [b"/opt/bin".to_vec()]);
        assert_eq!(wish.options.loopback_exempt_ports, [8080]);
        assert_eq!(wish.options.limits.memory_bytes, Some(1 << 30));
        assert_eq!(wish.options.limits.processes, Some(64));
        assert_eq!(wish.options.limits.cpu_millis, None);
        assert_eq!(wish.options.dispose_grace, Some(Duration::from_millis(250)));
        assert!(matches!(&wish.options.base, BaseOptions::Directory(path) if path == b"/srv/root"));
        assert!(wish.options.root);
        assert_eq!(wish.options.storage, StorageOptions::Directory(b"/srv/state".to_vec()));
        let network = wish.options.network;
        assert_eq!(network.policy, Some(EgressPolicy::none()));
        assert_eq!(network.dns_servers, ["192.0.2.53:53".parse().unwrap()]);
        assert_eq!((network.limits.connections, network.limits.bandwidth_bytes), (5, Some(6)));
        assert_eq!(wish.sessions.instructions, "be brief");
        assert_eq!(wish.sessions.env.get("A").map(String::as_str), Some("1"));
    }

    #[test]
    fn without_a_policy_a_vm_has_the_public_internet() {
        let wish = CreateVm::try_from(v1::CreateVmRequest::default()).unwrap();
        // Which is what none means where there is a network at all.
        assert_eq!(wish.options.network.policy, None);
    }

    #[test]
    fn ports_beyond_sixteen_bits_are_refused_by_number() {
        for number in [0, 65_536, u32::MAX] {
            let detail = port(number).unwrap_err().into_detail();
            assert!(detail.message.contains(&number.to_string()), "{}", detail.message);
        }
        assert_eq!(port(65_535).unwrap(), 65_535);
    }
}
