//! Bodies: what a request may hold, and how an answer is paced and cut.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};

pub(super) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Cut>;

/// The largest request: a full context of a million tokens with room for images.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Up to this a body needs no place: every connection may hold one.
const SMALL_BODY_BYTES: usize = 1 << 20;
const _: () =
    assert!(SMALL_BODY_BYTES * super::MAX_CONNECTIONS <= 256 << 20, "small bodies must stay small together");

/// A client has this long to send the body it announced.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Ends a body in its middle, so that hyper breaks the connection off.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut, as the prompt ordered")]
pub(super) struct Cut;

/// Why a request's body was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the body is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    #[error("the body did not come within {BODY_TIMEOUT:?}")]
    TooSlow,
    #[error("the body broke off")]
    Broken,
}

/// A body and, when it is large, its place among the few large ones there may be at once.
pub(super) struct Read<'a> {
    pub(super) bytes: Bytes,
    /// Kept until the parsed request is dropped.
    pub(super) place: Option<SemaphorePermit<'a>>,
}

/// Reads a whole body. A large one waits for its place, a small one never does: clients that send large bodies slowly
/// can't keep others waiting.
pub(super) async fn read(body: Incoming, large: &Semaphore) -> Result<Read<'_>, Refused> {
    tokio::time::timeout(BODY_TIMEOUT, collect(body, large)).await.unwrap_or(Err(Refused::TooSlow))
}

async fn collect(mut body: Incoming, large: &Semaphore) -> Result<Read<'_>, Refused> {
    let mut bytes = BytesMut::new();
    let mut place = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refused::Broken)?.into_data() else { continue };
        let length = bytes.len() + data.len();
        if length > MAX_BODY_BYTES {
            return Err(Refused::TooLarge);
        }
        if length > SMALL_BODY_BYTES && place.is_none() {
            // The semaphore is never closed.
            place = large.acquire().await.ok();
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Read { bytes: bytes.freeze(), place })
}

pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// One piece of a streamed body.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// A slow answer waits between these.
    pub(super) paced: bool,
}

/// A body that comes piece by piece, spread over a time, and is cut in its middle when asked.
pub(super) fn streamed(pieces: Vec<Piece>, spread: Option<Duration>, cut: bool) -> Body {
    let paced = u32::try_from(pieces.iter().filter(|piece| piece.paced).count()).unwrap_or(u32::MAX);
    let gap = spread.unwrap_or_default() / paced.saturating_sub(1).max(1);
    let kept = if cut { pieces.len() / 2 } else { pieces.len() };
    let left: VecDeque<Piece> = pieces.into_iter().take(kept).collect();
    let begun = false;
    let frames = stream::unfold((left, begun, cut), move |(mut left, begun, cut)| async move {
        match left.pop_front() {
            Some(piece) => {
                if piece.paced && begun && !gap.is_zero() {
                    tokio::time::sleep(gap).await;
                }
                Some((Ok(Frame::data(piece.bytes)), (left, begun || piece.paced, cut)))
            }
            None if cut => {
                // hyper flushes what it has when a body isn't ready; without this the client would see nothing at all.
                tokio::task::yield_now().await;
                Some((Err(Cut), (left, begun, false)))
            }
            None => None,
        }
    });
    StreamBody::new(frames).boxed_unsync()
}
