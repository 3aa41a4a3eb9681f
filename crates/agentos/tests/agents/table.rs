//! What of ACP each built-in agent does, tried one after the other and printed as a table: done, or refused in the
//! agent's own words.

use std::fmt::Write as _;
use std::io::Write as _;

use agentos::{
    AgentOs, ErrorKind, McpServer, PermissionPolicy, PermissionReply, ProcessStatus, Prompt, Session,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::support::world::World;
use super::support::{eventually, poll_pause, within};
use super::{demo_vm, model, random};

/// Each built-in agent, and what of [`FEATURES`] it refuses. The rest it does.
const AGENTS: [(&str, &[&str]); 6] = [
    ("pi", &["permission", "images", "resume"]),
    ("pi-cli", &["permission", "resume"]),
    ("opencode", &[]),
    ("claude", &[]),
    ("codex", &[]),
    ("gemini", &["options", "resume"]),
];

const FEATURES: [&str; 11] = [
    "new",
    "prompt",
    "cancel",
    "permission",
    "modes",
    "models",
    "options",
    "MCP",
    "images",
    "resume",
    "load",
];

/// A pixel, as an agent gets it and hands it on.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// A tool server in a few lines of shell, whose only tool says what nobody could guess.
const TOOL_SERVER: &str = r#"
while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  version=$(printf '%s' "$line" | sed -n 's/.*"protocolVersion":"\([^"]*\)".*/\1/p')
  [ -n "$id" ] || continue
  case "$line" in
  *'"initialize"'*) result='{"protocolVersion":"'$version'","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}' ;;
  *'"tools/list"'*) result='{"tools":[{"name":"lucky","description":"The lucky number","inputSchema":{"type":"object","properties":{}}}]}' ;;
  *'"tools/call"'*) result='{"content":[{"type":"text","text":"'$LUCKY'"}]}' ;;
  *) result='{}' ;;
  esac
  printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
done
"#;

/// `Err` has what the agent said.
type Cell = Result<(), String>;

/// One agent, tried.
struct Row {
    agent: &'static str,
    cells: Vec<(&'static str, Cell)>,
}

#[tokio::test]
async fn every_agent_does_what_it_is_known_to_do_and_refuses_the_rest_in_its_own_words() {
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (agent, _) in AGENTS {
        // In a task, so that the others are tried all the same.
        match tokio::spawn(tried(agent)).await {
            Ok(row) => rows.push(row),
            Err(failure) => failed.push(format!("{agent}: {failure}")),
        }
    }
    // Not what the test harness takes for its own and keeps to itself.
    std::io::stderr().write_all(table(&rows).as_bytes()).unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    for (row, (agent, refused)) in rows.iter().zip(AGENTS) {
        let tried: Vec<&str> = row.cells.iter().map(|(feature, _)| *feature).collect();
        assert_eq!(tried, FEATURES, "{agent}");
        for (feature, cell) in &row.cells {
            assert_eq!(cell.is_err(), refused.contains(feature), "{agent}, {feature}: {cell:?}");
            assert!(cell.as_ref().err().is_none_or(|said| !said.is_empty()), "{agent}, {feature}");
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!("\n{:10}", "");
    for feature in FEATURES {
        let _ = write!(text, "{feature:>11}");
    }
    let mut quotes = String::new();
    for row in rows {
        let _ = write!(text, "\n{:10}", row.agent);
        for (feature, cell) in &row.cells {
            let shown = if cell.is_ok() { "done" } else { "refused" };
            let _ = write!(text, "{shown:>11}");
            if let Err(said) = cell {
                let _ = writeln!(quotes, "{}, {feature}: {said}", row.agent);
            }
        }
    }
    format!("{text}\n\n{quotes}\n")
}

async fn tried(agent: &'static str) -> Row {
    let world = World::new().await;
    let vm = demo_vm(&world).await;
    vm.write_file("/home/user/tools.sh", TOOL_SERVER).await.unwrap();
    let lucky = random();
    let tools = McpServer::local("sh", ["/home/user/tools.sh"]).env("LUCKY", lucky.clone());
    let create = vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll).mcp_server(tools);
    let session = create.await.unwrap();
    let cells = vec![
        ("new", Ok(())),
        ("prompt", prompt(&vm, &session).await),
        ("cancel", cancel(&vm, &session).await),
        ("permission", permission(&vm, agent).await),
        ("modes", modes(&session).await),
        ("models", models(&session).await),
        ("options", options(&session).await),
        ("MCP", tool(&session, &lucky).await),
        ("images", image(&vm, &session).await),
        ("resume", again(&session, "session/resume").await),
        ("load", load(&vm, session).await),
    ];
    Row { agent, cells }
}

async fn prompt(vm: &AgentOs, session: &Session) -> Cell {
    let (path, text) = (format!("/home/user/{}.txt", random()), random());
    let asked = format!("Write the text {text} to the file {path}");
    let reply = within("the turn", session.prompt(asked)).await.map_err(|error| error.to_string())?;
    let written = vm.read_file(path).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&written).trim_end(), text, "{}", reply.text);
    Ok(())
}

