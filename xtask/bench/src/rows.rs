//! What is measured, in the order it is measured: quick things on a quiet sidecar first, a thousand VMs last.

mod acp;
mod agent;
mod create;
mod density;
mod dispose;
mod events;
mod exec;
pub(crate) mod fetch;
mod filesystem;
mod network;

use crate::{Bench, Failure};

pub(crate) async fn all(bench: &mut Bench) -> Result<(), Failure> {
    // The figures are those of a warm sidecar: files of the host in the page cache, code paths run once.
    for _ in 0..5 {
        let vm = bench.vm().await?;
        vm.exec("echo hello").await?;
        vm.dispose().await?;
    }
    create::measure(bench).await?;
    exec::measure(bench).await?;
    filesystem::measure(bench).await?;
    fetch::measure(bench).await?;
    network::measure(bench).await?;
    dispose::measure(bench).await?;
    density::sidecar(bench).await?;
    create::burst(bench).await?;
    if !bench.quick {
        events::measure(bench).await?;
        agent::measure(bench).await?;
        acp::measure(bench).await?;
        density::measure(bench).await?;
    }
    Ok(())
}
