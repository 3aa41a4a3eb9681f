//! How VMs begin and end.

use std::time::Duration;

use agentos_guest_protocol::filesystem::FileResponse;
use agentos_guest_protocol::init::{InitMessage, Request, Response};
use agentos_guest_protocol::launcher::{BootFailure, LauncherEvent, LauncherRequest};
use agentos_guest_protocol::process::Status;

use super::fake::{FakeLauncher, World, bytes, file, soon, spec};
use crate::mount::Mounter;
use crate::process::ProcessSpec;
use crate::spec::VmOptions;
use crate::{CreateError, Exit, GoneReason, LauncherDeath, LauncherError, Unavailable, Vm, VmState};

fn failure() -> BootFailure {
    BootFailure { step: "clone3".to_owned(), object: bytes("namespaces"), errno: 1 }
}

#[tokio::test]
async fn a_launcher_that_can_not_work_here_says_why() {
    let (handle, _launcher) = FakeLauncher::start_with(LauncherEvent::StartFailed(failure())).await;
    let error = handle.unwrap_err();
    assert_eq!(
        error.to_string(),
        "launcher can't work on this host: EPERM: operation not permitted, clone3 'namespaces'"
    );
    assert!(matches!(error, LauncherError::Unsupported(_)));
}

#[tokio::test]
async fn a_vm_that_fails_to_boot_names_the_step() {
    let (handle, launcher) = FakeLauncher::start().await;
    let play = async {
        let init = launcher.boot().await;
        init.say(InitMessage::BootFailed(failure()), Vec::new());
        launcher.kill(init.number).await;
    };
    let (created, ()) =
        soon(async { tokio::join!(Vm::create(&handle, spec(VmOptions::default())), play) }).await;
    assert!(matches!(created, Err(CreateError::Boot(step)) if step == failure()));

    let play = async {
        let init = launcher.boot().await;
        let vm = init.hang_up();
        launcher.say(LauncherEvent::BootFailed { vm, failure: failure() }, Vec::new());
    };
    let (created, ()) =
        soon(async { tokio::join!(Vm::create(&handle, spec(VmOptions::default())), play) }).await;
    assert!(matches!(created, Err(CreateError::Boot(step)) if step == failure()));
}

