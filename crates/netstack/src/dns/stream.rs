//! Queries over a stream: each with two bytes of length before it, one after the other (RFC 7766).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::{MAX_QUERY_BYTES, MayAsk, Resolver, Transport};

/// How long a client may take for its next query, from the first byte to the last, and for taking an answer.
pub const IDLE: Duration = Duration::from_secs(10);

impl Resolver {
    /// Answers the queries of one stream until the client is done, idle or talks nonsense.
    ///
    /// They are answered in their order and one at a time: a client that sends more is not read from until its first
    /// one has its answer, and so has no more than one query waiting and one in memory. May be dropped at any time.
    pub async fn serve_stream<S>(&self, mut stream: S, may_ask: MayAsk<'_>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        while let Ok(Ok(query)) = timeout(IDLE, read_query(&mut stream)).await {
            let Some(answer) = self.answer(&query, Transport::Tcp, may_ask).await else {
                return;
            };
            if !matches!(timeout(IDLE, write_answer(&mut stream, &answer)).await, Ok(Ok(()))) {
                return;
            }
        }
    }
}

async fn read_query(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

async fn write_answer(stream: &mut (impl AsyncWrite + Unpin), answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    // In one piece: there are clients that take the first segment for all of it.
    let mut frame = Vec::with_capacity(2 + answer.len());
    frame.extend(length.to_be_bytes());
    frame.extend(answer);
    stream.write_all(&frame).await?;
    stream.flush().await
}
