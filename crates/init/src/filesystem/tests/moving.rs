//! move, by the kernel and by copy.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use agentos_guest_protocol::filesystem::FileCall;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::support::{Mounted, Vm, errno, is_root, make_deep, make_fifo, tree, two_file_systems};

#[test]
fn a_file_moves_and_replaces_a_file() {
    let vm = Vm::new();
    vm.put("/a", "a");
    vm.put("/b", "b");
    vm.rename("/a", "/b").unwrap();
    assert_eq!(vm.tree(), ["b"]);
    assert_eq!(vm.content("/b"), b"a");
    vm.rename("/b", "/b").unwrap();
    vm.link("b", "/link");
    vm.rename("/link", "/moved").unwrap();
    assert!(vm.outside("/moved").is_symlink());
    vm.put("/c", "c");
    vm.rename("/c", "/moved").unwrap();
    assert_eq!((vm.content("/moved"), vm.content("/b")), (b"c".to_vec(), b"a".to_vec()));
}

#[test]
fn moves_fail_as_the_kernel_says() {
    let vm = Vm::new();
    vm.put("/file", "");
    vm.put("/full/inner", "");
    vm.mkdir("/dir/sub", true).unwrap();
    vm.mkdir("/empty", false).unwrap();
    for (from, to, expected) in [
        ("/absent", "/x", Errno::NOENT),
        ("/file", "/absent/x", Errno::NOENT),
        ("/file", "/dir", Errno::ISDIR),
        ("/dir", "/file", Errno::NOTDIR),
        ("/dir", "/full", Errno::NOTEMPTY),
        ("/dir", "/dir/sub/x", Errno::INVAL),
        ("/dir/sub", "/dir", Errno::NOTEMPTY),
        ("/", "/x", Errno::BUSY),
        ("/file", "/", Errno::BUSY),
        ("/file", "/file/x", Errno::NOTDIR),
    ] {
        assert_eq!(errno(vm.rename(from, to)), expected, "{from} to {to}");
    }
    vm.rename("/dir", "/empty").unwrap();
    assert_eq!(vm.list("/", None, &[]), ["/empty/", "/empty/sub/", "/file", "/full/", "/full/inner"]);
    let failure = vm.rename("/file", "/absent/x").unwrap_err();
    assert_eq!((failure.call, &**failure.path), (FileCall::Rename, b"/absent/x".as_slice()));
}

