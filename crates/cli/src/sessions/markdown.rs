//! A transcript as a Markdown text: headings are ours, and whatever came from a VM can't become one.
//!
//! ```text
//! ## Prompt            > quoted
//! ## Answer            > quoted, as it was streamed
//! ### Thought          > quoted
//! ### Tool: name       its input, output and changes, each fenced
//! ```
//! What people and agents said is Markdown itself and stays so, within a quotation: a fence or a comment that is not
//! closed ends with it. What tools took and gave stands in fences that are longer than any run of backticks in them.

use std::collections::VecDeque;
use std::fmt::Write;

use agentos::{SessionEvent, StoredSession};
use serde_json::Value;

use super::note::{Note, Notes};
use super::show::facts;
use crate::diff::diff;
use crate::terminal::{harmless, harmless_line};

/// Calls that wait for their end; the oldest is told unfinished when there are more.
const MAX_OPEN_CALLS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Markdown {
    notes: Notes,
    /// The heading whose quotation is open.
    quoting: Option<&'static str>,
    at_line_start: bool,
    calls: VecDeque<Call>,
}

/// A tool call, as far as it has been told.
#[derive(Debug, Default)]
struct Call {
    id: String,
    title: String,
    kind: String,
    status: String,
    input: Value,
    content: Value,
}

impl Markdown {
    /// The title and what is known of the session.
    pub(super) fn head(&self, session: &StoredSession) -> String {
        let title = session.title.as_deref().unwrap_or("Session");
        let mut out = format!("# {}\n\n", escaped(title));
        for (name, value) in facts(session) {
            // Writing to a String can't fail.
            let _ = writeln!(out, "- {name}: {}", escaped(&value));
        }
        out
    }

    /// What an event adds; nothing for many.
    pub(super) fn event(&mut self, event: &SessionEvent) -> String {
        self.notification(&event.notification)
    }

    fn notification(&mut self, notification: &Value) -> String {
        let mut out = String::new();
        if let Some(note) = self.notes.read(notification) {
            self.note(&mut out, &note);
            return out;
        }
        if notification["method"] != "session/update" {
            return out;
        }
        let update = &notification["params"]["update"];
        match update["sessionUpdate"].as_str().unwrap_or_default() {
            "agent_message_chunk" => self.quote(&mut out, "## Answer", &text_of(&update["content"])),
            "agent_thought_chunk" => self.quote(&mut out, "### Thought", &text_of(&update["content"])),
            "tool_call" | "tool_call_update" => self.tool(&mut out, update),
            "plan" => self.plan(&mut out, &update["entries"]),
            _ => {}
        }
        out
    }

    /// What is still open.
    pub(super) fn end(&mut self) -> String {
        let mut out = String::new();
        self.unquote(&mut out);
        while let Some(call) = self.calls.pop_front() {
            call.write(&mut out);
        }
        out
    }

    fn note(&mut self, out: &mut String, note: &Note) {
        if let Note::Prompt(text) = note {
            // Each is one of its own, also where two follow each other.
            out.push_str(&self.end());
            self.quote(out, "## Prompt", text);
            self.unquote(out);
            return;
        }
        self.unquote(out);
        let (what, text) = match note {
            Note::TurnFailed(text) => ("Turn failed", text),
            Note::TurnEnded(text) => ("Turn ended", text),
            Note::Permission(text) => ("Permission", text),
            Note::Prompt(text) | Note::Other(text) => ("Event", text),
        };
        // Writing to a String can't fail.
        let _ = write!(out, "\n**{what}**: {}\n", escaped(text));
    }

