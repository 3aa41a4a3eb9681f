//! The model over real sockets, with a client made by hand: what a wire capture of an agent would show.

#![allow(clippy::expect_used, clippy::panic, reason = "the helpers of a test fail like the test")]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentos_demo_model::{Listen, Listener, MARK, Options, run, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than anything here takes on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(30);

struct Model {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Model {
    async fn start(request_log: Option<PathBuf>) -> Self {
        let listener = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).await.expect("loopback");
        let address = listener.address().expect("bound");
        let address = address.strip_prefix("http://").and_then(|a| a.parse().ok()).expect("an address");
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            serve(listener, request_log, stopped).await.expect("serves until stopped");
        });
        Self { address, stop, served }
    }

    async fn stop(self) {
        self.stop.send(()).expect("still serving");
        tokio::time::timeout(DEADLINE, self.served).await.expect("stops").expect("without a panic");
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("listening");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: model\r\ncontent-type: application/json\r\nuser-agent: test\r\nauthorization: Bearer secret\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(body.as_bytes()).await.expect("sent");
        stream
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> Got {
        let mut stream = self.send(method, path, body).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes));
        read.await.expect("answers in time").expect("readable");
        Got::of(&bytes)
    }

    async fn chat(&self, prompt: &str, stream: bool) -> Got {
        self.request("POST", "/v1/chat/completions", &chat_body(prompt, stream)).await
    }
}

