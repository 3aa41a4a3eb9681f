//! Servers that say back what they hear, and some with worse manners. They run until the test ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// How many connections a server was given, and how many of them are over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accepted {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Accepted {
    pub(crate) fn count(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub(crate) fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

/// Says everything back, as it comes.
pub(crate) fn echo(listener: TcpListener) -> Accepted {
    serve(listener, |mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
}

/// Waits until the client has ended its direction, then says how many bytes came.
pub(crate) fn count_to_the_end(listener: TcpListener) -> Accepted {
    serve(listener, |mut stream| async move {
        let mut all = Vec::new();
        if stream.read_to_end(&mut all).await.is_ok() {
            let _ = stream.write_all(format!("{} bytes", all.len()).as_bytes()).await;
        }
    })
}

/// Takes the first bytes and then breaks the connection, as a server that crashes does.
pub(crate) fn reset(listener: TcpListener) -> Accepted {
    serve(listener, |mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        // Closing with no time to linger sends RST instead of FIN.
        let _ = sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO));
    })
}

/// Keeps connections open and says nothing.
pub(crate) fn hold(listener: TcpListener) -> Accepted {
    serve(listener, |mut stream| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
}

fn serve<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    converse: impl Fn(TcpStream) -> F + Send + 'static,
) -> Accepted {
    let accepted = Accepted::default();
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.begun.fetch_add(1, Ordering::SeqCst);
            let (conversation, ended) = (converse(stream), Arc::clone(&count.ended));
            tokio::spawn(async move {
                conversation.await;
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    accepted
}

/// Answers every datagram with itself.
pub(crate) fn echo_datagrams(socket: UdpSocket) -> Accepted {
    let accepted = Accepted::default();
    let count = accepted.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            count.begun.fetch_add(1, Ordering::SeqCst);
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    });
    accepted
}
