//! Servers of HTTP that write down what they were asked, with and without TLS. They run until the test ends.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The name in the client's first message, over TLS.
    pub(crate) server_name: Option<String>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or(""))
    }
}

/// What a server has.
#[derive(Debug, Clone)]
pub(crate) enum Site {
    /// The same text for everybody.
    Text(&'static str),
    Redirect(String),
    /// Texts and bytes by path.
    Pages(HashMap<String, Vec<u8>>),
    /// The files under a directory.
    Files(PathBuf),
    /// Another one, for those who give this user and password.
    Locked(String, Box<Site>),
}

impl Site {
    fn answer(&self, asked: &Asked) -> Response<Full<Bytes>> {
        let path = asked.target.split('?').next().unwrap_or_default();
        let found = match self {
            Self::Text(text) => Some(text.as_bytes().to_vec()),
            Self::Redirect(to) => {
                let head = Response::builder().status(302).header("location", to);
                return head.body(Full::default()).unwrap();
            }
            Self::Locked(password, site) => {
                let basic = format!("Basic {}", STANDARD.encode(password));
                if asked.header("authorization") == basic {
                    return site.answer(asked);
                }
                let head = Response::builder().status(401).header("www-authenticate", "Basic realm=\"it\"");
                return head.body(Full::default()).unwrap();
            }
            Self::Pages(pages) => pages.get(path).cloned(),
            Self::Files(directory) => read(directory, path),
        };
        let status = if found.is_some() { 200 } else { 404 };
        // Package managers look at the type of what they fetch.
        let kind = match path.rsplit('.').next() {
            Some("tgz" | "whl" | "pack" | "idx") => "application/octet-stream",
            _ if path.ends_with('/') => "text/html",
            _ if found.as_ref().is_some_and(|bytes| bytes.starts_with(b"{")) => "application/json",
            _ => "text/plain",
        };
        let body = Full::from(found.unwrap_or_else(|| b"nothing here\n".to_vec()));
        Response::builder().status(status).header("content-type", kind).body(body).unwrap()
    }
}

fn read(directory: &Path, path: &str) -> Option<Vec<u8>> {
    let path = path.trim_start_matches('/');
    (!path.split('/').any(|part| part == "..")).then(|| std::fs::read(directory.join(path)).ok())?
}

/// A running server.
#[derive(Clone)]
pub(crate) struct Web {
    site: Arc<Site>,
    // Held for a look.
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Web {
    pub(crate) fn serve(listener: TcpListener, site: Site) -> Self {
        let web = Self { site: Arc::new(site), log: Arc::default() };
        let server = web.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().converse(stream, None));
            }
        });
        web
    }

    pub(crate) fn serve_tls(listener: TcpListener, tls: TlsAcceptor, site: Site) -> Self {
        let web = Self { site: Arc::new(site), log: Arc::default() };
        let server = web.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, tls) = (server.clone(), tls.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        let name = stream.get_ref().1.server_name().map(str::to_owned);
                        server.converse(stream, name).await;
                    }
                });
            }
        });
        web
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin, server_name: Option<String>) {
        let service = service_fn(|request: Request<Incoming>| {
            let (web, server_name) = (self.clone(), server_name.clone());
            async move { Ok::<_, Infallible>(web.answer(request, server_name).await) }
        });
        // A client that goes away in the middle is no fault of the test.
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>, server_name: Option<String>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
        let asked = Asked {
            method: head.method,
            target: head.uri.to_string(),
            headers: head.headers,
            body,
            server_name,
        };
        let answer = self.site.answer(&asked);
        self.log.lock().unwrap().push(asked);
        answer
    }
}
