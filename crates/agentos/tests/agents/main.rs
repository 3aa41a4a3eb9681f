//! Every built-in agent, the real one, at work in a VM with the offline model; and agents that their caller describes.
//! The first run on a machine installs the agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod faults;
mod host_tools;
mod instructions;
mod model;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::sync::{Arc, Mutex};

use agentos::{
    AgentConfig, AgentOs, ErrorKind, McpServer, ModelChoice, ModelKind, PermissionPolicy, PermissionReply,
    PreparedInstructions,
};
use support::within;
use support::world::World;

/// The agents that ask before they act when they are told to.
const THAT_ASK: [&str; 4] = ["opencode", "claude", "codex", "gemini"];

/// Something that nobody could guess.
fn random() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

async fn demo_vm(world: &World) -> AgentOs {
    world.vm_with(world.options().model(ModelChoice::Demo)).await
}

/// The agent writes one file and runs one command, unasked, and knows what it was asked first.
async fn works(agent: &str) {
    let world = World::new().await;
    let vm = demo_vm(&world).await;
    let session = vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll).await.unwrap();
    assert_eq!((session.model(), session.agent_type()), (ModelKind::Demo, agent));

    let (name, text) = (random(), random());
    let path = format!("/home/user/{name}.txt");
    let asked = format!("Write the text {text} to the file {path}");
    let reply = within("the file", session.prompt(asked.as_str())).await.unwrap();
    assert_eq!(reply.stop_reason, "end_turn", "{agent}: {}", reply.text);
    assert!(reply.text.starts_with("[demo model]"), "{agent}: {}", reply.text);
    assert_eq!(String::from_utf8_lossy(&vm.read_file(path).await.unwrap()).trim_end(), text);

    let (a, b) = (random(), random());
    let reply = within("the command", session.prompt(format!("Run the command `echo {a}+{b} | tr + -`")));
    let reply = reply.await.unwrap();
    assert!(reply.text.contains(&format!("{a}-{b}")), "{agent}: {}", reply.text);

    let reply = within("the memory", session.prompt("What was my first request?")).await.unwrap();
    assert!(reply.text.contains(&asked), "{agent}: {}", reply.text);
    within("the end", session.close()).await.unwrap();
}

#[tokio::test]
async fn pi_writes_a_file_and_runs_a_command() {
    works("pi").await;
}

#[tokio::test]
async fn pi_cli_writes_a_file_and_runs_a_command() {
    works("pi-cli").await;
}

#[tokio::test]
async fn opencode_writes_a_file_and_runs_a_command() {
    works("opencode").await;
}

#[tokio::test]
async fn gemini_writes_a_file_and_runs_a_command() {
    works("gemini").await;
}

#[tokio::test]
async fn claude_writes_a_file_and_runs_a_command() {
    works("claude").await;
}

#[tokio::test]
async fn codex_writes_a_file_and_runs_a_command() {
    works("codex").await;
}

/// What is rejected leaves no trace; what is allowed once happens, and is asked for again the next time; what is allowed always
/// is not.
async fn asks(agent: &str) {
    let world = World::new().await;
    let vm = demo_vm(&world).await;
    let session = vm.create_session(agent).permission_policy(PermissionPolicy::Ask).await.unwrap();
    let mut requests = session.permission_requests();
    for reply in [PermissionReply::Reject, PermissionReply::Once, PermissionReply::Reject] {
        let path = format!("/home/user/{}.txt", random());
        let prompt = format!("Write the text {} to the file {path}", random());
        let turn = tokio::spawn(session.prompt(prompt).into_future());
        let request = within("the question", requests.next()).await.unwrap();
        assert!(!vm.exists(path.as_str()).await.unwrap(), "{agent}: {:?}", request.params());
        request.reply(reply).await.unwrap();
        let ended = within("the turn", turn).await.unwrap();
        let there = vm.exists(path.as_str()).await.unwrap();
        assert_eq!(there, reply == PermissionReply::Once, "{agent}: {ended:?}");
    }
    let path = format!("/home/user/{}.txt", random());
    let prompt = format!("Run the command `touch {path}`");
    let turn = tokio::spawn(session.prompt(prompt.as_str()).into_future());
    let request = within("the question", requests.next()).await.unwrap();
    request.reply(PermissionReply::Always).await.unwrap();
    within("the turn", turn).await.unwrap().unwrap();
    vm.delete(path.as_str()).await.unwrap();
    // It would wait for an answer.
    let ended = within("the turn without a question", session.prompt(prompt.as_str())).await.unwrap();
    assert!(vm.exists(path.as_str()).await.unwrap(), "{agent}: {ended:?}");
    within("the end", session.close()).await.unwrap();
}

