//! A sidecar that can have no more open files: one call fails, the VM goes on. In a process of its own, because the
//! limit is the process's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails where it stands")]

use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::filesystem::FileResponse;
use agentos_guest_protocol::init::{Event, InitMessage, InitRequest, Request, RequestId, Response};
use agentos_guest_protocol::launcher::{HostFindings, LauncherEvent, LauncherRequest};
use agentos_guest_protocol::process::Status;
use agentos_guest_protocol::{Encoded, Frame, decode, encode};
use agentos_linux::seqpacket;
use agentos_vm::{Host, Launcher, ProcessSpec, Vm, VmOptions, VmSpec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn send<T: Serialize>(socket: &OwnedFd, message: &T, descriptors: &[OwnedFd]) {
    let Encoded::Whole(packet) = encode(message).unwrap() else { panic!("too long for a test") };
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    seqpacket::send(socket.as_fd(), &packet, &descriptors).unwrap();
}

fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> (T, Vec<OwnedFd>) {
    let mut buffer = vec![0; 64 * 1024];
    let received = seqpacket::receive(socket.as_fd(), &mut buffer).unwrap();
    match decode(&buffer[..received.len]).unwrap() {
        Frame::Whole(message) => (message, received.descriptors),
        Frame::Spilled { .. } => panic!("too long for a test"),
    }
}

fn answer(init: &OwnedFd, id: RequestId, response: Response, descriptors: &[OwnedFd]) {
    send(init, &InitMessage::Response { id, response: Ok(response) }, descriptors);
}

/// Plays launcher and init. The spawn's pipes are passed while no descriptor is to be had in this process.
fn play(launcher: &OwnedFd, limit: Rlimit) {
    let findings = HostFindings { max_open_files: 1024, ..HostFindings::default() };
    send(launcher, &LauncherEvent::Started(findings), &[]);
    let (LauncherRequest::Boot { .. }, mut descriptors) = receive(launcher) else { panic!("not Boot") };
    let init = descriptors.pop().unwrap();
    send(&init, &InitMessage::Ready, &[]);

    let (InitRequest { id, request: Request::Spawn(_) }, _) = receive(&init) else { panic!("not Spawn") };
    let (stdout, stderr) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
    answer(&init, id, Response::Spawned { pid: 5 }, &[stdout.0, stderr.0]);
    send(&init, &InitMessage::Event(Event::ExecDone { pid: 5, result: Ok(()) }), &[]);
    let (InitRequest { id, request: Request::Signal { pid: 5, signal: 9, .. } }, _) = receive(&init) else {
        panic!("the process nobody can use is not killed");
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    answer(&init, id, Response::Done, &[]);
    send(&init, &InitMessage::Event(Event::Exited { pid: 5, status: Status::Signaled(9) }), &[]);

    let (InitRequest { id, request: Request::File(_) }, _) = receive(&init) else {
        panic!("not a file call")
    };
    answer(&init, id, Response::File(FileResponse::Exists(true)), &[]);
}

#[tokio::test]
async fn without_descriptors_a_spawn_fails_and_the_vm_goes_on() {
    let (ours, theirs) = Launcher::socket_pair().unwrap();
    let limit = getrlimit(Resource::Nofile);
    let player = std::thread::spawn(move || play(&theirs, limit));
    let runtime = tempfile::tempdir().unwrap();
    let launcher = Launcher::connect(ours, runtime.path()).await.unwrap();
    let spec = VmSpec::validate(VmOptions::default(), &Host::of(&launcher)).unwrap();
    let vm = Vm::create(&launcher, spec).await.unwrap();

    let spec = ProcessSpec { argv: vec![b"cat".to_vec()], ..ProcessSpec::default() };
    let error = vm.spawn(spec).await.unwrap_err();
    assert_eq!(error.to_string(), "EMFILE: too many open files, pipe 'cat'");
    assert!(vm.exists(b"/").await.unwrap());
    player.join().unwrap();
}
