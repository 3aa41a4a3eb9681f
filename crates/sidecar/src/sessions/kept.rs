//! What an agent keeps of its session, kept on the host: so that the agent itself can go on when its VM is gone.
//!
//! ```text
//! turn ends ─► tar in the VM, as the VM's user ─► $AGENTOS_HOME/sessions/ID/agent.tar ─► tar in another VM
//! ```
//! The archive is bytes to the host: it is made in a VM and unpacked in a VM, by that VM's user, and no name in it ever
//! becomes one of the host. It is bounded, written aside and renamed. Whatever a guest has put into it, only what the
//! agent's data names is unpacked. Beside it stands the number of the last event that it knows of. The directory is locked while its session
//! lives, so that no two of them write into it. One in which nothing is kept goes with its session.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentos_agents::{Session, SessionId};
use agentos_proto::v1::ErrorKind;
use agentos_vm::{Exit, Process, ProcessSpec, Stdin, Vm};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::restore::live;
use super::{SessionHost, blocking};
use crate::errors::Failure;
use crate::socket::LockFile;

/// What is kept of one session at most: long conversations have a few megabytes, databases of agents some more.
const MAX_ARCHIVE_BYTES: usize = 64 << 20;
/// A guest can draw this out; its session is kept as it was before then.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a session that has ended may take to be undone, and how often that is looked at.
const UNDO_DEADLINE: Duration = Duration::from_secs(10);
const UNDO_PAUSE: Duration = Duration::from_millis(20);
/// What is kept of a complaint.
const MAX_COMPLAINT_BYTES: usize = 1024;

/// How often a copy is made whose database has moved meanwhile.
const ATTEMPTS: usize = 3;
/// What the script below ends with where a database has moved.
const MOVED: i32 = 75;

/// Archives what there is of these paths; one that is not there is none of its errors. They are named without the slash
/// that tar would complain about.
///
/// A database of SQLite (`X` with its log, `X-wal`) grows by its log alone, so that the two can be read one after the other
/// but for the moment when it moves the log into the database: then half of it is of before and half of after.
const PACK: &str = r#"
cd / || exit
n=$#
while [ "$n" -gt 0 ]; do
    p=${1#/}; shift; n=$((n - 1))
    [ -e "$p" ] && set -- "$@" "$p"
done
[ "$#" -eq 0 ] && exit
look() {
    seen=
    for p; do
        if [ -e "$p-wal" ]; then seen="$seen $(stat -c '%n %i %s %y %z' -- "$p" 2>&1)"; fi
    done
}
look "$@"
before=$seen
tar -cf - -- "$@"
code=$?
look "$@"
[ "$seen" = "$before" ] || exit 75
exit "$code"
"#;

/// The directory of one session on the host.
#[derive(Debug)]
pub(crate) struct KeptFiles {
    directory: PathBuf,
    /// There until the end.
    lock: Option<LockFile>,
}

/// An agent's own files, from a former VM.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) bytes: Bytes,
    /// The number of the last event that they know of.
    pub(super) through: u64,
}

impl KeptFiles {
    /// Takes a session's directory, making it where there is none. One that stays taken is a session that lives, in this
    /// sidecar or in another one; one that has just ended may still be undone, which is waited for.
    pub(super) async fn take(sessions: &SessionHost, id: &SessionId) -> Result<Self, Failure> {
        let directory = sessions.session_dir(id.as_str())?;
        let deadline = Instant::now() + UNDO_DEADLINE;
        loop {
            let path = directory.clone();
            let taken = blocking(move || {
                let failed = |error: io::Error| failure(&path, &error);
                DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
                match LockFile::try_take(&path.join("lock")) {
                    // Its former holder has just removed it, empty.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(failed(error)),
                    Ok(lock) => Ok(lock.map(|lock| Self { directory: path, lock: Some(lock) })),
                }
            });
            match taken.await? {
                Some(kept) => return Ok(kept),
                None if Instant::now() >= deadline => return Err(live(id.as_str())),
                None => sleep(UNDO_PAUSE).await,
            }
        }
    }

