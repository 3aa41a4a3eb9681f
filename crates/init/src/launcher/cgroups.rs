//! Control groups by plain file calls, version 1 and 2.
//!
//! ```text
//! <hierarchy>/<own group>/agentos/<launcher pid>-<start time>/<vm>
//! ```
//! Version 2 has processes in leaves alone. Where the caller's own group has our processes in it, they move into a leaf
//! (`<own group>/agentos/self`) before the group may pass its controllers on; where it has others', too, it never may, and
//! a root sidecar has its groups below the root of the hierarchy instead, as container engines do.
//!
//! The hierarchies are opened before the launcher hides /sys. A directory of a launcher that is gone is removed by
//! the next one. Version 2 takes the clone in at birth; in version 1 the clone writes `0` into the `tasks` files it
//! inherits, because a pid written from outside waits for a grace period of the kernel.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use agentos_guest_protocol::launcher::{BootFailure, Cgroups, Limits};
use agentos_linux::Errno;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::wire::failure;

/// The hierarchies in which this launcher may make groups.
#[derive(Debug, Default)]
pub(crate) struct Hierarchies {
    memory: Option<OwnedFd>,
    cpu: Option<OwnedFd>,
    processes: Option<OwnedFd>,
    unified: Option<OwnedFd>,
    /// Where a reader outside of this mount namespace finds the directories.
    paths: BTreeMap<&'static str, PathBuf>,
    /// The parents of the launcher's own directories, and their name there. By descriptor: the launcher hides /sys.
    parents: Vec<(OwnedFd, String)>,
}

