//! Agents that do what no agent should, in VMs of the real sidecar: what their callers are told, and that neither the
//! sidecar nor the session beside them pays for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::time::Duration;

use agentos::{AgentConfig, AgentOs, Error, ErrorKind, PermissionReply, Session};
use support::world::World;
use support::{eventually, within, within_time};

/// A sidecar with a home of its own, and a VM in which each of these agents is the scripted one, with its flags.
struct Place {
    home: tempfile::TempDir,
    world: World,
    vm: AgentOs,
}

impl Place {
    async fn new(agents: &[(&str, &[&str])]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let world = World::with_env("AGENTOS_HOME", home.path()).await;
        let mut options = support::scripted_agent(world.options());
        for (name, flags) in agents {
            let command = [&[support::SCRIPTED_AGENT][..], flags].concat();
            options = options.agent(*name, AgentConfig::command(command));
        }
        let vm = world.vm_with(options).await;
        Self { home, world, vm }
    }

    async fn session(&self, agent: &str) -> Session {
        within("a session", self.vm.create_session(agent)).await.unwrap()
    }

    /// The directories for what agents keep.
    fn kept(&self) -> usize {
        std::fs::read_dir(self.home.path().join("sessions")).map_or(0, Iterator::count)
    }
}

async fn turn(session: &Session, script: &str) -> Result<String, Error> {
    within(script, session.prompt(script)).await.map(|reply| reply.text)
}

/// What one agent may cost the sidecar: the longest record that is read is 32 MiB.
const MAX_GROWTH_KIB: u64 = 64 << 10;

#[tokio::test]
async fn a_flood_ends_in_an_error_and_costs_the_sidecar_little() {
    let place = Place::new(&[("fake", &[])]).await;
    let sentinel = place.session("fake").await;
    assert_eq!(turn(&sentinel, "all well?").await.unwrap(), "heard: all well?");
    let before = place.world.memory_kib("VmHWM");
    for (script, reason) in [
        ("[[line 1G]]", "the agent sent more than 536870912 bytes in one turn"),
        ("[[half 1G]]", "the agent sent more than 536870912 bytes in one turn"),
        ("[[line 100M]]", "a record of 104857600 bytes; at most 33554432 are read"),
        ("[[flood 0 40 pad=1M]]", "more than 16777216 bytes of text in one turn"),
    ] {
        let session = place.session("fake").await;
        let failed = tokio::spawn({
            let prompt = session.prompt(script).into_future();
            async move { prompt.await.unwrap_err() }
        });
        assert_eq!(turn(&sentinel, "all well?").await.unwrap(), "heard: all well?", "{script}");
        // Half a GiB takes a while where the sidecar is no release build.
        let error = within_time(Duration::from_secs(180), script, failed).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::AgentFailed, "{script}: {error:?}");
        assert!(error.to_string().contains(reason), "{script}: {error}");
    }
    // Updates without a bound of their own are as many as their transcript holds.
    let session = place.session("fake").await;
    assert_eq!(turn(&session, "[[say kept]] [[flood 0 48 kind=unknown pad=1M]]").await.unwrap(), "kept");
    let peak = place.world.memory_kib("VmHWM");
    assert!(peak < before + MAX_GROWTH_KIB, "from {before} KiB to {peak} KiB");
    assert_eq!(turn(&sentinel, "all well?").await.unwrap(), "heard: all well?");
}

#[tokio::test]
async fn a_session_whose_agent_has_died_is_not_listed_and_says_why_until_it_is_closed() {
    let place = Place::new(&[("fake", &[])]).await;
    let (dead, alive) = (place.session("fake").await, place.session("fake").await);
    let why = turn(&dead, "[[signal 9]]").await.unwrap_err().to_string();
    assert!(why.contains("was ended by signal 9"), "{why}");
    eventually("it is not listed", || async {
        let listed = place.vm.list_sessions().await.unwrap();
        listed.iter().map(|listed| listed.session_id.as_str()).eq([alive.id()])
    })
    .await;
    let again = turn(&dead, "again").await.unwrap_err();
    assert_eq!((again.kind(), again.to_string()), (ErrorKind::AgentFailed, why));
    within("the end", dead.close()).await.unwrap();
    assert_eq!(turn(&alive, "all well?").await.unwrap(), "heard: all well?");
}

#[tokio::test]
async fn a_session_that_keeps_nothing_leaves_no_directory() {
    let stillborn: &[&str] = &["--on", "initialize", "[[exit 3]]"];
    let place = Place::new(&[("fake", &[]), ("stillborn", stillborn)]).await;
    let error = within("the start", place.vm.create_session("stillborn")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AgentFailed, "{error:?}");
    eventually("nothing of it stays", || async { place.kept() == 0 }).await;
    let session = place.session("fake").await;
    turn(&session, "hello").await.unwrap();
    assert_eq!(place.kept(), 1, "locked while it lives");
    place.vm.destroy_session(session.id()).await.unwrap();
    eventually("nothing of it stays", || async { place.kept() == 0 }).await;
    // It is there all the same.
    let restored = within("the session is back", place.vm.restore_session(session.id())).await.unwrap();
    assert!(turn(&restored, "still there?").await.unwrap().ends_with("still there?"));
}

#[tokio::test]
async fn a_reply_that_the_agent_does_not_offer_leaves_the_request_to_another_one() {
    let place = Place::new(&[("fake", &[])]).await;
    let session = place.session("fake").await;
    let mut requests = session.permission_requests();
    let asking = |what: &str| {
        tokio::spawn(session.prompt(format!("[[ask {what} options=allow_always:x]]")).into_future())
    };
    let asked = asking("edit /home/user/a");
    let request = within("the question", requests.next()).await.unwrap();
    let id = request.permission_id().to_owned();
    let error = within("the reply", request.reply(PermissionReply::Once)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("it offers allow_always"), "{error}");
    within("by its id", session.respond_permission(&id, PermissionReply::Always)).await.unwrap();
    within("the turn", asked).await.unwrap().unwrap();
    assert!(place.vm.exists("/home/user/a").await.unwrap());

    let asked = asking("execute touch /home/user/b");
    let mut request = within("the question", requests.next()).await.unwrap();
    within("the reply", request.try_reply(PermissionReply::Once)).await.unwrap_err();
    // Given up, it is rejected like any other.
    drop(request);
    within("the turn", asked).await.unwrap().unwrap();
    assert!(!place.vm.exists("/home/user/b").await.unwrap());
    let gone = session.respond_permission(&id, PermissionReply::Always).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "an id works once");
}
