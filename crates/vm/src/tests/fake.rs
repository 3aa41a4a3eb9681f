//! A launcher and an init that say what the test tells them to, over real sockets.

use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::filesystem::{FileRequest, FileResponse};
use agentos_guest_protocol::init::{Event, Failure, InitMessage, InitRequest, Request, RequestId, Response};
use agentos_guest_protocol::launcher::{
    BootFailure, HostFindings, IdMode, IdRange, LauncherEvent, LauncherRequest, VmNumber,
};
use agentos_guest_protocol::process::{SpawnRequest, Status, Stdio};
use agentos_linux::seqpacket;
use rustix::pipe::PipeFlags;
use tempfile::TempDir;

use crate::channel::{Channel, Outbox, Outgoing};
use crate::spec::{Host, VmOptions, VmSpec};
use crate::{Launcher, LauncherError, Vm};

/// Nothing in these tests takes longer unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it hangs")
}

/// The launcher's end.
pub(super) struct FakeLauncher {
    channel: Channel,
    _runtime: TempDir,
}

/// Init's end of one VM's control socket.
pub(super) struct FakeInit {
    channel: Channel,
    socket: OwnedFd,
    pub(super) number: VmNumber,
    pub(super) ids: IdRange,
}

/// A VM, and who plays what is below it.
pub(super) struct World {
    pub(super) vm: Vm,
    pub(super) init: FakeInit,
    pub(super) launcher: FakeLauncher,
    pub(super) handle: Launcher,
}

/// A host on which VMs owe nothing but answers.
pub(super) fn findings() -> HostFindings {
    let step = "open".to_owned();
    let no_uplink = BootFailure { step, object: Bytes::from(b"/dev/net/tun".to_vec()), errno: 2 };
    let ids = IdMode::Range;
    HostFindings { ids, max_open_files: 65_536, no_uplink: Some(no_uplink), ..HostFindings::default() }
}

/// A host whose VMs have a network.
pub(super) fn findings_with_uplink() -> HostFindings {
    HostFindings { no_uplink: None, ..findings() }
}

pub(super) fn spec(options: VmOptions) -> VmSpec {
    spec_on(findings(), options)
}

fn spec_on(findings: HostFindings, options: VmOptions) -> VmSpec {
    VmSpec::validate(options, &Host { findings, memory_bytes: 1 << 30, has_ipv6: false }).unwrap()
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(VmOptions::default()).await
    }

    pub(super) async fn with(options: VmOptions) -> Self {
        let (handle, launcher) = FakeLauncher::start().await;
        let (vm, init) = launcher.create(&handle, options).await;
        Self { vm, init, launcher, handle }
    }
}

impl World {
    /// A VM that waits for its network.
    pub(super) async fn with_uplink() -> Self {
        let found = findings_with_uplink();
        let (handle, launcher) = FakeLauncher::start_with(LauncherEvent::Started(found.clone())).await;
        let handle = handle.unwrap();
        let spec = spec_on(found, VmOptions::default());
        let (vm, init) = soon(async { tokio::join!(Vm::create(&handle, spec), launcher.boot_ready()) }).await;
        Self { vm: vm.unwrap(), init, launcher, handle }
    }
}

impl FakeLauncher {
    pub(super) async fn start() -> (Launcher, Self) {
        let (handle, launcher) = Self::start_with(LauncherEvent::Started(findings())).await;
        (handle.unwrap(), launcher)
    }

    pub(super) async fn start_with(first: LauncherEvent) -> (Result<Launcher, LauncherError>, Self) {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let runtime = tempfile::tempdir().unwrap();
        let launcher = Self { channel: Channel::new(theirs).unwrap(), _runtime: runtime };
        launcher.say(first, Vec::new());
        let handle = soon(Launcher::connect(ours, launcher._runtime.path())).await;
        (handle, launcher)
    }

    pub(super) async fn create(&self, handle: &Launcher, options: VmOptions) -> (Vm, FakeInit) {
        let (vm, init) =
            soon(async { tokio::join!(Vm::create(handle, spec(options)), self.boot_ready()) }).await;
        (vm.unwrap(), init)
    }

    async fn boot_ready(&self) -> FakeInit {
        let init = self.boot().await;
        init.say(InitMessage::Ready, Vec::new());
        init
    }

    /// Waits for a Boot and takes the VM's end of its control socket.
    pub(super) async fn boot(&self) -> FakeInit {
        let packet = soon(self.channel.receive::<LauncherRequest>()).await.unwrap();
        let LauncherRequest::Boot { vm, plan } = packet.message else {
            panic!("not Boot but {:?}", packet.message);
        };
        let [socket] = <[OwnedFd; 1]>::try_from(packet.descriptors).unwrap();
        let channel = Channel::new(socket.try_clone().unwrap()).unwrap();
        FakeInit { channel, socket, number: vm, ids: plan.ids }
    }

