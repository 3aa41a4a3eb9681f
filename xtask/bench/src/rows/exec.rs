//! Commands in a VM that is already there, in turns with the same commands on the host.

use super::create::expect;
use crate::figure::{Figure, Limit, MEDIAN};
use crate::host::{self, milliseconds};
use crate::{Bench, Failure};
use std::time::Instant;

struct Row {
    name: &'static str,
    command: &'static str,
    output: &'static str,
    /// What a VM may cost on top of the host.
    extra_ms: f64,
}

const ROWS: &[Row] = &[
    Row { name: "exec `true`", command: "true", output: "", extra_ms: 1.0 },
    Row { name: "exec `echo hello | cat`", command: "echo hello | cat", output: "hello\n", extra_ms: 1.2 },
];

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let vm = bench.vm().await?;
    for row in ROWS.iter().filter(|row| bench.wants(row.name)).collect::<Vec<_>>() {
        let (mut samples, mut host, mut bubblewrap) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.samples(300) {
            let started = Instant::now();
            let result = vm.exec(row.command).await?;
            samples.push(milliseconds(started.elapsed()));
            expect(&result.stdout, row.output)?;
            host.push(host::shell(row.command)?);
            bubblewrap.extend(host::bubblewrap(row.command));
        }
        let figure = Figure::milliseconds(row.name, samples).host(host).other("bubblewrap", bubblewrap);
        bench.record(figure.limit(MEDIAN, Limit::OverHost(row.extra_ms)));
    }
    vm.dispose().await?;
    Ok(())
}
