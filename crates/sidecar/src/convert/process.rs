//! Processes: what to start, how it ended, what is listed.

use std::time::Duration;

use agentos_proto::v1::{self, exec_event, exit, stdin};
use agentos_vm::process::{ProcessDriver, ProcessInfo, SpawnedProcess};
use agentos_vm::{ExecEvent, ExecSpec, Exit, ProcessSpec, ShellSpec, Stdin};
use bytes::Bytes;

use crate::errors::Failure;

/// Environment, working directory and timeout as the layer below takes them.
#[derive(Debug, Default)]
struct Options {
    env: Vec<(Vec<u8>, Vec<u8>)>,
    cwd: Option<Vec<u8>>,
    timeout: Option<Duration>,
}

impl From<Option<v1::ProcessOptions>> for Options {
    fn from(options: Option<v1::ProcessOptions>) -> Self {
        let Some(options) = options else { return Self::default() };
        Self {
            env: options.env.into_iter().map(|(name, value)| (name.into_bytes(), value.into())).collect(),
            cwd: (!options.cwd.is_empty()).then(|| options.cwd.into()),
            timeout: options.timeout_ms.map(Duration::from_millis),
        }
    }
}

pub(crate) fn exec_spec(request: v1::ExecRequest) -> ExecSpec {
    let Options { env, cwd, timeout } = request.options.into();
    ExecSpec {
        command: request.command.into(),
        env,
        cwd,
        stdin: request.stdin,
        timeout,
        max_output_bytes: request.max_output_bytes,
        stream_all: request.stream_all,
    }
}

pub(crate) fn process_spec(request: v1::SpawnRequest) -> ProcessSpec {
    let Options { env, cwd, timeout } = request.options.into();
    let stdin = match request.stdin.and_then(|stdin| stdin.kind) {
        Some(stdin::Kind::Bytes(bytes)) => Stdin::Bytes(bytes),
        Some(stdin::Kind::Piped(v1::Piped {})) => Stdin::Piped,
        Some(stdin::Kind::Null(v1::Null {})) | None => Stdin::Null,
    };
    let patience = request.patience_ms.map(Duration::from_millis);
    ProcessSpec { argv: owned(request.argv), env, cwd, stdin, timeout, patience, supervised: false }
}

pub(crate) fn shell_spec(request: v1::OpenShellRequest) -> Result<ShellSpec, Failure> {
    let Options { env, cwd, .. } = request.options.into();
    // A terminal whose size nobody knows has the usual one.
    let size = if request.cols == 0 && request.rows == 0 { (80, 24) } else { (request.cols, request.rows) };
    let (cols, rows) = terminal_size(size.0, size.1)?;
    Ok(ShellSpec { argv: owned(request.argv), env, cwd, cols, rows })
}

/// Terminals count columns and rows in 16 bits.
pub(crate) fn terminal_size(cols: u32, rows: u32) -> Result<(u16, u16), Failure> {
    match (u16::try_from(cols), u16::try_from(rows)) {
        (Ok(cols @ 1..), Ok(rows @ 1..)) => Ok((cols, rows)),
        _ => Err(Failure::invalid(
            format!("{cols}x{rows}"),
            format!("Terminal size must be between 1x1 and 65535x65535: {cols}x{rows}"),
        )),
    }
}

fn owned(list: Vec<Bytes>) -> Vec<Vec<u8>> {
    list.into_iter().map(Vec::from).collect()
}

fn shared(list: Vec<Vec<u8>>) -> Vec<Bytes> {
    list.into_iter().map(Bytes::from).collect()
}

pub(crate) fn exit(exit: &Exit) -> v1::Exit {
    let kind = match exit {
        Exit::Exited(code) => exit::Kind::Exited(*code),
        Exit::Signaled(signal) => exit::Kind::Signaled(*signal),
        Exit::TimedOut => exit::Kind::TimedOut(v1::TimedOut {}),
        Exit::OutOfMemory => exit::Kind::OutOfMemory(v1::OutOfMemory {}),
        Exit::VmGone(reason) => exit::Kind::VmGone(crate::errors::chain(reason)),
        // Kinds this contract has no word for yet show as what a shell would show.
        other => exit::Kind::Exited(other.code()),
    };
    v1::Exit { kind: Some(kind) }
}

