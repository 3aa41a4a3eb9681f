//! A real agent at work in a VM, with the offline model. The first run on a machine installs the agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use agentos::{
    AgentConfig, AgentInstall, AgentOs, ErrorKind, Limits, ModelChoice, ModelKind, Mount, PermissionPolicy,
    Session,
};
use support::within;
use support::world::World;

async fn session(vm: &AgentOs) -> Session {
    vm.create_session("pi").permission_policy(PermissionPolicy::AllowAll).await.unwrap()
}

#[tokio::test]
async fn an_agent_writes_the_file_it_was_asked_for_and_every_event_is_there() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let session = session(&vm).await;
    assert_eq!((session.model(), session.agent_type()), (ModelKind::Demo, "pi"));
    assert_eq!(session.capabilities().permissions, Some(false), "it never asks");
    let name = format!("{}.ts", uuid::Uuid::new_v4().simple());
    let reply = within("the turn", session.prompt(format!("Write a hello world in TypeScript to {name}")))
        .await
        .unwrap();
    assert_eq!((reply.model, reply.stop_reason.as_str()), (ModelKind::Demo, "end_turn"));
    assert!(reply.text.starts_with("[demo model]"), "{}", reply.text);
    let file = vm.read_file(format!("/home/user/{name}")).await.unwrap();
    assert!(String::from_utf8_lossy(&file).contains("console.log"), "{file:?}");

    let mut events = session.events();
    let mut methods = Vec::new();
    while !methods.iter().any(|(_, method)| method == "session/update") {
        let event = within("an event", events.next()).await.unwrap().unwrap();
        methods.push((event.sequence_number, event.method().to_owned()));
    }
    assert_eq!(methods[0], (1, "_agentos/model".to_owned()));
    let numbers: Vec<u64> = methods.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let mut later = session.events_since(2);
    assert_eq!(within("an event", later.next()).await.unwrap().unwrap().sequence_number, 2);

    session.close().await.unwrap();
    let error = session.prompt("again").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Closed), "{error:?}");
    assert_eq!(vm.list_sessions().await.unwrap(), []);
}

#[tokio::test]
async fn sessions_are_listed_resumed_and_destroyed() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let session = session(&vm).await;
    let listed = vm.list_sessions().await.unwrap();
    assert_eq!((listed.len(), listed[0].session_id.as_str()), (1, session.id()));
    assert_eq!(vm.resume_session(session.id()).unwrap().model(), ModelKind::Demo);
    assert!(!session.cancel().await.unwrap(), "nothing runs");
    vm.destroy_session(session.id()).await.unwrap();
    assert_eq!(vm.list_sessions().await.unwrap(), []);
    let error = vm.resume_session(session.id()).unwrap_err();
    assert_eq!(error.to_string(), format!("Session not found: {}", session.id()));
    let error = vm.destroy_session("nobody").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NotFound, "Session not found: nobody")
    );
}

#[tokio::test]
async fn one_prompt_runs_at_a_time_and_cancel_ends_it() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let session = session(&vm).await;
    let running = tokio::spawn(session.prompt("Run the command `sleep 1000`").into_future());
    sleeps(&vm, true).await;
    let error = session.prompt("Run the command `true`").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    assert!(session.cancel().await.unwrap());
    let reply = within("the cancelled turn", running).await.unwrap().unwrap();
    assert_eq!(reply.stop_reason, "cancelled");
    // The session goes on; a prompt whose future is dropped is cancelled too.
    let dropped = tokio::spawn(session.prompt("Run the command `sleep 1000`").into_future());
    sleeps(&vm, true).await;
    dropped.abort();
    sleeps(&vm, false).await;
    // The session is busy until the cancelled turn has ended.
    support::eventually("the next prompt is taken", || async {
        let late = session.prompt("Run the command `sleep 1000`").timeout(Duration::from_secs(2)).await;
        match late.unwrap_err().kind() {
            ErrorKind::Busy => false,
            kind => {
                assert_eq!(kind, ErrorKind::Timeout);
                true
            }
        }
    })
    .await;
    session.close().await.unwrap();
    sleeps(&vm, false).await;
}

