//! Sessions with a scripted pi that misbehaves in one way per story.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod fake_pi;

use std::time::{Duration, Instant};

use agentos_agents::session::{AgentFault, FaultKind, Prompt, PromptError, StartError};
use agentos_agents::{AgentExit, Session, Sessions};
use fake_pi::{Place, events_of};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// The first event of the session that has this text.
async fn event_with(session: &Session, text: &str) -> String {
    let mut events = session.events(0);
    let told = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.notification.contains(text) {
                return event.notification.to_string();
            }
        }
    };
    soon(text, told).await
}

/// Lets this much time pass at once, and everybody do what was due by then: the clock jumps whenever all of them wait.
async fn until_over(time: Duration) {
    tokio::time::pause();
    tokio::time::sleep(time).await;
    tokio::time::resume();
}

fn prompting(
    session: &Session,
    text: &str,
) -> tokio::task::JoinHandle<Result<agentos_agents::session::PromptReply, PromptError>> {
    let (session, prompt) = (session.clone(), Prompt::text(text));
    tokio::spawn(async move { session.prompt(prompt).await })
}

#[tokio::test]
async fn a_session_begins_with_its_model_and_answers_a_prompt() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    assert_eq!(session.state().session()["sessionId"], "pi-1");
    assert_eq!(session.state().initialize["protocolVersion"], 1);

    let reply = prompting(&session, "hello");
    let prompt = pi.expect("prompt").await;
    assert_eq!(prompt["message"], "hello");
    pi.accept(&prompt).await;
    pi.turn(&["Hi ", "there"]).await;
    let reply = soon("the reply", reply).await.unwrap().unwrap();
    assert_eq!((reply.text.as_str(), reply.stop_reason.as_str()), ("Hi there", "end_turn"));
    assert_eq!(reply.response["result"]["stopReason"], "end_turn");
    assert_eq!(reply.rejected_permissions, 0);

    // What the reply speaks of is on disk when it is given.
    let stored = place.transcripts.history(session.id().as_str(), 1, 100).await.unwrap();
    let methods: Vec<String> =
        stored.iter().map(|event| fake_pi::parse(event)["method"].as_str().unwrap().to_owned()).collect();
    assert_eq!(methods[0], "_agentos/model");
    let chunks = stored.iter().filter(|event| event.notification.contains("agent_message_chunk")).count();
    assert_eq!(chunks, 2);
    let sequence: Vec<u64> = stored.iter().map(|event| event.sequence).collect();
    assert_eq!(sequence, (1..=stored.len() as u64).collect::<Vec<_>>());
    assert_eq!(events_of(&session, stored.len()).await, stored, "live readers see what is stored");
}

#[tokio::test]
async fn what_was_installed_for_a_session_is_its_second_event() {
    let place = Place::new();
    let install = agentos_agents::store::InstallRecord {
        packages: vec!["tool@1".into()],
        total_bytes: 7,
        place: "/store".into(),
        duration: Duration::from_millis(3),
    };
    let (session, _pi) = place.ready_after(Some(install)).await;
    let events = events_of(&session, 2).await;
    assert_eq!(fake_pi::parse(&events[0])["params"]["kind"], "demo");
    let install = fake_pi::parse(&events[1]);
    assert_eq!(install["method"], "_agentos/install");
    assert_eq!(install["params"]["totalBytes"], 7);
}

#[tokio::test]
async fn a_second_prompt_is_busy_until_the_first_one_ends() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let first = prompting(&session, "one");
    let prompt = pi.expect("prompt").await;
    let error = session.prompt(Prompt::text("two")).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Busy);
    pi.accept(&prompt).await;
    pi.turn(&["1"]).await;
    first.await.unwrap().unwrap();
    let second = prompting(&session, "two");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.turn(&["2"]).await;
    assert_eq!(second.await.unwrap().unwrap().text, "2");
}

#[tokio::test]
async fn a_prompt_that_says_nothing_is_refused_before_the_agent_sees_it() {
    let place = Place::new();
    let (session, _pi) = place.ready().await;
    let error = session.prompt(Prompt::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (FaultKind::InvalidInput, "the prompt is empty"));
}

