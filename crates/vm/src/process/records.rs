//! Which processes somebody may still ask for: those of spawn, the exited ones of spawn and exec, and the shells.
//!
//! Pure: the time is given. Everything is bounded, because a VM lives long and starts many processes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::live::{Kind, LiveProcess};
use super::{Exit, ProcessDriver, ProcessInfo, SpawnedProcess};

/// Exited processes of spawn that can still be asked for.
const MAX_EXITED_SPAWNED: usize = 1024;

/// How long an exited process stands in the list of all processes.
const EXITED_SHOWN: Duration = Duration::from_secs(60);

/// A flood of short commands shows only its end.
const MAX_EXITED_SHOWN: usize = 4096;

/// Output of exited processes that is kept for late readers, of one VM.
const MAX_EXITED_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Records {
    /// In the order they were started.
    spawned: VecDeque<Arc<LiveProcess>>,
    exited: VecDeque<Exited>,
}

#[derive(Debug)]
struct Exited {
    at: Instant,
    info: ProcessInfo,
}

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) epoch_ms: u64,
}

impl Now {
    pub(crate) fn read() -> Self {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let epoch_ms =
            since_epoch.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        Self { instant: Instant::now(), epoch_ms }
    }
}

impl Records {
    pub(crate) fn started(&mut self, process: &Arc<LiveProcess>) {
        if process.kind == Kind::Spawn {
            self.spawned.push_back(Arc::clone(process));
        }
    }

    /// The process's exit is set already.
    pub(crate) fn exited(&mut self, process: &LiveProcess, exit: Exit, now: Now) {
        self.forget_old(now.instant);
        if matches!(process.kind, Kind::Shell | Kind::Supervised) {
            return;
        }
        if self.exited.len() == MAX_EXITED_SHOWN {
            self.exited.pop_front();
        }
        self.exited.push_back(Exited { at: now.instant, info: info(process, exit, now.epoch_ms) });
        if process.kind == Kind::Spawn {
            self.trim_spawned();
        }
    }

    /// The newest process of that id: ids come back.
    pub(crate) fn find(&self, pid: i32) -> Option<Arc<LiveProcess>> {
        self.spawned.iter().rev().find(|process| process.pid == pid).cloned()
    }

    pub(crate) fn spawned(&self) -> Vec<SpawnedProcess> {
        let show = |process: &Arc<LiveProcess>| SpawnedProcess {
            pid: process.pid,
            argv: process.argv.clone(),
            exit: process.exit(),
        };
        self.spawned.iter().map(show).collect()
    }

    /// Exited processes to be listed beside the live ones.
    pub(crate) fn recently_exited(&mut self, now: Instant) -> impl Iterator<Item = &ProcessInfo> {
        self.forget_old(now);
        self.exited.iter().map(|exited| &exited.info)
    }

    fn forget_old(&mut self, now: Instant) {
        while self.exited.front().is_some_and(|exited| now.duration_since(exited.at) >= EXITED_SHOWN) {
            self.exited.pop_front();
        }
    }

    fn trim_spawned(&mut self) {
        let exited = self.spawned.iter().filter(|process| process.exit().is_some()).count();
        if exited > MAX_EXITED_SPAWNED
            && let Some(oldest) = self.spawned.iter().position(|process| process.exit().is_some())
        {
            self.spawned.remove(oldest);
        }
        let mut kept = 0;
        for process in self.spawned.iter().rev().filter(|process| process.exit().is_some()) {
            let outputs = [&process.streams.stdout, &process.streams.stderr];
            kept += outputs.iter().map(|output| output.kept_bytes()).sum::<usize>();
            if kept > MAX_EXITED_OUTPUT_BYTES {
                outputs.iter().for_each(|output| output.forget());
            }
        }
    }
}

