//! The way out of the VM: a TUN interface whose other end the sidecar has.

use std::os::fd::{AsFd, OwnedFd};

use agentos_guest_protocol::launcher::{BootFailure, IdRange};
use agentos_guest_protocol::network::{self, Uplink};
use agentos_linux::network as linux;

use crate::launcher;
use crate::wire::failure;

/// The name that images and scripts expect.
const INTERFACE: &str = "eth0";

/// The uplink while it is nothing but an open device, or the reason why it isn't.
#[derive(Debug)]
pub(crate) struct Device {
    opened: Result<OwnedFd, BootFailure>,
    uplink: Uplink,
}

impl Device {
    pub(crate) fn open(ids: IdRange, uplink: Uplink) -> Self {
        let path = launcher::tun(ids);
        Self { opened: linux::open_tun(path).map_err(|errno| failure("open", path, errno)), uplink }
    }

    /// Makes the interface. A VM whose interface can't be made is whole in everything else, so that the sidecar decides.
    pub(crate) fn connect(self) -> (Result<(), BootFailure>, Option<OwnedFd>) {
        let interface = linux::Interface {
            name: INTERFACE,
            mtu: network::MTU,
            address: network::GUEST,
            prefix: network::PREFIX,
            gateway: network::GATEWAY,
            v6: self
                .uplink
                .v6
                .then_some(linux::InterfaceV6 { address: network::GUEST_V6, prefix: network::PREFIX_V6 }),
        };
        let connected = self.opened.and_then(|device| {
            linux::attach_tun(device.as_fd(), INTERFACE)
                .map_err(|errno| failure("make TUN interface", INTERFACE, errno))?;
            linux::configure(&interface).map_err(|errno| failure("configure interface", INTERFACE, errno))?;
            Ok(device)
        });
        match connected {
            Ok(device) => (Ok(()), Some(device)),
            Err(failure) => (Err(failure), None),
        }
    }
}
