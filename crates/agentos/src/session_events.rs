//! What happens in a session, as streams: its events, and the agent's requests for permission.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentos_proto::v1;
use futures_core::Stream;
use serde_json::Value;

use crate::convert;
use crate::convert::error::CallError;
use crate::error::{Error, ErrorKind};
use crate::feed::{Feed, FeedError, Opening};
use crate::vm::AgentOs;

/// One event of a session.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionEvent {
    /// Its place in the session; they start at 1 and have no gaps.
    pub sequence_number: u64,
    /// When it was kept, in milliseconds since the epoch.
    pub at_ms: u64,
    /// The JSON-RPC notification as the agent sent it, or one of ours (`_agentos/...`).
    pub notification: Value,
}

impl SessionEvent {
    /// The notification's method, such as `session/update`.
    #[must_use]
    pub fn method(&self) -> &str {
        self.notification["method"].as_str().unwrap_or_default()
    }

    /// The notification's parameters.
    #[must_use]
    pub fn params(&self) -> &Value {
        &self.notification["params"]
    }
}

/// Events asked for at once. What is under way to a reader that doesn't read is therefore no more than that.
const PIECE: u32 = 1024;
/// A reader that is this far behind is told so.
const MAX_BEHIND: u64 = 4096;
// Each piece tells how far behind its reader is.
const _: () = assert!(MAX_BEHIND >= 2 * PIECE as u64);

/// The events of a session: stored ones first, live ones after, none twice, none lost. Of a session that is over, the
/// stored ones.
///
/// A slow reader holds up neither the agent nor other readers, and nothing is held in memory for it. One that kept up and
/// then falls 4,096 events behind is told so once, by an error of kind `Lagged`; the next call goes on where it was
/// ([`Error::resume_at`]), from the transcript, which has them all. One that begins far behind only catches up.
///
/// A transcript has a bound, 512 MiB, at which the session ends with an error of kind `NoSpace`; its last event is
/// `_agentos/transcript_full`.
pub struct SessionEvents {
    vm: AgentOs,
    session_id: String,
    place: Place,
    permissions_only: bool,
    feed: Feed<v1::SessionEvent>,
}

/// Where a reader is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The event it wants.
    next: u64,
    /// Of the piece that it reads.
    taken: u32,
    /// Whether it has kept up at some time.
    follows: bool,
}

impl Place {
    fn new(next: u64) -> Self {
        Self { next, taken: 0, follows: false }
    }

    /// Whether an event is to be given out; otherwise its reader has fallen behind.
    fn take(&mut self, sequence_number: u64, newest: u64) -> bool {
        let is_behind = newest.saturating_sub(sequence_number) >= MAX_BEHIND;
        if is_behind && self.follows {
            *self = Self::new(sequence_number);
            return false;
        }
        self.follows |= !is_behind;
        self.taken += 1;
        self.next = sequence_number + 1;
        true
    }

    /// A stream has ended: whether that was a piece's end, after which comes another.
    fn turns(&mut self) -> bool {
        std::mem::take(&mut self.taken) >= PIECE
    }
}

impl SessionEvents {
    pub(crate) fn new(vm: AgentOs, session_id: String, since: u64) -> Self {
        Self { vm, session_id, place: Place::new(since), permissions_only: false, feed: Feed::Idle }
    }

    /// The next event, or `None` when the session has ended. Cancellation safe.
    pub async fn next(&mut self) -> Option<Result<SessionEvent, Error>> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<SessionEvent, Error>>> {
        loop {
            let Self { vm, session_id, place, permissions_only, feed } = self;
            let request = || v1::SessionEventsRequest {
                session_id: session_id.clone(),
                since: place.next,
                permissions_only: *permissions_only,
                // A reader of requests is one that answers as long as its stream is open.
                max_events: if *permissions_only { 0 } else { PIECE },
            };
            let item = match ready!(feed.poll_message(context, || open(vm.clone(), request()))) {
                Some(Ok(event)) if place.take(event.sequence_number, event.newest) => {
                    convert::session::event(event).map_err(Error::from)
                }
                Some(Ok(event)) => {
                    *feed = Feed::Idle;
                    let next = event.sequence_number;
                    Err(CallError::EventsBehind { session_id: session_id.clone(), next }.into())
                }
                Some(Err(FeedError::Open(error))) => Err(error),
                Some(Err(FeedError::Broken(status))) => Err(vm.failed(*status)),
                None if !*permissions_only && place.turns() => {
                    *feed = Feed::Idle;
                    continue;
                }
                None => return Poll::Ready(None),
            };
            return Poll::Ready(Some(item));
        }
    }
}

