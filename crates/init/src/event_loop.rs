//! PID 1 of a VM: one loop that serves the sidecar and reaps.
//!
//! ```text
//!             ┌─ control socket   requests; a hang-up ends the VM
//! epoll ──────┼─ SIGCHLD          reap all; ours become Exited events
//!             ├─ report pipes     exec has succeeded or failed: ExecDone
//!             └─ errands          answers of mounts, process lists and look-ups of sockets
//! ```
//! Nothing here waits for a guest: what could hang in a file system runs on other threads, of which those for files
//! answer by themselves, and the sidecar reads its socket. The loop ends when the sidecar hangs up or has asked for a
//! shutdown and seen it done.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentos_guest_protocol::init::{Event, Failure, InitMessage, InitRequest, Request, RequestId, Response};
use agentos_guest_protocol::network::NetworkRequest;
use agentos_guest_protocol::process::{SignalScope, SpawnFailure, SpawnRequest, SpawnStep, Status};
use agentos_linux::signal::{self, ChildSignals};
use agentos_linux::{Errno, seqpacket};
use rustix::event::{Timespec, epoll};
use rustix::thread::CapabilitySet;

use crate::control::Control;
use crate::errands::{self, Errands};
use crate::filesystem::{Answer, FileSystem, Pool, Root};
use crate::network::OwnListeners;
use crate::process::{self, Children};
use crate::wire::{self, WireError, failure};
use crate::{mounts, network};

/// What boot leaves to the loop.
#[derive(Debug)]
pub(crate) struct Guest {
    pub null: OwnedFd,
    /// The caller's own /proc/self/oom_score_adj.
    pub oom_score: OwnedFd,
    /// User and group of the VM's processes.
    pub user: u32,
    pub drop_groups: bool,
    pub capabilities: CapabilitySet,
    pub open_files: u64,
    /// The way out, until it is handed to the sidecar.
    pub uplink: Option<network::Device>,
    /// The root directory's own file system is of nothing but memory, so nothing in it ever waits.
    pub root_in_memory: bool,
}

impl Guest {
    /// Runs `fork` so that the child is what the kernel kills when memory is short, not PID 1. The child inherits the
    /// score, and it can't be set in the child: its files in /proc are not its own before exec.
    pub(crate) fn with_guest_oom_score<T>(&self, fork: impl FnOnce() -> T) -> T {
        // Failing to set it costs a preference, not the process.
        let _ = rustix::io::write(&self.oom_score, b"500");
        let result = fork();
        let _ = rustix::io::write(&self.oom_score, b"0");
        result
    }
}

/// Runs until the VM ends. The exit code of PID 1.
pub(crate) fn run(control: BorrowedFd<'_>, guest: Guest) -> i32 {
    match EventLoop::start(control, guest).and_then(|mut event_loop| event_loop.serve()) {
        Ok(()) | Err(LoopError::Wire(WireError::HungUp)) => 0,
        Err(_) => 1,
    }
}

