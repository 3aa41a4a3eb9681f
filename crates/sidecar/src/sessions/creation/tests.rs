use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use agentos_agents::model::{ModelChoice, ModelKind};
use agentos_agents::plan::{AcpSetup, LaunchPlan};
use agentos_agents::registry::Launch;
use agentos_agents::session::{Former, PermissionSetup, SessionStart};
use agentos_agents::transcript::SessionDetails;
use agentos_agents::{AgentExit, AgentProcess, Home};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::options::Config;
use crate::sessions::instructions::Instructions;

const DEADLINE: Duration = Duration::from_secs(20);

/// A host without a launcher, and the transcripts of its home.
struct Place {
    host: Arc<Host>,
    transcripts: Transcripts,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().join("home"));
        let transcripts = Transcripts::open(&home.sessions_db()).unwrap();
        let config = Config {
            socket: dir.path().join("s.sock"),
            id: "under-test".into(),
            pool: "blue".into(),
            linger: Duration::ZERO,
            home: Ok(home),
            runtime_dir: dir.path().to_owned(),
        };
        Self { host: Arc::new(Host::new(config, sync_channel(1).0)), transcripts, _dir: dir }
    }

    /// A session whose agent has said that it is ready, and whether it was killed.
    async fn session(&self, creation: &Creation) -> (Session, watch::Receiver<bool>) {
        let (mut output, stdout) = tokio::io::duplex(1 << 16);
        for id in ["get_state", "get_available_models", "get_available_thinking_levels", "get_commands"] {
            let line = format!(
                "{{\"type\":\"response\",\"id\":\"{id}\",\"success\":true,\"data\":{{\"sessionId\":\"pi\"}}}}\n"
            );
            output.write_all(line.as_bytes()).await.unwrap();
        }
        let (kill, killed) = watch::channel(false);
        let mut dying = killed.clone();
        let process = AgentProcess {
            stdin: Box::new(tokio::io::sink()),
            stdout: Box::new(stdout),
            stderr: Box::new(tokio::io::empty()),
            exit: Box::pin(async move {
                // Its output stays open as long as it lives.
                let _output = output;
                let _ = dying.wait_for(|dead| *dead).await;
                AgentExit { code: None, signal: Some(9) }
            }),
            kill: Box::new(move || {
                let _ = kill.send(true);
            }),
        };
        let plan = LaunchPlan {
            argv: vec!["/pi".into()],
            env: BTreeMap::new(),
            cwd: "/".into(),
            mounts: Vec::new(),
            state: Vec::new(),
            state_dir: None,
            files: Vec::new(),
            path_dirs: Vec::new(),
            launch: Launch::PiRpc,
            acp: AcpSetup::default(),
            agent_version: None,
        };
        // A stored one goes on by its transcript.
        let stored = self.transcripts.session(creation.id().as_str()).await.unwrap();
        let former = |stored| Former {
            stored,
            known_through: None,
            lost_cwd: None,
            lost: Vec::new(),
            forgotten: None,
        };
        let session = Session::start(SessionStart {
            id: creation.id().clone(),
            owner: "vm-1".into(),
            attempt: creation.attempt(),
            agent_type: "pi".into(),
            plan: &plan,
            process,
            model: ModelChoice { kind: ModelKind::Demo, reason: "a test".into() },
            install: None,
            transcripts: self.transcripts.clone(),
            permissions: PermissionSetup::default(),
            workspace: None,
            details: SessionDetails::default(),
            former: stored.map(former),
        });
        (session.await.unwrap(), killed)
    }

    /// The agent is killed, the transcript forgotten, and nobody finds the session.
    async fn assert_discarded(&self, id: &SessionId, mut killed: watch::Receiver<bool>) {
        timeout(DEADLINE, killed.wait_for(|dead| *dead)).await.expect("the agent is killed").unwrap();
        let forgotten = async {
            while self.transcripts.session(id.as_str()).await.unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, forgotten).await.expect("the transcript is forgotten");
        assert!(self.host.sessions().get(id.as_str()).is_err());
        assert!(self.host.sessions().creating().is_empty());
    }
}

#[tokio::test]
async fn a_session_that_is_delivered_is_live_and_stays() {
    let place = Place::new();
    let mut creation = Creation::begin(&place.host);
    let (session, killed) = place.session(&creation).await;
    creation.register(session.clone(), place.transcripts.clone(), || Ok(())).unwrap();
    creation.delivered();
    let id = session.id().as_str();
    assert!(place.host.sessions().get(id).is_ok() && !*killed.borrow());
    assert!(place.host.sessions().is_live(id));
    assert_eq!(place.transcripts.session(id).await.unwrap().unwrap().ended, None);
    assert_eq!(place.host.sessions().list("vm-1").len(), 1);
    place.host.sessions().close_session(id, None, false).await.unwrap();
    let stored = place.transcripts.session(id).await.unwrap().expect("what was said is kept");
    assert_eq!(stored.ended.expect("that it is over is kept before anybody is told").why, "closed");
    assert!(!place.host.sessions().is_live(id));
}

