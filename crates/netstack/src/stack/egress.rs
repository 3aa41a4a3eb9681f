//! What all flows of a stack share, and how they ask whether they may leave.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::{Notify, Semaphore};

use super::budget::Budget;
use super::packet::FlowKey;
use super::stats::Stats;
use super::tell::Asker;
use super::throttle::{Direction, Throttle};
use super::tun::Tun;
use super::{Addresses, Identify, StackLimits, StackOptions};
use crate::address::{HostAddresses, carried};
use crate::border::Border;
use crate::dns::Resolver;
use crate::event::repeats::Repeats;
use crate::event::{EventLog, NetworkEventKind};
use crate::name::HostName;
use crate::pins::Pins;
use crate::policy::{Decision, EgressPolicy, Flow, Protocol, Refusal};
use crate::sniff::Wire;

/// Processes that are looked for at a time.
const LOOKUPS: usize = 2;

pub(super) struct Shared {
    pub tun: Arc<Tun>,
    pub addresses: Addresses,
    pub host_ports: BTreeSet<u16>,
    pub resolver: Resolver,
    pub border: Arc<Border>,
    pub limits: StackLimits,
    pub sockets: Arc<Semaphore>,
    pub events: Arc<EventLog>,
    pub stats: Stats,
    pub throttle: Throttle,
    pub budget: Budget,
    pins: Arc<Pins>,
    // Held to copy the pointer or to replace it.
    policy: RwLock<Arc<EgressPolicy>>,
    pub identify: Identify,
    /// One permit for each process that is looked for.
    pub lookups: Arc<Semaphore>,
    // Held for a look-up; never over an await.
    repeats: Mutex<Repeats>,
    /// Something else is counted now.
    pub new_kind: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// What a flow was allowed by, for when the policy changes.
#[derive(Debug)]
pub(super) struct Facts {
    pub protocol: Protocol,
    pub key: FlowKey,
    /// The names that led to the address when the flow began.
    names: OnceLock<Vec<HostName>>,
    /// What the flow said it is for, where it was asked.
    claimed: OnceLock<Option<HostName>>,
    /// It speaks TLS or HTTP, and has said no name.
    nameless: OnceLock<()>,
    /// The flow ends with a server of our own.
    inside: OnceLock<()>,
    begun: Instant,
    /// When something of a flow of datagrams was passed on last, in microseconds after it began.
    active_us: AtomicU64,
}

impl Facts {
    pub(super) fn new(protocol: Protocol, key: FlowKey) -> Self {
        Self {
            protocol,
            key,
            names: OnceLock::new(),
            claimed: OnceLock::new(),
            nameless: OnceLock::new(),
            inside: OnceLock::new(),
            begun: Instant::now(),
            active_us: AtomicU64::new(0),
        }
    }

    /// Something is passed on now.
    pub(super) fn touch(&self) {
        let passed = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.active_us.store(passed, Ordering::Relaxed);
    }

    pub(super) fn last_active(&self) -> Instant {
        self.begun + Duration::from_micros(self.active_us.load(Ordering::Relaxed))
    }

    pub(super) fn stay_inside(&self) {
        // Said once; saying it again changes nothing.
        let _ = self.inside.set(());
    }

    pub(super) fn names(&self) -> &[HostName] {
        self.names.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// The name to count and tell the flow by.
    pub(super) fn name(&self) -> Option<String> {
        let claimed = self.claimed.get().and_then(Option::as_ref);
        claimed.or_else(|| self.names().first()).map(HostName::to_string)
    }
}

impl Shared {
    pub(super) fn new(tun: Arc<Tun>, options: StackOptions) -> Self {
        Self {
            tun,
            addresses: options.addresses,
            host_ports: options.host_ports,
            resolver: options.resolver,
            border: options.border,
            limits: options.limits,
            sockets: options.sockets,
            events: options.events,
            stats: Stats::default(),
            throttle: Throttle::new(options.limits.bandwidth_bytes),
            budget: Budget::default(),
            pins: options.pins,
            policy: RwLock::new(Arc::new(options.policy)),
            identify: options.identify,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            repeats: Mutex::new(Repeats::new(Instant::now())),
            new_kind: Notify::new(),
        }
    }

