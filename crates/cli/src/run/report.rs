//! What a run prints, for people or as JSON lines.
//!
//! | JSON line | when |
//! |---|---|
//! | `{"type":"install", "package", "receivedBytes", "totalBytes", "place", "waiting"}` | an agent is being installed |
//! | `{"type":"session", "sessionId", "agent", "model", "modelReason", "vmId", "keptAs"}` | it is ready |
//! | `{"type":"event", "sequenceNumber", "notification"}` | each event, as the agent sent it |
//! | `{"type":"files", "files": [{"path", "name", "place", "isNew", "sizeBytes", "out"}], "hint"}` | what changed |
//! | `{"type":"result", "ok": true, "text", "stopReason", ...}` or `{"ok": false, "error"}` | the last line |

use std::fmt::Write;

use agentos::{AgentOs, InstallProgress, PromptResult, Session, SessionEvent};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::guest::Guest;
use crate::run::changes::Changed;
use crate::run::out::{OutDir, Put};
use crate::run::steps::Steps;
use crate::terminal::{Palette, harmless, harmless_line, json_line, notice, print};

/// Shown of the files that were in the VM only.
const MAX_TEXT_FILES: usize = 10;
const MAX_TEXT_BYTES: u64 = 16 << 10;
const MAX_TEXT_LINES: usize = 100;
/// Named before the rest is only counted.
const MAX_NAMES: usize = 50;

/// What is there when the turn is over.
#[derive(Debug, Default)]
pub(super) struct Ending {
    pub(super) files: Vec<(Changed, Option<Put>)>,
    /// Content of new text files, by their place in `files`, where they are in the VM only.
    pub(super) texts: Vec<(usize, String)>,
    pub(super) too_large: Vec<String>,
    pub(super) read_only: Option<String>,
}

impl Ending {
    pub(super) fn beside(&self) -> usize {
        self.files.iter().filter(|(_, put)| matches!(put, Some(Put::Beside(_)))).count()
    }

    pub(super) fn refused(&self) -> usize {
        self.files.iter().filter(|(_, put)| matches!(put, Some(Put::Refused(_)))).count()
    }
}

/// New text files, whole where they are small.
pub(super) async fn texts(vm: &AgentOs, ending: &Ending) -> Vec<(usize, String)> {
    use std::os::unix::ffi::OsStrExt;
    let mut texts = Vec::new();
    let small = |file: &Changed| file.in_vm_only() && file.is_new && file.size_bytes <= MAX_TEXT_BYTES;
    for (index, (file, _)) in ending.files.iter().enumerate().filter(|(_, (file, _))| small(file)) {
        if texts.len() == MAX_TEXT_FILES {
            break;
        }
        let path = file.guest_path();
        // One that is gone by now, or no text, is listed all the same.
        if let Ok(content) = vm.read_file(std::ffi::OsStr::from_bytes(&path)).await
            && let Ok(text) = String::from_utf8(content)
            && !text.contains('\0')
        {
            texts.push((index, text));
        }
    }
    texts
}

pub(super) fn install(step: &InstallProgress) {
    // Where nobody reads any more the next line of the run itself will tell.
    let _ = print(&json_line(&json!({
        "type": "install",
        "package": step.package,
        "receivedBytes": step.received_bytes,
        "totalBytes": step.total_bytes,
        "place": step.place,
        "waiting": step.waiting,
    })));
}

