//! Servers of HTTP that write down what they were asked, with and without TLS. They run until the test ends.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::websocket;

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
    /// The git repositories below a directory, for reading and writing, as git's own server has them.
    Git(PathBuf),
    /// Says back what it is told, over a WebSocket.
    WebSocket,
    /// Another one, for those who give this user and password.
    Locked(String, Box<Site>),
}

impl Site {
    async fn answer(&self, asked: &Asked) -> Response<Full<Bytes>> {
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
                    return Box::pin(site.answer(asked)).await;
                }
                let head = Response::builder().status(401).header("www-authenticate", "Basic realm=\"it\"");
                return head.body(Full::default()).unwrap();
            }
            Self::Git(root) => return git(root, asked).await,
            Self::WebSocket => return websocket::accept(asked),
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

/// What git's server says, which speaks CGI.
async fn git(root: &Path, asked: &Asked) -> Response<Full<Bytes>> {
    let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
    let mut server = tokio::process::Command::new("git");
    server.arg("http-backend").env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1");
    server.env("PATH_INFO", path).env("QUERY_STRING", query).env("REQUEST_METHOD", asked.method.as_str());
    server.env("CONTENT_TYPE", asked.header("content-type")).env("REMOTE_USER", "git").env("HOME", root);
    for (name, header) in [("HTTP_CONTENT_ENCODING", "content-encoding"), ("GIT_PROTOCOL", "git-protocol")] {
        server.env(name, asked.header(header));
    }
    server.env("CONTENT_LENGTH", asked.body.len().to_string());
    let mut running = server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, body) = (running.stdin.take().unwrap(), asked.body.clone());
    let feeding = tokio::spawn(async move {
        // It need not want all of it.
        let _ = input.write_all(&body).await;
    });
    let said = running.wait_with_output().await.unwrap().stdout;
    feeding.await.unwrap();
    let end = said.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let mut response = Response::builder();
    for line in std::str::from_utf8(&said[..end]).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(Full::from(said[end + 4..].to_vec())).unwrap()
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

    async fn converse(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        server_name: Option<String>,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            let (web, server_name) = (self.clone(), server_name.clone());
            async move { Ok::<_, Infallible>(web.answer(request, server_name).await) }
        });
        // A client that goes away in the middle is no fault of the test.
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        server_name: Option<String>,
    ) -> Response<Full<Bytes>> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
        let asked = Asked {
            method: head.method,
            target: head.uri.to_string(),
            headers: head.headers,
            body,
            server_name,
        };
        let answer = self.site.answer(&asked).await;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            tokio::spawn(async move { websocket::echo(TokioIo::new(upgrade.await.unwrap())).await });
        }
        self.log.lock().unwrap().push(asked);
        answer
    }
}
