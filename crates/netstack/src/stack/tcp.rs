//! One TCP connection of the guest, from its first packet to its end.
//!
//! ```text
//! SYN ─► policy ─┬─ refused ───────────────► ICMP "prohibited"
//!                ├─ allowed ─► connect outside ─► answer the guest ─► carry
//!                └─ by name ─► answer the guest ─► first bytes ─► policy ─► connect outside ─► carry
//! ```
//! Where names matter, plain HTTP is carried request by request: each says for itself what it is for.
//! The guest is answered when the other side has answered, so that it sees what it would see without us in between. Only
//! where a policy goes by names does it have to speak first.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::Cut;
use super::budget::Queued;
use super::carry::{Carry, End, Passage, Peer};
use super::connection::Connection;
use super::egress::{Facts, Shared};
use super::packet::{self, Inbound, Unreachable};
use super::stats::Live;
use crate::name::HostName;
use crate::policy::{Decision, Gate, Reason, Refusal};
use crate::sniff::{MAX_SNIFF_BYTES, Sniffed, Wire, sniff};

/// A client that has a name to say says it first; one that waits for its server is none of those.
pub(super) const FIRST_WORDS: Duration = Duration::from_secs(10);

/// The kernel's own idle time before it asks the other side whether it is still there, for connections of a guest.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// What a server of our own still has to do when the guest has broken its connection off: to tell what was refused.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) struct Flow {
    shared: Arc<Shared>,
    facts: Arc<Facts>,
    /// Until the guest is answered.
    opening: Option<Queued>,
    packets: Option<mpsc::Receiver<Queued>>,
    connection: Option<Connection>,
    /// Since it is carried, by whatever and however often.
    live: Option<Live>,
}

/// A connection that never came about.
enum Failed {
    Refused(Refusal),
    /// What the kernel said.
    Connect(io::Error),
    /// The guest has given up.
    Gone,
}

