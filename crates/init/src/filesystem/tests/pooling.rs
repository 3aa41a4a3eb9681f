//! The threads: answers, deadlines, bounds.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use agentos_guest_protocol::filesystem::{FileCall, FileRequest, FileResponse};
use agentos_guest_protocol::init::{Failure, RequestId};
use rustix::io::Errno;
use tempfile::TempDir;

use super::support::{bytes, root_at};
use crate::filesystem::calls::Outcome;
use crate::filesystem::pool::{Job, Subject};
use crate::filesystem::progress::Progress;
use crate::filesystem::{Answer, FileSystem, Pool, Root};

const SECOND: Duration = Duration::from_secs(1);

struct Fixture {
    pool: Pool,
    answers: Receiver<Answer>,
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap(), None)
    }

    /// As in a VM whose root directory is in memory: what only looks is done at once.
    fn quick() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let quick = root_at(dir.path()).at_once().unwrap();
        Self::over(dir, Some(quick))
    }

    fn over(dir: TempDir, quick: Option<Root>) -> Self {
        let (say, answers) = channel();
        // The pool's threads may outlive the test that looks at its answers.
        let say = Box::new(move |answer| drop(say.send(answer)));
        Self { pool: Pool::new(FileSystem::new(root_at(dir.path()), quick), say), answers, dir }
    }

    fn submit(&self, id: u32, request: FileRequest) {
        self.pool.submit(RequestId(id), request, Instant::now());
    }

    fn exists(&self, id: u32) {
        self.submit(id, FileRequest::Exists { path: bytes("/") });
    }

    /// A call that hangs until the returned sender is dropped or used; it has begun when this returns.
    fn hang(&self, id: u32) -> SyncSender<()> {
        let (release, released) = sync_channel::<()>(1);
        let (began, begun) = sync_channel(1);
        self.work(id, move || {
            began.send(()).unwrap();
            let _ = released.recv();
        });
        begun.recv_timeout(30 * SECOND).unwrap();
        release
    }

    fn work(&self, id: u32, work: impl FnOnce() + Send + 'static) {
        self.pool.submit_work(Job {
            id: RequestId(id),
            subject: Subject { call: FileCall::Stat, path: b"/hanging".to_vec() },
            submitted: Instant::now(),
            work: Box::new(move |_, _| {
                work();
                Ok(Outcome::from(FileResponse::Done))
            }),
        });
    }

    /// The next `count` answers, by id.
    fn wait_for(&self, count: usize) -> Vec<Answer> {
        let next = |_| self.answers.recv_timeout(30 * SECOND).unwrap();
        let mut answers: Vec<Answer> = (0..count).map(next).collect();
        answers.sort_by_key(|answer| answer.id);
        answers
    }
}

fn ids(answers: &[Answer]) -> Vec<u32> {
    answers.iter().map(|answer| answer.id.0).collect()
}

#[test]
fn every_call_is_answered_once() {
    let fixture = Fixture::new();
    assert!(fixture.answers.try_recv().is_err());
    for id in 0..500 {
        fixture.exists(id);
    }
    let answers = fixture.wait_for(500);
    assert_eq!(ids(&answers), (0..500).collect::<Vec<_>>());
    assert!(answers.iter().all(|answer| matches!(answer.result, Ok((FileResponse::Exists(true), None)))));
    assert!(fixture.answers.try_recv().is_err());
    assert_eq!(fixture.pool.next_deadline(), None);
}

#[test]
fn what_only_looks_at_memory_is_done_at_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "content").unwrap();
    std::os::unix::fs::symlink("/file", dir.path().join("link")).unwrap();
    let files = FileSystem::new(root_at(dir.path()), Some(root_at(dir.path()).at_once().unwrap()));
    // A look leaves in the kernel's cache what there is to know, and the time at which the link was followed, which has
    // to be later than the link: within one tick of the kernel's clock it isn't. Anybody's mount meanwhile makes the
    // kernel look again, too.
    let at_once = |request| {
        let deadline = Instant::now() + 30 * SECOND;
        loop {
            files.handle(&request, &Progress::default()).unwrap();
            match files.handle_at_once(&request) {
                Some(outcome) => return outcome.response,
                None => assert!(Instant::now() < deadline, "never at hand: {request:?}"),
            }
        }
    };
    let read = at_once(FileRequest::Read { path: bytes("/link") });
    assert!(matches!(read, FileResponse::Content(content) if *content == *b"content"));
    let stat = at_once(FileRequest::Stat { path: bytes("/link") });
    assert!(matches!(stat, FileResponse::Stat(stat) if stat.size_bytes == 7));
    assert!(matches!(at_once(FileRequest::Exists { path: bytes("/file") }), FileResponse::Exists(true)));
}

