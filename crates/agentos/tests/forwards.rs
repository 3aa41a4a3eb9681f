//! Ports of a VM at addresses of the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::net::SocketAddr;

use agentos::{AgentOs, ErrorKind, PortForward};
use support::world::World;
use support::{eventually, within};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Keeps its connections open, as servers of pages do.
const PAGES: &str = r#"
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        text = self.path.encode() * 1000
        self.send_response(200); self.send_header("content-length", str(len(text))); self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("127.0.0.1", 8000), Handler).serve_forever()
"#;

async fn serve(vm: &AgentOs, server: &str) {
    vm.write_file("/home/user/server.py", server).await.unwrap();
    vm.spawn("python3", ["server.py"]).await.unwrap();
    within("the server listens", vm.wait_for_port(8000)).await.unwrap();
}

async fn forward(vm: &AgentOs) -> PortForward {
    vm.forward_port(8000, "127.0.0.1:0").await.unwrap()
}

/// Several pages over one connection, as a browser has them.
async fn browse(address: SocketAddr, path: String) {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    for _ in 0..5 {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(stream.read_line(&mut line).await.unwrap() > 0, "the connection ended");
        }
        let mut body = vec![0; path.len() * 1000];
        stream.read_exact(&mut body).await.unwrap();
        assert!(body.starts_with(path.as_bytes()) && body.ends_with(path.as_bytes()));
    }
}

#[tokio::test]
async fn a_browsers_connections_reach_the_server_side_by_side() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, PAGES).await;
    let forward = forward(&vm).await;
    assert!(forward.local_addr().ip().is_loopback() && forward.local_addr().port() != 0);
    assert_eq!(forward.guest_port(), 8000);
    let mut tabs = JoinSet::new();
    for tab in 0..40 {
        tabs.spawn(browse(forward.local_addr(), format!("/tab/{tab}")));
    }
    within("every page", tabs.join_all()).await;
}

#[tokio::test]
async fn each_half_of_a_forwarded_connection_ends_on_its_own() {
    let world = World::new().await;
    let vm = world.vm().await;
    let server = r#"
import socket
server = socket.create_server(("127.0.0.1", 8000))
while True:
    conn = server.accept()[0]
    count = sum(len(piece) for piece in iter(lambda: conn.recv(65536), b""))
    conn.sendall(f"{count} bytes".encode()); conn.close()
"#;
    serve(&vm, server).await;
    let forward = forward(&vm).await;
    let mut stream = TcpStream::connect(forward.local_addr()).await.unwrap();
    stream.write_all(&vec![b'x'; 5_000_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "5000000 bytes");
}

#[tokio::test]
async fn until_somebody_listens_connections_are_reset() {
    let world = World::new().await;
    let vm = world.vm().await;
    let forward = forward(&vm).await;
    let mut stream = TcpStream::connect(forward.local_addr()).await.unwrap();
    let error = within("the reset", stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    serve(&vm, PAGES).await;
    within("a page", browse(forward.local_addr(), "/late".to_owned())).await;
}

#[tokio::test]
async fn addresses_that_cannot_be_had_are_refused_by_name() {
    let world = World::new().await;
    let vm = world.vm().await;
    let forward = forward(&vm).await;
    let error = vm.forward_port(8000, forward.local_addr()).await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Busy, Some("EADDRINUSE")), "{error:?}");
    assert_eq!(error.object(), Some(forward.local_addr().to_string().as_str()));
    // 192.0.2.0/24 is nobody's.
    for address in ["nowhere", "192.0.2.1:0"] {
        let error = vm.forward_port(8000, address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    }
    let error = vm.forward_port(0, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
}

#[tokio::test]
async fn a_forward_ends_when_it_is_closed_or_dropped() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, PAGES).await;
    let closed = forward(&vm).await;
    let address = closed.local_addr();
    let mut open = TcpStream::connect(address).await.unwrap();
    closed.close().await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert!(matches!(within("the end", open.read(&mut [0])).await, Ok(0) | Err(_)));
    // The address can be had again, and what comes late from the first forward does not end the second.
    let dropped = vm.forward_port(8000, address).await.unwrap();
    within("a page", browse(address, "/again".to_owned())).await;
    drop(dropped);
    eventually("nobody listens", async || TcpStream::connect(address).await.is_err()).await;
}

#[tokio::test]
async fn a_kept_forward_ends_with_its_vm_alone() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, PAGES).await;
    let mut watched = forward(&vm).await;
    let kept = vm.forward_port(8000, 0).keep().await.unwrap();
    let (address, also) = (kept.local_addr(), watched.local_addr());
    drop(kept);
    within("a page", browse(address, "/kept".to_owned())).await;
    let mut open = TcpStream::connect(address).await.unwrap();
    vm.dispose().await.unwrap();
    for address in [address, also] {
        assert!(TcpStream::connect(address).await.is_err(), "the VM is gone, and its forwards with it");
    }
    assert!(matches!(within("the end", open.read(&mut [0])).await, Ok(0) | Err(_)));
    let error = within("the end", watched.ended()).await;
    assert_eq!(error.kind(), ErrorKind::Closed, "{error:?}");
}

#[tokio::test]
async fn a_kept_forward_can_be_closed() {
    let world = World::new().await;
    let vm = world.vm().await;
    let kept = vm.forward_port(8000, 0).keep().await.unwrap();
    let address = kept.local_addr();
    kept.close().await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
