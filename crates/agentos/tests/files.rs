//! Files through the API, beside a guest that sees the same ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use agentos::{AgentOs, Error, ErrorKind, FileType};
use support::world::World;

fn check<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind, errno: &str) -> Error {
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (kind, Some(errno)), "{error:?}");
    assert!(error.to_string().starts_with(errno), "{error}");
    error
}

async fn shell(vm: &AgentOs, command: &str) -> String {
    let out = vm.exec(command).await.unwrap();
    assert!(out.success(), "{command}: {out:?}");
    out.stdout_lossy().into_owned()
}

#[tokio::test]
async fn what_is_written_is_read_back_here_and_inside() {
    let world = World::new().await;
    let vm = world.vm().await;
    vm.write_file("/home/user/deep/er/a.txt", "text").await.unwrap();
    assert_eq!(vm.read_file("/home/user/deep/er/a.txt").await.unwrap(), b"text");
    assert_eq!(
        shell(&vm, "cat deep/er/a.txt; stat -c %u:%g:%a deep/er/a.txt deep").await,
        "text1000:1000:644\n1000:1000:755\n"
    );
    shell(&vm, "echo inside > b.txt").await;
    assert_eq!(vm.read_file("/home/user/b.txt").await.unwrap(), b"inside\n");
    vm.write_file("/home/user/empty", "").await.unwrap();
    assert_eq!(vm.read_file("/home/user/empty").await.unwrap(), b"");
}

#[tokio::test]
async fn an_existing_file_keeps_its_owner_and_mode() {
    let world = World::new().await;
    let vm = world.vm().await;
    shell(&vm, "echo old > script; chmod 4750 script 2>/dev/null; chmod 750 script; ln script hard").await;
    vm.write_file("/home/user/script", "new").await.unwrap();
    assert_eq!(shell(&vm, "stat -c %a script; cat hard").await, "750\nnew");
}

#[tokio::test]
async fn large_files_stream_both_ways() {
    let world = World::new().await;
    let vm = world.vm().await;
    let bytes: Vec<u8> =
        (0..64u32 << 20).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    vm.write_file("/home/user/big", bytes.clone()).await.unwrap();
    assert_eq!(vm.stat("/home/user/big").await.unwrap().size, bytes.len() as u64);
    assert!(vm.read_file("/home/user/big").await.unwrap() == bytes);
}

#[tokio::test]
async fn stat_follows_links_and_exists_never_fails_for_what_is_absent() {
    let world = World::new().await;
    let vm = world.vm().await;
    shell(&vm, "printf 12345 > file; chmod 640 file; ln -s file link; ln -s nowhere dangling; mkdir dir")
        .await;
    let stat = vm.stat("/home/user/link").await.unwrap();
    assert_eq!((stat.size, stat.mode, stat.uid, stat.nlink), (5, 0o100_640, 1000, 1));
    assert!(stat.is_file() && !stat.is_directory && !stat.is_symbolic_link);
    assert!(stat.mtime_ms > 1_600_000_000_000);
    assert!(vm.stat("/home/user/dir").await.unwrap().is_directory);
    assert!(vm.exists("/home/user/link").await.unwrap());
    assert!(!vm.exists("/home/user/dangling").await.unwrap());
    assert!(!vm.exists("/home/user/file/below").await.unwrap());
    let error = check(vm.stat("/home/user/dangling").await, ErrorKind::NotFound, "ENOENT");
    assert_eq!(error.object(), Some("/home/user/dangling"));
}

#[tokio::test]
async fn errors_say_what_was_tried_on_what() {
    let world = World::new().await;
    let vm = world.vm().await;
    let error = check(vm.read_file("/no/file").await, ErrorKind::NotFound, "ENOENT");
    assert_eq!(error.to_string(), "ENOENT: no such file or directory, open '/no/file'");
    check(vm.read_file("/home").await, ErrorKind::InvalidInput, "EISDIR");
    check(vm.readdir("/etc/passwd").await, ErrorKind::InvalidInput, "ENOTDIR");
    shell(&vm, "mkfifo fifo").await;
    check(vm.read_file("/home/user/fifo").await, ErrorKind::InvalidInput, "EINVAL");
}

