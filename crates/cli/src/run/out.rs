//! `--out`: what a run made, copied to a directory of the host.
//!
//! Names and contents come from a VM and may be meant to do harm. Every step below the directory is taken by descriptor
//! and follows no link; a file appears whole or not at all; one that is there already stays as it is unless `--force`
//! says otherwise, and then what the run made is put beside it, so that nothing is lost.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agentos::AgentOs;
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, accessat, fstat, linkat, mkdirat, open,
    openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::run::changes::Changed;
use crate::terminal::harmless_line;

/// A file is held in memory while it is copied.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// `NAME.new`, `NAME.new.2` and so on: more are not tried.
const MAX_BESIDE: u32 = 1000;
const MAX_NAME_BYTES: usize = 255;

/// A directory of the host that can be written.
#[derive(Debug)]
pub(super) struct OutDir {
    path: PathBuf,
    dir: OwnedFd,
    force: bool,
    /// It is the user's home or above it: a hidden file there configures the user's programs.
    holds_dotfiles: bool,
}

/// What became of one file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    Written,
    /// It was there with the same content.
    Same,
    /// It was there with another content; ours is under this name.
    Beside(String),
    /// Not copied, and why.
    Refused(String),
}

impl OutDir {
    /// Makes the directory where it is missing, and refuses now what would fail after the run.
    pub(super) fn prepare(path: &Path, force: bool) -> Result<Self, Failure> {
        let failed = |source| Failure::OutDir { path: path.to_owned(), source };
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(Failure::OutIsFile { path: path.to_owned() });
        }
        std::fs::create_dir_all(path).map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let dir = open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|errno| failed(errno.into()))?;
        let home = std::env::var_os("HOME").map(PathBuf::from).and_then(|home| home.canonicalize().ok());
        let canonical = path.canonicalize().map_err(failed)?;
        let holds_dotfiles = home.is_some_and(|home| home.starts_with(&canonical));
        Ok(Self { path: path.to_owned(), dir, force, holds_dotfiles })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies one file of the VM.
    pub(super) async fn copy(&self, vm: &AgentOs, file: &Changed) -> Put {
        let parts = match safe_parts(&file.name, self.holds_dotfiles) {
            Ok(parts) => parts,
            Err(reason) => return Put::Refused(reason.to_owned()),
        };
        if file.size_bytes > MAX_FILE_BYTES {
            return Put::Refused(format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20));
        }
        use std::os::unix::ffi::OsStrExt;
        let content = match vm.read_file(std::ffi::OsStr::from_bytes(&file.guest_path())).await {
            Ok(content) => content,
            Err(error) => return Put::Refused(error.to_string()),
        };
        self.put(&parts, &content, file.executable).unwrap_or_else(|error| Put::Refused(error.to_string()))
    }

    fn put(&self, parts: &[&str], content: &[u8], executable: bool) -> io::Result<Put> {
        let Some((leaf, parents)) = parts.split_last() else { return Err(Errno::INVAL.into()) };
        let mut dir = rustix::io::fcntl_dupfd_cloexec(&self.dir, 0)?;
        for parent in parents {
            match mkdirat(&dir, *parent, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
            dir = openat(&dir, *parent, flags, Mode::empty())?;
        }
        if same(&dir, leaf, content) {
            return Ok(Put::Same);
        }
        let temporary = write_temporary(&dir, content, executable)?;
        let put = self.name_it(&dir, &temporary, leaf);
        if put.is_err() {
            // The error is what matters; a left temporary file is named after us.
            let _ = unlinkat(&dir, &temporary, AtFlags::empty());
        }
        put
    }

    fn name_it(&self, dir: &OwnedFd, temporary: &str, leaf: &str) -> io::Result<Put> {
        if self.force && !is_directory(dir, leaf) {
            // Replaces a link, never what it leads to.
            renameat(dir, temporary, dir, leaf)?;
            return Ok(Put::Written);
        }
        if rename_new(dir, temporary, leaf)? {
            return Ok(Put::Written);
        }
        for number in 1..=MAX_BESIDE {
            let beside = if number == 1 { format!("{leaf}.new") } else { format!("{leaf}.new.{number}") };
            if rename_new(dir, temporary, &beside)? {
                return Ok(Put::Beside(beside));
            }
        }
        Err(Errno::EXIST.into())
    }
}

/// Renames unless the name is taken; false then.
fn rename_new(dir: &OwnedFd, from: &str, to: &str) -> io::Result<bool> {
    match renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // File systems without that flag have links.
        Err(Errno::INVAL | Errno::NOSYS) => match linkat(dir, from, dir, to, AtFlags::empty()) {
            Ok(()) => {
                unlinkat(dir, from, AtFlags::empty())?;
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        },
        Err(errno) => Err(errno.into()),
    }
}

