//! The datagrams between one port of the guest and one address.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::budget::Queued;
use super::egress::{Facts, Shared};
use super::packet::{self, FlowKey, Unreachable};
use super::stats::Counter;
use super::tell::Asker;
use super::throttle::Direction;
use crate::dns::Transport;
use crate::name::HostName;
use crate::policy::{Decision, Reason, Refusal};

/// Without a datagram for so long the ends have nothing more to say to each other. RFC 4787 asks for two minutes of whoever
/// can't know what the ends are; what agents use is done within seconds, and says something at least twice a minute.
const IDLE: Duration = Duration::from_secs(60);

/// A resolver is asked once or twice from a port.
const RESOLVER_IDLE: Duration = Duration::from_secs(10);

pub(super) struct Flow {
    shared: Arc<Shared>,
    facts: Arc<Facts>,
    /// The beginning of the first packet, which errors quote.
    quoted: Vec<u8>,
    payloads: mpsc::Receiver<Queued>,
}

thread_local! {
    /// Where datagrams are received, of which each is then kept in as many bytes as it has.
    static RECEIVED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Flow {
    pub(super) fn new(
        shared: Arc<Shared>,
        facts: Arc<Facts>,
        quoted: Vec<u8>,
        payloads: mpsc::Receiver<Queued>,
    ) -> Self {
        Self { shared, facts, quoted, payloads }
    }

    pub(super) async fn serve(self, payload: Queued) {
        let remote = self.facts.key.remote;
        if self.shared.is_ours(remote.ip()) {
            self.facts.stay_inside();
            let resolver = remote.ip() == self.shared.addresses.resolver && remote.port() == 53;
            return match self.shared.host_port(remote) {
                _ if resolver => self.resolve(payload).await,
                Some(address) => self.outside(address, payload).await,
                None => self.unreachable(Unreachable::Port),
            };
        }
        match self.shared.decide(&self.facts) {
            Decision::Allow => self.outside(remote, payload).await,
            Decision::Refuse(refusal) => self.refuse(&refusal).await,
            // Datagrams don't say what they are for.
            Decision::Gate(_) => self.refuse(&Refusal { reason: Reason::NoName, rule: None }).await,
        }
    }

    async fn refuse(mut self, refusal: &Refusal) {
        self.shared.refused(&self.facts, refusal).await;
        self.unreachable(Unreachable::Prohibited);
        // What has come meanwhile is refused as well; what comes from now on asks for itself.
        self.payloads.close();
        while self.payloads.try_recv().is_ok() {
            self.shared.refused(&self.facts, refusal).await;
        }
    }

    fn unreachable(&self, why: Unreachable) {
        if let Some(error) = packet::unreachable(&self.quoted, why) {
            self.shared.tun.write_packet(&error);
        }
    }

    async fn outside(mut self, address: SocketAddr, payload: Queued) {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = match UdpSocket::bind(any).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%error, "datagram of a guest");
                return self.unreachable(Unreachable::Host);
            }
        };
        if let Err(error) = socket.connect(address).await {
            return self.failed(&error);
        }
        let counter = self.shared.stats.count(self.facts.key.remote.ip(), self.facts.name());
        if let Err(error) = self.exchange(&socket, &counter, payload).await {
            self.failed(&error);
        }
    }

    async fn exchange(&mut self, socket: &UdpSocket, counter: &Counter, first: Queued) -> io::Result<()> {
        let mut next = Some(first);
        loop {
            if let Some(Queued { bytes, .. }) = &next {
                self.shared.wait_for_turn(Direction::Out, bytes.len()).await;
                self.facts.touch();
                socket.send(bytes).await?;
                counter.sent(bytes.len());
            }
            next = None;
            tokio::select! {
                received = receive(socket) => {
                    let Some(payload) = self.shared.queued_datagram(received?) else { continue };
                    self.shared.wait_for_turn(Direction::In, payload.bytes.len()).await;
                    counter.received(payload.bytes.len());
                    self.facts.touch();
                    answer(&self.shared, self.facts.key, &payload.bytes);
                }
                payload = self.payloads.recv() => match payload {
                    Some(payload) => next = Some(payload),
                    None => return Ok(()),
                },
                () = tokio::time::sleep(IDLE) => return Ok(()),
            }
        }
    }

    fn failed(&self, error: &io::Error) {
        match Errno::from_io_error(error) {
            Some(Errno::CONNREFUSED) => self.unreachable(Unreachable::Port),
            Some(Errno::NETUNREACH) => self.unreachable(Unreachable::Network),
            // Too long for the way out: the guest's own kernel would say so, and a lost datagram is what is left.
            Some(Errno::MSGSIZE) => {}
            _ => self.unreachable(Unreachable::Host),
        }
    }

    /// Queries to the VM's resolver. Each is answered when it can be: a slow one holds up no other.
    async fn resolve(mut self, first: Queued) {
        let mut queries = tokio::task::JoinSet::new();
        let mut next = Some(first);
        loop {
            if let Some(query) = next.take() {
                self.facts.touch();
                queries.spawn(reply(Arc::clone(&self.shared), Arc::clone(&self.facts), query));
            }
            tokio::select! {
                query = self.payloads.recv() => match query {
                    Some(query) => next = Some(query),
                    None => break,
                },
                Some(_) = queries.join_next(), if !queries.is_empty() => {}
                () = tokio::time::sleep(RESOLVER_IDLE) => break,
            }
        }
        while queries.join_next().await.is_some() {}
    }
}

/// The next datagram, or what the network says of those that were sent.
async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    socket
        .async_io(Interest::READABLE | Interest::ERROR, || {
            RECEIVED.with_borrow_mut(|buffer| {
                buffer.resize(usize::from(u16::MAX), 0);
                let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
                Ok(buffer.get(..length).unwrap_or_default().to_vec())
            })
        })
        .await
}

async fn reply(shared: Arc<Shared>, facts: Arc<Facts>, query: Queued) {
    // What the policy has against the name, or one of its aliases. Held to put one in.
    let refused = Mutex::new(Vec::new());
    let may_ask = |name: &HostName| match shared.query_refusal(name) {
        Some(kind) => {
            refused.lock().unwrap_or_else(PoisonError::into_inner).push(kind);
            false
        }
        None => true,
    };
    let reply = shared.resolver.answer(&query.bytes, Transport::Udp, &may_ask).await;
    for kind in refused.into_inner().unwrap_or_else(PoisonError::into_inner) {
        shared.tell(kind, Asker::from(&*facts)).await;
    }
    if let Some(reply) = reply {
        answer(&shared, facts.key, &reply);
    }
}

fn answer(shared: &Shared, key: FlowKey, payload: &[u8]) {
    match packet::datagram(key, payload) {
        Some(packet) if packet.len() <= shared.addresses.mtu => shared.tun.write_packet(&packet),
        _ => shared.stats.dropped(),
    }
}
