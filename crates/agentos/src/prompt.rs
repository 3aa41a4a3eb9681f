//! Prompts: what a user asks of an agent, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use agentos_proto::v1;
use serde_json::{Value, json};

use crate::builder::into_future;
use crate::convert;
use crate::convert::error::CallError;
use crate::error::Error;
use crate::session::{JsonRpcResponse, ModelKind, SessionData};
use crate::vm::AgentOs;

/// What to ask: text, with images and resources where the agent takes them. A string converts into it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    blocks: Vec<Value>,
}

impl Prompt {
    /// This text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::default().and_text(text)
    }

    /// Adds text.
    #[must_use]
    pub fn and_text(mut self, text: impl Into<String>) -> Self {
        self.blocks.push(json!({ "type": "text", "text": text.into() }));
        self
    }

    /// Adds an image of this MIME type.
    #[must_use]
    pub fn image(mut self, mime_type: impl Into<String>, data: impl AsRef<[u8]>) -> Self {
        let data = base64(data.as_ref());
        self.blocks.push(json!({ "type": "image", "mimeType": mime_type.into(), "data": data }));
        self
    }

    /// Adds a text resource, such as a file, with its content.
    #[must_use]
    pub fn resource(mut self, uri: impl Into<String>, text: impl Into<String>) -> Self {
        self.blocks
            .push(json!({ "type": "resource", "resource": { "uri": uri.into(), "text": text.into() } }));
        self
    }

    /// Adds a pointer to a resource, which the agent may fetch itself.
    #[must_use]
    pub fn resource_link(mut self, uri: impl Into<String>, name: impl Into<String>) -> Self {
        self.blocks.push(json!({ "type": "resource_link", "uri": uri.into(), "name": name.into() }));
        self
    }

    /// Adds an ACP content block as it is.
    #[must_use]
    pub fn block(mut self, block: Value) -> Self {
        self.blocks.push(block);
        self
    }

    pub(crate) fn into_json(self) -> String {
        Value::Array(self.blocks).to_string()
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::text(text.as_str())
    }
}

/// RFC 4648's alphabet, padded.
fn base64(data: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(data.len().div_ceil(3) * 4);
    for group in data.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            if position <= group.len() {
                let index = (bits >> (18 - 6 * position)) & 0x3f;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// What the agent answered.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PromptResult {
    /// Its whole text of this turn.
    pub text: String,
    /// Why the turn ended: `end_turn`, `cancelled`, `max_tokens`...
    pub stop_reason: String,
    /// The model that answered.
    pub model: ModelKind,
    /// The agent's response as it sent it.
    pub response: JsonRpcResponse,
    /// Requests for permission that were rejected because nobody answered them.
    pub rejected_permissions: u32,
}

/// How long after the end of a prompt's time its answer may come: the agent gets two seconds to stop.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// A prompt to send; await it for the [`PromptResult`]. Dropping the future cancels the turn.
///
/// Fails with `Busy` while another prompt of the session runs, with the agent's or its model's error text
/// (`AgentFailed`, `Model`), with `EmptyTurn`, and with `Timeout`.
pub struct Prompting {
    vm: AgentOs,
    session: Arc<SessionData>,
    prompt: Prompt,
    idle_timeout: Option<Duration>,
    timeout: Option<Duration>,
}

impl Prompting {
    pub(crate) fn new(vm: AgentOs, session: Arc<SessionData>, prompt: Prompt) -> Self {
        Self { vm, session, prompt, idle_timeout: None, timeout: None }
    }

    /// Ends the turn after this time without a message and without a running tool call; 10 minutes by default.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Cancels the turn after this time and fails with `Timeout`, whose text has what the agent has said of the
    /// reason; none by default. The agent gets up to two seconds to stop.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    async fn run(self) -> Result<PromptResult, Error> {
        let Self { vm, session, prompt, idle_timeout, timeout } = self;
        let request = v1::PromptRequest {
            session_id: session.id.clone(),
            content_json: prompt.into_json(),
            idle_timeout_ms: idle_timeout.map(convert::millis),
            timeout_ms: timeout.map(convert::millis),
        };
        let mut client = vm.live()?.session();
        let call = client.prompt(request);
        let reply = match timeout {
            None => call.await,
            // The sidecar knows what the agent has said of the reason. One that doesn't answer keeps nobody waiting:
            // the call is dropped, and that cancels the turn.
            Some(limit) => tokio::time::timeout(limit.saturating_add(ANSWER_GRACE), call)
                .await
                .map_err(|_| CallError::PromptTimeout { session_id: session.id.clone(), limit })?,
        };
        let reply = reply.map_err(|status| vm.failed(status))?;
        let reply = reply.into_inner();
        session.renew(&reply.session_json);
        Ok(convert::session::prompt_result(reply)?)
    }
}

into_future!(Prompting => PromptResult);

impl std::fmt::Debug for Prompting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prompting")
            .field("session", &self.session.id)
            .field("prompt", &self.prompt)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_rfc_s_test_vectors() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn a_prompt_is_an_array_of_acp_content_blocks() {
        let json = Prompt::from("look").image("image/png", [1]).resource_link("file:///a", "a").into_json();
        let blocks: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(blocks[0], json!({ "type": "text", "text": "look" }));
        assert_eq!(blocks[1], json!({ "type": "image", "mimeType": "image/png", "data": "AQ==" }));
        assert_eq!(blocks[2]["type"], "resource_link");
    }
}