    /// What was kept, if anything was.
    pub(super) async fn archive(&self) -> Result<Option<Archive>, Failure> {
        let directory = self.directory.clone();
        blocking(move || {
            let path = directory.join("agent.tar");
            let kept = match fs::read(&path) {
                Ok(kept) => kept,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failure(&path, &error)),
            };
            // The number stands before the archive, so that the two are one file.
            let Some((through, archive)) = kept.split_first_chunk::<8>() else { return Ok(None) };
            let bytes = Bytes::copy_from_slice(archive);
            Ok(Some(Archive { bytes, through: u64::from_le_bytes(*through) }))
        })
        .await
    }

    async fn write(&self, archive: Vec<u8>, through: u64) -> Result<(), Failure> {
        let directory = self.directory.clone();
        blocking(move || {
            let aside = directory.join("agent.tar.new");
            let write = || {
                let mut private = OpenOptions::new();
                private.write(true).create(true).truncate(true).mode(0o600);
                let mut file = private.open(&aside)?;
                file.write_all(&through.to_le_bytes())?;
                file.write_all(&archive)?;
                fs::rename(&aside, directory.join("agent.tar"))
            };
            write().map_err(|error| failure(&aside, &error))
        })
        .await
    }

    /// Keeps the agent's files after every turn, until the session is over.
    pub(super) async fn follow(&self, vm: &Vm, session: &Session, paths: &[String]) {
        let mut turns = session.turns();
        let (mut known, mut complained) = (0, false);
        while !paths.is_empty() {
            tokio::select! {
                changed = turns.changed() => if changed.is_err() { return },
                () = session.closed() => {}
            }
            let through = *turns.borrow_and_update();
            let over = session.fate().is_some();
            if through > known {
                match self.keep(vm, paths, through).await {
                    Ok(()) => known = through,
                    // A VM that goes with its sessions has no time for this.
                    Err(error) if over || complained => {
                        tracing::debug!(session = %session.id(), reason = error.message(), "not kept");
                    }
                    Err(error) => {
                        complained = true;
                        tracing::warn!(session = %session.id(), reason = error.message(), "what an agent keeps is not kept");
                    }
                }
            }
            if over {
                return;
            }
        }
        session.closed().await;
    }

    async fn keep(&self, vm: &Vm, paths: &[String], through: u64) -> Result<(), Failure> {
        for _ in 0..ATTEMPTS {
            match pack(vm, paths).await? {
                Some(archive) if archive.is_empty() => return Ok(()),
                Some(archive) => return self.write(archive, through).await,
                None => {}
            }
        }
        let message = "the agent's database moved whenever it was read";
        Err(Failure::new(ErrorKind::VmFailed, "", message))
    }
}

/// The agent's files as they are; `None` where a database has moved meanwhile.
async fn pack(vm: &Vm, paths: &[String]) -> Result<Option<Vec<u8>>, Failure> {
    let script = ["/bin/sh", "-c", PACK, "sh"].map(str::to_owned);
    let argv = script.into_iter().chain(paths.iter().cloned()).map(String::into_bytes).collect();
    let process = start(vm, argv, Stdin::Null).await?;
    let mut reader = process.stdout().from_offset(0);
    let mut archive = Vec::new();
    while let Some(chunk) = reader.next().await {
        archive.extend_from_slice(&chunk.data);
        if archive.len() > MAX_ARCHIVE_BYTES {
            end(&process).await;
            let message = format!("the agent keeps more than {MAX_ARCHIVE_BYTES} bytes");
            return Err(Failure::new(ErrorKind::NoSpace, "", message));
        }
    }
    // 1: a file has changed while it was read; what came of that is better than what was kept before.
    let code = succeeded(&process, &[0, 1, MOVED]).await?;
    Ok((code != MOVED).then_some(archive))
}

impl Drop for KeptFiles {
    fn drop(&mut self) {
        // The lock's own file is the last one in it.
        self.lock = None;
        match fs::remove_dir(&self.directory) {
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) =>
            {
                tracing::debug!(directory = %self.directory.display(), %error, "an empty directory stays");
            }
            _ => {}
        }
    }
}

impl Archive {
    /// Unpacks the agent's files where they were, and nothing else: the archive was made by a guest. True where there
    /// was something. What is there and can't be unpacked is an error: half of its memory would be worse than none.
    /// `running` is what works at it, for whoever cuts this off.
    pub(super) async fn unpack(
        &self,
        vm: &Vm,
        paths: &[String],
        running: &mut Option<Process>,
    ) -> Result<bool, Failure> {
        let mut unpacked = false;
        for path in paths {
            // Not every one of them needs to be in it.
            if let Err(error) = self.tar(vm, "-tf", path, running).await {
                tracing::debug!(path, reason = error.message(), "nothing is unpacked here");
                continue;
            }
            self.tar(vm, "-xf", path, running).await?;
            unpacked = true;
        }
        Ok(unpacked)
    }

