//! Processes and commands.

use std::io::Read;
use std::time::Duration;

use agentos_guest_protocol::init::{Event, Request, Response};
use agentos_guest_protocol::launcher::LauncherEvent;
use agentos_guest_protocol::process::{ProcessEntry, SignalScope, SpawnFailure, SpawnStep, Status};
use bytes::Bytes;

use super::fake::{FakeInit, GuestPipes, World, bytes, soon};
use crate::process::{ProcessDriver, ProcessSpec, Stdin, StdinError};
use crate::{Exec, ExecEvent, ExecExit, ExecSpec, Exit, Process, SpawnError, Vm};

fn program(name: &str) -> ProcessSpec {
    ProcessSpec { argv: vec![name.into()], ..Default::default() }
}

fn command(text: &str) -> ExecSpec {
    ExecSpec { command: text.into(), ..Default::default() }
}

async fn spawn(vm: &Vm, init: &FakeInit, spec: ProcessSpec, pid: i32) -> (Process, GuestPipes) {
    let (process, guest) = soon(async { tokio::join!(vm.spawn(spec), init.run(pid)) }).await;
    (process.unwrap(), guest)
}

async fn exec(vm: &Vm, init: &FakeInit, spec: ExecSpec, pid: i32) -> (Exec, GuestPipes) {
    let (exec, guest) = soon(async { tokio::join!(vm.exec(spec), init.run(pid)) }).await;
    (exec.unwrap(), guest)
}

/// Everything until the exit.
async fn finish(exec: &mut Exec) -> (Vec<u8>, Vec<u8>, ExecExit) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match soon(exec.next()).await.unwrap() {
            ExecEvent::Stdout(chunk) => stdout.extend(chunk),
            ExecEvent::Stderr(chunk) => stderr.extend(chunk),
            ExecEvent::Exited(exit) => return (stdout, stderr, exit),
        }
    }
}

fn is_kill(request: &Request, process: i32) -> bool {
    matches!(request, Request::Signal { pid, signal: 9, scope: SignalScope::Group } if *pid == process)
}

#[tokio::test]
async fn a_process_is_spawned_written_to_read_and_waited_for() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let spec = ProcessSpec { stdin: Stdin::Piped, ..program("cat") };
    let (process, mut guest) = spawn(&vm, &init, spec, 7).await;
    assert_eq!(process.pid(), 7);

    soon(process.write_stdin(Bytes::from_static(b"hello"))).await.unwrap();
    process.close_stdin().unwrap();
    let stdin = guest.stdin.take().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::from(stdin).read_to_string(&mut text).map(|_| text)
    });
    assert_eq!(soon(read).await.unwrap().unwrap(), "hello");

    let mut reader = process.stdout().from_offset(0);
    soon(guest.write_stdout(b"hello".to_vec())).await.unwrap();
    let chunk = soon(reader.next()).await.unwrap();
    assert_eq!((chunk.offset, &chunk.data[..]), (0, &b"hello"[..]));
    guest.close_output();
    assert_eq!(soon(reader.next()).await, None);

    assert!(process.exit().is_none());
    init.exit(7, Status::Exited(3));
    assert!(matches!(soon(process.wait()).await, Exit::Exited(3)));
    // It can still be asked for.
    let again = vm.process(7).unwrap();
    assert!(matches!(again.exit(), Some(Exit::Exited(3))));
    assert_eq!(soon(again.stdout().from_offset(2).next()).await.unwrap().data, &b"llo"[..]);
    soon(again.signal(15)).await.unwrap();
    assert!(vm.process(8).is_none());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_of_spawn() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let play = async {
        init.fork(7).await;
        let failure = SpawnFailure { step: SpawnStep::Exec, errno: 2 };
        init.event(Event::ExecDone { pid: 7, result: Err(failure) });
        init.exit(7, Status::Exited(127));
    };
    let (spawned, ()) = soon(async { tokio::join!(vm.spawn(program("nope")), play) }).await;
    let error = spawned.unwrap_err();
    assert_eq!(error.to_string(), "ENOENT: no such file or directory, spawn 'nope'");
    assert_eq!(error.errno(), Some(2));
    assert!(vm.list_processes().is_empty());
    // The id is free again.
    spawn(&vm, &init, program("true"), 7).await;
}

fn impatient(name: &str) -> ProcessSpec {
    ProcessSpec { patience: Some(Duration::ZERO), ..program(name) }
}

