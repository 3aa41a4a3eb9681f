//! What is kept of sessions, and who reads it how fast.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{
    AgentConfig, AgentOs, ErrorKind, ModelChoice, ModelKind, PermissionPolicy, Session, SessionEvents,
};
use support::within;
use support::world::World;

async fn session(vm: &AgentOs) -> Session {
    vm.create_session("pi").permission_policy(PermissionPolicy::AllowAll).await.unwrap()
}

#[tokio::test]
async fn stored_sessions_are_listed_after_the_sidecar_has_gone() {
    let home = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(support::agent_store(), home.path().join("agents")).unwrap();
    let world = World::with_env("AGENTOS_HOME", home.path()).await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let closed = session(&vm).await;
    let create = vm.create_session("pi").permission_policy(PermissionPolicy::AllowAll).cwd("/tmp");
    let killed = create.env("TOKEN", "hush").additional_instructions("Be brief.").await.unwrap();
    within("the turn", closed.prompt("Run the command `echo remembered`")).await.unwrap();
    let of = |page: &agentos::StoredSessionPage, id: &str| {
        page.sessions.iter().find(|session| session.session_id == id).cloned().unwrap()
    };
    let page = world.sidecar.stored_sessions().await.unwrap();
    assert_eq!((page.sessions.len(), page.next), (2, None));
    assert!(page.sessions.iter().all(|session| session.is_live && session.ended.is_none()));
    closed.close().await.unwrap();
    let page = world.sidecar.stored_sessions().id_prefix(closed.id()).await.unwrap();
    let ended = of(&page, closed.id());
    assert_eq!(
        ended.ended.map(|end| end.reason).as_deref(),
        Some("closed"),
        "it is known when close returns"
    );
    world.kill();

    let world = World::with_env("AGENTOS_HOME", home.path()).await;
    let page = world.sidecar.stored_sessions().await.unwrap();
    assert_eq!(page.sessions[0].session_id, killed.id(), "the newest first");
    let (closed, killed) = (of(&page, closed.id()), of(&page, killed.id()));
    assert!(!closed.is_live && !killed.is_live);
    assert_eq!(killed.ended, None, "nobody was left to tell");
    assert!(closed.model_reason.is_some(), "{closed:?}");
    assert_eq!((closed.agent_type.as_str(), closed.model), ("pi", ModelKind::Demo));
    assert_eq!((closed.cwd.as_deref(), closed.vm.as_deref()), (Some("/home/user"), Some(vm.id())));
    assert_eq!(
        (killed.cwd.as_deref(), closed.permission_policy),
        (Some("/tmp"), Some(PermissionPolicy::AllowAll))
    );
    assert_eq!(closed.title.as_deref(), Some("Run the command `echo remembered`"));
    assert!(closed.agent_version.is_some() && closed.agent_session_id.is_some(), "{closed:?}");
    assert_eq!(killed.options["env"], serde_json::json!(["TOKEN"]));
    assert_eq!(killed.options["additionalInstructions"], "Be brief.");
    assert!(!format!("{killed:?}").contains("hush"));
    assert!(
        closed.created_at_ms <= closed.updated_at_ms && closed.updated_at_ms <= closed.ended.unwrap().at_ms
    );

    let history = world.sidecar.read_history(&closed.session_id).await.unwrap();
    assert_eq!(history.len() as u64, closed.events);
    assert!(
        history
            .iter()
            .all(|event| event.at_ms >= closed.created_at_ms && event.at_ms <= closed.updated_at_ms)
    );
    let updates = world.sidecar.read_history(&closed.session_id).method("session/update").since(2).limit(3);
    let updates = updates.await.unwrap();
    assert_eq!(updates.len(), 3);
    assert!(updates.iter().all(|event| event.method() == "session/update" && event.sequence_number >= 2));
    world.sidecar.delete_session(&closed.session_id).await.unwrap();
    let page = world.sidecar.stored_sessions().await.unwrap();
    assert_eq!(page.sessions.len(), 1);
    let gone = world.sidecar.read_history(&closed.session_id).await.unwrap_err();
    assert_eq!(gone.to_string(), format!("Session not found: {}", closed.session_id));
}

