//! The commands that run nothing in a VM: help, doctor, agents, the offline model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use support::World;

#[test]
fn help_has_examples_and_exit_codes() {
    let world = World::new();
    let help = world.agentos(["--help"]).expect(0).text();
    for part in ["agentos run pi", "Exit codes:", "AGENTOS_HOME"] {
        assert!(help.contains(part), "{help}");
    }
    let commands = [
        "run",
        "exec",
        "shell",
        "vms",
        "dispose",
        "ports",
        "forward",
        "net",
        "sessions",
        "agents",
        "doctor",
        "demo-model",
    ];
    for command in commands {
        let help = world.agentos(["help", command]).expect(0).text();
        assert!(help.contains("Examples:"), "{help}");
    }
    for command in ["log", "stats", "set"] {
        let help = world.agentos(["help", "net", command]).expect(0).text();
        assert!(help.contains("Examples:"), "{help}");
    }
    for command in ["list", "show", "export", "delete"] {
        let help = world.agentos(["help", "sessions", command]).expect(0).text();
        assert!(help.contains("Examples:"), "{help}");
    }
}

#[test]
fn no_colours_come_out_of_a_pipe() {
    let world = World::new();
    for arguments in [&["doctor"][..], &["agents", "list"], &["--help"]] {
        let result = world.agentos(arguments);
        assert!(!result.stdout.contains(&0x1b) && !result.stderr.contains('\x1b'), "{arguments:?}");
    }
}

#[test]
fn doctor_says_the_same_in_words_in_json_and_in_its_exit_code() {
    let world = World::new();
    let words = world.agentos(["doctor"]);
    let json = world.agentos(["doctor", "--json"]);
    assert_eq!(words.code, json.code);
    let facilities = json.json_lines();
    assert!(!facilities.is_empty());
    for facility in &facilities {
        let name = facility["name"].as_str().unwrap();
        let line = words.text().lines().find(|line| line.contains(name)).map(str::to_owned);
        let line = line.unwrap_or_else(|| panic!("{name} is missing in:\n{}", words.text()));
        assert!(line.starts_with(facility["state"].as_str().unwrap()), "{line}");
    }
    let able = facilities.iter().all(|facility| facility["state"] != "missing");
    assert_eq!(words.code, Some(if able { 0 } else { 1 }));
    // The table tells the truth: a VM can be created where it says so.
    let exec = world.agentos(["exec", "--", "true"]);
    assert_eq!(exec.code == Some(0), able, "{}", exec.stderr);
}

#[test]
fn a_host_that_can_t_is_explained_with_its_cure() {
    let world = World::new();
    // A user namespace of its own, in which no further one may be made.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "sh", "-c", script, "sh"])
            .arg(support::binary())
            .args(arguments);
        world.environment(&mut command);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let doctor = limited(&["doctor"]);
    let table = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{table}{}", String::from_utf8_lossy(&doctor.stderr));
    for (arguments, code) in [(&["run", "pi", "hello"][..], 3), (&["exec", "--", "true"], 125)] {
        let output = limited(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        for text in [&table, &stderr] {
            assert!(text.contains("sysctl -w user.max_user_namespaces"), "{text}");
        }
    }
}

#[test]
fn the_agents_are_listed() {
    let world = World::new();
    let table = world.agentos(["agents", "list"]).expect(0).text();
    let agents = world.agentos(["agents", "list", "--json"]).expect(0).json_lines();
    for id in ["pi", "pi-cli", "opencode", "claude", "codex", "gemini"] {
        let agent = agents.iter().find(|agent| agent["id"] == id).unwrap();
        assert_eq!(agent["installed"], false, "in a fresh state directory");
        assert!(table.lines().any(|line| line.split_whitespace().next() == Some(id)), "{table}");
    }
    let unknown = world.agentos(["agents", "install", "nobody"]).expect(1);
    assert!(unknown.stderr.contains("nobody"), "{}", unknown.stderr);
}

#[test]
fn the_sidecar_ends_after_its_last_client() {
    let world = World::new();
    world.sh("true").expect(0);
    support::eventually("the socket is gone", || !world.sidecar_socket().exists());
}

#[test]
fn the_offline_model_prints_its_address_and_ends_with_its_input() {
    let world = World::new();
    for listen in ["tcp:127.0.0.1:0".to_owned(), format!("unix:{}", world.path("model.sock").display())] {
        let mut child = world
            .command(["demo-model", "--exit-with-stdin", "--listen", &listen])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        match address.trim_end().strip_prefix("http://") {
            Some(address) => drop(std::net::TcpStream::connect(address).unwrap()),
            None => {
                let path = address.trim_end().strip_prefix("unix:").unwrap();
                drop(std::os::unix::net::UnixStream::connect(path).unwrap());
            }
        }
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    world.agentos(["demo-model", "--listen", "nowhere"]).expect(2);
}
