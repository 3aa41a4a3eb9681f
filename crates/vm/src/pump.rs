//! Tasks that carry bytes between a process's descriptors and its windows and queues, one task per process.
//!
//! A pump ends when its process's last writer is gone. When it is cut short because the VM ends, what is in the pipes
//! at that moment still reaches the windows.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::output::{Filled, Output};
use crate::pipe;
use crate::process::Exit;
use crate::stdin::StdinQueue;

/// A session leader's exit hangs its terminal up, which ends the output; should the kernel not have said so, silence
/// for this long does.
const TERMINAL_SILENCE: Duration = Duration::from_millis(250);

/// The descriptors of a process started with pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<AsyncFd<OwnedFd>>,
    pub(crate) stdout: AsyncFd<OwnedFd>,
    pub(crate) stderr: AsyncFd<OwnedFd>,
}

/// Where the bytes of one process go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<Arc<StdinQueue>>,
    pub(crate) stdout: Output,
    /// Never written by a terminal.
    pub(crate) stderr: Output,
}

impl Streams {
    /// Ends the output of a process whose descriptors nobody has read.
    pub(crate) fn finish(&self) {
        self.stdout.finish();
        self.stderr.finish();
    }
}

pub(crate) async fn pump_pipes(pipes: Pipes, streams: Streams) {
    let feed = async {
        if let (Some(target), Some(queue)) = (pipes.stdin, streams.stdin) {
            queue.feed(&target).await;
        }
    };
    // Each stream ends by itself: a reader of one must not wait for the end of the other.
    tokio::join!(feed, drain(pipes.stdout, streams.stdout), drain(pipes.stderr, streams.stderr));
}

async fn drain(descriptor: AsyncFd<OwnedFd>, output: Output) {
    Source { descriptor: Arc::new(descriptor), output }.drain().await;
}

/// A terminal's master is shared: the shell's handle resizes it.
pub(crate) async fn pump_terminal(
    master: Arc<AsyncFd<OwnedFd>>,
    streams: Streams,
    mut exit: watch::Receiver<Option<Exit>>,
) {
    streams.stderr.finish();
    let feed = async {
        if let Some(queue) = &streams.stdin {
            queue.feed(&master).await;
        }
        // A terminal has no end of input to give.
        std::future::pending().await
    };
    let source = Source { descriptor: Arc::clone(&master), output: streams.stdout };
    let drain = async {
        let hung_up = tokio::select! {
            biased;
            () = source.drain() => true,
            _ = exit.wait_for(Option::is_some) => false,
        };
        if !hung_up {
            source.drain_until_silent(TERMINAL_SILENCE).await;
        }
    };
    tokio::select! {
        () = drain => {}
        () = feed => {}
    }
    if let Some(queue) = &streams.stdin {
        queue.break_off();
    }
}

/// One output stream on its way; dropped, it saves what it can and ends the window.
struct Source {
    descriptor: Arc<AsyncFd<OwnedFd>>,
    output: Output,
}

enum More {
    Yes,
    End,
}

impl Source {
    async fn drain(&self) {
        while let More::Yes = self.fill().await {}
    }

    /// Until the end or until nothing has come for so long. Waiting for a slow reader is not silence.
    async fn drain_until_silent(&self, silence: Duration) {
        loop {
            self.output.wait_for_room().await;
            match tokio::time::timeout(silence, self.fill()).await {
                Ok(More::Yes) => {}
                Ok(More::End) | Err(_) => return,
            }
        }
    }

    async fn fill(&self) -> More {
        self.output.wait_for_room().await;
        let Ok(mut ready) = self.descriptor.readable().await else { return More::End };
        match ready.try_io(|source| self.output.fill_from(source.as_fd())) {
            Ok(Ok(Filled::End) | Err(_)) => More::End,
            Ok(Ok(Filled::Some(_) | Filled::NoRoom)) | Err(_) => More::Yes,
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // A writer that lives on could go on for ever: no more than there is now.
        let mut rest = pipe::available(self.descriptor.as_fd());
        while rest > 0 {
            match self.output.fill_from(self.descriptor.as_fd()) {
                Ok(Filled::Some(read)) => rest = rest.saturating_sub(read as u64),
                Ok(Filled::NoRoom | Filled::End) | Err(_) => break,
            }
        }
        self.output.finish();
    }
}
