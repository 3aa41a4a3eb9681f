//! A directory of the host that keeps a VM's files: what survives, who may use it, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use agentos::{AgentOs, AgentOsOptions, Error, ErrorKind, Limits, Mount, Secret, Storage};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use support::world::World;
use support::{eventually, within};

async fn shell(vm: &AgentOs, command: &str) -> String {
    let result = vm.exec(command).await.unwrap();
    assert!(result.success(), "{command}: {}", String::from_utf8_lossy(&result.stderr));
    result.stdout_lossy().into_owned()
}

/// Where a world's VMs may keep their files; made by the first of them.
fn state(world: &World) -> PathBuf {
    world.runtime_dir().join("state")
}

fn stored(world: &World) -> AgentOsOptions {
    world.options().storage(Storage::directory(state(world)))
}

async fn refusal(options: AgentOsOptions) -> Error {
    AgentOs::create(options).await.expect_err("it was not refused")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Records that a test can't run here.
fn skip(test: &str, reason: &str) {
    let Some(file) = std::env::var_os("AGENTOS_TEST_SKIPS") else { return };
    let line = format!("{{\"test\":\"{test}\",\"reason\":\"{reason}\"}}\n");
    let mut file = fs::File::options().append(true).create(true).open(file).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// The program that sets attributes, which few systems have a command for.
fn probe() -> Mount {
    let built = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/attempt");
    let path = std::env::var_os("AGENTOS_TEST_PROBE").map_or_else(built, PathBuf::from);
    assert!(path.is_file(), "this test needs {path:?}: cargo build -p agentos-linux --example attempt");
    Mount::host_dir(path.parent().unwrap())
}

/// What a user would notice of the files that [`WRITE`] has made.
const READ: &str = "cat notes; stat -c '%n %F %a %u:%g %h %Y %s' notes linked script dir dir/.hidden; readlink link; \
                    ls -A dir; cat /var/tmp/kept; /probe/attempt attribute notes user.note";

const WRITE: &str = "set -e; echo text > notes; ln notes linked; chmod 640 notes; \
                     printf '#!/bin/sh\necho runs\n' > script; chmod 755 script; mkdir -m 700 dir; \
                     echo > dir/.hidden; ln -s ../nowhere link; echo kept > /var/tmp/kept; \
                     touch -d '2001-02-03 04:05:06.789' notes dir; \
                     /probe/attempt set-attribute notes user.note remembered; echo gone > /tmp/gone";

#[tokio::test]
async fn files_come_back_in_the_next_vm_as_they_were() {
    let world = World::new().await;
    let options = || stored(&world).mount("/probe", probe());
    let vm = world.vm_with(options()).await;
    shell(&vm, WRITE).await;
    let before = shell(&vm, READ).await;
    assert!(before.contains("notes regular file 640 1000:1000 2 981173106 5"), "{before}");
    assert!(before.ends_with("kept\nremembered\n"), "{before}");
    vm.dispose().await.unwrap();
    for _ in 0..3 {
        let vm = world.vm_with(options()).await;
        assert_eq!(shell(&vm, READ).await, before);
        assert_eq!(shell(&vm, "./script").await, "runs\n");
        // What is temporary by its place was in memory.
        assert!(!vm.exists("/tmp/gone").await.unwrap());
        shell(&vm, "echo more >> notes && truncate -s 5 notes && touch -d '2001-02-03 04:05:06.789' notes")
            .await;
        vm.dispose().await.unwrap();
    }
    // On disk a file has the id that it has in the VM, or the only one there is.
    let owner = fs::metadata(state(&world).join("upper-root/home/user/notes")).unwrap().uid();
    assert_eq!(owner, if is_root() { 1000 } else { rustix::process::geteuid().as_raw() });
}

#[tokio::test]
async fn what_was_deleted_of_the_base_stays_deleted_and_what_was_replaced_stays_replaced() {
    let world = World::new().await;
    let vm = world.vm_with(stored(&world).root(true)).await;
    let change = "set -e; rm /etc/shells; rm -r /etc/alternatives; mkdir /etc/alternatives; rm -r /var/spool; \
                  echo x > /var/spool; echo '127.0.0.9 kept' >> /etc/hosts; mv /var/mail /var/letters 2>/dev/null || \
                  { cp -r /var/mail /var/letters; rm -r /var/mail; }";
    shell(&vm, change).await;
    let look = "ls -A /etc/alternatives; cat /var/spool; tail -n 1 /etc/hosts; ls -d /etc/shells /var/mail 2>&1 | \
                grep -c 'No such file'; ls -d /var/letters";
    let expected = "x\n127.0.0.9 kept\n2\n/var/letters\n";
    assert_eq!(shell(&vm, look).await, expected);
    // The host's own programs can be taken away where the VM has ids of its own.
    if is_root() {
        shell(&vm, "rm /usr/bin/env && rm -r /usr/share/doc && echo new > /usr/local/bin/new").await;
    }
    vm.dispose().await.unwrap();
    let vm = world.vm_with(stored(&world).root(true)).await;
    assert_eq!(shell(&vm, look).await, expected);
    if is_root() {
        assert!(!vm.exists("/usr/bin/env").await.unwrap());
        assert!(!vm.exists("/usr/share/doc").await.unwrap());
        assert_eq!(shell(&vm, "cat /usr/local/bin/new").await, "new\n");
    }
    // Another VM knows nothing of it.
    assert!(world.vm().await.exists("/etc/shells").await.unwrap());
}

/// The process whose command line names a socket in this directory.
fn sidecar_in(runtime_dir: &Path) -> Pid {
    let directory = runtime_dir.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pid = pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        words.get(1).is_some_and(|word| word == "sidecar")
            && words.iter().any(|word| word.starts_with(&directory))
    });
    Pid::from_raw(pid.expect("no sidecar has a socket here")).unwrap()
}

