//! The owner task of one VM: it alone holds the control socket, and so it alone knows what init was asked, which
//! processes live and in which phase the VM is.
//!
//! ```text
//!  handles ── Command (bounded queue) ──►┐                 ┌── Request{id} ──► init
//!  drops, dispose ── Asks ──────────────►│ driver          │
//!  launcher ── how the VM ended ────────►│ phase, calls,   │◄─ Response{id}
//!  its own tasks (pumps) ── their end ──►┘ live processes  └◄─ Event
//! ```
//! It takes no new command while the kernel has no room for the last one or while [`MAX_IN_FLIGHT`] are unanswered.
//! Whatever init says is parsed here once; the first thing that can't be right ends the VM with that as the reason.
//! A panic in here or in a pump does the same.

pub(crate) mod live_table;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentos_guest_protocol::filesystem::{FileRequest, FileResponse};
use agentos_guest_protocol::init::{Event, Failure, InitMessage, InitRequest, Request, RequestId, Response};
use agentos_guest_protocol::process::SignalScope;
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use self::live_table::{LiveTable, Wanted};
use crate::asks::AskList;
use crate::channel::{Channel, Outbox, Outgoing, Packet, ReceiveError};
use crate::command::{Answer, Call, CallFailure, Command, Completion, ProtocolError};
use crate::launcher::{BootedVm, VmEnd};
use crate::network::{Link, Missing, Seed};
use crate::process::SpawnError;
use crate::process::live::{LiveProcess, Running, SpawnPlan};
use crate::spec::MAX_DISPOSE_GRACE;
use crate::state::{self, Phase, Purpose};
use crate::vm::{GoneReason, Shared};

/// Requests that init has not answered.
const MAX_IN_FLIGHT: usize = 256;

/// After the grace of a dispose has passed, init has this long to end by itself.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(2);

/// Init's exit status follows its hang-up as soon as the launcher has reaped it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

const SIGKILL: i32 = 9;

#[derive(Debug)]
pub(crate) struct Driver {
    channel: Channel,
    outbox: Outbox,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    booted: BootedVm,
    phase: Phase,
    calls: HashMap<RequestId, Pending>,
    next_id: u32,
    processes: LiveTable,
    tasks: JoinSet<()>,
    /// When a VM that is being disposed is killed.
    kill_at: Option<Instant>,
    /// What the network is made of, until init has made its device.
    uplink: Option<Seed>,
}

/// A request that init has not answered.
#[derive(Debug)]
enum Pending {
    Call(Completion),
    Spawn(Wanted),
    /// Its caller was told that the VM is going; the answer still comes.
    Abandoned,
}

/// What the driver wakes up for.
enum Wake {
    Packet(Result<Packet<InitMessage>, ReceiveError>),
    Writable(std::io::Result<()>),
    Command(Option<Command>),
    Asks(AskList),
    Ended(VmEnd),
    TaskEnded(Result<(), JoinError>),
    Timer,
}

/// Why the driver stops.
enum Stop {
    /// Init is gone or going; the launcher knows more.
    HungUp,
    Reason(GoneReason),
}

impl From<ProtocolError> for Stop {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Receive(ReceiveError::HungUp) => Self::HungUp,
            other => Self::Reason(other.into_reason()),
        }
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => Self::HungUp,
            other => Self::Reason(GoneReason::Socket(Arc::new(other.into()))),
        }
    }
}

impl Driver {
    pub(crate) fn new(
        channel: Channel,
        commands: mpsc::Receiver<Command>,
        shared: Arc<Shared>,
        (booted, uplink): (BootedVm, Option<Seed>),
    ) -> Self {
        let processes = LiveTable::new(Arc::clone(&shared), booted.cgroups());
        Self {
            channel,
            outbox: Outbox::default(),
            commands,
            shared,
            booted,
            phase: Phase::Ready,
            calls: HashMap::new(),
            next_id: 0,
            processes,
            tasks: JoinSet::new(),
            kill_at: None,
            uplink,
        }
    }

