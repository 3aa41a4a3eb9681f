//! One request: route, parse, decide, record, encode.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;

use super::body::{self, Body, Piece, Refused};
use super::{Server, now_ms};
use crate::conversation::{Answer, Conversation, Reply};
use crate::journal::{Entry, decision};
use crate::script::decide;
use crate::wire::{BadRequest, MODEL, Meta, Wire, tokens};

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// An answer of the model. How it is streamed is in the path for Gemini, in the body for the others.
    Generate(Wire, Streaming),
    CountTokens(Wire),
    Models,
    Model,
    GeminiModels,
    GeminiModel,
    Requests,
    About,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streaming {
    AsTheBodySays,
    Never,
    /// Server-sent events.
    Events,
    /// One JSON list, element by element: Gemini without `alt=sse`.
    List,
}

pub(super) async fn respond(server: &Server, request: Request<Incoming>) -> Response<Body> {
    let route = route(request.uri().path(), request.uri().query().unwrap_or_default());
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    match route {
        Route::Generate(..) | Route::CountTokens(_) if *request.method() != Method::POST => {
            not_allowed("POST")
        }
        Route::Generate(wire, streaming) => generate(server, request, wire, streaming).await,
        Route::CountTokens(wire) => count_tokens(server, request, wire).await,
        Route::Unknown => {
            let message = format!("there is nothing at {}", request.uri().path());
            record_path(server, &request, 404).await;
            json_response(StatusCode::NOT_FOUND, &Wire::Chat.error(404, &message))
        }
        _ if !reading => not_allowed("GET, HEAD"),
        Route::Models => json_response(StatusCode::OK, &models(server.started_ms / 1000)),
        Route::Model => json_response(StatusCode::OK, &model(server.started_ms / 1000)),
        Route::GeminiModels => json_response(StatusCode::OK, &json!({ "models": [gemini_model()] })),
        Route::GeminiModel => json_response(StatusCode::OK, &gemini_model()),
        Route::Requests => response(StatusCode::OK, "application/json", body::whole(server.journal.recent())),
        Route::About => json_response(StatusCode::OK, &about()),
    }
}

fn route(path: &str, query: &str) -> Route {
    let trimmed = path.trim_end_matches('/');
    let versioned = trimmed.strip_prefix("/v1").filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match versioned.unwrap_or(trimmed) {
        "" => return Route::About,
        "/messages" => return Route::Generate(Wire::Anthropic, Streaming::AsTheBodySays),
        "/messages/count_tokens" => return Route::CountTokens(Wire::Anthropic),
        "/chat/completions" => return Route::Generate(Wire::Chat, Streaming::AsTheBodySays),
        "/responses" => return Route::Generate(Wire::Responses, Streaming::AsTheBodySays),
        "/models" => return Route::Models,
        "/_demo/requests" => return Route::Requests,
        _ => {}
    }
    let gemini =
        ["/v1beta/models", "/v1alpha/models", "/v1/models"].iter().find_map(|p| trimmed.strip_prefix(p));
    match gemini.map(|rest| rest.split_once(':').unwrap_or((rest, ""))) {
        Some((_, "generateContent")) => Route::Generate(Wire::Gemini, Streaming::Never),
        Some((_, "streamGenerateContent")) => {
            let events = query.split('&').any(|pair| pair == "alt=sse");
            Route::Generate(Wire::Gemini, if events { Streaming::Events } else { Streaming::List })
        }
        Some((_, "countTokens")) => Route::CountTokens(Wire::Gemini),
        Some(("", "")) => Route::GeminiModels,
        Some((name, "")) if name.starts_with('/') => {
            if trimmed.starts_with("/v1/") {
                Route::Model
            } else {
                Route::GeminiModel
            }
        }
        _ => Route::Unknown,
    }
}

/// What is known of a request before its body.
struct Asked {
    at_ms: u64,
    path: String,
    user_agent: Option<String>,
    wire: Wire,
}

impl Asked {
    fn of(request: &Request<Incoming>, wire: Wire) -> Self {
        let user_agent = request.headers().get(USER_AGENT).and_then(|v| v.to_str().ok()).map(str::to_owned);
        // The query is left out of the record: Gemini's clients may send their key in it.
        Self { at_ms: now_ms(), path: request.uri().path().to_owned(), user_agent, wire }
    }