#[test]
fn what_is_not_at_hand_or_may_hang_goes_to_the_threads() {
    let quick = FileSystem::new(root_at(Path::new("/")), Some(root_at(Path::new("/")).at_once().unwrap()));
    let at_once = |request| quick.handle_at_once(&request).is_some();
    assert!(!at_once(FileRequest::Stat { path: bytes("/proc/self/status") }), "another file system");
    assert!(!at_once(FileRequest::Read { path: bytes("/proc/version") }), "another file system");
    assert!(!at_once(FileRequest::Mkdir { path: bytes("/"), recursive: true }), "does more than look");

    let fixture = Fixture::quick();
    // Failures are told by whoever would have waited.
    fixture.submit(1, FileRequest::Read { path: bytes("/absent") });
    fixture.submit(2, FileRequest::Stat { path: bytes("not absolute") });
    for (answer, errno) in fixture.wait_for(2).iter().zip([Errno::NOENT, Errno::INVAL]) {
        let Err(Failure::File(failure)) = &answer.result else { panic!("{answer:?}") };
        assert_eq!(failure.errno, errno.raw_os_error());
    }
}

#[test]
fn failures_and_descriptors_come_through() {
    let fixture = Fixture::new();
    std::fs::write(fixture.dir.path().join("large"), vec![5; 300_000]).unwrap();
    fixture.submit(1, FileRequest::Read { path: bytes("/large") });
    fixture.submit(2, FileRequest::Read { path: bytes("/absent") });
    let answers = fixture.wait_for(2);
    assert!(matches!(&answers[0].result, Ok((FileResponse::Stream { size_bytes: 300_000 }, Some(_)))));
    let Err(Failure::File(failure)) = &answers[1].result else { panic!("{answers:?}") };
    assert_eq!(failure.errno, Errno::NOENT.raw_os_error());
}

#[test]
fn a_hanging_call_times_out_and_the_others_go_on() {
    let fixture = Fixture::new();
    let start = Instant::now();
    let _hanging: Vec<_> = (0..4).map(|id| fixture.hang(id)).collect();
    // All four workers hang. Nothing is overdue yet...
    fixture.exists(10);
    let slow = fixture.pool.next_deadline().unwrap();
    assert!(slow <= Instant::now() + SECOND);
    fixture.pool.expire(start);
    assert!(fixture.answers.try_recv().is_err());
    // ...but after a second others take their places.
    fixture.pool.expire(Instant::now() + SECOND);
    assert_eq!(ids(&fixture.wait_for(1)), [10]);
    let overdue = fixture.pool.next_deadline().unwrap();
    assert!(overdue >= start + 30 * SECOND && overdue <= Instant::now() + 30 * SECOND);
    fixture.pool.expire(Instant::now() + 30 * SECOND);
    let answers = fixture.wait_for(4);
    assert_eq!(ids(&answers), [0, 1, 2, 3]);
    for answer in answers {
        let Err(Failure::TimedOut { call }) = answer.result else { panic!("{answer:?}") };
        assert_eq!(call, "stat '/hanging'");
    }
    assert_eq!(fixture.pool.next_deadline(), None);
}

#[test]
fn a_thread_that_comes_back_brings_nothing_and_works_again() {
    let fixture = Fixture::new();
    let hanging = fixture.hang(1);
    fixture.pool.expire(Instant::now() + 31 * SECOND);
    assert_eq!(ids(&fixture.wait_for(1)), [1]);
    drop(hanging);
    for id in 2..50 {
        fixture.exists(id);
    }
    assert_eq!(ids(&fixture.wait_for(48)), (2..50).collect::<Vec<_>>());
}

#[test]
fn a_write_opened_too_late_is_not_left_open() {
    let fixture = Fixture::new();
    let (release, released) = sync_channel::<()>(1);
    let (began, begun) = sync_channel(1);
    fixture.pool.submit_work(Job {
        id: RequestId(1),
        subject: Subject { call: FileCall::Open, path: b"/late".to_vec() },
        submitted: Instant::now(),
        work: Box::new(move |files, progress| {
            began.send(()).unwrap();
            let _: Result<(), _> = released.recv();
            files.handle(&FileRequest::OpenWrite { path: bytes("/late") }, progress)
        }),
    });
    begun.recv_timeout(30 * SECOND).unwrap();
    fixture.pool.expire(Instant::now() + 31 * SECOND);
    assert_eq!(ids(&fixture.wait_for(1)), [1]);
    drop(release);
    let deadline = Instant::now() + 30 * SECOND;
    while std::fs::read_dir(fixture.dir.path()).unwrap().next().is_some() || fixture.pool.stuck() > 0 {
        assert!(Instant::now() < deadline, "the temporary file is still there");
        std::thread::yield_now();
    }
}