fn open(vm: AgentOs, request: v1::SessionEventsRequest) -> Opening<v1::SessionEvent> {
    Box::pin(async move {
        let reply = vm.live()?.session().session_events(request).await;
        Ok(reply.map_err(|status| vm.failed(status))?.into_inner())
    })
}

impl Stream for SessionEvents {
    type Item = Result<SessionEvent, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_event(context)
    }
}

impl std::fmt::Debug for SessionEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionEvents")
            .field("session_id", &self.session_id)
            .field("next", &self.place.next)
            .finish_non_exhaustive()
    }
}

/// How to answer a request for permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PermissionReply {
    /// Yes, this time.
    Once,
    /// Yes, and to exactly the same request in this session from now on.
    Always,
    /// No.
    Reject,
}

/// Something the agent asks permission for. One that is dropped without a reply is rejected.
pub struct PermissionRequest {
    vm: AgentOs,
    session_id: String,
    permission_id: String,
    description: Option<String>,
    params: Value,
    /// By us, or by whom it was left to.
    answered: bool,
}

impl PermissionRequest {
    /// The request's id, which works once.
    #[must_use]
    pub fn permission_id(&self) -> &str {
        &self.permission_id
    }

    /// What it is for, in words.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The agent's own parameters: the tool call and the options it offers.
    #[must_use]
    pub fn params(&self) -> &Value {
        &self.params
    }

    /// Answers it.
    ///
    /// # Errors
    ///
    /// `NotFound` when it is no longer waiting: it timed out, was cancelled, or somebody else answered. `Unsupported` when
    /// the agent offers nothing that means no more than the reply: it goes on waiting then, and can be answered by its id
    /// ([`Session::respond_permission`](crate::Session::respond_permission)).
    pub async fn reply(mut self, reply: PermissionReply) -> Result<(), Error> {
        let replied = self.try_reply(reply).await;
        // Left to whoever knows its id.
        self.answered |= replied.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsupported);
        replied
    }

    /// As [`reply`](Self::reply), but a reply that the agent doesn't offer leaves the request here: another one can be
    /// given, and dropped without one it is rejected.
    ///
    /// # Errors
    ///
    /// As those of [`reply`](Self::reply).
    pub async fn try_reply(&mut self, reply: PermissionReply) -> Result<(), Error> {
        let replied = respond(&self.vm, &self.session_id, &self.permission_id, reply).await;
        // A reply that was cut off, or whose outcome nobody knows, leaves the rejection to `drop`: the id works once, so
        // that a reply which got through stands.
        self.answered = match &replied {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        replied
    }

    /// Leaves it to be answered by its id, with
    /// [`Session::respond_permission`](crate::Session::respond_permission): it is not rejected for being dropped. It waits
    /// no longer than the stream that it came from, and two minutes.
    pub fn leave_open(mut self) {
        self.answered = true;
    }
}

/// Answers a request by its id.
pub(crate) async fn respond(
    vm: &AgentOs,
    session_id: &str,
    permission_id: &str,
    reply: PermissionReply,
) -> Result<(), Error> {
    let request = convert::session::respond_request(session_id, permission_id, reply);
    vm.live()?.session().respond_permission(request).await.map_err(|status| vm.failed(status))?;
    Ok(())
}

impl Drop for PermissionRequest {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let (vm, session_id) = (self.vm.clone(), self.session_id.clone());
        let permission_id = self.permission_id.clone();
        self.vm.sidecar().runtime().spawn(async move {
            if let Err(error) = respond(&vm, &session_id, &permission_id, PermissionReply::Reject).await {
                tracing::debug!(%error, "rejecting a dropped permission request");
            }
        });
    }
}