/// A process that was given out while its program is still being looked for.
async fn early(vm: &Vm, init: &FakeInit, spec: ProcessSpec, pid: i32) -> (Process, GuestPipes) {
    let (process, guest) = soon(async { tokio::join!(vm.spawn(spec), init.fork(pid)) }).await;
    (process.unwrap(), guest)
}

#[tokio::test]
async fn who_is_impatient_gets_the_process_before_it_runs_and_all_that_it_prints() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let spec = ProcessSpec { stdin: Stdin::Bytes(Bytes::from_static(b"input")), ..impatient("slow") };
    let (process, mut guest) = early(&vm, &init, spec, 7).await;
    assert!(process.exit().is_none());
    assert_eq!(vm.list_processes().len(), 1);
    // What /proc shows of it is PID 1's.
    let entry = ProcessEntry {
        pid: 7,
        ppid: 0,
        pgid: 7,
        sid: 7,
        argv: vec![bytes("init")],
        cwd: bytes("/"),
        exe: bytes("/init"),
        zombie: false,
        start_time_ms: 1,
    };
    let play = async {
        let (id, _) = init.request().await;
        init.answer(id, Response::Processes(vec![entry]), Vec::new());
    };
    let (all, ()) = soon(async { tokio::join!(vm.all_processes(), play) }).await;
    let all = all.unwrap();
    assert_eq!(
        (all[0].argv.as_slice(), all[0].cwd.as_slice()),
        (&[b"slow".to_vec()][..], &b"/home/user"[..])
    );

    init.event(Event::ExecDone { pid: 7, result: Ok(()) });
    let stdin = guest.stdin.take().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::from(stdin).read_to_string(&mut text).map(|_| text)
    });
    assert_eq!(soon(read).await.unwrap().unwrap(), "input");
    let mut reader = process.stdout().from_offset(0);
    soon(guest.write_stdout(b"hello".to_vec())).await.unwrap();
    assert_eq!(soon(reader.next()).await.unwrap().data, &b"hello"[..]);
    guest.close_output();
    assert_eq!(soon(reader.next()).await, None);
    init.exit(7, Status::Signaled(15));
    assert!(matches!(soon(process.wait()).await, Exit::Signaled(15)));
    // The same program that runs at once is given out at once.
    spawn(&vm, &init, ProcessSpec { patience: Some(Duration::from_secs(1000)), ..program("fast") }, 8).await;
}

#[tokio::test]
async fn a_program_that_fails_when_nobody_waits_any_more_exits_with_127_and_says_why() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    // By itself, and killed by init, which had waited long enough.
    for (pid, status) in [(7, Status::Exited(127)), (8, Status::Signaled(9))] {
        let (process, _guest) = early(&vm, &init, impatient("slow"), pid).await;
        let (mut stdout, mut stderr) = (process.stdout().from_offset(0), process.stderr().from_offset(0));
        let failure = SpawnFailure { step: SpawnStep::Exec, errno: 13 };
        init.event(Event::ExecDone { pid, result: Err(failure) });
        assert_eq!(
            soon(stderr.next()).await.unwrap().data,
            &b"EACCES: permission denied, spawn 'slow'\n"[..]
        );
        assert_eq!((soon(stderr.next()).await, soon(stdout.next()).await), (None, None));
        init.exit(pid, status);
        assert!(matches!(soon(process.wait()).await, Exit::Exited(127)));
    }
    let codes: Vec<_> =
        vm.list_processes().iter().map(|process| process.exit.as_ref().map(Exit::code)).collect();
    assert_eq!(codes, [Some(127), Some(127)]);
}

#[tokio::test]
async fn a_process_that_does_not_run_yet_ends_with_its_vm() {
    let World { vm, init, launcher, .. } = World::new().await;
    let (process, _guest) = early(&vm, &init, impatient("slow"), 7).await;
    let mut stdout = process.stdout().from_offset(0);
    let disposing = tokio::spawn({
        let vm = vm.clone();
        async move { vm.dispose(None).await }
    });
    let (id, _) = init.request().await;
    assert!(matches!(soon(process.wait()).await, Exit::VmGone(_)));
    assert_eq!(soon(stdout.next()).await, None);
    // What comes late hurts nobody.
    init.event(Event::ExecDone { pid: 7, result: Ok(()) });
    init.exit(7, Status::Signaled(15));
    init.answer(id, Response::Done, Vec::new());
    let number = init.hang_up();
    launcher.say(LauncherEvent::Exited { vm: number, status: Status::Exited(0) }, Vec::new());
    soon(disposing).await.unwrap();
}

