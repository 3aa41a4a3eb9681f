//! Ranges of host ids for VMs.
use std::io;
use std::path::Path;

use agentos_guest_protocol::launcher::{IdMode, IdRange};

/// The ranges one sidecar can give out.
#[derive(Debug, Clone)]
pub struct IdPool;

/// One VM's ids, free again when dropped.
#[derive(Debug)]
pub struct IdLease;

impl IdPool {
    pub fn open(_directory: &Path, _mode: IdMode) -> io::Result<Self> {
        todo!()
    }
    pub fn lease(&self) -> io::Result<IdLease> {
        todo!()
    }
}

impl IdLease {
    pub fn range(&self) -> IdRange {
        todo!()
    }
}
