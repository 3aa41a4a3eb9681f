//! The host's files by every other name, its kernel's files in /proc and /sys, and its devices.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use agentos::{ErrorKind, Mount};

use crate::attempts::{Canary, Guest, PROBE, guests, is_root, names, outside};
use crate::support::world::World;

/// Names that lead from a VM's root to the same path on the host, if anything does.
fn names_of(path: &str) -> Vec<String> {
    let ways =
        ["", "/..", "/../../../..", "/proc/self/root", "/proc/self/root/..", "/proc/1/root", "/proc/1/cwd"];
    let mut all: Vec<String> = ways.iter().map(|way| format!("{way}{path}")).collect();
    all.push(format!("/proc/self/cwd/../../..{path}"));
    all.push(format!("/proc/thread-self/root{path}"));
    all.push(format!("/work/../..{path}"));
    all
}

#[tokio::test]
async fn the_host_s_files_have_no_name_inside() {
    let world = World::new().await;
    let canary = Canary::new(&world);
    let project = world.host_dir("project");
    let path = canary.file.to_str().unwrap();
    for name in ["", "/..", "/proc/self/root", "/proc/self/root/.."] {
        assert_eq!(outside(&format!("read {name}{path}")), Canary::TEXT);
    }
    for guest in guests(&world, world.options().mount("/work", Mount::host_dir(&project))).await {
        let mut ways = names_of(path);
        ways.push("/work/../outside/canary".to_owned());
        let reads: Vec<String> = ways.iter().map(|name| format!("read {name}")).collect();
        guest.check("ENOENT|EACCES|EPERM", &reads).await;
        let writes: Vec<String> = ways.iter().map(|name| format!("append {name} x")).collect();
        guest.check("ENOENT|EACCES|EPERM", &writes).await;
        // Whatever a process inside has open or stands in.
        let everything = format!(
            "for place in /proc/[0-9]*/root /proc/[0-9]*/cwd /proc/[0-9]*/fd/* /proc/[0-9]*/task/*/root; do \
             for way in '' /.. /../.. /../../.. /../../../..; do cat \"$place$way{path}\" 2>/dev/null; done; done"
        );
        assert_eq!(guest.shell(&everything).await, "", "{}", guest.user);
        through_the_api(&guest, &ways).await;
    }
    canary.check();
}

/// The file API has more rights inside than any guest, and no more outside.
async fn through_the_api(guest: &Guest, ways: &[String]) {
    for way in ways {
        if let Ok(bytes) = guest.vm.read_file(way.as_str()).await {
            assert_ne!(bytes, Canary::TEXT.as_bytes(), "{}: {way}", guest.user);
        }
        // It may make a file of the VM's own by that name.
        let _ = guest.vm.write_file(way.as_str(), "overwritten").await;
        let _ = guest.vm.delete(way.as_str()).await;
    }
}

#[tokio::test]
async fn nothing_of_pid_1_can_be_looked_into() {
    let world = World::new().await;
    for own in ["environ", "maps", "auxv"] {
        let outcome = outside(&format!("read /proc/self/{own}"));
        assert!(!outcome.starts_with('E'), "{own}: {outcome}");
    }
    let private =
        ["environ", "maps", "mem", "auxv", "syscall", "stack", "io", "pagemap", "mountinfo.", "ns/mnt"];
    let reads: Vec<String> = private.iter().map(|name| format!("read /proc/1/{name}")).collect();
    for guest in guests(&world, world.options()).await {
        guest.check("EACCES|EPERM|ENOENT|ESRCH", &reads).await;
        guest.check("EACCES|EPERM", &["open-for-writing /proc/1/mem", "read /proc/1/mem"]).await;
        // With a single id the user owns the entries and sees their numbers; where they lead stays closed.
        let links = "readlink /proc/1/exe /proc/1/cwd /proc/1/root /proc/1/fd/* /proc/1/task/*/fd/[0-9]; \
             cat /proc/1/fd/[1-9]* /proc/1/fdinfo/* /proc/1/map_files/*";
        let seen = guest.shell(links).await;
        assert_eq!(seen, "", "{}", guest.user);
    }
}

/// Attempts to change a file of a read-only mount at /work, directly and by its other names.
const CHANGES: [&str; 17] = [
    "append /work/file x",
    "open-for-writing /work/file",
    "reopen-for-writing /work/file",
    "append /proc/self/root/work/file x",
    "append /work/../work/file x",
    "append /tmp/link-in x",
    "rename /work/file /work/other",
    "rename /work/file /tmp/other",
    "rename /tmp/link-in /work/link-in",
    "hard-link /work/file /work/other",
    "hard-link /work/file /tmp/other",
    "symlink x /work/new",
    "remove /work/file",
    "fchmodat /work/file 0o666",
    "fchmod /work/file 0o666",
    "mkdir-mode /work/new 0o755",
    "open-mode /work/new 0o644",
];

