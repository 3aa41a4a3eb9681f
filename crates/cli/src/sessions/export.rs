//! `agentos sessions export`: a transcript, event by event, to standard output or a file.
//!
//! A file appears whole or not at all, and its owner alone reads it, as with the transcripts that it comes from.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use agentos::{AgentOsSidecar, SessionEvent, StoredSession};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use super::Format;
use super::markdown::Markdown;
use crate::failure::Failure;
use crate::terminal::{json_line, print};

/// Written at once: a transcript may have a million events.
const PRINTED_BYTES: usize = 64 << 10;

pub(super) async fn run(
    sidecar: &AgentOsSidecar,
    session: &StoredSession,
    format: Format,
    output: Option<(PathBuf, bool)>,
) -> Result<(), Failure> {
    let mut target = match output {
        None => Target::Stdout(String::new()),
        Some((path, force)) => Target::File(Draft::begin(path, force)?),
    };
    let mut markdown = Markdown::default();
    if format == Format::Markdown {
        target.write(&markdown.head(session))?;
    }
    let mut events = sidecar.read_history(&session.session_id).events();
    while let Some(event) = events.next().await {
        let event = event?;
        target.write(&match format {
            Format::Jsonl => line(&event),
            Format::Markdown => markdown.event(&event),
        })?;
    }
    target.write(&markdown.end())?;
    target.finish()
}

fn line(event: &SessionEvent) -> String {
    json_line(&json!({
        "sequenceNumber": event.sequence_number,
        "atMs": event.at_ms,
        "notification": event.notification,
    }))
}

#[derive(Debug)]
enum Target {
    Stdout(String),
    File(Draft),
}

impl Target {
    fn write(&mut self, text: &str) -> Result<(), Failure> {
        match self {
            Self::Stdout(waiting) => {
                waiting.push_str(text);
                if waiting.len() >= PRINTED_BYTES {
                    print(&std::mem::take(waiting))?;
                }
                Ok(())
            }
            Self::File(draft) => {
                draft.file.write_all(text.as_bytes()).map_err(|source| failed(&draft.path, source))
            }
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(waiting) => print(&waiting),
            Self::File(draft) => draft.publish(),
        }
    }
}

fn failed(path: &Path, source: io::Error) -> Failure {
    Failure::Export { path: path.to_owned(), source }
}

/// A file that is being written, under another name beside its own. Dropped, it is gone.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
    beside: PathBuf,
    file: BufWriter<File>,
    force: bool,
}

impl Draft {
    fn begin(path: PathBuf, force: bool) -> Result<Self, Failure> {
        // Said before the work, where it can be; it is looked at again at the end.
        if !force && path.symlink_metadata().is_ok() {
            return Err(Failure::ExportExists { path });
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let beside = path.with_file_name(name);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        let file = BufWriter::new(opened.map_err(|source| failed(&path, source))?);
        Ok(Self { path, beside, file, force })
    }

    fn publish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|source| failed(&self.path, source))?;
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.beside, CWD, &self.path, flags) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => Err(Failure::ExportExists { path: self.path.clone() }),
            Err(errno) => Err(failed(&self.path, errno.into())),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once it is published nothing has that name.
        let _ = std::fs::remove_file(&self.beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("talk.md");
        let names = || std::fs::read_dir(place.path()).unwrap().count();
        let mut cut = Draft::begin(path.clone(), false).unwrap();
        cut.file.write_all(b"half").unwrap();
        drop(cut);
        assert_eq!(names(), 0);
        let mut whole = Target::File(Draft::begin(path.clone(), false).unwrap());
        whole.write("all").unwrap();
        whole.finish().unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names()), ("all", 1));
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o077, 0, "a transcript is its owner's");
    }

    #[test]
    fn a_file_that_is_there_stays_unless_it_may_go() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("talk.md");
        let late = Draft::begin(path.clone(), false).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        assert!(matches!(late.publish(), Err(Failure::ExportExists { .. })));
        assert!(matches!(Draft::begin(path.clone(), false), Err(Failure::ExportExists { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
        let mut forced = Draft::begin(path.clone(), true).unwrap();
        forced.file.write_all(b"ours").unwrap();
        forced.publish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "ours");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
