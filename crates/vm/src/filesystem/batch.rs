//! Many files in one go: requests are pipelined, results keep their order, one failure never stops the rest.

use std::collections::VecDeque;

use agentos_guest_protocol::filesystem::{FileCall, FileRequest};
use agentos_guest_protocol::init::Request;
use bytes::Bytes;

use super::parse::{self, Opened};
use super::write::{self, FileWriter};
use super::{Content, FileError};
use crate::command::Outcome;
use crate::path::GuestPath;
use crate::vm::Vm;

/// Requests of one batch that are not answered: enough to keep init's threads busy, few enough that the content that
/// waits for a slow caller stays below 8 MiB.
const MAX_IN_FLIGHT: usize = 32;

/// Files being read, in the order asked.
#[derive(Debug)]
pub struct ReadBatch {
    vm: Vm,
    paths: std::vec::IntoIter<Vec<u8>>,
    in_flight: VecDeque<Read>,
}

#[derive(Debug)]
enum Read {
    Begun(GuestPath, Outcome<Opened>),
    Failed(FileError),
}

impl ReadBatch {
    pub(super) fn new(vm: Vm, paths: Vec<Vec<u8>>) -> Self {
        Self { vm, paths: paths.into_iter(), in_flight: VecDeque::new() }
    }

    /// The next file, None after the last. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Content, FileError>> {
        while self.in_flight.len() < MAX_IN_FLIGHT
            && let Some(path) = self.paths.as_slice().first()
        {
            let begun = begin(&self.vm, path).await;
            self.in_flight.push_back(begun);
            self.paths.next();
        }
        // Taken out only when it is answered, so that a caller that gave up finds it again.
        let result = match self.in_flight.front_mut()? {
            Read::Begun(path, outcome) => {
                let answer = outcome.await;
                let opened = answer
                    .unwrap_or_else(|_| Err(crate::command::CallFailure::Unavailable(self.vm.unavailable())));
                match opened {
                    Ok(opened) => Ok(Content::new(opened, path.clone())),
                    Err(failure) => Err(FileError::of(failure, FileCall::Open, path)),
                }
            }
            Read::Failed(_) => match self.in_flight.pop_front() {
                Some(Read::Failed(error)) => return Some(Err(error)),
                _ => return None,
            },
        };
        self.in_flight.pop_front();
        Some(result)
    }
}

async fn begin(vm: &Vm, path: &[u8]) -> Read {
    let path = match GuestPath::parse(path) {
        Ok(path) => path,
        Err(error) => return Read::Failed(error.into()),
    };
    let request = Request::File(FileRequest::Read { path: path.to_wire() });
    match vm.begin(request, Vec::new(), parse::opened).await {
        Ok(outcome) => Read::Begun(path, outcome),
        Err(failure) => Read::Failed(FileError::of(failure, FileCall::Open, &path)),
    }
}

/// Files being written one after the other. Dropped unfinished, the current file is aborted; those before it may have
/// been written.
#[derive(Debug)]
pub struct WriteBatch {
    vm: Vm,
    current: Option<Current>,
    committing: VecDeque<(GuestPath, Outcome<()>)>,
    /// Results of the first files; those in `committing` follow, then the current one. A file that failed early is
    /// settled here only once those before it are, so that the order holds.
    results: Vec<Result<(), FileError>>,
}

#[derive(Debug)]
enum Current {
    Writing(GuestPath, Box<FileWriter>),
    Failed(FileError),
}

impl WriteBatch {
    pub(super) fn new(vm: Vm) -> Self {
        Self { vm, current: None, committing: VecDeque::new(), results: Vec::new() }
    }

    /// Begins the next file.
    pub async fn start(&mut self, path: &[u8]) {
        self.end_current().await;
        self.current = Some(match GuestPath::parse(path) {
            Ok(path) => {
                let writer = FileWriter::new(self.vm.clone(), path.clone());
                Current::Writing(path, Box::new(writer))
            }
            Err(error) => Current::Failed(error.into()),
        });
    }

    /// More of the current file. An error shows in its result.
    pub async fn write(&mut self, data: Bytes) {
        if let Some(Current::Writing(_, writer)) = &mut self.current
            && let Err(error) = writer.write(data).await
        {
            self.current = Some(Current::Failed(error));
        }
    }

    /// One result per file, in order.
    pub async fn finish(mut self) -> Vec<Result<(), FileError>> {
        self.end_current().await;
        self.settle(0).await;
        self.results
    }

    async fn end_current(&mut self) {
        let error = match self.current.take() {
            None => return,
            Some(Current::Failed(error)) => error,
            Some(Current::Writing(path, writer)) => match writer.begin_commit().await {
                Ok(outcome) => {
                    self.committing.push_back((path, outcome));
                    return self.settle(MAX_IN_FLIGHT).await;
                }
                Err(error) => error,
            },
        };
        self.settle(0).await;
        self.results.push(Err(error));
    }

    /// Waits until no more than `allowed` commits are unanswered.
    async fn settle(&mut self, allowed: usize) {
        while self.committing.len() > allowed
            && let Some((path, outcome)) = self.committing.pop_front()
        {
            self.results.push(write::finish(&self.vm, &path, outcome).await);
        }
    }
}