fn info(process: &LiveProcess, exit: Exit, exit_time_ms: u64) -> ProcessInfo {
    ProcessInfo {
        pid: process.pid,
        ppid: 0,
        // Every process of ours leads its own session.
        pgid: process.pid,
        sid: process.pid,
        driver: ProcessDriver::of_executable(process.argv.first().map_or(&[], Vec::as_slice)),
        argv: process.argv.clone(),
        cwd: process.cwd.clone(),
        exit: Some(exit),
        start_time_ms: process.started_at_ms,
        exit_time_ms: Some(exit_time_ms),
    }
}

#[cfg(test)]
mod tests {
    use agentos_guest_protocol::process::{SpawnRequest, Stdio};

    use super::super::live::SpawnPlan;
    use super::*;
    use crate::pump::Streams;

    fn process(pid: i32, kind: Kind) -> Arc<LiveProcess> {
        let request = SpawnRequest {
            argv: vec![b"/usr/bin/node".to_vec().into(), b"a.js".to_vec().into()],
            env: Vec::new(),
            cwd: b"/".to_vec().into(),
            stdio: Stdio::Pipes { stdin: false },
            supervised: false,
        };
        let plan = SpawnPlan { request, kind, input: None, timeout: None, patience: None };
        Arc::new(LiveProcess::new(pid, &plan, Streams::default(), 5))
    }

    fn run(records: &mut Records, pid: i32, kind: Kind, now: Now) -> Arc<LiveProcess> {
        let process = process(pid, kind);
        records.started(&process);
        process.set_exit(Exit::Exited(0));
        records.exited(&process, Exit::Exited(0), now);
        process
    }

    #[test]
    fn exited_processes_are_shown_for_a_minute_and_shells_never() {
        let (mut records, start) = (Records::default(), Now::read());
        run(&mut records, 10, Kind::Exec, start);
        run(&mut records, 11, Kind::Spawn, start);
        run(&mut records, 12, Kind::Shell, start);
        run(&mut records, 13, Kind::Supervised, start);
        let later = |seconds| start.instant + Duration::from_secs(seconds);
        let shown: Vec<_> = records.recently_exited(later(59)).map(|info| (info.pid, info.driver)).collect();
        assert_eq!(shown, [(10, ProcessDriver::Node), (11, ProcessDriver::Node)]);
        assert_eq!(records.recently_exited(later(60)).count(), 0);
        // The list of spawn is not a matter of time.
        assert_eq!(records.spawned().len(), 1);
    }

    #[test]
    fn the_last_1024_exited_are_kept_and_the_live_ones_always() {
        let (mut records, now) = (Records::default(), Now::read());
        let alive = process(1_000_000, Kind::Spawn);
        records.started(&alive);
        for pid in 0..2000 {
            run(&mut records, pid, Kind::Spawn, now);
        }
        assert_eq!(records.spawned().len(), MAX_EXITED_SPAWNED + 1);
        assert!(records.find(1_000_000).is_some());
        assert!(records.find(2000 - 1024).is_some());
        assert!(records.find(2000 - 1025).is_none());
    }

    #[test]
    fn an_id_that_came_back_is_the_newest_process() {
        let (mut records, now) = (Records::default(), Now::read());
        run(&mut records, 7, Kind::Spawn, now);
        let second = process(7, Kind::Spawn);
        records.started(&second);
        assert!(Arc::ptr_eq(&records.find(7).unwrap(), &second));
    }

    #[test]
    fn drivers_are_judged_by_the_executable() {
        let driver = |executable: &[u8]| ProcessDriver::of_executable(executable);
        assert_eq!(driver(b"/usr/bin/node"), ProcessDriver::Node);
        assert_eq!(driver(b"/usr/bin/python3.13 (deleted)"), ProcessDriver::Python);
        assert_eq!(driver(b"bash"), ProcessDriver::Shell);
        assert_eq!(driver(b"/usr/bin/git"), ProcessDriver::Native);
        assert_eq!(driver(b"/usr/bin/pythonic"), ProcessDriver::Native);
        assert_eq!(driver(b""), ProcessDriver::Native);
    }
}
