//! Where the state of agents lives on the host: one directory, named once.
//!
//! ```text
//! $AGENTOS_HOME, else $XDG_DATA_HOME/agentos, else ~/.local/share/agentos
//! ├── agents        the store: packages, downloads (see [`crate::store`])
//! ├── sessions      what is kept of a session in files, a directory each
//! └── sessions.db   the transcripts (see [`crate::transcript`])
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The directory that holds everything agents leave on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

/// No directory for agents' state can be named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HomeError {
    /// None of the three variables that could name it is set.
    #[error("no place for agents' state: set AGENTOS_HOME, XDG_DATA_HOME or HOME")]
    Unset,
    /// A relative directory would move with the working directory of whoever starts the sidecar.
    #[error("{variable} must be an absolute path: {}", path.display())]
    Relative {
        /// The variable that holds it.
        variable: &'static str,
        /// What it holds.
        path: PathBuf,
    },
}

impl Home {
    /// A home at a given absolute directory.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The home that the process's environment names.
    pub fn from_env() -> Result<Self, HomeError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// The home that an environment names; an empty variable counts as unset, as XDG wants it.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HomeError> {
        for (name, below) in
            [("AGENTOS_HOME", ""), ("XDG_DATA_HOME", "agentos"), ("HOME", ".local/share/agentos")]
        {
            let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
            let path = PathBuf::from(value);
            if !path.is_absolute() {
                return Err(HomeError::Relative { variable: name, path });
            }
            return Ok(Self::new(if below.is_empty() { path } else { path.join(below) }));
        }
        Err(HomeError::Unset)
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The agent store.
    #[must_use]
    pub fn agents_dir(&self) -> PathBuf {
        self.root.join("agents")
    }

    /// The transcripts.
    #[must_use]
    pub fn sessions_db(&self) -> PathBuf {
        self.root.join("sessions.db")
    }

    /// The directory of a session's files, which most have not. `None` for what is no session's id: it becomes part of
    /// a path.
    #[must_use]
    pub fn session_dir(&self, session: &str) -> Option<PathBuf> {
        let of_an_id = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        let is_id = !session.is_empty() && session.bytes().all(of_an_id);
        is_id.then(|| self.root.join("sessions").join(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(set: &[(&str, &str)]) -> Result<Home, HomeError> {
        Home::from_variables(|name| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn only_ids_of_sessions_are_names_of_directories() {
        let home = Home::new("/a");
        let id = crate::SessionId::new();
        assert_eq!(home.session_dir(id.as_str()), Some(PathBuf::from(format!("/a/sessions/{id}"))));
        for name in ["", "..", "../agents", "a/b", "/etc"] {
            assert_eq!(home.session_dir(name), None, "{name}");
        }
    }

    #[test]
    fn the_most_specific_variable_names_the_home() {
        let all = [("AGENTOS_HOME", "/a"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(home(&all).unwrap().root(), Path::new("/a"));
        assert_eq!(home(&all[1..]).unwrap().root(), Path::new("/x/agentos"));
        assert_eq!(home(&all[2..]).unwrap().root(), Path::new("/h/.local/share/agentos"));
        assert_eq!(
            home(&[("AGENTOS_HOME", ""), ("HOME", "/h")]).unwrap().root(),
            Path::new("/h/.local/share/agentos")
        );
        assert_eq!(home(&[]), Err(HomeError::Unset));
        assert!(matches!(home(&[("AGENTOS_HOME", "a/b")]), Err(HomeError::Relative { .. })));
    }
}
