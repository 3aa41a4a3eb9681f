//! What the daemon is started with, and the paths that follow from it.
//!
//! [`Options`] is the wish of whoever starts the sidecar; [`Config`] is what came of it: every default decided,
//! every directory made and checked. Nothing below reads the environment.

#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use agentos_agents::{Home, HomeError};
use agentos_proto::rendezvous::{self, Rendezvous};

use crate::SidecarError;

/// How long a sidecar stays after its last client and its last kept VM are gone: a program that creates one VM
/// after another shall not pay for a new sidecar each time.
pub const DEFAULT_LINGER: Duration = Duration::from_millis(500);

/// The pool of clients that name none.
pub const DEFAULT_POOL: &str = "default";

/// What the caller of [`crate::run`] wishes. The default is a sidecar without a pool at its own path.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; absent means `NAME.sock` in the runtime directory.
    pub socket: Option<PathBuf>,
    /// The sidecar's id; absent means one is made.
    pub id: Option<String>,
    /// The pool it serves; absent makes an explicit sidecar, which belongs to the client that started it.
    pub pool: Option<String>,
    /// State directory; absent means `$AGENTOS_HOME`, else XDG's directories.
    pub home: Option<PathBuf>,
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { socket: None, id: None, pool: None, home: None, linger: DEFAULT_LINGER }
    }
}

/// Everything decided.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) socket: PathBuf,
    pub(crate) id: String,
    /// Empty for an explicit sidecar.
    pub(crate) pool: String,
    pub(crate) linger: Duration,
    /// Agents' state. A sidecar without one serves VMs; sessions fail and name the variables.
    pub(crate) home: Result<Home, HomeError>,
    /// Sockets, locks: gone after a restart of the host.
    pub(crate) runtime_dir: PathBuf,
}

impl Config {
    pub(crate) fn resolve(options: Options) -> Result<Self, SidecarError> {
        let pool = options.pool.unwrap_or_default();
        let id = options.id.unwrap_or_else(|| match pool.as_str() {
            "" => format!("agent-os-sidecar-{}", uuid::Uuid::new_v4()),
            pool => format!("agent-os-shared-sidecar:{pool}"),
        });
        let runtime_dir = rendezvous::default_directory();
        rendezvous::make_private(&runtime_dir)?;
        let socket = match options.socket {
            Some(path) => std::path::absolute(&path)
                .map_err(|source| SidecarError::Directory { path: path.clone(), source })?,
            None => {
                let name = if pool.is_empty() { &id } else { &pool };
                if !rendezvous::is_name(name) {
                    return Err(SidecarError::Name { name: name.clone() });
                }
                Rendezvous::new(&runtime_dir, name).socket
            }
        };
        let home = options.home.map_or_else(Home::from_env, |home| Ok(Home::new(home)));
        Ok(Self { socket, id, pool, linger: options.linger, home, runtime_dir })
    }
}

#[cfg(test)]
impl Config {
    /// What tests serve with, in a directory of theirs.
    pub(crate) fn under_test(pool: &str, directory: &Path) -> Self {
        Self {
            socket: directory.join("s.sock"),
            id: "sidecar-under-test".into(),
            pool: pool.into(),
            linger: Duration::ZERO,
            home: Ok(Home::new(directory.join("home"))),
            runtime_dir: directory.to_owned(),
        }
    }
}
