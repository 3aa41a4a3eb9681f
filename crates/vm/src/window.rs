//! The last part of an output stream, read by offset.
//!
//! ```text
//!            start            reader           end
//!  ───────────┼─────────────────┼───────────────┼──► offsets of the stream
//!  discarded  │ kept, at most CAPACITY_BYTES    │ not yet written
//! ```
//! With a reader attached the window takes only what it can hold without losing a byte the slowest reader has not
//! seen; with none it takes everything and forgets the oldest. A reader that comes for forgotten bytes starts at the
//! oldest kept one, and sees the gap in the offset.
//!
//! A pure structure: who waits for room or for bytes stands in `output`.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

/// Kept of each stream.
pub(crate) const CAPACITY_BYTES: usize = 1024 * 1024;

/// The most one read gives.
pub(crate) const MAX_CHUNK_BYTES: usize = 64 * 1024;

const _: () = assert!(MAX_CHUNK_BYTES <= CAPACITY_BYTES);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Of the first byte in the whole stream; beyond the expected one where bytes were discarded unread.
    pub offset: u64,
    pub data: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReaderId(u64);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Chunk(Chunk),
    /// Nothing yet.
    Pending,
    /// Nothing ever again.
    End,
}

/// Grows with what it holds, so that a silent process costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Window {
    kept: VecDeque<u8>,
    /// Offset of the first kept byte.
    start: u64,
    ended: bool,
    /// Position of each attached reader. Few: a scan is cheaper than an index.
    readers: Vec<(ReaderId, u64)>,
    next_reader: u64,
}

impl Window {
    fn end(&self) -> u64 {
        self.start + self.kept.len() as u64
    }

    /// Bytes that can be pushed now without a loss to an attached reader.
    pub(crate) fn room(&self) -> usize {
        let unread = self.readers.iter().map(|&(_, position)| self.end().saturating_sub(position)).max();
        let unread = usize::try_from(unread.unwrap_or(0)).unwrap_or(usize::MAX);
        CAPACITY_BYTES.saturating_sub(unread)
    }

    /// Takes what the process wrote, forgetting the oldest bytes where they don't fit.
    pub(crate) fn push(&mut self, data: &[u8]) {
        let too_long = data.len().saturating_sub(CAPACITY_BYTES);
        let excess = (self.kept.len() + data.len() - too_long).saturating_sub(CAPACITY_BYTES);
        self.kept.drain(..excess);
        self.kept.extend(data.get(too_long..).unwrap_or_default());
        self.start += (excess + too_long) as u64;
    }

    /// The last writer is gone.
    pub(crate) fn finish(&mut self) {
        self.ended = true;
    }

    /// Frees what is kept where no reader is attached. Later ones see a gap up to the end.
    pub(crate) fn forget(&mut self) {
        if !self.readers.is_empty() {
            return;
        }
        self.start = self.end();
        self.kept = VecDeque::new();
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept.len()
    }

    pub(crate) fn attach(&mut self, offset: u64) -> ReaderId {
        let id = ReaderId(self.next_reader);
        self.next_reader += 1;
        self.readers.push((id, offset));
        id
    }

    pub(crate) fn detach(&mut self, id: ReaderId) {
        self.readers.retain(|&(reader, _)| reader != id);
    }

    /// What comes next for a reader.
    pub(crate) fn read(&mut self, id: ReaderId) -> Read {
        let (start, end) = (self.start, self.end());
        let Some((_, position)) = self.readers.iter_mut().find(|(reader, _)| *reader == id) else {
            return Read::End;
        };
        let offset = (*position).max(start);
        if offset >= end {
            return if self.ended { Read::End } else { Read::Pending };
        }
        let skip = usize::try_from(offset - start).unwrap_or(usize::MAX);
        let len = (self.kept.len() - skip).min(MAX_CHUNK_BYTES);
        *position = offset + len as u64;
        Read::Chunk(Chunk { offset, data: copy(&self.kept, skip, len) })
    }
}

