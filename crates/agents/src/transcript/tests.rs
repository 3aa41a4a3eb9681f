//! The transcripts of one home.

use serde_json::json;

use super::*;

fn event(sequence: u64) -> Event {
    Event { sequence, at_ms: 1000 + sequence, notification: format!("{{\"n\":{sequence}}}").into() }
}

fn record(id: &str) -> SessionRecord {
    SessionRecord {
        id: id.to_owned(),
        agent_type: "pi".to_owned(),
        model: "demo".to_owned(),
        created_ms: now_ms(),
    }
}

#[tokio::test]
async fn events_come_back_in_order_after_the_database_is_opened_again() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("deep/sessions.db");
    let first = Transcripts::open(&path).unwrap();
    first.begin(record("a")).await.unwrap();
    first.append("a", (1..=3).map(event).collect()).await.unwrap();
    drop(first);

    let again = Transcripts::open(&path).unwrap();
    again.append("a", vec![event(4)]).await.unwrap();
    let all = again.history("a", 1, 100).await.unwrap();
    assert_eq!(all, (1..=4).map(event).collect::<Vec<_>>());
    assert_eq!(again.history("a", 3, 1).await.unwrap(), [event(3)]);
    assert!(again.history("b", 1, 1).await.unwrap().is_empty());
    assert_eq!(again.session("a").await.unwrap().unwrap().agent_type, "pi");
    again.begin(record("b")).await.unwrap();
    let kept: Vec<String> = again.sessions(9).await.unwrap().into_iter().map(|kept| kept.id).collect();
    assert_eq!(kept, ["b", "a"]);
}

#[tokio::test]
async fn a_refused_append_leaves_the_others_of_its_batch() {
    let home = tempfile::tempdir().unwrap();
    let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
    transcripts.begin(record("a")).await.unwrap();
    transcripts.append("a", vec![event(1)]).await.unwrap();
    let results = tokio::join!(
        transcripts.append("a", vec![event(2)]),
        transcripts.append("a", vec![event(1)]),
        transcripts.append("unknown", vec![event(1)]),
        transcripts.append("a", vec![event(3)]),
    );
    assert!(results.0.is_ok() && results.3.is_ok(), "{results:?}");
    assert!(matches!(results.1, Err(TranscriptError::Sequence { expected: 3, found: 1, .. })), "{results:?}");
    assert!(matches!(&results.2, Err(TranscriptError::UnknownSession { session }) if session == "unknown"));
    assert_eq!(transcripts.history("a", 1, 9).await.unwrap().len(), 3);
}

#[tokio::test]
async fn two_processes_share_one_file_and_deleting_forgets_the_events() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("s.db");
    let (one, two) = (Transcripts::open(&path).unwrap(), Transcripts::open(&path).unwrap());
    one.begin(record("a")).await.unwrap();
    two.begin(record("b")).await.unwrap();
    let (a, b) =
        tokio::join!(one.append("a", vec![event(1)]), two.append("b", (1..=500).map(event).collect()));
    a.unwrap();
    b.unwrap();
    assert_eq!(one.history("b", 1, 1000).await.unwrap().len(), 500);
    two.delete("b").await.unwrap();
    assert!(one.history("b", 1, 1000).await.unwrap().is_empty());
    assert!(one.session("b").await.unwrap().is_none());
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o077, 0, "transcripts are their owner's alone");
}

#[tokio::test]
async fn a_gap_is_refused_whole() {
    let home = tempfile::tempdir().unwrap();
    let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
    transcripts.begin(record("a")).await.unwrap();
    let gap = transcripts.append("a", vec![event(1), event(2), event(4)]).await;
    assert!(matches!(gap, Err(TranscriptError::Sequence { expected: 3, found: 4, .. })), "{gap:?}");
    assert!(transcripts.history("a", 1, 9).await.unwrap().is_empty());
    transcripts.append("a", vec![event(1)]).await.unwrap();
    assert_eq!(transcripts.session("a").await.unwrap().unwrap().events, 1);
}

