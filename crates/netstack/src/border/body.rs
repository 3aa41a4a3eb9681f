//! Bodies on their way through the border: piece by piece, in bounded time and memory.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::head;
use super::scrub::{HELD_FOR, Patterns, Scrubber};

/// Between two pieces of a body, in either direction: a model that thinks sends a sign of life more often.
pub(super) const PIECE_DEADLINE: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("nothing more of the body within {} s", PIECE_DEADLINE.as_secs())]
    Stalled,
    #[error(transparent)]
    Exchange(#[from] hyper::Error),
}

/// A request's body, from the guest to the upstream.
pub(super) struct Outgoing {
    /// `None` if it is empty: then the request can be sent again.
    body: Option<Incoming>,
    /// What may not stand in the trailers.
    strip_trailers: Option<fn(&mut HeaderMap)>,
    patience: Patience,
    progress: Progress,
}

impl Outgoing {
    pub(super) fn new(body: Incoming) -> Self {
        Self::of(Some(body).filter(|body| !body.is_end_stream()))
    }

    fn of(body: Option<Incoming>) -> Self {
        Self { body, strip_trailers: None, patience: Patience::default(), progress: Progress::default() }
    }

    /// Servers may read trailers as if they had stood in the head.
    pub(super) fn strip_trailers(mut self, strip: fn(&mut HeaderMap)) -> Self {
        self.strip_trailers = Some(strip);
        self
    }

    /// Another one, if there is nothing in it.
    pub(super) fn copy(&self) -> Option<Self> {
        let is_empty = self.body.is_none();
        is_empty.then(|| Self::of(None))
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let strip = self.strip_trailers;
        // Being asked for more means that the upstream took what was before.
        self.progress.happened();
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.patience.renew();
                let mut frame = frame.transpose()?;
                if let (Some(strip), Some(trailers)) = (strip, frame.as_mut().and_then(Frame::trailers_mut)) {
                    strip(trailers);
                }
                Poll::Ready(frame.map(Ok))
            }
            Poll::Pending => {
                ready!(self.patience.poll(cx));
                Poll::Ready(Some(Err(BodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// When the upstream last took something of a request.
#[derive(Debug, Clone)]
pub(super) struct Progress(
    // Shared by a body and whoever waits for the answer to it; held for a load or a store.
    Arc<Mutex<Instant>>,
);

impl Progress {
    fn happened(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Resolves when nothing has happened for so long.
    pub(super) async fn stopped_for(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= limit {
                return;
            }
            sleep_until(last + limit).await;
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

/// An answer's body, to the guest.
pub(super) enum Answer {
    /// The border's own.
    Own(Full<Bytes>),
    Relayed(Box<Relayed>),
}

/// An answer's body from the upstream, without secrets.
pub(super) struct Relayed {
    body: Incoming,
    patience: Patience,
    patterns: Arc<Patterns>,
    scrubber: Scrubber,
    rest: Rest,
    on_echo: Option<Box<dyn FnOnce() + Send>>,
    /// Until when the end of the last piece is held back, where it is.
    held: Option<Pin<Box<Sleep>>>,
}

/// What is still to come when the upstream's last piece has been seen.
enum Rest {
    Unknown,
    Trailers(HeaderMap),
    Nothing,
}

impl Relayed {
    /// `on_echo` is called when a secret is first found.
    pub(super) fn new(
        body: Incoming,
        patterns: &Arc<Patterns>,
        on_echo: Option<Box<dyn FnOnce() + Send>>,
    ) -> Self {
        let scrubber = Scrubber::new(Arc::clone(patterns));
        // An answer without a body is known to have none before it is asked for a piece.
        let rest = if body.is_end_stream() { Rest::Nothing } else { Rest::Unknown };
        let (patterns, patience) = (Arc::clone(patterns), Patience::default());
        Self { body, patience, patterns, scrubber, rest, on_echo, held: None }
    }

    /// The next piece as it has come, or the end of the data.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            ready!(self.patience.poll(cx));
            return Poll::Ready(Err(BodyError::Stalled));
        };
        self.patience.renew();
        let Some(frame) = frame.transpose()? else {
            self.rest = Rest::Nothing;
            return Poll::Ready(Ok(None));
        };
        Poll::Ready(Ok(match frame.into_data() {
            Ok(data) => Some(data),
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                if head::scrub(&mut trailers, &self.patterns) {
                    self.echoed();
                }
                self.rest = Rest::Trailers(trailers);
                None
            }
        }))
    }

    fn poll_relayed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while let Rest::Unknown = self.rest {
            let data = match self.poll_piece(cx)? {
                Poll::Ready(piece) => {
                    self.held = None;
                    match piece {
                        Some(piece) => self.scrubber.push(piece),
                        None => self.scrubber.finish(),
                    }
                }
                Poll::Pending => {
                    ready!(self.poll_held(cx));
                    self.scrubber.let_go()
                }
            };
            if self.scrubber.has_found() {
                self.echoed();
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        match std::mem::replace(&mut self.rest, Rest::Nothing) {
            Rest::Trailers(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Rest::Unknown | Rest::Nothing => Poll::Ready(None),
        }
    }

    /// Whether what is held back has been long enough.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.scrubber.held_bytes() == 0 {
            return Poll::Pending;
        }
        let held = self.held.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + HELD_FOR)));
        ready!(held.as_mut().poll(cx));
        self.held = None;
        Poll::Ready(())
    }

    fn echoed(&mut self) {
        if let Some(on_echo) = self.on_echo.take() {
            on_echo();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Relayed(relayed) => relayed.poll_relayed(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Relayed(relayed) => matches!(relayed.rest, Rest::Nothing),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            // As long as what comes in: stars are as many as what they stand for.
            Self::Relayed(relayed) => {
                let (hint, held) = (relayed.body.size_hint(), relayed.scrubber.held_bytes() as u64);
                let mut own = SizeHint::new();
                own.set_lower(hint.lower() + held);
                if let Some(upper) = hint.upper() {
                    own.set_upper(upper + held);
                }
                own
            }
        }
    }
}

/// Runs out when nothing comes for too long. A timer is only set while somebody waits.
#[derive(Default)]
struct Patience {
    sleep: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl Patience {
    fn renew(&mut self) {
        self.is_waiting = false;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = Instant::now() + PIECE_DEADLINE;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if !self.is_waiting {
            self.is_waiting = true;
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }
}
