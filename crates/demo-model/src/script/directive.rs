//! `demo:` lines: exact orders to the script, for tests and demonstrations.
//!
//! A prompt with at least one line that begins with `demo:` is read by these rules alone; its other lines are ignored.
//! The crate's documentation lists the directives.

use std::time::Duration;

use serde_json::Value;

use super::{End, Plan, Step};

/// An answer never takes longer than this, however it is asked for.
const LONGEST_SPREAD: Duration = Duration::from_secs(600);

/// Why a directive can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("there is no directive demo:{0}")]
    Unknown(String),
    #[error("demo:{0} needs {1}")]
    Needs(&'static str, &'static str),
}

/// The plan the directives of a prompt make; `None` where it has none.
pub(super) fn plan(prompt: &str) -> Option<Result<Plan, Malformed>> {
    is_in(prompt).then(|| read(prompt))
}

/// Whether there is a directive in this text.
pub(super) fn is_in(text: &str) -> bool {
    text.lines().any(|line| line.trim_start().starts_with("demo:"))
}

fn read(prompt: &str) -> Result<Plan, Malformed> {
    let mut plan = Plan::default();
    let mut rest = prompt;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = after;
        let Some(directive) = line.trim_start().strip_prefix("demo:") else { continue };
        let directive = directive.trim_end_matches('\r');
        let (name, argument) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
        rest = one(&mut plan, name, argument.trim(), rest)?;
    }
    Ok(plan)
}

/// Adds one directive to the plan and gives what is left of the prompt after it.
fn one<'a>(plan: &mut Plan, name: &str, argument: &str, rest: &'a str) -> Result<&'a str, Malformed> {
    match name {
        "run" => {
            let (command, rest) = here_document(argument, rest).unwrap_or((argument.to_owned(), rest));
            let command = non_empty(&command).ok_or(Malformed::Needs("run", "a command"))?;
            plan.steps.push(Step::Run { command: command.to_owned() });
            return Ok(rest);
        }
        "write" => return write(plan, argument, rest),
        "tool" => return tool(plan, argument, rest),
        "say" => {
            let (text, rest) = here_document(argument, rest).unwrap_or((argument.to_owned(), rest));
            plan.say.push(text);
            return Ok(rest);
        }
        "ask" => plan.ask = true,
        "slow" => {
            let ms = argument.parse().map_err(|_| Malformed::Needs("slow", "a number of milliseconds"))?;
            plan.spread = Some(Duration::from_millis(ms).min(LONGEST_SPREAD));
        }
        "times" => {
            let times = argument.parse().ok().filter(|times| *times > 0);
            plan.times = Some(times.ok_or(Malformed::Needs("times", "a number of failures"))?);
        }
        "hang" => plan.end = End::Hang,
        "drop" => plan.end = End::Drop,
        "status" => {
            let (code, message) = argument.split_once(char::is_whitespace).unwrap_or((argument, ""));
            let code = code.parse().ok().filter(|code| (400..=599).contains(code));
            let code = code.ok_or(Malformed::Needs("status", "a number from 400 to 599"))?;
            plan.end = End::Status { code, message: message.trim().to_owned() };
        }
        _ => return Err(Malformed::Unknown(name.chars().take(40).collect())),
    }
    Ok(rest)
}

/// `demo:write FILE <<END`, its lines and `END`; or `demo:write FILE <<TEXT` with the text on the same line.
fn write<'a>(plan: &mut Plan, argument: &str, rest: &'a str) -> Result<&'a str, Malformed> {
    let needs = Malformed::Needs("write", "a file and a text: demo:write FILE <<TEXT");
    let Some((file, text)) = argument.split_once("<<") else { return Err(needs) };
    let file = file.trim();
    let path = ['"', '\'', '`']
        .iter()
        .find_map(|mark| file.strip_prefix(*mark).and_then(|f| f.strip_suffix(*mark)))
        .unwrap_or(file);
    let path = non_empty(path).ok_or(needs)?.to_owned();
    let (content, rest) = here_document(&format!("<<{text}"), rest).unwrap_or((text.to_owned(), rest));
    plan.steps.push(Step::Write { path, content });
    Ok(rest)
}

/// `demo:tool NAME {json}`; the JSON may go on over several lines.
fn tool<'a>(plan: &mut Plan, argument: &str, rest: &'a str) -> Result<&'a str, Malformed> {
    let needs = Malformed::Needs("tool", "a name and a JSON object: demo:tool NAME {\"key\": 1}");
    let (name, json) = argument.split_once(char::is_whitespace).unwrap_or((argument, "{}"));
    let name = non_empty(name).ok_or(needs.clone())?.to_owned();
    let mut text = json.trim().to_owned();
    let mut rest = rest;
    loop {
        match serde_json::from_str::<Value>(&text) {
            Ok(arguments @ Value::Object(_)) => {
                plan.steps.push(Step::Tool { name, arguments });
                return Ok(rest);
            }
            Err(error) if error.is_eof() && !rest.is_empty() => {
                let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
                text.push('\n');
                text.push_str(line);
                rest = after;
            }
            _ => return Err(needs),
        }
    }
}

/// The lines up to the word after `<<`, where a later line is that word.
fn here_document<'a>(argument: &str, rest: &'a str) -> Option<(String, &'a str)> {
    let word = argument.strip_prefix("<<")?.trim();
    if word.is_empty() {
        return None;
    }
    let mut at = 0;
    while at < rest.len() {
        let end = rest[at..].find('\n').map_or(rest.len(), |i| at + i);
        if rest[at..end].trim_end_matches('\r') == word {
            return Some((rest[..at].to_owned(), rest.get(end + 1..).unwrap_or_default()));
        }
        at = end + 1;
    }
    None
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn steps(prompt: &str) -> Vec<Step> {
        plan(prompt).expect("has directives").expect("well formed").steps
    }

    #[test]
    fn steps_come_in_the_order_of_the_lines() {
        let prompt = "Some words.\ndemo:write a b.txt <<one line\n  demo:run ls -la | wc -l\ndemo:write c <<END\nx\n\ny\nEND\ndemo:tool t {\n \"q\": [1,\n2]}\ndemo:run true";
        assert_eq!(
            steps(prompt),
            vec![
                Step::Write { path: "a b.txt".into(), content: "one line".into() },
                Step::Run { command: "ls -la | wc -l".into() },
                Step::Write { path: "c".into(), content: "x\n\ny\n".into() },
                Step::Tool { name: "t".into(), arguments: json!({"q": [1, 2]}) },
                Step::Run { command: "true".into() },
            ]
        );
    }

    #[test]
    fn ends_and_texts_are_read() {
        let plan = plan("demo:say a\ndemo:slow 1500\ndemo:status 429 too many\ndemo:ask").unwrap().unwrap();
        assert_eq!(plan.say, ["a"]);
        assert_eq!(plan.spread, Some(Duration::from_millis(1500)));
        assert_eq!(plan.end, End::Status { code: 429, message: "too many".into() });
        assert!(plan.ask);
    }

    #[test]
    fn malformed_directives_name_what_they_need() {
        for prompt in [
            "demo:nothing",
            "demo:slow x",
            "demo:status 200",
            "demo:run",
            "demo:write f",
            "demo:tool t {",
            "demo:times 0",
        ] {
            assert!(plan(prompt).unwrap().is_err(), "{prompt}");
        }
        assert!(plan("no directive, not even this demo:run x").is_none());
    }
}
