use super::*;
use crate::permission::PathPattern;

fn desk(policy: PermissionPolicy, rules: Vec<PermissionRule>) -> Desk {
    Desk::new(PermissionSetup { policy, rules }, "/work", Arc::default())
}

fn request(kind: &str, path: &str) -> Value {
    json!({
        "toolCall": { "title": format!("{kind} {path}"), "kind": kind, "locations": [{ "path": path }] },
        "options": [
            { "optionId": "no", "kind": "reject_once" },
            { "optionId": "ever", "kind": "allow_always" },
            { "optionId": "yes", "kind": "allow_once" },
        ],
    })
}

fn command(command: &str) -> Value {
    let mut request = request("execute", "/work");
    request["toolCall"]["rawInput"] = json!({ "command": command });
    request
}

fn selected(answer: &Answer) -> &str {
    answer.result["outcome"]["optionId"].as_str().unwrap_or("cancelled")
}

fn answered(verdict: Verdict) -> Answer {
    match verdict {
        Verdict::Answered(answer) => *answer,
        Verdict::Waits { .. } => panic!("it waits"),
    }
}

fn waits(verdict: Verdict) -> String {
    match verdict {
        Verdict::Waits { event: (_, params), .. } => params["permissionId"].as_str().unwrap().to_owned(),
        Verdict::Answered(answer) => panic!("{answer:?}"),
    }
}

#[test]
fn a_policy_answers_for_everybody() {
    let allowed = answered(desk(PermissionPolicy::AllowAll, vec![]).judge(json!(1), request("edit", "/a")));
    assert_eq!((selected(&allowed), allowed.unasked_rejection), ("yes", false));
    let rejected =
        answered(desk(PermissionPolicy::RejectAll, vec![]).judge(json!("x"), request("edit", "/a")));
    assert_eq!(
        (selected(&rejected), rejected.unasked_rejection, &rejected.agent_id),
        ("no", true, &json!("x"))
    );
}

#[tokio::test]
async fn an_id_works_once_and_always_holds_for_the_same_alone() {
    let mut desk = desk(PermissionPolicy::Ask, vec![]);
    let first = waits(desk.judge(json!(1), command("make")));
    let answer = desk.reply(&first, PermissionReply::Always).unwrap();
    assert_eq!(selected(&answer), "yes", "the agent's own idea of always may be wider");
    assert!(matches!(desk.reply(&first, PermissionReply::Once), Err(PermissionError::NotFound { .. })));
    assert_eq!(selected(&answered(desk.judge(json!(2), command("make")))), "yes");
    let other = waits(desk.judge(json!(3), command("make install")));
    assert_eq!(selected(&desk.reply(&other, PermissionReply::Once).unwrap()), "yes");
    let again = waits(desk.judge(json!(4), command("make install")));
    assert_eq!(selected(&desk.reply(&again, PermissionReply::Reject).unwrap()), "no");
    assert!(!desk.waits());
}

#[tokio::test]
async fn the_same_file_is_the_same_whatever_is_written() {
    let mut desk = desk(PermissionPolicy::Ask, vec![]);
    let write = |text: &str| {
        let mut request = request("edit", "/work/a");
        request["toolCall"]["rawInput"] = json!({ "content": text });
        request
    };
    let id = waits(desk.judge(json!(1), write("one")));
    desk.reply(&id, PermissionReply::Always).unwrap();
    answered(desk.judge(json!(2), write("two")));
    waits(desk.judge(json!(3), request("edit", "/work/b")));
}

