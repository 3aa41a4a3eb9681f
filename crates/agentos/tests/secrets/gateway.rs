//! Agents and other clients that reach their provider through the gateway.

use agentos::{AgentOs, ModelChoice, ModelKind, PermissionPolicy, Secret};

use crate::lab::guest::sh;
use crate::lab::names::Entry;
use crate::lab::web::{Site, Web};
use crate::provider::Place;
use crate::support::within;

/// Lets the agent write a file, and says where the key came from.
async fn work(vm: &AgentOs) -> String {
    let session = vm.create_session("pi").permission_policy(PermissionPolicy::AllowAll).await.unwrap();
    assert_eq!(session.model(), ModelKind::Provider, "{}", session.model_reason());
    let turn = session.prompt("Write a hello world in TypeScript to hello.ts");
    let reply = within("the turn", turn).await.unwrap();
    assert_eq!((reply.model, reply.stop_reason.as_str()), (ModelKind::Provider, "end_turn"));
    let file = vm.read_file("/home/user/hello.ts").await;
    let file = file.unwrap_or_else(|error| panic!("{}: {error}: {}", session.model_reason(), reply.text));
    assert!(String::from_utf8_lossy(&file).contains("console.log"), "{file:?}");
    let reason = session.model_reason().to_owned();
    session.close().await.unwrap();
    reason
}

#[tokio::test]
async fn an_agent_works_with_each_provider_by_a_key_that_it_never_has() {
    let Some(place) = Place::new().await else { return };
    let providers = [
        ("ANTHROPIC_API_KEY", "api.anthropic.com", "/v1/messages", "x-api-key", ""),
        ("OPENAI_API_KEY", "api.openai.com", "/v1/responses", "authorization", "Bearer "),
        ("OPENROUTER_API_KEY", "openrouter.ai", "/api/v1/chat/completions", "authorization", "Bearer "),
        ("GEMINI_API_KEY", "generativelanguage.googleapis.com", "/v1beta/models/", "x-goog-api-key", ""),
    ];
    for (name, host, path, header, before) in providers {
        let value = format!("the-real-key-{}", uuid::Uuid::new_v4().simple());
        let vm = place.vm(place.options().secret(Secret::new(name, &value))).await;
        assert_eq!(work(&vm).await, format!("{host}, key from {name}, kept outside the VM"));
        let placeholder = sh(&vm, &format!("printenv {name}")).await;
        assert!(!placeholder.is_empty() && placeholder != value, "{name}: {placeholder}");
        let asked = place.provider.asked();
        let asked: Vec<_> = asked.iter().filter(|asked| asked.header("host") == host).collect();
        assert!(asked.len() >= 2, "{name}: a turn with a tool has two requests, not {}", asked.len());
        for request in asked {
            assert!(request.uri.path().starts_with(path), "{name}: {}", request.uri);
            assert_eq!(request.header(header), format!("{before}{value}"), "{name}");
            assert!(!format!("{request:?}").contains(&placeholder), "{request:?}");
        }
        vm.dispose().await.unwrap();
    }
}

#[tokio::test]
async fn agents_that_speak_acp_reach_their_provider_by_a_key_that_they_never_have() {
    let agents = [
        ("claude", "ANTHROPIC_API_KEY", "api.anthropic.com", "/v1/messages", "x-api-key", ""),
        ("codex", "OPENAI_API_KEY", "api.openai.com", "/v1/responses", "authorization", "Bearer "),
    ];
    let Some(place) = Place::with_agents(&agents.map(|agent| agent.0)).await else { return };
    for (agent, name, host, path, header, before) in agents {
        let value = format!("the-real-key-{}", uuid::Uuid::new_v4().simple());
        let vm = place.vm(place.options().secret(Secret::new(name, &value))).await;
        let session = vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll).await.unwrap();
        let reason = format!("{host}, key from {name}, kept outside the VM");
        assert_eq!((session.model(), session.model_reason()), (ModelKind::Provider, reason.as_str()));
        let reply = within("the turn", session.prompt("demo:say It works.")).await.unwrap();
        assert!(reply.text.contains("[demo model] It works."), "{agent}: {}", reply.text);
        let asked = place.provider.asked();
        let mut asked = asked.iter().filter(|asked| asked.header("host") == host);
        let turn = asked.find(|asked| asked.uri.path().starts_with(path));
        let turn = turn.unwrap_or_else(|| panic!("{agent}: {:?}", place.provider.asked()));
        assert_eq!(turn.header(header), format!("{before}{value}"), "{agent}");
        vm.dispose().await.unwrap();
    }
}

