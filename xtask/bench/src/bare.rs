//! A real agent bare on the host: no VM, no sidecar, this program speaks its own protocol with it.
//!
//! It is started as a VM would start it: the plan is the product's own, with the places of a VM exchanged for places on
//! the host, against the same offline model. What compiled code it finds is in a cache of its own, because Node knows
//! compiled code by the path of its source, which is another one on the host.

use crate::Failure;
use crate::host::milliseconds;
use agentos_agents::model::{ModelChoice, ModelKind};
use agentos_agents::plan::{GUEST_PACKAGES, GUEST_SESSIONS, LaunchPlan, PlanRequest, plan_session};
use agentos_agents::registry::Launch;
use agentos_agents::store::Installed;
use agentos_agents::{Agent, Home, PermissionPolicy, Registry, SessionId, Store};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The variable that names where Node finds compiled code, and leaves it.
const COMPILE_CACHE: &str = "NODE_COMPILE_CACHE";
/// What a VM's programs are looked for in.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long an agent may take to end with its input.
const EXIT_GRACE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// One agent of the store.
pub(crate) struct Bare<'a> {
    agent: Agent,
    installed: Installed,
    model: &'a Model,
    /// It writes to its home, and below it to the directories of its sessions.
    home: PathBuf,
}

/// The offline model, where a program of the host reaches it.
pub(crate) struct Model {
    child: Child,
    url: String,
}

