//! Inits that break the protocol: the VM ends with a reason, its neighbour and the sidecar don't notice.

use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::filesystem::FileResponse;
use agentos_guest_protocol::frame::MAX_FRAME_BYTES;
use agentos_guest_protocol::init::{Event, InitMessage, RequestId, Response};
use agentos_guest_protocol::process::Status;
use agentos_linux::seqpacket;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::fake::{FakeInit, World, file, soon};
use crate::process::ProcessSpec;
use crate::spec::VmOptions;
use crate::{GoneReason, VmState};

/// A VM beside a sentinel; `lie` plays the first one's init, which must lose its VM by it.
async fn must_fail(lie: impl AsyncFnOnce(&FakeInit)) -> String {
    let World { vm, init, launcher, handle } = World::new().await;
    let (sentinel, sentinel_init) = launcher.create(&handle, VmOptions::default()).await;
    let calling = tokio::spawn({
        let vm = vm.clone();
        async move { vm.exists(b"/x").await }
    });
    lie(&init).await;
    let reason = soon(vm.gone()).await;
    assert!(matches!(reason, GoneReason::Protocol(_)), "{reason:?}");
    assert!(matches!(vm.state(), VmState::Failed(_)));
    soon(calling).await.unwrap().unwrap_err();
    launcher.kill(init.number).await;
    soon(vm.dispose(None)).await;

    let asking = tokio::spawn({
        let sentinel = sentinel.clone();
        async move { sentinel.exists(b"/").await }
    });
    let (id, _) = sentinel_init.file_request().await;
    sentinel_init.answer(id, file(FileResponse::Exists(true)), Vec::new());
    assert!(soon(asking).await.unwrap().unwrap());
    reason.to_string()
}

#[tokio::test]
async fn an_answer_nobody_asked_for() {
    let reason = must_fail(async |init| init.answer(RequestId(4711), Response::Done, Vec::new())).await;
    assert_eq!(reason, "VM's init broke the protocol: answer to request 4711, which is not in flight");
}

#[tokio::test]
async fn an_answer_given_twice() {
    must_fail(async |init| {
        let (id, _) = init.file_request().await;
        for _ in 0..2 {
            // The first one ends the call; it is asserted to fail, so it does not answer what was asked.
            init.answer(id, file(FileResponse::Names(Vec::new())), Vec::new());
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_to_another_question() {
    let reason = must_fail(async |init| {
        let (id, _) = init.file_request().await;
        init.answer(id, Response::Spawned { pid: 5 }, Vec::new());
    })
    .await;
    assert_eq!(reason, "VM's init broke the protocol: answer is not one to a file request");
}

#[tokio::test]
async fn descriptors_where_none_belong() {
    must_fail(async |init| {
        let (id, _) = init.file_request().await;
        let file_descriptor = tempfile::tempfile().unwrap();
        init.answer(id, file(FileResponse::Exists(true)), vec![file_descriptor.into()]);
    })
    .await;
}

#[tokio::test]
async fn events_of_processes_that_are_not() {
    must_fail(async |init| init.exit(5, Status::Exited(0))).await;
    must_fail(async |init| init.event(Event::ExecDone { pid: 5, result: Ok(()) })).await;
}

#[tokio::test]
async fn ready_once_more() {
    must_fail(async |init| init.say(InitMessage::Ready, Vec::new())).await;
}

#[tokio::test]
async fn packets_that_are_none() {
    must_fail(async |init| init.say_raw(&[0xff; 100], &[])).await;
    must_fail(async |init| init.say_raw(&vec![1; MAX_FRAME_BYTES + 1], &[])).await;
    must_fail(async |init| init.say_raw(&vec![1; MAX_FRAME_BYTES * 2], &[])).await;
    let trailing = [1, 0, 0, 0, 0];
    must_fail(async |init| init.say_raw(&trailing, &[])).await;
}

#[tokio::test]
async fn spilled_bodies_without_seals_or_of_another_size() {
    let packet = |len: u32| [&[1, 1][..], &len.to_le_bytes()].concat();
    must_fail(async |init| init.say_raw(&packet(10), &[])).await;
    let unsealed = tempfile::tempfile().unwrap();
    unsealed.set_len(10).unwrap();
    must_fail(async |init| init.say_raw(&packet(10), &[unsealed.as_fd()])).await;
    let short = seqpacket::sealed_memfd(b"short").unwrap();
    must_fail(async |init| init.say_raw(&packet(10), &[short.as_fd()])).await;
    let garbage = seqpacket::sealed_memfd(&[0xff; 10]).unwrap();
    must_fail(async |init| init.say_raw(&packet(10), &[garbage.as_fd()])).await;
    must_fail(async |init| init.say_raw(&packet(u32::MAX), &[garbage.as_fd()])).await;
}

/// Answers a spawn with these and expects the VM to be lost.
async fn spawn_must_fail(answer: impl AsyncFnOnce(&FakeInit, RequestId)) {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let spec = ProcessSpec { argv: vec![b"cat".to_vec()], ..Default::default() };
    let play = async {
        let (id, _) = init.spawn_request().await;
        answer(&init, id).await;
    };
    let (spawned, ()) = soon(async { tokio::join!(vm.spawn(spec), play) }).await;
    assert!(matches!(spawned, Err(crate::SpawnError::Unavailable(_))), "{spawned:?}");
    assert!(matches!(soon(vm.gone()).await, GoneReason::Protocol(_)));
}

fn pipes() -> Vec<OwnedFd> {
    (0..2).map(|_| rustix::pipe::pipe().unwrap().0).collect()
}

#[tokio::test]
async fn pipes_that_are_not_pipes_and_ids_that_are_not_ids() {
    spawn_must_fail(async |init, id| init.answer(id, Response::Spawned { pid: 5 }, Vec::new())).await;
    spawn_must_fail(async |init, id| {
        let files = (0..2).map(|_| tempfile::tempfile().unwrap().into()).collect();
        init.answer(id, Response::Spawned { pid: 5 }, files);
    })
    .await;
    for pid in [-1, 0, 1] {
        spawn_must_fail(async |init, id| init.answer(id, Response::Spawned { pid }, pipes())).await;
    }
    spawn_must_fail(async |init, id| init.answer(id, Response::Done, Vec::new())).await;
    spawn_must_fail(async |init, id| {
        init.answer(id, Response::Spawned { pid: 5 }, pipes());
        init.exit(5, Status::Exited(0));
    })
    .await;
}

/// Whatever bytes an init sends while it owes nothing, they end the VM with a reason and never with a panic.
#[test]
fn arbitrary_bytes_end_the_vm_with_a_reason() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let packet = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..200),
        // The header is right: what follows reaches the decoder and what is behind it.
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(|body| [vec![1, 0], body].concat()),
        (any::<u8>(), any::<u32>(), 0_u8..8)
            .prop_map(|(kind, id, tag)| { vec![1, 0, kind % 4, (id % 4) as u8, tag, tag, 0, 0] }),
    ];
    let mut runner = TestRunner::new(ProptestConfig::with_cases(200));
    let property = |packet: Vec<u8>| {
        runtime.block_on(async {
            let World { vm, init, launcher: _launcher, .. } = World::new().await;
            init.say_raw(&packet, &[]);
            let reason = soon(vm.gone()).await;
            prop_assert!(matches!(reason, GoneReason::Protocol(_)), "{reason:?}");
            Ok(())
        })
    };
    runner.run(&packet, property).unwrap();
}
