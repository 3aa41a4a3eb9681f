//! Shell commands run to their end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentos::{ErrorKind, Exit};
use support::world::World;
use support::{eventually, within};

#[tokio::test]
async fn a_command_gives_its_output_and_its_code() {
    let world = World::new().await;
    let vm = world.vm().await;
    let out = vm.exec("echo out; echo err >&2; exit 7").await.unwrap();
    assert_eq!((&out.stdout[..], &out.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(out.exit, Exit::Exited { code: 7 });
    assert_eq!((out.exit_code(), out.success(), out.timed_out(), out.truncated), (7, false, false, false));
}

#[tokio::test]
async fn it_runs_as_the_user_at_home_with_the_vm_s_environment_under_its_own() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().env("FROM_VM", "vm").env("BOTH", "vm")).await;
    let out = vm
        .exec("pwd; id -u; echo $HOME $FROM_VM $BOTH $OWN")
        .env("BOTH", "exec")
        .env("OWN", "1")
        .await
        .unwrap();
    assert_eq!(out.stdout_lossy(), "/home/user\n1000\n/home/user vm exec 1\n", "{out:?}");
    let out = vm.exec("pwd").cwd("/tmp").await.unwrap();
    assert_eq!(out.stdout_lossy(), "/tmp\n");
}

#[tokio::test]
async fn input_is_given_whole_and_then_ends_and_is_empty_otherwise() {
    let world = World::new().await;
    let vm = world.vm().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let out = vm.exec("cat").stdin(&bytes).await.unwrap();
    assert!(out.stdout == bytes, "{} bytes came back", out.stdout.len());
    assert_eq!(vm.exec("cat").await.unwrap().stdout, b"");
}

#[tokio::test]
async fn a_timeout_ends_the_whole_group_and_keeps_what_was_printed() {
    let world = World::new().await;
    let vm = world.vm().await;
    let command = vm.exec("echo before; sleep 4321 & sleep 4321").timeout(Duration::from_secs(3));
    let out = within("the timeout", command).await.unwrap();
    assert_eq!((out.stdout_lossy().as_ref(), out.timed_out(), out.exit_code()), ("before\n", true, 124));
    eventually("the group is gone", || async { !runs(&vm, "4321").await }).await;
}

#[tokio::test]
async fn a_signal_is_told_from_an_exit() {
    let world = World::new().await;
    let vm = world.vm().await;
    let out = vm.exec("kill -9 $$").await.unwrap();
    assert_eq!((out.exit_code(), out.exit), (137, Exit::Signaled { signal: 9 }));
    assert_eq!(vm.exec("exit 137").await.unwrap().exit, Exit::Exited { code: 137 });
}

#[tokio::test]
async fn a_watcher_sees_output_as_it_comes_and_it_is_captured_too() {
    let world = World::new().await;
    let vm = world.vm().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = Arc::clone(&seen);
    // The second half is printed only once the first has been seen.
    let command = vm
        .exec("echo first; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo second")
        .on_stdout(move |chunk| watch.lock().unwrap().extend_from_slice(&chunk));
    let running = tokio::spawn(command.into_future());
    eventually("the first line is seen", || async { *seen.lock().unwrap() == b"first\n" }).await;
    vm.write_file("/tmp/go", "").await.unwrap();
    let out = within("the end", running).await.unwrap().unwrap();
    assert_eq!(out.stdout, b"first\nsecond\n");
    assert_eq!(*seen.lock().unwrap(), out.stdout);
}

#[tokio::test]
async fn output_beyond_the_limit_is_dropped_and_said_to_be() {
    let world = World::new().await;
    let vm = world.vm().await;
    let out = vm.exec("head -c 3000000 /dev/zero; echo small >&2").max_output_bytes(1000).await.unwrap();
    assert_eq!((out.stdout.len(), out.truncated, out.exit_code()), (1000, true, 0));
    assert_eq!(out.stderr, b"small\n");
    let whole = vm.exec("head -c 3000000 /dev/zero").await.unwrap();
    assert_eq!((whole.stdout.len(), whole.truncated), (3_000_000, false));
}

#[tokio::test]
async fn output_is_exact_bytes() {
    let world = World::new().await;
    let vm = world.vm().await;
    let out = vm.exec(r"printf 'a\000b\377\n'").await.unwrap();
    assert_eq!(out.stdout, b"a\0b\xff\n");
}

#[tokio::test]
async fn a_background_child_that_holds_the_output_does_not_hold_the_command() {
    let world = World::new().await;
    let vm = world.vm().await;
    let out = within("exec", vm.exec("sleep 1000 & echo done")).await.unwrap();
    assert_eq!(out.stdout, b"done\n");
}

#[tokio::test]
async fn dropping_the_future_kills_the_group() {
    let world = World::new().await;
    let vm = world.vm().await;
    let running = tokio::spawn(vm.exec("sleep 5432; true").into_future());
    eventually("it runs", || async { runs(&vm, "5432").await }).await;
    running.abort();
    eventually("it is gone", || async { !runs(&vm, "5432").await }).await;
}

#[tokio::test]
async fn many_run_at_once_and_each_gets_its_own() {
    let world = World::new().await;
    let vm = world.vm().await;
    let commands = (0..60).map(|number| vm.exec(format!("echo {number}; exit {number}")).into_future());
    for (number, out) in futures_util::future::join_all(commands).await.into_iter().enumerate() {
        let out = out.unwrap();
        assert_eq!((out.stdout_lossy(), out.exit_code()), (format!("{number}\n").into(), number as i32));
    }
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_by_name() {
    let world = World::new().await;
    let vm = world.vm().await;
    let error = vm.exec("true").env("BIG", "x".repeat(100 << 20)).await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::InvalidInput, Some("E2BIG")));
    let error = vm.exec("a\0b").await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::InvalidInput, Some("EINVAL")));
    // One string may have 128 KiB in Linux: a limit of the kernel, told by it.
    let error = vm.exec("true").env("LONG", "x".repeat(200 << 10)).await.unwrap_err();
    assert_eq!(error.errno(), Some("E2BIG"), "{error:?}");
    let error = vm.exec("true").cwd("/no/such/place").await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NotFound, Some("ENOENT")), "{error:?}");
    assert_eq!(vm.exec("no-such-command").await.unwrap().exit_code(), 127);
}

async fn runs(vm: &agentos::AgentOs, argument: &str) -> bool {
    let processes = vm.all_processes().await.unwrap();
    processes.iter().any(|process| {
        process.status == agentos::ProcessStatus::Running && process.args.iter().any(|word| word == argument)
    })
}
