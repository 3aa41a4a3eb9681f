//! Recordings of real agents: what they said is what is kept, all of it, as it was.

use std::sync::Arc;

use agentos_agents::Session;
use agentos_agents::permission::PermissionReply;
use agentos_agents::session::{Prompt, PromptError, PromptReply};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::fake_acp::{RECORDINGS, messages, recording};
use crate::place::{Place, events, soon};

type Running = JoinHandle<Result<PromptReply, PromptError>>;

/// Does what the recorded client did.
struct Client {
    session: Session,
    running: Option<(Value, Running)>,
    replies: Vec<(Value, Result<PromptReply, PromptError>)>,
}

impl Client {
    /// Waits for the prompt that runs.
    async fn settle(&mut self) {
        if let Some((id, running)) = self.running.take() {
            self.replies.push((id, soon("the turn", running).await.unwrap()));
        }
    }

    async fn act(&mut self, message: &Value) {
        match message["method"].as_str() {
            // Said by the session itself.
            Some("initialize") => {}
            Some("session/new") if message["id"] == 1 => {}
            Some("session/prompt") => {
                self.settle().await;
                let content = message["params"]["prompt"].as_array().unwrap().clone();
                let (session, prompt) = (self.session.clone(), Prompt { content, ..Prompt::default() });
                let running = tokio::spawn(async move { session.prompt(prompt).await });
                self.running = Some((message["id"].clone(), running));
            }
            Some("session/cancel") => {
                let is_over = |running: &(Value, Running)| running.1.is_finished();
                while self.running.as_ref().is_some_and(|running| !is_over(running))
                    && !self.session.cancel().await
                {
                    tokio::task::yield_now().await;
                }
            }
            Some(method) => {
                self.settle().await;
                let answer =
                    soon(method, self.session.raw_send(method, message["params"].clone())).await.unwrap();
                assert!(answer["error"].is_null(), "{method}: {answer}");
            }
            // An answer to the agent is the session's, or that of whoever reads its requests.
            None => {}
        }
    }
}

/// Answers requests for permission as they were answered in the recording: by the option that was chosen.
fn answering(session: &Session, recorded: Arc<Vec<(bool, Value)>>) -> JoinHandle<()> {
    let session = session.clone();
    tokio::spawn(async move {
        let mut requests = session.permission_requests();
        let mut chosen = recorded
            .iter()
            .filter(|(from_client, message)| *from_client && message["result"]["outcome"].is_object())
            .map(|(_, message)| message["result"]["outcome"]["optionId"].clone());
        loop {
            let event: Value = serde_json::from_str(&requests.next().await.notification).unwrap();
            let option = chosen.next().unwrap();
            let options = event["params"]["params"]["options"].as_array().unwrap();
            let kind = &options.iter().find(|known| known["optionId"] == option).unwrap()["kind"];
            let reply = if kind == "allow_once" { PermissionReply::Once } else { PermissionReply::Reject };
            session
                .respond_permission(event["params"]["permissionId"].as_str().unwrap(), reply)
                .await
                .unwrap();
        }
    })
}

async fn replay(name: &str) {
    let recorded = Arc::new(messages(name));
    let place = Place::new();
    let path = recording(name);
    let (session, _agent) = place.ready(&["--replay", path.to_str().unwrap()]).await;
    let answering = answering(&session, Arc::clone(&recorded));
    let mut client = Client { session: session.clone(), running: None, replies: Vec::new() };
    for (_, message) in recorded.iter().filter(|(from_client, _)| *from_client) {
        client.act(message).await;
    }
    client.settle().await;
    answering.abort();

    let said = recorded.iter().filter(|(from_client, message)| {
        !from_client && message["method"].is_string() && message.get("id").is_none()
    });
    let said: Vec<&Value> = said.map(|(_, message)| message).collect();
    let all_said = async {
        let mut live = session.events(1);
        let mut kept = 0;
        while kept < said.len() {
            let event = live.next().await.unwrap().unwrap();
            kept += usize::from(!event.notification.contains("\"method\":\"_agentos/"));
        }
    };
    soon(name, all_said).await;
    let kept = events(&place, &session).await;
    let kept: Vec<&Value> =
        kept.iter().filter(|event| !event["method"].as_str().unwrap().starts_with("_agentos/")).collect();
    assert_eq!(kept.len(), said.len(), "{name}");
    for (kept, said) in kept.iter().zip(&said) {
        assert_eq!(kept, said, "{name}");
    }

    let answered = |id: &Value| {
        let mut answers = recorded.iter().filter(|(from_client, message)| {
            !from_client && message["id"] == *id && message.get("method").is_none()
        });
        answers.next().unwrap().1.clone()
    };
    let session_of = |id: &Value| {
        let asked = recorded.iter().find(|(from_client, message)| *from_client && message["id"] == *id);
        asked.unwrap().1["params"]["sessionId"].clone()
    };
    let first = recorded.iter().find(|(_, message)| message["result"]["sessionId"].is_string()).unwrap();
    let first = first.1["result"]["sessionId"].clone();
    for (id, reply) in &client.replies {
        let answer = answered(id);
        match reply {
            // Prompts of a later session of the recording: what is said there is not this one's.
            _ if session_of(id) != first => {}
            Ok(reply) if reply.stop_reason == "cancelled" => {}
            Ok(reply) => {
                assert_eq!(answer["result"]["stopReason"], reply.stop_reason.as_str(), "{name} {id}")
            }
            Err(error) => assert!(answer["error"].is_object(), "{name} {id}: {error}"),
        }
    }
    let modes = session.state().session()["modes"]["availableModes"].as_array().map_or(0, Vec::len);
    let offered = recorded.iter().find(|(_, message)| message["result"]["sessionId"].is_string()).unwrap();
    let offered = offered.1["result"]["modes"]["availableModes"].as_array().map_or(0, Vec::len);
    assert_eq!(modes, offered, "{name}");
}

#[tokio::test]
async fn what_real_agents_said_is_kept_as_they_said_it() {
    for name in RECORDINGS {
        replay(name).await;
    }
}
