//! New content on its way to a name.
//!
//! ```text
//! Target ── stage ──► Staged ── commit ──► renamed over the name, or copied into what stands there
//!                        └── drop ──► nothing has happened
//! ```
//! The content gathers in a temporary file beside its target, under a name the guest can't guess. Where the target
//! must stay the file it is, or its directory is closed to new names, the content gathers in a file without a name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, StatxAttributes, fchmod, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::in_place::{Source, overwrite, replace};
use super::metadata::take_over;
use super::progress::Progress;
use super::root::{Backing, Place, Root, Target, backing, open_entry};
use super::stat::{file_type, identity, stat_descriptor, stat_entry};

const NEW_FILE: Mode = Mode::from_raw_mode(0o644);
/// Until it has the mode of the file it replaces, nobody else may look into it.
const REPLACEMENT: Mode = Mode::from_raw_mode(0o600);

const MAX_NAME_TRIES: u32 = 8;

#[derive(Debug)]
pub(super) struct Staged {
    place: Place,
    file: OwnedFd,
    /// The temporary name in the place's directory, until it is renamed away.
    temporary: Option<Vec<u8>>,
}

/// A name in a directory that nobody expects: too random to be guessed, and hidden.
pub(super) fn temporary_name() -> Result<Vec<u8>, Errno> {
    let mut random = [0; 8];
    // Sixteen bytes or fewer come whole and without waiting once the kernel has booted.
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!(".agentos-{:016x}", u64::from_ne_bytes(random)).into_bytes())
}

/// Whether another file renamed over this one would not be the same to whoever looks.
pub(super) fn must_stay(stat: &Statx) -> bool {
    let fixed = StatxAttributes::MOUNT_ROOT | StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
    file_type(stat) != FileType::RegularFile || stat.stx_nlink > 1 || stat.stx_attributes.intersects(fixed)
}

/// The refusals that concern the directory or the name and leave the way into the file itself.
fn leaves_in_place(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ACCESS
            | Errno::PERM
            | Errno::ROFS
            | Errno::BUSY
            | Errno::XDEV
            | Errno::TXTBSY
            | Errno::OPNOTSUPP
    )
}

impl Staged {
    /// Makes the temporary file. Fails with EISDIR, EINVAL or EACCES where content can never land.
    pub(super) fn new(root: &Root, target: Target) -> Result<Self, Errno> {
        let Target { place, found } = target;
        check_landing(found.as_ref())?;
        if backing(&place.dir)? == Backing::Proc {
            return Err(Errno::ACCESS);
        }
        let mode = if found.is_some() { REPLACEMENT } else { NEW_FILE };
        if found.as_ref().is_some_and(must_stay) {
            return Self::nameless(root, place, Errno::NOSPC);
        }
        match temporary_file(&place, mode) {
            Ok((file, name)) => Ok(Self { place, file, temporary: Some(name) }),
            Err(errno) if found.is_some() && leaves_in_place(errno) => Self::nameless(root, place, errno),
            Err(errno) => Err(errno),
        }
    }

    /// Gathers on a disk of the VM, so that its limit counts: beside the target, or where every VM has room.
    fn nameless(root: &Root, place: Place, otherwise: Errno) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let beside = openat(&place.dir, c".", flags, REPLACEMENT);
        let file = beside.or_else(|_| {
            let dir =
                root.locate(b"/tmp", OFlags::DIRECTORY).or_else(|_| root.locate(b"/", OFlags::DIRECTORY))?;
            openat(&dir, c".", flags, REPLACEMENT).map_err(|_| otherwise)
        })?;
        Ok(Self { place, file, temporary: None })
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether the descriptor of the gathering file may leave the VM.
    pub(super) fn backing(&self) -> Result<Backing, Errno> {
        backing(&self.file)
    }

    /// Brings the content to its name. Looks at the name again: a lot may have happened while the content came.
    pub(super) fn commit(mut self, progress: &Progress) -> Result<(), Errno> {
        let found = match stat_entry(&self.place.dir, self.place.name.as_slice()) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        check_landing(found.as_ref())?;
        let renamed = match &found {
            Some(old) if must_stay(old) => Err(Errno::BUSY),
            Some(old) => self.resemble(old).and_then(|()| self.rename()),
            None => self.become_new(progress).and_then(|()| self.rename()),
        };
        match renamed {
            Err(errno) if found.is_some() && leaves_in_place(errno) => {
                overwrite(&self.place, Source::File(self.file.as_fd()), progress)
            }
            answer => answer,
        }
    }

    fn resemble(&self, old: &Statx) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = open_entry(&self.place.dir, &self.place.name, flags)?;
        if identity(&stat_descriptor(&file)?) != identity(old) {
            return Err(Errno::BUSY);
        }
        // Whatever of the old file can't be given to the new one is a reason to keep the old one.
        take_over(file.as_fd(), old, self.file.as_fd()).map_err(|errno| match errno {
            Errno::INVAL | Errno::OVERFLOW | Errno::NODATA => Errno::PERM,
            errno => errno,
        })
    }

    /// What was there when the content began to gather is gone.
    fn become_new(&mut self, progress: &Progress) -> Result<(), Errno> {
        if self.temporary.is_some() {
            return fchmod(&self.file, NEW_FILE);
        }
        let (file, name) = temporary_file(&self.place, NEW_FILE)?;
        self.temporary = Some(name);
        let gathered = std::mem::replace(&mut self.file, file);
        replace(&self.file, 0, Source::File(gathered.as_fd()), progress)
    }

    fn rename(&mut self) -> Result<(), Errno> {
        let Some(temporary) = &self.temporary else { return Err(Errno::BUSY) };
        let dir = &self.place.dir;
        renameat(dir, temporary.as_slice(), dir, self.place.name.as_slice())?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nobody is left to be told; a directory that vanished has taken the file with it.
            let _ = unlinkat(&self.place.dir, temporary.as_slice(), AtFlags::empty());
        }
    }
}

/// What content can land in: nothing yet, a regular file, a character device.
pub(super) fn check_landing(found: Option<&Statx>) -> Result<(), Errno> {
    match found.map(file_type) {
        None | Some(FileType::RegularFile | FileType::CharacterDevice) => Ok(()),
        Some(FileType::Directory) => Err(Errno::ISDIR),
        Some(FileType::Symlink) => Err(Errno::LOOP),
        Some(_) => Err(Errno::INVAL),
    }
}

fn temporary_file(place: &Place, mode: Mode) -> Result<(OwnedFd, Vec<u8>), Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..MAX_NAME_TRIES {
        let name = temporary_name()?;
        match openat(&place.dir, name.as_slice(), flags, mode) {
            Ok(file) => return Ok((file, name)),
            Err(Errno::EXIST | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}