#[test]
fn a_call_that_gets_on_is_given_more_time_but_not_for_ever() {
    let fixture = Fixture::new();
    let (step, steps): (SyncSender<()>, Receiver<()>) = sync_channel(0);
    let (beaten, beats) = sync_channel(1);
    fixture.pool.submit_work(Job {
        id: RequestId(1),
        subject: Subject { call: FileCall::Rmdir, path: b"/large".to_vec() },
        submitted: Instant::now(),
        work: Box::new(move |_, progress| {
            while steps.recv().is_ok() {
                let beat = progress.beat();
                beaten.send(beat.is_ok()).unwrap();
            }
            Ok(Outcome::from(FileResponse::Done))
        }),
    });
    let start = Instant::now();
    for minute in 0..9 {
        step.send(()).unwrap();
        assert!(beats.recv().unwrap());
        fixture.pool.expire(start + minute * 60 * SECOND);
        assert!(fixture.answers.try_recv().is_err(), "minute {minute}");
    }
    step.send(()).unwrap();
    assert!(beats.recv().unwrap());
    fixture.pool.expire(start + 700 * SECOND);
    assert!(matches!(&fixture.wait_for(1)[0].result, Err(Failure::TimedOut { .. })));
    step.send(()).unwrap();
    assert!(!beats.recv().unwrap(), "the call is told to give up");
}

#[test]
fn too_many_stuck_threads_refuse_all_further_calls() {
    let fixture = Fixture::new();
    let mut hanging = Vec::new();
    let mut late = Instant::now();
    for round in 0..4 {
        hanging.extend((0..4).map(|index| fixture.hang(round * 4 + index)));
        late = Instant::now() + 31 * SECOND;
        fixture.pool.expire(late);
        assert_eq!(fixture.wait_for(4).len(), 4);
    }
    fixture.exists(100);
    let answers = fixture.wait_for(1);
    assert!(matches!(answers[0].result, Err(Failure::TooManyStuck)), "{answers:?}");
    // One mount that answers again is enough to go on.
    drop(hanging);
    let deadline = Instant::now() + 30 * SECOND;
    while fixture.pool.stuck() > 0 {
        assert!(Instant::now() < deadline, "threads don't come back");
        std::thread::yield_now();
    }
    fixture.pool.expire(late);
    fixture.exists(101);
    assert!(matches!(fixture.wait_for(1)[0].result, Ok((FileResponse::Exists(true), None))));
    assert!(fixture.pool.threads() <= 4, "the surplus threads end");
}

#[test]
fn a_call_that_waits_too_long_for_a_thread_times_out() {
    let fixture = Fixture::new();
    let _hanging: Vec<_> = (0..4).map(|id| fixture.hang(id)).collect();
    fixture.exists(10);
    fixture.pool.expire(Instant::now() + 30 * SECOND);
    let answers = fixture.wait_for(5);
    assert!(
        matches!(&answers[4].result, Err(Failure::TimedOut { call }) if call == "stat '/'"),
        "{answers:?}"
    );
}

#[test]
fn calls_beyond_the_bound_are_told_to_come_again() {
    let fixture = Fixture::new();
    let hanging: Vec<_> = (0..4).map(|id| fixture.hang(id)).collect();
    for id in 4..1025 {
        fixture.exists(id);
    }
    let answers = fixture.wait_for(1);
    assert_eq!(ids(&answers), [1024]);
    let Err(Failure::File(failure)) = &answers[0].result else { panic!("{answers:?}") };
    assert_eq!(failure.errno, Errno::AGAIN.raw_os_error());
    drop(hanging);
    assert_eq!(fixture.wait_for(1024).len(), 1024);
}

#[test]
fn a_panic_is_an_answer_too() {
    let fixture = Fixture::new();
    fixture.work(1, || std::panic::resume_unwind(Box::new("a defect")));
    let answers = fixture.wait_for(1);
    let Err(Failure::File(failure)) = &answers[0].result else { panic!("{answers:?}") };
    assert_eq!(failure.errno, Errno::IO.raw_os_error());
    fixture.exists(2);
    assert_eq!(ids(&fixture.wait_for(1)), [2]);
}

#[test]
fn the_end_of_the_pool_removes_unfinished_writes() {
    let fixture = Fixture::new();
    fixture.submit(1, FileRequest::OpenWrite { path: bytes("/file") });
    let answers = fixture.wait_for(1);
    assert!(answers[0].result.is_ok());
    let Fixture { pool, dir, .. } = fixture;
    drop(pool);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
