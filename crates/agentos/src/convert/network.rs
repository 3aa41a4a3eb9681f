//! HTTP.

use agentos_proto::v1;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::AnswerError;

const CALL: &str = "Fetch";

pub(crate) fn request_head(
    vm_id: &str,
    port: u16,
    head: &http::request::Parts,
    body_bytes: Option<u64>,
) -> v1::FetchRequest {
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
    let head = v1::FetchRequestHead {
        vm_id: vm_id.to_owned(),
        port: port.into(),
        method: head.method.as_str().to_owned(),
        target: if target.is_empty() { "/".to_owned() } else { target.to_owned() },
        headers,
    };
    v1::FetchRequest { part: Some(v1::fetch_request::Part::Head(head)) }
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
    let out_of_range = |field| AnswerError::Range { call: CALL, field };
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
