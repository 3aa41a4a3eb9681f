//! `agentos exec` behaves as the command would here: its output, its input, its exit code, its signals.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::io::{Read, Write};
use std::process::Stdio;

use rustix::process::Signal;
use support::{Running, World};

#[test]
fn the_exit_code_is_the_command_s() {
    let world = World::new();
    for (script, code) in [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        world.sh(script).expect(code);
    }
    world.agentos(["exec", "--", "no-such-command"]).expect(127);
    world.agentos(["exec", "--", "/etc/passwd"]).expect(126);
    world.agentos(["exec", "--timeout", "0.2", "--", "sleep", "1000"]).expect(124);
}

#[test]
fn failures_of_ours_have_codes_of_their_own_and_say_what_was_wrong() {
    let world = World::new();
    for arguments in [
        &["exec"][..],
        &["exec", "--mount", "here", "--", "true"],
        &["exec", "--env", "SURELY_NOT_SET", "--", "true"],
        &["exec", "--vm", "x", "--project", ".", "--", "true"],
        &["exec", "--vm", "x", "--net", "none", "--", "true"],
        &["exec", "--vm", "x", "--storage", "state", "--", "true"],
        &["exec", "--vm", "x", "--loopback-exempt-port", "80", "--", "true"],
        &["exec", "--vm", "x", "--connections-limit", "1", "--", "true"],
        &["exec", "--vm", "x", "--bandwidth-limit", "1m", "--", "true"],
        &["exec", "--connections-limit", "0", "--", "true"],
        &["exec", "--bandwidth-limit", "fast", "--", "true"],
        &["exec", "--bandwidth-limit", "1", "--", "true"],
        &["exec", "--net", "/dev/zero", "--", "true"],
        &["exec", "--net", "no-such-policy.toml", "--", "true"],
        &["exec", "--allow", "10.0.0.1/8", "--", "true"],
        &["exec", "--timeout", "0", "--", "true"],
        &["no-such-command"],
    ] {
        world.agentos(arguments).expect(2);
    }
    let missing = world.agentos(["exec", "--mount", "/no/such/dir:/data", "--", "true"]).expect(125);
    assert!(
        missing.stderr.starts_with("agentos: ") && missing.stderr.contains("/no/such/dir"),
        "{}",
        missing.stderr
    );
    let unknown = world.agentos(["exec", "--vm", "nobody", "--", "true"]).expect(125);
    assert!(unknown.stderr.contains("nobody"), "{}", unknown.stderr);
    let nowhere = world.agentos(["exec", "--cwd", "/no/such/dir", "--", "true"]).expect(125);
    assert!(nowhere.stderr.contains("/no/such/dir"), "{}", nowhere.stderr);
}

#[test]
fn output_is_exact_and_its_streams_stay_apart() {
    let world = World::new();
    let result =
        world.agentos(["exec", "--", "sh", "-c", "printf 'a\\0\\033[1mb\\377'; printf err >&2"]).expect(0);
    assert_eq!(result.stdout, b"a\0\x1b[1mb\xff");
    assert_eq!(result.stderr, "err");
}

