//! Who holds what: client connections, leases, VMs and their names. Pure state; [`crate::host`] does the work.
//!
//! ```text
//! lease:  Open ──DisposeLease──► Disposing ──► Disposed ──stream ends──► gone
//!           └────────────────── stream ends ───────────────────────────► gone
//! VM:     Creating ──► Live ──► Disposing ──► gone
//!            └── failed, abandoned, or its lease ended ──► gone
//! ```
//! A failed VM is a live one whose handle says so: it stays listed until it is disposed or its lease ends.
//!
//! The sidecar is *idle*, and ends after its linger time, when no VM is left and no client is connected. An explicit
//! sidecar belongs to the client that started it: it is idle also when every lease it ever had has been disposed.

use std::collections::{BTreeMap, HashMap};

use agentos_proto::rendezvous::is_name;

/// A VM's id. It names the sidecar's run and counts, so that a VM that is gone is told from one that never was
/// without remembering either.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct VmId(String);

impl VmId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LeaseId(String);

impl LeaseId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a request isn't legal now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("Lease not found: {0}")]
    LeaseNotFound(String),
    #[error("Cannot lease VM from sidecar {sidecar} while it is {state}")]
    LeaseEnding { sidecar: String, state: &'static str },
    #[error("VM not found: {0}")]
    VmNotFound(String),
    #[error("VM is disposed: {0}")]
    VmDisposed(String),
    #[error("VM is not ready yet: {0}")]
    VmCreating(String),
    #[error("No VM is named {0}")]
    NameNotFound(String),
    #[error("A VM is named {0} already")]
    NameTaken(String),
    #[error(
        "Not a name for a VM: {0:?} (letters, digits, '-', '_' and '.', at most 64, not beginning with '.')"
    )]
    BadName(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseState {
    Open,
    Disposing,
    Disposed,
}

#[derive(Debug)]
enum Phase<V> {
    Creating,
    Live(V),
    Disposing(V),
}

#[derive(Debug)]
struct Entry<V> {
    phase: Phase<V>,
    holder: Holder,
    created_at_ms: u64,
}

/// What keeps a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    Lease(LeaseId),
    Name(String),
}

/// One line of the list of VMs.
#[derive(Debug)]
pub(crate) struct Listed<V> {
    pub(crate) id: VmId,
    /// Empty for a leased VM.
    pub(crate) name: String,
    pub(crate) vm: V,
    pub(crate) disposing: bool,
    pub(crate) created_at_ms: u64,
}

/// `V` is a cheap handle of a VM.
#[derive(Debug)]
pub(crate) struct Registry<V> {
    sidecar_id: String,
    /// Begins every id this run gives out.
    tag: String,
    explicit: bool,
    connections: usize,
    /// Grows with every connection, so that one that came and went is seen.
    connections_seen: u64,
    leases_seen: u64,
    leases: HashMap<LeaseId, LeaseState>,
    vms_seen: u64,
    /// By number, which is the order of creation.
    vms: BTreeMap<u64, Entry<V>>,
    names: HashMap<String, u64>,
}

impl<V: Clone> Registry<V> {
    pub(crate) fn new(sidecar_id: String, tag: String, explicit: bool) -> Self {
        Self {
            sidecar_id,
            tag,
            explicit,
            connections: 0,
            connections_seen: 0,
            leases_seen: 0,
            leases: HashMap::new(),
            vms_seen: 0,
            vms: BTreeMap::new(),
            names: HashMap::new(),
        }
    }

    pub(crate) fn connected(&mut self) {
        self.connections += 1;
        self.connections_seen += 1;
    }

    pub(crate) fn disconnected(&mut self) {
        self.connections -= 1;
    }

    pub(crate) fn connections_seen(&self) -> u64 {
        self.connections_seen
    }

    pub(crate) fn is_idle(&self) -> bool {
        let clientless = self.connections == 0;
        let given_up = self.explicit
            && self.leases_seen > 0
            && self.leases.values().all(|state| *state == LeaseState::Disposed);
        self.vms.is_empty() && (clientless || given_up)
    }

    pub(crate) fn open_lease(&mut self) -> LeaseId {
        self.leases_seen += 1;
        let id = LeaseId(format!("lease-{}-{}", self.tag, self.leases_seen));
        self.leases.insert(id.clone(), LeaseState::Open);
        id
    }

