//! Every agent calls functions of this program: as a tool of its own, and as a command.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentos::{AgentOs, HostTool, ModelChoice, PermissionPolicy, PermissionReply, ToolKit};
use serde_json::{Value, json};

use super::support::within;
use super::support::world::World;
use super::{THAT_ASK, random};

/// A word that nobody could guess, and how often it was told.
struct Secret {
    word: String,
    told: Arc<AtomicUsize>,
}

impl Secret {
    fn new() -> Self {
        Self { word: random(), told: Arc::default() }
    }

    async fn vm(&self, world: &World) -> AgentOs {
        let (word, told) = (self.word.clone(), Arc::clone(&self.told));
        let schema = json!({
            "type": "object", "properties": { "who": { "type": "string" } }, "required": ["who"],
        });
        let tell = HostTool::new("Tells the secret word", schema, move |input: Value| {
            told.fetch_add(1, Ordering::SeqCst);
            let told = format!("{word} for {}", input["who"].as_str().unwrap());
            async move { Ok::<_, String>(told) }
        });
        let kit = ToolKit::new("secrets", "What nobody could guess").tool("tell", tell);
        world.vm_with(world.options().model(ModelChoice::Demo).tool_kit(kit)).await
    }

    fn told(&self) -> usize {
        self.told.load(Ordering::SeqCst)
    }
}

async fn calls_a_host_tool(agent: &str) {
    let world = World::new().await;
    let secret = Secret::new();
    let vm = secret.vm(&world).await;
    let session = vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll).await.unwrap();
    for (who, call) in [
        ("walrus", "demo:tool secrets_tell {\"who\": \"walrus\"}"),
        ("fox", "demo:run agentos-tools call secrets_tell '{\"who\": \"fox\"}'"),
    ] {
        let reply = within(call, session.prompt(call)).await.unwrap();
        assert!(reply.text.contains(&format!("{} for {who}", secret.word)), "{agent}: {}", reply.text);
    }
    assert_eq!(secret.told(), 2);
    within("the end", session.close()).await.unwrap();
}

#[tokio::test]
async fn pi_calls_a_host_tool() {
    calls_a_host_tool("pi").await;
}

#[tokio::test]
async fn pi_cli_calls_a_host_tool() {
    calls_a_host_tool("pi-cli").await;
}

#[tokio::test]
async fn opencode_calls_a_host_tool() {
    calls_a_host_tool("opencode").await;
}

#[tokio::test]
async fn gemini_calls_a_host_tool() {
    calls_a_host_tool("gemini").await;
}

#[tokio::test]
async fn claude_calls_a_host_tool() {
    calls_a_host_tool("claude").await;
}

#[tokio::test]
async fn codex_calls_a_host_tool() {
    calls_a_host_tool("codex").await;
}

/// A call that is rejected never reaches the handler; one that is allowed once does, and is asked for again.
#[tokio::test]
async fn agents_that_ask_ask_before_they_call_a_host_tool() {
    let world = World::new().await;
    let secret = Secret::new();
    let vm = secret.vm(&world).await;
    for agent in THAT_ASK {
        let before = secret.told();
        let session = vm.create_session(agent).permission_policy(PermissionPolicy::Ask).await.unwrap();
        let mut requests = session.permission_requests();
        for reply in [PermissionReply::Reject, PermissionReply::Once, PermissionReply::Reject] {
            let told = secret.told();
            let turn =
                tokio::spawn(session.prompt("demo:tool secrets_tell {\"who\": \"walrus\"}").into_future());
            let request = within(agent, requests.next()).await.unwrap();
            assert_eq!(secret.told(), told, "{agent}: {:?}", request.params());
            request.reply(reply).await.unwrap();
            let ended = within("the turn", turn).await.unwrap();
            assert_eq!(
                secret.told() - told,
                usize::from(reply == PermissionReply::Once),
                "{agent}: {ended:?}"
            );
        }
        assert_eq!(secret.told(), before + 1);
        within("the end", session.close()).await.unwrap();
    }
}
