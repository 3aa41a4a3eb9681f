//! Carrying out what programs in a VM call: one task per VM, one task per call.
//!
//! ```text
//! begin ─► serving ── call ──► a task: the handler ──► outcome
//!             │  └─ cancelled ──► the task is dropped
//!             └─ the VM or the sidecar is gone ──► all tasks are dropped
//! ```
//! The task of the VM runs nothing of the user's and waits for nothing but the sidecar: a handler that panics is one
//! call, and outcomes that wait for room never keep the sidecar's events waiting, which could keep it from reading them.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;

use agentos_proto::v1;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::connection::Connection;
use crate::convert::tool::{self, Asked};
use crate::tool::{HostTool, Outcome, ToolKit};

/// Outcomes on their way; whoever has one more waits.
const WAITING_OUTCOMES: usize = 16;

type Kits = BTreeMap<String, ToolKit>;

/// A VM's tools, served from here on by [`Serving::run`].
pub(crate) struct Serving {
    kits: Kits,
    events: Streaming<v1::ToolEvent>,
    outcomes: mpsc::Sender<v1::ServeToolsRequest>,
    // Keeps the socket open: a program that holds nothing else of a detached VM still serves it.
    _connection: Connection,
    /// Each ends with the id of its call.
    running: JoinSet<u64>,
    calls: HashMap<u64, AbortHandle>,
}

impl Serving {
    /// Tells the sidecar that this program carries out the VM's tools.
    pub(crate) async fn begin(
        connection: &Connection,
        vm_id: &str,
        kits: Vec<ToolKit>,
    ) -> Result<Self, Status> {
        let (outcomes, waiting) = mpsc::channel(WAITING_OUTCOMES);
        // There is room, and the receiver is right here.
        let _ = outcomes.try_send(tool::begin(vm_id));
        let reply = connection.tool().serve_tools(ReceiverStream::new(waiting)).await?;
        let kits = kits.into_iter().map(|kit| (kit.name.clone(), kit)).collect();
        Ok(Self {
            kits,
            events: reply.into_inner(),
            outcomes,
            _connection: connection.clone(),
            running: JoinSet::new(),
            calls: HashMap::new(),
        })
    }

    /// Carries out calls until the VM, or the sidecar, is gone.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                event = self.events.message() => match event {
                    Ok(Some(event)) => self.handle(event),
                    Ok(None) => return,
                    Err(status) => {
                        tracing::debug!(%status, "host tools are not served any more");
                        return;
                    }
                },
                Some(done) = self.running.join_next() => {
                    // A call that was cancelled is forgotten already.
                    if let Ok(call) = done {
                        self.calls.remove(&call);
                    }
                }
            }
        }
    }

    fn handle(&mut self, event: v1::ToolEvent) {
        match tool::asked(event) {
            Some(Asked::Call { id, kit, tool, input }) => {
                let found = self.kits.get(&kit).and_then(|kit| kit.tools.get(&tool)).cloned();
                let outcomes = self.outcomes.clone();
                let task = self.running.spawn(async move {
                    let outcome = match found {
                        Some(found) => carry_out(&found, &input).await,
                        None => Err(format!("there is no host tool {kit}_{tool}")),
                    };
                    if outcomes.send(tool::outcome(id, outcome)).await.is_err() {
                        tracing::debug!(call = id, "nobody hears the outcome of a host tool");
                    }
                    id
                });
                self.calls.insert(id, task);
            }
            Some(Asked::Cancelled { id }) => {
                if let Some(task) = self.calls.remove(&id) {
                    task.abort();
                }
            }
            None => tracing::debug!("the sidecar tells of host tools what this client does not know"),
        }
    }
}

async fn carry_out(tool: &HostTool, input: &str) -> Outcome {
    let input = serde_json::from_str(input).map_err(|error| format!("the input is no JSON: {error}"))?;
    // Also what the handler does before it gives its future.
    let called = AssertUnwindSafe(async { tool.call(input).await });
    called.catch_unwind().await.unwrap_or_else(|_| Err("the host tool's handler panicked".to_owned()))
}
