//! The scripted agent itself: it must do what its scripts say, or the tests that use it prove nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod fake_acp;

use fake_acp::{RECORDINGS, Raw, is_running, messages, recording, wait_until_gone};
use serde_json::{Value, json};

fn kinds(messages: &[Value]) -> Vec<&str> {
    messages.iter().filter_map(|message| message["params"]["update"]["sessionUpdate"].as_str()).collect()
}

#[tokio::test]
async fn it_speaks_the_protocol_when_it_is_told_nothing() {
    let mut agent = Raw::ready(&["--acp"]).await;
    let (messages, text, answer) = agent.turn("hello").await;
    assert_eq!((text.as_str(), messages.len()), ("heard: hello", 1));
    assert_eq!(answer["result"]["stopReason"], "end_turn");
    let unknown = agent.ask("session/warp", json!({})).await;
    assert_eq!(unknown["error"]["code"], -32601);
    agent.send(&json!("no request")).await;
    agent.input = None;
    assert!(agent.ended().await.success(), "it ends with its input");
}

#[tokio::test]
async fn a_misspelt_flag_or_directive_is_an_error() {
    let mut agent = Raw::start(&["--ignore-eoff"]);
    assert_eq!(agent.ended().await.code(), Some(64));
    let mut agent = Raw::ready(&[]).await;
    let (.., answer) = agent.turn("[[sya hello]]").await;
    assert_eq!(answer["error"]["message"], "no such directive: sya");
    let (_, text, _) = agent.turn("[[say [[1]]]] [[say  of ${session}]]").await;
    assert_eq!(text, format!("[[1]]of {}", agent.session), "and it goes on");
}

#[tokio::test]
async fn updates_of_every_kind_are_sent_as_the_script_says() {
    let mut agent = Raw::ready(&[]).await;
    let (messages, ..) = agent
        .turn(
            "[[think a]] [[user b]] [[words c d]] [[plan x, y]] [[commands go]] [[title T]] [[usage 7]] [[mode plan]] \
             [[option effort high]] [[update {\"sessionUpdate\":\"new_kind\",\"a\":[[1] ]}]] [[notify _x/y {\"b\":2}]]",
        )
        .await;
    let expected = [
        "agent_thought_chunk",
        "user_message_chunk",
        "agent_message_chunk",
        "agent_message_chunk",
        "plan",
        "available_commands_update",
        "session_info_update",
        "usage_update",
        "current_mode_update",
        "config_option_update",
        "new_kind",
    ];
    assert_eq!(kinds(&messages), expected);
    assert_eq!(messages.last().unwrap()["method"], "_x/y");
    assert_eq!(messages[9]["params"]["update"]["configOptions"][2]["currentValue"], "high");
}

#[tokio::test]
async fn it_tells_what_it_was_told() {
    let mut agent = Raw::ready(&[]).await;
    let (_, text, _) = agent.turn("[[echo client]][[echo session]][[echo received]][[echo env HOME]]").await;
    let said: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said[0], json!({ "terminal": false }));
    assert_eq!(said[1], json!({ "cwd": "/tmp", "mcpServers": [] }));
    assert_eq!(said[2], json!(["initialize", "session/new", "session/prompt"]));
    assert_eq!(said[3], json!(std::env::var("HOME").ok()));
}

#[tokio::test]
async fn methods_have_scripts_of_their_own() {
    let new = ["--on", "session/new", "[[commands go]] [[sleep 1]]", "--on", "initialize", "[[end]] [[end]]"];
    let mut agent = Raw::start(&[&new[..], &["--start", "[[log up]] [[garbage text]]"]].concat());
    assert_eq!(agent.bytes().await.unwrap(), b"Loading model... done\n");
    let id = agent.request("initialize", json!({})).await;
    assert_eq!(agent.message().await["id"], id);
    assert_eq!(agent.message().await["id"], id, "answered twice");
    let id = agent.request("session/new", json!({ "cwd": "/" })).await;
    let (before, answer) = agent.until(&id).await;
    assert_eq!(kinds(&before), ["available_commands_update"]);
    assert_eq!(before[0]["params"]["sessionId"], answer["result"]["sessionId"]);
    agent.input = None;
    agent.ended().await;
    assert_eq!(agent.log().await, "up\n");
}

