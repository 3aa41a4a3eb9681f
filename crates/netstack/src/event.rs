//! What the host is told about a VM's network: every refusal, every limit that was met, and how the network ended.
//!
//! Events are numbered and kept in a ring. A reader that comes late, or reads slowly, learns how many it has missed;
//! nobody is ever waited for. What a guest does over and over is not told over and over: see [`repeats`].

pub(crate) mod repeats;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::name::HostName;
use crate::policy::Protocol;

/// Events that are kept.
pub const MAX_EVENTS: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkEvent {
    /// From 0, without gaps.
    pub sequence: u64,
    pub at: SystemTime,
    /// How often it happened since it was told last: 1 for what is told for the first time, which is told at once.
    pub count: u64,
    pub kind: NetworkEventKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NetworkEventKind {
    /// A connection or datagram did not leave, or a connection was cut.
    Refused {
        protocol: Protocol,
        destination: SocketAddr,
        /// The names that had led to the address, or that the connection was said to be for.
        names: Vec<HostName>,
        /// A sentence.
        reason: String,
        /// The rule that decided, as it was given, where one did.
        rule: Option<String>,
        process: Option<Owner>,
    },
    /// A query did not leave.
    QueryRefused {
        name: HostName,
        reason: String,
        /// As for [`Refused`](Self::Refused).
        rule: Option<String>,
        process: Option<Owner>,
    },
    /// A request did not get its secret, or did not leave for that reason.
    Border {
        destination: String,
        reason: String,
        /// What was declared for requests that go there, where something was.
        rule: Option<String>,
        process: Option<Owner>,
    },
    /// There was no room for something that the policy may have allowed.
    LimitReached { limit: Limit },
    /// Refusals of so many different kinds at a time that these are not told one by one.
    Further,
    /// The VM has no network any more.
    Ended { reason: String },
}

impl NetworkEventKind {
    /// The same, with the process that it was.
    fn by(mut self, found: Option<Owner>) -> Self {
        match &mut self {
            Self::Refused { process, .. }
            | Self::QueryRefused { process, .. }
            | Self::Border { process, .. } => *process = found,
            Self::LimitReached { .. } | Self::Further | Self::Ended { .. } => {}
        }
        self
    }
}

/// What there may be so much of and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connections of the VM.
    Connections,
    /// Pairs of ends of the VM that exchange datagrams. The longest idle makes room.
    DatagramFlows,
    /// Ports of the VM that ask the resolver. The longest idle makes room.
    Queries,
    /// Pings of the VM that wait for their answer.
    Pings,
    /// Sockets of all VMs together.
    HostSockets,
    /// Bytes of the VM's packets that wait to be handled.
    QueuedBytes,
}

/// A process of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// In the VM's own numbers.
    pub pid: i32,
    /// The beginning of its command line, as the guest gives it.
    pub command: String,
}

/// The events of one VM.
#[derive(Debug)]
pub struct EventLog {
    // Held for a push or a copy; never over an await.
    ring: Mutex<VecDeque<Arc<NetworkEvent>>>,
    next: watch::Sender<u64>,
}

/// Events from some number on.
#[derive(Debug)]
pub struct Events {
    pub events: Vec<Arc<NetworkEvent>>,
    /// How many of those asked for are no longer kept.
    pub missed: u64,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { ring: Mutex::default(), next: watch::Sender::new(0) }
    }
}

impl EventLog {
    pub fn push(&self, kind: NetworkEventKind) {
        self.push_counted(kind, 1);
    }

    /// The same of something that has happened so often.
    pub(crate) fn push_counted(&self, kind: NetworkEventKind, count: u64) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = *self.next.borrow();
        if ring.len() == MAX_EVENTS {
            ring.pop_front();
        }
        ring.push_back(Arc::new(NetworkEvent { sequence, at: SystemTime::now(), count, kind }));
        self.next.send_replace(sequence + 1);
    }

    /// Every event that is kept, from `sequence` on.
    pub fn since(&self, sequence: u64) -> Events {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.front().map_or(sequence, |event| event.sequence);
        let events = ring.iter().filter(|event| event.sequence >= sequence).cloned().collect();
        Events { events, missed: first.saturating_sub(sequence) }
    }

    /// Waits until there is one with this number or a later one.
    pub async fn reached(&self, sequence: u64) {
        let mut next = self.next.subscribe();
        // The sender is in here.
        let _ = next.wait_for(|next| *next > sequence).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(reason: &str) -> NetworkEventKind {
        NetworkEventKind::Ended { reason: reason.to_owned() }
    }

    #[tokio::test]
    async fn a_late_reader_gets_what_is_kept_and_the_number_of_what_is_not() {
        let log = EventLog::default();
        for number in 0..MAX_EVENTS + 5 {
            log.push(ended(&number.to_string()));
        }
        let all = log.since(0);
        assert_eq!((all.events.len(), all.missed), (MAX_EVENTS, 5));
        assert_eq!(all.events[0].kind, ended("5"));
        let rest = log.since(MAX_EVENTS as u64);
        assert_eq!((rest.events.len(), rest.missed), (5, 0));
        assert!(log.since(MAX_EVENTS as u64 + 5).events.is_empty());
        log.reached(3).await;
    }

    #[tokio::test]
    async fn a_reader_is_woken_by_the_event_it_waits_for() {
        let log = Arc::new(EventLog::default());
        let reader = Arc::clone(&log);
        let reading = tokio::spawn(async move { reader.reached(0).await });
        log.push(ended("now"));
        reading.await.unwrap();
    }
}
