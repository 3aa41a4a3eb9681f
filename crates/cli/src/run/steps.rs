//! An agent's steps as text, as they happen.
//!
//! ```text
//! I'll write the file.                     agent_message_chunk, as it streams
//! > write: hello.ts                        tool_call, once it is known what it is about
//!   | 1 line written                       its diff or the first lines of what it printed
//!   ok                                     tool_call_update: completed, or failed
//! ```
//! Everything in it comes from a VM: it is made harmless, and bounded.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::Value;

use crate::terminal::{Palette, harmless, harmless_line};

/// Shown of what a tool printed.
const MAX_RESULT_LINES: usize = 8;
/// Shown of what it changed.
const MAX_DIFF_LINES: usize = 60;
const MAX_LINE_CHARS: usize = 200;
/// Calls that are remembered until they end; an agent that leaves more open sees the oldest facts forgotten.
const MAX_OPEN_CALLS: usize = 1024;

#[derive(Debug, Default)]
struct Call {
    title: String,
    announced: bool,
    diff: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Steps {
    palette: Palette,
    calls: HashMap<String, Call>,
    /// The last call whose headline was printed, with nothing after it.
    on_top: Option<String>,
    in_line: bool,
    in_thought: bool,
    /// Changes of files are shown line by line.
    whole_diffs: bool,
}

impl Steps {
    pub(crate) fn new(palette: Palette) -> Self {
        Self {
            palette,
            calls: HashMap::new(),
            on_top: None,
            in_line: false,
            in_thought: false,
            whole_diffs: false,
        }
    }

    /// The same, which shows what is changed in files line by line.
    pub(crate) fn with_diffs(mut self) -> Self {
        self.whole_diffs = true;
        self
    }

    /// What to print for a notification; empty for those that are no step.
    pub(crate) fn show(&mut self, notification: &Value) -> String {
        let mut out = String::new();
        if notification["method"] != "session/update" {
            return out;
        }
        let update = &notification["params"]["update"];
        match update["sessionUpdate"].as_str().unwrap_or_default() {
            "agent_message_chunk" => self.text(&mut out, &update["content"], false),
            "agent_thought_chunk" => self.text(&mut out, &update["content"], true),
            "tool_call" | "tool_call_update" => self.tool(&mut out, update),
            "plan" => self.plan(&mut out, &update["entries"]),
            _ => {}
        }
        out
    }

    /// Ends a line that is open.
    pub(crate) fn end_line(&mut self) -> &'static str {
        if std::mem::take(&mut self.in_line) { "\n" } else { "" }
    }

    fn text(&mut self, out: &mut String, content: &Value, thought: bool) {
        let text = match content["type"].as_str() {
            Some("text") => harmless(content["text"].as_str().unwrap_or_default()),
            Some(other) => format!("[{}]", harmless_line(other)),
            None => return,
        };
        if text.is_empty() {
            return;
        }
        if self.in_thought != thought {
            out.push_str(self.end_line());
            self.in_thought = thought;
        }
        self.on_top = None;
        self.in_line = !text.ends_with('\n');
        out.push_str(&if thought { self.palette.dim(&text) } else { text });
    }

    fn line(&mut self, out: &mut String, text: &str) {
        out.push_str(self.end_line());
        out.push_str(text);
        out.push('\n');
    }

    fn plan(&mut self, out: &mut String, entries: &Value) {
        for entry in entries.as_array().into_iter().flatten().take(MAX_RESULT_LINES * 4) {
            let mark = match entry["status"].as_str() {
                Some("completed") => "x",
                Some("in_progress") => ">",
                _ => " ",
            };
            let text = short(entry["content"].as_str().unwrap_or_default());
            self.line(out, &self.palette.dim(&format!("[{mark}] {text}")));
        }
    }

