//! Connections and datagrams through the border are as they are on a host.

use agentos::AgentOs;

use crate::lab::Lab;
use crate::lab::echo;
use crate::lab::guest::{attempt, sh, with_probe};
use crate::support::world::World;

async fn place() -> Option<(Lab, World, AgentOs)> {
    let lab = Lab::new()?;
    lab.host("peer", &["198.51.100.7", "2a00:db8:2::7"]);
    let world = lab.world().await;
    let vm = world.vm_with(with_probe(world.options())).await;
    Some((lab, world, vm))
}

#[tokio::test]
async fn what_is_said_comes_back() {
    let Some((lab, _world, vm)) = place().await else { return };
    echo::echo(lab.tcp("peer", "198.51.100.7:7"));
    echo::echo_datagrams(lab.udp("peer", "198.51.100.7:7"));
    assert_eq!(attempt(&vm, "say 198.51.100.7:7 hello").await, "hello");
    assert_eq!(attempt(&vm, "datagram 198.51.100.7:7 hello").await, "hello");
    assert_eq!(attempt(&vm, "ping 198.51.100.7").await, "ok");
}

#[tokio::test]
async fn ipv6_goes_where_the_host_has_it() {
    let Some((lab, _world, vm)) = place().await else { return };
    echo::echo(lab.tcp("peer", "[2a00:db8:2::7]:7"));
    echo::echo_datagrams(lab.udp("peer", "[2a00:db8:2::7]:7"));
    assert_eq!(lab.attempt_outside("say [2a00:db8:2::7]:7 hello").await, "hello", "the control");
    assert_eq!(attempt(&vm, "say [2a00:db8:2::7]:7 hello").await, "hello");
    assert_eq!(attempt(&vm, "datagram [2a00:db8:2::7]:7 hello").await, "hello");
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let Some((lab, _world, vm)) = place().await else { return };
    echo::count_to_the_end(lab.tcp("peer", "198.51.100.7:7"));
    for place in ["outside", "inside"] {
        let words = "half-close 198.51.100.7:7 'all that was said'";
        let said =
            if place == "outside" { lab.attempt_outside(words).await } else { attempt(&vm, words).await };
        assert_eq!(said, "17 bytes", "{place}");
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_connection_is_seen_to_do_so() {
    let Some((lab, _world, vm)) = place().await else { return };
    echo::reset(lab.tcp("peer", "198.51.100.7:7"));
    assert_eq!(lab.attempt_outside("say 198.51.100.7:7 hello").await, "ECONNRESET", "the control");
    assert_eq!(attempt(&vm, "say 198.51.100.7:7 hello").await, "ECONNRESET");
    assert_eq!(attempt(&vm, "connect 198.51.100.7:8").await, "ECONNREFUSED");
    assert_eq!(attempt(&vm, "datagram 198.51.100.7:8 hello").await, "ECONNREFUSED");
}

#[tokio::test]
async fn a_thousand_connections_live_at_once() {
    let Some((lab, _world, vm)) = place().await else { return };
    let accepted = echo::echo(lab.tcp("peer", "198.51.100.7:7"));
    assert_eq!(sh(&vm, "ulimit -n 4096; /probe/attempt connect-many 198.51.100.7:7 1000").await, "1000");
    assert_eq!(accepted.count(), 1000);
}

#[tokio::test]
async fn a_long_stream_arrives_whole_in_both_directions() {
    let Some((lab, _world, vm)) = place().await else { return };
    echo::echo(lab.tcp("peer", "198.51.100.7:7"));
    let script = r#"
import hashlib, os, socket, threading
sent, got = hashlib.sha256(), hashlib.sha256()
s = socket.create_connection(("198.51.100.7", 7))
def send():
    for _ in range(512):
        block = os.urandom(65536); sent.update(block); s.sendall(block)
    s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send); t.start()
total = 0
while block := s.recv(1 << 20):
    got.update(block); total += len(block)
t.join(); print(total, sent.digest() == got.digest())
"#;
    vm.write_file("/tmp/stream.py", script).await.unwrap();
    assert_eq!(sh(&vm, "python3 /tmp/stream.py").await, "33554432 True");
}