#[tokio::test]
async fn opencode_writes_what_it_is_allowed_to_and_nothing_else() {
    asks("opencode").await;
}

#[tokio::test]
async fn gemini_writes_what_it_is_allowed_to_and_nothing_else() {
    asks("gemini").await;
}

#[tokio::test]
async fn claude_writes_what_it_is_allowed_to_and_nothing_else() {
    asks("claude").await;
}

#[tokio::test]
async fn codex_writes_what_it_is_allowed_to_and_nothing_else() {
    asks("codex").await;
}

#[tokio::test]
async fn a_policy_that_rejects_everything_is_kept_without_anybody_answering() {
    let world = World::new().await;
    let vm = demo_vm(&world).await;
    for agent in THAT_ASK {
        let session = vm.create_session(agent).permission_policy(PermissionPolicy::RejectAll).await.unwrap();
        let path = format!("/home/user/{}.txt", random());
        let _ = within("the turn", session.prompt(format!("Write the text x to the file {path}"))).await;
        assert!(!vm.exists(path.as_str()).await.unwrap(), "{agent}");
        within("the end", session.close()).await.unwrap();
    }
}

/// A tool server in a few lines of shell, with one tool that says a word nobody could guess.
const TOOL_SERVER: &str = r#"
while read -r line; do
  id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
  answer() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
  case "$line" in
  *'"initialize"'*)
    version=$(printf '%s' "$line" | sed 's/.*"protocolVersion":"\([^"]*\)".*/\1/')
    answer '{"protocolVersion":"'"$version"'","capabilities":{"tools":{}},"serverInfo":{"name":"words","version":"1"}}' ;;
  *'"tools/list"'*)
    answer '{"tools":[{"name":"word","description":"Says a word","inputSchema":{"type":"object","properties":{}}}]}' ;;
  *'"tools/call"'*) answer '{"content":[{"type":"text","text":"the word is '"$WORD"'"}]}' ;;
  *'"id":'*) answer '{}' ;;
  esac
done
"#;

/// The tool is called by the name that the agent gives it.
async fn uses_a_tool_server(agent: &str, tool: &str) {
    let world = World::new().await;
    let vm = demo_vm(&world).await;
    let word = random();
    let server = McpServer::local("/bin/sh", ["-c", TOOL_SERVER]).env("WORD", &word);
    let session = vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll).mcp_server(server);
    let session = session.await.unwrap();
    let reply = within("the tool", session.prompt(format!("demo:tool {tool} {{}}"))).await.unwrap();
    assert!(reply.text.contains(&format!("the word is {word}")), "{agent}: {}", reply.text);
    within("the end", session.close()).await.unwrap();
}

#[tokio::test]
async fn claude_uses_a_tool_server_of_its_vm() {
    uses_a_tool_server("claude", "mcp__agentos-1__word").await;
}

#[tokio::test]
async fn codex_uses_a_tool_server_of_its_vm() {
    uses_a_tool_server("codex", "word").await;
}

/// An agent in a few lines of shell: it says what it was started with.
const ECHO_AGENT: &str = r#"
while read -r line; do
  id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
  case "$line" in
  *'"initialize"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":1}}\n' "$id" ;;
  *'"session/new"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"sessionId":"s"}}\n' "$id" ;;
  *'"session/prompt"'*)
    printf '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"%s %s"}}}}\n' "$1" "$GREETING"
    printf '{"jsonrpc":"2.0","id":%s,"result":{"stopReason":"end_turn"}}\n' "$id" ;;
  esac
done
"#;

#[tokio::test]
async fn a_command_of_the_vm_is_an_agent() {
    let world = World::new().await;
    let config = AgentConfig::command(["sh", "-c", ECHO_AGENT, "sh"]);
    let config = config.launch_arg("an-argument").default_env("GREETING", "hello");
    let vm = world.vm_with(world.options().agent("mine", config)).await;
    let session = vm.create_session("mine").await.unwrap();
    assert_eq!(session.model(), ModelKind::Provider, "which model it uses is its own matter");
    let reply = within("the turn", session.prompt("hello")).await.unwrap();
    assert_eq!(reply.text, "an-argument hello");
    let error = vm.create_session("mine").model(ModelChoice::Demo).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoModel, "{error:?}");
}

