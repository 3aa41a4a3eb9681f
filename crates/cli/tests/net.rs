//! `agentos net`, and the flags that say what a VM's network may do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;

use rustix::process::Signal;
use serde_json::Value;
use support::World;

/// Nobody has it: it is for examples (RFC 5737).
const NOWHERE: &str = "203.0.113.7";

/// A world in which VMs have a network. None where they have none, which is recorded.
fn world() -> Option<World> {
    let world = World::new();
    if world.vms_have_a_network() {
        return Some(world);
    }
    // The harness names the thread after the test.
    let thread = std::thread::current();
    support::skip(thread.name().unwrap(), "VMs have a loopback only");
    None
}

/// A connection attempt of Python's, which says how it failed.
fn connect(address: &str, port: u16) -> String {
    format!(
        "import socket\ntry:\n  socket.create_connection(('{address}', {port}), 20)\n  print('connected')\n\
         except OSError as error:\n  print(error)"
    )
}

/// A server of the host that says this to everybody, and the port it is at.
fn greeter(greeting: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        // Kept, so that nobody is hung up on.
        let mut guests = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // A guest that has gone already is none of the server's business.
            let _ = stream.write_all(greeting);
            guests.push(stream);
        }
    });
    port
}

#[test]
fn a_refusal_is_told_with_its_time_its_rule_and_its_process() {
    let Some(world) = world() else { return };
    let policy = world.path("policy.toml");
    std::fs::write(&policy, format!("base = \"public\"\n[[rule]]\ndeny = \"{NOWHERE}\"\n")).unwrap();
    let script = connect(NOWHERE, 443);
    let arguments = ["exec", "--keep=box", "--net", policy.to_str().unwrap(), "--", "python3", "-c", &script];
    let said = world.agentos(arguments).expect(0).text();
    assert!(said.contains("No route to host"), "{said}");

    let log = world.agentos(["net", "log", "--vm", "box"]).expect(0).text();
    let (time, event) = log.trim_end().split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.contains('T') && time.ends_with('Z') && time.len() == 24, "{log}");
    assert!(event.starts_with("refused tcp 203.0.113.7:443: rule 1 denies it (deny 203.0.113.7"), "{log}");
    assert!(event.contains(", by python3 -c"), "{log}");

    let events = world.agentos(["net", "log", "--vm", "box", "--json"]).expect(0).json_lines();
    assert_eq!(events.len(), 1, "{events:?}");
    let (event, detail) = (&events[0], &events[0]["detail"]);
    assert_eq!((&event["event"], &detail["destination"]), (&"refused".into(), &"203.0.113.7:443".into()));
    assert!(event["at_ms"].as_u64().unwrap() > 1_700_000_000_000, "{event}");
    assert!(detail["pid"].is_u64() && detail["command"].as_str().unwrap().contains("python3"), "{event}");
}

#[test]
fn a_log_that_is_followed_goes_on_until_it_is_interrupted_or_the_vm_ends() {
    let Some(world) = world() else { return };
    let script = connect(NOWHERE, 1);
    world.agentos(["exec", "--keep=box", "--net", "none", "--", "python3", "-c", &script]).expect(0);
    let mut following = world.start(["net", "log", "--vm", "box", "--follow", "--json"]);
    let destination = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["detail"]["destination"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
    };
    assert_eq!(destination(&following.line()), "203.0.113.7:1", "the past");
    world.agentos(["exec", "--vm", "box", "--", "python3", "-c", &connect(NOWHERE, 2)]).expect(0);
    assert_eq!(destination(&following.line()), "203.0.113.7:2", "what happens");
    following.signal(Signal::INT);
    following.finish().expect(130);

    let mut following = world.start(["net", "log", "--vm", "box", "--follow"]);
    assert!(following.line().contains("203.0.113.7:1"));
    world.agentos(["dispose", "box"]).expect(0);
    let ended = following.finish();
    assert!(ended.stderr.starts_with("agentos: "), "how the VM ended: {}", ended.stderr);
    world.agentos(["net", "log", "--vm", "box"]).expect(1);
}

