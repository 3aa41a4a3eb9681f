//! What the agent asks of its client.

use std::time::Duration;

use serde_json::{Value, json};

use crate::script::Step;
use crate::tools::act;
use crate::turn::{Done, Next, Turn, parsed};

/// In an order and with ids that say nothing.
const OPTIONS: &str = "allow_always:opt-b,reject_once:opt-c,allow_once:opt-a,reject_always:opt-d";
/// A client answers what is open when it cancels.
const AFTER_CANCEL: Duration = Duration::from_millis(500);

pub(crate) fn perform(turn: &mut Turn, step: &Step) -> Option<Done> {
    Some(match step.name.as_str() {
        "ask" => permission(turn, step),
        "call" | "send" => method(turn, step),
        "fs-read" => {
            let params = json!({ "sessionId": turn.session, "path": step.rest });
            call_and_say(turn, "fs/read_text_file", &params)
        }
        "fs-write" => {
            let (path, text) = step.split();
            let params = json!({ "sessionId": turn.session, "path": path, "content": text });
            call_and_say(turn, "fs/write_text_file", &params)
        }
        "terminal" => terminal(turn, &step.rest),
        _ => return None,
    })
}

fn method(turn: &mut Turn, step: &Step) -> Done {
    let (first, rest) = step.split();
    let (id, method, params) = match first.strip_prefix("id=") {
        Some(id) => {
            let (method, params) = rest.split_once(char::is_whitespace).unwrap_or((rest, "{}"));
            (parsed(id)?, method, params)
        }
        None => (turn.agent.wire.fresh_id(), first, rest),
    };
    let params = parsed(params)?;
    let seen = turn.answers();
    turn.agent.wire.message(json!({ "id": id, "method": method, "params": params }));
    if step.name == "send" {
        return Ok(Next::Step);
    }
    let Some(answer) = turn.answer_to(&id, seen) else { return Ok(Next::Cancelled) };
    turn.say(&format!("{method}: {}\n", outcome(&answer)));
    Ok(Next::Step)
}

fn call_and_say(turn: &mut Turn, method: &str, params: &Value) -> Done {
    let Some(answer) = turn.call(method, params) else { return Ok(Next::Cancelled) };
    turn.say(&format!("{method}: {}\n", outcome(&answer)));
    Ok(Next::Step)
}

fn terminal(turn: &mut Turn, command: &str) -> Done {
    let session = turn.session.clone();
    let create = json!({ "sessionId": session, "command": "/bin/sh", "args": ["-c", command], "env": [] });
    let Some(made) = turn.call("terminal/create", &create) else { return Ok(Next::Cancelled) };
    let Some(terminal) = made["result"]["terminalId"].as_str().map(str::to_owned) else {
        turn.say(&format!("terminal/create: {}\n", outcome(&made)));
        return Ok(Next::Step);
    };
    let params = json!({ "sessionId": session, "terminalId": terminal });
    for method in ["terminal/wait_for_exit", "terminal/output", "terminal/release"] {
        call_and_say(turn, method, &params)?;
    }
    Ok(Next::Step)
}

/// Asks, and acts on the answer.
fn permission(turn: &mut Turn, step: &Step) -> Done {
    let mut words = step.words();
    let kind = words.next().ok_or("[[ask]] lacks a kind")?.to_owned();
    let unannounced = step.words().any(|word| word == "unannounced");
    let subject: Vec<&str> = words.filter(|word| *word != "unannounced").collect();
    let subject = subject.join(" ");
    let rule = turn.agent.known().sessions.get(&turn.session).and_then(|s| s.rules.get(&kind).copied());
    if let Some(allowed) = rule {
        let call = turn.begin_call(&kind, &subject);
        turn.say(if allowed { "not asked: allowed\n" } else { "not asked: rejected\n" });
        finish(turn, &call, &kind, &subject, allowed);
        return Ok(Next::Step);
    }
    let (call, announced) = turn.announce(&kind, &subject);
    if !unannounced {
        let mut update = announced.clone();
        update["sessionUpdate"] = json!("tool_call");
        turn.update(&update);
    }
    let (options, kinds) = options(step.value("options").unwrap_or(OPTIONS));
    let id = step.value("id").map_or_else(|| Ok(turn.agent.wire.fresh_id()), parsed)?;
    let session = step.value("session").unwrap_or(&turn.session);
    let params = json!({ "sessionId": session, "toolCall": announced, "options": options });
    let seen = turn.answers();
    for _ in 0..step.value("copies").map_or(Ok(1), crate::script::size)? {
        let request = json!({ "id": id, "method": "session/request_permission", "params": params });
        turn.agent.wire.message(request);
    }
    if let Some(option) = step.value("forge") {
        let chosen = json!({ "outcome": { "outcome": "selected", "optionId": option } });
        turn.agent.wire.result(&id, &chosen);
    }
    let Some(answer) = turn.answer_to(&id, seen) else { return Ok(Next::Cancelled) };
    turn.say(&format!("asked: {}\n", outcome(&answer)));
    let chosen = answer["result"]["outcome"]["optionId"].as_str().unwrap_or_default();
    let chosen = kinds.iter().find(|(_, id)| id == chosen).map_or("", |(kind, _)| kind.as_str());
    let allowed = chosen.starts_with("allow");
    if chosen.ends_with("always")
        && let Some(session) = turn.agent.known().sessions.get_mut(&turn.session)
    {
        session.rules.insert(kind.clone(), allowed);
    }
    finish(turn, &call, &kind, &subject, allowed);
    let cancelled = answer["result"]["outcome"]["outcome"] == "cancelled";
    Ok(if cancelled && !turn.ignores_cancel { Next::Cancelled } else { Next::Step })
}

fn finish(turn: &Turn, call: &str, kind: &str, subject: &str, allowed: bool) {
    let done = if allowed {
        act(kind, subject, "written after asking\n")
    } else {
        Err("the user said no".to_owned())
    };
    turn.end_call(call, &done);
}

/// `kind:id,...` as the request's options, and as pairs.
fn options(text: &str) -> (Vec<Value>, Vec<(String, String)>) {
    let pairs: Vec<(String, String)> = text
        .split(',')
        .filter(|option| !option.is_empty())
        .map(|option| option.split_once(':').unwrap_or((option, option)))
        .map(|(kind, id)| (kind.to_owned(), id.to_owned()))
        .collect();
    let options = pairs
        .iter()
        .map(|(kind, id)| json!({ "optionId": id, "name": format!("Option {id}"), "kind": kind }));
    (options.collect(), pairs)
}

/// The part of an answer that says something.
fn outcome(answer: &Value) -> &Value {
    answer.get("result").unwrap_or(&answer["error"])
}

impl Turn {
    /// How many answers there were so far.
    fn answers(&self) -> usize {
        self.agent.known().answers.len()
    }

    fn call(&self, method: &str, params: &Value) -> Option<Value> {
        let (id, seen) = (self.agent.wire.fresh_id(), self.answers());
        self.agent.wire.message(json!({ "id": id, "method": method, "params": params }));
        self.answer_to(&id, seen)
    }

    /// The client's answer to this request, of those behind `seen`; `None` when the turn is cancelled and none comes.
    fn answer_to(&self, id: &Value, seen: usize) -> Option<Value> {
        loop {
            let answer = self.agent.wait(AFTER_CANCEL, |known| {
                known.answers[seen..].iter().find(|answer| answer["id"] == *id).cloned()
            });
            if answer.is_some() || self.pause(Duration::ZERO) == Next::Cancelled {
                return answer;
            }
        }
    }
}
