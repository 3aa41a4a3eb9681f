//! The way out of a VM: a TUN device that init makes, and the stack that serves it.
//!
//! ```text
//! Coming ──init: Uplink(ok)──► Up(stack) ──VM ends──► Missing
//!   └── the host has no TUN, or init could not make one ──► Missing(why)
//! ```
//! The device comes soon after the VM is ready, and before init answers anything. What asks for the network before waits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentos_guest_protocol::init::Request;
use agentos_guest_protocol::launcher::BootFailure;
use agentos_guest_protocol::network::{self as guest, NetworkRequest};
use agentos_netstack::border::{Border, Route, Secret, Trust, TrustError};
use agentos_netstack::dns::{Resolver, Upstream};
use agentos_netstack::event::{EventLog, NetworkEventKind, Owner};
use agentos_netstack::name::HostName;
use agentos_netstack::pins::Pins;
use agentos_netstack::policy::{EgressPolicy, Protocol};
use agentos_netstack::stack::{Addresses, Identify, NetworkStats, Stack, StackLimits, StackOptions};
use rustix::fs::FileType;
use tokio::sync::{OnceCell, Semaphore, mpsc, watch};

use super::NetworkError;
use crate::command::{Call, Command, Completion, ProtocolError};
use crate::create::CreateError;
use crate::spec::VmSpec;
use crate::trust;
use crate::vm::Vm;

/// A wish for a VM's network.
#[derive(Debug, Clone, Default)]
pub struct NetworkOptions {
    /// None: the public policy where the host can have one, else no way out.
    pub policy: Option<EgressPolicy>,
    /// Asked instead of the host's own.
    pub dns_servers: Vec<SocketAddr>,
    pub limits: StackLimits,
    /// What the border puts in on the way out. Each is a variable in the VM, with a placeholder for its value.
    pub secrets: Vec<Secret>,
    /// What the gateway leads to.
    pub routes: Vec<Route>,
}

/// What a VM's handles and its owner task share of its network.
#[derive(Debug)]
pub(crate) struct Uplink {
    events: Arc<EventLog>,
    link: watch::Sender<Link>,
}

#[derive(Debug, Clone)]
pub(crate) enum Link {
    Coming,
    Up(Arc<Stack>),
    Missing(Missing),
}

/// Why a VM has no way out.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    #[error("VMs have no network on this host: {}", crate::errno::describe(.0))]
    Host(BootFailure),
    #[error("VM's network device could not be made: {}", crate::errno::describe(.0))]
    Device(BootFailure),
    #[error("VM's network could not be started: {0}")]
    Stack(#[source] Arc<io::Error>),
    #[error("VM has ended")]
    Ended,
}

impl Default for Uplink {
    fn default() -> Self {
        Self { events: Arc::default(), link: watch::Sender::new(Link::Coming) }
    }
}

impl Uplink {
    pub(crate) fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Tells whoever watches the network that there is none.
    pub(crate) fn tell_end(&self, missing: &Missing) {
        self.events.push(NetworkEventKind::Ended { reason: missing.to_string() });
    }

    /// Ends the stack, once those who use it now are through.
    pub(crate) fn end(&self) {
        let mut was_busy = false;
        self.link.send_if_modified(|link| {
            was_busy = matches!(link, Link::Up(stack) if stack.stats().connections >= BUSY_CONNECTIONS);
            let up = !matches!(link, Link::Missing(_));
            if up {
                *link = Link::Missing(Missing::Ended);
            }
            up
        });
        if let (true, Ok(runtime)) = (was_busy, tokio::runtime::Handle::try_current()) {
            runtime.spawn(give_back());
        }
    }

    async fn stack(&self) -> Result<Arc<Stack>, Missing> {
        let mut link = self.link.subscribe();
        let decided = link.wait_for(|link| !matches!(link, Link::Coming)).await;
        match decided.as_deref() {
            Ok(Link::Up(stack)) => Ok(Arc::clone(stack)),
            Ok(Link::Missing(missing)) => Err(missing.clone()),
            // The sender is in what this is called on.
            Ok(Link::Coming) | Err(_) => Err(Missing::Ended),
        }
    }
}

