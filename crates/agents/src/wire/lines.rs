//! Cutting a byte stream into lines, with a bound on what one line may cost.
//!
//! Records end at LF alone (a CR before it is dropped): U+2028 and its like are ordinary characters inside JSON. A line
//! beyond the bound is not kept: its beginning is, so that the reader can tell what it was, and its length.

use bytes::{Buf as _, Bytes, BytesMut};

/// What is kept of a line that is too long.
const HEAD_BYTES: usize = 256;
/// A buffer that has grown beyond this is given back when it is empty.
const KEPT_CAPACITY: usize = 256 << 10;

/// One line of the stream, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A whole line.
    Whole(Bytes),
    /// A line longer than the bound.
    TooLong {
        /// Its first bytes.
        head: Bytes,
        /// Its whole length.
        length: u64,
    },
}

/// The cutter. Its memory is bounded by the line bound and one chunk.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    /// Bytes of `buffer` that are known to hold no LF.
    scanned: usize,
    max_bytes: usize,
    /// The head and length so far of a line that is being left out.
    skipping: Option<(Bytes, u64)>,
}

impl Lines {
    /// A cutter for lines of at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, max_bytes, skipping: None }
    }

    /// Takes the next bytes of the stream. Call [`Lines::next_line`] until it is `None` before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line, if its end is here.
    pub fn next_line(&mut self) -> Option<Line> {
        let end =
            self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n').map(|at| self.scanned + at);
        let Some(end) = end else {
            self.keep_waiting();
            return None;
        };
        self.scanned = 0;
        if let Some((head, length)) = self.skipping.take() {
            self.buffer.advance(end + 1);
            return Some(Line::TooLong { head, length: length + end as u64 });
        }
        let mut line = self.buffer.split_to(end + 1);
        if end > self.max_bytes {
            return Some(Line::TooLong {
                head: Bytes::copy_from_slice(&line[..HEAD_BYTES.min(end)]),
                length: end as u64,
            });
        }
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
        }
        Some(Line::Whole(line.freeze()))
    }

    /// What is left when the stream has ended without a last LF.
    pub fn finish(&mut self) -> Option<Line> {
        let rest = std::mem::take(&mut self.buffer);
        self.scanned = 0;
        match self.skipping.take() {
            Some((head, length)) => Some(Line::TooLong { head, length: length + rest.len() as u64 }),
            None => (!rest.is_empty()).then(|| Line::Whole(rest.freeze())),
        }
    }

    fn keep_waiting(&mut self) {
        if let Some((_, length)) = &mut self.skipping {
            *length += self.buffer.len() as u64;
            self.buffer.clear();
        } else if self.buffer.len() > self.max_bytes {
            let head = Bytes::copy_from_slice(&self.buffer[..HEAD_BYTES.min(self.buffer.len())]);
            self.skipping = Some((head, self.buffer.len() as u64));
            self.buffer = BytesMut::new();
        } else if self.buffer.is_empty() && self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = BytesMut::new();
        }
        self.scanned = self.buffer.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(chunks: &[&[u8]], max: usize) -> Vec<Line> {
        let mut lines = Lines::new(max);
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk);
            while let Some(line) = lines.next_line() {
                out.push(line);
            }
        }
        out.extend(lines.finish());
        out
    }

    fn whole(text: &str) -> Line {
        Line::Whole(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_end_at_lf_alone() {
        let text = "a\u{2028}b\r\nc\n\nd";
        assert_eq!(cut(&[text.as_bytes()], 99), [whole("a\u{2028}b"), whole("c"), whole(""), whole("d")]);
    }

    #[test]
    fn a_line_beyond_the_bound_is_named_and_the_next_one_is_read() {
        let long = "x".repeat(1000);
        let text = format!("{long}\nok\n");
        let lines = cut(&[&text.as_bytes()[..300], &text.as_bytes()[300..]], 100);
        let [Line::TooLong { head, length: 1000 }, next] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(head.len(), HEAD_BYTES);
        assert_eq!(*next, whole("ok"));
    }

    #[test]
    fn a_line_without_an_end_costs_no_more_than_the_bound() {
        let mut lines = Lines::new(1000);
        for _ in 0..1000 {
            lines.push(&[b'x'; 512]);
            assert_eq!(lines.next_line(), None);
            assert!(lines.buffer.capacity() < 8 << 10, "{}", lines.buffer.capacity());
        }
        assert!(matches!(lines.finish(), Some(Line::TooLong { length: 512_000, .. })));
    }

    proptest! {
        #[test]
        fn however_the_stream_is_cut_the_lines_are_the_same(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..400),
            cuts in prop::collection::vec(0usize..400, 0..12),
            max in 1usize..64,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let shape = |lines: Vec<Line>| -> Vec<(bool, u64)> {
                lines.iter().map(|line| match line {
                    Line::Whole(line) => (true, line.len() as u64),
                    Line::TooLong { length, .. } => (false, *length),
                }).collect()
            };
            prop_assert_eq!(shape(cut(&chunks, max)), shape(cut(&[&bytes], max)));
        }
    }
}
