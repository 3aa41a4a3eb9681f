//! Networks for the tests of the VMs' network: a machine of its own and hosts around it, each a network namespace.
//!
//! ```text
//!              ┌──────────── lab ────────────┐
//!   test ──────┤ stdin: requests, answers    │
//!              └─────────────────────────────┘
//!   machine: lo, to1, to2 …         host 1: eth0 ── its addresses
//!   (sidecar, its VMs, captures)    host 2: eth0 ── its addresses
//! ```
//!
//! `lab` alone serves requests over the seqpacket socket that is its standard input: it makes hosts, and makes sockets
//! inside of the namespaces, whose descriptors it passes to the test. All servers are thus written in the test, and
//! nothing of them stands in the namespace that the test runs in: neither an address nor a route of the host changes.
//! The namespaces, and the pairs of devices between them, are gone when the test's socket and the last process in them
//! are.
//!
//! `lab enter NAMESPACE RESOLV_CONF PROGRAM [ARGUMENT]...` runs a program on the machine, with that file in the place of
//! /etc/resolv.conf. That is how the sidecar gets there, and the controls of the tests.
//!
//! Requests are words, answers are `ok`, what was asked for, or `error: ` and why:
//!
//! | request | answer |
//! |---|---|
//! | `machine ADDRESS[/PREFIX]...` | the namespace's path, for `enter` |
//! | `host NAME ADDRESS[/PREFIX]...` | makes a host, reachable from the machine's addresses |
//! | `tcp NAME ADDRESS:PORT` | a listening socket on a host, or on `machine` |
//! | `udp NAME ADDRESS:PORT` | a bound socket |
//! | `capture` | a packet socket that sees every packet of the machine, headers of the link cut off |
//! | `missed` | how many packets the last capture had no room for |

mod namespace;
mod netlink;
mod sockets;

use std::fmt;
use std::net::{AddrParseError, IpAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use agentos_linux::seqpacket;
use rustix::io::Errno;

use crate::namespace::Namespace;

/// Requests name addresses, of which a packet holds more than any test needs.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// How many connections may wait to be accepted; a test of a thousand connections makes them all at once.
const BACKLOG: i32 = 4_096;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["enter", path, resolv_conf, program, arguments @ ..] => {
            let failure = namespace::run_in(path, resolv_conf, program, arguments);
            // The test reads what the program prints; this is in its place.
            let _ = rustix::io::write(rustix::stdio::stderr(), format!("lab: {failure}\n").as_bytes());
            ExitCode::FAILURE
        }
        ["serve"] => {
            serve();
            ExitCode::SUCCESS
        }
        _ => ExitCode::SUCCESS,
    }
}

/// What went wrong, by step.
#[derive(Debug)]
enum Failure {
    Step(&'static str, Errno),
    Io(&'static str, std::io::Error),
    Unknown,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step, errno) => write!(f, "{step}: {errno}"),
            Self::Io(step, error) => write!(f, "{step}: {error}"),
            Self::Unknown => f.write_str("no such request, host or address"),
        }
    }
}

impl From<AddrParseError> for Failure {
    fn from(_: AddrParseError) -> Self {
        Self::Unknown
    }
}

/// An answer in words, and a descriptor beside it.
type Answer = (String, Option<OwnedFd>);

/// One machine and its hosts.
#[derive(Default)]
struct Lab {
    machine: Option<Namespace>,
    addresses: Vec<Address>,
    hosts: Vec<(String, Namespace)>,
    capture: Option<OwnedFd>,
}

/// Until the test hangs up.
fn serve() {
    let mut lab = Lab::default();
    let mut buffer = vec![0; MAX_REQUEST_BYTES];
    while let Ok(received) = seqpacket::receive(rustix::stdio::stdin(), &mut buffer) {
        let request = String::from_utf8_lossy(&buffer[..received.len]).into_owned();
        let words: Vec<&str> = request.split(' ').collect();
        let (answer, socket) = match received.len {
            0 => return,
            _ => lab.answer(&words).unwrap_or_else(|failure| (format!("error: {failure}"), None)),
        };
        let sockets: Vec<_> = socket.iter().map(OwnedFd::as_fd).collect();
        if seqpacket::send(rustix::stdio::stdin(), answer.as_bytes(), &sockets).is_err() {
            return;
        }
    }
}

