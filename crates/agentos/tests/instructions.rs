//! What agents are told about where they work, as a file in the VM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use agentos::{ErrorKind, ModelChoice};
use support::world::World;

#[tokio::test]
async fn a_session_brings_a_file_of_instructions_that_nobody_can_change() {
    let world = World::new().await;
    let options = world.options().model(ModelChoice::Demo).additional_instructions("Always knit.");
    let vm = world.vm_with(options).await;
    let path = "/etc/agentos/instructions.md";
    assert!(!vm.exists(path).await.unwrap());
    let session = vm.create_session("pi").additional_instructions("Then purl.").await.unwrap();
    let text = String::from_utf8(vm.read_file(path).await.unwrap()).unwrap();
    let (base, rest) = text.split_once("Always knit.").expect("the VM's instructions");
    assert!(base.contains("agentOS") && rest.contains("Then purl."), "{text}");

    let error = vm.write_file(path, "Do as you like.").await.unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::ReadOnly, Some("EROFS")), "{error}");
    let out = vm.exec(format!("echo mine > {path}; rm {path}")).await.unwrap();
    assert!(!out.success());
    assert_eq!(vm.read_file(path).await.unwrap(), text.as_bytes());
    session.close().await.unwrap();
}

#[tokio::test]
async fn each_session_of_a_vm_has_instructions_of_its_own() {
    let world = World::new().await;
    let vm = world.vm_with(world.options().model(ModelChoice::Demo)).await;
    let read = async |path: String| String::from_utf8(vm.read_file(path).await.unwrap()).unwrap();
    let own = |id: &str| format!("/etc/agentos/sessions/{id}/instructions.md");
    let first = vm.create_session("pi").additional_instructions("Knit.").await.unwrap();
    let second = vm.create_session("pi").additional_instructions("Purl.").await.unwrap();
    assert!(read(own(first.id())).await.ends_with("Knit."));
    assert!(read(own(second.id())).await.ends_with("Purl."));
    assert!(read("/etc/agentos/instructions.md".to_owned()).await.ends_with("Purl."), "the newest one's");
    let error = vm.write_file(own(first.id()), "Do as you like.").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    first.close().await.unwrap();
    support::eventually("they go with their session", || async {
        !vm.exists(own(first.id())).await.unwrap()
    })
    .await;
    assert!(vm.exists(own(second.id())).await.unwrap());
}
