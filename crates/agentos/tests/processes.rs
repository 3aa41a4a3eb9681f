//! Programs that are started and left running.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentos::{AgentOs, ErrorKind, Exit, ProcessDriver, ProcessStatus, Stdin};
use support::world::World;
use support::{eventually, within};
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn a_program_is_started_written_to_read_from_and_waited_for() {
    let world = World::new().await;
    let vm = world.vm().await;
    let cat = vm.spawn("cat", [""; 0]).stdin(Stdin::Piped).await.unwrap();
    let mut output = cat.stdout();
    cat.write_stdin("hello").await.unwrap();
    assert_eq!(&within("the echo", output.next()).await.unwrap().unwrap()[..], b"hello");
    cat.write_stdin(b"\0\xff").await.unwrap();
    cat.close_stdin().await.unwrap();
    let mut rest = Vec::new();
    within("the end of its output", output.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"\0\xff");
    assert_eq!(within("its end", cat.wait()).await.unwrap(), Exit::Exited { code: 0 });
    assert_eq!(cat.wait().await.unwrap(), Exit::Exited { code: 0 });
}

#[tokio::test]
async fn its_input_is_empty_unless_given() {
    let world = World::new().await;
    let vm = world.vm().await;
    let none = vm.spawn("cat", [""; 0]).await.unwrap();
    assert!(within("its end", none.wait()).await.unwrap().success());
    let given = vm.spawn("cat", [""; 0]).stdin("given").await.unwrap();
    let mut text = String::new();
    within("its output", given.stdout().read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "given");
    let error = none.write_stdin("x").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Closed), "{error:?}");
}

#[tokio::test]
async fn a_program_that_cannot_be_run_is_an_error() {
    let world = World::new().await;
    let vm = world.vm().await;
    let error = vm.spawn("no-such-program", [""; 0]).await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NotFound, Some("ENOENT")), "{error:?}");
    vm.write_file("/home/user/plain", "#!/bin/sh\n").await.unwrap();
    let error = vm.spawn("/home/user/plain", [""; 0]).await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Permission, Some("EACCES")), "{error:?}");
}

#[tokio::test]
async fn arguments_arrive_as_they_were_given() {
    let world = World::new().await;
    let vm = world.vm().await;
    let words: Vec<String> = (0..10_000).map(|number| format!("{number} $HOME *")).collect();
    let printf = vm.spawn("printf", std::iter::once("%s\n".to_owned()).chain(words.clone())).await.unwrap();
    let mut text = String::new();
    within("its output", printf.stdout().read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, words.join("\n") + "\n");
}

#[tokio::test]
async fn signals_reach_the_process_and_are_harmless_afterwards() {
    let world = World::new().await;
    let vm = world.vm().await;
    let stopped = vm.spawn("sleep", ["1000"]).await.unwrap();
    stopped.stop().await.unwrap();
    assert_eq!(within("SIGTERM", stopped.wait()).await.unwrap(), Exit::Signaled { signal: 15 });
    stopped.stop().await.unwrap();
    let script = "trap '' TERM; trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    let stubborn = vm.spawn("sh", ["-c", script]).await.unwrap();
    let mut output = stubborn.stdout();
    assert_eq!(&within("ready", output.next()).await.unwrap().unwrap()[..], b"ready\n");
    stubborn.stop().await.unwrap();
    stubborn.signal(10).await.unwrap();
    assert_eq!(within("its own end", stubborn.wait()).await.unwrap(), Exit::Exited { code: 3 });
    let killed = vm.spawn("sleep", ["1000"]).await.unwrap();
    vm.kill_process(killed.pid()).await.unwrap();
    assert_eq!(within("SIGKILL", killed.wait()).await.unwrap(), Exit::Signaled { signal: 9 });
    let error = vm.stop_process(999_999).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.errno(), error.to_string().contains("Process not found: 999999")),
        (ErrorKind::NotFound, Some("ESRCH"), true),
        "{error}"
    );
}

#[tokio::test]
async fn a_timeout_kills_it() {
    let world = World::new().await;
    let vm = world.vm().await;
    let process = vm.spawn("sleep", ["1000"]).timeout(Duration::from_millis(50)).await.unwrap();
    assert_eq!(within("the timeout", process.wait()).await.unwrap(), Exit::TimedOut);
}

