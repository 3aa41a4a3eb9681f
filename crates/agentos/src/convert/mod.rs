//! Where wire types stop. One file per noun turns options into requests and answers into the SDK's types; no other
//! module knows how a message is laid out. Errors of every operation become the crate's one [`Error`](crate::Error) in
//! `error`.

use std::time::Duration;

use bytes::Bytes;

pub(crate) mod egress;
pub(crate) mod error;
pub(crate) mod filesystem;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod policy;
pub(crate) mod process;
pub(crate) mod session;
pub(crate) mod shell;
pub(crate) mod sidecar;
pub(crate) mod tool;
pub(crate) mod vm;

/// The largest payload put into one message: a call of this size still is one frame, and nothing on the way needs a
/// bigger buffer.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// The payload in pieces that share its buffer; an empty one is one empty piece.
pub(crate) fn chunks(mut payload: Bytes) -> impl Iterator<Item = Bytes> + Send + 'static {
    let mut first = true;
    std::iter::from_fn(move || {
        if payload.is_empty() && !first {
            return None;
        }
        first = false;
        Some(payload.split_to(payload.len().min(CHUNK_BYTES)))
    })
}

/// Says of each item whether it is the last.
pub(crate) fn marked<I>(items: I) -> impl Iterator<Item = (I::Item, bool)> + Send + 'static
where
    I: Iterator<Item: Send> + Send + 'static,
{
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let item = items.next()?;
        Some((item, items.peek().is_none()))
    })
}

/// Milliseconds, as the wire has them; what does not fit is as good as for ever.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An answer of the sidecar lacks what this client needs: one of the two has a fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("the sidecar's answer to {call} has no {field}")]
    Missing { call: &'static str, field: &'static str },
    #[error("the sidecar's answer to {call} has a {field} that is out of range")]
    Range { call: &'static str, field: &'static str },
    #[error("the sidecar's answer to {call} is not JSON")]
    Json { call: &'static str, source: serde_json::Error },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(length: usize) -> Vec<usize> {
        chunks(Bytes::from(vec![7; length])).map(|chunk| chunk.len()).collect()
    }

    #[test]
    fn payloads_are_cut_into_pieces_and_an_empty_one_is_a_piece_too() {
        assert_eq!(sizes(0), [0]);
        assert_eq!(sizes(CHUNK_BYTES), [CHUNK_BYTES]);
        assert_eq!(sizes(2 * CHUNK_BYTES + 5), [CHUNK_BYTES, CHUNK_BYTES, 5]);
    }
}
