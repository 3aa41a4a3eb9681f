//! What the sessions of one VM share: the mounted store, the way to the offline model, the file of instructions.
//!
//! It belongs to its VM and goes with it, so that nothing of a VM that is gone stays in a list. Its lock is held while
//! the VM is asked to mount or to listen, which a guest may draw out: the VM's own sessions then wait, nobody else's.

use agentos_agents::plan::PlanMount;
use agentos_agents::{Session, SessionId};
use agentos_vm::Vm;
use tokio::sync::Mutex;

use super::instructions::Instructions;
use super::launch::mount_plan;
use super::{SessionDefaults, SessionHost};
use crate::demo_model::{DemoModel, Forwarder};
use crate::errors::Failure;

/// The sessions' share of a VM.
#[derive(Debug)]
pub(crate) struct VmSessions {
    pub(crate) defaults: SessionDefaults,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    packages: bool,
    model: Option<Forwarder>,
    instructions: Option<Instructions>,
}

impl VmSessions {
    pub(crate) fn new(defaults: SessionDefaults) -> Self {
        Self { defaults, shared: Mutex::default() }
    }

    /// Mounts what every session of the VM needs, once.
    pub(super) async fn mount_packages(&self, vm: &Vm, mounts: &[PlanMount]) -> Result<(), Failure> {
        let mut shared = self.shared.lock().await;
        // Agents that need nothing of the store have nothing mounted; the next one may.
        if !shared.packages && !mounts.is_empty() {
            for mount in mounts {
                mount_plan(vm, mount).await?;
            }
            shared.packages = true;
        }
        Ok(())
    }

    /// Makes the offline model reachable in the VM and says where.
    pub(super) async fn serve_demo(&self, vm: &Vm, model: &DemoModel) -> Result<String, Failure> {
        let mut shared = self.shared.lock().await;
        Ok(model.serve(vm, &mut shared.model).await?)
    }

    /// Shows the VM a session's instructions as a file. The agent has them already, so that a VM without the file is
    /// none the worse. Not to be dropped before its end: the file would be written without the lock.
    pub(super) async fn show_instructions(
        &self,
        vm: &Vm,
        host: &SessionHost,
        session: &Session,
        text: String,
    ) {
        let mut shared = self.shared.lock().await;
        let shown = async {
            let instructions = match shared.instructions.take() {
                Some(there) => there,
                None => Instructions::mount(vm, host.scratch().await?).await?,
            };
            shared.instructions.insert(instructions).show(session, text).await
        };
        if let Err(failure) = shown.await {
            tracing::warn!(session = %session.id(), reason = failure.message(), "no file of instructions");
        }
    }

    /// Takes back the instructions of a session that is over.
    pub(super) async fn hide_instructions(&self, session: &SessionId) {
        let mut shared = self.shared.lock().await;
        if let Some(instructions) = &mut shared.instructions {
            instructions.hide(session).await;
        }
    }
}
