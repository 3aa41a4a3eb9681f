//! Mounts by descriptor: detached trees that are made, restricted and mapped before anybody can see them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use crate::clone::last_errno;

/// What a tree must not allow. Set bits only add restrictions; nothing here takes one away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Restrictions {
    pub read_only: bool,
    pub no_exec: bool,
    /// The tree holds device nodes that are meant to work; otherwise none does.
    pub devices: bool,
}

/// A detached copy of the tree at `path`, with the mounts below it.
pub fn open_tree(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(CWD, path, TREE | OpenTreeFlags::AT_RECURSIVE)
}

/// A detached copy of the one mount at `path`; a file works too.
pub fn open_tree_alone(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(CWD, path, TREE)
}

/// A detached copy of the tree at an open directory.
pub fn open_tree_at(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(
        directory,
        c"",
        TREE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

/// A detached copy of the one mount at an open directory; what is mounted below it stays behind.
pub fn open_tree_alone_at(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(directory, c"", TREE | OpenTreeFlags::AT_EMPTY_PATH)
}

const TREE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Makes every mount of a detached tree private and nosuid, nodev too unless its devices are wanted, restricts it further, and shows its files with the
/// ids of `idmap`, a user namespace. Mounts made from a shared one would leak back to the host otherwise.
pub fn restrict(
    tree: BorrowedFd<'_>,
    restrictions: Restrictions,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attributes = MountAttributes {
        set: libc::MOUNT_ATTR_NOSUID,
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    if !restrictions.devices {
        attributes.set |= libc::MOUNT_ATTR_NODEV;
    }
    if restrictions.read_only {
        attributes.set |= libc::MOUNT_ATTR_RDONLY;
    }
    if restrictions.no_exec {
        attributes.set |= libc::MOUNT_ATTR_NOEXEC;
    }
    if let Some(idmap) = idmap {
        attributes.set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns = idmap.as_raw_fd() as u64;
    }
    // SAFETY: the path is an empty C string; the kernel reads `size_of::<MountAttributes>()` bytes of a live local of
    // exactly that layout.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

const _: () = assert!(size_of::<MountAttributes>() == 32);

/// Attaches a detached tree at an open directory or file.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::mount::move_mount(
        tree,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Attaches a detached tree at a path.
pub fn attach_path(tree: BorrowedFd<'_>, target: &Path) -> Result<(), Errno> {
    rustix::mount::move_mount(tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A new tmpfs as a detached tree. The caller's user namespace owns it.
pub fn tmpfs(size_bytes: u64, inodes: u64, mode: u32) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "size", size_bytes.to_string())?;
    if inodes > 0 {
        rustix::mount::fsconfig_set_string(context.as_fd(), "nr_inodes", inodes.to_string())?;
    }
    rustix::mount::fsconfig_set_string(context.as_fd(), "mode", format!("{mode:o}"))?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(
        context.as_fd(),
        rustix::mount::FsMountFlags::FSMOUNT_CLOEXEC,
        rustix::mount::MountAttrFlags::MOUNT_ATTR_NOSUID | rustix::mount::MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

/// The kind of file system that a descriptor lies on, such as `ext4`. Asks no file system: the answer is in the table of
/// mounts. None where its mount is in another namespace or out of sight.
pub fn file_system(descriptor: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).ok()?;
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mount = about.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    kind_of_mount(&mounts, mount).map(<[u8]>::to_vec)
}

/// The kind of file system of a mount, by its id. Places may hold any byte but spaces, which are escaped.
fn kind_of_mount<'a>(mountinfo: &'a [u8], id: &str) -> Option<&'a [u8]> {
    let mut lines = mountinfo.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' '));
    let mut fields = lines.find_map(|mut fields| (fields.next()? == id.as_bytes()).then_some(fields))?;
    fields.find(|field| *field == b"-")?;
    fields.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_mount_is_found_by_its_id() {
        let mounts = b"22 1 0:21 / / rw,noatime shared:1 - ext4 /dev/vda rw\n\
                       122 22 0:30 / /a\xff rw master:2 shared:3 - nfs4 server:/x rw\n\
                       23 22 0:31 / /- rw - tmpfs - rw\n";
        assert_eq!(kind_of_mount(mounts, "22"), Some(&b"ext4"[..]));
        assert_eq!(kind_of_mount(mounts, "122"), Some(&b"nfs4"[..]));
        assert_eq!(kind_of_mount(mounts, "2"), None);
    }

    #[test]
    fn a_descriptor_s_file_system_is_named() {
        let tables = std::fs::File::open("/proc/self/mountinfo").unwrap();
        assert_eq!(file_system(tables.as_fd()).as_deref(), Some(&b"proc"[..]));
    }
}
