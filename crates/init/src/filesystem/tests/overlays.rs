//! The kind of file system a VM's root is: an overlay, whose lower directories can't be renamed.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::support::{Vm, errno, skip};

/// A root that is an overlay over `lower`.
struct Overlay {
    vm: Vm,
    layers: tempfile::TempDir,
}

impl Overlay {
    fn new(test: &str) -> Option<Self> {
        let layers = tempfile::tempdir_in("/dev/shm").unwrap();
        let vm = Vm::in_memory();
        for name in ["lower/tree/sub", "upper", "work"] {
            std::fs::create_dir_all(layers.path().join(name)).unwrap();
        }
        for name in ["lower/tree/file", "lower/tree/sub/file"] {
            std::fs::write(layers.path().join(name), "lower").unwrap();
            let mode = std::fs::Permissions::from_mode(0o4750);
            std::fs::set_permissions(layers.path().join(name), mode).unwrap();
        }
        let at = layers.path().display();
        let options =
            format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work,redirect_dir=nofollow");
        let options = std::ffi::CString::new(options).unwrap();
        match rustix::mount::mount(
            "overlay",
            vm.outside("/"),
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        ) {
            // The directory has to be opened again to be that of the mount.
            Ok(()) => Some(Self { vm: vm.reopened(), layers }),
            Err(Errno::PERM) => {
                skip(test, "mounting takes CAP_SYS_ADMIN");
                None
            }
            Err(errno) => panic!("no overlay: {errno}"),
        }
    }

    fn lower_is_whole(&self) -> bool {
        ["tree/file", "tree/sub/file"].iter().all(|name| {
            std::fs::read(self.layers.path().join("lower").join(name))
                .is_ok_and(|content| content == b"lower")
        })
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(self.vm.outside("/"), UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

#[test]
fn a_lower_directory_moves_by_copy() {
    let Some(overlay) = Overlay::new("a_lower_directory_moves_by_copy") else { return };
    let vm = &overlay.vm;
    assert_eq!(std::fs::rename(vm.outside("/tree"), vm.outside("/x")).unwrap_err().raw_os_error(), Some(18));
    vm.rename("/tree", "/moved").unwrap();
    assert_eq!(vm.list("/", None, &[]), ["/moved/", "/moved/file", "/moved/sub/", "/moved/sub/file"]);
    assert_eq!(vm.content("/moved/sub/file"), b"lower");
    assert_eq!(vm.outside("/moved/file").metadata().unwrap().mode() & 0o7777, 0o750);
    assert_eq!(errno(vm.rename("/moved", "/moved/sub/below")), Errno::INVAL);
    assert!(overlay.lower_is_whole());
}

#[test]
fn lower_files_are_replaced_and_deleted_in_the_upper_layer() {
    let Some(overlay) = Overlay::new("lower_files_are_replaced_and_deleted_in_the_upper_layer") else {
        return;
    };
    let vm = &overlay.vm;
    vm.write("/tree/file", "new").unwrap();
    assert_eq!(vm.content("/tree/file"), b"new");
    assert_eq!(vm.outside("/tree/file").metadata().unwrap().mode() & 0o7777, 0o750);
    std::fs::hard_link(vm.outside("/tree/sub/file"), vm.outside("/second")).unwrap();
    vm.write("/second", "both").unwrap();
    assert_eq!(vm.content("/tree/sub/file"), b"both");
    vm.delete("/tree", true).unwrap();
    assert_eq!(vm.tree(), ["second"]);
    vm.write("/tree/again", "").unwrap();
    assert_eq!(vm.list("/tree", None, &[]), ["/tree/again"]);
    assert!(overlay.lower_is_whole());
}
