//! Agents that don't answer, don't stop, don't go. Where a deadline is long, the clock is turned once the agent is seen
//! to be silent.

use std::time::Duration;

use agentos_agents::session::{AgentFault, FaultKind, Prompt, PromptError, StartError};
use serde_json::{Value, json};

use crate::fake_acp;
use crate::place::{Place, With, events, kept, prompting, soon, turn};

#[tokio::test]
async fn an_agent_that_never_answers_the_beginning_is_given_up() {
    let place = Place::new();
    for method in ["initialize", "session/new"] {
        let flags = ["--on", method, "[[log asked]] [[never]]"];
        let (mut agent, starting) = place.start(&flags, With::default());
        let starting = tokio::spawn(starting);
        agent.logged("asked").await;
        tokio::time::pause();
        let error = starting.await.unwrap().expect_err("no session");
        tokio::time::resume();
        let StartError::NotReady { log, waited, .. } = &error else { panic!("{error}") };
        assert!(log.contains("asked") && *waited <= Duration::from_secs(120), "{error}");
        agent.gone().await;
    }
    place.sentinel().await.goes_on().await;
}

#[tokio::test]
async fn a_prompt_that_is_never_answered_ends_by_silence() {
    let place = Place::new();
    let sentinel = place.sentinel().await;
    for script in
        ["[[say a]] [[never]]", "[[say a]] [[sleep 60000]]", "[[deaf]] [[hang]]", "[[half 100]] [[hang]]"]
    {
        let (session, _agent) = place.ready(&[]).await;
        let idle_timeout = Some(Duration::from_millis(300));
        let prompt = Prompt { idle_timeout, ..Prompt::text(script) };
        let error = soon(script, session.prompt(prompt)).await.unwrap_err();
        assert_eq!(error.kind(), FaultKind::Timeout, "{script}: {error}");
    }
    sentinel.goes_on().await;
}

#[tokio::test]
async fn noise_is_no_answer() {
    let place = Place::new();
    for kind in ["garbage", "orphan"] {
        let (session, _agent) = place.ready(&[]).await;
        let idle_timeout = Some(Duration::from_millis(500));
        let prompt =
            Prompt { idle_timeout, ..Prompt::text(&format!("[[flood 100 30 kind={kind}]] [[hang]]")) };
        let error = soon("the noise", session.prompt(prompt)).await.unwrap_err();
        assert!(matches!(error, PromptError::IdleTimeout { .. }), "{kind}: {error}");
    }
}

#[tokio::test]
async fn a_running_tool_is_no_silence() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    let idle = Duration::from_secs(100);
    let prompt = Prompt {
        idle_timeout: Some(idle),
        ..Prompt::text("[[tool execute make open]] [[sleep 800]] [[say made]]")
    };
    let prompting = session.clone();
    let prompting = tokio::spawn(async move { prompting.prompt(prompt).await });
    kept(&session, "tool_call").await;
    tokio::time::pause();
    tokio::time::advance(3 * idle).await;
    tokio::time::resume();
    assert_eq!(soon("the tool", prompting).await.unwrap().unwrap().text, "made");
}

#[tokio::test]
async fn what_it_said_while_the_disk_was_slow_is_no_silence() {
    let place = Place::new();
    let (session, mut agent) = place.ready(&[]).await;
    let idle = Duration::from_secs(100);
    // Which of both is looked at first, its words or the clock, is left to chance.
    for number in 0..8 {
        let disk = place.block_disk();
        let script = format!("[[say here]] [[log said {number};]]");
        let prompting = session.clone();
        let prompt = Prompt { idle_timeout: Some(idle), ..Prompt::text(&script) };
        let prompting = tokio::spawn(async move { prompting.prompt(prompt).await });
        agent.logged(&format!("said {number};")).await;
        tokio::time::pause();
        tokio::time::advance(idle).await;
        tokio::time::resume();
        drop(disk);
        let reply = soon("the turn", prompting).await.unwrap();
        assert_eq!(reply.map(|reply| reply.text).map_err(|error| error.to_string()), Ok("here".to_owned()));
    }
}

