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
    Base, BootPlan, HostFindings, IdMode, IdRange, LauncherEvent, LauncherRequest, Limits, PlannedMount,
    PlannedMountKind, VmNumber,
};
use agentos_guest_protocol::mount::HostDir;
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
        let mut command = Command::new(binary());
        command.arg0("agentos-init").env_clear();
        Self::start_by(command)
    }

    fn start_by(mut command: Command) -> Self {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let process = command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn().unwrap();
        drop(command);
        let (event, _) = receive(&ours);
        let LauncherEvent::Started(findings) = event else { panic!("{event:?}") };
        Self { process, socket: ours, findings }
    }

    fn boot(&self, number: u64) -> OwnedFd {
        let ours = self.clone_vm(number, self.plan(number));
        let (message, _) = receive::<InitMessage>(&ours);
        assert!(matches!(message, InitMessage::Ready), "{message:?}");
        ours
    }

    fn clone_vm(&self, number: u64, plan: BootPlan) -> OwnedFd {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let request = LauncherRequest::Boot { vm: VmNumber(number), plan: Box::new(plan) };
        send(&self.socket, &request, &[&theirs]);
        let (event, _) = receive::<LauncherEvent>(&self.socket);
        assert!(matches!(event, LauncherEvent::Cloned { .. }), "{event:?}");
        ours
    }

    /// Processes that the launcher has made and not reaped.
    fn children(&self) -> usize {
        let parent = format!("PPid:\t{}\n", self.process.id());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let status = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("status")).ok();
        processes.filter_map(status).filter(|status| status.contains(&parent)).count()
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
            storage: None,
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
            uplink: None,
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
    // 2 is a thread of init's.
    assert_eq!((output.as_str(), status), ("1000\n/home/user\nagentos\n3\n0\n", Status::Exited(3)));
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

/// Pending signals, bytes of message queues, inotify instances and watches are counted for a user of the host. Where VMs
/// have ids of their own, so are their budgets.
#[test]
fn a_vm_that_shares_its_user_has_a_part_of_the_user_s_budgets() {
    let launcher = Launcher::start();
    let init = launcher.boot(5);
    let shares = if launcher.findings.ids == IdMode::Single { 4 } else { 1 };
    let whole = |resource| rustix::process::getrlimit(resource).maximum.unwrap();
    let host = |name: &str| -> u64 {
        std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).unwrap().trim().parse().unwrap()
    };
    let command = "sed -En 's/Max (pending|msgqueue)[a-z ]*([0-9]+).*/\\2/p' /proc/self/limits";
    let limits = [rustix::process::Resource::Sigpending, rustix::process::Resource::Msgqueue];
    let expected: String = limits.map(|limit| format!("{}\n", whole(limit) / shares)).concat();
    assert_eq!(run(&init, command, false).0, expected);
    let command = "cat /proc/sys/user/max_inotify_instances /proc/sys/user/max_inotify_watches";
    let shown = run(&init, command, false).0;
    let shown: Vec<u64> = shown.lines().map(|line| line.parse().unwrap()).collect();
    if launcher.findings.ids == IdMode::Single {
        assert_eq!(shown, [host("max_user_instances") / shares, host("max_user_watches") / shares]);
    } else {
        assert!(shown[0] >= host("max_user_instances"), "{shown:?}");
    }
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

/// A launcher that sees a file system at `place` whose server never says a word.
fn launcher_beside_a_dead_server(place: &std::path::Path) -> Launcher {
    let script = "exec 9<>/dev/fuse && mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 dead \"$1\" && \
                  exec -a agentos-init \"$2\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", script, "bash"]).arg(place).arg(binary());
    Launcher::start_by(command)
}

#[test]
fn a_host_directory_that_does_not_answer_fails_alone_and_by_name() {
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        return skip(
            "a_host_directory_that_does_not_answer_fails_alone_and_by_name",
            "mounting a file system whose server is silent takes root and /dev/fuse",
        );
    }
    let place = tempfile::tempdir().unwrap();
    let launcher = launcher_beside_a_dead_server(place.path());
    let source = place.path().join("project").into_os_string().into_encoded_bytes();
    let source = Bytes::from(source);
    let dead = HostDir { source: source.clone(), file: false, read_only: true, allow_sockets: false };
    let bystander = launcher.boot(1);
    let mut plan = launcher.plan(2);
    let target = Bytes::from(b"/work".to_vec());
    plan.mounts.push(PlannedMount { target, kind: PlannedMountKind::HostDir(dead.clone()) });
    let _waiting = launcher.clone_vm(2, plan);
    let mut plan = launcher.plan(3);
    plan.base = Base::Directory { path: source.clone() };
    let _waiting_too = launcher.clone_vm(3, plan);
    let live = LauncherRequest::OpenHostDir { vm: VmNumber(1), token: 7, host_dir: dead };
    send(&launcher.socket, &live, &[]);

    // Nobody else waits.
    assert_eq!(run(&launcher.boot(4), "echo well", false).0, "well\n");

    let mut failed = Vec::new();
    while failed.len() < 3 {
        match receive::<LauncherEvent>(&launcher.socket).0 {
            LauncherEvent::BootFailed { vm, failure } => failed.push((vm.0, failure)),
            LauncherEvent::HostDirFailed { token, failure } => failed.push((u64::from(token), failure)),
            // The fourth VM went with its socket.
            LauncherEvent::Exited { vm: VmNumber(4), .. } => {}
            other => panic!("{other:?}"),
        }
    }
    failed.sort_by_key(|(number, _)| *number);
    assert_eq!(failed.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 3, 7]);
    for (_, failure) in failed {
        assert_eq!((failure.errno, &failure.object), (rustix::io::Errno::TIMEDOUT.raw_os_error(), &source));
    }
    assert_eq!(run(&bystander, "echo well", false).0, "well\n");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while launcher.children() > 1 {
        assert!(std::time::Instant::now() < deadline, "openers are left");
        std::thread::yield_now();
    }
}

fn skip(test: &str, reason: &str) {
    use std::io::Write;
    let Some(file) = std::env::var_os("AGENTOS_TEST_SKIPS") else { return };
    let line = format!("{{\"test\": \"{test}\", \"reason\": \"{reason}\"}}\n");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}