    fn entry<'a>(&'a self, body_bytes: usize, decision: Value) -> Entry<'a> {
        Entry {
            at_ms: self.at_ms,
            method: "POST",
            path: &self.path,
            wire: Some(self.wire.name()),
            user_agent: self.user_agent.as_deref(),
            conversation: None,
            body: None,
            body_bytes,
            decision,
        }
    }
}

async fn generate(
    server: &Server,
    request: Request<Incoming>,
    wire: Wire,
    streaming: Streaming,
) -> Response<Body> {
    let asked = Asked::of(&request, wire);
    let read = match read(server, request, wire).await {
        Ok(read) => read,
        Err(problem) => return refuse(server, &asked, &problem).await,
    };
    let reply = server.passing.settle(decide(&read.conversation));
    let mut entry = asked.entry(read.bytes, decision(&reply));
    entry.conversation = Some(&read.conversation);
    entry.body = Some(&read.body);
    if let Err(error) = server.journal.record(&entry).await {
        return unrecorded(wire, &error);
    }
    let streaming = match streaming {
        Streaming::AsTheBodySays if read.body["stream"] == true => Streaming::Events,
        Streaming::AsTheBodySays => Streaming::Never,
        known => known,
    };
    let meta = Meta {
        id: format!("demo_{:x}_{}", server.started_ms, server.answered.fetch_add(1, Ordering::Relaxed)),
        created: now_ms() / 1000,
        input_tokens: tokens(read.bytes),
        include_usage: read.body["stream_options"]["include_usage"] == true,
    };
    // A hanging or slow answer must not hold the request's memory.
    drop(read);
    match reply {
        // Settled above.
        Reply::Passing { answer, .. } => encode(wire, streaming, &answer, &meta),
        Reply::Hang => std::future::pending().await,
        Reply::Status { code, message } => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            json_response(status, &wire.error(code, &message))
        }
        Reply::Answer(answer) => encode(wire, streaming, &answer, &meta),
    }
}

fn encode(wire: Wire, streaming: Streaming, answer: &Answer, meta: &Meta) -> Response<Body> {
    let piece = |text: String, paced: bool| Piece { bytes: Bytes::from(text), paced };
    let (kind, pieces) = match streaming {
        Streaming::Events => {
            let events = wire.events(answer, meta);
            ("text/event-stream; charset=utf-8", events.iter().map(|e| piece(e.to_sse(), e.paced)).collect())
        }
        Streaming::List => {
            let events = wire.events(answer, meta);
            let mut pieces: Vec<Piece> = Vec::with_capacity(events.len() + 1);
            for (i, event) in events.iter().enumerate() {
                let sse = event.to_sse();
                let json = sse.trim_start_matches("data: ").trim_end();
                pieces.push(piece(format!("{}{json}", if i == 0 { "[" } else { ",\r\n" }), event.paced));
            }
            pieces.push(piece("]".to_owned(), false));
            ("application/json; charset=utf-8", pieces)
        }
        Streaming::Never | Streaming::AsTheBodySays => {
            let text = wire.whole(answer, meta).to_string();
            if answer.spread.is_none() && !answer.cut {
                return response(StatusCode::OK, "application/json", body::whole(text));
            }
            // In two pieces, so that a cut or a wait falls into the middle.
            let mut middle = text.len() / 2;
            while !text.is_char_boundary(middle) {
                middle += 1;
            }
            let (first, second) = text.split_at(middle);
            ("application/json", vec![piece(first.to_owned(), true), piece(second.to_owned(), true)])
        }
    };
    let mut response = response(StatusCode::OK, kind, body::streamed(pieces, answer.spread, answer.cut));
    response.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-cache"));
    response
}

