//! Every agent in a VM, and the same agent bare on the host with the same script for a model.
//!
//! What is compared is what a session adds: the way through the sidecar, the transcript, the VM around the agent. Both
//! sides are started alike ([`crate::bare`]), and both with the compiled code of an earlier run.
//!
//! A session gives each of its rows one sample, because its turns are not independent of each other: the first one loads
//! and compiles what the later ones find, and takes up to four times as long, so that the median of all of them lies
//! between two kinds and moves with whichever side has one more of the other kind. The first turn, which every session
//! has, is a row of its own; the mean of those that follow at once, which is what a conversation is made of, is another.
//! The side that goes first changes with every pair of sessions: what one session leaves to the next, and a machine that
//! becomes slower or faster meanwhile, meet both sides alike.

use crate::bare::{Bare, Model};
use crate::figure::{Figure, Limit, MEDIAN};
use crate::host::milliseconds;
use crate::{Bench, Failure};
use agentos::{AgentOs, ModelChoice, PermissionPolicy, Session};
use agentos_agents::plan::GUEST_SESSIONS;
use std::time::{Duration, Instant};

const PROMPT: &str = "Write a hello world in TypeScript to hello.ts";
const FILE: &str = "hello.ts";
/// Where an agent works in a VM.
const HOME: &str = "/home/user";
/// Turns of a session after its first.
const LATER_TURNS: u8 = 3;
/// How long an agent may install.
const INSTALL_DEADLINE: Duration = Duration::from_secs(120);
/// How long the remains of a session may take to go.
const UNDO_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

struct Row {
    agent: &'static str,
    /// What people call it.
    name: &'static str,
    /// Pairs of them; even, so that each side goes first equally often. Those that take long get fewer and those that
    /// vary most get more, so that all of them take about twelve minutes.
    sessions: usize,
    /// What a turn may take in any case.
    turn_ms: Option<f64>,
    /// The file below its home with which something is complete that it fetches and installs behind the first session of
    /// a home, and never again there. Where that is cut off, the turns of some later session pay for it.
    installs: Option<&'static str>,
}

const ROWS: &[Row] = &[
    Row { agent: "pi", name: "Pi", sessions: 20, turn_ms: Some(200.0), installs: None },
    Row { agent: "pi-cli", name: "Pi behind pi-acp", sessions: 14, turn_ms: None, installs: None },
    Row { agent: "claude", name: "Claude", sessions: 80, turn_ms: None, installs: None },
    Row { agent: "codex", name: "Codex", sessions: 16, turn_ms: None, installs: None },
    Row {
        agent: "opencode",
        name: "OpenCode",
        sessions: 40,
        turn_ms: None,
        installs: Some(".config/opencode/package-lock.json"),
    },
    Row { agent: "gemini", name: "Gemini", sessions: 80, turn_ms: None, installs: None },
];

/// What the sessions of one side took, one sample of each kind per session.
#[derive(Default)]
struct Side {
    opened: Vec<f64>,
    first: Vec<f64>,
    later: Vec<f64>,
}

impl Side {
    fn add(&mut self, opened: f64, first: f64, later: f64) {
        self.opened.push(opened);
        self.first.push(first);
        self.later.push(later / f64::from(LATER_TURNS));
    }
}

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let names = |row: &Row| {
        [
            format!("{} session: initialize and session/new", row.name),
            format!("{} prompt turn with one tool call: the first of a session", row.name),
            format!("{} prompt turn with one tool call: later ones", row.name),
        ]
    };
    let rows: Vec<(&Row, [String; 3])> = ROWS
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
    [opened, first, later]: [String; 3],
    model: &Model,
) -> Result<(), Failure> {
    let vm = AgentOs::create(bench.options().model(ModelChoice::Demo)).await?;
    // The first session of each side installs the agent or compiles it, and is no sample.
    install_in_vm(&vm, row).await?;
    in_vm(&vm, row, &mut Side::default()).await?;
    let bare = Bare::find(row.agent, model)?;
    install_on_host(&bare, row)?;
    on_host(&bare, &mut Side::default())?;

    let (mut ours, mut host) = (Side::default(), Side::default());
    for pair in 0..bench.samples(row.sessions) {
        if pair % 2 == 0 {
            in_vm(&vm, row, &mut ours).await?;
            on_host(&bare, &mut host)?;
        } else {
            on_host(&bare, &mut host)?;
            in_vm(&vm, row, &mut ours).await?;
        }
    }
    vm.dispose().await?;
    let opened = Figure::milliseconds(opened, ours.opened).host(host.opened);
    bench.record(opened.limit(MEDIAN, Limit::OverHost(60.0)).limit(MEDIAN, Limit::TimesHost(1.15)));
    for (name, ours, host) in [(first, ours.first, host.first), (later, ours.later, host.later)] {
        let turn = Figure::milliseconds(name, ours).host(host).limit(MEDIAN, Limit::OverHost(10.0));
        bench.record(match row.turn_ms {
            Some(most) => turn.limit(MEDIAN, Limit::AtMost(most)),
            None => turn,
        });
    }
    Ok(())
}

