//! The command itself, in a world of its own: private state, private sidecar, so that tests run beside each other.

#![allow(dead_code, reason = "every test program uses another part")]

pub(crate) mod terminal;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; what never comes fails with its name instead of hanging.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// Directories of one test. Kept VMs are disposed at its end.
pub(crate) struct World {
    directory: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["home", "state", "runtime", "tmp"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(directory.path().join("runtime"), mode).unwrap();
        Self { directory }
    }

    /// A world whose agents are installed once for all tests.
    pub(crate) fn with_agents() -> Self {
        let world = Self::new();
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-agents");
        let store = std::env::var_os("AGENTOS_TEST_AGENT_STORE").map_or(shared, PathBuf::from);
        std::fs::create_dir_all(&store).unwrap();
        std::os::unix::fs::symlink(store, world.path("state/agents")).unwrap();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// The environment of the command: nothing of ours but what it needs, no key of a model above all.
    pub(crate) fn environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("AGENTOS_HOME", self.path("state"))
            .env("XDG_RUNTIME_DIR", self.path("runtime"))
            .env("AGENTOS_SIDECAR", binary())
            .env("AGENTOS_DEMO_MODEL_LOG", self.path("requests.jsonl"))
            .current_dir(self.path("home"));
        // How the registry is reached is the machine's business.
        for (name, value) in std::env::vars_os() {
            let lower = name.to_string_lossy().to_lowercase();
            if lower.starts_with("npm_config_") || lower.ends_with("_proxy") || lower.starts_with("ssl_cert")
            {
                command.env(name, value);
            }
        }
    }

    pub(crate) fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).stdin(Stdio::null());
        self.environment(&mut command);
        command
    }

    /// Runs the command to its end.
    pub(crate) fn agentos<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        Finished::of(self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// A shell command in a new VM.
    pub(crate) fn sh(&self, script: &str) -> Finished {
        self.agentos(["exec", "--", "sh", "-c", script])
    }

    /// Starts the command with pipes to all three streams, and signals as a terminal gives them: whoever runs the tests
    /// in the background has them ignored.
    pub(crate) fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,TERM,HUP").arg(binary()).args(arguments);
        self.environment(&mut command);
        Running::start(command)
    }

    pub(crate) fn vms_have_a_network(&self) -> bool {
        let facilities = self.agentos(["doctor", "--json"]).json_lines();
        let network = facilities.into_iter().find(|facility| facility["name"] == "network");
        network.expect("doctor looks at it")["state"] == "ok"
    }

    pub(crate) fn sidecar_socket(&self) -> PathBuf {
        self.path("runtime/agentos/default.sock")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let listed = self.agentos(["vms", "--json"]);
        for vm in listed.json_lines() {
            if let Some(name) = vm["name"].as_str() {
                self.agentos(["dispose", name]);
            }
        }
        // Its directory must not go before it does. A test that failed has enough to say already.
        wait_until(|| !self.sidecar_socket().exists());
    }
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("AGENTOS_SIDECAR").map_or_else(|| env!("CARGO_BIN_EXE_agentos").into(), PathBuf::from)
}

/// Kills a process that has not ended in time, so that a test fails with what it printed instead of hanging.
struct Watchdog {
    alive: Option<std::sync::mpsc::SyncSender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    fn over(pid: u32) -> Self {
        let (alive, gone) = std::sync::mpsc::sync_channel::<()>(1);
        let thread = std::thread::spawn(move || {
            if gone.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                signal(pid, rustix::process::Signal::KILL);
            }
        });
        Self { alive: Some(alive), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A command that has ended.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Finished {
    fn of(child: Child) -> Self {
        let _watchdog = Watchdog::over(child.id());
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        Self { code: code(status), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }

    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.text().lines().map(line).collect()
    }
}

/// A command at work.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout: Some(stdout) }
    }

    /// The sidecar this command has started for itself.
    pub(crate) fn sidecar(&self) -> u32 {
        sidecar_of(self.child.id())
    }

    pub(crate) fn kill_sidecar(&self) {
        kill_sidecar_of(self.child.id());
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn signal(&self, number: rustix::process::Signal) {
        signal(self.child.id(), number);
    }

    /// The rest of its output and its end.
    pub(crate) fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let _watchdog = Watchdog::over(self.child.id());
        let mut rest = Vec::new();
        if let Some(mut stdout) = self.stdout.take() {
            stdout.read_to_end(&mut rest).unwrap();
        }
        let mut finished = Finished::of(self.child);
        finished.stdout = rest;
        finished
    }
}

/// Kills the sidecar that this command has started.
pub(crate) fn kill_sidecar_of(pid: u32) {
    signal(sidecar_of(pid), rustix::process::Signal::KILL);
}

fn sidecar_of(pid: u32) -> u32 {
    // Whichever of its threads has started it is the parent.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let children =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
    let children: String = children.collect();
    children.split_whitespace().next().expect("it started the sidecar").parse().unwrap()
}

fn signal(pid: u32, number: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    // One that has ended meanwhile is what was wanted.
    let _ = rustix::process::kill_process(pid, number);
}

fn code(status: ExitStatus) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| -signal))
}

/// Waits until the condition holds; false when it never did.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(condition), "waited {} s in vain: {what}", DEADLINE.as_secs());
}

/// Says why a test can't run here.
pub(crate) fn skip(test: &str, reason: &str) {
    if let Some(path) = std::env::var_os("AGENTOS_TEST_SKIPS") {
        // Written at once, so that the lines of tests that run beside each other don't mix.
        let line = format!("{}\n", serde_json::json!({ "test": test, "reason": reason }));
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// A word nobody could have guessed.
pub(crate) fn random_word() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("w{:016x}", RandomState::new().hash_one(std::process::id()))
}