/// Standard output.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
    steps: Steps,
    palette: Palette,
    session_id: Option<String>,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let palette = Palette::for_stdout();
        Self { json, steps: Steps::new(palette), palette, session_id: None }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    fn line(value: &Value) -> Result<(), Failure> {
        print(&json_line(value))
    }

    pub(super) fn session(&mut self, session: &Session, guest: &Guest) -> Result<(), Failure> {
        self.session_id = Some(session.id().to_owned());
        if !self.json {
            return Ok(());
        }
        Self::line(&json!({
            "type": "session",
            "sessionId": session.id(),
            "agent": session.agent_type(),
            "model": session.model().as_str(),
            "modelReason": session.model_reason(),
            "vmId": guest.vm.id(),
            "keptAs": guest.kept_name(),
        }))
    }

    pub(super) fn event(&mut self, event: &SessionEvent) -> Result<(), Failure> {
        if self.json {
            return Self::line(&json!({
                "type": "event",
                "sequenceNumber": event.sequence_number,
                "notification": event.notification,
            }));
        }
        match self.steps.show(&event.notification) {
            text if text.is_empty() => Ok(()),
            text => print(&text),
        }
    }

    pub(super) fn end_line(&mut self) -> Result<(), Failure> {
        match self.steps.end_line() {
            "" => Ok(()),
            text => print(text),
        }
    }

    /// What changed, and where it is now.
    pub(super) fn ending(&self, ending: &Ending, out: Option<&OutDir>, guest: &Guest) -> Result<(), Failure> {
        for place in &ending.too_large {
            notice(&format!("{place} holds too many files to tell what changed there"));
        }
        if self.json {
            let files: Vec<Value> =
                ending.files.iter().map(|(file, put)| file_json(file, put.as_ref())).collect();
            Self::line(&json!({ "type": "files", "files": files, "hint": ending.read_only }))?;
        } else {
            print(&self.ending_text(ending, out, guest))?;
        }
        if let Some(hint) = &ending.read_only {
            notice(hint);
        }
        Ok(())
    }

    fn ending_text(&self, ending: &Ending, out: Option<&OutDir>, guest: &Guest) -> String {
        let mut text = String::new();
        if ending.files.is_empty() {
            text.push_str("\nNo files changed.\n");
            return text;
        }
        // Writing to a String can't fail.
        let _ = writeln!(text, "\n{}", self.palette.bold("Files:"));
        for (file, put) in ending.files.iter().take(MAX_NAMES) {
            let _ = writeln!(text, "  {}", self.file_line(file, put.as_ref(), out));
        }
        if let Some(more @ 1..) = ending.files.len().checked_sub(MAX_NAMES) {
            let _ = writeln!(text, "  ... and {more} more");
        }
        for (index, content) in &ending.texts {
            if let Some((file, _)) = ending.files.get(*index) {
                let _ = writeln!(
                    text,
                    "\n{}",
                    self.palette.bold(&format!("--- {}", harmless_line(&file.shown())))
                );
                text.push_str(&bounded(content));
            }
        }
        let only_in_vm = ending.files.iter().any(|(file, put)| put.is_none() && file.in_vm_only());
        if only_in_vm {
            let _ = match guest.kept_name() {
                Some(name) => writeln!(text, "\nThese files are in the kept VM {}.", harmless_line(name)),
                None => writeln!(
                    text,
                    "\nThe files in the VM were there only, and the VM is gone now. --out DIR copies them to you; \
                     --project DIR:rw\nlets the agent work on a directory of yours."
                ),
            };
        }
        text
    }

    fn file_line(&self, file: &Changed, put: Option<&Put>, out: Option<&OutDir>) -> String {
        let sign = if file.is_new { self.palette.green("+") } else { self.palette.yellow("~") };
        let name = harmless_line(&file.shown());
        let place = match &file.place.host {
            Some(host) => host.join(name).display().to_string(),
            None => format!("{}/{name}", file.place.guest),
        };
        let unit = if file.size_bytes == 1 { "byte" } else { "bytes" };
        let line = format!("{sign} {} ({} {unit})", harmless_line(&place), file.size_bytes);
        let target = |name: &str| {
            let path = out.map(|out| out.path().join(name)).unwrap_or_default();
            harmless_line(&path.display().to_string())
        };
        match put {
            None => line,
            Some(Put::Written) => format!("{line} -> {}", target(&file.shown())),
            Some(Put::Same) => format!("{line} = {}", target(&file.shown())),
            Some(Put::Beside(beside)) => {
                let theirs = target(&file.shown());
                let ours = target(&sibling(&file.shown(), beside));
                self.palette.yellow(&format!("{line} -> {ours}, as {theirs} was there; --force overwrites"))
            }
            Some(Put::Refused(reason)) => {
                self.palette.red(&format!("{line} not copied: {}", harmless_line(reason)))
            }
        }
    }

    /// The last line of a run that went well. For people everything has been said.
    pub(super) fn result(
        &self,
        reply: &PromptResult,
        ending: &Ending,
        guest: &Guest,
        code: u8,
    ) -> Result<(), Failure> {
        if !self.json {
            if reply.stop_reason != "end_turn" {
                notice(&format!("the turn ended early: {}", harmless_line(&reply.stop_reason)));
            }
            return Ok(());
        }
        Self::line(&json!({
            "type": "result",
            "ok": true,
            "text": reply.text,
            "stopReason": reply.stop_reason,
            "model": reply.model.as_str(),
            "sessionId": self.session_id,
            "rejectedPermissions": reply.rejected_permissions,
            "changedFiles": ending.files.len(),
            "keptAs": guest.kept_name(),
            "exitCode": code,
        }))
    }

    /// The last line of one that didn't. People are told on standard error.
    pub(super) fn failed(&mut self, failure: &Failure) -> Result<(), Failure> {
        if !self.json {
            return self.end_line();
        }
        let kind = failure.sdk_kind().map(|kind| format!("{kind:?}"));
        Self::line(&json!({
            "type": "result",
            "ok": false,
            "sessionId": self.session_id,
            "error": { "kind": kind, "message": failure.to_string() },
            "exitCode": failure.code(),
        }))
    }
}

fn sibling(name: &str, leaf: &str) -> String {
    match name.rsplit_once('/') {
        Some((parents, _)) => format!("{parents}/{leaf}"),
        None => leaf.to_owned(),
    }
}

fn file_json(file: &Changed, put: Option<&Put>) -> Value {
    let out = put.map(|put| match put {
        Put::Written => json!({ "state": "written" }),
        Put::Same => json!({ "state": "same" }),
        Put::Beside(name) => json!({ "state": "beside", "name": sibling(&file.shown(), name) }),
        Put::Refused(reason) => json!({ "state": "refused", "reason": reason }),
    });
    json!({
        "path": String::from_utf8_lossy(&file.guest_path()),
        "name": file.shown(),
        "hostPath": file.place.host.as_ref().map(|host| host.join(file.shown()).display().to_string()),
        "isNew": file.is_new,
        "sizeBytes": file.size_bytes,
        "out": out,
    })
}

/// The beginning of a text.
fn bounded(content: &str) -> String {
    let mut lines = content.lines();
    let mut text = String::new();
    for line in lines.by_ref().take(MAX_TEXT_LINES) {
        text.push_str(&harmless(line));
        text.push('\n');
    }
    let more = lines.count();
    if more > 0 {
        // Writing to a String can't fail.
        let _ = writeln!(text, "... {more} more lines");
    }
    text
}