impl Lab {
    fn answer(&mut self, words: &[&str]) -> Result<Answer, Failure> {
        let socket = match *words {
            ["machine", ref addresses @ ..] => return self.make_machine(addresses),
            ["host", name, ref addresses @ ..] => {
                self.add_host(name, addresses)?;
                None
            }
            ["tcp", name, address] => {
                Some(sockets::listen(self.namespace(name)?, address.parse()?, BACKLOG)?)
            }
            ["udp", name, address] => Some(sockets::bind(self.namespace(name)?, address.parse()?)?),
            ["capture"] => {
                let socket = sockets::capture(self.namespace("machine")?)?;
                self.capture =
                    Some(socket.try_clone().map_err(|error| Failure::Io("duplicate a socket", error))?);
                Some(socket)
            }
            ["missed"] => {
                let capture = self.capture.as_ref().ok_or(Failure::Unknown)?;
                return Ok((sockets::missed(capture.as_fd())?.to_string(), None));
            }
            _ => return Err(Failure::Unknown),
        };
        Ok(("ok".to_owned(), socket))
    }

    fn make_machine(&mut self, addresses: &[&str]) -> Result<Answer, Failure> {
        self.addresses = parse(addresses)?;
        let machine = self.machine.insert(Namespace::new()?);
        machine.enter()?;
        netlink::Socket::open()?.bring_up("lo")?;
        machine.allow_ping();
        Ok((machine.path(), None))
    }

    /// A pair of devices with one end in each namespace, and on each end the addresses and a route to every one of the
    /// other's. Neither knows a route to anything else.
    fn add_host(&mut self, name: &str, addresses: &[&str]) -> Result<(), Failure> {
        let addresses = parse(addresses)?;
        let machine = self.machine.as_ref().ok_or(Failure::Unknown)?;
        let host = Namespace::new()?;
        let device = format!("to{}", self.hosts.len() + 1);
        machine.enter()?;
        let mut netlink = netlink::Socket::open()?;
        netlink.add_pair(&device, "eth0", host.descriptor())?;
        furnish(&mut netlink, &device, &self.addresses, &addresses)?;
        host.enter()?;
        let mut netlink = netlink::Socket::open()?;
        netlink.bring_up("lo")?;
        furnish(&mut netlink, "eth0", &addresses, &self.addresses)?;
        self.hosts.push((name.to_owned(), host));
        Ok(())
    }

    fn namespace(&self, name: &str) -> Result<&Namespace, Failure> {
        if name == "machine" {
            return self.machine.as_ref().ok_or(Failure::Unknown);
        }
        let host = self.hosts.iter().find(|(known, _)| known == name);
        host.map(|(_, namespace)| namespace).ok_or(Failure::Unknown)
    }
}

/// An address, and how many of its bits name the network around it.
#[derive(Clone, Copy)]
struct Address {
    ip: IpAddr,
    prefix: u8,
}

/// Without a prefix an address is alone.
fn parse(words: &[&str]) -> Result<Vec<Address>, Failure> {
    let one = |word: &&str| {
        let (ip, prefix) = word.split_once('/').map_or((*word, None), |(ip, prefix)| (ip, Some(prefix)));
        let ip: IpAddr = ip.parse()?;
        let alone = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(alone), |prefix| prefix.parse().ok()).ok_or(Failure::Unknown)?;
        Ok(Address { ip, prefix })
    };
    words.iter().map(one).collect()
}

/// One end of a pair: its own addresses, and the other end's behind it. What is sent comes from the first of its own
/// of that family.
fn furnish(
    netlink: &mut netlink::Socket,
    device: &str,
    own: &[Address],
    others: &[Address],
) -> Result<(), Failure> {
    let index = netlink.index_of(device)?;
    for address in own {
        netlink.add_address(index, *address)?;
    }
    netlink.bring_up(device)?;
    for other in others {
        if let Some(source) = own.iter().find(|source| source.ip.is_ipv4() == other.ip.is_ipv4()) {
            netlink.add_route(index, other.ip, source.ip)?;
        }
    }
    Ok(())
}