#[tokio::test]
async fn a_session_that_is_closed_while_it_is_made_never_stands() {
    let place = Place::new();
    let mut creation = Creation::begin(&place.host);
    let id = creation.id().clone();
    place.host.sessions().close_session(id.as_str(), None, false).await.unwrap();
    let (session, killed) = place.session(&creation).await;
    let refused = creation.register(session, place.transcripts.clone(), || Ok(())).unwrap_err();
    assert!(refused.message().contains("closed while it was made"), "{refused:?}");
    drop(creation);
    place.assert_discarded(&id, killed).await;
}

#[tokio::test]
async fn an_attempt_that_is_given_up_closes_nothing_that_another_one_has_made() {
    let place = Place::new();
    let sessions = place.host.sessions();
    let given_up = sessions.next_attempt();
    let mut creation = Creation::begin(&place.host);
    let (id, own) = (creation.id().to_string(), creation.attempt());
    sessions.close_session(&id, Some(given_up), false).await.unwrap();
    let (session, killed) = place.session(&creation).await;
    let first = session.clone();
    creation.register(session, place.transcripts.clone(), || Ok(())).expect("another's end is not its own");
    creation.delivered();
    sessions.close_session(&id, Some(given_up), false).await.unwrap();
    assert!(sessions.is_live(&id) && !*killed.borrow());
    sessions.close_session(&id, Some(own), false).await.unwrap();
    assert!(!sessions.is_live(&id) && *killed.borrow());

    let stored = place.transcripts.session(&id).await.unwrap().unwrap();
    let mut back = Creation::of_stored(&place.host, &stored, sessions.next_attempt()).unwrap();
    assert!(Creation::of_stored(&place.host, &stored, given_up).is_err(), "one at a time");
    sessions.close_session(&id, None, false).await.unwrap();
    assert!(Creation::of_stored(&place.host, &stored, given_up).is_err(), "that changes nothing");
    let (session, _killed) = place.session(&back).await;
    let refused = back.register(session, place.transcripts.clone(), || Ok(())).unwrap_err();
    assert!(refused.message().contains("closed while it was made"), "{refused:?}");
    let mut next = Creation::of_stored(&place.host, &stored, sessions.next_attempt()).unwrap();
    drop(back);
    assert!(sessions.is_live(&id), "the next one is still on its way");

    // Nor does one that is over take its successor from among the live ones.
    let (session, _killed) = place.session(&next).await;
    next.register(session.clone(), place.transcripts.clone(), || Ok(())).unwrap();
    sessions.live.remove_this(&first);
    assert!(sessions.get(&id).is_ok());
    sessions.live.remove_this(&session);
    assert!(sessions.get(&id).is_err());
}

#[tokio::test]
async fn a_session_that_is_deleted_while_it_is_made_never_stands() {
    let place = Place::new();
    let mut creation = Creation::begin(&place.host);
    let id = creation.id().clone();
    let (session, killed) = place.session(&creation).await;
    place.host.sessions().delete(id.as_str()).await.unwrap();
    let refused = creation.register(session, place.transcripts.clone(), || Ok(())).unwrap_err();
    assert!(refused.message().contains("closed while it was made"), "{refused:?}");
    drop(creation);
    place.assert_discarded(&id, killed).await;
}

#[tokio::test]
async fn a_session_whose_vm_goes_while_it_is_made_never_stands() {
    let place = Place::new();
    let mut creation = Creation::begin(&place.host);
    let id = creation.id().clone();
    let (session, killed) = place.session(&creation).await;
    // The registry has said that the VM goes, and whatever was live is closed already.
    place.host.sessions().close_all_of("vm-1").await;
    let vm_lives = || Ok(place.host.vm("vm-1").map(drop)?);
    assert!(creation.register(session, place.transcripts.clone(), vm_lives).is_err());
    drop(creation);
    place.assert_discarded(&id, killed).await;
}

#[tokio::test]
async fn a_session_that_nobody_was_given_is_discarded() {
    let place = Place::new();
    let mut creation = Creation::begin(&place.host);
    let id = creation.id().clone();
    let (session, killed) = place.session(&creation).await;
    creation.register(session, place.transcripts.clone(), || Ok(())).unwrap();
    assert!(place.host.sessions().get(id.as_str()).is_ok());
    drop(creation);
    place.assert_discarded(&id, killed).await;
}

#[tokio::test]
async fn a_session_that_ends_before_its_instructions_are_shown_leaves_no_file_of_them() {
    let place = Place::new();
    let creation = Creation::begin(&place.host);
    let (session, _killed) = place.session(&creation).await;
    let instructions = Instructions::unmounted(place.host.sessions().scratch().await.unwrap());
    instructions.show(&session, "knit".to_owned()).await.unwrap();
    assert!(instructions.of(session.id()).exists());

    session.close(false).await;
    instructions.hide(session.id()).await;
    // Whoever takes the file away has been there.
    instructions.show(&session, "knit".to_owned()).await.unwrap();
    assert!(!instructions.of(session.id()).exists());
}
