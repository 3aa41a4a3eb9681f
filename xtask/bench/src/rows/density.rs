//! Memory: of the sidecar, of VMs by the hundred, and a thousand of them at work.

use super::create::expect;
use crate::figure::{Figure, Limit, MEDIAN, Unit};
use crate::host;
use crate::{Bench, Failure};
use agentos::{AgentOs, Process, Stdin};
use std::time::Duration;

const MANY: usize = 500;
const MOST: usize = 1000;
/// The kernel settles its accounts and returns memory late.
const SETTLE: Duration = Duration::from_secs(15);
/// Enough at once to keep every CPU busy, few enough not to measure the queue of the client.
const AT_ONCE: usize = 16;

pub(crate) async fn sidecar(bench: &mut Bench) -> Result<(), Failure> {
    let name = "sidecar with one VM, PSS";
    if bench.wants(name) {
        let vm = bench.vm().await?;
        vm.exec("true").await?;
        let pss = host::pss_megabytes(host::sidecar_pid(&bench.sidecar_id)?)?;
        vm.dispose().await?;
        bench.record(Figure::new(name, Unit::Megabytes, vec![pss]).limit(MEDIAN, Limit::AtMost(30.0)));
    }
    Ok(())
}

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let name = "each of 500 idle VMs";
    let mut vms = Vec::new();
    if bench.wants(name) {
        let (before, created) = (settled().await?, create(bench, MANY).await?);
        let each = (before - settled().await?) / count(MANY);
        bench.record(Figure::new(name, Unit::Megabytes, vec![each]).limit(MEDIAN, Limit::AtMost(1.0)));
        vms = created;
    }
    let name = "1,000 VMs alive, each answers exec";
    if bench.wants(name) {
        vms.extend(create(bench, MOST - vms.len()).await?);
        let alive = answering(&vms).await?;
        let figure = Figure::new(name, Unit::Count, vec![count(alive)]);
        bench.record(figure.limit(MEDIAN, Limit::AtLeast(count(MOST))));
    }
    dispose(vms).await?;
    let name = "each of 500 VMs with a sleeping shell";
    if bench.wants(name) {
        let before = settled().await?;
        let vms = create(bench, MANY).await?;
        let shells = sleeping_shells(&vms).await?;
        let each = (before - settled().await?) / count(MANY);
        bench.record(Figure::new(name, Unit::Megabytes, vec![each]).limit(MEDIAN, Limit::AtMost(1.6)));
        drop(shells);
        dispose(vms).await?;
    }
    Ok(())
}

async fn settled() -> Result<f64, Failure> {
    tokio::time::sleep(SETTLE).await;
    host::available_megabytes()
}

/// Numbers of VMs are far below what a float can count exactly.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::NAN, f64::from)
}

async fn create(bench: &Bench, number: usize) -> Result<Vec<AgentOs>, Failure> {
    let mut vms = Vec::with_capacity(number);
    while vms.len() < number {
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE.min(number - vms.len()) {
            running.spawn(AgentOs::create(bench.options()));
        }
        while let Some(finished) = running.join_next().await {
            vms.push(finished??);
        }
    }
    Ok(vms)
}

async fn answering(vms: &[AgentOs]) -> Result<usize, Failure> {
    let mut answers = 0;
    for group in vms.chunks(AT_ONCE) {
        let mut running = tokio::task::JoinSet::new();
        for vm in group {
            let vm = vm.clone();
            running.spawn(async move { vm.exec("echo alive").await });
        }
        while let Some(finished) = running.join_next().await {
            expect(&finished??.stdout, "alive\n")?;
            answers += 1;
        }
    }
    Ok(answers)
}

/// A shell that waits for a command that never comes.
async fn sleeping_shells(vms: &[AgentOs]) -> Result<Vec<Process>, Failure> {
    let mut shells = Vec::with_capacity(vms.len());
    for vm in vms {
        shells.push(vm.spawn::<&str>("/bin/sh", []).stdin(Stdin::Piped).await?);
    }
    Ok(shells)
}

async fn dispose(vms: Vec<AgentOs>) -> Result<(), Failure> {
    for group in vms.chunks(AT_ONCE) {
        let mut running = tokio::task::JoinSet::new();
        for vm in group {
            let vm = vm.clone();
            running.spawn(async move { vm.dispose().await });
        }
        while let Some(finished) = running.join_next().await {
            finished??;
        }
    }
    Ok(())
}
