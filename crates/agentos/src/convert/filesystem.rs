//! Files.

use agentos_proto::v1;
use bytes::Bytes;

use super::AnswerError;
use super::error::from_detail;
use crate::bytes_in::{Content, GuestPath, lossy};
use crate::filesystem::{
    BatchReadResult, BatchWriteEntry, BatchWriteResult, DirEntry, FileType, VirtualStat,
};

pub(crate) fn read_request(vm_id: &str, path: GuestPath) -> v1::ReadFileRequest {
    v1::ReadFileRequest { vm_id: vm_id.to_owned(), path: path.into_bytes() }
}

/// The first message names the file and, for small contents, is the only one.
pub(crate) fn write_chunks(
    vm_id: &str,
    path: GuestPath,
    content: Content,
) -> impl Iterator<Item = v1::WriteFileChunk> + Send + 'static {
    let mut head = Some((vm_id.to_owned(), path.into_bytes()));
    super::marked(super::chunks(content.into_bytes())).map(move |(data, last)| {
        let (vm_id, path) = head.take().unwrap_or_default();
        v1::WriteFileChunk { vm_id, path, data, last }
    })
}

pub(crate) fn read_files_request(vm_id: &str, paths: Vec<Bytes>) -> v1::ReadFilesRequest {
    v1::ReadFilesRequest { vm_id: vm_id.to_owned(), paths }
}

pub(crate) fn write_files_chunks(
    vm_id: &str,
    entries: Vec<BatchWriteEntry>,
) -> impl Iterator<Item = v1::WriteFilesChunk> + Send + 'static {
    let mut vm_id = Some(vm_id.to_owned());
    let pieces = entries.into_iter().flat_map(|BatchWriteEntry { path, content }| {
        let mut path = Some(path.into_bytes());
        super::chunks(content.into_bytes()).map(move |data| (path.take(), data))
    });
    super::marked(pieces).map(move |((path, data), last)| {
        let vm_id = vm_id.take().unwrap_or_default();
        v1::WriteFilesChunk { vm_id, path, data, last }
    })
}

/// Puts the files of a batch together from their chunks.
pub(crate) struct ReadCollector {
    results: Vec<BatchReadResult>,
    paths: std::vec::IntoIter<Bytes>,
    current: Option<Vec<u8>>,
}

impl ReadCollector {
    pub(crate) fn new(paths: Vec<Bytes>) -> Self {
        let results = Vec::with_capacity(paths.len());
        Self { results, paths: paths.into_iter(), current: None }
    }

    pub(crate) fn push(&mut self, chunk: v1::ReadFilesChunk) -> Result<(), AnswerError> {
        if usize::try_from(chunk.index) != Ok(self.results.len()) {
            return Err(AnswerError::Range { call: "ReadFiles", field: "index" });
        }
        let content = match self.current.take() {
            None => Vec::from(chunk.data),
            Some(mut content) => {
                content.extend_from_slice(&chunk.data);
                content
            }
        };
        if let Some(error) = chunk.error {
            self.complete(None, Some(error))
        } else if chunk.last {
            self.complete(Some(content), None)
        } else {
            self.current = Some(content);
            Ok(())
        }
    }

    fn complete(
        &mut self,
        content: Option<Vec<u8>>,
        error: Option<v1::ErrorDetail>,
    ) -> Result<(), AnswerError> {
        let path = self.paths.next().ok_or(AnswerError::Range { call: "ReadFiles", field: "index" })?;
        self.results.push(BatchReadResult { path: lossy(&path), content, error: error.map(from_detail) });
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Vec<BatchReadResult>, AnswerError> {
        if self.paths.len() > 0 {
            return Err(AnswerError::Missing { call: "ReadFiles", field: "result for every path" });
        }
        Ok(self.results)
    }
}

pub(crate) fn write_results(
    paths: Vec<String>,
    reply: v1::WriteFilesResponse,
) -> Result<Vec<BatchWriteResult>, AnswerError> {
    if reply.results.len() != paths.len() {
        return Err(AnswerError::Missing { call: "WriteFiles", field: "result for every file" });
    }
    let result = |(path, result): (String, v1::WriteFilesResult)| {
        let error = result.error.map(from_detail);
        BatchWriteResult { path, success: error.is_none(), error }
    };
    Ok(paths.into_iter().zip(reply.results).map(result).collect())
}

pub(crate) fn mkdir_request(vm_id: &str, path: GuestPath, recursive: bool) -> v1::MkdirRequest {
    v1::MkdirRequest { vm_id: vm_id.to_owned(), path: path.into_bytes(), recursive }
}

pub(crate) fn readdir_request(vm_id: &str, path: GuestPath) -> v1::ReaddirRequest {
    v1::ReaddirRequest { vm_id: vm_id.to_owned(), path: path.into_bytes() }
}

pub(crate) fn recursive_request(
    vm_id: &str,
    path: GuestPath,
    max_depth: Option<u32>,
    exclude: Vec<Bytes>,
) -> v1::ReaddirRecursiveRequest {
    v1::ReaddirRecursiveRequest { vm_id: vm_id.to_owned(), path: path.into_bytes(), max_depth, exclude }
}

pub(crate) fn dir_entry(entry: v1::DirEntry) -> DirEntry {
    let file_type = match entry.r#type() {
        v1::FileType::File => FileType::File,
        v1::FileType::Directory => FileType::Directory,
        v1::FileType::Symlink => FileType::Symlink,
        v1::FileType::Other | v1::FileType::Unspecified => FileType::Other,
    };
    DirEntry { path: lossy(&entry.path), file_type, size: entry.size_bytes, raw_path: entry.path }
}

