//! `connect_terminal` as a person meets it: a process on a terminal of its own, driven from the terminal's other end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use agentos::{AgentOs, AgentOsOptions, AgentOsSharedSidecarOptions, AgentOsSidecar, ErrorKind};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use support::eventually;

const RUNTIME_DIR: &str = "AGENTOS_TEST_RUNTIME_DIR";
const VM_NAME: &str = "box";
const SIGNALED: i32 = 99;

/// The person's process: this program again, run for this function alone by the tests below. Run with them it has no
/// terminal and nothing to do.
#[tokio::test]
async fn the_process_on_the_terminal() {
    let Some(directory) = std::env::var_os(RUNTIME_DIR) else { return };
    let vm = sidecar(directory.as_ref()).await.attach(VM_NAME).await.unwrap();
    let code = match vm.connect_terminal().env("GREETING", "hi").await {
        Ok(code) => code,
        Err(error) if error.kind() == ErrorKind::Cancelled => SIGNALED,
        Err(error) => panic!("{error:?}"),
    };
    std::process::exit(code);
}

async fn sidecar(runtime_dir: &std::path::Path) -> AgentOsSidecar {
    let options = AgentOsSharedSidecarOptions::default().pool("tty").runtime_dir(runtime_dir);
    AgentOs::get_shared_sidecar(options).await.unwrap()
}

/// A terminal with a person's process on it.
struct Desk {
    vm: AgentOs,
    child: Child,
    keyboard: File,
    terminal: OwnedFd,
    screen: Arc<Mutex<String>>,
    _directory: tempfile::TempDir,
}

impl Desk {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sidecar = sidecar(directory.path()).await;
        let vm =
            AgentOs::create(AgentOsOptions::default().sidecar(&sidecar).detached(VM_NAME)).await.unwrap();
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal: OwnedFd = File::options().read(true).write(true).open(path).unwrap().into();
        resize(&terminal, 100, 30);
        let mut keyboard = File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&screen);
        // Ends with the terminal.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        keyboard.flush().unwrap();
        let side = || terminal.try_clone().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_process_on_the_terminal", "--nocapture"])
            .env(RUNTIME_DIR, directory.path())
            .env("TERM", "xterm")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        Self { vm, child, keyboard, terminal, screen, _directory: directory }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    async fn shows(&self, text: &str) {
        let seen = || async { self.screen.lock().unwrap().contains(text) };
        let wait = eventually("the text is on the screen", seen);
        if tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.is_err() {
            panic!("{text:?} never came: {:?}", self.screen.lock().unwrap());
        }
    }

    async fn ended(&mut self) -> ExitStatus {
        let status = Mutex::new(None);
        let child = Mutex::new(&mut self.child);
        eventually("the process ends", || async {
            let exited = child.lock().unwrap().try_wait().unwrap();
            *status.lock().unwrap() = exited;
            exited.is_some()
        })
        .await;
        status.into_inner().unwrap().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &OwnedFd, cols: u16, rows: u16) {
    let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[tokio::test]
async fn the_terminal_is_raw_followed_and_restored_and_the_exit_code_comes_back() {
    let mut desk = Desk::new().await;
    let before = tcgetattr(&desk.terminal).unwrap();
    eventually("raw mode", || async { desk.is_raw() }).await;
    desk.types("stty size; echo $GREETING-$TERM\r");
    desk.shows("30 100").await;
    desk.shows("hi-xterm").await;
    resize(&desk.terminal, 132, 50);
    desk.signal(Signal::WINCH);
    desk.types("until stty size | grep '50 132'; do sleep 0.01; done; echo foll''owed\r");
    desk.shows("followed").await;
    // Ctrl-C belongs to the shell inside, not to the process at the terminal.
    desk.types("sleep 1000\r");
    let vm = desk.vm.clone();
    eventually("sleep runs", || async {
        vm.all_processes().await.unwrap().iter().any(|process| process.args == ["1000"])
    })
    .await;
    desk.types("\x03");
    // What is left in the background holds the terminal inside, and nobody waits for it.
    desk.types("sleep 2000 & echo still''here; exit 7\r");
    desk.shows("stillhere").await;
    assert_eq!(desk.ended().await.code(), Some(7));
    let after = tcgetattr(&desk.terminal).unwrap();
    assert_eq!((after.local_modes, after.input_modes), (before.local_modes, before.input_modes));
    assert!(!desk.is_raw());
    desk.vm.dispose().await.unwrap();
}

#[tokio::test]
async fn a_signal_that_ends_the_process_restores_the_terminal_first() {
    let mut desk = Desk::new().await;
    eventually("raw mode", || async { desk.is_raw() }).await;
    desk.signal(Signal::TERM);
    assert_eq!(desk.ended().await.code(), Some(SIGNALED));
    assert!(!desk.is_raw());
    desk.vm.dispose().await.unwrap();
}
