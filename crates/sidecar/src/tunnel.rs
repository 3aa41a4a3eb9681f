//! Bytes both ways between a caller and a server in a VM.
//!
//! ```text
//! caller's parts ──► a task that writes ──► socket ──► read by the caller's stream ──► parts
//! ```
//! The two directions are independent: a caller that does not read may still write, and each ends with a mark of its own.
//! What holds the socket ends with the caller's stream, or with the VM, whose network would stay for it.

use std::io;
use std::pin::Pin;

use agentos_proto::v1::{self, ErrorKind, connect_port_request, connect_port_response};
use agentos_vm::{GoneReason, Vm};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use crate::errors::{self, Failure};

/// What is read at once, and so the largest piece.
const READ_BYTES: usize = 128 * 1024;

/// With less room than this the next piece gets a new buffer.
const MIN_ROOM_BYTES: usize = 4 * 1024;

type Parts = Result<v1::ConnectPortResponse, Status>;

/// The parts that the caller gets after the first.
pub(crate) fn carry<S>(
    vm: &Vm,
    stream: S,
    parts: Streaming<v1::ConnectPortRequest>,
) -> impl Stream<Item = Parts> + Send + use<S>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let gone = {
        let vm = vm.clone();
        Box::pin(async move { vm.gone().await })
    };
    tunnel(stream, parts.map(|part| part.map(|part| part.part)), gone)
}

type Gone = Pin<Box<dyn Future<Output = GoneReason> + Send>>;

fn tunnel<S, P>(stream: S, parts: P, gone: Gone) -> impl Stream<Item = Parts> + Send + use<S, P>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    P: Stream<Item = Result<Option<connect_port_request::Part>, Status>> + Send + Unpin + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let writer = Writer(tokio::spawn(send(parts, write)));
    let tunnel = Tunnel { read: Some(read), buffer: BytesMut::new(), writer, gone };
    stream::try_unfold(tunnel, |mut tunnel| async {
        let part = tunnel.next().await?;
        Ok(part.map(|part| (v1::ConnectPortResponse { part: Some(part) }, tunnel)))
    })
}

struct Tunnel<S> {
    /// Nothing after the server's end.
    read: Option<ReadHalf<S>>,
    buffer: BytesMut,
    writer: Writer,
    gone: Gone,
}

/// The task that writes; it goes with the tunnel.
struct Writer(JoinHandle<Result<(), WriteError>>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    /// Who gave up does not listen either.
    #[error("the caller gave up")]
    GivenUp,
    #[error("the server takes no more")]
    Socket(#[source] io::Error),
    #[error("a part of the stream has no data")]
    Part,
}

impl<S: AsyncRead + AsyncWrite> Tunnel<S> {
    async fn next(&mut self) -> Result<Option<connect_port_response::Part>, Failure> {
        tokio::select! {
            biased;
            reason = &mut self.gone => Err(reason.into()),
            part = part(&mut self.read, &mut self.buffer, &mut self.writer) => part,
        }
    }
}

async fn part<S: AsyncRead + AsyncWrite>(
    read: &mut Option<ReadHalf<S>>,
    buffer: &mut BytesMut,
    writer: &mut Writer,
) -> Result<Option<connect_port_response::Part>, Failure> {
    let Some(socket) = read else { return end(writer).await };
    if buffer.capacity() < MIN_ROOM_BYTES {
        buffer.reserve(READ_BYTES);
    }
    let length = socket.read_buf(buffer).await.map_err(|error| broken(&error))?;
    if length == 0 {
        *read = None;
        return Ok(Some(connect_port_response::Part::End(v1::ConnectEnd {})));
    }
    Ok(Some(connect_port_response::Part::Data(buffer.split().freeze())))
}

/// The server has said all it had to say; the caller may not have.
async fn end(writer: &mut Writer) -> Result<Option<connect_port_response::Part>, Failure> {
    match (&mut writer.0).await {
        Ok(Ok(()) | Err(WriteError::GivenUp)) => Ok(None),
        Ok(Err(WriteError::Socket(error))) => Err(broken(&error)),
        Ok(Err(error @ WriteError::Part)) => Err(Failure::invalid("part", error.to_string())),
        Err(error) => Err(Failure::new(ErrorKind::Internal, "connect", errors::chain(&error))),
    }
}

fn broken(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(errno) => Failure::system(errno, "connect", agentos_vm::errno::text(errno)),
        None => Failure::new(ErrorKind::Closed, "connect", errors::chain(error)),
    }
}

