use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::Store;
use crate::home::Home;
use crate::registry::{AgentConfig, Registry, node_runtime};

/// An agent, installed in a store of its own, and a session of it.
struct Case {
    _directory: tempfile::TempDir,
    home: Home,
    store: Store,
    agent: Agent,
    installed: Installed,
    session: SessionId,
    env: BTreeMap<String, String>,
    demo: ModelChoice,
    provider: ModelChoice,
}

impl Case {
    fn new(id: &str) -> Self {
        Self::of(Registry::built_in().find(id).unwrap().clone())
    }

    fn of(agent: Agent) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(directory.path());
        let store = Store::new(home.agents_dir());
        // What a finished installation looks like.
        for package in agent.all_packages().unwrap() {
            for (part, below) in package.parts() {
                let entry = store.packages_dir().join(package.directory_name()).join(below).join(&part.entry);
                fs::create_dir_all(entry.parent().unwrap()).unwrap();
                fs::write(entry, "").unwrap();
            }
        }
        let choice = |kind| ModelChoice { kind, reason: String::new() };
        Self {
            _directory: directory,
            home,
            installed: store.installed(&agent).unwrap(),
            store,
            agent,
            session: SessionId::new(),
            env: BTreeMap::new(),
            demo: choice(ModelKind::Demo),
            provider: choice(ModelKind::Provider),
        }
    }

    fn with_env(mut self, env: &[(&str, &str)]) -> Self {
        self.env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self
    }

    fn try_plan<'a>(
        &'a self,
        kind: ModelKind,
        change: impl FnOnce(&mut PlanRequest<'a>),
    ) -> Result<LaunchPlan, PlanError> {
        let mut request = PlanRequest {
            agent: &self.agent,
            session: &self.session,
            installed: &self.installed,
            node_modules: None,
            adapter: None,
            home: "/home/user",
            own_configuration: false,
            cwd: "/work",
            env: &self.env,
            instructions: "",
            model: if kind == ModelKind::Demo { &self.demo } else { &self.provider },
            demo_base_url: "http://127.0.0.1:4141",
            redirects: &[],
            mcp_servers: &[],
            host_tools: None,
            former: None,
            permission_policy: PermissionPolicy::AllowAll,
        };
        change(&mut request);
        plan_session(&request)
    }

    fn plan<'a>(&'a self, kind: ModelKind, change: impl FnOnce(&mut PlanRequest<'a>)) -> LaunchPlan {
        self.try_plan(kind, change).unwrap()
    }

    fn state_dir(&self) -> String {
        format!("/opt/agentos/sessions/{}", self.session)
    }
}

fn file<'a>(plan: &'a LaunchPlan, name: &str) -> &'a str {
    let file = plan.files.iter().find(|file| file.guest_path.ends_with(&format!("/{name}"))).unwrap();
    std::str::from_utf8(&file.content).unwrap()
}

#[test]
fn pi_runs_its_own_cli_on_the_stores_node() {
    let case = Case::new("pi");
    let plan = case.plan(ModelKind::Demo, |_| {});
    let packages = "/opt/agentos/packages";
    let node = crate::registry::node_runtime(std::env::consts::ARCH).unwrap().directory_name();
    assert_eq!(plan.argv[0], format!("{packages}/{node}/bin/node"));
    assert_eq!(plan.argv[1], format!("{packages}/earendil-works+pi-coding-agent-1.5.2/dist/bundle/cli.js"));
    assert_eq!(plan.argv[2..], ["--mode", "rpc"]);
    assert_eq!(plan.mounts[0].guest_path, packages);
    assert!(plan.mounts.len() == 1 && plan.mounts[0].read_only, "nothing of the host can be written");
    assert_eq!(plan.path("/bin:/usr/bin"), format!("/bin:/usr/bin:{packages}/{node}/bin"));
    assert_eq!(plan.agent_version.as_deref(), Some("1.5.2"));
    assert_eq!(plan.env["PI_OFFLINE"], "1");
}

