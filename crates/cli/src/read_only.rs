//! Sees that an agent or a command tried to write to a mount that is read-only, and says how to allow it.

use std::collections::HashMap;

use serde_json::Value;

use crate::guest::VmArgs;
use crate::spec::{MountSpec, PROJECT_AT, is_below};

/// How Node, libc and shells put EROFS into words.
const WORDS: [&str; 2] = ["EROFS", "ead-only file system"];
/// Calls whose arguments are remembered until they end.
const MAX_OPEN_CALLS: usize = 1024;

#[derive(Debug)]
pub(crate) struct ReadOnly<'a> {
    mounts: Vec<&'a MountSpec>,
    cwd: String,
    /// What is known of calls that run: their title and arguments.
    calls: HashMap<String, String>,
    refused: Option<&'a MountSpec>,
}

impl<'a> ReadOnly<'a> {
    pub(crate) fn new(args: &'a VmArgs) -> Self {
        let mounts = args.mounts().filter(|mount| !mount.writable).collect();
        Self { mounts, cwd: args.cwd(), calls: HashMap::new(), refused: None }
    }

    pub(crate) fn look(&mut self, notification: &Value) {
        let update = &notification["params"]["update"];
        let kind = update["sessionUpdate"].as_str().unwrap_or_default();
        if self.mounts.is_empty() || !matches!(kind, "tool_call" | "tool_call_update") {
            return;
        }
        let id = update["toolCallId"].as_str().unwrap_or_default();
        let result = format!("{}{}", update["content"], update["rawOutput"]);
        let mut about = self.calls.remove(id).unwrap_or_default();
        for part in [&update["title"], &update["rawInput"]] {
            if !part.is_null() {
                about.push_str(&part.to_string());
            }
        }
        if WORDS.iter().any(|words| result.contains(words)) {
            self.refused = self.refused.or_else(|| self.mount_in(&[&result, &about]));
        }
        let ended = matches!(update["status"].as_str(), Some("completed" | "failed"));
        if !ended && self.calls.len() < MAX_OPEN_CALLS {
            self.calls.insert(id.to_owned(), about);
        }
    }

    /// As [`look`](Self::look), at what a command complained.
    pub(crate) fn look_at_text(&mut self, text: &str) {
        if WORDS.iter().any(|words| text.contains(words)) {
            self.refused = self.refused.or_else(|| self.mount_in(&[text]));
        }
    }

    /// The mount that the texts name, else the one the agent works in.
    fn mount_in(&self, texts: &[&str]) -> Option<&'a MountSpec> {
        let named =
            self.mounts.iter().find(|mount| texts.iter().any(|text| text.contains(mount.guest.as_str())));
        named.or_else(|| self.mounts.iter().find(|mount| is_below(&self.cwd, &mount.guest))).copied()
    }

    /// What to tell the user, if a write was refused.
    pub(crate) fn hint(&self) -> Option<String> {
        let mount = self.refused?;
        let host = mount.host.display();
        let flag = if mount.guest == PROJECT_AT {
            format!("--project {host}:rw")
        } else {
            format!("--mount {host}:{}:rw", mount.guest)
        };
        Some(format!("{} is mounted read-only, so a write was refused; {flag} allows it", mount.guest))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hint(flags: &[&str], input: &str, output: &str) -> Option<String> {
        let args = VmArgs::of(flags);
        let mut read_only = ReadOnly::new(&args);
        let call = |update: Value| json!({ "method": "session/update", "params": { "update": update } });
        read_only.look(&call(json!({ "sessionUpdate": "tool_call", "toolCallId": "1", "rawInput": input })));
        let content = json!([{ "type": "content", "content": { "type": "text", "text": output } }]);
        read_only.look(&call(json!({
            "sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "failed", "content": content,
        })));
        read_only.hint()
    }

    #[test]
    fn a_refused_write_to_the_project_explains_rw() {
        let hint =
            hint(&["--project", "src"], "a.ts", "EROFS: read-only file system, open '/work/a.ts'").unwrap();
        assert!(hint.contains("--project src:rw"), "{hint}");
    }

    #[test]
    fn the_mount_that_was_meant_is_named() {
        let flags = ["--project", "src", "--mount", "lib:/data"];
        let hint = hint(&flags, "/data/x", "sh: 1: cannot create x: Read-only file system").unwrap();
        assert!(hint.contains("--mount lib:/data:rw"), "{hint}");
    }

    #[test]
    fn without_a_read_only_mount_or_a_refusal_there_is_nothing_to_say() {
        assert_eq!(hint(&["--project", "src:rw"], "x", "EROFS"), None);
        assert_eq!(hint(&["--project", "src"], "x", "ENOENT"), None);
        assert_eq!(hint(&["--mount", "lib:/data"], "/usr/x", "EROFS: /usr/x"), None);
    }
}
