use super::*;

#[test]
fn six_agents_are_listed_in_their_order() {
    let registry = Registry::built_in();
    let ids: Vec<&str> = registry.agents().iter().map(|agent| agent.id.as_str()).collect();
    assert_eq!(ids, ["pi", "pi-cli", "opencode", "claude", "codex", "gemini"]);
}

#[test]
fn what_an_agent_can_be_pointed_away_from_has_a_key_that_it_looks_for() {
    let registry = Registry::built_in();
    assert_eq!(registry.find("pi").unwrap().providers.len(), 4);
    for agent in registry.agents() {
        let mut keys = agent.providers.iter().map(|known| known.provider.key);
        assert!(keys.all(|key| agent.keys.iter().any(|known| known == key)), "{}", agent.id);
    }
}

#[test]
fn an_agents_version_is_its_packages() {
    for agent in Registry::built_in().agents() {
        let package = agent.packages.iter().find(|package| package.name == agent.agent_package);
        let version = agent.version().unwrap();
        assert!(package.unwrap().version.starts_with(version), "{}: {version}", agent.id);
    }
}

#[test]
fn an_unknown_agent_is_refused_by_the_words_of_the_contract() {
    assert_eq!(Registry::built_in().find("clippy").unwrap_err().to_string(), "Unknown agent type: clippy");
}

#[test]
fn the_callers_description_wins_over_a_built_in() {
    let own = AgentConfig { id: "pi".into(), agent_package: "my-pi".into(), ..AgentConfig::default() };
    let registry = Registry::with_configs(vec![own]);
    let pi = registry.find("pi").unwrap();
    assert_eq!((pi.agent_package.as_str(), &pi.source), ("my-pi", &Source::Modules));
    assert!(pi.providers.is_empty(), "how that one is pointed elsewhere is unknown");
    assert!(!pi.knows_demo_model());
    assert_eq!(registry.agents().len(), 6);
}

#[test]
fn a_description_of_a_built_in_adapter_keeps_its_launch_under_any_id() {
    let adapter = "@agentclientprotocol/claude-agent-acp".to_owned();
    let own = |command: &[&str]| AgentConfig {
        id: "mine".into(),
        acp_adapter: adapter.clone(),
        agent_package: adapter.clone(),
        command: command.iter().map(|arg| (*arg).to_owned()).collect(),
        ..AgentConfig::default()
    };
    let registry = Registry::with_configs(vec![own(&[])]);
    let mine = registry.find("mine").unwrap();
    assert_eq!(mine.data, registry.find("claude").unwrap().data);
    assert_eq!(registry.agents().len(), 7);
    let registry = Registry::with_configs(vec![own(&["claude", "--acp"])]);
    assert_eq!(registry.find("mine").unwrap().source, Source::Command);
}

#[test]
fn a_description_of_the_built_in_package_only_adds_to_its_launch() {
    let package = "@earendil-works/pi-coding-agent".to_owned();
    let own = AgentConfig {
        id: "pi".into(),
        agent_package: package,
        launch_args: vec!["--thinking".into(), "low".into()],
        default_env: BTreeMap::from([("PI_OFFLINE".to_owned(), "0".to_owned())]),
        ..AgentConfig::default()
    };
    let registry = Registry::with_configs(vec![own]);
    let pi = registry.find("pi").unwrap();
    assert_eq!(pi.extra_args, ["--thinking", "low"]);
    assert_eq!(pi.env["PI_OFFLINE"], "0");
    assert!(pi.data.always.env.contains_key("PI_TELEMETRY"));
}

#[test]
fn pinned_packages_carry_a_whole_sha512_and_a_directory_of_their_own() {
    let registry = Registry::built_in();
    let own = registry.agents().iter().flat_map(|agent| agent.packages.clone());
    let packages: Vec<Package> =
        ["x86_64", "aarch64"].iter().filter_map(|arch| node_runtime(arch)).chain(own).collect();
    for (part, _) in packages.iter().flat_map(Package::parts) {
        let digest = part.integrity.strip_prefix("sha512-").unwrap();
        assert_eq!(digest.len(), 88, "{part:?}");
        assert!(!part.version.is_empty() && part.tarball_bytes > 0, "{part:?}");
    }
    // One directory holds one set of bytes, whichever agents share it.
    let mut directories = std::collections::BTreeMap::new();
    for package in &packages {
        let there = directories.entry(package.directory_name()).or_insert(package);
        assert_eq!((&there.integrity, &there.inside), (&package.integrity, &package.inside));
    }
    assert_eq!(packages[2].directory_name(), "earendil-works+pi-coding-agent-1.5.2");
    assert_eq!(node_runtime("riscv64"), None);
}

#[test]
fn a_command_needs_no_installation_and_what_modules_hold_is_known_to_their_vm_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = crate::Store::new(directory.path().to_owned());
    let command = AgentConfig { id: "a".into(), command: vec!["a".into()], ..AgentConfig::default() };
    let modules = AgentConfig { id: "b".into(), acp_adapter: "b-acp".into(), ..AgentConfig::default() };
    let listed = crate::list_agents(&Registry::with_configs(vec![command, modules]), &store);
    let installed: Vec<(&str, bool)> =
        listed.iter().skip(6).map(|agent| (agent.id.as_str(), agent.installed)).collect();
    assert_eq!(installed, [("a", true), ("b", false)]);
    let claude = listed.iter().find(|agent| agent.id == "claude").unwrap();
    assert_eq!((claude.installed, claude.version.as_deref()), (false, Some("0.101.0")));
}
