//! How long VMs live, with the real sidecar.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{
    AgentOs, AgentOsCreateSidecarOptions, AgentOsOptions, AgentOsSharedSidecarOptions, ErrorKind,
    SidecarState,
};
use support::world::{World, sidecar_pid};
use support::{eventually, within};

#[tokio::test]
async fn a_disposed_vm_ends_its_calls_and_takes_no_more() {
    let world = World::new().await;
    let vm = world.vm().await;
    let running = tokio::spawn(vm.exec("sleep 1000").into_future());
    eventually("it runs", || async { !vm.all_processes().await.unwrap().is_empty() }).await;
    let sleep = vm.spawn("sleep", ["1000"]).await.unwrap();
    let waiting = tokio::spawn(async move { sleep.wait().await });
    vm.dispose().await.unwrap();
    let waited = within("the waiting call", waiting).await.unwrap();
    assert!(matches!(&waited, Err(error) if error.kind() == ErrorKind::Closed), "{waited:?}");
    let ended = within("the running call", running).await.unwrap();
    assert!(matches!(&ended, Err(error) if error.kind() == ErrorKind::Closed), "{ended:?}");
    assert_eq!(vm.exec("true").await.unwrap_err().kind(), ErrorKind::Closed);
    vm.dispose().await.unwrap();
    assert_eq!(world.sidecar.list_vms().await.unwrap(), []);
}

#[tokio::test]
async fn dropping_the_last_handle_disposes_the_vm() {
    let world = World::new().await;
    let vm = world.vm().await;
    let sleep = vm.spawn("sleep", ["1000"]).await.unwrap();
    drop(vm);
    assert_eq!(world.sidecar.list_vms().await.unwrap().len(), 1);
    drop(sleep);
    eventually("the VM is gone", || async { world.sidecar.list_vms().await.unwrap().is_empty() }).await;
}

#[tokio::test]
async fn a_program_disposes_its_own_vms_and_nobody_else_s() {
    let directory = tempfile::tempdir().unwrap();
    let shared = AgentOsSharedSidecarOptions::default().pool("two").runtime_dir(directory.path());
    let mine = AgentOs::get_shared_sidecar(shared.clone()).await.unwrap();
    let my_vm = AgentOs::create(AgentOsOptions::default().sidecar(&mine)).await.unwrap();
    // Another runtime is another client, as another program would be.
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let theirs = AgentOs::get_shared_sidecar(shared).await.unwrap();
            let their_vm = AgentOs::create(AgentOsOptions::default().sidecar(&theirs)).await.unwrap();
            assert_eq!(theirs.list_vms().await.unwrap().len(), 2);
            assert_eq!(theirs.describe().active_vm_count, 1);
            theirs.dispose().await.unwrap();
            assert_eq!(their_vm.exec("true").await.unwrap_err().kind(), ErrorKind::Closed);
        });
    });
    tokio::task::spawn_blocking(|| other.join().unwrap()).await.unwrap();
    assert_eq!(my_vm.exec("echo alive").await.unwrap().stdout, b"alive\n");
    assert_eq!(mine.list_vms().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_detached_vm_is_found_again_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let shared = AgentOsSharedSidecarOptions::default().pool("keep").runtime_dir(directory.path());
    let first = shared.clone();
    let maker = std::thread::spawn(move || {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let vm = AgentOs::create(AgentOsOptions::default().sidecar(first).detached("box")).await.unwrap();
            vm.write_file("/home/user/kept", "kept").await.unwrap();
        });
    });
    tokio::task::spawn_blocking(|| maker.join().unwrap()).await.unwrap();
    let sidecar = AgentOs::get_shared_sidecar(shared).await.unwrap();
    let vm = sidecar.attach("box").await.unwrap();
    assert_eq!(vm.read_file("/home/user/kept").await.unwrap(), b"kept");
    let error =
        AgentOs::create(AgentOsOptions::default().sidecar(&sidecar).detached("box")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    vm.dispose().await.unwrap();
    assert_eq!(sidecar.attach("box").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_killed_sidecar_ends_everything_and_says_so() {
    let world = World::new().await;
    let vm = world.vm().await;
    let sleep = vm.spawn("sleep", ["1000"]).await.unwrap();
    let waiting = tokio::spawn(async move { sleep.wait().await });
    let pid = sidecar_pid(world.runtime_dir());
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let error = within("the call in flight", waiting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SidecarDied, "{error:?}");
    eventually("the handle knows", || async { world.sidecar.describe().state == SidecarState::Disposed })
        .await;
    assert_eq!(vm.exec("true").await.unwrap_err().kind(), ErrorKind::SidecarDied);
}

#[tokio::test]
async fn a_stale_socket_does_not_keep_a_new_sidecar_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let shared = AgentOsSharedSidecarOptions::default().pool("stale").runtime_dir(directory.path());
    let first = AgentOs::get_shared_sidecar(shared.clone()).await.unwrap();
    rustix::process::kill_process(sidecar_pid(directory.path()), rustix::process::Signal::KILL).unwrap();
    eventually("the handle knows", || async { first.describe().state == SidecarState::Disposed }).await;
    assert!(directory.path().join("stale.sock").exists());
    let second = AgentOs::get_shared_sidecar(shared).await.unwrap();
    let vm = AgentOs::create(AgentOsOptions::default().sidecar(&second)).await.unwrap();
    assert_eq!(vm.exec("echo new").await.unwrap().stdout, b"new\n");
}

#[tokio::test]
async fn an_explicit_sidecar_leaves_no_file_unless_it_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let options = AgentOsCreateSidecarOptions::default().runtime_dir(directory.path()).sidecar_id("one");
    let files = || {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let sidecar = AgentOs::create_sidecar(options.clone()).await.unwrap();
    assert_eq!(files(), ["one.log", "one.sock", "one.sock.lock"]);
    AgentOs::create(AgentOsOptions::default().sidecar(&sidecar)).await.unwrap();
    sidecar.dispose().await.unwrap();
    eventually("nothing is left", || async { files().is_empty() }).await;

    let sidecar = AgentOs::create_sidecar(options).await.unwrap();
    rustix::process::kill_process(sidecar_pid(directory.path()), rustix::process::Signal::KILL).unwrap();
    eventually("the handle knows", || async { sidecar.describe().state == SidecarState::Disposed }).await;
    assert_eq!(files(), ["one.log", "one.sock", "one.sock.lock"], "the log may say why");
}

#[tokio::test]
async fn a_burst_of_vms_is_served_and_leaves_nothing() {
    let world = World::new().await;
    let one = |number: usize| {
        let options = world.options();
        async move {
            let vm = AgentOs::create(options).await.unwrap();
            let out = vm.exec(format!("echo {number}")).await.unwrap();
            assert_eq!(out.stdout_lossy(), format!("{number}\n"));
            vm
        }
    };
    let vms = within("all of them", futures_util::future::join_all((0..50).map(one))).await;
    assert_eq!(world.sidecar.describe().active_vm_count, 50);
    drop(vms);
    eventually("none is left", || async { world.sidecar.list_vms().await.unwrap().is_empty() }).await;
    assert_eq!(world.sidecar.describe().active_vm_count, 0);
}
