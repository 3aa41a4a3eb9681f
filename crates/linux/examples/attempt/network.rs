//! Ways out over the network. What tells them apart is the errno, as any program would see it.
//!
//! Text to be sent has `\r` and `\n` in it as two characters each.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{Outcome, done, io};

/// After this long, nothing is going to come: an answer of its own, because a silent time-out is what must not be.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["resolve", name] => resolve(name),
        ["connect", address] => done(connect(address)),
        ["say", address, text] => say(address, text),
        ["say-twice", address, first, second] => say_twice(address, first, second),
        ["half-close", address, text] => half_close(address, text),
        ["hold", address] => hold(address),
        ["connect-many", address, count] => connect_many(address, count.parse().ok()?),
        ["flood", address, count] => flood(address, count.parse().ok()?),
        ["datagram", address, text] => datagram(address, text),
        ["ping", address] => ping(address),
        _ => return None,
    };
    Some(outcome)
}

/// All addresses of a name, sorted.
fn resolve(name: &str) -> Outcome {
    let Ok(found) = (name, 0).to_socket_addrs() else { return Ok("unresolved".to_owned()) };
    let mut addresses: Vec<String> = found.map(|address| address.ip().to_string()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses.join(","))
}

fn connect(address: &str) -> Result<TcpStream, Errno> {
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(|_| Errno::NXIO)?.collect();
    let stream = io(TcpStream::connect(addresses.as_slice()))?;
    io(stream.set_read_timeout(Some(PATIENCE)))?;
    Ok(stream)
}

fn unescaped(text: &str) -> Vec<u8> {
    text.replace("\\r", "\r").replace("\\n", "\n").into_bytes()
}

/// The first line of the answer.
fn say(address: &str, text: &str) -> Outcome {
    let mut stream = connect(address)?;
    io(stream.write_all(&unescaped(text)))?;
    first_line(&mut stream)
}

/// The first lines of both answers, on one connection.
fn say_twice(address: &str, first: &str, second: &str) -> Outcome {
    let mut stream = connect(address)?;
    io(stream.write_all(&unescaped(first)))?;
    let one = first_line(&mut stream)?;
    let then = io(stream.write_all(&unescaped(second))).and_then(|()| first_line(&mut stream));
    let other = then.unwrap_or_else(crate::errno::name);
    Ok(format!("{one} / {other}"))
}

/// What came with one reading, up to the end of its line.
fn first_line(stream: &mut impl Read) -> Outcome {
    let mut buffer = vec![0; 64 * 1024];
    let count = match io(stream.read(&mut buffer)) {
        Ok(0) => return Ok("end".to_owned()),
        Err(Errno::AGAIN) => return Ok("silence".to_owned()),
        result => result?,
    };
    let text = String::from_utf8_lossy(&buffer[..count]);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Sends, ends its own direction, and only then reads what comes, to the end.
fn half_close(address: &str, text: &str) -> Outcome {
    let mut stream = connect(address)?;
    io(stream.write_all(&unescaped(text)))?;
    io(stream.shutdown(Shutdown::Write))?;
    let mut answer = String::new();
    io(stream.read_to_string(&mut answer))?;
    Ok(answer.trim_end().to_owned())
}

/// Says on a line of its own that it is connected, then how the connection ended.
fn hold(address: &str) -> Outcome {
    let mut stream = connect(address)?;
    io(stream.set_read_timeout(None))?;
    io(writeln!(std::io::stdout(), "connected"))?;
    loop {
        match io(stream.read(&mut [0; 1024])) {
            Ok(0) => return Ok("end".to_owned()),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// All connections at once; each then gets its own number back.
fn connect_many(address: &str, count: usize) -> Outcome {
    let streams: Vec<TcpStream> = (0..count).map(|_| connect(address)).collect::<Result<_, _>>()?;
    let mut answered = 0;
    for (number, mut stream) in streams.iter().enumerate() {
        io(stream.write_all(format!("{number}\n").as_bytes()))?;
    }
    for (number, stream) in streams.into_iter().enumerate() {
        let mut stream = stream;
        answered += usize::from(first_line(&mut stream)? == number.to_string());
    }
    Ok(answered.to_string())
}

/// Begins connections and looks after none of them.
fn flood(address: &str, count: usize) -> Outcome {
    let address: SocketAddr = address.parse().map_err(|_| Errno::NXIO)?;
    let mut begun = 0;
    for _ in 0..count {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        begun +=
            usize::from(matches!(rustix::net::connect(&socket, &address), Err(Errno::INPROGRESS) | Ok(())));
    }
    Ok(begun.to_string())
}

/// The answer to one datagram.
fn datagram(address: &str, text: &str) -> Outcome {
    let address = address.to_socket_addrs().ok().and_then(|mut all| all.next()).ok_or(Errno::NXIO)?;
    let own = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = io(UdpSocket::bind(own))?;
    io(socket.set_read_timeout(Some(PATIENCE)))?;
    io(socket.connect(address))?;
    io(socket.send(&unescaped(text)))?;
    let mut buffer = [0; 2048];
    match io(socket.recv(&mut buffer)) {
        Ok(count) => Ok(String::from_utf8_lossy(&buffer[..count]).into_owned()),
        Err(Errno::AGAIN) => Ok("silence".to_owned()),
        Err(errno) => Err(errno),
    }
}

/// An echo request through the kind of socket that needs no privilege. The kernel writes identifier and checksum.
fn ping(address: &str) -> Outcome {
    let address: SocketAddr = format!("{address}:0").parse().map_err(|_| Errno::NXIO)?;
    let protocol = Some(rustix::net::ipproto::ICMP);
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
    rustix::net::connect(&socket, &address)?;
    rustix::net::send(&socket, b"\x08\0\0\0\0\0\0\x01are you there", SendFlags::empty())?;
    let mut buffer = [0; 256];
    match rustix::net::recv(&socket, &mut buffer, RecvFlags::empty()) {
        Ok((count, _)) if buffer[..count].ends_with(b"are you there") => Ok("ok".to_owned()),
        Ok(_) => Ok("another answer".to_owned()),
        Err(Errno::AGAIN) => Ok("silence".to_owned()),
        Err(errno) => Err(errno),
    }
}
