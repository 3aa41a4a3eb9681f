//! How sidecars are found, started, shared and given up, told against a scripted sidecar.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::task::Poll;

use agentos::{
    AgentOs, AgentOsOptions, AgentOsSharedSidecarOptions, AgentOsSidecar, ErrorKind, PermissionReply,
    SidecarPlacement, SidecarState, VmState,
};
use agentos_proto::v1;
use support::fake::{Fake, Script, VERSION};
use support::{eventually, within};
use tempfile::TempDir;
use tokio::sync::Semaphore;

const POOL: &str = "story";

struct Story {
    directory: TempDir,
}

impl Story {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn fake(&self, script: Script) -> Fake {
        Fake::start(self.directory.path(), POOL, script)
    }

    fn shared(&self) -> AgentOsSharedSidecarOptions {
        AgentOsSharedSidecarOptions::default()
            .pool(POOL)
            .runtime_dir(self.directory.path())
            .binary(self.directory.path().join("no-such-binary"))
    }

    async fn sidecar(&self) -> AgentOsSidecar {
        AgentOs::get_shared_sidecar(self.shared()).await.unwrap()
    }

    fn options(&self) -> AgentOsOptions {
        AgentOsOptions::default().sidecar(self.shared())
    }

    /// A program in place of the agentos binary.
    fn binary(&self, script: &str) -> PathBuf {
        let path = self.directory.path().join("agentos");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

#[tokio::test]
async fn a_pool_gives_everybody_the_same_handle() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let asked = (0..20).map(|_| AgentOs::get_shared_sidecar(story.shared()));
    let handles: Vec<_> =
        futures_util::future::join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(fake.script.leases.load(Ordering::SeqCst), 1);
    let description = handles[7].describe();
    assert_eq!(description.sidecar_id, "agent-os-shared-sidecar:story");
    assert_eq!(description.placement, SidecarPlacement::Shared { pool: POOL.into() });
    assert_eq!((description.state, description.active_vm_count), (SidecarState::Ready, 0));
}

#[test]
fn every_runtime_has_a_handle_of_its_own_and_survives_the_others() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let story = Story::new();
    let fake = story.fake(Script::default());
    let (first, second) = (runtime(), runtime());
    let handle = first.block_on(story.sidecar());
    let other = second.block_on(story.sidecar());
    drop(first);
    assert_eq!(handle.describe().state, SidecarState::Disposed);
    second.block_on(async {
        assert_eq!(other.describe().state, SidecarState::Ready);
        assert_eq!(other.list_vms().await.unwrap().len(), 1);
    });
    assert_eq!(fake.script.leases.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_from_many_threads_at_once_are_all_answered() {
    let story = Story::new();
    let _fake = story.fake(Script::default());
    let sidecar = story.sidecar().await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let sidecar = sidecar.clone();
        callers.spawn(async move {
            for _ in 0..200 {
                assert_eq!(sidecar.list_vms().await.unwrap().len(), 1);
            }
        });
    }
    // A call that nobody is woken for would wait for ever.
    let all = async { while callers.join_next().await.transpose().unwrap().is_some() {} };
    within("all answers", all).await;
}

#[tokio::test]
async fn another_version_is_refused_and_both_are_named() {
    let story = Story::new();
    let _fake = story.fake(Script { version: "9.9.9", ..Script::default() });
    let error = AgentOs::get_shared_sidecar(story.shared()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SidecarVersion);
    let text = error.to_string();
    assert!(text.contains("9.9.9") && text.contains(VERSION), "{text}");
}

#[tokio::test]
async fn without_a_binary_the_error_names_the_places_searched() {
    let story = Story::new();
    let error = AgentOs::get_shared_sidecar(story.shared()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SidecarNotFound);
    assert!(error.to_string().contains("no-such-binary"), "{error}");
}

#[tokio::test]
async fn a_sidecar_that_ends_at_once_is_quoted() {
    let story = Story::new();
    let binary = story.binary("echo \"cannot bind $3\" >&2; exit 1");
    let error = AgentOs::get_shared_sidecar(story.shared().binary(binary)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SidecarDied);
    let text = error.to_string();
    assert!(text.contains("ended before it was ready") && text.contains("cannot bind"), "{text}");
    assert!(text.contains("story.sock"), "{text}");
}

#[tokio::test]
async fn the_sidecar_is_told_its_socket_and_pool() {
    let story = Story::new();
    let binary = story.binary("echo \"$@\" >&2; exit 1");
    let error = AgentOs::get_shared_sidecar(story.shared().binary(binary)).await.unwrap_err();
    let socket = story.directory.path().join("story.sock");
    let expected = format!("sidecar --socket {} --pool story", socket.display());
    assert!(error.to_string().contains(&expected), "{error}");
}

#[tokio::test]
async fn the_binary_named_by_the_option_is_the_one_used_although_a_stale_socket_is_there() {
    let story = Story::new();
    let socket = story.directory.path().join("story.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let binary = story.binary("echo started >&2; exit 1");
    let error = AgentOs::get_shared_sidecar(story.shared().binary(binary)).await.unwrap_err();
    assert!(error.to_string().contains("started"), "{error}");
}

#[tokio::test]
async fn a_sidecar_that_is_just_ending_is_tried_again() {
    let story = Story::new();
    let socket = story.directory.path().join("story.sock");
    let ending = tokio::net::UnixListener::bind(&socket).unwrap();
    let asking = tokio::spawn(AgentOs::get_shared_sidecar(story.shared()));
    // It accepts once more and is gone; its successor has taken the socket's place by the next attempt.
    let (accepted, _) = within("the first attempt", ending.accept()).await.unwrap();
    let _fake = story.fake(Script::default());
    drop((accepted, ending));
    within("the second attempt", asking).await.unwrap().unwrap();
}

#[tokio::test]
async fn vms_are_counted_while_they_live() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let sidecar = story.sidecar().await;
    let first = AgentOs::create(story.options()).await.unwrap();
    let second = AgentOs::create(story.options()).await.unwrap();
    assert_eq!(sidecar.describe().active_vm_count, 2);
    first.dispose().await.unwrap();
    first.dispose().await.unwrap();
    assert_eq!(sidecar.describe().active_vm_count, 1);
    assert_eq!(first.exec("true").await.unwrap_err().kind(), ErrorKind::Closed);
    drop(first);
    drop(second);
    assert_eq!(sidecar.describe().active_vm_count, 0);
    eventually("the dropped VM is disposed", || async { fake.disposed().contains(&"vm-2".to_owned()) }).await;
}

#[tokio::test]
async fn a_vm_lives_as_long_as_any_handle_of_it() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    let process = vm.process(7);
    let output = process.stdout();
    drop((vm, process));
    assert_eq!(fake.disposed(), [""; 0]);
    drop(output);
    eventually("the VM is disposed with its last handle", || async { fake.disposed() == ["vm-1"] }).await;
}

