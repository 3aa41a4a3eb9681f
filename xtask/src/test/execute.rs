//! Runs executables one after the other, each with all its threads, and adds up what they report.
//!
//! An executable that outlives its deadline is killed. When a run is over, no process of it may be left: every one is
//! recognised by the run's directory in its environment, and a test suite that leaves sidecars behind has failed.

use super::Selection;
use super::artifacts::Built;
use super::libtest::{self, Report};
use super::sandbox::{Runner, Sandbox};
use super::skips::{self, Allowed};
use crate::Failure;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Far above what any executable needs, far below the patience of a continuous integration service.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How often a run that says nothing shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Sidecars end by themselves when their last client is gone; this is how long they may take.
const AFTERMATH: Duration = Duration::from_secs(10);

/// The package whose examples are documentation. Those of other packages are tools of people at work.
const SDK: &str = "agentos";

/// What a number of tests came to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: Vec<String>,
    pub(crate) skipped: Vec<Skipped>,
}

#[derive(Debug, Clone)]
pub(crate) struct Skipped {
    pub(crate) test: String,
    pub(crate) runner: String,
    pub(crate) reason: String,
    pub(crate) permitted: bool,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed.iter().cloned());
        self.skipped.extend(other.skipped.iter().cloned());
    }

    pub(crate) fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

pub(crate) fn executables(
    sandbox: &Sandbox,
    built: &Built,
    selection: &Selection,
    allowed: &Allowed,
) -> Result<Tally, Failure> {
    let repeats = sandbox.runner == Runner::Unprivileged && rustix::process::geteuid().is_root();
    let mut total = Tally::default();
    for executable in &built.executables {
        if executable.runs_once && repeats {
            continue;
        }
        let mut command = sandbox.command(executable)?;
        command.args(&selection.filter);
        let label = executable.label();
        let finished = watch(&label, &mut command)?;
        let recorded = skips::recorded(&sandbox.skips_file(executable))?;
        let tally = judge(&Judged {
            label: &label,
            runner: sandbox.runner,
            report: &libtest::parse(&finished.output),
            died: finished.died(),
            recorded: &recorded.into_iter().collect::<Vec<_>>(),
            allowed,
        });
        show(&label, &tally, &finished);
        total.add(&tally);
    }
    total.failed.extend(leftovers(sandbox.directory()));
    Ok(total)
}

/// An example of the SDK is documentation that claims to run: it passes when it does.
pub(crate) fn examples(sandbox: &Sandbox, built: &Built, _allowed: &Allowed) -> Result<Tally, Failure> {
    let mut total = Tally::default();
    for example in built.examples.iter().filter(|example| example.package == SDK) {
        let label = format!("example {}", example.label());
        let finished = watch(&label, &mut sandbox.command(example)?)?;
        let mut tally = Tally::default();
        match finished.status {
            Some(status) if status.success() => tally.passed = 1,
            Some(status) => tally.failed.push(format!("{label}: {status}")),
            None => tally.failed.push(format!("{label}: killed after {} s", DEADLINE.as_secs())),
        }
        show(&label, &tally, &finished);
        total.add(&tally);
    }
    total.failed.extend(leftovers(sandbox.directory()));
    Ok(total)
}

/// Doc tests are compiled by rustdoc, so cargo runs them: once, as the caller.
pub(crate) fn doc_tests(sandbox: &Sandbox, _built: &Built, allowed: &Allowed) -> Result<Tally, Failure> {
    let mut command = sandbox.cargo();
    command.args(["test", "--doc", "--workspace"]);
    let finished = watch("doc tests", &mut command)?;
    let report = libtest::parse(&finished.output);
    // A workspace without libraries prints no summary; what counts is how cargo ended.
    let died = finished.died().filter(|_| report.failed == 0);
    let report = Report { summaries: 1, ..report };
    let mut tally = judge(&Judged {
        label: "doc",
        runner: sandbox.runner,
        report: &report,
        died,
        recorded: &[],
        allowed,
    });
    show("doc", &tally, &finished);
    tally.failed.extend(leftovers(sandbox.directory()));
    Ok(tally)
}

