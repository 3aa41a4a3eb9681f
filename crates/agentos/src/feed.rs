//! A server stream that opens itself when it is first polled.
//!
//! ```text
//! Idle ──first poll──► Opening ──► Open ──► Done
//! ```
//!
//! Everything between two items is kept here, so a caller may drop the future it waits with (`next()` in a `select!`)
//! and lose nothing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tonic::{Status, Streaming};

use crate::error::Error;

pub(crate) type Opening<T> = Pin<Box<dyn Future<Output = Result<Streaming<T>, Error>> + Send>>;

pub(crate) enum Feed<T> {
    Idle,
    Opening(Opening<T>),
    Open(Box<Streaming<T>>),
    Done,
}

pub(crate) enum FeedError {
    /// It could not be opened.
    Open(Error),
    /// It broke off.
    Broken(Box<Status>),
}

impl<T> Feed<T> {
    /// The next message, opening the stream where it is idle. After an error the feed is done.
    pub(crate) fn poll_message(
        &mut self,
        context: &mut Context<'_>,
        open: impl FnOnce() -> Opening<T>,
    ) -> Poll<Option<Result<T, FeedError>>> {
        if matches!(self, Self::Idle) {
            *self = Self::Opening(open());
        }
        if let Self::Opening(opening) = self {
            match ready!(opening.as_mut().poll(context)) {
                Ok(streaming) => *self = Self::Open(Box::new(streaming)),
                Err(error) => {
                    *self = Self::Done;
                    return Poll::Ready(Some(Err(FeedError::Open(error))));
                }
            }
        }
        let Self::Open(streaming) = self else { return Poll::Ready(None) };
        match ready!(Pin::new(&mut **streaming).poll_next(context)) {
            Some(Ok(message)) => Poll::Ready(Some(Ok(message))),
            Some(Err(status)) => {
                *self = Self::Done;
                Poll::Ready(Some(Err(FeedError::Broken(Box::new(status)))))
            }
            None => {
                *self = Self::Done;
                Poll::Ready(None)
            }
        }
    }
}
