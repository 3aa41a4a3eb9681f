//! Refusals that follow each other, put together.
//!
//! ```text
//! first of its kind ──► event, count 1 ──► counted for a second ──► event, count n ──► counted for two ──► …
//!                                               └── none came: forgotten, the next is the first again
//! ```
//! So a reader sees each different refusal at once, and later how many more there were; the sum of the counts is how many
//! there were in all. The time for which a kind is counted doubles as long as it goes on, up to [`LONGEST`]: a guest that
//! goes on for hours does not fill the log.
//!
//! Kinds are told apart by what was refused, and then by the process, which has to be looked up. That costs the VM, so
//! that it is done for the first few ends of a kind alone; what others do is counted with the first. New kinds come
//! from budgets, one for each [class](Class), so that a flood of datagrams hides no request for a secret; those beyond
//! them are one kind, [`Further`](NetworkEventKind::Further).
//!
//! There is no clock in here: who calls says what time it is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{NetworkEventKind, Owner};
use crate::policy::Protocol;

/// For how long a kind is counted after it was told first.
const FIRST: Duration = Duration::from_secs(1);

/// A kind that goes on is told at least so often.
const LONGEST: Duration = Duration::from_secs(64);

/// Processes that are looked for per kind, until it is forgotten.
const LOOKUPS_OF_A_KIND: usize = 4;

/// Different kinds of a class that are told at once, of 1,024 events that are kept.
const BURST: f64 = 128.0;

/// Those of a class that are counted at a time: each remembers what was refused, and names can be long.
const MAX_KINDS: usize = 256;

/// And then in a second.
const KINDS_PER_SECOND: f64 = 2.0;

/// What is being counted.
#[derive(Debug)]
pub(crate) struct Repeats {
    kinds: HashMap<NetworkEventKind, Kind>,
    budgets: HashMap<Class, Budget>,
}

/// What refusals are about, as far as one kind of flood makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Class {
    Connections,
    /// And pings.
    Datagrams,
    Names,
    Border,
}

impl Class {
    /// None: there are few of these.
    fn of(kind: &NetworkEventKind) -> Option<Self> {
        match kind {
            NetworkEventKind::Refused { protocol: Protocol::Tcp, .. } => Some(Self::Connections),
            NetworkEventKind::Refused { .. } => Some(Self::Datagrams),
            NetworkEventKind::QueryRefused { .. } => Some(Self::Names),
            NetworkEventKind::Border { .. } => Some(Self::Border),
            NetworkEventKind::LimitReached { .. }
            | NetworkEventKind::Further
            | NetworkEventKind::Ended { .. } => None,
        }
    }
}

/// New kinds that may be told now.
#[derive(Debug)]
struct Budget {
    left: f64,
    filled: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now.max(self.filled);
        self.left = (self.left + passed * KINDS_PER_SECOND).min(BURST);
        let is_enough = self.left >= 1.0;
        self.left -= if is_enough { 1.0 } else { 0.0 };
        is_enough
    }
}

#[derive(Debug)]
struct Kind {
    /// By process, in the order in which they were told.
    told: Vec<Told>,
    /// The ends that were looked up, or are. Each has the number of its process in `told` once that is known.
    ends: Vec<(SocketAddr, Option<usize>)>,
    /// What came before the first was told.
    early: u64,
    length: Duration,
    until: Instant,
}

#[derive(Debug)]
struct Told {
    process: Option<Owner>,
    more: u64,
}

/// What is to be done about a refusal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Find whose it is, then call [`Repeats::found`] in any case, with the kind as it is here.
    LookUp(NetworkEventKind),
    /// Tell it now.
    Tell(NetworkEventKind),
    /// It has been counted.
    Nothing,
}

impl Repeats {
    pub(crate) fn new(now: Instant) -> Self {
        let classes = [Class::Connections, Class::Datagrams, Class::Names, Class::Border];
        let budgets = classes.map(|class| (class, Budget { left: BURST, filled: now }));
        Self { kinds: HashMap::new(), budgets: budgets.into() }
    }

    /// Takes in a refusal, which says nothing of the process yet. `end` is the guest's, where it has one.
    pub(crate) fn refused(&mut self, kind: NetworkEventKind, end: Option<SocketAddr>, now: Instant) -> Next {
        if let Some(known) = self.kinds.get_mut(&kind) {
            let seen = end.filter(|_| known.ends.len() < LOOKUPS_OF_A_KIND);
            if let Some(new) = seen.filter(|end| known.number_of(*end).is_none()) {
                known.ends.push((new, None));
                return Next::LookUp(kind);
            }
            known.count(end);
            return Next::Nothing;
        }
        if !self.has_room(&kind, now) {
            return self.refused(NetworkEventKind::Further, None, now);
        }
        let told = if end.is_none() { vec![Told { process: None, more: 0 }] } else { Vec::new() };
        let ends = end.into_iter().map(|end| (end, None)).collect();
        let new = Kind { told, ends, early: 0, length: FIRST, until: now + FIRST };
        self.kinds.insert(kind.clone(), new);
        if end.is_none() { Next::Tell(kind) } else { Next::LookUp(kind) }
    }

