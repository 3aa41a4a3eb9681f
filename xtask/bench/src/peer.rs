//! Both ends of the connections that are measured.
//!
//! The near end is this program itself, started with [`PEER`] in a VM, in another program's network namespace and on the
//! host alike, so that the way is all that differs. It does one thing, prints a number per line and ends. The far end is a
//! [`Server`] in the bench.
//!
//! A connection begins with a byte that says what it is for:
//!
//! ```text
//! SINK    the near end sends until it ends its side; the far end answers with the number of bytes, 8 bytes
//! SOURCE  + milliseconds, 8 bytes: the far end sends for that long and closes
//! ECHO    everything comes back
//! ```

use crate::Failure;
use crate::host::{milliseconds, open_files_to_the_most};
use crate::names;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// The option that makes this program the near end.
pub(crate) const PEER: &str = "--peer";

const SINK: u8 = b'S';
const SOURCE: u8 = b'R';
const ECHO: u8 = b'E';

/// What is read and written at a time; the size that `iperf3` has.
const PIECE_BYTES: usize = 128 * 1024;

/// No way is so slow. What breaks off is a failure, never a bench that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The near end: what the words say.
pub(crate) fn run(words: &[String]) -> Result<Vec<f64>, Failure> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["send", address, ms] => Ok(vec![send(address.parse()?, ms.parse()?)?]),
        ["receive", address, ms] => Ok(vec![receive(address.parse()?, ms.parse()?)?]),
        ["connect", address, times] => (0..times.parse()?).map(|_: u32| connect(address.parse()?)).collect(),
        ["crowd", address, members] => Ok(vec![crowd(address.parse()?, members.parse()?)?]),
        ["ask", server, name, times] => ask(server.parse()?, name, times.parse()?),
        _ => Err(format!("{PEER} {}: unknown", words.join(" ")).into()),
    }
}

fn open(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Gigabits that leave in a second, counted where they arrive.
fn send(address: SocketAddr, ms: u64) -> Result<f64, Failure> {
    let mut stream = open(address)?;
    stream.write_all(&[SINK])?;
    let started = Instant::now();
    pour(&mut stream, Duration::from_millis(ms))?;
    stream.shutdown(Shutdown::Write)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    Ok(gigabits_per_second(u64::from_be_bytes(arrived), started.elapsed()))
}

/// Gigabits that arrive in a second.
fn receive(address: SocketAddr, ms: u64) -> Result<f64, Failure> {
    let mut stream = open(address)?;
    stream.write_all(&[SOURCE])?;
    let started = Instant::now();
    stream.write_all(&ms.to_be_bytes())?;
    let bytes = drain(&mut stream)?;
    Ok(gigabits_per_second(bytes, started.elapsed()))
}

/// Milliseconds from nothing to a connection on which a byte has been there and back.
fn connect(address: SocketAddr) -> Result<f64, Failure> {
    let started = Instant::now();
    let mut stream = open(address)?;
    stream.write_all(&[ECHO, 1])?;
    hear(&mut stream, 1)?;
    Ok(milliseconds(started.elapsed()))
}

/// How many of so many connections, all open at once, answer.
fn crowd(address: SocketAddr, members: usize) -> Result<f64, Failure> {
    open_files_to_the_most()?;
    let mut streams = (0..members).map(|_| open(address)).collect::<Result<Vec<_>, _>>()?;
    for stream in &mut streams {
        stream.write_all(&[ECHO, 1])?;
    }
    for stream in &mut streams {
        hear(stream, 1)?;
    }
    // All are still there when the last has answered.
    let mut answered = 0.0;
    for stream in &mut streams {
        stream.write_all(&[2])?;
        hear(stream, 2)?;
        answered += 1.0;
    }
    Ok(answered)
}

fn hear(stream: &mut TcpStream, word: u8) -> Result<(), Failure> {
    let mut heard = [0];
    stream.read_exact(&mut heard)?;
    if heard == [word] { Ok(()) } else { Err(format!("{heard:?} instead of {word}").into()) }
}

/// Milliseconds of each answer but the first, which nobody had ready.
fn ask(server: SocketAddr, name: &str, times: u16) -> Result<Vec<f64>, Failure> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    let mut answer = [0; 1500];
    let mut samples = Vec::new();
    for id in 0..=times {
        let query = names::query(id, name);
        let started = Instant::now();
        socket.send(&query)?;
        let length = socket.recv(&mut answer)?;
        samples.push(milliseconds(started.elapsed()));
        names::check_answer(id, answer.get(..length).unwrap_or_default())?;
    }
    Ok(samples.split_off(1))
}

/// Sends for so long.
fn pour(stream: &mut TcpStream, time: Duration) -> std::io::Result<()> {
    let piece = vec![0; PIECE_BYTES];
    let started = Instant::now();
    while started.elapsed() < time {
        stream.write_all(&piece)?;
    }
    Ok(())
}

/// Reads to the end; the number of bytes.
fn drain(stream: &mut TcpStream) -> std::io::Result<u64> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(bytes),
            length => bytes += length as u64,
        }
    }
}

fn gigabits_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64() / 1e9
}

/// The far end, on the host's loopback, until it is dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    task: AbortHandle,
}

impl Server {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // The near end tells what went wrong.
                connections.spawn(async move { drop(converse(stream).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, task: task.abort_handle() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(mut stream: tokio::net::TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        ECHO => {
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await?;
        }
        SINK => {
            let mut stream = blocking(stream)?;
            let sink = move || {
                let bytes = drain(&mut stream)?;
                stream.write_all(&bytes.to_be_bytes())
            };
            tokio::task::spawn_blocking(sink).await??;
        }
        SOURCE => {
            let time = Duration::from_millis(stream.read_u64().await?);
            let mut stream = blocking(stream)?;
            tokio::task::spawn_blocking(move || pour(&mut stream, time)).await??;
        }
        other => return Err(format!("connections for {other} are not served").into()),
    }
    Ok(())
}

/// Threads that do nothing else are the quickest far end there is.
fn blocking(stream: tokio::net::TcpStream) -> Result<TcpStream, Failure> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn near(words: String) -> Result<Vec<f64>, Failure> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        tokio::task::spawn_blocking(move || run(&words)).await.unwrap()
    }

    #[tokio::test]
    async fn both_ends_agree_on_what_passed() {
        let server = Server::start().await.unwrap();
        let address = format!("127.0.0.1:{}", server.port);
        assert!(near(format!("send {address} 20")).await.unwrap()[0] > 0.0);
        assert!(near(format!("receive {address} 20")).await.unwrap()[0] > 0.0);
        assert_eq!(near(format!("connect {address} 3")).await.unwrap().len(), 3);
        assert_eq!(near(format!("crowd {address} 20")).await.unwrap(), [20.0]);
    }

    #[tokio::test]
    async fn a_near_end_without_a_server_fails() {
        let server = Server::start().await.unwrap();
        let address = format!("127.0.0.1:{}", server.port);
        drop(server);
        assert!(near("connect 127.0.0.1:1 1".to_owned()).await.is_err());
        assert!(near(format!("dance {address}")).await.is_err());
    }

    #[tokio::test]
    async fn names_are_asked_once_more_than_there_are_samples() {
        let names = names::Names::start().await.unwrap();
        let samples = near(format!("ask {} cached.example 4", names.address)).await.unwrap();
        assert_eq!((samples.len(), names.asked()), (4, 5));
    }
}
