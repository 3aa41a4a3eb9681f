//! What agents are told about where they work, as files that their VM can read and nobody in it can change.
//!
//! ```text
//! RUNTIME_DIR/sessions-XXXXXXXX.dir       one per sidecar, locked, gone with it
//! └── UUID/                               one per VM, seen read-only at /etc/agentos
//!     ├── instructions.md                 of the VM's newest session
//!     └── sessions/ID/instructions.md     of each of its sessions, while it lives
//! ```
//! The guest sees a file system that is mounted read-only, so that not even its root can write there; we write on the
//! host, and each file is put in its place whole.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentos_agents::plan::PlanMount;
use agentos_agents::{Session, SessionId};
use agentos_proto::v1::ErrorKind;
use agentos_vm::Vm;

use super::launch::mount_plan;
use super::{SessionDefaults, blocking};
use crate::errors::Failure;
use crate::host::HostedVm;
use crate::leftovers;
use crate::socket::LockFile;
use crate::tools::ToolOffer;

/// Where the VM sees its directory.
const GUEST_DIRECTORY: &str = "/etc/agentos";
const FILE: &str = "instructions.md";

/// What every agent is told about where it runs.
const OS_INSTRUCTIONS: &str = include_str!("instructions.md");

impl HostedVm {
    /// What the agent of a session is told of where it works.
    pub(crate) fn instructions(&self, skip_base: bool, additional: &str) -> String {
        let offer = self.tools.as_ref().map(|tools| tools.desk().offer());
        let tools = offer.map(ToolOffer::instructions).unwrap_or_default();
        text(&self.sessions.defaults, &tools, skip_base, additional)
    }
}

/// The whole text for one session.
fn text(defaults: &SessionDefaults, tools: &str, skip_base: bool, additional: &str) -> String {
    let base = if skip_base { "" } else { OS_INSTRUCTIONS };
    let parts = [base, tools, &defaults.instructions, additional];
    parts.map(str::trim).into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

/// The sidecar's own directory for what its VMs are shown. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    _lock: LockFile,
}

impl Scratch {
    /// Blocks for a moment.
    pub(super) fn make(runtime_dir: &Path) -> Result<Self, Failure> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let name =
            [leftovers::DIRECTORY_PREFIX, id.get(..8).unwrap_or_default(), leftovers::DIRECTORY_SUFFIX]
                .concat();
        let path = runtime_dir.join(name);
        let failed = |error: io::Error| failure(&path, &error);
        let taken = || io::Error::from(io::ErrorKind::AlreadyExists);
        let lock = LockFile::beside(&path).and_then(|lock| lock.ok_or_else(taken)).map_err(failed)?;
        // What a VM is shown is for its guest to read; what another one is shown is none of any guest's business, nor
        // of the host's other users.
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// One VM's directory. Dropped, it is removed; the VM is gone by then.
#[derive(Debug)]
pub(super) struct Instructions {
    path: PathBuf,
    /// Our directory lies in it.
    _scratch: Arc<Scratch>,
}

impl Instructions {
    /// Makes the directory and shows it to the VM.
    pub(super) async fn mount(vm: &Vm, scratch: &Arc<Scratch>) -> Result<Self, Failure> {
        let path = scratch.path.join(uuid::Uuid::new_v4().simple().to_string());
        let instructions = Self { path: path.clone(), _scratch: Arc::clone(scratch) };
        let made = path.clone();
        blocking(move || make_directory(&made).map_err(|error| failure(&made, &error))).await?;
        let mount = PlanMount { host_path: path, guest_path: GUEST_DIRECTORY.to_owned(), read_only: true };
        mount_plan(vm, &mount).await?;
        Ok(instructions)
    }

    /// A directory that no VM sees.
    #[cfg(test)]
    pub(super) fn unmounted(scratch: &Arc<Scratch>) -> Self {
        Self { path: scratch.path.join("vm"), _scratch: Arc::clone(scratch) }
    }