    pub(super) fn repeats(&self) -> MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the bandwidth has room for a datagram.
    pub(super) async fn wait_for_turn(&self, direction: Direction, bytes: usize) {
        while let Err(again) = self.throttle.allowance(direction, bytes, tokio::time::Instant::now()) {
            tokio::time::sleep_until(again).await;
        }
        self.throttle.take(direction, bytes);
    }

    pub(super) fn policy(&self) -> Arc<EgressPolicy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_policy(&self, policy: EgressPolicy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Asks the policy about a flow that begins.
    pub(super) fn decide(&self, facts: &Facts) -> Decision {
        let names = self.pins.names_of(facts.key.remote.ip(), Instant::now());
        let names = facts.names.get_or_init(|| names);
        self.policy().decide(&flow(facts, names), &own_address(facts.key.remote.ip()))
    }

    /// Asks the policy about a flow that has said what it is for.
    pub(super) fn decide_named(&self, facts: &Facts, claimed: Option<&HostName>) -> Result<(), Refusal> {
        let claimed = facts.claimed.get_or_init(|| claimed.cloned());
        let own = own_address(facts.key.remote.ip());
        self.policy().decide_named(&flow(facts, facts.names()), &own, claimed.as_ref())
    }

    /// Asks the policy about a flow that speaks so and has said no name.
    pub(super) fn decide_nameless(&self, facts: &Facts, wire: Wire) -> Result<(), Refusal> {
        match wire {
            Wire::Unknown => self.decide_named(facts, None),
            Wire::Tls | Wire::Http | Wire::Http2 => {
                facts.nameless.get_or_init(|| ());
                self.decide_request(facts, None)
            }
        }
    }

    /// Asks the policy about one request of a flow.
    pub(super) fn decide_request(&self, facts: &Facts, host: Option<&HostName>) -> Result<(), Refusal> {
        let own = own_address(facts.key.remote.ip());
        let (policy, flow) = (self.policy(), flow(facts, facts.names()));
        match host {
            None => policy.decide_nameless(&flow, &own),
            Some(_) => policy.decide_named(&flow, &own, host),
        }
    }

    /// Asks the policy as it is now about a flow that was allowed.
    pub(super) fn still_allows(&self, facts: &Facts) -> bool {
        if facts.inside.get().is_some() {
            return true;
        }
        // One that has not asked yet will ask the new policy.
        facts.names.get().is_none() || self.refusal_now(facts).is_none()
    }

    /// What the policy as it is now has against a flow, which may have said what it is for.
    pub(super) fn refusal_now(&self, facts: &Facts) -> Option<Refusal> {
        let own = own_address(facts.key.remote.ip());
        let (policy, flow) = (self.policy(), flow(facts, facts.names()));
        match policy.decide(&flow, &own) {
            Decision::Allow => None,
            Decision::Refuse(refusal) => Some(refusal),
            Decision::Gate(_) if facts.nameless.get().is_some() => policy.decide_nameless(&flow, &own).err(),
            Decision::Gate(_) => {
                let claimed = facts.claimed.get().and_then(Option::as_ref);
                policy.decide_named(&flow, &own, claimed).err()
            }
        }
    }

    /// Tells the host of a refusal. The guest is told by the caller, afterwards: its process can be found as long as it
    /// waits.
    pub(super) async fn refused(&self, facts: &Facts, refusal: &Refusal) {
        let claimed = facts.claimed.get().and_then(Option::as_ref);
        self.request_refused(facts, claimed, refusal).await;
    }

    /// The same of one request of a flow.
    pub(super) async fn request_refused(&self, facts: &Facts, claimed: Option<&HostName>, refusal: &Refusal) {
        self.stats.refused();
        self.tell(self.refusal_of(facts, claimed, refusal), Asker::from(facts)).await;
    }

    /// What is told of a refusal, but for the process.
    pub(super) fn refusal_of(
        &self,
        facts: &Facts,
        claimed: Option<&HostName>,
        refusal: &Refusal,
    ) -> NetworkEventKind {
        let mut names = facts.names().to_vec();
        if let Some(claimed) = claimed.filter(|claimed| !names.contains(claimed)) {
            names.push(claimed.clone());
        }
        NetworkEventKind::Refused {
            protocol: facts.protocol,
            destination: facts.key.remote,
            names,
            reason: refusal.to_string(),
            rule: rule(&self.policy(), refusal),
            process: None,
        }
    }

    /// Asks the policy about a query: what is to be told of its refusal, before the guest has its answer.
    pub(super) fn query_refusal(&self, name: &HostName) -> Option<NetworkEventKind> {
        let policy = self.policy();
        let refusal = policy.decide_query(name).err()?;
        self.stats.refused();
        let (reason, rule) = (refusal.to_string(), rule(&policy, &refusal));
        Some(NetworkEventKind::QueryRefused { name: name.clone(), reason, rule, process: None })
    }

    /// Where the gateway's address leads to with this port.
    pub(super) fn host_port(&self, remote: SocketAddr) -> Option<SocketAddr> {
        let listed = remote.ip() == self.addresses.gateway && self.host_ports.contains(&remote.port());
        listed.then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, remote.port())))
    }

