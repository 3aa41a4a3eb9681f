//! Files and terminals that an agent asks its client for: done in the workspace it was given, for its own session.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentos_agents::permission::PermissionPolicy;
use agentos_agents::session::workspace::{MAX_FILE_BYTES, Program, Terminal, Work, WorkspaceError};
use agentos_agents::session::{PermissionSetup, Prompt, PromptError, Workspace};
use serde_json::Value;

use crate::place::{DEADLINE, Place, With, told, turn};

/// A workspace that is a directory; what begins with /work is in it, nothing else is there.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn place(&self, path: &str) -> Result<PathBuf, WorkspaceError> {
        let inside = path.strip_prefix("/work/").filter(|rest| !rest.contains(".."));
        inside
            .map(|rest| self.0.join(rest))
            .ok_or_else(|| WorkspaceError { message: format!("{path}: denied") })
    }
}

fn outcome<T>(result: std::io::Result<T>) -> Result<T, WorkspaceError> {
    result.map_err(|error| WorkspaceError { message: error.to_string() })
}

impl Workspace for Directory {
    fn read_file(&self, path: String) -> Work<Vec<u8>> {
        let place = self.place(&path);
        Box::pin(async move { outcome(std::fs::read(place?)) })
    }

    fn write_file(&self, path: String, content: String) -> Work<()> {
        let place = self.place(&path);
        Box::pin(async move { outcome(std::fs::write(place?, content)) })
    }

    fn run(&self, program: Program) -> Work<Arc<dyn Terminal>> {
        Box::pin(
            async move { Err(WorkspaceError { message: format!("no programs here: {}", program.argv[0]) }) },
        )
    }
}

async fn said(session: &agentos_agents::Session, script: &str) -> Value {
    let text = turn(session, script).await.unwrap().text;
    serde_json::from_str(text.split_once(": ").unwrap().1).unwrap()
}

#[tokio::test]
async fn files_are_read_and_written_in_the_workspace_for_the_agents_own_session() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let workspace: Arc<dyn Workspace> = Arc::new(Directory(home.path().to_owned()));
    let with = With { workspace: Some(workspace), ..With::default() };
    let (session, _agent) = place.ready_with(&[], with).await;
    assert_eq!(said(&session, "[[fs-write /work/a one]]").await, serde_json::json!({}));
    assert_eq!(std::fs::read(home.path().join("a")).unwrap(), b"one");
    assert_eq!(said(&session, "[[fs-read /work/a]]").await["content"], "one");
    for script in [
        "[[fs-read /etc/passwd]]",
        "[[fs-read /work/../etc/passwd]]",
        "[[fs-read work/a]]",
        "[[fs-write /work/../../b x]]",
        "[[call fs/write_text_file {\"sessionId\":\"other\",\"path\":\"/work/c\",\"content\":\"x\"}]]",
        "[[call fs/write_text_file {\"path\":\"/work/c\",\"content\":\"x\"}]]",
        "[[call fs/write_text_file {\"sessionId\":\"${session}\",\"path\":\"/work/c\",\"content\":7}]]",
        "[[call terminal/output {\"sessionId\":\"${session}\",\"terminalId\":\"terminal-1\"}]]",
        "[[terminal ls]]",
    ] {
        let answer = said(&session, script).await;
        assert!(answer["code"].is_i64() && answer["message"].is_string(), "{script}: {answer}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "nothing else was written");
}

#[tokio::test]
async fn who_rejects_everything_lets_nothing_be_written() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let workspace: Arc<dyn Workspace> = Arc::new(Directory(home.path().to_owned()));
    let permissions = PermissionSetup { policy: PermissionPolicy::RejectAll, rules: Vec::new() };
    let with = With { workspace: Some(workspace), permissions, ..With::default() };
    let (session, _agent) = place.ready_with(&[], with).await;
    for script in ["[[fs-write /work/a one]]", "[[terminal touch /tmp/x]]"] {
        assert!(said(&session, script).await["code"].is_i64(), "{script}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

/// A workspace whose every file is as large as a file may be, and counts how many were read.
#[derive(Debug)]
struct Large {
    read: AtomicUsize,
    /// What the files consist of.
    byte: u8,
}

impl Large {
    fn of(byte: u8) -> Self {
        Self { read: AtomicUsize::new(0), byte }
    }
}

impl Workspace for Large {
    fn read_file(&self, _: String) -> Work<Vec<u8>> {
        self.read.fetch_add(1, Ordering::SeqCst);
        let content = vec![self.byte; MAX_FILE_BYTES];
        Box::pin(async { Ok(content) })
    }

    fn write_file(&self, _: String, _: String) -> Work<()> {
        Box::pin(async { Ok(()) })
    }

    fn run(&self, _: Program) -> Work<Arc<dyn Terminal>> {
        Box::pin(async { Err(WorkspaceError { message: "no programs here".to_owned() }) })
    }
}

/// Asks for so many files without waiting for any.
fn asking(count: usize) -> String {
    let read =
        |id| format!(r#"[[send id={id} fs/read_text_file {{"sessionId":"${{session}}","path":"/large"}}]]"#);
    (0..count).map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_ask_for_more_than_it_can_be_told_at_once() {
    const FILES: usize = 5;
    let place = Place::new();
    let with = With { workspace: Some(Arc::new(Large::of(b'x'))), ..With::default() };
    let (session, _agent) = place.ready_with(&[], with).await;
    turn(&session, &format!("[[say x]] {}", asking(FILES))).await.unwrap();
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        let ids = &told(&session, "[[echo answered]]").await[0];
        let mut ids: Vec<u64> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        ids.sort_unstable();
        if ids.iter().copied().eq(0..FILES as u64) {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{ids:?}");
    }
}

#[tokio::test]
async fn for_an_agent_that_reads_no_answers_no_further_files_are_read() {
    let place = Place::new();
    let workspace = Arc::new(Large::of(b'x'));
    let with = With { workspace: Some(Arc::clone(&workspace) as _), ..With::default() };
    let (session, mut agent) = place.ready_with(&[], with).await;
    let idle_timeout = Some(Duration::from_secs(5));
    let script = format!("[[deaf]] {} [[log asked]] [[hang]]", asking(60));
    let prompt = Prompt { idle_timeout, ..Prompt::text(&script) };
    let prompting = session.clone();
    let prompting = tokio::spawn(async move { prompting.prompt(prompt).await });
    agent.logged("asked").await;
    tokio::time::pause();
    let error = prompting.await.unwrap().unwrap_err();
    tokio::time::resume();
    assert!(matches!(error, PromptError::IdleTimeout { .. }), "the deadline holds: {error}");
    // The agent takes one more line before it is deaf.
    let read = workspace.read.load(Ordering::SeqCst);
    assert!((2..=3).contains(&read), "{read}");
}

#[tokio::test]
async fn a_file_whose_record_is_longer_than_all_answers_may_be_is_refused() {
    let place = Place::new();
    // Six bytes of JSON each.
    let with = With { workspace: Some(Arc::new(Large::of(1))), ..With::default() };
    let (session, _agent) = place.ready_with(&[], with).await;
    let answer = said(&session, "[[fs-read /large]]").await;
    assert_eq!(answer["code"], -32603, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("no room"), "{answer}");
    assert_eq!(turn(&session, "next").await.unwrap().text, "heard: next");
}
