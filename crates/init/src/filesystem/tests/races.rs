//! The guest swaps what it owns while the API works on it: nothing outside the root is ever read, written or removed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::support::Vm;

const ROUNDS: usize = 300;

/// How long a race lasts at least, over and above its rounds: for whoever wants to be surer than a test run can be.
const SECONDS: &str = "AGENTOS_TEST_RACE_SECONDS";

/// Runs `attack` over and over while the test does its rounds.
fn race(attack: impl Fn() + Sync, rounds: usize, mut work: impl FnMut(usize)) {
    let seconds = std::env::var(SECONDS).map_or(0, |seconds| seconds.parse().expect(SECONDS));
    let enough = Instant::now() + Duration::from_secs(seconds);
    while_swapping(attack, || {
        for round in 0.. {
            if round >= rounds && Instant::now() >= enough {
                return;
            }
            work(round);
        }
    });
}

/// Runs `attack` over and over while the test does `work`.
fn while_swapping(attack: impl Fn() + Sync, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                attack();
            }
        });
        let _stops = StopAtEnd(&stop);
        work();
    });
}

/// Lets the attacker go even when the work panics.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn exchange(one: &Path, other: &Path) {
    // Fails while the API has one of the two, which is part of the race.
    let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
}

/// A directory beside the root that must stay as it is, and links to it under the root.
struct Canary<'a>(&'a Vm);

impl<'a> Canary<'a> {
    fn new(vm: &'a Vm) -> Self {
        std::fs::create_dir(vm.beyond("outside")).unwrap();
        for name in ["file", "second"] {
            std::fs::write(vm.beyond("outside").join(name), "canary").unwrap();
        }
        Self(vm)
    }

    fn lay_link(&self, path: &str) {
        self.0.link(self.0.beyond("outside").to_str().unwrap(), path);
    }

    /// As many `..` as it takes, for a resolution that starts inside.
    fn lay_climbing_link(&self, path: &str) {
        self.0.link("../../../../../../outside", path);
    }

