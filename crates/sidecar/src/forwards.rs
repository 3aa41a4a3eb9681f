//! The addresses of the host that lead to ports of one VM.
//!
//! ```text
//! ForwardPort ──► held by its stream ──► closed when the client lets go of it
//!            └──► kept ────────────────► closed by its address
//! ```
//! Either ends with the VM: [`Forwards::close_all`] comes before the VM is taken apart, and a forward that is late finds
//! the door shut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentos_vm::forward::PortForward;
use futures_util::future::join_all;

#[derive(Debug, Default)]
pub(crate) struct Forwards {
    /// Held for one insertion or removal.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    /// By number, because an address may be used again.
    forwards: HashMap<u64, PortForward>,
    /// The VM is being disposed.
    shut: bool,
}

/// A forward that lives as long as this.
#[derive(Debug)]
pub(crate) struct Held {
    forwards: Arc<Forwards>,
    number: u64,
}

impl Held {
    /// Leaves the forward to its VM.
    pub(crate) fn keep(mut self) {
        // No forward has this number.
        self.number = 0;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.forwards.open().forwards.remove(&self.number));
    }
}

impl Forwards {
    /// Takes a forward in; gives it back where the VM is being disposed.
    pub(crate) fn add(self: &Arc<Self>, forward: PortForward) -> Result<Held, PortForward> {
        let mut open = self.open();
        if open.shut {
            return Err(forward);
        }
        open.last += 1;
        let number = open.last;
        open.forwards.insert(number, forward);
        Ok(Held { forwards: Arc::clone(self), number })
    }

    /// Returns when nobody listens there any more on behalf of this VM.
    pub(crate) async fn close(&self, address: SocketAddr) {
        let closed: Vec<PortForward> = {
            let mut open = self.open();
            open.forwards
                .extract_if(|_, forward| forward.local_addr() == address)
                .map(|(_, forward)| forward)
                .collect()
        };
        join_all(closed.into_iter().map(PortForward::close)).await;
    }

    /// Closes every forward, and lets none be opened.
    pub(crate) async fn close_all(&self) {
        let closed = {
            let mut open = self.open();
            open.shut = true;
            std::mem::take(&mut open.forwards)
        };
        join_all(closed.into_values().map(PortForward::close)).await;
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Every change is one insertion or one removal.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
