//! The datagrams between one port of the guest and one address.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::egress::{Facts, Shared};
use super::packet::{self, FlowKey, Unreachable};
use super::stats::Counter;
use super::throttle::Direction;
use crate::dns::Transport;
use crate::policy::{Decision, Reason, Refusal};

/// Without a datagram for so long the ends have nothing more to say to each other: RFC 4787 asks for two minutes, and
/// what agents use is done within seconds.
const IDLE: Duration = Duration::from_secs(120);

/// A resolver is asked once or twice from a port.
const RESOLVER_IDLE: Duration = Duration::from_secs(10);

pub(super) struct Flow {
    shared: Arc<Shared>,
    facts: Arc<Facts>,
    /// The first packet, which errors quote.
    first: Vec<u8>,
    payloads: mpsc::Receiver<Vec<u8>>,
}

impl Flow {
    pub(super) fn new(
        shared: Arc<Shared>,
        facts: Arc<Facts>,
        first: Vec<u8>,
        payloads: mpsc::Receiver<Vec<u8>>,
    ) -> Self {
        Self { shared, facts, first, payloads }
    }

    pub(super) async fn serve(self, payload: Vec<u8>) {
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

    async fn refuse(&self, refusal: &Refusal) {
        self.shared.refused(&self.facts, refusal).await;
        self.unreachable(Unreachable::Prohibited);
    }

    fn unreachable(&self, why: Unreachable) {
        if let Some(error) = packet::unreachable(&self.first, why) {
            self.shared.tun.write_packet(&error);
        }
    }

    async fn outside(mut self, address: std::net::SocketAddr, payload: Vec<u8>) {
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
        let counter = self.shared.stats.count(self.facts.key.remote.ip(), self.facts.name(), false);
        if let Err(error) = self.exchange(&socket, &counter, payload).await {
            self.failed(&error);
        }
    }

    async fn exchange(&mut self, socket: &UdpSocket, counter: &Counter, first: Vec<u8>) -> io::Result<()> {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut next = Some(first);
        loop {
            if let Some(payload) = next.take() {
                self.wait_for_turn(Direction::Out, payload.len()).await;
                socket.send(&payload).await?;
                counter.sent(payload.len());
            }
            tokio::select! {
                received = socket.recv(&mut buffer) => {
                    let payload = buffer.get(..received?).unwrap_or_default();
                    self.wait_for_turn(Direction::In, payload.len()).await;
                    counter.received(payload.len());
                    answer(&self.shared, self.facts.key, payload);
                }
                payload = self.payloads.recv() => match payload {
                    Some(payload) => next = Some(payload),
                    None => return Ok(()),
                },
                () = tokio::time::sleep(IDLE) => return Ok(()),
            }
        }
    }

    async fn wait_for_turn(&self, direction: Direction, bytes: usize) {
        while let Err(again) = self.shared.throttle.allowance(direction, bytes, Instant::now()) {
            tokio::time::sleep_until(again).await;
        }
        self.shared.throttle.take(direction, bytes);
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
    async fn resolve(mut self, first: Vec<u8>) {
        let mut queries = tokio::task::JoinSet::new();
        let mut next = Some(first);
        loop {
            if let Some(query) = next.take() {
                let (shared, key) = (Arc::clone(&self.shared), self.facts.key);
                queries.spawn(async move {
                    let reply =
                        shared.resolver.answer(&query, Transport::Udp, &|name| shared.may_ask(name)).await;
                    if let Some(reply) = reply {
                        answer(&shared, key, &reply);
                    }
                });
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

fn answer(shared: &Shared, key: FlowKey, payload: &[u8]) {
    match packet::datagram(key, payload) {
        Some(packet) if packet.len() <= shared.addresses.mtu => shared.tun.write_packet(&packet),
        _ => shared.stats.dropped(),
    }
}
