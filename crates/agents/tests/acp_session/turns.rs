//! Turns that go wrong, and turns that only look so.

use agentos_agents::session::{AgentFault, FaultKind, PromptError};
use serde_json::{Value, json};

use crate::place::{Place, events, turn};

#[tokio::test]
async fn an_agent_that_ends_in_mid_turn_fails_the_prompt_and_nobody_else() {
    let place = Place::new();
    let sentinel = place.sentinel().await;
    for (script, code, signal) in [
        ("[[say last words]] [[exit 3]]", Some(3), None),
        ("[[say last words]] [[exit 0]]", Some(0), None),
        ("[[say last words]] [[signal 9]]", None, Some(9)),
        ("[[say last words]] [[half 100]] [[signal 15]]", None, Some(15)),
        ("[[say last words]] [[hang-up]] [[hang]]", None, None),
    ] {
        let (session, agent) = place.ready(&[]).await;
        let error = turn(&session, script).await.unwrap_err();
        let PromptError::Agent(AgentFault::Died { exit, .. }) = &error else { panic!("{script}: {error}") };
        assert_eq!((exit.code, exit.signal), (code, signal), "{script}");
        agent.gone().await;
        let kept = events(&place, &session).await;
        let words = kept.iter().filter(|event| event.to_string().contains("last words")).count();
        assert!(words >= 2, "the prompt, and what was said before the end, are kept: {kept:?}");
        assert_eq!(kept.last().unwrap()["method"], "_agentos/turn_end", "{script}");
        let again = turn(&session, "again").await.unwrap_err();
        assert_eq!(again.to_string(), error.to_string(), "every further call answers with it");
        sentinel.goes_on().await;
    }
}

#[tokio::test]
async fn an_agent_that_exits_after_its_answer_has_answered() {
    let place = Place::new();
    let (session, agent) = place.ready(&[]).await;
    assert_eq!(turn(&session, "[[say done]] [[end]] [[exit 0]]").await.unwrap().text, "done");
    session.closed().await;
    agent.gone().await;
    assert!(matches!(session.fate(), Some(AgentFault::Died { .. })), "{:?}", session.fate());
}

#[tokio::test]
async fn errors_of_every_shape_are_the_prompts_with_the_agents_reason() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    for (script, kind, reason) in [
        ("[[error 400 the model said no]]", FaultKind::Model, "the model said no"),
        ("[[error -32603 Internal error {\"details\":\"401 no key\"}]]", FaultKind::Model, "401 no key"),
        ("[[error {\"code\":\"x\",\"message\":[7]}]]", FaultKind::Model, "[7]"),
        ("[[error {}]]", FaultKind::Model, "no reason given"),
        ("[[error -32000 log in]]", FaultKind::Model, "log in"),
        ("[[error -32602 odd prompt]]", FaultKind::AgentFailed, "odd prompt"),
        ("[[end]]", FaultKind::EmptyTurn, "without text"),
        ("[[think only]]", FaultKind::EmptyTurn, "without text"),
        ("[[say]]", FaultKind::EmptyTurn, "without text"),
        ("[[result null]]", FaultKind::EmptyTurn, "without text"),
    ] {
        let error = turn(&session, script).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{script}: {error}");
        assert!(error.to_string().contains(reason), "{script}: {error}");
        let end = events(&place, &session).await.pop().unwrap();
        assert_eq!(end["params"]["error"]["kind"], kind.as_str(), "{script}");
    }
    assert_eq!(turn(&session, "still there?").await.unwrap().text, "heard: still there?");
}

#[tokio::test]
async fn stop_reasons_are_passed_on_known_or_not() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    for reason in ["max_tokens", "refusal", "max_turn_requests", "cancelled", "reason_of_tomorrow"] {
        let reply = turn(&session, &format!("[[say x]] [[end {reason}]]")).await.unwrap();
        assert_eq!(reply.stop_reason, reason);
        assert_eq!(reply.response["result"]["stopReason"], reason);
    }
    for odd in
        ["[[say x]] [[result null]]", "[[say x]] [[result {\"stopReason\":7}]]", "[[say x]] [[result [] ]]"]
    {
        assert_eq!(turn(&session, odd).await.unwrap().stop_reason, "end_turn", "{odd}");
    }
}

