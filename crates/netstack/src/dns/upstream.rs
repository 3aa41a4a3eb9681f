//! The name servers that we ask, and what they said of late.
//!
//! What a server says is kept as it was said, for all VMs alike; whether a VM may have it is decided anew each time.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{DnsRequestOptions, DnsResponse, Message, Query, ResponseCode};
use hickory_proto::rr::{Record, RecordType};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig};

use super::host_files::{self, HostFiles, HostTable, Stamp};
use super::{MAX_TTL, MIN_TTL};
use crate::name::HostName;

/// How long all servers together have for one question. Each has an equal share of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

/// Answers kept. With [`MAX_KEPT_BYTES`], about 20 MB if somebody fills it on purpose; a busy host has some hundreds
/// of small ones.
const MAX_KEPT: u64 = 1_024;

/// Longer answers aren't kept, but asked for again.
const MAX_KEPT_BYTES: usize = 2_048;

/// Name servers, with their sockets and a cache of what they said. To clone it is to share these.
///
/// Nothing is opened before the first question, which must come from within a Tokio runtime.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

/// Why the host's own name servers can't be known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    #[error("can't read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

struct Shared {
    files: Option<HostFiles>,
    // Held while a changed file is read, so that a change is read once; never over an await.
    current: Mutex<(Stamp, Arc<Servers>)>,
}

impl Upstream {
    /// The name servers and the table of names of the host. Its files are read again when they change; if they can't
    /// be, the former servers stay.
    ///
    /// # Errors
    ///
    /// When a file is there, but can't be read.
    pub fn of_host() -> Result<Self, UpstreamError> {
        Self::of_files(HostFiles { servers: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into() })
    }

    /// These servers alone. The first is asked first, the others if it is silent or fails.
    pub fn servers(addresses: &[SocketAddr]) -> Self {
        let servers = Arc::new(Servers::new(addresses, HostTable::new()));
        Self { shared: Arc::new(Shared { files: None, current: Mutex::new((Stamp::default(), servers)) }) }
    }

    fn of_files(files: HostFiles) -> Result<Self, UpstreamError> {
        // The stamp first: a change in between is then seen by the next look.
        let stamp = files.stamp();
        let servers = Arc::new(Servers::of_files(&files)?);
        Ok(Self { shared: Arc::new(Shared { files: Some(files), current: Mutex::new((stamp, servers)) }) })
    }

    /// The servers as of now. Two calls of stat(2), where there are files to look at.
    pub(super) fn current(&self) -> Arc<Servers> {
        let mut current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(files) = &self.shared.files else {
            return current.1.clone();
        };
        let stamp = files.stamp();
        if stamp != current.0 {
            current.0 = stamp;
            match Servers::of_files(files) {
                Ok(servers) => current.1 = Arc::new(servers),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the former name servers stay");
                }
            }
        }
        current.1.clone()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("files", &self.shared.files).finish_non_exhaustive()
    }
}

/// What is known about a name: its records and aliases, or that there are none, maybe by whose authority.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authority: Option<Record>,
}

/// One state of the configuration.
pub(super) struct Servers {
    // A pool of one for each server: within a pool, a server that fails isn't followed by the next, and the fastest
    // is asked first, where a host asks in its order.
    pools: Vec<NameServerPool<TokioRuntimeProvider>>,
    /// Who is asked first: the first, until it is silent and another isn't.
    first: AtomicUsize,
    cache: ResponseCache,
    hosts: HostTable,
}

impl Servers {
    fn of_files(files: &HostFiles) -> Result<Self, UpstreamError> {
        let read = |path: &PathBuf| {
            host_files::text(path).map_err(|source| UpstreamError::Read { path: path.clone(), source })
        };
        let addresses = host_files::servers(&read(&files.servers)?);
        let addresses: Vec<SocketAddr> = addresses.into_iter().map(|address| (address, 53).into()).collect();
        Ok(Self::new(&addresses, host_files::hosts(&read(&files.hosts)?)))
    }

    fn new(addresses: &[SocketAddr], hosts: HostTable) -> Self {
        let mut options = ResolverOpts::default();
        options.timeout = PATIENCE / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        options.num_concurrent_reqs = 1;
        let (min, max) = (Duration::from_secs(MIN_TTL.into()), Duration::from_secs(MAX_TTL.into()));
        (options.positive_min_ttl, options.positive_max_ttl) = (Some(min), Some(max));
        (options.negative_min_ttl, options.negative_max_ttl) = (Some(min), Some(max));
        let pools = addresses.iter().map(|address| {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (address.port(), address.port());
            let server = NameServerConfig::new(address.ip(), true, vec![udp, tcp]);
            let context = Arc::new(PoolContext::new(options.clone(), TlsConfig {}));
            NameServerPool::from_config([server], context, TokioRuntimeProvider::new())
        });
        let cache = ResponseCache::new(MAX_KEPT, TtlConfig::from_opts(&options));
        Self { pools: pools.collect(), first: AtomicUsize::new(0), cache, hosts }
    }

    /// What the host's own table says of a name.
    pub(super) fn host_addresses(&self, name: &HostName) -> Option<&[IpAddr]> {
        self.hosts.get(name).map(Vec::as_slice)
    }

    pub(super) fn cached(&self, query: &Query) -> Option<Found> {
        Found::of(&self.cache.get(query, Instant::now())?)
    }

