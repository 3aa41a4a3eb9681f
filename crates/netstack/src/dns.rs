//! The VM's resolver.
//!
//! The only name server that a VM can reach is this one. A query comes as the bytes that the guest sent, and goes this
//! way; each step may end it:
//!
//! 1. `message` reads it. What is no query is dropped, what is no proper one is told so.
//! 2. `local` answers for the names that are ours: localhost, the VM's hosts, the addresses of private networks.
//! 3. The egress policy is asked for the name. A refused name is `REFUSED` at once, whatever was asked of it, and not a
//!    byte of it leaves: names are a way out as good as any connection.
//! 4. `chain` asks the `upstream` servers or their cache, and follows aliases. Each name on the way is put to the
//!    policy like the first.
//!
//! Every address in an answer is [pinned](Pins) to the name that was asked for, before the guest has it. To
//! whoever connects later by that address, the policy then knows the name; no other answer counts.
//!
//! The guest always has an answer within [`DEADLINE`], because its resolver library would wait for as long as that
//! and then ask again. A resolver costs next to nothing: servers, their sockets and the cache are in [`Upstream`],
//! which VMs share.

mod chain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod host_files;
mod local;
mod message;
mod stream;
mod upstream;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::HINFO;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::Semaphore;

use crate::name::HostName;
use crate::pins::Pins;
use local::Local;
use message::{Incoming, Reply};

pub use message::{MAX_QUERY_BYTES, Transport};
pub use stream::IDLE;
pub use upstream::{Upstream, UpstreamError};

/// Answers come within this time: a little less than the five seconds that resolver libraries wait.
pub const DEADLINE: Duration = Duration::from_millis(4_500);

/// Queries of one VM that wait for an upstream server at a time. Further ones fail at once.
pub const MAX_WAITING: usize = 64;

/// Records of one answer. Each address is a pin, of which a VM has a limited number, and whoever runs a zone can put
/// thousands into one message.
pub const MAX_RECORDS: usize = 256;

/// Lives of records as the guest is told them: what lives for less would be asked for again at each connection, and
/// what lives for longer would outlive the changes that people make.
const MIN_TTL: u32 = 1;
const MAX_TTL: u32 = 3_600;

const _: () = assert!(upstream::PATIENCE.as_millis() < DEADLINE.as_millis());

/// The egress policy's word on whether a name may be asked for.
pub type MayAsk<'a> = &'a (dyn Fn(&HostName) -> bool + Sync);

/// The resolver of one VM.
#[derive(Debug)]
pub struct Resolver {
    upstream: Upstream,
    local: Local,
    pins: Arc<Pins>,
    waiting: Semaphore,
}

impl Resolver {
    /// A resolver that knows `hosts` by itself and asks `upstream` for the rest. `AAAA` is not asked for: see
    /// [`with_ipv6`](Self::with_ipv6).
    pub fn new(upstream: Upstream, hosts: Vec<(HostName, IpAddr)>, pins: Arc<Pins>) -> Self {
        let local = Local { hosts, ipv6: false };
        Self { upstream, local, pins, waiting: Semaphore::new(MAX_WAITING) }
    }

    /// Says whether the VM can reach anything by IPv6. Where it can't, `AAAA` is answered with nothing without asking
    /// anybody, so that clients who try both families lose no time.
    #[must_use]
    pub fn with_ipv6(mut self, ipv6: bool) -> Self {
        self.local.ipv6 = ipv6;
        self
    }

    /// The answer to what came from the guest; `None` if that was no query and is to be dropped.
    ///
    /// What needs no upstream server (local names, refusals, the cache) is ready when first polled. The future may be
    /// dropped at any time.
    pub async fn answer(&self, query: &[u8], transport: Transport, may_ask: MayAsk<'_>) -> Option<Vec<u8>> {
        match message::read(query)? {
            Incoming::Fault(envelope, code) => envelope.seal(Reply::code(code), transport),
            Incoming::Question(envelope, question) => {
                let reply = self.reply(&question, may_ask).await;
                envelope.seal(reply, transport)
            }
        }
    }

