//! VMs.

use std::path::Path;

use agentos_proto::v1;

use super::AnswerError;
use super::error::RequestError;
use crate::agent_config::AgentConfig;
use crate::options::{AgentOsOptions, Base, Limits, ModelChoice, Storage, absolute};
use crate::secret::Secret;
use crate::vm::{VmInfo, VmState};

pub(crate) fn create_request(
    lease_id: &str,
    options: AgentOsOptions,
) -> Result<v1::CreateVmRequest, RequestError> {
    let AgentOsOptions {
        mounts,
        env,
        command_dirs,
        loopback_exempt_ports,
        additional_instructions,
        model,
        limits,
        sidecar: _,
        detached,
        dispose_grace,
        base: root_base,
        root,
        agents,
        secrets,
        network,
        dns_servers,
        storage: kept_in,
        tool_kits,
        tool_permissions,
    } = options;
    let mounts = mounts.into_iter().map(|(path, mount)| super::mount::mount(path, &mount));
    let command_dirs = command_dirs.iter().map(|directory| host_path(directory));
    Ok(v1::CreateVmRequest {
        lease_id: lease_id.to_owned(),
        detached_name: detached.unwrap_or_default(),
        env: env.into_iter().collect(),
        mounts: mounts.collect::<Result<_, _>>()?,
        command_dirs: command_dirs.collect::<Result<_, _>>()?,
        loopback_exempt_ports: loopback_exempt_ports.into_iter().map(u32::from).collect(),
        additional_instructions: additional_instructions.unwrap_or_default(),
        model: model_choice(model).into(),
        limits: Some(self::limits(limits)?),
        dispose_grace_ms: dispose_grace.map(super::millis),
        base: Some(base(root_base)?),
        root,
        agents: agents.into_iter().map(|(id, config)| agent(id, config)).collect(),
        secrets: secrets.into_iter().map(secret).collect(),
        network: network.map(super::policy::egress_policy),
        dns_servers: dns_servers.iter().map(ToString::to_string).collect(),
        storage: storage(kept_in)?,
        tool_kits: tool_kits.iter().map(super::tool::kit).collect(),
        tool_permissions: Some(super::tool::permissions(tool_permissions)),
    })
}

pub(crate) fn model_choice(model: Option<ModelChoice>) -> v1::ModelChoice {
    match model {
        None => v1::ModelChoice::Unspecified,
        Some(ModelChoice::Auto) => v1::ModelChoice::Auto,
        Some(ModelChoice::Demo) => v1::ModelChoice::Demo,
        Some(ModelChoice::Provider) => v1::ModelChoice::Provider,
    }
}

fn limits(limits: Limits) -> Result<v1::Limits, RequestError> {
    let Limits { memory_bytes, cpu, processes, open_files, disk_bytes, connections, bandwidth_bytes } =
        limits;
    let cpu_millis = cpu.map(cpu_millis).transpose()?;
    Ok(v1::Limits {
        memory_bytes,
        cpu_millis,
        processes,
        open_files,
        disk_bytes,
        connections,
        bandwidth_bytes,
    })
}

/// Thousandths of a CPU, at least one.
fn cpu_millis(cpus: f64) -> Result<u32, RequestError> {
    if cpus.is_nan() || cpus <= 0.0 {
        return Err(RequestError::Cpu { cpus });
    }
    // A float that is too large for the integer becomes its maximum, which is no limit.
    Ok(((cpus * 1000.0).round() as u32).max(1))
}

fn base(base: Base) -> Result<v1::Base, RequestError> {
    let kind = match base {
        Base::Host { host_usr_local } => v1::base::Kind::Host(v1::HostBase { host_usr_local }),
        Base::Directory(path) => v1::base::Kind::Directory(host_path(&path)?),
    };
    Ok(v1::Base { kind: Some(kind) })
}

/// Nothing for memory, which is what a request without it means.
fn storage(storage: Storage) -> Result<Option<v1::Storage>, RequestError> {
    let Storage::Directory(path) = storage else { return Ok(None) };
    Ok(Some(v1::Storage { kind: Some(v1::storage::Kind::Directory(host_path(&path)?)) }))
}

fn agent(id: String, config: AgentConfig) -> v1::AgentConfig {
    let AgentConfig { acp_adapter, agent_package, launch_args, default_env, command, .. } = config;
    v1::AgentConfig {
        id,
        acp_adapter,
        agent_package,
        launch_args,
        default_env: default_env.into_iter().collect(),
        command,
    }
}

fn secret(secret: Secret) -> v1::Secret {
    let Secret { name, value, placeholder_prefix, destinations } = secret;
    let destination = |(host, header)| v1::SecretDestination { host, header };
    let mut message = v1::Secret::default();
    message.name = name;
    // Wiped by the message when it has been sent.
    message.value.push_str(&value);
    message.placeholder_prefix = placeholder_prefix;
    message.destinations = destinations.into_iter().map(destination).collect();
    message
}

/// A host path as the wire has it: absolute, because the sidecar has a working directory of its own, and UTF-8.
pub(crate) fn host_path(path: &Path) -> Result<String, RequestError> {
    let lossy = || path.display().to_string();
    let whole = absolute(path).map_err(|source| RequestError::Absolute { path: lossy(), source })?;
    whole.into_os_string().into_string().map_err(|_| RequestError::HostPath { path: lossy() })
}

