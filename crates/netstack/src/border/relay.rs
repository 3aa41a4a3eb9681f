//! One connection of a guest, request by request: read, judged, carried out, answered.
//!
//! Guest and upstream are paired: a guest's connection has at most one connection outside, which is kept for its next
//! request. So nothing is shared between connections, either side is read only as fast as the other takes it, and when
//! the guest hangs up, the upstream's work ends too: at once where secrets are, and with the answer's next piece where
//! plain HTTP may be half-closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Answer, Outgoing, Relayed};
use super::head;
use super::refusal::Refusal;
use super::route::{Encryption, Route};
use super::scrub::Patterns;
use super::target::Target;
use super::tunnel::Tunnel;
use super::upstream::{Connection, SendError};
use super::{Allowed, Border, BorderEvent, Outside, Upstream};
use crate::name::HostName;

/// From the end of an answer to the end of the next request's head. Clients keep connections for less.
const HEAD_DEADLINE: Duration = Duration::from_secs(90);

const MAX_HEADERS: usize = 128;
/// Bounds a request's head, and the pieces in which a body comes.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// What the guest connected to.
pub(super) enum Side<'a> {
    Gateway,
    /// The guest said in its TLS hello that it wants `name`.
    Intercepted {
        name: HostName,
        address: SocketAddr,
    },
    /// It is plain HTTP, and no secret goes in.
    Plain {
        address: SocketAddr,
        allowed: Allowed<'a>,
    },
}

pub(super) struct Relay<'a> {
    border: &'a Border,
    outside: &'a Outside,
    side: Side<'a>,
    /// What is starred out of answers.
    patterns: Arc<Patterns>,
    // Held to take or to put; requests of one connection come one after the other.
    connection: Mutex<Option<Connection>>,
    tunnel: Mutex<Option<Tunnel>>,
}

/// Where a request goes.
struct Plan<'a> {
    upstream: Upstream,
    encryption: Encryption,
    target: PathAndQuery,
    terms: Terms<'a>,
}

/// What becomes of a request's head, and of the answer.
enum Terms<'a> {
    /// A route's secrets go in.
    Gateway { host: HeaderValue, route: &'a Route },
    /// Secrets go in where their placeholders are.
    Intercepted { host: HeaderValue },
    /// It is passed on as it is.
    Plain,
}

impl<'a> Relay<'a> {
    pub(super) fn new(border: &'a Border, outside: &'a Outside, side: Side<'a>) -> Self {
        let patterns = match side {
            Side::Gateway | Side::Intercepted { .. } => Arc::clone(&border.patterns),
            Side::Plain { .. } => Arc::default(),
        };
        Self { patterns, border, outside, side, connection: Mutex::default(), tunnel: Mutex::default() }
    }