#[tokio::test]
async fn an_agent_of_ones_own_gets_its_instructions_as_its_caller_prepares_them() {
    let world = World::new().await;
    let texts = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&texts);
    let config = AgentConfig::command(["sh", "-c", ECHO_AGENT, "sh"]).default_env("GREETING", "hello");
    let config = config.prepare_instructions(move |instructions| {
        let heard = Arc::clone(&heard);
        async move {
            heard.lock().unwrap().push((instructions.cwd, instructions.text.clone()));
            instructions.vm.write_file("/home/user/AGENT.md", instructions.text).await?;
            Ok::<_, agentos::Error>(
                PreparedInstructions::default().arg("prepared").env("GREETING", "well met"),
            )
        }
    });
    let broken = AgentConfig::command(["sh", "-c", ECHO_AGENT])
        .prepare_instructions(|_| async { Err::<PreparedInstructions, _>("no paper") });
    let options = world.options().agent("mine", config).agent("broken", broken);
    let vm = world.vm_with(options.additional_instructions("Knit.")).await;

    let session = vm.create_session("mine").cwd("/tmp").additional_instructions("Then purl.").await.unwrap();
    assert_eq!(within("the turn", session.prompt("hello")).await.unwrap().text, "prepared well met");
    let text = String::from_utf8(vm.read_file("/home/user/AGENT.md").await.unwrap()).unwrap();
    assert!(text.ends_with("\n\nKnit.\n\nThen purl."), "{text}");

    within("the end", session.close()).await.unwrap();
    let restored = within("the session is back", vm.restore_session(session.id())).await.unwrap();
    let reply = within("the turn", restored.prompt("hello")).await.unwrap();
    assert_eq!(reply.text, "prepared well met");
    let told = (Some("/tmp".to_owned()), text);
    assert_eq!(*texts.lock().unwrap(), [told.clone(), told]);

    let creating = vm.create_session("mine").env("GREETING", "oh").skip_os_instructions();
    let session = creating.await.unwrap();
    assert_eq!(within("the turn", session.prompt("hello")).await.unwrap().text, "prepared oh");
    assert_eq!(texts.lock().unwrap().pop(), Some((None, "Knit.".to_owned())));

    let error = vm.create_session("broken").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AgentFailed, "{error:?}");
    assert!(error.to_string().contains("no paper"), "{error}");
}

#[tokio::test]
async fn an_adapter_in_the_vms_own_modules_is_an_agent_and_one_that_is_not_there_says_how_to_bring_it() {
    let world = World::new().await;
    let config = AgentConfig::new("@me/my-acp", "@me/my-agent").default_env("GREETING", "hello");
    let entry = r#"{
        "id": "my-acp", "name": "Mine", "version": "1.2.3", "description": "An agent",
        "distribution": { "npx": { "package": "@me/my-acp@1.2.3", "env": { "GREETING": "from the registry" } } }
    }"#;
    let registered = AgentConfig::from_registry_entry(entry).unwrap();
    let options = world.options().agent("mine", config).agent("registered", registered);
    let vm = world.vm_with(options).await;
    let error = vm.create_session("mine").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AgentNotInstalled, "{error:?}");
    assert!(error.to_string().contains("npm install @me/my-acp"), "{error}");

    let package = "/root/node_modules/@me/my-acp";
    vm.write_file(format!("{package}/package.json"), r#"{"bin": {"my-acp": "./cli.js"}}"#).await.unwrap();
    let script = serde_json::to_string(ECHO_AGENT).unwrap();
    let cli = format!(
        "require('child_process').spawn('sh', ['-c', {script}, 'sh', 'from-node'], {{ stdio: 'inherit' }});"
    );
    vm.write_file(format!("{package}/cli.js"), cli).await.unwrap();
    let session = vm.create_session("mine").await.unwrap();
    let reply = within("the turn", session.prompt("hello")).await.unwrap();
    assert_eq!(reply.text, "from-node hello");
    let session = vm.create_session("registered").await.unwrap();
    let reply = within("the turn", session.prompt("hello")).await.unwrap();
    assert_eq!(reply.text, "from-node from the registry");
}
