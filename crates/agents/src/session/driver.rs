//! The owner of one session: reads the agent, answers the handles, ends with the agent or before it.
//!
//! Everything that a session knows changes here and nowhere else. One step waits for whatever comes first: output of
//! the agent, a request of a handle, the agent's exit, work that the agent has asked for, a deadline, the caller of a
//! prompt going away. Events are kept before anything that follows them is answered, so a caller that has its reply
//! finds its whole turn in the events.
//!
//! The owner speaks ACP, whatever the agent's own wire is ([`crate::wire`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::error::{AgentFault, PermissionError, PromptError};
use super::link::Link;
use super::permissions::{Answer, Desk, Verdict};
use super::running::{Due, Running};
use super::state::SessionState;
use super::turn::Turn;
use super::workspace::{Answered, Client};
use super::{Prompt, PromptReply, Reply, Request, Shared};
use crate::permission::PermissionReply;
use crate::transcript::{PROMPT, TURN_END};
use crate::wire::acp;
use crate::wire::message::{Message, Notification, RpcError};

/// How long an agent may go on with a turn that was answered without it. Cancelled agents stop within a second; one that
/// never does would leave its session busy for ever.
const SETTLE_GRACE: Duration = Duration::from_secs(10);
/// How long an agent may take to answer anything but a prompt.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long an agent may take to close its session before its input ends.
const CLOSE_GRACE: Duration = Duration::from_millis(500);
/// How long a polite end may take.
const EXIT_GRACE: Duration = Duration::from_secs(3);
/// How long a killed process may take to be gone before it is given up.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// Requests of the agent that may be worked on at once.
const MAX_WORK: usize = 64;

/// What ends the owner's loop.
pub(super) enum End {
    Fault(AgentFault),
    Close { graceful: bool },
}

impl From<AgentFault> for End {
    fn from(fault: AgentFault) -> Self {
        Self::Fault(fault)
    }
}

/// A turn that was answered before the agent was done with it.
struct Settling {
    /// The id of its request.
    number: u64,
    /// When the agent must be done.
    until: Instant,
}

