//! What a VM might leave behind: processes, and mounts in the host's table.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use agentos::{AgentOs, AgentOsCreateSidecarOptions, AgentOsOptions, Mount};

use crate::attempts::{is_root, skip};
use crate::support::eventually;
use crate::support::world::World;

#[tokio::test]
async fn nothing_that_ran_in_a_vm_runs_after_it() {
    let world = World::new().await;
    // No other process of the machine has this among its arguments.
    let marker = format!("{}", 1_000_000 + u64::from(std::process::id()));
    for root in [false, true] {
        let vm = world.vm_with(world.options().root(root)).await;
        let stay = format!(
            "(setsid sleep {marker} &) ; (trap '' TERM HUP INT; sleep {marker} & wait) & \
             nohup sleep {marker} >/dev/null 2>&1 & (sleep {marker} &); sleep 0"
        );
        vm.exec(stay).await.unwrap();
        let stopped = vm.spawn("sleep", [&marker]).await.unwrap();
        stopped.signal(19).await.unwrap();
        vm.open_shell().command("sleep", [&marker]).await.unwrap();
        eventually("they run", || async { running(&marker) >= 5 }).await;
        vm.dispose().await.unwrap();
        assert_eq!(running(&marker), 0, "root: {root}");
    }
}

/// Processes of the host whose arguments name the marker: a VM's are among them.
fn running(marker: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let named = processes.filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == marker.as_bytes())
    });
    named.count()
}

/// A clone of a mount that is shared passes on what is mounted in it, unless it is made private first. The sidecar
/// gets a mount namespace in which everything is shared, as it is on machines that systemd started.
#[tokio::test]
async fn what_a_vm_mounts_never_shows_on_a_host_whose_mounts_are_shared() {
    if !is_root() {
        skip(
            "leftovers::what_a_vm_mounts_never_shows_on_a_host_whose_mounts_are_shared",
            "sharing mounts needs root; the launcher of other users has a user namespace of its own around it",
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [project, elsewhere] = ["project", "elsewhere"].map(|name| directory.path().join(name));
    for path in [&project, &elsewhere] {
        fs::create_dir(path).unwrap();
        fs::create_dir(path.join("below")).unwrap();
    }
    let table = directory.path().join("witness");
    let wrapper = sharing_sidecar(directory.path(), &project, &table);
    let options =
        AgentOsCreateSidecarOptions::default().binary(wrapper).runtime_dir(directory.path().join("run"));
    fs::create_dir(directory.path().join("run")).unwrap();
    fs::set_permissions(directory.path().join("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let sidecar = AgentOs::create_sidecar(options).await.unwrap();
    let pid = fs::read_to_string(&table).unwrap().trim().to_owned();
    let mounts = || fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let before = mounts();
    let witness = project.display().to_string();
    let shared = before.lines().any(|line| line.contains(&witness) && line.contains(" shared:"));
    assert!(shared, "the control: the project's mount is shared: {before}");
    let vm = AgentOs::create(
        AgentOsOptions::default()
            .sidecar(&sidecar)
            .mount("/work", Mount::host_dir(&project).read_write())
            .mount("/work/below", Mount::memory()),
    )
    .await
    .unwrap();
    assert_eq!(mounts(), before, "after create");
    vm.write_file("/work/below/file", "x").await.unwrap();
    vm.mkdir("/work/late").await.unwrap();
    vm.mount_fs("/work/late", Mount::memory()).await.unwrap();
    vm.mount_fs("/mnt", Mount::host_dir(&elsewhere).read_write()).await.unwrap();
    vm.mount_fs("/mnt/below", Mount::memory()).await.unwrap();
    vm.write_file("/mnt/below/file", "x").await.unwrap();
    assert_eq!(mounts(), before, "after live mounts");
    assert!(!project.join("below/file").exists() && !elsewhere.join("below/file").exists());
    vm.unmount_fs("/mnt/below").await.unwrap();
    vm.dispose().await.unwrap();
    assert_eq!(mounts(), before, "after dispose");
    sidecar.dispose().await.unwrap();
}

/// A program to start instead of the sidecar: it shares all mounts, one of them over the project, and becomes it.
fn sharing_sidecar(directory: &Path, project: &Path, pid_file: &Path) -> std::path::PathBuf {
    let binary = sidecar_binary();
    let script = format!(
        "#!/bin/sh\nexec unshare --mount --propagation shared sh -c 'mount --bind {project} {project} && \
         mount --make-shared {project} && echo $$ > {pid} && exec {binary} \"$@\"' sh \"$@\"\n",
        project = project.display(),
        pid = pid_file.display(),
        binary = binary.display(),
    );
    let path = directory.join("agentos");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Where the SDK would have found it.
fn sidecar_binary() -> std::path::PathBuf {
    let built = || {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().parent().unwrap().join("agentos")
    };
    std::env::var_os("AGENTOS_SIDECAR").map_or_else(built, std::path::PathBuf::from)
}