    /// Serves the guest's connection until one of the sides ends it.
    pub(super) async fn serve<S>(&self, guest: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_BUFFER_BYTES)
            // Plain clients may say that they are through and wait for the answer, as they could without us. Where
            // secrets are, a client that hangs up ends the upstream's work.
            .half_close(matches!(self.side, Side::Plain { .. }));
        let service = service_fn(|request| self.answer(request));
        let served = builder.serve_connection(TokioIo::new(guest), service).with_upgrades().await;
        if let Err(error) = served {
            tracing::debug!(%error, "connection of a guest");
        }
        let tunnel = self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tunnel) = tunnel {
            tunnel.carry(&self.patterns).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let (upstream, refusal) = match self.plan(&request) {
            Ok(plan) => match self.exchange(&plan, request).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => (Some(plan.upstream), refusal),
            },
            Err(refusal) => (self.intended(), refusal),
        };
        let response = refusal.response().map(Answer::Own);
        (self.outside.events)(BorderEvent::Refused { upstream, refusal });
        Ok(response)
    }

    /// Decides where a request goes, before a byte leaves.
    fn plan(&self, request: &Request<Incoming>) -> Result<Plan<'a>, Refusal> {
        let is_plain = matches!(self.side, Side::Plain { .. });
        // TRACE asks for an echo of the head.
        if *request.method() == Method::CONNECT || *request.method() == Method::TRACE && !is_plain {
            return Err(Refusal::Method);
        }
        match &self.side {
            Side::Plain { address, allowed } => plan_of_plain(request, *address, *allowed),
            Side::Gateway => self.plan_of_gateway(request.uri()),
            Side::Intercepted { name, address } => plan_of_interception(request, name, *address),
        }
    }

    fn plan_of_gateway(&self, uri: &Uri) -> Result<Plan<'a>, Refusal> {
        let target = Target::of(uri)?;
        let routes = &self.border.routes;
        let route = routes.iter().find(|route| route.prefix == target.prefix).ok_or_else(|| {
            Refusal::NoRoute { known: routes.iter().map(|route| route.prefix.clone()).collect() }
        })?;
        let default_port = match route.encryption {
            Encryption::None => 80,
            Encryption::Tls => 443,
        };
        Ok(Plan {
            upstream: Upstream { name: Some(route.host.clone()), port: route.port, address: None },
            encryption: route.encryption,
            target: target.below(&route.base_path).map_err(|_| Refusal::Request)?,
            terms: Terms::Gateway { host: head::host_value(&route.host, route.port, default_port)?, route },
        })
    }

    /// The upstream that the guest wants, as far as that is known before its request has been judged.
    fn intended(&self) -> Option<Upstream> {
        match &self.side {
            Side::Gateway => None,
            Side::Intercepted { name, address } => Some(Upstream::pinned(name, *address)),
            Side::Plain { address, .. } => {
                Some(Upstream { name: None, port: address.port(), address: Some(*address) })
            }
        }
    }

    async fn exchange(
        &self,
        plan: &Plan<'_>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Answer>, Refusal> {
        let upgrade = upgrade_of(plan, &request);
        let guest = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let mut body = Outgoing::new(body);
        let mut version = Version::HTTP_11;
        match &plan.terms {
            // Before a secret is put in: the guest may name any header as one that is not to be passed on.
            Terms::Gateway { host, .. } | Terms::Intercepted { host } => {
                head::outgoing(&mut parts.headers, host.clone(), upgrade.as_ref());
                self.put_in(plan, &mut parts.headers)?;
                if matches!(plan.terms, Terms::Gateway { .. }) {
                    body = body.strip_trailers(head::strip_claims);
                }
            }
            Terms::Plain => {
                head::forwarded(&mut parts.headers, upgrade.as_ref());
                version = parts.version;
            }
        }
        let mut outgoing = Request::new(body);
        *outgoing.version_mut() = version;
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = Uri::from(plan.target.clone());
        *outgoing.headers_mut() = parts.headers;
        let mut response = self.send(plan, outgoing).await?;
        let mut switched = None;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let protocol = upgrade.and_then(|asked| head::switched(response.headers(), &asked));
            let (guest, protocol) = guest.zip(protocol).ok_or(Refusal::Protocol)?;
            let upstream = hyper::upgrade::on(&mut response);
            let closes_by_halves = matches!(plan.terms, Terms::Plain);
            let tunnel = Tunnel { guest, upstream, closes_by_halves };
            *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
            switched = Some(protocol);
        }
        self.pass_on(plan, response, switched)
    }

    fn put_in(&self, plan: &Plan<'_>, headers: &mut HeaderMap) -> Result<(), Refusal> {
        let used = match plan.terms {
            Terms::Gateway { route, .. } => {
                head::strip_claims(headers);
                self.border.set_credentials(route, headers)?
            }
            Terms::Intercepted { .. } => self.border.fill_placeholders(&plan.upstream, headers)?,
            Terms::Plain => Vec::new(),
        };
        for secret in used {
            (self.outside.events)(BorderEvent::PutIn { secret, upstream: plan.upstream.clone() });
        }
        Ok(())
    }

    /// Sends the request over the connection of the last one, if it still serves, or a new one.
    async fn send(
        &self,
        plan: &Plan<'_>,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Refusal> {
        let kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut kept) = kept
            && kept.serves(&plan.upstream, plan.encryption).await
        {
            let copy = repeatable(&request);
            request = match kept.send(request).await {
                Ok(response) => return Ok(self.keep(kept, response)),
                Err(SendError::Unsent(unsent, _)) => *unsent,
                // The upstream may have hung up while the request was on its way.
                Err(SendError::Refused(Refusal::Exchange(error))) if !error.is_parse() => {
                    copy.ok_or(Refusal::Exchange(error))?
                }
                Err(SendError::Refused(refusal)) => return Err(refusal),
            };
        }
        let tls = self.border.trust.client();
        let mut connection = Connection::open(&plan.upstream, plan.encryption, tls, self.outside).await?;
        match connection.send(request).await {
            Ok(response) => Ok(self.keep(connection, response)),
            Err(SendError::Unsent(_, error)) => Err(Refusal::Exchange(error)),
            Err(SendError::Refused(refusal)) => Err(refusal),
        }
    }

    /// Keeps the connection, on which the rest of this response comes and the next request goes.
    fn keep(&self, connection: Connection, response: Response<Incoming>) -> Response<Incoming> {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        response
    }

    fn pass_on(
        &self,
        plan: &Plan<'_>,
        response: Response<Incoming>,
        switched: Option<HeaderValue>,
    ) -> Result<Response<Answer>, Refusal> {
        let (mut parts, body) = response.into_parts();
        let (events, upstream) = (Arc::clone(&self.outside.events), plan.upstream.clone());
        let on_echo = move || events(BorderEvent::Echoed { upstream });
        let on_echo: Box<dyn FnOnce() + Send> = Box::new(on_echo);
        let has_echoed = match plan.terms {
            Terms::Plain => head::returned(&mut parts.headers, switched).map(|()| false)?,
            _ => head::incoming(&mut parts.headers, &self.patterns, switched)?,
        };
        let on_echo = if has_echoed {
            on_echo();
            None
        } else {
            Some(on_echo)
        };
        // A new response: the reason phrase and whatever else hangs on the old one is the upstream's text too.
        let mut answer =
            Response::new(Answer::Relayed(Box::new(Relayed::new(body, &self.patterns, on_echo))));
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = parts.headers;
        Ok(answer)
    }
}

