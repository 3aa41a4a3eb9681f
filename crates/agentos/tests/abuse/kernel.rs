//! Calls that reach the machine, or parts of the kernel that nobody needs and exploits come from.

use crate::attempts::{guests, is_root, outside};
use crate::support::world::World;

/// An attempt, what it must come to inside, and outside for root and for others; alternatives are separated by `|`.
struct Case(&'static str, &'static str, &'static str, &'static str);

/// Outside, ENOSYS is a kernel without the call; everything else there shows that the kernel listened.
const CASES: &[Case] = &[
    Case("bpf", "EPERM", "EINVAL", "EINVAL|EPERM"),
    Case("perf_event_open", "EPERM", "EFAULT|ENOSYS", "EFAULT|EACCES|ENOSYS"),
    Case("userfaultfd", "EPERM", "ok|ENOSYS", "ok|ENOSYS"),
    Case("io_uring_setup", "ENOSYS", "ok|ENOSYS|EPERM", "ok|ENOSYS|EPERM"),
    Case("keyctl", "EPERM", "ok|ENOSYS", "ok|ENOSYS"),
    Case("add_key", "EPERM", "ok|ENOSYS", "ok|ENOSYS"),
    Case("request_key", "EPERM", "ENOKEY|ENOSYS", "ENOKEY|ENOSYS"),
    Case("kexec_load", "EPERM", "EINVAL|ENOSYS", "EPERM|ENOSYS"),
    Case("kexec_file_load", "EPERM", "EINVAL|EBADF|ENOSYS", "EPERM|ENOSYS"),
    Case("init_module", "EPERM", "EFAULT|ENOEXEC|ENOSYS", "EPERM|ENOSYS"),
    Case("finit_module", "EPERM", "EBADF|EINVAL|ENOSYS", "EPERM|ENOSYS"),
    Case("delete_module", "EPERM", "ENOENT|ENOSYS", "EPERM|ENOSYS"),
    Case("reboot", "EPERM", "EINVAL", "EPERM"),
    Case("swapon", "EPERM", "ENOENT|ENOSYS", "EPERM|ENOSYS"),
    Case("swapoff", "EPERM", "ENOENT|ENOSYS", "EPERM|ENOSYS"),
    Case("acct", "EPERM", "ENOENT|ENOSYS", "EPERM|ENOSYS"),
    Case("quotactl", "EPERM", "ok|ENOSYS", "ok|ENOSYS"),
    Case("name_to_handle_at", "EPERM", "ok|EOPNOTSUPP", "ok|EOPNOTSUPP"),
    Case("open_by_handle_at", "EPERM", "ok|ESTALE|EOPNOTSUPP", "EPERM"),
    Case("syslog", "EPERM", "ok", "ok|EPERM"),
    Case("clock_adjtime", "EPERM", "ok", "ok"),
    Case("settimeofday", "EPERM", "EFAULT", "EFAULT"),
    Case("fanotify_init", "EPERM", "ok|ENOSYS", "ok|ENOSYS"),
    Case("move_pages", "EPERM", "ok|ENOSYS", "ok|ENOSYS"),
    Case("memfd_secret", "ENOSYS", "ok|ENOSYS", "ok|ENOSYS"),
    Case("openat2", "ENOSYS", "ok", "ok"),
    Case("vhangup", "EPERM", "ok", "EPERM"),
    Case("tiocsti", "EPERM", "ENOTTY", "ENOTTY"),
    Case("tiocsti-upper-bits", "EPERM", "ENOTTY", "ENOTTY"),
    Case("tioclinux", "EPERM", "ENOTTY", "ENOTTY"),
    Case("tiocsetd", "EPERM", "ENOTTY", "ENOTTY"),
    Case("personality-mmap-zero", "EPERM", "ok", "ok"),
    Case("personality-read-implies-exec", "EPERM", "ok", "ok"),
    Case("ioperm", "EPERM", "ok|ENOSYS", "EPERM|ENOSYS"),
];

#[tokio::test]
async fn the_machine_s_own_calls_are_refused() {
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        let all: Vec<&str> = CASES.iter().map(|case| case.0).collect();
        for (case, outcome) in CASES.iter().zip(guest.attempts(&all).await) {
            assert_eq!(outcome, case.1, "{}: {}", guest.user, case.0);
        }
    }
    for Case(words, _, as_root, as_other) in CASES {
        let (outcome, expected) = (outside(words), if is_root() { as_root } else { as_other });
        assert!(expected.split('|').any(|one| one == outcome), "the control: {words}: {outcome}");
    }
}

#[tokio::test]
async fn the_host_s_name_is_not_the_guest_s_to_change() {
    let world = World::new().await;
    let before = rustix::system::uname().nodename().to_owned();
    for guest in guests(&world, world.options()).await {
        guest.check("EPERM", &["sethostname"]).await;
    }
    assert_eq!(rustix::system::uname().nodename(), &before[..]);
    assert_eq!(crate::attempts::outside_privately("sethostname"), "ok");
}

/// The same numbers mean other calls there, so that a list of allowed calls would allow the wrong ones.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn other_abis_are_deadly() {
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        guest.check("killed by SIGSYS", &["abi 32-bit", "abi x32"]).await;
        guest.check_alive().await;
    }
    // A kernel without 32-bit programs ends the process in another way; one without x32 refuses the number.
    for words in ["abi 32-bit", "abi x32"] {
        assert_ne!(outside(words), "killed by SIGSYS", "{words}");
    }
}