#[tokio::test]
async fn the_models_error_is_the_prompts() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.say(&json!({ "type": "message_end", "message": {
        "role": "assistant", "content": [], "stopReason": "error", "errorMessage": "401: invalid x-api-key" } }))
        .await;
    pi.settle().await;
    let error = reply.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (FaultKind::Model, "401: invalid x-api-key"));
}

#[tokio::test]
async fn a_turn_without_a_word_fails_with_what_the_log_says() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    pi.log("warning: the disk smells\n").await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.turn(&[]).await;
    let error = reply.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), FaultKind::EmptyTurn);
    assert!(error.to_string().contains("the disk smells"), "{error}");
}

#[tokio::test]
async fn a_turn_with_a_tool_call_and_no_word_is_fine() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.say(&json!({ "type": "message_update", "assistantMessageEvent":
        { "type": "toolcall_start", "contentIndex": 0, "id": "c1", "toolName": "bash" } }))
        .await;
    pi.settle().await;
    assert_eq!(reply.await.unwrap().unwrap().text, "");
}

#[tokio::test]
async fn a_refused_prompt_fails_with_the_agents_words_and_a_handled_one_ends() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.answer(&prompt, Err("no model selected")).await;
    let error = reply.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no model selected"), "{error}");

    let reply = prompting(&session, "/mcp");
    let prompt = pi.expect("prompt").await;
    pi.answer(&prompt, Ok(json!({ "disposition": "handled" }))).await;
    assert_eq!(reply.await.unwrap().unwrap().stop_reason, "end_turn");
}

#[tokio::test]
async fn a_pi_without_a_key_is_a_matter_of_the_model() {
    let place = Place::new();
    let (session, mut pi) = place.ready_with(json!({ "models": [] })).await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.answer(&prompt, Err("No API key found for the selected model.")).await;
    let error = reply.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (FaultKind::Model, "No API key found for the selected model.")
    );
}

#[tokio::test]
async fn cancelling_aborts_the_turn_and_keeps_its_text() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    assert!(!session.cancel().await, "nothing runs");
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.text("so far").await;
    assert!(session.cancel().await);
    pi.expect("abort").await;
    pi.say(&json!({ "type": "agent_settled", "aborted": true })).await;
    let reply = reply.await.unwrap().unwrap();
    assert_eq!((reply.text.as_str(), reply.stop_reason.as_str()), ("so far", "cancelled"));
}

#[tokio::test]
async fn a_cancelled_turn_is_answered_although_the_agent_ignores_it() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    let begun = Instant::now();
    assert!(session.cancel().await);
    let reply = soon("the cancelled prompt", reply).await.unwrap().unwrap();
    assert_eq!(reply.stop_reason, "cancelled");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // The agent still works on it: nothing else is given to it until it is done.
    let busy = session.prompt(Prompt::text("next")).await.unwrap_err();
    assert_eq!(busy.kind(), FaultKind::Busy);
    pi.turn(&["late text of the old turn"]).await;
    pi.after_all_is_read().await;
    let next = prompting(&session, "next");
    let prompt = pi.next_prompt().await;
    pi.accept(&prompt).await;
    pi.turn(&["new"]).await;
    assert_eq!(next.await.unwrap().unwrap().text, "new");
}

#[tokio::test]
async fn an_agent_that_never_stops_is_ended_and_its_session_says_so() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    assert!(session.cancel().await);
    // From here on only the session's own deadlines can make something happen.
    tokio::time::pause();
    assert_eq!(reply.await.unwrap().unwrap().stop_reason, "cancelled");
    assert_eq!(session.prompt(Prompt::text("y")).await.unwrap_err().kind(), FaultKind::Busy);
    // Without a deadline of ours: the clock jumps to the next one whenever everybody waits for the disk.
    session.closed().await;
    assert!(pi.killed().await);
    assert!(matches!(session.fate(), Some(AgentFault::Unstoppable { .. })), "{:?}", session.fate());
    let error = session.prompt(Prompt::text("z")).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::AgentFailed);
    assert!(error.to_string().contains("went on with a cancelled turn"), "{error}");
}

