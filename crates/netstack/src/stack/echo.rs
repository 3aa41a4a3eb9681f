//! One ping of the guest.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use super::budget::Queued;
use super::egress::{Facts, Shared};
use super::packet::{self, FlowKey, Unreachable};
use super::throttle::Direction;
use super::tun::readable;
use crate::policy::{Decision, Protocol, Reason, Refusal};

/// Nobody waits longer for an echo.
const DEADLINE: Duration = Duration::from_secs(10);

/// Type, code, checksum, identifier and sequence number.
const HEADER_BYTES: usize = 8;

pub(super) struct Request {
    pub guest: IpAddr,
    pub remote: IpAddr,
    pub identifier: u16,
    pub sequence: u16,
    pub payload: Queued,
}

impl Request {
    /// The ends of the ping, as if it had ports.
    pub(super) fn key(&self) -> FlowKey {
        FlowKey {
            guest: SocketAddr::new(self.guest, self.identifier),
            remote: SocketAddr::new(self.remote, 0),
        }
    }
}

pub(super) async fn serve(shared: Arc<Shared>, request: Request, quoted: Vec<u8>) {
    let ids = (request.identifier, request.sequence);
    if shared.is_ours(request.remote) {
        return reply(&shared, &request, ids, &request.payload.bytes);
    }
    let facts = Facts::new(Protocol::Icmp, request.key());
    let refusal = match shared.decide(&facts) {
        Decision::Allow => None,
        Decision::Refuse(refusal) => Some(refusal),
        Decision::Gate(_) => Some(Refusal { reason: Reason::NoName, rule: None }),
    };
    if let Some(refusal) = refusal {
        shared.refused(&facts, &refusal).await;
        return unreachable(&shared, &quoted, Unreachable::Prohibited);
    }
    match tokio::time::timeout(DEADLINE, exchange(&shared, &facts, &request)).await {
        Ok(Ok(payload)) => reply(&shared, &request, ids, &payload),
        Ok(Err(error)) => {
            tracing::debug!(%error, remote = %request.remote, "ping of a guest");
            match Errno::from_io_error(&error) {
                // This host lets nobody ping, so the ping goes nowhere.
                Some(Errno::ACCESS | Errno::PERM) => unreachable(&shared, &quoted, Unreachable::Prohibited),
                Some(Errno::NETUNREACH) => unreachable(&shared, &quoted, Unreachable::Network),
                _ => unreachable(&shared, &quoted, Unreachable::Host),
            }
        }
        // As on any network, silence answers silence.
        Err(_) => {}
    }
}

/// Sends the request when the bandwidth has room for it, and gives its echo when it has room for that.
async fn exchange(shared: &Shared, facts: &Facts, request: &Request) -> io::Result<Vec<u8>> {
    let counter = shared.stats.count(request.remote, facts.name());
    shared.wait_for_turn(Direction::Out, request.payload.bytes.len()).await;
    let socket = send(request)?;
    counter.sent(request.payload.bytes.len());
    let payload = echo(&socket, request).await?;
    shared.wait_for_turn(Direction::In, payload.len()).await;
    counter.received(payload.len());
    Ok(payload)
}

fn reply(shared: &Shared, request: &Request, ids: (u16, u16), payload: &[u8]) {
    if let Some(packet) = packet::echo_reply((request.guest, request.remote), ids, payload) {
        shared.tun.write_packet(&packet);
    }
}

fn unreachable(shared: &Shared, packet: &[u8], why: Unreachable) {
    if let Some(error) = packet::unreachable(packet, why) {
        shared.tun.write_packet(&error);
    }
}

/// Sends the request from a socket of the host's. The kernel puts in the identifier, which is the socket's, and gives the
/// socket only what answers it.
fn send(request: &Request) -> io::Result<AsyncFd<OwnedFd>> {
    let (family, protocol, kind) = match request.remote {
        IpAddr::V4(_) => (AddressFamily::INET, rustix::net::ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, rustix::net::ipproto::ICMPV6, 128),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
    rustix::net::connect(&socket, &SocketAddr::new(request.remote, 0))?;
    let socket = readable(socket)?;
    let [high, low] = request.sequence.to_be_bytes();
    let mut message = vec![kind, 0, 0, 0, 0, 0, high, low];
    message.extend_from_slice(&request.payload.bytes);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    Ok(socket)
}

async fn echo(socket: &AsyncFd<OwnedFd>, request: &Request) -> io::Result<Vec<u8>> {
    let [high, low] = request.sequence.to_be_bytes();
    // An echo is as long as what it answers.
    let mut buffer = vec![0; HEADER_BYTES + request.payload.bytes.len()];
    loop {
        let length = receive(socket, &mut buffer).await?;
        let echo = buffer.get(..length).unwrap_or_default();
        if echo.get(6..8) == Some(&[high, low]) {
            return Ok(echo.get(HEADER_BYTES..).unwrap_or_default().to_vec());
        }
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let (length, _) = rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?;
            Ok(length)
        });
        if let Ok(result) = received {
            return result;
        }
    }
}