    fn check(&self) {
        let mut names: Vec<_> =
            std::fs::read_dir(self.0.beyond("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["file", "second"]);
        for name in names {
            assert_eq!(std::fs::read(self.0.beyond("outside").join(name)).unwrap(), b"canary");
        }
    }
}

/// The attack of these tests against programs that use paths. If it can't get through to them, it proves nothing.
#[test]
fn the_race_is_one_that_paths_lose() {
    let vm = Vm::in_memory();
    let _canary = Canary::new(&vm);
    vm.put("/a/dir/file", "inside");
    vm.mkdir("/a/dir/second", false).unwrap();
    vm.link(vm.beyond("outside").to_str().unwrap(), "/a/link");
    let (dir, link) = (vm.outside("/a/dir"), vm.outside("/a/link"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut lost = (false, false);
    while_swapping(
        || exchange(&dir, &link),
        || {
            while lost != (true, true) {
                assert!(Instant::now() < deadline, "the attacker never won: {lost:?}");
                if dir.is_dir() && !dir.is_symlink() {
                    lost.0 |= std::fs::read(dir.join("file")).is_ok_and(|content| content == b"canary");
                    lost.1 |= std::fs::remove_file(dir.join("second")).is_ok();
                }
            }
        },
    );
}

#[test]
fn reads_never_leave_the_root() {
    let vm = Vm::in_memory();
    let canary = Canary::new(&vm);
    vm.put("/a/dir/file", "inside");
    canary.lay_link("/a/link");
    let (dir, link) = (vm.outside("/a/dir"), vm.outside("/a/link"));
    race(
        || exchange(&dir, &link),
        ROUNDS * 50,
        |_| {
            if let Ok(content) = vm.read("/a/dir/file") {
                assert_eq!(content, b"inside");
            }
            for name in vm.readdir("/a/dir").unwrap_or_default() {
                assert_eq!(name, "file");
            }
        },
    );
    canary.check();
}

#[test]
fn writes_never_leave_the_root() {
    let vm = Vm::in_memory();
    let canary = Canary::new(&vm);
    vm.mkdir("/a/dir", true).unwrap();
    canary.lay_link("/a/link");
    canary.lay_climbing_link("/a/file");
    let (dir, link) = (vm.outside("/a/dir"), vm.outside("/a/link"));
    race(
        || exchange(&dir, &link),
        ROUNDS,
        |round| {
            // Fails while the link stands there, or lands inside.
            let _ = vm.write("/a/dir/file", "x");
            let _ = vm.mkdir(&format!("/a/dir/new/{}", round % 5), true);
            if let Ok((ticket, sink)) = vm.open_write("/a/dir/second") {
                drop(sink);
                let _ = vm.commit(ticket);
            }
            let _ = vm.write("/a/file/second", "x");
        },
    );
    canary.check();
}

#[test]
fn deletions_never_leave_the_root() {
    let vm = Vm::in_memory();
    let canary = Canary::new(&vm);
    let (inner, link) = (vm.outside("/t/a/b"), vm.outside("/link"));
    race(
        || {
            // The deletion takes one of the two away time and again.
            if !link.is_symlink() {
                let _ = std::fs::remove_dir_all(&link);
                let _ = std::os::unix::fs::symlink("../../../outside", &link);
            }
            exchange(&inner, &link);
        },
        ROUNDS * 10,
        |_| {
            let _ = std::fs::create_dir_all(&inner);
            // Between being seen and being entered, a directory has to wait for these.
            for sibling in 0..10 {
                let _ = std::fs::create_dir(vm.outside(&format!("/t/a/{sibling}")));
            }
            // Whether all of it is gone depends on the attacker, as with rm.
            let _ = vm.delete("/t", true);
        },
    );
    canary.check();
}

#[test]
fn a_directory_moved_away_from_a_deletion_takes_nothing_else_along() {
    let vm = Vm::in_memory();
    // Names the deletion still has to do in the directory it lost its way from.
    let siblings: Vec<String> = (0..8).map(|index| format!("sibling-{index}")).collect();
    for sibling in &siblings {
        vm.put(&format!("/kept/{sibling}/file"), "kept");
    }
    let (deep, aside) = (vm.outside("/t/d/d"), vm.outside("/kept/aside"));
    // Deep enough for the directories above to have been closed on the way.
    let chain = vm.outside(&format!("/t{}", "/d".repeat(40)));
    race(
        || {
            let _ = std::fs::rename(&deep, &aside);
            let _ = std::fs::rename(&aside, &deep);
        },
        ROUNDS,
        |_| {
            let _ = std::fs::create_dir_all(&chain);
            for sibling in &siblings {
                let _ = std::fs::create_dir(vm.outside("/t/d").join(sibling));
            }
            let _ = vm.delete("/t", true);
        },
    );
    for sibling in &siblings {
        assert_eq!(vm.content(&format!("/kept/{sibling}/file")), b"kept");
    }
}

#[test]
fn moves_and_listings_never_leave_the_root() {
    let vm = Vm::in_memory();
    let canary = Canary::new(&vm);
    vm.mkdir("/a/dir", true).unwrap();
    canary.lay_link("/a/link");
    let (dir, link) = (vm.outside("/a/dir"), vm.outside("/a/link"));
    race(
        || exchange(&dir, &link),
        ROUNDS,
        |_| {
            vm.put("/b/file", "inside");
            let _ = vm.rename("/b/file", "/a/dir/file");
            let _ = vm.rename("/a/dir/second", "/b/stolen");
            for entry in vm.entries("/a", None, &[]).unwrap() {
                assert!(!entry.path.ends_with(b"second"), "{entry:?}");
            }
        },
    );
    assert!(!vm.outside("/b/stolen").exists());
    canary.check();
}

#[test]
fn deletions_side_by_side_all_succeed() {
    let vm = Vm::in_memory();
    for round in 0..20 {
        for index in 0..200 {
            vm.put(&format!("/t/{}/{}/f{index}", index % 5, index % 7), "");
        }
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| match vm.delete("/t", true) {
                    Ok(()) => {}
                    // The others were done before it began.
                    Err(failure) => assert_eq!(failure.errno, rustix::io::Errno::NOENT.raw_os_error()),
                });
            }
        });
        assert!(vm.tree().is_empty(), "round {round}");
    }
}
