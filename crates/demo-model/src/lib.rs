//! The offline scripted model: a small LLM server that needs no key and no network.
//!
//! Every built-in agent can do real work against it (write the file, run the command), because it speaks their wires:
//! Anthropic Messages, OpenAI Chat Completions, OpenAI Responses and Gemini, streaming and not. It is a script and never
//! pretends otherwise: its model is called [`MODEL`], every text begins with [`MARK`], and what its rules don't
//! understand it answers with what it is, what it can do and how to set a key.
//!
//! ```text
//!  agent ── HTTP ──► server ──► wire::parse ──► Conversation ──► script::decide ──► Reply ──► wire::encode ──► agent
//!                      └── journal: one JSON line per request, and GET /_demo/requests
//! ```
//!
//! # What it understands
//!
//! A request without tools (titles, summaries) gets a short text, or JSON of the demanded schema with such texts in it.
//! With tools, the user's last prompt is read, either as
//! directives or as natural language, into steps; each step becomes a call of the agent's own write or shell tool, with
//! arguments made for the offered schema; when all results are there, the final text quotes them.
//!
//! Natural prompts, among others:
//!
//! ```text
//!  Write a hello world in TypeScript to hello.ts
//!  Write "TEXT" to FILE                    Create a file FILE containing TEXT
//!  Create FILE with the following content: (and a code fence)
//!  Run the command `CMD`                   run: CMD
//!  Write ... to FILE and then run CMD      ... and run it
//! ```
//!
//! # Directives
//!
//! A prompt with a line that begins with `demo:` is read by its directives alone, in their order:
//!
//! | line | what it does |
//! |---|---|
//! | `demo:run CMD` | calls the shell tool; `<<END` takes the lines up to `END` as the command |
//! | `demo:write FILE <<TEXT` | calls the write tool with this text; where a later line is exactly `TEXT`, that word is a delimiter and the lines before it are the content |
//! | `demo:tool NAME {json}` | calls any offered tool, also by the end of its name (`mcp__server__NAME`); the JSON may span lines |
//! | `demo:say TEXT` | ends with this text |
//! | `demo:ask` | ends by quoting the first user message of the conversation: proves that the agent kept it |
//! | `demo:slow MS` | spreads the final text over this many milliseconds |
//! | `demo:hang` | never answers |
//! | `demo:drop` | cuts the connection in the middle of the final text |
//! | `demo:status CODE [MESSAGE]` | answers with this HTTP status, 400 to 599, in the wire's own error shape |
//! | `demo:times N` | the fault comes for the first N requests with this prompt, then the text |
//!
//! Steps come first, whatever their place; then the texts, or the fault. Where one message has several blocks with
//! directives, the last of them counts.
//!
//! # How it fails
//!
//! A request it can't parse gets 400 with the field's name in the wire's error shape, too large a body 413, an unknown
//! path 404. The server itself ends with an [`Error`] only when it can't listen or can't write its request log.

pub mod conversation;
mod journal;
mod listen;
mod script;
mod server;
pub mod wire;

pub use listen::{Listen, Listener};
pub use script::{MARK, decide};
pub use server::{Error, Options, run, serve};
pub use wire::MODEL;