#[tokio::test]
async fn a_cancelled_prompt_that_no_turn_follows_is_no_reason_to_end_the_agent() {
    let place = Place::new();
    for late in [Err("no"), Ok(json!({ "disposition": "handled" }))] {
        let (session, mut pi) = place.ready().await;
        let reply = prompting(&session, "x");
        let prompt = pi.expect("prompt").await;
        assert!(session.cancel().await);
        // The session's deadline passes at once; from then on its events need a real thread's time.
        tokio::time::pause();
        assert_eq!(reply.await.unwrap().unwrap().stop_reason, "cancelled");
        tokio::time::resume();
        assert_eq!(session.prompt(Prompt::text("y")).await.unwrap_err().kind(), FaultKind::Busy);
        pi.answer(&prompt, late).await;
        pi.after_all_is_read().await;
        // Had the session not understood, this one would be busy.
        let next = prompting(&session, "z");
        let prompt = pi.next_prompt().await;
        assert_eq!(prompt["message"], "z");
        pi.accept(&prompt).await;
        pi.turn(&["well"]).await;
        assert_eq!(next.await.unwrap().unwrap().text, "well");
        assert!(session.fate().is_none(), "{:?}", session.fate());
    }
}

#[tokio::test]
async fn text_without_an_end_is_a_fault_before_it_fills_the_memory() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    let flood = tokio::spawn(async move {
        let event = json!({ "type": "text_delta", "contentIndex": 0, "delta": "x".repeat(1 << 20) });
        let record = json!({ "type": "message_update", "assistantMessageEvent": event }).to_string() + "\n";
        let mut sent = 0;
        while sent < 64 && pi.try_raw(record.as_bytes()).await {
            sent += 1;
        }
        (pi, sent)
    });
    let error = soon("the fault", reply).await.unwrap().unwrap_err();
    assert!(
        matches!(error, PromptError::Agent(AgentFault::TooMuchText { limit_bytes }) if limit_bytes == 16 << 20)
    );
    assert_eq!(error.kind(), FaultKind::AgentFailed);
    let (pi, sent) = soon("the flood's end", flood).await.unwrap();
    assert!(sent < 20, "{sent} MiB were read");
    assert!(soon("the kill", pi.killed()).await);
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_no_transcript() {
    let place = Place::new();
    let (mut pi, starting) = place.starting();
    pi.expect("get_state").await;
    assert_eq!(place.transcripts.sessions(9).await.unwrap().len(), 1, "it has begun");
    starting.abort();
    assert!(soon("the kill", pi.killed()).await);
    // It is forgotten by a task of its own.
    let gone = async {
        while !place.transcripts.sessions(9).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    soon("the end of the transcript", gone).await;
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_its_turn() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    reply.abort();
    pi.expect("abort").await;
}

#[tokio::test]
async fn a_turn_whose_time_is_over_says_what_kept_the_agent_and_the_session_goes_on() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    pi.log("long ago\n").await;
    let asked = |timeout: Duration| {
        let prompt = Prompt { timeout: Some(timeout), ..Prompt::text("x") };
        let session = session.clone();
        tokio::spawn(async move { session.prompt(prompt).await })
    };
    let long = Duration::from_secs(3600);
    let reply = asked(long);
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    // Not even a running tool excuses it.
    pi.say(&json!({ "type": "tool_execution_start", "toolCallId": "c", "toolName": "bash", "args": {} }))
        .await;
    pi.say(&json!({ "type": "auto_retry_start", "attempt": 1, "errorMessage": "429: slow down" })).await;
    event_with(&session, "429: slow down").await;
    until_over(long).await;
    pi.expect("abort").await;
    pi.settle().await;
    pi.after_all_is_read().await;
    let error = soon("the end", reply).await.unwrap().unwrap_err();
    assert!(matches!(error, PromptError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("429: slow down"), "{error}");
    assert!(!error.to_string().contains("long ago"), "an earlier turn is no reason: {error}");
    let told = event_with(&session, "_agentos/turn_end").await;
    assert!(told.contains("timeout") && told.contains("429: slow down"), "{told}");

    let reply = asked(Duration::from_millis(100));
    let prompt = pi.next_prompt().await;
    pi.accept(&prompt).await;
    pi.expect("abort").await;
    pi.settle().await;
    let error = soon("the end", reply).await.unwrap().unwrap_err();
    assert!(error.to_string().ends_with("it has told no reason"), "{error}");
}

#[tokio::test]
async fn silence_ends_a_turn_but_not_while_a_tool_runs() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let asked = |text: &str, idle: Duration| {
        let prompt = Prompt { idle_timeout: Some(idle), ..Prompt::text(text) };
        let session = session.clone();
        tokio::spawn(async move { session.prompt(prompt).await })
    };
    let reply = asked("silent", Duration::from_millis(60));
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    // An agent that prints a line every few milliseconds; garbage is no sign of work.
    let mut beat = tokio::time::interval(Duration::from_millis(5));
    let error = soon("the silent turn", async {
        while !reply.is_finished() {
            beat.tick().await;
            pi.raw(b"still here\n").await;
        }
        reply.await
    })
    .await
    .unwrap()
    .unwrap_err();
    assert_eq!(error.kind(), FaultKind::Timeout);
    pi.expect("abort").await;
    pi.settle().await;
    pi.after_all_is_read().await;

    let long = Duration::from_secs(3600);
    let reply = asked("busy with a tool", long);
    let prompt = pi.next_prompt().await;
    pi.accept(&prompt).await;
    pi.say(&json!({ "type": "tool_execution_start", "toolCallId": "c", "toolName": "bash", "args": {} }))
        .await;
    event_with(&session, r#""toolCallId":"c""#).await;
    until_over(2 * long).await;
    // An abort would come before this answer.
    pi.say(&json!({ "type": "extension_ui_request", "id": "next", "method": "confirm" })).await;
    assert_eq!(pi.record().await["id"], "next");
    pi.say(&json!({ "type": "tool_execution_end", "toolCallId": "c", "toolName": "bash", "result": {} }))
        .await;
    pi.turn(&["done"]).await;
    assert_eq!(soon("the busy turn", reply).await.unwrap().unwrap().text, "done");
}

#[tokio::test]
async fn an_agent_that_dies_in_a_turn_fails_it_with_its_last_words() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.text("half a ").await;
    pi.log("Segmentation fault\n").await;
    pi.exit(AgentExit { code: None, signal: Some(11) }).await;
    let error = soon("the dead agent", reply).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), FaultKind::AgentFailed);
    let PromptError::Agent(AgentFault::Died { exit, log }) = &error else { panic!("{error:?}") };
    assert_eq!((exit.signal, log.trim()), (Some(11), "Segmentation fault"));
    // The transcript is complete to the last event, and every later call says the same.
    soon("the end", session.closed()).await;
    let stored = place.transcripts.history(session.id().as_str(), 1, 100).await.unwrap();
    let [.., said, end] = stored.as_slice() else { panic!("{stored:?}") };
    assert!(said.notification.contains("half a "));
    assert!(
        end.notification.contains("_agentos/turn_end") && end.notification.contains("Segmentation fault")
    );
    assert_eq!(session.prompt(Prompt::text("y")).await.unwrap_err().to_string(), error.to_string());
    let mut events = session.events(stored.len() as u64 + 1);
    assert!(soon("the end of the events", events.next()).await.is_none());
}

