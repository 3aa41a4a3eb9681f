//! What a run changed: files of the VM's own and of directories it was given to write.
//!
//! Places are looked at twice and compared by inode, size and times, which a plain user can't forge together. Files
//! of the VM are looked at through the SDK, files of a writable mount on the host, where they stay. Links are never
//! followed, and directories that hold machinery and not work are left out.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agentos::{AgentOs, FileType, VirtualStat};
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::guest::{HOME, VmArgs};
use crate::spec::{MountSpec, is_below};

/// Left out wherever they are. A repository made in a VM must not come to the host: its hooks and configuration name
/// programs that the host's git would run.
const LEFT_OUT: [&str; 4] = [".git", "node_modules", ".cache", ".npm"];
/// The VM's own places that hold its system: nobody works there.
const SYSTEM: [&str; 10] =
    ["/bin", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/run", "/sys", "/usr"];
/// Beyond this a place is not worth the time.
const MAX_ENTRIES: usize = 100_000;
/// Enough to keep the sidecar busy, few enough not to be in the way of others.
const STATS_IN_FLIGHT: usize = 64;

/// A place that may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its path in the VM.
    pub(super) guest: String,
    /// Where it is on the host, for a writable mount.
    pub(super) host: Option<PathBuf>,
}

/// Where to look: the working directory, the home and every writable mount. Read-only mounts can't change.
pub(super) fn places(args: &VmArgs) -> Vec<Place> {
    let mounts: Vec<&MountSpec> = args.mounts().collect();
    let mut places: Vec<Place> = mounts
        .iter()
        .filter(|mount| mount.writable)
        .map(|mount| Place { guest: mount.guest.clone(), host: Some(mount.host.clone()) })
        .collect();
    let cwd = args.cwd();
    for guest in [HOME, cwd.trim_end_matches('/')] {
        let mounted = mounts.iter().any(|mount| is_below(guest, &mount.guest));
        let system = guest.is_empty() || SYSTEM.iter().any(|system| is_below(guest, system));
        let seen = places.iter().any(|place| place.host.is_none() && is_below(guest, &place.guest));
        if !mounted && !system && !seen {
            places.push(Place { guest: guest.to_owned(), host: None });
        }
    }
    places
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    ino: u64,
    size: u64,
    executable: bool,
    modified_ms: i64,
    changed_ms: i64,
}

impl From<&VirtualStat> for Stamp {
    fn from(stat: &VirtualStat) -> Self {
        Self {
            ino: stat.ino,
            size: stat.size,
            executable: stat.mode & 0o111 != 0,
            modified_ms: stat.mtime_ms,
            changed_ms: stat.ctime_ms,
        }
    }
}