#[tokio::test]
async fn rules_decide_before_anybody_is_asked_and_the_last_that_fits_wins() {
    let rule = |action, kind: &str, path: &str| PermissionRule {
        action,
        tool_kind: Some(kind.to_owned()),
        path: Some(PathPattern::parse(path).unwrap()),
    };
    let rules = vec![
        rule(RuleAction::Allow, "edit", "/work/**"),
        rule(RuleAction::Reject, "edit", "/work/.git/**"),
        rule(RuleAction::Ask, "edit", "/work/Cargo.toml"),
    ];
    let mut desk = desk(PermissionPolicy::Ask, rules);
    assert_eq!(selected(&answered(desk.judge(json!(1), request("edit", "/work/a")))), "yes");
    assert_eq!(
        selected(&answered(desk.judge(json!(1), request("edit", "src/a.rs")))),
        "yes",
        "relative to the cwd"
    );
    let rejected = answered(desk.judge(json!(2), request("edit", "/work/.git/config")));
    assert_eq!((selected(&rejected), rejected.event.1["by"].as_str()), ("no", Some("rule")));
    waits(desk.judge(json!(3), request("edit", "/work/Cargo.toml")));
    waits(desk.judge(json!(4), request("execute", "/work/a")));
    waits(desk.judge(json!(5), request("edit", "/work/../etc/passwd")));
}

#[tokio::test(start_paused = true)]
async fn nobody_to_ask_is_a_rejection_and_so_is_somebody_who_does_not_answer() {
    let mut desk = desk(PermissionPolicy::Ask, vec![]);
    waits(desk.judge(json!(1), command("a")));
    tokio::time::sleep_until(desk.deadline().unwrap()).await;
    let expired = desk.expire(Instant::now());
    assert_eq!(expired[0].event.0, "_agentos/permission_rejected");
    assert_eq!(expired[0].event.1["reason"], "no one can answer");
    assert!(
        expired[0].unasked_rejection && expired[0].event.1["hint"].as_str().unwrap().contains("allow_all")
    );

    let mut requests = PermissionRequests::new(&desk.board);
    let Verdict::Waits { number, .. } = desk.judge(json!(2), command("a")) else { panic!() };
    desk.show(number, Event { sequence: 7, at_ms: 0, notification: "{}".into() });
    assert_eq!(requests.next().await.sequence, 7);
    assert!(desk.expire(Instant::now() + HANDLER_GRACE).is_empty(), "there is somebody");
    tokio::time::sleep_until(desk.deadline().unwrap()).await;
    assert_eq!(desk.expire(Instant::now())[0].event.1["reason"], "no reply in time");
    assert_eq!(desk.deadline(), None);
}

#[tokio::test]
async fn what_the_agent_does_not_offer_cannot_be_replied() {
    let mut desk = desk(PermissionPolicy::Ask, vec![]);
    let mut only_ever = command("a");
    only_ever["options"] =
        json!([{ "optionId": "ever", "kind": "allow_always" }, 7, { "kind": "allow_once" }]);
    let id = waits(desk.judge(json!(1), only_ever));
    let error = desk.reply(&id, PermissionReply::Once).unwrap_err();
    assert!(
        matches!(&error, PermissionError::NotOffered { offered, .. } if offered == &["allow_always"]),
        "{error}"
    );
    assert_eq!(selected(&desk.reply(&id, PermissionReply::Reject).unwrap()), "cancelled");
    // Whoever may do everything is not stopped by that.
    let mut only_ever = command("a");
    only_ever["options"] = json!([{ "optionId": "ever", "kind": "allow_always" }]);
    let mut allowing = self::desk(PermissionPolicy::AllowAll, vec![]);
    assert_eq!(selected(&answered(allowing.judge(json!(1), only_ever))), "ever");
}

#[tokio::test]
async fn a_flood_of_requests_is_rejected_beyond_the_bound() {
    let mut desk = desk(PermissionPolicy::Ask, vec![]);
    for number in 0..MAX_WAITING {
        waits(desk.judge(json!(number), command(&number.to_string())));
    }
    assert!(answered(desk.judge(json!("more"), command("more"))).unasked_rejection);
    let cancelled = desk.cancel();
    assert_eq!(cancelled.len(), MAX_WAITING);
    assert_eq!(selected(&cancelled[0]), "cancelled");
}