    pub(crate) fn lease(&self, lease: &str) -> Result<(LeaseId, LeaseState), Refusal> {
        let id = LeaseId(lease.to_owned());
        match self.leases.get(&id) {
            Some(state) => Ok((id, *state)),
            None => Err(Refusal::LeaseNotFound(lease.to_owned())),
        }
    }

    pub(crate) fn set_lease(&mut self, lease: &LeaseId, state: LeaseState) {
        if let Some(current) = self.leases.get_mut(lease) {
            *current = state;
        }
    }

    /// The lease's stream has ended.
    pub(crate) fn end_lease(&mut self, lease: &LeaseId) {
        self.leases.remove(lease);
    }

    pub(crate) fn vms_of(&self, lease: &LeaseId) -> Vec<VmId> {
        let held = |entry: &&Entry<V>| matches!(&entry.holder, Holder::Lease(held) if held == lease);
        self.vms.iter().filter(|(_, entry)| held(entry)).map(|(number, _)| self.id(*number)).collect()
    }

    pub(crate) fn all_vms(&self) -> Vec<VmId> {
        self.vms.keys().map(|number| self.id(*number)).collect()
    }

    /// Gives out an id, and the name where the VM shall outlive its lease.
    pub(crate) fn reserve(&mut self, lease: &str, name: &str, now_ms: u64) -> Result<VmId, Refusal> {
        let (lease, state) = self.lease(lease)?;
        let state = match state {
            LeaseState::Open => None,
            LeaseState::Disposing => Some("disposing"),
            LeaseState::Disposed => Some("disposed"),
        };
        if let Some(state) = state {
            return Err(Refusal::LeaseEnding { sidecar: self.sidecar_id.clone(), state });
        }
        let holder = if name.is_empty() { Holder::Lease(lease) } else { Holder::Name(self.free_name(name)?) };
        self.vms_seen += 1;
        let number = self.vms_seen;
        if let Holder::Name(name) = &holder {
            self.names.insert(name.clone(), number);
        }
        self.vms.insert(number, Entry { phase: Phase::Creating, holder, created_at_ms: now_ms });
        Ok(self.id(number))
    }

    fn free_name(&self, name: &str) -> Result<String, Refusal> {
        if !is_name(name) {
            return Err(Refusal::BadName(name.to_owned()));
        }
        if self.names.contains_key(name) {
            return Err(Refusal::NameTaken(name.to_owned()));
        }
        Ok(name.to_owned())
    }

    /// The VM stands. Gives it back where its lease ended or is ending: the caller disposes it.
    pub(crate) fn created(&mut self, id: &VmId, vm: V) -> Result<(), V> {
        let Some(number) = self.number(id.as_str()) else { return Err(vm) };
        let Some(entry) = self.vms.get_mut(&number) else { return Err(vm) };
        let held = match &entry.holder {
            Holder::Lease(lease) => self.leases.get(lease) == Some(&LeaseState::Open),
            Holder::Name(_) => true,
        };
        if held {
            entry.phase = Phase::Live(vm);
            Ok(())
        } else {
            entry.phase = Phase::Disposing(vm.clone());
            Err(vm)
        }
    }

    /// Forgets a VM: it never came to stand, or nothing of it is left.
    pub(crate) fn remove(&mut self, id: &VmId) {
        let Some(entry) = self.number(id.as_str()).and_then(|number| self.vms.remove(&number)) else {
            return;
        };
        if let Holder::Name(name) = entry.holder {
            self.names.remove(&name);
        }
    }

    pub(crate) fn get(&self, id: &str) -> Result<V, Refusal> {
        match self.entry(id)?.1 {
            Entry { phase: Phase::Live(vm), .. } => Ok(vm.clone()),
            Entry { phase: Phase::Disposing(_), .. } => Err(Refusal::VmDisposed(id.to_owned())),
            Entry { phase: Phase::Creating, .. } => Err(Refusal::VmCreating(id.to_owned())),
        }
    }

