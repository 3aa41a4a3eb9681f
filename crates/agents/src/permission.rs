//! Who decides what an agent asks before it acts.

/// The rule of one session. It decides how the agent is launched, too: one that must not act unasked is started in its
/// asking mode, one that may do everything in the mode that asks nothing, because its VM is the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PermissionPolicy {
    /// Requests go to the host's handler; without one they are rejected.
    #[default]
    Ask,
    /// Nothing is asked.
    AllowAll,
    /// Every request is rejected.
    RejectAll,
}

impl PermissionPolicy {
    /// Whether the agent has to be started so that it asks before it acts.
    #[must_use]
    pub fn asks(self) -> bool {
        matches!(self, Self::Ask | Self::RejectAll)
    }
}
