//! The VMs of this launcher, from clone to reaping.
//!
//! ```text
//! boot ─► Opening ─ trees of host directories ─► Staging ─ hang-up ─► Running ─ exit ─► reaped ─► Exited sent
//!   └ a step fails: the clone is killed, reaped, and BootFailed sent instead
//! ```

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agentos_guest_protocol::launcher::{BootFailure, BootPlan, IdRange, LauncherEvent, VmNumber};
use agentos_guest_protocol::mount::HostDir;
use agentos_guest_protocol::process::Status;
use agentos_linux::clone::{Cloned, Namespaces, SingleThreaded, clone_namespaces};
use agentos_linux::signal::Ended;
use agentos_linux::{Errno, credentials, seqpacket, signal};
use rustix::event::{Timespec, epoll};
use rustix::fs::FlockOperation;

use super::openers::{Client, Opened, Openers, Order};
use super::prepare::Prepared;
use super::{Source, Staged, cgroups, idmap, stage};
use crate::boot;
use crate::wire::{self, WireError, failure};

pub(super) struct Clones {
    control: BorrowedFd<'static>,
    poll: OwnedFd,
    prepared: Prepared,
    alone: SingleThreaded,
    live: HashMap<u64, Clone>,
    openers: Openers,
    /// Exited VMs whose control groups the kernel still holds.
    leaving: Vec<(VmNumber, LauncherEvent, cgroups::Groups)>,
}

/// One VM's clone.
struct Clone {
    pid: i32,
    pidfd: OwnedFd,
    /// Both are present until the clone has left the stage.
    boot: Option<OwnedFd>,
    staged: Option<Staged>,
    groups: cgroups::Groups,
    /// The lock of its storage directory.
    storage_lock: Option<OwnedFd>,
    plan: BootPlan,
    /// Why it is being killed, where the launcher failed to finish its part.
    failed: Option<BootFailure>,
}

/// How often the kernel is asked again to let a control group go.
const CGROUP_RETRY: Duration = Duration::from_millis(1);

impl Clones {
    pub(super) fn new(
        control: BorrowedFd<'static>,
        poll: OwnedFd,
        prepared: Prepared,
        alone: SingleThreaded,
    ) -> Result<Self, Errno> {
        if rustix::process::geteuid().is_root() {
            credentials::keep_capabilities_across_ids()?;
        }
        Ok(Self {
            control,
            poll,
            prepared,
            alone,
            live: HashMap::new(),
            openers: Openers::default(),
            leaving: Vec::new(),
        })
    }

