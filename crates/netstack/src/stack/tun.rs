//! The device whose other end is the VM's interface: a descriptor that gives and takes one packet at a time.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// What the kernel puts before every packet and wants before every packet: `struct virtio_net_hdr`.
pub(super) const HEADER_BYTES: usize = 10;

/// "The checksum is still to be made, from here, and goes there." Who receives such a packet on the same machine takes it
/// for right: it was never anywhere but in memory.
const NEEDS_CHECKSUM: u8 = 1;

/// The header for a packet of ours, which has no IP options.
fn header(packet: &[u8]) -> [u8; HEADER_BYTES] {
    let (start, protocol) = match packet.first().map(|byte| byte >> 4) {
        Some(4) => (20, packet.get(9)),
        _ => (40, packet.get(6)),
    };
    let offset: u16 = match protocol {
        Some(6) => 16,
        Some(17) => 6,
        // The rest have checksums of their own.
        _ => return [0; HEADER_BYTES],
    };
    let [start, offset] = [start, offset].map(u16::to_ne_bytes);
    [NEEDS_CHECKSUM, 0, 0, 0, 0, 0, start[0], start[1], offset[0], offset[1]]
}

/// Registers a non-blocking descriptor that is waited for to be readable.
#[expect(
    deprecated,
    reason = "the successor is unsafe for types that may lie about their descriptor; OwnedFd can't"
)]
pub(super) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// A device with packets to read.
pub(super) struct Ready<'a> {
    guard: AsyncFdReadyGuard<'a, OwnedFd>,
}

impl Ready<'_> {
    /// Reads the next packet with its header; None: there is none now.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        self.guard
            .try_io(|device| Ok(rustix::io::retry_on_intr(|| rustix::io::read(device, &mut *buffer))?))
            .ok()
    }
}

#[derive(Debug)]
pub(super) struct Tun {
    device: AsyncFd<OwnedFd>,
}

impl Tun {
    /// `device` is non-blocking.
    pub(super) fn new(device: OwnedFd) -> io::Result<Self> {
        Ok(Self { device: readable(device)? })
    }

    /// Waits for packets of the guest. [`Ready::try_read`] gives them, until there is none.
    pub(super) async fn readable(&self) -> io::Result<Ready<'_>> {
        Ok(Ready { guard: self.device.readable().await? })
    }

    /// Writes a packet that stands behind room for the header. The interface takes what it gets at once; what it
    /// doesn't want, because it is down or out of memory, is lost as it would be on a wire.
    pub(super) fn write(&self, framed: &mut [u8]) {
        if let Some((room, packet)) = framed.split_at_mut_checked(HEADER_BYTES) {
            room.copy_from_slice(&header(packet));
        }
        loop {
            match rustix::io::write(&self.device, framed) {
                Err(Errno::INTR) => {}
                Ok(_) => return,
                Err(error) => return tracing::trace!(%error, "packet to the guest is lost"),
            }
        }
    }

    /// Writes a packet without room for a header.
    pub(super) fn write_packet(&self, packet: &[u8]) {
        let mut framed = Vec::with_capacity(HEADER_BYTES + packet.len());
        framed.extend_from_slice(&[0; HEADER_BYTES]);
        framed.extend_from_slice(packet);
        self.write(&mut framed);
    }
}
