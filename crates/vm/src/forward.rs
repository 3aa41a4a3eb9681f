//! Ports carried between a VM and the host.
//!
//! ```text
//! out:  client in the VM ──► init's listener ──► port of the host's loopback
//! in:   client on the host ──► PortForward's listener ──► init's connection ──► server in the VM
//! ```
//! Both carry [`MAX_CONNECTIONS`] at a time. Each half of a connection closes on its own, a reset on one side is one on
//! the other, and where nobody listens behind the port, whoever was accepted already is reset: the nearest to
//! "connection refused" there still is.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::network::NetworkError;
use crate::vm::{Vm, VmState};

/// Connections of one forwarded port at a time; the next wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 256;

/// When the sidecar has no descriptor left for another connection, it tries again after this.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The kernel's own idle time before it asks a peer whether it is still there, then how often and how many times: one
/// that has vanished without a word is found out about within two minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 6;

/// Each direction of a connection is copied in pieces of this size.
const COPY_BYTES: usize = 64 * 1024;

/// An address of the host from which connections lead to a port of a VM. It ends when it is closed or dropped, or with
/// the VM, and every connection with it. Held by itself it does not keep what it leads to from being disposed.
#[derive(Debug)]
pub struct PortForward {
    local_addr: SocketAddr,
    task: JoinHandle<()>,
}

impl PortForward {
    /// Where it listens: the port that the kernel chose where none was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns when nobody listens at the address any more.
    pub async fn close(mut self) {
        self.task.abort();
        // Cancelled, which is what was wanted, or ended already.
        let _ = (&mut self.task).await;
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Vm {
    /// Listens on an address of the host for a port of the VM, whether anybody listens there yet or not. Whoever
    /// reaches the address reaches the server: an address other than loopback is open to the network.
    pub async fn forward_port(&self, port: u16, address: SocketAddr) -> Result<PortForward, NetworkError> {
        if !matches!(self.state(), VmState::Running) {
            return Err(self.unavailable().into());
        }
        let failed = |source| NetworkError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let vm = self.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = accept(&listener, |host| inward(vm.clone(), port, host)) => {}
                _ = vm.gone() => {}
            }
        });
        Ok(PortForward { local_addr, task })
    }
}

async fn inward(vm: Vm, port: u16, host: TcpStream) {
    match vm.connect(port).await {
        Ok(guest) => carry(host, guest).await,
        Err(error) => {
            tracing::debug!(port, %error, "nobody to forward to");
            reset(&host);
        }
    }
}

/// Carries connections from a listener in the VM to this port of the host's loopback. Runs until it is aborted, and
/// its connections with it.
pub(crate) async fn out(listener: TcpListener, port: u16) {
    accept(&listener, |guest| outward(guest, port)).await;
}

async fn outward(guest: TcpStream, port: u16) {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(host) => carry(guest, host).await,
        Err(_) => reset(&guest),
    }
}

/// Runs until it is dropped, and its connections with it.
async fn accept<F>(listener: &TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream))),
                Err(error) => {
                    tracing::debug!(%error, "forwarded port can't accept");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Ends when both directions have: one half may close long before the other.
async fn carry(mut one: TcpStream, mut other: TcpStream) {
    for stream in [&one, &other] {
        // Without it small pieces are late, and nothing else.
        let _ = stream.set_nodelay(true);
        if let Err(error) = keep_alive(stream) {
            tracing::debug!(%error, "forwarded connection is not asked whether it lives");
        }
    }
    if copy_bidirectional_with_sizes(&mut one, &mut other, COPY_BYTES, COPY_BYTES).await.is_err() {
        reset(&one);
        reset(&other);
    }
}

/// Otherwise a peer that is gone, and never says so, holds one of the connections for ever.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_PROBES)?;
    sockopt::set_socket_keepalive(stream, true)
}