#[tokio::test]
async fn what_is_known_of_a_session_is_kept_and_counted() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("s.db");
    let transcripts = Transcripts::open(&path).unwrap();
    transcripts.begin(record("a")).await.unwrap();
    let details = SessionDetails {
        model_reason: Some("it was asked for".into()),
        cwd: Some("/work".into()),
        vm: Some("box".into()),
        agent_session_id: Some("theirs".into()),
        agent_version: Some("1.2".into()),
        permission_policy: Some(crate::PermissionPolicy::RejectAll),
        options: Some("{\"env\":[\"HOME\"]}".into()),
    };
    transcripts.describe("a", details.clone()).await.unwrap();
    let prompt = |text: &str| {
        crate::wire::acp::notification(
            "_agentos/prompt",
            &json!({ "content": [{ "type": "text", "text": text }] }),
        )
    };
    let titled = |title: &str| {
        let update = json!({ "sessionUpdate": "session_info_update", "title": title });
        crate::wire::acp::session_update("theirs", &update)
    };
    let texts = [prompt("Fix it"), prompt("And this"), titled("Repairs")];
    let events: Vec<Event> = texts
        .iter()
        .zip(1..)
        .map(|(text, sequence)| Event { notification: text.as_str().into(), ..event(sequence) })
        .collect();
    let title = async || transcripts.session("a").await.unwrap().unwrap().title;
    assert_eq!(title().await, None);
    transcripts.append("a", vec![events[0].clone()]).await.unwrap();
    assert_eq!(title().await.as_deref(), Some("Fix it"));
    transcripts.append("a", vec![events[1].clone()]).await.unwrap();
    assert_eq!(title().await.as_deref(), Some("Fix it"), "the first prompt");
    transcripts.append("a", vec![events[2].clone()]).await.unwrap();
    transcripts.end("a", "the agent exited").await.unwrap();
    transcripts.end("a", "closed").await.unwrap();
    drop(transcripts);

    let transcripts = Transcripts::open(&path).unwrap();
    let stored = transcripts.session("a").await.unwrap().unwrap();
    assert_eq!((stored.details, stored.title.as_deref()), (details, Some("Repairs")));
    assert_eq!((stored.events, stored.updated_ms), (3, 1003));
    assert_eq!(stored.bytes, texts.iter().map(|text| text.len() as u64).sum::<u64>());
    assert_eq!(stored.ended.unwrap().why, "the agent exited", "the first reason counts");
    assert_eq!(transcripts.reopen("a").await.unwrap().ended, None);
    let unknown = transcripts.reopen("b").await;
    assert!(matches!(unknown, Err(TranscriptError::UnknownSession { .. })), "{unknown:?}");
    let unknown = transcripts.describe("b", SessionDetails::default()).await;
    assert!(matches!(unknown, Err(TranscriptError::UnknownSession { .. })), "{unknown:?}");
}

#[tokio::test]
async fn history_is_filtered_by_method_and_goes_on_where_a_page_ended() {
    let home = tempfile::tempdir().unwrap();
    let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
    transcripts.begin(record("a")).await.unwrap();
    // The third event names the method without being of it; the fourth is no object at all.
    let texts = [
        "{\"method\":\"x\"}",
        "{\"method\":\"y\"}",
        "{\"params\":{\"method\":\"x\"},\"method\":\"y\"}",
        "[\"method\"]",
        "{\"method\":\"\\u0078\"}",
    ];
    let events = texts.iter().zip(1..).map(|(text, n)| Event { notification: (*text).into(), ..event(n) });
    transcripts.append("a", events.collect()).await.unwrap();
    let page = async |since, limit| {
        let filter = EventFilter { since, limit, method: Some("x".into()) };
        let page = transcripts.page("a", filter).await.unwrap();
        (page.events.iter().map(|event| event.sequence).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(1, 9).await, (vec![1, 5], None));
    assert_eq!(page(1, 1).await, (vec![1], Some(2)));
    assert_eq!(page(2, 1).await, (vec![5], Some(6)));
    assert_eq!(page(6, 1).await, (vec![], None));
    let all = transcripts.page("a", EventFilter { since: 2, limit: 2, method: None }).await.unwrap();
    assert_eq!((all.events.len(), all.next), (2, Some(4)));
    assert_eq!((all.events[0].sequence, all.events[0].at_ms), (2, 1002));
}

#[tokio::test]
async fn a_page_of_large_events_is_short_and_none_is_lost() {
    let home = tempfile::tempdir().unwrap();
    let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
    transcripts.begin(record("a")).await.unwrap();
    let large = |n| Event {
        notification: format!("{{\"method\":\"{n}\",\"f\":\"{}\"}}", "x".repeat(3 << 20)).into(),
        ..event(n)
    };
    for n in 1..=8 {
        transcripts.append("a", vec![large(n)]).await.unwrap();
    }
    let page = transcripts.page("a", EventFilter { since: 1, limit: 100, method: None }).await.unwrap();
    assert_eq!((page.events.len(), page.next), (2, Some(3)));
    let filter = |since| EventFilter { since, limit: 100, method: Some("8".into()) };
    let page = transcripts.page("a", filter(1)).await.unwrap();
    assert_eq!((page.events.len(), page.next), (0, Some(7)), "a page in vain ends too");
    let page = transcripts.page("a", filter(7)).await.unwrap();
    assert_eq!((page.events.len(), page.next), (1, None));
}

#[tokio::test]
async fn sessions_are_listed_in_pages_and_found_by_the_beginning_of_their_id() {
    let home = tempfile::tempdir().unwrap();
    let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
    for id in ["ab-1", "ab-2", "a_-3", "cd-4"] {
        transcripts.begin(record(id)).await.unwrap();
    }
    let list = async |before, limit, prefix: &str| {
        let filter = SessionFilter { before, limit, id_prefix: prefix.into() };
        let found = transcripts.list(filter).await.unwrap();
        let ids: Vec<String> = found.iter().map(|session| session.id.clone()).collect();
        (ids, found.last().map(|session| session.key))
    };
    let (first, before) = list(None, 3, "").await;
    assert_eq!(first, ["cd-4", "a_-3", "ab-2"]);
    assert_eq!(list(before, 3, "").await.0, ["ab-1"]);
    assert_eq!(list(None, 9, "ab").await.0, ["ab-2", "ab-1"]);
    assert_eq!(list(None, 9, "a_").await.0, ["a_-3"], "a prefix is no pattern");
    assert_eq!(list(None, 9, "x%").await.0, [""; 0]);
    transcripts.delete("cd-4").await.unwrap();
    assert_eq!(list(None, 1, "").await.0, ["a_-3"]);
}
