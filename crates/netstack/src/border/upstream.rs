//! Connections to upstreams.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::body::{Outgoing, Progress};
use super::refusal::Refusal;
use super::route::Encryption;
use super::{Connected, Outside, Upstream};

/// For each of the two steps, the connection and the TLS handshake; the kernel tries four SYNs in this time.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// A model that doesn't stream answers when it is done.
const ANSWER_DEADLINE: Duration = Duration::from_secs(600);

/// A connection whose last answer has been read is ready at once or never.
const READY_DEADLINE: Duration = Duration::from_millis(100);

const MAX_HEADERS: usize = 256;
/// Bounds an answer's head, and the pieces in which a body comes.
const MAX_BUFFER_BYTES: usize = 256 * 1024;

/// One connection, with nobody else's requests on it. Dropped, it is closed, whatever is still under way.
pub(super) struct Connection {
    upstream: Upstream,
    encryption: Encryption,
    sender: SendRequest<Outgoing>,
    driver: JoinHandle<()>,
}

impl Connection {
    pub(super) async fn open(
        upstream: &Upstream,
        encryption: Encryption,
        tls: Arc<ClientConfig>,
        outside: &Outside,
    ) -> Result<Self, Refusal> {
        let dialing = timeout(CONNECT_DEADLINE, (outside.dial)(upstream.clone()));
        let stream = dialing.await.map_err(|_| Refusal::ConnectTimeout(CONNECT_DEADLINE))?;
        let stream = stream.map_err(Refusal::of_dialing)?;
        let (sender, driver) = match encryption {
            Encryption::None => drive(stream).await?,
            Encryption::Tls => drive(encrypted(upstream, tls, stream).await?).await?,
        };
        Ok(Self { upstream: upstream.clone(), encryption, sender, driver })
    }

    /// Whether it leads there, and can take a request now.
    pub(super) async fn serves(&mut self, upstream: &Upstream, encryption: Encryption) -> bool {
        self.upstream == *upstream
            && self.encryption == encryption
            && timeout(READY_DEADLINE, self.sender.ready()).await.is_ok_and(|ready| ready.is_ok())
    }

    /// Sends a request and waits for the answer's head.
    pub(super) async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, SendError> {
        let progress: Progress = request.body().progress();
        tokio::select! {
            answer = self.sender.try_send_request(request) => answer.map_err(|mut error| {
                match error.take_message() {
                    Some(request) => SendError::Unsent(Box::new(request), error.into_error()),
                    None => SendError::Refused(Refusal::Exchange(error.into_error())),
                }
            }),
            () = progress.stopped_for(ANSWER_DEADLINE) => {
                Err(SendError::Refused(Refusal::AnswerTimeout(ANSWER_DEADLINE)))
            }
        }
    }
}

/// Why there is no answer.
pub(super) enum SendError {
    /// Not a byte of the request was sent: the upstream had closed the connection before.
    Unsent(Box<Request<Outgoing>>, hyper::Error),
    Refused(Refusal),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn encrypted(
    upstream: &Upstream,
    config: Arc<ClientConfig>,
    stream: Connected,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, Refusal> {
    let name = upstream.name.as_ref().ok_or(Refusal::OtherHost)?;
    let name = ServerName::try_from(name.as_str().to_owned());
    let name = name.map_err(|error| Refusal::Unreachable(io::Error::other(error)))?;
    let handshake = timeout(CONNECT_DEADLINE, TlsConnector::from(config).connect(name, stream));
    let stream = handshake.await.map_err(|_| Refusal::ConnectTimeout(CONNECT_DEADLINE))?;
    stream.map_err(Refusal::of_handshake)
}

async fn drive<S>(stream: S) -> Result<(SendRequest<Outgoing>, JoinHandle<()>), Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_buf_size(MAX_BUFFER_BYTES);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(Refusal::Exchange)?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to an upstream");
        }
    });
    Ok((sender, driver))
}
