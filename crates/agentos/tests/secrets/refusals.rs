//! Secrets that can't be had, on any host.

use agentos::{AgentOs, ErrorKind, Secret};

use crate::support::world::World;

const VALUE: &str = "never-shown-0123456789";

#[tokio::test]
async fn what_is_no_secret_is_refused_by_its_name_alone() {
    let world = World::new().await;
    let known = Secret::new("OPENAI_API_KEY", VALUE);
    for (options, reason) in [
        (world.options().secret(Secret::new("TOKEN", VALUE)), "no destination"),
        (world.options().secret(Secret::new("TOKEN", VALUE).header("a b", "x-key")), "'a b'"),
        (world.options().secret(Secret::new("TOKEN", VALUE).header("a.example", "host")), "host"),
        (world.options().secret(Secret::new("TOKEN", "short").bearer("a.example")), "at least 8 bytes"),
        (world.options().secret(known.clone()).secret(known.clone()), "OPENAI_API_KEY: it is given twice"),
        (world.options().secret(known.clone()).env("OPENAI_API_KEY", "mine"), "in the environment already"),
        (world.options().secret(known.clone()).env("OPENAI_BASE_URL", "nowhere"), "OPENAI_BASE_URL"),
    ] {
        let error = AgentOs::create(options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        assert!(error.to_string().contains(reason), "{error}, and not {reason}");
        assert!(!format!("{error:?}").contains(VALUE), "{error:?}");
    }
}

#[tokio::test]
async fn a_vm_has_a_placeholder_for_each_secret_and_another_vm_has_others() {
    let world = World::new().await;
    let options = || {
        let own = Secret::new("TOKEN", VALUE).bearer("api.example").placeholder_prefix("tk_");
        world.options().secret(own).secret(Secret::new("GEMINI_API_KEY", VALUE))
    };
    let mut seen = Vec::new();
    for _ in 0..2 {
        let vm = world.vm_with(options()).await;
        let out = vm.exec("echo $TOKEN $GEMINI_API_KEY").await.unwrap();
        let out = out.stdout_lossy().trim().to_owned();
        let (token, key) = out.split_once(' ').unwrap();
        assert!(token.starts_with("tk_") && key.starts_with("AIza"), "{out}");
        assert!(!out.contains(VALUE));
        seen.push(out);
    }
    assert_ne!(seen[0], seen[1]);
}
