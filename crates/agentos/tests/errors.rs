//! What goes wrong for good: a VM that loses its init, a VM that uses up its memory, calls on what is not there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{AgentOs, ErrorKind, Exit, Limits, VmState};
use rustix::process::{Pid, Signal, kill_process};
use support::world::World;
use support::{eventually, within};

#[tokio::test]
async fn a_vm_that_loses_its_init_is_failed_and_its_neighbour_is_not() {
    let world = World::new().await;
    let (vm, neighbour) = (world.vm().await, world.vm().await);
    let sleep = vm.spawn("sleep", ["4711"]).await.unwrap();
    let waiting = tokio::spawn(async move { sleep.wait().await });
    kill_process(init_of("4711"), Signal::KILL).unwrap();
    match within("the waiting call", waiting).await.unwrap() {
        Ok(exit) => assert!(matches!(exit, Exit::VmGone { .. } | Exit::Signaled { signal: 9 }), "{exit:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::VmFailed, "{error:?}"),
    }
    eventually("the VM is listed as failed", || async {
        let vms = world.sidecar.list_vms().await.unwrap();
        vms.iter().any(|info| info.vm_id == vm.id() && info.state == VmState::Failed && info.reason.is_some())
    })
    .await;
    let error = within("a call", vm.exec("true")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VmFailed, "{error:?}");
    assert_eq!(neighbour.exec("echo fine").await.unwrap().stdout, b"fine\n");
    vm.dispose().await.unwrap();
    world.vm().await;
}

/// The process of the host whose child runs this sleep.
fn init_of(sleep_argument: &str) -> Pid {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let Ok(cmdline) = std::fs::read(path.join("cmdline")) else { continue };
        if cmdline != format!("sleep\0{sleep_argument}\0").as_bytes() {
            continue;
        }
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
        return Pid::from_raw(parent.parse().unwrap()).unwrap();
    }
    panic!("no process runs sleep {sleep_argument}");
}

#[tokio::test]
async fn calls_on_what_is_not_there_name_it() {
    let world = World::new().await;
    let vm = world.vm().await;
    let named = |error: agentos::Error, text: &str| {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    };
    named(vm.process(31_000).wait().await.unwrap_err(), "Process not found: 31000");
    named(vm.process(31_000).write_stdin("x").await.unwrap_err(), "Process not found: 31000");
    let output = vm.process(31_000).stdout().next().await;
    named(output.unwrap().unwrap_err(), "Process not found: 31000");
    named(vm.shell("shell-9").wait().await.unwrap_err(), "Shell not found: shell-9");
    named(vm.shell("shell-9").data().next().await.unwrap().unwrap_err(), "Shell not found: shell-9");
    named(world.sidecar.attach("nobody").await.unwrap_err(), "nobody");
}

#[tokio::test]
async fn memory_that_is_used_up_ends_the_process_that_used_it() {
    let world = World::new().await;
    let limits = Limits::default().memory_bytes(64 << 20);
    let Some(vm) = limited(&world, limits, "limits.memory_bytes").await else { return };
    let exit = within("the end", hog(&vm)).await;
    assert_eq!(exit, Exit::OutOfMemory);
    // Neither what is killed later, nor what somebody else kills while the memory is used up, died of want.
    assert_eq!(vm.exec("kill -9 $$").await.unwrap().exit, Exit::Signaled { signal: 9 });
    let bystander = vm.spawn("sleep", ["1000"]).await.unwrap();
    let grandchild = format!("({HOG}) & wait $!; echo $?");
    let died = within("the grandchild's end", vm.exec(grandchild)).await.unwrap();
    assert_eq!(died.stdout, b"137\n", "{died:?}");
    bystander.kill().await.unwrap();
    assert_eq!(bystander.wait().await.unwrap(), Exit::Signaled { signal: 9 });
    assert_eq!(vm.exec("echo alive").await.unwrap().stdout, b"alive\n");
}

/// A limit that this host cannot enforce is refused by name and never ignored.
async fn limited(world: &World, limits: Limits, named: &str) -> Option<AgentOs> {
    match AgentOs::create(world.options().limits(limits)).await {
        Ok(vm) => Some(vm),
        Err(refused) => {
            let (kind, object) = (refused.kind(), refused.object());
            assert_eq!((kind, object), (ErrorKind::HostUnsupported, Some(named)), "{refused:?}");
            None
        }
    }
}

const HOG: &str = "exec python3 -c 'b = [bytearray(1 << 20) for _ in range(1000)]'";

async fn hog(vm: &AgentOs) -> Exit {
    vm.exec(HOG).await.unwrap().exit
}

#[tokio::test]
async fn a_program_may_use_neither_too_many_processes_nor_open_files() {
    let world = World::new().await;
    let limits = Limits::default().processes(40).open_files(64);
    let Some(vm) = limited(&world, limits, "limits.processes").await else { return };
    let forks = "for i in $(seq 100); do sleep 50 & done 2>&1; echo; ulimit -n";
    let out = vm.exec(forks).await.unwrap();
    let text = out.stdout_lossy() + out.stderr_lossy();
    assert!(text.contains("fork") || text.contains("Cannot"), "{text}");
    let files = vm.exec("ulimit -n").await;
    // The VM is at its process limit, which a new call may meet too; never the host.
    if let Ok(files) = files {
        assert!(matches!(files.stdout_lossy().trim(), "64" | ""), "{files:?}");
    }
    assert!(world.vm().await.exec("true").await.unwrap().success());
}
