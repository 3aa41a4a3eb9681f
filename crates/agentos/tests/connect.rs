//! Bytes both ways with servers inside a VM: TCP as it is, and WebSockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{AgentOs, ErrorKind, VmConnection};
use support::within;
use support::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A WebSocket server by hand: greets, then echoes every message. `/refuse` is no place for WebSockets, `/endless` has
/// no end of headers, `/elsewhere` sends one to the host, and `/silent` says nothing.
const WEBSOCKETS: &str = r#"
import base64, hashlib, itertools, socket, struct, threading
def exactly(conn, count):
    data = b""
    while len(data) < count:
        piece = conn.recv(count - len(data))
        if not piece: raise EOFError
        data += piece
    return data
def message(payload):
    length = len(payload)
    if length < 126: head = bytes([0x82, length])
    elif length < 65536: head = bytes([0x82, 126]) + struct.pack(">H", length)
    else: head = bytes([0x82, 127]) + struct.pack(">Q", length)
    return head + payload
def receive(conn):
    opcode, length = exactly(conn, 2)
    assert length & 0x80, "clients mask"
    length &= 0x7f
    if length == 126: length, = struct.unpack(">H", exactly(conn, 2))
    elif length == 127: length, = struct.unpack(">Q", exactly(conn, 8))
    mask, payload = exactly(conn, 4), exactly(conn, length)
    repeated = (mask * (length // 4 + 1))[:length]
    plain = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return opcode & 15, plain.to_bytes(length, "big")
def serve(conn):
    head = b""
    while not head.endswith(b"\r\n\r\n"): head += exactly(conn, 1)
    request, *fields = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    path = request.split(" ")[1]
    if path == "/silent": conn.recv(1)
    if path == "/refuse": conn.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
    if path == "/elsewhere": conn.sendall(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
    if path == "/endless":
        conn.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
        for number in itertools.count(): conn.sendall(b"x-%d: y\r\n" % number)
    assert path == "/chat" and fields["connection"].lower() == "upgrade", head
    key = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    conn.sendall(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {fields['upgrade']}\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode() + message(b"hello"))
    while True:
        opcode, payload = receive(conn)
        if opcode == 8: conn.sendall(bytes([0x88, 0])); conn.close(); return
        conn.sendall(message(payload))
server = socket.create_server(("127.0.0.1", 8000))
while True: threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

/// Reads everything up to the end of a connection, and then says how much it was.
const COUNTER: &str = r#"
import socket, threading
def serve(conn):
    count = sum(len(piece) for piece in iter(lambda: conn.recv(65536), b""))
    conn.sendall(f"{count} bytes".encode()); conn.close()
server = socket.create_server(("127.0.0.1", 8000))
while True: threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

async fn serve(vm: &AgentOs, server: &str) {
    vm.write_file("/home/user/server.py", server).await.unwrap();
    vm.spawn("python3", ["server.py"]).await.unwrap();
    within("the server listens", vm.wait_for_port(8000)).await.unwrap();
}

/// The request of RFC 6455, section 1.3, whose answer is known.
fn handshake(path: &str) -> http::Request<()> {
    http::Request::get(path)
        .header("upgrade", "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap()
}

/// A message as clients send it, masked.
fn message(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    let mut frame = vec![0x80 | opcode, 0x80 | 127];
    frame.extend((payload.len() as u64).to_be_bytes());
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

async fn receive(socket: &mut VmConnection) -> Vec<u8> {
    let receive = async {
        socket.read_u8().await.unwrap();
        let length = match socket.read_u8().await.unwrap() {
            127 => socket.read_u64().await.unwrap(),
            126 => socket.read_u16().await.unwrap().into(),
            length => length.into(),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        socket.read_exact(&mut payload).await.unwrap();
        payload
    };
    within("a message", receive).await
}

#[tokio::test]
async fn a_websocket_talks_both_ways_until_it_is_closed() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, WEBSOCKETS).await;
    let (answer, mut socket) = within("the switch", vm.upgrade(8000, handshake("/chat"))).await.unwrap();
    assert_eq!(answer.status().as_u16(), 101);
    assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(answer.headers()["upgrade"], "websocket");
    assert_eq!(receive(&mut socket).await, b"hello");
    for payload in [&b"ping"[..], b"", &vec![7; 3_000_000]] {
        socket.send(message(2, payload)).await.unwrap();
        assert!(receive(&mut socket).await == payload, "{} bytes", payload.len());
    }
    // As a library writes it.
    socket.write_all(&message(8, b"")).await.unwrap();
    assert_eq!(receive(&mut socket).await, b"");
    assert!(within("the end", socket.next()).await.is_none());
}

#[tokio::test]
async fn what_is_no_switch_is_an_error_that_names_the_answer() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, WEBSOCKETS).await;
    for (path, status) in [("/refuse", "403"), ("/elsewhere", "302")] {
        let error = within("a refusal", vm.upgrade(8000, handshake(path))).await.unwrap_err();
        assert_eq!((error.errno(), error.object()), (Some("EPROTO"), Some(status)), "{error:?}");
    }
    let error = within("an end", vm.upgrade(8000, handshake("/endless"))).await.unwrap_err();
    assert_eq!(error.errno(), Some("EPROTO"), "{error:?}");
    let plain = http::Request::get("/chat").body(()).unwrap();
    let error = vm.upgrade(8000, plain).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    let error = vm.upgrade(9, handshake("/chat")).await.unwrap_err();
    assert_eq!(error.errno(), Some("ECONNREFUSED"), "{error:?}");
}

#[tokio::test]
async fn an_upgrade_that_nobody_waits_for_any_more_is_given_up_in_the_vm_too() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, WEBSOCKETS).await;
    let connections = async |vm: &AgentOs| {
        // 1F40 is the port, 01 a connection that stands.
        let script = "grep -c '[0-9A-F]*:1F40 [^ ]* 01 ' /proc/net/tcp";
        let count = vm.exec(script).await.unwrap().stdout;
        String::from_utf8(count).unwrap().trim().parse::<u32>().unwrap()
    };
    let waiting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.upgrade(8000, handshake("/silent")).await.map(drop) }
    });
    support::eventually("the server waits", async || connections(&vm).await == 1).await;
    waiting.abort();
    support::eventually("the connection goes", async || connections(&vm).await == 0).await;
}