    /// Waits for something to do.
    pub(super) fn wait(&self) -> Result<Vec<Source>, Errno> {
        let mut events = Vec::with_capacity(64);
        loop {
            let timeout = self.timeout(Instant::now());
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        let mut sources: Vec<Source> =
            events.iter().map(|event: &epoll::Event| Source::unpack(event.data.u64())).collect();
        let due = self.openers.next_deadline().is_some_and(|at| at <= Instant::now());
        if due || !self.leaving.is_empty() {
            sources.push(Source::Timer);
        }
        Ok(sources)
    }

    fn timeout(&self, now: Instant) -> Option<Timespec> {
        let retry = (!self.leaving.is_empty()).then_some(CGROUP_RETRY);
        let deadline = self.openers.next_deadline().map(|at| at.saturating_duration_since(now));
        retry
            .into_iter()
            .chain(deadline)
            .min()
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    /// Clones a VM and does the launcher's part of its boot.
    pub(super) fn boot(
        &mut self,
        vm: VmNumber,
        plan: BootPlan,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), WireError> {
        let mut descriptors = descriptors.into_iter();
        let Some(init_socket) = descriptors.next() else {
            return Err(WireError::NoDescriptor);
        };
        let storage_lock = descriptors.next();
        if storage_lock.is_some() != plan.storage.is_some() {
            return Err(WireError::NoDescriptor);
        }
        match self.clone_vm(vm, plan, (init_socket, storage_lock)) {
            Ok(event) => wire::send(self.control, &event, &[]),
            Err(failure) => wire::send(self.control, &LauncherEvent::BootFailed { vm, failure }, &[]),
        }
    }

    fn clone_vm(
        &mut self,
        vm: VmNumber,
        plan: BootPlan,
        (init_socket, storage_lock): (OwnedFd, Option<OwnedFd>),
    ) -> Result<LauncherEvent, BootFailure> {
        let groups = self.prepared.cgroups.create(&plan.limits)?;
        let (boot, boot_of_clone) =
            seqpacket::pair().map_err(|errno| failure("socketpair", "boot", errno))?;
        let staged = Staged::new(vm, &plan, &self.prepared.host_directories);
        let cloned = self.clone_as_owner(&plan, groups.unified.as_ref().map(AsFd::as_fd));
        let (pid, pidfd) = match cloned {
            Ok(Cloned::Child) => boot::run(boot::Inheritance {
                alone: &self.alone,
                control: init_socket,
                launcher: boot_of_clone,
                tasks: &groups.tasks,
                storage_lock,
                plan: &plan,
                staged: &staged,
            }),
            Ok(Cloned::Parent { pid, pidfd }) => (pid, pidfd),
            Err(errno) => {
                self.prepared.cgroups.remove(&groups);
                return Err(failure("clone3", "", errno));
            }
        };
        let event = LauncherEvent::Cloned { vm, pid, cgroups: groups.readable.clone() };
        let (boot, staged) = (Some(boot), Some(staged));
        let mut clone = Clone { pid, pidfd, boot, staged, groups, storage_lock, plan, failed: None };
        clone.failed = self.prepare(vm, &clone).err();
        if clone.failed.is_some() {
            clone.kill();
        }
        self.live.insert(vm.0, clone);
        Ok(event)
    }

    /// Clones as the VM's own user of the host: otherwise all VMs of a root sidecar would share one user's budget of
    /// inotify instances, pending signals and processes.
    fn clone_as_owner(&self, plan: &BootPlan, group: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
        let IdRange::Range { base } = plan.ids else {
            return clone_namespaces(&self.alone, Namespaces::VM, group);
        };
        credentials::set_effective_uid(base)?;
        let cloned = clone_namespaces(&self.alone, Namespaces::VM, group);
        // The clone sets its ids itself, once they are mapped.
        if !matches!(cloned, Ok(Cloned::Child)) {
            credentials::set_effective_uid(0)?;
        }
        cloned
    }

    /// Maps and mounts; the word to go on where no directory has to be opened for it.
    fn prepare(&mut self, vm: VmNumber, clone: &Clone) -> Result<(), BootFailure> {
        // First of all: whatever fails from here on, the exit must be seen.
        self.watch(clone.pidfd.as_fd(), Source::Exit(vm.0))?;
        let (users, groups) = maps(&clone.plan);
        idmap::write_maps(clone.pid, &users, &groups)
            .map_err(|errno| failure("write uid_map", users.as_bytes(), errno))?;
        let namespace = idmap::open_user_namespace(clone.pid)
            .map_err(|errno| failure("open user namespace", "", errno))?;
        if let Some(staged) = &clone.staged {
            staged.build(&clone.plan, namespace.as_fd())?;
        }
        let foreign = stage::foreign(&clone.plan);
        let (alone, namespace) = (&self.alone, namespace.as_fd());
        let at_hand: Option<Vec<OwnedFd>> = foreign.iter().map(stage::Foreign::at_hand).collect();
        if let Some(found) = at_hand {
            let open = |(directory, found): (&stage::Foreign<'_>, &OwnedFd)| {
                directory.open(alone, &clone.plan, namespace, Some(found.as_fd()))
            };
            let trees: Vec<_> = foreign.iter().zip(&found).map(open).collect::<Result<_, _>>()?;
            return self.go_on(vm, clone, &trees);
        }
        let open = |index: usize| match foreign.get(index) {
            Some(directory) => directory.open(alone, &clone.plan, namespace, None),
            None => Err(failure("open", "", Errno::NOENT)),
        };
        let sources = foreign.iter().map(stage::Foreign::source).collect();
        let order = Order { client: Client::Vm(vm.0), sources, keep: Some(namespace) };
        self.openers.start(alone, &self.poll, order, open)
    }

    /// The rest of the stage and the word to go on.
    fn go_on(&self, vm: VmNumber, clone: &Clone, trees: &[OwnedFd]) -> Result<(), BootFailure> {
        if let Some(staged) = &clone.staged {
            staged.attach(&clone.plan, trees)?;
        }
        if let Some(boot) = &clone.boot {
            self.watch(boot.as_fd(), Source::Boot(vm.0))?;
            seqpacket::send(boot.as_fd(), boot::GO, &[]).map_err(|errno| failure("send", "go", errno))?;
        }
        Ok(())
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> Result<(), BootFailure> {
        epoll::add(&self.poll, fd, epoll::EventData::new_u64(source.pack()), epoll::EventFlags::IN)
            .map_err(|errno| failure("epoll_ctl", "", errno))
    }

    /// An opener has something to say.
    pub(super) fn opener_message(&mut self, client: Client) -> Result<(), WireError> {
        match self.openers.listen(&self.poll, client) {
            Some(opened) => self.opened(client, opened),
            None => Ok(()),
        }
    }

    pub(super) fn opener_exited(&mut self, pid: i32) -> Result<(), WireError> {
        Ok(self.openers.exited(&self.poll, pid)?)
    }

    /// Directories are open, or are known not to be.
    fn opened(&mut self, client: Client, opened: Opened) -> Result<(), WireError> {
        match (client, opened) {
            (Client::Mount(token), opened) => tell_mount(self.control, token, opened),
            (Client::Vm(vm), opened) => {
                let Some(clone) = self.live.get(&vm) else { return Ok(()) };
                let failed = opened.and_then(|trees| self.go_on(VmNumber(vm), clone, &trees)).err();
                if let (Some(failure), Some(clone)) = (failed, self.live.get_mut(&vm)) {
                    clone.failed = Some(failure);
                    clone.kill();
                }
                Ok(())
            }
        }
    }

    /// Does what has waited for its time.
    pub(super) fn timers(&mut self) -> Result<(), WireError> {
        for (client, failure) in self.openers.expire(&self.poll, Instant::now()) {
            self.opened(client, Err(failure))?;
        }
        self.retry_cgroups()
    }

    /// The clone hangs up: it has left the stage, or died on the way.
    pub(super) fn boot_message(&mut self, vm: u64) -> Result<(), WireError> {
        let Some(boot) = self.live.get(&vm).and_then(|clone| clone.boot.as_ref()) else { return Ok(()) };
        match seqpacket::receive(boot.as_fd(), &mut [0; 16]) {
            // Killed before it has read the word to go on: what it leaves unread resets the connection.
            Ok(_) | Err(Errno::CONNRESET) => self.leave_stage(vm),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The stage of a VM is done with. Closing alone would not end the watch: a clone made meanwhile may hold a copy
    /// of the socket for a moment.
    fn leave_stage(&mut self, vm: u64) -> Result<(), WireError> {
        let Some(clone) = self.live.get_mut(&vm) else { return Ok(()) };
        if let Some(staged) = clone.staged.take() {
            staged.clear(&clone.plan);
        }
        if let Some(boot) = clone.boot.take() {
            epoll::delete(&self.poll, &boot).or_else(ignore_absent)?;
        }
        Ok(())
    }
}

impl Clones {
    /// Reaps a VM's init. Its PID namespace is empty by now: the kernel has killed and reaped what was left.
    pub(super) fn exited(&mut self, vm: u64) -> Result<(), WireError> {
        self.openers.give_up(&self.poll, Client::Vm(vm));
        self.leave_stage(vm)?;
        let Some(clone) = self.live.remove(&vm) else { return Ok(()) };
        epoll::delete(&self.poll, &clone.pidfd)?;
        let status = match signal::reap(clone.pid) {
            Some(Ended::Exited(code)) => Status::Exited(code),
            Some(Ended::Signaled(signal)) => Status::Signaled(signal),
            None => Status::Signaled(SIGKILL),
        };
        if let Some(lock) = &clone.storage_lock {
            // Closing it would not do: a clone made a moment ago may hold a copy of it still.
            rustix::fs::flock(lock, FlockOperation::Unlock)?;
        }
        let vm = VmNumber(vm);
        let event = match clone.failed {
            Some(failure) => LauncherEvent::BootFailed { vm, failure },
            None => LauncherEvent::Exited { vm, status },
        };
        if self.prepared.cgroups.remove(&clone.groups) {
            return wire::send(self.control, &event, &[]);
        }
        self.leaving.push((vm, event, clone.groups));
        Ok(())
    }

    /// Asks again for the control groups that were busy.
    fn retry_cgroups(&mut self) -> Result<(), WireError> {
        let mut left = Vec::new();
        for (vm, event, groups) in self.leaving.drain(..) {
            if self.prepared.cgroups.remove(&groups) {
                wire::send(self.control, &event, &[])?;
            } else {
                left.push((vm, event, groups));
            }
        }
        self.leaving = left;
        Ok(())
    }

    pub(super) fn kill(&mut self, vm: VmNumber) {
        if let Some(clone) = self.live.get(&vm.0) {
            clone.kill();
        }
    }

    pub(super) fn open_host_dir(
        &mut self,
        vm: VmNumber,
        token: u32,
        host_dir: &HostDir,
    ) -> Result<(), WireError> {
        let (alone, client) = (&self.alone, Client::Mount(token));
        let begun = match self.live.get(&vm.0) {
            Some(clone) => {
                if let Some(found) = stage::host_dir_at_hand(host_dir) {
                    let opened = stage::open_host_dir(alone, &clone.plan, host_dir, Some(found.as_fd()));
                    return self.opened(client, opened.map(|tree| vec![tree]));
                }
                let open = |_| stage::open_host_dir(alone, &clone.plan, host_dir, None);
                let order = Order { client, sources: vec![host_dir.source.clone()], keep: None };
                self.openers.start(alone, &self.poll, order, open)
            }
            None => Err(failure("find VM", vm.0.to_string(), Errno::SRCH)),
        };
        match begun {
            Ok(()) => Ok(()),
            Err(failure) => self.opened(client, Err(failure)),
        }
    }
}

impl Drop for Clones {
    fn drop(&mut self) {
        self.prepared.cgroups.remove_own();
    }
}

impl Clone {
    fn kill(&self) {
        // Gone already is as good as killed: its exit is on the way.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }
}

/// Hands a tree over, or says why not.
fn tell_mount(control: BorrowedFd<'_>, token: u32, opened: Opened) -> Result<(), WireError> {
    let sent = opened.and_then(|trees| {
        let trees: Vec<_> = trees.iter().map(AsFd::as_fd).collect();
        match wire::send(control, &LauncherEvent::HostDirOpened { token }, &trees) {
            // The kernel may refuse to take descriptors along: it counts those in flight for the host's user, and a
            // guest that is the same user may have sent too many. That ends a mount, not the VMs.
            Err(WireError::System(errno)) if !HANG_UPS.contains(&errno) => {
                Err(failure("send tree", "", errno))
            }
            sent => Ok(sent),
        }
    });
    match sent {
        Ok(sent) => sent,
        Err(failure) => wire::send(control, &LauncherEvent::HostDirFailed { token, failure }, &[]),
    }
}

/// What a send says where nobody is left to hear anything.
const HANG_UPS: [Errno; 3] = [Errno::PIPE, Errno::CONNRESET, Errno::NOTCONN];

const SIGKILL: i32 = 9;

fn ignore_absent(errno: Errno) -> Result<(), Errno> {
    if errno == Errno::NOENT { Ok(()) } else { Err(errno) }
}

/// The id maps of a VM: users, groups. Without root the launcher is 0 in its own user namespace.
fn maps(plan: &BootPlan) -> (String, String) {
    let map = match plan.ids {
        IdRange::Range { base } => format!("0 {base} 65536"),
        IdRange::Single => format!("{} 0 1", boot::user_id(plan)),
    };
    (map.clone(), map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trees(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| rustix::pipe::pipe().unwrap().0).collect()
    }

    #[test]
    fn a_tree_that_can_t_be_sent_fails_its_mount_and_the_launcher_goes_on() {
        let (sidecar, control) = seqpacket::pair().unwrap();
        // More descriptors than a packet takes are refused as too many in flight are.
        tell_mount(control.as_fd(), 7, Ok(trees(seqpacket::MAX_DESCRIPTORS + 1))).unwrap();
        let (event, _) = wire::receive(sidecar.as_fd(), &mut Vec::new()).unwrap().unwrap();
        let LauncherEvent::HostDirFailed { token: 7, failure } = event else { panic!("{event:?}") };
        assert_eq!(failure.errno, Errno::TOOMANYREFS.raw_os_error());

        tell_mount(control.as_fd(), 8, Ok(trees(1))).unwrap();
        let (event, trees) = wire::receive(sidecar.as_fd(), &mut Vec::new()).unwrap().unwrap();
        assert!(matches!(event, LauncherEvent::HostDirOpened { token: 8 }), "{event:?}");
        assert_eq!(trees.len(), 1);
    }

    #[test]
    fn a_sidecar_that_is_gone_is_no_failure_of_a_mount() {
        let (sidecar, control) = seqpacket::pair().unwrap();
        drop(sidecar);
        assert!(matches!(tell_mount(control.as_fd(), 7, Ok(trees(1))), Err(WireError::System(Errno::PIPE))));
    }
}