/// The protocols that a request may go on with, if it asks for any.
fn upgrade_of(plan: &Plan<'_>, request: &Request<Incoming>) -> Option<HeaderValue> {
    // An upgrade in HTTP/1.0 is to be ignored: RFC 9110, section 7.8.
    if request.version() != Version::HTTP_11 {
        return None;
    }
    match plan.terms {
        Terms::Plain => head::plain_upgrade(request.headers()),
        _ if request.method() == Method::GET => head::websocket(request.headers()),
        _ => None,
    }
}

/// The request once more, if it may be sent twice: RFC 9110, section 9.2.2.
fn repeatable(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let body = request.body().copy().filter(|_| request.method().is_safe())?;
    let mut copy = Request::new(body);
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    Some(copy)
}

fn plan_of_interception<'a>(
    request: &Request<Incoming>,
    name: &HostName,
    address: SocketAddr,
) -> Result<Plan<'a>, Refusal> {
    let uri = request.uri();
    head::check_host(uri, request.headers(), name, address.port())?;
    Ok(Plan {
        upstream: Upstream::pinned(name, address),
        encryption: Encryption::Tls,
        target: uri.path_and_query().cloned().ok_or(Refusal::Request)?,
        terms: Terms::Intercepted { host: head::host_value(name, address.port(), 443)? },
    })
}

fn plan_of_plain<'a>(
    request: &Request<Incoming>,
    address: SocketAddr,
    allowed: Allowed<'_>,
) -> Result<Plan<'a>, Refusal> {
    let uri = request.uri();
    let name = head::plain_host(uri, request.headers())?;
    allowed(name.as_ref()).map_err(|reason| Refusal::Host { name: name.clone(), reason })?;
    Ok(Plan {
        upstream: Upstream { name, port: address.port(), address: Some(address) },
        encryption: Encryption::None,
        target: uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")),
        terms: Terms::Plain,
    })
}