#[tokio::test]
async fn a_cancel_ends_the_turn_and_the_session_goes_on() {
    let place = Place::new();
    let (session, mut agent) = place.ready(&[]).await;
    let reply = prompting(&session, "[[say begun]] [[log begun]] [[hang]]");
    agent.logged("begun").await;
    assert!(session.cancel().await);
    let reply = soon("the cancelled turn", reply).await.unwrap().unwrap();
    assert_eq!((reply.stop_reason.as_str(), reply.text.as_str()), ("cancelled", "begun"));
    assert!(!session.cancel().await, "nothing runs");
    assert_eq!(turn(&session, "next").await.unwrap().text, "heard: next");
}

#[tokio::test]
async fn an_agent_that_ignores_a_cancel_is_ended_and_the_prompt_is_answered_before() {
    let place = Place::new();
    let sentinel = place.sentinel().await;
    let (session, mut agent) = place.ready(&["--ignore-cancel", "--ignore-eof", "--ignore-sigterm"]).await;
    let reply = prompting(&session, "[[say begun]] [[log begun]] [[hang]]");
    agent.logged("begun").await;
    tokio::time::pause();
    assert!(session.cancel().await);
    let reply = reply.await.unwrap().unwrap();
    assert_eq!(reply.stop_reason, "cancelled");
    let busy = session.prompt(Prompt::text("next")).await.unwrap_err();
    assert!(matches!(busy.kind(), FaultKind::Busy | FaultKind::AgentFailed), "{busy}");
    session.closed().await;
    tokio::time::resume();
    assert!(matches!(session.fate(), Some(AgentFault::Unstoppable { .. })), "{:?}", session.fate());
    agent.gone().await;
    sentinel.goes_on().await;
}

#[tokio::test]
async fn an_agent_that_stops_late_keeps_its_session() {
    let place = Place::new();
    let (session, mut agent) = place.ready(&[]).await;
    let reply =
        prompting(&session, "[[ignore-cancel]] [[say begun]] [[log begun]] [[sleep 3000]] [[say late]]");
    agent.logged("begun").await;
    session.cancel().await;
    let reply = soon("the cancelled turn", reply).await.unwrap().unwrap();
    assert_eq!((reply.stop_reason.as_str(), reply.text.as_str()), ("cancelled", "begun"));
    let until = tokio::time::Instant::now() + crate::place::DEADLINE;
    let text = loop {
        match turn(&session, "next").await {
            Ok(reply) => break reply.text,
            Err(error) => assert_eq!(error.kind(), FaultKind::Busy, "{error}"),
        }
        assert!(tokio::time::Instant::now() < until);
        tokio::task::yield_now().await;
    };
    assert_eq!(text, "heard: next", "what came late belongs to no turn");
}

#[tokio::test]
async fn an_agent_that_ignores_the_end_of_its_input_and_signals_is_killed() {
    let place = Place::new();
    let (session, agent) = place.ready(&["--ignore-eof", "--ignore-sigterm"]).await;
    soon("the polite end", session.close(true)).await;
    agent.gone().await;
    assert!(matches!(turn(&session, "x").await.unwrap_err(), PromptError::Agent(AgentFault::Closed)));
}