/// A network that has had so many connections may leave megabytes of freed buffers.
const BUSY_CONNECTIONS: u64 = 64;

/// Until the tasks of a network that has ended are gone.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Gives the memory of a network that has ended back to the kernel, when its last buffers are free.
async fn give_back() {
    tokio::time::sleep(SETTLED_AFTER).await;
    if let Err(fault) = tokio::task::spawn_blocking(agentos_linux::memory::give_back).await {
        tracing::warn!(%fault, "freed memory stays with the sidecar");
    }
}

/// What the networks of all VMs of a sidecar share.
#[derive(Debug)]
pub(crate) struct HostNetwork {
    upstream: Upstream,
    /// For VMs without secrets, which talk TLS to nobody themselves.
    nobody: Trust,
    /// Whom the host trusts. Read for the first VM that has secrets: it takes a while.
    trusted: OnceCell<Trust>,
    /// Sockets that all VMs together may have on the host.
    sockets: Arc<Semaphore>,
}

/// Descriptors of the sidecar that guests' sockets never take: for pipes, control sockets and clients.
const RESERVED_DESCRIPTORS: u64 = 4_096;

/// Sockets that guests may have, where the sidecar may have so many descriptors. Half of a small number stays for the rest.
fn socket_count(descriptors: Option<u64>) -> usize {
    let descriptors = descriptors.unwrap_or(u64::from(u32::MAX));
    let spare = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(descriptors / 2);
    usize::try_from(spare).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

impl HostNetwork {
    pub(crate) fn new() -> Result<Self, TrustError> {
        let upstream = Upstream::of_host().unwrap_or_else(|error| {
            tracing::warn!(%error, "VMs can resolve no names");
            Upstream::servers(&[])
        });
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let sockets = Arc::new(Semaphore::new(socket_count(descriptors)));
        Ok(Self { upstream, nobody: Trust::nobody()?, trusted: OnceCell::new(), sockets })
    }

    /// Takes a VM's secrets into its border, and leaves their placeholders in its environment.
    pub(crate) async fn keep_secrets(&self, spec: &mut VmSpec) -> Result<Arc<Border>, CreateError> {
        let (secrets, routes) = spec.take_secrets();
        let trust =
            if secrets.is_empty() && routes.is_empty() { &self.nobody } else { self.trusted().await? };
        let border = Border::new(secrets, routes, trust.clone()).map_err(CreateError::Border)?;
        spec.add_env(border.placeholders());
        if border.authority_pem().is_some() {
            spec.add_env(trust::VARIABLES);
        }
        Ok(Arc::new(border))
    }

    async fn trusted(&self) -> Result<&Trust, CreateError> {
        let read = || async {
            let read = tokio::task::spawn_blocking(Trust::system).await;
            // A fault in there is like a host without authorities.
            read.unwrap_or(Err(TrustError::Empty)).map_err(CreateError::Trust)
        };
        self.trusted.get_or_try_init(read).await
    }
}

/// The names that a VM's resolver knows by itself.
fn hosts() -> Vec<(HostName, IpAddr)> {
    let known = [
        (crate::spec::HOSTNAME, guest::GUEST),
        // Where the host can be reached, on the ports that are listed.
        ("host.agentos.internal", guest::GATEWAY),
        ("gateway.agentos.internal", guest::BORDER),
    ];
    // All of them are names.
    let named = known.iter().filter_map(|(name, address)| Some((HostName::parse(name).ok()?, *address)));
    named.map(|(name, address)| (name, IpAddr::V4(address))).collect()
}

/// All that a stack is made of but its device.
pub(crate) struct Seed {
    options: StackOptions,
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seed").finish_non_exhaustive()
    }
}