#[tokio::test]
async fn versions_capabilities_and_authentication_are_what_the_flags_say() {
    let flags = ["--protocol-version=\"x\"", "--auth=[\"key\"]", "--models=false", "--meta"];
    let capabilities = "--capabilities={\"loadSession\":null,\"sessionCapabilities\":{\"fork\":null}}";
    let mut agent = Raw::start(&[&flags[..], &[capabilities]].concat());
    let answer = agent.ask("initialize", json!({ "protocolVersion": 1 })).await;
    assert_eq!(answer["result"]["protocolVersion"], "x");
    assert_eq!(answer["result"]["agentCapabilities"]["loadSession"], Value::Null);
    assert!(answer["result"]["_meta"].is_object());
    let refused = agent.ask("session/new", json!({ "cwd": "/" })).await;
    assert_eq!(refused["error"]["code"], -32000);
    assert_eq!(refused["error"]["data"]["authMethods"][0]["id"], "key");
    assert_eq!(agent.ask("authenticate", json!({ "methodId": "no" })).await["error"]["code"], -32602);
    agent.ask("authenticate", json!({ "methodId": "key" })).await;
    let made = agent.ask("session/new", json!({ "cwd": "/" })).await;
    assert_eq!(made["result"]["models"], Value::Null);
    assert!(made["result"]["modes"].is_object());
    for method in ["session/load", "session/fork", "session/set_model"] {
        assert_eq!(agent.ask(method, json!({})).await["error"]["code"], -32601, "{method}");
    }
}

#[tokio::test]
async fn modes_models_and_options_change_at_the_clients_wish() {
    let mut agent = Raw::ready(&[]).await;
    let session = agent.session.clone();
    let set = json!({ "sessionId": session, "modeId": "plan" });
    let id = agent.request("session/set_mode", set).await;
    assert_eq!(kinds(&agent.until(&id).await.0), ["current_mode_update"]);
    let set = json!({ "sessionId": session, "configId": "model", "value": "fake/large" });
    let answer = agent.ask("session/set_config_option", set).await;
    let options = &answer["result"]["configOptions"];
    assert_eq!(
        (&options[0]["currentValue"], &options[1]["currentValue"]),
        (&json!("plan"), &json!("fake/large"))
    );
    let wrong = json!({ "sessionId": session, "modelId": "other" });
    assert_eq!(agent.ask("session/set_model", wrong).await["error"]["code"], -32602);
}

#[tokio::test]
async fn sessions_are_kept_loaded_resumed_forked_and_listed() {
    let home = tempfile::tempdir().unwrap();
    let state = format!("--state={}", home.path().display());
    let mut first = Raw::ready(&[&state]).await;
    first.turn("the word is tulip [[say noted]]").await;
    // Killed in the middle of a turn, it has kept what was asked.
    first.prompt("and rose [[say here]] [[hang]]").await;
    first.message().await;
    first.child.kill().await.unwrap();

    let mut second = Raw::start(&[&state]);
    let session = json!({ "sessionId": first.session, "cwd": "/", "mcpServers": [] });
    let listed = second.ask("session/list", json!({})).await;
    assert_eq!(listed["result"]["sessions"][0]["sessionId"], first.session.as_str());
    let id = second.request("session/load", session.clone()).await;
    let (replayed, _) = second.until(&id).await;
    assert_eq!(kinds(&replayed), ["user_message_chunk", "agent_message_chunk", "user_message_chunk"]);
    second.session.clone_from(&first.session);
    let (_, text, _) = second.turn("[[recall]]").await;
    assert!(text.contains("tulip") && text.contains("rose") && !text.contains("recall"), "{text}");

    let mut third = Raw::start(&[&state]);
    let id = third.request("session/resume", session.clone()).await;
    assert_eq!(third.until(&id).await.0.len(), 0, "nothing is replayed");
    let forked = third.ask("session/fork", session.clone()).await;
    third.session = forked["result"]["sessionId"].as_str().unwrap().to_owned();
    assert_ne!(third.session, first.session);
    assert!(third.turn("[[recall]]").await.1.contains("tulip"));
    third.ask("session/close", session.clone()).await;
    assert_eq!(third.ask("session/close", session).await["error"]["code"], -32002);
    let elsewhere = json!({ "sessionId": "../x", "cwd": "/" });
    assert_eq!(third.ask("session/load", elsewhere).await["error"]["code"], -32002);
}