async fn sleeps(vm: &AgentOs, wanted: bool) {
    support::eventually("the tool call begins or ends", || async {
        let all = vm.all_processes().await.unwrap();
        let runs = |process: &agentos::ProcessInfo| {
            process.status == agentos::ProcessStatus::Running && process.command == "sleep"
        };
        all.iter().any(runs) == wanted
    })
    .await;
}

#[tokio::test]
async fn options_of_the_agent_are_shown_and_set() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let session = session(&vm).await;
    let option = |category: &str| {
        let all = session.config_options();
        all.into_iter().find(|option| option.category.as_deref() == Some(category)).unwrap()
    };
    let level = option("thought_level").allowed_values[0].id.clone();
    session.set_thought_level(&level).await.unwrap();
    assert_eq!(option("thought_level").current_value, Some(level));
    let model = option("model").allowed_values[0].id.clone();
    session.set_model(&model).await.unwrap();
    assert_eq!(option("model").current_value, Some(model));
}

#[tokio::test]
async fn what_the_agent_cannot_do_is_unsupported_in_its_own_words() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let session = session(&vm).await;
    let error = session.raw_send("no/such/method", serde_json::json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert_eq!(error.rpc_error().map(|error| error.code), Some(-32601));
}

#[tokio::test]
async fn unknown_agents_are_named_and_the_known_ones_listed() {
    let world = World::new().await;
    let vm = world.vm().await;
    let error = vm.create_session("nobody").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.to_string().contains("Unknown agent type: nobody"), "{error}");
    let of_vm = vm.list_agents().await.unwrap();
    let of_host = world.sidecar.list_agents().await.unwrap();
    for agents in [of_vm, of_host] {
        assert!(agents.iter().any(|agent| agent.id == "pi" && !agent.agent_package.is_empty()), "{agents:?}");
    }
}

#[tokio::test]
async fn an_agent_that_must_not_be_installed_is_an_error_that_names_the_command() {
    let home = tempfile::tempdir().unwrap();
    let world = World::with_env("AGENTOS_HOME", home.path()).await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let error = vm.create_session("pi").agent_install(AgentInstall::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AgentNotInstalled, "{error:?}");
    assert!(error.to_string().contains("agentos agents install pi"), "{error}");
}