#[tokio::test]
async fn a_detached_vm_outlives_its_handles() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let sidecar = story.sidecar().await;
    drop(AgentOs::create(story.options().detached("kept")).await.unwrap());
    drop(sidecar.attach("kept").await.unwrap());
    assert_eq!(sidecar.describe().active_vm_count, 0);
    // Calls of one connection are answered in order, so a disposal before this one would have been seen.
    let vms = sidecar.list_vms().await.unwrap();
    assert_eq!(fake.disposed(), [""; 0]);
    assert_eq!(vms[0].detached_name.as_deref(), Some("kept"));
    assert_eq!((vms[0].state, vms[0].reason.as_deref()), (VmState::Failed, Some("init is gone")));
}

#[tokio::test]
async fn a_vm_whose_creator_went_away_is_disposed_even_if_it_was_to_be_kept() {
    let story = Story::new();
    let fake = story.fake(Script { create_permits: Semaphore::new(0), ..Script::default() });
    let sidecar = story.sidecar().await;
    let creating = [story.options(), story.options().detached("kept")]
        .map(|options| tokio::spawn(AgentOs::create(options)));
    eventually("the calls are at the sidecar", || async {
        fake.script.create_entered.load(Ordering::SeqCst) == 2
    })
    .await;
    for creating in creating {
        creating.abort();
        assert!(creating.await.unwrap_err().is_cancelled());
    }
    fake.script.create_permits.add_permits(2);
    eventually("the VMs nobody waits for are disposed", || async {
        let mut disposed = fake.disposed();
        disposed.sort();
        disposed == ["vm-1", "vm-2"]
    })
    .await;
    assert_eq!(sidecar.describe().active_vm_count, 0);
}

