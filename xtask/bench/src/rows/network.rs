//! The network of a VM: streams, connections, names, and what it costs to have one.
//!
//! The near end is this program in the VM, the far end the bench itself on a port of the host that the VM is shown. What
//! other programs do between the same two ends is measured in turns with it.

use crate::figure::{Figure, Limit, MEDIAN, Unit};
use crate::host;
use crate::names::Names;
use crate::peer::{PEER, Server};
use crate::rivals::{HOST, Rival, SLIRP4NETNS};
use crate::{Bench, Failure};
use agentos::{AgentOs, AgentOsCreateSidecarOptions, AgentOsOptions};
use std::process::{Command, Stdio};

const OUT: &str = "network, one TCP stream out of a VM";
const INTO: &str = "network, one TCP stream into a VM";
const CONNECTION: &str = "network, new TCP connection";
const CACHED: &str = "network, DNS answer from the cache";
const CROWD: &str = "network, 1,000 connections at once, each answers";
const MEMORY: &str = "network, sidecar for each of 100 idle VMs, PSS";

const CROWD_SIZE: u16 = 1000;
const IDLE_VMS: u32 = 100;
/// Where a VM's resolver is.
const RESOLVER: &str = "10.0.2.3:53";
const NAME: &str = "cached.bench.example";

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    if ![OUT, INTO, CONNECTION, CACHED, CROWD, MEMORY].iter().any(|name| bench.wants(name)) {
        return Ok(());
    }
    if bench.wants(MEMORY) {
        memory(bench).await?;
    }
    let (server, names) = (Server::start().await?, Names::start().await?);
    let options = bench.options().dns_server(names.address);
    let (vm, program) = with_program(options.loopback_exempt_port(server.port)).await?;
    let ends = Ends { vm: &vm, program, port: server.port };
    streams(bench, &ends).await?;
    connections(bench, &ends).await?;
    answers(bench, &ends, &names).await?;
    crowd(bench, &ends).await?;
    vm.dispose().await?;
    Ok(())
}

/// A VM that shows this program, and where.
pub(super) async fn with_program(options: AgentOsOptions) -> Result<(AgentOs, String), Failure> {
    let program = std::env::current_exe()?;
    let directory = program.parent().ok_or("this program is in no directory")?;
    let name = program.file_name().and_then(|name| name.to_str()).ok_or("this program has no name")?;
    let vm = AgentOs::create(options.mount("/bench", agentos::Mount::host_dir(directory))).await?;
    Ok((vm, format!("/bench/{name}")))
}

/// The ends of what is measured.
struct Ends<'a> {
    vm: &'a AgentOs,
    /// The near one's, in the VM.
    program: String,
    port: u16,
}

impl Ends<'_> {
    async fn in_vm(&self, words: &str) -> Result<Vec<f64>, Failure> {
        let result = self.vm.exec(format!("{} {PEER} {words}", self.program)).await?;
        if result.exit_code() != 0 {
            return Err(format!("in the VM: {}", String::from_utf8_lossy(&result.stderr).trim()).into());
        }
        numbers(&result.stdout)
    }

    /// To the far end, from where [`HOST`] stands for the host.
    fn words_inside(&self, what: &str, how_much: impl std::fmt::Display) -> String {
        format!("{what} {HOST}:{} {how_much}", self.port)
    }

    fn words_on_host(&self, what: &str, how_much: impl std::fmt::Display) -> String {
        format!("{what} 127.0.0.1:{} {how_much}", self.port)
    }
}

async fn on_host(words: &str) -> Result<Vec<f64>, Failure> {
    outside(Command::new(std::env::current_exe()?), words).await
}

/// The bench is the far end, so it must not wait with all its threads.
async fn outside(mut command: Command, words: &str) -> Result<Vec<f64>, Failure> {
    command.arg(PEER).args(words.split(' ')).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().into());
    }
    numbers(&output.stdout)
}

fn numbers(lines: &[u8]) -> Result<Vec<f64>, Failure> {
    let lines = std::str::from_utf8(lines)?.lines();
    Ok(lines.map(str::parse).collect::<Result<_, _>>()?)
}