#[tokio::test]
async fn a_turn_whose_time_was_over_says_so_even_if_its_session_is_closed_meanwhile() {
    let place = Place::new();
    let (session, mut agent) = place.ready(&["--ignore-cancel"]).await;
    let limit = Duration::from_secs(100);
    let prompt = Prompt { timeout: Some(limit), ..Prompt::text("[[log begun]] [[hang]]") };
    let prompting = session.clone();
    let prompting = tokio::spawn(async move { prompting.prompt(prompt).await });
    agent.logged("begun").await;
    kept(&session, "_agentos/prompt").await;
    tokio::time::pause();
    let ended = tokio::time::timeout(limit + Duration::from_secs(1), session.closed()).await;
    ended.expect_err("the turn is over, and its agent has another second to stop");
    session.close(true).await;
    let error = prompting.await.unwrap().unwrap_err();
    tokio::time::resume();
    assert!(matches!(error, PromptError::Timeout { .. }), "{error}");
    agent.gone().await;
}

#[tokio::test]
async fn an_agent_that_never_answers_a_raw_request_is_told_apart_from_a_refusal() {
    let place = Place::new();
    let flags = ["--on", "session/set_model", "[[log asked]] [[never]]"];
    let (session, mut agent) = place.ready(&flags).await;
    let refused = soon("the refusal", session.raw_send("session/warp", json!({}))).await.unwrap();
    assert_eq!(refused["error"]["code"], -32601);
    let asking = session.clone();
    let asking = tokio::spawn(async move {
        asking.raw_send("session/set_model", json!({ "modelId": "fake/large" })).await
    });
    agent.logged("asked").await;
    tokio::time::pause();
    let error = asking.await.unwrap().unwrap_err();
    tokio::time::resume();
    assert!(
        matches!(&error, PromptError::Unanswered { method, .. } if method == "session/set_model"),
        "{error}"
    );
    assert_eq!(
        session.state().session()["models"]["currentModelId"],
        "fake/small",
        "nobody has agreed to it"
    );
    assert_eq!(turn(&session, "hi").await.unwrap().text, "heard: hi");
}

#[tokio::test]
async fn an_answer_after_its_time_is_no_sign_of_life() {
    let place = Place::new();
    let flags = ["--on", "session/set_model", "[[log asked as ${request};]] [[never]]"];
    let (session, mut agent) = place.ready(&flags).await;
    let mut asking = tokio::task::JoinSet::new();
    // The beginning took the first two.
    let numbers = 3..13;
    for _ in numbers.clone() {
        let session = session.clone();
        asking.spawn(async move {
            session.raw_send("session/set_model", json!({ "modelId": "fake/large" })).await.unwrap_err()
        });
    }
    for number in numbers.clone() {
        agent.logged(&format!("asked as {number};")).await;
    }
    tokio::time::pause();
    for error in asking.join_all().await {
        assert!(matches!(error, PromptError::Unanswered { .. }), "{error}");
    }
    tokio::time::resume();
    let late =
        |number| format!("[[raw {{\"jsonrpc\":\"2.0\",\"id\":{number},\"result\":{{}} }}]] [[sleep 200]]");
    let script = format!("{} [[hang]]", numbers.map(late).collect::<String>());
    let idle_timeout = Some(Duration::from_secs(1));
    let prompt = Prompt { idle_timeout, ..Prompt::text(&script) };
    let error = soon("the silence", session.prompt(prompt)).await.unwrap_err();
    assert!(matches!(error, PromptError::IdleTimeout { .. }), "{error}");
}

#[tokio::test]
async fn an_agent_that_does_not_read_is_found_out_before_memory_is() {
    const REQUESTS: usize = 2000;
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    turn(&session, "[[say deaf]] [[deaf]]").await.unwrap();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..REQUESTS {
        let session = session.clone();
        asking.spawn(async move { session.raw_send("_x/y", json!({ "pad": "x".repeat(8 << 10) })).await });
    }
    soon("the fault", session.closed()).await;
    assert!(matches!(session.fate(), Some(AgentFault::Deaf)), "{:?}", session.fate());
    // It may have heard one more before it went deaf.
    let failed = soon("the requests", asking.join_all()).await.into_iter().filter(Result::is_err).count();
    assert!(failed >= REQUESTS - 20, "{failed}");
}

