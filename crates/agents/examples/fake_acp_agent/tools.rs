//! What the agent does, or says it does.

use std::process::Command;

use serde_json::{Value, json};

use crate::processes;
use crate::script::Step;
use crate::turn::{Done, Next, Turn};

pub(crate) fn perform(turn: &mut Turn, step: &Step) -> Option<Done> {
    Some(match step.name.as_str() {
        "tool" => pretend(turn, step),
        "write" => {
            let (path, text) = step.split();
            let call = turn.begin_call("edit", path);
            let done = act("edit", path, &format!("{text}\n"));
            turn.end_call(&call, &done);
            Ok(Next::Step)
        }
        "run" => {
            let call = turn.begin_call("execute", &step.rest);
            let done = act("execute", &step.rest, "");
            turn.end_call(&call, &done);
            turn.say(&done.unwrap_or_else(|reason| reason));
            Ok(Next::Step)
        }
        "daemon" => daemon(turn, step),
        _ => return None,
    })
}

fn pretend(turn: &mut Turn, step: &Step) -> Done {
    let (kind, rest) = step.split();
    let (subject, end) = match rest.rsplit_once(' ') {
        Some((subject, end @ ("fail" | "open"))) => (subject, end),
        _ => (rest, ""),
    };
    let call = turn.begin_call(kind, subject);
    match end {
        "open" => {}
        "fail" => turn.end_call(&call, &Err("it didn't work".to_owned())),
        _ => turn.end_call(&call, &Ok("done".to_owned())),
    }
    Ok(Next::Step)
}

fn daemon(turn: &mut Turn, step: &Step) -> Done {
    let hold = step.words().any(|word| word == "hold");
    let pid = processes::daemon(step.needed_size(0)?, hold)?;
    turn.say(&format!("{pid}\n"));
    Ok(Next::Step)
}

/// Really does what a tool of this kind does; says what came of it.
pub(crate) fn act(kind: &str, subject: &str, text: &str) -> Result<String, String> {
    match kind {
        "edit" => {
            let written = std::fs::write(subject, text).map(|()| "written".to_owned());
            written.map_err(|error| format!("{subject}: {error}"))
        }
        "execute" => {
            // The agent's own streams are its client's.
            let mut command = Command::new("/bin/sh");
            command.args(["-c", subject]).stdin(std::process::Stdio::null());
            let output = command.output().map_err(|error| error.to_string())?;
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            if output.status.success() { Ok(text) } else { Err(format!("{text}{}", output.status)) }
        }
        _ => Ok("done".to_owned()),
    }
}

impl Turn {
    /// Announces a call, gives its id.
    pub(crate) fn begin_call(&mut self, kind: &str, subject: &str) -> String {
        let (call, mut announced) = self.announce(kind, subject);
        announced["sessionUpdate"] = json!("tool_call");
        self.update(&announced);
        self.update(
            &json!({ "sessionUpdate": "tool_call_update", "toolCallId": call, "status": "in_progress" }),
        );
        call
    }

    /// A call as it is before it runs.
    pub(crate) fn announce(&mut self, kind: &str, subject: &str) -> (String, Value) {
        self.calls += 1;
        let request = self.request.as_ref().map(Value::to_string).unwrap_or_default();
        let call = format!("call-{request}-{}", self.calls);
        let is_path = subject.starts_with('/');
        let locations = if is_path { json!([{ "path": subject }]) } else { json!([]) };
        let input =
            if kind == "execute" { json!({ "command": subject }) } else { json!({ "path": subject }) };
        let announced = json!({
            "toolCallId": call, "title": format!("{kind} {subject}"), "kind": kind, "status": "pending",
            "locations": locations, "rawInput": input,
        });
        (call, announced)
    }

    pub(crate) fn end_call(&self, call: &str, outcome: &Result<String, String>) {
        let (status, text) = match outcome {
            Ok(text) => ("completed", text),
            Err(text) => ("failed", text),
        };
        self.update(&json!({
            "sessionUpdate": "tool_call_update", "toolCallId": call, "status": status,
            "content": [{ "type": "content", "content": { "type": "text", "text": text } }],
            "rawOutput": { "output": text },
        }));
    }
}
