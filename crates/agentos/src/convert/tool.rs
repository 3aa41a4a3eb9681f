//! Host tools.

use agentos_proto::v1::{self, serve_tools_request::Part, tool_event::Event, tool_outcome};

use crate::tool::{HostTool, Outcome, ToolKit, ToolPermissions};

/// What the sidecar wants of a program that serves tools.
pub(crate) enum Asked {
    Call { id: u64, kit: String, tool: String, input: String },
    Cancelled { id: u64 },
}

pub(crate) fn kit(kit: &ToolKit) -> v1::ToolKit {
    v1::ToolKit {
        name: kit.name.clone(),
        description: kit.description.clone(),
        tools: kit.tools.iter().map(|(name, tool)| host_tool(name, tool)).collect(),
    }
}

fn host_tool(name: &str, tool: &HostTool) -> v1::HostTool {
    let examples = tool.examples.iter();
    v1::HostTool {
        name: name.to_owned(),
        description: tool.description.clone(),
        input_schema: tool.input_schema.to_string(),
        examples: examples
            .map(|(description, input)| v1::ToolExample {
                description: description.clone(),
                input: input.to_string(),
            })
            .collect(),
        timeout_ms: tool.timeout.map(super::millis),
    }
}

pub(crate) fn permissions(permissions: ToolPermissions) -> v1::ToolPermissions {
    let rules = permissions.rules.into_iter();
    v1::ToolPermissions {
        denied: permissions.denied,
        rules: rules.map(|(denied, pattern)| v1::ToolRule { denied, pattern }).collect(),
    }
}

/// The sidecar takes no more, and need not get it to say so.
const MAX_ANSWER_BYTES: usize = 1 << 20;

pub(crate) fn begin(vm_id: &str) -> v1::ServeToolsRequest {
    v1::ServeToolsRequest { part: Some(Part::VmId(vm_id.to_owned())) }
}

pub(crate) fn outcome(call_id: u64, outcome: Outcome) -> v1::ServeToolsRequest {
    let outcome = outcome.map(|output| output.to_string());
    let bytes = outcome.as_ref().map_or_else(String::len, String::len);
    let outcome = match outcome {
        _ if bytes > MAX_ANSWER_BYTES => tool_outcome::Outcome::Error(format!(
            "the host tool's answer has {bytes} bytes, of at most {MAX_ANSWER_BYTES}"
        )),
        Ok(output) => tool_outcome::Outcome::Output(output),
        Err(error) => tool_outcome::Outcome::Error(error),
    };
    v1::ServeToolsRequest { part: Some(Part::Outcome(v1::ToolOutcome { call_id, outcome: Some(outcome) })) }
}

/// None for what a newer sidecar may tell.
pub(crate) fn asked(event: v1::ToolEvent) -> Option<Asked> {
    Some(match event.event? {
        Event::Call(v1::ToolCall { call_id, kit, tool, input }) => {
            Asked::Call { id: call_id, kit, tool, input }
        }
        Event::CancelledCallId(id) => Asked::Cancelled { id },
    })
}
