//! Socket families and protocols: each is a part of the kernel of its own.

use crate::syscall::{call, number};
use crate::{Outcome, done};

pub(crate) fn attempt(words: &[&str]) -> Option<Outcome> {
    let outcome = match *words {
        ["socket", family, kind, protocol] => {
            done(call(libc::SYS_socket, &[self::family(family)?, self::kind(kind)?, number(protocol)]))
        }
        ["socketpair", family] => {
            let mut pair = [0i32; 2];
            let place = std::ptr::from_mut(&mut pair).addr() as u64;
            done(call(libc::SYS_socketpair, &[self::family(family)?, libc::SOCK_STREAM as u64, 0, place]))
        }
        ["ask-grpc", path] => ask(path),
        ["connect-unix", path] => {
            crate::io(std::os::unix::net::UnixStream::connect(path)).map(|_| "ok".to_owned())
        }
        _ => return None,
    };
    Some(outcome)
}

/// Whether a server of HTTP/2, which is what gRPC is made of, greets whoever connects.
fn ask(path: &str) -> Outcome {
    use std::io::{Read, Write};
    let mut stream = crate::io(std::os::unix::net::UnixStream::connect(path))?;
    // The client's preface and empty settings.
    crate::io(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"))?;
    let count = crate::io(stream.read(&mut [0; 64]))?;
    Ok(if count > 0 { "answered" } else { "hung up" }.to_owned())
}

fn family(name: &str) -> Option<u64> {
    let number = match name {
        "unix" => libc::AF_UNIX,
        "inet" => libc::AF_INET,
        "inet6" => libc::AF_INET6,
        "netlink" => libc::AF_NETLINK,
        "packet" => libc::AF_PACKET,
        "alg" => libc::AF_ALG,
        "vsock" => libc::AF_VSOCK,
        "xdp" => libc::AF_XDP,
        "key" => libc::AF_KEY,
        "can" => libc::AF_CAN,
        "tipc" => libc::AF_TIPC,
        "bluetooth" => libc::AF_BLUETOOTH,
        _ => return None,
    };
    Some(number as u64)
}

fn kind(name: &str) -> Option<u64> {
    let number = match name {
        "stream" => libc::SOCK_STREAM,
        "datagram" => libc::SOCK_DGRAM,
        "raw" => libc::SOCK_RAW,
        "seqpacket" => libc::SOCK_SEQPACKET,
        _ => return None,
    };
    Some(number as u64)
}
