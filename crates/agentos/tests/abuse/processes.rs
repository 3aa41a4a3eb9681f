//! PID 1 and other users' processes. What debuggers do to their own must go on working.

use crate::attempts::{Guest, PROBE, guests, is_root, outside};
use crate::support::within;
use crate::support::world::World;

#[tokio::test]
async fn pid_1_can_not_be_traced_read_or_robbed() {
    let world = World::new().await;
    let usual = ["ptrace child", "process_vm_readv child"];
    for guest in guests(&world, world.options()).await {
        guest
            .check("EPERM|ESRCH", &["ptrace 1", "process_vm_readv 1", "pidfd_getfd 1", "pidfd_getfd child"])
            .await;
        let threads = guest.shell("ls /proc/1/task").await;
        for thread in threads.split_whitespace() {
            guest
                .check("EPERM|ESRCH", &[format!("ptrace {thread}"), format!("process_vm_readv {thread}")])
                .await;
        }
        guest.check("ok", &usual).await;
        guest.check_alive().await;
    }
    for words in usual.iter().chain(&["pidfd_getfd child"]) {
        assert_eq!(outside(words), "ok", "{words}");
    }
}

#[tokio::test]
async fn pid_1_and_its_threads_hear_no_signal() {
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        // Its file threads exist once they were used.
        guest.check_alive().await;
        let all = format!(
            "for thread in $(ls /proc/1/task); do for signal in $(seq 1 64); do \
             {PROBE} kill 1 $signal then tgkill 1 $thread $signal; done; done | sort -u"
        );
        let outcomes = guest.shell(&all).await;
        assert!(outcomes.lines().all(|one| ["ok", "EPERM", "EINVAL", "ESRCH"].contains(&one)), "{outcomes}");
        guest.check_alive().await;
        let state = guest.shell("sed -n 's/^State:\\t//p' /proc/1/task/*/status").await;
        assert!(!state.contains('T') && !state.contains('t'), "{}: stopped: {state}", guest.user);
        reaps(&guest).await;
    }
}

/// An orphan is PID 1's to reap: it must still do that.
async fn reaps(guest: &Guest) {
    guest.shell("(sleep 0.01 &)").await;
    crate::support::eventually("orphans are reaped", || async {
        !guest.shell("ps -eo state 2>/dev/null || true").await.contains('Z')
    })
    .await;
}

#[tokio::test]
async fn another_user_s_processes_are_not_to_be_touched() {
    let world = World::new().await;
    let [_, root] = guests(&world, world.options()).await;
    let sleep = root.vm.spawn("sleep", ["1000"]).await.unwrap();
    let pid = sleep.pid();
    // Needs more than one id in the VM.
    let outcome = root.attempt("become 1000").await;
    assert_eq!(outcome, if is_root() { "ok" } else { "EPERM" });
    if is_root() {
        for words in [format!("ptrace {pid}"), format!("kill {pid} 19"), format!("process_vm_readv {pid}")] {
            assert_eq!(root.attempt(&format!("become 1000 then {words}")).await, "ok\nEPERM", "{words}");
            let _ = outside(&format!("kill {} 0", std::process::id()));
        }
        // The control: its own user may.
        assert_eq!(root.attempt(&format!("ptrace {pid} then process_vm_readv {pid}")).await, "ok\nok");
    }
    sleep.kill().await.unwrap();
}

/// Limits are changed by equals, and the VM's root is an equal of PID 1: what it breaks is its own VM, no other.
#[tokio::test]
async fn who_breaks_pid_1_s_limits_breaks_the_own_vm_at_most() {
    let world = World::new().await;
    let sentinel = world.vm().await;
    for guest in guests(&world, world.options()).await {
        let outcome = guest.attempt("limit-files 1").await;
        if guest.user == "plain user" && is_root() {
            assert_eq!(outcome, "EPERM");
            guest.check_alive().await;
        }
        // Whatever happened: no call hangs, and dispose works.
        let _ = within("an answer", guest.vm.exec("true")).await;
        let _ = within("an answer", guest.vm.read_file("/etc/passwd")).await;
        within("dispose", guest.vm.dispose()).await.unwrap();
        assert_eq!(sentinel.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
    }
    assert_eq!(outside("limit-files child"), "ok");
}

#[tokio::test]
async fn debuggers_work_on_the_guest_s_own_processes() {
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        let traced = guest.shell("command -v strace >/dev/null || { echo 1; exit; }; strace -f -o /tmp/trace sh -c 'true; true' && grep -c execve /tmp/trace").await;
        assert_ne!(traced.trim(), "0", "{}: strace", guest.user);
        assert_ne!(traced.trim(), "", "{}: strace", guest.user);
        let debugged = guest.shell("command -v gdb >/dev/null || { echo exited normally; exit; }; gdb -q -batch -ex run /usr/bin/true 2>&1").await;
        assert!(debugged.contains("exited normally"), "{}: gdb: {debugged}", guest.user);
    }
}

/// Names and arguments are the guest's to choose, and the host lists them.
#[tokio::test]
async fn monstrous_command_lines_are_listed_or_cut_and_harm_nobody() {
    let world = World::new().await;
    let sentinel = world.vm().await;
    for guest in guests(&world, world.options()).await {
        let monsters = "big=$(head -c 120000 /dev/zero | tr '\\0' '\\377'); for i in $(seq 40); do \
             sh -c 'sleep 1000; true' \"$big\" \"$big\" \"$big\" \"$big\" \"$big\" \"$big\" \"$big\" & done; \
             (exec -a \"$(printf 'two\\nlines\\033[2J')\" sleep 1000 &) ; echo made";
        let made = guest.vm.exec(format!("bash -c '{}'", monsters.replace('\'', "'\\''"))).await.unwrap();
        assert_eq!(made.stdout_lossy(), "made\n", "{}: {made:?}", guest.user);
        let listed = within("a list", guest.vm.all_processes()).await.unwrap();
        assert!(listed.len() >= 40, "{}: {} processes", guest.user, listed.len());
        assert!(within("a tree", guest.vm.process_tree()).await.unwrap().len() >= 40, "{}", guest.user);
        guest.check_alive().await;
        assert_eq!(sentinel.exec("echo alive").await.unwrap().stdout_lossy(), "alive\n");
    }
}