/// All that the verdict over one executable rests on.
pub(super) struct Judged<'a> {
    pub(super) label: &'a str,
    pub(super) runner: Runner,
    pub(super) report: &'a Report,
    /// How it ended, when not as libtest ends.
    pub(super) died: Option<String>,
    pub(super) recorded: &'a [(String, String)],
    pub(super) allowed: &'a Allowed,
}

pub(super) fn judge(judged: &Judged<'_>) -> Tally {
    let report = judged.report;
    let full = |test: &str| format!("{}::{test}", judged.label);
    let mut failed: Vec<String> = report.failed_names.iter().map(|name| full(name)).collect();
    for nameless in failed.len()..report.failed {
        failed.push(format!("{}: failed test {nameless}, its name was lost in the output", judged.label));
    }
    match &judged.died {
        Some(how) => failed.push(format!("{}: {how}", judged.label)),
        None if report.summaries == 0 => failed.push(format!("{}: ended without a summary", judged.label)),
        None => {}
    }
    let ignored = report.ignored_names.iter().map(|name| (name.clone(), "#[ignore]".to_owned()));
    // A test that recorded a skip and then failed is a failure, whatever it recorded.
    let recorded = judged.recorded.iter().filter(|(test, _)| !report.failed_names.contains(test)).cloned();
    let skipped: Vec<Skipped> = recorded
        .chain(ignored)
        .map(|(test, reason)| {
            let test = full(&test);
            let permitted = judged.allowed.permits(&test, judged.runner);
            Skipped { test, runner: judged.runner.to_string(), reason, permitted }
        })
        .collect();
    let returned_early = skipped.len() - report.ignored_names.len();
    Tally { passed: report.passed.saturating_sub(returned_early), failed, skipped }
}

pub(super) fn show(label: &str, tally: &Tally, finished: &Finished) {
    let seconds = finished.took.as_secs_f32();
    if !tally.failed.is_empty() {
        println!("{}", finished.output);
    }
    let verdict = if tally.failed.is_empty() { "ok" } else { "FAILED" };
    if tally.passed + tally.failed.len() + tally.skipped.len() > 0 {
        println!("{verdict:<7} {label}: {} in {seconds:.1} s", tally.line());
    }
}

pub(super) struct Finished {
    status: Option<ExitStatus>,
    pub(super) output: String,
    took: Duration,
}

impl Finished {
    /// libtest exits with 0, or with 101 when a test failed; anything else is a death.
    fn died(&self) -> Option<String> {
        self.died_unless(&[0, 101])
    }

    /// How it ended, when not with one of these codes.
    pub(super) fn died_unless(&self, codes: &[i32]) -> Option<String> {
        match self.status {
            None => Some(format!("killed after {} s", DEADLINE.as_secs())),
            Some(status) if status.code().is_some_and(|code| codes.contains(&code)) => None,
            Some(status) => Some(format!("ended with {status}")),
        }
    }
}

/// Runs a command to its end or its deadline, collecting what it and its children print.
pub(super) fn watch(label: &str, command: &mut Command) -> Result<Finished, Failure> {
    let (mut reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let started = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("{label}: {error}"))?;
    // The command keeps copies of the pipe's writing end; the reader would wait for them forever.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let (sender, chunks) = sync_channel::<Vec<u8>>(64);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut output = Vec::new();
    let status = collect(label, &mut child, &chunks, &mut output)?;
    let output = String::from_utf8_lossy(&output).into_owned();
    Ok(Finished { status, output, took: started.elapsed() })
}

