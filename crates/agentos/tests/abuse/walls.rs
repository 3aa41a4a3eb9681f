//! The walls themselves: the root directory, mounts, namespaces.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use agentos::Mount;

use crate::attempts::{Canary, PROBE, guests, outside_privately, probe, run, with_probe};
use crate::support::world::World;

#[tokio::test]
async fn the_root_can_not_be_left() {
    let world = World::new().await;
    let canary = Canary::new(&world);
    let path = canary.file.display();
    for guest in guests(&world, world.options()).await {
        guest
            .check(
                "EPERM",
                &[
                    "chroot /tmp".to_owned(),
                    "chroot .".to_owned(),
                    format!("chroot-twice /tmp {path}"),
                    "pivot_root /tmp".to_owned(),
                    "pivot_root .".to_owned(),
                ],
            )
            .await;
    }
    let jail = world.host_dir("jail");
    fs::create_dir(jail.join("below")).unwrap();
    let jail = jail.display();
    assert_eq!(outside_privately(&format!("chroot {jail}")), "ok");
    assert_eq!(outside_privately(&format!("chroot {jail} then chroot-twice /below {path}")), Canary::TEXT);
    assert_eq!(outside_privately(&format!("mount tmpfs {jail} then pivot_root {jail}")), "ok");
    canary.check();
}

/// A descriptor of a directory of the host leads back to it from anywhere, so that none may come in, not even one that
/// whoever started the sidecar left open by mistake.
#[tokio::test]
async fn no_descriptor_of_the_host_comes_in() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("canary"), Canary::TEXT).unwrap();
    let leaked =
        rustix::fs::open(directory.path(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&leaked);
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        for arguments in [["descriptors"].as_slice(), &["fchdir", &number.to_string(), "canary"]] {
            let process = guest.vm.spawn(PROBE, arguments).await.unwrap();
            let mut output = process.stdout();
            let line = output.next().await.unwrap().unwrap();
            assert_eq!(&line[..], b"EBADF\n", "{}: {arguments:?}", guest.user);
        }
        let shell = guest.vm.open_shell().command(PROBE, ["descriptors"]).await.unwrap();
        assert_eq!(&shell.data().next().await.unwrap().unwrap()[..], b"EBADF\r\n", "{}", guest.user);
    }
    let jail = world.host_dir("jail");
    let mut outside = Command::new(probe());
    outside.arg("--private").args(["chroot", jail.to_str().unwrap(), "then"]);
    outside.args(["fchdir", &number.to_string(), "canary"]);
    assert_eq!(
        run(&mut outside),
        Canary::TEXT,
        "the control: outside the descriptor leads out of a new root"
    );
}

#[tokio::test]
async fn no_mount_can_be_made_moved_changed_or_taken_away() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let options = world.options().mount("/work", Mount::host_dir(&project));
    let masked = "read /proc/keys";
    for guest in guests(&world, options).await {
        let before = guest.shell("cat /proc/self/mountinfo").await;
        guest
            .check(
                "EPERM",
                &[
                    "mount tmpfs /tmp",
                    "mount proc /tmp",
                    "mount sysfs /tmp",
                    "mount devpts /tmp",
                    "mount devtmpfs /tmp",
                    "mount overlay /tmp",
                    "mount fuse /tmp",
                    "mount ext4 /tmp",
                    "mount binfmt_misc /tmp",
                    "bind / /tmp",
                    "bind /proc /tmp",
                    "bind /dev/null /proc/self/status",
                    "remount-writable /work",
                    "remount-writable /proc/sys",
                    "remount-writable /dev",
                    "make-shared /",
                    "umount /proc/keys",
                    "umount /proc/sys",
                    "umount /work",
                    "umount /",
                    "fsopen tmpfs",
                    "fsopen proc",
                    "fspick /",
                    "open_tree /",
                    "open_tree /proc",
                    "move_mount /proc/keys /tmp",
                    "move_mount /work /tmp",
                    "mount_setattr-writable /work",
                    "mount_setattr-writable /proc/sys",
                    "swapon /tmp",
                ],
            )
            .await;
        guest.check("nothing|ENOENT|EACCES", &[masked]).await;
        assert_eq!(guest.shell("cat /proc/self/mountinfo").await, before, "{}", guest.user);
    }
    let [one, other]: [PathBuf; 2] = ["one", "other"].map(|name| world.host_dir(name));
    let (one, other) = (one.display(), other.display());
    for words in [
        format!("mount tmpfs {one}"),
        format!("mount tmpfs {one} then umount {one}"),
        format!("mount tmpfs {one} then move_mount {one} {other}"),
        format!("mount tmpfs {one} then remount-writable {one}"),
        format!("mount tmpfs {one} then mount_setattr-writable {one}"),
        format!("bind {one} {other}"),
        "make-shared /".to_owned(),
        "fsopen tmpfs".to_owned(),
        format!("mount tmpfs {one} then open_tree {one}"),
        format!("mount tmpfs {one} then fspick {one}"),
    ] {
        assert_eq!(outside_privately(&words), "ok", "{words}");
    }
}

#[tokio::test]
async fn no_namespace_can_be_made_or_entered() {
    const KINDS: [&str; 8] = ["mnt", "cgroup", "uts", "ipc", "user", "pid", "net", "time"];
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        for kind in KINDS {
            guest.check("EPERM", &[format!("unshare {kind}"), format!("setns /proc/self/ns/{kind}")]).await;
            guest.check("ENOSYS", &[format!("clone3 {kind}")]).await;
            guest.check("EACCES|EPERM", &[format!("setns /proc/1/ns/{kind}")]).await;
        }
        // To clone the bit of a time namespace is a part of a signal's number.
        for kind in KINDS.iter().filter(|kind| **kind != "time") {
            guest.check("EPERM", &[format!("clone {kind}")]).await;
        }
        guest.check("ENOSYS", &["clone3"]).await;
        guest.check("ok", &["threads-and-fork"]).await;
    }
    for kind in KINDS {
        assert_eq!(outside_privately(&format!("unshare {kind}")), "ok", "{kind}");
        assert_eq!(outside_privately(&format!("clone3 {kind}")), "ok", "{kind}");
    }
    for kind in KINDS.iter().filter(|kind| **kind != "time") {
        assert_eq!(outside_privately(&format!("clone {kind}")), "ok", "{kind}");
    }
    assert_eq!(outside_privately("setns /proc/self/ns/uts"), "ok");
}

/// What init does for the API it must not do for whoever swaps what a path means in the meantime: a live mount is
/// attached to the directory that was looked at.
#[tokio::test]
async fn a_live_mount_lands_in_the_vm_whatever_its_target_leads_to() {
    let world = World::new().await;
    let canary = Canary::new(&world);
    let project = world.host_dir("project");
    let options = with_probe(world.options().mount("/work", Mount::host_dir(&project).read_write()));
    let vm = world.vm_with(options).await;
    let link = format!("{PROBE} symlink {} /work/target", canary.directory.display());
    assert_eq!(vm.exec(link).await.unwrap().stdout_lossy(), "ok\n");
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for target in ["/work/target", "/work/target/below"] {
        let refused = vm.mount_fs(target, Mount::memory()).await;
        assert!(refused.is_err(), "{target}: a link was followed");
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    canary.check();
}