#[tokio::test]
async fn paths_must_be_absolute_and_normalized() {
    let world = World::new().await;
    let vm = world.vm().await;
    let error = vm.stat("relative").await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::InvalidInput, Some("EINVAL")));
    assert!(error.to_string().contains("Path must be absolute: relative"), "{error}");
    let error = vm.read_file("/home/../etc/passwd").await.unwrap_err();
    assert!(error.to_string().contains("Path must be normalized: /home/../etc/passwd"), "{error}");
    vm.write_file("/home//user/./x/", "cleaned").await.unwrap();
    assert_eq!(vm.read_file("/home/user/x").await.unwrap(), b"cleaned");
}

#[tokio::test]
async fn directories_are_made_listed_and_deleted() {
    let world = World::new().await;
    let vm = world.vm().await;
    vm.mkdir("/home/user/d").await.unwrap();
    check(vm.mkdir("/home/user/d").await, ErrorKind::AlreadyExists, "EEXIST");
    check(vm.mkdir("/home/user/x/y").await, ErrorKind::NotFound, "ENOENT");
    vm.mkdir("/home/user/d/e/f").recursive().await.unwrap();
    vm.mkdir("/home/user/d/e/f").recursive().await.unwrap();
    for name in ["b", "a", ".hidden"] {
        vm.write_file(format!("/home/user/d/{name}"), name).await.unwrap();
    }
    assert_eq!(vm.readdir("/home/user/d").await.unwrap(), [".hidden", "a", "b", "e"]);
    check(vm.delete("/home/user/d").await, ErrorKind::InvalidInput, "ENOTEMPTY");
    vm.delete("/home/user/d").recursive().await.unwrap();
    check(vm.delete("/home/user/d").await, ErrorKind::NotFound, "ENOENT");
}

#[tokio::test]
async fn deleting_a_link_leaves_its_target() {
    let world = World::new().await;
    let vm = world.vm().await;
    shell(&vm, "mkdir kept; echo x > kept/file; ln -s kept link; mkdir tree; ln -s ../kept tree/link").await;
    vm.delete("/home/user/link").await.unwrap();
    vm.delete("/home/user/tree").recursive().await.unwrap();
    assert_eq!(vm.read_file("/home/user/kept/file").await.unwrap(), b"x\n");
}

#[tokio::test]
async fn a_recursive_listing_reports_links_without_following_them() {
    let world = World::new().await;
    let vm = world.vm().await;
    shell(&vm, "mkdir -p t/sub/deep t/node_modules/m; echo 1234 > t/sub/file; touch t/node_modules/m/x; ln -s / t/link").await;
    let list = |entries: Vec<agentos::DirEntry>| {
        let mut list: Vec<_> = entries.into_iter().map(|entry| (entry.path, entry.file_type)).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    };
    let path = |name: &str| format!("/home/user/t/{name}");
    let all = list(vm.readdir_recursive("/home/user/t").exclude("node_modules").await.unwrap());
    let expected = [
        (path("link"), FileType::Symlink),
        (path("sub"), FileType::Directory),
        (path("sub/deep"), FileType::Directory),
        (path("sub/file"), FileType::File),
    ];
    assert_eq!(all, expected);
    let children = list(vm.readdir_recursive("/home/user/t").max_depth(0).await.unwrap());
    assert_eq!(children.len(), 3, "{children:?}");
}

#[tokio::test]
async fn moving_renames_replaces_and_crosses_mounts() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().mount("/mnt", agentos::Mount::memory())).await;
    vm.write_file("/home/user/a", "a").await.unwrap();
    vm.write_file("/home/user/b", "b").await.unwrap();
    vm.move_path("/home/user/a", "/home/user/b").await.unwrap();
    assert_eq!(vm.read_file("/home/user/b").await.unwrap(), b"a");
    shell(&vm, "mkdir dir; mv b dir; ln -s b dir/link; chmod 700 dir").await;
    vm.move_path("/home/user/dir", "/mnt/dir").await.unwrap();
    assert_eq!(shell(&vm, "cat /mnt/dir/link; stat -c %a /mnt/dir; ls -A").await, "a700\n");
    check(vm.move_path("/home/user/none", "/tmp/x").await, ErrorKind::NotFound, "ENOENT");
}