fn is_directory(dir: &OwnedFd, name: &str) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Whether a regular file of this name has this content already.
fn same(dir: &OwnedFd, name: &str, content: &[u8]) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(dir, name, flags, Mode::empty()) else { return false };
    let regular = fstat(&file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && u64::try_from(stat.st_size).is_ok_and(|size| size == content.len() as u64)
    });
    let mut there = Vec::new();
    regular
        && File::from(file).take(content.len() as u64 + 1).read_to_end(&mut there).is_ok()
        && there == content
}

fn write_temporary(dir: &OwnedFd, content: &[u8], executable: bool) -> io::Result<String> {
    let mode = Mode::from_raw_mode(if executable { 0o777 } else { 0o666 });
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for number in 0..MAX_BESIDE {
        let name = format!(".agentos-out-{}-{number}", std::process::id());
        match openat(dir, &name, flags, mode) {
            Ok(file) => {
                File::from(file).write_all(content).inspect_err(|_| {
                    // The error is what matters.
                    let _ = unlinkat(dir, &name, AtFlags::empty());
                })?;
                return Ok(name);
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EXIST.into())
}

/// The components of a name that may appear on the host, or why it may not.
fn safe_parts(name: &[u8], holds_dotfiles: bool) -> Result<Vec<&str>, &'static str> {
    let name = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8")?;
    if harmless_line(name) != name || name.contains('\r') {
        return Err("its name holds control characters");
    }
    let parts: Vec<&str> = name.split('/').collect();
    if parts.iter().any(|part| part.is_empty() || matches!(*part, "." | ".." | ".git")) {
        return Err("its name is not a plain path");
    }
    if parts.iter().any(|part| part.len() > MAX_NAME_BYTES) {
        return Err("its name is too long");
    }
    if holds_dotfiles && parts.first().is_some_and(|first| first.starts_with('.')) {
        return Err("it would be a hidden file in your home");
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn out(dir: &Path, force: bool) -> OutDir {
        OutDir::prepare(dir, force).unwrap()
    }

    #[test]
    fn new_files_appear_with_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        let out = out(&dir.path().join("made/for/it"), false);
        assert_eq!(out.put(&["a", "b", "c.txt"], b"text", false).unwrap(), Put::Written);
        assert_eq!(out.put(&["run.sh"], b"#!/bin/sh\n", true).unwrap(), Put::Written);
        assert_eq!(std::fs::read(out.path().join("a/b/c.txt")).unwrap(), b"text");
        let mode = std::fs::metadata(out.path().join("run.sh")).unwrap().permissions().mode();
        assert_ne!(mode & 0o100, 0);
    }

    #[test]
    fn what_is_there_stays_and_ours_is_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "mine").unwrap();
        let out = out(dir.path(), false);
        assert_eq!(out.put(&["x"], b"mine", false).unwrap(), Put::Same);
        assert_eq!(out.put(&["x"], b"made", false).unwrap(), Put::Beside("x.new".to_owned()));
        assert_eq!(out.put(&["x"], b"again", false).unwrap(), Put::Beside("x.new.2".to_owned()));
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!([read("x"), read("x.new"), read("x.new.2")], ["mine", "made", "again"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary file is left");
    }

    #[test]
    fn force_replaces_the_file_and_a_link_but_not_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "untouched").unwrap();
        let target = dir.path().join("out");
        let out = out(&target, true);
        symlink(&outside, target.join("x")).unwrap();
        assert_eq!(out.put(&["x"], b"made", false).unwrap(), Put::Written);
        assert_eq!(std::fs::read_to_string(target.join("x")).unwrap(), "made");
        assert_eq!(std::fs::read_to_string(outside).unwrap(), "untouched");
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("sub")).unwrap();
        assert!(out(dir.path(), true).put(&["sub", "x"], b"made", false).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn names_that_lead_elsewhere_or_hide_something_are_refused() {
        for name in
            ["../x", "/x", "a//b", "a/./b", "a/../b", "", "\x1b[2J", "a\nb", ".git/hooks/x", "\u{202e}x"]
        {
            assert!(safe_parts(name.as_bytes(), false).is_err(), "{name:?} was taken");
        }
        assert!(safe_parts(b"\xff", false).is_err());
        assert_eq!(safe_parts(b"a/.b/c d", false), Ok(vec!["a", ".b", "c d"]));
    }

    #[test]
    fn hidden_files_do_not_come_into_the_home() {
        assert!(safe_parts(b".profile", true).is_err());
        assert!(safe_parts(b".ssh/authorized_keys", true).is_err());
        assert!(safe_parts(b"src/.hidden", true).is_ok());
    }

    #[test]
    fn a_file_is_no_directory_to_put_things_in() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(OutDir::prepare(&file, true), Err(Failure::OutIsFile { .. })));
    }
}
