//! The task that owns the launcher's socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentos_guest_protocol::launcher::{BootFailure, LauncherEvent, LauncherRequest, VmNumber};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{HostDirAnswer, LauncherDeath, Queued, Shared, VmEnd};
use crate::channel::{Channel, Outbox, Outgoing, Packet, PrepareError};
use crate::sync::lock;

/// What a launcher must not say.
#[derive(Debug, thiserror::Error)]
pub(super) enum Breach {
    #[error("first event is not Started")]
    NotStarted,
    #[error("Started came twice")]
    StartedTwice,
    #[error("{found} descriptors instead of {expected}")]
    Descriptors { expected: usize, found: usize },
}

/// Runs until the launcher dies or nobody holds it any more.
pub(super) async fn run(channel: Channel, requests: mpsc::Receiver<Queued>, shared: Arc<Shared>) {
    // Whatever ends this task, a panic included, ends the VMs of the launcher.
    let mut last_words = LastWords { shared: Arc::clone(&shared), death: LauncherDeath::Fault };
    last_words.death = serve(&channel, requests, &shared).await;
}

struct LastWords {
    shared: Arc<Shared>,
    death: LauncherDeath,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        // Death first: Launcher::boot looks at it after it has put its slot into the table.
        self.shared.death.send_replace(Some(self.death.clone()));
        for (_, slot) in lock(&self.shared.slots).drain() {
            slot.ended.send_replace(Some(VmEnd::LauncherDied(self.death.clone())));
        }
        lock(&self.shared.host_dirs).clear();
        lock(&self.shared.kills).clear();
    }
}

async fn serve(channel: &Channel, mut requests: mpsc::Receiver<Queued>, shared: &Shared) -> LauncherDeath {
    let mut outbox = Outbox::default();
    loop {
        let sent = tokio::select! {
            packet = channel.receive::<LauncherEvent>() => {
                match packet.map_err(LauncherDeath::from).and_then(|packet| handle(shared, packet)) {
                    Ok(()) => Ok(()),
                    Err(death) => return death,
                }
            }
            request = requests.recv(), if outbox.is_empty() => match request {
                Some(request) => send(channel, &mut outbox, shared, request),
                None => return LauncherDeath::HungUp,
            },
            () = shared.kill_asked.notified() => kill(channel, &mut outbox, shared),
            writable = channel.writable(), if !outbox.is_empty() => match writable {
                Ok(()) => outbox.flush(channel),
                Err(error) => return LauncherDeath::Socket(Arc::new(error)),
            },
        };
        match sent {
            Ok(()) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return LauncherDeath::HungUp,
            Err(errno) => return LauncherDeath::Socket(Arc::new(errno.into())),
        }
    }
}

fn send(
    channel: &Channel,
    outbox: &mut Outbox,
    shared: &Shared,
    Queued { request, descriptors }: Queued,
) -> Result<(), Errno> {
    let sent = match Outgoing::prepare(&request, descriptors) {
        Ok(outgoing) => outbox.send(channel, outgoing),
        Err(PrepareError::Encode(_)) => Err(Errno::TOOBIG),
        Err(PrepareError::Spill(errno)) => Err(errno),
    };
    settle(outbox, shared, &request, sent)
}

/// What became of a request that was to be sent: an error is the launcher's end, unless it is the request's alone.
fn settle(
    outbox: &mut Outbox,
    shared: &Shared,
    request: &LauncherRequest,
    sent: Result<(), Errno>,
) -> Result<(), Errno> {
    match sent {
        Err(errno) if fails_the_request_alone(errno) => {
            outbox.clear();
            refuse(shared, request, errno);
            Ok(())
        }
        other => other,
    }
}

/// What this host is short of now, or what is wrong with this one message, says nothing about the launcher. Where all
/// VMs and the sidecar are one user, a guest can bring such a shortage about.
fn fails_the_request_alone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::TOOMANYREFS
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM
            | Errno::NOBUFS
            | Errno::NOSPC
            | Errno::TOOBIG
    )
}

/// Answers a request that can't be sent as the launcher would have.
fn refuse(shared: &Shared, request: &LauncherRequest, errno: Errno) {
    let failure = |step: &str| BootFailure {
        step: step.to_owned(),
        object: Default::default(),
        errno: errno.raw_os_error(),
    };
    match request {
        LauncherRequest::Boot { vm, .. } => end(shared, *vm, VmEnd::BootFailed(failure("send boot plan"))),
        LauncherRequest::OpenHostDir { token, .. } => {
            answer_host_dir(shared, *token, Err(failure("send host directory")));
        }
        LauncherRequest::Kill { .. } => {}
    }
}

fn kill(channel: &Channel, outbox: &mut Outbox, shared: &Shared) -> Result<(), Errno> {
    for vm in std::mem::take(&mut *lock(&shared.kills)) {
        let alive = lock(&shared.slots).contains_key(&vm);
        if let (true, Ok(kill)) = (alive, Outgoing::prepare(&LauncherRequest::Kill { vm }, Vec::new())) {
            outbox.send(channel, kill)?;
        }
    }
    Ok(())
}

