//! `--publish`, `agentos ports` and `agentos forward`: servers in a VM, seen from the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use rustix::process::Signal;
use support::{World, eventually, wait_until};

const SERVER: &str = "python3 -u -m http.server --bind 127.0.0.1 3000";

/// Whether a page comes from there.
fn answers(address: &str) -> bool {
    let mut page = String::new();
    let mut ask = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read_to_string(&mut page)?;
        Ok(())
    };
    ask().is_ok() && page.contains("200 OK")
}

/// `agentos: publishing 127.0.0.1:PORT -> port 3000 of the VM`
fn address(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let arrow = words.iter().position(|word| *word == "->").unwrap_or_else(|| panic!("{line}"));
    assert_eq!(words[arrow + 1..], ["port", "3000", "of", "the", "VM"], "{line}");
    words[arrow - 1].to_owned()
}

#[test]
fn a_published_port_is_there_as_long_as_its_command() {
    let world = World::new();
    let mut command = world.command(["exec", "--publish", "0:3000", "--", "sh", "-c", SERVER]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = address(&line);
    eventually("the page is there", || answers(&address));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    child.wait().unwrap();
    eventually("nobody listens", || TcpStream::connect(&address).is_err());
}

#[test]
fn a_kept_vm_keeps_its_ports_and_shows_who_listens() {
    let world = World::new();
    let script = format!("setsid {SERVER} >/dev/null 2>&1 &");
    let kept = world.agentos(["exec", "--keep=box", "--publish", "0:3000", "--", "sh", "-c", &script]);
    let kept = kept.expect(0);
    let published = address(kept.stderr.lines().find(|line| line.contains("publishing")).unwrap());
    eventually("the page is there", || answers(&published));

    let ports = world.agentos(["ports", "--vm", "box", "--json"]).expect(0).json_lines();
    assert_eq!((&ports[0]["port"], &ports[0]["address"]), (&3000.into(), &"127.0.0.1".into()), "{ports:?}");
    assert!(ports[0]["command"].as_str().unwrap().contains("http.server"), "{ports:?}");
    let table = world.agentos(["ports", "--vm", "box"]).expect(0).text();
    assert!(table.starts_with("PORT") && table.contains("http.server"), "{table}");

    let mut forwarding = world.start(["forward", "--vm", "box", "0:3000"]);
    let forwarded = address(&forwarding.line());
    assert!(answers(&forwarded));
    forwarding.signal(Signal::INT);
    forwarding.finish().expect(130);
    assert!(wait_until(|| TcpStream::connect(&forwarded).is_err()));

    let taken = published.rsplit(':').next().unwrap();
    let refused = world.agentos(["forward", "--vm", "box", "0:3000", &format!("{taken}:3000")]).expect(1);
    assert!(
        refused.stderr.contains("EADDRINUSE") && refused.stderr.contains(&published),
        "{}",
        refused.stderr
    );
    let later = world.agentos(["forward", "--vm", "box", "--keep", "0:3000"]).expect(0).text();
    assert!(answers(&address(&later)) && answers(&published), "both stay with the VM");

    world.agentos(["dispose", "box"]).expect(0);
    for address in [published, address(&later)] {
        assert!(TcpStream::connect(&address).is_err(), "{address} outlived its VM");
    }
}

#[test]
fn a_vm_whose_port_cannot_be_published_is_not_kept() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let publish = format!("{port}:3000");
    let refused = world.agentos(["exec", "--keep=box", "--publish", &publish, "--", "true"]).expect(125);
    assert!(refused.stderr.contains("EADDRINUSE"), "{}", refused.stderr);
    assert!(world.agentos(["vms", "--json"]).expect(0).json_lines().is_empty());
    world.agentos(["exec", "--publish", "nowhere", "--", "true"]).expect(2);
    world.agentos(["forward", "--vm", "nobody", "3000"]).expect(1);
}
