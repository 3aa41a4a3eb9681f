//! Client connections: accepted from our own user and root alone, and never from inside a VM; counted while they last.
//!
//! With a single id a VM's user is our own user to the kernel, and a mount may hold our socket somewhere below: a guest
//! that finds it would ask for a VM with the whole host in it. What tells a guest from a client is the pid namespace.

use std::fs;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::host::{ConnectionGuard, Host};

/// With no descriptor left, accept fails at once, again and again; the connection stays in the queue meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Every connection that may talk to us.
#[derive(Debug)]
pub(crate) struct Incoming {
    listener: UnixListener,
    host: Arc<Host>,
    uid: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(crate) fn new(listener: UnixListener, host: Arc<Host>) -> Self {
        Self { listener, host, uid: rustix::process::geteuid().as_raw(), pause: None }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Client>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if !may_connect(peer.uid(), self.uid) => {
                        tracing::warn!(uid = peer.uid(), "another user's connection is refused");
                    }
                    Ok(peer) if peer.uid() == self.uid && !peer.pid().is_some_and(shares_pid_namespace) => {
                        tracing::warn!(
                            pid = peer.pid(),
                            "a connection from inside a VM or container is refused"
                        );
                    }
                    Ok(_) => {
                        let guard = self.host.connected();
                        return Poll::Ready(Some(Ok(Client { stream, _guard: guard })));
                    }
                    Err(error) => tracing::warn!(%error, "a connection without credentials is refused"),
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

fn may_connect(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// Whether the process is no deeper in pid namespaces than we are. One that is gone can't be asked and gets a no.
fn shares_pid_namespace(pid: i32) -> bool {
    let levels = |process: &str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        // One number per namespace, from that of /proc down to the process's own.
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(numbers.split_whitespace().count())
    };
    levels(&pid.to_string()).is_some_and(|theirs| Some(theirs) == levels("self"))
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    _guard: ConnectionGuard,
}

impl Connected for Client {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{may_connect, shares_pid_namespace};

    #[test]
    fn a_client_is_told_from_what_can_not_be_asked() {
        assert!(shares_pid_namespace(std::process::id().try_into().unwrap()));
        // The largest pid there may be is 4,194,304.
        assert!(!shares_pid_namespace(5_000_000));
    }

    #[test]
    fn only_our_own_user_and_root_may_connect() {
        assert!(may_connect(1000, 1000));
        assert!(may_connect(0, 1000));
        assert!(!may_connect(1001, 1000));
        assert!(!may_connect(1000, 0), "a root sidecar serves root");
    }
}