    /// Whether nobody but the stack itself is at this address.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        let addresses = [self.addresses.gateway, self.addresses.resolver, self.addresses.border];
        matches!(address, IpAddr::V4(address) if addresses.contains(&address))
    }
}

fn rule(policy: &EgressPolicy, refusal: &Refusal) -> Option<String> {
    refusal.rule.map(|index| policy.describe_rule(index))
}

fn flow<'a>(facts: &Facts, names: &'a [HostName]) -> Flow<'a> {
    Flow { protocol: facts.protocol, destination: facts.key.remote, names }
}

/// Addresses that no host has: reserved for the future, and for what is thrown away (RFC 6666).
const NOBODYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1))];

/// The address and those it carries, where they are this host's: the kernel binds sockets to those alone. Where it is set
/// to bind to any (ip_nonlocal_bind), it says so by choosing the address as the source of what goes there, except for
/// the second of two in one network. No packet is sent for either.
fn own_address(address: IpAddr) -> HostAddresses {
    let spellings = std::iter::once(address).chain(carried(address).map(IpAddr::V4));
    HostAddresses::from_iter(spellings.filter(|address| is_own(*address)))
}

fn is_own(address: IpAddr) -> bool {
    let binds = |address: IpAddr| may_be_own(UdpSocket::bind((address, 0)).map(drop));
    let nobodys = NOBODYS.into_iter().find(|nobodys| nobodys.is_ipv4() == address.is_ipv4());
    let any_binds = nobodys.is_some_and(|nobodys| UdpSocket::bind((nobodys, 0)).is_ok());
    // An address without a route is nobody's.
    (binds(address) && !any_binds) || source_of(address) == Some(address)
}

/// What the answer to binding says of an address. A host without descriptors or ports can't say that the address is
/// another's, and so it may be its own: what is not known is refused.
fn may_be_own(bound: std::io::Result<()>) -> bool {
    match bound {
        Ok(()) => true,
        Err(error) => {
            let elsewhere = [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT, Errno::INVAL];
            !Errno::from_io_error(&error).is_some_and(|errno| elsewhere.contains(&errno))
        }
    }
}

/// Where from packets to the address would come.
fn source_of(address: IpAddr) -> Option<IpAddr> {
    let any = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Any port does.
    socket.connect((address, 9)).ok()?;
    socket.local_addr().ok().map(|source| source.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_another_s_only_where_the_kernel_says_so() {
        let answer = |errno: Errno| Err(std::io::Error::from(errno));
        assert!(!may_be_own(answer(Errno::ADDRNOTAVAIL)));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::ADDRINUSE, Errno::ACCESS] {
            assert!(may_be_own(answer(errno)), "{errno}");
        }
        assert!(may_be_own(Ok(())));
        assert!(own_address(IpAddr::V4(Ipv4Addr::LOCALHOST)).contains(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let foreign = IpAddr::from([203, 0, 113, 7]);
        assert!(!own_address(foreign).contains(foreign));
    }
}
