//! `agentos doctor`: what this host can and can't do for VMs, and the cure.

use std::fmt::Write;

use agentos::{AgentOs, Facility, FacilityState};
use clap::Args;
use serde_json::json;

use crate::failure::Failure;
use crate::terminal::{Palette, harmless_line, print};

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 when VMs can be created, 1 when they can't.

Examples:
  agentos doctor
  agentos doctor --json")]
pub(crate) struct DoctorArgs {
    /// One JSON object per facility and line
    #[arg(long)]
    json: bool,
}

/// VMs can't be created on this host.
const UNABLE: u8 = 1;

pub(crate) async fn run(args: DoctorArgs) -> Result<u8, Failure> {
    let facilities = AgentOs::doctor().await?;
    print(&if args.json { as_json(&facilities) } else { as_table(&facilities, Palette::for_stdout()) })?;
    Ok(code(&facilities))
}

fn code(facilities: &[Facility]) -> u8 {
    if facilities.iter().any(|facility| facility.state == FacilityState::Missing) { UNABLE } else { 0 }
}

fn state(facility: &Facility) -> &'static str {
    match facility.state {
        FacilityState::Ok => "ok",
        FacilityState::Degraded => "degraded",
        FacilityState::Missing => "missing",
        _ => "unknown",
    }
}

fn as_json(facilities: &[Facility]) -> String {
    let line = |facility: &Facility| {
        let object = json!({
            "name": facility.name,
            "state": state(facility),
            "finding": facility.finding,
            "cost": facility.cost,
            "remedy": facility.remedy,
        });
        format!("{object}\n")
    };
    facilities.iter().map(line).collect()
}

fn as_table(facilities: &[Facility], palette: Palette) -> String {
    let width = facilities.iter().map(|facility| facility.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for facility in facilities {
        let word = format!("{:8}", state(facility));
        let word = match facility.state {
            FacilityState::Ok => palette.green(&word),
            FacilityState::Missing => palette.red(&word),
            _ => palette.yellow(&word),
        };
        // Writing to a String can't fail.
        let _ = writeln!(
            out,
            "{word}  {:width$}  {}",
            harmless_line(&facility.name),
            harmless_line(&facility.finding)
        );
        if facility.state == FacilityState::Ok {
            continue;
        }
        let indent = " ".repeat(8 + 2 + width + 2);
        for (label, text) in [("costs", &facility.cost), ("cure", &facility.remedy)] {
            if !text.is_empty() {
                let _ = writeln!(out, "{indent}{label}: {}", harmless_line(text));
            }
        }
    }
    let verdict = if code(facilities) == 0 {
        palette.green("VMs can be created here.")
    } else {
        palette.red("VMs can't be created here.")
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}
