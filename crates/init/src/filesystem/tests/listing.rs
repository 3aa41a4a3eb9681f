//! readdir and readdirRecursive.

use agentos_guest_protocol::filesystem::FileCall;
use rustix::io::Errno;

use super::support::{Vm, errno, make_deep, make_fifo};

#[test]
fn readdir_gives_sorted_names() {
    let vm = Vm::new();
    for name in ["/b", "/a", "/.hidden", "/B", "/c/inner"] {
        vm.put(name, "");
    }
    assert_eq!(vm.readdir("/").unwrap(), [".hidden", "B", "a", "b", "c"]);
    vm.link("c", "/link");
    assert_eq!(vm.readdir("/link").unwrap(), ["inner"]);
    let failure = vm.readdir("/a").unwrap_err();
    assert_eq!((failure.errno, failure.call), (Errno::NOTDIR.raw_os_error(), FileCall::Scandir));
    assert_eq!(errno(vm.readdir("/absent")), Errno::NOENT);
}

#[test]
fn a_large_directory_is_complete() {
    let vm = Vm::new();
    let names: Vec<String> = (0..5000).map(|index| format!("file-{index:04}")).collect();
    for name in &names {
        vm.put(&format!("/dir/{name}"), "");
    }
    assert_eq!(vm.readdir("/dir").unwrap(), names);
}

#[test]
fn a_tree_is_listed_without_its_root_and_without_following_links() {
    let vm = Vm::new();
    vm.put("/t/a/one", "1");
    vm.put("/t/b", "22");
    make_fifo(&vm.outside("/t/fifo"));
    vm.link("..", "/t/a/up");
    vm.link("/t", "/start");
    assert_eq!(vm.list("/t", None, &[]), ["/t/a/", "/t/a/one", "/t/a/up@", "/t/b", "/t/fifo?"]);
    assert_eq!(vm.list("/start", Some(0), &[]), ["/start/a/", "/start/b", "/start/fifo?"]);
    let entries = vm.entries("/t", None, &[]).unwrap();
    let sizes: Vec<u64> = entries.iter().filter(|e| e.path.len() == 4).map(|e| e.size_bytes).collect();
    assert!(sizes.contains(&2), "{sizes:?}");
    assert_eq!(errno(vm.entries("/t/b", None, &[])), Errno::NOTDIR);
}

#[test]
fn depth_and_exclusion_cut_the_tree() {
    let vm = Vm::new();
    vm.put("/t/a/b/c/d", "");
    vm.put("/t/node_modules/x", "");
    vm.put("/t/a/node_modules", "");
    assert_eq!(vm.list("/t", Some(0), &[]), ["/t/a/", "/t/node_modules/"]);
    assert_eq!(vm.list("/t", Some(1), &["node_modules"]), ["/t/a/", "/t/a/b/"]);
    assert_eq!(vm.list("/t", None, &["node_modules", "c"]), ["/t/a/", "/t/a/b/"]);
    assert_eq!(vm.list("/t", Some(9), &["t"]).len(), 7);
    assert_eq!(vm.list("/", Some(0), &[]), ["/t/"]);
}

#[test]
fn a_tree_deeper_than_any_path_is_listed() {
    let vm = Vm::in_memory();
    make_deep(&vm.outside("/deep"), 3000);
    let entries = vm.entries("/deep", None, &[]).unwrap();
    assert_eq!(entries.len(), 3001);
    assert_eq!(entries.last().unwrap().path.len(), "/deep".len() + 2 * 3001);
    vm.delete("/deep", true).unwrap();
}

#[test]
fn the_whole_of_proc_can_be_listed() {
    let vm = Vm::of_machine();
    let entries = vm.entries("/proc/self", Some(1), &["task", "map_files"]).unwrap();
    assert!(entries.iter().any(|entry| **entry.path == *b"/proc/self/fd"));
}