impl Model {
    pub(crate) fn start() -> Result<Self, Failure> {
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

impl<'a> Bare<'a> {
    /// The agent of the store that the sidecar has installed, which has compiled itself once.
    pub(crate) fn find(id: &str, model: &'a Model) -> Result<Self, Failure> {
        let agentos_home = Home::from_env()?;
        let agent = Registry::built_in().find(id)?.clone();
        let installed = Store::new(agentos_home.agents_dir()).installed(&agent);
        let installed = installed.ok_or_else(|| format!("{id} is not installed"))?;
        let home = agentos_home.root().join("bare").join(id);
        let bare = Self { agent, installed, model, home };
        std::fs::create_dir_all(&bare.home)?;
        let mut peer = bare.start()?;
        peer.open()?;
        peer.end()?;
        Ok(bare)
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// A session, and what it took from the start of its process on.
    pub(crate) fn open(&self) -> Result<(Peer, f64), Failure> {
        let mut peer = self.start()?;
        peer.open()?;
        let took = milliseconds(peer.started.elapsed());
        Ok((peer, took))
    }

    fn start(&self) -> Result<Peer, Failure> {
        let id = SessionId::new();
        let plan = self.plan(&id)?;
        let state = self.home.join("sessions").join(id.as_str());
        std::fs::create_dir_all(&state)?;
        for file in &plan.files {
            let place = PathBuf::from(self.moved(&file.guest_path));
            std::fs::create_dir_all(place.parent().unwrap_or(&place))?;
            std::fs::write(place, self.moved(std::str::from_utf8(&file.content)?))?;
        }
        let argv: Vec<String> = plan.argv.iter().map(|word| self.moved(word)).collect();
        let (program, arguments) = argv.split_first().ok_or("a plan without a program")?;
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs([("USER", "user"), ("LOGNAME", "user"), ("SHELL", "/bin/bash"), ("LANG", "C.UTF-8")])
            .env("HOME", &self.home)
            .envs(plan.env.iter().map(|(name, value)| (name, self.moved(value))))
            .envs(plan.env.get(COMPILE_CACHE).map(|_| (COMPILE_CACHE, self.home.join("compile-cache"))))
            .env("PATH", self.moved(&plan.path(PATH)))
            .current_dir(&self.home)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let cwd = self.home.clone();
        let session = String::new();
        Ok(Peer { child, input: Some(input), output, started, plan, cwd, state, session, last: 0 })
    }

    /// As the sidecar plans it for a user without a configuration; what the agent has to be told beyond its launch is the
    /// price of a session.
    fn plan(&self, session: &SessionId) -> Result<LaunchPlan, Failure> {
        let home = self.home.to_str().ok_or("a home that is no text")?;
        Ok(plan_session(&PlanRequest {
            agent: &self.agent,
            session,
            installed: &self.installed,
            node_modules: None,
            adapter: None,
            home,
            own_configuration: false,
            former: None,
            cwd: home,
            env: &BTreeMap::new(),
            instructions: "",
            model: &ModelChoice { kind: ModelKind::Demo, reason: String::new() },
            demo_base_url: &self.model.url,
            redirects: &[],
            mcp_servers: &[],
            host_tools: None,
            permission_policy: PermissionPolicy::AllowAll,
        })?)
    }

    /// The same with places on the host.
    fn moved(&self, text: &str) -> String {
        let exchange = |text: &str, guest: &str, host: &Path| text.replace(guest, &host.to_string_lossy());
        let text = exchange(text, GUEST_PACKAGES, self.installed.packages_dir());
        exchange(&text, GUEST_SESSIONS, &self.home.join("sessions"))
    }
}

/// One running agent. Dropped, it is gone, with what it has started and kept.
pub(crate) struct Peer {
    child: Child,
    /// None once it is closed.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    started: Instant,
    plan: LaunchPlan,
    cwd: PathBuf,
    state: PathBuf,
    /// Its name for the session.
    session: String,
    last: u64,
}

impl Peer {
    /// Everything that has to be said before the first prompt.
    fn open(&mut self) -> Result<(), Failure> {
        if self.plan.launch == Launch::PiRpc {
            return self.ask_pi(&json!({ "type": "get_state" }), "response");
        }
        let files = json!({ "readTextFile": false, "writeTextFile": false });
        let capabilities = json!({ "fs": files, "terminal": false });
        self.ask("initialize", &json!({ "protocolVersion": 1, "clientCapabilities": capabilities }))?;
        let mut params = Value::Object(self.plan.acp.session.clone());
        params["cwd"] = json!(self.cwd);
        params["mcpServers"] = json!([]);
        let new = self.ask("session/new", &params)?;
        new["sessionId"].as_str().ok_or("the bare agent names no session")?.clone_into(&mut self.session);
        if let Some(mode) = self.plan.acp.mode.clone() {
            self.ask("session/set_mode", &json!({ "sessionId": self.session, "modeId": mode }))?;
        }
        Ok(())
    }

    /// What a turn took, which leaves this file.
    pub(crate) fn turn(&mut self, text: &str, file: &str) -> Result<f64, Failure> {
        let started = Instant::now();
        self.prompt(text)?;
        let took = milliseconds(started.elapsed());
        std::fs::remove_file(self.cwd.join(file))
            .map_err(|error| format!("the turn of a bare agent left no {file}: {error}"))?;
        Ok(took)
    }

    fn prompt(&mut self, text: &str) -> Result<(), Failure> {
        if self.plan.launch == Launch::PiRpc {
            return self.ask_pi(&json!({ "type": "prompt", "message": text }), "agent_settled");
        }
        let prompt = json!([{ "type": "text", "text": text }]);
        self.ask("session/prompt", &json!({ "sessionId": self.session, "prompt": prompt }))?;
        Ok(())
    }

    /// One request and its result. What else is said meanwhile is let pass, what is asked is refused.
    fn ask(&mut self, method: &str, params: &Value) -> Result<Value, Failure> {
        self.last += 1;
        self.tell(&json!({ "jsonrpc": "2.0", "id": self.last, "method": method, "params": params }))?;
        loop {
            let message = self.hear(method)?;
            let asks = message.get("method").is_some();
            if asks && message.get("id").is_some() {
                let error = json!({ "code": -32601, "message": "Method not found" });
                self.tell(&json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }))?;
            } else if !asks && message["id"] == self.last {
                return match message.get("error") {
                    Some(error) => Err(format!("the bare agent refused {method}: {error}").into()),
                    None => Ok(message["result"].clone()),
                };
            }
        }
    }

    /// One command in Pi's own protocol, up to the record that ends it.
    fn ask_pi(&mut self, command: &Value, until: &str) -> Result<(), Failure> {
        self.tell(command)?;
        loop {
            let record = self.hear(until)?;
            if record["type"] == "response" && record["success"] == false {
                return Err(format!("the bare agent refused {}: {}", command["type"], record["error"]).into());
            }
            if record["type"] == until {
                return Ok(());
            }
        }
    }

    fn tell(&mut self, message: &Value) -> Result<(), Failure> {
        let input = self.input.as_mut().ok_or("the bare agent's input is closed")?;
        // In one piece, as the sidecar writes it.
        Ok(input.write_all(format!("{message}\n").as_bytes())?)
    }

    /// The next message.
    fn hear(&mut self, awaited: &str) -> Result<Value, Failure> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(format!("the bare agent ended before its {awaited}").into());
            }
            if let Ok(message) = serde_json::from_str(&line) {
                return Ok(message);
            }
        }
    }

    /// Lets it end by itself, which is when Node writes down what it has compiled.
    fn end(mut self) -> Result<(), Failure> {
        self.input = None;
        let deadline = Instant::now() + EXIT_GRACE;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The agent and what it has started; what is gone already is no matter.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}
