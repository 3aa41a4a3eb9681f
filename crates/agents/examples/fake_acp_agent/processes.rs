//! Processes: one that outlives the agent, and an agent that doesn't go when it is asked to.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::script::size;

/// Set in an agent that has been started again with its signals ignored.
const IGNORING: &str = "FAKE_ACP_AGENT_IGNORES_SIGNALS";

/// Starts this program again with SIGTERM, SIGINT and SIGHUP ignored, which a shell can do and safe Rust can't.
pub(crate) fn ignore_signals() -> Result<(), String> {
    if std::env::var_os(IGNORING).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let error = Command::new("/bin/sh")
        .args(["-c", "trap '' TERM INT HUP; exec \"$0\" \"$@\""])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(IGNORING, "1")
        .exec();
    Err(format!("sh: {error}"))
}

/// Starts a process that belongs to nobody: its parent is gone, its session is its own. Returns its pid.
pub(crate) fn daemon(seconds: u64, hold: bool) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["--orphan", &seconds.to_string()]).args(hold.then_some("hold"));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(if hold { Stdio::inherit() } else { Stdio::null() });
    let output = command.spawn().and_then(std::process::Child::wait_with_output);
    let output = output.map_err(|error| error.to_string())?;
    let pid = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(pid) } else { Err(format!("no daemon: {pid}")) }
}

/// The process between the agent and its daemon.
pub(crate) fn orphan(seconds: &str, hold: bool) -> Result<(), String> {
    rustix::process::setsid().map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["--sleeper", seconds]).stdin(Stdio::null());
    command.stdout(if hold { Stdio::inherit() } else { Stdio::null() });
    command.spawn().map(drop).map_err(|error| error.to_string())
}

/// The daemon. It says its pid when it is one, to the agent that waits for the end of this stream.
pub(crate) fn sleeper(seconds: &str) -> Result<(), String> {
    rustix::process::setsid().map_err(|error| error.to_string())?;
    eprintln!("{}", std::process::id());
    let nothing = File::options().write(true).open("/dev/null").map_err(|error| error.to_string())?;
    rustix::stdio::dup2_stderr(&nothing).map_err(|error| error.to_string())?;
    std::thread::sleep(Duration::from_secs(size(seconds)?));
    Ok(())
}