async fn count_tokens(server: &Server, request: Request<Incoming>, wire: Wire) -> Response<Body> {
    let asked = Asked::of(&request, wire);
    let counted = match body::read(request.into_body(), &server.large_bodies).await {
        Ok(read) => serde_json::from_slice::<IgnoredAny>(&read.bytes)
            .map(|_| tokens(read.bytes.len()))
            .map_err(|error| Problem::Bad(BadRequest::NotJson(error))),
        Err(refused) => Err(Problem::Refused(refused)),
    };
    match (counted, wire) {
        (Err(problem), _) => refuse(server, &asked, &problem).await,
        (Ok(count), Wire::Gemini) => json_response(StatusCode::OK, &json!({ "totalTokens": count })),
        (Ok(count), _) => json_response(StatusCode::OK, &json!({ "input_tokens": count })),
    }
}

struct Read<'a> {
    conversation: Conversation,
    body: Value,
    bytes: usize,
    /// Given back when the parsed request is dropped, before its answer begins.
    _place: Option<SemaphorePermit<'a>>,
}

/// Why a request gets no decision.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Refused(Refused),
    #[error(transparent)]
    Bad(BadRequest),
}

async fn read(server: &Server, request: Request<Incoming>, wire: Wire) -> Result<Read<'_>, Problem> {
    let body::Read { bytes, place } =
        body::read(request.into_body(), &server.large_bodies).await.map_err(Problem::Refused)?;
    let body: Value =
        serde_json::from_slice(&bytes).map_err(|error| Problem::Bad(BadRequest::NotJson(error)))?;
    let conversation = wire.parse(&body).map_err(Problem::Bad)?;
    Ok(Read { conversation, body, bytes: bytes.len(), _place: place })
}

async fn refuse(server: &Server, asked: &Asked, problem: &Problem) -> Response<Body> {
    let status = match problem {
        Problem::Refused(Refused::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
        Problem::Refused(Refused::TooSlow) => StatusCode::REQUEST_TIMEOUT,
        Problem::Refused(Refused::Broken) | Problem::Bad(_) => StatusCode::BAD_REQUEST,
    };
    let message = problem.to_string();
    let decision = json!({"kind": "refused", "code": status.as_u16(), "message": message});
    match server.journal.record(&asked.entry(0, decision)).await {
        Ok(()) => json_response(status, &asked.wire.error(status.as_u16(), &message)),
        Err(error) => unrecorded(asked.wire, &error),
    }
}

/// Unknown paths are recorded too: they show what an agent looks for.
async fn record_path(server: &Server, request: &Request<Incoming>, code: u16) {
    let user_agent = request.headers().get(USER_AGENT).and_then(|v| v.to_str().ok());
    let entry = Entry {
        at_ms: now_ms(),
        method: request.method().as_str(),
        path: request.uri().path(),
        wire: None,
        user_agent,
        conversation: None,
        body: None,
        body_bytes: 0,
        decision: json!({"kind": "refused", "code": code}),
    };
    // The answer is an error already and says nothing a full disk would change.
    let _ = server.journal.record(&entry).await;
}

/// Without its record an answer would be evidence lost: the request fails instead.
fn unrecorded(wire: Wire, error: &std::io::Error) -> Response<Body> {
    let message = format!("the request log can't be written: {error}");
    json_response(StatusCode::INTERNAL_SERVER_ERROR, &wire.error(500, &message))
}

/// One list for OpenAI's and Anthropic's clients: their fields don't collide.
fn models(created: u64) -> Value {
    json!({"object": "list", "data": [model(created)], "has_more": false, "first_id": MODEL, "last_id": MODEL})
}

fn model(created: u64) -> Value {
    json!({
        "id": MODEL,
        "object": "model",
        "type": "model",
        "display_name": "agentOS offline script",
        "created": created,
        "created_at": "2026-01-01T00:00:00Z",
        "owned_by": "agentos"
    })
}

fn gemini_model() -> Value {
    json!({
        "name": format!("models/{MODEL}"),
        "baseModelId": MODEL,
        "version": "1",
        "displayName": "agentOS offline script",
        "description": "A script, not a language model",
        "inputTokenLimit": 1_000_000,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"]
    })
}

fn about() -> Value {
    json!({"model": MODEL, "what": "the offline scripted model of agentOS: a script, not a language model"})
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let message = format!("only {allowed} here");
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &Wire::Chat.error(405, &message));
    response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(allowed));
    response
}

fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    response(status, "application/json", body::whole(value.to_string()))
}

fn response(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