fn chat_body(prompt: &str, stream: bool) -> String {
    let schema =
        json!({"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]});
    json!({
        "model": "agentos-demo", "stream": stream,
        "messages": [{"role": "system", "content": "You are a test."}, {"role": "user", "content": prompt}],
        "tools": [{"type": "function", "function": {"name": "bash", "parameters": schema}}]
    })
    .to_string()
}

#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: String,
    /// The body came to the end its framing announced.
    complete: bool,
}

impl Got {
    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, rest) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let head = head.to_ascii_lowercase();
        let (body, complete) =
            if head.contains("transfer-encoding: chunked") { unchunk(rest) } else { (rest.to_owned(), true) };
        Self { status, head, body, complete }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The JSON of every event of a stream, without `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let data =
            self.body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|d| *d != "[DONE]");
        data.map(|d| serde_json::from_str(d).unwrap_or_else(|e| panic!("{e}: {d}"))).collect()
    }

    fn chat_text(&self) -> String {
        self.events()
            .iter()
            .filter_map(|e| e["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect()
    }
}

fn unchunk(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { return (body, false) };
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = after.get(..size) else { return (body, false) };
        body.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    (body, false)
}

#[tokio::test]
async fn every_wire_answers_streamed_and_whole() {
    let model = Model::start(None).await;
    let hi = json!([{"role": "user", "content": "hi"}]);
    for (path, streamed, whole) in [
        ("/v1/messages?beta=true", json!({"messages": hi, "stream": true}), json!({"messages": hi})),
        ("/v1/chat/completions", json!({"messages": hi, "stream": true}), json!({"messages": hi})),
        ("/v1/responses", json!({"input": "hi", "stream": true}), json!({"input": "hi"})),
    ] {
        let got = model.request("POST", path, &streamed.to_string()).await;
        assert!(got.status == 200 && got.complete && got.head.contains("text/event-stream"), "{got:?}");
        assert!(got.events().len() > 5, "{got:?}");
        let got = model.request("POST", path, &whole.to_string()).await;
        assert!(got.status == 200 && got.json().to_string().contains(MARK), "{got:?}");
    }
    let body = json!({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}).to_string();
    let base = "/v1beta/models/agentos-demo";
    let got = model.request("POST", &format!("{base}:streamGenerateContent?alt=sse&key=k"), &body).await;
    assert!(got.complete && got.events().len() > 3, "{got:?}");
    let got = model.request("POST", &format!("{base}:streamGenerateContent"), &body).await;
    assert!(got.complete && got.json().as_array().is_some_and(|list| list.len() > 3), "{got:?}");
    let got = model.request("POST", &format!("{base}:generateContent"), &body).await;
    assert!(
        got.json()["candidates"][0]["content"]["parts"][0]["text"]
            .as_str()
            .is_some_and(|t| t.starts_with(MARK))
    );
    model.stop().await;
}

#[tokio::test]
async fn models_are_listed_and_tokens_counted() {
    let model = Model::start(None).await;
    assert_eq!(model.request("GET", "/v1/models", "").await.json()["data"][0]["id"], "agentos-demo");
    assert_eq!(model.request("GET", "/v1/models/agentos-demo", "").await.json()["id"], "agentos-demo");
    assert_eq!(
        model.request("GET", "/v1beta/models", "").await.json()["models"][0]["name"],
        "models/agentos-demo"
    );
    let body = json!({"messages": [{"role": "user", "content": "hi"}]}).to_string();
    assert!(model.request("POST", "/v1/messages/count_tokens", &body).await.json()["input_tokens"].is_u64());
    let got = model.request("POST", "/v1beta/models/x:countTokens", "{}").await;
    assert!(got.json()["totalTokens"].is_u64());
    assert_eq!(model.request("HEAD", "/", "").await.status, 200);
    assert_eq!(model.request("GET", "/nowhere", "").await.status, 404);
    assert_eq!(model.request("GET", "/v1/messages", "").await.status, 405);
    model.stop().await;
}

#[tokio::test]
async fn faults_are_what_was_ordered() {
    let model = Model::start(None).await;
    let got = model.chat("demo:status 429 too many", true).await;
    assert_eq!((got.status, &got.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert_eq!(model.chat("demo:status 500", false).await.status, 500);

    for stream in [true, false] {
        let got =
            model.chat("demo:drop\ndemo:say one two three four five six seven eight nine ten", stream).await;
        assert!(got.status == 200 && !got.complete && !got.body.is_empty(), "{got:?}");
    }

    let started = Instant::now();
    let got = model.chat("demo:slow 300", true).await;
    assert!(got.complete && started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
    assert!(got.chat_text().starts_with(MARK));

    // A hanging answer sends nothing; the next request is answered beside it, and stopping doesn't wait for it.
    let mut hanging = model.send("POST", "/v1/chat/completions", &chat_body("demo:hang", true)).await;
    assert!(model.chat("demo:say here", true).await.chat_text().ends_with("here"));
    model.stop().await;
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, hanging.read_to_end(&mut bytes)).await.expect("closed");
    assert!(bytes.is_empty(), "{bytes:?}");
}

#[tokio::test]
async fn a_fault_passes_when_it_was_ordered_to() {
    let model = Model::start(None).await;
    for (prompt, other) in
        [("demo:status 500 a", "demo:status 500 b"), ("demo:drop", "demo:drop\ndemo:say x")]
    {
        let passing = format!("{prompt}\ndemo:times 2");
        for _ in 0..2 {
            let got = model.chat(&passing, true).await;
            assert!(got.status == 500 || !got.complete, "{got:?}");
        }
        let got = model.chat(&format!("{other}\ndemo:times 1"), true).await;
        assert!(got.status == 500 || !got.complete, "each prompt is counted by itself: {got:?}");
        let got = model.chat(&passing, true).await;
        assert!(got.complete && got.chat_text().starts_with(MARK), "{got:?}");
    }
    model.stop().await;
}

#[tokio::test]
async fn a_slow_answer_comes_piece_by_piece() {
    let model = Model::start(None).await;
    let mut stream = model.send("POST", "/v1/chat/completions", &chat_body("demo:slow 600000", true)).await;
    let mut seen = String::new();
    let two_pieces = async {
        let mut buffer = [0; 4096];
        while !seen.contains("[demo model]") {
            let read = stream.read(&mut buffer).await.expect("readable");
            assert!(read > 0, "ended early: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    tokio::time::timeout(DEADLINE, two_pieces).await.expect("the first piece comes long before the last");
    assert!(!seen.contains("[DONE]"));
    // The client leaves in the middle; the server goes on.
    drop(stream);
    assert_eq!(model.chat("demo:say x", true).await.status, 200);
    model.stop().await;
}

#[tokio::test]
async fn requests_are_on_record_before_their_answer_and_without_keys() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("requests.ndjson");
    let model = Model::start(Some(log.clone())).await;
    model.chat("run `echo hi`", true).await;
    model.request("POST", "/v1/messages", "nonsense").await;
    let text = std::fs::read_to_string(&log).expect("a log");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    assert_eq!(lines.len(), 2);
    let call = &lines[0];
    assert_eq!(
        call["decision"],
        json!({"kind": "call", "tool": "bash", "arguments": {"command": "echo hi"}})
    );
    assert_eq!(
        (&call["wire"], &call["user_agent"], &call["messages"]),
        (&json!("chat"), &json!("test"), &json!(1))
    );
    assert_eq!(call["system"], "You are a test.");
    assert_eq!(call["tools"][0]["schema"]["required"][0], "command");
    assert_eq!(call["body"]["messages"][1]["content"], "run `echo hi`");
    assert_eq!(lines[1]["decision"]["code"], 400);
    assert!(!text.contains("secret"));
    let recent = model.request("GET", "/_demo/requests", "").await.json();
    assert_eq!(recent["requests"], Value::Array(lines));
    model.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_wires_own_shape() {
    let model = Model::start(None).await;
    for body in ["", "{", "[]", "{\"messages\": 1}", "\u{0}", "{\"messages\": [{\"role\": \"robot\"}]}"] {
        let got = model.request("POST", "/v1/messages", body).await;
        assert_eq!(
            (got.status, &got.json()["error"]["type"]),
            (400, &json!("invalid_request_error")),
            "{body}"
        );
    }
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(model.request("POST", "/v1/responses", &deep).await.status, 400);
    model.stop().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let model = Model::start(None).await;
    let mut stream = TcpStream::connect(model.address).await.expect("listening");
    let size = 65usize << 20;
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        let piece = vec![b' '; 1 << 20];
        // The server may close before it has read all of it.
        for _ in 0..65 {
            if writer.write_all(&piece).await.is_err() {
                break;
            }
        }
    });
    let mut bytes = Vec::new();
    // A reset after the answer is the server's right: the rest of the body was never read.
    let _ = tokio::time::timeout(DEADLINE, reader.read_to_end(&mut bytes)).await.expect("refused in time");
    assert_eq!(Got::of(&bytes).status, 413);
    sending.await.expect("no panic");
    model.stop().await;
}

#[tokio::test]
async fn slow_senders_of_large_bodies_keep_nobody_waiting() {
    let model = Model::start(None).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(model.address).await.expect("listening");
        let head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&vec![b' '; 3 << 19]).await.expect("sent");
        slow.push(stream);
    }
    assert!(model.chat("demo:say x", true).await.chat_text().ends_with('x'));
    drop(slow);
    model.stop().await;
}

/// Not a test by itself: the process that `the_model_ends_with_its_standard_input` starts.
#[tokio::test]
async fn as_a_child_process() {
    if std::env::var_os("DEMO_MODEL_CHILD").is_none() {
        return;
    }
    let options =
        Options { listen: Listen::Tcp(([127, 0, 0, 1], 0).into()), request_log: None, exit_with_stdin: true };
    let ready = |address: &str| {
        std::io::stdout().write_all(format!("ready {address}\n").as_bytes()).expect("a parent");
    };
    run(options, ready).await.expect("runs until its input ends");
}

#[test]
fn the_model_ends_with_its_standard_input() {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "as_a_child_process", "--nocapture"])
        .env("DEMO_MODEL_CHILD", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let ready = lines
        .by_ref()
        .map(|line| line.expect("text"))
        .find_map(|line| line.split_once("ready http://").map(|(_, address)| address.to_owned()));
    let address: SocketAddr = ready.and_then(|a| a.parse().ok()).expect("says its address");
    std::net::TcpStream::connect(address).expect("accepts connections once it is ready");
    drop(child.stdin.take());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(child.wait().expect("ends").success(), "{rest:?}");
}

#[tokio::test]
async fn a_unix_socket_serves_too_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.sock");
    // What a killed server leaves: a socket file nobody listens at.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let listener =
        Listener::bind(&Listen::Unix(path.clone())).await.expect("takes the abandoned socket over");
    assert_eq!(listener.address().expect("bound"), format!("unix:{}", path.display()));
    assert!(Listener::bind(&Listen::Unix(path.clone())).await.is_err(), "a living one is not taken over");
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(serve(listener, None, async { drop::<Result<(), _>>(stopped.await) }));
    let mut stream = tokio::net::UnixStream::connect(&path).await.expect("listening");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("answered");
    assert_eq!(Got::of(&bytes).json()["model"], "agentos-demo");
    stop.send(()).expect("serving");
    served.await.expect("no panic").expect("no error");
    assert!(!path.exists());
}