/// Has the kernel tell the peer that its connection broke, once the socket is closed.
fn reset(stream: &TcpStream) {
    // One that can't be told sees an orderly end.
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn loopback() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// Lets everybody else run once, then says whether a connection has come.
    async fn has_come(listener: &TcpListener) -> bool {
        tokio::task::yield_now().await;
        std::future::poll_fn(|context| Poll::Ready(listener.poll_accept(context).is_ready())).await
    }

    #[tokio::test]
    async fn a_forwarded_connection_closes_one_half_at_a_time() {
        let ((inside, inside_port), (outside, outside_port)) = (loopback().await, loopback().await);
        let forwarder = tokio::spawn(out(inside, outside_port));
        let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, inside_port)).await.unwrap();
        let (mut host, _) = outside.accept().await.unwrap();
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        let mut question = String::new();
        host.read_to_string(&mut question).await.unwrap();
        host.write_all(b"answer").await.unwrap();
        drop(host);
        let mut answer = String::new();
        guest.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        forwarder.abort();
    }

    /// The kernel's timer of the socket with these ports, as /proc/net/tcp numbers them; 2 asks whether the peer lives.
    fn timer(local: u16, remote: u16) -> Option<u8> {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let ports = [format!(":{local:04X}"), format!(":{remote:04X}")];
        table.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let found = fields.get(1)?.ends_with(&ports[0]) && fields.get(2)?.ends_with(&ports[1]);
            found.then(|| fields.get(5)?.split(':').next()?.parse().ok()).flatten()
        })
    }

    #[tokio::test]
    async fn whether_the_two_ends_live_is_asked_by_the_kernel() {
        let ((inside, inside_port), (outside, outside_port)) = (loopback().await, loopback().await);
        let forwarder = tokio::spawn(out(inside, outside_port));
        let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, inside_port)).await.unwrap();
        let (mut host, peer) = outside.accept().await.unwrap();
        guest.write_all(b"x").await.unwrap();
        assert_eq!(host.read_u8().await.unwrap(), b'x');
        // What has been carried one way may not have been acknowledged yet, for which there is another timer.
        let asks = |local, remote| async move {
            tokio::time::timeout(Duration::from_secs(30), async {
                while timer(local, remote) != Some(2) {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("nobody asks");
        };
        asks(inside_port, guest.local_addr().unwrap().port()).await;
        asks(peer.port(), outside_port).await;
        forwarder.abort();
    }

    #[tokio::test]
    async fn where_nobody_listens_outside_the_guest_is_reset() {
        let ((inside, inside_port), (outside, outside_port)) = (loopback().await, loopback().await);
        drop(outside);
        let forwarder = tokio::spawn(out(inside, outside_port));
        let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, inside_port)).await.unwrap();
        let error = guest.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        forwarder.abort();
    }

    #[tokio::test]
    async fn a_reset_on_one_side_is_one_on_the_other() {
        let ((inside, inside_port), (outside, outside_port)) = (loopback().await, loopback().await);
        let forwarder = tokio::spawn(out(inside, outside_port));
        let mut guest = TcpStream::connect((Ipv4Addr::LOCALHOST, inside_port)).await.unwrap();
        let (host, _) = outside.accept().await.unwrap();
        reset(&host);
        drop(host);
        let error = guest.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        forwarder.abort();
    }

    #[tokio::test]
    async fn beyond_the_limit_connections_wait_for_one_to_end() {
        let ((inside, inside_port), (outside, outside_port)) = (loopback().await, loopback().await);
        let forwarder = tokio::spawn(out(inside, outside_port));
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, inside_port));
        let (mut guests, mut hosts) = (Vec::new(), Vec::new());
        for _ in 0..MAX_CONNECTIONS {
            guests.push(connect().await.unwrap());
            hosts.push(outside.accept().await.unwrap());
        }
        let mut waiting = connect().await.unwrap();
        for _ in 0..1000 {
            assert!(!has_come(&outside).await, "one more than the limit was carried");
        }
        drop((guests.pop(), hosts.pop()));
        let (mut host, _) = outside.accept().await.unwrap();
        waiting.write_all(b"x").await.unwrap();
        assert_eq!(host.read_u8().await.unwrap(), b'x');
        forwarder.abort();
    }
}
