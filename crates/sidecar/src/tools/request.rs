//! A guest's request as the MCP library may have it: whole, and bounded in what it becomes.
//!
//! JSON grows as it is read: `{"":0}` is six bytes, and hundreds in memory. A request has as many values as a model can
//! write, and not as many as fit into its bytes; a reader that keeps none of them counts them first.

use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes};
use hyper::{Request, Response, StatusCode};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokio::time::timeout;

use super::MAX_REQUEST_BYTES;

/// Sixty-four requests of so many values are a few hundred megabytes at the worst, for as long as they are read.
const MAX_VALUES: usize = 10_000;

/// A body comes at once from a program on the same machine.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// The bound that a request has passed; it does not get to the library.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a request has at most {MAX_REQUEST_BYTES} bytes")]
    Bytes,
    #[error("a request has at most {MAX_VALUES} values")]
    Values,
    #[error("the request did not come within {} s", BODY_DEADLINE.as_secs())]
    Deadline,
}

impl Refusal {
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.to_string()));
        *response.status_mut() = match self {
            Self::Bytes | Self::Values => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Deadline => StatusCode::REQUEST_TIMEOUT,
        };
        response
    }
}

/// Waits for the whole request and looks how much it is. One that is no JSON is left to the library, which says so.
pub(super) async fn whole<B>(request: Request<B>) -> Result<Request<Full<Bytes>>, Refusal>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    let (head, body) = request.into_parts();
    let collected = timeout(BODY_DEADLINE, Limited::new(body, MAX_REQUEST_BYTES).collect()).await;
    // A connection that breaks in the middle of a body hears nothing of this.
    let body = collected.map_err(|_| Refusal::Deadline)?.map_err(|_| Refusal::Bytes)?.to_bytes();
    if has_too_many_values(&body) {
        return Err(Refusal::Values);
    }
    Ok(Request::from_parts(head, Full::new(body)))
}

fn has_too_many_values(json: &[u8]) -> bool {
    let mut left = Some(MAX_VALUES);
    // What is wrong in other ways ends the library's reading at the same place.
    let read = Counted(&mut left).deserialize(&mut serde_json::Deserializer::from_slice(json));
    read.is_err() && left.is_none()
}

/// Counts a value, and those in it, down; none when there are too many.
struct Counted<'a>(&'a mut Option<usize>);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.0 = self.0.and_then(|left| left.checked_sub(1));
        match self.0 {
            Some(_) => deserializer.deserialize_any(self),
            None => Err(D::Error::custom(Refusal::Values)),
        }
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Counted(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_key::<IgnoredAny>()?.is_some() {
            members.next_value_seed(Counted(&mut *self.0))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    async fn refusal(body: impl Into<Bytes>) -> Option<Refusal> {
        whole(Request::new(Full::new(body.into()))).await.err()
    }

    #[tokio::test]
    async fn a_request_has_so_many_bytes_and_values() {
        let zeros = |count| format!("[{}]", vec!["0"; count].join(","));
        let members = |count| format!("{{{}}}", vec![r#""a":"""#; count].join(","));
        for (body, expected) in [
            (zeros(MAX_VALUES - 1), None),
            (zeros(MAX_VALUES), Some(Refusal::Values)),
            (members(MAX_VALUES - 1), None),
            (members(MAX_VALUES), Some(Refusal::Values)),
            (format!("[{}", "[0,".repeat(MAX_VALUES / 2)), None),
            (format!("{}, and no JSON", zeros(MAX_VALUES)), Some(Refusal::Values)),
            ("[-1, 1.5, null, true, {\"a\": [\"\\n\"]}]".to_owned(), None),
            ("no JSON".to_owned(), None),
            ("x".repeat(MAX_REQUEST_BYTES), None),
            ("x".repeat(MAX_REQUEST_BYTES + 1), Some(Refusal::Bytes)),
        ] {
            let start = body[..body.len().min(20)].to_owned();
            assert_eq!(refusal(body).await, expected, "{start}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_not_waited_for() {
        let never = futures_util::stream::pending::<Result<hyper::body::Frame<Bytes>, std::io::Error>>();
        let refused = whole(Request::new(StreamBody::new(never))).await.unwrap_err();
        assert_eq!((refused.response().status(), refused), (StatusCode::REQUEST_TIMEOUT, Refusal::Deadline));
    }
}