fn handle(shared: &Shared, packet: Packet<LauncherEvent>) -> Result<(), LauncherDeath> {
    let Packet { message, mut descriptors, lost_descriptors } = packet;
    let expected = usize::from(matches!(message, LauncherEvent::HostDirOpened { .. }));
    if let (true, LauncherEvent::HostDirOpened { token }) = (lost_descriptors, &message) {
        let errno = Errno::MFILE.raw_os_error();
        let step = "receive host directory".to_owned();
        answer_host_dir(shared, *token, Err(BootFailure { step, object: Default::default(), errno }));
        return Ok(());
    }
    if descriptors.len() != expected {
        let found = descriptors.len();
        return Err(LauncherDeath::protocol(Breach::Descriptors { expected, found }));
    }
    match message {
        LauncherEvent::Started(_) | LauncherEvent::StartFailed(_) => {
            return Err(LauncherDeath::protocol(Breach::StartedTwice));
        }
        LauncherEvent::Cloned { vm, pid, cgroups } => {
            tracing::debug!(vm = vm.0, pid, "cloned");
            if let Some(slot) = lock(&shared.slots).get(&vm) {
                // A second Cloned changes nothing.
                let _ = slot.cgroups.set(cgroups);
            }
        }
        LauncherEvent::BootFailed { vm, failure } => end(shared, vm, VmEnd::BootFailed(failure)),
        LauncherEvent::Exited { vm, status } => end(shared, vm, VmEnd::Exited(status)),
        LauncherEvent::HostDirOpened { token } => {
            if let Some(tree) = descriptors.pop() {
                answer_host_dir(shared, token, Ok::<OwnedFd, _>(tree));
            }
        }
        LauncherEvent::HostDirFailed { token, failure } => answer_host_dir(shared, token, Err(failure)),
    }
    Ok(())
}

/// The VM's slot goes, and with it its lease of ids: nothing of the VM is left that could use them.
fn end(shared: &Shared, vm: VmNumber, how: VmEnd) {
    if let Some(slot) = lock(&shared.slots).remove(&vm) {
        slot.ended.send_replace(Some(how));
    }
}

fn answer_host_dir(shared: &Shared, token: u32, answer: HostDirAnswer) {
    if let Some(waiting) = lock(&shared.host_dirs).remove(&token) {
        // Nobody waits any more: the tree is closed, and nothing is left of it.
        let _ = waiting.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use agentos_guest_protocol::launcher::IdMode;
    use agentos_guest_protocol::mount::HostDir;
    use tokio::sync::{oneshot, watch};

    use super::*;
    use crate::ids::IdPool;
    use crate::launcher::Slot;

    /// A launcher's tables with one VM on its way and one directory being opened.
    struct Tables {
        shared: Shared,
        ended: watch::Receiver<Option<VmEnd>>,
        opened: oneshot::Receiver<HostDirAnswer>,
        _ids: tempfile::TempDir,
    }

    const VM: VmNumber = VmNumber(1);
    const TOKEN: u32 = 7;

    impl Tables {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let ids = IdPool::open(directory.path(), IdMode::Single).unwrap().lease().unwrap();
            let ((ended, watch), (answer, opened)) = (watch::channel(None), oneshot::channel());
            let slot = Slot { cgroups: Default::default(), ended, _ids: ids };
            let shared = Shared {
                slots: [(VM, slot)].into_iter().collect::<std::collections::HashMap<_, _>>().into(),
                host_dirs: [(TOKEN, answer)].into_iter().collect::<std::collections::HashMap<_, _>>().into(),
                kills: Default::default(),
                kill_asked: Default::default(),
                death: watch::Sender::new(None),
            };
            Self { shared, ended: watch, opened, _ids: directory }
        }

        fn settle(&self, request: &LauncherRequest, errno: Errno) -> Result<(), Errno> {
            settle(&mut Outbox::default(), &self.shared, request, Err(errno))
        }
    }

    fn boot() -> LauncherRequest {
        let plan = crate::spec::test_spec()
            .boot_plan(agentos_guest_protocol::launcher::IdRange::Single, "group".to_owned());
        LauncherRequest::Boot { vm: VM, plan: Box::new(plan) }
    }

    fn open() -> LauncherRequest {
        let source = b"/srv".to_vec().into();
        let host_dir = HostDir { source, file: false, read_only: true, allow_sockets: false };
        LauncherRequest::OpenHostDir { vm: VM, token: TOKEN, host_dir }
    }

    /// Where the guest is the sidecar's own user, it can bring the first about: it has as many descriptors in flight as
    /// the kernel lets a user have.
    #[test]
    fn a_shortage_fails_the_request_that_met_it_and_no_launcher() {
        for errno in [Errno::TOOMANYREFS, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            let mut tables = Tables::new();
            assert_eq!(tables.settle(&boot(), errno), Ok(()));
            let end = tables.ended.borrow().clone();
            let Some(VmEnd::BootFailed(failure)) = end else { panic!("{errno}: {end:?}") };
            assert_eq!((failure.errno, failure.step.as_str()), (errno.raw_os_error(), "send boot plan"));
            assert_eq!(tables.settle(&open(), errno), Ok(()));
            assert_eq!(tables.opened.try_recv().unwrap().unwrap_err().errno, errno.raw_os_error());
            assert_eq!(tables.settle(&LauncherRequest::Kill { vm: VM }, errno), Ok(()));
        }
    }

    #[test]
    fn what_only_a_dead_launcher_answers_is_its_end() {
        for errno in [Errno::PIPE, Errno::CONNRESET, Errno::BADF] {
            let tables = Tables::new();
            assert_eq!(tables.settle(&boot(), errno), Err(errno));
            assert!(tables.ended.borrow().is_none());
        }
    }
}
