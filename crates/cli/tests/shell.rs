//! `agentos shell` is a terminal: programs that draw, job control, sizes, and nothing left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use rustix::termios::LocalModes;
use support::terminal::Terminal;
use support::{World, kill_sidecar_of, skip};

/// What a test needs of the host's /usr, which the VM shows too.
fn missing(test: &str, program: &str) -> bool {
    let found = ["/usr/bin", "/bin"].iter().any(|dir| std::path::Path::new(dir).join(program).exists());
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    !found
}

/// A bash with a prompt that can be waited for.
fn bash(world: &World) -> Terminal {
    let arguments = ["shell", "--env", "PS1=here> ", "--", "bash", "--norc", "--noprofile"];
    let terminal = Terminal::start(world, &arguments);
    wait_for_prompt(&terminal);
    terminal
}

/// What is typed before a program gives the terminal back is that program's.
#[track_caller]
fn wait_for_prompt(terminal: &Terminal) {
    terminal.wait_for("a prompt", |contents| contents.trim_end().ends_with("here>"));
}

#[test]
fn the_exit_code_is_the_shell_s_and_the_terminal_is_as_it_was() {
    let world = World::new();
    let mut terminal = bash(&world);
    let raw = terminal.settings();
    assert!(!raw.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO), "the terminal is not raw");
    terminal.type_keys("echo $((6*7)); tty\r");
    terminal.wait_for_line("42");
    terminal.wait_for("a terminal of the VM", |contents| contents.contains("/dev/pts/"));
    terminal.type_keys("exit 7\r");
    assert_eq!(terminal.wait_for_end(), 7);
    assert!(terminal.settings().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
}

#[test]
fn without_a_command_the_login_shell_runs_in_the_project() {
    let world = World::new();
    let project = world.directory("project");
    let mut terminal = Terminal::start(&world, &["shell", "--project", &project.display().to_string()]);
    terminal.type_keys("pwd; id -un; exit\r");
    terminal.wait_for_line("/work");
    terminal.wait_for_line("user");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn an_interrupt_ends_what_runs_in_front_and_not_the_shell() {
    let world = World::new();
    let mut terminal = bash(&world);
    // Who says so is in front already: between two commands of a line it might be the shell.
    terminal.type_keys("sh -c 'echo running; exec sleep 1000'\r");
    terminal.wait_for_line("running");
    terminal.type_keys("\x03");
    wait_for_prompt(&terminal);
    terminal.type_keys("echo code $?\r");
    terminal.wait_for_line("code 130");
    terminal.type_keys("exit 0\r");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn jobs_stop_and_go_on() {
    let world = World::new();
    let mut terminal = bash(&world);
    terminal.type_keys("echo star''ted; cat\r");
    terminal.wait_for_line("started");
    terminal.type_keys("echoed\r");
    terminal.wait_for("cat's answer", |contents| contents.matches("echoed").count() == 2);
    terminal.type_keys("\x1a");
    terminal.wait_for("the stopped job", |contents| contents.contains("Stopped"));
    wait_for_prompt(&terminal);
    terminal.type_keys("clear; jobs\r");
    terminal.wait_for("the list of jobs", |contents| contents.contains("[1]+") && contents.contains("cat"));
    terminal.type_keys("clear; fg\r");
    terminal.wait_for("the job in front", |contents| contents.trim() == "cat");
    terminal.type_keys("again\r");
    terminal.wait_for("cat, going on", |contents| contents.matches("again").count() == 2);
    terminal.type_keys("\x04");
    wait_for_prompt(&terminal);
    terminal.type_keys("exit 0\r");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn programs_see_the_size_of_the_terminal_and_its_changes() {
    let world = World::new();
    let mut terminal = bash(&world);
    terminal.type_keys("stty size\r");
    terminal.wait_for_line("24 80");
    terminal.type_keys("trap 'stty size' WINCH; echo tra''pped\r");
    terminal.wait_for_line("trapped");
    terminal.resize(100, 30);
    terminal.wait_for("the new size", |contents| contents.contains("30 100"));
    terminal.type_keys("exit 0\r");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn vim_edits_a_file() {
    if missing("shell::vim_edits_a_file", "vim") {
        return;
    }
    let world = World::new();
    let mut terminal = bash(&world);
    terminal.type_keys("vim -u NONE -N poem.txt\r");
    terminal.wait_for("vim", |contents| contents.contains("poem.txt") && contents.contains('~'));
    terminal.type_keys("ifirst line\rsecond line");
    terminal.wait_for("the text", |contents| contents.starts_with("first line\nsecond line\n~"));
    terminal.type_keys("\x1b:wq\r");
    wait_for_prompt(&terminal);
    terminal.type_keys("clear; cat poem.txt; rm poem.txt\r");
    terminal.wait_for_line("second line");
    terminal.type_keys("exit 0\r");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn top_draws_and_quits() {
    if missing("shell::top_draws_and_quits", "top") {
        return;
    }
    let world = World::new();
    let mut terminal = bash(&world);
    terminal.type_keys("top\r");
    terminal.wait_for("top's table", |contents| contents.contains("PID") && contents.contains("COMMAND"));
    terminal.type_keys("q");
    wait_for_prompt(&terminal);
    terminal.type_keys("clear; echo ba''ck\r");
    terminal.wait_for_line("back");
    terminal.type_keys("exit 0\r");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn a_large_paste_arrives_whole() {
    let world = World::new();
    let mut terminal = bash(&world);
    // Lines below the 4,096 bytes a terminal in canonical mode takes.
    let line = "x".repeat(1000);
    terminal.type_keys("stty -echo; echo rea''dy; cat > pasted; echo do''ne\r");
    terminal.wait_for_line("ready");
    for _ in 0..200 {
        terminal.type_keys(&line);
        terminal.type_keys("\r");
    }
    terminal.type_keys("\x04");
    terminal.wait_for_line("done");
    wait_for_prompt(&terminal);
    terminal.type_keys("clear; wc -c < pasted\r");
    terminal.wait_for_line("200200");
    terminal.type_keys("exit 0\r");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn a_terminated_shell_restores_the_terminal() {
    let world = World::new();
    let mut terminal = bash(&world);
    terminal.signal(rustix::process::Signal::TERM);
    assert_eq!(terminal.wait_for_end(), 143, "{}", terminal.contents());
    assert!(terminal.settings().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
}

#[test]
fn a_sidecar_that_dies_leaves_no_raw_terminal() {
    let world = World::new();
    let mut terminal = bash(&world);
    kill_sidecar_of(terminal.pid());
    assert_eq!(terminal.wait_for_end(), 125, "{}", terminal.contents());
    assert!(terminal.settings().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
    terminal.wait_for("the reason", |contents| contents.contains("sidecar"));
    world.sh("true").expect(0);
}
