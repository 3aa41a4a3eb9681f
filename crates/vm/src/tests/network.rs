//! Ports and sockets, with an init that says what the test tells it to.

use std::net::{Ipv4Addr, SocketAddr};

use agentos_guest_protocol::filesystem::FileResponse;
use agentos_guest_protocol::init::{Failure, Request, Response};
use agentos_guest_protocol::launcher::{BootFailure, LauncherEvent};
use agentos_guest_protocol::network::{ListenerEntry, NetworkRequest, Protocol, SocketOwner};
use agentos_guest_protocol::process::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::fake::{World, bytes, file, soon};
use crate::network::{MAX_LOOKUPS, NetworkError};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[tokio::test]
async fn a_forwarded_port_leads_to_the_server_that_init_connects_to() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let forward = vm.forward_port(3000, ANY).await.unwrap();
    let server = TcpListener::bind(ANY).await.unwrap();
    let mut client = TcpStream::connect(forward.local_addr()).await.unwrap();
    let (id, request) = init.request().await;
    assert!(matches!(request, Request::Network(NetworkRequest::Connect { port: 3000 })), "{request:?}");
    let inside = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
    init.answer(id, Response::Socket, vec![inside.into()]);
    let (mut served, _) = soon(server.accept()).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut read = [0; 5];
    soon(served.read_exact(&mut read)).await.unwrap();
    assert_eq!(&read, b"hello");

    let address = forward.local_addr();
    forward.close().await;
    assert_eq!(soon(client.read(&mut read)).await.unwrap_or(0), 0, "the connection goes with the forward");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens there any more");
}

#[tokio::test]
async fn where_nobody_listens_in_the_vm_the_connection_is_reset() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let forward = vm.forward_port(3000, ANY).await.unwrap();
    let mut client = TcpStream::connect(forward.local_addr()).await.unwrap();
    let (id, _) = init.request().await;
    let refused = BootFailure { step: "connect".to_owned(), object: bytes("port 3000"), errno: 111 };
    init.fail(id, Failure::System(refused));
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let World { vm, launcher: _launcher, .. } = World::new().await;
    let taken = TcpListener::bind(ANY).await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = vm.forward_port(3000, address).await.unwrap_err();
    assert!(matches!(error, NetworkError::Listen { .. }));
    assert_eq!(error.to_string(), format!("EADDRINUSE: address already in use, listen on {address}"));
}

#[tokio::test]
async fn a_forward_ends_with_its_vm_and_a_vm_that_ends_gets_none() {
    let World { vm, init, launcher, .. } = World::new().await;
    let forward = vm.forward_port(3000, ANY).await.unwrap();
    launcher.say(LauncherEvent::Exited { vm: init.number, status: Status::Signaled(9) }, Vec::new());
    soon(async { while TcpStream::connect(forward.local_addr()).await.is_ok() {} }).await;
    let error = vm.forward_port(3000, ANY).await.unwrap_err();
    assert!(matches!(error, NetworkError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn what_listens_and_whose_it_is_comes_as_init_says_it() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let address: SocketAddr = "[::1]:3000".parse().unwrap();
    let owner = SocketOwner { pid: 7, command: bytes("node server.js") };
    let (listed, ()) = tokio::join!(vm.listening_ports(true), async {
        let (id, _) = init.request().await;
        let entry = ListenerEntry { address, owner: Some(owner) };
        init.answer(id, Response::Listeners(vec![entry]), Vec::new());
    });
    let listed = listed.unwrap();
    assert_eq!((listed[0].address, listed[0].port), (address.ip(), 3000));
    assert_eq!(listed[0].owner.as_ref().unwrap().command, "node server.js");

    let (found, ()) = tokio::join!(vm.owner(Protocol::Udp, address, address), async {
        let (id, request) = init.request().await;
        let Request::Network(NetworkRequest::Owner { protocol: Protocol::Udp, .. }) = request else {
            panic!("{request:?}")
        };
        init.answer(id, Response::Owner(Some(SocketOwner { pid: 9, command: bytes("dig") })), Vec::new());
    });
    assert_eq!(found.unwrap().unwrap().pid, 9);
}

#[tokio::test]
async fn a_flood_of_look_ups_waits_outside_of_the_vm() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let mut asking = JoinSet::new();
    for _ in 0..50 {
        let vm = vm.clone();
        asking.spawn(async move { vm.owner(Protocol::Tcp, ANY, ANY).await });
    }
    let mut under_way = Vec::new();
    for _ in 0..MAX_LOOKUPS {
        under_way.push(init.request().await.0);
    }
    // What else is asked comes next, not behind them.
    let stat = tokio::spawn(async move { vm.exists(b"/").await });
    let (id, _) = init.file_request().await;
    init.answer(id, file(FileResponse::Exists(true)), Vec::new());
    assert!(soon(stat).await.unwrap().unwrap());
    for _ in 0..50 {
        let next = match under_way.pop() {
            Some(id) => id,
            None => init.request().await.0,
        };
        init.answer(next, Response::Owner(None), Vec::new());
    }
    while let Some(answer) = soon(asking.join_next()).await {
        assert_eq!(answer.unwrap().unwrap(), None);
    }
}