#[tokio::test]
async fn a_read_only_mount_is_read_only_by_every_name() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let file = project.join("file");
    fs::write(&file, "content").unwrap();
    let before = fs::metadata(&file).unwrap();
    let options = world.options().mount("/work", Mount::host_dir(&project));
    for guest in guests(&world, options).await {
        guest.check("ok", &["symlink /work/file /tmp/link-in"]).await;
        guest.check("EROFS|EPERM|EXDEV|EACCES", &CHANGES).await;
        // Reading is all a lease needs, and the host's next writer would wait for it to be given back.
        guest.check("EPERM", &["lease /work/file"]).await;
        guest
            .check("EPERM", &["remount-writable /work", "bind /work /tmp", "mount_setattr-writable /work"])
            .await;
        for refused in [
            guest.vm.write_file("/work/file", "x").await.unwrap_err(),
            guest.vm.write_file("/tmp/link-in", "x").await.unwrap_err(),
            guest.vm.write_file("/work/new", "x").await.unwrap_err(),
            guest.vm.mkdir("/work/new").await.unwrap_err(),
            guest.vm.move_path("/work/file", "/work/other").await.unwrap_err(),
            guest.vm.move_path("/work/file", "/tmp/other").await.unwrap_err(),
            guest.vm.delete("/work/file").await.unwrap_err(),
        ] {
            assert_eq!(refused.errno(), Some("EROFS"), "{}: {refused:?}", guest.user);
        }
    }
    let after = fs::metadata(&file).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    assert_eq!((after.mode(), after.nlink(), after.mtime()), (before.mode(), 1, before.mtime()));
    assert_eq!(names(&project), ["file"]);
    changes_succeed_outside(&project);
}

/// The control, on the very same file.
fn changes_succeed_outside(project: &std::path::Path) {
    let at = |name: &str| project.join(name).display().to_string();
    for words in [
        format!("lease {}", at("file")),
        format!("append {} x", at("file")),
        format!("reopen-for-writing {}", at("file")),
        format!("fchmod {} 0o666", at("file")),
        format!("hard-link {} {}", at("file"), at("other")),
        format!("rename {} {}", at("other"), at("third")),
        format!("remove {}", at("third")),
    ] {
        assert_eq!(outside(&words), "ok", "{words}");
    }
}

#[tokio::test]
async fn the_kernel_s_settings_and_secrets_in_proc_are_out_of_reach() {
    let world = World::new().await;
    let settings = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/proc/sys/kernel/panic",
        "/proc/sys/kernel/randomize_va_space",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
        "/proc/irq/default_smp_affinity",
        "/proc/mtrr",
        "/proc/bus/pci/devices",
        "/proc/fs/nfsd/versions",
        "/proc/driver/rtc",
        "/proc/acpi/wakeup",
        "/proc/scsi/scsi",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
    ];
    let writes: Vec<String> = settings.iter().map(|path| format!("open-for-writing {path}")).collect();
    let secrets = [
        "/proc/kcore",
        "/proc/kallsyms",
        "/proc/keys",
        "/proc/key-users",
        "/proc/kmsg",
        "/proc/timer_list",
        "/proc/kpagecount",
        "/proc/sched_debug",
        "/proc/config.gz/x",
        "/sys/firmware/dmi/tables/DMI",
        "/sys/kernel/notes",
    ];
    let reads: Vec<String> = secrets.iter().map(|path| format!("read {path}")).collect();
    let kernel_before = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    for guest in guests(&world, world.options()).await {
        guest.check("EROFS|EACCES|ENOENT|EPERM", &writes).await;
        guest.check("nothing|ENOENT|EACCES|EPERM|ENOTDIR", &reads).await;
        // Anybody may open it, and nobody write to another's.
        let of_another = ["append /proc/1/attr/current x", "append /proc/1/loginuid 0"];
        guest.check("EACCES|EINVAL|EPERM|ENOENT", &of_another).await;
        // Where it exists, it is /dev/null: writing does nothing, to the host least of all.
        guest.check("ok|ENOENT|EACCES|EROFS", &["open-for-writing /proc/sysrq-trigger"]).await;
        assert_eq!(guest.shell("find /sys -mindepth 1").await, "", "{}", guest.user);
        let refused = guest.vm.write_file("/proc/sys/kernel/core_pattern", "|/x").await.unwrap_err();
        let known = [ErrorKind::ReadOnly, ErrorKind::Permission].contains(&refused.kind());
        assert!(known, "{}: {refused:?}", guest.user);
    }
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), kernel_before);
    // The control. Who isn't root may not write there outside either, but read.
    let written = outside("open-for-writing /proc/sys/kernel/core_pattern");
    assert_eq!(written, if is_root() { "ok" } else { "EACCES" });
    let symbols = outside("read /proc/kallsyms");
    assert!(symbols.contains(' ') || symbols == "ENOENT", "{symbols}");
}

