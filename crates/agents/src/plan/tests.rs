use super::*;
use crate::home::Home;
use crate::registry::Registry;

struct Case {
    _directory: tempfile::TempDir,
    home: Home,
    store: Store,
    agent: Agent,
    session: SessionId,
}

impl Case {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(directory.path());
        let store = Store::new(home.agents_dir());
        let agent = Registry::built_in().find("pi").unwrap().clone();
        // What a finished installation looks like.
        for package in agent.all_packages().unwrap() {
            for (part, below) in package.parts() {
                let entry = store.packages_dir().join(package.directory_name()).join(below).join(&part.entry);
                fs::create_dir_all(entry.parent().unwrap()).unwrap();
                fs::write(entry, "").unwrap();
            }
        }
        Self { _directory: directory, home, store, agent, session: SessionId::new() }
    }

    fn plan(&self, change: impl FnOnce(&mut PlanRequest<'_>), kind: ModelKind) -> LaunchPlan {
        let installed = self.store.installed(&self.agent).unwrap();
        let model = ModelChoice { kind, reason: String::new() };
        let mut request = PlanRequest {
            agent: &self.agent,
            session: &self.session,
            installed: &installed,
            node_modules: None,
            cwd: "/work",
            env: &BTreeMap::new(),
            instructions: "",
            model: &model,
            demo_base_url: "http://127.0.0.1:4141",
            redirects: &[],
            mcp_servers: &[],
            permission_policy: PermissionPolicy::AllowAll,
        };
        change(&mut request);
        plan_session(&request).unwrap()
    }
}

fn file<'a>(plan: &'a LaunchPlan, name: &str) -> &'a str {
    let file = plan.files.iter().find(|file| file.guest_path.ends_with(&format!("/{name}"))).unwrap();
    std::str::from_utf8(&file.content).unwrap()
}

#[test]
fn pi_runs_its_own_cli_on_the_stores_node() {
    let case = Case::new();
    let plan = case.plan(|_| {}, ModelKind::Demo);
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
    let case = Case::new();
    let plan = case.plan(|_| {}, ModelKind::Demo);
    let guest = format!("/opt/agentos/sessions/{}", case.session);
    assert_eq!(plan.env["PI_CODING_AGENT_DIR"], guest);
    assert!(plan.files.iter().all(|file| file.guest_path.starts_with(&guest)), "{:?}", plan.files);
    assert_eq!(plan.state_dir, Some(guest));
    let models: serde_json::Value = serde_json::from_str(file(&plan, "models.json")).unwrap();
    assert_eq!(models["providers"]["agentos"]["baseUrl"], "http://127.0.0.1:4141/v1");
    let settings: serde_json::Value = serde_json::from_str(file(&plan, "settings.json")).unwrap();
    assert_eq!(
        (&settings["defaultProvider"], &settings["defaultModel"]),
        (&json!("agentos"), &json!("demo"))
    );
}

#[test]
fn no_environment_leads_a_demo_session_to_another_configuration() {
    let case = Case::new();
    let env = BTreeMap::from([("PI_CODING_AGENT_DIR".to_owned(), "/home/user/.pi/agent".to_owned())]);
    let plan = |kind| {
        let installed = case.store.installed(&case.agent).unwrap();
        plan_session(&PlanRequest {
            agent: &case.agent,
            session: &case.session,
            installed: &installed,
            node_modules: None,
            cwd: "/work",
            env: &env,
            instructions: "",
            model: &ModelChoice { kind, reason: String::new() },
            demo_base_url: "http://127.0.0.1:4141",
            redirects: &[],
            mcp_servers: &[],
            permission_policy: PermissionPolicy::AllowAll,
        })
        .unwrap()
    };
    let demo = plan(ModelKind::Demo);
    assert_eq!(Some(&demo.env["PI_CODING_AGENT_DIR"]), demo.state_dir.as_ref());
    let provider = plan(ModelKind::Provider);
    assert_eq!(provider.env["PI_CODING_AGENT_DIR"], env["PI_CODING_AGENT_DIR"], "the user's own place");
}

#[test]
fn with_a_provider_the_agents_own_configuration_is_left_alone() {
    let case = Case::new();
    let plan = case.plan(|_| {}, ModelKind::Provider);
    assert!(plan.files.is_empty());
    assert!(!plan.env.contains_key("PI_CODING_AGENT_DIR"));
    assert!(plan.env["PI_CODING_AGENT_SESSION_DIR"].starts_with(plan.state_dir.as_deref().unwrap()));
}

