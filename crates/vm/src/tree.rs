//! A directory of a VM as a value: what keeps an agent's state while it has no VM.
//!
//! ```text
//! VM ── list, read what has changed ──► Tree ── write ──► another VM
//! ```
//! Regular files alone, with their permissions: links are neither followed nor kept, nor are empty directories. A guest
//! says how much there is, so that a tree is bounded while it is read, and not only afterwards.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use crate::filesystem::{DirEntry, FileError, FileType};
use crate::path::GuestPath;
use crate::vm::Vm;

/// The permission bits that are kept.
const PERMISSIONS: u32 = 0o777;

/// What may be in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeLimits {
    pub files: usize,
    /// Of all contents together.
    pub bytes: u64,
}

/// Files below a directory, in the order of their paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    pub files: Vec<TreeFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// Relative to the tree's directory.
    pub path: Vec<u8>,
    /// Permission bits alone.
    pub mode: u32,
    /// When the file was changed in the VM it was read from, in nanoseconds since the epoch.
    pub mtime_ns: i64,
    pub content: Bytes,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    #[error("there are more than {limit} files")]
    TooManyFiles { limit: usize },
    #[error("files have more than {limit} bytes together")]
    TooManyBytes { limit: u64 },
    #[error(transparent)]
    File(#[from] FileError),
}

impl Vm {
    /// Reads all regular files below a directory to which no link may lead. Contents of `former` are taken over where a
    /// file has the size and the time of change that it had then, so that reading again costs a listing. A file that
    /// goes or becomes something else meanwhile is left out; one that changes meanwhile may be mixed.
    pub async fn read_tree(
        &self,
        path: &[u8],
        limits: TreeLimits,
        former: Option<&Tree>,
    ) -> Result<Tree, TreeError> {
        let base = GuestPath::parse(path).map_err(FileError::from)?;
        let listed = self.readdir_recursive(base.as_bytes(), None, Vec::new()).await;
        let listed = listed.map_err(|error| match error.errno() {
            // More names than a listing holds.
            Some(errno) if errno == Errno::OVERFLOW.raw_os_error() => {
                TreeError::TooManyFiles { limit: limits.files }
            }
            _ => error.into(),
        })?;
        let files = listed.into_iter().filter(|entry| entry.file_type == FileType::File);
        let files: Vec<DirEntry> = files.take(limits.files.saturating_add(1)).collect();
        let mut room = Room { limits, left: limits.bytes };
        room.check(&files)?;
        let former: BTreeMap<&[u8], &TreeFile> =
            former.iter().flat_map(|tree| &tree.files).map(|file| (file.path.as_slice(), file)).collect();
        let mut tree = Tree::default();
        for entry in files {
            let Some(relative) = relative(&base, &entry.path) else { continue };
            let unchanged = former.get(relative).filter(|file| is_unchanged(file, &entry));
            let content = match unchanged {
                Some(file) => room.take(file.content.clone())?,
                None => match self.read_bounded(&entry.path, &mut room).await {
                    Err(TreeError::File(error)) if is_gone(&error) => continue,
                    read => read?,
                },
            };
            let path = relative.to_vec();
            let (mode, mtime_ns) = (entry.mode & PERMISSIONS, entry.mtime_ns);
            tree.files.push(TreeFile { path, mode, mtime_ns, content });
        }
        Ok(tree)
    }

    /// Writes all files of a tree below a directory, which is made with what is missing of it. Each file is replaced
    /// whole or not at all; after an error some of them are written. What is there beside them stays.
    pub async fn write_tree(&self, path: &[u8], tree: &Tree) -> Result<(), TreeError> {
        let base = GuestPath::parse(path).map_err(FileError::from)?;
        self.mkdir(base.as_bytes(), true).await?;
        for file in &tree.files {
            let whole = [base.as_bytes(), b"/", &file.path].concat();
            let target = GuestPath::parse(&whole).map_err(FileError::from)?;
            self.write_file(target.as_bytes(), file.content.clone()).await?;
            self.set_mode(&target, file.mode & PERMISSIONS).await?;
        }
        Ok(())
    }

    async fn read_bounded(&self, path: &[u8], room: &mut Room) -> Result<Bytes, TreeError> {
        let path = GuestPath::parse(path).map_err(FileError::from)?;
        let mut content = self.read_plain(&path).await?;
        let mut parts = BytesMut::new();
        while let Some(part) = content.next().await? {
            parts.extend_from_slice(&room.take(part)?);
        }
        Ok(parts.freeze())
    }
}

/// What a tree may still hold.
struct Room {
    limits: TreeLimits,
    left: u64,
}

impl Room {
    /// Refuses what is known to be too much before anything of it is read.
    fn check(&self, files: &[DirEntry]) -> Result<(), TreeError> {
        if files.len() > self.limits.files {
            return Err(TreeError::TooManyFiles { limit: self.limits.files });
        }
        let bytes = files.iter().fold(0u64, |sum, file| sum.saturating_add(file.size_bytes));
        if bytes > self.left { Err(self.exceeded()) } else { Ok(()) }
    }

    fn take(&mut self, part: Bytes) -> Result<Bytes, TreeError> {
        self.left = self.left.checked_sub(part.len() as u64).ok_or_else(|| self.exceeded())?;
        Ok(part)
    }

    fn exceeded(&self) -> TreeError {
        TreeError::TooManyBytes { limit: self.limits.bytes }
    }
}

/// A listing that names something else is hostile, or the base is not what it was.
fn relative<'a>(base: &GuestPath, path: &'a [u8]) -> Option<&'a [u8]> {
    let prefix = if base.depth() == 0 { b"".as_slice() } else { base.as_bytes() };
    path.strip_prefix(prefix)?.strip_prefix(b"/").filter(|relative| !relative.is_empty())
}

fn is_unchanged(file: &TreeFile, entry: &DirEntry) -> bool {
    file.mtime_ns == entry.mtime_ns && file.content.len() as u64 == entry.size_bytes
}

/// Deleted since it was listed, or something else now.
fn is_gone(error: &FileError) -> bool {
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::INVAL].map(Errno::raw_os_error);
    error.errno().is_some_and(|errno| gone.contains(&errno))
}
