//! VMs beside each other: none reaches another's servers, and none takes another's network away.

use agentos::AgentOs;

use crate::lab::Lab;
use crate::lab::echo;
use crate::lab::guest::{attempt, check_refused, sh, with_probe};
use crate::support::eventually;
use crate::support::world::World;

const SERVER: &str = "python3 -c 'import socket; s = socket.create_server((\"0.0.0.0\", 8080))
while True: c, _ = s.accept(); c.sendall(c.recv(100)); c.close()'";

async fn place() -> Option<(Lab, World, [AgentOs; 2])> {
    let lab = Lab::new()?;
    lab.host("peer", &["198.51.100.7"]);
    echo::echo(lab.tcp("peer", "198.51.100.7:7"));
    echo::echo_datagrams(lab.udp("peer", "198.51.100.7:7"));
    let world = lab.world().await;
    let vms =
        [world.vm_with(with_probe(world.options())).await, world.vm_with(with_probe(world.options())).await];
    Some((lab, world, vms))
}

#[tokio::test]
async fn a_server_in_one_vm_is_not_there_for_another() {
    let Some((_lab, _world, [one, other])) = place().await else { return };
    one.spawn("/bin/sh", ["-c", SERVER]).await.unwrap();
    eventually("the server", || async { attempt(&one, "say 127.0.0.1:8080 hello").await == "hello" }).await;
    let own = sh(&one, "hostname -I 2>/dev/null || ip -o addr").await;
    assert_eq!(attempt(&one, "say 10.0.2.15:8080 hello").await, "hello", "the control: {own}");
    for address in ["10.0.2.15:8080", "10.0.2.2:8080", "10.0.2.3:8080", "127.0.0.1:8080", "10.0.2.16:8080"] {
        check_refused(address, &attempt(&other, &format!("say {address} hello")).await);
    }
}

#[tokio::test]
async fn a_flood_from_one_vm_leaves_the_other_its_network() {
    let Some((_lab, _world, [greedy, sentinel])) = place().await else { return };
    // More than a VM may have, to where something listens, where nothing does and where nothing may go.
    let flood = "ulimit -n 20000; for round in 1 2 3; do \
         for to in 198.51.100.7:7 198.51.100.7:8 10.9.0.5:80; do /probe/attempt flood $to 5000; done; done";
    let process = greedy.spawn("/bin/sh", ["-c", flood]).await.unwrap();
    for _ in 0..20 {
        assert_eq!(attempt(&sentinel, "say 198.51.100.7:7 hello").await, "hello");
        assert_eq!(attempt(&sentinel, "datagram 198.51.100.7:7 hello").await, "hello");
    }
    crate::support::within("the flood's end", process.wait()).await.unwrap();
    assert_eq!(attempt(&sentinel, "say 198.51.100.7:7 hello").await, "hello");
    // The greedy one is itself again, once its own connections are over.
    eventually("the greedy VM's network", || async {
        attempt(&greedy, "say 198.51.100.7:7 hello").await == "hello"
    })
    .await;
}
