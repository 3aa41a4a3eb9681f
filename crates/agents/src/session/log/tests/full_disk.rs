//! A disk without room: a file system of its own, in a mount namespace of this test program started once more.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::{EventLog, Events};
use crate::session::SessionId;
use crate::transcript::{SessionRecord, TranscriptError, Transcripts, now_ms};

const TEST: &str = "session::log::tests::full_disk::a_full_disk_refuses_events_and_harms_none";
const VARIABLE: &str = "AGENTOS_TEST_SMALL_DISK";
/// Told by the child when it has come to its end, whatever the test harness prints.
const DONE: &str = "the disk was full and is not any more";

#[test]
fn a_full_disk_refuses_events_and_harms_none() {
    if let Some(disk) = std::env::var_os(VARIABLE) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(fill(Path::new(&disk)));
        std::io::stdout().write_all(DONE.as_bytes()).unwrap();
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=2m tmpfs \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    // Root needs no namespace for users; everybody else mounts in one of their own.
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let child = command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(home.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(VARIABLE, home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains(DONE), "{:?}: {said}{errors}", child.status.signal());
}

async fn fill(disk: &Path) {
    let reserve = disk.join("reserve");
    std::fs::write(&reserve, vec![1; 512 << 10]).unwrap();
    let path = disk.join("sessions.db");
    let transcripts = Transcripts::open(&path).unwrap();
    let id = SessionId::new();
    let (agent_type, model) = ("pi".to_owned(), "demo".to_owned());
    let record = SessionRecord { id: id.to_string(), agent_type, model, created_ms: now_ms() };
    transcripts.begin(record).await.unwrap();
    let log = Arc::new(EventLog::new(id.clone(), transcripts.clone()));
    let reader = tokio::spawn(super::read_all(Events::new(Arc::clone(&log), 1)));

    let mut next = 1;
    // The name is what a reader checks; the rest is what fills the disk.
    let error = loop {
        let batch = (next..next + 10).map(|n| super::long(n, 2000)).collect();
        match log.publish(batch).await {
            Ok(()) => next += 10,
            Err(error) => break error,
        }
        assert!(next < 100_000, "the disk has no end");
    };
    assert!(error.is_no_space(), "{error:?}");
    assert!(next > 10, "nothing fitted");
    for _ in 0..3 {
        let again = log.publish(vec![super::long(next, 100_000)]).await;
        assert!(matches!(&again, Err(error) if error.is_no_space()), "{again:?}");
    }
    assert_eq!(integrity(&path), "ok");
    // Another session finds no room either, and is not half there.
    let late = SessionRecord {
        id: "late".into(),
        agent_type: "a".repeat(100_000),
        model: "demo".into(),
        created_ms: 0,
    };
    let refused: Result<(), TranscriptError> = transcripts.begin(late).await;
    assert!(refused.is_err_and(|error| error.is_no_space()));
    assert!(transcripts.session("late").await.unwrap().is_none());

    std::fs::remove_file(reserve).unwrap();
    log.publish(vec![super::long(next, 2000)]).await.unwrap();
    log.close();
    let seen = reader.await.unwrap();
    assert_eq!(seen, (1..=next).collect::<Vec<_>>(), "all that was kept was seen, and nothing else");
    let mut kept = Vec::new();
    while kept.len() < seen.len() {
        let page = transcripts.history(id.as_str(), kept.len() as u64 + 1, 100).await.unwrap();
        assert!(!page.is_empty(), "only {} events are kept", kept.len());
        kept.extend(page.iter().map(|event| event.sequence));
    }
    assert_eq!(kept, seen);
    assert_eq!(integrity(&path), "ok");
}

fn integrity(path: &Path) -> String {
    let database = rusqlite::Connection::open(path).unwrap();
    database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}
