//! The progress of an agent's installation: a bar on a terminal, lines elsewhere. The first thing it says is how much
//! will be fetched and where it goes.

use std::collections::HashMap;
use std::io::IsTerminal;

use agentos::InstallProgress;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::{harmless_line, notice};

/// Shows one installation: several packages, some of them at the same time.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Each package that was announced; without a bar where there is no terminal.
    packages: HashMap<String, Option<ProgressBar>>,
    bars: MultiProgress,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { packages: HashMap::new(), bars }
    }

    pub(crate) fn show(&mut self, step: &InstallProgress) {
        if !self.packages.contains_key(&step.package) {
            let bar = self.announce(step);
            self.packages.insert(step.package.clone(), bar);
        }
        if let Some(Some(bar)) = self.packages.get(&step.package) {
            bar.set_position(step.received_bytes);
            if step.total_bytes.is_some_and(|total| step.received_bytes >= total) {
                bar.finish_and_clear();
            }
        }
    }

    fn announce(&self, step: &InstallProgress) -> Option<ProgressBar> {
        let package = harmless_line(&step.package);
        let size = step.total_bytes.map_or("unknown size".to_owned(), |total| HumanBytes(total).to_string());
        let doing = if step.waiting { "waiting for another installation of" } else { "fetching" };
        let text = format!("{doing} {package}, {size}, into {}", harmless_line(&step.place));
        self.bars.suspend(|| notice(&text));
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let bar = match step.total_bytes {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        // A template that doesn't parse would leave the default one, which is fine too.
        if let Ok(style) =
            ProgressStyle::with_template("{prefix:30!} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(package);
        Some(self.bars.add(bar))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // The terminal is as it was, also where the installation failed half way.
        let _ = self.bars.clear();
    }
}