#[tokio::test]
async fn there_are_no_control_groups_to_write_to() {
    let world = World::new().await;
    assert_ne!(outside("read /proc/self/cgroup"), "nothing");
    for guest in guests(&world, world.options()).await {
        for kind in ["cgroup", "cgroup2"] {
            guest.check("EPERM", &[format!("mount {kind} /tmp")]).await;
        }
        assert_eq!(guest.shell("grep -c ' - cgroup' /proc/self/mountinfo").await, "0\n", "{}", guest.user);
        let found = guest
            .shell("find / -name release_agent -o -name cgroup.procs -o -name notify_on_release 2>/dev/null");
        assert_eq!(found.await, "", "{}", guest.user);
        // The VM's group is the top of what it sees: the name of the host's is not there to be read.
        let groups = guest.shell("cut -d: -f3 /proc/self/cgroup | sort -u").await;
        assert!(groups.lines().all(|group| group == "/"), "{}: {groups}", guest.user);
    }
}

#[tokio::test]
async fn there_are_no_devices_of_the_host_and_none_can_be_made() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let made = ["0o020666 0x103", "0o020666 0x501", "0o060666 0x800", "0o060666 0x700", "0o020666 0"];
    let options = world.options().mount("/work", Mount::host_dir(&project).read_write());
    for guest in guests(&world, options).await {
        for directory in ["/tmp", "/dev/shm", "/home/user", "/work"] {
            let all: Vec<String> = made.iter().map(|node| format!("mknod {directory}/node {node}")).collect();
            guest.check("EPERM", &all).await;
        }
        let absent = [
            "sda",
            "vda",
            "nvme0n1",
            "loop0",
            "loop-control",
            "mem",
            "kmem",
            "port",
            "kmsg",
            "fuse",
            "kvm",
            "net/tun",
            "console",
            "tty0",
            "hpet",
            "rtc0",
            "vhost-net",
            "vsock",
            "userfaultfd",
            "dri",
            "input",
            "mapper/control",
        ];
        let reads: Vec<String> = absent.iter().map(|name| format!("read /dev/{name}")).collect();
        guest.check("ENOENT", &reads).await;
        // Not by find's own look at types: what a mount covers has another type than what covers it.
        let nodes = "find /dev /tmp /run /home /var /etc /usr/local | while read -r path; do [ -L \"$path\" ] || \
             if [ -c \"$path\" ] || [ -b \"$path\" ]; then echo \"$path\"; fi; done | sort | tr '\\n' ' '";
        let nodes = guest.shell(nodes).await;
        assert_eq!(
            nodes.trim(),
            "/dev/full /dev/null /dev/pts/ptmx /dev/random /dev/tty /dev/urandom /dev/zero",
            "{}",
            guest.user
        );
    }
    assert_eq!(names(&project), [] as [&str; 0]);
    // The control: a node of null, where root may make one.
    let node = project.join("node");
    let outcome = outside(&format!("mknod {} 0o020666 0x103", node.display()));
    assert_eq!(outcome, if is_root() { "ok" } else { "EPERM" });
}

#[tokio::test]
async fn set_id_files_of_the_host_give_nothing() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let program = project.join("id");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    let options = world
        .options()
        .mount("/ro", Mount::host_dir(&project))
        .mount("/rw", Mount::host_dir(&project).read_write());
    for guest in guests(&world, options).await {
        let plain = guest.shell("id -u; id -g").await;
        for path in ["/ro/id", "/rw/id"] {
            assert_eq!(guest.shell(&format!("{path} -u; {path} -g")).await, plain, "{}: {path}", guest.user);
        }
        // The base's own ones run, without gain.
        let gained = guest
            .shell(&format!(
                "{PROBE} become 1000 then run-as 1000 /usr/bin/id; grep NoNewPrivs /proc/self/status"
            ))
            .await;
        assert!(gained.contains("NoNewPrivs:\t1"), "{}: {gained}", guest.user);
        assert!(!gained.lines().any(|line| line == "0"), "{}: {gained}", guest.user);
    }
    if is_root() {
        let as_another = outside(&format!("run-as 61234 {}", program.display()));
        assert_eq!(as_another, "0", "the control: outside the bit makes another user root");
    }
}