    /// Says whose a refusal is that was to be looked up. What is to be told, if it is to be.
    pub(crate) fn found(
        &mut self,
        kind: NetworkEventKind,
        end: SocketAddr,
        process: Option<Owner>,
    ) -> Option<NetworkEventKind> {
        // A kind is not forgotten while one of its processes is looked for, but at the end of all.
        let Some(known) = self.kinds.get_mut(&kind) else { return Some(kind.by(process)) };
        let number = known.told.iter().position(|told| told.process == process);
        let place = number.unwrap_or(known.told.len());
        if let Some((_, asked)) = known.ends.iter_mut().find(|(asked, _)| *asked == end) {
            *asked = Some(place);
        }
        if number.is_none() {
            known.told.push(Told { process: process.clone(), more: std::mem::take(&mut known.early) });
            return Some(kind.by(process));
        }
        known.count(Some(end));
        None
    }

    /// When there may be something to tell without anything new.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.kinds.values().map(|kind| kind.until).min()
    }

    /// What has been counted by now and is to be told, how often each.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(NetworkEventKind, u64)> {
        let mut counted = Vec::new();
        self.kinds.retain(|kind, known| {
            if known.until > now {
                return true;
            }
            let before = counted.len();
            known.take(kind, &mut counted);
            let goes_on = counted.len() > before;
            known.length = if goes_on { (known.length * 2).min(LONGEST) } else { known.length };
            known.until = now + known.length;
            goes_on || known.is_looked_up()
        });
        counted
    }

    /// All that has been counted.
    pub(crate) fn rest(&mut self) -> Vec<(NetworkEventKind, u64)> {
        let mut counted = Vec::new();
        for (kind, mut known) in self.kinds.drain() {
            known.take(&kind, &mut counted);
            if known.early > 0 {
                counted.push((kind, known.early));
            }
        }
        counted
    }

    /// Whether one more kind can be told and counted.
    fn has_room(&mut self, kind: &NetworkEventKind, now: Instant) -> bool {
        let Some(class) = Class::of(kind) else { return true };
        // Asked first: who is out of it costs no more than this.
        if !self.budgets.get_mut(&class).is_some_and(|budget| budget.take(now)) {
            return false;
        }
        self.kinds.keys().filter(|known| Class::of(known) == Some(class)).count() < MAX_KINDS
    }
}

impl Kind {
    fn number_of(&self, end: SocketAddr) -> Option<Option<usize>> {
        self.ends.iter().find(|(known, _)| *known == end).map(|(_, number)| *number)
    }

    /// Counts one more with the process of its end, or else with the first.
    fn count(&mut self, end: Option<SocketAddr>) {
        let number = end.and_then(|end| self.number_of(end)).flatten().unwrap_or(0);
        match self.told.get_mut(number) {
            Some(told) => told.more += 1,
            None => self.early += 1,
        }
    }

    fn is_looked_up(&self) -> bool {
        self.ends.iter().any(|(_, number)| number.is_none())
    }

    fn take(&mut self, kind: &NetworkEventKind, counted: &mut Vec<(NetworkEventKind, u64)>) {
        for told in self.told.iter_mut().filter(|told| told.more > 0) {
            counted.push((kind.clone().by(told.process.clone()), std::mem::take(&mut told.more)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Limit;

    fn refused(port: u16) -> NetworkEventKind {
        NetworkEventKind::Refused {
            protocol: Protocol::Udp,
            destination: SocketAddr::from(([192, 0, 2, 7], port)),
            names: Vec::new(),
            reason: "no rule allows it".to_owned(),
            rule: None,
            process: None,
        }
    }

    fn end(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 2, 15], port)))
    }

    fn owner(pid: i32) -> Option<Owner> {
        Some(Owner { pid, command: "flood".to_owned() })
    }

    /// A refusal from this port, which is found to be of this process where it is looked up.
    fn refuse(repeats: &mut Repeats, port: u16, pid: i32, now: Instant) -> Option<NetworkEventKind> {
        match repeats.refused(refused(7), end(port), now) {
            Next::LookUp(kind) => repeats.found(kind, end(port).unwrap(), owner(pid)),
            Next::Tell(kind) => Some(kind),
            Next::Nothing => None,
        }
    }

    #[test]
    fn what_is_counted_at_a_time_is_bounded() {
        let start = Instant::now();
        let mut repeats = Repeats::new(start);
        let tell = |repeats: &mut Repeats, number: u16| {
            repeats.refused(refused(number), None, start + Duration::from_secs(u64::from(number)))
        };
        for number in 0..MAX_KINDS as u16 {
            assert_eq!(tell(&mut repeats, number), Next::Tell(refused(number)));
        }
        assert_eq!(tell(&mut repeats, MAX_KINDS as u16), Next::Tell(NetworkEventKind::Further));
        // There is room again when some have not come for a while.
        let later = start + Duration::from_secs(2 * MAX_KINDS as u64);
        assert!(repeats.due(later).is_empty());
        assert_eq!(repeats.refused(refused(7), None, later), Next::Tell(refused(7)));
    }

