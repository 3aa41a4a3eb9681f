//! A real Pi agent with the offline model, and the same Pi bare on the host.

use crate::figure::{Figure, Limit, MEDIAN, Unit};
use crate::host::{self, milliseconds};
use crate::{Bench, Failure};
use agentos::{AgentOs, ModelChoice};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const READY: &str = "Pi session ready, VM included";
const TURN: &str = "Pi prompt turn with one tool call";
const MEMORY: &str = "VM with an idle Pi session, PSS";

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    if ![READY, TURN, MEMORY].iter().any(|name| bench.wants(name)) {
        return Ok(());
    }
    // The first session installs the agent and is no sample.
    let (vm, session) = start(bench).await?;
    session.close().await?;
    vm.dispose().await?;
    let bare = BarePi::find()?;

    let (mut ready, mut on_host, mut turns, mut memory) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.samples(20) {
        let known = host::pid_namespaces();
        let started = Instant::now();
        let (vm, session) = start(bench).await?;
        ready.push(milliseconds(started.elapsed()));
        memory.push(host::pss_megabytes_outside_of(&known));
        on_host.push(bare.answer()?);

        let started = Instant::now();
        let reply = session.prompt("Write a hello world in TypeScript to hello.ts").await?;
        turns.push(milliseconds(started.elapsed()));
        if !vm.exists("/home/user/hello.ts").await? {
            return Err(format!("the turn wrote nothing: {}", reply.text).into());
        }
        session.close().await?;
        vm.dispose().await?;
    }
    bench.record(Figure::milliseconds(READY, ready).host(on_host).limit(MEDIAN, Limit::TimesHost(1.3)));
    bench.record(Figure::milliseconds(TURN, turns).limit(MEDIAN, Limit::AtMost(200.0)));
    bench.record(Figure::new(MEMORY, Unit::Megabytes, memory).limit(MEDIAN, Limit::AtMost(150.0)));
    Ok(())
}

async fn start(bench: &Bench) -> Result<(AgentOs, agentos::Session), Failure> {
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
