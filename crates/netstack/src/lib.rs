//! The network of one VM, in user space.
//!
//! The VM's kernel routes everything to one TUN device. Its packets come here: TCP connections end in a small TCP
//! stack and are carried on by sockets of the host, datagrams likewise, and names are answered by a resolver of our
//! own. Nothing leaves before the [egress policy](policy) has been asked, and whatever it refuses is refused in the
//! guest at once and told to the host.
//!
//! In reading order:
//!
//! - [`name`]: host names, parsed once
//! - [`address`]: which addresses are whose
//! - [`policy`]: what may leave, as a pure function
//! - [`pins`]: which names led to which addresses
//! - [`sniff`]: the name that a connection says it is for
//! - [`dns`]: the resolver
//! - [`border`]: where secrets are put in
//! - [`event`]: what the host is told
//! - [`stack`]: packets, and the connections that they make
//!
//! The crate knows neither VMs nor the wire of the sidecar.

pub mod address;
pub mod border;
pub mod dns;
pub mod event;
pub mod name;
pub mod pins;
pub mod policy;
pub mod sniff;
pub mod stack;