#[tokio::test]
async fn an_agent_that_exits_at_once_or_refuses_is_an_error_with_its_words() {
    let place = Place::new();
    let (mut pi, starting) = place.starting();
    pi.log("Error: Cannot find module 'x'\n").await;
    pi.exit(AgentExit { code: Some(1), signal: None }).await;
    let error = soon("the start", starting).await.unwrap().unwrap_err();
    let StartError::Agent { source: AgentFault::Died { exit, log }, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(exit.code, Some(1));
    assert!(log.contains("Cannot find module"), "{log}");

    let (mut pi, starting) = place.starting();
    let question = pi.expect("get_state").await;
    pi.answer(&question, Err("not today")).await;
    let error = soon("the start", starting).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("refused initialize: get_state: not today"), "{error}");
    let kept = place.transcripts.sessions(9).await.unwrap();
    assert!(kept.is_empty(), "a session that never was has no transcript");
    assert!(soon("the kill", pi.killed()).await);
}

#[tokio::test]
async fn garbage_between_records_is_survived_and_endless_garbage_is_a_fault() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.raw(b"(node:7) ExperimentalWarning: something\n\x00\xff\xfe\n").await;
    pi.accept(&prompt).await;
    pi.turn(&["fine"]).await;
    assert_eq!(reply.await.unwrap().unwrap().text, "fine");

    let reply = prompting(&session, "y");
    pi.expect("prompt").await;
    let flood = tokio::spawn(async move {
        while pi.try_raw(&[b'g'; 4000]).await && pi.try_raw(b"\n").await {}
        pi
    });
    let error = soon("the garbage", reply).await.unwrap().unwrap_err();
    assert!(
        matches!(&error, PromptError::Agent(AgentFault::Garbage { log, .. }) if log.contains("ggg")),
        "{error}"
    );
    let pi = soon("the flood's end", flood).await.unwrap();
    assert!(soon("the kill", pi.killed()).await);
}