impl Seed {
    pub(crate) fn new(
        spec: &VmSpec,
        uplink: &Uplink,
        commands: mpsc::WeakSender<Command>,
        host: &HostNetwork,
        border: Arc<Border>,
    ) -> Self {
        let network = spec.network();
        let v6 = spec.uplink().is_some_and(|uplink| uplink.v6);
        let pins = Arc::new(Pins::default());
        let upstream = match network.dns_servers.as_slice() {
            [] => host.upstream.clone(),
            servers => Upstream::servers(servers),
        };
        let options = StackOptions {
            addresses: Addresses {
                guest: guest::GUEST,
                guest_v6: v6.then_some(guest::GUEST_V6),
                gateway: guest::GATEWAY,
                resolver: guest::RESOLVER,
                border: guest::BORDER,
                mtu: guest::MTU as usize,
            },
            policy: network.policy.clone().unwrap_or_default(),
            host_ports: spec.loopback_exempt_ports().iter().copied().collect(),
            resolver: Resolver::new(upstream, hosts(), Arc::clone(&pins)).with_ipv6(v6),
            pins,
            border,
            limits: network.limits,
            sockets: Arc::clone(&host.sockets),
            events: Arc::clone(&uplink.events),
            identify: identify(commands),
        };
        Self { options }
    }

    /// Starts the stack on what init has passed, which must be a TUN device.
    pub(crate) fn start(self, device: OwnedFd) -> Result<Link, ProtocolError> {
        let found = rustix::fs::fstat(&device);
        // The number of /dev/net/tun, on every Linux.
        let tun = found.is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && stat.st_rdev == rustix::fs::makedev(10, 200)
        });
        if !tun {
            return Err(ProtocolError::DescriptorKind("a TUN device"));
        }
        let started = rustix::io::ioctl_fionbio(&device, true)
            .map_err(io::Error::from)
            .and_then(|()| Stack::start(device, self.options));
        Ok(match started {
            Ok(stack) => Link::Up(Arc::new(stack)),
            Err(error) => Link::Missing(Missing::Stack(Arc::new(error))),
        })
    }
}

/// Asks init whose a connection is. Holds the VM no longer than its handles do.
fn identify(commands: mpsc::WeakSender<Command>) -> Identify {
    Arc::new(move |protocol, local, remote| {
        let commands = commands.clone();
        Box::pin(async move {
            let protocol = match protocol {
                Protocol::Tcp => guest::Protocol::Tcp,
                Protocol::Udp => guest::Protocol::Udp,
                Protocol::Icmp => guest::Protocol::Icmp,
            };
            let request = Request::Network(NetworkRequest::Owner { protocol, local, remote });
            let (completion, outcome) = Completion::new(super::parse_owner);
            let call = Call { request, descriptors: Vec::new(), completion };
            commands.upgrade()?.send(Command::Call(call)).await.ok()?;
            let owner = outcome.await.ok()?.ok()??;
            Some(Owner { pid: owner.pid, command: owner.command })
        })
    })
}

impl Vm {
    /// Replaces the egress policy. When this returns, connections that it doesn't allow are cut.
    pub async fn set_network_policy(&self, policy: EgressPolicy) -> Result<(), NetworkError> {
        self.stack().await?.set_policy(policy).await;
        Ok(())
    }

    /// What the network has done so far.
    pub async fn network_stats(&self) -> Result<NetworkStats, NetworkError> {
        Ok(self.stack().await?.stats())
    }

    /// Refusals and the end of the network, as they come.
    pub fn network_events(&self) -> Arc<EventLog> {
        Arc::clone(&self.shared().uplink.events)
    }

    async fn stack(&self) -> Result<Arc<Stack>, NetworkError> {
        self.shared().uplink.stack().await.map_err(|missing| match missing {
            Missing::Ended => NetworkError::Unavailable(self.unavailable()),
            missing => NetworkError::Missing(missing),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_leave_the_sidecar_descriptors_of_its_own() {
        assert_eq!(socket_count(Some(20_000)), 20_000 - 4_096);
        assert_eq!(socket_count(Some(1_024)), 512);
        assert!(socket_count(None) > 1 << 20);
    }
}
