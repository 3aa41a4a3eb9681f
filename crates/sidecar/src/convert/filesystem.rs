//! What stat and directory listings show.

use agentos_proto::v1;
use agentos_vm::filesystem::{DirEntry, FileType, Stat};

pub(crate) fn stat(stat: Stat) -> v1::Stat {
    v1::Stat {
        mode: stat.mode,
        size_bytes: stat.size_bytes,
        blocks: stat.blocks,
        dev: stat.dev,
        rdev: stat.rdev,
        ino: stat.ino,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        atime_ns: stat.atime_ns,
        mtime_ns: stat.mtime_ns,
        ctime_ns: stat.ctime_ns,
        birthtime_ns: stat.birthtime_ns,
    }
}

pub(crate) fn dir_entry(entry: DirEntry) -> v1::DirEntry {
    let file_type = match entry.file_type {
        FileType::File => v1::FileType::File,
        FileType::Directory => v1::FileType::Directory,
        FileType::Symlink => v1::FileType::Symlink,
        FileType::Other => v1::FileType::Other,
    };
    v1::DirEntry {
        path: entry.path.into_vec().into(),
        r#type: file_type.into(),
        size_bytes: entry.size_bytes,
    }
}
