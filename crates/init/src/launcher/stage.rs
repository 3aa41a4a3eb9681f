//! A VM's mounts before it has a mount namespace: detached trees, restricted and idmapped, attached where only the
//! launcher sees them. The clone then leaves for a copy of the launcher's namespace, which locks their flags for good.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::launcher::{
    Base, BootFailure, BootPlan, IdRange, PlannedMountKind, Storage, VmNumber,
};
use agentos_guest_protocol::mount::HostDir;
use agentos_linux::Errno;
use agentos_linux::clone::SingleThreaded;
use agentos_linux::mount::{self, Restrictions};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::mount::UnmountFlags;

use super::idmap::{self, Pair};
use super::prepare::{DEVICES, STAGE, TEMPLATE};
use super::{openers, template};
use crate::wire::{as_path, failure};

/// Where the clone finds its trees. Computed alike on both sides of the clone, from the plan alone.
#[derive(Debug)]
pub(crate) struct Staged {
    pub directory: PathBuf,
    /// What is attached for the root directory; on Base::Host more than its layer.
    root_tree: PathBuf,
    /// The lower layer of the root directory.
    pub root: PathBuf,
    /// On Base::Host, the layer that hides the host's /usr/local.
    pub usr_local: PathBuf,
    pub devices: PathBuf,
    /// Lower layers of directories below the root, by name.
    pub bases: Vec<(String, PathBuf)>,
    pub mounts: Vec<StagedMount>,
    /// The storage directory, where the plan has one.
    pub storage: PathBuf,
}

/// A directory of the host that somebody has named: it may lie on a file system that doesn't answer.
pub(super) enum Foreign<'a> {
    Base(&'a Path),
    Storage(&'a Storage),
    Mount(&'a HostDir),
}

/// A mount of the plan that is a directory of the host.
#[derive(Debug)]
pub(crate) struct StagedMount {
    /// Its position in the plan.
    pub index: usize,
    pub path: PathBuf,
}

impl Staged {
    pub(super) fn new(vm: VmNumber, plan: &BootPlan, host_directories: &[String]) -> Self {
        let directory = Path::new(STAGE).join(vm.0.to_string());
        let bases = match plan.base {
            Base::Host { .. } => host_directories
                .iter()
                .map(|name| (name.clone(), directory.join(format!("base-{name}"))))
                .collect(),
            Base::Directory { .. } => Vec::new(),
        };
        let mounts = plan
            .mounts
            .iter()
            .enumerate()
            .filter(|(_, mount)| matches!(mount.kind, PlannedMountKind::HostDir(_)))
            .map(|(index, _)| StagedMount { index, path: directory.join(format!("mount-{index}")) })
            .collect();
        let root_tree = directory.join("root");
        let root = match plan.base {
            Base::Host { .. } => root_tree.join(template::ROOT),
            Base::Directory { .. } => root_tree.clone(),
        };
        let usr_local = root_tree.join(template::USR_LOCAL);
        let (devices, storage) = (directory.join("dev"), directory.join("storage"));
        Self { root, usr_local, root_tree, devices, storage, directory, bases, mounts }
    }

    /// Makes and attaches the trees of what is the machine's own.
    pub(super) fn build(&self, plan: &BootPlan, vm_namespace: BorrowedFd<'_>) -> Result<(), BootFailure> {
        make_directory(&self.directory)?;
        let whole = whole(plan, vm_namespace);
        if let Base::Host { .. } = &plan.base {
            place(Path::new(TEMPLATE), &self.root_tree, LOWER, whole)?;
            for (name, path) in &self.bases {
                place(&Path::new("/").join(name), path, LOWER, whole)?;
            }
        }
        place(Path::new(DEVICES), &self.devices, DEVICE_TREE, whole)
    }

    /// Attaches the trees of what [`foreign`] names, in its order.
    pub(super) fn attach(&self, plan: &BootPlan, trees: &[OwnedFd]) -> Result<(), BootFailure> {
        let base = matches!(plan.base, Base::Directory { .. }).then_some(&self.root_tree);
        let storage = plan.storage.as_ref().map(|_| &self.storage);
        let mounts = self.mounts.iter().map(|mount| &mount.path);
        let targets = base.into_iter().chain(storage).chain(mounts);
        targets.zip(trees).try_for_each(|(target, tree)| attach(tree.as_fd(), target))
    }

    /// Takes mounts and directories away. Not before the clone has left them for its own root: the kernel takes a mount
    /// away from every namespace when the directory below it is removed in one, and each unmount waits for all
    /// processors to notice, for which the clone would have to wait, too.
    pub(super) fn clear(&self, plan: &BootPlan) {
        let storage = plan.storage.as_ref().map(|_| &self.storage);
        for path in self.paths().chain(storage) {
            // A tree that was never attached, after a failure, has nothing to take away.
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
            let _ = rustix::fs::rmdir(path);
        }
        let _ = rustix::fs::rmdir(&self.directory);
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let mounts = self.mounts.iter().map(|mount| &mount.path);
        let bases = self.bases.iter().map(|(_, path)| path);
        [&self.root_tree, &self.devices].into_iter().chain(bases).chain(mounts)
    }
}

/// A lower layer is only ever read.
const LOWER: Restrictions = Restrictions { read_only: true, no_exec: false, devices: false };
const DEVICE_TREE: Restrictions = Restrictions { read_only: true, no_exec: true, devices: true };

fn make_directory(path: &Path) -> Result<(), BootFailure> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(|errno| fail("mkdir", path, errno))
}

/// The map of all of the VM's ids, where it has more than one.
fn whole<'a>(plan: &BootPlan, vm_namespace: BorrowedFd<'a>) -> Option<BorrowedFd<'a>> {
    (plan.ids != IdRange::Single).then_some(vm_namespace)
}