    /// From now on no call reaches the VM. A VM that is being disposed may be disposed again: both wait.
    pub(crate) fn begin_dispose(&mut self, id: &str) -> Result<(VmId, V), Refusal> {
        let number = self.entry(id)?.0;
        let vm = match self.vms.get(&number).map(|entry| &entry.phase) {
            Some(Phase::Live(vm) | Phase::Disposing(vm)) => vm.clone(),
            Some(Phase::Creating) => return Err(Refusal::VmCreating(id.to_owned())),
            None => return Err(Refusal::VmDisposed(id.to_owned())),
        };
        if let Some(entry) = self.vms.get_mut(&number) {
            entry.phase = Phase::Disposing(vm.clone());
        }
        Ok((self.id(number), vm))
    }

    pub(crate) fn find_name(&self, name: &str) -> Result<VmId, Refusal> {
        let number = self.names.get(name).ok_or_else(|| Refusal::NameNotFound(name.to_owned()))?;
        let id = self.id(*number);
        self.get(id.as_str()).map(|_| id)
    }

    /// VMs that stand, in the order they were made.
    pub(crate) fn list(&self) -> Vec<Listed<V>> {
        let listed = |(number, entry): (&u64, &Entry<V>)| {
            let (vm, disposing) = match &entry.phase {
                Phase::Creating => return None,
                Phase::Live(vm) => (vm.clone(), false),
                Phase::Disposing(vm) => (vm.clone(), true),
            };
            let name = match &entry.holder {
                Holder::Name(name) => name.clone(),
                Holder::Lease(_) => String::new(),
            };
            Some(Listed { id: self.id(*number), name, vm, disposing, created_at_ms: entry.created_at_ms })
        };
        self.vms.iter().filter_map(listed).collect()
    }

    fn entry(&self, id: &str) -> Result<(u64, &Entry<V>), Refusal> {
        let number = self.number(id).ok_or_else(|| Refusal::VmNotFound(id.to_owned()))?;
        match self.vms.get(&number) {
            Some(entry) => Ok((number, entry)),
            None if number >= 1 && number <= self.vms_seen => Err(Refusal::VmDisposed(id.to_owned())),
            None => Err(Refusal::VmNotFound(id.to_owned())),
        }
    }

    fn id(&self, number: u64) -> VmId {
        VmId(format!("vm-{}-{number}", self.tag))
    }

