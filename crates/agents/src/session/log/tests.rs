//! What readers of a session see.

mod full_disk;
mod kills;

use super::*;
use crate::transcript::SessionRecord;

async fn log(home: &std::path::Path) -> Arc<EventLog> {
    let transcripts = Transcripts::open(&home.join("s.db")).unwrap();
    let id = SessionId::new();
    let record = SessionRecord {
        id: id.to_string(),
        agent_type: "pi".into(),
        model: "demo".into(),
        created_ms: now_ms(),
    };
    transcripts.begin(record).await.unwrap();
    Arc::new(EventLog::new(id, transcripts))
}

async fn read_all(mut events: Events) -> Vec<u64> {
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        let event = event.unwrap();
        assert_eq!(event.notification.split(' ').next(), Some(&*format!("e{}", event.sequence)));
        seen.push(event.sequence);
    }
    seen
}

/// An event that takes room.
fn long(sequence: u64, bytes: usize) -> String {
    format!("e{sequence} {}", "x".repeat(bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_every_age_see_every_event_once() {
    let home = tempfile::tempdir().unwrap();
    let log = log(home.path()).await;
    let early = tokio::spawn(read_all(Events::new(Arc::clone(&log), 0)));
    for batch in 0..300u64 {
        let names = (1..=10).map(|n| format!("e{}", batch * 10 + n)).collect();
        log.publish(names).await.unwrap();
    }
    let late = tokio::spawn(read_all(Events::new(Arc::clone(&log), 1)));
    let middle = tokio::spawn(read_all(Events::new(Arc::clone(&log), 2990)));
    log.close();
    let all: Vec<u64> = (1..=3000).collect();
    assert_eq!(early.await.unwrap(), all);
    assert_eq!(late.await.unwrap(), all, "what left the memory comes from the database");
    assert_eq!(middle.await.unwrap(), all[2989..]);
    assert!(log.ring().events.len() <= RING_EVENTS);
}

#[tokio::test]
async fn an_event_is_on_disk_when_it_is_seen() {
    let home = tempfile::tempdir().unwrap();
    let log = log(home.path()).await;
    let mut events = Events::new(Arc::clone(&log), 1);
    let publisher = Arc::clone(&log);
    let publish = tokio::spawn(async move { publisher.publish(vec!["e1".into()]).await });
    let seen = events.next().await.unwrap().unwrap();
    let other = Transcripts::open(&home.path().join("s.db")).unwrap();
    assert_eq!(other.history(log.session.as_str(), 1, 9).await.unwrap(), [seen]);
    publish.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_full_transcript_says_so_and_takes_no_more() {
    let home = tempfile::tempdir().unwrap();
    let log = Arc::new(EventLog { max_bytes: 1000, ..Arc::into_inner(log(home.path()).await).unwrap() });
    let mut refused = None;
    for number in 1..=100 {
        if let Err(error) = log.publish(vec![format!("e{number}")]).await {
            refused = Some((number, error));
            break;
        }
    }
    let (number, error) = refused.expect("a bound");
    assert!(matches!(error, TranscriptError::Full { limit_bytes: 1000 }) && error.is_no_space(), "{error}");
    assert_eq!(number, 1000 / (EVENT_BYTES as u64 + 2) + 1, "empty events count too");
    // What ends its turn is refused as well, and nothing is said of it a second time.
    let again = log.publish(vec!["x".to_owned()]).await;
    assert!(matches!(again, Err(TranscriptError::Full { .. })), "{again:?}");
    log.close();
    let mut events = Events::new(Arc::clone(&log), number - 1);
    assert_eq!(&*events.next().await.unwrap().unwrap().notification, format!("e{}", number - 1));
    let last = events.next().await.unwrap().unwrap();
    assert!(last.notification.contains("_agentos/transcript_full"), "{last:?}");
    assert!(events.next().await.is_none());
    assert_eq!(log.transcripts.history(log.session.as_str(), number, 9).await.unwrap(), [last]);
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_shown() {
    let home = tempfile::tempdir().unwrap();
    let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
    // A session that never began: the database refuses its events.
    let log = Arc::new(EventLog::new(SessionId::new(), transcripts));
    assert!(log.publish(vec!["lost".into()]).await.is_err());
    log.close();
    assert!(Events::new(log, 1).next().await.is_none());
}

#[tokio::test]
async fn a_session_that_is_brought_back_goes_on_where_it_ended() {
    let home = tempfile::tempdir().unwrap();
    let first = log(home.path()).await;
    first.publish((1..=1500).map(|n| format!("e{n}")).collect()).await.unwrap();
    first.close();
    first.transcripts.end(first.session.as_str(), "closed").await.unwrap();
    let (id, max_bytes) = (first.session.clone(), first.ring().kept_bytes + 2 * (EVENT_BYTES as u64 + 5));
    drop(first);

    let transcripts = Transcripts::open(&home.path().join("s.db")).unwrap();
    let kept = transcripts.reopen(id.as_str()).await.unwrap();
    assert_eq!((kept.events, kept.ended), (1500, None));
    let again = EventLog { max_bytes, ..EventLog::resume(id, transcripts, kept.events, kept.bytes) };
    let again = Arc::new(again);
    let mut tail = Events::new(Arc::clone(&again), 1501);
    assert_eq!(tail.newest(), 1500);
    again.publish(vec!["e1501".into(), "e1502".into()]).await.unwrap();
    assert_eq!(tail.next().await.unwrap().unwrap().sequence, 1501);
    let full = again.publish(vec!["e1503".into()]).await;
    assert!(matches!(full, Err(TranscriptError::Full { .. })), "what is kept counts: {full:?}");
    again.close();
    let mut all = Events::new(again, 1);
    let mut numbers = Vec::new();
    while let Some(event) = all.next().await {
        numbers.push(event.unwrap().sequence);
    }
    assert_eq!(numbers, (1..=1503).collect::<Vec<_>>(), "the last one says that it is full");

    let kept = all.log.transcripts.reopen(all.log.session.as_str()).await.unwrap();
    let (id, transcripts) = (all.log.session.clone(), all.log.transcripts.clone());
    let third = EventLog { max_bytes, ..EventLog::resume(id, transcripts, kept.events, kept.bytes) };
    let full = third.publish(vec!["e1504".into()]).await;
    assert!(matches!(full, Err(TranscriptError::Full { .. })), "{full:?}");
    assert_eq!(third.last(), 1503, "which the last life has said already");
}
