//! The launcher and init as the sidecar meets them: real namespaces, real frames, no sidecar.
//!
//! The launcher is the `agentos` binary, found by AGENTOS_SIDECAR or beside the test's own directory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use agentos_guest_protocol::init::{Event, InitMessage, InitRequest, Request, RequestId, Response};
use agentos_guest_protocol::launcher::{
    Base, BootPlan, HostFindings, IdMode, IdRange, LauncherEvent, LauncherRequest, Limits, VmNumber,
};
use agentos_guest_protocol::process::{SpawnRequest, Status, Stdio as GuestStdio};
use agentos_guest_protocol::{Bytes, Encoded, Frame, decode, decode_spilled, encode};
use agentos_linux::seqpacket;

struct Launcher {
    process: Child,
    socket: OwnedFd,
    findings: HostFindings,
}

impl Launcher {
    fn start() -> Self {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let process = Command::new(binary())
            .arg0("agentos-init")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (event, _) = receive(&ours);
        let LauncherEvent::Started(findings) = event else { panic!("{event:?}") };
        Self { process, socket: ours, findings }
    }

    fn boot(&self, number: u64) -> OwnedFd {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let vm = VmNumber(number);
        let request = LauncherRequest::Boot { vm, plan: Box::new(self.plan(number)) };
        send(&self.socket, &request, &[&theirs]);
        drop(theirs);
        let (event, _) = receive::<LauncherEvent>(&self.socket);
        assert!(matches!(event, LauncherEvent::Cloned { .. }), "{event:?}");
        let (message, _) = receive::<InitMessage>(&ours);
        assert!(matches!(message, InitMessage::Ready), "{message:?}");
        ours
    }