/// The groups of one VM.
#[derive(Debug, Default)]
pub(super) struct Groups {
    name: String,
    /// Files the clone writes `0` to.
    pub tasks: Vec<OwnedFd>,
    /// The group the clone is born into.
    pub unified: Option<OwnedFd>,
    pub readable: Cgroups,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Hierarchies {
    /// Finds what can be used. What can't is absent, and the sidecar refuses limits that would need it.
    pub(super) fn open(sidecar: u32) -> Self {
        let ours = [sidecar, std::process::id()];
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut hierarchies = Self::default();
        for Found { key, version, own, top } in find(&mounts, &own) {
            let prepared = match version {
                Version::One => prepare_parent(&own, version),
                Version::Two => prepare_unified(&own, &top, &ours),
            };
            let Some(Prepared { directory, place, shared, name }) = prepared else { continue };
            hierarchies.paths.insert(key, place);
            hierarchies.parents.push((shared, name));
            match key {
                "memory" => hierarchies.memory = Some(directory),
                "cpu" => hierarchies.cpu = Some(directory),
                "pids" => hierarchies.processes = Some(directory),
                _ => hierarchies.unified = Some(directory),
            }
        }
        hierarchies
    }

    pub(super) fn has_memory(&self) -> bool {
        self.memory.is_some() || self.unified.is_some()
    }

    pub(super) fn has_cpu(&self) -> bool {
        self.cpu.is_some() || self.unified.is_some()
    }

    pub(super) fn has_processes(&self) -> bool {
        self.processes.is_some() || self.unified.is_some()
    }

    /// Makes the groups of one VM with its limits set.
    pub(super) fn create(&self, limits: &Limits) -> Result<Groups, BootFailure> {
        let name = limits.cgroup_name.clone();
        let mut groups = Groups { name, ..Groups::default() };
        let result = self.fill(&mut groups, limits);
        if result.is_err() {
            self.remove(&groups);
        }
        result.map(|()| groups)
    }

    fn fill(&self, groups: &mut Groups, limits: &Limits) -> Result<(), BootFailure> {
        let name = groups.name.clone();
        if let Some(parent) = &self.unified {
            let group = make_group(parent, &name)?;
            for (file, value) in unified_values(limits) {
                set(&group, &name, file, &value)?;
            }
            groups.readable.oom_events = self.readable("unified", &name, "memory.events");
            groups.unified = Some(group);
        }
        if let (Some(parent), Some(bytes)) = (&self.memory, limits.memory_bytes) {
            let group = make_group(parent, &name)?;
            set(&group, &name, "memory.limit_in_bytes", &bytes.to_string())?;
            // Memory and swap together; it may not be less than memory alone, so it comes second.
            set(&group, &name, SWAP_LIMIT, &bytes.to_string())?;
            groups.readable.oom_events = self.readable("memory", &name, "memory.oom_control");
            groups.tasks.push(open_tasks(&group, &name)?);
        }
        if let (Some(parent), Some(millis)) = (&self.cpu, limits.cpu_millis) {
            let group = make_group(parent, &name)?;
            let quota = u64::from(millis) * CPU_PERIOD_US / 1000;
            set(&group, &name, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            set(&group, &name, "cpu.cfs_quota_us", &quota.to_string())?;
            groups.tasks.push(open_tasks(&group, &name)?);
        }
        if let Some(parent) = &self.processes {
            let group = make_group(parent, &name)?;
            set(&group, &name, "pids.max", &process_budget(limits).to_string())?;
            groups.tasks.push(open_tasks(&group, &name)?);
        }
        Ok(())
    }

    fn readable(&self, key: &str, name: &str, file: &str) -> Option<agentos_guest_protocol::Bytes> {
        let path = self.paths.get(key)?.join(name).join(file);
        Some(agentos_guest_protocol::Bytes::from(path.into_os_string().into_encoded_bytes()))
    }

    /// Removes the groups of a VM that is gone. False while the kernel still counts one of its processes.
    pub(super) fn remove(&self, groups: &Groups) -> bool {
        let parents = [&self.memory, &self.cpu, &self.processes, &self.unified];
        parents.into_iter().flatten().all(|parent| {
            !matches!(
                rustix::fs::unlinkat(parent, groups.name.as_str(), AtFlags::REMOVEDIR),
                Err(Errno::BUSY)
            )
        })
    }

    /// Removes the launcher's own directories, once it has no VM.
    pub(super) fn remove_own(&self) {
        for (shared, name) in &self.parents {
            // Nothing depends on it: the next launcher cleans up what is left.
            let _ = rustix::fs::unlinkat(shared, name.as_str(), AtFlags::REMOVEDIR);
        }
    }
}

const CPU_PERIOD_US: u64 = 100_000;

/// PID 1 and the threads that serve files count too, and are not the guest's.
fn process_budget(limits: &Limits) -> u64 {
    u64::from(limits.processes) + 40
}

fn unified_values(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut values = vec![("pids.max", process_budget(limits).to_string())];
    if let Some(bytes) = limits.memory_bytes {
        values.push(("memory.max", bytes.to_string()));
        values.push((UNIFIED_SWAP_LIMIT, "0".to_owned()));
    }
    if let Some(millis) = limits.cpu_millis {
        values.push(("cpu.max", format!("{} {CPU_PERIOD_US}", u64::from(millis) * CPU_PERIOD_US / 1000)));
    }
    values
}

fn make_group(parent: &OwnedFd, name: &str) -> Result<OwnedFd, BootFailure> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failure("mkdir control group", name, errno)),
    }
    rustix::fs::openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failure("open control group", name, errno))
}

fn open_tasks(group: &OwnedFd, name: &str) -> Result<OwnedFd, BootFailure> {
    rustix::fs::openat(group, "tasks", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failure("open tasks of control group", name, errno))
}

/// Limits the file of which is absent where the kernel doesn't account for swap.
const SWAP_LIMIT: &str = "memory.memsw.limit_in_bytes";
const UNIFIED_SWAP_LIMIT: &str = "memory.swap.max";