/// Writes what the caller sends until its end.
async fn send<S: AsyncWrite>(
    mut parts: impl Stream<Item = Result<Option<connect_port_request::Part>, Status>> + Unpin,
    mut socket: WriteHalf<S>,
) -> Result<(), WriteError> {
    loop {
        let mut data: Bytes = match parts.next().await {
            Some(Ok(Some(connect_port_request::Part::Data(data)))) => data,
            Some(Ok(Some(connect_port_request::Part::End(v1::ConnectEnd {})))) => {
                return socket.shutdown().await.map_err(WriteError::Socket);
            }
            Some(Ok(_)) => return Err(WriteError::Part),
            Some(Err(_)) | None => return Err(WriteError::GivenUp),
        };
        socket.write_all_buf(&mut data).await.map_err(WriteError::Socket)?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{DuplexStream, duplex};
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    type Sender = mpsc::Sender<Result<Option<connect_port_request::Part>, Status>>;

    fn open(gone: Gone) -> (Sender, Pin<Box<impl Stream<Item = Parts>>>, DuplexStream) {
        let (ours, theirs) = duplex(64);
        let (sender, parts) = mpsc::channel(4);
        (sender, Box::pin(tunnel(ours, ReceiverStream::new(parts), gone)), theirs)
    }

    fn lives() -> Gone {
        Box::pin(std::future::pending())
    }

    fn data(text: &'static str) -> Result<Option<connect_port_request::Part>, Status> {
        Ok(Some(connect_port_request::Part::Data(text.into())))
    }

    const END: Result<Option<connect_port_request::Part>, Status> =
        Ok(Some(connect_port_request::Part::End(v1::ConnectEnd {})));

    async fn next(stream: &mut (impl Stream<Item = Parts> + Unpin)) -> Option<Result<String, Failure>> {
        let next = timeout(Duration::from_secs(20), stream.next()).await.expect("it hangs")?;
        Some(match next {
            Ok(v1::ConnectPortResponse { part: Some(connect_port_response::Part::Data(data)) }) => {
                Ok(String::from_utf8(data.to_vec()).unwrap())
            }
            Ok(v1::ConnectPortResponse { part: Some(connect_port_response::Part::End(_)) }) => {
                Ok("end".to_owned())
            }
            Ok(other) => panic!("{other:?}"),
            Err(status) => Err(Failure::new(ErrorKind::Internal, "", status.message())),
        })
    }

    #[tokio::test]
    async fn each_half_ends_on_its_own() {
        let (caller, mut parts, mut server) = open(lives());
        caller.send(data("question")).await.unwrap();
        caller.send(END).await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        assert_eq!(question, "question");
        assert_eq!(next(&mut parts).await.unwrap().unwrap(), "answer");
        assert_eq!(next(&mut parts).await.unwrap().unwrap(), "end");
        assert!(next(&mut parts).await.is_none());
    }

    #[tokio::test]
    async fn after_the_servers_end_the_caller_may_go_on() {
        let (caller, mut parts, mut server) = open(lives());
        server.shutdown().await.unwrap();
        assert_eq!(next(&mut parts).await.unwrap().unwrap(), "end");
        caller.send(data("more")).await.unwrap();
        let mut read = [0; 4];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"more");
        caller.send(END).await.unwrap();
        assert!(next(&mut parts).await.is_none());
    }

    #[tokio::test]
    async fn a_caller_that_does_not_read_can_still_write() {
        let (caller, parts, mut server) = open(lives());
        let text = "x".repeat(10_000);
        let write = async {
            caller.send(Ok(Some(connect_port_request::Part::Data(text.clone().into())))).await.unwrap();
            let mut read = vec![0; text.len()];
            server.read_exact(&mut read).await.unwrap();
        };
        timeout(Duration::from_secs(20), write).await.expect("nobody polls the other direction");
        drop(parts);
    }

    #[tokio::test]
    async fn a_caller_that_goes_takes_the_connection_with_it() {
        let (_caller, parts, mut server) = open(lives());
        drop(parts);
        let read = timeout(Duration::from_secs(20), server.read(&mut [0; 1])).await.unwrap();
        assert_eq!(read.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_vm_that_goes_ends_it_with_the_reason() {
        let (_caller, mut parts, _server) = open(Box::pin(async { GoneReason::Disposed }));
        let failure = next(&mut parts).await.unwrap().unwrap_err();
        assert!(failure.message().contains("disposed"), "{}", failure.message());
        assert!(next(&mut parts).await.is_none());
    }
}
