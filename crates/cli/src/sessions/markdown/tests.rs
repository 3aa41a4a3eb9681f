//! What is written for whom to read.

use serde_json::json;

use super::*;
use crate::diff::CONTEXT_LINES;

fn write(events: &[Value]) -> String {
    let mut markdown = Markdown::default();
    let text: String = events.iter().map(|event| markdown.notification(event)).collect();
    text + &markdown.end()
}

fn update(update: Value) -> Value {
    json!({ "method": "session/update", "params": { "update": update } })
}

fn chunk(kind: &str, text: &str) -> Value {
    update(json!({ "sessionUpdate": kind, "content": { "type": "text", "text": text } }))
}

fn said(text: &str) -> Value {
    chunk("agent_message_chunk", text)
}

fn prompt(text: &str) -> Value {
    json!({ "method": "_agentos/prompt", "params": { "content": [{ "type": "text", "text": text }] } })
}

/// The lines that Markdown takes for structure of the document: neither quoted nor within one of its fences.
fn structure(text: &str) -> Vec<&str> {
    let mut fence: Option<&str> = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        let ticks = &line[..line.len() - line.trim_start_matches('`').len()];
        match fence {
            Some(open) if ticks.len() >= open.len() && ticks == line => fence = None,
            Some(_) => {}
            None if ticks.len() >= 3 => fence = Some(ticks),
            None if line.starts_with('>') || line.is_empty() => {}
            None => lines.push(line),
        }
    }
    assert_eq!(fence, None, "a fence is open at the end of\n{text}");
    lines
}

#[test]
fn a_conversation_is_quoted_under_its_headings() {
    let text = write(&[
        prompt("Write\nit"),
        chunk("agent_thought_chunk", "Hm"),
        chunk("agent_thought_chunk", "m."),
        said("I wi"),
        said("ll.\n\nDone"),
        json!({ "method": "_agentos/permission_rejected", "params": { "description": "bash: ls", "reason": "no" } }),
        prompt("Thanks"),
        json!({ "method": "_agentos/turn_end", "params": { "error": { "message": "429" } } }),
    ]);
    let expected = "\n## Prompt\n\n> Write\n> it\n\n### Thought\n\n> Hmm.\n\n## Answer\n\n> I will.\n> \n> Done\n\
                    \n**Permission**: permission rejected: bash: ls (no)\n\n## Prompt\n\n> Thanks\n\n**Turn failed**: 429\n";
    assert_eq!(text, expected);
}

#[test]
fn a_tool_call_is_told_when_it_is_over_with_what_it_changed() {
    let text = write(&[
        update(
            json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "title": "edit: a.ts", "kind": "edit" }),
        ),
        said("meanwhile"),
        update(json!({ "sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "completed",
            "rawInput": { "path": "a.ts" }, "content": [
                { "type": "diff", "path": "/a.ts", "oldText": "1\n2\n3\n4\n5\nold\n6\n", "newText": "1\n2\n3\n4\n5\nnew\nnewer\n6\n" },
                { "type": "content", "content": { "type": "text", "text": "fine" } },
            ] })),
        update(json!({ "sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "completed" })),
    ]);
    let expected = "\n## Answer\n\n> meanwhile\n\n### Tool: edit: a.ts\n\nedit, completed\n\
                    \n```diff\n--- /a.ts\n+++ /a.ts\n@@ -3,5 +3,6 @@\n 3\n 4\n 5\n-old\n+new\n+newer\n 6\n```\n\
                    \n```\nfine\n```\n";
    assert_eq!(text, expected);
}

#[test]
fn a_call_without_an_end_is_told_at_the_end() {
    let text = write(&[update(json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "title": "bash",
        "status": "in_progress", "rawInput": { "command": "sleep 9" } }))]);
    assert_eq!(
        text,
        "\n### Tool: bash\n\ntool, in\\_progress\n\n```json\n{\n  \"command\": \"sleep 9\"\n}\n```\n"
    );
}

#[test]
fn a_diff_of_any_two_texts_makes_one_of_the_other() {
    let texts = [
        "",
        "a\n",
        "a\nb\nc\nd\ne\nf\ng\n",
        "a\nb\nc\nX\ne\nf\ng\n",
        "a\na\n",
        "a\na\na\n",
        "z\na\nb\nc\nd\ne\nf\ng\n",
    ];
    for (old, new) in texts.iter().flat_map(|old| texts.iter().map(move |new| (*old, *new))) {
        let shown = diff(&json!({ "path": "/f", "oldText": old, "newText": new }));
        let hunk: Vec<&str> = shown.lines().skip(3).collect();
        let side = |sign: char| -> Vec<&str> {
            hunk.iter().filter(|line| line.starts_with([' ', sign])).map(|line| &line[1..]).collect()
        };
        let (was, is): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
        let start = hunk.iter().take_while(|line| line.starts_with(' ')).count();
        let at = shown.lines().nth(2).unwrap().split(['-', ',']).nth(1).unwrap().parse::<usize>().unwrap();
        let first = if side('-').is_empty() { at } else { at - 1 };
        assert!(start <= CONTEXT_LINES, "{shown}");
        let patched: Vec<&str> = [&was[..first], &side('+')[..], &was[first + side('-').len()..]].concat();
        assert_eq!(&was[first..first + side('-').len()], side('-'), "{shown}");
        assert_eq!(patched, is, "{shown}");
    }
    let created = diff(&json!({ "path": "/f", "oldText": null, "newText": "x\n" }));
    assert_eq!(created, "--- /dev/null\n+++ /f\n@@ -0,0 +1,1 @@\n+x\n");
}

#[test]
fn nothing_from_a_vm_breaks_out_of_its_place() {
    let evil = "x\n```\n````\n# forged\n<!--\n</details>\n~~~\n`````diff\n\x1b[2J";
    let call = |status: &str| {
        update(
            json!({ "sessionUpdate": "tool_call", "toolCallId": status, "title": evil, "kind": evil, "status": status,
            "rawInput": { "a": evil }, "content": [{ "type": "content", "content": { "type": "text", "text": evil } }] }),
        )
    };
    let changed =
        update(json!({ "sessionUpdate": "tool_call", "toolCallId": "d", "title": "d", "status": "completed",
        "content": [{ "type": "diff", "path": evil, "oldText": evil, "newText": "y" }, { "type": evil }] }));
    let text = write(&[
        prompt(evil),
        said(evil),
        chunk("agent_thought_chunk", evil),
        call("completed"),
        call(evil),
        changed,
        update(json!({ "sessionUpdate": "plan", "entries": [{ "content": evil, "status": "pending" }] })),
        json!({ "method": "_agentos/turn_end", "params": { "error": { "message": evil } } }),
        json!({ "method": "_agentos/other", "params": { "x": evil } }),
        json!({ "method": "_agentos/permission_request", "params": { "description": evil } }),
    ]);
    let ours = ["## Prompt", "## Answer", "### Thought", "### Tool: ", "### Plan"];
    for line in structure(&text) {
        let is_ours = ours.iter().any(|heading| line.starts_with(heading));
        assert!(is_ours || !line.starts_with(['#', '<', '~', '`']), "{line:?} in\n{text}");
        assert!(!line.contains("<!--") || line.contains("\\<\\!--"), "{line:?}");
    }
    assert!(!text.contains('\x1b'), "{text:?}");
}