    #[test]
    fn a_refusal_whose_process_is_found_after_the_end_is_told() {
        let start = Instant::now();
        let mut repeats = Repeats::new(start);
        let Next::LookUp(kind) = repeats.refused(refused(7), end(1), start) else { panic!("told too soon") };
        // The third has the process of nobody: it comes before the first is told.
        for _ in 0..2 {
            assert_eq!(repeats.refused(refused(7), end(1), start), Next::Nothing);
        }
        assert_eq!(repeats.rest(), [(refused(7), 2)]);
        assert_eq!(repeats.found(kind, end(1).unwrap(), owner(42)), Some(refused(7).by(owner(42))));
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_by_their_number() {
        let start = Instant::now();
        let mut repeats = Repeats::new(start);
        assert_eq!(refuse(&mut repeats, 1, 42, start), Some(refused(7).by(owner(42))));
        for _ in 0..999 {
            assert_eq!(
                repeats.refused(refused(7), end(1), start),
                Next::Nothing,
                "nothing is looked up again"
            );
        }
        assert!(repeats.due(start).is_empty());
        assert_eq!(repeats.next(), Some(start + FIRST));
        assert_eq!(repeats.due(start + FIRST), [(refused(7).by(owner(42)), 999)]);
        // Nothing more has come: the next is a first one.
        assert_eq!(repeats.due(start + 3 * FIRST), []);
        assert_eq!(repeats.next(), None);
        assert!(refuse(&mut repeats, 1, 42, start + 4 * FIRST).is_some());
    }

    #[test]
    fn what_goes_on_is_told_less_and_less_often() {
        let start = Instant::now();
        let mut repeats = Repeats::new(start);
        refuse(&mut repeats, 1, 42, start);
        let (mut events, mut sum) = (1, 1);
        for second in 1..=3_600 {
            let now = start + Duration::from_secs(second);
            refuse(&mut repeats, 1, 42, now);
            for (_, count) in repeats.due(now) {
                (events, sum) = (events + 1, sum + count);
            }
        }
        sum += repeats.rest().iter().map(|(_, count)| count).sum::<u64>();
        assert_eq!(sum, 3_601, "none is left out");
        assert!((50..80).contains(&events), "{events}");
    }

    #[test]
    fn processes_are_told_apart_as_far_as_they_are_looked_up() {
        let start = Instant::now();
        let mut repeats = Repeats::new(start);
        let told = |repeats: &mut Repeats, port, pid| refuse(repeats, port, pid, start).is_some();
        assert!(told(&mut repeats, 1, 42), "the first");
        assert!(!told(&mut repeats, 2, 42), "another connection of the same");
        assert!(told(&mut repeats, 3, 43), "another process");
        assert!(!told(&mut repeats, 3, 43), "from the same end again");
        assert!(told(&mut repeats, 4, 44));
        assert_eq!(repeats.refused(refused(7), end(5), start), Next::Nothing, "no fifth is looked up");
        let mut counted = repeats.due(start + FIRST);
        counted.sort_by_key(|(_, count)| *count);
        assert_eq!(counted, [(refused(7).by(owner(43)), 1), (refused(7).by(owner(42)), 2)]);
    }

    #[test]
    fn what_comes_while_the_first_is_looked_up_is_counted_with_it() {
        let start = Instant::now();
        let mut repeats = Repeats::new(start);
        let Next::LookUp(kind) = repeats.refused(refused(7), end(1), start) else { panic!() };
        assert_eq!(repeats.refused(refused(7), end(1), start), Next::Nothing);
        assert_eq!(repeats.due(start + LONGEST), [], "it has not been told");
        assert!(repeats.found(kind, end(1).unwrap(), None).is_some());
        assert_eq!(repeats.due(start + 2 * LONGEST), [(refused(7), 1)]);
    }

    #[test]
    fn too_many_different_ones_are_one_kind() {
        let start = Instant::now();
        let mut repeats = Repeats::new(start);
        let mut told = Vec::new();
        for port in 1..=60_000 {
            match repeats.refused(refused(port), None, start) {
                Next::Tell(kind) => told.push(kind),
                other => assert_eq!(other, Next::Nothing),
            }
        }
        assert_eq!(told.len(), BURST as usize + 1);
        assert_eq!(told.last(), Some(&NetworkEventKind::Further));
        let rest = 60_000 - BURST as u64 - 1;
        assert_eq!(repeats.due(start + FIRST), [(NetworkEventKind::Further, rest)]);
        // Some time later there is room again.
        let later = start + LONGEST;
        assert_eq!(repeats.refused(refused(9), None, later), Next::Tell(refused(9)));
        let limit = NetworkEventKind::LimitReached { limit: Limit::Connections };
        assert_eq!(repeats.refused(limit.clone(), None, later), Next::Tell(limit));
    }
}
