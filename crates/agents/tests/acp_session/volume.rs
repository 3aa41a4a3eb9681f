//! How much an agent may say, and how fast.

use std::time::Duration;

use agentos_agents::session::{AgentFault, PromptError};

use crate::place::{Place, events, prompting, soon, turn};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_updates_a_second_reach_the_reader_in_order_and_the_disk() {
    const UPDATES: usize = 2000;
    let place = Place::new();
    let sentinel = place.sentinel().await;
    let (session, _agent) = place.ready(&[]).await;
    let mut live = session.events(1);
    let reader = tokio::spawn(async move {
        let mut numbers = Vec::new();
        while numbers.len() < UPDATES {
            let event = live.next().await.expect("the session goes on").unwrap();
            let event: serde_json::Value = serde_json::from_str(&event.notification).unwrap();
            let text = event["params"]["update"]["content"]["text"].as_str();
            numbers.extend(text.and_then(|text| text.trim().parse::<usize>().ok()));
        }
        numbers
    });
    let reply = prompting(&session, "[[flood 1000 2]]");
    sentinel.goes_on().await;
    let reply = soon("the flood", reply).await.unwrap().unwrap();
    assert_eq!(reply.text, (0..UPDATES).map(|n| format!("{n} ")).collect::<String>());
    let numbers = soon("the reader", reader).await.unwrap();
    assert!(numbers.into_iter().eq(0..UPDATES), "each once, in order");
    let kept = events(&place, &session).await;
    let chunks =
        kept.iter().filter(|event| event["params"]["update"]["sessionUpdate"] == "agent_message_chunk");
    assert_eq!(chunks.count(), UPDATES);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_fast_as_it_can_is_survived_by_all() {
    let place = Place::new();
    let sentinel = place.sentinel().await;
    for kind in ["thought", "unknown", "notification", "message"] {
        let (session, _agent) = place.ready(&[]).await;
        let reply = prompting(&session, &format!("[[say x]] [[flood 0 10000 kind={kind}]]"));
        sentinel.goes_on().await;
        soon(kind, reply).await.unwrap().unwrap();
        let kept = events(&place, &session).await.len();
        assert!(kept > 10_000, "{kind}: {kept}");
        session.close(false).await;
    }
}

#[tokio::test]
async fn a_flood_can_be_cancelled() {
    let place = Place::new();
    let (session, mut agent) = place.ready(&[]).await;
    let reply = prompting(&session, "[[log begun]] [[flood 1000 600]]");
    agent.logged("begun").await;
    assert!(session.cancel().await);
    assert_eq!(soon("the cancel", reply).await.unwrap().unwrap().stop_reason, "cancelled");
    assert_eq!(turn(&session, "next").await.unwrap().text, "heard: next");
}

#[tokio::test]
async fn many_questions_at_once_are_all_answered() {
    const QUESTIONS: u64 = 300;
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    turn(&session, &format!("[[say x]] [[flood 0 {QUESTIONS} kind=request]]")).await.unwrap();
    // Answers may still be under way when the turn is over.
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answers = &crate::place::told(&session, "[[echo answers]]").await[0];
        let mut ids: Vec<u64> =
            answers.as_array().unwrap().iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        if ids.iter().copied().eq(0..QUESTIONS) {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{} answers", ids.len());
    }
}

#[tokio::test]
async fn one_record_and_one_turn_have_a_largest_size() {
    let place = Place::new();
    let sentinel = place.sentinel().await;
    let fault = async |script: &str| {
        let (session, agent) = place.ready(&[]).await;
        let error = turn(&session, script).await.unwrap_err();
        agent.gone().await;
        match error {
            PromptError::Agent(fault) => fault,
            other => panic!("{script}: {other}"),
        }
    };
    let long = fault("[[line 100M]]").await;
    assert!(matches!(long, AgentFault::RecordTooLong { length, .. } if length == 100 << 20), "{long}");
    assert!(matches!(fault("[[line 40M json]]").await, AgentFault::RecordTooLong { .. }));
    assert!(matches!(fault("[[line 17M json]]").await, AgentFault::TooMuchText { .. }));
    assert!(matches!(fault("[[flood 0 100000 kind=garbage pad=100]]").await, AgentFault::Garbage { .. }));
    sentinel.goes_on().await;
}