    /// Asks one server after the other, until one has an answer. `None` if none has.
    pub(super) async fn ask(&self, query: &Query) -> Option<Found> {
        let start = self.first.load(Ordering::Relaxed);
        let mut first_is_silent = false;
        let order = self.pools.iter().enumerate().cycle().skip(start).take(self.pools.len());
        for (index, pool) in order {
            let said = pool.lookup(query.clone(), DnsRequestOptions::default()).first_answer().await;
            if let Some(found) = self.keep(query, said.as_ref()) {
                // A server that answers, if only to refuse, stays the first: the next may be of another network, with
                // other answers to the same question.
                if first_is_silent {
                    self.first.store(index, Ordering::Relaxed);
                }
                return Some(found);
            }
            let silent = matches!(said, Err(NetError::Timeout | NetError::Io(_) | NetError::NoConnections));
            first_is_silent |= silent && index == start;
        }
        None
    }

    /// What a server said, without what nobody will look at, kept for the next who asks.
    pub(super) fn keep(&self, query: &Query, said: Result<&DnsResponse, &NetError>) -> Option<Found> {
        let (said, bytes) = match said {
            Ok(response) => {
                let bytes = response.as_buffer().len();
                let mut message = response.clone().into_message();
                message.authorities.retain(|record| record.record_type() == RecordType::SOA);
                message.authorities.truncate(1);
                message.additionals.clear();
                (Ok(message), bytes)
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
                let mut nothing = nothing.clone();
                (nothing.ns, nothing.authorities) = (None, None);
                (Err(NetError::Dns(DnsError::NoRecordsFound(nothing))), 0)
            }
            Err(_) => return None,
        };
        let found = Found::of(&said)?;
        if bytes <= MAX_KEPT_BYTES {
            self.cache.insert(query.clone(), said, Instant::now());
        }
        Some(found)
    }
}

impl Found {
    /// Only a server that knows says that there is something or that there isn't; every other code is a failure.
    fn of(said: &Result<Message, NetError>) -> Option<Self> {
        let found = match said {
            Ok(message) => Some(Self {
                code: message.response_code,
                answers: message.answers.clone(),
                authority: message.authorities.first().cloned(),
            }),
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => Some(Self {
                code: nothing.response_code,
                answers: Vec::new(),
                authority: nothing.soa.clone().map(|zone| zone.into_record_of_rdata()),
            }),
            Err(_) => None,
        };
        found.filter(|found| matches!(found.code, ResponseCode::NoError | ResponseCode::NXDomain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(upstream: &Upstream, name: &str) -> Option<Vec<IpAddr>> {
        upstream.current().host_addresses(&HostName::parse(name).unwrap()).map(<[IpAddr]>::to_vec)
    }

    #[test]
    fn files_of_the_host_are_read_again_when_they_change_and_kept_when_they_cannot_be() {
        let directory = tempfile::tempdir().unwrap();
        let (servers, hosts) = (directory.path().join("resolv.conf"), directory.path().join("hosts"));
        let files = || HostFiles { servers: servers.clone(), hosts: hosts.clone() };
        let upstream = Upstream::of_files(files()).unwrap();
        assert_eq!(upstream.current().pools.len(), 1, "without a file, the host itself is the server");

        std::fs::write(&servers, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        std::fs::write(&hosts, "192.0.2.9 db\n").unwrap();
        assert_eq!(upstream.current().pools.len(), 2);
        assert_eq!(names(&upstream, "db"), Some(vec![IpAddr::from([192, 0, 2, 9])]));
        assert!(
            Arc::ptr_eq(&upstream.current(), &upstream.clone().current()),
            "nothing changed, nothing is read"
        );

        std::fs::remove_file(&servers).unwrap();
        std::fs::create_dir(&servers).unwrap();
        assert_eq!(upstream.current().pools.len(), 2, "the former ones stay");
        let error = Upstream::of_files(files()).unwrap_err();
        assert_eq!(error.to_string(), format!("can't read {}", servers.display()));
    }

    #[tokio::test]
    async fn names_of_the_host_lead_to_the_addresses_of_its_table() {
        use crate::dns::{Resolver, Transport};
        use hickory_proto::rr::Name;

        let directory = tempfile::tempdir().unwrap();
        let (servers, hosts) = (directory.path().join("resolv.conf"), directory.path().join("hosts"));
        std::fs::write(&hosts, "192.0.2.9 db.lan\n127.0.1.1 laptop.lan\n").unwrap();
        let upstream = Upstream::of_files(HostFiles { servers, hosts }).unwrap();
        let pins = Arc::new(crate::pins::Pins::default());
        let resolver = Resolver::new(upstream, Vec::new(), pins.clone());
        for (text, code, count) in [
            ("db.lan.", ResponseCode::NoError, 1),
            ("laptop.lan.", ResponseCode::NXDomain, 0),
            ("localhost.", ResponseCode::NoError, 1),
        ] {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_ascii(text).unwrap(), RecordType::A));
            let answer = resolver.answer(&query.to_vec().unwrap(), Transport::Udp, &|_| true).await.unwrap();
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!((answer.response_code, answer.answers.len()), (code, count), "{text}");
        }
        assert_eq!(
            pins.names_of(IpAddr::from([192, 0, 2, 9]), Instant::now()),
            [HostName::parse("db.lan").unwrap()]
        );
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii("db.lan.").unwrap(), RecordType::A));
        let refused = resolver.answer(&query.to_vec().unwrap(), Transport::Udp, &|_| false).await.unwrap();
        assert_eq!(Message::from_vec(&refused).unwrap().response_code, ResponseCode::Refused);
    }
}
