//! delete.

use agentos_guest_protocol::filesystem::FileCall;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::support::{Mounted, Vm, errno, make_deep, make_fifo};

#[test]
fn one_thing_is_deleted_and_a_link_is_not_its_target() {
    let vm = Vm::new();
    vm.put("/file", "");
    vm.put("/dir/inner", "");
    vm.mkdir("/empty", false).unwrap();
    make_fifo(&vm.outside("/fifo"));
    vm.link("file", "/link");
    vm.link("dir", "/dirlink");
    vm.link("nowhere", "/dangling");
    for path in ["/link", "/dirlink", "/dangling", "/empty", "/fifo"] {
        vm.delete(path, false).unwrap();
    }
    assert_eq!(vm.tree(), ["dir", "dir/inner", "file"]);
    vm.link("dir", "/dirlink");
    vm.delete("/dirlink", true).unwrap();
    assert_eq!(vm.tree(), ["dir", "dir/inner", "file"]);
}

#[test]
fn what_cant_be_deleted_is_said() {
    let vm = Vm::new();
    vm.put("/dir/inner", "");
    let failure = vm.delete("/dir", false).unwrap_err();
    assert_eq!((failure.errno, failure.call), (Errno::NOTEMPTY.raw_os_error(), FileCall::Rmdir));
    let failure = vm.delete("/absent", true).unwrap_err();
    assert_eq!((failure.errno, failure.call), (Errno::NOENT.raw_os_error(), FileCall::Unlink));
    assert_eq!(errno(vm.delete("/", true)), Errno::BUSY);
    assert_eq!(errno(vm.delete("/dir/inner/below", true)), Errno::NOTDIR);
    assert_eq!(vm.tree(), ["dir", "dir/inner"]);
}

#[test]
fn a_tree_goes_with_all_that_is_in_it() {
    let vm = Vm::new();
    std::fs::create_dir(vm.beyond("outside")).unwrap();
    std::fs::write(vm.beyond("outside/canary"), "").unwrap();
    for index in 0..300 {
        vm.put(&format!("/t/{}/{}/f{index}", index % 7, index % 3), "x");
    }
    vm.put("/kept/file", "");
    vm.link("/kept", "/t/0/inside");
    vm.link(vm.beyond("outside").to_str().unwrap(), "/t/0/outward");
    vm.link("../../../outside", "/t/0/climbing");
    make_fifo(&vm.outside("/t/fifo"));
    vm.delete("/t", true).unwrap();
    assert_eq!(vm.tree(), ["kept", "kept/file"]);
    assert!(vm.beyond("outside/canary").exists());
}

#[test]
fn a_tree_of_ten_thousand_levels_goes_with_few_descriptors_and_a_small_stack() {
    let vm = Vm::in_memory();
    make_deep(&vm.outside("/deep"), 10_000);
    std::thread::scope(|scope| {
        let small = std::thread::Builder::new().stack_size(128 * 1024);
        small.spawn_scoped(scope, || vm.delete("/deep", true).unwrap()).unwrap();
    });
    assert!(vm.tree().is_empty());
}

#[test]
fn a_mount_point_stays_and_so_does_what_is_mounted() {
    const NAME: &str = "a_mount_point_stays_and_so_does_what_is_mounted";
    let vm = Vm::new();
    vm.mkdir("/t/mnt", true).unwrap();
    let Some(mount) = Mounted::over(NAME, &vm.outside("/t/mnt"), MountFlags::empty()) else { return };
    vm.put("/t/mnt/file", "kept");
    for path in ["/t/mnt", "/t"] {
        let recursive = true;
        assert_eq!(errno(vm.delete(path, recursive)), Errno::BUSY, "{path}");
    }
    assert_eq!(vm.list("/t", None, &[]), ["/t/mnt/", "/t/mnt/file"]);
    drop(mount);
    vm.delete("/t", true).unwrap();
}