/// The next request of the agent's.
async fn question(agent: &mut Raw) -> Value {
    loop {
        let message = agent.message().await;
        if message.get("method").is_some() && message.get("id").is_some() {
            return message;
        }
    }
}

async fn select(agent: &mut Raw, question: &Value, option: &str) {
    let outcome = json!({ "outcome": { "outcome": "selected", "optionId": option } });
    agent.send(&json!({ "jsonrpc": "2.0", "id": question["id"], "result": outcome })).await;
}

#[tokio::test]
async fn it_acts_when_it_is_allowed_to_and_asks_no_more_when_that_is_for_good() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a.txt");
    let script = format!("[[ask edit {} options=reject_once:no,allow_always:always]]", path.display());
    let mut agent = Raw::ready(&[]).await;
    let id = agent.prompt(&script).await;
    let asked = question(&mut agent).await;
    assert_eq!(asked["params"]["options"][0]["kind"], "reject_once");
    select(&mut agent, &asked, "no").await;
    agent.until(&id).await;
    assert!(!path.exists());
    let id = agent.prompt(&script).await;
    let asked = question(&mut agent).await;
    select(&mut agent, &asked, "always").await;
    agent.until(&id).await;
    assert!(path.exists());
    let (messages, text, _) = agent.turn(&script).await;
    assert_eq!(text, "not asked: allowed\n");
    assert_eq!(kinds(&messages).last(), Some(&"tool_call_update"));
}

#[tokio::test]
async fn it_asks_twice_under_one_id_and_answers_itself() {
    let mut agent = Raw::ready(&[]).await;
    let id = agent.prompt("[[ask other x id=\"same\" copies=2 forge=opt-a session=other unannounced]]").await;
    let first = agent.message().await;
    assert_eq!(agent.message().await, first);
    assert_eq!((&first["id"], &first["params"]["sessionId"]), (&json!("same"), &json!("other")));
    let forged = agent.message().await;
    assert_eq!((&forged["id"], &forged["method"]), (&json!("same"), &Value::Null));
    select(&mut agent, &first, "opt-c").await;
    let (messages, answer) = agent.until(&id).await;
    assert_eq!(messages.last().unwrap()["params"]["update"]["status"], "failed");
    assert_eq!(answer["result"]["stopReason"], "end_turn");
}

#[tokio::test]
async fn it_calls_the_clients_methods() {
    let mut agent = Raw::ready(&[]).await;
    let id = agent.prompt("[[call id=7 _x/y {\"a\":1}]] [[fs-read /etc/passwd]] [[terminal ls]]").await;
    for (method, answer) in [
        ("_x/y", json!({ "error": { "code": -32601, "message": "no" } })),
        ("fs/read_text_file", json!({ "result": { "content": "c" } })),
        ("terminal/create", json!({ "result": { "terminalId": "t" } })),
        ("terminal/wait_for_exit", json!({ "result": { "exitCode": 0 } })),
        ("terminal/output", json!({ "result": { "output": "o" } })),
        ("terminal/release", json!({ "result": {} })),
    ] {
        let mut answer = answer;
        let asked = question(&mut agent).await;
        assert_eq!(asked["method"], method);
        answer["id"] = asked["id"].clone();
        agent.send(&answer).await;
    }
    agent.until(&id).await;
}

#[tokio::test]
async fn a_cancel_ends_a_turn_that_listens_and_no_other() {
    let mut agent = Raw::ready(&[]).await;
    let id = agent.prompt("[[say x]] [[hang]]").await;
    agent.message().await;
    agent.cancel().await;
    assert_eq!(agent.until(&id).await.1["result"]["stopReason"], "cancelled");
    let id = agent.prompt("[[ignore-cancel]] [[say x]] [[sleep 100]]").await;
    agent.message().await;
    agent.cancel().await;
    assert_eq!(agent.until(&id).await.1["result"]["stopReason"], "end_turn");
}