    fn plan(&self, number: u64) -> BootPlan {
        let ids = match self.findings.ids {
            IdMode::Range => IdRange::Range { base: 0x7000_0000 + (number as u32) * 65_536 },
            IdMode::Single => IdRange::Single,
        };
        BootPlan {
            ids,
            hostname: "agentos".to_owned(),
            base: Base::Host { host_usr_local: false },
            mounts: Vec::new(),
            limits: Limits {
                cgroup_name: format!("boot-test-{number}"),
                memory_bytes: None,
                cpu_millis: None,
                processes: 100,
                open_files: 1024,
                disk_bytes: 64 << 20,
                disk_inodes: 10_000,
            },
            root: false,
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn binary() -> PathBuf {
    match std::env::var_os("AGENTOS_SIDECAR") {
        Some(path) => path.into(),
        None => {
            let own = std::env::current_exe().unwrap();
            own.parent().unwrap().parent().unwrap().join("agentos")
        }
    }
}

fn send<T: serde::Serialize>(socket: &OwnedFd, message: &T, descriptors: &[&OwnedFd]) {
    let Encoded::Whole(packet) = encode(message).unwrap() else { panic!("too long") };
    let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    seqpacket::send(socket.as_fd(), &packet, &descriptors).unwrap();
}

fn receive<T: serde::de::DeserializeOwned>(socket: &OwnedFd) -> (T, Vec<OwnedFd>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut received = seqpacket::receive(socket.as_fd(), &mut buffer).unwrap();
    assert!(received.len > 0, "hung up");
    let message = match decode(&buffer[..received.len]).unwrap() {
        Frame::Whole(message) => message,
        Frame::Spilled { len } => {
            let body = received.descriptors.pop().unwrap();
            decode_spilled(&seqpacket::read_sealed(body.as_fd(), len).unwrap()).unwrap()
        }
    };
    (message, received.descriptors)
}

/// Runs a command line and returns its output and how it ended.
fn run(init: &OwnedFd, command: &str, supervised: bool) -> (String, Status) {
    let bytes = |text: &str| Bytes::from(text.as_bytes().to_vec());
    let request = SpawnRequest {
        argv: ["sh", "-c", command].map(bytes).to_vec(),
        env: vec![bytes("PATH=/usr/bin:/bin"), bytes("HOME=/home/user")],
        cwd: bytes("/home/user"),
        stdio: GuestStdio::Pipes { stdin: false },
        supervised,
    };
    send(init, &InitRequest { id: RequestId(1), request: Request::Spawn(request) }, &[]);
    let (message, descriptors) = receive::<InitMessage>(init);
    let InitMessage::Response { response: Ok(Response::Spawned { .. }), .. } = message else {
        panic!("{message:?}")
    };
    let mut output = String::new();
    for descriptor in descriptors {
        std::io::Read::read_to_string(&mut std::fs::File::from(descriptor), &mut output).unwrap();
    }
    let (message, _) = receive::<InitMessage>(init);
    assert!(matches!(message, InitMessage::Event(Event::ExecDone { result: Ok(()), .. })), "{message:?}");
    let (message, _) = receive::<InitMessage>(init);
    let InitMessage::Event(Event::Exited { status, .. }) = message else { panic!("{message:?}") };
    (output, status)
}

#[test]
fn a_vm_runs_a_program_as_its_own_user() {
    let launcher = Launcher::start();
    let init = launcher.boot(1);
    let (output, status) = run(&init, "id -u; pwd; hostname; echo $$; ls /sys | wc -l; exit 3", false);
    assert_eq!((output.as_str(), status), ("1000\n/home/user\nagentos\n2\n0\n", Status::Exited(3)));
}

#[test]
fn a_supervised_program_takes_its_daemons_with_it() {
    let launcher = Launcher::start();
    let init = launcher.boot(2);
    let (_, status) = run(&init, "setsid sleep 1000 >/dev/null 2>&1 & kill -TERM $$", true);
    assert_eq!(status, Status::Signaled(15));
    let (output, _) = run(&init, "grep -l sleep /proc/[0-9]*/comm | wc -l", false);
    assert_eq!(output, "0\n");
}

/// It may leave its session, its group and its parent everywhere, and where a VM has one id it may kill whatever init
/// would set over it.
#[test]
fn nothing_that_a_supervised_program_does_hides_its_daemons() {
    let launcher = Launcher::start();
    let init = launcher.boot(4);
    run(&init, "sleep 1000 >/dev/null 2>&1 &", false);
    let sleeps = "cat /proc/[0-9]*/comm | grep -c sleep";
    let hide = format!(
        "(setsid setsid sleep 1000 >/dev/null 2>&1 &); until [ $({sleeps}) = 2 ]; do :; done; \
         kill -KILL $PPID 2>/dev/null; kill -KILL $$"
    );
    assert_eq!(run(&init, &hide, true).1, Status::Signaled(9));
    // The other one is nobody's session.
    assert_eq!(run(&init, sleeps, false).0, "1\n");
}

#[test]
fn shutdown_ends_what_ignores_sigterm_and_then_the_vm() {
    let launcher = Launcher::start();
    let init = launcher.boot(3);
    run(&init, "trap '' TERM; sleep 1000 >/dev/null 2>&1 &", false);
    send(&init, &InitRequest { id: RequestId(9), request: Request::Shutdown { grace_ms: 10 } }, &[]);
    let (message, _) = receive::<InitMessage>(&init);
    assert!(matches!(message, InitMessage::Response { response: Ok(Response::Done), .. }), "{message:?}");
    let (event, _) = receive::<LauncherEvent>(&launcher.socket);
    assert!(matches!(event, LauncherEvent::Exited { status: Status::Exited(0), .. }), "{event:?}");
}

#[test]
fn vms_killed_at_any_moment_of_their_boot_leave_the_launcher_and_the_others_alone() {
    let launcher = Launcher::start();
    let sentinel = launcher.boot(100);
    for number in 101..140 {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let vm = VmNumber(number);
        let request = LauncherRequest::Boot { vm, plan: Box::new(launcher.plan(number)) };
        send(&launcher.socket, &request, &[&theirs]);
        drop(theirs);
        // Some are killed before they are cloned to the end, some on their way, some when they are ready.
        if number % 3 == 0 {
            let _ = receive::<InitMessage>(&ours);
        }
        send(&launcher.socket, &LauncherRequest::Kill { vm }, &[]);
        let (event, _) = receive::<LauncherEvent>(&launcher.socket);
        assert!(matches!(event, LauncherEvent::Cloned { .. }), "{event:?}");
        let (event, _) = receive::<LauncherEvent>(&launcher.socket);
        let LauncherEvent::Exited { vm: ended, status } = event else { panic!("{event:?}") };
        assert_eq!((ended, status), (vm, Status::Signaled(9)));
    }
    assert_eq!(run(&sentinel, "echo well", false).0, "well\n");
}