#[tokio::test]
async fn each_half_of_a_connection_ends_on_its_own() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, COUNTER).await;
    let mut connection = vm.connect(8000).await.unwrap();
    for _ in 0..10 {
        connection.send(vec![b'x'; 1_000_000]).await.unwrap();
    }
    connection.finish().await;
    let error = connection.send("more").await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Closed, Some("EPIPE")));
    let mut answer = String::new();
    within("the answer", connection.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "10000000 bytes");
    assert!(connection.next().await.is_none());
}

#[tokio::test]
async fn a_server_that_says_nothing_more_is_still_spoken_to() {
    let world = World::new().await;
    let vm = world.vm().await;
    let server = r#"
import socket
server = socket.create_server(("127.0.0.1", 8000))
conn = server.accept()[0]
conn.sendall(b"over"); conn.shutdown(socket.SHUT_WR)
open("/home/user/heard", "wb").write(b"".join(iter(lambda: conn.recv(65536), b"")))
"#;
    serve(&vm, server).await;
    let mut connection = vm.connect(8000).await.unwrap();
    assert_eq!(within("its word", connection.next()).await.unwrap().unwrap(), "over");
    assert!(within("its end", connection.next()).await.is_none());
    connection.send("and out").await.unwrap();
    connection.finish().await;
    support::eventually("it was heard", async || {
        vm.read_file("/home/user/heard").await.is_ok_and(|heard| heard == b"and out")
    })
    .await;
}

#[tokio::test]
async fn connections_end_with_their_vm_and_their_server() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm, COUNTER).await;
    let error = vm.connect(9).await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NotFound, Some("ECONNREFUSED")));
    let mut connection = vm.connect(8000).await.unwrap();
    connection.send("x").await.unwrap();
    vm.dispose().await.unwrap();
    let end = within("the end", connection.next()).await;
    assert!(end.is_none_or(|end| end.is_err()));
    let error = vm.connect(8000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}
