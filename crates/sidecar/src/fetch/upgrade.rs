//! A request that ends HTTP on its connection: WebSockets above all.

use std::io;
use std::pin::pin;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{FetchError, send};
use crate::errors::Failure;

#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("EPROTO: the server answered {0} and did not switch protocols")]
    NotSwitched(StatusCode),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Self {
        let message = error.to_string();
        match error {
            UpgradeError::NotSwitched(status) => {
                Self::system(Errno::PROTO.raw_os_error(), status.as_str(), message)
            }
            UpgradeError::Fetch(error) => error.into(),
        }
    }
}

/// Sends the request within the bounds of any other, and gives the connection once the server has switched. What the
/// server sent right behind its head comes first.
pub(crate) async fn upgrade<S>(
    stream: S,
    request: Request<()>,
) -> Result<(Response<()>, TokioIo<Upgraded>), UpgradeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let nothing = Empty::<Bytes>::new().map_err(|never| -> io::Error { match never {} });
    let (mut response, mut connection) = send(stream, request.map(|()| nothing)).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpgradeError::NotSwitched(response.status()));
    }
    let mut upgraded = pin!(hyper::upgrade::on(&mut response));
    let upgraded = connection.drive(|cx| upgraded.as_mut().poll(cx)).await.map_err(FetchError::Exchange)?;
    Ok((response.map(drop), TokioIo::new(upgraded)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    type Answer = Result<(Response<()>, TokioIo<Upgraded>), UpgradeError>;

    /// Asks a server that reads the request's head and then says this.
    async fn ask(answer: &'static [u8]) -> (Answer, DuplexStream) {
        let (ours, mut theirs) = duplex(1024 * 1024);
        let request = Request::get("/chat").header("upgrade", "websocket").header("connection", "upgrade");
        let asking = tokio::spawn(upgrade(ours, request.body(()).unwrap()));
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(theirs.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.contains("upgrade: websocket") && !head.contains("content-length"), "{head}");
        theirs.write_all(answer).await.unwrap();
        let answer = timeout(Duration::from_secs(20), asking).await.expect("it hangs").unwrap();
        (answer, theirs)
    }

    #[tokio::test]
    async fn after_the_switch_bytes_go_both_ways_from_the_first_one_on() {
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nfirst";
        let (answer, mut server) = ask(answer).await;
        let (response, mut stream) = answer.unwrap();
        assert_eq!(response.headers()["upgrade"], "websocket");
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
        stream.write_all(b"second").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut second = String::new();
        server.read_to_string(&mut second).await.unwrap();
        assert_eq!(second, "second");
    }

    #[tokio::test]
    async fn a_server_that_does_not_switch_is_quoted() {
        let (answer, _server) = ask(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 1000000\r\n\r\nno").await;
        let detail = Failure::from(answer.unwrap_err()).into_detail();
        assert_eq!((detail.errno.as_str(), detail.object.as_str()), ("EPROTO", "403"));
        assert!(detail.message.contains("403 Forbidden"), "{}", detail.message);
    }

    #[tokio::test]
    async fn what_bounds_an_answer_bounds_this_one() {
        let endless: &'static [u8] = Box::leak(b"x-more: and more\r\n".repeat(300).into_boxed_slice());
        let head = [&b"HTTP/1.1 101 Switching Protocols\r\n"[..], endless].concat();
        let (answer, _server) = ask(Box::leak(head.into_boxed_slice())).await;
        assert_eq!(Failure::from(answer.unwrap_err()).into_detail().errno, "EPROTO");
        let (answer, _server) = ask(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
        assert_eq!(Failure::from(answer.unwrap_err()).into_detail().errno, "EPROTO");
    }
}
