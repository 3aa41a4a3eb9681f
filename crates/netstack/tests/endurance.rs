//! What many connections leave behind: nothing. Alone in its program, so that what it counts is its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper fails its test by panicking"
)]

#[allow(dead_code, reason = "other tests use the rest")]
mod guest;

use std::net::Ipv4Addr;
use std::sync::Arc;

use agentos_netstack::policy::{Action, Base, EgressPolicy, Rule, Target};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use guest::{Guest, Parts, World, soon};

const CONNECTIONS: usize = 10_000;
/// Those after which memory has its size.
const FIRST: usize = 1_000;
/// A connection has buffers of 512 KiB: were but one in a hundred kept, that would be 45 MiB.
const MAX_GROWTH_BYTES: usize = 16 << 20;
const SOCKETS: usize = 64;
/// The test's reader, the stack, and the two that it watches: its flows, and the count of what repeats itself.
const OWN_TASKS: usize = 4;

fn to_loopback() -> EgressPolicy {
    let target = Target::Network("127.0.0.1/32".parse().unwrap());
    let rule = Rule { action: Action::Allow, target, ports: None, protocol: None, private: false };
    EgressPolicy::new(Base::None, vec![rule])
}

/// Anonymous memory of this process.
fn memory_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A connection that a host closes, one that the guest breaks off, and one that nobody takes.
async fn one(world: &World, listener: &TcpListener, number: usize) {
    let mut guest = Guest::connect(world, listener.local_addr().unwrap());
    let (mut host, _) = soon(listener.accept()).await.unwrap();
    guest.send(b"x").await;
    if number.is_multiple_of(2) {
        host.write_all(b"answer").await.unwrap();
        drop(host);
        guest.read_to_end().await;
        guest.close().await;
    } else {
        guest.abort().await;
    }
}

#[tokio::test]
async fn ten_thousand_connections_one_after_the_other_leave_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let sockets = Arc::new(Semaphore::new(SOCKETS));
    let world = World::made_with(Parts::new(to_loopback()), |options| {
        options.sockets = Arc::clone(&sockets);
    });
    let metrics = tokio::runtime::Handle::current().metrics();
    // The stack's own tasks have begun when a connection has been carried.
    one(&world, &listener, 1).await;
    world.until(|_| sockets.available_permits() == SOCKETS && metrics.num_alive_tasks() <= OWN_TASKS).await;
    let (tasks, open) = (metrics.num_alive_tasks(), descriptors());
    let mut memory = 0;
    for number in 0..CONNECTIONS {
        if number == FIRST {
            memory = memory_bytes();
        }
        one(&world, &listener, number).await;
    }
    world.until(|stats| stats.open_connections == 0).await;
    let given_back = || sockets.available_permits() == SOCKETS && metrics.num_alive_tasks() == tasks;
    world.until(|_| given_back() && descriptors() == open).await;
    let grown = memory_bytes().saturating_sub(memory);
    assert!(grown < MAX_GROWTH_BYTES, "{grown} bytes more than after {FIRST} connections");
    assert_eq!(world.stack.stats().connections, CONNECTIONS as u64 + 1);
}
