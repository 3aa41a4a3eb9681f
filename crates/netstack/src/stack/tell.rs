//! How the host is told of refusals: once for each kind, with the process, before the guest is told.
//!
//! A process can be found as long as it waits for its answer. So whoever refuses something tells it first and answers
//! then; where the answer is written by a server of our own, [`Attentive`] holds it back meanwhile.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use super::egress::{Facts, Shared};
use crate::event::repeats::Next;
use crate::event::{Limit, NetworkEventKind, Owner};
use crate::policy::Protocol;

/// A VM that doesn't say by then whose connection it was keeps the guest waiting no longer.
const LOOKUP_DEADLINE: Duration = Duration::from_millis(250);

/// Refusals of one connection that wait to be told.
const QUEUED_REFUSALS: usize = 16;

/// Whose a refusal is, as far as a packet shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub protocol: Protocol,
    pub guest: SocketAddr,
    pub remote: SocketAddr,
}

impl From<&Facts> for Asker {
    fn from(facts: &Facts) -> Self {
        Self { protocol: facts.protocol, guest: facts.key.guest, remote: facts.key.remote }
    }
}

impl Shared {
    /// Tells the host of a refusal, or counts it where the same has been told just now. The guest is told by the caller,
    /// afterwards.
    pub(super) async fn tell(&self, kind: NetworkEventKind, asker: Asker) {
        match self.refused_kind(kind, Some(asker.guest)) {
            Next::LookUp(kind) => {
                // Told also where this is dropped meanwhile.
                let mut found = Found { shared: self, kind: Some(kind), end: asker.guest, process: None };
                found.process = self.look_up(asker).await;
            }
            Next::Tell(kind) => self.events.push(kind),
            Next::Nothing => {}
        }
    }

    /// The same of what has no process, or of so many that there is no time to look for theirs.
    pub(super) fn tell_now(&self, kind: NetworkEventKind) {
        match self.refused_kind(kind, None) {
            Next::Tell(kind) | Next::LookUp(kind) => self.events.push(kind),
            Next::Nothing => {}
        }
    }

    pub(super) fn limit_reached(&self, limit: Limit) {
        self.tell_now(NetworkEventKind::LimitReached { limit });
    }

    fn refused_kind(&self, kind: NetworkEventKind, end: Option<SocketAddr>) -> Next {
        let next = self.repeats().refused(kind, end, Instant::now());
        if next != Next::Nothing {
            self.new_kind.notify_one();
        }
        next
    }

    /// Asks the VM, which is asked few such things at a time: one that is slow to answer is not asked more for it.
    async fn look_up(&self, asker: Asker) -> Option<Owner> {
        let found = async {
            let turn = Arc::clone(&self.lookups).acquire_owned().await.ok()?;
            let owner = (self.identify)(asker.protocol, asker.guest, asker.remote);
            let asked = tokio::spawn(async move {
                let owner = owner.await;
                drop(turn);
                owner
            });
            asked.await.ok().flatten()
        };
        tokio::time::timeout(LOOKUP_DEADLINE, found).await.ok().flatten()
    }

    /// Tells how many more there were of what goes on, and never returns: there is no reason for it to end.
    pub(super) async fn tell_repeats(&self) -> String {
        loop {
            let next = self.repeats().next();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    let counted = self.repeats().due(Instant::now());
                    self.tell_counted(counted);
                }
                () = self.new_kind.notified() => {}
            }
        }
    }

    /// Tells all that has been counted, at the end.
    pub(super) fn tell_rest(&self) {
        let counted = self.repeats().rest();
        self.tell_counted(counted);
    }

    fn tell_counted(&self, counted: Vec<(NetworkEventKind, u64)>) {
        for (kind, count) in counted {
            self.events.push_counted(kind, count);
        }
    }
}

/// A refusal whose process is looked for. Dropped, it is told with what has been found.
struct Found<'a> {
    shared: &'a Shared,
    kind: Option<NetworkEventKind>,
    end: SocketAddr,
    process: Option<Owner>,
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        let Some(kind) = self.kind.take() else { return };
        let told = self.shared.repeats().found(kind, self.end, self.process.take());
        if let Some(kind) = told {
            self.shared.events.push(kind);
        }
    }
}

/// A queue of refusals of one connection, and the guest's connection that waits for them to be told.
pub(super) fn attentive(stream: DuplexStream) -> (Attentive, Refusals, Telling) {
    let (queue, queued) = mpsc::channel(QUEUED_REFUSALS);
    let wait = Arc::new(Wait::default());
    let attentive = Attentive { stream: Some(stream), wait: Arc::clone(&wait) };
    (attentive, Refusals { queue, wait: Arc::clone(&wait) }, Telling { queued, wait })
}

/// Takes refusals in, from code that can't wait.
#[derive(Debug, Clone)]
pub(super) struct Refusals {
    queue: mpsc::Sender<NetworkEventKind>,
    wait: Arc<Wait>,
}

impl Refusals {
    pub(super) fn add(&self, shared: &Shared, kind: NetworkEventKind) {
        self.wait.state().untold += 1;
        if let Err(error) = self.queue.try_send(kind) {
            shared.tell_now(error.into_inner());
            self.wait.told();
        }
    }
}

/// Tells what the queue takes in, until nobody can add to it.
#[derive(Debug)]
pub(super) struct Telling {
    queued: mpsc::Receiver<NetworkEventKind>,
    wait: Arc<Wait>,
}

impl Telling {
    pub(super) async fn tell_all(mut self, shared: &Shared, asker: Asker) {
        while let Some(kind) = self.queued.recv().await {
            shared.tell(kind, asker).await;
            self.wait.told();
        }
    }
}

#[derive(Debug, Default)]
struct Wait {
    // Held for a look or a change.
    state: Mutex<WaitState>,
}

#[derive(Debug, Default)]
struct WaitState {
    untold: usize,
    waker: Option<Waker>,
    /// The guest's connection once its server is through with it: its end is an answer, too.
    ended: Option<DuplexStream>,
}

impl Wait {
    fn state(&self) -> MutexGuard<'_, WaitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) {
        let mut state = self.state();
        state.untold = state.untold.saturating_sub(1);
        if state.untold == 0
            && let Some(waker) = state.waker.take()
        {
            waker.wake();
        }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.untold == 0 {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// A guest's connection on which nothing is written while something is to be told.
#[derive(Debug)]
pub(super) struct Attentive {
    /// Until it is dropped.
    stream: Option<DuplexStream>,
    wait: Arc<Wait>,
}

impl Attentive {
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut DuplexStream>> {
        self.get_mut().stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Attentive {
    fn drop(&mut self) {
        let stream = self.stream.take();
        let mut state = self.wait.state();
        if state.untold > 0 {
            state.ended = stream;
        }
    }
}

impl AsyncRead for Attentive {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Attentive {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.wait.poll(context));
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.wait.poll(context));
        self.stream()?.poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.wait.poll(context));
        self.stream()?.poll_shutdown(context)
    }
}