#[tokio::test]
async fn every_subscriber_sees_every_event_once_and_in_order() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let session = session(&vm).await;
    let subscribe = || {
        let mut events = session.events();
        tokio::spawn(async move {
            let mut numbers = Vec::new();
            while let Some(event) = events.next().await {
                numbers.push(event.unwrap().sequence_number);
            }
            numbers
        })
    };
    let mut subscribers = vec![subscribe(), subscribe()];
    within("the turn", session.prompt("Run the command `echo one`")).await.unwrap();
    subscribers.push(subscribe());
    within("the turn", session.prompt("Run the command `echo two`")).await.unwrap();
    session.close().await.unwrap();
    subscribers.push(subscribe());
    let kept = vm.read_history(session.id()).await.unwrap().len() as u64;
    for subscriber in subscribers {
        let seen = within("the last event", subscriber).await.unwrap();
        assert_eq!(seen, (1..=kept).collect::<Vec<_>>());
    }
}

/// An agent that says ten thousand things in a turn, as fast as a pipe takes them.
const FLOOD: &str = r#"
while read -r line; do
    id=$(expr "$line" : '.*"id":\([0-9]*\)')
    case "$line" in
    *'"initialize"'*) result='{"protocolVersion":1,"agentCapabilities":{}}' ;;
    *'"session/new"'*) result='{"sessionId":"s"}' ;;
    *'"session/prompt"'*)
        awk 'BEGIN { for (n = 1; n <= 10000; n++) printf "{\"jsonrpc\":\"2.0\",\"method\":\"session/update\",\"params\":{\"sessionId\":\"s\",\"update\":{\"sessionUpdate\":\"agent_message_chunk\",\"content\":{\"type\":\"text\",\"text\":\"%d \"}}}}\n", n }'
        result='{"stopReason":"end_turn"}' ;;
    *) continue ;;
    esac
    printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
done
"#;

/// The numbers of a session's events, to its end, and where its reader was told that it had fallen behind.
async fn read(mut events: SessionEvents) -> (Vec<u64>, Vec<u64>) {
    let (mut numbers, mut told) = (Vec::new(), Vec::new());
    while let Some(event) = within("the next event", events.next()).await {
        match event {
            Ok(event) => numbers.push(event.sequence_number),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Lagged, "{error:?}");
                told.push(error.resume_at().unwrap());
            }
        }
    }
    (numbers, told)
}

#[tokio::test]
async fn a_flood_reaches_every_reader_whole_and_one_that_does_not_read_is_told() {
    let world = World::new().await;
    let agent = AgentConfig::command(["/bin/sh", "-c", FLOOD]);
    let vm = world.vm_with(world.options().model(ModelChoice::Provider).agent("flood", agent)).await;
    let session = vm.create_session("flood").await.unwrap();
    let mut slow = session.events();
    assert_eq!(within("the first event", slow.next()).await.unwrap().unwrap().sequence_number, 1);
    let eager = tokio::spawn(read(session.events()));
    let reply = within("the turn", session.prompt("Go")).await.unwrap();
    assert!(reply.text.ends_with(" 10000 "), "{} bytes", reply.text.len());
    let late = tokio::spawn(read(session.events()));
    session.close().await.unwrap();

    let kept = vm.read_history(session.id()).await.unwrap().len() as u64;
    assert!(kept > 10_000, "{kept}");
    let (numbers, told) = read(slow).await;
    assert_eq!(numbers, (2..=kept).collect::<Vec<_>>());
    assert!(
        matches!(told[..], [next] if (2..=2048).contains(&next)),
        "no more was on its way to it: {told:?}"
    );
    let (numbers, told) = late.await.unwrap();
    assert_eq!(
        (numbers, told),
        ((1..=kept).collect::<Vec<_>>(), Vec::new()),
        "who begins late only catches up"
    );
    // On a busy machine an agent may be faster than any reader.
    assert_eq!(eager.await.unwrap().0, (1..=kept).collect::<Vec<_>>());
    let all = read(session.events()).await;
    assert_eq!(all, ((1..=kept).collect(), Vec::new()), "it can be read when it is over");
}
