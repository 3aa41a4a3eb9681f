//! The host's end of the launcher.
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use agentos_guest_protocol::launcher::{BootFailure, HostFindings};

/// A launcher process; VMs are made through it and die with it.
#[derive(Debug, Clone)]
pub struct Launcher;

/// Why a launcher can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    #[error("launcher can't work on this host: {}", crate::errno::describe(.0))]
    Unsupported(BootFailure),
    #[error("launcher died before it had started")]
    Died(#[source] LauncherDeath),
    #[error("id ranges can't be leased")]
    Ids(#[source] std::io::Error),
    #[error("launcher's socket can't be used")]
    Socket(#[source] std::io::Error),
}

/// Why a launcher is no more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LauncherDeath {
    #[error("launcher hung up")]
    HungUp,
    #[error("launcher broke the protocol")]
    Protocol(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl Launcher {
    pub async fn connect(_socket: OwnedFd, _runtime_directory: &Path) -> Result<Self, LauncherError> {
        todo!()
    }
    pub fn findings(&self) -> &HostFindings {
        todo!()
    }
    pub async fn died(&self) -> LauncherDeath {
        todo!()
    }
}