/// The directories of the host that a plan names.
pub(super) fn foreign(plan: &BootPlan) -> Vec<Foreign<'_>> {
    let base = match &plan.base {
        Base::Directory { path } => Some(Foreign::Base(as_path(path))),
        Base::Host { .. } => None,
    };
    let mounts = plan.mounts.iter().filter_map(|mount| match &mount.kind {
        PlannedMountKind::HostDir(host_dir) => Some(Foreign::Mount(host_dir)),
        PlannedMountKind::Memory { .. } => None,
    });
    let storage = plan.storage.as_ref().map(Foreign::Storage);
    base.into_iter().chain(storage).chain(mounts).collect()
}

impl Foreign<'_> {
    pub(super) fn source(&self) -> Bytes {
        match self {
            Self::Base(path) => Bytes::from(path.as_os_str().as_bytes().to_vec()),
            Self::Storage(storage) => storage.path.clone(),
            Self::Mount(host_dir) => host_dir.source.clone(),
        }
    }

    /// The directory, where [`Self::open`] with it waits for nobody.
    pub(super) fn at_hand(&self) -> Option<OwnedFd> {
        match self {
            Self::Base(path) => openers::at_hand(path.as_os_str().as_bytes()),
            Self::Storage(storage) => openers::at_hand(&storage.path),
            Self::Mount(host_dir) => host_dir_at_hand(host_dir),
        }
    }

    /// Makes its tree. May wait for the file system for ever, unless the directory was `found` at hand.
    pub(super) fn open(
        &self,
        alone: &SingleThreaded,
        plan: &BootPlan,
        vm_namespace: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd, BootFailure> {
        match (self, found) {
            (Self::Base(path), None) => open_restricted(path, LOWER, whole(plan, vm_namespace)),
            (Self::Base(path), Some(found)) => {
                let tree = mount::open_tree_at(found).map_err(|errno| fail("open_tree", path, errno))?;
                restricted(tree, path, LOWER, whole(plan, vm_namespace))
            }
            (Self::Storage(storage), found) => open_storage(storage, found, whole(plan, vm_namespace)),
            (Self::Mount(host_dir), found) => open_host_dir(alone, plan, host_dir, found),
        }
    }
}