    fn tool(&mut self, out: &mut String, update: &Value) {
        let id = update["toolCallId"].as_str().unwrap_or_default().to_owned();
        let mut call = match self.calls.remove(&id) {
            Some(call) => call,
            // An update of a call that is over.
            None if update["sessionUpdate"] == "tool_call_update" && update["title"].is_null() => return,
            None => Call::default(),
        };
        if let Some(title) = update["title"].as_str() {
            call.title = short(title);
        }
        let told = if self.whole_diffs { whole_diff(&update["content"]) } else { diff(&update["content"]) };
        if let Some(diff) = told {
            call.diff = Some(diff);
        }
        let status = update["status"].as_str().unwrap_or_default();
        let ended = matches!(status, "completed" | "failed");
        // A call is announced before its arguments are known; its headline waits for them.
        let known = ended || status == "in_progress" || !update["rawInput"].is_null();
        if known && !call.announced {
            call.announced = true;
            let headline = self.palette.cyan(&format!("> {}", call.title));
            self.line(out, &headline);
            self.on_top = Some(id.clone());
        }
        if ended {
            self.result(out, &id, &call, update);
        } else if self.calls.len() < MAX_OPEN_CALLS {
            self.calls.insert(id, call);
        }
    }

    fn result(&mut self, out: &mut String, id: &str, call: &Call, update: &Value) {
        // Between the headline and this there may be steps of another call.
        let about =
            if self.on_top.as_deref() == Some(id) { String::new() } else { format!(": {}", call.title) };
        let failed = update["status"] == "failed";
        if let Some(diff) = call.diff.as_ref().filter(|_| !failed) {
            for line in diff.lines() {
                self.line(out, &self.palette.dim(&format!("  | {line}")));
            }
        }
        let text = texts(&update["content"]);
        let mut lines = text.lines();
        for line in lines.by_ref().take(MAX_RESULT_LINES) {
            self.line(out, &self.palette.dim(&format!("  | {}", short(line))));
        }
        let more = lines.count();
        if more > 0 {
            self.line(out, &self.palette.dim(&format!("  | ... {more} more lines")));
        }
        let verdict = if failed { self.palette.red("failed") } else { self.palette.green("ok") };
        self.line(out, &format!("  {verdict}{about}"));
        self.on_top = None;
    }
}

/// One harmless line, cut.
fn short(text: &str) -> String {
    let line = harmless_line(text.trim_end());
    match line.char_indices().nth(MAX_LINE_CHARS) {
        None => line,
        Some((cut, _)) => format!("{}...", &line[..cut]),
    }
}

/// All text of a tool call's content.
fn texts(content: &Value) -> String {
    let mut out = String::new();
    for block in content.as_array().into_iter().flatten() {
        if let Some(text) = block["content"]["text"].as_str() {
            out.push_str(text);
            if !text.ends_with('\n') {
                out.push('\n');
            }
        }
    }
    out
}

/// What is changed in files, line by line, where there is anything; cut, and harmless.
pub(crate) fn whole_diff(content: &Value) -> Option<String> {
    let changes = content.as_array()?.iter().filter(|block| block["type"] == "diff").map(crate::diff::diff);
    let whole = changes.collect::<String>();
    let mut lines = whole.lines();
    let mut out: Vec<String> = lines.by_ref().take(MAX_DIFF_LINES).map(short).collect();
    let more = lines.count();
    if more > 0 {
        out.push(format!("... {more} more lines"));
    }
    (!out.is_empty()).then(|| out.join("\n"))
}

