//! A WebSocket between a guest and an upstream, after both have agreed on it; where no secret is, whatever else they have
//! agreed on.
//!
//! The frames are not read. Stars are as many as what they stand for, so that frames stay whole where a secret is
//! starred out of them; compression, which would hide one, is not let through in the heads.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::time::timeout;

use super::scrub::{HELD_FOR, Patterns, Scrubber};

/// Both sides have their heads when a tunnel is made; what is left is to let go of them.
const SWITCH_DEADLINE: Duration = Duration::from_secs(15);

const PIECE_BYTES: usize = 64 * 1024;

pub(super) struct Tunnel {
    pub(super) guest: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    /// Each direction ends by itself, as of any connection. A WebSocket's sides say goodbye in frames: when one closes
    /// its connection, nothing more is expected.
    pub(super) closes_by_halves: bool,
}

impl Tunnel {
    /// Carries bytes in both directions until they end.
    pub(super) async fn carry(self, patterns: &Arc<Patterns>) {
        let switched = timeout(SWITCH_DEADLINE, async { tokio::try_join!(self.guest, self.upstream) }).await;
        let Ok(Ok((guest, upstream))) = switched else {
            tracing::debug!("a side didn't switch protocols");
            return;
        };
        let (mut from_guest, mut to_guest) = split(TokioIo::new(guest));
        let (mut from_upstream, mut to_upstream) = split(TokioIo::new(upstream));
        let outward = async {
            copy(&mut from_guest, &mut to_upstream).await?;
            to_upstream.shutdown().await
        };
        let inward = carry_scrubbed(&mut from_upstream, &mut to_guest, patterns);
        let ended = if self.closes_by_halves {
            tokio::try_join!(outward, inward).map(|_| ())
        } else {
            tokio::select! {
                ended = outward => ended,
                ended = inward => ended,
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "tunnel");
        }
    }
}

async fn carry_scrubbed<R, W>(from: &mut R, to: &mut W, patterns: &Arc<Patterns>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut scrubber = Scrubber::new(Arc::clone(patterns));
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        let read = from.read_buf(&mut buffer);
        let read = if scrubber.held_bytes() > 0 { timeout(HELD_FOR, read).await } else { Ok(read.await) };
        let is_end = matches!(read, Ok(Ok(0)));
        let given = match read {
            Ok(Ok(0)) => scrubber.finish(),
            Ok(read) => read.map(|_| scrubber.push(buffer.split().freeze()))?,
            Err(_) => scrubber.let_go(),
        };
        to.write_all(&given).await?;
        to.flush().await?;
        if is_end {
            return to.shutdown().await;
        }
    }
}