impl From<&std::fs::Metadata> for Stamp {
    fn from(metadata: &std::fs::Metadata) -> Self {
        let ms = |seconds: i64, nanos: i64| seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000);
        Self {
            ino: metadata.ino(),
            size: metadata.size(),
            executable: metadata.mode() & 0o111 != 0,
            modified_ms: ms(metadata.mtime(), metadata.mtime_nsec()),
            changed_ms: ms(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Regular files by their path below the place.
type Files = BTreeMap<Vec<u8>, Stamp>;

/// All places at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    files: Vec<(Place, Files)>,
    /// Places with more than [`MAX_ENTRIES`], where changes are not known.
    too_large: Vec<String>,
}

/// A file that is new or has changed.
#[derive(Debug, Clone)]
pub(super) struct Changed {
    pub(super) place: Place,
    /// Path below the place.
    pub(super) name: Vec<u8>,
    pub(super) size_bytes: u64,
    pub(super) executable: bool,
    pub(super) is_new: bool,
}

impl Changed {
    /// The absolute path in the VM.
    pub(super) fn guest_path(&self) -> Vec<u8> {
        [self.place.guest.as_bytes(), b"/", &self.name].concat()
    }

    pub(super) fn in_vm_only(&self) -> bool {
        self.place.host.is_none()
    }

    pub(super) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

impl Snapshot {
    pub(super) async fn take(vm: &AgentOs, args: &VmArgs) -> Result<Self, Failure> {
        let mut snapshot = Self { files: Vec::new(), too_large: Vec::new() };
        for place in places(args) {
            let files = match place.host.clone() {
                Some(host) => on_host(host).await,
                None => in_vm(vm, &place.guest, args).await?,
            };
            match files {
                Some(files) => snapshot.files.push((place, files)),
                None => snapshot.too_large.push(place.guest),
            }
        }
        Ok(snapshot)
    }

    /// Places whose changes are not known.
    pub(super) fn too_large(&self) -> &[String] {
        &self.too_large
    }

    /// What is new or different in `later`.
    pub(super) fn changed(&self, later: &Self) -> Vec<Changed> {
        let mut changed = Vec::new();
        for (place, files) in &later.files {
            let Some((_, before)) = self.files.iter().find(|(earlier, _)| earlier == place) else { continue };
            for (name, stamp) in files {
                let known = before.get(name);
                if known != Some(stamp) {
                    changed.push(Changed {
                        place: place.clone(),
                        name: name.clone(),
                        size_bytes: stamp.size,
                        executable: stamp.executable,
                        is_new: known.is_none(),
                    });
                }
            }
        }
        changed
    }
}

async fn in_vm(vm: &AgentOs, root: &str, args: &VmArgs) -> Result<Option<Files>, Failure> {
    if !vm.exists(root).await? {
        return Ok(Some(Files::new()));
    }
    let mut listing = vm.readdir_recursive(root);
    for name in LEFT_OUT {
        listing = listing.exclude(name);
    }
    let mounts: Vec<&str> = args.mounts().map(|mount| mount.guest.as_str()).collect();
    let entries = listing.await?;
    if entries.len() > MAX_ENTRIES {
        return Ok(None);
    }
    let own = |path: &str| !mounts.iter().any(|mount| is_below(path, mount));
    let mut paths = entries
        .into_iter()
        .filter(|entry| entry.file_type == FileType::File && own(&entry.path))
        .map(|entry| entry.path_bytes().to_vec());
    let mut files = Files::new();
    let mut stats = JoinSet::new();
    let prefix = root.len() + 1;
    loop {
        while stats.len() < STATS_IN_FLIGHT
            && let Some(path) = paths.next()
        {
            let vm = vm.clone();
            stats.spawn(async move {
                let stat = vm.stat(OsStr::from_bytes(&path)).await;
                (path, stat)
            });
        }
        match stats.join_next().await {
            None => return Ok(Some(files)),
            // What is gone again, or became a link to nowhere, is not there.
            Some(Ok((path, Ok(stat)))) if stat.is_file() => {
                files.insert(path.get(prefix..).unwrap_or_default().to_vec(), Stamp::from(&stat));
            }
            Some(_) => {}
        }
    }
}

async fn on_host(root: PathBuf) -> Option<Files> {
    // The walk has no panic to lose, and a cancelled runtime needs no answer.
    tokio::task::spawn_blocking(move || walk(&root)).await.ok().flatten()
}

fn walk(root: &Path) -> Option<Files> {
    let mut files = Files::new();
    let mut directories = vec![root.to_owned()];
    let mut entries = 0;
    while let Some(directory) = directories.pop() {
        // What we may not read or is gone meanwhile can't be told of.
        let Ok(listing) = std::fs::read_dir(&directory) else { continue };
        for entry in listing.flatten() {
            entries += 1;
            if entries > MAX_ENTRIES {
                return None;
            }
            // Of the entry itself, not of what a link leads to.
            let Ok(metadata) = entry.metadata() else { continue };
            if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if metadata.is_dir() {
                directories.push(entry.path());
            } else if metadata.is_file()
                && let Ok(name) = entry.path().strip_prefix(root)
            {
                files.insert(name.as_os_str().as_bytes().to_vec(), Stamp::from(&metadata));
            }
        }
    }
    Some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places_of(flags: &[&str]) -> Vec<(String, bool)> {
        let args = VmArgs::of(flags);
        places(&args).into_iter().map(|place| (place.guest, place.host.is_some())).collect()
    }

    #[test]
    fn the_home_is_looked_at_and_writable_mounts_are() {
        assert_eq!(places_of(&[]), [("/home/user".to_owned(), false)]);
        assert_eq!(places_of(&["--project", "."]), [("/home/user".to_owned(), false)]);
        assert_eq!(
            places_of(&["--project", ".:rw"]),
            [("/work".to_owned(), true), ("/home/user".to_owned(), false)]
        );
        assert_eq!(
            places_of(&["--cwd", "/tmp/x"]),
            [("/home/user".to_owned(), false), ("/tmp/x".to_owned(), false)]
        );
    }

    #[test]
    fn a_directory_of_the_system_is_not_looked_at() {
        for cwd in ["/", "/usr", "/proc/self", "/etc/"] {
            assert_eq!(places_of(&["--cwd", cwd]), [("/home/user".to_owned(), false)], "{cwd}");
        }
    }

    #[test]
    fn a_working_directory_in_the_home_is_a_part_of_it() {
        assert_eq!(places_of(&["--cwd", "/home/user/deep"]), [("/home/user".to_owned(), false)]);
    }

    #[test]
    fn what_is_new_or_different_on_the_host_is_found_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::fs::write(dir.path().join("old"), "1").unwrap();
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        let before = walk(dir.path()).unwrap();
        std::fs::write(dir.path().join("old"), "22").unwrap();
        std::fs::write(dir.path().join("new"), "x").unwrap();
        std::fs::write(dir.path().join(".git/config"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        let place = Place { guest: "/work".to_owned(), host: Some(dir.path().to_owned()) };
        let snapshot = |files| Snapshot { files: vec![(place.clone(), files)], too_large: Vec::new() };
        let changed = snapshot(before).changed(&snapshot(walk(dir.path()).unwrap()));
        let shown: Vec<_> = changed.iter().map(|file| (file.shown(), file.is_new)).collect();
        assert_eq!(shown, [("new".to_owned(), true), ("old".to_owned(), false)]);
    }
}
