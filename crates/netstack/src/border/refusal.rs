//! Why a request was not carried, or not to its end.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use tokio_rustls::rustls;

use super::target::TargetError;
use crate::name::HostName;
use crate::policy;

/// Why the border answered a request itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    #[error("this method is not carried")]
    Method,
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the request can't be read as one for the upstream")]
    Request,
    #[error("there is no such provider; there are: {}", known.join(", "))]
    NoRoute { known: Vec<String> },
    #[error("the request is for another host than its connection")]
    OtherHost,
    /// A plain request for a host that isn't allowed, or for none.
    #[error("the request{} may not leave: {reason}", name.as_ref().map_or(String::new(), |name| format!(" for {name}")))]
    Host { name: Option<HostName>, reason: policy::Refusal },
    #[error("the policy doesn't let the request out")]
    Policy(#[source] io::Error),
    #[error("the upstream can't be reached")]
    Unreachable(#[source] io::Error),
    #[error("the upstream's certificate is not accepted")]
    Certificate(#[source] io::Error),
    #[error("the upstream doesn't speak TLS as it should")]
    Tls(#[source] io::Error),
    #[error("the upstream didn't accept the connection within {} s", .0.as_secs())]
    ConnectTimeout(Duration),
    #[error("the upstream didn't answer within {} s", .0.as_secs())]
    AnswerTimeout(Duration),
    #[error("the exchange with the upstream failed")]
    Exchange(#[source] hyper::Error),
    #[error("the upstream encoded its answer, though that wasn't asked for")]
    Encoded,
    #[error("the upstream changed the protocol, though that wasn't asked for")]
    Protocol,
}

impl Refusal {
    pub(super) fn of_dialing(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Policy(error),
            _ => Self::Unreachable(error),
        }
    }

    pub(super) fn of_handshake(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(_)) => Self::Certificate(error),
            _ => Self::Tls(error),
        }
    }

    /// What the guest gets.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Target(_) | Self::Request => StatusCode::BAD_REQUEST,
            Self::Policy(_) | Self::Host { .. } => StatusCode::FORBIDDEN,
            Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::OtherHost => StatusCode::MISDIRECTED_REQUEST,
            Self::ConnectTimeout(_) | Self::AnswerTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Unreachable(_)
            | Self::Certificate(_)
            | Self::Tls(_)
            | Self::Exchange(_)
            | Self::Encoded
            | Self::Protocol => StatusCode::BAD_GATEWAY,
        }
    }

    /// In the form in which providers report errors, so that clients show the text.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let message = self.message();
        let body = serde_json::json!({ "error": { "type": "agentos_gateway", "message": message } });
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The rest of the request is not read.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// The whole chain. None of the sources holds anything that was sent.
    fn message(&self) -> String {
        let mut message = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            message = format!("{message}: {error}");
            source = error.source();
        }
        message
    }
}
