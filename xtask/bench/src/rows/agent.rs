//! Pi with its VM: one beside the same Pi bare on the host, and many at once.

use crate::figure::{Figure, LOWEST, Limit, MEDIAN, Unit};
use crate::host::{self, milliseconds};
use crate::{Bench, Failure};
use agentos::{AgentOs, AgentOsOptions, ModelChoice, Session};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const READY: &str = "Pi session ready, VM included";
const MEMORY: &str = "VM with an idle Pi session, PSS";

/// Sessions at once, each in a VM of its own.
const CROWD: u32 = 20;
const ALL_DONE: &str = "20 Pi sessions at once, VMs included: all turns done";
const FINISHED: &str = "20 Pi sessions at once: finished a turn";
const EACH: &str = "each of 20 VMs with a Pi session after its turn, PSS";

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    if [ALL_DONE, FINISHED, EACH].iter().any(|name| bench.wants(name)) {
        crowd(bench).await?;
    }
    if ![READY, MEMORY].iter().any(|name| bench.wants(name)) {
        return Ok(());
    }
    // The first session installs the agent and is no sample.
    let (vm, session) = start(bench).await?;
    session.close().await?;
    vm.dispose().await?;
    let bare = BarePi::find()?;

    let (mut ready, mut on_host, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.samples(20) {
        let known = host::pid_namespaces();
        let started = Instant::now();
        let (vm, session) = start(bench).await?;
        ready.push(milliseconds(started.elapsed()));
        memory.push(host::pss_megabytes_outside_of(&known));
        on_host.push(bare.answer()?);
        session.close().await?;
        vm.dispose().await?;
    }
    bench.record(Figure::milliseconds(READY, ready).host(on_host).limit(MEDIAN, Limit::TimesHost(1.3)));
    bench.record(Figure::new(MEMORY, Unit::Megabytes, memory).limit(MEDIAN, Limit::AtMost(150.0)));
    Ok(())
}

/// All of them from nothing to the end of a turn, at once.
async fn crowd(bench: &mut Bench) -> Result<(), Failure> {
    // The first session installs the agent.
    start(bench).await?.0.dispose().await?;
    let (mut all_done, mut finished, mut each) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.samples(30) / 10 {
        let known = host::pid_namespaces();
        let started = Instant::now();
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..CROWD {
            running.spawn(turn(bench.options()));
        }
        let mut alive = Vec::new();
        while let Some(ended) = running.join_next().await {
            match ended? {
                Ok(vm) => alive.push(vm),
                // One that fails is one fewer, which its row shows.
                Err(failure) => eprintln!("  one of {CROWD} Pi sessions: {failure}"),
            }
        }
        all_done.push(milliseconds(started.elapsed()));
        let done = f64::from(u32::try_from(alive.len())?);
        finished.push(done);
        if !alive.is_empty() {
            // One that failed holds no VM.
            each.push(host::pss_megabytes_outside_of(&known) / done);
        }
        for (vm, _) in alive {
            vm.dispose().await?;
        }
    }
    bench.record(Figure::milliseconds(ALL_DONE, all_done));
    let finished = Figure::new(FINISHED, Unit::Count, finished);
    bench.record(finished.limit(LOWEST, Limit::AtLeast(f64::from(CROWD))));
    bench.record(Figure::new(EACH, Unit::Megabytes, each));
    Ok(())
}

/// A VM with a session that has done what it was asked for.
async fn turn(options: AgentOsOptions) -> Result<(AgentOs, Session), Failure> {
    let vm = AgentOs::create(options.model(ModelChoice::Demo)).await?;
    let session = vm.create_session("pi").await?;
    let reply = session.prompt("Write a hello world in TypeScript to hello.ts").await?;
    if !vm.exists("/home/user/hello.ts").await? {
        return Err(format!("the turn wrote nothing: {}", reply.text).into());
    }
    Ok((vm, session))
}

async fn start(bench: &Bench) -> Result<(AgentOs, Session), Failure> {
    let vm = AgentOs::create(bench.options().model(ModelChoice::Demo)).await?;
    let session = vm.create_session("pi").await?;
    Ok((vm, session))
}

/// The agent of the store, run on the host by the store's own Node.
struct BarePi {
    node: PathBuf,
    script: PathBuf,
    /// It writes to its home.
    home: PathBuf,
}

impl BarePi {
    fn find() -> Result<Self, Failure> {
        let agentos_home =
            std::env::var_os("AGENTOS_HOME").ok_or("AGENTOS_HOME names the store of agents")?;
        let packages = Path::new(&agentos_home).join("agents/packages");
        let node = package(&packages, "node-linux-")?.join("bin/node");
        let pi = package(&packages, "pi-coding-agent-")?;
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(pi.join("package.json"))?)?;
        let entry = manifest["bin"]["pi"].as_str().ok_or("Pi's package.json names no command")?;
        // Pi ships itself a second time as one file, which needs no other package beside it.
        let bundle = pi.join("dist/bundle/cli.js");
        let script = if bundle.is_file() { bundle } else { pi.join(entry) };
        Ok(Self { node, script, home: Path::new(&agentos_home).join("bare-pi") })
    }

    /// From the start of the process to its answer to the first question.
    fn answer(&self) -> Result<f64, Failure> {
        std::fs::create_dir_all(&self.home)?;
        let started = Instant::now();
        let mut child = Command::new(&self.node)
            .arg(&self.script)
            .args(["--mode", "rpc", "--no-session"])
            .env_clear()
            .envs([("PATH", OsString::from("/usr/bin:/bin")), ("HOME", self.home.clone().into_os_string())])
            .env("PI_OFFLINE", "1")
            .current_dir(&self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(b"{\"type\":\"get_state\"}\n")?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let answered =
            BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line.contains("get_state"));
        let took = started.elapsed();
        child.kill()?;
        child.wait()?;
        if answered { Ok(milliseconds(took)) } else { Err("bare Pi ended without an answer".into()) }
    }
}

/// The directory of the store whose name contains `name`, a version behind it.
pub(crate) fn package(packages: &Path, name: &str) -> Result<PathBuf, Failure> {
    let entries = std::fs::read_dir(packages).map_err(|error| format!("{}: {error}", packages.display()))?;
    let wanted = |path: &PathBuf| {
        let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        file_name.contains(name) && !file_name.ends_with(".compile-cache")
    };
    let found = entries.flatten().map(|entry| entry.path()).find(wanted);
    found.ok_or_else(|| format!("no {name}* in {}", packages.display()).into())
}
