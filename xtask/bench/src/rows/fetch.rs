//! HTTP to a server in a VM: this program itself, so that it is our way to it that is measured.

use super::network::with_program;
use crate::figure::{Figure, Limit, MEDIAN};
use crate::host::milliseconds;
use crate::{Bench, Failure};
use agentos::{AgentOs, AgentOsOptions, Body};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

/// The option that makes this program the server.
pub(crate) const SERVE: &str = "--serve";

const PORT: u16 = 8000;
const SMALL_BYTES: usize = 2;
const LARGE_BYTES: usize = 1024 * 1024;

struct Row {
    name: &'static str,
    path: &'static str,
    bytes: usize,
    limit_ms: f64,
    samples: usize,
}

const ROWS: &[Row] = &[
    Row { name: "fetch, small answer", path: "/small", bytes: SMALL_BYTES, limit_ms: 0.8, samples: 1000 },
    // 500 MiB/s.
    Row { name: "fetch 1 MiB", path: "/large", bytes: LARGE_BYTES, limit_ms: 2.0, samples: 300 },
];

pub(crate) async fn measure(bench: &mut Bench) -> Result<(), Failure> {
    let rows: Vec<&Row> = ROWS.iter().filter(|row| bench.wants(row.name)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let vm = server(bench.options()).await?;
    for row in rows {
        let mut samples = Vec::new();
        for _ in 0..bench.samples(row.samples) {
            let request = http_get(row.path)?;
            let started = Instant::now();
            let body = vm.fetch(PORT, request).await?.into_body().into_bytes().await?;
            samples.push(milliseconds(started.elapsed()));
            if body.len() != row.bytes {
                return Err(format!("{}: {} bytes", row.path, body.len()).into());
            }
        }
        bench.record(Figure::milliseconds(row.name, samples).limit(MEDIAN, Limit::AtMost(row.limit_ms)));
    }
    vm.dispose().await?;
    Ok(())
}

fn http_get(path: &str) -> Result<http::Request<Body>, Failure> {
    Ok(http::Request::get(path).body(Body::empty())?)
}

/// A VM that runs this program.
async fn server(options: AgentOsOptions) -> Result<AgentOs, Failure> {
    let (vm, program) = with_program(options).await?;
    vm.spawn(program, [SERVE]).await?;
    vm.wait_for_port(PORT).await?;
    Ok(vm)
}

/// Answers requests until something goes wrong.
pub(crate) fn serve() {
    let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)) else { return };
    let (small, large) = (answer(SMALL_BYTES), answer(LARGE_BYTES));
    for stream in listener.incoming().flatten() {
        // One after the other, as they come; a client that goes away is no matter.
        let _ = converse(&stream, &small, &large);
    }
}

fn answer(bytes: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; bytes]].concat()
}

fn converse(mut stream: &TcpStream, small: &[u8], large: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
        }
        stream.write_all(if request.contains("/large") { large } else { small })?;
    }
}