#[test]
fn a_port_of_the_host_is_reached_and_counted() {
    let Some(world) = world() else { return };
    let port = greeter(b"hello from the host");
    let script = format!(
        "import socket\nfor host in ['127.0.0.1', 'host.agentos.internal']:\n  \
         print(socket.create_connection((host, {port}), 20).recv(19).decode())"
    );
    let exempt = port.to_string();
    let arguments = ["exec", "--keep=box", "--net", "none", "--loopback-exempt-port", &exempt];
    let said = world.agentos([&arguments[..], &["--", "python3", "-c", &script]].concat()).expect(0).text();
    assert_eq!(said, "hello from the host\nhello from the host\n");
    // The control: another VM has not been told of the port.
    let said = world.agentos(["exec", "--net", "none", "--", "python3", "-c", &script]);
    assert!(said.code == Some(1) && said.text().is_empty(), "{}", said.text());

    let stats = &world.agentos(["net", "stats", "--vm", "box", "--json"]).expect(0).json_lines()[0];
    assert_eq!((&stats["connections"], &stats["received_bytes"]), (&1.into(), &19.into()), "{stats}");
    assert_eq!(stats["destinations"][0]["address"], "10.0.2.2", "{stats}");
    let table = world.agentos(["net", "stats", "--vm", "box"]).expect(0).text();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("ADDRESS") && lines[0].ends_with("RECEIVED"), "{table}");
    assert!(lines[1].starts_with("10.0.2.2") && lines[1].ends_with("19"), "{table}");
    let counts = lines.last().unwrap();
    assert!(counts.starts_with("1 connections, ") && counts.contains(" 0 refused, "), "{table}");
}

#[test]
fn a_policy_is_replaced_and_what_it_no_longer_allows_is_cut() {
    let Some(world) = world() else { return };
    world.agentos(["exec", "--keep=box", "--net", "none", "--", "true"]).expect(0);
    let script = connect(NOWHERE, 443);
    let tried = || {
        world.agentos(["exec", "--vm", "box", "--", "python3", "-c", &script]).expect(0);
        let events = world.agentos(["net", "log", "--vm", "box", "--json"]).expect(0).json_lines();
        events.last().unwrap()["detail"]["reason"].as_str().unwrap().to_owned()
    };
    assert!(tried().contains("no rule allows it"));
    world.agentos(["net", "set", "--vm", "box", "--net", "none", "--allow", "a.example"]).expect(0);
    assert!(tried().contains("the policy is by name"));
    // By itself it would read like an addition, and take away the rest.
    let alone = world.agentos(["net", "set", "--vm", "box", "--allow", "a.example"]).expect(2);
    assert!(alone.stderr.contains("--net"), "{}", alone.stderr);
    world.agentos(["net", "set", "--vm", "box", "--net", "no-such-policy.toml"]).expect(2);
    world.agentos(["net", "set", "--vm", "nobody", "--net", "none"]).expect(1);
    // A limit belongs to the VM, not to its policy.
    world.agentos(["net", "set", "--vm", "box", "--net", "none", "--connections-limit", "1"]).expect(2);
    assert!(tried().contains("the policy is by name"), "what was wrong changed nothing");
}

#[test]
fn a_limit_of_connections_is_kept() {
    let Some(world) = world() else { return };
    let port = greeter(b"x");
    let script = format!(
        "import socket\nat = ('host.agentos.internal', {port})\nfirst = socket.create_connection(at, 20)\n\
         first.recv(1)\ntry:\n  socket.create_connection(at, 20).recv(1)\n  print('two')\n\
         except OSError:\n  print('one')"
    );
    let exempt = port.to_string();
    for (limit, expected) in [("2", "two\n"), ("1", "one\n")] {
        let arguments =
            ["exec", "--net", "none", "--loopback-exempt-port", &exempt, "--connections-limit", limit];
        let said = world.agentos([&arguments[..], &["--", "python3", "-c", &script]].concat());
        assert_eq!(said.expect(0).text(), expected);
    }
}

#[test]
fn a_limit_of_bandwidth_is_kept() {
    let Some(world) = world() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let started = std::time::Instant::now();
    let server = std::thread::spawn(move || {
        let (mut stream, mut received) = (listener.accept().unwrap().0, Vec::new());
        stream.read_to_end(&mut received).unwrap();
        (received.len(), started.elapsed())
    });
    // Three times what goes in a second. The VM goes when its command has ended, which waits for the server's end.
    let script = format!(
        "import socket\nstream = socket.create_connection(('host.agentos.internal', {port}), 20)\n\
         stream.sendall(bytes(3 << 20))\nstream.shutdown(socket.SHUT_WR)\nassert stream.recv(1) == b''"
    );
    let arguments = ["exec", "--net", "none", "--loopback-exempt-port", &port, "--bandwidth-limit", "1m"];
    world.agentos([&arguments[..], &["--", "python3", "-c", &script]].concat()).expect(0);
    let (received, took) = server.join().unwrap();
    assert_eq!(received, 3 << 20);
    assert!(took.as_secs_f64() > 2.0, "{took:?}");
}