#[derive(Debug, thiserror::Error)]
enum LoopError {
    #[error("the sidecar's socket failed")]
    Wire(#[from] WireError),
    #[error("a system call of the event loop failed")]
    System(#[from] Errno),
}

/// What an epoll event is about: one of these, or the report pipe of the process with that pid.
const CONTROL: u64 = u64::MAX;
const SIGNALS: u64 = u64::MAX - 1;
const ERRANDS: u64 = u64::MAX - 2;

/// What looking for sockets does, as messages say it.
const LOOK_UP: &str = "read '/proc/net'";

struct EventLoop<'a> {
    control: BorrowedFd<'a>,
    sidecar: Arc<Control>,
    poll: OwnedFd,
    signals: ChildSignals,
    pool: Pool,
    errands: Errands,
    guest: Guest,
    own_listeners: OwnListeners,
    children: Children,
    /// Requests that are answered when processes are gone.
    awaited_ends: Vec<(RequestId, i32)>,
    shutdown: Option<Shutdown>,
    done: bool,
}

#[derive(Debug)]
struct Shutdown {
    id: RequestId,
    /// When SIGKILL follows.
    deadline: Instant,
    killed: bool,
}

impl<'a> EventLoop<'a> {
    fn start(control: BorrowedFd<'a>, guest: Guest) -> Result<Self, LoopError> {
        let signals = ChildSignals::open()?;
        let errands = Errands::new()?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (fd, word) in [(control, CONTROL), (signals.as_fd(), SIGNALS), (errands.fd(), ERRANDS)] {
            epoll::add(&poll, fd, epoll::EventData::new_u64(word), epoll::EventFlags::IN)?;
        }
        rustix::io::ioctl_fionbio(control, true)?;
        let sidecar = Arc::new(Control::new(rustix::io::fcntl_dupfd_cloexec(control, 0)?));
        let root = Root::new(mounts::open_directory(std::path::Path::new("/"))?);
        let quick = guest.root_in_memory.then(|| root.at_once()).transpose()?;
        let pool = Pool::new(FileSystem::new(root, quick), answers(&sidecar));
        Ok(Self {
            control,
            sidecar,
            poll,
            signals,
            pool,
            errands,
            guest,
            own_listeners: OwnListeners::default(),
            children: Children::default(),
            awaited_ends: Vec::new(),
            shutdown: None,
            done: false,
        })
    }

