//! `agentos-tools`: the host's tools, from a program in a VM.
//!
//! ```text
//! list, describe, call ─► one request each ─► the MCP server on the VM's loopback device
//! mcp ─► each line of standard input is one request, each answer one line of standard output
//! ```
//! It is this binary under another name, and knows nothing but that server.

mod bridge;
mod request;

use std::ffi::OsStr;
use std::io::{IsTerminal, Read};
use std::path::Path;

use agentos_sidecar::{HOST_TOOLS_COMMAND, HOST_TOOLS_MAX_REQUEST_BYTES};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use thiserror::Error;

use self::request::{RequestError, call};
use crate::failure::{self, Failure, OTHER, USAGE};
use crate::terminal::{harmless, harmless_line, json_line, print};

/// The application that offers the tools can't be reached.
const UNREACHABLE: u8 = 3;

/// The server takes requests of so many bytes.
const MAX_REQUEST_BYTES: u64 = HOST_TOOLS_MAX_REQUEST_BYTES as u64;

#[derive(Debug, Parser)]
#[command(
    name = HOST_TOOLS_COMMAND,
    version,
    about = "Call functions of the application that runs this machine",
    max_term_width = 100,
    after_help = "Examples:
  agentos-tools list
  agentos-tools describe weather_forecast
  agentos-tools call weather_forecast '{\"city\": \"Oslo\"}'
  echo '{\"city\": \"Oslo\"}' | agentos-tools call weather_forecast -

Exit codes:
  0 done; 1 the tool failed or was refused; 2 wrong usage; 3 the tools can't be reached."
)]
struct Tools {
    #[command(subcommand)]
    command: ToolsCommand,
}

#[derive(Debug, Subcommand)]
enum ToolsCommand {
    /// List the tools
    List {
        /// One JSON object per tool and line
        #[arg(long)]
        json: bool,
    },
    /// Show what a tool does and what it takes
    Describe {
        /// Its name, as `list` shows it
        name: String,
    },
    /// Call a tool and print its answer
    Call {
        /// Its name, as `list` shows it
        name: String,
        /// Its input, a JSON object; `-` reads it from standard input
        #[arg(default_value = "{}")]
        input: String,
    },
    /// Speak MCP on standard input and output
    Mcp,
}

/// Why a command of `agentos-tools` failed.
#[derive(Debug, Error)]
enum ToolsError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("there is no tool {0}; `agentos-tools list` shows those that there are")]
    Unknown(String),
    #[error("the input is no JSON object: {0}")]
    Input(String),
    #[error("the input is too long: a request has at most {MAX_REQUEST_BYTES} bytes")]
    TooLong,
    #[error("cannot read standard input")]
    Stdin(#[source] std::io::Error),
    #[error("{0}")]
    Tool(String),
    #[error(transparent)]
    Output(#[from] Failure),
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
}

impl ToolsError {
    fn code(&self) -> u8 {
        match self {
            Self::Request(RequestError::Unreachable(_)) => UNREACHABLE,
            Self::Unknown(_) | Self::Input(_) | Self::TooLong => USAGE,
            Self::Output(failure) => failure.code(),
            _ => OTHER,
        }
    }
}

/// The exit code, where the binary was called by the command's name.
pub(crate) fn run_if_called(program: Option<&OsStr>) -> Option<u8> {
    let name = Path::new(program?).file_name()?;
    (name == HOST_TOOLS_COMMAND).then(|| {
        run().unwrap_or_else(|error| {
            failure::tell(HOST_TOOLS_COMMAND, &error, None);
            error.code()
        })
    })
}

fn run() -> Result<u8, ToolsError> {
    let command = Tools::parse().command;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ToolsError::Runtime)?;
    let done = runtime.block_on(carry_out(command));
    // A read of a standard input that nobody ends must not hold up the end.
    runtime.shutdown_background();
    done.map(|()| 0)
}

async fn carry_out(command: ToolsCommand) -> Result<(), ToolsError> {
    match command {
        ToolsCommand::List { json } => {
            let tools = tools().await?;
            let lines = tools.iter().map(|tool| if json { json_line(tool) } else { line(tool) });
            Ok(print(&lines.collect::<String>())?)
        }
        ToolsCommand::Describe { name } => {
            let tools = tools().await?;
            let tool = tools.iter().find(|tool| tool["name"] == name.as_str());
            Ok(print(&described(tool.ok_or(ToolsError::Unknown(name))?))?)
        }
        ToolsCommand::Call { name, input } => {
            let input = if input == "-" { whole_stdin()? } else { input };
            let arguments: Value =
                serde_json::from_str(&input).map_err(|error| ToolsError::Input(error.to_string()))?;
            if !arguments.is_object() {
                return Err(ToolsError::Input("it is another kind of JSON".to_owned()));
            }
            let result = call("tools/call", json!({ "name": name, "arguments": arguments })).await?;
            let text = text(&result);
            if result["isError"] == true {
                Err(ToolsError::Tool(text))
            } else {
                // Programs get it as it is. It may be anybody's text, which must not control a terminal.
                let text = if std::io::stdout().is_terminal() { harmless(&text) } else { text };
                Ok(print(&format!("{text}\n"))?)
            }
        }
        ToolsCommand::Mcp => Ok(bridge::run().await?),
    }
}

async fn tools() -> Result<Vec<Value>, ToolsError> {
    let mut result = call("tools/list", json!({})).await?;
    match result["tools"].take() {
        Value::Array(tools) => Ok(tools),
        _ => Ok(Vec::new()),
    }
}

fn line(tool: &Value) -> String {
    let description = tool["description"].as_str().unwrap_or_default();
    let first = description.lines().next().unwrap_or_default();
    format!("{}  {}\n", harmless_line(tool["name"].as_str().unwrap_or_default()), harmless_line(first))
}

fn described(tool: &Value) -> String {
    let description = tool["description"].as_str().unwrap_or_default();
    harmless(&format!("{description}\n\nInput:\n{:#}\n", tool["inputSchema"]))
}

/// The texts of an answer: a tool of ours has no other parts.
fn text(result: &Value) -> String {
    let parts = result["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
}

fn whole_stdin() -> Result<String, ToolsError> {
    let mut input = String::new();
    let read = std::io::stdin().take(MAX_REQUEST_BYTES + 1).read_to_string(&mut input);
    match read.map_err(ToolsError::Stdin)? as u64 {
        ..=MAX_REQUEST_BYTES => Ok(input),
        _ => Err(ToolsError::TooLong),
    }
}
