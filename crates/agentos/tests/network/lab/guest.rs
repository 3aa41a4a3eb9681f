//! What a test does in a VM of the lab.

use agentos::{AgentOs, AgentOsOptions, Mount};

use super::probe;
use crate::support::within;

/// Where VMs see the program that makes attempts.
const PROBE: &str = "/probe/attempt";

pub(crate) fn with_probe(options: AgentOsOptions) -> AgentOsOptions {
    options.mount("/probe", Mount::host_dir(probe().parent().unwrap()))
}

/// What a shell command printed, the errors too.
pub(crate) async fn sh(vm: &AgentOs, command: &str) -> String {
    let output = within(command, vm.exec(format!("{{ {command}\n}} 2>&1"))).await.unwrap();
    output.stdout_lossy().trim_end().to_owned()
}

/// What one attempt came to.
pub(crate) async fn attempt(vm: &AgentOs, words: &str) -> String {
    sh(vm, &format!("{PROBE} {words}")).await
}

/// As a program hears it at once: by RST or by ICMP, never by silence.
const REFUSALS: [&str; 6] =
    ["ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "EHOSTDOWN"];

pub(crate) fn is_refusal(outcome: &str) -> bool {
    REFUSALS.contains(&outcome)
}

#[track_caller]
pub(crate) fn check_refused(what: &str, outcome: &str) {
    assert!(is_refusal(outcome), "{what}: {outcome}");
}
