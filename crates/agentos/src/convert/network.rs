//! HTTP, connections and ports.

use std::net::{IpAddr, SocketAddr};

use agentos_proto::v1::{self, connect_port_request, connect_port_response, port_event};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::AnswerError;
use crate::ports::{ListeningPort, PortEvent, PortOwner, PortProtocol};

const CALL: &str = "Fetch";
const CONNECT: &str = "ConnectPort";
const LIST: &str = "ListListeningPorts";
const WATCH: &str = "WatchPorts";

pub(crate) fn request_head(
    vm_id: &str,
    port: u16,
    head: &http::request::Parts,
    body_bytes: Option<u64>,
) -> v1::FetchRequest {
    let head = fetch_head(vm_id, port, head, body_bytes);
    v1::FetchRequest { part: Some(v1::fetch_request::Part::Head(head)) }
}

fn fetch_head(
    vm_id: &str,
    port: u16,
    head: &http::request::Parts,
    body_bytes: Option<u64>,
) -> v1::FetchRequestHead {
    let mut headers: Vec<v1::Header> = head
        .headers
        .iter()
        .map(|(name, value)| v1::Header {
            name: name.as_str().to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        })
        .collect();
    // A length that is known is told: not every server takes a chunked request.
    let expects_body = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = body_bytes
        && (length > 0 || expects_body)
        && !head.headers.contains_key(header::CONTENT_LENGTH)
        && !head.headers.contains_key(header::TRANSFER_ENCODING)
    {
        let name = header::CONTENT_LENGTH.as_str().to_owned();
        headers.push(v1::Header { name, value: Bytes::from(length.to_string()) });
    }
    let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    v1::FetchRequestHead {
        vm_id: vm_id.to_owned(),
        port: port.into(),
        method: head.method.as_str().to_owned(),
        target: if target.is_empty() { "/".to_owned() } else { target.to_owned() },
        headers,
    }
}

pub(crate) fn request_body(piece: Bytes) -> v1::FetchRequest {
    v1::FetchRequest { part: Some(v1::fetch_request::Part::Body(piece)) }
}

/// The body is complete.
pub(crate) fn request_end() -> v1::FetchRequest {
    v1::FetchRequest { part: Some(v1::fetch_request::Part::End(v1::FetchRequestEnd {})) }
}

pub(crate) fn response_head(first: Option<v1::FetchResponse>) -> Result<http::Response<()>, AnswerError> {
    let Some(v1::fetch_response::Part::Head(head)) = first.and_then(|first| first.part) else {
        return Err(AnswerError::Missing { call: CALL, field: "head" });
    };
    response(CALL, head)
}

fn response(call: &'static str, head: v1::FetchResponseHead) -> Result<http::Response<()>, AnswerError> {
    let out_of_range = |field| AnswerError::Range { call, field };
    let mut response = http::Response::new(());
    let status = u16::try_from(head.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    *response.status_mut() = status.ok_or(out_of_range("status"))?;
    for header in head.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| out_of_range("header name"))?;
        let value = HeaderValue::from_maybe_shared(header.value).map_err(|_| out_of_range("header value"))?;
        response.headers_mut().append(name, value);
    }
    Ok(response)
}

pub(crate) fn body(part: v1::FetchResponse) -> Result<Bytes, AnswerError> {
    match part.part {
        Some(v1::fetch_response::Part::Body(piece)) => Ok(piece),
        _ => Err(AnswerError::Missing { call: CALL, field: "body" }),
    }
}

fn connect_part(part: connect_port_request::Part) -> v1::ConnectPortRequest {
    v1::ConnectPortRequest { part: Some(part) }
}

pub(crate) fn connect_target(vm_id: &str, port: u16) -> v1::ConnectPortRequest {
    let target = v1::ConnectTarget { vm_id: vm_id.to_owned(), port: port.into() };
    connect_part(connect_port_request::Part::Target(target))
}

pub(crate) fn connect_upgrade(vm_id: &str, port: u16, head: &http::request::Parts) -> v1::ConnectPortRequest {
    connect_part(connect_port_request::Part::Upgrade(fetch_head(vm_id, port, head, None)))
}

pub(crate) fn connect_data(piece: Bytes) -> v1::ConnectPortRequest {
    connect_part(connect_port_request::Part::Data(piece))
}

/// Nothing more is sent.
pub(crate) fn connect_end() -> v1::ConnectPortRequest {
    connect_part(connect_port_request::Part::End(v1::ConnectEnd {}))
}

/// The connection stands. An upgrade has an answer.
pub(crate) fn connected(
    first: Option<v1::ConnectPortResponse>,
) -> Result<Option<http::Response<()>>, AnswerError> {
    match first.and_then(|first| first.part) {
        Some(connect_port_response::Part::Opened(opened)) => {
            opened.head.map(|head| response(CONNECT, head)).transpose()
        }
        _ => Err(AnswerError::Missing { call: CONNECT, field: "opened" }),
    }
}

