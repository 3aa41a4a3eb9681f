//! Servers of a VM as they begin and stop to listen.
//!
//! The kernel tells nobody without privileges, so the table is looked at again and again, while somebody watches and
//! only then. Whoever listens for less than [`INTERVAL`] may be missed.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use agentos_vm::network::{ListeningPort, NetworkError};
use agentos_vm::{Unavailable, Vm};
use futures_core::Stream;
use futures_util::stream;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// A look costs the VM a tenth of a millisecond; whoever waits for a server does not notice the delay.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Listening(ListeningPort),
    Closed(ListeningPort),
}

/// Begins with what listens already. Ends with the VM, and says why.
pub(crate) fn watch(vm: Vm) -> impl Stream<Item = Result<Change, Unavailable>> {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch { vm, ticks, known: Known::default(), changes: VecDeque::new() };
    stream::try_unfold(watch, |mut watch| async {
        let change = watch.next().await?;
        Ok(Some((change, watch)))
    })
}

struct Watch {
    vm: Vm,
    ticks: Interval,
    known: Known,
    /// Found by the last look: at most two of each address in the list.
    changes: VecDeque<Change>,
}

impl Watch {
    async fn next(&mut self) -> Result<Change, Unavailable> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            self.ticks.tick().await;
            match self.look().await {
                Ok(changes) => self.changes = changes,
                Err(NetworkError::Unavailable(unavailable)) => return Err(unavailable),
                // A VM that has no thread to look with now may have one the next time.
                Err(error) => tracing::debug!(%error, "can't look for what listens"),
            }
        }
    }

    async fn look(&mut self) -> Result<VecDeque<Change>, NetworkError> {
        let mut now = self.vm.listening_ports(false).await?;
        if self.known.has_all(&now) {
            // Their owners are known.
            return Ok(self.known.update(now));
        }
        now = self.vm.listening_ports(true).await?;
        Ok(self.known.update(now))
    }
}

/// What listened at the last look.
#[derive(Debug, Default)]
struct Known {
    ports: BTreeMap<(IpAddr, u16), ListeningPort>,
}

impl Known {
    fn has_all(&self, now: &[ListeningPort]) -> bool {
        now.iter().all(|port| self.ports.contains_key(&key(port)))
    }

    /// What has ended comes before what has begun.
    fn update(&mut self, now: Vec<ListeningPort>) -> VecDeque<Change> {
        let mut former = std::mem::take(&mut self.ports);
        let mut begun = Vec::new();
        for port in now {
            let known = former.remove(&key(&port));
            if known.is_none() {
                begun.push(Change::Listening(port.clone()));
            }
            self.ports.insert(key(&port), known.unwrap_or(port));
        }
        former.into_values().map(Change::Closed).chain(begun).collect()
    }
}

fn key(port: &ListeningPort) -> (IpAddr, u16) {
    (port.address, port.port)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use agentos_vm::network::SocketOwner;

    use super::*;

    fn port(port: u16, pid: Option<i32>) -> ListeningPort {
        let owner = pid.map(|pid| SocketOwner { pid, command: "server".to_owned() });
        ListeningPort { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port, owner }
    }

    #[test]
    fn only_what_has_changed_is_told_and_what_ended_first() {
        let mut known = Known::default();
        let first = known.update(vec![port(80, Some(7)), port(81, Some(8))]);
        assert_eq!(first, [Change::Listening(port(80, Some(7))), Change::Listening(port(81, Some(8)))]);
        assert!(known.has_all(&[port(81, None)]) && !known.has_all(&[port(82, None)]));
        assert!(known.update(vec![port(80, None), port(81, None)]).is_empty());
        let second = known.update(vec![port(80, None), port(82, Some(9))]);
        assert_eq!(second, [Change::Closed(port(81, Some(8))), Change::Listening(port(82, Some(9)))]);
        assert_eq!(known.update(Vec::new()).len(), 2);
    }

    #[test]
    fn the_same_port_of_two_addresses_is_two() {
        let mut known = Known::default();
        let other = ListeningPort { address: "::1".parse().unwrap(), ..port(80, None) };
        assert_eq!(known.update(vec![port(80, None), other]).len(), 2);
    }
}