#[tokio::test]
async fn spawned_processes_are_listed_also_when_they_have_exited() {
    let world = World::new().await;
    let vm = world.vm().await;
    let done = vm.spawn("sh", ["-c", "exit 3"]).await.unwrap();
    let runs = vm.spawn("sleep", ["1000"]).await.unwrap();
    within("its end", done.wait()).await.unwrap();
    let list = vm.list_processes().await.unwrap();
    let shown: Vec<_> =
        list.iter().map(|one| (one.pid, one.command.as_str(), one.running, one.exit_code)).collect();
    assert_eq!(shown, [(done.pid(), "sh", false, Some(3)), (runs.pid(), "sleep", true, None)]);
    assert_eq!(vm.get_process(runs.pid()).await.unwrap().args, ["1000"]);
    let error = vm.get_process(4242).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::NotFound, "Process not found: 4242".to_owned())
    );
}

#[tokio::test]
async fn a_fresh_vm_has_no_processes_and_a_tree_shows_who_started_whom() {
    let world = World::new().await;
    let vm = world.vm().await;
    assert_eq!(vm.all_processes().await.unwrap(), []);
    let parent = vm.spawn("sh", ["-c", "sleep 1000 & sleep 1001 & wait"]).cwd("/tmp").await.unwrap();
    eventually("both children run", || async { running(&vm, "sleep").await == 2 }).await;
    let tree = vm.process_tree().await.unwrap();
    assert_eq!(tree.len(), 1, "{tree:?}");
    assert_eq!((tree[0].pid, tree[0].ppid, tree[0].driver), (parent.pid(), 0, ProcessDriver::Shell));
    assert_eq!((tree[0].cwd.as_str(), tree[0].children.len()), ("/tmp", 2));
    let child = &tree[0].children[0];
    assert_eq!(
        (child.command.as_str(), child.driver, child.ppid),
        ("sleep", ProcessDriver::Native, parent.pid())
    );
    assert!(child.start_time > 1_600_000_000_000 && child.exit_time.is_none());
    parent.kill().await.unwrap();
    within("its end", parent.wait()).await.unwrap();
    let all = vm.all_processes().await.unwrap();
    let exited = all.iter().find(|process| process.pid == parent.pid()).unwrap();
    assert_eq!((exited.status, exited.exit_code), (ProcessStatus::Exited, Some(137)));
}

async fn running(vm: &AgentOs, command: &str) -> usize {
    let all = vm.all_processes().await.unwrap();
    all.iter()
        .filter(|process| process.status == ProcessStatus::Running && process.command == command)
        .count()
}

#[tokio::test]
async fn every_reader_has_the_output_from_the_start_and_can_go_on_at_an_offset() {
    let world = World::new().await;
    let vm = world.vm().await;
    let process = vm.spawn("sh", ["-c", "printf 0123456789; printf errors >&2"]).await.unwrap();
    within("its end", process.wait()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(text(process.stdout()).await, "0123456789");
    }
    assert_eq!(text(process.stdout().from_offset(4)).await, "456789");
    assert_eq!(text(process.stderr()).await, "errors");
}

async fn text(mut stream: agentos::OutputStream) -> String {
    let mut text = String::new();
    within("the end of the output", stream.read_to_string(&mut text)).await.unwrap();
    text
}

#[tokio::test]
async fn with_a_reader_nothing_is_lost() {
    let world = World::new().await;
    let vm = world.vm().await;
    let process = vm.spawn("sh", ["-c", "read go; seq 1 1000000"]).stdin(Stdin::Piped).await.unwrap();
    let mut output = process.stdout();
    let reading = async {
        let mut whole = Vec::new();
        while let Some(chunk) = output.next().await {
            whole.extend_from_slice(&chunk.unwrap());
        }
        whole
    };
    let writing = async {
        // The reader is attached before the first byte is printed.
        process.write_stdin("go\n").await.unwrap();
    };
    let (whole, ()) = within("a million lines", futures_util::future::join(reading, writing)).await;
    let expected: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
    assert!(whole == expected.as_bytes(), "{} of {} bytes", whole.len(), expected.len());
}

