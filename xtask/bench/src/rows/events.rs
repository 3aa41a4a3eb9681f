//! A session's events on their way: from an agent's write to whoever reads them by the SDK.
//!
//! The agent is the tests' scripted one, which writes the time into what it says. Host and VM have the same monotonic
//! clock. Every event is in the database before its reader has it, and the time of that is part of the way.

use crate::figure::{Figure, LOWEST, Limit, MEDIAN, Unit};
use crate::host::{self, milliseconds};
use crate::{Bench, Failure};
use agentos::{AgentConfig, AgentOs, ModelChoice, Mount, SessionEvents};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const QUIET: &str = "event from an agent's write to its reader, one in 20 ms";
const BUSY: &str = "event from an agent's write to its reader, 1,000 a second";
const RECEIVED: &str = "1,000 updates a second for 10 s, read whole and in order";
const GROWTH: &str = "what the sidecar grows by from the 2nd to the 10th second, PSS";

const QUIET_EVENTS: usize = 250;
const BUSY_SECONDS: u64 = 10;
const BUSY_EVENTS: u32 = 10_000;
/// By then what is bounded is full.
const WARM: Duration = Duration::from_secs(2);
/// The flood ends, or is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One update: which it is, and how long it was on its way, in ms.
type Arrival = (u32, f64);

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let quiet = bench.wants(QUIET);
    let busy = [BUSY, RECEIVED, GROWTH].iter().any(|name| bench.wants(name));
    if !quiet && !busy {
        return Ok(());
    }
    let vm = scripted(bench).await?;
    if quiet {
        let count = bench.samples(QUIET_EVENTS);
        let script = format!("[[stamp {count} every=20]]");
        let arrivals = arrivals(&vm, &script, count).await?;
        let figure = Figure::milliseconds(QUIET, arrivals.iter().map(|(_, took)| *took).collect());
        bench.record(figure.limit(MEDIAN, Limit::AtMost(2.0)));
    }
    if busy {
        flood(bench, &vm).await?;
    }
    vm.dispose().await?;
    Ok(())
}

async fn flood(bench: &mut Bench, vm: &AgentOs) -> Result<(), Failure> {
    let sidecar = host::sidecar_pid(&bench.sidecar_id)?;
    let growth = tokio::spawn(async move {
        tokio::time::sleep(WARM).await;
        let before = host::pss_megabytes(sidecar)?;
        tokio::time::sleep(Duration::from_secs(BUSY_SECONDS) - WARM).await;
        Ok::<_, Failure>(host::pss_megabytes(sidecar)? - before)
    });
    let script = format!("[[flood 1000 {BUSY_SECONDS} kind=stamp]]");
    let arrivals = arrivals(vm, &script, usize::try_from(BUSY_EVENTS)?).await?;
    let in_order = arrivals.iter().zip(0..BUSY_EVENTS).filter(|((number, _), place)| number == place).count();
    let received = f64::from(u32::try_from(in_order)?);
    let busy = Figure::milliseconds(BUSY, arrivals.iter().map(|(_, took)| *took).collect());
    bench.record(busy.limit(MEDIAN, Limit::AtMost(2.0)));
    let received = Figure::new(RECEIVED, Unit::Count, vec![received]);
    bench.record(received.limit(LOWEST, Limit::AtLeast(f64::from(BUSY_EVENTS))));
    let growth = Figure::new(GROWTH, Unit::Megabytes, vec![growth.await??]);
    bench.record(growth.limit(MEDIAN, Limit::AtMost(8.0)));
    Ok(())
}

/// A VM that has the scripted agent.
async fn scripted(bench: &Bench) -> Result<AgentOs, Failure> {
    let program = program()?;
    let directory = program.parent().ok_or("the scripted agent is in no directory")?;
    let agent = AgentConfig::command(["/bench/fake_acp_agent"]);
    let options = bench.options().mount("/bench", Mount::host_dir(directory)).agent("scripted", agent);
    // Its model is its script.
    Ok(AgentOs::create(options.model(ModelChoice::Provider)).await?)
}

/// Named by whoever built it, or beside this program.
fn program() -> Result<PathBuf, Failure> {
    let program = match std::env::var_os("AGENTOS_TEST_FAKE_AGENT") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("examples").join("fake_acp_agent"),
    };
    match program.is_file() {
        true => Ok(program),
        false => Err(format!("{} is not built", OsString::from(program).display()).into()),
    }
}

/// What a reader gets of a turn with so many stamped updates, in a session of its own.
async fn arrivals(vm: &AgentOs, script: &str, count: usize) -> Result<Vec<Arrival>, Failure> {
    let session = vm.create_session("scripted").await?;
    let reading = tokio::spawn(read(session.events(), count));
    session.prompt(script).await?;
    // The turn is over, so that all of them are in the transcript; a reader may be behind.
    let read = tokio::time::timeout(PATIENCE, reading).await;
    let arrivals = read.map_err(|_| "the events of a turn did not all arrive")???;
    session.close().await?;
    Ok(arrivals)
}

async fn read(mut events: SessionEvents, count: usize) -> Result<Vec<Arrival>, Failure> {
    let mut arrivals = Vec::with_capacity(count);
    while arrivals.len() < count {
        let event = events.next().await.ok_or("the session ended")??;
        let now = clock_gettime(ClockId::Monotonic);
        let text = event.params()["update"]["content"]["text"].as_str().unwrap_or_default();
        let Some((number, stamp)) = text.trim_end().split_once(' ') else { continue };
        let (number, stamp): (u32, i64) = (number.parse()?, stamp.parse()?);
        let now = now.tv_sec * 1_000_000_000 + now.tv_nsec;
        arrivals.push((number, milliseconds(Duration::from_nanos(u64::try_from(now - stamp)?))));
    }
    Ok(arrivals)
}
