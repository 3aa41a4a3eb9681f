//! Sessions that go on after their VM and their sidecar are gone: the agent by its own memory where it has one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use agentos::{
    AgentConfig, AgentOs, AgentOsOptions, ErrorKind, ModelChoice, Mount, PermissionPolicy, Session,
};
use serde_json::Value;
use support::world::World;
use support::{eventually, within};

/// A home of the test's own that has the machine's agents, and a log of what the model was asked.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(support::agent_store(), home.path().join("agents")).unwrap();
        Self(home)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    async fn world(&self) -> World {
        let log = self.path().join("requests.jsonl");
        World::started_by(&format!(
            "env AGENTOS_HOME='{}' AGENTOS_DEMO_MODEL_LOG='{}'",
            self.path().display(),
            log.display()
        ))
        .await
    }

    /// A session that is over after a turn, and the file in which is kept what its agent knows of it.
    async fn over_after_a_turn(&self, vm: &AgentOs, agent: &str) -> (String, PathBuf) {
        let session = session(vm, agent).await;
        let id = session.id().to_owned();
        within("the turn", session.prompt("Run the command `echo remembered`")).await.unwrap();
        let archive = self.path().join("sessions").join(&id).join("agent.tar");
        eventually("what the agent keeps is kept", || async { archive.is_file() }).await;
        vm.destroy_session(&id).await.unwrap();
        (id, archive)
    }

    /// What the model was asked last.
    fn last_request(&self) -> String {
        let log = std::fs::read_to_string(self.path().join("requests.jsonl")).unwrap();
        log.lines().last().unwrap().to_owned()
    }
}

fn options(world: &World, work: &Path) -> AgentOsOptions {
    world.options().model(ModelChoice::Demo).mount("/work", Mount::host_dir(work).read_write())
}

async fn session(vm: &AgentOs, agent: &str) -> Session {
    let made = vm.create_session(agent).cwd("/work").permission_policy(PermissionPolicy::AllowAll);
    made.await.unwrap()
}

async fn params_of(vm: &AgentOs, session: &str, method: &str) -> Vec<Value> {
    let history = vm.read_history(session).await.unwrap();
    history.iter().filter(|event| event.method() == method).map(|event| event.params().clone()).collect()
}

/// A turn, a kill in the middle of the next one, another sidecar: the agent still knows the first turn.
async fn survives_a_kill(agent: &str, how: &[&str]) {
    let home = Home::new();
    let work = tempfile::tempdir().unwrap();
    let word = uuid::Uuid::new_v4().simple().to_string();
    let world = home.world().await;
    let vm = world.vm_with(options(&world, work.path())).await;
    let first = session(&vm, agent).await;
    let id = first.id().to_owned();
    within("the first turn", first.prompt(format!("Run the command `echo {word}`"))).await.unwrap();
    let archive = home.path().join("sessions").join(&id).join("agent.tar");
    eventually("what the agent keeps is kept", || async { archive.is_file() }).await;
    let mut events = first.events();
    let running = tokio::spawn(async move { first.prompt("Run the command `tail -f /dev/null`").await });
    let tool_runs = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.notification.to_string().contains("tail -f") && event.method() == "session/update" {
                return event.sequence_number;
            }
        }
    };
    let seen = within("the second turn runs", tool_runs).await;
    world.kill();
    within("the prompt fails", running).await.unwrap().unwrap_err();

    let world = home.world().await;
    let vm = world.vm_with(options(&world, work.path())).await;
    let restored = within("the session is back", vm.restore_session(&id)).await.unwrap();
    assert_eq!((restored.id(), restored.agent_type()), (id.as_str(), agent));
    let history = vm.read_history(&id).await.unwrap();
    let numbers: Vec<u64> = history.iter().map(|event| event.sequence_number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "the sequence goes on without a gap");
    assert!(numbers.len() as u64 > seen, "what was seen is kept");
    let told = params_of(&vm, &id, "_agentos/restored").await;
    assert!(how.contains(&told[0]["how"].as_str().unwrap()), "{agent}: {told:?}");
    within("the question", restored.prompt("What was my first request?")).await.unwrap();
    assert!(home.last_request().contains(&word), "{agent}: the model is told of the first turn");
    // Nobody else can have it meanwhile.
    assert_eq!(vm.restore_session(&id).await.unwrap_err().kind(), ErrorKind::Busy);
    restored.close().await.unwrap();
    vm.delete_session(&id).await.unwrap();
    assert!(!archive.exists(), "deleting removes its files, too");
}