#[test]
fn the_demo_model_is_configured_in_the_sessions_own_directory() {
    let case = Case::new("pi");
    let plan = case.plan(ModelKind::Demo, |_| {});
    let guest = format!("/opt/agentos/sessions/{}", case.session);
    assert_eq!(plan.env["PI_CODING_AGENT_DIR"], guest);
    assert!(plan.files.iter().all(|file| file.guest_path.starts_with(&guest)), "{:?}", plan.files);
    assert_eq!(plan.state_dir, Some(guest));
    let models: Value = serde_json::from_str(file(&plan, "models.json")).unwrap();
    assert_eq!(models["providers"]["agentos"]["baseUrl"], "http://127.0.0.1:4141/v1");
    let settings: Value = serde_json::from_str(file(&plan, "settings.json")).unwrap();
    assert_eq!(
        (&settings["defaultProvider"], &settings["defaultModel"]),
        (&json!("agentos"), &json!("demo"))
    );
}

#[test]
fn no_environment_leads_a_demo_session_to_another_configuration() {
    let case = Case::new("pi").with_env(&[("PI_CODING_AGENT_DIR", "/home/user/.pi/agent")]);
    let demo = case.plan(ModelKind::Demo, |_| {});
    assert_eq!(Some(&demo.env["PI_CODING_AGENT_DIR"]), demo.state_dir.as_ref());
    let provider = case.plan(ModelKind::Provider, |_| {});
    assert_eq!(provider.env["PI_CODING_AGENT_DIR"], "/home/user/.pi/agent", "the user's own place");
}

#[test]
fn with_a_provider_the_agents_own_configuration_is_left_alone() {
    let case = Case::new("pi");
    let plan = case.plan(ModelKind::Provider, |_| {});
    assert!(plan.files.is_empty());
    assert!(!plan.env.contains_key("PI_CODING_AGENT_DIR"));
    assert!(plan.env["PI_CODING_AGENT_SESSION_DIR"].starts_with(plan.state_dir.as_deref().unwrap()));
}

#[test]
fn instructions_travel_in_a_file_and_the_users_environment_wins() {
    let case = Case::new("pi").with_env(&[("PI_OFFLINE", "0")]);
    let plan = case.plan(ModelKind::Demo, |request| request.instructions = "Be {kind}.");
    let at = plan.argv.iter().position(|arg| arg == "--append-system-prompt").unwrap();
    assert!(plan.argv[at + 1].starts_with(plan.state_dir.as_deref().unwrap()));
    assert_eq!(file(&plan, "agentos-instructions.md"), "Be {kind}.");

    let plan = case.plan(ModelKind::Demo, |request| request.node_modules = Some("/root/node_modules"));
    assert_eq!(plan.env["PI_OFFLINE"], "0");
    assert_eq!(plan.argv[1], "/root/node_modules/@earendil-works/pi-coding-agent/dist/bundle/cli.js");
    assert_eq!(plan.agent_version, None, "what is mounted may be another version");
}

