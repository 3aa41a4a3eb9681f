//! The host's side: the same work without a VM, and what memory is used.

use crate::Failure;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Runs a command on the host as the bench does in a VM: output captured, waited for.
pub(crate) fn shell(command: &str) -> Result<f64, Failure> {
    timed(Command::new("sh").args(["-c", command]))
}

/// The same in a fresh bubblewrap sandbox that shows what a VM shows; none where it is not installed or not allowed to
/// work, which is no reason to measure nothing else.
pub(crate) fn bubblewrap(command: &str) -> Option<f64> {
    let program = find_program("bwrap")?;
    let mut sandbox = Command::new(program);
    sandbox.args(["--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr"]);
    for name in ["bin", "lib", "lib64", "sbin"] {
        sandbox.args(["--symlink", &format!("usr/{name}"), &format!("/{name}")]);
    }
    sandbox.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "sh", "-c", command]);
    timed(&mut sandbox).ok()
}

fn timed(command: &mut Command) -> Result<f64, Failure> {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let took = started.elapsed();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}: {}: {}", output.status, stderr.trim()).into());
    }
    Ok(milliseconds(took))
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// Opens as many files as this process may: what it is given may be fewer, for the sake of programs that use `select`.
pub(crate) fn open_files_to_the_most() -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// What the kernel could give to new programs without swapping.
pub(crate) fn available_megabytes() -> Result<f64, Failure> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    Ok(field_kilobytes(&text, "MemAvailable:").ok_or("no MemAvailable in /proc/meminfo")? / 1e3)
}

/// A process's share of the memory it uses, shared pages divided among their users.
pub(crate) fn pss_megabytes(pid: u32) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(field_kilobytes(&text, "Pss:").ok_or("no Pss in smaps_rollup")? / 1e3)
}

/// The kernel counts in KiB; figures are in MB of a million bytes.
fn field_kilobytes(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1.024)
}

/// The process that serves the sidecar of this id: the one that was given it as an argument.
pub(crate) fn sidecar_pid(id: &str) -> Result<u32, Failure> {
    let own = std::process::id();
    let is_sidecar = |pid: &u32| *pid != own && arguments(*pid).iter().any(|argument| argument == id);
    processes()
        .into_iter()
        .find(is_sidecar)
        .ok_or_else(|| format!("no process with the argument {id}").into())
}

fn arguments(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The process-id namespaces in use, as the kernel names them.
pub(crate) fn pid_namespaces() -> BTreeSet<PathBuf> {
    processes().into_iter().filter_map(pid_namespace).collect()
}

fn pid_namespace(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns/pid")).ok()
}

/// The memory of all processes in namespaces that were not there before.
pub(crate) fn pss_megabytes_outside_of(known: &BTreeSet<PathBuf>) -> f64 {
    let new = |pid: &u32| pid_namespace(*pid).is_some_and(|namespace| !known.contains(&namespace));
    // A process may end between being found and being measured.
    processes().into_iter().filter(new).filter_map(|pid| pss_megabytes(pid).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_fields_are_read_as_kilobytes() {
        let text = "MemFree:    1 kB\nMemAvailable:   1000 kB\n";
        assert_eq!(field_kilobytes(text, "MemAvailable:"), Some(1024.0));
        assert_eq!(field_kilobytes(text, "Pss:"), None);
    }

    #[test]
    fn a_failing_command_is_no_sample() {
        assert!(shell("true").is_ok());
        assert!(shell("exit 3").is_err());
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(pss_megabytes(std::process::id()).unwrap() > 0.1);
        assert!(available_megabytes().unwrap() > 1.0);
    }
}
