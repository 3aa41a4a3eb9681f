//! Databases of every age.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;
use crate::transcript::Transcripts;

/// As agentOS of schema version 1 left it, with a session that has two events and one that has none.
const VERSION_1: &str = include_str!("../../../tests/data/sessions-version-1.sql");

fn old_database(home: &Path) -> std::path::PathBuf {
    let path = home.join("sessions.db");
    let database = Connection::open(&path).unwrap();
    database.pragma_update(None, "journal_mode", "WAL").unwrap();
    database.execute_batch(VERSION_1).unwrap();
    assert_eq!(version(&database).unwrap(), 1);
    path
}

#[test]
fn many_open_a_new_database_at_once() {
    for _ in 0..20 {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("sessions.db");
        std::thread::scope(|scope| {
            let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&path).map(drop))).collect();
            for opened in opening {
                opened.join().unwrap().unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_database_of_version_1_keeps_everything_and_learns_the_rest() {
    let home = tempfile::tempdir().unwrap();
    let path = old_database(home.path());
    for _ in 0..2 {
        let transcripts = Transcripts::open(&path).unwrap();
        let sessions = transcripts.sessions(9).await.unwrap();
        let ids: Vec<&str> = sessions.iter().map(|session| session.id.as_str()).collect();
        assert_eq!(ids, ["22222222-2222-4222-8222-222222222222", "11111111-1111-4111-8111-111111111111"]);
        let [empty, full] = &sessions[..] else { panic!() };
        assert_eq!((full.agent_type.as_str(), full.model.as_str()), ("pi", "demo"));
        assert_eq!(
            (full.created_ms, full.updated_ms, full.events),
            (1_700_000_000_000, 1_700_000_000_900, 2)
        );
        assert_eq!(full.details.model_reason.as_deref(), Some("no key, 'quoted' – and so on"));
        assert_eq!((&full.details.cwd, &full.title, &full.ended), (&None, &None, &None));
        assert_eq!((empty.events, empty.bytes, empty.updated_ms), (0, 0, 1_700_000_100_000));
        let events = transcripts.history(&full.id, 1, 9).await.unwrap();
        assert_eq!(full.bytes, events.iter().map(|event| event.notification.len() as u64).sum::<u64>());
        assert_eq!((events.len(), events[1].sequence, events[1].at_ms), (2, 2, 1_700_000_000_900));
        assert!(events[1].notification.contains("remembered"));
    }
    assert_eq!(version(&Connection::open(&path).unwrap()).unwrap(), VERSION);
}

#[test]
fn a_newer_database_is_refused_and_left_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("sessions.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE future (x); INSERT INTO future VALUES (1); PRAGMA user_version = 4;")
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = Transcripts::open(&path).unwrap_err();
    assert!(matches!(refused, TranscriptError::Newer { found: 4, known: VERSION, .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("newer agentOS") && text.contains("sessions.db"), "{text}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let names: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["sessions.db"]);
}

#[test]
fn a_migration_that_fails_at_its_end_has_never_been() {
    let home = tempfile::tempdir().unwrap();
    let path = old_database(home.path());
    let columns = |database: &Connection| -> i64 {
        let sql = "SELECT count(*) FROM pragma_table_info('sessions')";
        database.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let mut database = Connection::open(&path).unwrap();
    let before = columns(&database);
    // The last moment before it is there.
    let interrupted = migrate(&mut database, |inside| {
        assert!(columns(inside) > before && inside.prepare("SELECT * FROM tallies").is_ok());
        assert_eq!(version(inside)?, VERSION);
        Err(rusqlite::Error::InvalidQuery)
    });
    assert!(interrupted.is_err());
    assert_eq!((columns(&database), version(&database).unwrap()), (before, 1));
    assert!(database.prepare("SELECT * FROM tallies").is_err());
    // A table that refuses a later statement does as much.
    database.execute_batch("ALTER TABLE sessions ADD COLUMN bytes TEXT").unwrap();
    assert!(matches!(open(&path), Err(TranscriptError::Open { .. })));
    assert_eq!((columns(&database), version(&database).unwrap()), (before + 1, 1));
}

#[tokio::test]
async fn a_database_of_version_2_keeps_what_it_knows() {
    let home = tempfile::tempdir().unwrap();
    let path = old_database(home.path());
    let database = Connection::open(&path).unwrap();
    database.execute_batch(SECOND).unwrap();
    database
        .execute_batch("UPDATE sessions SET cwd = '/work', title = 'Tests'; PRAGMA user_version = 2")
        .unwrap();
    let sessions = Transcripts::open(&path).unwrap().sessions(9).await.unwrap();
    let [empty, full] = &sessions[..] else { panic!() };
    assert_eq!((full.details.cwd.as_deref(), full.title.as_deref()), (Some("/work"), Some("Tests")));
    assert_eq!((full.events, full.updated_ms, empty.events), (2, 1_700_000_000_900, 0));
}

/// Of the process that is killed: the database, and the test that it runs.
const VARIABLE: &str = "AGENTOS_TEST_DATABASE_TO_MIGRATE";
const TEST: &str = "transcript::schema::tests::a_migration_whose_process_is_killed_has_never_been";
const DONE: &str = "all but the commit is done";

#[tokio::test]
async fn a_migration_whose_process_is_killed_has_never_been() {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let mut database = Connection::open(path).unwrap();
        let stays = migrate(&mut database, |_| {
            std::io::stdout().write_all(format!("{DONE}\n").as_bytes()).unwrap();
            loop {
                std::thread::park();
            }
        });
        panic!("it was not killed: {stays:?}");
    }
    let home = tempfile::tempdir().unwrap();
    let path = old_database(home.path());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(VARIABLE, &path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with(DONE)));
    child.kill().unwrap();
    child.wait().unwrap();
    let database = Connection::open(&path).unwrap();
    assert_eq!(version(&database).unwrap(), 1);
    assert!(database.prepare("SELECT title FROM sessions").is_err());
    let transcripts = Transcripts::open(&path).unwrap();
    assert_eq!(transcripts.sessions(9).await.unwrap()[1].events, 2);
}

#[tokio::test]
async fn an_older_agentos_beside_this_one_is_counted_when_it_is_met() {
    let home = tempfile::tempdir().unwrap();
    let path = old_database(home.path());
    let session = "22222222-2222-4222-8222-222222222222";
    let newer = Transcripts::open(&path).unwrap();
    // It writes what it knows of, and its own number when it opens the database.
    let older = Connection::open(&path).unwrap();
    let sql = "INSERT INTO events SELECT key, 1, 5, 'theirs' FROM sessions WHERE id = ?1";
    older.execute(sql, [session]).unwrap();
    let met = newer.reopen(session).await.unwrap();
    assert_eq!((met.events, met.bytes), (1, 6));
    older.execute(&sql.replace("1, 5", "2, 7"), [session]).unwrap();
    older.pragma_update(None, "user_version", 1).unwrap();
    let again = Transcripts::open(&path).unwrap();
    let met = again.session(session).await.unwrap().unwrap();
    assert_eq!((met.events, met.bytes, met.updated_ms), (2, 12, 7));
    assert_eq!(version(&older).unwrap(), VERSION);
}
