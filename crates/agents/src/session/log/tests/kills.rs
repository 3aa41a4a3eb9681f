//! A sidecar that is killed at any moment, again and again: this test program, started once more for each life.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{EventLog, Events};
use crate::session::SessionId;
use crate::transcript::{SessionRecord, Transcripts, now_ms};

const TEST: &str = "session::log::tests::kills::a_hundred_kills_lose_nothing_that_was_seen_and_leave_no_gap";
const VARIABLE: &str = "AGENTOS_TEST_TRANSCRIPTS_TO_FLOOD";
const SEEN: &str = "seen ";
const KILLS: usize = 100;
const SESSIONS: usize = 4;
/// A killed life has seen up to so many events of all its sessions.
const MOST_SEEN: u64 = 2000;

/// What the event of this number says, in every life.
fn text(sequence: u64) -> String {
    format!("{{\"n\":{sequence},\"filler\":\"{}\"}}", "x".repeat((sequence % 700) as usize))
}

/// One life: every session goes on where it ended, publishes as fast as it can, and prints what its readers see.
async fn live(path: PathBuf) {
    let transcripts = Transcripts::open(&path).unwrap();
    let mut life = JoinSet::new();
    for name in 0..SESSIONS {
        let id = SessionId(format!("session-{name}"));
        if transcripts.session(id.as_str()).await.unwrap().is_none() {
            let (agent_type, model) = ("pi".to_owned(), "demo".to_owned());
            let record = SessionRecord { id: id.to_string(), agent_type, model, created_ms: now_ms() };
            transcripts.begin(record).await.unwrap();
        }
        let kept = transcripts.reopen(id.as_str()).await.unwrap();
        let log = EventLog::resume(id, transcripts.clone(), kept.events, kept.bytes);
        let log = Arc::new(log);
        for _ in 0..2 {
            life.spawn(tell(name, Events::new(Arc::clone(&log), kept.events + 1), kept.events + 1));
        }
        life.spawn(async move {
            let mut next = kept.events + 1;
            for batch in 1.. {
                let size = batch % 7 + 1;
                log.publish((next..next + size).map(text).collect()).await.unwrap();
                next += size;
            }
        });
    }
    while let Some(ended) = life.join_next().await {
        ended.unwrap();
    }
}

async fn tell(name: usize, mut events: Events, first: u64) {
    for next in first.. {
        let Some(event) = events.next().await else { return };
        let event = event.unwrap();
        assert_eq!((event.sequence, &*event.notification), (next, text(next).as_str()));
        // One write, which a pipe takes whole. Nobody listens any more where the parent has failed.
        let line = format!("{SEEN}{name} {}\n", event.sequence);
        if std::io::stdout().write_all(line.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
            return;
        }
    }
}

fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(VARIABLE, path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The newest event that a reader of each session has seen in a life that was killed after some of them.
fn kill_after(path: &Path, seen: u64) -> HashMap<usize, u64> {
    let mut child = start(path);
    let mut newest = HashMap::new();
    let mut count = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, numbers)) = line.split_once(SEEN) else { continue };
        // The last line may have been cut by the kill.
        let mut numbers = numbers.split(' ').map(str::parse::<u64>);
        let (Some(Ok(name)), Some(Ok(sequence))) = (numbers.next(), numbers.next()) else { continue };
        let known = newest.entry(usize::try_from(name).unwrap()).or_insert(sequence);
        *known = sequence.max(*known);
        count += 1;
        if count == seen {
            // What it has said before is read on; that it still runs is what the kill is for.
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status:?}");
    newest
}

#[test]
fn a_hundred_kills_lose_nothing_that_was_seen_and_leave_no_gap() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(path) = std::env::var_os(VARIABLE) {
        return runtime.block_on(live(path.into()));
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("sessions.db");
    for kill in 0..KILLS {
        let random = uuid::Uuid::new_v4().as_u128() as u64;
        let seen = kill_after(&path, random % MOST_SEEN + 1);
        let database = rusqlite::Connection::open(&path).unwrap();
        for (name, newest) in seen {
            let sql = "SELECT tallies.events, (SELECT count(*) FROM events WHERE session = key),
                           (SELECT max(sequence) FROM events WHERE session = key)
                       FROM sessions JOIN tallies ON tallies.session = key WHERE id = ?1";
            let read = |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get(2)?]);
            let [told, count, last]: [i64; 3] =
                database.query_row(sql, [format!("session-{name}")], read).unwrap();
            assert!(
                last.cast_unsigned() >= newest,
                "kill {kill}: event {newest} of session {name} was seen; {last} are kept"
            );
            assert_eq!((told, count), (last, last), "kill {kill}: session {name} has gaps");
        }
    }
    runtime.block_on(every_event_is_there(&path));
}

async fn every_event_is_there(path: &Path) {
    let transcripts = Transcripts::open(path).unwrap();
    for session in transcripts.sessions(SESSIONS + 1).await.unwrap() {
        assert!(session.events > KILLS as u64, "{} events are a poor load", session.events);
        let (mut next, mut bytes) = (1, 0);
        while next <= session.events {
            for event in transcripts.history(&session.id, next, 1000).await.unwrap() {
                assert_eq!((event.sequence, &*event.notification), (next, text(next).as_str()));
                (next, bytes) = (next + 1, bytes + event.notification.len() as u64);
            }
        }
        assert_eq!(session.bytes, bytes);
    }
    let database = rusqlite::Connection::open(path).unwrap();
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
}
