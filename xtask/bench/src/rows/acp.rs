//! Claude Code over ACP in a VM, and the same adapter bare on the host with the same script for a model.
//!
//! What is compared is what a session adds: the way through the sidecar, the transcript, the VM around the agent. Both
//! sides have the adapter's compile cache.

use crate::figure::{Figure, Limit, MEDIAN};
use crate::host::milliseconds;
use crate::rows::agent::package;
use crate::{Bench, Failure};
use agentos::{AgentOs, ModelChoice, PermissionPolicy, Session};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const OPEN: &str = "Claude session: initialize and session/new";
const TURN: &str = "Claude prompt turn with one tool call";
const PROMPT: &str = "Write a hello world in TypeScript to hello.ts";

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    if ![OPEN, TURN].iter().any(|name| bench.wants(name)) {
        return Ok(());
    }
    let vm = AgentOs::create(bench.options().model(ModelChoice::Demo)).await?;
    // The first session installs the agent and is no sample.
    open(&vm).await?.close().await?;
    let bare = Bare::find()?;
    bare.session()?;

    let (mut opened, mut bare_opened, mut turns, mut bare_turns) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.samples(15) {
        let started = Instant::now();
        let session = open(&vm).await?;
        opened.push(milliseconds(started.elapsed()));
        let started = Instant::now();
        let reply = session.prompt(PROMPT).await?;
        turns.push(milliseconds(started.elapsed()));
        if !vm.exists("/home/user/hello.ts").await? {
            return Err(format!("the turn wrote nothing: {}", reply.text).into());
        }
        vm.delete("/home/user/hello.ts").await?;
        session.close().await?;

        let (open, turn) = bare.session()?;
        bare_opened.push(open);
        bare_turns.push(turn);
    }
    vm.dispose().await?;
    let opened = Figure::milliseconds(OPEN, opened).host(bare_opened);
    bench.record(opened.limit(MEDIAN, Limit::OverHost(60.0)).limit(MEDIAN, Limit::TimesHost(1.15)));
    bench.record(Figure::milliseconds(TURN, turns).host(bare_turns).limit(MEDIAN, Limit::OverHost(10.0)));
    Ok(())
}

async fn open(vm: &AgentOs) -> Result<Session, Failure> {
    Ok(vm.create_session("claude").permission_policy(PermissionPolicy::AllowAll).await?)
}

/// The adapter of the store, run on the host by the store's own Node.
struct Bare {
    node: PathBuf,
    adapter: PathBuf,
    claude: PathBuf,
    compile_cache: PathBuf,
    /// It writes to its home.
    home: PathBuf,
    model: Model,
}

/// The offline model, where a program of the host reaches it.
struct Model {
    child: Child,
    url: String,
}

impl Model {
    fn start() -> Result<Self, Failure> {
        let agentos = std::env::var_os("AGENTOS_SIDECAR").ok_or("AGENTOS_SIDECAR names the binary")?;
        let mut child = Command::new(agentos)
            .args(["demo-model", "--exit-with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        BufReader::new(stdout).read_line(&mut address)?;
        let address = address.trim().trim_start_matches("tcp:").trim_start_matches("http://").to_owned();
        Ok(Self { child, url: format!("http://{address}") })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // One that has ended by itself is gone all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One running adapter.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    last: u64,
}

impl Bare {
    fn find() -> Result<Self, Failure> {
        let agentos_home =
            std::env::var_os("AGENTOS_HOME").ok_or("AGENTOS_HOME names the store of agents")?;
        let packages = Path::new(&agentos_home).join("agents/packages");
        let adapter = package(&packages, "claude-agent-acp-")?;
        let cache = std::fs::read_dir(&packages)?.flatten().map(|entry| entry.path()).find(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.contains("claude-agent-acp-") && name.ends_with(".compile-cache")
        });
        Ok(Self {
            node: package(&packages, "node-linux-")?.join("bin/node"),
            adapter: adapter.join("dist/index.js"),
            claude: package(&packages, "claude-agent-sdk-linux-")?.join("claude"),
            compile_cache: cache.ok_or("the adapter has no compile cache")?,
            home: Path::new(&agentos_home).join("bare-claude"),
            model: Model::start()?,
        })
    }

    /// A session from the start of its process, and one turn: what each took.
    fn session(&self) -> Result<(f64, f64), Failure> {
        let work = self.home.join("work");
        std::fs::create_dir_all(&work)?;
        let started = Instant::now();
        let mut peer = self.start(&work)?;
        let capabilities =
            json!({ "fs": { "readTextFile": false, "writeTextFile": false }, "terminal": false });
        peer.ask("initialize", &json!({ "protocolVersion": 1, "clientCapabilities": capabilities }))?;
        let options = json!({ "claudeCode": { "options": { "promptSuggestions": false } } });
        let new = peer.ask("session/new", &json!({ "cwd": work, "mcpServers": [], "_meta": options }))?;
        let session = &new["sessionId"];
        peer.ask("session/set_mode", &json!({ "sessionId": session, "modeId": "bypassPermissions" }))?;
        let opened = milliseconds(started.elapsed());
        let started = Instant::now();
        let prompt = json!([{ "type": "text", "text": PROMPT }]);
        peer.ask("session/prompt", &json!({ "sessionId": session, "prompt": prompt }))?;
        let turn = milliseconds(started.elapsed());
        // The adapter and the native program behind it.
        let group = Pid::from_child(&peer.child);
        rustix::process::kill_process_group(group, Signal::KILL)?;
        peer.child.wait()?;
        std::fs::remove_file(work.join("hello.ts"))?;
        Ok((opened, turn))
    }

    fn start(&self, work: &Path) -> Result<Peer, Failure> {
        let mut child = Command::new(&self.node)
            .arg(&self.adapter)
            .env_clear()
            .envs([("PATH", "/usr/bin:/bin"), ("IS_SANDBOX", "1"), ("DISABLE_AUTOUPDATER", "1")])
            .envs([("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"), ("CLAUDE_CODE_MAX_RETRIES", "0")])
            .envs([("ANTHROPIC_API_KEY", "no-key-needed"), ("ANTHROPIC_BASE_URL", self.model.url.as_str())])
            .env("HOME", &self.home)
            .env("CLAUDE_CONFIG_DIR", self.home.join("claude"))
            .env("CLAUDE_CODE_EXECUTABLE", &self.claude)
            .env("NODE_COMPILE_CACHE", &self.compile_cache)
            .current_dir(work)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Peer { child, input, output, last: 0 })
    }
}

impl Peer {
    /// One request and its result; what else is said meanwhile is let pass.
    fn ask(&mut self, method: &str, params: &Value) -> Result<Value, Failure> {
        self.last += 1;
        let request = json!({ "jsonrpc": "2.0", "id": self.last, "method": method, "params": params });
        writeln!(self.input, "{request}")?;
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(format!("the bare adapter ended before it answered {method}").into());
            }
            let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
            if message["id"] == self.last && message.get("method").is_none() {
                return match message.get("error") {
                    Some(error) => Err(format!("the bare adapter refused {method}: {error}").into()),
                    None => Ok(message["result"].clone()),
                };
            }
        }
    }
}