#[tokio::test]
async fn a_create_that_is_dropped_midway_kills_what_it_began_and_its_ids_come_back() {
    let (handle, launcher) = FakeLauncher::start().await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        begun.push(tokio::select! {
            _ = Vm::create(&handle, spec(VmOptions::default())) => panic!("nobody has said Ready"),
            init = launcher.boot() => init,
        });
        let number = begun[begun.len() - 1].number;
        assert!(matches!(launcher.request().await, LauncherRequest::Kill { vm } if vm == number));
    }
    assert_ne!(begun[0].number, begun[1].number, "numbers of VMs are never used twice");
    assert_ne!(begun[0].ids, begun[1].ids, "the launcher has not reported the end of the first");
    for init in &begun {
        launcher.say(LauncherEvent::Exited { vm: init.number, status: Status::Signaled(9) }, Vec::new());
    }
    soon(async {
        while handle.lease_ids().unwrap().range() != begun[0].ids {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn dispose_is_polite_ends_running_calls_and_waits_for_the_launcher() {
    let World { vm, init, launcher, .. } = World::new().await;
    let (process, guest) = soon(async {
        let spec = ProcessSpec { argv: vec![b"server".to_vec()], ..Default::default() };
        tokio::join!(vm.spawn(spec), init.run(2))
    })
    .await;
    let process = process.unwrap();
    let stuck = tokio::spawn({
        let vm = vm.clone();
        async move { vm.stat(b"/mnt/stuck").await }
    });
    let (stuck_id, _) = init.file_request().await;

    let disposing = tokio::spawn({
        let vm = vm.clone();
        async move { vm.dispose(Some(Duration::from_millis(70))).await }
    });
    let (id, request) = init.request().await;
    assert!(matches!(request, Request::Shutdown { grace_ms: 70 }), "{request:?}");
    let error = soon(stuck).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("disposed"), "{error}");
    assert!(matches!(soon(process.wait()).await, Exit::VmGone(GoneReason::Disposed)));
    assert!(matches!(vm.state(), VmState::Disposing));
    let refused = soon(vm.exists(b"/")).await.unwrap_err();
    assert!(matches!(refused, crate::filesystem::FileError::Unavailable(Unavailable::Disposing)));

    // What comes late hurts nobody: the answer to the call above, the exit of the process.
    init.answer(stuck_id, file(FileResponse::Exists(true)), Vec::new());
    init.exit(2, Status::Signaled(15));
    init.answer(id, Response::Done, Vec::new());
    drop(guest);
    let number = init.hang_up();
    assert!(!disposing.is_finished(), "the launcher has not reported the end");
    launcher.say(LauncherEvent::Exited { vm: number, status: Status::Exited(0) }, Vec::new());
    soon(disposing).await.unwrap();
    assert!(matches!(vm.state(), VmState::Disposed));
    soon(vm.dispose(None)).await;
    assert!(matches!(soon(vm.gone()).await, GoneReason::Disposed));
}

#[tokio::test]
async fn an_init_that_does_not_shut_down_is_killed() {
    let World { vm, init, launcher, .. } = World::new().await;
    let disposing = tokio::spawn(async move { vm.dispose(Some(Duration::from_millis(10))).await });
    assert!(matches!(init.request().await.1, Request::Shutdown { .. }));
    launcher.kill(init.number).await;
    disposing.await.unwrap();
}

#[tokio::test]
async fn dropping_the_last_handle_kills_the_vm() {
    let World { vm, init, launcher, handle: _handle } = World::new().await;
    drop(vm);
    launcher.kill(init.number).await;
}

#[tokio::test]
async fn an_init_that_dies_fails_its_vm_with_its_status() {
    let World { vm, init, launcher, .. } = World::new().await;
    let calling = tokio::spawn({
        let vm = vm.clone();
        async move { vm.stat(b"/x").await }
    });
    init.file_request().await;
    let number = init.hang_up();
    launcher.say(LauncherEvent::Exited { vm: number, status: Status::Signaled(9) }, Vec::new());
    let reason = soon(vm.gone()).await;
    assert_eq!(reason.to_string(), "VM's init was killed by signal 9");
    assert_eq!(soon(calling).await.unwrap().unwrap_err().to_string(), reason.to_string());
    assert!(matches!(vm.state(), VmState::Failed(GoneReason::InitEnded(Status::Signaled(9)))));
    // Disposing a failed VM clears it away.
    soon(vm.dispose(None)).await;
}

#[tokio::test]
async fn a_launcher_that_dies_fails_all_its_vms_and_nothing_new_is_made() {
    let World { vm, init, launcher, handle } = World::new().await;
    let (other, _other_init) = launcher.create(&handle, VmOptions::default()).await;
    drop((init, launcher));
    for vm in [&vm, &other] {
        assert!(matches!(soon(vm.gone()).await, GoneReason::Launcher(LauncherDeath::HungUp)));
    }
    assert!(matches!(soon(handle.died()).await, LauncherDeath::HungUp));
    let created = soon(Vm::create(&handle, spec(VmOptions::default()))).await;
    assert!(matches!(created, Err(CreateError::Gone(GoneReason::Launcher(_)))));
    soon(vm.dispose(None)).await;
}

#[tokio::test]
async fn dropping_the_last_handle_of_a_launcher_hangs_up() {
    let (handle, launcher) = FakeLauncher::start().await;
    drop(handle);
    assert!(soon(launcher.ended()).await);
}

#[tokio::test]
async fn a_fault_while_one_vm_is_served_ends_that_vm_alone() {
    let World { vm, init, launcher, handle } = World::new().await;
    let (sentinel, sentinel_init) = launcher.create(&handle, VmOptions::default()).await;
    let faulty = tokio::spawn({
        let vm = vm.clone();
        async move { vm.call(Request::ListProcesses, Vec::new(), |_| -> Result<(), _> { panic!("a bug") }).await }
    });
    let (id, _) = init.request().await;
    init.answer(id, Response::Processes(Vec::new()), Vec::new());
    assert!(matches!(soon(vm.gone()).await, GoneReason::Fault));
    assert!(soon(faulty).await.unwrap().is_err());
    launcher.kill(init.number).await;
    soon(vm.dispose(None)).await;

    let asking = tokio::spawn(async move { sentinel.exists(b"/").await });
    let (id, _) = sentinel_init.file_request().await;
    sentinel_init.answer(id, file(FileResponse::Exists(true)), Vec::new());
    assert!(soon(asking).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_host_directory_is_opened_by_the_launcher_and_attached_by_init() {
    use agentos_guest_protocol::mount::MountRequest;

    use crate::spec::{MountKind, MountOptions};

    let World { vm, init, launcher, .. } = World::new().await;
    let kind = MountKind::HostDir { source: b"/srv/src".to_vec(), read_only: true, allow_sockets: false };
    let mount = MountOptions { path: b"/work/".to_vec(), kind };
    let mounting = tokio::spawn({
        let (vm, mount) = (vm.clone(), mount.clone());
        async move { vm.mount_fs(mount, Mounter::User).await }
    });
    let LauncherRequest::OpenHostDir { token, host_dir, .. } = launcher.request().await else {
        panic!("not OpenHostDir");
    };
    assert_eq!(host_dir.source, bytes("/srv/src"));
    let tree = tempfile::tempfile().unwrap();
    launcher.say(LauncherEvent::HostDirOpened { token }, vec![tree.into()]);
    let (id, request) = init.request().await;
    assert!(
        matches!(request, Request::Mount(MountRequest::Attach { target, file: false }) if target == bytes("/work"))
    );
    init.answer(id, Response::Done, Vec::new());
    soon(mounting).await.unwrap().unwrap();

    let mounting = tokio::spawn(async move { vm.mount_fs(mount, Mounter::User).await });
    let LauncherRequest::OpenHostDir { token, .. } = launcher.request().await else {
        panic!("not OpenHostDir");
    };
    let failure = BootFailure { step: "open_tree".to_owned(), object: bytes("/srv/src"), errno: 2 };
    launcher.say(LauncherEvent::HostDirFailed { token, failure }, Vec::new());
    let error = soon(mounting).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "ENOENT: no such file or directory, open_tree '/srv/src'");
}
