//! Walking a directory tree of any depth with a handful of descriptors and no recursion.
//!
//! ```text
//! base ── a ── b ── ... ── x ── y ── current
//! open   closed   closed   open open   open
//! ```
//! Descriptors of the base and of the innermost directories stay open. A closed ancestor is opened again through
//! `..` and must prove to be the directory that was left: if the guest has moved things meanwhile, the walk goes down
//! from the base once more by the names it knows, and lands on the deepest directory that is still the same.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::stat::{Identity, identity, stat_descriptor};

/// How many ancestors beside the base stay open.
const OPEN_ANCESTORS: usize = 16;

/// Whether directories that are mount points are entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounts {
    Enter,
    /// Entering one fails with EXDEV.
    Refuse,
}

#[derive(Debug)]
pub(super) struct Descent {
    mounts: Mounts,
    ancestors: Vec<Ancestor>,
    current: Current,
}

#[derive(Debug)]
struct Ancestor {
    dir: Option<OwnedFd>,
    identity: Identity,
    /// The name through which the walk went on from here.
    child: Vec<u8>,
}

#[derive(Debug)]
struct Current {
    dir: OwnedFd,
    identity: Identity,
}

/// Where [`Descent::leave`] came out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// One, or more where the tree was changed under the walk.
    pub(super) levels: usize,
    /// The name, in the directory that is current now, through which the walk had gone down.
    pub(super) name: Vec<u8>,
}

impl Descent {
    pub(super) fn new(base: OwnedFd, mounts: Mounts) -> Result<Self, Errno> {
        Ok(Self { mounts, ancestors: Vec::new(), current: Current::new(base)? })
    }

    pub(super) fn current(&self) -> BorrowedFd<'_> {
        self.current.dir.as_fd()
    }

    /// Goes into a directory of the current one. Fails with ELOOP or ENOTDIR for what isn't a directory.
    pub(super) fn enter(&mut self, name: &[u8]) -> Result<(), Errno> {
        let child = Current::new(open_dir(self.current(), name, self.mounts)?)?;
        let parent = std::mem::replace(&mut self.current, child);
        self.ancestors.push(Ancestor {
            dir: Some(parent.dir),
            identity: parent.identity,
            child: name.to_vec(),
        });
        if let Some(cold) = self.ancestors.len().checked_sub(OPEN_ANCESTORS + 1)
            && cold > 0
        {
            self.ancestors[cold].dir = None;
        }
        Ok(())
    }

    /// Goes back up. Nothing when the current directory is the base.
    pub(super) fn leave(&mut self) -> Result<Option<Left>, Errno> {
        let Some(parent) = self.ancestors.pop() else { return Ok(None) };
        let Ancestor { dir, identity, child } = parent;
        let reopened = match dir {
            Some(dir) => Some(Current { dir, identity }),
            None => self.dot_dot(identity)?,
        };
        let Some(current) = reopened else { return self.land_again(identity, child).map(Some) };
        self.current = current;
        Ok(Some(Left { levels: 1, name: child }))
    }

    /// The parent of the current directory, if it is still the one the walk came from.
    fn dot_dot(&self, identity: Identity) -> Result<Option<Current>, Errno> {
        match openat(&self.current.dir, c"..", directory_flags(), Mode::empty()) {
            Ok(dir) => {
                let found = Current::new(dir)?;
                Ok((found.identity == identity).then_some(found))
            }
            // The current directory is deleted, or the parent can't be read any more.
            Err(Errno::NOENT | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Walks down from the base again. `identity` and `child` are of the ancestor just taken off.
    fn land_again(&mut self, identity: Identity, child: Vec<u8>) -> Result<Left, Errno> {
        self.ancestors.push(Ancestor { dir: None, identity, child });
        let mut landed = 0;
        let mut below: Option<Current> = None;
        for index in 1..self.ancestors.len() {
            let from = match &below {
                Some(current) => current.dir.as_fd(),
                None => self.base()?,
            };
            let Ok(dir) = open_dir(from, &self.ancestors[index - 1].child, self.mounts) else { break };
            let found = Current::new(dir)?;
            if found.identity != self.ancestors[index].identity {
                break;
            }
            below = Some(found);
            landed = index;
        }
        let levels = self.ancestors.len() - landed;
        let mut lost = self.ancestors.drain(landed..);
        let Some(Ancestor { dir, identity, child: name }) = lost.next() else { return Err(Errno::STALE) };
        drop(lost);
        self.current = match (below, dir) {
            (Some(current), _) => current,
            (None, Some(dir)) => Current { dir, identity },
            (None, None) => return Err(Errno::STALE),
        };
        Ok(Left { levels, name })
    }

    fn base(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.ancestors.first().and_then(|base| base.dir.as_ref()).map(AsFd::as_fd).ok_or(Errno::STALE)
    }
}

impl Current {
    fn new(dir: OwnedFd) -> Result<Self, Errno> {
        let identity = identity(&stat_descriptor(&dir)?);
        Ok(Self { dir, identity })
    }
}

/// Opens a directory in a directory for reading, through no link.
pub(super) fn open_dir(parent: impl AsFd, name: &[u8], mounts: Mounts) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if mounts == Mounts::Refuse {
        resolve |= ResolveFlags::NO_XDEV;
    }
    loop {
        match openat2(parent.as_fd(), name, directory_flags(), Mode::empty(), resolve) {
            Err(Errno::INTR) => {}
            answer => return answer,
        }
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}