/// Gathers output until it ends, or the child ended and its output stayed open for a while: then some grandchild
/// holds it, which the look for leftovers will report.
fn collect(
    label: &str,
    child: &mut Child,
    chunks: &Receiver<Vec<u8>>,
    output: &mut Vec<u8>,
) -> Result<Option<ExitStatus>, Failure> {
    let deadline = Instant::now() + DEADLINE;
    let mut next_heartbeat = Instant::now() + HEARTBEAT;
    let mut exited_at: Option<Instant> = None;
    loop {
        match chunks.recv_timeout(Duration::from_millis(200)) {
            Ok(chunk) => output.extend_from_slice(&chunk),
            Err(RecvTimeoutError::Disconnected) => return Ok(Some(child.wait()?)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        if exited_at.is_none() && child.try_wait()?.is_some() {
            exited_at = Some(now);
        }
        if exited_at.is_some_and(|at| now > at + AFTERMATH) {
            return Ok(child.try_wait()?);
        }
        if now > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        if now > next_heartbeat {
            println!("...     {label}: still running");
            next_heartbeat = now + HEARTBEAT;
        }
    }
}

/// Waits for the processes of a run to be gone, then ends those that are not and names them.
pub(super) fn leftovers(directory: &Path) -> Vec<String> {
    let deadline = Instant::now() + AFTERMATH;
    let mut found = processes_of(directory);
    while !found.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        found = processes_of(directory);
    }
    for (pid, _) in &found {
        if let Some(pid) = Pid::from_raw(*pid) {
            // It may have ended since; then there is nothing left to do.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    found.into_iter().map(|(pid, what)| format!("left behind: process {pid}: {what}")).collect()
}

/// Processes whose environment names the directory of the run.
fn processes_of(directory: &Path) -> Vec<(i32, String)> {
    let needle = directory.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.windows(needle.len()).any(|window| window == needle) {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(report: &Report, died: Option<&str>, recorded: &[(&str, &str)]) -> Tally {
        let recorded: Vec<_> = recorded.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        judge(&Judged {
            label: "vm",
            runner: Runner::Root,
            report,
            died: died.map(str::to_owned),
            recorded: &recorded,
            allowed: &Allowed::default(),
        })
    }

    #[test]
    fn a_recorded_skip_is_not_a_pass() {
        let report = Report { passed: 3, summaries: 1, ..Report::default() };
        let tally = verdict(&report, None, &[("a", "no fuse")]);
        assert_eq!(tally.line(), "2 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skipped[0].test, "vm::a");
        assert!(!tally.skipped[0].permitted);
    }

    #[test]
    fn an_ignored_test_is_a_skip_without_permission() {
        let ignored_names = vec!["a".to_owned()];
        let report = Report { passed: 1, ignored: 1, ignored_names, summaries: 1, ..Report::default() };
        let tally = verdict(&report, None, &[]);
        assert_eq!(tally.line(), "1 passed, 0 failed, 1 skipped");
        assert!(!tally.skipped[0].permitted);
    }

    #[test]
    fn a_test_that_recorded_a_skip_and_failed_is_a_failure() {
        let failed_names = vec!["a".to_owned()];
        let report = Report { passed: 1, failed: 1, failed_names, summaries: 1, ..Report::default() };
        assert_eq!(verdict(&report, None, &[("a", "no fuse")]).line(), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn an_executable_that_died_or_said_nothing_is_a_failure() {
        assert_eq!(verdict(&Report::default(), None, &[]).failed.len(), 1);
        let report = Report { passed: 1, summaries: 1, ..Report::default() };
        assert_eq!(verdict(&report, Some("ended with signal 11"), &[]).failed.len(), 1);
    }

    #[test]
    fn output_and_status_of_a_command_are_collected() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let finished = watch("sh", &mut command).unwrap();
        assert_eq!(finished.output, "out\nerr\n");
        assert_eq!(finished.died().unwrap(), "ended with exit status: 3");
    }

    #[test]
    fn a_process_is_found_by_the_directory_in_its_environment() {
        let directory = std::env::temp_dir().join(format!("agentos-test-none-{}", std::process::id()));
        assert!(processes_of(&directory).is_empty());
        let mut child = Command::new("sleep").arg("60").env("XDG_RUNTIME_DIR", &directory).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut found = processes_of(&directory);
        while found.is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
            found = processes_of(&directory);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, "sleep 60");
    }
}