#[tokio::test]
async fn a_command_ends_with_its_process_and_not_with_its_pipes() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let (mut exec, guest) = exec(&vm, &init, command("server & echo started"), 5).await;
    soon(guest.write_stdout(b"started\n".to_vec())).await.unwrap();
    init.exit(5, Status::Exited(0));
    let (stdout, _, exit) = finish(&mut exec).await;
    assert_eq!(stdout, b"started\n");
    assert!(matches!(exit.exit, Exit::Exited(0)));
    assert!(soon(exec.next()).await.is_none());
    // The background child writes on, more than any pipe holds, and nobody stops it.
    soon(guest.write_stdout(vec![b'x'; 1 << 20])).await.unwrap();
}

#[tokio::test]
async fn output_beyond_the_limit_is_dropped_and_said_to_be() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    for (stream_all, expected) in [(false, 1000), (true, 300_000)] {
        let spec = ExecSpec { max_output_bytes: Some(1000), stream_all, ..command("yes") };
        let (mut exec, guest) = exec(&vm, &init, spec, 5).await;
        let writing = guest.write_stdout(vec![b'y'; 300_000]);
        let play = async {
            writing.await.unwrap();
            init.exit(5, Status::Exited(0));
        };
        let ((stdout, _, exit), ()) = soon(async { tokio::join!(finish(&mut exec), play) }).await;
        assert_eq!(stdout.len(), expected);
        assert!(exit.stdout_truncated && !exit.stderr_truncated);
    }
}

#[tokio::test]
async fn stdin_is_given_and_closed() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let spec = ExecSpec { stdin: Some(Bytes::from(vec![b'i'; 200_000])), ..command("wc -c") };
    let (mut exec, mut guest) = exec(&vm, &init, spec, 5).await;
    let stdin = guest.stdin.take().unwrap();
    let counting = tokio::task::spawn_blocking(move || {
        let mut input = Vec::new();
        std::fs::File::from(stdin).read_to_end(&mut input).map(|_| input.len())
    });
    let play = async {
        assert_eq!(counting.await.unwrap().unwrap(), 200_000);
        init.exit(5, Status::Exited(0));
    };
    soon(async { tokio::join!(finish(&mut exec), play) }).await;
}

#[tokio::test]
async fn a_timeout_kills_the_group_and_keeps_what_was_printed() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let spec = ExecSpec { timeout: Some(Duration::from_millis(1)), ..command("echo a; sleep 9") };
    let (mut exec, guest) = exec(&vm, &init, spec, 5).await;
    soon(guest.write_stdout(b"a\n".to_vec())).await.unwrap();
    let (id, request) = init.request().await;
    assert!(is_kill(&request, 5), "{request:?}");
    init.answer(id, Response::Done, Vec::new());
    init.exit(5, Status::Signaled(9));
    let (stdout, _, exit) = finish(&mut exec).await;
    assert_eq!(stdout, b"a\n");
    assert!(matches!(exit.exit, Exit::TimedOut));
}

#[tokio::test]
async fn a_dropped_command_is_killed_and_a_finished_one_is_not() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let (first, _guest) = exec(&vm, &init, command("true"), 5).await;
    let (mut second, _guest) = exec(&vm, &init, command("true"), 6).await;
    init.exit(6, Status::Exited(0));
    finish(&mut second).await;
    drop(second);
    drop(first);
    let (_, request) = init.request().await;
    assert!(is_kill(&request, 5), "{request:?}");
}

#[tokio::test]
async fn a_spawn_that_is_dropped_midway_is_killed_as_soon_as_it_is_there() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let before_fork = tokio::select! {
        _ = vm.spawn(program("server")) => panic!("nobody has answered"),
        request = init.spawn_request() => request,
    };
    let pipe = || rustix::pipe::pipe().unwrap();
    let (stdout, stderr) = (pipe(), pipe());
    init.answer(before_fork.0, Response::Spawned { pid: 9 }, vec![stdout.0, stderr.0]);
    init.event(Event::ExecDone { pid: 9, result: Ok(()) });
    let (_, request) = init.request().await;
    assert!(is_kill(&request, 9), "{request:?}");

    tokio::select! {
        _ = vm.spawn(program("server")) => panic!("exec is not done"),
        _guest = init.fork(10) => {}
    }
    init.event(Event::ExecDone { pid: 10, result: Ok(()) });
    let (_, request) = init.request().await;
    assert!(is_kill(&request, 10), "{request:?}");
}