async fn streams(bench: &mut Bench, ends: &Ends<'_>) -> Result<(), Failure> {
    let rows: Vec<_> =
        [(OUT, "send"), (INTO, "receive")].into_iter().filter(|(name, _)| bench.wants(name)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let (rounds, ms) = if bench.quick { (1, 200) } else { (7, 1000) };
    let rivals = Rival::start_all(!bench.quick).await;
    for (name, what) in rows {
        let (inside, on_the_host) = (ends.words_inside(what, ms), ends.words_on_host(what, ms));
        let (mut samples, mut host) = (Vec::new(), Vec::new());
        let mut others: Vec<_> = rivals.iter().map(|rival| (rival, Vec::new())).collect();
        for _ in 0..rounds {
            samples.extend(ends.in_vm(&inside).await?);
            for (rival, reached) in &mut others {
                let command = rival.command(&std::env::current_exe()?);
                reached.extend(outside(command, &inside).await?);
            }
            host.extend(on_host(&on_the_host).await?);
        }
        let mut figure = Figure::new(name, Unit::GigabitsPerSecond, samples).host(host);
        for (rival, reached) in others {
            figure = figure.other(rival.name, reached);
        }
        // A quick run fetches nothing, so that it may have nothing to be held against.
        if !bench.quick || figure.others.iter().any(|other| other.name == SLIRP4NETNS) {
            figure = figure.limit(MEDIAN, Limit::NotBelow(SLIRP4NETNS));
        }
        bench.record(figure);
    }
    Ok(())
}

async fn connections(bench: &mut Bench, ends: &Ends<'_>) -> Result<(), Failure> {
    if bench.wants(CONNECTION) {
        let times = bench.samples(500);
        let samples = ends.in_vm(&ends.words_inside("connect", times)).await?;
        let host = on_host(&ends.words_on_host("connect", times)).await?;
        let figure = Figure::milliseconds(CONNECTION, samples).host(host);
        bench.record(figure.limit(MEDIAN, Limit::OverHost(1.0)));
    }
    Ok(())
}

async fn answers(bench: &mut Bench, ends: &Ends<'_>, names: &Names) -> Result<(), Failure> {
    if bench.wants(CACHED) {
        let times = bench.samples(500);
        let samples = ends.in_vm(&format!("ask {RESOLVER} {NAME} {times}")).await?;
        if names.asked() > times / 2 {
            return Err(format!("{} of {times} answers came from the server", names.asked()).into());
        }
        let host = on_host(&format!("ask {} {NAME} {times}", names.address)).await?;
        bench.record(Figure::milliseconds(CACHED, samples).host(host).limit(MEDIAN, Limit::AtMost(1.0)));
    }
    Ok(())
}

async fn crowd(bench: &mut Bench, ends: &Ends<'_>) -> Result<(), Failure> {
    if bench.wants(CROWD) {
        host::open_files_to_the_most()?;
        let answered = ends.in_vm(&ends.words_inside("crowd", CROWD_SIZE)).await?;
        let figure = Figure::new(CROWD, Unit::Count, answered);
        bench.record(figure.limit(MEDIAN, Limit::AtLeast(f64::from(CROWD_SIZE))));
    }
    Ok(())
}

/// All that a sidecar has for VMs that have used their network and do so no more, its stack included. The sidecar is one
/// of its own: memory that others have given back would be used again and not be seen to grow.
async fn memory(bench: &mut Bench) -> Result<(), Failure> {
    let server = Server::start().await?;
    let id = format!("{}-idle", bench.sidecar_id);
    let sidecar = AgentOs::create_sidecar(AgentOsCreateSidecarOptions::default().sidecar_id(&id)).await?;
    let number = if bench.quick { IDLE_VMS / 10 } else { IDLE_VMS };
    let mut vms = Vec::new();
    let mut before = f64::NAN;
    // The first has the sidecar make what all share.
    for made in 0..=number {
        let options = AgentOsOptions::default().sidecar(&sidecar).loopback_exempt_port(server.port);
        let (vm, program) = with_program(options).await?;
        let ends = Ends { vm: &vm, program, port: server.port };
        ends.in_vm(&ends.words_inside("connect", 1)).await?;
        vms.push(vm);
        if made == 0 {
            before = host::pss_megabytes(host::sidecar_pid(&id)?)?;
        }
    }
    let each = (host::pss_megabytes(host::sidecar_pid(&id)?)? - before) / f64::from(number);
    for vm in vms {
        vm.dispose().await?;
    }
    sidecar.dispose().await?;
    bench.record(Figure::new(MEMORY, Unit::Megabytes, vec![each]).limit(MEDIAN, Limit::AtMost(1.0)));
    Ok(())
}
