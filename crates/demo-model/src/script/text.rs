//! What the script says. Every text begins with the mark, so that nobody takes it for a model's words.

use super::directive::Malformed;
use super::tools::Unfit;
use super::{MARK, Plan, first_prompt};
use crate::conversation::{Conversation, ToolResult};

/// Of each tool result the final text quotes at most this much.
const QUOTED_CHARS: usize = 4_000;

/// Of the first message of a conversation `demo:ask` quotes at most this much.
const ASKED_CHARS: usize = 1_000;

const CAN: &str = "\
I can write a file and run a command with your agent's own tools. Try:
  Write a hello world in TypeScript to hello.ts
  Write \"any text\" to notes.txt
  Create a file notes.txt containing any text
  Run the command `ls -la`
  Write a hello world in Python to hello.py and then run it";

const KEY: &str = "\
For a real model set ANTHROPIC_API_KEY (or OPENAI_API_KEY, GEMINI_API_KEY, OPENROUTER_API_KEY: the one your agent \
looks for) and choose it with `--model auto` or `--model provider`.";

pub(super) fn help() -> String {
    format!(
        "{MARK} I am the offline script that comes with agentOS, not a language model, and I don't understand this \
         prompt.\n\n{CAN}\n\n{KEY}"
    )
}

pub(super) fn no_prompt() -> String {
    format!("{MARK} This conversation has no user message. I am an offline script, not a language model.")
}

pub(super) fn malformed(malformed: &Malformed) -> String {
    format!(
        "{MARK} {malformed}. The directives are demo:run, demo:write, demo:tool, demo:say, demo:ask, demo:slow, \
         demo:hang, demo:drop, demo:status and demo:times."
    )
}

pub(super) fn unfit(unfit: Unfit, results: &[&ToolResult]) -> String {
    let mut text = format!("{MARK} I can't do that: {unfit}.");
    quote_results(&mut text, results);
    text
}

pub(super) fn status(code: u16, message: &str) -> String {
    let message = if message.is_empty() { "this failure was ordered by demo:status" } else { message };
    format!("{MARK} {code}: {message}")
}

/// Titles, summaries and plain chats.
pub(super) fn without_tools(conversation: &Conversation, prompt: &str) -> String {
    let asks_for = |word: &str| {
        let said = |text: &str| text.to_ascii_lowercase().contains(word);
        said(&conversation.system) || said(prompt)
    };
    if asks_for("title") || asks_for("summar") || prompt.starts_with("[SUGGESTION MODE") {
        let line = prompt.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return format!("{MARK} {}", clipped(line.trim(), 40));
    }
    format!("{MARK} I am an offline script, not a language model; without tools I can only say so. {KEY}")
}

/// The text that ends a plan: what was to be said, and what the tools answered.
pub(super) fn last(plan: &Plan, conversation: &Conversation, results: &[&ToolResult]) -> String {
    let mut text = MARK.to_owned();
    for said in &plan.say {
        text.push(' ');
        text.push_str(said);
    }
    if plan.ask {
        let first = first_prompt(conversation).unwrap_or_default();
        text.push_str(" The first message of this conversation was: ");
        text.push_str(&clipped(&first, ASKED_CHARS));
    }
    if results.is_empty() && plan.say.is_empty() && !plan.ask {
        match plan.spread {
            Some(spread) => text.push_str(&slow_text(spread.as_millis())),
            None => text.push_str(" This answer was ordered by a demo: directive and says nothing else."),
        }
    }
    quote_results(&mut text, results);
    text
}

/// Long enough to come in many pieces.
fn slow_text(ms: u128) -> String {
    const LINES: usize = 12;
    let mut text = format!(" This answer takes {ms} ms.");
    for line in 1..=LINES {
        text.push_str(&format!("\nLine {line} of {LINES} of an answer that comes piece by piece."));
    }
    text
}

fn quote_results(text: &mut String, results: &[&ToolResult]) {
    for (i, result) in results.iter().enumerate() {
        let verb = if result.failed { "failed and answered" } else { "answered" };
        let which = if results.len() == 1 { "The tool".to_owned() } else { format!("Tool call {}", i + 1) };
        let shown = clipped(result.text.trim_end(), QUOTED_CHARS);
        let gap = if i == 0 { " " } else { "\n\n" };
        if shown.is_empty() {
            text.push_str(&format!("{gap}{which} {verb} nothing."));
        } else {
            text.push_str(&format!("{gap}{which} {verb}:\n{shown}"));
        }
    }
}

/// A text that is too long: of a short limit the beginning, else the beginning and the end.
fn clipped(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    if most < 100 {
        return text.chars().take(most).chain("...".chars()).collect();
    }
    let head: String = text.chars().take(most / 2).collect();
    let tail: String = text.chars().skip(count - most / 2).collect();
    format!("{head}\n[... {} characters ...]\n{tail}", count - most / 2 * 2)
}