#[tokio::test]
async fn a_batch_answers_for_every_file_in_order() {
    let world = World::new().await;
    let vm = world.vm().await;
    let written = vm
        .write_files([("/home/user/one", "1"), ("/home", "a directory"), ("/home/user/sub/two", "22")])
        .await
        .unwrap();
    let success: Vec<bool> = written.iter().map(|result| result.success).collect();
    assert_eq!(success, [true, false, true]);
    assert_eq!(written[1].path, "/home");
    assert_eq!(written[1].error.as_ref().unwrap().errno(), Some("EISDIR"));
    let read = vm.read_files(["/home/user/sub/two", "/none", "/home/user/one"]).await.unwrap();
    let contents: Vec<Option<&[u8]>> = read.iter().map(|result| result.content.as_deref()).collect();
    assert_eq!(contents, [Some(&b"22"[..]), None, Some(&b"1"[..])]);
    assert_eq!(read[1].error.as_ref().unwrap().kind(), ErrorKind::NotFound);
    let borrowed = [("/home/user/three", "333")];
    assert!(vm.write_files(&borrowed).await.unwrap()[0].success);
    assert_eq!(vm.read_files(&["/home/user/three"]).await.unwrap()[0].content.as_deref(), Some(&b"333"[..]));
    assert_eq!(vm.read_files([""; 0]).await.unwrap().len(), 0);
    assert_eq!(vm.write_files([("", ""); 0]).await.unwrap().len(), 0);
}

#[tokio::test]
async fn names_are_bytes() {
    let world = World::new().await;
    let vm = world.vm().await;
    let name = b"/home/user/n\xff\xfe";
    vm.write_file(name, "bytes").await.unwrap();
    assert_eq!(vm.read_file(OsStr::from_bytes(name)).await.unwrap(), b"bytes");
    assert_eq!(vm.readdir("/home/user").await.unwrap(), ["n\u{fffd}\u{fffd}"]);
    let entries = vm.readdir_recursive("/home/user").await.unwrap();
    assert_eq!((entries[0].name_bytes(), entries[0].size), (&b"n\xff\xfe"[..], 5));
    vm.delete(entries[0].path_bytes()).await.unwrap();
    assert!(!vm.exists(name).await.unwrap());
}

#[tokio::test]
async fn a_full_disk_is_no_space_and_the_old_file_stays() {
    let world = World::new().await;
    let limits = agentos::Limits::default().disk_bytes(16 << 20);
    let vm = world.vm_with(world.options().limits(limits)).await;
    vm.write_file("/home/user/f", "old").await.unwrap();
    let error = vm.write_file("/home/user/f", vec![1; 32 << 20]).await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NoSpace, Some("ENOSPC")), "{error:?}");
    assert_eq!(vm.read_file("/home/user/f").await.unwrap(), b"old");
    assert_eq!(vm.readdir("/home/user").await.unwrap(), ["f"]);
}

#[tokio::test]
async fn a_write_that_is_given_up_leaves_the_old_file_or_the_new_one() {
    let world = World::new().await;
    let vm = world.vm().await;
    let (old, new) = (vec![b'o'; 3 << 20], vec![b'n'; 5 << 20]);
    for round in 0..20 {
        vm.write_file("/home/user/f", &old).await.unwrap();
        let write = vm.write_file("/home/user/f", &new);
        // Further along each round.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(round), write).await;
        let found = vm.read_file("/home/user/f").await.unwrap();
        assert!(found == old || found == new, "{} bytes in round {round}", found.len());
    }
    support::eventually("no temporary file is left", || async {
        vm.readdir("/home/user").await.unwrap() == ["f"]
    })
    .await;
}
