//! What the agent knows, and what it does with each message of its client.
//!
//! The main thread reads; a prompt, and any method with a script of its own, gets a thread, so that a turn can be
//! cancelled, asked about or talked over while it runs. Everything that is known is behind one lock, and whoever waits
//! for something (an answer, a cancel) waits for it to change.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::offers;
use crate::profile::Profile;
use crate::script;
use crate::state::{Role, Session, Store};
use crate::turn::Turn;
use crate::wire::Wire;

pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
pub(crate) const INVALID_PARAMS: i64 = -32602;
const INVALID_REQUEST: i64 = -32600;
const PARSE_ERROR: i64 = -32700;
const AUTH_REQUIRED: i64 = -32000;
const NOT_FOUND: i64 = -32002;
/// The longest pause of a thread that has nothing to do any more.
const LONG: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) profile: Profile,
    pub(crate) wire: Wire,
    pub(crate) store: Store,
    pub(crate) deaf: AtomicBool,
    known: Mutex<Known>,
    changed: Condvar,
}

/// What changes while the agent runs.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) sessions: BTreeMap<String, Session>,
    pub(crate) initialize: Value,
    authenticated: bool,
    /// The methods of the client's messages, in order.
    pub(crate) received: Vec<String>,
    /// The client's answers, in order.
    pub(crate) answers: Vec<Value>,
    /// How many sessions there were, for their ids.
    made: u64,
}

/// The agent's life.
pub(crate) fn run(profile: Profile) -> Result<(), String> {
    let store = Store::open(profile.state.as_deref())?;
    let wire = Wire::default();
    if profile.meta {
        wire.use_meta();
    }
    let agent = Arc::new(Agent {
        profile,
        wire,
        store,
        deaf: AtomicBool::new(false),
        known: Mutex::default(),
        changed: Condvar::new(),
    });
    Turn::new(&agent, None, "", Value::Null).obey(&script::steps(&agent.profile.start))?;
    let mut input = BufReader::new(std::io::stdin());
    let mut line = Vec::new();
    while !agent.deaf.load(Ordering::Relaxed) {
        line.clear();
        match input.read_until(b'\n', &mut line) {
            Ok(count) if count > 0 => agent.line(&line),
            _ => break,
        }
    }
    // Whoever hears nothing any more lives on; whoever is left alone goes, unless told to stay.
    while agent.profile.ignore_eof || agent.deaf.load(Ordering::Relaxed) {
        std::thread::sleep(LONG);
    }
    Ok(())
}

impl Agent {
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Waits until something is known, for `at_most`; `None` when it isn't by then.
    pub(crate) fn wait<T>(
        &self,
        at_most: Duration,
        mut look: impl FnMut(&mut Known) -> Option<T>,
    ) -> Option<T> {
        let until = std::time::Instant::now() + at_most;
        let mut known = self.known();
        loop {
            if let Some(found) = look(&mut known) {
                return Some(found);
            }
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return None;
            }
            known = self.changed.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn line(self: &Arc<Self>, line: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            let error = json!({ "code": PARSE_ERROR, "message": "Parse error" });
            return self.wire.error(&Value::Null, &error);
        };
        let Some(method) = message["method"].as_str().map(str::to_owned) else {
            self.known().answers.push(message);
            return self.wake();
        };
        self.known().received.push(method.clone());
        match message.get("id") {
            Some(id) => self.request(&method, id, &message["params"]),
            None if method == "session/cancel" => self.cancel(&message["params"]),
            None => {}
        }
    }

    fn cancel(&self, params: &Value) {
        let id = params["sessionId"].as_str().unwrap_or_default();
        if let Some(session) = self.known().sessions.get_mut(id) {
            session.cancelled = true;
        }
        self.wake();
    }

    fn request(self: &Arc<Self>, method: &str, id: &Value, params: &Value) {
        let session = params["sessionId"].as_str().unwrap_or_default().to_owned();
        let (session, text) = if method == "session/prompt" {
            match self.begin(&session, params) {
                Ok(text) => (session, text),
                Err(error) => return self.wire.error(id, &error),
            }
        } else {
            match self.answer(method, params) {
                Ok(result) => {
                    let made = result["sessionId"].as_str().map_or(session, str::to_owned);
                    return self.finish(method, id, made, result);
                }
                Err(error) => return self.wire.error(id, &error),
            }
        };
        let mut steps = self.profile.on.get(method).map(|text| script::steps(text)).unwrap_or_default();
        let said = script::steps(&text);
        if said.is_empty() && steps.is_empty() {
            steps.push(script::Step { name: "say".to_owned(), rest: format!("heard: {text}") });
        }
        steps.extend(said);
        let turn = Turn::new(self, Some(id.clone()), &session, json!({ "stopReason": "end_turn" }));
        turn.spawn(steps);
    }