    fn serve(&mut self) -> Result<(), LoopError> {
        self.say(&InitMessage::Ready, &[])?;
        // While the sidecar is busy with the good news; nothing runs in the VM before.
        if let Some(device) = self.guest.uplink.take() {
            let (outcome, device) = device.connect();
            let device = device.as_ref().map(AsFd::as_fd);
            self.say(&InitMessage::Uplink(outcome), device.as_slice())?;
        }
        self.errands.stand_by();
        let mut buffer = Vec::new();
        while !self.done {
            for word in self.wait()? {
                match word {
                    CONTROL => self.requests(&mut buffer)?,
                    SIGNALS => self.reap()?,
                    ERRANDS => {
                        let answers = self.errands.drain();
                        self.answer_errands(answers)?;
                    }
                    pid => self.report(pid as i32)?,
                }
            }
            self.timers()?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<Vec<u64>, LoopError> {
        let deadlines = [
            self.pool.next_deadline(),
            self.errands.next_deadline(),
            self.children.next_overdue(),
            self.children.next_look(),
            self.shutdown.as_ref().and_then(Shutdown::next_step),
        ];
        let timeout = deadlines.into_iter().flatten().min().map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let mut events = Vec::with_capacity(32);
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.iter().map(|event: &epoll::Event| event.data.u64()).collect())
    }

    fn say(&self, message: &InitMessage, descriptors: &[BorrowedFd<'_>]) -> Result<(), LoopError> {
        Ok(self.sidecar.say(message, descriptors)?)
    }

    fn answer(
        &self,
        id: RequestId,
        response: Result<Response, Failure>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LoopError> {
        Ok(self.sidecar.answer(id, response, descriptors)?)
    }

    /// Serves what has arrived, a bounded number at a time so that reaping is never starved.
    fn requests(&mut self, buffer: &mut Vec<u8>) -> Result<(), LoopError> {
        for _ in 0..32 {
            match wire::receive::<InitRequest>(self.control, buffer)? {
                Some((request, descriptors)) => self.handle(request, descriptors)?,
                None => break,
            }
        }
        Ok(())
    }

    fn handle(&mut self, request: InitRequest, descriptors: Vec<OwnedFd>) -> Result<(), LoopError> {
        let id = request.id;
        match request.request {
            Request::Spawn(spawn) => self.spawn(id, &spawn),
            Request::Signal { pid, signal, scope } => {
                let sent = match scope {
                    _ if !self.children.is_ours(pid) => Ok(()),
                    SignalScope::Process => signal::send(pid, signal),
                    SignalScope::Group => signal::send_group(pid, signal),
                };
                let response = sent
                    .map(|()| Response::Done)
                    .map_err(|errno| Failure::System(failure("kill", pid.to_string(), errno)));
                self.answer(id, response, &[])
            }
            Request::KillSupervised { pid } => {
                let answer = match self.children.kill_supervised(pid) {
                    Ok(true) => {
                        self.awaited_ends.push((id, pid));
                        return Ok(());
                    }
                    Ok(false) => Ok(Response::Done),
                    Err(errno) => Err(Failure::System(failure("kill", pid.to_string(), errno))),
                };
                self.answer(id, answer, &[])
            }
            Request::ListProcesses => {
                self.run_errand(id, "read '/proc'".to_owned(), || Ok(Response::Processes(process::list())))
            }
            Request::File(file) => {
                self.pool.submit(id, file, Instant::now());
                Ok(())
            }
            Request::Mount(mount) => {
                let (call, user) = (mounts::call(&mount), self.guest.user);
                self.run_errand(id, call, move || mounts::handle(&mount, descriptors, user))
            }
            Request::Network(request) => self.network(id, request),
            Request::Shutdown { grace_ms } => self.begin_shutdown(id, grace_ms),
        }
    }

    fn network(&mut self, id: RequestId, request: NetworkRequest) -> Result<(), LoopError> {
        let socket = match request {
            NetworkRequest::Connect { port } => network::connect(port),
            NetworkRequest::Listen { address } => self.own_listeners.listen(address),
            NetworkRequest::Listeners { owners } => {
                let own = self.own_listeners.clone();
                let list = move || Ok(Response::Listeners(own.others(owners)));
                return self.run_errand(id, LOOK_UP.to_owned(), list);
            }
            NetworkRequest::Owner { protocol, local, remote } => {
                let find = move || Ok(Response::Owner(network::owner(protocol, local, remote)));
                return self.run_errand(id, LOOK_UP.to_owned(), find);
            }
        };
        match socket {
            Ok(socket) => self.answer(id, Ok(Response::Socket), &[socket.as_fd()]),
            Err(failure) => self.answer(id, Err(failure), &[]),
        }
    }

    fn run_errand(
        &mut self,
        id: RequestId,
        call: String,
        work: impl FnOnce() -> errands::Outcome + Send + 'static,
    ) -> Result<(), LoopError> {
        match self.errands.begin(id, call, Instant::now(), work) {
            Some(outcome) => self.answer(id, outcome, &[]),
            None => Ok(()),
        }
    }

    fn answer_errands(&mut self, answers: Vec<(RequestId, errands::Outcome)>) -> Result<(), LoopError> {
        answers.into_iter().try_for_each(|(id, outcome)| self.answer(id, outcome, &[]))
    }

    fn spawn(&mut self, id: RequestId, request: &SpawnRequest) -> Result<(), LoopError> {
        let spawned = match self.children.spawn(&self.guest, request) {
            Ok(spawned) => spawned,
            Err(failure) => return self.answer(id, Err(Failure::Spawn(failure)), &[]),
        };
        if let Some(status) = self.children.forget_namesake(spawned.pid) {
            self.tell_end(spawned.pid, status)?;
        }
        let descriptors: Vec<BorrowedFd<'_>> = spawned.descriptors.iter().map(AsFd::as_fd).collect();
        self.answer(id, Ok(Response::Spawned { pid: spawned.pid }), &descriptors)?;
        if let Some(report) = self.children.report(spawned.pid) {
            let word = epoll::EventData::new_u64(spawned.pid as u64);
            epoll::add(&self.poll, report, word, epoll::EventFlags::IN)?;
        }
        Ok(())
    }

    /// Exec has succeeded or failed. The pipe leaves the epoll set before it is closed: a child that has not come to
    /// its exec yet may hold a copy of it.
    fn report(&mut self, pid: i32) -> Result<(), LoopError> {
        let Some((result, report)) = self.children.exec_done(pid) else { return Ok(()) };
        epoll::delete(&self.poll, &report)?;
        self.say(&InitMessage::Event(Event::ExecDone { pid, result }), &[])
    }

    /// Reaps everything that has ended. A process of the sidecar's has its exec reported first.
    fn reap(&mut self) -> Result<(), LoopError> {
        self.signals.clear();
        while let Some(pid) = signal::peek_ended() {
            self.report(pid)?;
            if let Some(status) = self.children.reap(pid) {
                self.tell_end(pid, status)?;
            }
        }
        self.tend()?;
        self.finish_shutdown()
    }

    /// Clears up behind supervised programs.
    fn tend(&mut self) -> Result<(), LoopError> {
        for (pid, status) in self.children.tend(Instant::now()) {
            self.tell_end(pid, status)?;
        }
        Ok(())
    }

    fn tell_end(&mut self, pid: i32, status: Status) -> Result<(), LoopError> {
        self.say(&InitMessage::Event(Event::Exited { pid, status }), &[])?;
        let (ended, waiting) = self.awaited_ends.drain(..).partition(|(_, awaited)| *awaited == pid);
        self.awaited_ends = waiting;
        let ended: Vec<(RequestId, i32)> = ended;
        for (id, _) in ended {
            self.answer(id, Ok(Response::Done), &[])?;
        }
        Ok(())
    }

    fn timers(&mut self) -> Result<(), LoopError> {
        let now = Instant::now();
        self.pool.expire(now);
        let late = self.errands.expire(now);
        self.answer_errands(late)?;
        for (pid, report) in self.children.give_up_overdue(now) {
            epoll::delete(&self.poll, &report)?;
            let failure = SpawnFailure { step: SpawnStep::Exec, errno: Errno::TIMEDOUT.raw_os_error() };
            self.say(&InitMessage::Event(Event::ExecDone { pid, result: Err(failure) }), &[])?;
        }
        if self.children.next_look().is_some_and(|at| at <= now) {
            self.tend()?;
        }
        let Some(shutdown) = &mut self.shutdown else { return Ok(()) };
        if !shutdown.killed && now >= shutdown.deadline {
            shutdown.killed = true;
            signal::send_all(SIGKILL)?;
        }
        Ok(())
    }

    /// SIGHUP to who holds a terminal, SIGTERM to the rest, and SIGCONT so that a stopped process hears it.
    fn begin_shutdown(&mut self, id: RequestId, grace_ms: u64) -> Result<(), LoopError> {
        for leader in self.children.terminal_leaders() {
            signal::send_group(leader, SIGHUP)?;
        }
        signal::send_all(SIGTERM)?;
        signal::send_all(SIGCONT)?;
        let deadline = Instant::now() + Duration::from_millis(grace_ms);
        self.shutdown = Some(Shutdown { id, deadline, killed: false });
        self.timers()?;
        self.finish_shutdown()
    }

    /// The VM is empty when PID 1 has no child left: orphans become its children.
    fn finish_shutdown(&mut self) -> Result<(), LoopError> {
        let Some(shutdown) = &self.shutdown else { return Ok(()) };
        if signal::has_children() {
            return Ok(());
        }
        self.answer(shutdown.id, Ok(Response::Done), &[])?;
        self.done = true;
        Ok(())
    }
}

/// Says what file calls have come to. A sidecar that can't be reached has hung up, which the loop sees for itself.
fn answers(sidecar: &Arc<Control>) -> Box<dyn Fn(Answer) + Send + Sync> {
    let sidecar = Arc::clone(sidecar);
    Box::new(move |Answer { id, result }| {
        let _ = match result {
            Ok((response, descriptor)) => {
                let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
                sidecar.answer(id, Ok(Response::File(response)), &descriptors)
            }
            Err(failure) => sidecar.answer(id, Err(failure), &[]),
        };
    })
}

impl Shutdown {
    fn next_step(&self) -> Option<Instant> {
        (!self.killed).then_some(self.deadline)
    }
}

const SIGHUP: i32 = 1;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGCONT: i32 = 18;

const _: () = assert!(seqpacket::MAX_DESCRIPTORS == agentos_guest_protocol::frame::MAX_DESCRIPTORS);
