//! Files through the API.

use crate::figure::{Figure, Limit, MEDIAN};
use crate::host::milliseconds;
use crate::{Bench, Failure};
use std::time::Instant;

const SMALL_BYTES: usize = 1024;
const LARGE_BYTES: usize = 4 * 1024 * 1024;

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let vm = bench.vm().await?;
    let rows = [
        ("write 1 KiB", "read 1 KiB", SMALL_BYTES, 0.40, 0.25, bench.samples(1000)),
        ("write 4 MiB", "read 4 MiB", LARGE_BYTES, 8.0, 6.0, bench.samples(100)),
    ];
    for (write, read, size, write_limit_ms, read_limit_ms, count) in rows {
        if !bench.wants(write) && !bench.wants(read) {
            continue;
        }
        let path = format!("/home/user/{size}");
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..count {
            // The copy that the call consumes is the bench's own and not part of the figure.
            let copy = content.clone();
            let started = Instant::now();
            vm.write_file(path.as_str(), copy).await?;
            writes.push(milliseconds(started.elapsed()));
            let started = Instant::now();
            let read = vm.read_file(path.as_str()).await?;
            reads.push(milliseconds(started.elapsed()));
            if read != content {
                return Err(format!("{path}: read back {} other bytes", read.len()).into());
            }
        }
        bench.record(Figure::milliseconds(write, writes).limit(MEDIAN, Limit::AtMost(write_limit_ms)));
        bench.record(Figure::milliseconds(read, reads).limit(MEDIAN, Limit::AtMost(read_limit_ms)));
    }
    if bench.wants("stat") {
        let mut samples = Vec::new();
        vm.write_file("/home/user/stat", "text").await?;
        for _ in 0..bench.samples(1000) {
            let started = Instant::now();
            vm.stat("/home/user/stat").await?;
            samples.push(milliseconds(started.elapsed()));
        }
        bench.record(Figure::milliseconds("stat", samples).limit(MEDIAN, Limit::AtMost(0.20)));
    }
    vm.dispose().await?;
    Ok(())
}