pub(crate) fn upgraded(answer: Option<http::Response<()>>) -> Result<http::Response<()>, AnswerError> {
    answer.ok_or(AnswerError::Missing { call: CONNECT, field: "head" })
}

/// What the server sent; `None` is its end.
pub(crate) fn connect_received(part: v1::ConnectPortResponse) -> Result<Option<Bytes>, AnswerError> {
    match part.part {
        Some(connect_port_response::Part::Data(piece)) => Ok(Some(piece)),
        Some(connect_port_response::Part::End(v1::ConnectEnd {})) => Ok(None),
        _ => Err(AnswerError::Missing { call: CONNECT, field: "data" }),
    }
}

pub(crate) fn forward_request(
    vm_id: &str,
    port: u16,
    address: SocketAddr,
    keep: bool,
) -> v1::ForwardPortRequest {
    v1::ForwardPortRequest { vm_id: vm_id.to_owned(), port: port.into(), address: address.to_string(), keep }
}

pub(crate) fn forwarded(first: Option<v1::PortForwarded>) -> Result<SocketAddr, AnswerError> {
    let missing = AnswerError::Missing { call: "ForwardPort", field: "address" };
    first.and_then(|first| first.address.parse().ok()).ok_or(missing)
}

pub(crate) fn close_forward_request(vm_id: &str, address: SocketAddr) -> v1::CloseForwardRequest {
    v1::CloseForwardRequest { vm_id: vm_id.to_owned(), address: address.to_string() }
}

pub(crate) fn list_ports_request(vm_id: &str) -> v1::ListListeningPortsRequest {
    v1::ListListeningPortsRequest { vm_id: vm_id.to_owned() }
}

pub(crate) fn listening_ports(
    reply: v1::ListListeningPortsResponse,
) -> Result<Vec<ListeningPort>, AnswerError> {
    reply.ports.into_iter().map(|port| listening_port(LIST, port)).collect()
}

pub(crate) fn watch_request(vm_id: &str) -> v1::WatchPortsRequest {
    v1::WatchPortsRequest { vm_id: vm_id.to_owned() }
}

pub(crate) fn port_event(event: v1::PortEvent) -> Result<PortEvent, AnswerError> {
    match event.event {
        Some(port_event::Event::Listening(port)) => Ok(PortEvent::Listening(listening_port(WATCH, port)?)),
        Some(port_event::Event::Closed(port)) => Ok(PortEvent::Closed(listening_port(WATCH, port)?)),
        None => Err(AnswerError::Missing { call: WATCH, field: "event" }),
    }
}

fn listening_port(call: &'static str, port: v1::ListeningPort) -> Result<ListeningPort, AnswerError> {
    let address: Option<IpAddr> = port.address.parse().ok();
    let number = u16::try_from(port.port).map_err(|_| AnswerError::Range { call, field: "port" })?;
    Ok(ListeningPort {
        address: address.ok_or(AnswerError::Range { call, field: "address" })?,
        port: number,
        protocol: PortProtocol::Tcp,
        process: port.owner.map(|owner| PortOwner { pid: owner.pid, command: owner.command }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(request: http::request::Builder, body_bytes: Option<u64>) -> v1::FetchRequestHead {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        match request_head("vm", 80, &parts, body_bytes).part {
            Some(v1::fetch_request::Part::Head(head)) => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_host_of_a_url_is_ignored() {
        assert_eq!(head(http::Request::get("http://example.org/a?b=c"), None).target, "/a?b=c");
        assert_eq!(head(http::Request::get("http://example.org"), None).target, "/");
    }

    #[test]
    fn a_known_length_is_told_once() {
        let lengths = |request, bytes| {
            let headers = head(request, bytes).headers;
            headers.into_iter().filter(|header| header.name == "content-length").count()
        };
        assert_eq!(lengths(http::Request::post("/"), Some(3)), 1);
        assert_eq!(lengths(http::Request::post("/").header("content-length", "3"), Some(3)), 1);
        assert_eq!(lengths(http::Request::get("/"), Some(0)), 0);
        assert_eq!(lengths(http::Request::post("/"), None), 0);
    }

    #[test]
    fn a_response_that_is_no_http_is_refused() {
        let response = |status, name: &str| v1::FetchResponse {
            part: Some(v1::fetch_response::Part::Head(v1::FetchResponseHead {
                status,
                headers: vec![v1::Header { name: name.into(), value: Bytes::from_static(b"x") }],
            })),
        };
        assert!(response_head(Some(response(200, "a"))).is_ok());
        assert!(response_head(Some(response(7, "a"))).is_err());
        assert!(response_head(Some(response(70_000, "a"))).is_err());
        assert!(response_head(Some(response(200, "a b"))).is_err());
        assert!(response_head(None).is_err());
    }
}