#[tokio::test]
async fn a_killed_sidecar_loses_nothing_that_was_written_and_leaves_the_directory_usable() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("state");
    let options = |world: &World| world.options().storage(Storage::directory(&directory));
    for round in 0..4 {
        let world = World::new().await;
        // At once, and by another sidecar: the former VM may still be dying.
        let vm = within("the next VM", AgentOs::create(options(&world))).await.unwrap();
        let written = shell(&vm, "cat rounds 2>/dev/null || :").await;
        assert_eq!(written, (0..round).map(|round| format!("{round}\n")).collect::<String>());
        shell(&vm, &format!("echo {round} >> rounds")).await;
        // Busy with the very work directories that nobody tidies up now.
        let busy = "while :; do for n in 1 2 3; do mkdir -p d/$n; echo x > d/$n/f; rm -r d; done; done";
        vm.spawn("sh", ["-c", busy]).await.unwrap();
        eventually("it works", || async { vm.exists("/home/user/d").await.unwrap() }).await;
        kill_process(sidecar_in(world.runtime_dir()), Signal::KILL).unwrap();
    }
}

#[tokio::test]
async fn a_second_vm_is_refused_by_name_from_the_same_sidecar_and_from_another() {
    let (world, other) = (World::new().await, World::new().await);
    let vm = world.vm_with(stored(&world)).await;
    let path = state(&world);
    for options in [world.options(), other.options()] {
        let error = refusal(options.storage(Storage::directory(&path))).await;
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Busy, Some("EBUSY")), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("another VM uses it"), "{text}");
    }
    shell(&vm, "echo undisturbed > notes").await;
    vm.dispose().await.unwrap();
    let vm = other.vm_with(other.options().storage(Storage::directory(&path))).await;
    assert_eq!(shell(&vm, "cat notes").await, "undisturbed\n");
}

#[tokio::test]
async fn a_disposed_vm_has_let_go_of_its_directory() {
    let world = World::new().await;
    for round in 0..20 {
        let vm = world.vm_with(stored(&world)).await;
        assert_eq!(
            shell(&vm, &format!("echo {round} >> rounds; wc -l < rounds")).await.trim(),
            (round + 1).to_string()
        );
        // Other VMs come and go, whose processes begin as copies of the one that holds the lock.
        let other = world.vm().await;
        vm.dispose().await.unwrap();
        let mark = fs::File::open(state(&world).join(".agentos-storage")).unwrap();
        flock(&mark, FlockOperation::NonBlockingLockExclusive).unwrap();
        drop(mark);
        other.dispose().await.unwrap();
    }
    // A VM whose handle is dropped goes by itself, and the next one waits for that.
    drop(world.vm_with(stored(&world)).await);
    world.vm_with(stored(&world)).await;
}