#[tokio::test]
async fn pi_goes_on_after_a_kill() {
    survives_a_kill("pi", &["load"]).await;
}

#[tokio::test]
async fn claude_goes_on_after_a_kill() {
    survives_a_kill("claude", &["resume", "load"]).await;
}

#[tokio::test]
async fn pi_cli_goes_on_after_a_kill() {
    survives_a_kill("pi-cli", &["load"]).await;
}

#[tokio::test]
async fn opencode_goes_on_after_a_kill() {
    survives_a_kill("opencode", &["resume", "load"]).await;
}

#[tokio::test]
async fn gemini_goes_on_after_a_kill() {
    survives_a_kill("gemini", &["load"]).await;
}

#[tokio::test]
async fn codex_goes_on_after_a_kill() {
    survives_a_kill("codex", &["resume", "load"]).await;
}

#[tokio::test]
async fn an_agent_that_has_lost_its_memory_and_its_directory_is_told_of_both() {
    let home = Home::new();
    let work = tempfile::tempdir().unwrap();
    let world = home.world().await;
    let vm = world.vm_with(options(&world, work.path())).await;
    let (id, archive) = home.over_after_a_turn(&vm, "pi").await;
    std::fs::remove_file(&archive).unwrap();

    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let restored = within("the session is back", vm.restore_session(&id)).await.unwrap();
    let told = params_of(&vm, &id, "_agentos/restored").await;
    assert_eq!((&told[0]["how"], &told[0]["lostCwd"]), (&"transcript".into(), &"/work".into()));
    within("the question", restored.prompt("What was my first request?")).await.unwrap();
    let asked = home.last_request();
    assert!(asked.contains("echo remembered") && asked.contains("/work does not exist"), "{asked}");
    let prompts = params_of(&vm, &id, "_agentos/prompt").await;
    assert_eq!(
        prompts[1]["content"][0]["text"], "What was my first request?",
        "events show what the user said"
    );
}

/// A directory with a tar of its own, which does this before it is the usual one.
fn own_tar(before: &str) -> tempfile::TempDir {
    let tools = tempfile::tempdir().unwrap();
    let tar = tools.path().join("tar");
    std::fs::write(&tar, format!("#!/bin/sh\n{before}\nexec /usr/bin/tar \"$@\"\n")).unwrap();
    for path in [tools.path(), &tar] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    tools
}

#[tokio::test]
async fn what_an_agent_kept_is_brought_back_whole_or_the_session_is_not() {
    let home = Home::new();
    let work = tempfile::tempdir().unwrap();
    let world = home.world().await;
    let vm = world.vm_with(options(&world, work.path())).await;
    let (id, _) = home.over_after_a_turn(&vm, "pi").await;

    let tools = own_tar("case $1 in -xf) echo 'No space left on device' >&2; exit 2;; esac");
    let full = options(&world, work.path()).mount("/usr/local/bin", Mount::host_dir(tools.path()));
    let full = world.vm_with(full).await;
    let error = within("the refusal", full.restore_session(&id)).await.unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");

    within("the session is back", vm.restore_session(&id)).await.unwrap();
    let told = params_of(&vm, &id, "_agentos/restored").await;
    assert_ne!(told.last().unwrap()["how"], "transcript", "nothing of it is lost: {told:?}");
}

#[tokio::test]
async fn a_copy_in_which_the_agents_database_moved_is_made_again() {
    let home = Home::new();
    let work = tempfile::tempdir().unwrap();
    let tools = own_tar(
        "echo \"$*\" >> /work/copies\n\
         [ \"$(wc -l < /work/copies)\" -gt 1 ] || for p; do case $p in *.db) touch \"$p\";; esac; done",
    );
    let world = home.world().await;
    let with_tar = options(&world, work.path()).mount("/usr/local/bin", Mount::host_dir(tools.path()));
    let vm = world.vm_with(with_tar).await;
    let (id, _) = home.over_after_a_turn(&vm, "opencode").await;
    let copies = std::fs::read_to_string(work.path().join("copies")).unwrap();
    assert!(copies.lines().count() > 1, "{copies}");

    let vm = world.vm_with(options(&world, work.path())).await;
    within("the session is back", vm.restore_session(&id)).await.unwrap();
    let told = params_of(&vm, &id, "_agentos/restored").await;
    assert_ne!(told[0]["how"], "transcript", "the agent has its own memory: {told:?}");
}

