//! Who decides: the host, once for each request, and nothing that the agent says.

use std::path::Path;

use agentos_agents::Session;
use agentos_agents::permission::{
    PathPattern, PermissionPolicy, PermissionReply, PermissionRule, RuleAction,
};
use agentos_agents::session::{PermissionError, PermissionSetup};
use serde_json::{Value, json};

use crate::place::{Place, With, events, prompting, soon, told, turn};

fn policy(policy: PermissionPolicy) -> With {
    With { permissions: PermissionSetup { policy, rules: Vec::new() }, ..With::default() }
}

fn ask(path: &Path) -> String {
    format!("[[ask edit {}]]", path.display())
}

/// The id of the next request that waits.
async fn next_request(requests: &mut agentos_agents::session::PermissionRequests) -> (String, Value) {
    let event = soon("the request", requests.next()).await;
    let event: Value = serde_json::from_str(&event.notification).unwrap();
    (event["params"]["permissionId"].as_str().unwrap().to_owned(), event)
}

async fn not_found(session: &Session, id: &str) {
    let error = session.respond_permission(id, PermissionReply::Once).await.unwrap_err();
    assert!(matches!(error, PermissionError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn once_is_once_always_is_always_and_no_is_no() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    let mut requests = session.permission_requests();
    for (reply, written, chosen) in [
        (PermissionReply::Reject, false, "opt-c"),
        (PermissionReply::Once, true, "opt-a"),
        (PermissionReply::Always, true, "opt-a"),
    ] {
        let turn = prompting(&session, &ask(&path));
        let (id, event) = next_request(&mut requests).await;
        assert_eq!(event["params"]["params"]["toolCall"]["kind"], "edit");
        assert!(!path.exists(), "nothing happens while it waits");
        session.respond_permission(&id, reply).await.unwrap();
        let text = soon("the turn", turn).await.unwrap().unwrap().text;
        assert!(text.contains(&format!("\"{chosen}\"")), "{reply:?}: {text}");
        assert_eq!(path.exists(), written, "{reply:?}");
        let _ = std::fs::remove_file(&path);
    }
    // The agent asks again, the host is not asked.
    turn(&session, &ask(&path)).await.unwrap();
    assert!(path.exists());
    // Something else is something else.
    let other = home.path().join("b");
    let turn = prompting(&session, &ask(&other));
    let (id, _) = next_request(&mut requests).await;
    session.respond_permission(&id, PermissionReply::Reject).await.unwrap();
    soon("the turn", turn).await.unwrap().unwrap();
    assert!(!other.exists());
}

#[tokio::test]
async fn an_id_works_once_and_only_where_it_was_given() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    let (other, _other_agent) = place.ready(&[]).await;
    let mut requests = session.permission_requests();
    let _other_requests = other.permission_requests();
    let turn = prompting(&session, &ask(&path));
    let (id, _) = next_request(&mut requests).await;
    not_found(&other, &id).await;
    not_found(&session, "opt-a").await;
    not_found(&session, "").await;
    let (first, second) = tokio::join!(
        session.respond_permission(&id, PermissionReply::Reject),
        session.respond_permission(&id, PermissionReply::Once)
    );
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    soon("the turn", turn).await.unwrap().unwrap();
    not_found(&session, &id).await;
    let answers = &told(&session, "[[echo answers]]").await[0];
    assert_eq!(answers.as_array().unwrap().len(), 1, "the agent was answered once: {answers}");
}

#[tokio::test]
async fn the_same_request_twice_is_two_requests() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    let mut requests = session.permission_requests();
    let turn = prompting(&session, &format!("[[ask edit {} id=\"same\" copies=2]]", path.display()));
    let (first, _) = next_request(&mut requests).await;
    let (second, _) = next_request(&mut requests).await;
    assert_ne!(first, second, "ids are the host's, whatever the agent's are");
    session.respond_permission(&first, PermissionReply::Reject).await.unwrap();
    let text = soon("the turn", turn).await.unwrap().unwrap().text;
    assert!(text.contains("opt-c") && !path.exists(), "{text}");
    not_found(&session, &second).await;
}

#[tokio::test]
async fn an_agent_that_answers_itself_is_not_heard() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    let mut requests = session.permission_requests();
    // With an id of its own, and with one that our own next request could have.
    for id in ["\"mine\"", "7", "3"] {
        let script = format!("[[ask edit {} id={id} forge=opt-a]]", path.display());
        let turn = prompting(&session, &script);
        let (permission, _) = next_request(&mut requests).await;
        session.respond_permission(&permission, PermissionReply::Reject).await.unwrap();
        let text = soon("the turn", turn).await.unwrap().unwrap().text;
        assert!(text.contains("opt-c") && !path.exists(), "{id}: {text}");
    }
    let resolved = events(&place, &session).await;
    let replies: Vec<&Value> = resolved
        .iter()
        .filter(|event| event["method"] == "_agentos/permission_resolved")
        .map(|event| &event["params"]["reply"])
        .collect();
    assert_eq!(replies, ["reject", "reject", "reject"]);
}

