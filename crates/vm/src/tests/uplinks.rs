//! The way out of a VM, as init tells of it.

use std::os::fd::OwnedFd;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::init::InitMessage;
use agentos_guest_protocol::launcher::BootFailure;

use super::fake::{World, soon};
use crate::GoneReason;
use crate::network::{Missing, NetworkError};

fn failure() -> BootFailure {
    let object = Bytes::from(b"eth0".to_vec());
    BootFailure { step: "make TUN interface".to_owned(), object, errno: 16 }
}

fn not_a_device() -> OwnedFd {
    rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap()
}

#[tokio::test]
async fn a_device_that_could_not_be_made_costs_the_network_and_not_the_vm() {
    let World { vm, init, launcher: _launcher, .. } = World::with_uplink().await;
    init.say(InitMessage::Uplink(Err(failure())), Vec::new());
    let error = soon(vm.network_stats()).await.unwrap_err();
    assert!(
        matches!(&error, NetworkError::Missing(Missing::Device(found)) if *found == failure()),
        "{error:?}"
    );
    assert!(matches!(vm.state(), crate::VmState::Running));
}

#[tokio::test]
async fn on_a_host_without_a_way_out_the_network_is_missed_by_name() {
    let World { vm, init: _init, launcher: _launcher, .. } = World::new().await;
    let error = soon(vm.network_stats()).await.unwrap_err();
    assert!(error.to_string().contains("/dev/net/tun"), "{error}");
}

#[tokio::test]
async fn what_is_no_tun_device_ends_the_vm() {
    let World { vm, init, launcher: _launcher, .. } = World::with_uplink().await;
    init.say(InitMessage::Uplink(Ok(())), vec![not_a_device()]);
    let reason = soon(vm.gone()).await;
    assert!(matches!(reason, GoneReason::Protocol(_)), "{reason:?}");
    assert!(soon(vm.network_stats()).await.is_err(), "nobody waits for it any more");
}

#[tokio::test]
async fn a_second_uplink_and_one_that_nobody_wanted_end_the_vm() {
    for world in [World::with_uplink().await, World::new().await] {
        let World { vm, init, launcher: _launcher, .. } = world;
        init.say(InitMessage::Uplink(Err(failure())), Vec::new());
        init.say(InitMessage::Uplink(Err(failure())), Vec::new());
        let reason = soon(vm.gone()).await;
        assert!(matches!(reason, GoneReason::Protocol(_)), "{reason:?}");
    }
}
