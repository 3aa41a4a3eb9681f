//! The VM's root directory, and how a path becomes a descriptor below it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Statx, fstatfs, openat2, readlinkat, statx};
use rustix::io::Errno;

use super::path::GuestPath;
use super::stat::{file_type, stat_entry};

/// As many links as the kernel follows in one path.
const MAX_LINKS: u32 = 40;

/// `openat2` gives up with EAGAIN when a rename anywhere races a `..` below a confined root. A guest that renames
/// without pause must not be able to hold a thread for ever.
const MAX_RACES: u32 = 1000;

/// Every call resolves its paths below this descriptor.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
    resolve: ResolveFlags,
}

/// A name in an opened directory. Nothing is said about what the name stands for now.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: OwnedFd,
    pub(super) name: Vec<u8>,
}

/// A place that is not a link, with what stood there when it was looked at.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) place: Place,
    pub(super) found: Option<Statx>,
}

/// How far a file system can be trusted to answer, and with how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// The kernel answers by itself, sizes are true: descriptors of its files may leave the VM.
    Plain,
    Proc,
    /// FUSE, network file systems and whatever else may make a reader wait or show no size.
    Other,
}

impl Root {
    /// `dir` is a directory descriptor; O_PATH is enough.
    pub(crate) fn new(dir: OwnedFd) -> Self {
        Self { dir, resolve: ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS }
    }

    /// The same root, but what lies in other file systems is not found (EXDEV), nor what the kernel would have to
    /// look for (EAGAIN).
    pub(crate) fn at_once(&self) -> Result<Self, Errno> {
        let dir = rustix::io::fcntl_dupfd_cloexec(&self.dir, 0)?;
        Ok(Self { dir, resolve: self.resolve | ResolveFlags::NO_XDEV | ResolveFlags::CACHED })
    }

    /// Opens a path, its last link included unless `flags` say NOFOLLOW.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        for _ in 0..MAX_RACES {
            match openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), self.resolve) {
                Err(Errno::AGAIN) if self.resolve.contains(ResolveFlags::CACHED) => break,
                Err(Errno::AGAIN | Errno::INTR) => {}
                answer => return answer,
            }
        }
        Err(Errno::AGAIN)
    }

    /// A handle that names the object and opens nothing: devices and FIFOs notice nothing of it.
    pub(super) fn locate(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open(path, flags | OFlags::PATH)
    }

    /// The opened parent and the last name, for calls that act on the name and not on what it links to. Nothing for
    /// the root, which has no name.
    pub(super) fn place(&self, path: &GuestPath) -> Result<Option<Place>, Errno> {
        let Some((parent, name)) = path.split() else { return Ok(None) };
        let dir = self.locate(parent, OFlags::DIRECTORY)?;
        Ok(Some(Place { dir, name: name.to_vec() }))
    }

    /// Where a write to this path lands: links are followed by hand, because a name has to be known to rename
    /// something over it. A dangling link leads to the name it dangles to.
    pub(super) fn target(&self, path: &GuestPath) -> Result<Target, Errno> {
        let mut text = path.as_bytes().to_vec();
        for _ in 0..=MAX_LINKS {
            let (parent, name) = split_text(&text)?;
            let dir = self.locate(parent, OFlags::DIRECTORY)?;
            let found = match stat_entry(&dir, name) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(errno),
            };
            if found.as_ref().map(file_type) != Some(FileType::Symlink) {
                let place = Place { dir, name: name.to_vec() };
                return Ok(Target { place, found });
            }
            // The text of a link in /proc says nothing about where it leads.
            if backing(&dir)? == Backing::Proc {
                return Err(Errno::ACCESS);
            }
            let link = match readlinkat(&dir, name, Vec::new()) {
                Ok(link) => link.into_bytes(),
                // It has been replaced meanwhile: look again.
                Err(Errno::INVAL | Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            text = if link.first() == Some(&b'/') { link } else { [parent, b"/", &link].concat() };
        }
        Err(Errno::LOOP)
    }
}

/// Opens a name in an opened directory and follows nothing.
pub(super) fn open_entry(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(dir.as_fd(), name, flags, Mode::empty(), resolve) {
            Err(Errno::INTR) => {}
            answer => return answer,
        }
    }
}

pub(super) fn backing(descriptor: impl AsFd) -> Result<Backing, Errno> {
    Ok(match magic(descriptor)? {
        0x9fa0 => Backing::Proc,
        // ext2 to ext4, tmpfs, ramfs, overlay, xfs, btrfs, f2fs, zfs, bcachefs, erofs, squashfs, iso9660.
        0xef53 | 0x0102_1994 | 0x8584_58f6 | 0x794c_7630 | 0x5846_5342 | 0x9123_683e => Backing::Plain,
        0xf2f5_2010 | 0x2fc1_2fc1 | 0xca45_1a4e | 0xe0f5_e1e2 | 0x7371_7368 | 0x9660 => Backing::Plain,
        _ => Backing::Other,
    })
}

/// The kernel shows a process its own memory and secrets in /proc whatever its credentials are, and this process is
/// the VM's init: a link the guest lays to /proc/self/mem must not make the API read or write it. `descriptor` is of
/// a file in /proc; only what every guest process may know of init passes.
pub(super) fn refuse_own_proc_entry(descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;

    let own = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let path = readlinkat(rustix::fs::CWD, own, Vec::new()).map_err(|_| Errno::ACCESS)?;
    let components: Vec<&[u8]> = path.as_bytes().split(|byte| *byte == b'/').collect();
    let Some(last_own) = components.iter().rposition(|name| is_own_thread(name)) else { return Ok(()) };
    match &components[last_own + 1..] {
        [b"mounts" | b"mountinfo" | b"status" | b"stat" | b"cgroup" | b"comm" | b"cmdline" | b"limits"]
        | [b"net", ..] => Ok(()),
        _ => Err(Errno::ACCESS),
    }
}

/// Threads have entries of their own in /proc, below names that no listing shows.
fn is_own_thread(component: &[u8]) -> bool {
    let Some(id) = std::str::from_utf8(component).ok().and_then(|text| text.parse::<u32>().ok()) else {
        return false;
    };
    let task = format!("/proc/self/task/{id}");
    statx(rustix::fs::CWD, task, rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::TYPE).is_ok()
}

/// All magic numbers fit into 32 bits; the field's own type differs between architectures.
fn magic(descriptor: impl AsFd) -> Result<u32, Errno> {
    Ok(fstatfs(descriptor)?.f_type as u32)
}

/// Splits the text of a link or path into what leads to a directory and a name. A text that ends in a slash or in
/// dots names a directory.
fn split_text(text: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let slash = text.iter().rposition(|byte| *byte == b'/').ok_or(Errno::NOENT)?;
    match &text[slash + 1..] {
        b"" | b"." | b".." => Err(Errno::ISDIR),
        name => Ok((&text[..slash.max(1)], name)),
    }
}
