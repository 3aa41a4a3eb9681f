//! A root to work in, calls in one line each, and what some tests need of the machine.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::filesystem::{
    DirEntry, FileFailure, FileRequest, FileResponse, FileType, Stat, WriteTicket,
};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::filesystem::Root;
use crate::filesystem::calls::{FileSystem, Outcome};
use crate::filesystem::progress::Progress;

/// A VM's files, with the place where the test sees them from outside.
pub(super) struct Vm {
    pub(super) files: FileSystem,
    outside: PathBuf,
    /// Parent of the root: whatever escapes would land here.
    _dir: Option<TempDir>,
}

impl Vm {
    pub(super) fn new() -> Self {
        Self::below(tempfile::tempdir().unwrap())
    }

    /// For trees that take a disk long to make.
    pub(super) fn in_memory() -> Self {
        Self::below(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn below(dir: TempDir) -> Self {
        let outside = dir.path().join("root");
        std::fs::create_dir(&outside).unwrap();
        Self { files: files_below(&outside), outside, _dir: Some(dir) }
    }

    /// With the root looked up again, for what was mounted over it.
    pub(super) fn reopened(self) -> Self {
        Self { files: files_below(&self.outside), ..self }
    }

    /// The machine itself as the VM, for what a plain directory hasn't got.
    pub(super) fn of_machine() -> Self {
        Self { files: files_below(Path::new("/")), outside: PathBuf::from("/"), _dir: None }
    }

    pub(super) fn root(&self) -> Root {
        root_at(&self.outside)
    }

    /// The path outside of a path inside.
    pub(super) fn outside(&self, path: &str) -> PathBuf {
        self.outside.join(path.trim_start_matches('/'))
    }

    /// A path in the directory that holds the root.
    pub(super) fn beyond(&self, name: &str) -> PathBuf {
        self.outside.parent().unwrap().join(name)
    }

    pub(super) fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.outside(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(super) fn link(&self, target: &str, path: &str) {
        std::os::unix::fs::symlink(target, self.outside(path)).unwrap();
    }

    pub(super) fn content(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.outside(path)).unwrap()
    }

    /// All names below the root, sorted: shows leftovers.
    pub(super) fn tree(&self) -> Vec<String> {
        tree(&self.outside)
    }

    pub(super) fn call(&self, request: FileRequest) -> Result<Outcome, FileFailure> {
        self.files.handle(&request, &Progress::default())
    }

    fn done(&self, request: FileRequest) -> Result<(), FileFailure> {
        let outcome = self.call(request)?;
        assert_eq!(outcome.response, FileResponse::Done);
        Ok(())
    }

    /// The content, however it comes.
    pub(super) fn read(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>, FileFailure> {
        let outcome = self.call(FileRequest::Read { path: bytes(path) })?;
        Ok(match (outcome.response, outcome.descriptor) {
            (FileResponse::Content(content), None) => content.into_vec(),
            (FileResponse::Stream { .. }, Some(descriptor)) => read_to_end(descriptor),
            other => panic!("a read answered {other:?}"),
        })
    }

    pub(super) fn write(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Result<(), FileFailure> {
        self.done(FileRequest::Write { path: bytes(path), content: bytes(content) })
    }

    pub(super) fn open_write(&self, path: &str) -> Result<(WriteTicket, OwnedFd), FileFailure> {
        let outcome = self.call(FileRequest::OpenWrite { path: bytes(path) })?;
        match (outcome.response, outcome.descriptor) {
            (FileResponse::WriteOpened { ticket }, Some(descriptor)) => Ok((ticket, descriptor)),
            other => panic!("an open answered {other:?}"),
        }
    }

    pub(super) fn commit(&self, ticket: WriteTicket) -> Result<(), FileFailure> {
        self.done(FileRequest::CommitWrite { ticket })
    }

    pub(super) fn abort(&self, ticket: WriteTicket) -> Result<(), FileFailure> {
        self.done(FileRequest::AbortWrite { ticket })
    }

    pub(super) fn mkdir(&self, path: &str, recursive: bool) -> Result<(), FileFailure> {
        self.done(FileRequest::Mkdir { path: bytes(path), recursive })
    }

    pub(super) fn readdir(&self, path: &str) -> Result<Vec<String>, FileFailure> {
        match self.call(FileRequest::ReadDir { path: bytes(path) })?.response {
            FileResponse::Names(names) => Ok(names.iter().map(|name| text(name)).collect()),
            other => panic!("a listing answered {other:?}"),
        }
    }

    pub(super) fn entries(
        &self,
        path: &str,
        max_depth: Option<u32>,
        exclude: &[&str],
    ) -> Result<Vec<DirEntry>, FileFailure> {
        let exclude = exclude.iter().map(bytes).collect();
        match self.call(FileRequest::ReadDirRecursive { path: bytes(path), max_depth, exclude })?.response {
            FileResponse::Entries(entries) => Ok(entries),
            other => panic!("a listing answered {other:?}"),
        }
    }

    /// Paths alone, `path/` for directories and `path@` for links.
    pub(super) fn list(&self, path: &str, max_depth: Option<u32>, exclude: &[&str]) -> Vec<String> {
        let mark = |file_type| match file_type {
            FileType::File => "",
            FileType::Directory => "/",
            FileType::Symlink => "@",
            FileType::Other => "?",
        };
        let entries = self.entries(path, max_depth, exclude).unwrap();
        entries.iter().map(|entry| text(&entry.path) + mark(entry.file_type)).collect()
    }

    pub(super) fn stat(&self, path: &str) -> Result<Stat, FileFailure> {
        match self.call(FileRequest::Stat { path: bytes(path) })?.response {
            FileResponse::Stat(stat) => Ok(stat),
            other => panic!("a stat answered {other:?}"),
        }
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        match self.call(FileRequest::Exists { path: bytes(path) }).unwrap().response {
            FileResponse::Exists(exists) => exists,
            other => panic!("exists answered {other:?}"),
        }
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), FileFailure> {
        self.done(FileRequest::Rename { from: bytes(from), to: bytes(to) })
    }

    pub(super) fn delete(&self, path: &str, recursive: bool) -> Result<(), FileFailure> {
        self.done(FileRequest::Delete { path: bytes(path), recursive })
    }
}

pub(super) fn bytes(value: impl AsRef<[u8]>) -> Bytes {
    Bytes::from(value.as_ref().to_vec())
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

pub(super) fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(Result::unwrap) {
            found.push(entry.path().strip_prefix(dir).unwrap().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// What the call failed with.
#[track_caller]
pub(super) fn errno<T: std::fmt::Debug>(result: Result<T, FileFailure>) -> Errno {
    match result {
        Ok(value) => panic!("the call should have failed and answered {value:?}"),
        Err(failure) => Errno::from_raw_os_error(failure.errno),
    }
}

pub(super) fn read_to_end(descriptor: OwnedFd) -> Vec<u8> {
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(descriptor), &mut content).unwrap();
    content
}

pub(super) fn files_below(dir: &Path) -> FileSystem {
    FileSystem::new(root_at(dir), None)
}

pub(super) fn root_at(dir: &Path) -> Root {
    Root::new(open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap())
}

/// Records that a test can't run here. Its thread has its full name, unless all tests run on one.
pub(super) fn skip(test: &str, reason: &str) {
    let Some(file) = std::env::var_os("AGENTOS_TEST_SKIPS") else { return };
    let thread = std::thread::current();
    let test = thread.name().filter(|name| name.ends_with(test)).unwrap_or(test);
    let line = format!("{{\"test\":\"{test}\",\"reason\":\"{reason}\"}}\n");
    let mut file = std::fs::File::options().append(true).create(true).open(file).unwrap();
    std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
}

/// A tmpfs that is mounted nowhere, or nothing where one may not mount.
pub(super) fn tiny_tmpfs(test: &str, size: &str, inodes: &str) -> Option<OwnedFd> {
    let made = (|| {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "size", size)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "nr_inodes", inodes)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    })();
    match made {
        Ok(mount) => Some(mount),
        Err(Errno::PERM) => {
            skip(test, "mounting a tmpfs takes CAP_SYS_ADMIN");
            None
        }
        Err(errno) => panic!("no tmpfs: {errno}"),
    }
}

/// A tmpfs mounted over a directory, for as long as this lives.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn over(test: &str, dir: &Path, flags: MountFlags) -> Option<Self> {
        match rustix::mount::mount("tmpfs", dir, "tmpfs", flags, None::<&std::ffi::CStr>) {
            Ok(()) => Some(Self(dir.to_owned())),
            Err(Errno::PERM) => {
                skip(test, "mounting takes CAP_SYS_ADMIN");
                None
            }
            Err(errno) => panic!("no mount: {errno}"),
        }
    }

    /// A file or directory shown at another place.
    pub(super) fn bind(test: &str, source: &Path, target: &Path) -> Option<Self> {
        match rustix::mount::mount_bind(source, target) {
            Ok(()) => Some(Self(target.to_owned())),
            Err(Errno::PERM) => {
                skip(test, "mounting takes CAP_SYS_ADMIN");
                None
            }
            Err(errno) => panic!("no mount: {errno}"),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

/// Two directories of this machine on different file systems, both writable to anybody.
pub(super) fn two_file_systems(test: &str) -> Option<(TempDir, TempDir)> {
    let one = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir_in("/dev/shm").ok()?;
    let dev = |dir: &TempDir| std::os::unix::fs::MetadataExt::dev(&dir.path().metadata().unwrap());
    if dev(&one) == dev(&other) {
        skip(test, "the directory for temporary files and /dev/shm are one file system");
        return None;
    }
    Some((one, other))
}

pub(super) fn make_fifo(path: &Path) {
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, path, fifo, Mode::from_raw_mode(0o644), 0).unwrap();
}

/// A chain of directories named `d`, far deeper than a path can name.
pub(super) fn make_deep(top: &Path, levels: usize) {
    std::fs::create_dir(top).unwrap();
    let mut dir: OwnedFd = std::fs::File::open(top).unwrap().into();
    let name = CString::new("d").unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).unwrap();
        dir =
            openat(&dir, &name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    let file =
        openat(&dir, "f", OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o644));
    drop(file.unwrap());
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
