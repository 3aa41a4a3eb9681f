//! `agentos sessions`: what is kept of sessions, on this host and for this user, whichever sidecar they ran in.
//!
//! A session is named by its id, or by a beginning of it that no other session has.

mod export;
mod list;
mod markdown;
mod note;
mod show;

use std::path::PathBuf;

use agentos::{AgentOs, AgentOsSharedSidecarOptions, AgentOsSidecar, StoredSession};
use clap::{Args, Subcommand, ValueEnum};

use crate::chat;
use crate::failure::Failure;
use crate::guest::VmArgs;
use crate::terminal::{harmless_line, print};

#[derive(Debug, Args)]
#[command(after_help = "A session is named by its id, or by a beginning of it that no other session has.

Examples:
  agentos sessions list
  agentos sessions show 3f2a
  agentos sessions resume 3f2a --project .:rw
  agentos sessions export 3f2a --format markdown --output talk.md
  agentos sessions delete 3f2a")]
pub(crate) struct SessionsArgs {
    #[command(subcommand)]
    command: SessionsCommand,
}

#[derive(Debug, Subcommand)]
enum SessionsCommand {
    /// List the sessions that are kept, the newest first
    #[command(after_help = "Examples:
  agentos sessions list
  agentos sessions list --limit 500 --json")]
    List {
        /// At most so many
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
        /// One JSON object per session and line
        #[arg(long)]
        json: bool,
    },
    /// Show what was said and done in a session
    #[command(after_help = "Examples:
  agentos sessions show 3f2a | less -R")]
    Show {
        /// Its id, or the beginning of it
        #[arg(value_name = "SESSION")]
        session: String,
    },
    /// Go on with a conversation, in a new VM with the same directories
    #[command(after_help = "Examples:
  agentos sessions resume 3f2a --project .:rw
  agentos sessions resume 3f2a --storage ./state")]
    Resume {
        /// Its id, or the beginning of it
        #[arg(value_name = "SESSION")]
        session: String,
        #[command(flatten)]
        vm: Box<VmArgs>,
    },
    /// Write a session's transcript, to standard output or a file
    #[command(after_help = "Examples:
  agentos sessions export 3f2a > talk.jsonl
  agentos sessions export 3f2a --format markdown --output talk.md")]
    Export {
        /// Its id, or the beginning of it
        #[arg(value_name = "SESSION")]
        session: String,
        /// One JSON object per event and line, or a text to read
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        format: Format,
        /// Write to this file, which is made
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Let --output overwrite a file that is there
        #[arg(long, requires = "output")]
        force: bool,
    },
    /// Remove sessions: their transcripts and files; one that lives is ended first
    #[command(after_help = "Examples:
  agentos sessions delete 3f2a
  agentos sessions delete 3f2a 90bc17d2")]
    Delete {
        /// Their ids, or the beginnings of them
        #[arg(required = true, value_name = "SESSION")]
        sessions: Vec<String>,
    },
}

/// How a transcript is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// `{"sequenceNumber", "atMs", "notification"}` per line: everything, word for word
    #[default]
    Jsonl,
    /// The conversation
    Markdown,
}

pub(crate) async fn run(args: SessionsArgs) -> Result<u8, Failure> {
    let sidecar = AgentOs::get_shared_sidecar(AgentOsSharedSidecarOptions::default()).await?;
    match args.command {
        SessionsCommand::List { limit, json } => list::run(&sidecar, limit, json).await?,
        SessionsCommand::Show { session } => show::run(&sidecar, &find(&sidecar, &session).await?).await?,
        SessionsCommand::Resume { session, vm } => {
            chat::resume(&find(&sidecar, &session).await?, &vm).await?;
        }
        SessionsCommand::Export { session, format, output, force } => {
            let session = find(&sidecar, &session).await?;
            export::run(&sidecar, &session, format, output.map(|path| (path, force))).await?;
        }
        SessionsCommand::Delete { sessions } => delete(&sidecar, &sessions).await?,
    }
    Ok(0)
}

/// The one session whose id begins so.
async fn find(sidecar: &AgentOsSidecar, name: &str) -> Result<StoredSession, Failure> {
    let unknown = || Failure::NoSuchSession { name: name.to_owned() };
    if name.is_empty() {
        return Err(unknown());
    }
    let mut found = sidecar.stored_sessions().id_prefix(name).limit(2).await?.sessions;
    let whole = found.iter().position(|session| session.session_id == name);
    match (found.len(), whole) {
        (_, Some(whole)) => Ok(found.swap_remove(whole)),
        (0, None) => Err(unknown()),
        (1, None) => Ok(found.swap_remove(0)),
        _ => Err(Failure::AmbiguousSession { name: name.to_owned() }),
    }
}

async fn delete(sidecar: &AgentOsSidecar, names: &[String]) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for name in names {
        // One that can't be deleted is no reason to keep the others.
        let deleted = async {
            let session = find(sidecar, name).await?;
            sidecar.delete_session(&session.session_id).await?;
            Ok::<_, Failure>(session.session_id)
        };
        match deleted.await {
            Ok(id) => print(&format!("deleted {}\n", harmless_line(&id)))?,
            Err(failure) => {
                if let Err(earlier) = std::mem::replace(&mut outcome, Err(failure)) {
                    earlier.report();
                }
            }
        }
    }
    outcome
}