async fn install_in_vm(vm: &AgentOs, row: &Row) -> Result<(), Failure> {
    let Some(file) = row.installs else { return Ok(()) };
    let session = vm.create_session(row.agent).await?;
    let (file, deadline) = (format!("{HOME}/{file}"), Instant::now() + INSTALL_DEADLINE);
    while !vm.exists(&file).await? {
        if Instant::now() > deadline {
            return Err(not_installed(row, &file));
        }
        tokio::time::sleep(POLL).await;
    }
    end(vm, &session).await
}

fn install_on_host(bare: &Bare<'_>, row: &Row) -> Result<(), Failure> {
    let Some(file) = row.installs else { return Ok(()) };
    let (_peer, _) = bare.open()?;
    let (file, deadline) = (bare.home().join(file), Instant::now() + INSTALL_DEADLINE);
    while !file.exists() {
        if Instant::now() > deadline {
            return Err(not_installed(row, &file.to_string_lossy()));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn not_installed(row: &Row, file: &str) -> Failure {
    let seconds = INSTALL_DEADLINE.as_secs();
    format!("{} made no {file} within {seconds} s; it needs the npm registry for that", row.name).into()
}

async fn in_vm(vm: &AgentOs, row: &Row, side: &mut Side) -> Result<(), Failure> {
    let started = Instant::now();
    let session = vm.create_session(row.agent).permission_policy(PermissionPolicy::AllowAll).await?;
    let opened = milliseconds(started.elapsed());
    let first = turn(vm, &session).await?;
    let mut later = 0.0;
    for _ in 0..LATER_TURNS {
        later += turn(vm, &session).await?;
    }
    end(vm, &session).await?;
    side.add(opened, first, later);
    Ok(())
}

async fn end(vm: &AgentOs, session: &Session) -> Result<(), Failure> {
    session.close().await?;
    // Its processes end and its directory goes behind the answer; the next sample must not have to share with them.
    let directory = format!("{GUEST_SESSIONS}/{}", session.id());
    let deadline = Instant::now() + UNDO_DEADLINE;
    while vm.exists(&directory).await? {
        if Instant::now() > deadline {
            return Err(format!("{}: {directory} stays after its session", session.agent_type()).into());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn on_host(bare: &Bare<'_>, side: &mut Side) -> Result<(), Failure> {
    let (mut peer, opened) = bare.open()?;
    let first = peer.turn(PROMPT, FILE)?;
    let mut later = 0.0;
    for _ in 0..LATER_TURNS {
        later += peer.turn(PROMPT, FILE)?;
    }
    side.add(opened, first, later);
    Ok(())
}

async fn turn(vm: &AgentOs, session: &Session) -> Result<f64, Failure> {
    let started = Instant::now();
    let reply = session.prompt(PROMPT).await?;
    let took = milliseconds(started.elapsed());
    let file = format!("{HOME}/{FILE}");
    if !vm.exists(&file).await? {
        return Err(format!("{}: the turn wrote nothing: {}", session.agent_type(), reply.text).into());
    }
    vm.delete(&file).await?;
    Ok(took)
}