/// A request that waits for the agent's answer.
struct Asked {
    method: String,
    params: Value,
    until: Instant,
    reply: Reply<Value>,
}

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    pub(super) state: SessionState,
    pub(super) client: Client,
    /// While the agent repeats a former session.
    pub(super) replaying: bool,
    /// The state has changed and was not shown yet.
    unseen: bool,
    /// What the agent is told before its next prompt: what it can't remember.
    pub(super) preface: Option<String>,
    desk: Desk,
    handlers: watch::Receiver<usize>,
    next_number: u64,
    turn: Turn,
    running: Option<Running>,
    settling: Option<Settling>,
    asked: HashMap<u64, Asked>,
    /// What the agent has asked for and is being done.
    work: JoinSet<(Value, Answered)>,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, link: Link, desk: Desk, client: Client) -> Self {
        let handlers = shared.board.handlers();
        Self {
            handlers,
            shared,
            link,
            state: SessionState::default(),
            client,
            replaying: false,
            unseen: false,
            preface: None,
            desk,
            next_number: 1,
            turn: Turn::default(),
            running: None,
            settling: None,
            asked: HashMap::new(),
            work: JoinSet::new(),
        }
    }

    /// The owner's life.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let end = loop {
            if let Err(end) = self.step(&mut requests).await {
                break end;
            }
        };
        self.finish(end, requests).await;
    }

    async fn step(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), End> {
        let deadline = self.deadline();
        let Self { link, running, work, handlers, .. } = self;
        let caller_left = async {
            match running {
                Some(running) if !running.is_cancelled() => running.reply.closed().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            messages = link.read() => {
                let messages = messages?;
                self.on_messages(messages).await?;
            }
            request = requests.recv() => match request {
                Some(request) => self.on_request(request).await?,
                // Nobody can ask for anything any more.
                None => return Err(End::Close { graceful: false }),
            },
            Some(done) = work.join_next(), if !work.is_empty() => {
                // Work that panicked is a request without an answer, which is the agent's to wait for.
                if let Ok((id, answered)) = done {
                    self.link.deliver(&id, answered)?;
                }
            }
            // The deadlines of what waits are others now.
            Ok(()) = handlers.changed() => {}
            () = caller_left => drop(self.cancel(None).await?),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                // What it has said while its last words were kept is no silence.
                if let Some(messages) = self.link.read_now().await {
                    self.on_messages(messages?).await?;
                }
                self.on_deadline().await?;
            }
        }
        Ok(())
    }

    pub(super) async fn on_messages(&mut self, messages: Vec<Message>) -> Result<(), AgentFault> {
        let mut events = Vec::new();
        for message in messages {
            match message {
                Message::Notification(notification) => events.push(self.on_notification(notification)?),
                // An extension asks its user: nobody is there, so it was told no, and the events say so.
                Message::Declined { id, title } => {
                    if let Some(running) = &mut self.running {
                        running.rejected += 1;
                    }
                    let params =
                        json!({ "permissionId": id, "description": title, "reason": "no one can answer" });
                    events.push(acp::notification("_agentos/permission_rejected", &params));
                }
                Message::Response { id, outcome } => {
                    self.publish(std::mem::take(&mut events)).await?;
                    self.on_response(id, outcome).await?;
                }
                Message::Request { id, method, params } => {
                    self.publish(std::mem::take(&mut events)).await?;
                    match params {
                        Ok(params) => self.on_agent_request(id, &method, params).await?,
                        Err(error) => self.link.answer(&id, &Err(error))?,
                    }
                }
                // The link has dealt with them.
                Message::Unasked | Message::Garbage | Message::TooLong { .. } => {}
            }
        }
        if std::mem::take(&mut self.unseen) {
            self.show_state();
        }
        self.publish(events).await
    }

    pub(super) fn on_notification(&mut self, notification: Notification) -> Result<String, AgentFault> {
        // What it says of another session is kept, and changes nothing here.
        let own = &self.state.agent_session_id;
        if notification.session_id.is_some_and(|id| !own.is_empty() && id != *own) {
            return Ok(notification.text);
        }
        self.turn.apply(&notification.update)?;
        self.unseen |= self.state.apply(&notification.update);
        Ok(notification.text)
    }

    pub(super) async fn publish(&mut self, events: Vec<String>) -> Result<(), AgentFault> {
        self.shared.log.publish(events).await.map_err(AgentFault::Transcript)
    }

    /// Shows the handles what the agent is now.
    pub(super) fn show_state(&self) {
        self.shared.show(self.state.clone());
    }

    async fn on_response(&mut self, id: u64, outcome: Result<Value, RpcError>) -> Result<(), AgentFault> {
        if let Some(Asked { method, params, reply, .. }) = self.asked.remove(&id) {
            let answer = match outcome {
                Ok(result) => {
                    if self.state.agreed(&method, &params, &result) {
                        self.show_state();
                    }
                    acp::response(id, &result)
                }
                Err(error) => acp::error_response(id, &error),
            };
            // A caller that left doesn't want it.
            let _ = reply.send(Ok(answer));
            return Ok(());
        }
        self.settling.take_if(|settling| settling.number == id);
        let Some(running) = self.running.take_if(|running| running.number == id) else { return Ok(()) };
        self.settled(running, outcome).await
    }

    /// The turn is over, as the agent says.
    async fn settled(
        &mut self,
        mut running: Running,
        outcome: Result<Value, RpcError>,
    ) -> Result<(), AgentFault> {
        if let Some(cancelled) = running.cancelled() {
            return self.conclude(running, cancelled.map(|()| json!({ "stopReason": "cancelled" }))).await;
        }
        let result = match (outcome, self.turn.failure()) {
            (Ok(_), Some(reason)) => Err(PromptError::Model { reason }),
            (Ok(result), None) => {
                let handled = result["_meta"][acp::HANDLED] == true;
                let ended = result["stopReason"].as_str().unwrap_or("end_turn") == "end_turn";
                if ended && self.turn.is_empty() && running.rejected == 0 && !handled {
                    Err(PromptError::EmptyTurn { log: self.link.log() })
                } else {
                    Ok(result)
                }
            }
            (Err(error), _)
                if (-32700..=-32600).contains(&error.code) && error.code != acp::INTERNAL_ERROR =>
            {
                Err(PromptError::Refused { reason: error.to_string() })
            }
            // What is left for an agent to fail with is its model.
            (Err(error), _) => Err(PromptError::Model { reason: error.to_string() }),
        };
        self.conclude(running, result).await
    }

    /// The agent asks its client for something.
    async fn on_agent_request(&mut self, id: Value, method: &str, params: Value) -> Result<(), AgentFault> {
        if method == "session/request_permission" {
            return match self.desk.judge(id, params) {
                Verdict::Answered(answer) => self.deliver(*answer).await,
                Verdict::Waits { number, event: (method, params) } => {
                    self.publish(vec![acp::notification(method, &params)]).await?;
                    if let Some(event) = self.shared.log.newest() {
                        self.desk.show(number, event);
                    }
                    Ok(())
                }
            };
        }
        if self.work.len() >= MAX_WORK {
            let error =
                RpcError::new(acp::INTERNAL_ERROR, format!("{MAX_WORK} requests are under way already"));
            return self.link.answer(&id, &Err(error));
        }
        let answer = self.client.answer(method, &params, self.desk.lets_act());
        self.work.spawn(async move { (id, answer.await) });
        Ok(())
    }

    /// Answers a request for permission; the event of it is kept first.
    async fn deliver(&mut self, answer: Answer) -> Result<(), AgentFault> {
        let (method, params) = answer.event;
        self.publish(vec![acp::notification(method, &params)]).await?;
        if let Some(running) = self.running.as_mut().filter(|_| answer.unasked_rejection) {
            running.rejected += 1;
        }
        self.link.answer(&answer.agent_id, &Ok(answer.result))
    }

    async fn on_request(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Prompt { prompt, reply } => self.begin(prompt, reply).await?,
            Request::Cancel { reply } => drop(reply.send(self.cancel(None).await?)),
            Request::Raw { method, params, reply } => self.raw(method, params, reply).await?,
            Request::Permission { id, reply, done } => drop(done.send(self.permit(&id, reply).await?)),
            Request::Close { graceful } => return Err(End::Close { graceful }),
        }
        Ok(())
    }

    async fn permit(
        &mut self,
        id: &str,
        reply: PermissionReply,
    ) -> Result<Result<(), PermissionError>, AgentFault> {
        match self.desk.reply(id, reply) {
            Ok(answer) => self.deliver(answer).await.map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn begin(&mut self, prompt: Prompt, reply: Reply<PromptReply>) -> Result<(), AgentFault> {
        if self.running.is_some() || self.settling.is_some() {
            let _ = reply.send(Err(PromptError::Busy { session: self.shared.id.to_string() }));
            return Ok(());
        }
        self.link.begin_turn();
        self.turn = Turn::default();
        let number = self.number();
        let preface = self.preface.clone().map(|text| json!({ "type": "text", "text": text }));
        let blocks: Vec<&Value> = preface.iter().chain(&prompt.content).collect();
        let params = json!({ "sessionId": self.state.agent_session_id, "prompt": blocks });
        self.link.request(number, "session/prompt", &params)?;
        self.running = Some(Running::new(number, &prompt, reply));
        // The agent works on it already; its first word waits behind this.
        self.publish(vec![acp::notification(PROMPT, &json!({ "content": prompt.content }))]).await
    }

    async fn raw(&mut self, method: String, params: Value, reply: Reply<Value>) -> Result<(), AgentFault> {
        let number = self.number();
        match method.as_str() {
            "session/cancel" => {
                let cancelled = self.cancel(None).await?;
                let _ = reply.send(Ok(acp::response(number, &json!({ "cancelled": cancelled }))));
                return Ok(());
            }
            "session/prompt" => {
                let error = RpcError::new(acp::INVALID_REQUEST, "prompts have a call of their own");
                let _ = reply.send(Ok(acp::error_response(number, &error)));
                return Ok(());
            }
            _ => {}
        }
        let params = self.with_session_id(&method, params);
        self.link.request(number, &method, &params)?;
        let until = Instant::now() + ANSWER_TIMEOUT;
        self.asked.insert(number, Asked { method, params, until, reply });
        Ok(())
    }

    /// Callers know the session by our id, or don't name it; the agent has one of its own. Of methods that aren't about
    /// one session, and of an agent's own ones, nobody knows whether they want it: it is there only where the caller
    /// has put ours.
    fn with_session_id(&self, method: &str, params: Value) -> Value {
        let of_a_session =
            method.starts_with("session/") && !matches!(method, "session/new" | "session/list");
        let mut params = match params {
            Value::Null => json!({}),
            params => params,
        };
        if let Value::Object(fields) = &mut params
            && (of_a_session || fields.contains_key("sessionId"))
        {
            let own = fields.get("sessionId").is_none_or(|id| *id == self.shared.id.as_str());
            if own {
                fields.insert("sessionId".to_owned(), json!(self.state.agent_session_id));
            }
        }
        params
    }

    pub(super) fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Begins to cancel the running turn; false where there is none.
    async fn cancel(&mut self, because: Option<PromptError>) -> Result<bool, AgentFault> {
        let repeat = self.link.repeats_cancel();
        let Some(running) = &mut self.running else { return Ok(false) };
        if running.cancel(because, repeat) {
            self.tell_cancel()?;
            for answer in self.desk.cancel() {
                self.deliver(answer).await?;
            }
        }
        Ok(true)
    }

    fn tell_cancel(&mut self) -> Result<(), AgentFault> {
        self.link.notify("session/cancel", &json!({ "sessionId": self.state.agent_session_id }))
    }

    /// When something must happen although nothing comes.
    fn deadline(&self) -> Option<Instant> {
        let answers = self.asked.values().map(|asked| asked.until);
        let settled = self.settling.as_ref().map(|settling| settling.until);
        answers.chain(self.turn_deadline()).chain(settled).chain(self.desk.deadline()).min()
    }

    fn turn_deadline(&self) -> Option<Instant> {
        let works = self.turn.tool_runs() || self.desk.waits() || !self.work.is_empty();
        self.running.as_ref()?.deadline(self.link.heard(), works)
    }

    async fn on_deadline(&mut self) -> Result<(), AgentFault> {
        let now = Instant::now();
        for answer in self.desk.expire(now) {
            self.deliver(answer).await?;
        }
        let unanswered: Vec<u64> =
            self.asked.iter().filter(|(_, asked)| asked.until <= now).map(|(number, _)| *number).collect();
        for number in unanswered {
            self.link.forget(number);
            let Some(asked) = self.asked.remove(&number) else { continue };
            let error = PromptError::Unanswered { method: asked.method, waited: ANSWER_TIMEOUT };
            let _ = asked.reply.send(Err(error));
        }
        if self.settling.as_ref().is_some_and(|settling| settling.until <= now) {
            return Err(AgentFault::Unstoppable { waited: SETTLE_GRACE });
        }
        if self.turn_deadline().is_some_and(|deadline| deadline <= now) {
            self.on_turn_deadline(now).await?;
        }
        Ok(())
    }

    async fn on_turn_deadline(&mut self, now: Instant) -> Result<(), AgentFault> {
        let trouble = self.turn.trouble(self.link.turn_log());
        match self.running.as_mut().map(|running| running.due(now, trouble)) {
            Some(Due::Over(error)) => self.cancel(Some(error)).await.map(drop),
            Some(Due::Again) => self.tell_cancel(),
            Some(Due::Answer) => {
                let Some(running) = self.running.take() else { return Ok(()) };
                self.settling = Some(Settling { number: running.number, until: now + SETTLE_GRACE });
                self.settled(running, Ok(Value::Null)).await
            }
            None => Ok(()),
        }
    }

    /// Ends a turn: what waits for the host is cancelled, the end is kept, the caller gets its reply.
    async fn conclude(
        &mut self,
        running: Running,
        result: Result<Value, PromptError>,
    ) -> Result<(), AgentFault> {
        let mut told = Ok(());
        for answer in self.desk.cancel() {
            told = told.and(self.deliver(answer).await);
        }
        // What it was told beforehand has arrived.
        if result.as_ref().is_ok_and(|result| result["stopReason"] != "cancelled") {
            self.preface = None;
        }
        let end = match &result {
            Ok(result) => {
                json!({ "stopReason": result["stopReason"], "rejectedPermissions": running.rejected })
            }
            Err(error) => {
                json!({ "error": { "kind": error.kind().as_str(), "message": error.to_string() } })
            }
        };
        let kept = self.publish(vec![acp::notification(TURN_END, &end)]).await;
        let reply = match &kept {
            Ok(()) => result.map(|result| PromptReply {
                text: std::mem::take(&mut self.turn.text),
                stop_reason: result["stopReason"].as_str().unwrap_or("end_turn").to_owned(),
                response: acp::response(running.number, &result),
                model: self.shared.model.kind,
                rejected_permissions: running.rejected,
            }),
            Err(fault) => Err(fault.clone().into()),
        };
        self.shared.turns.send_replace(self.shared.log.last());
        // A caller that left doesn't want it.
        let _ = running.reply.send(reply);
        kept.and(told)
    }

    /// Ends the agent and everything that waits for it.
    async fn finish(mut self, end: End, mut requests: mpsc::Receiver<Request>) {
        requests.close();
        let fault = match end {
            End::Fault(fault) => fault,
            End::Close { graceful } => {
                if graceful {
                    self.part().await;
                }
                AgentFault::Closed
            }
        };
        self.work.shutdown().await;
        self.link.kill(KILL_GRACE).await;
        if let Some(running) = self.running.take() {
            // A transcript that can't be written says so to the caller alone.
            let _ = self.conclude(running, Err(fault.clone().into())).await;
        }
        let _ = self.shared.fate.set(fault.clone());
        for (_, asked) in self.asked.drain() {
            let _ = asked.reply.send(Err(fault.clone().into()));
        }
        while let Some(request) = requests.recv().await {
            match request {
                Request::Prompt { reply, .. } => drop(reply.send(Err(fault.clone().into()))),
                Request::Raw { reply, .. } => drop(reply.send(Err(fault.clone().into()))),
                Request::Cancel { reply } => drop(reply.send(false)),
                Request::Permission { id, done, .. } => {
                    drop(done.send(Err(PermissionError::NotFound { id })))
                }
                Request::Close { .. } => {}
            }
        }
        drop(self.desk);
        self.shared.log.end(&fault).await;
    }

    /// The polite end: the turn is cancelled, the agent closes its session where it can do that, the input ends, what the
    /// agent still says is kept.
    async fn part(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = self.tell_cancel();
            // One whose time was over before says so.
            let cancelled = running.cancelled().unwrap_or(Ok(()));
            let result = cancelled.map(|()| json!({ "stopReason": "cancelled" }));
            let _ = self.conclude(running, result).await;
        }
        if self.state.initialize["agentCapabilities"]["sessionCapabilities"]["close"].is_object() {
            // Some leave commands running otherwise.
            let (reply, answer) = oneshot::channel();
            match self.raw("session/close".to_owned(), Value::Null, reply).await {
                Ok(()) => self.hear_out(CLOSE_GRACE, answer).await,
                Err(fault) => tracing::debug!(%fault, "an agent is not told that its session is closed"),
            }
        }
        self.link.hang_up();
        // Beyond the grace the agent is killed like any other.
        self.hear_out(EXIT_GRACE, std::future::pending::<()>()).await;
    }

    /// Keeps what the agent says until its output ends, `enough` is there or the time is over.
    async fn hear_out(&mut self, at_most: Duration, enough: impl Future) {
        let until = Instant::now() + at_most;
        let mut enough = std::pin::pin!(enough);
        loop {
            let messages = tokio::select! {
                _ = &mut enough => return,
                () = sleep_until(until) => return,
                messages = self.link.read() => messages,
            };
            // Not within the time: an event that is given up half-way may be kept or not.
            let Ok(messages) = messages else { return };
            if self.on_messages(messages).await.is_err() {
                return;
            }
        }
    }
}
