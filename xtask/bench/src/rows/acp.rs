//! Every agent in a VM, and the same agent bare on the host with the same script for a model.
//!
//! What is compared is what a session adds: the way through the sidecar, the transcript, the VM around the agent. Both
//! sides are started alike ([`crate::bare`]), and both with the compiled code of an earlier run.

use crate::bare::{Bare, Model};
use crate::figure::{Figure, Limit, MEDIAN};
use crate::host::milliseconds;
use crate::{Bench, Failure};
use agentos::{AgentOs, ModelChoice, PermissionPolicy, Session};
use std::time::Instant;

const PROMPT: &str = "Write a hello world in TypeScript to hello.ts";
const FILE: &str = "hello.ts";
/// Turns of a session: they differ more than what is looked for, and cost less than sessions.
const TURNS: usize = 4;

struct Row {
    agent: &'static str,
    /// What people call it.
    name: &'static str,
    /// Those that take long get fewer, so that all of them take four minutes.
    sessions: usize,
    /// What a turn may take in any case.
    turn_ms: Option<f64>,
}

const ROWS: &[Row] = &[
    Row { agent: "pi", name: "Pi", sessions: 21, turn_ms: Some(200.0) },
    Row { agent: "pi-cli", name: "Pi behind pi-acp", sessions: 15, turn_ms: None },
    Row { agent: "claude", name: "Claude", sessions: 15, turn_ms: None },
    Row { agent: "codex", name: "Codex", sessions: 15, turn_ms: None },
    Row { agent: "opencode", name: "OpenCode", sessions: 9, turn_ms: None },
    Row { agent: "gemini", name: "Gemini", sessions: 15, turn_ms: None },
];

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let names = |row: &Row| {
        [
            format!("{} session: initialize and session/new", row.name),
            format!("{} prompt turn with one tool call", row.name),
        ]
    };
    let rows: Vec<(&Row, [String; 2])> = ROWS
        .iter()
        .map(|row| (row, names(row)))
        .filter(|(_, names)| names.iter().any(|name| bench.wants(name)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let model = Model::start()?;
    for (row, names) in rows {
        compare(bench, row, names, &model).await?;
    }
    Ok(())
}

async fn compare(
    bench: &mut Bench,
    row: &Row,
    [open_name, turn_name]: [String; 2],
    model: &Model,
) -> Result<(), Failure> {
    let vm = AgentOs::create(bench.options().model(ModelChoice::Demo)).await?;
    // The first session installs the agent and is no sample.
    open(&vm, row).await?.close().await?;
    let bare = Bare::find(row.agent, model)?;

    let (mut opened, mut bare_opened) = (Vec::new(), Vec::new());
    let (mut turns, mut bare_turns) = (Vec::new(), Vec::new());
    for _ in 0..bench.samples(row.sessions) {
        let started = Instant::now();
        let session = open(&vm, row).await?;
        opened.push(milliseconds(started.elapsed()));
        for _ in 0..TURNS {
            turns.push(turn(&vm, &session).await?);
        }
        session.close().await?;

        let (mut peer, took) = bare.open()?;
        bare_opened.push(took);
        for _ in 0..TURNS {
            bare_turns.push(peer.turn(PROMPT, FILE)?);
        }
    }
    vm.dispose().await?;
    let opened = Figure::milliseconds(open_name, opened).host(bare_opened);
    bench.record(opened.limit(MEDIAN, Limit::OverHost(60.0)).limit(MEDIAN, Limit::TimesHost(1.15)));
    let turns = Figure::milliseconds(turn_name, turns).host(bare_turns);
    let turns = turns.limit(MEDIAN, Limit::OverHost(10.0));
    bench.record(match row.turn_ms {
        Some(most) => turns.limit(MEDIAN, Limit::AtMost(most)),
        None => turns,
    });
    Ok(())
}

async fn open(vm: &AgentOs, row: &Row) -> Result<Session, Failure> {
    Ok(vm.create_session(row.agent).permission_policy(PermissionPolicy::AllowAll).await?)
}

async fn turn(vm: &AgentOs, session: &Session) -> Result<f64, Failure> {
    let started = Instant::now();
    let reply = session.prompt(PROMPT).await?;
    let took = milliseconds(started.elapsed());
    let file = format!("/home/user/{FILE}");
    if !vm.exists(&file).await? {
        return Err(format!("{}: the turn wrote nothing: {}", session.agent_type(), reply.text).into());
    }
    vm.delete(&file).await?;
    Ok(took)
}