/// Sets one value. A kernel without that file (no swap accounting) has nothing to set.
fn set(group: &OwnedFd, name: &str, file: &str, value: &str) -> Result<(), BootFailure> {
    let opened = rustix::fs::openat(group.as_fd(), file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    match opened {
        Ok(file_descriptor) => rustix::io::write(&file_descriptor, value.as_bytes())
            .map(drop)
            .map_err(|errno| failure("set limit", format!("{name}/{file}"), errno)),
        Err(Errno::NOENT) if [SWAP_LIMIT, UNIFIED_SWAP_LIMIT].contains(&file) => Ok(()),
        Err(errno) => Err(failure("set limit", format!("{name}/{file}"), errno)),
    }
}

/// A usable hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    key: &'static str,
    version: Version,
    /// The directory of the caller's own group.
    own: PathBuf,
    /// The topmost directory that is to be seen.
    top: PathBuf,
}

fn find(mounts: &str, own: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == "-") else { continue };
        let (Some(&root), Some(&place), Some(&kind)) = (fields.get(3), fields.get(4), fields.get(dash + 1))
        else {
            continue;
        };
        let options = fields.get(dash + 3).copied().unwrap_or_default();
        if kind == "cgroup" {
            for key in ["memory", "cpu", "pids"] {
                if options.split(',').any(|option| option == key)
                    && let Some(path) = own_group(own, key)
                {
                    let (own, top) = (below(place, root, path), place.into());
                    found.push(Found { key, version: Version::One, own, top });
                }
            }
        } else if kind == "cgroup2"
            && let Some(path) = own_group(own, "")
        {
            let (own, top) = (below(place, root, path), place.into());
            found.push(Found { key: "unified", version: Version::Two, own, top });
        }
    }
    found
}

/// The caller's group in the hierarchy with this controller, from /proc/self/cgroup.
fn own_group<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// A group's directory below a mount that shows the hierarchy from `root` on.
fn below(place: &str, root: &str, group: &str) -> PathBuf {
    let inside = group.strip_prefix(root.trim_end_matches('/')).unwrap_or(group);
    Path::new(place).join(inside.trim_start_matches('/'))
}

/// A launcher's directory in one hierarchy.
struct Prepared {
    directory: OwnedFd,
    place: PathBuf,
    shared: OwnedFd,
    name: String,
}

/// The leaf for our own processes, below a group that passes its controllers on.
const SELF: &str = "agentos/self";

/// Finds a group of version 2 that can pass its controllers on to VMs.
fn prepare_unified(own: &Path, top: &Path, ours: &[u32]) -> Option<Prepared> {
    // A sidecar that was started by one of ours is in that one's leaf.
    let owner = own.ends_with(SELF).then(|| own.parent().and_then(Path::parent)).flatten();
    let own = owner.unwrap_or(own);
    if delegate(own) || (offers_all(own) && enter_leaf(own, ours).is_some() && delegate(own)) {
        return prepare_parent(own, Version::Two);
    }
    prepare_parent(top, Version::Two)
}

/// Moves our processes out of their group, where it has nobody else's.
fn enter_leaf(own: &Path, ours: &[u32]) -> Option<()> {
    // Who is outside of this PID namespace is listed as 0, which is none of ours.
    let members = std::fs::read_to_string(own.join("cgroup.procs")).ok()?;
    if !members.lines().all(|pid| pid.parse().is_ok_and(|pid| ours.contains(&pid))) {
        return None;
    }
    make_directory(&own.join("agentos"))?;
    let leaf = own.join(SELF);
    make_directory(&leaf)?;
    ours.iter().try_for_each(|pid| std::fs::write(leaf.join("cgroup.procs"), pid.to_string()).ok())
}

/// Makes this launcher's directory in a hierarchy and removes those of launchers that are gone.
fn prepare_parent(own: &Path, version: Version) -> Option<Prepared> {
    if version == Version::Two && !delegate(own) {
        return None;
    }
    let shared = own.join("agentos");
    make_directory(&shared)?;
    remove_stale(&shared);
    if version == Version::Two && !delegate(&shared) {
        return None;
    }
    let name = launcher_name(std::process::id())?;
    let mine = shared.join(&name);
    make_directory(&mine)?;
    if version == Version::Two && !delegate(&mine) {
        return None;
    }
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    };
    Some(Prepared { directory: open(&mine)?, shared: open(&shared)?, place: mine, name })
}

