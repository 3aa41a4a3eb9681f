//! A VM's egress policy on its way to the sidecar: what is wrong with it is said before there is a VM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{AgentOs, EgressPolicy, EgressProtocol, EgressRule, Error, ErrorKind};
use support::world::World;

async fn create(world: &World, policy: EgressPolicy) -> Result<AgentOs, Error> {
    AgentOs::create(world.options().network(policy)).await
}

/// Whether VMs have a network here: root makes itself the device that it needs, others use the host's.
fn has_network() -> bool {
    std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok()
}

/// A policy that is sound and can't be had here is refused for what this host lacks.
fn is_sound(created: &Result<AgentOs, Error>) -> bool {
    match created {
        Ok(_) => true,
        Err(error) => !has_network() && error.kind() == ErrorKind::HostUnsupported,
    }
}

#[tokio::test]
async fn where_vms_have_no_network_only_a_policy_that_lets_something_out_is_refused() {
    let world = World::new().await;
    assert!(create(&world, EgressPolicy::none()).await.is_ok());
    match create(&world, EgressPolicy::public()).await {
        Ok(_) => assert!(has_network()),
        Err(error) => {
            assert_eq!((error.kind(), error.object()), (ErrorKind::HostUnsupported, Some("network")));
            assert!(!has_network() && error.to_string().contains("/dev/net/tun"), "{error}");
        }
    }
    // Who asks for nothing gets what there is.
    assert!(AgentOs::create(world.options()).await.is_ok());
}

#[tokio::test]
async fn a_vm_is_made_with_any_sound_policy() {
    let world = World::new().await;
    let detailed = EgressPolicy::none()
        .allow(EgressRule::name("*.npmjs.org").port(443).protocol(EgressProtocol::Tcp))
        .allow(EgressRule::network("10.0.0.0/8").ports(8000..=8100))
        .allow(EgressRule::name("db.example").to_private_addresses())
        .deny(EgressRule::any().port(25));
    for policy in [EgressPolicy::none(), EgressPolicy::public(), detailed] {
        let created = create(&world, policy).await;
        assert!(is_sound(&created), "{created:?}");
        let Ok(vm) = created else { continue };
        assert!(vm.exec("true").await.unwrap().success());
        vm.dispose().await.unwrap();
    }
}

#[tokio::test]
async fn a_policy_that_cannot_be_is_refused_with_the_rule_and_the_reason() {
    let world = World::new().await;
    let first = || EgressPolicy::none().allow(EgressRule::name("a.example"));
    for (policy, reason) in [
        (first().allow(EgressRule::name("a b")), "rule 2: 'a b': name holds ' '"),
        (first().allow(EgressRule::name("*")), "`*.example.com`"),
        (first().deny(EgressRule::name("10.0.0.300")), "an address is no name"),
        (first().deny(EgressRule::network("example.com")), "rule 2: 'example.com': it is no address"),
        (first().allow(EgressRule::network("10.0.0.1/8")), "the network is 10.0.0.0/8"),
        (first().allow(EgressRule::any().port(0)), "from 1 to 65535"),
        (first().allow(EgressRule::any().protocol(EgressProtocol::Icmp).port(1)), "icmp has no ports"),
        (first().deny(EgressRule::any().to_private_addresses()), "private addresses anyway"),
    ] {
        let error = create(&world, policy).await.unwrap_err();
        assert_eq!((error.kind(), error.object()), (ErrorKind::InvalidInput, Some("network")), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert!(world.sidecar.list_vms().await.unwrap().is_empty());
}

/// The file's reader and the sidecar each know what a name and a network are; they must not come to differ.
#[tokio::test]
async fn what_the_sidecar_refuses_is_refused_in_a_file_already() {
    let world = World::new().await;
    for text in [
        "a.example",
        "*.a.example",
        "_sip._tcp.example",
        "a.example.",
        "..",
        "*.",
        "a.*",
        "10.0.0.1",
        "10.0.0.1/8",
        "10.0.0.0/08",
        "010.0.0.0/8",
        "::ffff:10.0.0.0/104",
        "::1/128",
        "::1%lo",
        "0x7f000001",
        "1.0x",
        "\u{e9}.example",
    ] {
        let file = format!("base = \"none\"\n[[rule]]\nallow = \"{text}\"\n");
        let network = text.contains('/') || text.parse::<std::net::IpAddr>().is_ok();
        let rule = if network { EgressRule::network(text) } else { EgressRule::name(text) };
        let by_sidecar = create(&world, EgressPolicy::none().allow(rule)).await;
        let by_sidecar = is_sound(&by_sidecar);
        assert_eq!(EgressPolicy::from_toml(&file).is_ok(), by_sidecar, "{text}");
    }
}