/// What a change of files amounts to, in lines.
fn diff(content: &Value) -> Option<String> {
    let (mut before, mut after, mut seen) = (0, 0, false);
    for block in content.as_array()?.iter().filter(|block| block["type"] == "diff") {
        let lines = |text: &Value| text.as_str().map_or(0, |text| text.lines().count());
        before += lines(&block["oldText"]);
        after += lines(&block["newText"]);
        seen = true;
    }
    if !seen {
        return None;
    }
    let plural = |count| if count == 1 { "line" } else { "lines" };
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = match before {
        0 => write!(out, "{after} {} written", plural(after)),
        _ => write!(out, "{before} {} replaced by {after}", plural(before)),
    };
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn show(updates: &[Value]) -> String {
        let mut steps = Steps::new(Palette::plain());
        let mut out = String::new();
        for update in updates {
            out.push_str(&steps.show(&json!({ "method": "session/update", "params": { "update": update } })));
        }
        out.push_str(steps.end_line());
        out
    }

    fn text(text: &str) -> Value {
        json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } })
    }

    #[test]
    fn text_streams_and_tools_stand_on_lines_of_their_own() {
        let shown = show(&[
            text("I'll "),
            text("write it."),
            json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "title": "write", "status": "pending" }),
            json!({ "sessionUpdate": "tool_call_update", "toolCallId": "1", "title": "write: a.ts",
                    "status": "pending", "rawInput": { "path": "a.ts" },
                    "content": [{ "type": "diff", "path": "/a.ts", "oldText": null, "newText": "x\ny\n" }] }),
            json!({ "sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "in_progress" }),
            json!({ "sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "completed" }),
            text("Done."),
        ]);
        assert_eq!(shown, "I'll write it.\n> write: a.ts\n  | 2 lines written\n  ok\nDone.\n");
    }

    #[test]
    fn changes_are_shown_line_by_line_where_that_is_wanted() {
        let mut steps = Steps::new(Palette::plain()).with_diffs();
        let diff = json!({ "type": "diff", "path": "/a.ts", "oldText": "one\n", "newText": "two\x1b\n" });
        let update = json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "title": "edit", "status": "completed",
                             "content": [diff] });
        let shown = steps.show(&json!({ "method": "session/update", "params": { "update": update } }));
        assert!(shown.contains("  | -one\n  | +two^[\n  ok\n"), "{shown}");
    }

    #[test]
    fn a_failure_shows_what_was_said_and_long_output_is_cut() {
        let output: String = (0..20).map(|n| format!("line {n}\n")).collect();
        let content = json!([{ "type": "content", "content": { "type": "text", "text": output } }]);
        let shown = show(&[
            json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "title": "bash: x", "status": "in_progress" }),
            json!({ "sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "failed", "content": content }),
        ]);
        assert!(shown.starts_with("> bash: x\n  | line 0\n"), "{shown}");
        assert!(shown.ends_with("  | line 7\n  | ... 12 more lines\n  failed\n"), "{shown}");
    }

    #[test]
    fn results_of_parallel_calls_name_their_call() {
        let start = |id: &str| {
            json!({ "sessionUpdate": "tool_call", "toolCallId": id, "title": format!("bash: {id}"),
                    "status": "in_progress" })
        };
        let end = |id: &str| json!({ "sessionUpdate": "tool_call_update", "toolCallId": id, "status": "completed" });
        let shown = show(&[start("a"), start("b"), end("b"), end("a")]);
        assert_eq!(shown, "> bash: a\n> bash: b\n  ok\n  ok: bash: a\n");
    }

    #[test]
    fn nothing_an_agent_says_controls_the_terminal() {
        let evil = "\x1b]0;x\x07\u{9b}31m\u{202e}";
        let content = json!([{ "type": "content", "content": { "type": "text", "text": evil } }]);
        let shown = show(&[
            text(evil),
            json!({ "sessionUpdate": "agent_thought_chunk", "content": { "type": "text", "text": evil } }),
            json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "title": evil, "status": "completed",
                    "content": content }),
            json!({ "sessionUpdate": "plan", "entries": [{ "content": evil, "status": "pending" }] }),
        ]);
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!shown.contains(bad), "{shown:?}");
        assert!(shown.contains("^[]0;x^G"));
    }

    #[test]
    fn what_is_no_step_prints_nothing() {
        let mut steps = Steps::new(Palette::plain());
        for notification in [
            json!({ "method": "_agentos/model", "params": { "kind": "demo" } }),
            json!({ "method": "session/update", "params": { "update": { "sessionUpdate": "unheard_of" } } }),
            json!({ "method": "session/update" }),
            json!(null),
        ] {
            assert_eq!(steps.show(&notification), "");
        }
    }
}