fn make_directory(path: &Path) -> Option<()> {
    match std::fs::create_dir(path) {
        Ok(()) => Some(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Some(()),
        Err(_) => None,
    }
}

/// Lets groups below this one of version 2 limit what a VM needs limited. False where the hierarchy has not all of
/// it: version 1 has it then, or nobody.
fn delegate(group: &Path) -> bool {
    offers_all(group) && std::fs::write(group.join("cgroup.subtree_control"), "+memory +cpu +pids").is_ok()
}

fn offers_all(group: &Path) -> bool {
    let available = std::fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    ["memory", "cpu", "pids"]
        .iter()
        .all(|wanted| available.split_whitespace().any(|controller| controller == *wanted))
}

/// A launcher's name: its pid and when it was started, so that a pid used again is another name.
fn launcher_name(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything; the start time is the 20th after.
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid}-{start}"))
}

fn remove_stale(shared: &Path) {
    let Ok(entries) = std::fs::read_dir(shared) else { return };
    for entry in entries.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(pid) = name.split('-').next().and_then(|pid| pid.parse().ok()) else { continue };
        if launcher_name(pid).as_deref() == Some(name.as_str()) {
            continue;
        }
        let Ok(groups) = std::fs::read_dir(entry.path()) else { continue };
        for group in groups.filter_map(Result::ok) {
            // Only directories can be removed, and only empty groups; what is left is somebody's.
            let _ = std::fs::remove_dir(group.path());
        }
        let _ = std::fs::remove_dir(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 25 0:27 /docker/x /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      32 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";

    fn found(key: &'static str, version: Version, own: &str, top: &str) -> Found {
        Found { key, version, own: own.into(), top: top.into() }
    }

    #[test]
    fn hierarchies_of_version_1_are_found_with_the_callers_own_group() {
        let own = "5:memory:/user\n4:pids:/docker/x/y\n3:cpu,cpuacct:/\n";
        assert_eq!(
            find(V1, own),
            vec![
                found("memory", Version::One, "/sys/fs/cgroup/memory/user", "/sys/fs/cgroup/memory"),
                found("pids", Version::One, "/sys/fs/cgroup/pids/y", "/sys/fs/cgroup/pids"),
                found("cpu", Version::One, "/sys/fs/cgroup/cpu/", "/sys/fs/cgroup/cpu"),
            ]
        );
    }

    #[test]
    fn the_unified_hierarchy_is_found() {
        let mounts = "35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let own = "0::/user.slice/session.scope\n";
        let place = "/sys/fs/cgroup/user.slice/session.scope";
        assert_eq!(find(mounts, own), vec![found("unified", Version::Two, place, "/sys/fs/cgroup")]);
    }

    /// Directories like those of a hierarchy with all controllers. The kernel would make the files of new groups.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(groups: &[&str]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for group in groups {
                std::fs::create_dir_all(tree.path(group)).unwrap();
                std::fs::write(tree.path(group).join("cgroup.controllers"), "cpuset cpu io memory pids\n")
                    .unwrap();
            }
            tree
        }

        fn path(&self, group: &str) -> PathBuf {
            self.0.path().join(group)
        }

        /// A group with processes: its controllers can't be passed on.
        fn occupy(&self, group: &str) {
            std::fs::create_dir(self.path(group).join("cgroup.subtree_control")).unwrap();
        }

        fn list(&self, group: &str, members: &str) {
            std::fs::write(self.path(group).join("cgroup.procs"), members).unwrap();
        }

        fn launcher(&self, group: &str) -> String {
            let own = launcher_name(std::process::id()).unwrap();
            Path::new(group).join("agentos").join(own).to_str().unwrap().to_owned()
        }
    }

    #[test]
    fn a_delegated_group_is_used_and_nobody_moves() {
        let own = Tree::new(&[]).launcher("scope");
        let tree = Tree::new(&["", "scope", "scope/agentos", &own]);
        let prepared = prepare_unified(&tree.path("scope"), &tree.path(""), &[1]).unwrap();
        assert_eq!(prepared.place, tree.path(&own));
        assert!(!tree.path("scope").join(SELF).exists());
        let passed_on = std::fs::read_to_string(tree.path("scope/cgroup.subtree_control")).unwrap();
        assert_eq!(passed_on, "+memory +cpu +pids");
    }

    #[test]
    fn our_processes_leave_an_occupied_group_for_a_leaf_of_it() {
        let tree = Tree::new(&["scope"]);
        tree.list("scope", "41\n42\n");
        enter_leaf(&tree.path("scope"), &[41, 42]).unwrap();
        // A file keeps the last write; the kernel takes every one.
        let moved = std::fs::read_to_string(tree.path("scope/agentos/self/cgroup.procs")).unwrap();
        assert_eq!(moved, "42");
    }

    #[test]
    fn nobody_moves_where_a_group_has_others_too() {
        let tree = Tree::new(&["scope"]);
        for members in ["41\n42\n43\n", "0\n41\n42\n"] {
            tree.list("scope", members);
            assert!(enter_leaf(&tree.path("scope"), &[41, 42]).is_none(), "{members:?}");
        }
        assert!(!tree.path("scope/agentos").exists());
    }

    #[test]
    fn where_others_occupy_the_own_group_the_top_of_the_hierarchy_serves() {
        let top = Tree::new(&[]).launcher("");
        let tree = Tree::new(&["", "scope", "agentos", &top]);
        tree.occupy("scope");
        let prepared = prepare_unified(&tree.path("scope"), &tree.path(""), &[1]).unwrap();
        assert_eq!(prepared.place, tree.path(&top));
        assert!(prepare_unified(&tree.path("scope"), &tree.path("nowhere"), &[1]).is_none());
    }

    #[test]
    fn a_sidecar_in_anothers_leaf_makes_its_groups_beside_it() {
        let own = Tree::new(&[]).launcher("scope");
        let tree = Tree::new(&["", "scope", "scope/agentos", &own]);
        let leaf = tree.path("scope").join(SELF);
        assert_eq!(prepare_unified(&leaf, &tree.path(""), &[1]).unwrap().place, tree.path(&own));
        // A group whose name merely ends like a leaf is none.
        let own = Tree::new(&[]).launcher("my-agentos/self");
        let tree = Tree::new(&["", "my-agentos/self", "my-agentos/self/agentos", &own]);
        let prepared = prepare_unified(&tree.path("my-agentos/self"), &tree.path(""), &[1]).unwrap();
        assert_eq!(prepared.place, tree.path(&own));
    }

    #[test]
    fn a_unified_hierarchy_without_controllers_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cgroup.controllers"), "\n").unwrap();
        assert!(!delegate(directory.path()));
    }

    #[test]
    fn a_launchers_name_changes_with_its_start_time() {
        let own = launcher_name(std::process::id()).unwrap();
        assert!(own.starts_with(&format!("{}-", std::process::id())));
        assert_eq!(launcher_name(u32::MAX), None);
    }

    #[test]
    fn directories_of_launchers_that_are_gone_are_removed_and_those_of_live_ones_stay() {
        let shared = tempfile::tempdir().unwrap();
        let live = shared.path().join(launcher_name(std::process::id()).unwrap());
        let gone = shared.path().join("1-999999999999");
        std::fs::create_dir_all(live.join("vm")).unwrap();
        std::fs::create_dir_all(gone.join("vm")).unwrap();
        remove_stale(shared.path());
        assert!(live.join("vm").exists() && !gone.exists());
    }
}
