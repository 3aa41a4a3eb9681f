//! Why a transcript can't be written or read.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ffi;

/// A transcript can't be written or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TranscriptError {
    /// The database can't be opened, or not brought to this version's schema.
    #[error("opening {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The database can't be made private to its owner.
    #[error("making {}", path.display())]
    Create {
        /// The database.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A later agentOS has written the database. It is left as it is.
    #[error(
        "{} was written by a newer agentOS: its schema has version {found}, this one knows up to {known}", path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The latest version known here.
        known: i64,
    },
    /// An append was refused; nothing of it is kept.
    #[error("writing a transcript")]
    Write(#[source] Arc<rusqlite::Error>),
    /// Events that don't follow the last one: somebody else has written to the session, or it was deleted.
    #[error("event {found} of session {session} was to be kept where {expected} is next")]
    Sequence {
        /// The session.
        session: String,
        /// The number that is next.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// Nothing is kept of that session.
    #[error("no transcript of session {session} is kept")]
    UnknownSession {
        /// The session.
        session: String,
    },
    /// A page can't be read.
    #[error("reading a transcript")]
    Read(#[source] Arc<rusqlite::Error>),
    /// The session has kept all that it may.
    #[error("the session's transcript is full: it may hold {limit_bytes} bytes")]
    Full {
        /// The bound.
        limit_bytes: u64,
    },
    /// The writer has ended.
    #[error("the transcript writer has ended")]
    Ended,
}

impl TranscriptError {
    /// Whether another process held the database.
    pub(super) fn is_busy(&self) -> bool {
        let Self::Open { source, .. } = self else { return false };
        source.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
    }

    /// Whether there was no room: beyond the session's bound, or on the disk.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Write(error) | Self::Read(error) | Self::Open { source: error, .. } => no_room(error),
            Self::Create { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// SQLite says "full" where a page doesn't fit, and has a code of its own for the index of the log that can't grow.
fn no_room(error: &rusqlite::Error) -> bool {
    let Some(error) = error.sqlite_error() else { return false };
    error.code == rusqlite::ErrorCode::DiskFull || error.extended_code == ffi::SQLITE_IOERR_SHMSIZE
}
