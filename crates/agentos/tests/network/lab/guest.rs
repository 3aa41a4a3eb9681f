//! What a test does in a VM of the lab.

use agentos::{AgentOs, AgentOsOptions, Mount, OutputStream, Process};
use futures_util::StreamExt;

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

/// A program in the VM that has connected and stays so for as long as it can.
pub(crate) struct Held {
    process: Process,
    output: OutputStream,
}

impl Held {
    pub(crate) async fn connect(vm: &AgentOs, address: &str) -> Self {
        let process = vm.spawn(PROBE, ["hold", address]).await.unwrap();
        let mut held = Self { output: process.stdout(), process };
        assert_eq!(held.line().await, "connected", "{address}");
        held
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Waits until the connection is over, and says how it ended.
    pub(crate) async fn end(mut self) -> String {
        self.line().await
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.extend(within("a line", StreamExt::next(&mut self.output)).await.unwrap().unwrap());
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }
}