    /// Goes on with a quotation, or begins one.
    fn quote(&mut self, out: &mut String, heading: &'static str, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.quoting != Some(heading) {
            self.unquote(out);
            let _ = write!(out, "\n{heading}\n\n");
            (self.quoting, self.at_line_start) = (Some(heading), true);
        }
        for line in harmless(text).split_inclusive('\n') {
            if self.at_line_start {
                out.push_str("> ");
            }
            out.push_str(line);
            self.at_line_start = line.ends_with('\n');
        }
    }

    fn unquote(&mut self, out: &mut String) {
        if self.quoting.take().is_some() && !self.at_line_start {
            out.push('\n');
        }
    }

    fn plan(&mut self, out: &mut String, entries: &Value) {
        self.unquote(out);
        out.push_str("\n### Plan\n\n");
        for entry in entries.as_array().into_iter().flatten() {
            let mark = if entry["status"] == "completed" { 'x' } else { ' ' };
            let _ = writeln!(out, "- [{mark}] {}", escaped(entry["content"].as_str().unwrap_or_default()));
        }
    }

    fn tool(&mut self, out: &mut String, update: &Value) {
        let id = update["toolCallId"].as_str().unwrap_or_default();
        let at = self.calls.iter().position(|call| call.id == id);
        let mut call = match at.and_then(|at| self.calls.remove(at)) {
            Some(call) => call,
            // An update of a call that is over.
            None if update["sessionUpdate"] == "tool_call_update" && update["title"].is_null() => return,
            None => Call { id: id.to_owned(), ..Call::default() },
        };
        for (name, known) in
            [("title", &mut call.title), ("kind", &mut call.kind), ("status", &mut call.status)]
        {
            if let Some(text) = update[name].as_str() {
                text.clone_into(known);
            }
        }
        for (name, known) in [("rawInput", &mut call.input), ("content", &mut call.content)] {
            if !update[name].is_null() {
                known.clone_from(&update[name]);
            }
        }
        if matches!(call.status.as_str(), "completed" | "failed") {
            self.unquote(out);
            call.write(out);
            return;
        }
        self.calls.push_back(call);
        if self.calls.len() > MAX_OPEN_CALLS
            && let Some(oldest) = self.calls.pop_front()
        {
            self.unquote(out);
            oldest.write(out);
        }
    }
}

impl Call {
    fn write(&self, out: &mut String) {
        let kind = if self.kind.is_empty() { "tool" } else { &self.kind };
        let status = if self.status.is_empty() { "unknown" } else { &self.status };
        // Writing to a String can't fail.
        let _ =
            write!(out, "\n### Tool: {}\n\n{}, {}\n", escaped(&self.title), escaped(kind), escaped(status));
        let blocks = self.content.as_array();
        let changes = blocks.is_some_and(|blocks| blocks.iter().any(|block| block["type"] == "diff"));
        // What is changed says more than the words that asked for it.
        if !changes && !self.input.is_null() {
            let input = serde_json::to_string_pretty(&self.input).unwrap_or_default();
            fence(out, "json", &input);
        }
        for block in blocks.into_iter().flatten() {
            match block["type"].as_str().unwrap_or_default() {
                "diff" => fence(out, "diff", &diff(block)),
                "content" => fence(out, "", &text_of(&block["content"])),
                other => {
                    let _ = write!(out, "\n[{}]\n", escaped(other));
                }
            }
        }
    }
}

/// A block of content, as text.
fn text_of(content: &Value) -> String {
    match (content["type"].as_str(), content["text"].as_str()) {
        (Some("text"), Some(text)) => text.to_owned(),
        (Some(other), _) => format!("[{other}]"),
        (None, _) => String::new(),
    }
}

/// A block that ends where we say: no run of backticks in it is as long as its fence.
fn fence(out: &mut String, language: &str, text: &str) {
    let text = harmless(text);
    if text.is_empty() {
        return;
    }
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let ticks = "`".repeat((longest + 1).max(3));
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    // Writing to a String can't fail.
    let _ = write!(out, "\n{ticks}{language}\n{text}{newline}{ticks}\n");
}

/// One line in which nothing is Markdown, nor controls a terminal.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in harmless_line(text).chars() {
        if matches!(
            c,
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '<' | '>' | '#' | '|' | '~' | '!' | '&'
        ) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests;
