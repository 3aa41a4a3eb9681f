//! Shells on a real terminal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{ErrorKind, Exit, OutputStream, Shell};
use support::within;
use support::world::World;

/// Reads until the screen has shown the text.
async fn shown(data: &mut OutputStream, screen: &mut String, text: &str) {
    let read = async {
        while !screen.contains(text) {
            let chunk = data.next().await.expect("the shell is there").unwrap();
            screen.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    match tokio::time::timeout(std::time::Duration::from_secs(30), read).await {
        Ok(()) => {}
        Err(_) => panic!("{text:?} never came: {screen:?}"),
    }
}

/// The marker is put together by the shell, so that its echo isn't taken for its output.
async fn run(shell: &Shell, data: &mut OutputStream, command: &str) -> String {
    let mut screen = String::new();
    shell.write(format!("{command}; echo \"EN\"\"D\"\n")).await.unwrap();
    shown(data, &mut screen, "END").await;
    screen
}

#[tokio::test]
async fn a_shell_has_a_terminal_of_the_size_asked_for() {
    let world = World::new().await;
    let vm = world.vm().await;
    let shell = vm.open_shell().size(100, 30).env("GREETING", "hi").await.unwrap();
    assert_eq!(shell.id(), "shell-1");
    let mut data = shell.data();
    assert!(run(&shell, &mut data, "stty size").await.contains("30 100"));
    assert!(run(&shell, &mut data, "tty; echo $GREETING").await.contains("/dev/pts/"));
    shell.resize(120, 40).await.unwrap();
    assert!(run(&shell, &mut data, "stty size").await.contains("40 120"));
    shell.write("exit 5\n").await.unwrap();
    assert_eq!(within("its end", shell.wait()).await.unwrap(), Exit::Exited { code: 5 });
}

#[tokio::test]
async fn ctrl_c_ends_the_foreground_and_not_the_shell() {
    let world = World::new().await;
    let vm = world.vm().await;
    let shell = vm.open_shell().await.unwrap();
    let mut data = shell.data();
    let mut screen = String::new();
    shell.write("echo beg''in; sleep 1000\n").await.unwrap();
    shown(&mut data, &mut screen, "begin").await;
    support::eventually("sleep is in the foreground", || async {
        vm.all_processes().await.unwrap().iter().any(|process| process.args == ["1000"])
    })
    .await;
    shell.write("\x03").await.unwrap();
    assert!(run(&shell, &mut data, "echo code $?").await.contains("code 130"));
}

#[tokio::test]
async fn a_command_can_take_the_place_of_the_shell() {
    let world = World::new().await;
    let vm = world.vm().await;
    let shell = vm.open_shell().command("sh", ["-c", "test -t 0 && echo a terminal; exit 3"]).await.unwrap();
    let mut data = shell.data();
    shown(&mut data, &mut String::new(), "a terminal").await;
    assert_eq!(within("its end", shell.wait()).await.unwrap(), Exit::Exited { code: 3 });
}

#[tokio::test]
async fn every_reader_has_the_screen_from_the_start() {
    let world = World::new().await;
    let vm = world.vm().await;
    let shell = vm.open_shell().command("sh", ["-c", "echo once"]).await.unwrap();
    within("its end", shell.wait()).await.unwrap();
    for _ in 0..2 {
        shown(&mut shell.data(), &mut String::new(), "once").await;
    }
}

#[tokio::test]
async fn closing_kills_the_shell_and_unknown_ones_are_named() {
    let world = World::new().await;
    let vm = world.vm().await;
    let shell = vm.open_shell().await.unwrap();
    shell.close().await.unwrap();
    let error = vm.shell("shell-77").write("x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("Shell not found: shell-77"), "{error}");
    support::eventually("nothing of it is left", || async {
        let all = vm.all_processes().await.unwrap();
        all.iter().all(|process| process.status == agentos::ProcessStatus::Exited)
    })
    .await;
}