async fn cancel(vm: &AgentOs, session: &Session) -> Cell {
    let running = tokio::spawn(session.prompt("Run the command `tail -f /dev/null`").into_future());
    eventually("the command runs", || async {
        let all = vm.all_processes().await.unwrap();
        all.iter().any(|process| process.status == ProcessStatus::Running && process.command == "tail")
    })
    .await;
    session.cancel().await.map_err(|error| error.to_string())?;
    let reply = within("the cancelled turn", running).await.unwrap().map_err(|error| error.to_string())?;
    match reply.stop_reason.as_str() {
        "cancelled" => Ok(()),
        other => Err(format!("the turn ended as {other}")),
    }
}

/// A rejected file is not written.
async fn permission(vm: &AgentOs, agent: &str) -> Cell {
    // The policy that nobody could keep with an agent that never asks.
    match vm.create_session(agent).permission_policy(PermissionPolicy::RejectAll).await {
        Ok(session) => within("the end", session.close()).await.unwrap(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
            return Err(error.to_string());
        }
    }
    let session = vm.create_session(agent).permission_policy(PermissionPolicy::Ask).await.unwrap();
    let mut requests = session.permission_requests();
    let path = format!("/home/user/{}.txt", random());
    let turn = tokio::spawn(session.prompt(format!("Write the text x to the file {path}")).into_future());
    let request = within("the question", requests.next()).await.unwrap();
    request.reply(PermissionReply::Reject).await.unwrap();
    let ended = within("the turn", turn).await.unwrap();
    assert!(!vm.exists(path.as_str()).await.unwrap(), "{agent}: {ended:?}");
    within("the end", session.close()).await.unwrap();
    Ok(())
}

async fn modes(session: &Session) -> Cell {
    let Some(modes) = session.modes() else {
        return said(session.set_mode("plan").await);
    };
    let other = modes.available_modes.iter().rev().find(|mode| mode.id != modes.current_mode_id);
    let other = other.map_or(&modes.current_mode_id, |mode| &mode.id);
    said(session.set_mode(other).await)?;
    said(session.set_mode(&modes.current_mode_id).await)
}

async fn models(session: &Session) -> Cell {
    let options = session.config_options();
    let option = options.iter().find(|option| option.category.as_deref() == Some("model"));
    let current = option.and_then(|option| option.current_value.clone());
    said(session.set_model(&current.unwrap_or_else(|| "demo".to_owned())).await)
}

async fn options(session: &Session) -> Cell {
    let options = session.config_options();
    let option = options.iter().find(|option| !option.read_only && option.current_value.is_some());
    let (id, value) = match option {
        Some(option) => (option.id.clone(), option.current_value.clone().unwrap()),
        None => ("model".to_owned(), "demo".to_owned()),
    };
    said(session.set_config_option(&id, &value).await)
}

async fn tool(session: &Session, lucky: &str) -> Cell {
    let turn = within("the tool", session.prompt("demo:tool lucky {}"));
    let reply = turn.await.map_err(|error| error.to_string())?;
    if reply.text.contains(lucky) { Ok(()) } else { Err(reply.text) }
}

/// The model's own log is the witness.
async fn image(vm: &AgentOs, session: &Session) -> Cell {
    let pixel = BASE64.decode(PNG).unwrap();
    let prompt = Prompt::text("demo:say seen").image("image/png", pixel);
    within("the image", session.prompt(prompt)).await.map_err(|error| error.to_string())?;
    if model::asked(vm).await.iter().any(|request| request.to_string().contains(PNG)) {
        Ok(())
    } else {
        Err("it took the image and did not hand it to the model".to_owned())
    }
}

async fn again(session: &Session, method: &str) -> Cell {
    said(session.raw_send(method, json!({ "cwd": "/home/user", "mcpServers": [] })).await)
}

/// A session that is over is loaded by a process of its own; one that an agent rather resumes, it loads while it lives.
async fn load(vm: &AgentOs, session: Session) -> Cell {
    within("the end", session.close()).await.unwrap();
    let restored = async {
        loop {
            match vm.restore_session(session.id()).await {
                Err(error) if error.kind() == ErrorKind::Busy => poll_pause().await,
                restored => return restored,
            }
        }
    };
    let restored = within("the session is back", restored).await.map_err(|error| error.to_string())?;
    let history = vm.read_history(session.id()).await.unwrap();
    let told = history.iter().rev().find(|event| event.method() == "_agentos/restored").unwrap();
    let loaded = match told.params()["how"].as_str() {
        Some("load") => Ok(()),
        _ => again(&restored, "session/load").await,
    };
    within("the end", restored.close()).await.unwrap();
    loaded
}

/// The agent's own words where it has some.
fn said<T>(answer: Result<T, agentos::Error>) -> Cell {
    answer.map(drop).map_err(|error| match error.rpc_error() {
        Some(rpc) => format!("{} {}", rpc.code, rpc.message),
        None => error.to_string(),
    })
}
