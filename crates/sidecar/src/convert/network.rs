//! HTTP heads, ports and addresses.

use std::net::SocketAddr;

use agentos_proto::v1::{self, port_event};
use agentos_vm::network::ListeningPort;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, Uri};

use crate::convert::vm::port;
use crate::errors::Failure;
use crate::ports::Change;

/// They speak of one connection, not of the message: RFC 9110, section 7.6.1.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A request's head, and where it goes.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) vm_id: String,
    pub(crate) port: u16,
    pub(crate) request: Request<()>,
}

impl TryFrom<v1::FetchRequestHead> for Head {
    type Error = Failure;

    fn try_from(head: v1::FetchRequestHead) -> Result<Self, Failure> {
        let port = port(head.port)?;
        let method = Method::from_bytes(head.method.as_bytes())
            .map_err(|_| Failure::invalid(&head.method, format!("Not an HTTP method: {}", head.method)))?;
        let target = if head.target.is_empty() { "/" } else { &head.target };
        let target: PathAndQuery =
            target
                .parse()
                .ok()
                .filter(|_| target.starts_with('/') || target == "*")
                .ok_or_else(|| Failure::invalid(target, format!("Not a path of a URL: {target}")))?;
        let mut headers = HeaderMap::new();
        for field in head.headers {
            let refused = || Failure::invalid(&field.name, format!("Not an HTTP header: {}", field.name));
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| refused())?;
            let value = HeaderValue::from_maybe_shared(field.value.clone()).map_err(|_| refused())?;
            headers.append(name, value);
        }
        drop_hop_by_hop(&mut headers);
        if !headers.contains_key(header::HOST)
            && let Ok(host) = HeaderValue::try_from(format!("localhost:{port}"))
        {
            headers.insert(header::HOST, host);
        }
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(target);
        *request.headers_mut() = headers;
        Ok(Self { vm_id: head.vm_id, port, request })
    }
}

impl Head {
    /// The same for a request that is to end HTTP on its connection: it says so, and to which protocol.
    pub(crate) fn of_upgrade(head: v1::FetchRequestHead) -> Result<Self, Failure> {
        let is_upgrade = |field: &&v1::Header| field.name.eq_ignore_ascii_case(header::UPGRADE.as_str());
        let protocols = head.headers.iter().find(is_upgrade).map(|field| field.value.clone());
        let refused = || Failure::invalid("upgrade", "An upgrade names its protocol in the header Upgrade");
        let protocols = HeaderValue::from_maybe_shared(protocols.ok_or_else(refused)?);
        let mut whole = Self::try_from(head)?;
        let headers = whole.request.headers_mut();
        headers.insert(header::UPGRADE, protocols.map_err(|_| refused())?);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        Ok(whole)
    }
}

/// The answer to an upgrade still says to which protocol: it is of use to who asked.
pub(crate) fn upgraded_head(response: &mut Response<()>) -> v1::FetchResponseHead {
    let protocol = response.headers().get(header::UPGRADE).cloned();
    let mut head = response_head(response);
    head.headers.extend(protocol.map(|protocol| v1::Header {
        name: header::UPGRADE.as_str().to_owned(),
        value: protocol.as_bytes().to_vec().into(),
    }));
    head
}

pub(crate) fn listening_port(port: ListeningPort) -> v1::ListeningPort {
    let owner = port.owner.map(|owner| v1::PortOwner { pid: owner.pid, command: owner.command });
    v1::ListeningPort { address: port.address.to_string(), port: port.port.into(), owner }
}

pub(crate) fn port_event(change: Change) -> v1::PortEvent {
    let event = match change {
        Change::Listening(port) => port_event::Event::Listening(listening_port(port)),
        Change::Closed(port) => port_event::Event::Closed(listening_port(port)),
    };
    v1::PortEvent { event: Some(event) }
}

/// An address of the host, as text: names are the client's to resolve.
pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, Failure> {
    let refused = || Failure::invalid(text, format!("Not an IP address with a port: {text}"));
    text.parse().map_err(|_| refused())
}

pub(crate) fn response_head<B>(response: &mut Response<B>) -> v1::FetchResponseHead {
    drop_hop_by_hop(response.headers_mut());
    let headers = response.headers().iter().map(|(name, value)| v1::Header {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec().into(),
    });
    v1::FetchResponseHead { status: response.status().as_u16().into(), headers: headers.collect() }
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, headers: &[(&str, &str)]) -> Result<Head, Failure> {
        let field = |(name, value): &(&str, &str)| v1::Header {
            name: (*name).into(),
            value: (*value).to_owned().into(),
        };
        Head::try_from(v1::FetchRequestHead {
            vm_id: "vm".into(),
            port: 3000,
            method: "GET".into(),
            target: target.into(),
            headers: headers.iter().map(field).collect(),
        })
    }

    #[test]
    fn headers_of_the_connection_stay_behind() {
        let fields = [("Connection", "close, X-Hop"), ("x-hop", "1"), ("Upgrade", "h2c"), ("x-end", "2")];
        let request = head("/a?b=c", &fields).unwrap().request;
        let names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-end", "host"]);
        assert_eq!(request.headers()["host"], "localhost:3000");
        assert_eq!(request.uri(), "/a?b=c");
    }

    #[test]
    fn an_upgrade_keeps_its_protocol_and_needs_one() {
        let fields = [("Connection", "keep-alive, Upgrade"), ("UPGRADE", "websocket"), ("keep-alive", "x")];
        let field =
            |(name, value): (&str, &str)| v1::Header { name: name.into(), value: value.to_owned().into() };
        let head = |headers: &[(&str, &str)]| {
            let headers = headers.iter().copied().map(field).collect();
            Head::of_upgrade(v1::FetchRequestHead {
                port: 80,
                headers,
                method: "GET".into(),
                ..Default::default()
            })
        };
        let upgrade = head(&fields).unwrap().request;
        assert_eq!(upgrade.headers()["upgrade"], "websocket");
        assert_eq!(upgrade.headers()["connection"], "upgrade");
        assert_eq!(upgrade.headers().len(), 3, "{:?}", upgrade.headers());
        assert!(head(&fields[..1]).is_err());
        assert!(head(&[("upgrade", "a\r\nb")]).is_err());
    }

    #[test]
    fn addresses_of_the_host_are_numbers() {
        assert!(socket_address("[::1]:80").is_ok());
        for text in ["", "3000", "localhost:3000", "127.0.0.1", "127.0.0.1:70000"] {
            assert!(socket_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_callers_host_is_passed_on() {
        assert_eq!(head("/", &[("Host", "app.test")]).unwrap().request.headers()["host"], "app.test");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(head("no-slash", &[]).is_err());
        assert!(head("http://elsewhere/", &[]).is_err());
        assert!(head("/a b\r\nX: y", &[]).is_err());
        assert!(head("/", &[("bad name", "x")]).is_err());
        assert!(head("/", &[("a", "x\r\ny")]).is_err());
        assert_eq!(head("", &[]).unwrap().request.uri(), "/");
    }
}
