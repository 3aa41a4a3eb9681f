//! Directories of the host are opened in processes of their own: one on a server that doesn't answer holds whoever
//! opens it, and the launcher has VMs to make.
//!
//! ```text
//! launcher ── fork ──► opener: open, look, clone, restrict ──► a tree per directory, in order ──► exits
//!    └ after the deadline: the opener is killed and left where it hangs; its client is told which directory it was
//! ```
//! A fork takes longer than everything that an opener does. Where the kernel has the whole path in its cache and the file
//! system is one of this machine ([`at_hand`]), nothing can hang, and the launcher does it itself.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::launcher::BootFailure;
use agentos_linux::clone::{self, Cloned, Namespaces, SingleThreaded, clone_namespaces};
use agentos_linux::{Errno, mount, seqpacket, signal};
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::Source;
use crate::wire::{self, WireError, failure};

/// A server across a network answers within this time or not at all.
const DEADLINE: Duration = Duration::from_secs(10);

/// At work or hanging. With so many that hang, nobody's next directory is worth another process.
const MAX_OPENERS: usize = 64;

/// Whom trees are opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// A VM on its way, by its number.
    Vm(u64),
    /// A live mount, by its token.
    Mount(u32),
}

#[derive(Debug, Default)]
pub(super) struct Openers {
    running: HashMap<Client, Opener>,
    /// Openers that are not reaped yet, by pid. Those that are not running were given up, or are done.
    processes: HashMap<i32, OwnedFd>,
}

#[derive(Debug)]
struct Opener {
    pid: i32,
    answers: OwnedFd,
    deadline: Instant,
    /// The directories, of which the first have their trees.
    sources: Vec<Bytes>,
    trees: Vec<OwnedFd>,
}

/// Directories to be opened for somebody.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub client: Client,
    pub sources: Vec<Bytes>,
    /// A descriptor that making their trees needs.
    pub keep: Option<BorrowedFd<'a>>,
}

/// All trees in the order asked, or why not.
pub(super) type Opened = Result<Vec<OwnedFd>, BootFailure>;

/// What an opener says about one directory; the tree comes with it.
type Answer = Result<(), BootFailure>;

impl Openers {
    /// Begins to open directories. `open` makes the tree of one of them, by its position, in the opener.
    pub(super) fn start(
        &mut self,
        alone: &SingleThreaded,
        poll: &OwnedFd,
        Order { client, sources, keep }: Order<'_>,
        open: impl Fn(usize) -> Result<OwnedFd, BootFailure>,
    ) -> Result<(), BootFailure> {
        let first = sources.first().cloned().unwrap_or_default();
        let fail = |step: &str, errno| failure(step, &first, errno);
        if self.processes.len() >= MAX_OPENERS {
            return Err(fail("open", Errno::AGAIN));
        }
        let (answers, theirs) = seqpacket::pair().map_err(|errno| fail("socketpair", errno))?;
        rustix::io::ioctl_fionbio(&answers, true).map_err(|errno| fail("ioctl", errno))?;
        let cloned =
            clone_namespaces(alone, Namespaces::NONE, None).map_err(|errno| fail("clone3", errno))?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => work(alone, theirs.as_fd(), keep, sources.len(), open),
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        let deadline = Instant::now() + DEADLINE;
        let opener = Opener { pid, answers, deadline, sources, trees: Vec::new() };
        let watch = |fd: BorrowedFd<'_>, source: Source| {
            epoll::add(poll, fd, epoll::EventData::new_u64(source.pack()), epoll::EventFlags::IN)
        };
        watch(pidfd.as_fd(), Source::OpenerExit(pid)).map_err(|errno| fail("epoll_ctl", errno))?;
        self.processes.insert(pid, pidfd);
        let watched = watch(opener.answers.as_fd(), Source::Opener(client));
        self.running.insert(client, opener);
        watched.map_err(|errno| {
            self.give_up(poll, client);
            fail("epoll_ctl", errno)
        })
    }

    /// An opener has said something, or hung up. None while more is to come.
    pub(super) fn listen(&mut self, poll: &OwnedFd, client: Client) -> Option<Opened> {
        let opener = self.running.get_mut(&client)?;
        let opened = opener.receive()?;
        self.give_up(poll, client);
        Some(opened)
    }

    /// Nobody waits for these trees any more, or they are there.
    pub(super) fn give_up(&mut self, poll: &OwnedFd, client: Client) {
        let Some(opener) = self.running.remove(&client) else { return };
        // A clone made meanwhile may hold a copy of the socket, so closing it would not end the watch. One that could not
        // be watched is the exception, and needs no end.
        let _ = epoll::delete(poll, &opener.answers);
        if let Some(process) = self.processes.get(&opener.pid) {
            // It may have ended by itself; and where it hangs, it dies when the kernel lets it.
            let _ = rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL);
        }
    }

    /// Reaps an opener.
    pub(super) fn exited(&mut self, poll: &OwnedFd, pid: i32) -> Result<(), Errno> {
        signal::reap(pid);
        self.processes.remove(&pid).map_or(Ok(()), |process| epoll::delete(poll, &process))
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.running.values().map(|opener| opener.deadline).min()
    }

    /// Gives up the openers whose time is up.
    pub(super) fn expire(&mut self, poll: &OwnedFd, now: Instant) -> Vec<(Client, BootFailure)> {
        let late = self.running.iter().filter(|(_, opener)| opener.deadline <= now);
        let late: Vec<_> =
            late.map(|(client, opener)| (*client, opener.failed("open", Errno::TIMEDOUT))).collect();
        for (client, _) in &late {
            self.give_up(poll, *client);
        }
        late
    }
}