pub(crate) fn stat_request(vm_id: &str, path: GuestPath) -> v1::StatRequest {
    v1::StatRequest { vm_id: vm_id.to_owned(), path: path.into_bytes() }
}

pub(crate) fn stat(reply: v1::StatResponse) -> Result<VirtualStat, AnswerError> {
    const TYPE_MASK: u32 = 0o170_000;
    const DIRECTORY: u32 = 0o040_000;
    const SYMLINK: u32 = 0o120_000;
    const NS_PER_MS: i64 = 1_000_000;
    let stat = reply.stat.ok_or(AnswerError::Missing { call: "Stat", field: "stat" })?;
    Ok(VirtualStat {
        mode: stat.mode,
        size: stat.size_bytes,
        blocks: stat.blocks,
        dev: stat.dev,
        rdev: stat.rdev,
        is_directory: stat.mode & TYPE_MASK == DIRECTORY,
        is_symbolic_link: stat.mode & TYPE_MASK == SYMLINK,
        atime_ms: stat.atime_ns.div_euclid(NS_PER_MS),
        mtime_ms: stat.mtime_ns.div_euclid(NS_PER_MS),
        ctime_ms: stat.ctime_ns.div_euclid(NS_PER_MS),
        birthtime_ms: stat.birthtime_ns.div_euclid(NS_PER_MS),
        ino: stat.ino,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        atime_ns: stat.atime_ns,
        mtime_ns: stat.mtime_ns,
        ctime_ns: stat.ctime_ns,
    })
}

pub(crate) fn exists_request(vm_id: &str, path: GuestPath) -> v1::ExistsRequest {
    v1::ExistsRequest { vm_id: vm_id.to_owned(), path: path.into_bytes() }
}

pub(crate) fn move_request(vm_id: &str, from: GuestPath, to: GuestPath) -> v1::MovePathRequest {
    v1::MovePathRequest { vm_id: vm_id.to_owned(), from: from.into_bytes(), to: to.into_bytes() }
}

pub(crate) fn delete_request(vm_id: &str, path: GuestPath, recursive: bool) -> v1::DeleteRequest {
    v1::DeleteRequest { vm_id: vm_id.to_owned(), path: path.into_bytes(), recursive }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(index: u32, data: &'static [u8], last: bool) -> v1::ReadFilesChunk {
        v1::ReadFilesChunk { index, data: Bytes::from_static(data), last, error: None }
    }

    #[test]
    fn a_batch_is_put_together_in_order_and_one_failure_stops_nothing() {
        let mut collected = ReadCollector::new(["/a", "/b", "/c"].map(Bytes::from).into());
        collected.push(chunk(0, b"he", false)).unwrap();
        collected.push(chunk(0, b"llo", true)).unwrap();
        let error = v1::ErrorDetail {
            kind: v1::ErrorKind::NotFound.into(),
            errno: "ENOENT".into(),
            ..v1::ErrorDetail::default()
        };
        collected.push(v1::ReadFilesChunk { index: 1, error: Some(error), ..Default::default() }).unwrap();
        collected.push(chunk(2, b"", true)).unwrap();
        let results = collected.finish().unwrap();
        assert_eq!(results[0].content.as_deref(), Some(&b"hello"[..]));
        assert_eq!(results[1].error.as_ref().unwrap().errno(), Some("ENOENT"));
        assert_eq!(results[2].content.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_batch_that_skips_or_lacks_a_file_is_refused() {
        let paths = |count| ["/a", "/b"].map(Bytes::from)[..count].to_vec();
        assert!(ReadCollector::new(paths(2)).push(chunk(1, b"", true)).is_err());
        let mut short = ReadCollector::new(paths(2));
        short.push(chunk(0, b"", true)).unwrap();
        assert!(short.finish().is_err());
        let mut long = ReadCollector::new(paths(1));
        long.push(chunk(0, b"", true)).unwrap();
        assert!(long.push(chunk(1, b"", true)).is_err());
    }

    #[test]
    fn the_files_of_a_batch_are_named_once_each_and_the_vm_once() {
        let big = vec![1; super::super::CHUNK_BYTES + 1];
        let entries = vec![BatchWriteEntry::new("/a", big), BatchWriteEntry::new("/b", "")];
        let sent: Vec<_> = write_files_chunks("vm", entries)
            .map(|chunk| (chunk.vm_id, chunk.path.map(|path| lossy(&path)), chunk.data.len(), chunk.last))
            .collect();
        let path = |path: &str| Some(path.to_owned());
        let expected = [("vm", path("/a"), 1 << 20, false), ("", None, 1, false), ("", path("/b"), 0, true)]
            .map(|(vm, path, length, last)| (vm.to_owned(), path, length, last));
        assert_eq!(sent, expected);
    }

    #[test]
    fn names_that_are_not_utf_8_keep_their_bytes() {
        let entry = dir_entry(v1::DirEntry {
            path: Bytes::from_static(b"/d/\xff\xfe"),
            r#type: v1::FileType::File.into(),
            size_bytes: 1,
        });
        assert_eq!(entry.path, "/d/\u{fffd}\u{fffd}");
        assert_eq!(entry.name_bytes(), b"\xff\xfe");
        assert_eq!(entry.path_bytes(), b"/d/\xff\xfe");
    }
}
