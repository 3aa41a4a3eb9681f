//! Bodies: what a request may hold, and how an answer is paced and cut.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};

pub(super) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Cut>;

/// The largest request: a full context of a million tokens with room for images.
const MAX_BODY_BYTES: usize = 64 << 20;

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

pub(super) async fn read(body: Incoming) -> Result<Bytes, Refused> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect());
    match collected.await {
        Err(_) => Err(Refused::TooSlow),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refused::TooLarge),
        Ok(Err(_)) => Err(Refused::Broken),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
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