    pub(super) async fn request(&self) -> LauncherRequest {
        soon(self.channel.receive::<LauncherRequest>()).await.unwrap().message
    }

    /// Waits until this VM is to be killed, and reports that it is gone.
    pub(super) async fn kill(&self, vm: VmNumber) {
        let request = self.request().await;
        assert!(matches!(request, LauncherRequest::Kill { vm: killed } if killed == vm), "{request:?}");
        self.say(LauncherEvent::Exited { vm, status: Status::Signaled(9) }, Vec::new());
    }

    /// Waits for the next packet; true when there is none because the sidecar has hung up.
    pub(super) async fn ended(&self) -> bool {
        matches!(self.channel.receive::<LauncherRequest>().await, Err(crate::channel::ReceiveError::HungUp))
    }

    pub(super) fn say(&self, event: LauncherEvent, descriptors: Vec<OwnedFd>) {
        Outbox::default().send(&self.channel, Outgoing::prepare(&event, descriptors).unwrap()).unwrap();
    }
}

/// The host's ends were passed out; these stay with the guest.
pub(super) struct GuestPipes {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

impl FakeInit {
    pub(super) fn say(&self, message: InitMessage, descriptors: Vec<OwnedFd>) {
        Outbox::default().send(&self.channel, Outgoing::prepare(&message, descriptors).unwrap()).unwrap();
    }

    /// Bytes as no honest init would send them.
    pub(super) fn say_raw(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
        seqpacket::send(self.socket.as_fd(), packet, descriptors).unwrap();
    }

    pub(super) fn answer(&self, id: RequestId, response: Response, descriptors: Vec<OwnedFd>) {
        self.say(InitMessage::Response { id, response: Ok(response) }, descriptors);
    }

    pub(super) fn fail(&self, id: RequestId, failure: Failure) {
        self.say(InitMessage::Response { id, response: Err(failure) }, Vec::new());
    }

    pub(super) fn event(&self, event: Event) {
        self.say(InitMessage::Event(event), Vec::new());
    }

    pub(super) async fn request(&self) -> (RequestId, Request) {
        let packet = soon(self.channel.receive::<InitRequest>()).await.unwrap();
        (packet.message.id, packet.message.request)
    }

    pub(super) async fn file_request(&self) -> (RequestId, FileRequest) {
        match self.request().await {
            (id, Request::File(request)) => (id, request),
            (_, other) => panic!("not a file request but {other:?}"),
        }
    }

    pub(super) async fn spawn_request(&self) -> (RequestId, SpawnRequest) {
        match self.request().await {
            (id, Request::Spawn(request)) => (id, request),
            (_, other) => panic!("not a spawn but {other:?}"),
        }
    }

    /// Plays a spawn that works.
    pub(super) async fn run(&self, pid: i32) -> GuestPipes {
        let pipes = self.fork(pid).await;
        self.event(Event::ExecDone { pid, result: Ok(()) });
        pipes
    }

    /// Plays a spawn up to the fork.
    pub(super) async fn fork(&self, pid: i32) -> GuestPipes {
        let (id, request) = self.spawn_request().await;
        let Stdio::Pipes { stdin } = request.stdio else { panic!("a terminal was asked for") };
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((stdin_read, stdin_write), (out_read, out_write), (err_read, err_write)) =
            (pipe(), pipe(), pipe());
        let mut descriptors = if stdin { vec![stdin_write] } else { Vec::new() };
        descriptors.extend([out_read, err_read]);
        self.answer(id, Response::Spawned { pid }, descriptors);
        GuestPipes { stdin: stdin.then_some(stdin_read), stdout: Some(out_write), stderr: Some(err_write) }
    }

    pub(super) fn exit(&self, pid: i32, status: Status) {
        self.event(Event::Exited { pid, status });
    }

    /// Nothing of init is left.
    pub(super) fn hang_up(self) -> VmNumber {
        self.number
    }
}

impl GuestPipes {
    /// Writes all of it from another thread, as a process would.
    pub(super) fn write_stdout(&self, data: Vec<u8>) -> tokio::task::JoinHandle<()> {
        let pipe = self.stdout.as_ref().unwrap().try_clone().unwrap();
        tokio::task::spawn_blocking(move || {
            use std::io::Write;
            std::fs::File::from(pipe).write_all(&data).unwrap();
        })
    }

    pub(super) fn close_output(&mut self) {
        self.stdout = None;
        self.stderr = None;
    }
}

pub(super) fn bytes(text: &str) -> Bytes {
    text.as_bytes().to_vec().into()
}

pub(super) fn file(response: FileResponse) -> Response {
    Response::File(response)
}