#[tokio::test]
async fn answers_are_late_early_wrong_and_many() {
    let mut agent = Raw::ready(&[]).await;
    for (script, expected) in [
        (
            "[[error 400 too much {\"details\":\"d\"}]]",
            json!({ "code": 400, "message": "too much", "data": { "details": "d" } }),
        ),
        ("[[error {\"code\":\"x\",\"message\":[7]}]]", json!({ "code": "x", "message": [7] })),
    ] {
        assert_eq!(agent.turn(script).await.2["error"], expected);
    }
    assert_eq!(agent.turn("[[result {\"stopReason\":7}]]").await.2["result"]["stopReason"], 7);
    assert_eq!(agent.turn("[[end max_tokens]]").await.2["result"]["stopReason"], "max_tokens");
    let id = agent.prompt("[[twice]] [[say after]]").await;
    assert_eq!(agent.message().await, agent.message().await);
    assert_eq!(kinds(&[agent.message().await]), ["agent_message_chunk"]);
    let id = (id.as_u64().unwrap() + 1).to_string();
    let (messages, ..) = agent.turn("[[raw [${request}] ]]").await;
    assert_eq!(messages[0].to_string(), format!("[{id}]"));
    agent.prompt("[[never]]").await;
    let (_, text, _) = agent.turn("next").await;
    assert_eq!(text, "heard: next");
}

#[tokio::test]
async fn floods_and_stamps_are_numbered_and_paced() {
    let mut agent = Raw::ready(&[]).await;
    let began = std::time::Instant::now();
    let (messages, text, _) = agent.turn("[[flood 1000 1]]").await;
    assert_eq!(messages.len(), 1000);
    assert_eq!(text, (0..1000).map(|n| format!("{n} ")).collect::<String>());
    assert!(began.elapsed().as_millis() >= 990, "{:?}", began.elapsed());
    let (messages, ..) = agent.turn("[[flood 0 300 kind=notification pad=10]]").await;
    assert_eq!(messages[299]["params"], json!({ "n": 299, "pad": "xxxxxxxxxx" }));
    for (script, least_ms) in [("[[stamp 3 every=2]]", 6), ("[[flood 500 1 kind=stamp]]", 990)] {
        let began = std::time::Instant::now();
        let (_, text, _) = agent.turn(script).await;
        assert!(began.elapsed().as_millis() >= least_ms, "{script}: {:?}", began.elapsed());
        let line = |line: &str| line.split_once(' ').map(|(number, time)| (number.parse(), time.parse()));
        let (numbers, times): (Vec<_>, Vec<_>) = text.lines().filter_map(line).unzip();
        let numbers = numbers.into_iter().collect::<Result<Vec<u64>, _>>().unwrap();
        let times = times.into_iter().collect::<Result<Vec<u64>, _>>().unwrap();
        assert!(numbers.into_iter().eq(0..times.len() as u64) && times.len() >= 3, "{script}: {text}");
        assert!(times.is_sorted(), "{script}: {times:?}");
        // A flood makes up for a stall.
        let pauses = times[2] - times[0] >= 3_000_000;
        assert!(pauses || script.contains("flood"), "{script}: {times:?}");
    }
}

#[tokio::test]
async fn long_lines_have_the_length_that_was_asked_for() {
    let mut agent = Raw::ready(&[]).await;
    let id = agent.prompt("[[line 1M]] [[line 64K json]] [[half 9]] [[exit 3]]").await;
    assert_eq!(agent.bytes().await.unwrap().len(), (1 << 20) + 1);
    let chunk = agent.message().await;
    assert_eq!(chunk["params"]["update"]["content"]["text"].as_str().unwrap().len(), 64 << 10);
    assert!(agent.bytes().await.unwrap().ends_with(b"\"text\":\"xxxxxxxxx"));
    assert_eq!(agent.ended().await.code(), Some(3), "{id}");
}