#[tokio::test]
async fn a_daemon_that_holds_the_output_does_not_hold_the_session() {
    let place = Place::new();
    let (session, agent) = place.ready(&[]).await;
    let daemon = turn(&session, "[[daemon 600 hold]]").await.unwrap().text;
    let error = turn(&session, "[[exit 0]]").await.unwrap_err();
    assert!(matches!(error, PromptError::Agent(AgentFault::Died { .. })), "{error}");
    agent.gone().await;
    let daemon = daemon.trim();
    // A group is all that this process has; in a VM its init ends the rest.
    assert!(fake_acp::is_running(daemon), "the daemon was there all the time");
    let pid = rustix::process::Pid::from_raw(daemon.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    fake_acp::wait_until_gone(daemon).await;
}

#[tokio::test]
async fn an_agent_that_can_closes_its_session_itself() {
    let place = Place::new();
    let (session, mut agent) =
        place.ready(&["--on", "session/close", "[[say bye]] [[log asked for ${session}]]"]).await;
    let theirs = session.state().agent_session_id.clone();
    soon("the polite end", session.close(true)).await;
    agent.logged(&format!("asked for {theirs}")).await;
    agent.gone().await;
    let kept = events(&place, &session).await;
    assert!(kept.last().unwrap().to_string().contains("bye"), "what it says meanwhile is kept: {kept:?}");
    // At once is at once.
    let (session, agent) = place.ready(&["--on", "session/close", "[[never]]", "--ignore-eof"]).await;
    soon("the end", session.close(false)).await;
    agent.gone().await;
}

#[tokio::test]
async fn one_that_never_closes_it_holds_nobody_up() {
    let place = Place::new();
    let flags = ["--on", "session/close", "[[log asked]] [[never]]"];
    let (session, mut agent) = place.ready(&flags).await;
    let closing = tokio::spawn(async move { session.close(true).await });
    agent.logged("asked").await;
    tokio::time::pause();
    let asked = tokio::time::Instant::now();
    closing.await.unwrap();
    let waited = asked.elapsed();
    tokio::time::resume();
    assert!(waited < Duration::from_millis(5600), "half a second beyond what any agent has: {waited:?}");
    agent.gone().await;
    let no_close =
        [r#"--capabilities={"sessionCapabilities":{"close":null}}"#, "--on", "session/close", "[[hang]]"];
    let (session, agent) = place.ready(&no_close).await;
    soon("the end of one without it", session.close(true)).await;
    agent.gone().await;
}

#[tokio::test]
async fn a_raw_request_names_the_session_where_it_is_about_one() {
    let place = Place::new();
    let named = "[[result {\"named\":\"${session}\"}]]";
    let flags = ["session/list", "session/close", "session/set_mode"].map(|method| ["--on", method, named]);
    let (session, _agent) = place.ready(flags.as_flattened()).await;
    let theirs = session.state().agent_session_id.clone();
    let (ours, theirs) = (session.id().as_str(), json!(theirs));
    let ask = async |method: &str, params: Value| {
        soon(method, session.raw_send(method, params.clone())).await.unwrap()
    };
    for (method, params, expected) in [
        ("session/list", json!(null), json!("")),
        ("session/list", json!({ "cwd": "/work" }), json!("")),
        ("session/set_mode", json!({ "modeId": "code" }), theirs.clone()),
        ("session/set_mode", json!({ "modeId": "code", "sessionId": ours }), theirs.clone()),
    ] {
        let answer = ask(method, params.clone()).await;
        assert_eq!(answer["result"]["named"], expected, "{method} {params}: {answer}");
    }
    assert_ne!(ask("session/fork", json!({ "cwd": "/" })).await["result"]["sessionId"], theirs);
    let other = ask("session/close", json!({ "sessionId": "another" })).await;
    assert_eq!(other["error"]["message"], "no such session", "what the caller names stays");
    assert_eq!(ask("session/close", json!(null)).await["result"]["named"], theirs);
}