pub(crate) fn exec_event(event: ExecEvent, pid: i32) -> v1::ExecEvent {
    let event = match event {
        ExecEvent::Stdout(data) => exec_event::Event::Stdout(data),
        ExecEvent::Stderr(data) => exec_event::Event::Stderr(data),
        ExecEvent::Exited(exited) => exec_event::Event::Exited(v1::ExecExited {
            exit: Some(exit(&exited.exit)),
            stdout_truncated: exited.stdout_truncated,
            stderr_truncated: exited.stderr_truncated,
            pid,
        }),
    };
    v1::ExecEvent { event: Some(event) }
}

pub(crate) fn spawned_process(process: SpawnedProcess) -> v1::SpawnedProcess {
    v1::SpawnedProcess { pid: process.pid, argv: shared(process.argv), exit: process.exit.as_ref().map(exit) }
}

pub(crate) fn process_info(process: ProcessInfo) -> v1::ProcessInfo {
    let driver = match process.driver {
        ProcessDriver::Native => v1::ProcessDriver::Native,
        ProcessDriver::Node => v1::ProcessDriver::Node,
        ProcessDriver::Python => v1::ProcessDriver::Python,
        ProcessDriver::Shell => v1::ProcessDriver::Shell,
    };
    v1::ProcessInfo {
        pid: process.pid,
        ppid: process.ppid,
        pgid: process.pgid,
        sid: process.sid,
        driver: driver.into(),
        argv: shared(process.argv),
        cwd: process.cwd.into(),
        exit: process.exit.as_ref().map(exit),
        start_time_ms: process.start_time_ms,
        exit_time_ms: process.exit_time_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_working_directory_means_the_home() {
        let cwd = |cwd: &'static str| {
            let options = v1::ProcessOptions { cwd: cwd.into(), ..Default::default() };
            exec_spec(v1::ExecRequest { options: Some(options), ..Default::default() }).cwd
        };
        assert_eq!(cwd(""), None);
        assert_eq!(cwd("/tmp"), Some(b"/tmp".to_vec()));
        assert_eq!(exec_spec(v1::ExecRequest::default()).cwd, None);
    }

    #[test]
    fn empty_stdin_is_not_the_same_as_none() {
        let spec = |stdin| exec_spec(v1::ExecRequest { stdin, ..Default::default() });
        assert_eq!(spec(None).stdin, None);
        assert_eq!(spec(Some(Bytes::new())).stdin, Some(Bytes::new()));
    }

    #[test]
    fn bytes_that_are_not_text_pass() {
        let raw = Bytes::from_static(b"\xff\xfe\x00");
        let spec = process_spec(v1::SpawnRequest { argv: vec![raw.clone()], ..Default::default() });
        assert_eq!(spec.argv, [raw.to_vec()]);
        assert!(matches!(spec.stdin, Stdin::Null));
    }

    #[test]
    fn exits_keep_their_kind() {
        let kind = |of: Exit| exit(&of).kind.unwrap();
        assert_eq!(kind(Exit::Exited(3)), exit::Kind::Exited(3));
        assert_eq!(kind(Exit::Signaled(9)), exit::Kind::Signaled(9));
        assert_eq!(kind(Exit::TimedOut), exit::Kind::TimedOut(v1::TimedOut {}));
        assert_eq!(kind(Exit::OutOfMemory), exit::Kind::OutOfMemory(v1::OutOfMemory {}));
        assert!(
            matches!(kind(Exit::VmGone(agentos_vm::GoneReason::Disposed)), exit::Kind::VmGone(why) if !why.is_empty())
        );
    }

    #[test]
    fn a_terminal_has_at_least_one_cell() {
        assert!(terminal_size(0, 24).is_err());
        assert!(terminal_size(80, 65_536).is_err());
        assert_eq!(terminal_size(1, 65_535).unwrap(), (1, 65_535));
        let spec = shell_spec(v1::OpenShellRequest::default()).unwrap();
        assert_eq!((spec.cols, spec.rows), (80, 24));
    }
}
