//! Between messages and what the layers below take, one file per noun. A message is checked once, here; nothing below
//! sees one.

pub(crate) mod egress;
pub(crate) mod filesystem;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod policy;
pub(crate) mod process;
pub(crate) mod session;
pub(crate) mod sidecar;
pub(crate) mod tool;
pub(crate) mod vm;
