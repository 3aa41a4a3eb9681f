//! What several stories need: a sidecar that is scripted, and the real one.

#![allow(dead_code, reason = "every test program uses another part")]

pub(crate) mod fake;
pub(crate) mod world;

use std::time::Duration;

/// Long enough for a loaded machine; a condition that never comes true fails with its name instead of hanging.
const DEADLINE: Duration = Duration::from_secs(30);

/// Whoever asks again and again leaves the machine to others in between.
pub(crate) async fn poll_pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Waits until the condition holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            poll_pause().await;
        }
    };
    within(what, wait).await;
}

/// Waits for something that must come.
pub(crate) async fn within<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    within_time(DEADLINE, what, future).await
}

/// As [`within`], for what is long by its nature.
pub(crate) async fn within_time<T>(time: Duration, what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(time, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("waited {} s in vain: {what}", time.as_secs()),
    }
}

/// Where the agents of this machine are, so that a home of the test's own has them too.
pub(crate) fn agent_store() -> std::path::PathBuf {
    if let Some(store) = std::env::var_os("AGENTOS_TEST_AGENT_STORE") {
        return store.into();
    }
    let home = std::env::var_os("AGENTOS_HOME").map(std::path::PathBuf::from);
    let home = home.unwrap_or_else(|| {
        std::path::Path::new(&std::env::var_os("HOME").unwrap()).join(".local/share/agentos")
    });
    home.join("agents")
}

/// Where a VM of [`scripted_agent`] sees it.
pub(crate) const SCRIPTED_AGENT: &str = "/opt/scripted/fake_acp_agent";

/// The agent that is made of a script, shown to a VM of these options: named by the test run, or beside this executable.
pub(crate) fn scripted_agent(options: agentos::AgentOsOptions) -> agentos::AgentOsOptions {
    let built = || {
        let own = std::env::current_exe().unwrap();
        own.parent().unwrap().parent().unwrap().join("examples/fake_acp_agent")
    };
    let path = std::env::var_os("AGENTOS_TEST_FAKE_AGENT").map_or_else(built, std::path::PathBuf::from);
    assert!(path.exists(), "{} is not built: cargo build -p agentos-agents --examples", path.display());
    options.mount("/opt/scripted", agentos::Mount::host_dir(path.parent().unwrap()))
}