pub(crate) fn info(vm: v1::VmInfo) -> Result<VmInfo, AnswerError> {
    let state = match vm.state() {
        v1::VmState::Running => VmState::Running,
        v1::VmState::Disposing => VmState::Disposing,
        v1::VmState::Failed => VmState::Failed,
        v1::VmState::Unspecified => return Err(AnswerError::Missing { call: "ListVms", field: "state" }),
    };
    let v1::VmInfo { vm_id, detached_name, reason, created_at_ms, .. } = vm;
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(VmInfo { vm_id, detached_name: given(detached_name), state, reason: given(reason), created_at_ms })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;
    use crate::{EgressPolicy, HostTool, Mount, ToolKit, ToolPermissions};

    #[test]
    fn every_option_reaches_the_request() {
        let options = AgentOsOptions::default()
            .mount("/work", Mount::host_dir("/srv").read_write())
            .env("A", "1")
            .command_dir("/opt/tools")
            .loopback_exempt_port(8080)
            .additional_instructions("be brief")
            .model(ModelChoice::Demo)
            .limits(
                Limits::default()
                    .memory_bytes(1)
                    .cpu(1.5)
                    .processes(2)
                    .open_files(3)
                    .disk_bytes(4)
                    .connections(5)
                    .bandwidth_bytes(6),
            )
            .detached("kept")
            .dispose_grace(std::time::Duration::from_millis(20))
            .base(Base::directory("/srv/root"))
            .root(true)
            .agent("mine", AgentConfig::new("adapter", "package").launch_arg("-x").default_env("B", "2"))
            .network(EgressPolicy::none())
            .dns_server("192.0.2.53:53".parse().unwrap())
            .storage(Storage::directory("/srv/state"))
            .secret(Secret::new("KEY", "value").header("api.example", "x-key").placeholder_prefix("sk-"));
        let mut secret = v1::Secret::default();
        secret.name = "KEY".into();
        secret.value = "value".into();
        secret.placeholder_prefix = Some("sk-".into());
        secret.destinations =
            vec![v1::SecretDestination { host: "api.example".into(), header: "x-key".into() }];
        let request = create_request("lease", options).unwrap();
        let expected = v1::CreateVmRequest {
            lease_id: "lease".into(),
            detached_name: "kept".into(),
            env: [("A".into(), "1".into())].into(),
            mounts: vec![v1::Mount {
                path: "/work".into(),
                read_only: false,
                kind: Some(v1::mount::Kind::HostDir(v1::HostDirMount {
                    host_path: "/srv".into(),
                    allow_sockets: false,
                })),
            }],
            command_dirs: vec!["/opt/tools".into()],
            loopback_exempt_ports: vec![8080],
            additional_instructions: "be brief".into(),
            model: v1::ModelChoice::Demo.into(),
            limits: Some(v1::Limits {
                memory_bytes: Some(1),
                cpu_millis: Some(1500),
                processes: Some(2),
                open_files: Some(3),
                disk_bytes: Some(4),
                connections: Some(5),
                bandwidth_bytes: Some(6),
            }),
            dispose_grace_ms: Some(20),
            base: Some(v1::Base { kind: Some(v1::base::Kind::Directory("/srv/root".into())) }),
            root: true,
            agents: vec![v1::AgentConfig {
                id: "mine".into(),
                acp_adapter: "adapter".into(),
                agent_package: "package".into(),
                launch_args: vec!["-x".into()],
                default_env: [("B".into(), "2".into())].into(),
                command: Vec::new(),
            }],
            secrets: vec![secret],
            network: Some(v1::EgressPolicy { base: v1::EgressBase::None.into(), rules: Vec::new() }),
            dns_servers: vec!["192.0.2.53:53".into()],
            storage: Some(v1::Storage { kind: Some(v1::storage::Kind::Directory("/srv/state".into())) }),
            tool_kits: Vec::new(),
            tool_permissions: Some(v1::ToolPermissions::default()),
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn host_tools_reach_the_request() {
        let tool =
            HostTool::new("Says the time", json!({ "type": "object" }), |_| async { Ok::<_, String>(1) });
        let tool = tool.example("Now", json!({})).timeout(std::time::Duration::from_secs(2));
        let options = AgentOsOptions::default()
            .tool_kit(ToolKit::new("clock", "Time").tool("now", tool))
            .tool_permissions(ToolPermissions::deny_all().allow("clock_*"));
        let request = create_request("lease", options).unwrap();
        let tool = v1::HostTool {
            name: "now".into(),
            description: "Says the time".into(),
            input_schema: r#"{"type":"object"}"#.into(),
            examples: vec![v1::ToolExample { description: "Now".into(), input: "{}".into() }],
            timeout_ms: Some(2000),
        };
        let kit = v1::ToolKit { name: "clock".into(), description: "Time".into(), tools: vec![tool] };
        assert_eq!(request.tool_kits, [kit]);
        let rules = vec![v1::ToolRule { denied: false, pattern: "clock_*".into() }];
        assert_eq!(request.tool_permissions, Some(v1::ToolPermissions { denied: true, rules }));
    }

    #[test]
    fn a_relative_host_path_is_the_client_s() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(PathBuf::from(host_path(Path::new("./src")).unwrap()), here.join("src"));
    }

    #[test]
    fn a_share_of_cpu_must_be_positive() {
        for cpus in [0.0, -1.0, f64::NAN] {
            assert!(matches!(cpu_millis(cpus), Err(RequestError::Cpu { .. })), "{cpus}");
        }
        assert_eq!(cpu_millis(0.000_1).unwrap(), 1);
        assert_eq!(cpu_millis(f64::INFINITY).unwrap(), u32::MAX);
    }
}
