//! How agents tell of a model that fails, for which ACP has no word: each in its own way, beside the protocol's own.
//!
//! | agent | while it tries again | when it gives up |
//! |---|---|---|
//! | pi | a record `auto_retry_start` | the prompt's answer |
//! | pi behind pi-acp | its log | a notice of level `error`, sent by an extension of ours |
//! | Claude | a message of its SDK, which its data has it pass on | the prompt's answer |
//! | Codex | `_meta.codex.error` | the thread's status, and then a text |
//!
//! OpenCode and Gemini have their logs for the one and the prompt's answer for the other. Where nothing is recognized,
//! nothing is lost: the notification is kept as any other.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::message::Update;

/// What our extension of pi puts before the reason of a turn that has failed (`resources/agents/pi-cli.toml`). Other
/// extensions show notices of level `error`, too.
const FAILED: &str = "The model failed: ";

/// What of an update's `_meta` tells of trouble.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta<'a> {
    #[serde(borrow)]
    codex: Option<Codex<'a>>,
    #[serde(borrow)]
    pi_acp: Option<PiAcp<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Codex<'a> {
    #[serde(borrow)]
    thread_status: Option<ThreadStatus<'a>>,
    #[serde(borrow)]
    error: Option<CodexError<'a>>,
}

#[derive(Debug, Deserialize)]
struct ThreadStatus<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CodexError<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    additional_details: Option<Cow<'a, str>>,
}

#[derive(Debug, Deserialize)]
struct PiAcp<'a> {
    #[serde(borrow)]
    notify: Option<Notice<'a>>,
}

#[derive(Debug, Deserialize)]
struct Notice<'a> {
    #[serde(borrow)]
    level: Cow<'a, str>,
}

impl<'a> Meta<'a> {
    /// Anything of another shape tells of nothing.
    pub(super) fn read(meta: &'a RawValue) -> Option<Self> {
        serde_json::from_str(meta.get()).ok()
    }

    /// What an update of the session's information says beside its title.
    pub(super) fn of_session(&self) -> Option<Update> {
        let codex = self.codex.as_ref()?;
        if codex.thread_status.as_ref().is_some_and(|status| status.kind == "systemError") {
            return Some(Update::Failing);
        }
        let CodexError { message, additional_details } = codex.error.as_ref()?;
        let details = additional_details.as_ref().map(|details| format!(": {details}"));
        Some(Update::Trouble(format!("{message}{}", details.unwrap_or_default())))
    }

    /// Why the turn has failed, where this text of the agent says that.
    pub(super) fn failure(&self, text: &str) -> Option<String> {
        let notice = self.pi_acp.as_ref()?.notify.as_ref()?;
        let reason = text.trim_start().strip_prefix(FAILED)?;
        (notice.level == "error").then(|| reason.trim_end().to_owned())
    }
}

/// What a notification of an agent's own tells of trouble.
pub(super) fn of_notification(text: &str) -> Option<String> {
    let record: Record<'_> = serde_json::from_str(text).ok()?;
    match record.method.as_ref() {
        "_pi/auto_retry_start" => record.params.error_message.map(Cow::into_owned),
        "_claude/sdkMessage" => record.params.message?.retry(),
        _ => None,
    }
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Params<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params<'a> {
    #[serde(borrow)]
    error_message: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<SdkMessage<'a>>,
}

#[derive(Deserialize)]
struct SdkMessage<'a> {
    #[serde(borrow)]
    subtype: Option<Cow<'a, str>>,
    /// Of the answer; none where there was no answer.
    error_status: Option<u16>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
    attempt: Option<u64>,
    max_retries: Option<u64>,
}

impl SdkMessage<'_> {
    fn retry(&self) -> Option<String> {
        if self.subtype.as_deref() != Some("api_retry") {
            return None;
        }
        let status = self.error_status.map_or("no answer".to_owned(), |status| format!("status {status}"));
        let kind = self.error.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
        let attempt = match (self.attempt, self.max_retries) {
            (Some(attempt), Some(most)) => format!(", retry {attempt} of {most}"),
            _ => String::new(),
        };
        Some(format!("{status}{kind}{attempt}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::message::Notification;
    use super::*;

    fn update(update: Value) -> Update {
        let params = json!({ "sessionId": "s", "update": update });
        Notification::read(json!({ "method": "session/update", "params": params }).to_string()).update
    }

    fn codex(meta: Value) -> Update {
        update(json!({ "sessionUpdate": "session_info_update", "_meta": { "codex": meta } }))
    }

    #[test]
    fn codex_tells_of_retries_and_of_their_end() {
        let error = json!({ "message": "Reconnecting... 1/5", "additionalDetails": "high demand" });
        let told = Update::Trouble("Reconnecting... 1/5: high demand".to_owned());
        assert_eq!(codex(json!({ "error": error })), told);
        assert_eq!(codex(json!({ "threadStatus": { "type": "systemError" } })), Update::Failing);
        assert_eq!(codex(json!({ "threadStatus": { "type": "idle" } })), Update::Other);
    }

    #[test]
    fn only_our_own_notice_ends_a_turn_of_pi_acp() {
        let notice = |level: &str, text: &str| {
            update(json!({
                "sessionUpdate": "agent_message_chunk",
                "content": { "type": "text", "text": text },
                "_meta": { "piAcp": { "notify": { "level": level } } },
            }))
        };
        let text = "\nThe model failed: 400: no";
        assert_eq!(notice("error", text), Update::Failed("400: no".to_owned()));
        for (level, text) in [("info", text), ("error", "two lint errors")] {
            assert_eq!(notice(level, text), Update::Text(text.to_owned()));
        }
        let odd = json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": "hi" },
            "_meta": { "piAcp": 7, "codex": [] } });
        assert_eq!(update(odd), Update::Text("hi".to_owned()), "what nobody understands hides nothing");
    }

    #[test]
    fn notifications_of_pi_and_of_claude_tell_why_they_try_again() {
        let told = |method: &str, params: Value| {
            let text = json!({ "method": method, "params": params }).to_string();
            match Notification::read(text).update {
                Update::Trouble(reason) => Some(reason),
                other => {
                    assert_eq!(other, Update::Other);
                    None
                }
            }
        };
        let retry = json!({ "attempt": 1, "errorMessage": "500: no" });
        assert_eq!(told("_pi/auto_retry_start", retry.clone()).as_deref(), Some("500: no"));
        assert_eq!(told("_pi/auto_retry_end", retry), None);
        let message = |status: Value| {
            json!({ "message": {
                "type": "system", "subtype": "api_retry", "attempt": 2, "max_retries": 10,
                "error_status": status, "error": "rate_limit",
            } })
        };
        let claude = |status| told("_claude/sdkMessage", message(status));
        assert_eq!(claude(json!(429)).as_deref(), Some("status 429 (rate_limit), retry 2 of 10"));
        assert_eq!(claude(Value::Null).as_deref(), Some("no answer (rate_limit), retry 2 of 10"));
        assert_eq!(told("_claude/sdkMessage", json!({ "message": { "subtype": "init" } })), None);
    }
}