#[tokio::test]
async fn without_a_reader_it_runs_on_and_a_later_one_is_told_of_the_gap() {
    let world = World::new().await;
    let vm = world.vm().await;
    let process = vm.spawn("sh", ["-c", "head -c 5000000 /dev/zero; printf end"]).await.unwrap();
    assert!(within("it runs to its end", process.wait()).await.unwrap().success());
    let mut output = process.stdout();
    let gap = within("the gap", output.next()).await.unwrap().unwrap_err();
    assert_eq!(gap.kind(), ErrorKind::Lagged);
    let resume = gap.resume_at().unwrap();
    assert!((5_000_003 - (1 << 20)..=5_000_000).contains(&resume), "{resume}");
    let mut rest = Vec::new();
    while let Some(chunk) = within("the rest", output.next()).await {
        rest.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(rest.len() as u64, 5_000_003 - resume);
    assert!(rest.ends_with(b"\0end"));
    assert_eq!(output.offset(), 5_000_003);
}

#[tokio::test]
async fn a_reader_that_gives_up_waiting_loses_nothing() {
    let world = World::new().await;
    let vm = world.vm().await;
    let process = vm.spawn("sh", ["-c", "read a; echo $a"]).stdin(Stdin::Piped).await.unwrap();
    let mut output = process.stdout();
    for _ in 0..3 {
        let waited = tokio::time::timeout(Duration::from_millis(1), output.next()).await;
        assert!(waited.is_err(), "{waited:?}");
    }
    process.write_stdin("kept\n").await.unwrap();
    assert_eq!(&within("the line", output.next()).await.unwrap().unwrap()[..], b"kept\n");
}

#[tokio::test]
async fn handlers_get_the_output_from_the_first_byte() {
    let world = World::new().await;
    let vm = world.vm().await;
    let seen = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let (out, err) = (Arc::clone(&seen), Arc::clone(&seen));
    let _process = vm
        .spawn("sh", ["-c", "echo out; echo err >&2"])
        .on_stdout(move |chunk| out.lock().unwrap().0.extend_from_slice(&chunk))
        .on_stderr(move |chunk| err.lock().unwrap().1.extend_from_slice(&chunk))
        .await
        .unwrap();
    eventually("both were seen", || async {
        *seen.lock().unwrap() == (b"out\n".to_vec(), b"err\n".to_vec())
    })
    .await;
}

#[tokio::test]
async fn many_waiting_calls_do_not_hold_up_others() {
    let world = World::new().await;
    let vm = world.vm().await;
    let process = vm.spawn("sleep", ["1000"]).await.unwrap();
    let waiting: Vec<_> = (0..400)
        .map(|_| {
            let process = process.clone();
            tokio::spawn(async move { process.wait().await })
        })
        .collect();
    within("a call beside them", vm.stat("/")).await.unwrap();
    process.kill().await.unwrap();
    for wait in within("all of them", futures_util::future::join_all(waiting)).await {
        assert_eq!(wait.unwrap().unwrap(), Exit::Signaled { signal: 9 });
    }
}

#[tokio::test]
async fn a_reader_that_stalls_holds_up_its_process_and_nobody_else() {
    let world = World::new().await;
    let vm = world.vm().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        // It prints once it has a reader.
        let script = "printf 1; read go; head -c 39999999 /dev/zero";
        let process = vm.spawn("sh", ["-c", script]).stdin(Stdin::Piped).await.unwrap();
        let mut output = process.stdout();
        within("its first chunk", output.next()).await.unwrap().unwrap();
        process.write_stdin("go\n").await.unwrap();
        stalled.push((process, output));
    }
    let content = vec![7; 4 << 20];
    within("a write", vm.write_file("/home/user/f", content.clone())).await.unwrap();
    assert!(within("a read", vm.read_file("/home/user/f")).await.unwrap() == content);
    let (process, mut output) = stalled.pop().unwrap();
    while let Some(chunk) = within("the rest", output.next()).await {
        chunk.unwrap();
    }
    assert_eq!(output.offset(), 40_000_000);
    assert!(within("its end", process.wait()).await.unwrap().success());
}
