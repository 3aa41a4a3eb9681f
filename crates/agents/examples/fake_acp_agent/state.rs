//! Sessions, and the directory that they are kept in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::wire::Wire;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    User,
    Agent,
}

/// One session; what isn't skipped is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) cwd: String,
    pub(crate) mode: String,
    pub(crate) model: String,
    pub(crate) level: String,
    /// What was said.
    pub(crate) history: Vec<(Role, String)>,
    /// By kind of tool: whether it is allowed for good.
    pub(crate) rules: BTreeMap<String, bool>,
    /// The request that opened it.
    #[serde(skip)]
    pub(crate) opened: Value,
    /// The last prompt's blocks.
    #[serde(skip)]
    pub(crate) prompt: Value,
    #[serde(skip)]
    pub(crate) running: bool,
    #[serde(skip)]
    pub(crate) cancelled: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            cwd: String::new(),
            mode: "ask".to_owned(),
            model: "fake/small".to_owned(),
            level: "low".to_owned(),
            history: Vec::new(),
            rules: BTreeMap::new(),
            opened: Value::Null,
            prompt: Value::Null,
            running: false,
            cancelled: false,
        }
    }
}

impl Session {
    pub(crate) fn remember(&mut self, role: Role, text: &str) {
        if !text.is_empty() {
            self.history.push((role, text.to_owned()));
        }
    }

    /// Says everything again.
    pub(crate) fn replay(&self, id: &str, wire: &Wire) {
        for (role, text) in &self.history {
            let kind = match role {
                Role::User => "user_message_chunk",
                Role::Agent => "agent_message_chunk",
            };
            wire.update(id, &json!({ "sessionUpdate": kind, "content": { "type": "text", "text": text } }));
        }
    }

    /// What the user said before the last prompt.
    pub(crate) fn recall(&self) -> String {
        let users: Vec<&str> = self
            .history
            .iter()
            .filter(|(role, _)| *role == Role::User)
            .map(|(_, text)| text.as_str())
            .collect();
        let before = users.len().saturating_sub(1);
        users[..before].iter().map(|text| format!("{text}\n")).collect()
    }
}

/// Where sessions outlive the agent; nowhere without a directory.
#[derive(Debug)]
pub(crate) struct Store {
    directory: Option<PathBuf>,
}

impl Store {
    pub(crate) fn open(directory: Option<&str>) -> Result<Self, String> {
        if let Some(directory) = directory {
            fs::create_dir_all(directory).map_err(|error| format!("{directory}: {error}"))?;
        }
        Ok(Self { directory: directory.map(PathBuf::from) })
    }

    /// Written beside and renamed: an agent may be killed at any time.
    pub(crate) fn save(&self, id: &str, session: &Session) {
        let Some(path) = self.path(id) else { return };
        let new = path.with_extension("new");
        let kept = serde_json::to_vec(session)
            .map_err(std::io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &path));
        if let Err(error) = kept {
            eprintln!("{}: {error}", path.display());
        }
    }

    pub(crate) fn load(&self, id: &str) -> Option<Session> {
        serde_json::from_slice(&fs::read(self.path(id)?).ok()?).ok()
    }

    /// The sessions there are, live ones and kept ones, as `session/list` has them.
    pub(crate) fn list(&self, live: &BTreeMap<String, Session>) -> Vec<Value> {
        let kept = self.directory.iter().flat_map(|directory| names(directory));
        let mut all: BTreeMap<String, String> =
            kept.filter_map(|id| Some((id.clone(), self.load(&id)?.cwd))).collect();
        all.extend(live.iter().map(|(id, session)| (id.clone(), session.cwd.clone())));
        all.into_iter().map(|(id, cwd)| json!({ "sessionId": id, "cwd": cwd, "title": null })).collect()
    }

    fn path(&self, id: &str) -> Option<PathBuf> {
        let is_name = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        self.directory.as_ref().filter(|_| is_name).map(|directory| directory.join(format!("{id}.json")))
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect()
}