#[tokio::test]
async fn a_refusal_keeps_its_kind_errno_and_object() {
    let story = Story::new();
    let _fake = story.fake(Script::default());
    let error = AgentOs::create(story.options().detached("taken")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!((error.errno(), error.object()), (Some("EEXIST"), Some("taken")));
    assert!(error.is_retryable());
    assert_eq!(error.to_string(), "EEXIST: a detached VM has that name, 'taken'");
}

#[tokio::test]
async fn what_the_sidecar_does_not_know_is_unsupported() {
    let story = Story::new();
    let _fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    assert_eq!(vm.read_history("s").await.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Reads so many events, which must follow each other.
async fn follow(events: &mut agentos::SessionEvents, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let event = within("an event", events.next()).await.unwrap().unwrap();
        assert_eq!((event.sequence_number, event.at_ms), (number, 1000 + number));
    }
}

#[tokio::test]
async fn a_reader_that_falls_far_behind_is_told_and_goes_on_without_a_loss() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    let session = vm.create_session("fake").await.unwrap();
    fake.script.newest_event.send_replace(2000);
    let (mut slow, mut late) = (session.events(), session.events());
    follow(&mut slow, 1..=1500).await;
    fake.script.newest_event.send_replace(12_000);
    // What was asked for before may still be on its way; no more than that.
    let mut next = 1501;
    let told = loop {
        match within("the error", slow.next()).await.unwrap() {
            Ok(event) => {
                assert_eq!(event.sequence_number, next);
                next += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(next <= 2049, "{next} events were held for a reader that did not read");
    assert_eq!((told.kind(), told.resume_at()), (ErrorKind::Lagged, Some(next)), "{told:?}");
    follow(&mut slow, next..=12_000).await;
    // It has caught up, and nobody else has noticed.
    follow(&mut late, 1..=12_000).await;
    fake.script.newest_event.send_replace(12_001);
    follow(&mut slow, 12_001..=12_001).await;
    follow(&mut late, 12_001..=12_001).await;
}

#[tokio::test]
async fn the_death_of_the_sidecar_ends_calls_in_flight_and_later_ones_and_the_pool_recovers() {
    let story = Story::new();
    let fake = story.fake(Script { create_permits: Semaphore::new(1), ..Script::default() });
    let sidecar = story.sidecar().await;
    let vm = AgentOs::create(story.options()).await.unwrap();
    let waiting = tokio::spawn(AgentOs::create(story.options()));
    eventually("a call is in flight", || async { fake.script.create_entered.load(Ordering::SeqCst) == 2 })
        .await;
    std::fs::write(story.directory.path().join("story.log"), "thread 'main' panicked at the end\n").unwrap();
    drop(fake);
    let error = within("the call in flight", waiting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SidecarDied, "{error:?}");
    assert!(error.to_string().contains("panicked at the end"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(vm.stat("/").await.unwrap_err().kind(), ErrorKind::SidecarDied);
    eventually("the handle knows", || async { sidecar.describe().state == SidecarState::Disposed }).await;
    let on_dead = AgentOs::create(AgentOsOptions::default().sidecar(&sidecar)).await.unwrap_err();
    assert_eq!(on_dead.kind(), ErrorKind::SidecarDied);
    let _successor = story.fake(Script::default());
    AgentOs::create(story.options()).await.unwrap();
}

#[tokio::test]
async fn a_disposed_handle_leases_no_more_vms_and_its_own_are_closed() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let sidecar = story.sidecar().await;
    let vm = AgentOs::create(AgentOsOptions::default().sidecar(&sidecar)).await.unwrap();
    sidecar.dispose().await.unwrap();
    sidecar.dispose().await.unwrap();
    let description = sidecar.describe();
    assert_eq!((description.state, description.active_vm_count), (SidecarState::Disposed, 0));
    let error = AgentOs::create(AgentOsOptions::default().sidecar(&sidecar)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let expected = "Cannot lease VM from sidecar agent-os-shared-sidecar:story while it is disposed";
    assert_eq!(error.to_string(), expected);
    assert_eq!(vm.exists("/").await.unwrap_err().kind(), ErrorKind::Closed);
    vm.dispose().await.unwrap();
    drop(vm);
    // The pool itself goes on under a new handle.
    assert_eq!(story.sidecar().await.describe().state, SidecarState::Ready);
    assert_eq!(fake.script.leases.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn doctor_says_what_cures_the_host() {
    let story = Story::new();
    let _fake = story.fake(Script::default());
    let table = story.sidecar().await.doctor().await.unwrap();
    assert_eq!(table[0].state, agentos::FacilityState::Missing);
    assert_eq!(table[0].remedy, "sysctl user.max_user_namespaces=65536");
}

#[tokio::test]
async fn exec_does_not_take_a_pipe_and_bad_limits_are_named() {
    let story = Story::new();
    let _fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    let error = vm.exec("cat").stdin(agentos::Stdin::Piped).await.unwrap_err();
    assert_eq!((error.kind(), error.object()), (ErrorKind::InvalidInput, Some("stdin")));
    let options = story.options().limits(agentos::Limits::default().cpu(-1.0));
    let error = AgentOs::create(options).await.unwrap_err();
    assert_eq!((error.kind(), error.object()), (ErrorKind::InvalidInput, Some("limits.cpu")));
}

#[test]
fn debug_shows_names_and_never_values() {
    let options = AgentOsOptions::default()
        .env("API_KEY", "sk-hidden")
        .agent("mine", agentos::AgentConfig::new("a", "p").default_env("TOKEN", "t-hidden"))
        .secret(agentos::Secret::new("PASS", "p-hidden").bearer("api.example"));
    let server = agentos::McpServer::remote("https://example.org").header("Authorization", "h-hidden");
    let shown = format!("{options:?} {server:?}");
    for name in ["API_KEY", "TOKEN", "PASS", "Authorization"] {
        assert!(shown.contains(name), "{shown}");
    }
    assert!(!shown.contains("hidden"), "{shown}");
}

#[test]
fn an_error_crosses_threads_and_is_small() {
    fn check<T: Send + Sync + std::error::Error + 'static>() {}
    check::<agentos::Error>();
    assert_eq!(size_of::<agentos::Error>(), size_of::<usize>());
}

#[tokio::test]
async fn a_path_that_is_too_long_for_a_socket_is_refused_by_name() {
    let deep = Path::new("/tmp").join("x".repeat(120));
    let error = AgentOs::get_shared_sidecar(AgentOsSharedSidecarOptions::default().runtime_dir(&deep)).await;
    let error = error.unwrap_err();
    let _ = std::fs::remove_dir(&deep);
    assert_eq!((error.kind(), error.errno()), (ErrorKind::InvalidInput, Some("ENAMETOOLONG")));
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let create = std::pin::pin!(AgentOs::create(AgentOsOptions::default()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Err(error)) = create.poll(&mut context) else {
        panic!("no runtime to wait with")
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_request_for_permission_is_answered_once_and_one_that_is_dropped_is_rejected() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    let session = vm.create_session("fake").await.unwrap();
    let mut requests = session.permission_requests();
    let first = within("the first", requests.next()).await.unwrap();
    assert_eq!((first.permission_id(), first.description()), ("p-1", Some("run ls")));
    assert_eq!(first.params()["toolCall"], 1);
    first.reply(PermissionReply::Always).await.unwrap();
    drop(within("the second", requests.next()).await.unwrap());
    let expected =
        [("p-1".to_owned(), v1::PermissionReply::Always), ("p-2".to_owned(), v1::PermissionReply::Reject)];
    eventually("both are answered", || async { *fake.script.answers.lock().unwrap() == expected }).await;
    assert!(within("the end", requests.next()).await.is_none());
}

#[tokio::test]
async fn a_reply_that_is_cut_off_does_not_keep_its_request_from_being_rejected() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    let session = vm.create_session("fake").await.unwrap();
    let mut requests = session.permission_requests();
    let mut first = within("the first", requests.next()).await.unwrap();
    let second = within("the second", requests.next()).await.unwrap();
    {
        // Begun, and dropped before it has its answer.
        let mut first = std::pin::pin!(first.try_reply(PermissionReply::Once));
        let mut second = std::pin::pin!(second.reply(PermissionReply::Once));
        std::future::poll_fn(|context| {
            assert!(first.as_mut().poll(context).is_pending() && second.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    drop(first);
    // Where the reply got through nevertheless, a sidecar has no use for the rejection: ids work once.
    eventually("both are rejected", || async {
        let answers = fake.script.answers.lock().unwrap();
        ["p-1", "p-2"].iter().all(|id| answers.contains(&((*id).to_owned(), v1::PermissionReply::Reject)))
    })
    .await;
}

#[tokio::test]
async fn a_request_that_was_left_open_is_not_rejected_when_it_goes_and_is_answered_by_its_id() {
    let story = Story::new();
    let fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    let session = vm.create_session("fake").await.unwrap();
    let mut requests = session.permission_requests();
    let first = within("the first", requests.next()).await.unwrap();
    let id = first.permission_id().to_owned();
    first.leave_open();
    // By the time this one has been rejected, the first would have been.
    drop(within("the second", requests.next()).await.unwrap());
    eventually("the second is rejected", || async { !fake.script.answers.lock().unwrap().is_empty() }).await;
    session.respond_permission(&id, PermissionReply::Once).await.unwrap();
    let expected =
        [("p-2".to_owned(), v1::PermissionReply::Reject), ("p-1".to_owned(), v1::PermissionReply::Once)];
    assert_eq!(*fake.script.answers.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_session_whose_caller_leaves_while_it_is_made_is_closed_by_its_id() {
    let story = Story::new();
    let script = Script::default();
    script.sessions_hang.store(true, Ordering::SeqCst);
    let fake = story.fake(script);
    let vm = AgentOs::create(story.options()).await.unwrap();
    let mut create = Box::pin(vm.create_session("fake").into_future());
    std::future::poll_fn(|context| Poll::Ready(create.as_mut().poll(context).is_pending())).await;
    drop(create);
    // How far the sidecar had come is not known here; by its id the session is closed in any case.
    eventually("it is closed", || async { *fake.script.closed_sessions.lock().unwrap() == ["s-1"] }).await;
}

#[tokio::test]
async fn what_an_agent_said_of_itself_is_kept_and_what_it_refuses_is_an_error() {
    let story = Story::new();
    let _fake = story.fake(Script::default());
    let vm = AgentOs::create(story.options()).await.unwrap();
    let (send, mut progress) = tokio::sync::mpsc::channel(8);
    let session = vm
        .create_session("fake")
        .on_install_progress(move |step| send.try_send((step.package, step.received_bytes)).unwrap())
        .await
        .unwrap();
    assert_eq!(progress.recv().await, Some(("fake".to_owned(), 5)));
    assert_eq!((session.model_reason(), session.model().as_str()), ("no key", "demo"));
    assert_eq!(session.agent_info().unwrap().name, "fake");
    session.set_mode("code").await.unwrap();
    assert_eq!(session.modes().unwrap().current_mode_id, "code");
    let error = session.set_model("x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let answer = error.rpc_error().unwrap();
    assert_eq!((answer.code, &answer.data.as_ref().unwrap()["supported"]), (-32601, &serde_json::json!([])));
    let refused = session.raw_send("no/such/method", serde_json::json!({})).await.unwrap_err();
    let answer = refused.rpc_error().unwrap();
    assert_eq!(answer.data.as_ref().unwrap()["supported"][0].as_str(), Some("session/set_mode"));
    assert_eq!(session.set_thought_level("high").await.unwrap_err().kind(), ErrorKind::Unsupported);
}
