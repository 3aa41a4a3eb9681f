//! A terminal with the command in it: a real PTY, its screen as a terminal emulator shows it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::{World, binary, wait_until};

pub(crate) struct Terminal {
    keyboard: File,
    /// Held open, so that its settings can be looked at when the command has ended.
    slave: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
    pub(crate) child: Child,
}

impl Terminal {
    /// Starts the command as the leader of a session whose terminal this is.
    pub(crate) fn start(world: &World, arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        tcsetwinsize(&slave, size(80, 24)).unwrap();
        let copy = || Stdio::from(slave.try_clone().unwrap());
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait", "env", "--default-signal=INT,TERM,HUP"])
            .arg(binary())
            .args(arguments);
        world.environment(&mut command);
        command.env("TERM", "xterm").stdin(copy()).stdout(copy()).stderr(copy());
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(24, 80, 0)));
        let mut output = File::from(master.try_clone().unwrap());
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().process(&buffer[..length]);
            }
        });
        Self { keyboard: File::from(master), slave, screen, child }
    }

    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn resize(&self, cols: u16, rows: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(rows, cols);
        tcsetwinsize(&self.keyboard, size(cols, rows)).unwrap();
    }

    pub(crate) fn contents(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let mut contents = String::new();
        let seen = wait_until(|| {
            contents = self.contents();
            condition(&contents)
        });
        assert!(seen, "waited in vain for {what}; the screen:\n{contents}");
        contents
    }

    /// Waits for a line that is exactly this.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, line: &str) {
        self.wait_for(line, |contents| contents.lines().any(|shown| shown.trim_end() == line));
    }

    /// The command's pid. `setsid` forks when it leads a process group; the command is its child then, else itself.
    pub(crate) fn pid(&self) -> u32 {
        let pid = self.child.id();
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let forked = read("comm").trim_end() == "setsid";
        let child = || read(&format!("task/{pid}/children")).split_whitespace().next()?.parse().ok();
        if forked { child().unwrap_or(pid) } else { pid }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        super::signal(self.pid(), signal);
    }

    pub(crate) fn settings(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for_end(&mut self) -> i32 {
        let mut ended = None;
        wait_until(|| {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        match ended {
            Some(status) => super::code(status).unwrap(),
            None => panic!("it did not end; the screen:\n{}", self.contents()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed leaves its shell open.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn size(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}
