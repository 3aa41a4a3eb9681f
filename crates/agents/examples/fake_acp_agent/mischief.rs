//! What no agent should do.

use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::script::{Step, size};
use crate::turn::{Done, Next, Turn};

/// Lines of what is written to stderr in bulk.
const LOG_LINE_BYTES: usize = 1000;
/// How deep nesting has to be to hurt whoever parses by calling itself.
const DEEP: usize = 100_000;

pub(crate) fn perform(turn: &mut Turn, step: &Step) -> Option<Done> {
    Some(match step.name.as_str() {
        "garbage" => garbage(turn, &step.rest),
        "raw" => {
            turn.agent.wire.bytes(format!("{}\n", step.rest).as_bytes());
            Ok(Next::Step)
        }
        "flood" => flood(turn, step),
        "stamp" => stamp(turn, step),
        "line" => long_line(turn, step),
        "half" => step.needed_size(0).map(|bytes| {
            let (before, _) = around(&turn.session);
            turn.agent.wire.filled(before.as_bytes(), bytes, b"");
            Next::Step
        }),
        "log-flood" => step.needed_size(0).and_then(log_flood),
        "deaf" => {
            turn.agent.deaf.store(true, Ordering::Relaxed);
            Ok(Next::Step)
        }
        "exit" => step.needed_size(0).map(|code| std::process::exit(i32::try_from(code).unwrap_or(1))),
        "signal" => kill(step),
        "hang-up" => hang_up(),
        _ => return None,
    })
}

fn garbage(turn: &Turn, kind: &str) -> Done {
    let bytes = match kind {
        "text" => b"Loading model... done\n".to_vec(),
        "utf8" => b"{\"jsonrpc\":\"2.0\",\"method\":\"\xff\xfe\xc0\",\"params\":{}}\n".to_vec(),
        "nul" => b"\0\0\0\0\n{\"jsonrpc\":\"2.0\",\0\"method\":\"x\"}\n".to_vec(),
        "truncated" => {
            b"{\"jsonrpc\":\"2.0\",\"method\":\"session/update\",\"params\":{\"sessionId\":\n".to_vec()
        }
        "array" => b"[1,2,3]\n".to_vec(),
        "number" => b"42\n".to_vec(),
        "empty" => b"\n\n   \n\n".to_vec(),
        "crlf" => b"not a message\r\n".to_vec(),
        "mute" => b"{\"jsonrpc\":\"2.0\"}\n".to_vec(),
        "orphan" => b"{\"jsonrpc\":\"2.0\",\"id\":987654321,\"result\":{}}\n".to_vec(),
        "deep" => {
            let mut bytes = b"{\"jsonrpc\":\"2.0\",\"method\":\"session/update\",\"params\":".to_vec();
            bytes.resize(bytes.len() + DEEP, b'[');
            bytes.resize(bytes.len() + DEEP, b']');
            bytes.extend(b"}\n");
            bytes
        }
        other => return Err(format!("no such garbage: {other}")),
    };
    turn.agent.wire.bytes(&bytes);
    Ok(Next::Step)
}

fn flood(turn: &mut Turn, step: &Step) -> Done {
    let rate = step.needed_size(0)?;
    let second = step.size(1).unwrap_or(Ok(1))?;
    let count = if rate == 0 { second } else { rate.saturating_mul(second) };
    let pad = step.value("pad").map_or(Ok(0), size)?;
    let pad = "x".repeat(usize::try_from(pad).unwrap_or(0));
    let kind = step.value("kind").unwrap_or("message").to_owned();
    let began = Instant::now();
    for number in 0..count {
        if let Some(nanoseconds) = number.saturating_mul(1_000_000_000).checked_div(rate) {
            let due = Duration::from_nanos(nanoseconds).saturating_sub(began.elapsed());
            if turn.pause(due) == Next::Cancelled {
                return Ok(Next::Cancelled);
            }
        } else if number % 256 == 0 && turn.pause(Duration::ZERO) == Next::Cancelled {
            return Ok(Next::Cancelled);
        }
        drop_of(turn, &kind, number, &pad)?;
    }
    Ok(Next::Step)
}

/// One piece of a flood.
fn drop_of(turn: &mut Turn, kind: &str, number: u64, pad: &str) -> Result<(), String> {
    match kind {
        "message" => turn.say(&format!("{number} {pad}")),
        "stamp" => turn.say(&format!("{number} {}\n", nanoseconds())),
        "thought" => turn.chunk("agent_thought_chunk", &format!("{number} {pad}")),
        "unknown" => turn.update(&json!({ "sessionUpdate": "news_of_tomorrow", "n": number, "pad": pad })),
        "notification" => turn.agent.wire.notify("_fake/news", &json!({ "n": number, "pad": pad })),
        "orphan" => turn.agent.wire.message(json!({ "id": 987_654_321 + number, "result": { "pad": pad } })),
        "garbage" => turn.agent.wire.bytes(format!("garbage {number} {pad}\n").as_bytes()),
        "request" => {
            let request = json!({ "id": number, "method": "_fake/question", "params": { "pad": pad } });
            turn.agent.wire.message(request);
        }
        "log" => eprintln!("log {number} {pad}"),
        other => return Err(format!("no such flood: {other}")),
    }
    Ok(())
}

fn stamp(turn: &mut Turn, step: &Step) -> Done {
    let every = step.value("every").map_or(Ok(0), size)?;
    for number in 0..step.needed_size(0)? {
        if turn.pause(Duration::from_millis(every)) == Next::Cancelled {
            return Ok(Next::Cancelled);
        }
        turn.say(&format!("{number} {}\n", nanoseconds()));
    }
    Ok(Next::Step)
}

/// The time by CLOCK_MONOTONIC.
fn nanoseconds() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// What is around the text of a chunk.
fn around(session: &str) -> (String, &'static [u8]) {
    let id = Value::from(session);
    let before = format!(
        "{{\"jsonrpc\":\"2.0\",\"method\":\"session/update\",\"params\":{{\"sessionId\":{id},\"update\":\
         {{\"sessionUpdate\":\"agent_message_chunk\",\"content\":{{\"type\":\"text\",\"text\":\""
    );
    (before, b"\"}}}}\n")
}

fn long_line(turn: &Turn, step: &Step) -> Done {
    let bytes = step.needed_size(0)?;
    if step.words().any(|word| word == "json") {
        let (before, after) = around(&turn.session);
        turn.agent.wire.filled(before.as_bytes(), bytes, after);
    } else {
        turn.agent.wire.filled(b"", bytes, b"\n");
    }
    Ok(Next::Step)
}

fn log_flood(bytes: u64) -> Done {
    let mut line = vec![b'l'; LOG_LINE_BYTES];
    line.push(b'\n');
    let mut log = std::io::stderr().lock();
    let mut left = bytes;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(line.len());
        log.write_all(&line[..count]).map_err(|error| error.to_string())?;
        left -= count as u64;
    }
    Ok(Next::Step)
}

fn kill(step: &Step) -> Done {
    let number = i32::try_from(step.needed_size(0)?).map_err(|error| error.to_string())?;
    let signal = rustix::process::Signal::from_named_raw(number).ok_or("no such signal")?;
    rustix::process::kill_process(rustix::process::getpid(), signal).map_err(|error| error.to_string())?;
    Ok(Next::Step)
}

fn hang_up() -> Done {
    let nothing =
        std::fs::File::options().write(true).open("/dev/null").map_err(|error| error.to_string())?;
    rustix::stdio::dup2_stdout(&nothing).map_err(|error| error.to_string())?;
    Ok(Next::Step)
}