#[test]
fn instructions_travel_in_a_file_and_the_users_environment_wins() {
    let case = Case::new();
    let env = BTreeMap::from([("PI_OFFLINE".to_owned(), "0".to_owned())]);
    let with = |request: &mut PlanRequest<'_>| request.instructions = "Be kind.";
    let plan = case.plan(with, ModelKind::Demo);
    let at = plan.argv.iter().position(|arg| arg == "--append-system-prompt").unwrap();
    assert!(plan.argv[at + 1].starts_with(plan.state_dir.as_deref().unwrap()));
    assert_eq!(file(&plan, "agentos-instructions.md"), "Be kind.");

    let installed = case.store.installed(&case.agent).unwrap();
    let model = ModelChoice { kind: ModelKind::Demo, reason: String::new() };
    let plan = plan_session(&PlanRequest {
        agent: &case.agent,
        session: &case.session,
        installed: &installed,
        node_modules: Some("/root/node_modules"),
        cwd: "/work",
        env: &env,
        instructions: "",
        model: &model,
        demo_base_url: "http://127.0.0.1:4141",
        redirects: &[],
        mcp_servers: &[],
        permission_policy: PermissionPolicy::AllowAll,
    })
    .unwrap();
    assert_eq!(plan.env["PI_OFFLINE"], "0");
    assert_eq!(plan.argv[1], "/root/node_modules/@earendil-works/pi-coding-agent/dist/bundle/cli.js");
    assert_eq!(plan.agent_version, None, "what is mounted may be another version");
}

#[test]
fn secrets_of_tool_servers_are_in_the_environment_and_in_no_file() {
    let case = Case::new();
    let secret = |name: &str| BTreeMap::from([(name.to_owned(), "s3cret\"${x}".to_owned())]);
    let servers = [
        McpServer::Local { command: "srv".into(), args: vec!["a\nb".into()], env: secret("TOKEN") },
        McpServer::Remote { url: "https://mcp.example/".into(), headers: secret("Authorization") },
    ];
    let installed = case.store.installed(&case.agent).unwrap();
    let model = ModelChoice { kind: ModelKind::Demo, reason: String::new() };
    let plan = plan_session(&PlanRequest {
        agent: &case.agent,
        session: &case.session,
        installed: &installed,
        node_modules: None,
        cwd: "/work",
        env: &BTreeMap::new(),
        instructions: "",
        model: &model,
        demo_base_url: "http://127.0.0.1:4141",
        redirects: &[],
        mcp_servers: &servers,
        permission_policy: PermissionPolicy::AllowAll,
    })
    .unwrap();
    assert!(plan.files.iter().all(|file| !String::from_utf8_lossy(&file.content).contains("s3cret")));
    let extension = file(&plan, "agentos-mcp.mjs");
    assert!(extension.contains(r#"registerMcpServer("agentos-2""#), "{extension}");
    assert!(extension.contains("${AGENTOS_MCP_2_HEADER_0}"), "{extension}");
    assert_eq!(plan.env["AGENTOS_MCP_1_ENV_0"], "s3cret\"${x}");
}

#[test]
fn a_warm_up_is_adopted_once_and_leaves_nothing_when_it_is_dropped() {
    let case = Case::new();
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
    let plan = case.plan(|_| {}, ModelKind::Demo);
    assert!(plan.env["NODE_COMPILE_CACHE"].starts_with("/opt/agentos/packages/"), "{:?}", plan.env);
    assert!(warm().adopt().is_ok(), "without a cache of its own the one that is there is fine");
}

#[test]
fn a_provider_behind_the_gateway_keeps_everything_but_its_address() {
    let case = Case::new();
    let google = case.agent.providers.iter().find(|known| known.id == "google").copied().unwrap();
    // The request that borrows it is the helper's.
    let redirects: &'static [Redirect] =
        Box::leak(Box::new([Redirect { provider: google, gateway: "http://10.0.2.4/gemini".to_owned() }]));
    let plan = case.plan(|request| request.redirects = redirects, ModelKind::Provider);
    let file = plan.files.iter().find(|file| file.guest_path.ends_with("agentos-gateway.mjs")).unwrap();
    let source = String::from_utf8(file.content.clone()).unwrap();
    assert!(
        source.contains(r#"pi.registerProvider("google", {"baseUrl":"http://10.0.2.4/gemini/v1beta"});"#),
        "{source}"
    );
    assert!(plan.argv.ends_with(&["--extension".to_owned(), file.guest_path.clone()]), "{:?}", plan.argv);
    assert!(!plan.env.contains_key("PI_CODING_AGENT_DIR"), "the user's own settings stay");
    let demo = case.plan(|request| request.redirects = redirects, ModelKind::Demo);
    assert!(demo.files.iter().all(|file| !file.guest_path.ends_with("agentos-gateway.mjs")));
}
