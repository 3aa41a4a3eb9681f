//! The real sidecar, one per test: in a directory of its own, so that tests run beside each other and beside whatever
//! else runs on the machine.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentos::{AgentOs, AgentOsCreateSidecarOptions, AgentOsOptions, AgentOsSidecar};

/// A sidecar with no other client. It ends when the test's runtime does.
pub(crate) struct World {
    pub(crate) sidecar: AgentOsSidecar,
    directory: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = AgentOsCreateSidecarOptions::default().runtime_dir(directory.path());
        Self::start(directory, options).await
    }

    /// As `new`, with a variable in the sidecar's environment.
    pub(crate) async fn with_env(name: &str, value: &Path) -> Self {
        Self::started_by(&format!("env {name}='{}'", value.display())).await
    }

    /// As `new`, with the sidecar run by another program, whose command line this begins, through a script in the
    /// binary's place.
    pub(crate) async fn started_by(runner: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("agentos");
        let text = format!("#!/bin/sh\nexec {runner} '{}' \"$@\"\n", binary().display());
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let options = AgentOsCreateSidecarOptions::default().runtime_dir(directory.path()).binary(script);
        Self::start(directory, options).await
    }

    async fn start(directory: tempfile::TempDir, options: AgentOsCreateSidecarOptions) -> Self {
        let sidecar = match AgentOs::create_sidecar(options).await {
            Ok(sidecar) => sidecar,
            Err(error) => {
                panic!("these tests need the agentos binary (cargo build -p agentos-cli): {error:?}")
            }
        };
        Self { sidecar, directory }
    }

    pub(crate) fn options(&self) -> AgentOsOptions {
        AgentOsOptions::default().sidecar(&self.sidecar)
    }

    pub(crate) async fn vm(&self) -> AgentOs {
        self.vm_with(self.options()).await
    }

    pub(crate) async fn vm_with(&self, options: AgentOsOptions) -> AgentOs {
        AgentOs::create(options).await.unwrap()
    }

    /// A fresh directory of the host, gone with the world.
    pub(crate) fn host_dir(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// Kills the sidecar, as a crash or a machine without memory would.
    pub(crate) fn kill(&self) {
        let socket_prefix = self.directory.path().display().to_string();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_ours = |pid: &i32| {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            words.get(1).is_some_and(|word| word == "sidecar")
                && words.iter().any(|word| word.starts_with(&socket_prefix))
        };
        let mut ours = pids.filter(is_ours);
        let pid = rustix::process::Pid::from_raw(ours.next().expect("no sidecar is here")).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    pub(crate) fn runtime_dir(&self) -> &Path {
        self.directory.path()
    }

    /// A figure of the sidecar's memory, by its name in /proc.
    pub(crate) fn memory_kib(&self, name: &str) -> u64 {
        memory_kib(sidecar_pid(self.runtime_dir()).as_raw_nonzero().get(), name)
    }
}

/// A line of what the kernel says of a process, by its name. None where the process is gone.
pub(crate) fn status(pid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// A figure of a process's memory, by its name in /proc.
pub(crate) fn memory_kib(pid: i32, name: &str) -> u64 {
    status(pid, name).unwrap().trim_end_matches(" kB").parse().unwrap()
}

/// The binary the SDK would find.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("AGENTOS_SIDECAR").map_or_else(
        || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("agentos"),
        PathBuf::from,
    )
}

/// The process whose command line names a socket in this directory.
pub(crate) fn sidecar_pid(runtime_dir: &Path) -> rustix::process::Pid {
    let socket_prefix = runtime_dir.display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(cmdline) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let names_socket = words.iter().any(|word| word.starts_with(&socket_prefix));
        if words.get(1).is_some_and(|word| word == "sidecar") && names_socket {
            return rustix::process::Pid::from_raw(pid).unwrap();
        }
    }
    panic!("no sidecar has a socket in {socket_prefix}");
}
