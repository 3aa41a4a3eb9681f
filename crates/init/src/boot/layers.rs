//! Overlays, and where they keep what the VM writes: in its memory, or in a storage directory of the host.
//!
//! Whoever could ever write to a storage directory may have prepared it, guests of former times above all, and while
//! this runs the host's own tree is still in sight. So nothing in it is found by a path: layers are opened one by one
//! below its descriptor, through no link and no mount, and with the rights of the VM's root alone.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use agentos_guest_protocol::launcher::{BootFailure, BootPlan};
use agentos_linux::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use super::fail;
use crate::filesystem::{self, Progress};
use crate::launcher::{PLAIN, Staged};
use crate::mounts;

pub(super) enum Layers<'a> {
    /// The current directory, on the VM's tmpfs.
    Memory,
    Storage(Storage<'a>),
}

pub(super) struct Storage<'a> {
    directory: OwnedFd,
    /// Its path on the host, for those who read what went wrong.
    path: &'a Path,
}

impl<'a> Layers<'a> {
    pub(super) fn open(plan: &'a BootPlan, staged: &Staged) -> Result<Self, BootFailure> {
        let Some(storage) = &plan.storage else { return Ok(Self::Memory) };
        let path = crate::wire::as_path(&storage.path);
        let directory =
            mounts::open_directory(&staged.storage).map_err(|errno| fail("open storage", path, errno))?;
        Ok(Self::Storage(Storage { directory, path }))
    }

    /// Mounts a copy on write over staged layers.
    pub(super) fn overlay(&self, name: &str, lowers: &str, target: &str) -> Result<(), BootFailure> {
        let (upper, work) = (format!("upper-{name}"), format!("work-{name}"));
        match self {
            Self::Memory => {
                super::disk::make_directory(&upper, 0o755)?;
                super::disk::make_directory(&work, 0o755)?;
                let options = format!("userxattr,lowerdir={lowers},upperdir={upper},workdir={work}");
                mount(options, target).map_err(|errno| fail("mount overlay", target, errno))
            }
            Self::Storage(storage) => storage.overlay(&upper, &work, lowers, target),
        }
    }

    /// A root directory that outlives its VM may have anything where the next one mounts what it needs.
    pub(super) fn expect_directory(&self, target: &str) -> Result<(), BootFailure> {
        let Self::Storage(storage) = self else { return Ok(()) };
        let found = rustix::fs::statat(rustix::fs::CWD, target, AtFlags::SYMLINK_NOFOLLOW);
        match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) => Ok(()),
            Ok(_) => Err(fail("mount in storage", storage.path.join(target), Errno::NOTDIR)),
            Err(errno) => Err(fail("mount in storage", storage.path.join(target), errno)),
        }
    }
}

impl Storage<'_> {
    fn overlay(&self, upper: &str, work: &str, lowers: &str, target: &str) -> Result<(), BootFailure> {
        let failed = |name: &str| {
            let path = self.path.join(name);
            move |step: &str, errno: Errno| fail(step, &path, errno)
        };
        let upper_directory = self.layer(upper).map_err(|errno| failed(upper)("open layer", errno))?;
        // What a VM that was killed has left in there means nothing to anybody; the kernel takes some of it for a
        // reason to mount read-only.
        filesystem::remove_tree(self.directory.as_fd(), work.as_bytes(), &Progress::default())
            .map_err(|errno| failed(work)("clear work directory", errno))?;
        let work_directory = self.layer(work).map_err(|errno| failed(work)("make work directory", errno))?;
        // By descriptor, which no link can turn into another directory. Inodes of lower layers are not looked up: the
        // host's programs may have been exchanged since the last time.
        let options = format!(
            "userxattr,index=off,lowerdir={lowers},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{}",
            upper_directory.as_raw_fd(),
            work_directory.as_raw_fd()
        );
        mount(options, target).map_err(|errno| failed(upper)("mount overlay", errno))?;
        let mounted = rustix::fs::statvfs(target).map_err(|errno| failed(upper)("statvfs", errno))?;
        if mounted.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(failed(upper)("write to overlay", Errno::ROFS));
        }
        // The kernel's own directory has no permissions at all, so that its owner could not even delete it.
        let own = filesystem::open_directory_in(work_directory.as_fd(), b"work")
            .map_err(|errno| failed(work)("open", errno))?;
        rustix::fs::fchmod(&own, Mode::from_raw_mode(0o700)).map_err(|errno| failed(work)("chmod", errno))
    }

    /// A directory of the storage, made where it is missing.
    fn layer(&self, name: &str) -> Result<OwnedFd, Errno> {
        match rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.directory, name, flags, Mode::empty(), WITHIN)
    }
}

const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

fn mount(options: String, target: &str) -> Result<(), Errno> {
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("overlay", target, "overlay", PLAIN, Some(options.as_c_str()))
}