#[tokio::test]
async fn a_record_without_an_end_is_a_fault_and_costs_no_more_than_the_bound() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    pi.expect("prompt").await;
    let flood = tokio::spawn(async move {
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            if !pi.try_raw(&chunk).await {
                break;
            }
        }
        pi.try_raw(b"\n").await;
        pi
    });
    let error = soon("the long record", reply).await.unwrap().unwrap_err();
    assert!(matches!(error, PromptError::Agent(AgentFault::RecordTooLong { .. })), "{error}");
    soon("the flood's end", flood).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_answers_twice_ends_no_turn_but_its_own() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "one");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.accept(&prompt).await;
    pi.turn(&["1"]).await;
    reply.await.unwrap().unwrap();
    let reply = prompting(&session, "two");
    let prompt = pi.expect("prompt").await;
    pi.settle().await;
    pi.accept(&prompt).await;
    pi.turn(&["2"]).await;
    assert_eq!(soon("the second turn", reply).await.unwrap().unwrap().text, "2");
}

#[tokio::test]
async fn a_question_nobody_can_answer_is_declined_counted_and_shown() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.say(
        &json!({ "type": "extension_ui_request", "id": "q1", "method": "confirm", "title": "Delete all?" }),
    )
    .await;
    let answer = pi.expect("extension_ui_response").await;
    assert_eq!(answer, json!({ "type": "extension_ui_response", "id": "q1", "cancelled": true }));
    pi.turn(&["then not"]).await;
    assert_eq!(reply.await.unwrap().unwrap().rejected_permissions, 1);
    let stored = place.transcripts.history(session.id().as_str(), 1, 100).await.unwrap();
    let declined =
        stored.iter().map(fake_pi::parse).find(|event| event["method"] == "_agentos/permission_rejected");
    assert_eq!(declined.unwrap()["params"]["description"], "Delete all?");
}

#[tokio::test]
async fn settings_are_changed_by_pi_or_refused_with_what_is_supported() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let asking = session.clone();
    let answer =
        tokio::spawn(async move { asking.raw_send("session/set_mode", json!({ "modeId": "low" })).await });
    let command = pi.expect("set_thinking_level").await;
    assert_eq!(command["level"], "low");
    pi.answer(&command, Ok(Value::Null)).await;
    assert_eq!(answer.await.unwrap().unwrap()["result"], json!({}));
    let refused = session.raw_send("session/fork", json!({})).await.unwrap();
    assert_eq!(refused["error"]["code"], -32601);
}

#[tokio::test]
async fn closing_politely_cancels_the_turn_and_lets_the_agent_go() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    pi.text("until now").await;
    pi.after_all_is_read().await;
    let closing = session.clone();
    let closed = tokio::spawn(async move { closing.close(true).await });
    pi.expect("abort").await;
    assert_eq!(pi.next_record().await, None, "its input ends");
    pi.say(&json!({ "type": "farewell" })).await;
    pi.exit(AgentExit { code: Some(0), signal: None }).await;
    soon("the close", closed).await.unwrap();
    let reply = reply.await.unwrap().unwrap();
    assert_eq!((reply.text.as_str(), reply.stop_reason.as_str()), ("until now", "cancelled"));
    let stored = place.transcripts.history(session.id().as_str(), 1, 100).await.unwrap();
    assert!(stored.last().unwrap().notification.contains("_pi/farewell"), "what it said last is kept");
    session.close(true).await;
    assert_eq!(session.prompt(Prompt::text("y")).await.unwrap_err().kind(), FaultKind::Closed);
}

