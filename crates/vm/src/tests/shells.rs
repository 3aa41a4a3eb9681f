//! Shells on real PTYs.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::init::{Event, Request, Response};
use agentos_guest_protocol::process::{SignalScope, Status, Stdio};
use bytes::Bytes;

use super::fake::{FakeInit, World, soon};
use crate::shell::ResizeError;
use crate::{Exit, Shell, ShellSpec, Vm};

async fn open(vm: &Vm, init: &FakeInit, pid: i32) -> (Shell, OwnedFd) {
    let play = async {
        let (id, request) = init.spawn_request().await;
        let Stdio::Terminal { cols, rows } = request.stdio else { panic!("no terminal was asked for") };
        let (master, terminal) = agentos_linux::terminal::open(cols, rows).unwrap();
        init.answer(id, Response::Spawned { pid }, vec![master]);
        init.event(Event::ExecDone { pid, result: Ok(()) });
        terminal
    };
    let (shell, terminal) = soon(async { tokio::join!(vm.open_shell(ShellSpec::default()), play) }).await;
    (shell.unwrap(), terminal)
}

fn size(terminal: &OwnedFd) -> (u16, u16) {
    let size = rustix::termios::tcgetwinsize(terminal.as_fd()).unwrap();
    (size.ws_col, size.ws_row)
}

#[tokio::test]
async fn a_shell_is_typed_into_read_resized_and_ends_with_its_terminal() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let (shell, terminal) = open(&vm, &init, 5).await;
    assert_eq!(shell.id(), "shell-1");
    assert_eq!(size(&terminal), (80, 24));
    shell.resize(132, 50).unwrap();
    assert_eq!(size(&terminal), (132, 50));
    assert!(matches!(shell.resize(0, 1), Err(ResizeError::Size { .. })));

    soon(shell.write(Bytes::from_static(b"ls\n"))).await.unwrap();
    let mut tty = std::fs::File::from(terminal);
    let typed = tokio::task::spawn_blocking(move || {
        let mut line = [0; 3];
        tty.read_exact(&mut line).unwrap();
        tty.write_all(b"file").unwrap();
        line
    });
    assert_eq!(&soon(typed).await.unwrap(), b"ls\n");
    // The program is gone, and its terminal with it.
    init.exit(5, Status::Exited(0));
    let mut reader = shell.output().from_offset(0);
    let mut shown = Vec::new();
    while let Some(chunk) = soon(reader.next()).await {
        shown.extend(chunk.data);
    }
    assert_eq!(String::from_utf8_lossy(&shown), "ls\r\nfile");
    assert!(matches!(soon(shell.wait()).await, Exit::Exited(0)));
    assert!(matches!(shell.resize(80, 24), Err(ResizeError::Closed)));
    // It can still be asked for.
    assert!(matches!(vm.shell("shell-1").unwrap().exit(), Some(Exit::Exited(0))));
    assert!(vm.shell("shell-2").is_none());
}

#[tokio::test]
async fn a_shell_that_stays_after_the_hang_up_is_killed() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let (shell, _terminal) = open(&vm, &init, 5).await;
    let closing = tokio::spawn({
        let shell = shell.clone();
        async move { shell.close().await }
    });
    for expected in [1, 9] {
        let (id, request) = init.request().await;
        let Request::Signal { pid: 5, signal, scope: SignalScope::Group } = request else {
            panic!("not a signal to the group but {request:?}");
        };
        assert_eq!(signal, expected);
        init.answer(id, Response::Done, Vec::new());
    }
    init.exit(5, Status::Signaled(9));
    soon(closing).await.unwrap();
    assert!(vm.shell("shell-1").is_none());
    soon(shell.close()).await;
}
