//! `agentos sidecar`: the daemon. The SDK starts it; nobody else needs to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct SidecarArgs {
    /// Listen at this socket [default: NAME.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The sidecar's id
    #[arg(long)]
    id: Option<String>,
    /// Serve every client that names this pool, and not its starter alone
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// State directory [default: $AGENTOS_HOME, else ~/.local/share/agentos]
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Stay this long after the last client and the last kept VM
    #[arg(long, value_name = "N", default_value_t = 500)]
    linger_ms: u64,
}

/// To be called on the main thread before any other exists.
pub(crate) fn run(args: SidecarArgs) -> Result<u8, Failure> {
    let SidecarArgs { socket, id, pool, home, linger_ms } = args;
    let linger = Duration::from_millis(linger_ms);
    agentos_sidecar::run(agentos_sidecar::Options { socket, id, pool, home, linger })?;
    Ok(0)
}