#[tokio::test]
async fn without_anybody_there_it_is_no_and_the_reply_says_so() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    let reply = turn(&session, &ask(&path)).await.unwrap();
    assert_eq!(reply.rejected_permissions, 1);
    assert!(!path.exists());
}

#[tokio::test]
async fn policies_and_rules_answer_for_the_host() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready_with(&[], policy(PermissionPolicy::RejectAll)).await;
    let reply = turn(&session, &ask(&path)).await.unwrap();
    assert_eq!((reply.rejected_permissions, path.exists()), (1, false));
    let (session, _agent) = place.ready_with(&[], policy(PermissionPolicy::AllowAll)).await;
    turn(&session, &ask(&path)).await.unwrap();
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();

    let rule = |action, pattern: &Path| PermissionRule {
        action,
        tool_kind: Some("edit".to_owned()),
        path: Some(PathPattern::parse(pattern.to_str().unwrap()).unwrap()),
    };
    let rules = vec![
        rule(RuleAction::Allow, &home.path().join("**")),
        rule(RuleAction::Reject, &home.path().join("b")),
    ];
    let permissions = PermissionSetup { policy: PermissionPolicy::Ask, rules };
    let (session, _agent) = place.ready_with(&[], With { permissions, ..With::default() }).await;
    for (name, allowed) in [("a", true), ("b", false), ("../c", false)] {
        let path = home.path().join(name);
        turn(&session, &ask(&path)).await.unwrap();
        assert_eq!(path.exists(), allowed, "{name}");
    }
}

#[tokio::test]
async fn options_in_any_order_and_of_any_kind_mean_no_more_than_was_said() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    let mut requests = session.permission_requests();
    // Nothing that allows it just once: yes can't be said, no always can.
    for options in ["allow_always:x", "odd_kind:x", "reject_once:x", ""] {
        let turn = prompting(&session, &format!("[[ask edit {} options={options}]]", path.display()));
        let (id, _) = next_request(&mut requests).await;
        let error = session.respond_permission(&id, PermissionReply::Once).await.unwrap_err();
        assert!(matches!(error, PermissionError::NotOffered { .. }), "{options}: {error}");
        session.respond_permission(&id, PermissionReply::Reject).await.unwrap();
        soon("the turn", turn).await.unwrap().unwrap();
        assert!(!path.exists(), "{options}");
    }
    for params in ["null", "[]", "{\"options\":7}", "{\"options\":[7,{}],\"toolCall\":[]}"] {
        let turn = prompting(&session, &format!("[[call session/request_permission {params} ]]"));
        let (id, _) = next_request(&mut requests).await;
        session.respond_permission(&id, PermissionReply::Reject).await.unwrap();
        assert!(soon("the turn", turn).await.unwrap().unwrap().text.contains("cancelled"), "{params}");
    }
}

#[tokio::test]
async fn a_cancelled_turn_takes_its_requests_with_it() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    let mut requests = session.permission_requests();
    let turn = prompting(&session, &ask(&path));
    let (id, _) = next_request(&mut requests).await;
    session.cancel().await;
    assert_eq!(soon("the turn", turn).await.unwrap().unwrap().stop_reason, "cancelled");
    not_found(&session, &id).await;
    assert!(!path.exists());
    let answers = &told(&session, "[[echo answers]]").await[0];
    assert_eq!(answers[0]["result"], json!({ "outcome": { "outcome": "cancelled" } }));
}

#[tokio::test]
async fn a_request_after_its_turn_is_the_hosts_to_decide_too() {
    let place = Place::new();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a");
    let (session, _agent) = place.ready(&[]).await;
    // Without anybody there, first.
    turn(&session, &format!("[[say done]] [[end]] {}", ask(&path))).await.unwrap();
    let mut events = session.events(1);
    let rejected = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.notification.contains("_agentos/permission_rejected") {
                break;
            }
        }
    };
    soon("the rejection", rejected).await;
    let mut requests = session.permission_requests();
    turn(&session, &format!("[[say done]] [[end]] {}", ask(&path))).await.unwrap();
    let (id, _) = next_request(&mut requests).await;
    assert!(!path.exists());
    session.respond_permission(&id, PermissionReply::Reject).await.unwrap();
    // What the agent says of it may come between the turns or in the middle of the next.
    assert!(turn(&session, "next").await.unwrap().text.contains("heard: next"));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_flood_of_requests_is_answered_and_never_with_yes() {
    let place = Place::new();
    let (session, _agent) = place.ready(&[]).await;
    let _requests = session.permission_requests();
    let one = "[[send session/request_permission {\"toolCall\":{\"title\":\"t\"},\"options\":\
               [{\"optionId\":\"yes\",\"kind\":\"allow_once\"},{\"optionId\":\"no\",\"kind\":\"reject_once\"}] }]]";
    turn(&session, &format!("[[say x]] {}", one.repeat(100))).await.unwrap();
    let answers = &told(&session, "[[echo answers]]").await[0];
    let answers = answers.as_array().unwrap();
    assert_eq!(answers.len(), 100, "what waits is cancelled with its turn, what is too much is rejected");
    assert!(answers.iter().all(|answer| answer["result"]["outcome"]["optionId"] != "yes"), "{answers:?}");
}