#[tokio::test]
async fn nobody_reading_stops_no_process_and_a_late_reader_sees_the_gap() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let (process, mut guest) = spawn(&vm, &init, program("yes"), 5).await;
    let output: Vec<u8> = (0..3 << 20).map(|index: u32| (index % 251) as u8).collect();
    soon(guest.write_stdout(output.clone())).await.unwrap();
    guest.close_output();
    let mut reader = process.stdout().from_offset(0);
    let mut read = Vec::new();
    let mut first = None;
    while let Some(chunk) = soon(reader.next()).await {
        first.get_or_insert(chunk.offset);
        read.extend(chunk.data);
    }
    let first = usize::try_from(first.unwrap()).unwrap();
    assert!(first > 0, "3 MiB don't fit into the window");
    assert_eq!(read, &output[first..]);
}

#[tokio::test]
async fn an_attached_reader_holds_the_process_back_and_gets_every_byte() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let (process, mut guest) = spawn(&vm, &init, program("producer"), 5).await;
    let mut reader = process.stdout().from_offset(0);
    let output: Vec<u8> = (0..4 << 20).map(|index: u32| (index % 249) as u8).collect();
    let writing = guest.write_stdout(output.clone());
    let mut read = Vec::new();
    while read.len() < output.len() {
        let chunk = soon(reader.next()).await.unwrap();
        assert_eq!(chunk.offset, read.len() as u64);
        // Window, pipe and the chunk on its way: no more than that is ever written ahead.
        read.extend(chunk.data);
    }
    soon(writing).await.unwrap();
    guest.close_output();
    assert_eq!(soon(reader.next()).await, None);
    assert_eq!(read, output);
}

#[tokio::test]
async fn stdin_queues_a_mebibyte_and_then_the_writer_waits() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let spec = ProcessSpec { stdin: Stdin::Piped, ..program("sleep") };
    let (process, mut guest) = spawn(&vm, &init, spec, 5).await;
    soon(process.write_stdin(Bytes::from(vec![0; 1 << 20]))).await.unwrap();
    let waiting = tokio::spawn({
        let process = process.clone();
        async move { process.write_stdin(Bytes::from(vec![0; 1 << 20])).await }
    });
    // The reader goes: the waiting writer hears of it, and so does the next.
    drop(guest.stdin.take());
    assert!(matches!(soon(waiting).await.unwrap(), Err(StdinError::BrokenPipe)));
    let late = soon(process.write_stdin(Bytes::from_static(b"x"))).await;
    assert!(matches!(late, Err(StdinError::BrokenPipe)));
}

#[tokio::test]
async fn lists_show_what_was_spawned_and_all_that_lives_or_has_just_died() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let (server, _guest) = spawn(&vm, &init, program("/usr/bin/node"), 5).await;
    let (mut done, _guest) = exec(&vm, &init, command("true"), 6).await;
    init.exit(6, Status::Exited(0));
    finish(&mut done).await;
    let listed = vm.list_processes();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].pid, listed[0].exit.is_none()), (server.pid(), true));

    let entry = |pid: i32, exe: &str| ProcessEntry {
        pid,
        ppid: 0,
        pgid: pid,
        sid: pid,
        argv: vec![bytes("node")],
        cwd: bytes("/home/user"),
        exe: bytes(exe),
        zombie: false,
        start_time_ms: 1,
    };
    let play = async {
        let (id, request) = init.request().await;
        assert!(matches!(request, Request::ListProcesses));
        let entries = vec![entry(5, "/usr/bin/node"), entry(7, "/usr/bin/git")];
        init.answer(id, Response::Processes(entries), Vec::new());
    };
    let (all, ()) = soon(async { tokio::join!(vm.all_processes(), play) }).await;
    let all: Vec<_> = all.unwrap().iter().map(|info| (info.pid, info.driver, info.exit.is_some())).collect();
    let expected =
        [(5, ProcessDriver::Node, false), (7, ProcessDriver::Native, false), (6, ProcessDriver::Shell, true)];
    assert_eq!(all, expected);
}

#[tokio::test]
async fn an_environment_too_large_is_refused_before_init_hears_of_it() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let env = (0..1000).map(|n| (format!("N{n}").into_bytes(), vec![b'x'; 100_000])).collect();
    let error = soon(vm.spawn(ProcessSpec { env, ..program("true") })).await.unwrap_err();
    assert!(matches!(error, SpawnError::TooBig));
    // The first that init hears of is the next process.
    spawn(&vm, &init, program("true"), 5).await;
}
