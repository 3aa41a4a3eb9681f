//! What a command of a VM prints, carried to our own output.

use std::collections::VecDeque;
use std::time::Duration;

use agentos::OutputStream;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::failure::Failure;

/// A command that exited may leave children that hold its output: nothing more for this long is its end.
const SILENCE_AFTER_EXIT: Duration = Duration::from_millis(250);
/// And children that go on printing don't hold us longer than this.
const DRAIN_AFTER_EXIT: Duration = Duration::from_secs(2);

/// Prints a stream until it ends, or falls silent after the command's exit.
///
/// Gives the last `keep_bytes` of it.
pub(crate) async fn pump<W: AsyncWrite + Unpin>(
    mut stream: OutputStream,
    mut out: W,
    mut exited: watch::Receiver<bool>,
    keep_bytes: usize,
) -> Result<Vec<u8>, Failure> {
    let mut kept = VecDeque::new();
    let mut deadline = None;
    loop {
        let chunk = match deadline {
            None => tokio::select! {
                biased;
                chunk = stream.next() => chunk,
                // A sender that is gone means the same.
                _ = exited.wait_for(|exited| *exited) => {
                    deadline = Some(Instant::now() + DRAIN_AFTER_EXIT);
                    continue;
                }
            },
            Some(deadline) => tokio::select! {
                biased;
                () = sleep_until(deadline) => return Ok(kept.into()),
                chunk = stream.next() => chunk,
                () = tokio::time::sleep(SILENCE_AFTER_EXIT) => return Ok(kept.into()),
            },
        };
        match chunk {
            None => return Ok(kept.into()),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(chunk)) => {
                kept.extend(&chunk[chunk.len().saturating_sub(keep_bytes)..]);
                kept.drain(..kept.len().saturating_sub(keep_bytes));
                out.write_all(&chunk).await.map_err(Failure::from_stdout)?;
                out.flush().await.map_err(Failure::from_stdout)?;
            }
        }
    }
}
