//! Which names led to which addresses, and for how long.
//!
//! The resolver pins every address that it answers with; the policy asks for the names of an address when a packet
//! goes there. An address that no answer gave has no name, and a rule by name doesn't match it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::name::HostName;

/// Pins of one VM at a time. A guest that resolves more loses its oldest, and what it connects to by them.
pub const MAX_PINS: usize = 4_096;

/// Clients connect some time after they asked, and keep an answer for longer than they should.
pub const GRACE: Duration = Duration::from_secs(60);

/// The pins of one VM.
#[derive(Debug, Default)]
pub struct Pins {
    // Held for a look-up, never over an await.
    table: Mutex<HashMap<(IpAddr, HostName), Instant>>,
}

impl Pins {
    /// Remembers that `name` was answered with `address`, to be believed for `ttl` and a [grace](GRACE).
    pub fn pin(&self, name: HostName, address: IpAddr, ttl: Duration, now: Instant) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let until = now + ttl + GRACE;
        let former = table.insert((address, name.clone()), until);
        if let Some(former) = former.filter(|former| *former > until) {
            table.insert((address, name), former);
        }
        if table.len() > MAX_PINS {
            table.retain(|_, until| *until > now);
        }
        if table.len() > MAX_PINS {
            let oldest = table.iter().min_by_key(|(_, until)| **until).map(|(key, _)| key.clone());
            oldest.map(|key| table.remove(&key));
        }
    }

    /// The names that lead to this address now, sorted.
    pub fn names_of(&self, address: IpAddr, now: Instant) -> Vec<HostName> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let live = table.iter().filter(|((pinned, _), until)| *pinned == address && **until > now);
        let mut names: Vec<HostName> = live.map(|((_, name), _)| name.clone()).collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    #[test]
    fn an_answer_is_believed_until_it_has_expired() {
        let (pins, start, address) = (Pins::default(), Instant::now(), IpAddr::from([203, 0, 113, 7]));
        pins.pin(name("b.example"), address, Duration::from_secs(5), start);
        pins.pin(name("a.example"), address, Duration::from_secs(50), start);
        // A shorter life given later takes nothing back.
        pins.pin(name("a.example"), address, Duration::ZERO, start);
        assert_eq!(pins.names_of(address, start), [name("a.example"), name("b.example")]);
        let later = start + GRACE + Duration::from_secs(6);
        assert_eq!(pins.names_of(address, later), [name("a.example")]);
        assert!(pins.names_of(IpAddr::from([203, 0, 113, 8]), start).is_empty());
    }

    #[test]
    fn a_guest_that_resolves_without_end_loses_its_oldest_pins() {
        let (pins, start) = (Pins::default(), Instant::now());
        let address = IpAddr::from([203, 0, 113, 7]);
        for number in 0..MAX_PINS + 10 {
            let ttl = Duration::from_secs(number as u64);
            pins.pin(name(&format!("n{number}.example")), address, ttl, start);
        }
        let names = pins.names_of(address, start);
        assert_eq!(names.len(), MAX_PINS);
        assert!(!names.contains(&name("n9.example")));
        assert!(names.contains(&name("n10.example")));
    }
}