#[test]
fn secrets_of_tool_servers_are_in_the_environment_and_in_no_file() {
    let case = Case::new("pi");
    let servers = servers();
    let plan = case.plan(ModelKind::Demo, |request| request.mcp_servers = &servers);
    assert!(plan.files.iter().all(|file| !String::from_utf8_lossy(&file.content).contains("s3cret")));
    let extension = file(&plan, "agentos-mcp.mjs");
    assert!(extension.contains(r#"registerMcpServer("agentos-2""#), "{extension}");
    assert!(extension.contains("${AGENTOS_MCP_2_HEADER_0}"), "{extension}");
    assert_eq!(plan.env["AGENTOS_MCP_1_ENV_0"], "s3cret\"${x}");
    assert!(plan.acp.mcp_servers.is_empty());
}

fn servers() -> [McpServer; 2] {
    let secret = |name: &str| BTreeMap::from([(name.to_owned(), "s3cret\"${x}".to_owned())]);
    [
        McpServer::Local { command: "srv".into(), args: vec!["a\nb".into()], env: secret("TOKEN") },
        McpServer::Remote { url: "https://mcp.example/".into(), headers: secret("Authorization") },
    ]
}

#[test]
fn an_agent_that_speaks_acp_is_told_of_tool_servers_in_acps_shape_and_one_that_takes_none_is_refused_them() {
    let servers = servers();
    let case = Case::new("claude");
    let plan = case.plan(ModelKind::Demo, |request| request.mcp_servers = &servers);
    let secret = "s3cret\"${x}";
    assert_eq!(
        plan.acp.mcp_servers,
        [
            json!({
                "name": "agentos-1", "command": "srv", "args": ["a\nb"],
                "env": [{ "name": "TOKEN", "value": secret }],
            }),
            json!({
                "type": "http", "name": "agentos-2", "url": "https://mcp.example/",
                "headers": [{ "name": "Authorization", "value": secret }],
            }),
        ]
    );
    let mut deaf = Case::new("claude");
    deaf.agent.tool_servers = ToolServers::None;
    assert!(deaf.try_plan(ModelKind::Demo, |_| {}).is_ok());
    let refused = deaf.try_plan(ModelKind::Demo, |request| request.mcp_servers = &servers).unwrap_err();
    assert!(refused.to_string().contains("claude takes no tool servers"), "{refused}");
}

#[test]
fn the_hosts_tools_reach_every_agent_that_has_a_way_to_them() {
    let tools = HostTools {
        name: "tools".to_owned(),
        url: "http://127.0.0.1:1/mcp".to_owned(),
        command: vec!["/bin/tools".to_owned(), "mcp".to_owned()],
    };
    let case = Case::new("claude");
    let plan = case.plan(ModelKind::Demo, |request| request.host_tools = Some(&tools));
    let offered = plan.acp.host_tools.unwrap();
    assert_eq!(
        (offered.over_http, offered.over_stdio),
        (
            json!({ "type": "http", "name": "tools", "url": "http://127.0.0.1:1/mcp", "headers": [] }),
            json!({ "name": "tools", "command": "/bin/tools", "args": ["mcp"], "env": [] }),
        )
    );
    let case = Case::new("pi");
    let plan = case.plan(ModelKind::Demo, |request| request.host_tools = Some(&tools));
    assert!(file(&plan, "agentos-mcp.mjs").contains("http://127.0.0.1:1/mcp"));
}

#[test]
fn claude_is_pointed_to_the_demo_model_whatever_the_environment_says() {
    let case = Case::new("claude").with_env(&[
        ("ANTHROPIC_BASE_URL", "http://elsewhere"),
        ("CLAUDE_CODE_OAUTH_TOKEN", "t"),
        ("CLAUDE_CONFIG_DIR", "/home/user/.claude"),
        ("DISABLE_AUTOUPDATER", "0"),
    ]);
    let plan = case.plan(ModelKind::Demo, |_| {});
    let state = case.state_dir();
    assert_eq!(plan.env["ANTHROPIC_BASE_URL"], "http://127.0.0.1:4141");
    assert_eq!(plan.env["CLAUDE_CODE_OAUTH_TOKEN"], "");
    assert_eq!(plan.env["CLAUDE_CONFIG_DIR"], format!("{state}/claude"));
    assert_eq!(plan.env["DISABLE_AUTOUPDATER"], "0", "what leads nowhere else stays the user's");
    assert_eq!(plan.state, [format!("{state}/claude/projects")]);
    assert!(plan.env["CLAUDE_CODE_EXECUTABLE"].starts_with("/opt/agentos/packages/anthropic-ai+claude"));
}

#[test]
fn with_a_provider_an_agents_memory_is_its_sessions_unless_its_user_has_a_configuration() {
    let case = Case::new("claude");
    let fresh = case.plan(ModelKind::Provider, |_| {});
    assert_eq!(fresh.env["CLAUDE_CONFIG_DIR"], format!("{}/claude", case.state_dir()));
    assert!(!fresh.env.contains_key("ANTHROPIC_API_KEY"));

    let theirs = case.plan(ModelKind::Provider, |request| request.own_configuration = true);
    assert!(!theirs.env.contains_key("CLAUDE_CONFIG_DIR"));
    assert_eq!(theirs.state, ["/home/user/.claude/projects"]);

    let elsewhere = Case::new("claude").with_env(&[("CLAUDE_CONFIG_DIR", "/work/.claude")]);
    let elsewhere = elsewhere.plan(ModelKind::Provider, |_| {});
    assert_eq!(elsewhere.env["CLAUDE_CONFIG_DIR"], "/work/.claude");
    assert_eq!(elsewhere.state, ["/work/.claude/projects"]);
}

#[test]
fn the_policy_decides_how_an_agent_is_started_and_instructions_travel_with_the_session() {
    let case = Case::new("claude");
    for (policy, expected) in [
        (PermissionPolicy::Ask, "default"),
        (PermissionPolicy::RejectAll, "default"),
        (PermissionPolicy::AllowAll, "bypassPermissions"),
    ] {
        let plan = case.plan(ModelKind::Demo, |request| {
            request.permission_policy = policy;
            request.instructions = "Be {kind}.";
        });
        assert_eq!(plan.acp.mode.as_deref(), Some(expected));
        assert_eq!(plan.acp.session["systemPrompt"]["content"][0]["text"], "Be {kind}.");
    }
    assert!(!case.plan(ModelKind::Demo, |_| {}).acp.session.contains_key("systemPrompt"));
}

#[test]
fn only_pi_never_asks_whichever_way_it_is_spoken_to() {
    for (id, never_asks) in [("pi", true), ("pi-cli", true), ("claude", false), ("gemini", false)] {
        assert_eq!(Case::new(id).plan(ModelKind::Demo, |_| {}).acp.never_asks, never_asks, "{id}");
    }
}

#[test]
fn every_agent_has_a_plan_for_every_kind_of_session() {
    for agent in Registry::built_in().agents() {
        let case = Case::of(agent.clone());
        let redirects: Vec<Redirect> = agent
            .providers
            .iter()
            .map(|known| Redirect { provider: known.clone(), gateway: "http://10.0.2.4/x".to_owned() })
            .collect();
        for kind in [ModelKind::Demo, ModelKind::Provider] {
            for policy in [PermissionPolicy::Ask, PermissionPolicy::AllowAll] {
                for node_modules in [None, Some("/root/node_modules")] {
                    let plan = case.plan(kind, |request| {
                        request.permission_policy = policy;
                        request.node_modules = node_modules;
                        request.instructions = "Be kind.";
                        request.redirects = &redirects;
                    });
                    let files = plan.files.iter().map(|file| String::from_utf8_lossy(&file.content));
                    let files: String = files.collect();
                    let told = format!("{:?} {:?} {:?} {files}", plan.argv, plan.env, plan.acp);
                    assert!(plan.argv[0].starts_with('/'), "{}: {told}", agent.id);
                    assert_eq!(
                        told.contains("127.0.0.1:4141"),
                        kind == ModelKind::Demo,
                        "{}: {told}",
                        agent.id
                    );
                    assert!(!plan.state.is_empty(), "{}: what would be restored?", agent.id);
                    let below = |file: &PlanFile| file.guest_path.starts_with(&case.state_dir());
                    assert!(plan.files.iter().all(below), "{}: {:?}", agent.id, plan.files);
                }
            }
        }
    }
}

#[test]
fn a_command_of_the_callers_is_started_as_it_is() {
    let config = AgentConfig {
        id: "mine".into(),
        command: vec!["my-agent".into(), "--acp={x".into()],
        launch_args: vec!["-v".into()],
        default_env: BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "1".to_owned())]),
        ..AgentConfig::default()
    };
    let registry = Registry::with_configs(vec![config]);
    let case = Case::of(registry.find("mine").unwrap().clone()).with_env(&[("B", "2")]);
    let plan = case.plan(ModelKind::Provider, |_| {});
    assert_eq!(plan.argv, ["my-agent", "--acp={x", "-v"]);
    assert_eq!((plan.env["A"].as_str(), plan.env["B"].as_str()), ("1", "2"));
    assert_eq!(plan.launch, Launch::Acp);
}