    /// Gives a result, through the method's script where there is one.
    fn finish(self: &Arc<Self>, method: &str, id: &Value, session: String, result: Value) {
        match self.profile.on.get(method) {
            Some(text) => Turn::new(self, Some(id.clone()), &session, result).spawn(script::steps(text)),
            None => self.wire.result(id, &result),
        }
    }

    /// Begins a turn; gives the prompt's text.
    fn begin(&self, id: &str, params: &Value) -> Result<String, Value> {
        let blocks = params["prompt"].as_array().ok_or_else(|| error(INVALID_PARAMS, "prompt is missing"))?;
        let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
        let text = texts.join("\n");
        let mut known = self.known();
        let session = known.sessions.get_mut(id).ok_or_else(|| error(NOT_FOUND, "no such session"))?;
        if session.running {
            return Err(error(INVALID_REQUEST, "a prompt is running"));
        }
        // A turn that is never answered is over for the agent.
        session.running = !script::steps(&text).iter().any(|step| step.name == "never");
        session.cancelled = false;
        session.prompt = params["prompt"].clone();
        session.remember(Role::User, &text);
        // An agent may be killed in the middle of a turn, and asked about it by its successor's user.
        self.store.save(id, session);
        Ok(text)
    }

    fn answer(&self, method: &str, params: &Value) -> Result<Value, Value> {
        if !self.profile.offers(method) {
            return Err(
                json!({ "code": METHOD_NOT_FOUND, "message": "Method not found", "data": { "method": method } }),
            );
        }
        match method {
            "initialize" => {
                self.known().initialize = params.clone();
                Ok(json!({
                    "protocolVersion": self.profile.protocol_version,
                    "agentCapabilities": self.profile.agent_capabilities(),
                    "agentInfo": { "name": self.profile.name, "title": "Fake agent", "version": "1.0.0" },
                    "authMethods": self.auth_methods(),
                }))
            }
            "authenticate" => {
                let known_method = self.profile.auth.iter().any(|id| params["methodId"] == id.as_str());
                if !known_method {
                    return Err(error(INVALID_PARAMS, "no such way to authenticate"));
                }
                self.known().authenticated = true;
                Ok(json!({}))
            }
            "session/new" | "session/load" | "session/resume" | "session/fork" => {
                if !self.profile.auth.is_empty() && !self.known().authenticated {
                    let mut error = error(AUTH_REQUIRED, "Authentication required");
                    error["data"] = json!({ "authMethods": self.auth_methods() });
                    return Err(error);
                }
                self.open(method, params)
            }
            "session/list" => Ok(json!({ "sessions": self.store.list(&self.known().sessions) })),
            "session/close" => {
                self.cancel(params);
                let id = params["sessionId"].as_str().unwrap_or_default();
                let closed = self.known().sessions.remove(id);
                closed.map(|_| json!({})).ok_or_else(|| error(NOT_FOUND, "no such session"))
            }
            _ => offers::set(self, method, params),
        }
    }

    fn auth_methods(&self) -> Value {
        let method = |id: &String| json!({ "id": id, "name": format!("By {id}"), "description": null });
        self.profile.auth.iter().map(method).collect()
    }

    fn open(&self, method: &str, params: &Value) -> Result<Value, Value> {
        let asked = params["sessionId"].as_str().unwrap_or_default();
        let mut session = if method == "session/new" {
            Session::default()
        } else {
            let live = self.known().sessions.get(asked).cloned();
            live.or_else(|| self.store.load(asked)).ok_or_else(|| error(NOT_FOUND, "no such session"))?
        };
        session.opened = params.clone();
        session.cwd = params["cwd"].as_str().unwrap_or_default().to_owned();
        session.running = false;
        let id = if matches!(method, "session/load" | "session/resume") {
            asked.to_owned()
        } else {
            let mut known = self.known();
            known.made += 1;
            format!("fake-{}-{}", std::process::id(), known.made)
        };
        let mut result = offers::of(&self.profile, &session);
        if method == "session/load" {
            session.replay(&id, &self.wire);
        } else {
            result["sessionId"] = json!(id);
        }
        self.store.save(&id, &session);
        self.known().sessions.insert(id, session);
        Ok(result)
    }
}

/// A JSON-RPC error.
pub(crate) fn error(code: i64, message: &str) -> Value {
    json!({ "code": code, "message": message })
}