/// How far a connection has been carried.
enum Carried {
    Whole,
    /// Until the guest broke it off.
    Reset,
    /// Not at all: it speaks plain HTTP, whose requests are to be looked at.
    Http,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Flow {
    pub(super) fn new(
        shared: Arc<Shared>,
        facts: Arc<Facts>,
        opening: Queued,
        packets: mpsc::Receiver<Queued>,
    ) -> Self {
        Self { shared, facts, opening: Some(opening), packets: Some(packets), connection: None, live: None }
    }

    /// Serves the connection until it ends or is cut.
    pub(super) async fn serve(mut self, cut: oneshot::Receiver<Cut>) {
        let outcome = tokio::select! {
            biased;
            Ok(done) = cut => Err(done),
            outcome = self.run() => Ok(outcome),
        };
        // What was under way is dropped by now: nothing of it leaves any more.
        let outcome = outcome.unwrap_or_else(|done| {
            // Whoever has changed the policy may have gone.
            let _ = done.send(());
            Err(Failed::Refused(self.now_refused()))
        });
        match outcome {
            Ok(()) => {}
            Err(Failed::Refused(refusal)) => {
                self.shared.refused(&self.facts, &refusal).await;
                self.end(Unreachable::Prohibited);
            }
            Err(Failed::Connect(error)) => {
                tracing::debug!(%error, destination = %self.facts.key.remote, "connection of a guest");
                match Errno::from_io_error(&error) {
                    Some(Errno::CONNREFUSED | Errno::CONNRESET) => self.reset(),
                    Some(Errno::NETUNREACH) => self.end(Unreachable::Network),
                    _ => self.end(Unreachable::Host),
                }
            }
            Err(Failed::Gone) => {}
        }
    }

    /// Why a connection that was allowed is not any more.
    fn now_refused(&self) -> Refusal {
        let refusal = self.shared.refusal_now(&self.facts);
        // The policy may have changed once more since.
        refusal.unwrap_or(Refusal { reason: Reason::Base, rule: None })
    }

    async fn run(&mut self) -> Result<(), Failed> {
        let remote = self.facts.key.remote;
        if self.shared.is_ours(remote.ip()) {
            return self.inside().await;
        }
        match self.shared.decide(&self.facts) {
            Decision::Refuse(refusal) => Err(refusal.into()),
            Decision::Gate(Gate::MustName) => self.by_name().await,
            _ if self.is_intercepted() => self.by_name().await,
            Decision::Gate(Gate::MayName) => self.outside(true).await,
            Decision::Allow => self.outside(false).await,
        }
    }

    /// Whether one of the names that led here has a secret.
    fn is_intercepted(&self) -> bool {
        let port = self.facts.key.remote.port();
        self.facts.names().iter().any(|name| self.shared.border.intercepts(name, port))
    }

    /// Connects outside, then answers the guest.
    async fn outside(&mut self, gated: bool) -> Result<(), Failed> {
        let stream = connect(self.facts.key.remote).await?;
        self.answer();
        self.pass(stream, gated).await
    }

    async fn pass(&mut self, stream: TcpStream, gated: bool) -> Result<(), Failed> {
        let mut peer = Peer::Host(stream);
        match (self.carry(&mut peer, gated).await?, peer) {
            (Carried::Http, Peer::Host(stream)) => self.requests(Some(stream)).await,
            _ => Ok(()),
        }
    }

    /// Goes on with a connection that speaks plain HTTP: what its first request is for says nothing of the next.
    async fn requests(&mut self, open: Option<TcpStream>) -> Result<(), Failed> {
        let (shared, facts) = (Arc::clone(&self.shared), Arc::clone(&self.facts));
        self.serve_inside(async move |stream| shared.check_hosts(stream, facts, open).await).await
    }

    /// Answers the guest, hears what it is for, then connects outside.
    async fn by_name(&mut self) -> Result<(), Failed> {
        let connection = self.answer();
        let (name, wire) = match tokio::time::timeout(FIRST_WORDS, first_words(connection)).await {
            Ok(Some(Sniffed::Name(name, wire))) => (Some(name), Some(wire)),
            Ok(Some(Sniffed::Nameless(wire))) => (None, Some(wire)),
            Ok(Some(Sniffed::Incomplete)) | Err(_) => (None, None),
            Ok(None) => return Err(Failed::Gone),
        };
        match (&name, wire) {
            (None, Some(wire)) => self.shared.decide_nameless(&self.facts, wire)?,
            _ => self.shared.decide_named(&self.facts, name.as_ref())?,
        }
        let (remote, shared) = (self.facts.key.remote, Arc::clone(&self.shared));
        // A secret goes only where its host's name led: what says the name elsewhere is as any other connection.
        let is_declared = |name: &HostName| {
            shared.border.intercepts(name, remote.port()) && self.facts.names().contains(name)
        };
        match (name, wire) {
            (Some(name), Some(Wire::Tls)) if is_declared(&name) => {
                let facts = Arc::clone(&self.facts);
                let serve = async move |stream| shared.intercept(stream, &facts, name).await;
                self.serve_inside(serve).await
            }
            (_, Some(Wire::Http)) => {
                let stream = connect(remote).await?;
                self.requests(Some(stream)).await
            }
            // Whoever has said nothing yet may still say a name.
            (_, wire) => {
                let stream = connect(remote).await?;
                self.pass(stream, wire.is_none()).await
            }
        }
    }

    /// A server of our own, or a port of the host.
    async fn inside(&mut self) -> Result<(), Failed> {
        let (remote, shared) = (self.facts.key.remote, Arc::clone(&self.shared));
        let facts = Arc::clone(&self.facts);
        facts.stay_inside();
        if remote.ip() == shared.addresses.resolver && remote.port() == 53 {
            self.answer();
            return self.serve_inside(async move |stream| shared.serve_resolver(stream, &facts).await).await;
        }
        if remote.ip() == shared.addresses.border && remote.port() == 80 {
            self.answer();
            return self.serve_inside(async move |stream| shared.serve_gateway(stream, &facts).await).await;
        }
        match shared.host_port(remote) {
            Some(address) => {
                let mut peer = Peer::Host(connect(address).await?);
                self.answer();
                self.carry(&mut peer, false).await.map(drop)
            }
            None if remote.ip() == shared.addresses.gateway => {
                Err(Refusal { reason: Reason::OwnAddress, rule: None }.into())
            }
            // Nobody listens there.
            None => Err(Failed::Connect(Errno::CONNREFUSED.into())),
        }
    }

    /// Makes the guest's connection stand.
    fn answer(&mut self) -> &mut Connection {
        let opening = self.opening.take().map(|opening| opening.bytes).unwrap_or_default();
        // Taken once: each way through here answers once.
        let packets = self.packets.take().unwrap_or_else(|| mpsc::channel(1).1);
        self.connection.insert(Connection::new(self.facts.key, &self.shared, opening, packets))
    }

    async fn serve_inside(&mut self, serve: impl AsyncFnOnce(DuplexStream)) -> Result<(), Failed> {
        let Some(connection) = &self.connection else { return Err(Failed::Gone) };
        let (ours, theirs) = tokio::io::duplex(connection.pipe_bytes());
        let mut peer = Peer::Inside(ours);
        let carry = async {
            let carried = self.carry(&mut peer, false).await;
            // Whoever serves sees the guest's end.
            drop(peer);
            carried
        };
        let (mut carry, mut serve) = (pin!(carry), pin!(serve(theirs)));
        let mut is_served = false;
        let carried = loop {
            tokio::select! {
                carried = &mut carry => break carried,
                () = &mut serve, if !is_served => is_served = true,
            }
        };
        match carried {
            _ if is_served => {}
            // Of an upstream that goes on saying nothing nobody wants to hear any more.
            Ok(Carried::Reset) => drop(tokio::time::timeout(LAST_WORDS, serve).await),
            _ => serve.await,
        }
        carried.map(drop)
    }

    async fn carry(&mut self, peer: &mut Peer, gated: bool) -> Result<Carried, Failed> {
        let Some(connection) = &mut self.connection else { return Err(Failed::Gone) };
        let shared = Arc::clone(&self.shared);
        self.live.get_or_insert_with(|| shared.stats.connected());
        let count = || shared.stats.count(self.facts.key.remote.ip(), self.facts.name());
        // A server of our own counts what it sends on, and with whom.
        let counter = matches!(peer, Peer::Host(_)).then(count);
        let facts = Arc::clone(&self.facts);
        let gate = gated.then(|| {
            Box::new(move |bytes: &[u8]| match sniff(bytes) {
                Sniffed::Incomplete if bytes.len() < MAX_SNIFF_BYTES => None,
                Sniffed::Name(name, wire) => {
                    Some(shared.decide_named(&facts, Some(&name)).map(|()| passage(wire)))
                }
                Sniffed::Nameless(wire) => Some(shared.decide_nameless(&facts, wire).map(|()| passage(wire))),
                Sniffed::Incomplete => Some(shared.decide_named(&facts, None).map(|()| Passage::AsItIs)),
            }) as super::carry::GateKeeper
        });
        match Carry::new(connection, peer, counter.as_ref(), &self.shared.throttle, gate).await {
            End::Refused(refusal) => Err(refusal.into()),
            End::Http => Ok(Carried::Http),
            End::GuestReset => Ok(Carried::Reset),
            End::Closed | End::PeerReset => Ok(Carried::Whole),
        }
    }

    /// Ends the connection in the guest, with a reason where it is not yet answered.
    fn end(&mut self, why: Unreachable) {
        match &mut self.connection {
            Some(connection) => connection.abort(),
            None => {
                let opening = self.opening.as_ref();
                if let Some(error) = opening.and_then(|opening| packet::unreachable(&opening.bytes, why)) {
                    self.shared.tun.write_packet(&error);
                }
            }
        }
    }

    fn reset(&mut self) {
        match &mut self.connection {
            Some(connection) => connection.abort(),
            None => {
                if let Some(opening) = &self.opening
                    && let Inbound::Tcp { key, segment } = packet::parse(&opening.bytes)
                    && let Some(reset) = packet::reset(key, segment)
                {
                    self.shared.tun.write_packet(&reset);
                }
            }
        }
    }
}

fn passage(wire: Wire) -> Passage {
    match wire {
        Wire::Http => Passage::Http,
        Wire::Tls | Wire::Http2 | Wire::Unknown => Passage::AsItIs,
    }
}

/// What a connection says it is for. None: the guest has taken it back.
async fn first_words(connection: &mut Connection) -> Option<Sniffed> {
    let mut known = 0;
    loop {
        let more = poll_fn(|context| connection.poll_more(known, context)).await;
        let bytes = connection.socket().peek(MAX_SNIFF_BYTES).unwrap_or_default();
        known = bytes.len();
        match sniff(bytes) {
            Sniffed::Incomplete if more => {}
            Sniffed::Incomplete if connection.is_gone() => return None,
            sniffed => return Some(sniffed),
        }
    }
}

async fn connect(address: std::net::SocketAddr) -> Result<TcpStream, Failed> {
    let stream = TcpStream::connect(address).await.map_err(Failed::Connect)?;
    prepare(&stream).map_err(Failed::Connect)?;
    Ok(stream)
}

/// Sets what every connection outside has.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    // What the guest sends in pieces goes out in pieces: it has decided on that already. And a host that vanished is
    // found out about, though the guest may never write.
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    Ok(rustix::net::sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?)
}
