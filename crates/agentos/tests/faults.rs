//! Deaths and shortages: what a killed part takes with it, what the others notice, and that nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentos::{
    AgentOs, AgentOsCreateSidecarOptions, AgentOsOptions, ErrorKind, Limits, ModelChoice, Mount, VmState,
};
use rustix::process::{Pid, Signal, kill_process};
use support::world::{World, memory_kib, sidecar_pid, status};
use support::{eventually, within};

/// What one sidecar holds of the host, counted from outside of it.
#[derive(Debug, PartialEq, Eq)]
struct Census {
    /// Its descendants: the launcher, VMs, and what runs in them.
    processes: usize,
    descriptors: usize,
    launcher_descriptors: usize,
    launcher_mounts: usize,
    control_groups: usize,
    runtime_files: Vec<String>,
}

impl Census {
    fn take(sidecar: Pid, runtime_dir: &Path) -> Self {
        let launcher = launcher_of(sidecar);
        let count = |path: String| fs::read_dir(path).map_or(0, Iterator::count);
        let mounts = fs::read_to_string(format!("/proc/{launcher}/mountinfo")).unwrap_or_default();
        Self {
            processes: descendants(sidecar).len(),
            descriptors: count(format!("/proc/{}/fd", sidecar.as_raw_nonzero())),
            launcher_descriptors: count(format!("/proc/{launcher}/fd")),
            launcher_mounts: mounts.lines().count(),
            control_groups: control_groups(launcher).len(),
            runtime_files: names(runtime_dir),
        }
    }
}

/// Process to parent, of the whole host.
fn parents() -> BTreeMap<i32, i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, status(pid, "PPid")?.parse().ok()?))).collect()
}

fn descendants(of: Pid) -> Vec<i32> {
    let parents = parents();
    let mut found = vec![of.as_raw_nonzero().get()];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, its)| **its == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

fn launcher_of(sidecar: Pid) -> i32 {
    let own = sidecar.as_raw_nonzero().get();
    let children: Vec<i32> =
        parents().into_iter().filter(|(_, parent)| *parent == own).map(|(pid, _)| pid).collect();
    let &[launcher] = &children[..] else { panic!("a sidecar has one child, its launcher: {children:?}") };
    launcher
}

/// The directories of a launcher's control groups, its own and one per VM and hierarchy.
fn control_groups(launcher: i32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect_groups(Path::new("/sys/fs/cgroup"), &format!("{launcher}-"), &mut found);
    found
}

fn collect_groups(directory: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let is_ours = path.parent().is_some_and(|parent| parent.ends_with("agentos"))
            && entry.file_name().to_string_lossy().starts_with(prefix);
        if is_ours || found.iter().any(|group| path.starts_with(group)) {
            found.push(path.clone());
        }
        collect_groups(&path, prefix, found);
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Processes of the host whose arguments name the marker: a VM's are among them.
fn running(marker: &str) -> usize {
    let names_it = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == marker.as_bytes())
    };
    parents().keys().filter(|pid| names_it(pid)).count()
}

/// A number of seconds that no other process of the machine sleeps.
fn marker(test: u32) -> String {
    (2_000_000 + 10 * std::process::id() + test).to_string()
}

/// Waits until the sidecar holds as much as before; fails with both counts.
async fn settles(before: &Census, sidecar: Pid, runtime_dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = Census::take(sidecar, runtime_dir);
        if now == *before {
            return;
        }
        assert!(Instant::now() < deadline, "before: {before:?}\nafter:  {now:?}");
        tokio::task::yield_now().await;
    }
}

const VMS_TO_KILL: usize = 50;

