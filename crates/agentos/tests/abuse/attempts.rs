//! Making one attempt inside a VM and outside of it, with the same program: the `attempt` example of the linux crate.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentos::{AgentOs, AgentOsOptions, Mount, Process};
use futures_util::StreamExt;

use crate::support::within;
use crate::support::world::World;

/// Where VMs see the program.
pub(crate) const PROBE: &str = "/probe/attempt";

/// A VM, and as whom its processes run.
pub(crate) struct Guest {
    pub(crate) vm: AgentOs,
    pub(crate) user: &'static str,
}

/// Two VMs of the same options: one whose processes run as its plain user, one whose processes run as its root.
pub(crate) async fn guests(world: &World, options: AgentOsOptions) -> [Guest; 2] {
    let plain = Guest { vm: world.vm_with(with_probe(options.clone())).await, user: "plain user" };
    let root = Guest { vm: world.vm_with(with_probe(options.root(true))).await, user: "root" };
    [plain, root]
}

pub(crate) fn with_probe(options: AgentOsOptions) -> AgentOsOptions {
    options.mount("/probe", Mount::host_dir(probe().parent().unwrap()))
}

impl Guest {
    /// What the attempt printed, without the newline.
    pub(crate) async fn attempt(&self, words: &str) -> String {
        self.shell(&format!("{PROBE} {words}")).await.trim_end().to_owned()
    }

    /// The attempts' outcomes, each made by a process of its own.
    pub(crate) async fn attempts<T: AsRef<str>>(&self, all: &[T]) -> Vec<String> {
        let lines: Vec<String> =
            all.iter().map(|words| format!("echo \"$({PROBE} {} 2>&1)\"", words.as_ref())).collect();
        let outcomes = self.shell(&lines.join("\n")).await;
        let outcomes: Vec<String> = outcomes.lines().map(str::to_owned).collect();
        assert_eq!(outcomes.len(), all.len(), "{outcomes:?}");
        outcomes
    }

    /// Standard output of a shell command, whatever its exit code.
    pub(crate) async fn shell(&self, command: &str) -> String {
        within(command, self.vm.exec(command)).await.unwrap().stdout_lossy().into_owned()
    }

    /// Every attempt must come to one of the outcomes, which are separated by `|`.
    pub(crate) async fn check<T: AsRef<str>>(&self, refused: &str, all: &[T]) {
        for (words, outcome) in all.iter().zip(self.attempts(all).await) {
            let words = words.as_ref();
            assert!(refused.split('|').any(|one| one == outcome), "{}: {words}: {outcome}", self.user);
        }
    }

    /// The VM still does its work.
    pub(crate) async fn check_alive(&self) {
        assert_eq!(self.shell("echo alive").await, "alive\n", "{}", self.user);
        self.vm.write_file("/tmp/alive", "alive").await.unwrap();
        assert_eq!(self.vm.read_file("/tmp/alive").await.unwrap(), b"alive", "{}", self.user);
    }
}

/// The control: the same attempt on the host, as whoever runs the tests.
pub(crate) fn outside(words: &str) -> String {
    run(Command::new(probe()).args(words.split_whitespace()))
}

/// A control in namespaces of its own, in which also who isn't root may mount, and where the host sees nothing of it.
pub(crate) fn outside_privately(words: &str) -> String {
    run(Command::new(probe()).arg("--private").args(words.split_whitespace()))
}

/// What the command printed on its last line.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program, as `cargo xtask test` names it, or beside the test's own directory, where cargo builds it.
pub(crate) fn probe() -> PathBuf {
    let built = || {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().parent().unwrap().join("examples/attempt")
    };
    let path = std::env::var_os("AGENTOS_TEST_PROBE").map_or_else(built, PathBuf::from);
    assert!(path.is_file(), "these tests need {path:?}: cargo build -p agentos-linux --example attempt");
    path
}

/// A process in a VM that has taken all there is of something and holds it.
pub(crate) struct Hoard {
    process: Process,
    /// How many there were, and what the next was refused with.
    pub(crate) taken: usize,
    pub(crate) refusal: String,
}

impl Hoard {
    pub(crate) async fn take(vm: &AgentOs, what: &str) -> Self {
        let process = vm.spawn(PROBE, ["all", what]).stdin(agentos::Stdin::Piped).await.unwrap();
        let mut output = process.stdout();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.extend(within("the hoard", StreamExt::next(&mut output)).await.unwrap().unwrap());
        }
        let line = String::from_utf8(line).unwrap();
        let (taken, refusal) = line.trim().split_once(' ').unwrap();
        Self { process, taken: taken.parse().unwrap(), refusal: refusal.to_owned() }
    }

    pub(crate) async fn release(self) {
        self.process.close_stdin().await.unwrap();
        within("the hoard's end", self.process.wait()).await.unwrap();
    }
}

/// A directory of the host beside what VMs see, with a file that nobody inside may read or change.
pub(crate) struct Canary {
    pub(crate) directory: PathBuf,
    pub(crate) file: PathBuf,
}

impl Canary {
    pub(crate) const TEXT: &str = "the host's own secret";

    pub(crate) fn new(world: &World) -> Self {
        let directory = world.host_dir("outside");
        let file = directory.join("canary");
        std::fs::write(&file, Self::TEXT).unwrap();
        Self { directory, file }
    }

    /// The file has its content, and nothing came beside it.
    pub(crate) fn check(&self) {
        assert_eq!(std::fs::read_to_string(&self.file).unwrap(), Self::TEXT);
        assert_eq!(names(&self.directory), ["canary"]);
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Records that a test can't run here.
pub(crate) fn skip(test: &str, reason: &str) {
    let Some(file) = std::env::var_os("AGENTOS_TEST_SKIPS") else { return };
    let line = format!("{{\"test\":\"{test}\",\"reason\":\"{reason}\"}}\n");
    let mut file = std::fs::File::options().append(true).create(true).open(file).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}