    /// Runs until the VM is gone.
    pub(crate) async fn run(mut self) {
        // Dropped before `self`: whoever loses a call with it finds the reason.
        let _last_words = LastWords(Arc::clone(&self.shared));
        let stop = loop {
            let wake = self.wake().await;
            if let Err(stop) = self.handle(wake) {
                break stop;
            }
        };
        let reason = match stop {
            Stop::Reason(reason) => reason,
            Stop::HungUp => self.ask_launcher().await,
        };
        self.phase = state::end(&self.phase, reason);
        tracing::debug!(vm = self.booted.number().0, state = ?state::visible(&self.phase), "VM ended");
        self.shared.state.send_replace(state::visible(&self.phase));
        self.booted.kill();
        self.commands.close();
        self.calls.clear();
        // Pumps save what is in the pipes when they are dropped.
        self.tasks.shutdown().await;
        self.processes.end();
    }

    async fn wake(&mut self) -> Wake {
        let accepting = self.outbox.is_empty() && self.calls.len() < MAX_IN_FLIGHT;
        let timer = self.kill_at.into_iter().chain(self.processes.next_timeout()).min();
        tokio::select! {
            packet = self.channel.receive() => Wake::Packet(packet),
            command = self.commands.recv(), if accepting => Wake::Command(command),
            asks = self.shared.asks.take() => Wake::Asks(asks),
            ended = self.booted.ended() => Wake::Ended(ended),
            Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => Wake::TaskEnded(ended),
            writable = self.channel.writable(), if !self.outbox.is_empty() => Wake::Writable(writable),
            () = sleep_until(timer), if timer.is_some() => Wake::Timer,
        }
    }

    fn handle(&mut self, wake: Wake) -> Result<(), Stop> {
        match wake {
            Wake::Packet(Ok(packet)) => self.receive(packet)?,
            Wake::Packet(Err(error)) => return Err(ProtocolError::Receive(error).into()),
            Wake::Writable(writable) => {
                writable.map_err(|error| Stop::Reason(GoneReason::Socket(Arc::new(error))))?;
                self.outbox.flush(&self.channel)?;
            }
            Wake::Command(Some(command)) => self.execute(command)?,
            // Nobody holds the VM any more.
            Wake::Command(None) => return Err(Stop::Reason(GoneReason::Disposed)),
            Wake::Asks(asks) => self.answer(asks)?,
            Wake::Ended(end) => return Err(Stop::Reason(reason_of(end))),
            Wake::TaskEnded(Err(error)) if error.is_panic() => return Err(Stop::Reason(GoneReason::Fault)),
            Wake::TaskEnded(_) => {}
            Wake::Timer => self.expire()?,
        }
        Ok(())
    }

    fn execute(&mut self, command: Command) -> Result<(), Stop> {
        match command {
            Command::Call(call) => self.call(call, Purpose::Work),
            Command::Spawn { plan, started } => self.spawn(plan, started),
            Command::ToProcess { process, call } => {
                if self.processes.is_alive(&process) {
                    if kills(&call.request) {
                        self.processes.set_killed(&process);
                    }
                    return self.call(call, Purpose::Work);
                }
                let done = Answer { response: Response::Done, descriptors: Vec::new() };
                Ok(call.completion.complete(Ok(done))?)
            }
            Command::Discard(pipes) => {
                for pipe in pipes {
                    self.tasks.spawn(crate::pipe::discard(pipe));
                }
                Ok(())
            }
            Command::Forward { listener, port } => {
                self.tasks.spawn(crate::forward::out(listener, port));
                Ok(())
            }
        }
    }

    fn call(&mut self, call: Call, purpose: Purpose) -> Result<(), Stop> {
        if let Err(unavailable) = state::admit(&self.phase, purpose) {
            call.completion.refuse(CallFailure::Unavailable(unavailable));
            return Ok(());
        }
        let id = self.new_id();
        match Outgoing::prepare(&InitRequest { id, request: call.request }, call.descriptors) {
            Ok(outgoing) => {
                self.calls.insert(id, Pending::Call(call.completion));
                Ok(self.outbox.send(&self.channel, outgoing)?)
            }
            Err(error) => {
                tracing::debug!(%error, "request can't be sent");
                call.completion.refuse(CallFailure::Local(Errno::TOOBIG));
                Ok(())
            }
        }
    }