    /// The addresses of a name, for a connection of the host's own: no policy is asked, and nothing is pinned.
    ///
    /// # Errors
    ///
    /// Where there is none, or nobody knows.
    pub async fn addresses(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        let kinds: &[RecordType] =
            if self.local.ipv6 { &[RecordType::A, RecordType::AAAA] } else { &[RecordType::A] };
        let mut addresses = Vec::new();
        for kind in kinds {
            // Absolute, as the guest's are: it is no name to be searched for.
            let mut written = Name::from_ascii(name.as_str()).map_err(io::Error::other)?;
            written.set_fqdn(true);
            let question = Query::query(written, *kind);
            let local = self.local.reply(name, &question);
            let reply = match local {
                Some(reply) => reply,
                None => self.ask(name, &question, &|_| true).await,
            };
            addresses.extend(reply.answers.iter().filter_map(|record| record.data.ip_addr()));
        }
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "name has no address"));
        }
        Ok(addresses)
    }

    async fn reply(&self, question: &Query, may_ask: MayAsk<'_>) -> Reply {
        let kind = Kind::of(question.query_type());
        if matches!(kind, Kind::Transfer) {
            return Reply::code(ResponseCode::Refused);
        }
        let Some(name) = host_name(question.name()) else {
            // Nothing may be said to be absent about the root: all names would be with it.
            let root = question.name().is_root();
            return Reply::code(if root { ResponseCode::Refused } else { ResponseCode::NXDomain });
        };
        if let Some(reply) = self.local.reply(&name, question) {
            if !local::is_localhost(&name) {
                self.pin(&name, &reply);
            }
            return reply;
        }
        if !may_ask(&name) {
            return Reply::code(ResponseCode::Refused);
        }
        match kind {
            Kind::Any => Reply::records(vec![any_is_not_answered(question.name())]),
            Kind::Unasked => Reply::default(),
            Kind::Asked if question.query_type() == RecordType::AAAA && !self.local.ipv6 => Reply::default(),
            Kind::Asked | Kind::Transfer => {
                let reply = self.ask(&name, question, may_ask).await;
                self.pin(&name, &reply);
                reply
            }
        }
    }

    async fn ask(&self, name: &HostName, question: &Query, may_ask: MayAsk<'_>) -> Reply {
        let servers = self.upstream.current();
        if let Some(addresses) = servers.host_addresses(name) {
            let asked_for_addresses = matches!(question.query_type(), RecordType::A | RecordType::AAAA);
            if asked_for_addresses {
                return local::of_host_file(question, addresses);
            }
        }
        // An alias of the outside that leads to a name of ours would give that name an address of its choice.
        let may_follow = |name: &HostName| !self.local.owns(name) && may_ask(name);
        let walk = chain::Walk { servers: &servers, waiting: &self.waiting, may_follow: &may_follow };
        match tokio::time::timeout(DEADLINE, walk.follow(question)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(chain::Stop::Denied)) => Reply::code(ResponseCode::Refused),
            Ok(Err(chain::Stop::Busy | chain::Stop::Failed)) | Err(_) => Reply::code(ResponseCode::ServFail),
        }
    }

    /// Pins the addresses of an answer to the name that was asked for, and to none of its aliases: a rule that allows
    /// the alias alone was not asked about this connection.
    fn pin(&self, name: &HostName, reply: &Reply) {
        let now = Instant::now();
        for record in &reply.answers {
            if let Some(address) = record.data.ip_addr() {
                self.pins.pin(name.clone(), address, Duration::from_secs(u64::from(record.ttl)), now);
            }
        }
    }
}

/// What is done about a type of record.
enum Kind {
    /// Upstream servers are asked.
    Asked,
    /// There is nothing of it, which nobody is asked about. `HTTPS` and `SVCB` are of this kind: their hints are addresses
    /// that nobody would pin, and their keys hide the name in a TLS greeting, by which rules by name are kept. Clients
    /// do without. So are the types of DNSSEC, which needs more than we pass on.
    Unasked,
    /// All types at once, which is answered with a reason instead (RFC 8482).
    Any,
    /// A whole zone, which is refused.
    Transfer,
}

impl Kind {
    fn of(kind: RecordType) -> Self {
        match kind {
            RecordType::A
            | RecordType::AAAA
            | RecordType::CAA
            | RecordType::CNAME
            | RecordType::MX
            | RecordType::NAPTR
            | RecordType::NS
            | RecordType::PTR
            | RecordType::SOA
            | RecordType::SRV
            | RecordType::TXT => Self::Asked,
            RecordType::ANY => Self::Any,
            RecordType::AXFR | RecordType::IXFR => Self::Transfer,
            _ => Self::Unasked,
        }
    }
}

/// The name in our own form, if a host can have it. The written form escapes what isn't a letter, digit, hyphen or
/// underscore, so that a dot within a label can't pass for one between two.
fn host_name(name: &Name) -> Option<HostName> {
    HostName::parse(&name.to_ascii()).ok()
}

fn any_is_not_answered(name: &Name) -> Record {
    Record::from_rdata(name.clone(), MAX_TTL, RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())))
}
