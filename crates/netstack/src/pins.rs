//! Which names led to which addresses, and for how long.
//!
//! The resolver pins every address that it answers with; the policy asks for the names of an address when a packet
//! goes there. An address that no answer gave has no name, and a rule by name doesn't match it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::name::HostName;

/// Pins of one VM at a time. A guest that resolves more loses its oldest, and what it connects to by them.
pub const MAX_PINS: usize = 4_096;

/// Names that are believed to lead to one address. A network that delivers for others has more on an address, and a VM
/// that asks for more of them loses the oldest: every connection to the address is judged by each.
pub const MAX_NAMES: usize = 64;

/// Clients connect some time after they asked, and keep an answer for longer than they should.
pub const GRACE: Duration = Duration::from_secs(60);

/// The pins of one VM.
#[derive(Debug, Default)]
pub struct Pins {
    // Held for a look-up, never over an await.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    names: HashMap<IpAddr, Vec<Pin>>,
    count: usize,
}

#[derive(Debug)]
struct Pin {
    name: HostName,
    until: Instant,
}

impl Pins {
    /// Remembers that `name` was answered with `address`, to be believed for `ttl` and a [grace](GRACE).
    pub fn pin(&self, name: HostName, address: IpAddr, ttl: Duration, now: Instant) {
        let mut table = self.table();
        let until = now + ttl + GRACE;
        let pins = table.names.entry(address).or_default();
        if let Some(pin) = pins.iter_mut().find(|pin| pin.name == name) {
            // A shorter life given later takes nothing back.
            pin.until = pin.until.max(until);
            return;
        }
        if pins.len() == MAX_NAMES
            && let Some(oldest) = pins.iter_mut().min_by_key(|pin| pin.until)
        {
            *oldest = Pin { name, until };
            return;
        }
        pins.push(Pin { name, until });
        table.count += 1;
        if table.count > MAX_PINS {
            table.make_room(now);
        }
    }

    /// The names that lead to this address now, sorted.
    pub fn names_of(&self, address: IpAddr, now: Instant) -> Vec<HostName> {
        let table = self.table();
        let pins = table.names.get(&address).map(Vec::as_slice).unwrap_or_default();
        let mut names: Vec<HostName> =
            pins.iter().filter(|pin| pin.until > now).map(|pin| pin.name.clone()).collect();
        names.sort();
        names
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Forgets what has expired, and where that is not enough the oldest eighth: one pass then does for many pins.
    fn make_room(&mut self, now: Instant) {
        self.keep(|pin| pin.until > now);
        if self.count > MAX_PINS {
            let mut ends: Vec<Instant> = self.names.values().flatten().map(|pin| pin.until).collect();
            let (_, limit, _) = ends.select_nth_unstable(MAX_PINS / 8);
            let limit = *limit;
            self.keep(|pin| pin.until > limit);
        }
    }

    fn keep(&mut self, wanted: impl Fn(&Pin) -> bool) {
        self.names.retain(|_, pins| {
            pins.retain(|pin| wanted(pin));
            !pins.is_empty()
        });
        self.count = self.names.values().map(Vec::len).sum();
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
        let address = |number: usize| IpAddr::from((number as u32 / 4).to_be_bytes());
        let of = |number: usize| {
            pins.names_of(address(number), start).contains(&name(&format!("n{number}.example")))
        };
        for number in 0..MAX_PINS + 10 {
            let ttl = Duration::from_secs(number as u64);
            pins.pin(name(&format!("n{number}.example")), address(number), ttl, start);
        }
        assert!(!of(0) && !of(MAX_PINS / 8));
        assert!(of(MAX_PINS / 8 + 1) && of(MAX_PINS + 9));
    }

    #[test]
    fn an_address_of_very_many_names_has_its_newest() {
        let (pins, start, address) = (Pins::default(), Instant::now(), IpAddr::from([203, 0, 113, 7]));
        for number in 0..MAX_NAMES + 10 {
            let ttl = Duration::from_secs(number as u64);
            pins.pin(name(&format!("n{number}.example")), address, ttl, start);
        }
        let names = pins.names_of(address, start);
        assert_eq!(names.len(), MAX_NAMES);
        assert!(!names.contains(&name("n9.example")));
        assert!(names.contains(&name("n10.example")));
    }
}