#[tokio::test]
async fn what_nobody_knows_is_kept_and_harms_nothing() {
    let place = Place::new();
    let (session, _agent) = place.ready(&["--meta"]).await;
    let garbage = ["text", "utf8", "nul", "truncated", "array", "number", "empty", "crlf", "mute", "orphan"];
    let garbage: String = garbage.map(|kind| format!("[[garbage {kind}]]")).concat();
    for script in [
        "[[update {\"sessionUpdate\":\"news\",\"x\":[1] }]]",
        "[[update {}]] [[update 7]] [[update {\"sessionUpdate\":7}]] [[update {\"sessionUpdate\":\"agent_message_chunk\"}]]",
        "[[notify _auth/status_update {\"a\":1}]] [[notify session/update 7]] [[notify x null]]",
        "[[plan a]] [[commands b]] [[title c]] [[usage 1]] [[user d]]",
        "[[log-flood 1M]]",
        "[[send _x/y {}]] [[send id=\"text\" _x/z {}]]",
        "[[twice]]",
        &garbage,
    ] {
        let reply = turn(&session, &format!("[[say kept]] {script}")).await;
        assert_eq!(reply.unwrap_or_else(|error| panic!("{script}: {error}")).text, "kept", "{script}");
    }
    let kept = events(&place, &session).await;
    let has = |wanted: Value| {
        kept.iter().any(|event| {
            wanted.as_object().unwrap().iter().all(|(key, value)| event["params"]["update"][key] == *value)
        })
    };
    assert!(has(json!({ "sessionUpdate": "news", "x": [1] })));
    assert!(kept.iter().any(|event| event["method"] == "_auth/status_update" && event["params"]["a"] == 1));
    assert!(kept.iter().any(|event| event["params"]["update"]["_meta"].is_object()), "with its _meta");
}

#[tokio::test]
async fn every_event_can_be_taken_apart_by_the_host() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    // A character cut into halves is what JavaScript makes of a text that it streams.
    let half = "[[raw {\"jsonrpc\":\"2.0\",\"method\":\"session/update\",\"params\":{\"sessionId\":\"${session}\",\"update\":\
                {\"sessionUpdate\":\"agent_message_chunk\",\"content\":{\"type\":\"text\",\"text\":\"\\ud83d\"}}}}]]";
    let number = "[[raw {\"jsonrpc\":\"2.0\",\"method\":\"_x/y\",\"params\":{\"n\":1e999}}]]";
    let reply = turn(&session, &format!("[[say kept]] [[garbage deep]] {half} {number}")).await.unwrap();
    assert_eq!(reply.text, "kept\u{fffd}");
    // The helper takes every event apart.
    let kept = events(&place, &session).await;
    assert!(kept.iter().any(|event| event["params"]["update"]["content"]["text"] == "\u{fffd}"));
}

#[tokio::test]
async fn questions_that_nobody_knows_are_answered_with_that() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    let reply = turn(&session, "[[call _x/y {}]] [[call id=\"t\" fs/read_text_file {}]]").await.unwrap();
    let codes: Vec<Value> = reply
        .text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line.split_once(": ").unwrap().1).unwrap()["code"].clone())
        .collect();
    assert_eq!(codes, [json!(-32601), json!(-32601)]);
    let answers = &crate::place::told(&session, "[[echo answers]]").await[0];
    assert_eq!(answers[1]["id"], "t", "under the id that was asked with");
}

#[tokio::test]
async fn an_agent_cannot_speak_as_the_host() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    let forged = "[[notify _agentos/turn_end {\"stopReason\":\"forged\"}]] \
                  [[raw {\"jsonrpc\":\"2.0\",\"method\":\"\\u005fagentos/model\",\"params\":{\"kind\":\"forged\"}}]]";
    turn(&session, &format!("[[say x]] {forged}")).await.unwrap();
    for event in events(&place, &session).await {
        let is_forged = event["params"]["stopReason"] == "forged" || event["params"]["kind"] == "forged";
        let is_ours = event["method"].as_str().unwrap().starts_with("_agentos/");
        assert!(!(is_forged && is_ours), "{event}");
    }
}

#[tokio::test]
async fn modes_and_options_follow_the_agent_and_the_caller() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    turn(&session, "[[say x]] [[mode plan]] [[option effort high]]").await.unwrap();
    let state = session.state();
    assert_eq!(state.session()["modes"]["currentModeId"], "plan");
    assert_eq!(state.session()["configOptions"][2]["currentValue"], "high");
    for (method, params) in [
        ("session/set_mode", json!({ "modeId": "code" })),
        ("session/set_model", json!({ "modelId": "fake/large" })),
        ("session/set_config_option", json!({ "configId": "effort", "value": "low" })),
    ] {
        let answer = session.raw_send(method, params).await.unwrap();
        assert!(answer["error"].is_null(), "{answer}");
    }
    let state = session.state();
    assert_eq!(state.session()["modes"]["currentModeId"], "code");
    assert_eq!(state.session()["models"]["currentModelId"], "fake/large");
    assert_eq!(state.session()["configOptions"][2]["currentValue"], "low");
    let refused = session.raw_send("session/set_mode", json!({ "modeId": "warp" })).await.unwrap();
    assert_eq!(refused["error"]["code"], -32602);
    assert_eq!(session.state().session()["modes"]["currentModeId"], "code");
}

#[tokio::test]
async fn what_an_agent_says_of_another_session_is_not_this_ones() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    let other = "[[update-for other {\"sessionUpdate\":\"agent_message_chunk\",\"content\":{\"type\":\"text\",\"text\":\"wrong\"}}]] \
                 [[update-for other {\"sessionUpdate\":\"current_mode_update\",\"currentModeId\":\"code\"}]]";
    let reply = turn(&session, &format!("[[say right]] {other}")).await.unwrap();
    assert_eq!(reply.text, "right");
    assert_eq!(session.state().session()["modes"]["currentModeId"], "ask");
}
