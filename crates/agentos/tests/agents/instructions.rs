//! What agents are told about where they work reaches their model; and what their user has set stays.

use agentos::{AgentOs, CreateSession, ModelChoice, PermissionPolicy, Session};
use serde_json::Value;

use super::model;
use super::random;
use super::support::within;
use super::support::world::World;

const FILE: &str = "/etc/agentos/instructions.md";

/// What the model was asked for this prompt, tools and all.
async fn sent(vm: &AgentOs, session: &Session) -> String {
    let word = random();
    let reply = within("the turn", session.prompt(format!("demo:say {word}"))).await.unwrap();
    assert!(reply.text.contains(&word), "{}", reply.text);
    let is_turn = |request: &Value| {
        let offers_tools = request["tools"].as_array().is_some_and(|tools| !tools.is_empty());
        offers_tools && model::texts(&request["body"]).contains(&word)
    };
    let asked = model::asked(vm).await;
    model::texts(&asked.iter().find(|request| is_turn(request)).expect("the turn's request")["body"])
}

fn place(text: &str, word: &str) -> usize {
    text.find(word).unwrap_or_else(|| panic!("{word} is not in what the model got"))
}

fn unasked(vm: &AgentOs, agent: &str) -> CreateSession {
    vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll)
}

/// The base, the VM's and the session's in this order; without the base the other two. A variable that we would have set
/// to something else is what its user has set.
async fn told(agent: &str, variable: &str, value: &str) {
    let (of_vm, of_session) = (random(), random());
    let world = World::new().await;
    let options = world.options().model(ModelChoice::Demo).additional_instructions(format!("Knit {of_vm}."));
    let vm = world.vm_with(options).await;
    let create = || unasked(&vm, agent).additional_instructions(format!("Purl {of_session}."));

    let session = create().env(variable, value).await.unwrap();
    let text = String::from_utf8(vm.read_file(FILE).await.unwrap()).unwrap();
    let base = text.split_once("Knit").unwrap().0.trim();
    let lines: Vec<&str> = base.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert!(!lines.is_empty(), "{text}");
    let got = sent(&vm, &session).await;
    for line in &lines {
        assert!(place(&got, line) < place(&got, &of_vm), "{agent}: {line}");
    }
    assert!(place(&got, &of_vm) < place(&got, &of_session), "{agent}");
    let command = format!("Run the command `echo [${variable}]`");
    let reply = within("the command", session.prompt(command)).await.unwrap();
    assert!(reply.text.contains(&format!("[{value}]")), "{agent}, {variable}: {}", reply.text);
    within("the end", session.close()).await.unwrap();

    let session = create().skip_os_instructions().await.unwrap();
    let got = sent(&vm, &session).await;
    assert!(place(&got, &of_vm) < place(&got, &of_session), "{agent}");
    for line in lines {
        assert!(!got.contains(line), "{agent} was told all the same: {line}");
    }
    within("the end", session.close()).await.unwrap();
}

#[tokio::test]
async fn pi_and_its_model_are_told_where_they_work() {
    told("pi", "PI_TELEMETRY", "false").await;
}

#[tokio::test]
async fn pi_cli_and_its_model_are_told_where_they_work() {
    told("pi-cli", "PI_TELEMETRY", "false").await;
}

#[tokio::test]
async fn opencode_and_its_model_are_told_where_they_work() {
    told("opencode", "OPENCODE_DISABLE_LSP_DOWNLOAD", "off").await;
}

#[tokio::test]
async fn claude_and_its_model_are_told_where_they_work() {
    told("claude", "DISABLE_AUTOUPDATER", "true").await;
}

#[tokio::test]
async fn codex_and_its_model_are_told_where_they_work() {
    told("codex", "NO_BROWSER", "true").await;
}

#[tokio::test]
async fn gemini_and_its_model_are_told_where_they_work() {
    told("gemini", "GEMINI_TELEMETRY_ENABLED", "0").await;
}

#[tokio::test]
async fn a_user_of_gemini_with_a_configuration_keeps_it_and_has_our_instructions_in_their_file() {
    let (theirs, ours) = (random(), random());
    let world = World::new().await;
    let vm = world.vm().await;
    let settings = r#"{ "security": { "auth": { "selectedType": "gemini-api-key" } } }"#;
    vm.write_file("/home/user/.gemini/settings.json", settings).await.unwrap();
    vm.write_file("/home/user/.gemini/GEMINI.md", format!("Sew {theirs}.")).await.unwrap();
    let create = |model| unasked(&vm, "gemini").model(model).additional_instructions(format!("Knit {ours}."));
    // A demo session has a directory of its own, so that theirs is not used, and brings the model into the VM.
    let session = create(ModelChoice::Demo).await.unwrap();
    let got = sent(&vm, &session).await;
    assert!(got.contains(&ours) && !got.contains(&theirs));
    within("the end", session.close()).await.unwrap();

    let session = model::configured(&vm, create(ModelChoice::Provider), "gemini").await.await.unwrap();
    let got = sent(&vm, &session).await;
    assert!(got.contains(&theirs) && !got.contains(&ours));
    let file = String::from_utf8(vm.read_file(FILE).await.unwrap()).unwrap();
    assert!(file.contains(&ours), "{file}");
    within("the end", session.close()).await.unwrap();
}

#[tokio::test]
async fn a_user_of_opencode_with_a_configuration_of_that_name_has_theirs() {
    let (theirs, ours) = (random(), random());
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    vm.write_file("/home/user/sew.md", format!("Sew {theirs}.")).await.unwrap();
    vm.write_file("/home/user/mine.json", r#"{ "instructions": ["/home/user/sew.md"] }"#).await.unwrap();
    let create = unasked(&vm, "opencode").additional_instructions(format!("Knit {ours}."));
    let session = create.env("OPENCODE_CONFIG", "/home/user/mine.json").await.unwrap();
    let got = sent(&vm, &session).await;
    assert!(got.contains(&theirs) && !got.contains(&ours));
    within("the end", session.close()).await.unwrap();
}