#[test]
fn an_adapter_in_the_vms_own_modules_is_run_by_what_it_names() {
    let config = AgentConfig { id: "mine".into(), acp_adapter: "my-acp".into(), ..AgentConfig::default() };
    let registry = Registry::with_configs(vec![config]);
    let case = Case::of(registry.find("mine").unwrap().clone());
    let adapter = Adapter::at("/root/node_modules/my-acp/dist/cli.js".to_owned(), b"");
    let plan = case.plan(ModelKind::Provider, |request| {
        request.node_modules = Some("/root/node_modules");
        request.adapter = Some(&adapter);
    });
    let node = node_runtime(std::env::consts::ARCH).unwrap();
    assert_eq!(
        plan.argv,
        [
            format!("/opt/agentos/packages/{}/bin/node", node.directory_name()),
            "/root/node_modules/my-acp/dist/cli.js".to_owned()
        ]
    );
    assert!(case.try_plan(ModelKind::Provider, |_| {}).is_err());
}

#[test]
fn a_warm_up_is_adopted_once_and_leaves_nothing_when_it_is_dropped() {
    let case = Case::new("pi");
    let installed = case.store.installed(&case.agent).unwrap();
    assert!(case.store.needs_warm_up(&installed));
    let warm = || plan_warm_up(&case.agent, &case.store, &installed).unwrap();
    let staging = case.home.agents_dir().join("staging");
    let left = || fs::read_dir(&staging).map_or(0, Iterator::count);

    let given_up = warm();
    given_up.prepare().unwrap();
    assert_eq!(left(), 1);
    drop(given_up);
    assert_eq!(left(), 0);

    let (first, second) = (warm(), warm());
    for run in [&first, &second] {
        run.prepare().unwrap();
        assert!(run.plan.mounts[0].read_only);
        fs::create_dir(run.plan.mounts[1].host_path.join("cache")).unwrap();
    }
    first.adopt().unwrap();
    fs::write(case.store.packages_dir().join(installed.compile_cache_name().unwrap()).join("x"), "").unwrap();
    second.adopt().unwrap();
    assert_eq!(left(), 0);
    assert!(!case.store.needs_warm_up(&installed));
    let plan = case.plan(ModelKind::Demo, |_| {});
    assert!(plan.env["NODE_COMPILE_CACHE"].starts_with("/opt/agentos/packages/"), "{:?}", plan.env);
    assert!(warm().adopt().is_ok(), "without a cache of its own the one that is there is fine");
}