#[tokio::test]
async fn a_killed_sidecar_takes_every_guest_process_with_it_and_the_next_one_clears_up() {
    let world = World::new().await;
    let sidecar = sidecar_pid(world.runtime_dir());
    let marker = marker(1);
    let mut vms = Vec::new();
    for _ in 0..VMS_TO_KILL {
        let vm = world.vm().await;
        vm.spawn("sleep", [&marker]).await.unwrap();
        vm.exec(format!("(setsid sleep {marker} &) ; (trap '' TERM HUP; sleep {marker} & wait) &"))
            .await
            .unwrap();
        vms.push(vm);
    }
    let launcher = launcher_of(sidecar);
    eventually("they run", || async { running(&marker) >= 3 * VMS_TO_KILL }).await;
    let everything = descendants(sidecar);
    let host_mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    kill_process(sidecar, Signal::KILL).unwrap();
    let killed = Instant::now();
    eventually("every guest process is gone", || async { running(&marker) == 0 }).await;
    assert!(killed.elapsed() < PROMPTLY, "it took {:?}", killed.elapsed());
    eventually("the launcher and the inits are gone", || async {
        let alive = parents();
        everything.iter().all(|pid| !alive.contains_key(pid))
    })
    .await;
    for vm in &vms {
        assert_eq!(within("a call", vm.exec("true")).await.unwrap_err().kind(), ErrorKind::SidecarDied);
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), host_mounts);
    let options = AgentOsCreateSidecarOptions::default().runtime_dir(world.runtime_dir());
    let next = AgentOs::create_sidecar(options).await.unwrap();
    let vm = AgentOs::create(AgentOsOptions::default().sidecar(&next)).await.unwrap();
    assert_eq!(vm.exec("echo new").await.unwrap().stdout_lossy(), "new\n");
    eventually("the dead one's control groups are gone", || async { control_groups(launcher).is_empty() })
        .await;
    let sockets = names(world.runtime_dir()).into_iter().filter(|name| name.ends_with(".sock")).count();
    assert_eq!(sockets, 1, "{:?}", names(world.runtime_dir()));
}

