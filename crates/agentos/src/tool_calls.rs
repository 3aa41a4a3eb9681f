//! Carrying out what programs in a VM call: one task per VM, one task per call.
//!
//! ```text
//! begin ─► serving ── call ──► a task: the handler ──► outcome
//!             │  └─ cancelled ──► the task is dropped
//!             └─ the VM or the sidecar is gone ──► all tasks are dropped
//! ```

use std::collections::{BTreeMap, HashMap};

use agentos_proto::v1;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::connection::Connection;
use crate::convert::tool::{self, Asked};
use crate::tool::{Outcome, ToolKit};

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
    running: JoinSet<Outcome>,
    calls: Calls,
}

/// The calls that are being carried out: by their tasks, and the tasks by them.
#[derive(Default)]
struct Calls {
    ids: HashMap<Id, u64>,
    tasks: HashMap<u64, AbortHandle>,
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
            calls: Calls::default(),
        })
    }

    /// Carries out calls until the VM, or the sidecar, is gone.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                event = self.events.message() => match event {
                    Ok(Some(event)) => self.handle(event).await,
                    Ok(None) => return,
                    Err(status) => {
                        tracing::debug!(%status, "host tools are not served any more");
                        return;
                    }
                },
                Some(done) = self.running.join_next_with_id() => {
                    let (task, outcome) = match done {
                        Ok((task, outcome)) => (task, outcome),
                        Err(error) => (error.id(), Err(format!("the host tool's handler ended: {error}"))),
                    };
                    if let Some(call) = self.calls.done(task) {
                        self.tell(call, outcome).await;
                    }
                }
            }
        }
    }

    async fn handle(&mut self, event: v1::ToolEvent) {
        match tool::asked(event) {
            Some(Asked::Call { id, kit, tool, input }) => {
                let found = self.kits.get(&kit).and_then(|kit| kit.tools.get(&tool));
                match (found, serde_json::from_str(&input)) {
                    (Some(found), Ok(input)) => {
                        let task = self.running.spawn(found.call(input));
                        self.calls.ids.insert(task.id(), id);
                        self.calls.tasks.insert(id, task);
                    }
                    (None, _) => self.tell(id, Err(format!("there is no host tool {kit}_{tool}"))).await,
                    (_, Err(error)) => self.tell(id, Err(format!("the input is no JSON: {error}"))).await,
                }
            }
            Some(Asked::Cancelled { id }) => self.calls.cancel(id),
            None => tracing::debug!("the sidecar tells of host tools what this client does not know"),
        }
    }

    async fn tell(&self, call: u64, outcome: Outcome) {
        if self.outcomes.send(tool::outcome(call, outcome)).await.is_err() {
            tracing::debug!(call, "nobody hears the outcome of a host tool");
        }
    }
}

impl Calls {
    /// The call of a task that has ended; none where it was cancelled.
    fn done(&mut self, task: Id) -> Option<u64> {
        let call = self.ids.remove(&task)?;
        self.tasks.remove(&call).map(|_| call)
    }

    fn cancel(&mut self, call: u64) {
        if let Some(task) = self.tasks.remove(&call) {
            task.abort();
        }
    }
}
