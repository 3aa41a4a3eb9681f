//! The guest side of the file API: every path a user names is resolved here, inside the VM, and nowhere else.
//!
//! ```text
//! event loop ── submit ──► pool ── a thread of PID 1 ──► FileSystem::handle ── openat2, *at ──► the VM's files
//!                            │                                 └──► the answer, to the sidecar
//!                            └ with a deadline: a call that hangs in a mount is answered and left behind
//! ```
//!
//! The guest owns most of the tree and may change it between any two system calls. Three rules keep its tricks
//! harmless:
//!
//! 1. A path is turned into a descriptor by `openat2` below the VM's root ([`root`]), so that no link and no `..`
//!    leads out, and no magic link of /proc is followed at all.
//! 2. What changes the tree names the last component only, relative to its opened parent, and never follows it.
//! 3. What is opened is judged by its descriptor, after it was opened, never by its name before.
//!
//! In reading order: [`path`], [`root`] and [`stat`] are the vocabulary; [`read`], [`write`] (with [`stage`],
//! [`in_place`] and [`metadata`]), [`list`], [`make`], [`delete`] and [`rename`] (with [`copy`]) are the calls;
//! [`calls`] dispatches to them; [`pool`] runs them on threads.
//!
//! Threads inherit their credentials from the event loop: effective file ids of the VM's user, so that new files are
//! the user's, and the VM root's capabilities over files. The process's umask is expected to be 022.

mod calls;
mod copy;
mod delete;
mod descent;
mod in_place;
mod list;
mod make;
mod metadata;
mod path;
mod pool;
mod progress;
mod read;
mod rename;
mod root;
mod stage;
mod stat;
mod streams;
mod write;

#[cfg(test)]
mod tests;

pub(crate) use calls::FileSystem;
pub(crate) use delete::remove_tree;
pub(crate) use pool::{Answer, Pool};
pub(crate) use progress::Progress;
pub(crate) use root::Root;

/// Opens a directory in a directory, through no link and no mount.
pub(crate) fn open_directory_in(
    parent: std::os::fd::BorrowedFd<'_>,
    name: &[u8],
) -> Result<std::os::fd::OwnedFd, rustix::io::Errno> {
    descent::open_dir(parent, name, descent::Mounts::Refuse)
}