#[tokio::test]
async fn the_providers_own_clients_are_pointed_to_the_gateway() {
    let Some(place) = Place::new().await else { return };
    let value = "sk-ant-api03-real-0123456789abcdefghij";
    let vm = place.vm(place.options().secret(Secret::new("ANTHROPIC_API_KEY", value))).await;
    let request = r#"curl -sS "$ANTHROPIC_BASE_URL/v1/messages" -H "x-api-key: $ANTHROPIC_API_KEY" \
        -H 'anthropic-version: 2023-06-01' -H 'content-type: application/json' \
        -d '{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"hello"}]}'"#;
    let answer = sh(&vm, request).await;
    assert!(answer.contains("[demo model]"), "{answer}");
    let placeholder = sh(&vm, "printenv ANTHROPIC_API_KEY").await;
    assert!(placeholder.starts_with("sk-ant-api03-") && placeholder.len() == value.len(), "{placeholder}");
    assert_eq!(place.provider.asked()[0].header("x-api-key"), value);
    // What isn't behind the gateway is said.
    let unknown = sh(&vm, "curl -sS http://10.0.2.4/openai/v1/models").await;
    assert!(unknown.contains("there are: anthropic"), "{unknown}");
}

#[tokio::test]
async fn a_base_url_of_the_environment_is_where_the_key_goes() {
    let Some(place) = Place::new().await else { return };
    let names = place.lab.names_at("more-names", "198.51.100.54");
    names.set("models.internal.example", Entry::addresses(&["10.9.0.5"]));
    place.lab.host("internal", &["10.9.0.5"]);
    let web = Web::serve(place.lab.tcp("internal", "10.9.0.5:8080"), Site::Text("the company's own"));
    let options = place
        .options()
        .dns_server("198.51.100.54:53".parse().unwrap())
        .env("OPENAI_BASE_URL", "http://models.internal.example:8080/llm/v1")
        .secret(Secret::new("OPENAI_API_KEY", "the-company's-own-key"));
    let vm = place.vm(options).await;
    assert_eq!(sh(&vm, "printenv OPENAI_BASE_URL").await, "http://10.0.2.4/openai");
    assert_eq!(sh(&vm, "curl -sS $OPENAI_BASE_URL/models").await, "the company's own");
    let asked = web.asked();
    assert_eq!(asked[0].target, "/llm/v1/models");
    assert_eq!(asked[0].header("authorization"), "Bearer the-company's-own-key");
}

#[tokio::test]
async fn a_demo_session_stays_one_and_a_key_of_the_session_is_its_own() {
    let Some(place) = Place::new().await else { return };
    let secret = Secret::new("ANTHROPIC_API_KEY", "sk-ant-api03-real-0123456789");
    let vm = place.vm(place.options().secret(secret)).await;
    let session = vm.create_session("pi").model(ModelChoice::Demo).await.unwrap();
    assert_eq!(session.model(), ModelKind::Demo);
    session.close().await.unwrap();
    let session = vm.create_session("pi").env("ANTHROPIC_API_KEY", "sk-ant-of-the-session").await.unwrap();
    assert!(session.model_reason().contains("session's environment"), "{}", session.model_reason());
    session.close().await.unwrap();
    assert!(place.provider.asked().is_empty());
}

#[tokio::test]
async fn an_error_of_the_provider_arrives_without_the_key_that_it_echoes() {
    let Some(place) = Place::new().await else { return };
    let names = place.lab.names_at("more-names", "198.51.100.54");
    names.set("echo.example", Entry::addresses(&["198.51.100.90"]));
    place.lab.host("echo", &["198.51.100.90"]);
    Web::serve(
        place.lab.tcp("echo", "198.51.100.90:80"),
        Site::Text("wrong key: sk-echoed-0123456789abcdef"),
    );
    let options = place
        .options()
        .dns_server("198.51.100.54:53".parse().unwrap())
        .env("OPENAI_BASE_URL", "http://echo.example")
        .secret(Secret::new("OPENAI_API_KEY", "sk-echoed-0123456789abcdef"));
    let vm = place.vm(options).await;
    let answer = sh(&vm, "curl -sS $OPENAI_BASE_URL/models").await;
    assert!(answer.starts_with("wrong key: sk-****"), "{answer}");
}