impl std::fmt::Debug for PermissionRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PermissionRequest")
            .field("session_id", &self.session_id)
            .field("permission_id", &self.permission_id)
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

/// The agent's requests for permission, the pending one first. Ends with the session; why it ended is in
/// [`Session::events`](crate::Session::events) and in the calls that fail.
pub struct PermissionRequests {
    events: SessionEvents,
}

impl PermissionRequests {
    pub(crate) fn new(vm: AgentOs, session_id: String) -> Self {
        let events = SessionEvents::new(vm, session_id, 0);
        Self { events: SessionEvents { permissions_only: true, ..events } }
    }

    /// The next request, or `None` when the session has ended. Cancellation safe.
    pub async fn next(&mut self) -> Option<PermissionRequest> {
        std::future::poll_fn(|context| self.poll_request(context)).await
    }

    fn poll_request(&mut self, context: &mut Context<'_>) -> Poll<Option<PermissionRequest>> {
        loop {
            let event = match ready!(self.events.poll_event(context)) {
                Some(Ok(event)) => event,
                Some(Err(error)) => {
                    tracing::debug!(%error, "permission requests ended");
                    return Poll::Ready(None);
                }
                None => return Poll::Ready(None),
            };
            if let Some(asked) = convert::session::permission(event) {
                let SessionEvents { vm, session_id, .. } = &self.events;
                return Poll::Ready(Some(PermissionRequest {
                    vm: vm.clone(),
                    session_id: session_id.clone(),
                    permission_id: asked.permission_id,
                    description: asked.description,
                    params: asked.params,
                    answered: false,
                }));
            }
        }
    }
}

impl Stream for PermissionRequests {
    type Item = PermissionRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_request(context)
    }
}

impl std::fmt::Debug for PermissionRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PermissionRequests")
            .field("session_id", &self.events.session_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a transcript of so many events, of which each stream tells a piece.
    fn read(place: &mut Place, newest: u64) -> (Vec<u64>, Vec<u64>) {
        let (mut given, mut behind) = (Vec::new(), Vec::new());
        loop {
            let piece = place.next..=newest.min(place.next + u64::from(PIECE) - 1);
            for sequence_number in piece {
                if !place.take(sequence_number, newest) {
                    behind.push(sequence_number);
                    break;
                }
                given.push(sequence_number);
            }
            if place.next > newest && !place.turns() {
                return (given, behind);
            }
            place.taken = 0;
        }
    }

    #[test]
    fn a_reader_that_begins_far_behind_catches_up_without_a_word() {
        let mut place = Place::new(1);
        let (given, behind) = read(&mut place, 20_000);
        assert_eq!(given, (1..=20_000).collect::<Vec<_>>());
        assert_eq!((behind.as_slice(), place.follows), (&[][..], true));
    }

    #[test]
    fn a_reader_that_kept_up_and_falls_behind_is_told_once_and_loses_nothing() {
        let mut place = Place::new(1);
        assert!(place.take(1, 1));
        let (given, behind) = read(&mut place, MAX_BEHIND + 1);
        assert_eq!((given.len() as u64, behind.len()), (MAX_BEHIND, 0), "one less is near enough");
        let before = place.next;
        let (given, behind) = read(&mut place, 3 * MAX_BEHIND);
        assert_eq!(behind, [before]);
        assert_eq!(given, (before..=3 * MAX_BEHIND).collect::<Vec<_>>());
        let (given, behind) = read(&mut place, 6 * MAX_BEHIND);
        assert_eq!((given.len() as u64, behind.len()), (3 * MAX_BEHIND, 1), "it had caught up");
    }

    #[test]
    fn only_a_whole_piece_is_followed_by_another() {
        let mut place = Place::new(1);
        for sequence_number in 1..=u64::from(PIECE) {
            assert!(place.take(sequence_number, sequence_number));
        }
        assert!(place.turns());
        assert!(!place.turns(), "an empty one is the end");
        assert!(place.take(u64::from(PIECE) + 1, u64::from(PIECE) + 1));
        assert!(!place.turns(), "so is one that isn't full");
    }
}