/// A tree with one of everything.
fn furnish(top: &Path) {
    std::fs::create_dir_all(top.join("sub/deeper")).unwrap();
    std::fs::write(top.join("file"), vec![9; 700_000]).unwrap();
    std::fs::set_permissions(top.join("file"), std::fs::Permissions::from_mode(0o640)).unwrap();
    setxattr(top.join("file"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    std::fs::hard_link(top.join("file"), top.join("sub/second")).unwrap();
    std::fs::hard_link(top.join("file"), top.join("sub/deeper/third")).unwrap();
    symlink("../file", top.join("sub/link")).unwrap();
    symlink("/nowhere", top.join("dangling")).unwrap();
    make_fifo(&top.join("fifo"));
    let sparse = std::fs::File::create(top.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", (1 << 30) - 3).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for dated in ["file", "sub"] {
        let times = std::fs::FileTimes::new().set_modified(old).set_accessed(old);
        std::fs::File::open(top.join(dated)).unwrap().set_times(times).unwrap();
    }
    std::fs::set_permissions(top.join("sub/deeper"), std::fs::Permissions::from_mode(0o750)).unwrap();
}

#[test]
fn a_tree_moves_to_another_file_system_as_it_is() {
    let Some((one, other)) = two_file_systems("a_tree_moves_to_another_file_system_as_it_is") else { return };
    let (from, to) = (one.path().join("tree"), other.path().join("moved"));
    furnish(&from);
    if is_root() {
        std::os::unix::fs::lchown(from.join("sub/link"), Some(1234), Some(1234)).unwrap();
        std::os::unix::fs::chown(from.join("sub"), Some(1234), Some(4321)).unwrap();
    }
    let expected = tree(&from);
    let vm = Vm::of_machine();
    vm.rename(from.to_str().unwrap(), to.to_str().unwrap()).unwrap();
    assert_eq!(tree(&to), expected);
    assert!(tree(one.path()).is_empty(), "the source is gone");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1, "nothing temporary is left");
    let file = to.join("file").metadata().unwrap();
    assert_eq!(
        (file.mode() & 0o7777, file.mtime(), file.nlink(), file.len()),
        (0o640, 1_000_000_000, 3, 700_000)
    );
    assert_eq!(file.ino(), to.join("sub/deeper/third").metadata().unwrap().ino());
    let mut value = [0; 8];
    assert_eq!(getxattr(to.join("file"), "user.note", &mut value).unwrap(), 4);
    assert_eq!(std::fs::read_link(to.join("sub/link")).unwrap(), Path::new("../file"));
    assert_eq!(to.join("sub").metadata().unwrap().mtime(), 1_000_000_000);
    assert_eq!(to.join("sub/deeper").metadata().unwrap().mode() & 0o7777, 0o750);
    let sparse = to.join("sparse").metadata().unwrap();
    assert!(sparse.len() == 1 << 30 && sparse.blocks() < 1000, "{} blocks", sparse.blocks());
    if is_root() {
        assert_eq!(to.join("sub/link").symlink_metadata().unwrap().uid(), 1234);
        assert_eq!(to.join("sub").metadata().unwrap().gid(), 4321);
    }
}

#[test]
fn files_and_links_move_to_another_file_system_and_replace() {
    let test = "files_and_links_move_to_another_file_system_and_replace";
    let Some((one, other)) = two_file_systems(test) else { return };
    let path = |dir: &tempfile::TempDir, name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let vm = Vm::of_machine();
    std::fs::write(one.path().join("file"), "new").unwrap();
    std::fs::set_permissions(one.path().join("file"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    std::fs::write(other.path().join("file"), "old").unwrap();
    symlink("file", one.path().join("link")).unwrap();
    vm.rename(&path(&one, "file"), &path(&other, "file")).unwrap();
    vm.rename(&path(&one, "link"), &path(&other, "link")).unwrap();
    assert_eq!(std::fs::read(other.path().join("link")).unwrap(), b"new");
    assert_eq!(
        other.path().join("file").metadata().unwrap().mode() & 0o7777,
        0o755,
        "set-id bits stay behind"
    );
    assert!(tree(one.path()).is_empty());
    assert_eq!(tree(other.path()), ["file", "link"]);
}

#[test]
fn a_copy_that_has_no_place_leaves_the_source_whole() {
    let Some((one, other)) = two_file_systems("a_copy_that_has_no_place_leaves_the_source_whole") else {
        return;
    };
    let (from, to) = (one.path().join("tree"), other.path().join("full"));
    furnish(&from);
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("inner"), "").unwrap();
    let expected = tree(one.path());
    let vm = Vm::of_machine();
    let failed = vm.rename(from.to_str().unwrap(), to.to_str().unwrap());
    assert_eq!(errno(failed), Errno::NOTEMPTY);
    std::fs::write(other.path().join("file"), "").unwrap();
    let failed = vm.rename(from.to_str().unwrap(), other.path().join("file").to_str().unwrap());
    assert_eq!(errno(failed), Errno::NOTDIR);
    assert_eq!(tree(one.path()), expected);
    assert_eq!(tree(other.path()), ["file", "full", "full/inner"]);
}

#[test]
fn a_deep_tree_moves_to_another_file_system() {
    let Some((one, other)) = two_file_systems("a_deep_tree_moves_to_another_file_system") else { return };
    make_deep(&one.path().join("deep"), 1000);
    let vm = Vm::of_machine();
    let (from, to) = (one.path().join("deep"), other.path().join("deep"));
    vm.rename(from.to_str().unwrap(), to.to_str().unwrap()).unwrap();
    assert_eq!(vm.entries(to.to_str().unwrap(), None, &[]).unwrap().len(), 1001);
    assert!(!from.exists());
    vm.delete(to.to_str().unwrap(), true).unwrap();
}

#[test]
fn a_source_that_cant_be_deleted_is_not_copied() {
    const NAME: &str = "a_source_that_cant_be_deleted_is_not_copied";
    let vm = Vm::new();
    vm.mkdir("/ro", false).unwrap();
    vm.mkdir("/tree/mnt", true).unwrap();
    let Some(read_only) = Mounted::over(NAME, &vm.outside("/ro"), MountFlags::empty()) else { return };
    let Some(_inner) = Mounted::over(NAME, &vm.outside("/tree/mnt"), MountFlags::empty()) else { return };
    vm.put("/ro/file", "kept");
    rustix::mount::mount_remount(vm.outside("/ro"), MountFlags::RDONLY, "").unwrap();
    assert_eq!(errno(vm.rename("/ro/file", "/file")), Errno::ROFS);
    vm.put("/tree/mnt/file", "kept");
    rustix::mount::mount_remount(vm.outside("/ro"), MountFlags::empty(), "").unwrap();
    assert_eq!(errno(vm.rename("/tree", "/ro/tree")), Errno::BUSY);
    assert_eq!(errno(vm.rename("/tree/mnt", "/ro/mnt")), Errno::BUSY);
    assert_eq!(vm.list("/", None, &[]), ["/ro/", "/ro/file", "/tree/", "/tree/mnt/", "/tree/mnt/file"]);
    drop(read_only);
}
