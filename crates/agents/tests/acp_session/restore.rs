//! Sessions that are brought back, with agents that can't do their part.

use agentos_agents::Session;
use agentos_agents::session::{AgentFault, Former, StartError};
use serde_json::{Value, json};

use crate::place::{Place, With, events, soon, told, turn};

/// Keeps an agent from having `session/resume`.
const NO_RESUME: &str = r#"--capabilities={"sessionCapabilities":{"resume":null}}"#;

/// The flag of an agent that finds its sessions again.
fn memory() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let flag = format!("--state={}", directory.path().display());
    (directory, flag)
}

/// A session that was talked to and is over; its id.
async fn over(place: &Place, memory: &str) -> String {
    let (session, _agent) = place.ready(&[memory]).await;
    turn(&session, "remember the teapot").await.unwrap();
    session.close(true).await;
    session.id().to_string()
}

/// What is needed to bring it back.
async fn former(place: &Place, id: &str, forgotten: Option<&StartError>) -> With {
    let stored = place.transcripts.reopen(id).await.unwrap();
    let known_through = forgotten.is_none().then_some(stored.events);
    let forgotten = forgotten.map(ToString::to_string);
    let former = Former { stored, known_through, lost_cwd: None, lost: Vec::new(), forgotten };
    With { former: Some(former), ..With::default() }
}

/// What was told of the last time that it was brought back.
async fn restored(place: &Place, session: &Session) -> Value {
    let events = events(place, session).await;
    events.iter().rev().find(|event| event["method"] == "_agentos/restored").unwrap()["params"].clone()
}

/// Another try after this error, with an agent that is asked for nothing of what it remembers.
async fn goes_on_by_its_transcript(place: &Place, id: &str, memory: &str, error: &StartError) {
    assert!(error.may_be_memory(), "{error}");
    let with = former(place, id, Some(error)).await;
    let (session, _agent) = place.ready_with(&[memory], with).await;
    let restored = restored(place, &session).await;
    assert_eq!((&restored["how"], &restored["forgotten"]), (&json!("transcript"), &json!(error.to_string())));
    let told = told(&session, "[[echo prompt]][[echo received]]").await;
    let preface = told[0][0]["text"].as_str().unwrap();
    assert!(preface.contains("remember the teapot"), "{preface}");
    assert_eq!(told[1], json!(["initialize", "session/new", "session/prompt"]));
}

#[tokio::test]
async fn an_agent_that_remembers_is_asked_for_it() {
    let place = Place::new();
    let (_directory, memory) = memory();
    for (flag, how) in [("--acp", "resume"), (NO_RESUME, "load")] {
        let id = over(&place, &memory).await;
        let with = former(&place, &id, None).await;
        let theirs = with.former.as_ref().unwrap().stored.details.agent_session_id.clone().unwrap();
        let (session, _agent) = place.ready_with(&[&memory, flag], with).await;
        let restored = restored(&place, &session).await;
        assert_eq!(
            restored,
            json!({ "how": how, "lostCwd": null, "lost": [], "formerAgentSessionId": theirs })
        );
        assert_eq!(turn(&session, "[[recall]]").await.unwrap().text, "remember the teapot\n");
    }
}

#[tokio::test]
async fn one_that_falls_silent_over_it_goes_on_by_the_transcript() {
    let place = Place::new();
    let (_directory, memory) = memory();
    for (method, flag) in [("session/resume", "--acp"), ("session/load", NO_RESUME)] {
        let id = over(&place, &memory).await;
        let flags = [&memory, flag, "--on", method, "[[log asked]] [[never]]"];
        let (mut agent, starting) = place.start(&flags, former(&place, &id, None).await);
        let starting = tokio::spawn(starting);
        agent.logged("asked").await;
        tokio::time::pause();
        let error = starting.await.unwrap().expect_err("no session");
        tokio::time::resume();
        assert!(matches!(error, StartError::NotReady { .. }), "{error}");
        agent.gone().await;
        goes_on_by_its_transcript(&place, &id, &memory, &error).await;
    }
}

#[tokio::test]
async fn one_that_ends_over_it_goes_on_by_the_transcript() {
    let place = Place::new();
    let (_directory, memory) = memory();
    for (method, flag) in [("session/resume", "--acp"), ("session/load", NO_RESUME)] {
        let id = over(&place, &memory).await;
        let flags = [&memory, flag, "--on", method, "[[exit 3]]"];
        let (agent, starting) = place.start(&flags, former(&place, &id, None).await);
        let error = soon("the start", starting).await.expect_err("no session");
        assert!(matches!(&error, StartError::Agent { source: AgentFault::Died { .. }, .. }), "{error}");
        agent.gone().await;
        goes_on_by_its_transcript(&place, &id, &memory, &error).await;
    }
}

#[tokio::test]
async fn one_that_says_what_it_lacks_is_not_tried_without_its_memory() {
    let place = Place::new();
    for flags in [
        &["--on", "initialize", "[[error -32603 no]]"][..],
        &["--protocol-version=7"],
        &["--auth=[\"browser\"]"],
    ] {
        let (_agent, starting) = place.start(flags, With::default());
        let error = soon("the start", starting).await.expect_err("no session");
        assert!(!error.may_be_memory(), "{error}");
    }
}

#[tokio::test]
async fn what_an_agent_says_of_another_session_is_kept_and_is_no_part_of_this_one() {
    const OTHERS: &str = "[[title Mine]] [[say the teapot]] \
        [[update-for other {\"sessionUpdate\":\"session_info_update\",\"title\":\"Theirs\"}]] \
        [[update-for other {\"sessionUpdate\":\"agent_message_chunk\",\"content\":{\"type\":\"text\",\"text\":\"a secret\"}}]]";
    let place = Place::new();
    let (session, _agent) = place.ready(&["--on", "session/prompt", OTHERS]).await;
    assert_eq!(turn(&session, "hello").await.unwrap().text, "the teapot");
    session.close(true).await;
    let id = session.id().to_string();
    // Each life knows the session by another id; what was said in all of them is told.
    for life in 1..=2 {
        let with = former(&place, &id, None).await;
        assert_eq!(with.former.as_ref().unwrap().stored.title.as_deref(), Some("Mine"));
        let (session, _agent) = place.ready_with(&[], with).await;
        assert_eq!(restored(&place, &session).await["how"], "transcript");
        let told = &told(&session, "[[echo prompt]]").await[0];
        let preface = told[0]["text"].as_str().unwrap();
        assert!(preface.contains("You: the teapot"), "{life}: {preface}");
        assert!(!preface.contains("a secret"), "{life}: {preface}");
        let kept = events(&place, &session).await;
        let others = kept.iter().filter(|event| event["params"]["sessionId"] == "other");
        assert_eq!(others.count(), 2, "as they came");
        session.close(true).await;
    }
}
