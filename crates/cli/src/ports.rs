//! `agentos ports` and `agentos forward`: what listens in a kept VM, and ways to it from this host.

use agentos::{AgentOs, ListeningPort, PortForward};
use clap::Args;
use serde_json::json;

use crate::failure::Failure;
use crate::signals::Signals;
use crate::spec::PublishSpec;
use crate::terminal::{harmless_line, json_line, print, table};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  agentos ports --vm box
  agentos ports --vm box --json")]
pub(crate) struct PortsArgs {
    /// The name of a kept VM
    #[arg(long, value_name = "NAME")]
    vm: String,
    /// One JSON object per port and line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Ports of the host are those of 127.0.0.1 unless an address is named; HOST 0 is one that is
chosen and printed. Without --keep they are forwarded until this command is interrupted.

Examples:
  agentos forward --vm box 3000
  agentos forward --vm box 8080:3000 5432
  agentos forward --vm box 0.0.0.0:8080:3000 --keep"
)]
pub(crate) struct ForwardArgs {
    /// The name of a kept VM
    #[arg(long, value_name = "NAME")]
    vm: String,
    /// Leave the ports to the VM, with which they end, and return at once
    #[arg(long)]
    keep: bool,
    /// Ports of the VM, each at one of the host, by default the same
    #[arg(required = true, value_name = "[[ADDRESS:]HOST:]GUEST")]
    ports: Vec<PublishSpec>,
}

pub(crate) async fn list(args: PortsArgs) -> Result<u8, Failure> {
    let ports = AgentOs::attach(&args.vm).await?.listening_ports().await?;
    print(&if args.json { as_json(&ports) } else { as_table(&ports) })?;
    Ok(0)
}

pub(crate) async fn forward(args: ForwardArgs) -> Result<u8, Failure> {
    let mut signals = Signals::watch()?;
    let vm = AgentOs::attach(&args.vm).await?;
    let mut forwards = publish(&vm, &args.ports, args.keep).await?;
    let lines: String = forwards.iter().map(|forward| format!("{}\n", describe(forward))).collect();
    print(&lines)?;
    let Some(first) = forwards.first_mut().filter(|_| !args.keep) else { return Ok(0) };
    // The VM's end is the end of all of them.
    tokio::select! {
        signal = signals.next() => Err(Failure::Interrupted { signal }),
        error = first.ended() => Err(error.into()),
    }
}

/// All of them, or none that outlives this call.
pub(crate) async fn publish(
    vm: &AgentOs,
    ports: &[PublishSpec],
    keep: bool,
) -> Result<Vec<PortForward>, agentos::Error> {
    let mut forwards = Vec::new();
    for spec in ports {
        let forward = vm.forward_port(spec.guest, spec.host);
        match if keep { forward.keep() } else { forward }.await {
            Ok(forward) => forwards.push(forward),
            Err(error) => {
                for forward in forwards {
                    // The error that is told goes before one of this.
                    let _ = PortForward::close(forward).await;
                }
                return Err(error);
            }
        }
    }
    Ok(forwards)
}

pub(crate) fn describe(forward: &PortForward) -> String {
    format!("{} -> port {} of the VM", forward.local_addr(), forward.guest_port())
}

fn as_json(ports: &[ListeningPort]) -> String {
    let line = |port: &ListeningPort| {
        json_line(&json!({
            "address": port.address.to_string(),
            "port": port.port,
            "protocol": "tcp",
            "pid": port.process.as_ref().map(|process| process.pid),
            "command": port.process.as_ref().map(|process| &process.command),
        }))
    };
    ports.iter().map(line).collect()
}

fn as_table(ports: &[ListeningPort]) -> String {
    let mut rows = vec![["PORT", "ADDRESS", "PID", "COMMAND"].map(str::to_owned)];
    for port in ports {
        let process = port.process.as_ref();
        rows.push([
            port.port.to_string(),
            port.address.to_string(),
            process.map_or_else(|| "-".to_owned(), |process| process.pid.to_string()),
            harmless_line(process.map_or("", |process| &process.command)),
        ]);
    }
    table(&rows)
}