    fn spawn(
        &mut self,
        plan: Box<SpawnPlan>,
        started: oneshot::Sender<Result<Running, SpawnError>>,
    ) -> Result<(), Stop> {
        if let Err(unavailable) = state::admit(&self.phase, Purpose::Work) {
            drop(started.send(Err(unavailable.into())));
            return Ok(());
        }
        let id = self.new_id();
        let request = InitRequest { id, request: Request::Spawn(plan.request.clone()) };
        match Outgoing::prepare(&request, Vec::new()) {
            Ok(outgoing) => {
                self.calls.insert(id, Pending::Spawn(self.processes.wanted(plan, started)));
                Ok(self.outbox.send(&self.channel, outgoing)?)
            }
            Err(error) => {
                tracing::debug!(%error, "spawn can't be sent");
                drop(started.send(Err(SpawnError::TooBig)));
                Ok(())
            }
        }
    }

    fn new_id(&mut self) -> RequestId {
        // Fewer than MAX_IN_FLIGHT and what is asked without waiting are in use: the loop ends.
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if !self.calls.contains_key(&RequestId(self.next_id)) {
                return RequestId(self.next_id);
            }
        }
    }

    fn answer(&mut self, asks: AskList) -> Result<(), Stop> {
        for process in asks.kills {
            self.kill_group(&process)?;
        }
        for ticket in asks.aborts {
            let request = Request::File(FileRequest::AbortWrite { ticket });
            let (completion, _) = Completion::new(crate::filesystem::parse::done);
            self.call(Call { request, descriptors: Vec::new(), completion }, Purpose::Undo)?;
        }
        match asks.dispose {
            Some(grace) => self.dispose(grace),
            None => Ok(()),
        }
    }

    fn kill_group(&mut self, process: &Arc<LiveProcess>) -> Result<(), Stop> {
        if !self.processes.is_alive(process) {
            return Ok(());
        }
        self.processes.set_killed(process);
        let request = Request::Signal { pid: process.pid, signal: SIGKILL, scope: SignalScope::Group };
        let call = Call { request, descriptors: Vec::new(), completion: Completion::ignored() };
        self.call(call, Purpose::Undo)
    }

    fn dispose(&mut self, grace: Duration) -> Result<(), Stop> {
        let grace = grace.min(MAX_DISPOSE_GRACE);
        let kill_at = Instant::now() + grace + SHUTDOWN_MARGIN;
        // Asked again with less patience, the VM goes earlier.
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
        let Some(phase) = state::dispose(&self.phase) else { return Ok(()) };
        self.phase = phase;
        self.shared.state.send_replace(state::visible(&self.phase));
        // Running calls fail now: their answers would come from a VM that is being taken apart. Dropping what a
        // caller waits for makes it look at the state.
        for pending in self.calls.values_mut() {
            *pending = Pending::Abandoned;
        }
        self.processes.abandon();
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let call = Call {
            request: Request::Shutdown { grace_ms },
            descriptors: Vec::new(),
            completion: Completion::ignored(),
        };
        self.call(call, Purpose::Undo)
    }

    /// A deadline has passed: of the dispose, of processes, or of those who wait for them.
    fn expire(&mut self) -> Result<(), Stop> {
        let now = Instant::now();
        if self.kill_at.is_some_and(|at| at <= now) {
            return Err(Stop::Reason(GoneReason::Disposed));
        }
        self.processes.give_out_early(now);
        for process in self.processes.take_timed_out(now) {
            self.kill_group(&process)?;
        }
        Ok(())
    }

    fn receive(&mut self, packet: Packet<InitMessage>) -> Result<(), Stop> {
        let Packet { message, descriptors, lost_descriptors } = packet;
        match message {
            InitMessage::Ready => Err(ProtocolError::Unexpected("a second Ready").into()),
            InitMessage::BootFailed(_) => Err(ProtocolError::Unexpected("BootFailed after Ready").into()),
            InitMessage::Response { id, response: Ok(response) } if lost_descriptors => {
                self.respond_without_descriptors(id, response)
            }
            InitMessage::Response { id, response } => self.respond(id, response, descriptors),
            InitMessage::Event(event) => self.event(event, &descriptors),
            InitMessage::Uplink(outcome) => {
                let seed = self.uplink.take().ok_or(ProtocolError::Unexpected("an uplink"))?;
                let link = match outcome {
                    Ok(()) if lost_descriptors => {
                        let missing = std::io::Error::from(Errno::MFILE);
                        Link::Missing(Missing::Stack(Arc::new(missing)))
                    }
                    Ok(()) => seed.start(Answer { response: Response::Done, descriptors }.descriptor()?)?,
                    Err(failure) => Link::Missing(Missing::Device(failure)),
                };
                if let Link::Missing(missing) = &link {
                    tracing::warn!(%missing, vm = self.booted.number().0, "VM has no network");
                    self.shared.uplink.tell_end(missing);
                }
                self.shared.uplink.set(link);
                Ok(())
            }
        }
    }

    fn respond(
        &mut self,
        id: RequestId,
        response: Result<Response, Failure>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Stop> {
        let pending = self.calls.remove(&id).ok_or(ProtocolError::UnknownRequest(id.0))?;
        let answer = match response {
            Ok(response) => Ok(Answer { response, descriptors }),
            Err(_) if !descriptors.is_empty() => {
                let found = descriptors.len();
                return Err(ProtocolError::Descriptors { expected: 0, found }.into());
            }
            Err(failure) => Err(failure),
        };
        match pending {
            Pending::Call(completion) => completion.complete(answer.map_err(CallFailure::Init))?,
            Pending::Spawn(wanted) => {
                if let Some(orphan) = self.processes.spawned(wanted, answer)? {
                    self.kill_group(&orphan)?;
                }
            }
            Pending::Abandoned => {}
        }
        Ok(())
    }

    /// The sidecar can have no more descriptors: that call fails, and what init made for it is undone.
    fn respond_without_descriptors(&mut self, id: RequestId, response: Response) -> Result<(), Stop> {
        match self.calls.remove(&id).ok_or(ProtocolError::UnknownRequest(id.0))? {
            Pending::Call(completion) => {
                if let Response::File(FileResponse::WriteOpened { ticket }) = response {
                    self.shared.asks.abort(ticket);
                }
                completion.refuse(CallFailure::Local(Errno::MFILE));
                Ok(())
            }
            Pending::Spawn(wanted) => {
                let orphan = self.processes.spawned_in_vain(wanted, response, Errno::MFILE)?;
                self.kill_group(&orphan)
            }
            Pending::Abandoned => Ok(()),
        }
    }

    fn event(&mut self, event: Event, descriptors: &[OwnedFd]) -> Result<(), Stop> {
        if !descriptors.is_empty() {
            return Err(ProtocolError::Descriptors { expected: 0, found: descriptors.len() }.into());
        }
        // Processes whose spawn was abandoned are not known here.
        let ready = matches!(self.phase, Phase::Ready);
        let handled = match event {
            Event::ExecDone { pid, result } => self.processes.exec_done(pid, result, &mut self.tasks),
            Event::Exited { pid, status } => self.processes.exited(pid, status),
        };
        match handled {
            Err(ProtocolError::UnknownProcess(_)) if !ready => Ok(()),
            handled => Ok(handled?),
        }
    }

    /// How a VM whose init hung up has ended.
    async fn ask_launcher(&mut self) -> GoneReason {
        match tokio::time::timeout(STATUS_TIMEOUT, self.booted.ended()).await {
            Ok(end) => reason_of(end),
            Err(_) => GoneReason::InitHungUp,
        }
    }
}

