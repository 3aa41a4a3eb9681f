//! An agent made of a script, for tests of whoever talks with agents. It speaks the Agent Client Protocol, version 1,
//! over stdin and stdout, correctly unless it is told otherwise, and can be told to misbehave in every way we know.
//!
//! ```text
//! fake_acp_agent [FLAG]...                      an agent
//! fake_acp_agent --replay FILE                  the agent's side of a recording, see `replay`
//! ```
//!
//! # Flags
//!
//! `--KEY=VALUE` sets one field of [`profile::Profile`] (VALUE is JSON, or else taken as text; `--KEY` alone means true),
//! `--profile JSON` and `--profile-file PATH` many, `--on METHOD SCRIPT` what happens before METHOD is answered, and
//! `--start SCRIPT` what happens before anything is read. An unknown flag ends it with status 64: a test that misspells
//! should not pass. `--acp` is taken and means nothing.
//!
//! # Scripts
//!
//! The text of a prompt, and the scripts above, may hold directives: `[[name arguments]]`, obeyed in order. Text around
//! them is ignored; a prompt without any is answered with `heard: TEXT`. A directive ends at the last bracket of the
//! first `]]` (write `] ]` inside JSON). In arguments, `${session}` becomes the session's id, `${request}` the id of the request that is being
//! answered (as JSON), `${cwd}` the session's directory. Sizes take K, M and G. An unknown directive fails the request
//! with -32602. When a script is over, the request is answered, unless the script did that or forbade it.
//!
//! What is said:
//!
//! | directive | |
//! |---|---|
//! | `say TEXT`, `think TEXT`, `user TEXT` | one chunk of text, thought, or the user's words; `\n` is a line's end |
//! | `words TEXT` | one chunk for each word |
//! | `plan A, B`, `commands A B` | a plan, the commands there are |
//! | `mode ID`, `option ID VALUE` | the agent changes it by itself and says so |
//! | `title TEXT`, `usage N` | `session_info_update`, `usage_update` |
//! | `update JSON` | `session/update` with this update; `update-for SESSION JSON` for another session |
//! | `notify METHOD JSON` | any notification |
//! | `meta` | from now on `_meta` is in everything |
//! | `echo WHAT` | as JSON: initialize, client, session, prompt, received, answers, answered (their ids), argv, pid, cwd, `env NAME` |
//! | `recall` | what the user said in this session before, one line each |
//! | `log TEXT`, `log-flood BYTES` | lines on stderr |
//!
//! What is done:
//!
//! | directive | |
//! |---|---|
//! | `tool KIND SUBJECT` | announces a call and its success without doing anything; `fail` as last word: its failure; `open`: no end |
//! | `write PATH TEXT`, `run COMMAND` | really writes, really runs, with the call's updates |
//! | `ask KIND SUBJECT [options=KIND:ID,...] [id=JSON] [copies=N] [forge=ID] [session=ID] [unannounced]` | asks for permission, then really does it (edit: writes SUBJECT, execute: runs it) or not; says `asked: OUTCOME`. Remembers what was allowed or rejected for always |
//! | `call METHOD JSON`, `send METHOD JSON` | a request to the client; `call` waits and says the answer. `id=JSON` before METHOD gives it that id |
//! | `fs-read PATH`, `fs-write PATH TEXT`, `terminal COMMAND` | the client's files and terminals |
//! | `daemon SECONDS [hold]` | a process in a session of its own that outlives the agent; `hold`: with the agent's stdout; says its pid |
//!
//! How long it takes:
//!
//! | directive | |
//! |---|---|
//! | `sleep MS`, `hang` | ended by a cancel |
//! | `ignore-cancel` | from now on in this turn |
//! | `deaf` | nothing is read from now on |
//!
//! How much it is:
//!
//! | directive | |
//! |---|---|
//! | `flood RATE [SECONDS] [kind=K] [pad=BYTES]` | numbered updates, RATE a second; rate 0: SECONDS is their number, and they come as fast as they can. Kinds: message (the number and a space), stamp (as below), thought, unknown, notification, garbage, orphan (an answer nobody asked for), request, log |
//! | `stamp N [every=MS]` | chunks `NUMBER NANOSECONDS\n`, with CLOCK_MONOTONIC at the time of writing |
//! | `line BYTES [json]` | one line of that many bytes, as text or as one update |
//! | `half BYTES` | the same as an update whose end never comes |
//!
//! What is wrong:
//!
//! | directive | |
//! |---|---|
//! | `garbage KIND` | text, utf8, nul, truncated, array, number, empty, deep, crlf, mute (no method, no id), orphan (an answer nobody asked for) |
//! | `raw TEXT` | this line as it is |
//! | `error CODE MESSAGE [JSON]`, `error JSON` | the answer is an error; the second form is the whole error |
//! | `result JSON` | the answer's result |
//! | `end [REASON]` | answers now; what follows happens afterwards |
//! | `twice` | answers twice |
//! | `never` | doesn't answer |
//! | `exit CODE`, `signal NUMBER` | the agent's end |
//! | `hang-up` | closes stdout and lives on |

#![allow(clippy::print_stderr, reason = "what an agent logs goes to stderr")]

mod agent;
mod ask;
mod mischief;
mod offers;
mod processes;
mod profile;
mod replay;
mod script;
mod speech;
mod state;
mod tools;
mod turn;
mod wire;

use std::process::ExitCode;

/// The exit status of a command line that makes no sense.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match words.as_slice() {
        ["--orphan", seconds, rest @ ..] => processes::orphan(seconds, rest.contains(&"hold")),
        ["--sleeper", seconds] => processes::sleeper(seconds),
        ["--replay", file] => replay::run(file),
        _ => profile::Profile::from_arguments(&arguments).and_then(|profile| {
            if profile.ignore_sigterm {
                processes::ignore_signals()?;
            }
            agent::run(profile)
        }),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("fake_acp_agent: {reason}");
            ExitCode::from(USAGE)
        }
    }
}