#[tokio::test]
async fn closing_now_kills_and_fails_what_runs() {
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let reply = prompting(&session, "x");
    pi.expect("prompt").await;
    soon("the close", session.close(false)).await;
    assert!(pi.killed().await);
    assert_eq!(reply.await.unwrap().unwrap_err().kind(), FaultKind::Closed);
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_agent() {
    let place = Place::new();
    let (session, pi) = place.ready().await;
    let sessions = Sessions::default();
    sessions.insert(session.clone());
    let id = session.id().to_string();
    drop(session);
    assert_eq!(sessions.list("vm-1").len(), 1);
    assert!(sessions.list("vm-2").is_empty());
    assert!(sessions.get(&id).is_ok());
    drop(sessions.remove(&id));
    assert!(soon("the kill", pi.killed()).await);
    assert_eq!(sessions.get(&id).unwrap_err().to_string(), format!("Session not found: {id}"));
}

#[tokio::test]
async fn an_agent_that_reads_nothing_is_deaf_not_a_hang() {
    let place = Place::new();
    let (session, pi) = place.ready().await;
    // More than the pipe and the queue before it hold.
    let asks = (0..3000).map(|_| {
        let session = session.clone();
        tokio::spawn(async move { session.raw_send("session/set_mode", json!({ "modeId": "low" })).await })
    });
    for ask in asks.collect::<Vec<_>>() {
        let error = soon("an unheard request", ask).await.unwrap().unwrap_err();
        assert!(matches!(error, PromptError::Agent(AgentFault::Deaf)), "{error}");
    }
    assert!(pi.killed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_session_holds_up_no_other_one() {
    let place = Place::new();
    let (hung, mut hung_pi) = place.ready().await;
    let (lively, mut pi) = place.ready().await;
    let waiting = prompting(&hung, "x");
    hung_pi.expect("prompt").await;
    for number in 0..20 {
        let reply = prompting(&lively, "go");
        let prompt = pi.expect("prompt").await;
        pi.accept(&prompt).await;
        pi.turn(&[&number.to_string()]).await;
        assert_eq!(soon("the lively session", reply).await.unwrap().unwrap().text, number.to_string());
    }
    assert!(!waiting.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_events_reach_every_reader_in_order_and_the_disk() {
    const CHUNKS: usize = 5000;
    let place = Place::new();
    let (session, mut pi) = place.ready().await;
    let mut early = session.events(1);
    let reader = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(event) = early.next().await {
            seen.push(event.unwrap().sequence);
        }
        seen
    });
    let reply = prompting(&session, "flood");
    let prompt = pi.expect("prompt").await;
    pi.accept(&prompt).await;
    let pieces: Vec<String> = (0..CHUNKS).map(|n| format!("{n} ")).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    pi.turn(&pieces).await;
    let reply = soon("the flood", reply).await.unwrap().unwrap();
    assert_eq!(reply.text, pieces.concat());
    session.close(false).await;
    let seen = soon("the reader", reader).await.unwrap();
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
    assert!(seen.len() > CHUNKS);

    // The same home, opened again, has all of it.
    let again = place.reopened();
    let mut stored = Vec::new();
    loop {
        let page = again.history(session.id().as_str(), stored.len() as u64 + 1, 1000).await.unwrap();
        if page.is_empty() {
            break;
        }
        stored.extend(page.into_iter().map(|event| event.sequence));
    }
    assert_eq!(stored, seen);
}

#[tokio::test]
async fn a_transcript_that_cannot_be_written_ends_the_session_with_that_reason() {
    let place = Place::new();
    let (session, pi) = place.ready().await;
    // Forgotten under the live session: its next events have nowhere to go.
    place.transcripts.delete(session.id().as_str()).await.unwrap();
    let error = soon("the fault", session.prompt(Prompt::text("x"))).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Internal);
    assert!(pi.killed().await);
}
