//! Making VMs: one after the other, with a pause between, with a first command, many at once.

use crate::figure::{Figure, Limit, MEDIAN, P95, P99};
use crate::host::{self, milliseconds};
use crate::{Bench, Failure};
use agentos::{AgentOs, AgentOsOptions};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Long enough for caches and clocks of the CPU to calm down: a user does not create VMs in a loop.
const PAUSE: Duration = Duration::from_millis(100);
const BURST: usize = 100;

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    for (name, pause) in [("create, back to back", Duration::ZERO), ("create, 100 ms apart", PAUSE)] {
        if bench.wants(name) {
            let samples = create(bench, pause).await?;
            bench.record(
                Figure::milliseconds(name, samples)
                    .limit(MEDIAN, Limit::AtMost(4.0))
                    .limit(P99, Limit::AtMost(15.0)),
            );
        }
    }
    let name = "create + first `echo hello`";
    if bench.wants(name) {
        let (mut samples, mut host, mut bubblewrap) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.samples(100) {
            let started = Instant::now();
            let vm = bench.vm().await?;
            let output = vm.exec("echo hello").await?;
            samples.push(milliseconds(started.elapsed()));
            expect(&output.stdout, "hello\n")?;
            vm.dispose().await?;
            host.push(host::shell("echo hello")?);
            bubblewrap.extend(host::bubblewrap("echo hello"));
        }
        let figure = Figure::milliseconds(name, samples).host(host).other("bubblewrap", bubblewrap);
        bench.record(figure.limit(MEDIAN, Limit::AtMost(7.0)));
    }
    Ok(())
}

async fn create(bench: &Bench, pause: Duration) -> Result<Vec<f64>, Failure> {
    let mut samples = Vec::new();
    for _ in 0..bench.samples(200) {
        tokio::time::sleep(pause).await;
        let started = Instant::now();
        let vm = bench.vm().await?;
        samples.push(milliseconds(started.elapsed()));
        vm.dispose().await?;
    }
    Ok(samples)
}

/// Every sample is the time from the start of the burst to one VM's first output.
pub(crate) async fn burst(bench: &mut Bench) -> Result<(), Failure> {
    let name = "burst: 100 concurrent create + exec";
    if !bench.wants(name) {
        return Ok(());
    }
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..BURST {
        let options = bench.options();
        running.spawn(async move { first_output(options, started).await });
    }
    let (mut samples, mut vms) = (Vec::new(), Vec::new());
    while let Some(finished) = running.join_next().await {
        let (took, vm) = finished??;
        samples.push(took);
        vms.push(vm);
    }
    for vm in vms {
        vm.dispose().await?;
    }
    bench.record(Figure::milliseconds(name, samples).limit(P95, Limit::AtMost(400.0)));
    Ok(())
}

async fn first_output(options: AgentOsOptions, started: Instant) -> Result<(f64, AgentOs), Failure> {
    let vm = AgentOs::create(options).await?;
    let output = vm.exec("echo hello").await?;
    let took = milliseconds(started.elapsed());
    expect(&output.stdout, "hello\n")?;
    Ok((took, vm))
}

/// A fast wrong answer is no figure.
pub(super) fn expect(got: &[u8], wanted: &str) -> Result<(), Failure> {
    if got == wanted.as_bytes() {
        return Ok(());
    }
    Err(format!("{:?} instead of {wanted:?}", String::from_utf8_lossy(got)).into())
}