#[test]
fn a_provider_behind_the_gateway_keeps_everything_but_its_address() {
    let case = Case::new("pi");
    let google = case.agent.providers.iter().find(|known| known.id == "google").unwrap().clone();
    let redirects = [Redirect { provider: google, gateway: "http://10.0.2.4/gemini".to_owned() }];
    let plan = case.plan(ModelKind::Provider, |request| request.redirects = &redirects);
    let source = file(&plan, "agentos-gateway-google.mjs");
    assert!(
        source.contains(r#"pi.registerProvider("google", { baseUrl: "http://10.0.2.4/gemini/v1beta" });"#),
        "{source}"
    );
    let path = format!("{}/agentos-gateway-google.mjs", case.state_dir());
    assert!(plan.argv.ends_with(&["--extension".to_owned(), path]), "{:?}", plan.argv);
    assert!(!plan.env.contains_key("PI_CODING_AGENT_DIR"), "the user's own settings stay");
    let demo = case.plan(ModelKind::Demo, |request| request.redirects = &redirects);
    assert!(demo.files.iter().all(|file| !file.guest_path.contains("agentos-gateway")));
}

#[test]
fn pi_behind_an_adapter_gets_what_pi_gets_and_gives_it_the_users_home() {
    let case = Case::new("pi-cli");
    let servers = servers();
    let plan = case.plan(ModelKind::Demo, |request| {
        request.instructions = "Be kind.";
        request.mcp_servers = &servers;
    });
    assert_eq!(plan.argv[1], "--import");
    assert!(plan.argv[3].ends_with("/pi-acp-0.0.34/dist/index.js"), "{:?}", plan.argv);
    let passed_on = plan.argv[4..].join(" ");
    for wanted in ["--append-system-prompt", "agentos-mcp.mjs", "agentos-errors.mjs"] {
        assert!(passed_on.contains(wanted), "{passed_on}");
    }
    let before = file(&plan, "agentos-pi-acp.mjs");
    assert!(before.contains("/earendil-works+pi-coding-agent-1.5.2/dist/bundle/cli.js"), "{before}");
    assert!(before.contains(&format!("env.HOME = \"{}\"", case.state_dir())), "{before}");
    assert!(plan.acp.mcp_servers.is_empty(), "the adapter would drop them");
    let pi = Registry::built_in().find("pi").unwrap().packages[0].clone();
    assert_eq!(case.agent.packages[0], pi, "both share one package and one compile cache");
}

#[test]
fn geminis_memory_is_below_the_directory_that_its_variable_names() {
    let case = Case::new("gemini");
    let moved = format!("{}/gemini", case.state_dir());
    let plan = case.plan(ModelKind::Provider, |request| request.instructions = "Be kind.");
    assert_eq!(plan.env["GEMINI_CLI_HOME"], moved);
    assert_eq!(plan.state[0], format!("{moved}/.gemini/tmp"));
    assert_eq!(file(&plan, ".gemini/GEMINI.md"), "Be kind.");
    let own = case.plan(ModelKind::Provider, |request| request.own_configuration = true);
    assert!(!own.env.contains_key("GEMINI_CLI_HOME"));
    assert_eq!(own.state[0], "/home/user/.gemini/tmp");

    let case = Case::new("gemini").with_env(&[("GEMINI_CLI_HOME", "/work/g/"), ("GEMINI_MODEL", "mine")]);
    let plan = case.plan(ModelKind::Provider, |_| {});
    assert_eq!(
        (plan.env["GEMINI_CLI_HOME"].as_str(), plan.state[0].as_str()),
        ("/work/g/", "/work/g/.gemini/tmp")
    );
    let demo = case.plan(ModelKind::Demo, |_| {});
    assert_eq!(demo.env["GEMINI_MODEL"], "demo");
    assert_ne!(demo.env["GEMINI_CLI_HOME"], "/work/g/");
}

#[test]
fn opencodes_configuration_is_put_together_and_leaves_the_users_last_word_to_the_user() {
    let case = Case::new("opencode").with_env(&[("OPENCODE_PERMISSION", "{}")]);
    let demo = case.plan(ModelKind::Demo, |request| request.instructions = "Be kind.");
    let content: Value = serde_json::from_str(&demo.env["OPENCODE_CONFIG_CONTENT"]).unwrap();
    assert_eq!(content["provider"]["agentos"]["options"]["baseURL"], "http://127.0.0.1:4141/v1");
    let configuration: Value = serde_json::from_str(file(&demo, "agentos-opencode.json")).unwrap();
    let instructions = format!("{}/agentos-instructions.md", case.state_dir());
    assert_eq!(configuration["instructions"], json!([instructions]));
    assert_eq!(demo.env["OPENCODE_PERMISSION"], "{}");

    let redirects: Vec<Redirect> = (case.agent.providers.iter())
        .map(|known| Redirect { provider: known.clone(), gateway: format!("http://gateway/{}", known.id) })
        .collect();
    let plan = case.plan(ModelKind::Provider, |request| request.redirects = &redirects);
    let content: Value = serde_json::from_str(&plan.env["OPENCODE_CONFIG_CONTENT"]).unwrap();
    let google = json!({ "baseURL": "http://gateway/google/v1beta", "apiKey": "{env:GEMINI_API_KEY}" });
    assert_eq!(content["provider"]["google"]["options"], google);
    assert_eq!(content["provider"]["anthropic"]["options"]["baseURL"], "http://gateway/anthropic/v1");
    assert_eq!(content["disabled_providers"], json!(["opencode"]), "no model of anybody else");
}
