//! HTTP heads.

use agentos_proto::v1;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, Uri};

use crate::convert::vm::port;
use crate::errors::Failure;

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
