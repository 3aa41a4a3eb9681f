//! One request to the MCP server of the host's tools.

use std::error::Error;

use agentos_sidecar::{HOST_TOOLS_ADDRESS, HOST_TOOLS_PATH};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::net::TcpStream;

/// Why a request has no answer.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    #[error("this machine has no host tools, or the application that offers them has gone")]
    Unreachable(#[source] std::io::Error),
    #[error("the server of the host tools broke off")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    #[error("the server of the host tools refuses the request with {status}: {text}")]
    Refused { status: StatusCode, text: String },
    #[error("the server of the host tools gives no JSON")]
    NoJson(#[source] serde_json::Error),
    #[error("{0}")]
    Answered(String),
}

impl From<hyper::Error> for RequestError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// What a method gives.
pub(super) async fn call(method: &str, params: Value) -> Result<Value, RequestError> {
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let mut answer = post(request.to_string()).await?.unwrap_or_default();
    match answer["error"]["message"].as_str() {
        Some(message) => Err(RequestError::Answered(message.to_owned())),
        None => Ok(answer["result"].take()),
    }
}

/// Sends one message; a notification has no answer. Dropped, it closes the connection, which takes a call back.
pub(super) async fn post(message: String) -> Result<Option<Value>, RequestError> {
    let stream = TcpStream::connect(HOST_TOOLS_ADDRESS).await.map_err(RequestError::Unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(HOST_TOOLS_PATH)
        .header(HOST, HOST_TOOLS_ADDRESS.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json, text/event-stream")
        .body(Full::new(Bytes::from(message)))
        .map_err(|error| RequestError::Broken(error.into()))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        Ok::<_, RequestError>((status, answer.into_body().collect().await?.to_bytes()))
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    // The connection is done before its last answer is read where the server closes it.
    let (status, body) = tokio::select! {
        answered = &mut exchange => answered?,
        ended = &mut connection => {
            ended?;
            exchange.await?
        }
    };
    match status {
        StatusCode::ACCEPTED => Ok(None),
        StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(RequestError::NoJson),
        status => {
            Err(RequestError::Refused { status, text: String::from_utf8_lossy(&body).trim().to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = serde_json::from_str::<Value>("<html>").unwrap_err();
        let said = cause.to_string();
        let error = RequestError::NoJson(cause);
        assert_eq!(error.source().unwrap().to_string(), said);
        assert!(!error.to_string().contains(&said), "{error}");
    }
}