#[tokio::test]
async fn a_killed_launcher_fails_its_vms_and_the_next_vm_gets_a_new_one() {
    let world = World::new().await;
    let sidecar = sidecar_pid(world.runtime_dir());
    let marker = marker(2);
    let vms = [world.vm().await, world.vm().await];
    let launcher = launcher_of(sidecar);
    let mut waiting = Vec::new();
    for vm in &vms {
        let sleep = vm.spawn("sleep", [&marker]).await.unwrap();
        waiting.push(tokio::spawn(async move { sleep.wait().await.map(drop) }));
    }
    kill_process(Pid::from_raw(launcher).unwrap(), Signal::KILL).unwrap();
    for wait in waiting {
        // Either answer is true: its VM is gone, and so is the process.
        if let Err(error) = within("the waiting call", wait).await.unwrap() {
            assert_eq!(error.kind(), ErrorKind::VmFailed, "{error:?}");
        }
    }
    eventually("every process of its VMs is gone", || async { running(&marker) == 0 }).await;
    for vm in &vms {
        let error = within("a call", vm.exec("true")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VmFailed, "{error:?}");
        assert!(error.to_string().contains("launcher"), "the reason is named: {error}");
    }
    let listed = world.sidecar.list_vms().await.unwrap();
    assert!(listed.iter().all(|vm| vm.state == VmState::Failed && vm.reason.is_some()), "{listed:?}");
    let fresh = within("a new VM", world.vm()).await;
    assert_eq!(fresh.exec("echo new").await.unwrap().stdout_lossy(), "new\n");
    assert_ne!(launcher_of(sidecar), launcher);
    eventually("the dead one's control groups are gone", || async { control_groups(launcher).is_empty() })
        .await;
    for vm in vms {
        within("dispose", vm.dispose()).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_enospc_inside_and_room_again_once_it_is_cleared() {
    let world = World::new().await;
    let beside = world.vm().await;
    let vm = world.vm_with(world.options().limits(Limits::default().disk_bytes(8 << 20))).await;
    // Files of every place of the VM come out of one budget.
    let out = vm
        .exec("for place in /tmp /home/user /dev/shm; do dd if=/dev/zero of=$place/fill bs=1M count=64 2>&1; done")
        .await
        .unwrap();
    assert_eq!(out.stdout_lossy().matches("No space left on device").count(), 3, "{}", out.stdout_lossy());
    let error = vm.write_file("/home/user/more", vec![1; 1 << 20]).await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NoSpace, Some("ENOSPC")), "{error:?}");
    assert_eq!(vm.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
    beside.write_file("/home/user/more", vec![1; 16 << 20]).await.unwrap();
    vm.delete("/tmp/fill").await.unwrap();
    vm.exec("rm -f /home/user/fill /dev/shm/fill").await.unwrap();
    vm.write_file("/home/user/more", vec![1; 4 << 20]).await.unwrap();
    assert_eq!(vm.stat("/home/user/more").await.unwrap().size, 4 << 20);
}

#[tokio::test]
async fn orphans_by_the_thousand_are_reaped() {
    let world = World::new().await;
    let vm = world.vm().await;
    let daemons = "i=0; while [ $i -lt 2000 ]; do (setsid true &); i=$((i + 1)); done; echo made";
    assert_eq!(within("the daemons", vm.exec(daemons)).await.unwrap().stdout_lossy(), "made\n");
    let sidecar = sidecar_pid(world.runtime_dir());
    // The launcher and one init.
    eventually("all are reaped", || async { descendants(sidecar).len() == 2 }).await;
}

/// By the death of what held it, which takes a second or two: far less than any deadline that would end it otherwise, far
/// more than a loaded machine adds.
const PROMPTLY: Duration = Duration::from_secs(15);

/// Cycles before the count, so that what is made once and kept is there already.
const WARM_UP: usize = 20;
const CYCLES: usize = 500;
const AT_ONCE: usize = 4;
/// Room for the allocator's fragments: what is kept of every VM, 8 KiB each, doesn't fit in.
const MAX_GROWTH_KIB: u64 = 4096;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_vms_come_and_go_and_nothing_stays() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let sidecar = sidecar_pid(world.runtime_dir());
    cycles(&world, &project, WARM_UP).await;
    let host_mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = Census::take(sidecar, world.runtime_dir());
    let memory_before = [anonymous_kib(sidecar.as_raw_nonzero().get()), anonymous_kib(launcher_of(sidecar))];
    cycles(&world, &project, CYCLES).await;
    settles(&before, sidecar, world.runtime_dir()).await;
    let memory_after = [anonymous_kib(sidecar.as_raw_nonzero().get()), anonymous_kib(launcher_of(sidecar))];
    for (before, after) in memory_before.into_iter().zip(memory_after) {
        assert!(after < before + MAX_GROWTH_KIB, "{memory_before:?} KiB became {memory_after:?} KiB");
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), host_mounts);
    // Made once, as the place of a live mount; what was mounted there left nothing in it.
    assert_eq!((names(&project), names(&project.join("below"))), (vec!["below".to_owned()], vec![]));
    assert_eq!(world.sidecar.list_vms().await.unwrap(), []);
}

/// What a process holds in memory of its own.
fn anonymous_kib(pid: i32) -> u64 {
    memory_kib(pid, "RssAnon")
}

