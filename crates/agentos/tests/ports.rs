//! Which servers listen in a VM, and when they begin and stop.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::net::IpAddr;

use agentos::{Body, ErrorKind, ListeningPort, PortEvent};
use support::within;
use support::world::World;

fn listening(event: PortEvent) -> ListeningPort {
    match event {
        PortEvent::Listening(port) => port,
        other => panic!("not the beginning of one: {other:?}"),
    }
}

#[tokio::test]
async fn servers_are_listed_with_address_and_process() {
    let world = World::new().await;
    let vm = world.vm().await;
    assert_eq!(vm.listening_ports().await.unwrap(), []);
    let script = "import socket, time\n\
        held = [socket.create_server(('127.0.0.1', 4000)), socket.create_server(('0.0.0.0', 4001)),\n\
            socket.create_server(('::1', 4002), family=socket.AF_INET6)]\n\
        time.sleep(1000)";
    let server = vm.spawn("python3", ["-c", script]).await.unwrap();
    within("the last one listens", vm.wait_for_port(4002)).await.unwrap();
    let ports = vm.listening_ports().await.unwrap();
    let addresses: Vec<(IpAddr, u16)> = ports.iter().map(|port| (port.address, port.port)).collect();
    let expected = [("0.0.0.0", 4001), ("127.0.0.1", 4000), ("::1", 4002)];
    assert_eq!(addresses, expected.map(|(address, port)| (address.parse().unwrap(), port)));
    for port in &ports {
        let process = port.process.as_ref().unwrap();
        assert_eq!(process.pid, server.pid());
        assert!(process.command.starts_with("python3 -c import socket"), "{process:?}");
    }
    server.kill().await.unwrap();
    server.wait().await.unwrap();
    assert_eq!(vm.listening_ports().await.unwrap(), []);
}

#[tokio::test]
async fn a_server_that_hides_its_descriptors_is_listed_with_its_process_where_root_looks() {
    let world = World::new().await;
    let vm = world.vm().await;
    let script = "import ctypes, socket, time\n\
        held = socket.create_server(('127.0.0.1', 4000))\n\
        ctypes.CDLL(None).prctl(4, 0)\n\
        time.sleep(1000)";
    // 4 is PR_SET_DUMPABLE: its files in /proc are those of root then.
    let server = vm.spawn("python3", ["-c", script]).await.unwrap();
    within("it listens", vm.wait_for_port(4000)).await.unwrap();
    let ports = vm.listening_ports().await.unwrap();
    // In a VM of a single id the kernel shows the descriptors of such a process to nobody.
    let seen = rustix::process::geteuid().is_root().then(|| server.pid());
    assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [4000]);
    assert_eq!(ports[0].process.as_ref().map(|process| process.pid), seen);
}

#[tokio::test]
async fn our_own_listeners_are_no_servers_of_the_vm() {
    let world = World::new().await;
    let outside = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = outside.local_addr().unwrap().port();
    let vm = world.vm_with(world.options().loopback_exempt_port(port)).await;
    let open =
        vm.exec(format!("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))'"));
    let (open, accepted) = tokio::join!(open.into_future(), outside.accept());
    assert!(open.unwrap().success() && accepted.is_ok(), "the port is there");
    assert_eq!(vm.listening_ports().await.unwrap(), []);
}

#[tokio::test]
async fn a_dev_server_that_starts_later_is_awaited_and_reached_at_once() {
    let world = World::new().await;
    let vm = world.vm().await;
    let mut events = vm.port_events();
    let waiting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.wait_for_port(3000).await }
    });
    let server = vm.spawn("python3", ["-m", "http.server", "3000"]).await.unwrap();
    let found = within("it listens", waiting).await.unwrap().unwrap();
    assert_eq!(found.process.as_ref().unwrap().pid, server.pid());
    let response = vm.fetch(3000, http::Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);

    let begun = listening(within("the event", events.next()).await.unwrap().unwrap());
    assert_eq!(begun, found);
    // Whoever comes late is told as well, at once.
    let late = listening(within("the event", vm.port_events().next()).await.unwrap().unwrap());
    assert_eq!(late, found);
    server.kill().await.unwrap();
    let ended = within("the end", events.next()).await.unwrap().unwrap();
    assert_eq!(ended, PortEvent::Closed(found));
}

#[tokio::test]
async fn waiting_ends_with_the_vm() {
    let world = World::new().await;
    let vm = world.vm().await;
    let waiting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.wait_for_port(3000).await }
    });
    let mut events = vm.port_events();
    // The first look has been made when a server that is there was seen.
    vm.spawn("python3", ["-m", "http.server", "3001"]).await.unwrap();
    within("the event", events.next()).await.unwrap().unwrap();
    vm.dispose().await.unwrap();
    let error = within("the end", waiting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error:?}");
    let error = within("the end", events.next()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error:?}");
    assert!(events.next().await.is_none());
}