#[tokio::test]
async fn directories_that_can_t_be_used_are_refused_by_name_and_left_alone() {
    let world = World::new().await;
    let open = world.host_dir("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let [full, real, storage] = ["full", "real", "storage"].map(|name| world.host_dir(name));
    for path in [&full, &real, &storage] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::write(full.join("thesis.txt"), "mine").unwrap();
    let link = world.runtime_dir().join("link");
    symlink(&real, &link).unwrap();
    let vm = world.vm_with(world.options().storage(Storage::directory(&storage))).await;
    let inside = storage.join("upper-root/home");
    let foreign = PathBuf::from("/");
    for (path, problem) in [
        (&open, "has to be 0700"),
        (&full, "it holds thesis.txt"),
        (&link, "a link is not followed"),
        (&full.join("thesis.txt"), "it is no directory"),
        (&inside, "it lies in a VM's storage"),
        (&inside.join("nested"), "it lies in a VM's storage"),
        (&foreign, "the root directory"),
        (&PathBuf::from("/proc"), if is_root() { "others may enter it" } else { "it belongs to user" }),
    ] {
        let error = refusal(world.options().storage(Storage::directory(path))).await;
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains(problem), "{text}");
    }
    let absent = world.runtime_dir().join("absent/state");
    let error = refusal(world.options().storage(Storage::directory(&absent))).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    for (path, entries) in [(&open, 0), (&full, 1), (&real, 0)] {
        assert_eq!(fs::read_dir(path).unwrap().count(), entries, "{path:?}");
    }
    assert!(!inside.exists());
    vm.dispose().await.unwrap();
}

#[tokio::test]
async fn a_limit_of_bytes_is_refused_because_nothing_enforces_it() {
    let world = World::new().await;
    let limits = Limits::default().disk_bytes(64 << 20);
    let error = refusal(stored(&world).limits(limits)).await;
    assert_eq!(error.kind(), ErrorKind::HostUnsupported, "{error:?}");
    assert!(error.to_string().contains("limits.disk_bytes"), "{error}");
    assert!(!state(&world).exists());
    // What stays in memory is bounded as ever.
    let vm = world.vm_with(stored(&world)).await;
    let size = shell(&vm, "df -k --output=size /tmp | tail -n 1").await;
    assert!(size.trim().parse::<u64>().unwrap() <= 1 << 20, "{size}");
}

#[tokio::test]
async fn authorities_of_former_vms_do_not_gather_in_the_trust_stores() {
    let world = World::new().await;
    let secret = || Secret::new("KEY", "a-value-of-some-length").bearer("api.example.com");
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let vm = world.vm_with(stored(&world).secret(secret())).await;
        let bundle = vm.read_file("/opt/agentos/trust/bundle.pem").await.unwrap();
        let authority = vm.read_file("/opt/agentos/trust/authority.pem").await.unwrap();
        assert!(bundle.ends_with(&authority));
        sizes.push(shell(&vm, "grep -c BEGIN /opt/agentos/trust/bundle.pem").await);
        vm.dispose().await.unwrap();
    }
    assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
}

/// As a container's root directory is one. The sidecar gets a mount namespace that has it.
#[tokio::test]
async fn a_file_system_that_can_t_hold_layers_is_refused_by_name() {
    if !is_root() {
        skip(
            "a_file_system_that_can_t_hold_layers_is_refused_by_name",
            "only root mounts a file system for the sidecar to find",
        );
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let at = place.path().display();
    for name in ["lower", "upper", "work", "overlay", "ram"] {
        fs::create_dir(place.path().join(name)).unwrap();
    }
    let script = place.path().join("with-mounts");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount -t ramfs none {at}/ram && mount -t overlay none {at}/overlay \
         -o lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work && exec \"$@\"' sh \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let world = World::started_by(&script.display().to_string()).await;
    for (name, reason) in [("overlay", "can't be the upper layer"), ("ram", "no extended attributes")] {
        let path = place.path().join(name).join("state");
        let error = refusal(world.options().storage(Storage::directory(&path))).await;
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(path.to_str().unwrap()) && text.contains(name) && text.contains(reason),
            "{text}"
        );
    }
    // The control: the same sidecar, beside these mounts.
    let path = place.path().join("state");
    let vm = world.vm_with(world.options().storage(Storage::directory(&path))).await;
    shell(&vm, "echo kept > notes").await;
    vm.dispose().await.unwrap();
}
