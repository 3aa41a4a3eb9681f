//! A network for one test: a machine, on which the sidecar runs, and hosts around it. All are network namespaces, so
//! that tests run beside each other with the same addresses, and the host's own network doesn't change.
//!
//! ```text
//!   machine 192.0.2.10 ──┬── names     198.51.100.53
//!   (sidecar, VMs)       ├── web       198.51.100.80 …    whatever hosts the test adds
//!                        └── internal  10.9.0.5 …
//! ```
//!
//! All servers are written in the test: the `lab` example of the linux crate makes their sockets in the namespaces and
//! passes them out. [`capture`] is the witness of what leaves the machine.

pub(crate) mod capture;
pub(crate) mod certificates;
pub(crate) mod echo;
pub(crate) mod guest;
pub(crate) mod names;
pub(crate) mod web;
mod websocket;

use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketFlags, SocketType,
};
use tokio::net::{TcpListener, UdpSocket};

use self::capture::Capture;
use self::names::Names;
use crate::support::within;
use crate::support::world::World;

/// The machine's own addresses: all look public, so that who reaches one has reached what is the host's own. The second
/// is in the first one's network, so the kernel never chooses it as a source.
pub(crate) const MACHINE: [&str; 3] = ["192.0.2.10", "192.0.2.11", "2a00:db8:1::10"];

/// The server of names in the machine's /etc/resolv.conf.
pub(crate) const NAME_SERVER: &str = "198.51.100.53";

pub(crate) struct Lab {
    /// Held over a request and its answer.
    control: Mutex<OwnedFd>,
    process: Child,
    namespace: String,
    directory: tempfile::TempDir,
}

impl Lab {
    /// None where the test can't run, which is recorded.
    pub(crate) fn new() -> Option<Self> {
        let lacks = if !rustix::process::geteuid().is_root() {
            "only root makes network namespaces with devices between them"
        } else if !Path::new("/dev/net/tun").exists() {
            "without /dev/net/tun a VM has a loopback only"
        } else {
            return Some(Self::start());
        };
        skip(lacks);
        None
    }

    fn start() -> Self {
        let flags = SocketFlags::CLOEXEC;
        let (control, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let process =
            std::process::Command::new(program()).arg("serve").stdin(Stdio::from(theirs)).spawn().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let resolv_conf = format!("nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n");
        std::fs::write(directory.path().join("resolv.conf"), resolv_conf).unwrap();
        let mut lab = Self { control: Mutex::new(control), process, namespace: String::new(), directory };
        lab.namespace = lab.ask(&format!("machine {}/24 {}/24 {}", MACHINE[0], MACHINE[1], MACHINE[2])).0;
        lab
    }

    /// A sidecar on the machine.
    pub(crate) async fn world(&self) -> World {
        World::started_by(&self.enter()).await
    }

    /// A sidecar on the machine, with these variables in its environment.
    pub(crate) async fn world_with(&self, variables: &[(&str, &Path)]) -> World {
        let set: String =
            variables.iter().map(|(name, value)| format!(" {name}='{}'", value.display())).collect();
        World::started_by(&format!("{} env{set}", self.enter())).await
    }

    /// The server of names that the machine asks, with no name in it.
    pub(crate) fn names(&self) -> Names {
        self.names_at("names", NAME_SERVER)
    }

    /// Another server of names, on a host of its own.
    pub(crate) fn names_at(&self, host: &str, address: &str) -> Names {
        self.host(host, &[address]);
        let address = format!("{address}:53");
        Names::serve(self.udp(host, &address), self.tcp(host, &address))
    }

    /// A host behind a device of its own. It answers echo requests, and refuses connections to where nobody listens.
    pub(crate) fn host(&self, name: &str, addresses: &[&str]) {
        self.ask(&format!("host {name} {}", addresses.join(" ")));
    }

    /// A listener on a host, or on the `machine`.
    pub(crate) fn tcp(&self, host: &str, address: &str) -> TcpListener {
        let (_, socket) = self.ask(&format!("tcp {host} {address}"));
        TcpListener::from_std(socket.unwrap().into()).unwrap()
    }

    pub(crate) fn udp(&self, host: &str, address: &str) -> UdpSocket {
        let (_, socket) = self.ask(&format!("udp {host} {address}"));
        UdpSocket::from_std(socket.unwrap().into()).unwrap()
    }

    /// Sees all that comes and goes on the machine, from now on.
    pub(crate) fn capture(&self) -> Capture<'_> {
        let (_, socket) = self.ask("capture");
        Capture::new(self, socket.unwrap())
    }

