//! What the kernel counts per user: each VM has its own share, and what it takes is missing nowhere else.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use agentos::{AgentOs, ErrorKind, Limits};

use crate::attempts::{Hoard, PROBE, guests, is_root, outside, probe, run, skip, with_probe};
use crate::support::within;
use crate::support::world::World;

/// What one VM takes all of while the VM beside it needs one, and what the kernel may answer then.
const COUNTED: [(&str, &str); 4] = [
    ("inotify", "EMFILE"),
    ("terminals", "ENOSPC|EMFILE|EIO"),
    ("signals", "EAGAIN"),
    ("descriptors", "EMFILE"),
];

#[tokio::test]
async fn one_vm_s_hoard_is_missing_in_no_other() {
    if !is_root() {
        skip(
            "budgets::one_vm_s_hoard_is_missing_in_no_other",
            "with a single id all VMs of a user share that user's budgets",
        );
        return;
    }
    let world = World::new().await;
    let limits = Limits::default().open_files(8192);
    let [greedy, beside] = [
        world.vm_with(with_probe(world.options().limits(limits))).await,
        world.vm_with(with_probe(world.options().limits(limits))).await,
    ];
    for (what, refusals) in COUNTED {
        let hoard = Hoard::take(&greedy, what).await;
        let known = refusals.split('|').any(|refusal| refusal == hoard.refusal);
        assert!(known && hoard.taken > 0, "{what}: {} until {}", hoard.taken, hoard.refusal);
        let one = beside.exec(format!("{PROBE} one {what}")).await.unwrap();
        assert_eq!(one.stdout_lossy(), "ok\n", "{what}: {} are missing beside", hoard.taken);
        within("the API beside", beside.open_shell()).await.unwrap().close().await.unwrap();
        assert_eq!(greedy.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n", "{what}");
        hoard.release().await;
        let again = greedy.exec(format!("{PROBE} one {what}")).await.unwrap();
        assert_eq!(again.stdout_lossy(), "ok\n", "{what}: given back");
    }
}

/// The control: two processes of one user outside of VMs do share.
#[test]
fn outside_one_process_s_hoard_is_missing_in_another() {
    if !is_root() {
        skip(
            "budgets::outside_one_process_s_hoard_is_missing_in_another",
            "a user of its own is needed, so that nobody else's inotify instances are taken",
        );
        return;
    }
    let as_nobody_else = |attempt: [&str; 2]| {
        let mut command = Command::new(probe());
        command.args(["become", "61235", "then"]).args(attempt);
        command
    };
    let mut hoard =
        as_nobody_else(["all", "inotify"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(hoard.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ok"));
    let taken = lines.next().unwrap();
    assert!(taken.ends_with(" EMFILE"), "{taken}");
    assert_eq!(run(&mut as_nobody_else(["one", "inotify"])), "EMFILE");
    drop(hoard.stdin.take());
    hoard.wait().unwrap();
}

/// One budget for the whole machine, of which nobody has a share: it stays the host's.
#[tokio::test]
async fn asynchronous_io_of_the_kernel_is_the_host_s_alone() {
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        guest.check("ENOSYS", &["one aio"]).await;
    }
    assert_eq!(outside("one aio"), "ok");
}

/// What decides who comes first on the whole machine.
#[tokio::test]
async fn no_guest_comes_before_the_host() {
    let world = World::new().await;
    // RLIMIT_NPROC, of all users' limits the one that bounds the VM, and RLIMIT_RTPRIO.
    let attempts = ["real-time-priority", "raise-priority", "raise-limit 6", "raise-limit 14"];
    for guest in guests(&world, world.options()).await {
        guest.check("EPERM|EACCES", &attempts).await;
        let first_to_die =
            guest.shell("echo -1000 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj").await;
        assert_eq!(first_to_die, "500\n", "{}", guest.user);
    }
    // The control takes capabilities that containers often withhold from their root: CAP_SYS_NICE, CAP_SYS_RESOURCE.
    for (capability, words) in [23, 23, 24, 24].into_iter().zip(attempts) {
        let permitted = effective_capabilities() & (1 << capability) != 0;
        assert!(!permitted || outside(words) == "ok", "the control: {words}");
    }
}

fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[tokio::test]
async fn a_fork_bomb_fills_its_own_vm_only() {
    let world = World::new().await;
    let sentinel = world.vm().await;
    let limits = Limits::default().processes(64);
    if let Err(refused) = AgentOs::create(world.options().limits(limits)).await {
        // What can't be enforced is refused when it is asked for.
        assert!(!is_root() && refused.kind() == ErrorKind::HostUnsupported, "{refused:?}");
        skip(
            "budgets::a_fork_bomb_fills_its_own_vm_only",
            "this user may not make the pids cgroup that would bound a VM's processes",
        );
        return;
    }
    for root in [false, true] {
        let vm = world.vm_with(with_probe(world.options().limits(limits).root(root))).await;
        let bomb = within("the bomb", vm.exec(format!("{PROBE} fork-bomb"))).await.unwrap();
        let answer = bomb.stdout_lossy().trim().to_owned();
        let (count, refusal) = answer.split_once(' ').unwrap_or(("0", "nothing printed"));
        assert_eq!(refusal, "EAGAIN", "root: {root}: {answer}");
        assert!((1..=64).contains(&count.parse::<u32>().unwrap()), "root: {root}: {answer}");
        assert_eq!(vm.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
        // The shell's own, which nobody ends.
        let bomb = vm.spawn("sh", ["-c", "bomb() { bomb | bomb & }; bomb; sleep 1000"]).await.unwrap();
        assert_eq!(sentinel.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
        let fresh = within("a new VM", world.vm()).await;
        assert_eq!(fresh.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
        within("its end", vm.dispose()).await.unwrap();
        drop(bomb);
    }
}
