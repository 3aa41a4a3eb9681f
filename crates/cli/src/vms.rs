//! `agentos vms` and `agentos dispose`: the VMs that run, and the end of kept ones.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentos::{AgentOs, VmInfo, VmState};
use clap::Args;
use serde_json::json;

use crate::failure::Failure;
use crate::terminal::{harmless_line, print, table};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  agentos vms
  agentos vms --json")]
pub(crate) struct VmsArgs {
    /// One JSON object per VM and line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  agentos dispose box
  agentos dispose box vm-1f4e2a90")]
pub(crate) struct DisposeArgs {
    /// The names of kept VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) async fn list(args: VmsArgs) -> Result<u8, Failure> {
    let vms = AgentOs::list_vms().await?;
    print(&if args.json { as_json(&vms) } else { as_table(&vms) })?;
    Ok(0)
}

pub(crate) async fn dispose(args: DisposeArgs) -> Result<u8, Failure> {
    let mut outcome = Ok(0);
    for name in &args.names {
        // One that can't be disposed is no reason to leave the others running.
        let disposed = async { AgentOs::attach(name).await?.dispose().await };
        if let Err(error) = disposed.await {
            if let Err(earlier) = std::mem::replace(&mut outcome, Err(Failure::from(error))) {
                earlier.report();
            }
        } else {
            print(&format!("disposed {}\n", harmless_line(name)))?;
        }
    }
    outcome
}

fn state(vm: &VmInfo) -> &'static str {
    match vm.state {
        VmState::Running => "running",
        VmState::Disposing => "disposing",
        VmState::Failed => "failed",
        _ => "unknown",
    }
}

fn as_json(vms: &[VmInfo]) -> String {
    let line = |vm: &VmInfo| {
        let object = json!({
            "vmId": vm.vm_id,
            "name": vm.detached_name,
            "state": state(vm),
            "reason": vm.reason,
            "createdAtMs": vm.created_at_ms,
        });
        format!("{object}\n")
    };
    vms.iter().map(line).collect()
}

fn as_table(vms: &[VmInfo]) -> String {
    let mut rows = vec![["NAME", "STATE", "AGE", "ID", ""].map(str::to_owned)];
    for vm in vms {
        let created = UNIX_EPOCH + Duration::from_millis(vm.created_at_ms);
        // A clock that was set back makes a VM young, not an error.
        let age = SystemTime::now().duration_since(created).unwrap_or_default();
        let name = vm.detached_name.as_deref().unwrap_or("-");
        let reason = vm.reason.as_deref().unwrap_or_default();
        rows.push([
            harmless_line(name),
            state(vm).to_owned(),
            short(age),
            harmless_line(&vm.vm_id),
            harmless_line(reason),
        ]);
    }
    table(&rows)
}

/// The largest unit alone: an age is for orientation.
pub(crate) fn short(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [0, 59, 60, 3599, 3600, 86_399, 86_400, 1_000_000].map(Duration::from_secs).map(short);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "23h", "1d", "11d"]);
    }
}