    /// Packets that the capture missed. A witness that has missed something is none.
    pub(crate) fn missed_by_capture(&self) -> String {
        self.ask("missed").0
    }

    /// The control of what a VM attempts: the same on the machine, outside of any VM. What it printed, the errors too.
    pub(crate) async fn outside(&self, command: &str) -> String {
        let line = format!("exec {} /bin/sh -c \"$0\" 2>&1", self.enter());
        let mut shell = tokio::process::Command::new("/bin/sh");
        // A VM has nothing of what whoever runs the tests has set for the ways to a registry.
        let path = std::env::var_os("PATH").unwrap_or_default();
        shell.env_clear().env("PATH", path).env("HOME", self.directory.path());
        let running = shell.args(["-c", &line, command]).stdin(Stdio::null()).output();
        let output = within(command, running).await.unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// The control of an attempt.
    pub(crate) async fn attempt_outside(&self, words: &str) -> String {
        self.outside(&format!("'{}' {words}", probe().display())).await
    }

    /// By its path in /proc, which is there for as long as the lab is.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A file of the test, by its path on the host.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn enter(&self) -> String {
        let resolv_conf = self.directory.path().join("resolv.conf");
        format!("'{}' enter {} '{}'", program().display(), self.namespace, resolv_conf.display())
    }

    /// Answered within microseconds, so the test's other tasks can wait.
    fn ask(&self, request: &str) -> (String, Option<OwnedFd>) {
        let control = self.control.lock().unwrap();
        let request_bytes = [IoSlice::new(request.as_bytes())];
        let mut nothing = SendAncillaryBuffer::default();
        rustix::net::sendmsg(&*control, &request_bytes, &mut nothing, SendFlags::NOSIGNAL).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut received = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 1024];
        let message = rustix::net::recvmsg(
            &*control,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut received,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        let answer = String::from_utf8_lossy(&buffer[..message.bytes]).into_owned();
        assert!(!answer.is_empty() && !answer.starts_with("error: "), "{request}: {answer}");
        let socket = received.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        (answer, socket)
    }
}

impl Drop for Lab {
    /// It ends when the test has hung up; waiting here leaves no zombie.
    fn drop(&mut self) {
        if let Ok(control) = self.control.get_mut() {
            let _ = rustix::net::shutdown(&*control, rustix::net::Shutdown::Both);
        }
        let _ = self.process.wait();
    }
}

/// The program that makes attempts, in VMs and outside.
pub(crate) fn probe() -> PathBuf {
    built("AGENTOS_TEST_PROBE", "attempt")
}

fn program() -> PathBuf {
    built("AGENTOS_TEST_LAB", "lab")
}

/// A tool of the tests, as `cargo xtask test` names it, or beside the test's own directory, where cargo builds it.
fn built(variable: &str, example: &str) -> PathBuf {
    let beside = || {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().parent().unwrap().join("examples").join(example)
    };
    let path = std::env::var_os(variable).map_or_else(beside, PathBuf::from);
    assert!(path.is_file(), "these tests need {path:?}: cargo build -p agentos-linux --example {example}");
    path
}

/// Records that the test that calls can't run here. Its name is its thread's.
fn skip(reason: &str) {
    let Some(file) = std::env::var_os("AGENTOS_TEST_SKIPS") else { return };
    let thread = std::thread::current();
    let test = thread.name().unwrap();
    let line = format!("{{\"test\":\"{test}\",\"reason\":\"{reason}\"}}\n");
    let mut file = std::fs::File::options().append(true).create(true).open(file).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}
