//! Unpacking an npm tarball: regular files below one directory, and nothing else.
//!
//! The archive was verified before it comes here. It is still taken as what strangers wrote: a path that leaves the
//! directory, a link, a device or more than the bounds below refuses the whole archive.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use crate::registry::Package;

/// The most a package may unpack to; the largest agent known takes 460 MB.
const MAX_UNPACKED_BYTES: u64 = 2 << 30;
/// The most files and directories a package may have.
const MAX_ENTRIES: usize = 200_000;

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive can't be read.
    #[error("reading the archive")]
    Archive(#[source] io::Error),
    /// A file can't be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An entry would be outside of the package.
    #[error("the archive holds a path that leaves the package: {}", path.display())]
    Outside {
        /// The entry's path.
        path: PathBuf,
    },
    /// An entry is neither a file nor a directory.
    #[error("the archive holds a link or a special file: {}", path.display())]
    NotAFile {
        /// The entry's path.
        path: PathBuf,
    },
    /// The archive is larger than any package may be.
    #[error("the archive unpacks to more than {MAX_UNPACKED_BYTES} bytes or {MAX_ENTRIES} entries")]
    TooLarge,
    /// The file that the package is for isn't in it.
    #[error("the archive lacks {entry}")]
    NoEntry {
        /// The file.
        entry: String,
    },
}

impl UnpackError {
    /// Whether the disk or a quota was full.
    pub(super) fn is_no_space(&self) -> bool {
        matches!(self, Self::Write { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Unpacks what a package wants of its gzipped tarball into a directory of its own.
pub(super) fn unpack(tarball: File, into: &Path, package: &Package) -> Result<(), UnpackError> {
    fs::create_dir_all(into).map_err(write_error(into))?;
    let reader = io::BufReader::with_capacity(256 << 10, tarball);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(reader));
    let mut budget = MAX_UNPACKED_BYTES;
    for (number, file) in archive.entries().map_err(UnpackError::Archive)?.enumerate() {
        if number >= MAX_ENTRIES {
            return Err(UnpackError::TooLarge);
        }
        let mut file = file.map_err(UnpackError::Archive)?;
        budget = budget.checked_sub(file.size()).ok_or(UnpackError::TooLarge)?;
        unpack_entry(&mut file, into, &package.only)?;
    }
    if !into.join(&package.entry).is_file() {
        return Err(UnpackError::NoEntry { entry: package.entry.clone() });
    }
    Ok(())
}

fn unpack_entry<R: Read>(
    file: &mut tar::Entry<'_, R>,
    into: &Path,
    only: &[String],
) -> Result<(), UnpackError> {
    let path = file.path().map_err(UnpackError::Archive)?.into_owned();
    let kind = file.header().entry_type();
    if kind == tar::EntryType::XGlobalHeader {
        return Ok(());
    }
    if !kind.is_dir() && !kind.is_file() && !kind.is_contiguous() {
        return Err(UnpackError::NotAFile { path });
    }
    let Some(inner) = inner_path(&path) else { return Err(UnpackError::Outside { path }) };
    let wanted = only.is_empty() || only.iter().any(|kept| inner.starts_with(kept));
    if inner.as_os_str().is_empty() || !wanted {
        return Ok(());
    }
    let target = into.join(inner);
    if kind.is_dir() {
        return fs::create_dir_all(&target).map_err(write_error(&target));
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(write_error(parent))?;
    }
    let executable = file.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(if executable { 0o755 } else { 0o644 });
    let mut out = options.open(&target).map_err(write_error(&target))?;
    copy(file, &mut out, &target)
}

/// Copies with the two sides' errors apart: a broken archive and a full disk have different remedies.
fn copy(from: &mut impl Read, to: &mut File, target: &Path) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::Archive(error)),
        };
        io::Write::write_all(to, &buffer[..count]).map_err(write_error(target))?;
    }
}

/// The path within the package: npm's tarballs have one directory on top, `package` by custom, any name by right.
fn inner_path(path: &Path) -> Option<PathBuf> {
    let mut inner = PathBuf::new();
    let mut components = path.components().filter(|part| *part != Component::CurDir);
    match components.next() {
        None | Some(Component::Normal(_)) => {}
        Some(_) => return None,
    }
    for component in components {
        match component {
            Component::Normal(name) => inner.push(name),
            _ => return None,
        }
    }
    Some(inner)
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Write { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_below_the_top_directory_or_not_at_all() {
        for (path, inner) in [
            ("package/dist/cli.js", Some("dist/cli.js")),
            ("./package/a", Some("a")),
            ("anything/a", Some("a")),
            ("package", Some("")),
            ("package/../../etc/passwd", None),
            ("../package/a", None),
            ("/etc/passwd", None),
            ("package//etc/passwd", Some("etc/passwd")),
        ] {
            assert_eq!(inner_path(Path::new(path)), inner.map(PathBuf::from), "{path}");
        }
    }
}
