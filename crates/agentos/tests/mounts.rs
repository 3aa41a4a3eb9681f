//! Host directories and memory inside a VM, at its creation and live.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use agentos::{AgentOs, ErrorKind, Mount};
use support::world::World;

async fn shell(vm: &AgentOs, command: &str) -> String {
    vm.exec(command).await.unwrap().stdout_lossy().into_owned()
}

#[tokio::test]
async fn a_host_directory_is_read_only_unless_asked_otherwise() {
    let world = World::new().await;
    let host = world.host_dir("project");
    fs::write(host.join("file"), "host").unwrap();
    let vm = world.vm_with(world.options().mount("/work", Mount::host_dir(&host))).await;
    assert_eq!(vm.read_file("/work/file").await.unwrap(), b"host");
    let inside = shell(&vm, "cat /work/file; touch /work/file 2>&1; echo x > /work/new").await;
    assert!(inside.starts_with("host") && inside.contains("Read-only file system"), "{inside}");
    let error = vm.write_file("/work/new", "x").await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::ReadOnly, Some("EROFS")), "{error:?}");
    assert!(!host.join("new").exists());
    // The host's changes are seen at once.
    fs::write(host.join("file"), "changed").unwrap();
    assert_eq!(shell(&vm, "cat /work/file").await, "changed");
}

#[tokio::test]
async fn a_writable_one_is_the_host_s_own() {
    let world = World::new().await;
    let host = world.host_dir("project");
    let vm = world.vm_with(world.options().mount("/work", Mount::host_dir(&host).read_write())).await;
    vm.write_file("/work/api/a.txt", "from the api").await.unwrap();
    shell(&vm, "echo from inside > /work/b.txt").await;
    assert_eq!(fs::read_to_string(host.join("api/a.txt")).unwrap(), "from the api");
    assert_eq!(fs::read_to_string(host.join("b.txt")).unwrap(), "from inside\n");
    use std::os::unix::fs::MetadataExt;
    let owner = |path: &str| fs::metadata(host.join(path)).unwrap().uid();
    assert_eq!((owner("api/a.txt"), owner("b.txt")), (owner("."), owner(".")));
}

#[tokio::test]
async fn a_link_does_not_lead_out() {
    let world = World::new().await;
    let host = world.host_dir("project");
    let secret = world.host_dir("outside").join("secret");
    fs::write(&secret, "secret").unwrap();
    symlink(&secret, host.join("absolute")).unwrap();
    symlink("../outside/secret", host.join("relative")).unwrap();
    let vm = world.vm_with(world.options().mount("/work", Mount::host_dir(&host).read_write())).await;
    for name in ["absolute", "relative"] {
        let path = format!("/work/{name}");
        assert!(vm.read_file(&path).await.is_err());
        assert_eq!(shell(&vm, &format!("cat {path} 2>/dev/null")).await, "");
        // Writing through a dangling link may fail or create inside; the host's file stays.
        let _ = vm.write_file(&path, "overwritten").await;
    }
    vm.delete("/work/absolute").await.unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
}

#[tokio::test]
async fn memory_is_empty_sized_and_gone_with_its_mount() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().mount("/scratch", Mount::memory().max_bytes(4 << 20))).await;
    vm.write_file("/scratch/a", "x").await.unwrap();
    assert_eq!(shell(&vm, "cat /scratch/a").await, "x");
    let error = vm.write_file("/scratch/big", vec![0; 8 << 20]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert!(!vm.unmount_fs("/scratch").await.unwrap().busy);
    assert!(!vm.exists("/scratch/a").await.unwrap());
}

#[tokio::test]
async fn a_live_mount_hides_what_was_there_until_it_is_taken_away() {
    let world = World::new().await;
    let host = world.host_dir("late");
    fs::write(host.join("file"), "late").unwrap();
    let vm = world.vm().await;
    vm.write_file("/home/user/dir/below", "below").await.unwrap();
    vm.mount_fs("/home/user/dir", Mount::host_dir(&host)).await.unwrap();
    assert_eq!(shell(&vm, "ls dir; cat dir/file").await, "file\nlate");
    let error = vm.delete("/home/user/dir").recursive().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Busy | ErrorKind::ReadOnly), "{error:?}");
    let user = vm.spawn("sleep", ["1000"]).cwd("/home/user/dir").await.unwrap();
    assert!(vm.unmount_fs("/home/user/dir").await.unwrap().busy);
    assert_eq!(shell(&vm, "cat dir/below").await, "below");
    user.kill().await.unwrap();
    assert!(host.join("file").exists());
}

#[tokio::test]
async fn what_must_not_be_mounted_is_refused() {
    let world = World::new().await;
    let vm = world.vm().await;
    for path in ["/", "/proc", "/dev", "relative"] {
        let error = vm.mount_fs(path, Mount::memory()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}: {error:?}");
    }
    let absent = world.runtime_dir().join("absent");
    let error = vm.mount_fs("/mnt", Mount::host_dir(&absent)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.to_string().contains("absent"), "{error}");
    let with_socket = world.host_dir("sockets");
    let _listener = std::os::unix::net::UnixListener::bind(with_socket.join("s")).unwrap();
    let error = vm.mount_fs("/mnt", Mount::host_dir(&with_socket)).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Policy | ErrorKind::InvalidInput | ErrorKind::Permission),
        "{error:?}"
    );
    vm.mount_fs("/mnt", Mount::host_dir(&with_socket).allow_sockets()).await.unwrap();
    let error = vm.unmount_fs("/home").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound), "{error:?}");
}

/// /tmp and its like are mounts as well, and the VM needs them.
#[tokio::test]
async fn only_what_was_mounted_can_be_unmounted_and_once_each() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().mount("/scratch", Mount::memory())).await;
    let all = shell(&vm, "cut -d' ' -f5 /proc/self/mountinfo").await;
    let own = all.lines().filter(|place| *place != "/scratch");
    for place in own.chain(["/tmp/.", "/opt/agentos", "/etc", "relative", "/scratch/below"]) {
        let error = vm.unmount_fs(place).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.errno()),
            (ErrorKind::InvalidInput, Some("EINVAL")),
            "{place}: {error:?}"
        );
    }
    assert_eq!(shell(&vm, "cut -d' ' -f5 /proc/self/mountinfo").await, all);
    // Over one of the VM's own, it's the upper one alone.
    vm.mount_fs("/tmp", Mount::memory()).await.unwrap();
    for place in ["/tmp", "/scratch/"] {
        vm.unmount_fs(place).await.unwrap();
        let again = vm.unmount_fs(place).await.unwrap_err();
        assert!(again.to_string().contains(place.trim_end_matches('/')), "{again}");
    }
    assert!(shell(&vm, "cut -d' ' -f5 /proc/self/mountinfo").await.contains("/tmp"));
}