#[test]
fn a_fast_command_loses_not_one_byte() {
    let world = World::new();
    let count = 32 << 20;
    let result = world.sh(&format!("head -c {count} /dev/zero")).expect(0);
    assert_eq!(result.stdout.len(), count);
    assert!(result.stdout.iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_piped_in_arrives_exactly_and_ends() {
    let world = World::new();
    let content: Vec<u8> = (0..3_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut running = world.start(["exec", "--", "cat"]);
    let mut stdin = running.stdin.take().unwrap();
    let sent = content.clone();
    let feeder = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let result = running.finish().expect(0);
    feeder.join().unwrap();
    assert!(result.stdout == content, "{} of {} bytes, or others", result.stdout.len(), content.len());
}

#[test]
fn output_comes_while_the_command_runs() {
    let world = World::new();
    let mut running = world.start(["exec", "--", "sh", "-c", "echo ready; read answer; echo got $answer"]);
    assert_eq!(running.line(), "ready\n");
    running.write("it\n");
    assert_eq!(running.line(), "got it\n");
    running.finish().expect(0);
}

/// It outlives who started it, and is told of the keys that its VMs are to have.
#[test]
fn a_sidecar_does_not_inherit_the_keys_of_who_starts_it() {
    let world = World::new();
    let key = support::random_word();
    let mut command = world.command(["exec", "--", "sh", "-c", "echo ready; cat"]);
    for name in ["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY"] {
        command.env(name, &key);
    }
    let mut running = Running::start(command);
    assert_eq!(running.line(), "ready\n");
    let environment = |pid: u32| {
        let content = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        String::from_utf8_lossy(&content).into_owned()
    };
    let (own, sidecar) = (environment(running.child.id()), environment(running.sidecar()));
    assert_eq!(own.matches(&key).count(), 4, "the control");
    assert!(sidecar.contains("AGENTOS_HOME=") && !sidecar.contains(&key), "{sidecar}");
    running.finish().expect(0);
}

#[test]
fn an_interrupt_goes_to_the_command_and_its_children() {
    let world = World::new();
    // A shell acts on a signal between two commands.
    let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let mut running = world.start(["exec", "--", "bash", "-c", script]);
    assert_eq!(running.line(), "ready\n");
    running.signal(Signal::INT);
    let result = running.finish().expect(9);
    assert_eq!(result.text(), "caught\n");
}

#[test]
fn a_second_interrupt_kills_what_ignores_the_first() {
    let world = World::new();
    let mut running = world.start(["exec", "--", "sh", "-c", "trap '' INT; echo ready; cat; sleep 1000"]);
    assert_eq!(running.line(), "ready\n");
    running.signal(Signal::INT);
    // Whoever reads and answers has survived; the pipe shows it without a guess at time.
    running.write("alive\n");
    assert_eq!(running.line(), "alive\n");
    running.signal(Signal::INT);
    running.finish().expect(137);
}

#[test]
fn being_terminated_ends_the_command() {
    let world = World::new();
    let mut running = world.start(["exec", "--", "sh", "-c", "echo ready; sleep 1000"]);
    assert_eq!(running.line(), "ready\n");
    running.signal(Signal::TERM);
    running.finish().expect(143);
}

#[test]
fn being_terminated_ends_a_command_that_is_stopped() {
    let world = World::new();
    // The child tells when the kernel shows its parent as stopped.
    let script =
        "(until grep -q '^State:.T' /proc/$$/status; do :; done; echo stopped) & kill -STOP $$; sleep 1000";
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut running = world.start(["exec", "--", "bash", "-c", script]);
        assert_eq!(running.line(), "stopped\n");
        running.signal(signal);
        running.finish().expect(128 + signal.as_raw());
    }
}

#[test]
fn whoever_wants_a_signal_ignored_has_it_ignored() {
    let world = World::new();
    let mut command = std::process::Command::new("env");
    command.arg("--ignore-signal=HUP").arg(support::binary());
    command.args(["exec", "--", "sh", "-c", "echo ready; cat; echo whole"]);
    world.environment(&mut command);
    let mut running = Running::start(command);
    assert_eq!(running.line(), "ready\n");
    running.signal(Signal::HUP);
    running.write("alive\n");
    assert_eq!(running.line(), "alive\n");
    let result = running.finish().expect(0);
    assert_eq!(result.text(), "whole\n");
}

#[test]
fn a_sidecar_that_dies_is_reported_and_nothing_hangs() {
    let world = World::new();
    let mut running = world.start(["exec", "--", "sh", "-c", "echo ready; sleep 1000"]);
    assert_eq!(running.line(), "ready\n");
    running.kill_sidecar();
    let result = running.finish().expect(125);
    assert!(result.stderr.contains("sidecar"), "{}", result.stderr);
    // The next one starts another.
    world.sh("true").expect(0);
}

#[test]
fn children_left_behind_don_t_hold_the_command() {
    let world = World::new();
    let result = world.sh("sleep 1000 & echo started").expect(0);
    assert_eq!(result.text(), "started\n");
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let world = World::new();
    let mut running = world.start(["exec", "--", "yes"]);
    assert_eq!(running.line(), "y\n");
    drop(running.stdout.take());
    let result = running.finish().expect(141);
    assert_eq!(result.stderr, "");
}

#[test]
fn variables_and_the_working_directory_are_passed() {
    let world = World::new();
    let script = "echo $A $B; pwd; env";
    let arguments = ["exec", "--env", "A=1", "--env", "B", "--cwd", "/tmp", "--", "sh", "-c", script];
    let mut command = world.command(arguments);
    command.env("B", "from here").env("SECRET", "stays here").stdout(Stdio::piped());
    let mut output = String::new();
    let mut child = command.spawn().unwrap();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(output.starts_with("1 from here\n/tmp\n"), "{output}");
    assert!(!output.contains("stays here") && !output.contains("SECRET"), "{output}");
}

#[test]
fn a_project_is_read_only_unless_it_says_rw() {
    let world = World::new();
    let project = world.directory("project");
    std::fs::write(project.join("given"), "text").unwrap();
    let show = project.display().to_string();
    let read = world.agentos(["exec", "--project", &show, "--", "sh", "-c", "pwd; cat given"]).expect(0);
    assert_eq!(read.text(), "/work\ntext");
    let refused = world.agentos(["exec", "--project", &show, "--", "touch", "made"]).expect(1);
    assert!(refused.stderr.contains(&format!("--project {show}:rw")), "{}", refused.stderr);
    assert!(!project.join("made").exists());
    world.agentos(["exec", "--project", &format!("{show}:rw"), "--", "touch", "made"]).expect(0);
    assert!(project.join("made").exists());
}

#[test]
fn a_kept_vm_is_there_until_it_is_disposed() {
    let world = World::new();
    let kept = world.agentos(["exec", "--keep=box", "--env", "WORD=kept", "--", "touch", "here"]).expect(0);
    assert!(kept.stderr.contains("box"), "{}", kept.stderr);
    let listed = world.agentos(["vms"]).expect(0).text();
    assert!(listed.lines().any(|line| line.starts_with("box ") && line.contains("running")), "{listed}");
    let used = world.agentos(["exec", "--vm", "box", "--", "sh", "-c", "ls; echo $WORD"]).expect(0);
    assert_eq!(used.text(), "here\nkept\n");
    let taken = world.agentos(["exec", "--keep=box", "--", "true"]).expect(125);
    assert!(taken.stderr.contains("box"), "{}", taken.stderr);
    world.agentos(["dispose", "box"]).expect(0);
    world.agentos(["dispose", "box"]).expect(1);
    world.agentos(["exec", "--vm", "box", "--", "true"]).expect(125);
    assert!(world.agentos(["vms", "--json"]).expect(0).stdout.is_empty());
}

#[test]
fn a_vm_kept_without_a_name_gets_one_that_is_printed() {
    let world = World::new();
    let kept = world.agentos(["exec", "--keep", "--", "true"]).expect(0);
    let vms = world.agentos(["vms", "--json"]).expect(0).json_lines();
    let [vm] = &vms[..] else { panic!("{vms:?}") };
    assert!(kept.stderr.contains(vm["name"].as_str().unwrap()), "{}", kept.stderr);
}

#[test]
fn an_interrupt_in_a_kept_vm_leaves_nothing_running_in_it() {
    let world = World::new();
    world.agentos(["exec", "--keep=box", "--", "true"]).expect(0);
    let mut running =
        world.start(["exec", "--vm", "box", "--", "bash", "-c", "echo ready; sleep 4711; true"]);
    assert_eq!(running.line(), "ready\n");
    running.signal(Signal::INT);
    running.finish().expect(130);
    let left =
        world.agentos(["exec", "--vm", "box", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
    assert!(!left.expect(0).text().contains("sleep 4711"));
}

#[test]
fn what_a_vm_writes_to_its_storage_is_there_for_the_next_one() {
    let world = World::new();
    let kept = |script: &str| world.agentos(["exec", "--storage", "state", "--", "sh", "-c", script]);
    kept("echo one > notes").expect(0);
    assert_eq!(kept("cat notes").expect(0).text(), "one\n");
    let refused = world.agentos(["exec", "--storage", ".", "--", "true"]).expect(125);
    assert!(refused.stderr.contains("storage directory"), "{}", refused.stderr);
}
