//! Agents that don't begin as they should.

use std::error::Error as _;

use agentos_agents::plan::{AcpHostTools, AcpSetup};
use agentos_agents::session::{AgentFault, StartError};
use serde_json::json;

use crate::place::{Place, With, soon, told, turn};

/// The error that a session with these flags doesn't start with; nothing of it stays.
async fn refusal(place: &Place, flags: &[&str], with: With) -> StartError {
    let (witness, starting) = place.start(flags, with);
    let error = match soon("the start", starting).await {
        Ok(_) => panic!("{flags:?}: the session has started"),
        Err(error) => error,
    };
    witness.gone().await;
    error
}

fn fault(error: StartError) -> AgentFault {
    match error {
        StartError::Agent { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_agent_that_exits_at_once_is_named_with_its_code_and_its_words() {
    let place = Place::new();
    let sentinel = place.sentinel().await;
    for flags in [
        &["--start", "[[log no such model]] [[exit 7]]"][..],
        &["--on", "initialize", "[[log no such model]] [[exit 7]]"],
        &["--on", "session/new", "[[log no such model]] [[exit 7]]"],
    ] {
        let error = refusal(&place, flags, With::default()).await;
        assert!(error.source().unwrap().to_string().contains("no such model"), "{flags:?}: {error:?}");
        assert!(matches!(fault(error), AgentFault::Died { exit, .. } if exit.code == Some(7)), "{flags:?}");
    }
    sentinel.goes_on().await;
}

#[tokio::test]
async fn an_agent_that_is_not_one_is_ended_at_a_bound() {
    let place = Place::new();
    let sentinel = place.sentinel().await;
    let endless = "[[flood 0 100000 kind=garbage pad=100]] [[hang]]";
    let error = fault(refusal(&place, &["--start", endless], With::default()).await);
    assert!(matches!(&error, AgentFault::Garbage { log, .. } if log.contains("garbage")), "{error}");
    let error = fault(refusal(&place, &["--start", "[[line 100M]]"], With::default()).await);
    assert!(matches!(error, AgentFault::RecordTooLong { length, .. } if length == 100 << 20), "{error}");
    sentinel.goes_on().await;
}

#[tokio::test]
async fn garbage_before_the_first_answer_is_survived() {
    let place = Place::new();
    let kinds =
        ["text", "utf8", "nul", "truncated", "array", "number", "empty", "deep", "crlf", "mute", "orphan"];
    let garbage: String = kinds.map(|kind| format!("[[garbage {kind}]]")).concat();
    let twice = format!("{garbage} [[twice]]");
    let flags = ["--start", &garbage, "--on", "initialize", &twice, "--on", "session/new", &twice];
    let (session, _agent) = place.ready(&flags).await;
    assert_eq!(turn(&session, "hello").await.unwrap().text, "heard: hello");
}

#[tokio::test]
async fn another_version_of_the_protocol_is_refused_by_its_name() {
    let place = Place::new();
    for version in ["0", "2", "\"x\"", "\"1\"", "null", "{}"] {
        let flag = format!("--protocol-version={version}");
        let error = refusal(&place, &[&flag], With::default()).await;
        assert!(matches!(&error, StartError::Version { version: said, .. } if said == version), "{error}");
    }
}

#[tokio::test]
async fn an_agent_that_refuses_says_why() {
    let place = Place::new();
    for (method, script, reason) in [
        ("initialize", "[[error -32603 no]]", "no"),
        (
            "session/new",
            "[[error -32603 Internal error {\"details\":\"the disk is full\"}]]",
            "the disk is full",
        ),
        ("session/new", "[[error {\"code\":\"x\",\"message\":[7]}]]", "[7]"),
    ] {
        let error = refusal(&place, &["--on", method, script], With::default()).await;
        let StartError::Refused { method: named, reason: said, .. } = &error else { panic!("{error}") };
        assert!(*named == method && said.contains(reason), "{error}");
    }
}

const LOCAL_ONLY: &str = "--capabilities={\"mcpCapabilities\":{\"http\":false}}";

#[tokio::test]
async fn the_hosts_tools_are_offered_in_the_form_that_the_agent_takes() {
    let place = Place::new();
    let (over_http, over_stdio) =
        (json!({ "type": "http", "name": "t" }), json!({ "command": "t", "name": "t" }));
    for (flags, expected) in [(&[][..], &over_http), (&[LOCAL_ONLY][..], &over_stdio)] {
        let host_tools = AcpHostTools { over_http: over_http.clone(), over_stdio: over_stdio.clone() };
        let acp = AcpSetup { host_tools: Some(host_tools), ..AcpSetup::default() };
        let (session, _agent) = place.ready_with(flags, With { acp, ..With::default() }).await;
        assert_eq!(told(&session, "[[echo session]]").await[0]["mcpServers"], json!([expected]));
    }
}

#[tokio::test]
async fn a_remote_tool_server_is_not_silently_left_out_by_an_agent_that_takes_none() {
    let place = Place::new();
    let mcp_servers =
        vec![json!({ "type": "http", "name": "t", "url": "https://mcp.example/", "headers": [] })];
    let acp = AcpSetup { mcp_servers, ..AcpSetup::default() };
    let error = refusal(&place, &[LOCAL_ONLY], With { acp, ..With::default() }).await;
    assert!(matches!(&error, StartError::NoRemoteToolServers { .. }), "{error}");
}

#[tokio::test]
async fn who_must_log_in_does_so_in_the_way_that_was_set_up_and_in_no_other() {
    let place = Place::new();
    let flag = "--auth=[\"browser\",\"key\"]";
    let by = |method: Option<&str>| With {
        acp: AcpSetup { auth_method: method.map(str::to_owned), ..AcpSetup::default() },
        ..With::default()
    };
    for method in [None, Some("card")] {
        let error = refusal(&place, &[flag], by(method)).await;
        let StartError::NotLoggedIn { methods, .. } = &error else { panic!("{error}") };
        assert_eq!(methods, &["browser", "key"]);
    }
    let (session, _agent) = place.ready_with(&[flag], by(Some("key"))).await;
    let received = &told(&session, "[[echo received]]").await[0];
    let expected = ["initialize", "session/new", "authenticate", "session/new", "session/prompt"];
    assert_eq!(*received, json!(expected));

    let failing = ["--on", "authenticate", "[[error -32603 wrong key]]", flag];
    let error = refusal(&place, &failing, by(Some("key"))).await;
    assert!(matches!(&error, StartError::Refused { method: "authenticate", .. }), "{error}");
}

#[tokio::test]
async fn what_the_agent_is_told_at_its_start_is_what_was_set_up() {
    let place = Place::new();
    let server = json!({ "name": "s", "command": "/bin/s", "args": [], "env": [] });
    let acp = AcpSetup {
        mcp_servers: vec![server.clone()],
        client_terminals: true,
        mode: Some("plan".to_owned()),
        ..AcpSetup::default()
    };
    let (session, _agent) = place.ready_with(&[], With { acp, ..With::default() }).await;
    assert_eq!(session.state().session()["modes"]["currentModeId"], "plan");
    let told = told(&session, "[[echo session]][[echo client]][[echo initialize]]").await;
    assert_eq!(told[0], json!({ "cwd": "/work", "mcpServers": [server] }));
    assert_eq!(told[1]["terminal"], true);
    assert_eq!(told[1]["fs"], json!({ "readTextFile": false, "writeTextFile": false }));
    assert_eq!(told[2]["protocolVersion"], 1);
}

#[tokio::test]
async fn an_agent_that_never_asks_is_known_by_its_capabilities() {
    let place = Place::new();
    for (never_asks, known) in [(true, json!(false)), (false, json!(null))] {
        let acp = AcpSetup { never_asks, ..AcpSetup::default() };
        let (session, _agent) = place.ready_with(&[], With { acp, ..With::default() }).await;
        let capabilities = &session.state().initialize["agentCapabilities"];
        assert_eq!((&capabilities["permissions"], &capabilities["loadSession"]), (&known, &json!(true)));
    }
}
