//! The states of a live VM and what is legal in them, as plain functions.
//!
//! ```text
//! Ready ──dispose──► Disposing ──init exits, or is killed──► Gone(Disposed)
//!   └──────────────────┴── init dies or lies, launcher dies, fault ──► Gone(reason)
//! ```
//! Creation has its own types, see `create`: a VM that is not ready has no task that could be asked.

use crate::vm::{GoneReason, Unavailable, VmState};

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Ready,
    Disposing,
    Gone(GoneReason),
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Anything a user asks for.
    Work,
    /// Undoing what was begun: legal as long as init listens.
    Undo,
}

/// Whether a request may be sent now.
pub(crate) fn admit(phase: &Phase, purpose: Purpose) -> Result<(), Unavailable> {
    match (phase, purpose) {
        (Phase::Ready, _) | (Phase::Disposing, Purpose::Undo) => Ok(()),
        (Phase::Disposing, Purpose::Work) => Err(Unavailable::Disposing),
        (Phase::Gone(reason), _) => Err(Unavailable::Gone(reason.clone())),
    }
}

/// The phase after somebody asked for the end. None where that changes nothing.
pub(crate) fn dispose(phase: &Phase) -> Option<Phase> {
    match phase {
        Phase::Ready => Some(Phase::Disposing),
        Phase::Disposing | Phase::Gone(_) => None,
    }
}

/// The phase after the VM ended by itself. The first reason stays, and a VM that was being disposed has been disposed,
/// however it went.
pub(crate) fn end(phase: &Phase, reason: GoneReason) -> Phase {
    match phase {
        Phase::Ready => Phase::Gone(reason),
        Phase::Disposing => Phase::Gone(GoneReason::Disposed),
        Phase::Gone(first) => Phase::Gone(first.clone()),
    }
}

/// What the outside sees.
pub(crate) fn visible(phase: &Phase) -> VmState {
    match phase {
        Phase::Ready => VmState::Running,
        Phase::Disposing => VmState::Disposing,
        Phase::Gone(GoneReason::Disposed) => VmState::Disposed,
        Phase::Gone(reason) => VmState::Failed(reason.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_for_ready_vms_and_undoing_for_those_that_still_listen() {
        let gone = Phase::Gone(GoneReason::Fault);
        assert!(admit(&Phase::Ready, Purpose::Work).is_ok());
        assert!(matches!(admit(&Phase::Disposing, Purpose::Work), Err(Unavailable::Disposing)));
        assert!(admit(&Phase::Disposing, Purpose::Undo).is_ok());
        assert!(matches!(admit(&gone, Purpose::Undo), Err(Unavailable::Gone(GoneReason::Fault))));
    }

    #[test]
    fn the_first_reason_stays_and_dispose_wins_over_what_it_causes() {
        let failed = end(&Phase::Ready, GoneReason::Fault);
        assert!(matches!(end(&failed, GoneReason::Disposed), Phase::Gone(GoneReason::Fault)));
        assert!(matches!(end(&Phase::Disposing, GoneReason::Fault), Phase::Gone(GoneReason::Disposed)));
        assert!(dispose(&failed).is_none());
        assert!(dispose(&Phase::Disposing).is_none());
        assert!(matches!(visible(&failed), VmState::Failed(GoneReason::Fault)));
    }
}
