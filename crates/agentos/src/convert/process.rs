//! Processes.

use std::time::Duration;

use agentos_proto::v1;
use bytes::Bytes;

use super::AnswerError;
use super::error::RequestError;
use crate::bytes_in::{lossy, os_bytes};
use crate::options::ProcessOptions;
use crate::output::OutputSource;
use crate::process::{Exit, Stdin};
use crate::process_list::{ProcessDriver, ProcessInfo, ProcessStatus, SpawnedProcessInfo};

/// The kernel's own bound on arguments and environment together, three quarters of the largest stack it considers
/// (fs/exec.c). Refused here so that a hundred megabytes do not travel first.
const ARGUMENTS_MAX_BYTES: usize = 6 << 20;

pub(crate) struct ExecWish {
    pub(crate) command: Bytes,
    pub(crate) options: ProcessOptions,
    pub(crate) stdin: Option<Bytes>,
    pub(crate) max_output_bytes: Option<u64>,
    pub(crate) stream_all: bool,
}

pub(crate) fn exec_request(vm_id: &str, wish: ExecWish) -> Result<v1::ExecRequest, RequestError> {
    check_arguments(std::slice::from_ref(&wish.command), &wish.options)?;
    Ok(v1::ExecRequest {
        vm_id: vm_id.to_owned(),
        command: wish.command,
        options: Some(process_options(wish.options)),
        stdin: wish.stdin,
        max_output_bytes: wish.max_output_bytes,
        stream_all: wish.stream_all,
    })
}

/// What the kernel would refuse, told before anything is sent.
pub(crate) fn check_arguments(argv: &[Bytes], options: &ProcessOptions) -> Result<(), RequestError> {
    if argv.iter().any(|argument| argument.contains(&0)) {
        return Err(RequestError::Nul { what: "an argument" });
    }
    let mut bytes: usize = argv.iter().map(|argument| argument.len() + 1).sum();
    for (name, value) in &options.env {
        if name.is_empty() || name.contains('=') {
            return Err(RequestError::VariableName { name: name.clone() });
        }
        if name.contains('\0') || value.as_encoded_bytes().contains(&0) {
            return Err(RequestError::Nul { what: "an environment variable" });
        }
        bytes += name.len() + value.len() + 2;
    }
    if bytes > ARGUMENTS_MAX_BYTES {
        return Err(RequestError::ArgumentsTooLong { bytes, limit: ARGUMENTS_MAX_BYTES });
    }
    Ok(())
}

pub(crate) fn process_options(options: ProcessOptions) -> v1::ProcessOptions {
    let ProcessOptions { env, cwd, timeout } = options;
    v1::ProcessOptions {
        env: env.into_iter().map(|(name, value)| (name, os_bytes(value))).collect(),
        cwd: cwd.map(crate::GuestPath::into_bytes).unwrap_or_default(),
        timeout_ms: timeout.map(super::millis),
    }
}

pub(crate) enum ExecProgress {
    Stdout(Bytes),
    Stderr(Bytes),
    Exited { exit: Exit, truncated: bool, pid: i32 },
}

pub(crate) fn exec_event(event: v1::ExecEvent) -> Result<ExecProgress, AnswerError> {
    let event = event.event.ok_or(AnswerError::Missing { call: "Exec", field: "event" })?;
    Ok(match event {
        v1::exec_event::Event::Stdout(chunk) => ExecProgress::Stdout(chunk),
        v1::exec_event::Event::Stderr(chunk) => ExecProgress::Stderr(chunk),
        v1::exec_event::Event::Exited(exited) => ExecProgress::Exited {
            exit: exit(exited.exit, "Exec")?,
            truncated: exited.stdout_truncated || exited.stderr_truncated,
            pid: exited.pid,
        },
    })
}

pub(crate) fn exit(exit: Option<v1::Exit>, call: &'static str) -> Result<Exit, AnswerError> {
    let kind = exit.and_then(|exit| exit.kind).ok_or(AnswerError::Missing { call, field: "exit" })?;
    Ok(match kind {
        v1::exit::Kind::Exited(code) => Exit::Exited { code },
        v1::exit::Kind::Signaled(signal) => Exit::Signaled { signal },
        v1::exit::Kind::TimedOut(v1::TimedOut {}) => Exit::TimedOut,
        v1::exit::Kind::OutOfMemory(v1::OutOfMemory {}) => Exit::OutOfMemory,
        v1::exit::Kind::VmGone(reason) => Exit::VmGone { reason },
    })
}

pub(crate) fn spawn_request(
    vm_id: &str,
    argv: Vec<Bytes>,
    options: ProcessOptions,
    stdin: Stdin,
    patience: Option<Duration>,
) -> Result<v1::SpawnRequest, RequestError> {
    check_arguments(&argv, &options)?;
    let stdin = match stdin {
        Stdin::Null => v1::stdin::Kind::Null(v1::Null {}),
        Stdin::Bytes(bytes) => v1::stdin::Kind::Bytes(bytes),
        Stdin::Piped => v1::stdin::Kind::Piped(v1::Piped {}),
    };
    Ok(v1::SpawnRequest {
        vm_id: vm_id.to_owned(),
        argv,
        options: Some(process_options(options)),
        stdin: Some(v1::Stdin { kind: Some(stdin) }),
        patience_ms: patience.map(super::millis),
    })
}

