//! Measures the figures this project promises, as a user of the SDK gets them.
//!
//! The bench is one client of one private sidecar, over its socket. A VM is made only when it is asked for. What a
//! figure is compared with (the same command on the host, bubblewrap where it is installed, a bare agent, other networks
//! in user space) is measured in the same run and in turns with it, so that a slow moment of the machine hits both.
//!
//! - [`figure`]: a row of the table: samples, what they are compared with, what they may be at most
//! - [`report`]: the table and the JSON
//! - [`host`]: the host's side: baselines, memory, who is who in `/proc`
//! - [`bare`]: a real agent without a VM
//! - [`peer`], [`names`]: both ends of the connections that are measured, and a DNS server
//! - [`rivals`]: other programs that do what a VM's network does
//! - [`rows`]: what is measured, one file per subject
//!
//! Started by `cargo xtask bench`, which builds the sidecar and this program in release mode and gives them a private
//! home. Run on its own it measures whatever `AGENTOS_SIDECAR` names.

// The table is the purpose of this program.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bare;
mod figure;
mod host;
mod names;
mod peer;
mod report;
mod rivals;
mod rows;

use agentos::{AgentOs, AgentOsCreateSidecarOptions, AgentOsOptions, AgentOsSidecar};
use figure::Figure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown to a person and never matched on.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Default)]
struct Arguments {
    quick: bool,
    check: bool,
    json: Option<PathBuf>,
    only: Option<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => arguments.quick = true,
                "--check" => arguments.check = true,
                "--json" => arguments.json = Some(words.next().ok_or("--json needs a file")?.into()),
                "--only" => arguments.only = Some(words.next().ok_or("--only needs a text")?),
                other => return Err(format!("unknown option `{other}`").into()),
            }
        }
        Ok(arguments)
    }
}

/// One run of the bench.
struct Bench {
    sidecar: AgentOsSidecar,
    sidecar_id: String,
    quick: bool,
    only: Option<String>,
    figures: Vec<Figure>,
}

impl Bench {
    /// A private sidecar, already running.
    async fn start(arguments: &Arguments) -> Result<Self, Failure> {
        let sidecar_id = format!("agentos-bench-{}", std::process::id());
        let options = AgentOsCreateSidecarOptions::default().sidecar_id(&sidecar_id);
        let sidecar = AgentOs::create_sidecar(options).await?;
        Ok(Self {
            sidecar,
            sidecar_id,
            quick: arguments.quick,
            only: arguments.only.clone(),
            figures: Vec::new(),
        })
    }

    fn options(&self) -> AgentOsOptions {
        AgentOsOptions::default().sidecar(&self.sidecar)
    }

    async fn vm(&self) -> Result<AgentOs, Failure> {
        Ok(AgentOs::create(self.options()).await?)
    }

    /// How many samples to take of something that `full` would be right for.
    fn samples(&self, full: usize) -> usize {
        if self.quick { (full / 10).max(10) } else { full }
    }

    /// Whether a row was asked for.
    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|text| name.contains(text))
    }

    /// Takes a finished row, and shows that something happened: a full run takes minutes.
    fn record(&mut self, figure: Figure) {
        eprintln!("  {}", report::brief(&figure));
        self.figures.push(figure);
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        // In a VM this program is the server whose answers are timed.
        Some(rows::fetch::SERVE) => {
            rows::fetch::serve();
            return ExitCode::FAILURE;
        }
        Some(peer::PEER) => return near_end(words.get(1..).unwrap_or_default()),
        _ => {}
    }
    match run().await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::from(2)
        }
    }
}

/// This program as what the bench starts elsewhere to measure from there.
fn near_end(words: &[String]) -> ExitCode {
    match peer::run(words) {
        Ok(numbers) => {
            numbers.iter().for_each(|number| println!("{number}"));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode, Failure> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let mut bench = Bench::start(&arguments).await?;
    let measured = rows::all(&mut bench).await;
    // Whatever happened, what was measured is shown and the sidecar is ended.
    let disposed = bench.sidecar.dispose().await;
    println!("{}", report::table(&bench.figures));
    if let Some(path) = &arguments.json {
        std::fs::write(path, report::json(&bench.figures)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    measured?;
    disposed?;
    let over = bench.figures.iter().filter(|figure| figure.is_over()).count();
    println!("{} figures, {over} over their limit", bench.figures.len());
    Ok(if arguments.check && over > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>().into_iter();
        let arguments = Arguments::parse(words("--quick --json out.json --only create")).unwrap();
        assert!(arguments.quick && !arguments.check);
        assert_eq!(arguments.only.as_deref(), Some("create"));
        assert!(Arguments::parse(words("--json")).is_err());
        assert!(Arguments::parse(words("--fast")).is_err());
    }
}