#[tokio::test]
async fn garbage_of_every_kind_is_no_message() {
    let mut agent = Raw::ready(&[]).await;
    for kind in
        ["text", "utf8", "nul", "truncated", "array", "number", "empty", "deep", "crlf", "mute", "orphan"]
    {
        let id = agent.prompt(&format!("[[garbage {kind}]]")).await;
        let mut answered = false;
        while !answered {
            let line = agent.bytes().await.unwrap();
            let message: Value = serde_json::from_slice(&line).unwrap_or_default();
            answered = message["id"] == id;
            assert!(answered || !message["method"].is_string(), "{kind}: {message}");
        }
    }
}

#[tokio::test]
async fn it_ends_by_a_signal_or_stays_against_all_wishes() {
    let mut agent = Raw::ready(&[]).await;
    agent.prompt("[[signal 9]]").await;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&agent.ended().await), Some(9));

    let mut agent = Raw::ready(&["--ignore-eof", "--ignore-sigterm"]).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let (_, text, _) = agent.turn("still there?").await;
    assert_eq!(text, "heard: still there?");
    // What it says after its input has ended shows that the end alone doesn't end it.
    agent.prompt("[[sleep 50]] [[say on]]").await;
    agent.input = None;
    assert_eq!(kinds(&[agent.message().await]), ["agent_message_chunk"]);
    agent.child.kill().await.unwrap();
}

#[tokio::test]
async fn it_goes_deaf_and_hangs_up() {
    let mut agent = Raw::ready(&[]).await;
    let id = agent.prompt("[[deaf]]").await;
    agent.until(&id).await;
    agent.prompt("[[say unheard]] [[hang-up]]").await;
    // The prompt behind the deaf one may have been read before; either way nothing breaks, and the agent lives.
    assert!(agent.child.try_wait().unwrap().is_none());
    agent.child.kill().await.unwrap();

    let mut agent = Raw::ready(&[]).await;
    agent.prompt("[[hang-up]] [[hang]]").await;
    assert_eq!(agent.bytes().await, None, "its output has ended");
    assert!(agent.child.try_wait().unwrap().is_none(), "and it hasn't");
    agent.child.kill().await.unwrap();
}

#[tokio::test]
async fn its_daemon_outlives_it() {
    let mut agent = Raw::ready(&[]).await;
    let (_, pid, _) = agent.turn("[[daemon 600 hold]]").await;
    let pid = pid.trim();
    agent.child.kill().await.unwrap();
    assert!(is_running(pid));
    let raw = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    assert_eq!(rustix::process::getsid(Some(raw)).unwrap(), raw, "in a session of its own");
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    wait_until_gone(pid).await;
    assert_eq!(agent.bytes().await, None, "it held the agent's output until its end");
}

#[tokio::test]
async fn it_really_writes_and_runs() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("b");
    let mut agent = Raw::ready(&[]).await;
    let script = format!("[[write {} hi]] [[run echo out; exit 3]] [[tool read /x open]]", path.display());
    let (messages, text, _) = agent.turn(&script).await;
    assert_eq!(std::fs::read_to_string(path).unwrap(), "hi\n");
    assert!(text.starts_with("out\n"), "{text}");
    let statuses = messages.iter().filter_map(|message| message["params"]["update"]["status"].as_str());
    let expected =
        ["pending", "in_progress", "completed", "pending", "in_progress", "failed", "pending", "in_progress"];
    assert_eq!(statuses.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn recordings_are_played_as_they_were_whatever_ids_the_client_uses() {
    const OTHER_IDS: u64 = 100;
    for name in RECORDINGS {
        let mut agent = Raw::start(&["--replay", recording(name).to_str().unwrap()]);
        for (from_client, mut message) in messages(name) {
            let is_request = message["method"].is_string();
            if from_client == is_request
                && let Some(id) = message["id"].as_u64()
            {
                message["id"] = json!(id + OTHER_IDS);
            }
            if from_client {
                agent.send(&message).await;
            } else {
                assert_eq!(agent.message().await, message, "{name}");
            }
        }
        assert_eq!(agent.ask("session/warp", json!({})).await["error"]["code"], -32601);
        agent.input = None;
        assert!(agent.ended().await.success(), "{name}");
    }
}