#[tokio::test]
async fn an_agent_that_dies_of_its_memory_goes_on_without_it() {
    let world = World::new().await;
    let work = world.host_dir("work");
    // What it kept is where its sessions find it, and more than it can bear.
    let on_load = ["--on", "session/resume", "[[log no such table]] [[exit 3]]"];
    let command = [&[support::SCRIPTED_AGENT, "--state=/work/state"][..], &on_load].concat();
    let options = world.options().agent("mine", AgentConfig::command(command));
    let options = support::scripted_agent(options).mount("/work", Mount::host_dir(&work).read_write());
    let vm = world.vm_with(options).await;
    let first = vm.create_session("mine").await.unwrap();
    let id = first.id().to_owned();
    within("the turn", first.prompt("remember the teapot")).await.unwrap();
    vm.destroy_session(&id).await.unwrap();

    let restored = within("the session is back", vm.restore_session(&id)).await.unwrap();
    let told = params_of(&vm, &id, "_agentos/restored").await;
    assert_eq!(told[0]["how"], "transcript");
    let reason = told[0]["forgotten"].as_str().unwrap();
    assert!(reason.contains("exited with 3"), "{reason}");
    assert!(!reason.contains("no such table"), "what an agent logs is not kept: {reason}");
    let prompt = within("the turn", restored.prompt("[[echo prompt]]")).await.unwrap().text;
    assert!(prompt.contains("remember the teapot"), "{prompt}");
    let history = vm.read_history(&id).await.unwrap();
    let numbers = history.iter().map(|event| event.sequence_number);
    assert!(numbers.eq(1..=history.len() as u64), "the sequence goes on without a gap");
}

#[tokio::test]
async fn a_session_whose_restorer_went_away_can_be_restored_at_once() {
    const HANG: &str = "/work/hang";
    let world = World::new().await;
    let work = world.host_dir("work");
    // Where the file is the agent removes it, and is silent over what it remembers.
    let agent = format!("{} --state=/work/state", support::SCRIPTED_AGENT);
    let script =
        format!("rm {HANG} 2>/dev/null && exec {agent} --on session/resume '[[never]]'; exec {agent}");
    let options = world.options().agent("mine", AgentConfig::command(["/bin/sh", "-c", &script]));
    let options = support::scripted_agent(options).mount("/work", Mount::host_dir(&work).read_write());
    let vm = world.vm_with(options).await;
    let first = vm.create_session("mine").await.unwrap();
    let id = first.id().to_owned();
    within("the turn", first.prompt("remember the teapot")).await.unwrap();
    vm.destroy_session(&id).await.unwrap();

    for _ in 0..5 {
        vm.write_file(HANG, "").await.unwrap();
        let (restorer, wanted) = (vm.clone(), id.clone());
        let restoring = tokio::spawn(async move { restorer.restore_session(&wanted).await });
        eventually("the agent is silent", || async { !vm.exists(HANG).await.unwrap() }).await;
        restoring.abort();
        let _ = restoring.await;
        eventually("it is known to be over", || async {
            let page = world.sidecar.stored_sessions().id_prefix(&id).await.unwrap();
            page.sessions[0].ended.is_some()
        })
        .await;
        // Its sidecar has to hear of that.
        let restored = async {
            loop {
                match vm.restore_session(&id).await {
                    Err(error) if error.kind() == ErrorKind::Busy => support::poll_pause().await,
                    restored => return restored.unwrap(),
                }
            }
        };
        let restored = within("the session is back", restored).await;
        let reply = within("the question", restored.prompt("[[recall]]")).await.unwrap();
        assert!(reply.text.contains("remember the teapot"), "{}", reply.text);
        let directory = format!("/opt/agentos/sessions/{id}");
        assert!(vm.exists(&directory).await.unwrap(), "nobody has removed what is its own now");
        vm.destroy_session(&id).await.unwrap();
    }
    let told = params_of(&vm, &id, "_agentos/restored").await;
    assert!(told.len() >= 5 && told.iter().all(|told| told["how"] == "resume"), "{told:?}");
}
