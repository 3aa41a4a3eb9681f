//! HTTP to servers inside a VM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{AgentOs, Body, ErrorKind};
use bytes::Bytes;
use support::world::World;
use support::{eventually, within};

/// Answers what it was asked, once per connection.
const SERVER: &str = r#"
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if self.path == "/redirect":
            self.send_response(302); self.send_header("location", "http://example.org/"); self.send_header("content-length", "0"); self.end_headers(); return
        text = f"{self.command} {self.path} {self.headers.get('x-asked')} {self.headers.get('host')} ".encode() + body
        self.send_response(201); self.send_header("content-length", str(len(text))); self.send_header("x-answered", "yes"); self.end_headers()
        self.wfile.write(text)
    do_GET = do_POST = do_PUT = answer
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"#;

async fn serve(vm: &AgentOs) {
    vm.write_file("/home/user/server.py", SERVER).await.unwrap();
    vm.spawn("python3", ["server.py"]).await.unwrap();
    eventually("the server listens", || async {
        vm.fetch(8000, http::Request::get("/").body(Body::empty()).unwrap()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_request_reaches_the_server_and_its_answer_comes_back() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm).await;
    let request = http::Request::post("http://ignored.example/path?q=1").header("x-asked", "yes");
    let response = vm.fetch(8000, request.body("payload").unwrap()).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-answered"]),
        (201, &"yes".parse().unwrap())
    );
    let text = response.into_body().into_text().await.unwrap();
    assert!(text.starts_with("POST /path?q=1 yes ") && text.ends_with(" payload"), "{text}");
}

#[tokio::test]
async fn bodies_are_binary_and_stream_both_ways() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm).await;
    let bytes: Vec<u8> = (0..5_000_000u32).map(|number| (number % 253) as u8).collect();
    let response = vm.fetch(8000, http::Request::put("/big").body(bytes.clone()).unwrap()).await.unwrap();
    let body = within("the answer", response.into_body().into_bytes()).await.unwrap();
    assert!(body.ends_with(&bytes), "{} bytes", body.len());
}

#[tokio::test]
async fn a_redirect_is_an_answer_like_any_other() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm).await;
    let response = vm.fetch(8000, http::Request::get("/redirect").body(()).unwrap()).await.unwrap();
    assert_eq!(response.status().as_u16(), 302);
}

#[tokio::test]
async fn nobody_listening_is_connection_refused() {
    let world = World::new().await;
    let vm = world.vm().await;
    let error = vm.fetch(9, http::Request::get("/").body(Body::empty()).unwrap()).await.unwrap_err();
    assert_eq!(error.errno(), Some("ECONNREFUSED"), "{error:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_sent_as_whole() {
    let world = World::new().await;
    let vm = world.vm().await;
    serve(&vm).await;
    let chunks = futures_util::stream::iter([
        Ok(Bytes::from_static(b"half")),
        Err(std::io::Error::other("the source broke")),
    ]);
    let request = http::Request::post("/").header("content-length", "8").body(Body::stream(chunks)).unwrap();
    let error = within("the failure", vm.fetch(8000, request)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the source broke");
}