#[tokio::test]
async fn a_session_whose_creator_went_away_is_undone() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let creating = tokio::spawn(session_of(vm.clone()));
    support::eventually("the agent is being launched", || async {
        !vm.all_processes().await.unwrap().is_empty()
    })
    .await;
    creating.abort();
    let _ = creating.await;
    support::eventually("nothing of it is left", || async {
        let all = vm.all_processes().await.unwrap();
        let runs = all.iter().any(|process| process.status == agentos::ProcessStatus::Running);
        !runs && vm.list_sessions().await.unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_session_that_fails_to_start_is_undone_before_that_is_told() {
    let world = World::new().await;
    let refuses = [support::SCRIPTED_AGENT, "--on", "session/new", "[[error -32603 not today]]"];
    let options = world.options().agent("mine", AgentConfig::command(refuses));
    let vm = world.vm_with(support::scripted_agent(options)).await;
    for _ in 0..3 {
        let error = within("the refusal", vm.create_session("mine").into_future()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AgentFailed, "{error:?}");
        // Whoever tries again with the same session finds nothing that is about to be removed.
        let left = vm.readdir("/opt/agentos/sessions").await.unwrap();
        assert!(left.iter().all(|name| name.starts_with('.')), "{left:?}");
    }
}

async fn session_of(vm: AgentOs) -> Result<Session, agentos::Error> {
    vm.create_session("pi").await
}

#[tokio::test]
async fn the_transcript_outlives_the_session_until_it_is_deleted() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let session = session(&vm).await;
    within("the turn", session.prompt("Run the command `echo remembered`")).await.unwrap();
    let mut requests = session.permission_requests();
    session.close().await.unwrap();
    assert!(within("nobody asks any more", requests.next()).await.is_none());
    let history = vm.read_history(session.id()).await.unwrap();
    let numbers: Vec<u64> = history.iter().map(|event| event.sequence_number).collect();
    assert_eq!(numbers, (1..=history.len() as u64).collect::<Vec<_>>());
    let text = history.iter().map(|event| event.notification.to_string()).collect::<String>();
    assert!(text.contains("remembered"), "{text}");
    vm.delete_session(session.id()).await.unwrap();
    assert_eq!(vm.read_history(session.id()).await.unwrap_err().kind(), ErrorKind::NotFound);
    let error = vm.restore_session(session.id()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
}

#[tokio::test]
async fn what_an_agent_keeps_is_on_the_vms_disk_and_goes_with_the_session() {
    let home = tempfile::tempdir().unwrap();
    let store = support::agent_store();
    std::os::unix::fs::symlink(&store, home.path().join("agents")).unwrap();
    let world = World::with_env("AGENTOS_HOME", home.path()).await;
    let vm = world
        .vm_with(world.options().model(ModelChoice::Demo).limits(Limits::default().disk_bytes(64 << 20)))
        .await;
    let session = session(&vm).await;
    let state = format!("/opt/agentos/sessions/{}", session.id());
    assert!(vm.exists(format!("{state}/models.json")).await.unwrap());
    let full =
        vm.exec(format!("head -c 128M /dev/zero > {state}/hoard; wc -c < {state}/hoard")).await.unwrap();
    let kept: u64 = String::from_utf8(full.stdout).unwrap().trim().parse().unwrap();
    assert!(kept > 0 && kept <= 64 << 20, "it is written, and the VM's own limit holds: {kept}");
    let names: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let ours = |name: &std::ffi::OsString| {
        name == "agents" || name == "sessions" || name.to_string_lossy().starts_with("sessions.db")
    };
    assert!(names.iter().all(ours), "nothing a guest can write is on the host: {names:?}");
    session.close().await.unwrap();
    support::eventually("its directory is gone", || async { !vm.exists(&state).await.unwrap() }).await;
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_is_an_error_and_an_empty_one_names_no_provider() {
    let world = World::new().await;
    let vm = world.vm().await;
    let file = "/home/user/.pi/agent/models.json";
    vm.write_file(file, "{ \"providers\": oops").await.unwrap();
    let error = vm.create_session("pi").await.unwrap_err();
    assert_eq!((error.kind(), error.object()), (ErrorKind::InvalidInput, Some(file)), "{error}");
    vm.write_file(file, "{ \"providers\": {} }").await.unwrap();
    assert_eq!(session(&vm).await.model(), ModelKind::Demo);
    vm.write_file(file, r#"{"providers":{"x":{"baseUrl":"http://127.0.0.1:9/v1","apiKey":"k"}}}"#)
        .await
        .unwrap();
    let configured = session(&vm).await;
    assert_eq!(configured.model(), ModelKind::Provider, "{}", configured.model_reason());
    assert!(configured.model_reason().contains(file), "{}", configured.model_reason());
}

#[tokio::test]
async fn a_vm_disposed_while_a_session_is_made_takes_the_session_along() {
    let world = World::new().await;
    // The disposed VM answers nothing any more; the sidecar does, to whoever has a handle that is not disposed.
    let witness = world.vm().await;
    for _ in 0..3 {
        let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
        let creating = tokio::spawn(session_of(vm.clone()));
        support::eventually("the agent is being launched", || async {
            !vm.all_processes().await.unwrap().is_empty()
        })
        .await;
        within("the disposal", vm.dispose()).await.unwrap();
        let made = within("the creation", creating).await.unwrap();
        assert_gone(&witness, made).await;
    }
    for _ in 0..3 {
        let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
        let creating = tokio::spawn(session_of(vm.clone()));
        support::eventually("the session stands, whether its creator knows it or not", || async {
            !vm.list_sessions().await.unwrap().is_empty()
        })
        .await;
        let id = vm.list_sessions().await.unwrap().remove(0).session_id;
        within("the disposal", vm.dispose()).await.unwrap();
        let made = within("the creation", creating).await.unwrap();
        let left = witness.destroy_session(&id).await.unwrap_err();
        assert_eq!(left.kind(), ErrorKind::NotFound, "the sidecar has kept the session: {left:?}");
        assert_gone(&witness, made).await;
    }
}

/// Whichever came first, the session or the end of its VM: nothing of the session answers any more.
async fn assert_gone(witness: &AgentOs, made: Result<Session, agentos::Error>) {
    match made {
        Ok(session) => {
            assert!(session.prompt("hello").await.is_err());
            let left = witness.destroy_session(session.id()).await.unwrap_err();
            assert_eq!(left.kind(), ErrorKind::NotFound, "the sidecar has kept the session: {left:?}");
        }
        Err(error) => {
            let kinds = [ErrorKind::Closed, ErrorKind::AgentFailed, ErrorKind::NotFound, ErrorKind::VmFailed];
            assert!(kinds.contains(&error.kind()), "{error:?}");
        }
    }
}

#[tokio::test]
async fn modules_that_the_user_mounts_need_no_installed_agent() {
    // An agent at work tells which Node it is run by; the machine's store may have others.
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let running = session(&vm).await;
    let agent = vm.all_processes().await.unwrap().remove(0);
    let binary = vm.exec(format!("readlink /proc/{}/exe", agent.pid)).await.unwrap();
    let binary = String::from_utf8(binary.stdout).unwrap();
    let node =
        binary.trim().strip_prefix("/opt/agentos/packages/").and_then(|path| path.strip_suffix("/bin/node"));
    let node = node.unwrap_or_else(|| panic!("{agent:?} is run by {binary:?}"));
    running.close().await.unwrap();

    let home = tempfile::tempdir().unwrap();
    let world = World::with_env("AGENTOS_HOME", home.path()).await;
    let modules = world.host_dir("node_modules");
    let package = modules.join("@earendil-works/pi-coding-agent");
    std::fs::create_dir_all(&package).unwrap();
    std::fs::write(package.join("package.json"), "{}").unwrap();
    let options =
        world.options().model(ModelChoice::Demo).mount("/root/node_modules", Mount::host_dir(&modules));
    let vm = world.vm_with(options).await;
    let error = vm.create_session("pi").agent_install(AgentInstall::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AgentNotInstalled, "not even Node is there: {error:?}");
    // A Node that says what it was asked to run is all that the store needs to have.
    let bin = home.path().join("agents/packages").join(node).join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::write(bin.join("node"), "#!/bin/sh\necho \"asked to run $1\" >&2\nexit 7\n").unwrap();
    std::fs::set_permissions(bin.join("node"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = vm.create_session("pi").agent_install(AgentInstall::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AgentFailed, "{error:?}");
    assert!(error.to_string().contains("asked to run /root/node_modules/@earendil-works/"), "{error}");
}

#[tokio::test]
async fn a_permission_policy_that_nobody_would_keep_is_refused_with_the_reason() {
    let world = World::new().await;
    let vm = world.vm().await;
    let create = vm.create_session("pi").permission_policy(PermissionPolicy::RejectAll);
    let error = create.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.object()),
        (ErrorKind::Unsupported, Some("permissionPolicy")),
        "{error:?}"
    );
    assert!(error.to_string().contains("pi never asks before it acts"), "{error}");
}