    async fn tar(
        &self,
        vm: &Vm,
        mode: &str,
        path: &str,
        running: &mut Option<Process>,
    ) -> Result<(), Failure> {
        let member = path.trim_start_matches('/');
        let argv = ["tar", mode, "-", "-C", "/", "--", member].map(|arg| arg.as_bytes().to_vec()).into();
        let process = start(vm, argv, Stdin::Bytes(self.bytes.clone())).await?;
        let ended = succeeded(running.insert(process), &[0]).await;
        *running = None;
        ended.map(drop)
    }
}

async fn start(vm: &Vm, argv: Vec<Vec<u8>>, stdin: Stdin) -> Result<Process, Failure> {
    let spec =
        ProcessSpec { argv, stdin, timeout: Some(DEADLINE), supervised: true, ..ProcessSpec::default() };
    Ok(vm.spawn(spec).await?)
}

async fn end(process: &Process) {
    if let Err(error) = process.kill_supervised().await {
        tracing::debug!(pid = process.pid(), %error, "a copy of an agent's files can't be ended");
    }
}

async fn succeeded(process: &Process, codes: &[i32]) -> Result<i32, Failure> {
    let mut reader = process.stderr().from_offset(0);
    let mut complaint = Vec::new();
    while let Some(chunk) = reader.next().await {
        let room = MAX_COMPLAINT_BYTES.saturating_sub(complaint.len());
        complaint.extend(chunk.data.iter().take(room));
    }
    match process.wait().await {
        Exit::Exited(code) if codes.contains(&code) => Ok(code),
        exit => {
            let message =
                format!("tar ended with {}: {}", exit.code(), String::from_utf8_lossy(&complaint).trim());
            Err(Failure::new(ErrorKind::VmFailed, "tar", message))
        }
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    let message = format!("{}: {error}", path.display());
    match error.raw_os_error() {
        Some(errno) => Failure::system(errno, path.to_string_lossy(), message),
        None => Failure::new(ErrorKind::Internal, path.to_string_lossy(), message),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    /// What is packed of these files of a directory, where `meanwhile` is run in it just before tar reads them.
    fn packed(directory: &Path, files: &[&str], meanwhile: &str) -> Output {
        let script =
            format!("tar() {{ (cd {} && {meanwhile}); command tar \"$@\"; }}\n{PACK}", directory.display());
        let mut sh = Command::new("/bin/sh");
        sh.args(["-c", &script, "sh"]).args(files.iter().map(|name| directory.join(name)));
        sh.output().unwrap()
    }

    #[test]
    fn a_copy_in_which_a_database_moved_is_told_apart_and_one_in_which_its_log_grew_is_not() {
        const FILES: &[&str] = &["a.db", "a.db-wal", "missing"];
        for (meanwhile, code) in [
            ("true", 0),
            ("printf more >> a.db-wal", 0),
            ("printf more >> other", 0),
            // The log is moved; the last connection ends and takes it along; another database is put in its place.
            ("printf more >> a.db; : > a.db-wal", MOVED),
            ("cat a.db-wal > a.db; rm a.db-wal", MOVED),
            ("cp a.db b.db; mv b.db a.db", MOVED),
        ] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("a.db"), "pages").unwrap();
            fs::write(directory.path().join("a.db-wal"), "log").unwrap();
            let output = packed(directory.path(), FILES, meanwhile);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{meanwhile}: {complaint}");
            assert!(output.stdout.windows(5).any(|bytes| bytes == b"pages") || code == MOVED, "{meanwhile}");
        }
        let plain = tempfile::tempdir().unwrap();
        fs::write(plain.path().join("log.jsonl"), "line").unwrap();
        let grown = packed(plain.path(), &["log.jsonl"], "printf more >> log.jsonl");
        assert_eq!(grown.status.code(), Some(0), "what only grows can be copied at any time");
        let nothing = packed(plain.path(), &["missing"], "true");
        assert_eq!((nothing.status.code(), nothing.stdout.len()), (Some(0), 0));
    }
}
