//! How much went where.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Destinations that are told apart; traffic of further ones is counted in the totals alone.
const MAX_DESTINATIONS: usize = 1_024;

/// What a VM's network has done since it came up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkStats {
    /// Bytes of payload that left, without any headers.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// TCP connections that were made, and those that live now.
    pub connections: u64,
    pub open_connections: u64,
    /// Connections, datagrams, pings, queries and requests that were refused.
    pub refused: u64,
    /// Packets of the guest that could not be read, or came when there was no room for them.
    pub dropped_packets: u64,
    /// By address, the largest first.
    pub destinations: Vec<DestinationStats>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationStats {
    pub address: IpAddr,
    /// The name by which the guest came to it last, if by one.
    pub name: Option<String>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    totals: Arc<Totals>,
    // Held for a look-up; never over an await.
    destinations: Mutex<HashMap<IpAddr, Destination>>,
    connections: AtomicU64,
    open: Arc<AtomicU64>,
    refused: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Totals {
    sent: AtomicU64,
    received: AtomicU64,
}

#[derive(Debug, Default)]
struct Destination {
    totals: Arc<Totals>,
    name: Option<String>,
}

/// Counts for one flow.
#[derive(Debug)]
pub(super) struct Counter {
    all: Arc<Totals>,
    own: Option<Arc<Totals>>,
}

/// A connection that lives.
#[derive(Debug)]
pub(super) struct Live(Arc<AtomicU64>);

impl Counter {
    pub(super) fn sent(&self, bytes: usize) {
        self.totals().for_each(|totals| add(&totals.sent, bytes as u64));
    }

    pub(super) fn received(&self, bytes: usize) {
        self.totals().for_each(|totals| add(&totals.received, bytes as u64));
    }

    fn totals(&self) -> impl Iterator<Item = &Arc<Totals>> {
        std::iter::once(&self.all).chain(&self.own)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stats {
    /// A counter for traffic with an address.
    pub(super) fn count(&self, address: IpAddr, name: Option<String>) -> Counter {
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        let known = destinations.len() < MAX_DESTINATIONS || destinations.contains_key(&address);
        let own = known.then(|| {
            let destination = destinations.entry(address).or_default();
            if name.is_some() {
                destination.name = name;
            }
            Arc::clone(&destination.totals)
        });
        Counter { all: Arc::clone(&self.totals), own }
    }

    /// Counts a connection that has been made, until it is dropped as one that lives.
    pub(super) fn connected(&self) -> Live {
        add(&self.connections, 1);
        add(&self.open, 1);
        Live(Arc::clone(&self.open))
    }

    pub(super) fn refused(&self) {
        add(&self.refused, 1);
    }

    pub(super) fn dropped(&self) {
        add(&self.dropped, 1);
    }

    pub(super) fn snapshot(&self) -> NetworkStats {
        let table = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        let mut destinations: Vec<DestinationStats> = table
            .iter()
            .map(|(address, destination)| DestinationStats {
                address: *address,
                name: destination.name.clone(),
                sent_bytes: read(&destination.totals.sent),
                received_bytes: read(&destination.totals.received),
            })
            .collect();
        drop(table);
        destinations.sort_by_key(|one| (std::cmp::Reverse(one.sent_bytes + one.received_bytes), one.address));
        NetworkStats {
            sent_bytes: read(&self.totals.sent),
            received_bytes: read(&self.totals.received),
            connections: read(&self.connections),
            open_connections: read(&self.open),
            refused: read(&self.refused),
            dropped_packets: read(&self.dropped),
            destinations,
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