fn copy(kept: &VecDeque<u8>, skip: usize, len: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(len);
    let (front, back) = kept.as_slices();
    let from_front = front.get(skip..).unwrap_or_default();
    let from_front = from_front.get(..len).unwrap_or(from_front);
    data.put_slice(from_front);
    let skip_back = skip.saturating_sub(front.len());
    let rest = len - from_front.len();
    data.put_slice(back.get(skip_back..skip_back + rest).unwrap_or_default());
    data.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Byte `n` of the endless test stream.
    fn byte_at(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    fn bytes(offset: u64, len: usize) -> Vec<u8> {
        (offset..offset + len as u64).map(byte_at).collect()
    }

    fn chunk(read: Read) -> Chunk {
        match read {
            Read::Chunk(chunk) => chunk,
            other => panic!("no chunk but {other:?}"),
        }
    }

    #[test]
    fn without_a_reader_the_oldest_bytes_go_and_a_later_reader_sees_the_gap() {
        let mut window = Window::default();
        for index in 0..20 {
            assert_eq!(window.room(), CAPACITY_BYTES);
            window.push(&bytes(index * 100_000, 100_000));
        }
        assert_eq!(window.kept_bytes(), CAPACITY_BYTES);
        let reader = window.attach(0);
        let first = chunk(window.read(reader));
        assert_eq!(first.offset, 2_000_000 - CAPACITY_BYTES as u64);
        assert_eq!(first.data[0], byte_at(first.offset));
    }

    #[test]
    fn a_reader_that_does_not_read_stops_the_writer_and_leaving_frees_it() {
        let mut window = Window::default();
        let reader = window.attach(0);
        window.push(&vec![1; CAPACITY_BYTES]);
        assert_eq!(window.room(), 0);
        let read = chunk(window.read(reader)).data.len();
        assert_eq!(window.room(), read);
        window.detach(reader);
        assert_eq!(window.room(), CAPACITY_BYTES);
    }

    #[test]
    fn the_slowest_reader_sets_the_pace() {
        let mut window = Window::default();
        let (slow, fast) = (window.attach(0), window.attach(0));
        window.push(&vec![1; CAPACITY_BYTES]);
        while matches!(window.read(fast), Read::Chunk(_)) {}
        assert_eq!(window.room(), 0);
        chunk(window.read(slow));
        assert_eq!(window.room(), MAX_CHUNK_BYTES);
    }

    #[test]
    fn a_reader_from_beyond_the_end_waits_for_its_offset() {
        let mut window = Window::default();
        let reader = window.attach(5);
        window.push(b"abc");
        assert_eq!(window.read(reader), Read::Pending);
        window.push(b"defgh");
        assert_eq!(chunk(window.read(reader)), Chunk { offset: 5, data: Bytes::from_static(b"fgh") });
        window.finish();
        assert_eq!(window.read(reader), Read::End);
    }

    #[test]
    fn a_push_longer_than_the_window_keeps_its_tail() {
        let mut window = Window::default();
        window.push(&bytes(0, CAPACITY_BYTES + 10));
        let reader = window.attach(0);
        assert_eq!(chunk(window.read(reader)).offset, 10);
    }

    #[test]
    fn what_is_forgotten_is_a_gap_up_to_the_end() {
        let mut window = Window::default();
        window.push(b"abc");
        window.forget();
        window.push(b"d");
        let reader = window.attach(0);
        assert_eq!(chunk(window.read(reader)), Chunk { offset: 3, data: Bytes::from_static(b"d") });
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize),
        Attach,
        Detach,
        Read,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1..300_000_usize).prop_map(Step::Write),
            1 => Just(Step::Attach),
            1 => Just(Step::Detach),
            6 => Just(Step::Read),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A writer that respects `room` never costs an attached reader a byte, bytes are exact at their offsets,
        /// and the window never outgrows its capacity.
        #[test]
        fn bytes_are_exact_and_attached_readers_lose_nothing(steps in steps()) {
            let mut window = Window::default();
            let mut written = 0_u64;
            let mut reader: Option<(ReaderId, Option<u64>)> = None;
            for step in steps {
                match step {
                    Step::Write(len) => {
                        let len = len.min(window.room());
                        window.push(&bytes(written, len));
                        written += len as u64;
                    }
                    Step::Attach if reader.is_none() => reader = Some((window.attach(0), None)),
                    Step::Detach => if let Some((id, _)) = reader.take() {
                        window.detach(id);
                    },
                    Step::Read => if let Some((id, expected)) = &mut reader
                        && let Read::Chunk(chunk) = window.read(*id)
                    {
                        // Only the very first chunk after attaching may come after a gap.
                        prop_assert!(expected.is_none_or(|expected| chunk.offset == expected));
                        prop_assert_eq!(&chunk.data[..], &bytes(chunk.offset, chunk.data.len())[..]);
                        *expected = Some(chunk.offset + chunk.data.len() as u64);
                    },
                    Step::Attach => {}
                }
                prop_assert!(window.kept_bytes() <= CAPACITY_BYTES);
                prop_assert_eq!(window.end(), written);
            }
        }
    }
}