async fn cycles(world: &World, project: &Path, count: usize) {
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..AT_ONCE {
        let options = world.options().mount("/work", Mount::host_dir(project).read_write());
        lanes.spawn(async move {
            for cycle in 0..count / AT_ONCE {
                let vm = within("create", AgentOs::create(options.clone())).await.unwrap();
                match (lane + cycle) % 4 {
                    0 => drop(within("exec", vm.exec("sleep 1000 & echo x")).await.unwrap()),
                    1 => drop(within("spawn", vm.spawn("sleep", ["1000"])).await.unwrap()),
                    2 => drop(within("shell", vm.open_shell()).await.unwrap()),
                    _ => vm.mount_fs("/work/below", Mount::memory()).await.map(drop).unwrap_or_default(),
                }
                within("dispose", vm.dispose()).await.unwrap();
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creations_that_are_given_up_leave_nothing() {
    let world = World::new().await;
    let sidecar = sidecar_pid(world.runtime_dir());
    cycles(&world, &world.host_dir("project"), WARM_UP).await;
    let before = Census::take(sidecar, world.runtime_dir());
    for step in 0..100u64 {
        // Given up at ever later steps, up to some that are done before.
        let patience = Duration::from_micros(step * 300);
        let _ = tokio::time::timeout(patience, AgentOs::create(world.options())).await;
    }
    settles(&before, sidecar, world.runtime_dir()).await;
    assert_eq!(world.vm().await.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
}

/// Another program with VMs of its own in the same sidecar, to be killed.
fn another_client(runtime_dir: &Path, marker: &str) -> std::process::Child {
    let built = || {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().parent().unwrap().join("agentos")
    };
    let binary = std::env::var_os("AGENTOS_SIDECAR").map_or_else(built, PathBuf::from);
    let mut command = std::process::Command::new(binary);
    command.args(["exec", "--", "sleep", marker]).env("XDG_RUNTIME_DIR", runtime_dir);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null()).spawn().unwrap()
}

#[tokio::test]
async fn a_killed_client_s_vms_are_disposed_and_another_client_s_live_on() {
    let directory = tempfile::tempdir().unwrap();
    let marker = marker(3);
    let mut client = another_client(directory.path(), &marker);
    let shared =
        agentos::AgentOsSharedSidecarOptions::default().runtime_dir(directory.path().join("agentos"));
    let mine = AgentOs::get_shared_sidecar(shared).await.unwrap();
    let vm = AgentOs::create(AgentOsOptions::default().sidecar(&mine)).await.unwrap();
    eventually("both have a VM", || async { mine.list_vms().await.unwrap().len() == 2 }).await;
    // The client's own arguments name the marker too, and only before it has a sidecar it may be there twice.
    eventually("its process runs in a VM", || async { running(&marker) == 2 }).await;
    client.kill().unwrap();
    client.wait().unwrap();
    let killed = Instant::now();
    eventually("its VM is gone", || async { mine.list_vms().await.unwrap().len() == 1 }).await;
    eventually("its process is gone", || async { running(&marker) == 0 }).await;
    assert!(killed.elapsed() < PROMPTLY, "it took {:?}", killed.elapsed());
    assert_eq!(vm.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
}

#[tokio::test]
async fn a_killed_demo_model_is_replaced_and_old_sessions_reach_the_new_one() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let first = within("a session", vm.create_session("pi")).await.unwrap();
    let model = demo_model_of(sidecar_pid(world.runtime_dir()));
    kill_process(Pid::from_raw(model).unwrap(), Signal::KILL).unwrap();
    eventually("the model is dead", || async {
        let status = fs::read_to_string(format!("/proc/{model}/status")).unwrap_or_default();
        // A dead first thread is no dead process: nobody can reap it before its last thread has ended.
        status.is_empty() || (status.contains("State:\tZ") && status.contains("Threads:\t1\n"))
    })
    .await;
    let second = within("a session", vm.create_session("pi")).await.unwrap();
    for session in [second, first] {
        let reply = within("the turn", session.prompt("Run the command `echo $((6 * 7))`")).await.unwrap();
        assert!(reply.text.contains("42"), "{}", reply.text);
    }
}

fn demo_model_of(sidecar: Pid) -> i32 {
    let own = sidecar.as_raw_nonzero().get();
    let is_model = |pid: &i32| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cmdline.split(|byte| *byte == 0).any(|word| word == b"demo-model")
    };
    let children = parents().into_iter().filter(|(_, parent)| *parent == own).map(|(pid, _)| pid);
    children.into_iter().find(is_model).expect("the sidecar has a demo model")
}
