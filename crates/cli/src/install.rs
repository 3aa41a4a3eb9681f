//! The progress of an agent's installation: a bar on a terminal, lines elsewhere. The first thing it says is how much
//! will be fetched and where it goes.

use std::io::IsTerminal;

use agentos::InstallProgress;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::{harmless_line, notice};

/// Shows one installation.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    package: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn show(&mut self, step: &InstallProgress) {
        if self.package != step.package {
            self.end();
            self.begin(step);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(step.received_bytes);
        }
        if step.total_bytes.is_some_and(|total| step.received_bytes >= total) {
            self.end();
        }
    }

    fn begin(&mut self, step: &InstallProgress) {
        self.package.clone_from(&step.package);
        let package = harmless_line(&step.package);
        let size = step.total_bytes.map_or("unknown size".to_owned(), |total| HumanBytes(total).to_string());
        notice(&format!("fetching {package}, {size}, into {}", harmless_line(&step.place)));
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(step.total_bytes, ProgressDrawTarget::stderr());
            // A template that doesn't parse would leave the default one, which is fine too.
            if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}")
            {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
