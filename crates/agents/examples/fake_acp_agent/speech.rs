//! What the agent says.

use serde_json::{Value, json};

use crate::offers;
use crate::script::Step;
use crate::turn::{Done, Next, Turn, parsed};

pub(crate) fn perform(turn: &mut Turn, step: &Step) -> Option<Done> {
    let rest = step.rest.as_str();
    match step.name.as_str() {
        "say" => turn.say(&lines(rest)),
        "think" => turn.chunk("agent_thought_chunk", &lines(rest)),
        "user" => turn.chunk("user_message_chunk", &lines(rest)),
        "words" => rest.split_inclusive(' ').for_each(|word| turn.say(word)),
        "plan" => {
            let entry =
                |text: &str| json!({ "content": text.trim(), "priority": "medium", "status": "pending" });
            let entries: Vec<Value> = rest.split(',').map(entry).collect();
            turn.update(&json!({ "sessionUpdate": "plan", "entries": entries }));
        }
        "commands" => {
            let command = |name: &str| json!({ "name": name, "description": name, "input": null });
            let commands: Vec<Value> = rest.split_whitespace().map(command).collect();
            turn.update(
                &json!({ "sessionUpdate": "available_commands_update", "availableCommands": commands }),
            );
        }
        "title" => turn.update(&json!({ "sessionUpdate": "session_info_update", "title": rest })),
        "usage" => return Some(usage(turn, step)),
        "mode" => return Some(mode(turn, rest)),
        "option" => return Some(option(turn, step)),
        "update" | "update-for" | "notify" => return Some(verbatim(turn, step)),
        "meta" => turn.agent.wire.use_meta(),
        "echo" => return Some(echo(turn, step)),
        "recall" => {
            let recalled = turn.agent.known().sessions.get(&turn.session).map(crate::state::Session::recall);
            turn.say(&recalled.unwrap_or_default());
        }
        "log" => eprintln!("{rest}"),
        _ => return None,
    }
    Some(Ok(Next::Step))
}

/// Says what the script wrote.
fn verbatim(turn: &Turn, step: &Step) -> Done {
    let (first, rest) = step.split();
    match step.name.as_str() {
        "update" => turn.update(&parsed(&step.rest)?),
        "update-for" => turn.agent.wire.update(first, &parsed(rest)?),
        _ => turn.agent.wire.notify(first, &parsed(rest)?),
    }
    Ok(Next::Step)
}

fn usage(turn: &Turn, step: &Step) -> Done {
    let used = step.needed_size(0)?;
    turn.update(&json!({ "sessionUpdate": "usage_update", "used": used, "size": 200_000 }));
    Ok(Next::Step)
}

fn mode(turn: &Turn, mode: &str) -> Done {
    offers::change(&turn.agent, &turn.session, "mode", mode)?;
    turn.update(&json!({ "sessionUpdate": "current_mode_update", "currentModeId": mode }));
    Ok(Next::Step)
}

fn option(turn: &Turn, step: &Step) -> Done {
    let (option, value) = step.split();
    let options = offers::change(&turn.agent, &turn.session, option, value)?;
    turn.update(&json!({ "sessionUpdate": "config_option_update", "configOptions": options }));
    Ok(Next::Step)
}

/// Says what the agent knows of its client and itself.
fn echo(turn: &mut Turn, step: &Step) -> Done {
    let (what, name) = step.split();
    let known = turn.agent.known();
    let session = known.sessions.get(&turn.session);
    let value = match what {
        "initialize" => known.initialize.clone(),
        "client" => known.initialize["clientCapabilities"].clone(),
        "session" => session.map(|session| session.opened.clone()).unwrap_or_default(),
        "prompt" => session.map(|session| session.prompt.clone()).unwrap_or_default(),
        "received" => json!(known.received),
        "answers" => json!(known.answers),
        "answered" => known.answers.iter().map(|answer| answer["id"].clone()).collect(),
        "argv" => std::env::args().collect(),
        "pid" => json!(std::process::id()),
        "cwd" => json!(std::env::current_dir().ok()),
        "env" => json!(std::env::var(name).ok()),
        other => return Err(format!("nothing to echo is called {other}")),
    };
    drop(known);
    turn.say(&format!("{value}\n"));
    Ok(Next::Step)
}

/// `\n` in a script is a line's end.
fn lines(text: &str) -> String {
    text.replace("\\n", "\n")
}

impl Turn {
    pub(crate) fn update(&self, update: &Value) {
        self.agent.wire.update(&self.session, update);
    }

    pub(crate) fn chunk(&self, kind: &str, text: &str) {
        self.update(&json!({ "sessionUpdate": kind, "content": { "type": "text", "text": text } }));
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.said.push_str(text);
        self.chunk("agent_message_chunk", text);
    }
}