    fn number(&self, id: &str) -> Option<u64> {
        let digits = id.strip_prefix("vm-")?.strip_prefix(self.tag.as_str())?.strip_prefix('-')?;
        // Only the spelling that was given out counts.
        digits.parse().ok().filter(|number: &u64| number.to_string() == digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fake = &'static str;

    fn pool() -> Registry<Fake> {
        Registry::new("side-1".into(), "7f".into(), false)
    }

    fn live(registry: &mut Registry<Fake>, lease: &LeaseId, name: &str) -> VmId {
        let id = registry.reserve(lease.as_str(), name, 5).unwrap();
        registry.created(&id, "vm").unwrap();
        id
    }

    #[test]
    fn a_lease_counts_and_ends_only_its_own_vms() {
        let mut registry = pool();
        let (mine, theirs) = (registry.open_lease(), registry.open_lease());
        let a = live(&mut registry, &mine, "");
        let b = live(&mut registry, &theirs, "");
        live(&mut registry, &mine, "kept");
        assert_eq!(registry.vms_of(&mine), [a]);
        assert_eq!(registry.vms_of(&theirs), [b]);
    }

    #[test]
    fn a_vm_that_is_gone_is_told_from_one_that_never_was() {
        let mut registry = pool();
        let lease = registry.open_lease();
        let id = live(&mut registry, &lease, "");
        registry.begin_dispose(id.as_str()).unwrap();
        assert_eq!(registry.get(id.as_str()), Err(Refusal::VmDisposed(id.as_str().into())));
        registry.begin_dispose(id.as_str()).expect("a second dispose waits with the first");
        registry.remove(&id);
        assert_eq!(registry.get(id.as_str()), Err(Refusal::VmDisposed(id.as_str().into())));
        for unknown in ["", "vm-7f-2", "vm-7f-0", "vm-7f-01", "vm-7f-+1", "vm-80-1", "7f-1"] {
            assert_eq!(registry.get(unknown), Err(Refusal::VmNotFound(unknown.into())));
        }
    }

    #[test]
    fn names_are_unique_and_free_again_after_dispose() {
        let mut registry = pool();
        let lease = registry.open_lease();
        let id = live(&mut registry, &lease, "web");
        let taken = registry.reserve(lease.as_str(), "web", 0);
        assert_eq!(taken, Err(Refusal::NameTaken("web".into())));
        assert_eq!(registry.find_name("web"), Ok(id.clone()));
        registry.remove(&id);
        assert_eq!(registry.find_name("web"), Err(Refusal::NameNotFound("web".into())));
        live(&mut registry, &lease, "web");
        assert!(matches!(registry.reserve(lease.as_str(), "a b", 0), Err(Refusal::BadName(_))));
    }

    #[test]
    fn a_name_is_taken_while_its_vm_is_being_made_and_free_when_that_fails() {
        let mut registry = pool();
        let lease = registry.open_lease();
        let id = registry.reserve(lease.as_str(), "web", 0).unwrap();
        assert_eq!(registry.find_name("web"), Err(Refusal::VmCreating(id.as_str().into())));
        assert!(matches!(registry.reserve(lease.as_str(), "web", 0), Err(Refusal::NameTaken(_))));
        registry.remove(&id);
        assert!(registry.reserve(lease.as_str(), "web", 0).is_ok());
    }

    #[test]
    fn a_vm_whose_lease_ended_while_it_was_made_is_given_back() {
        let mut registry = pool();
        let lease = registry.open_lease();
        let leased = registry.reserve(lease.as_str(), "", 0).unwrap();
        let kept = registry.reserve(lease.as_str(), "kept", 0).unwrap();
        registry.end_lease(&lease);
        assert_eq!(registry.created(&leased, "late"), Err("late"));
        assert_eq!(registry.created(&kept, "kept"), Ok(()));
        assert!(!registry.is_idle(), "the late VM is still to be disposed");
    }

    #[test]
    fn a_disposed_lease_gives_out_no_vm_and_says_whose_it_was() {
        let mut registry = pool();
        let lease = registry.open_lease();
        registry.set_lease(&lease, LeaseState::Disposing);
        let refusal = registry.reserve(lease.as_str(), "", 0).unwrap_err();
        assert_eq!(refusal.to_string(), "Cannot lease VM from sidecar side-1 while it is disposing");
        registry.set_lease(&lease, LeaseState::Disposed);
        let refusal = registry.reserve(lease.as_str(), "", 0).unwrap_err();
        assert_eq!(refusal.to_string(), "Cannot lease VM from sidecar side-1 while it is disposed");
        registry.end_lease(&lease);
        assert!(matches!(registry.reserve(lease.as_str(), "", 0), Err(Refusal::LeaseNotFound(_))));
    }

    #[test]
    fn a_pool_is_idle_without_clients_and_vms() {
        let mut registry = pool();
        registry.connected();
        assert!(!registry.is_idle(), "a client is connected");
        let lease = registry.open_lease();
        let kept = live(&mut registry, &lease, "kept");
        registry.end_lease(&lease);
        registry.disconnected();
        assert!(!registry.is_idle(), "a kept VM holds the sidecar");
        registry.remove(&kept);
        assert!(registry.is_idle());
    }

    #[test]
    fn an_explicit_sidecar_ends_with_its_last_lease_though_the_client_stays() {
        let mut registry: Registry<Fake> = Registry::new("side-1".into(), "7f".into(), true);
        registry.connected();
        assert!(!registry.is_idle(), "its client has not leased yet");
        let (first, second) = (registry.open_lease(), registry.open_lease());
        registry.set_lease(&first, LeaseState::Disposed);
        assert!(!registry.is_idle(), "the other lease is open");
        registry.set_lease(&second, LeaseState::Disposed);
        assert!(registry.is_idle());
    }

    #[test]
    fn the_list_is_in_the_order_of_creation_and_shows_disposal() {
        let mut registry = pool();
        let lease = registry.open_lease();
        let ids: Vec<VmId> = (0..12).map(|_| live(&mut registry, &lease, "")).collect();
        registry.reserve(lease.as_str(), "", 0).unwrap();
        registry.begin_dispose(ids[3].as_str()).unwrap();
        let listed = registry.list();
        assert_eq!(listed.iter().map(|line| line.id.clone()).collect::<Vec<_>>(), ids);
        assert!(listed.iter().enumerate().all(|(n, line)| line.disposing == (n == 3)));
    }
}
