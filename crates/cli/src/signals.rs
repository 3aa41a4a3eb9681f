//! The signals that ask a command to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

pub(crate) const SIGHUP: u8 = 1;
pub(crate) const SIGINT: u8 = 2;
pub(crate) const SIGKILL: u8 = 9;
pub(crate) const SIGPIPE: u8 = 13;
pub(crate) const SIGTERM: u8 = 15;
pub(crate) const SIGCONT: u8 = 18;

/// Takes SIGINT, SIGTERM and SIGHUP from their default actions for the rest of this process's life; but not from whoever
/// wants them ignored: `nohup`, or a script that starts us in the background.
#[derive(Debug)]
pub(crate) struct Signals {
    watched: [(u8, Option<Signal>); 3],
}

impl Signals {
    pub(crate) fn watch() -> Result<Self, Failure> {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let watch = |number: u8| {
            if ignored & (1 << (number - 1)) != 0 {
                return Ok((number, None));
            }
            let kind = SignalKind::from_raw(i32::from(number));
            signal(kind).map(|signal| (number, Some(signal))).map_err(Failure::Signals)
        };
        Ok(Self { watched: [watch(SIGINT)?, watch(SIGTERM)?, watch(SIGHUP)?] })
    }

    /// The number of the next one. Cancellation safe.
    pub(crate) async fn next(&mut self) -> u8 {
        let [interrupt, terminate, hang_up] = &mut self.watched;
        tokio::select! {
            number = received(interrupt) => number,
            number = received(terminate) => number,
            number = received(hang_up) => number,
        }
    }
}

async fn received((number, signal): &mut (u8, Option<Signal>)) -> u8 {
    match signal {
        Some(signal) => {
            signal.recv().await;
            *number
        }
        None => std::future::pending().await,
    }
}

/// The mask of ignored signals, from the kernel's status of a process.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001003\nSigCgt:\t0\n"), 0x1003);
        assert_eq!(ignored("Name:\tx\n"), 0);
    }
}
