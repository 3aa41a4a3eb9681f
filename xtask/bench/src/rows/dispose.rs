//! Taking VMs down.

use crate::figure::{Figure, Limit, MEDIAN};
use crate::host::milliseconds;
use crate::{Bench, Failure};
use agentos::AgentOs;
use std::time::{Duration, Instant};

/// What a stubborn process is given between the two signals; the figure is what comes on top.
const GRACE: Duration = Duration::from_millis(500);

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let name = "dispose, idle";
    if bench.wants(name) {
        let mut samples = Vec::new();
        for _ in 0..bench.samples(100) {
            let vm = bench.vm().await?;
            samples.push(dispose(&vm).await?);
        }
        bench.record(Figure::milliseconds(name, samples).limit(MEDIAN, Limit::AtMost(8.0)));
    }
    let name = "dispose, shell and a process that ignores SIGTERM, beyond the grace";
    if bench.wants(name) {
        let mut samples = Vec::new();
        for _ in 0..bench.samples(30) {
            let vm = AgentOs::create(bench.options().dispose_grace(GRACE)).await?;
            let _shell = vm.open_shell().size(80, 24).await?;
            let script = "trap '' TERM HUP; echo > /tmp/ready; while :; do sleep 1; done";
            let _stubborn = vm.spawn("sh", ["-c", script]).await?;
            wait_for_file(&vm, "/tmp/ready").await?;
            samples.push(dispose(&vm).await? - milliseconds(GRACE));
        }
        bench.record(Figure::milliseconds(name, samples).limit(MEDIAN, Limit::AtMost(20.0)));
    }
    Ok(())
}

async fn dispose(vm: &AgentOs) -> Result<f64, Failure> {
    let started = Instant::now();
    vm.dispose().await?;
    Ok(milliseconds(started.elapsed()))
}

/// Until then the process does not ignore anything.
async fn wait_for_file(vm: &AgentOs, path: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !vm.exists(path).await? {
        if Instant::now() > deadline {
            return Err(format!("{path} did not appear").into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
