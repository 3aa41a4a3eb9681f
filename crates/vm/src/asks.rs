//! What is asked of a VM's owner task without waiting: by drops, which can't, and by dispose, which must not stand in a
//! queue behind the work it ends. Bounded by what is being dropped: each process and each write asks at most once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentos_guest_protocol::filesystem::WriteTicket;
use tokio::sync::Notify;

use crate::process::live::LiveProcess;
use crate::sync::lock;

#[derive(Debug, Default)]
pub(crate) struct Asks {
    /// Held for pushing or taking.
    list: Mutex<AskList>,
    asked: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct AskList {
    /// Process groups to be killed.
    pub(crate) kills: Vec<Arc<LiveProcess>>,
    /// Writes nobody will commit.
    pub(crate) aborts: Vec<WriteTicket>,
    /// The shortest grace anybody asked for.
    pub(crate) dispose: Option<Duration>,
}

impl Asks {
    pub(crate) fn kill(&self, process: Arc<LiveProcess>) {
        self.ask(|list| list.kills.push(process));
    }

    pub(crate) fn abort(&self, ticket: WriteTicket) {
        self.ask(|list| list.aborts.push(ticket));
    }

    pub(crate) fn dispose(&self, grace: Duration) {
        self.ask(|list| list.dispose = Some(list.dispose.map_or(grace, |other| other.min(grace))));
    }

    fn ask(&self, change: impl FnOnce(&mut AskList)) {
        change(&mut lock(&self.list));
        self.asked.notify_one();
    }

    /// Waits for asks and takes them.
    pub(crate) async fn take(&self) -> AskList {
        self.asked.notified().await;
        std::mem::take(&mut *lock(&self.list))
    }
}