    /// Shows a session's text. One that is over by then shows nothing of its own: whoever ends it has looked for the
    /// file already or looks for it after this.
    pub(super) async fn show(&self, session: &Session, text: String) -> Result<(), Failure> {
        let shown = self.write(session.id(), text).await;
        if session.fate().is_some() {
            self.hide(session.id()).await;
        }
        shown
    }

    /// Writes a session's text, as its own and as the newest.
    async fn write(&self, session: &SessionId, text: String) -> Result<(), Failure> {
        let (newest, own) = (self.path.clone(), self.of(session));
        blocking(move || {
            for directory in [&own, &newest] {
                write(directory, &text).map_err(|error| failure(directory, &error))?;
            }
            Ok(())
        })
        .await
    }

    /// Removes a session's own text.
    pub(super) async fn hide(&self, session: &SessionId) {
        let own = self.of(session);
        // A thread that panicked has removed less, which goes with the VM.
        let _ = tokio::task::spawn_blocking(move || remove(&own)).await;
    }

    pub(super) fn of(&self, session: &SessionId) -> PathBuf {
        self.path.join("sessions").join(session.as_str())
    }
}

impl Drop for Instructions {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %directory.display(), %error, "a directory of instructions stays");
        }
        _ => {}
    }
}

/// For all to read, whatever our umask is: where ids can't be mapped the guest is somebody else.
fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn write(directory: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = directory.parent().filter(|parent| !parent.is_dir()) {
        make_directory(parent)?;
    }
    make_directory(directory)?;
    let written = directory.join(".instructions.md");
    fs::write(&written, text)?;
    fs::set_permissions(&written, Permissions::from_mode(0o644))?;
    fs::rename(&written, directory.join(FILE))
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    let message = format!("writing {}: {error}", path.display());
    match error.raw_os_error() {
        Some(errno) => Failure::system(errno, path.to_string_lossy(), message),
        None => Failure::new(ErrorKind::Internal, path.to_string_lossy(), message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_session_has_its_own_text_and_the_newest_one_is_in_front() {
        let runtime_dir = tempfile::tempdir().unwrap();
        let scratch = Arc::new(Scratch::make(runtime_dir.path()).unwrap());
        let instructions = Instructions::unmounted(&scratch);
        let (first, second) = (SessionId::new(), SessionId::new());
        instructions.write(&first, "knit".to_owned()).await.unwrap();
        instructions.write(&second, "purl".to_owned()).await.unwrap();
        let read = |directory: PathBuf| fs::read_to_string(directory.join(FILE)).unwrap();
        assert_eq!(read(instructions.of(&first)), "knit");
        assert_eq!(read(instructions.of(&second)), "purl");
        assert_eq!(read(instructions.path.clone()), "purl");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&instructions.of(&first)), mode(&instructions.path.join(FILE))), (0o755, 0o644));

        assert_eq!(mode(&scratch.path), 0o700, "one VM's text is not for all users of the host");

        instructions.hide(&first).await;
        assert!(!instructions.of(&first).exists() && instructions.of(&second).exists());
        drop((instructions, scratch));
        assert_eq!(fs::read_dir(runtime_dir.path()).unwrap().count(), 0, "nothing stays behind");
    }

    #[test]
    fn the_text_is_the_base_then_the_tools_then_the_vms_then_the_sessions() {
        let defaults = SessionDefaults { instructions: "Always knit.\n".to_owned(), ..Default::default() };
        let whole = text(&defaults, "", false, " Then purl.");
        assert!(whole.contains("agentOS") && whole.ends_with("\n\nAlways knit.\n\nThen purl."), "{whole}");
        assert_eq!(text(&defaults, "", true, ""), "Always knit.");
        // Who skips the base still wants to be told of the own tools.
        assert_eq!(text(&defaults, "Needles.", true, ""), "Needles.\n\nAlways knit.");
    }
}
