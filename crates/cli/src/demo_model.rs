//! `agentos demo-model`: the offline scripted model by itself.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::failure::Failure;
use crate::spec::ListenSpec;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  agentos demo-model --listen tcp:127.0.0.1:0
  agentos demo-model --listen unix:/tmp/model.sock --request-log requests.jsonl")]
pub(crate) struct DemoModelArgs {
    /// Where to listen: unix:PATH or tcp:ADDRESS:PORT; port 0 picks a free one
    #[arg(long, value_name = "WHERE", default_value = "tcp:127.0.0.1:0")]
    listen: ListenSpec,
    /// Append one JSON line for every request to this file
    #[arg(long, value_name = "FILE")]
    request_log: Option<PathBuf>,
    /// End when standard input does
    #[arg(long)]
    exit_with_stdin: bool,
}

/// Prints one line with its address when it accepts connections, and serves.
pub(crate) async fn run(args: DemoModelArgs) -> Result<u8, Failure> {
    let options = agentos_demo_model::Options {
        listen: args.listen.0,
        request_log: args.request_log,
        exit_with_stdin: args.exit_with_stdin,
    };
    agentos_demo_model::run(options, |address| {
        // Whoever closed standard output doesn't want to know.
        let _ = writeln!(std::io::stdout(), "{address}");
    })
    .await?;
    Ok(0)
}