impl Opener {
    fn receive(&mut self) -> Option<Opened> {
        let mut buffer = Vec::new();
        while self.trees.len() < self.sources.len() {
            match wire::receive::<Answer>(self.answers.as_fd(), &mut buffer) {
                Ok(None) => return None,
                Ok(Some((Ok(()), descriptors))) => match descriptors.into_iter().next() {
                    Some(tree) => self.trees.push(tree),
                    None => return Some(Err(self.failed("receive tree", Errno::BADF))),
                },
                Ok(Some((Err(failure), _))) => return Some(Err(failure)),
                Err(WireError::System(errno)) => return Some(Err(self.failed("receive tree", errno))),
                Err(_) => return Some(Err(self.failed("receive tree", Errno::IO))),
            }
        }
        Some(Ok(std::mem::take(&mut self.trees)))
    }

    /// A failure with the directory that is being opened.
    fn failed(&self, step: &str, errno: Errno) -> BootFailure {
        failure(step, self.sources.get(self.trees.len()).map_or(&[][..], |source| source), errno)
    }
}

/// File systems that wait for nobody outside of this machine. An overlay may: its layers lie anywhere.
const LOCAL: [&[u8]; 9] = [b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs", b"zfs", b"tmpfs", b"ramfs"];

/// A directory that can be opened without waiting for a server, as a descriptor to open it by: its name may mean another
/// one a moment later. Asks no file system: the path is looked up in the kernel's cache alone, and what it lies in is read
/// from the table of mounts.
pub(super) fn at_hand(source: &[u8]) -> Option<OwnedFd> {
    let directory = rustix::fs::openat2(
        rustix::fs::CWD,
        source,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::CACHED,
    );
    let directory = directory.ok()?;
    let kind = mount::file_system(directory.as_fd())?;
    LOCAL.contains(&kind.as_slice()).then_some(directory)
}

/// Whether a directory is read through in a moment. Reads no more of it than it takes to know.
pub(super) fn is_short(directory: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = rustix::fs::openat(directory, ".", flags, Mode::empty()).and_then(rustix::fs::Dir::new);
    entries
        .is_ok_and(|entries| entries.take(SHORT_ENTRIES + 1).filter(Result::is_ok).count() <= SHORT_ENTRIES)
}

/// What the launcher reads of a directory itself, `.` and `..` included. A project has fewer entries at its top; a store of
/// data or messages is an opener's to read.
const SHORT_ENTRIES: usize = 500;

/// The opener's life. It keeps nothing of the launcher's: were it to hold the sidecar's socket while it hangs, nobody
/// would see the launcher die.
fn work(
    alone: &SingleThreaded,
    answers: BorrowedFd<'_>,
    keep: Option<BorrowedFd<'_>>,
    directories: usize,
    open: impl Fn(usize) -> Result<OwnedFd, BootFailure>,
) -> ! {
    let kept: Vec<_> = [answers].into_iter().chain(keep).collect();
    let alone = signal::die_with_parent().and_then(|()| clone::close_all_but(alone, &kept));
    if alone.is_err() {
        std::process::exit(1);
    }
    for index in 0..directories {
        let sent = match open(index) {
            Ok(tree) => wire::send(answers, &Answer::Ok(()), &[tree.as_fd()]),
            Err(failure) => wire::send(answers, &Answer::Err(failure), &[]),
        };
        // A launcher that doesn't listen any more has given this up.
        if sent.is_err() {
            break;
        }
    }
    std::process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_this_machine_is_at_hand_and_one_of_the_kernel_s_tables_is_not() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(at_hand(directory.path().as_os_str().as_encoded_bytes()).is_some());
        assert!(at_hand(b"/proc/self").is_none());
        assert!(at_hand(directory.path().join("absent").as_os_str().as_encoded_bytes()).is_none());
    }

    #[test]
    fn a_directory_with_many_entries_is_not_the_launcher_s_to_read() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let found = at_hand(directory.path().as_os_str().as_encoded_bytes()).unwrap();
        assert!(is_short(found.as_fd()));
        for number in 0..=SHORT_ENTRIES {
            std::fs::write(directory.path().join(number.to_string()), "").unwrap();
        }
        assert!(!is_short(found.as_fd()));
    }
}