pub(crate) fn read_output_request(
    vm_id: &str,
    source: &OutputSource,
    from_offset: u64,
) -> v1::ReadOutputRequest {
    let (pid, stream) = match source {
        OutputSource::Stdout(pid) => (*pid, v1::OutputStreamKind::Stdout),
        OutputSource::Stderr(pid) => (*pid, v1::OutputStreamKind::Stderr),
        // Shells have one stream, read by another call.
        OutputSource::Shell(_) => (0, v1::OutputStreamKind::Unspecified),
    };
    v1::ReadOutputRequest { vm_id: vm_id.to_owned(), pid, stream: stream.into(), from_offset }
}

pub(crate) fn write_stdin_request(vm_id: &str, pid: i32, data: Bytes) -> v1::WriteStdinRequest {
    v1::WriteStdinRequest { vm_id: vm_id.to_owned(), pid, data }
}

pub(crate) fn close_stdin_request(vm_id: &str, pid: i32) -> v1::CloseStdinRequest {
    v1::CloseStdinRequest { vm_id: vm_id.to_owned(), pid }
}

pub(crate) fn wait_request(vm_id: &str, pid: i32) -> v1::WaitProcessRequest {
    v1::WaitProcessRequest { vm_id: vm_id.to_owned(), pid }
}

pub(crate) fn signal_request(vm_id: &str, pid: i32, signal: i32) -> v1::SignalProcessRequest {
    v1::SignalProcessRequest { vm_id: vm_id.to_owned(), pid, signal }
}

pub(crate) fn list_request(vm_id: &str) -> v1::ListProcessesRequest {
    v1::ListProcessesRequest { vm_id: vm_id.to_owned() }
}

pub(crate) fn all_request(vm_id: &str) -> v1::AllProcessesRequest {
    v1::AllProcessesRequest { vm_id: vm_id.to_owned() }
}

/// argv[0] and the rest.
fn command(argv: &[Bytes]) -> (String, Vec<String>) {
    let mut words = argv.iter().map(|word| lossy(word));
    (words.next().unwrap_or_default(), words.collect())
}

pub(crate) fn spawned(process: v1::SpawnedProcess) -> Result<SpawnedProcessInfo, AnswerError> {
    let (command, args) = command(&process.argv);
    let exited = process.exit.map(|ended| exit(Some(ended), "ListProcesses")).transpose()?;
    Ok(SpawnedProcessInfo {
        pid: process.pid,
        command,
        args,
        running: exited.is_none(),
        exit_code: exited.map(|exit| exit.code()),
    })
}

pub(crate) fn info(process: v1::ProcessInfo) -> Result<ProcessInfo, AnswerError> {
    let driver = match process.driver() {
        v1::ProcessDriver::Node => ProcessDriver::Node,
        v1::ProcessDriver::Python => ProcessDriver::Python,
        v1::ProcessDriver::Shell => ProcessDriver::Shell,
        v1::ProcessDriver::Native | v1::ProcessDriver::Unspecified => ProcessDriver::Native,
    };
    let (command, args) = command(&process.argv);
    let exited = process.exit.map(|ended| exit(Some(ended), "AllProcesses")).transpose()?;
    Ok(ProcessInfo {
        pid: process.pid,
        ppid: process.ppid,
        pgid: process.pgid,
        sid: process.sid,
        driver,
        command,
        args,
        cwd: lossy(&process.cwd),
        status: if exited.is_none() { ProcessStatus::Running } else { ProcessStatus::Exited },
        exit_code: exited.map(|exit| exit.code()),
        start_time: process.start_time_ms,
        exit_time: process.exit_time_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(argv: &[Bytes], name: &str, value: &str) -> Result<(), RequestError> {
        let mut options = ProcessOptions::default();
        options.set_env(name, value);
        check_arguments(argv, &options)
    }

    #[test]
    fn a_hundred_megabytes_of_environment_are_refused_before_they_travel() {
        let error = check(&[], "BIG", &"x".repeat(100 << 20)).unwrap_err();
        assert!(error.to_string().starts_with("E2BIG"), "{error}");
    }

    #[test]
    fn what_no_process_can_be_given_is_refused() {
        assert!(matches!(check(&[Bytes::from_static(b"a\0b")], "A", ""), Err(RequestError::Nul { .. })));
        assert!(matches!(check(&[], "A", "a\0b"), Err(RequestError::Nul { .. })));
        assert!(matches!(check(&[], "A=B", ""), Err(RequestError::VariableName { .. })));
        assert!(matches!(check(&[], "", ""), Err(RequestError::VariableName { .. })));
        assert!(check(&[Bytes::from_static(b"ls")], "A", "x=y").is_ok());
    }
}