/// Whether a process that ends after this request has ended by our hand.
fn kills(request: &Request) -> bool {
    matches!(request, Request::Signal { signal: SIGKILL, .. } | Request::KillSupervised { .. })
}

fn reason_of(end: VmEnd) -> GoneReason {
    match end {
        VmEnd::Exited(status) => GoneReason::InitEnded(status),
        VmEnd::BootFailed(failure) => GoneReason::Boot(failure),
        VmEnd::LauncherDied(death) => GoneReason::Launcher(death),
    }
}

async fn sleep_until(timer: Option<Instant>) {
    match timer {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Makes sure that nobody waits for a driver that is gone, a panic included.
struct LastWords(Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            let unexplained = !state.is_over();
            if unexplained {
                *state = crate::vm::VmState::Failed(GoneReason::Fault);
            }
            unexplained
        });
        self.0.uplink.end();
        self.0.finished.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_program_that_we_have_killed_with_its_tree_is_ours_and_no_lack_of_memory() {
        let signal = |signal| Request::Signal { pid: 7, signal, scope: SignalScope::Process };
        assert!(kills(&Request::KillSupervised { pid: 7 }));
        assert!(kills(&signal(SIGKILL)));
        assert!(!kills(&signal(SIGKILL + 6)));
        assert!(!kills(&Request::ListProcesses));
    }
}
