//! How much memory the flows of one VM may hold.
//!
//! Buffers of a connection can't grow later. So each connection takes its share when it begins: the first hundred or so as
//! much as one stream can make use of, those after them less and less, and when nothing is left, the least that works,
//! for which nobody is asked. Packets on their way to their flow's task take room as they come and leave it when they are
//! handled; without room they are lost, as on any network. Nobody ever waits for room, so that nothing can be stuck.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sniff::MAX_SNIFF_BYTES;

/// What all connections together may hold beyond the least for each.
const CONNECTIONS_BYTES: usize = 64 * 1024 * 1024;

/// What packets may hold that wait for the task of their connection; of those of datagrams the same.
const QUEUED_BYTES: usize = 16 * 1024 * 1024;

/// What one direction of a connection holds, at most: several of the largest segments, so that sender and receiver need
/// not take turns.
pub(super) const MAX_BUFFER_BYTES: usize = 256 * 1024;

/// And at least.
const MIN_BUFFER_BYTES: usize = 16 * 1024;

/// A connection takes no more than this part of what is left.
const PART: usize = 8;

// The first words of a connection must fit.
const _: () = assert!(MIN_BUFFER_BYTES >= MAX_SNIFF_BYTES);

/// What lies between a connection and a server of our own, at most.
const MAX_PIPE_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Budget {
    connections: Arc<Semaphore>,
    segments: Arc<Semaphore>,
    datagrams: Arc<Semaphore>,
}

/// What a connection may hold.
#[derive(Debug)]
pub(super) struct Share {
    /// In each direction.
    pub buffer_bytes: usize,
    _room: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// What lies between the connection and a server of our own, in each direction.
    pub(super) fn pipe_bytes(&self) -> usize {
        self.buffer_bytes.min(MAX_PIPE_BYTES)
    }
}

/// Bytes that wait.
#[derive(Debug)]
pub(super) struct Queued {
    pub bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl Default for Budget {
    fn default() -> Self {
        let bytes = |bytes| Arc::new(Semaphore::new(bytes));
        Self {
            connections: bytes(CONNECTIONS_BYTES),
            segments: bytes(QUEUED_BYTES),
            datagrams: bytes(QUEUED_BYTES),
        }
    }
}

impl Budget {
    pub(super) fn share(&self) -> Share {
        let mut buffer_bytes = MAX_BUFFER_BYTES;
        while buffer_bytes > MIN_BUFFER_BYTES {
            let both = 2 * buffer_bytes;
            let affordable = self.connections.available_permits() / PART >= both;
            if let Some(room) = affordable.then(|| take(&self.connections, both)).flatten() {
                return Share { buffer_bytes, _room: Some(room) };
            }
            buffer_bytes /= 2;
        }
        Share { buffer_bytes, _room: None }
    }

    /// None where there is no room for the packet.
    pub(super) fn segment(&self, bytes: Vec<u8>) -> Option<Queued> {
        let room = take(&self.segments, bytes.capacity())?;
        Some(Queued { bytes, _room: room })
    }

    /// None where there is no room for the datagram.
    pub(super) fn datagram(&self, bytes: Vec<u8>) -> Option<Queued> {
        let room = take(&self.datagrams, bytes.capacity())?;
        Some(Queued { bytes, _room: room })
    }
}

fn take(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(room).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_what_there_is_and_the_last_has_enough_to_work() {
        let budget = Budget::default();
        let shares: Vec<Share> = (0..2_048).map(|_| budget.share()).collect();
        let held = |shares: &[Share]| shares.iter().map(|share| 2 * share.buffer_bytes).sum::<usize>();
        assert!(shares[..100].iter().all(|share| share.buffer_bytes == MAX_BUFFER_BYTES));
        assert!(shares.is_sorted_by(|one, next| one.buffer_bytes >= next.buffer_bytes));
        assert_eq!(shares[2_047].buffer_bytes, MIN_BUFFER_BYTES);
        assert!(held(&shares) <= CONNECTIONS_BYTES + 2_048 * 2 * MIN_BUFFER_BYTES);
        drop(shares);
        assert_eq!(budget.share().buffer_bytes, MAX_BUFFER_BYTES, "what was held is there again");
    }

    #[test]
    fn packets_wait_as_long_as_there_is_room_for_them() {
        let budget = Budget::default();
        let datagram = || budget.datagram(vec![0; 64 * 1024]);
        let waiting: Vec<Queued> = std::iter::from_fn(datagram).take(10_000).collect();
        assert_eq!(waiting.len(), QUEUED_BYTES / (64 * 1024));
        assert!(budget.segment(vec![0; 64 * 1024]).is_some(), "those of connections have their own");
        drop(waiting);
        assert!(datagram().is_some());
    }
}
