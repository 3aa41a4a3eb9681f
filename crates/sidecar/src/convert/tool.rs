//! Calls of host tools and what came of them.

use agentos_proto::v1::{self, tool_event::Event, tool_outcome};

use crate::errors::Failure;
use crate::tools::{Outcome, ToolEvent};

pub(crate) fn event(event: ToolEvent) -> v1::ToolEvent {
    let event = match event {
        ToolEvent::Call { id, kit, tool, input } => {
            Event::Call(v1::ToolCall { call_id: id, kit, tool, input })
        }
        ToolEvent::Cancelled { id } => Event::CancelledCallId(id),
    };
    v1::ToolEvent { event: Some(event) }
}

pub(crate) fn outcome(outcome: v1::ToolOutcome) -> Result<(u64, Outcome), Failure> {
    let said = match outcome.outcome {
        Some(tool_outcome::Outcome::Output(output)) => Ok(output),
        Some(tool_outcome::Outcome::Error(error)) => Err(error),
        None => return Err(Failure::invalid("outcome", "A call has neither output nor error")),
    };
    Ok((outcome.call_id, said))
}