/// A detached tree of the storage directory, with its files' owners shown as the VM's. What is mounted in it stays behind.
fn open_storage(
    storage: &Storage,
    found: Option<BorrowedFd<'_>>,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, BootFailure> {
    let path = as_path(&storage.path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let directory = match found {
        Some(found) => rustix::fs::openat(found, ".", flags, Mode::empty()),
        None => rustix::fs::open(path, flags, Mode::empty()),
    };
    let directory = directory.map_err(|errno| fail("open storage", path, errno))?;
    let stat = rustix::fs::fstat(&directory).map_err(|errno| fail("fstat", path, errno))?;
    // Another one since it was locked, or in the launcher's mounts, which are those of when it was started.
    if (stat.st_dev, stat.st_ino) != (storage.device, storage.inode) {
        return Err(fail("find storage", path, Errno::STALE));
    }
    let tree =
        mount::open_tree_alone_at(directory.as_fd()).map_err(|errno| fail("open_tree", path, errno))?;
    let step = if idmap.is_some() { "mount_setattr idmap" } else { "mount_setattr" };
    mount::restrict(tree.as_fd(), Restrictions::default(), idmap).map_err(|errno| fail(step, path, errno))?;
    Ok(tree)
}

/// Shows `source` at `target`, both as the launcher sees them.
fn place(
    source: &Path,
    target: &Path,
    restrictions: Restrictions,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<(), BootFailure> {
    attach(open_restricted(source, restrictions, idmap)?.as_fd(), target)
}

fn open_restricted(
    source: &Path,
    restrictions: Restrictions,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, BootFailure> {
    let tree = mount::open_tree(source).map_err(|errno| fail("open_tree", source, errno))?;
    restricted(tree, source, restrictions, idmap)
}

fn restricted(
    tree: OwnedFd,
    source: &Path,
    restrictions: Restrictions,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, BootFailure> {
    mount::restrict(tree.as_fd(), restrictions, idmap)
        .map_err(|errno| fail("mount_setattr", source, errno))?;
    Ok(tree)
}

fn attach(tree: BorrowedFd<'_>, target: &Path) -> Result<(), BootFailure> {
    make_directory(target)?;
    mount::attach_path(tree, target).map_err(|errno| fail("move_mount", target, errno))
}

/// The directory, where [`open_host_dir`] with it waits for nobody and takes no longer than the launcher can spare.
pub(super) fn host_dir_at_hand(host_dir: &HostDir) -> Option<OwnedFd> {
    // All of a directory is read to refuse sockets in it.
    openers::at_hand(&host_dir.source)
        .filter(|found| host_dir.allow_sockets || openers::is_short(found.as_fd()))
}

/// A detached tree of a directory or a file of the host, restricted as asked, with its owner shown as the VM's user. A
/// directory is the one that was `found` at hand, or else what its name leads to.
pub(super) fn open_host_dir(
    alone: &SingleThreaded,
    plan: &BootPlan,
    host_dir: &HostDir,
    found: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, BootFailure> {
    let source = as_path(&host_dir.source);
    let kind = if host_dir.file { OFlags::empty() } else { OFlags::DIRECTORY };
    let flags = OFlags::RDONLY | kind | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let directory = match found {
        Some(found) => rustix::fs::openat(found, ".", flags, Mode::empty()),
        None => rustix::fs::open(source, flags, Mode::empty()),
    };
    let directory = directory.map_err(|errno| fail("open", source, errno))?;
    if host_dir.file {
        refuse_other_than_file(directory.as_fd(), source)?;
    } else if !host_dir.allow_sockets {
        refuse_sockets(directory.as_fd(), source)?;
    }
    let tree = mount::open_tree_at(directory.as_fd()).map_err(|errno| fail("open_tree", source, errno))?;
    let restrictions = Restrictions { read_only: host_dir.read_only, ..Restrictions::default() };
    let IdRange::Range { base } = plan.ids else {
        mount::restrict(tree.as_fd(), restrictions, None)
            .map_err(|errno| fail("mount_setattr", source, errno))?;
        return Ok(tree);
    };
    let owner = rustix::fs::fstat(&directory).map_err(|errno| fail("fstat", source, errno))?;
    let shown = base + if plan.root { 0 } else { crate::boot::USER_ID };
    let namespace =
        idmap::one_pair(alone, Pair { on_disk: owner.st_uid, shown }, Pair { on_disk: owner.st_gid, shown })
            .map_err(|errno| fail("make idmap", source, errno))?;
    match mount::restrict(tree.as_fd(), restrictions, Some(namespace.as_fd())) {
        Ok(()) => Ok(tree),
        // This file system knows no idmaps: its owners show as nobody, which does no harm where nothing is written.
        Err(Errno::INVAL) if host_dir.read_only => {
            mount::restrict(tree.as_fd(), restrictions, None)
                .map_err(|errno| fail("mount_setattr", source, errno))?;
            Ok(tree)
        }
        Err(errno) => Err(fail("mount_setattr idmap", source, errno)),
    }
}

fn refuse_other_than_file(file: BorrowedFd<'_>, source: &Path) -> Result<(), BootFailure> {
    let stat = rustix::fs::fstat(file).map_err(|errno| fail("fstat", source, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(fail("find file", source, Errno::INVAL)),
    }
}

/// A unix socket or FIFO is a way to a process of the host, through a read-only mount and from another network
/// namespace too.
fn refuse_sockets(directory: BorrowedFd<'_>, source: &Path) -> Result<(), BootFailure> {
    let entries = rustix::fs::Dir::read_from(directory).map_err(|errno| fail("readdir", source, errno))?;
    for entry in entries {
        let entry = entry.map_err(|errno| fail("readdir", source, errno))?;
        let file_type = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
                stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
            }
            known => known,
        };
        if matches!(file_type, FileType::Socket | FileType::Fifo) {
            let socket = source.join(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            return Err(fail(SOCKET_STEP, &socket, Errno::PERM));
        }
    }
    Ok(())
}

/// The step of a refusal that is ours, not the kernel's.
pub(crate) const SOCKET_STEP: &str = "refuse socket or FIFO";

fn fail(step: &str, path: &Path, errno: Errno) -> BootFailure {
    failure(step, path.as_os_str().as_encoded_bytes(), errno)
}
