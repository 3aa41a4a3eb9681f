//! Init's answers about files, parsed once.

use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::filesystem::{DirEntry, FileResponse, Stat, WriteTicket};
use agentos_guest_protocol::init::Response;
use bytes::Bytes;

use crate::command::{Answer, ProtocolError};
use crate::path::GuestPath;
use crate::pipe::{self, Kind};

/// What a read gave.
#[derive(Debug)]
pub(crate) enum Opened {
    Content(Bytes),
    Stream { source: Descriptor, size_bytes: u64 },
}

/// Where content comes from or goes to.
#[derive(Debug)]
pub(crate) enum Descriptor {
    RegularFile(OwnedFd),
    Pipe(OwnedFd),
}

pub(crate) fn done(answer: Answer) -> Result<(), ProtocolError> {
    match file(answer)? {
        FileResponse::Done => Ok(()),
        _ => Err(ProtocolError::WrongAnswer("a file request that is done or not")),
    }
}

pub(crate) fn opened(answer: Answer) -> Result<Opened, ProtocolError> {
    match answer.response {
        Response::File(FileResponse::Content(content)) if answer.descriptors.is_empty() => {
            Ok(Opened::Content(Bytes::from(content.into_vec())))
        }
        Response::File(FileResponse::Stream { size_bytes }) => {
            let source = descriptor(answer)?;
            Ok(Opened::Stream { source, size_bytes })
        }
        _ => Err(ProtocolError::WrongAnswer("read")),
    }
}

pub(crate) fn write_opened(answer: Answer) -> Result<(WriteTicket, Descriptor), ProtocolError> {
    match answer.response {
        Response::File(FileResponse::WriteOpened { ticket }) => Ok((ticket, descriptor(answer)?)),
        _ => Err(ProtocolError::WrongAnswer("open for writing")),
    }
}

pub(crate) fn names(answer: Answer) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let FileResponse::Names(names) = file(answer)? else {
        return Err(ProtocolError::WrongAnswer("readdir"));
    };
    names.into_iter().map(|name| check_name(name.into_vec())).collect()
}

/// A name goes on to clients that may make files of it: it must not lead anywhere.
fn check_name(name: Vec<u8>) -> Result<Vec<u8>, ProtocolError> {
    let leads_away = name.is_empty() || name == b"." || name == b"..";
    if leads_away || name.contains(&b'/') || name.contains(&0) {
        return Err(ProtocolError::Name);
    }
    Ok(name)
}

pub(crate) fn entries(answer: Answer) -> Result<Vec<DirEntry>, ProtocolError> {
    let FileResponse::Entries(entries) = file(answer)? else {
        return Err(ProtocolError::WrongAnswer("recursive readdir"));
    };
    let clean = |entry: &DirEntry| is_clean(&entry.path);
    if entries.iter().all(clean) { Ok(entries) } else { Err(ProtocolError::Name) }
}

/// A deep tree has paths longer than a call takes; all else holds for them, too.
fn is_clean(path: &[u8]) -> bool {
    let Some(relative) = path.strip_prefix(b"/") else { return false };
    GuestPath::parse(path).is_ok_and(|clean| clean.as_bytes() == path)
        || !relative.contains(&0)
            && relative.split(|&byte| byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

pub(crate) fn stat(answer: Answer) -> Result<Stat, ProtocolError> {
    match file(answer)? {
        FileResponse::Stat(stat) => Ok(stat),
        _ => Err(ProtocolError::WrongAnswer("stat")),
    }
}

pub(crate) fn exists(answer: Answer) -> Result<bool, ProtocolError> {
    match file(answer)? {
        FileResponse::Exists(exists) => Ok(exists),
        _ => Err(ProtocolError::WrongAnswer("exists")),
    }
}

/// An answer without a descriptor.
fn file(answer: Answer) -> Result<FileResponse, ProtocolError> {
    answer.without_descriptors()?;
    match answer.response {
        Response::File(response) => Ok(response),
        _ => Err(ProtocolError::WrongAnswer("a file request")),
    }
}

fn descriptor(answer: Answer) -> Result<Descriptor, ProtocolError> {
    let descriptor = answer.descriptor()?;
    match pipe::kind(descriptor.as_fd()) {
        Ok(Kind::RegularFile) => Ok(Descriptor::RegularFile(descriptor)),
        Ok(Kind::Pipe) => Ok(Descriptor::Pipe(descriptor)),
        _ => Err(ProtocolError::DescriptorKind("a file's content")),
    }
}

#[cfg(test)]
mod tests {
    use agentos_guest_protocol::filesystem::FileType;

    use super::*;

    fn answer(response: FileResponse, descriptors: Vec<OwnedFd>) -> Answer {
        Answer { response: Response::File(response), descriptors }
    }

    #[test]
    fn names_that_lead_somewhere_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            let listing = FileResponse::Names(vec![b"good".to_vec().into(), bad.to_vec().into()]);
            assert!(names(answer(listing, Vec::new())).is_err(), "{bad:?}");
        }
        for bad in ["a", "/a/../b", "/a//b", "/a/", "/a/\0"] {
            let path = bad.as_bytes().to_vec().into();
            let entry = DirEntry { path, file_type: FileType::File, size_bytes: 0 };
            assert!(entries(answer(FileResponse::Entries(vec![entry]), Vec::new())).is_err(), "{bad:?}");
        }
        let deep = format!("/{}", ["d"; 4000].join("/")).into_bytes().into();
        let entry = DirEntry { path: deep, file_type: FileType::Directory, size_bytes: 0 };
        assert!(entries(answer(FileResponse::Entries(vec![entry]), Vec::new())).is_ok());
    }

    #[test]
    fn descriptors_must_be_there_and_be_files_or_pipes() {
        let stream = || FileResponse::Stream { size_bytes: 1 };
        assert!(opened(answer(stream(), Vec::new())).is_err());
        let (socket, _) = agentos_linux::seqpacket::pair().unwrap();
        assert!(matches!(opened(answer(stream(), vec![socket])), Err(ProtocolError::DescriptorKind(_))));
        let proc = std::fs::File::open("/proc/version").unwrap();
        assert!(matches!(opened(answer(stream(), vec![proc.into()])), Err(ProtocolError::DescriptorKind(_))));
        let file = tempfile::tempfile().unwrap();
        assert!(opened(answer(stream(), vec![file.into()])).is_ok());
        let file = tempfile::tempfile().unwrap();
        assert!(done(answer(FileResponse::Done, vec![file.into()])).is_err());
    }
}
