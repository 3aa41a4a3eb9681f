//! From the name that was asked for to its records, alias by alias.
//!
//! A recursive server sends the whole chain at once, others send a link. Only what belongs to the chain is taken from a
//! message: each record's owner is the name that was asked for or the end of its aliases so far. What else a server
//! says is not passed on, and so neither pinned nor believed.

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::Semaphore;

use super::message::Reply;
use super::upstream::{Found, Servers};
use super::{MAX_RECORDS, MAX_TTL, MIN_TTL, MayAsk, host_name};

/// Aliases between a name and its records. Real chains have a handful; one that never ends is some loop.
const MAX_ALIASES: usize = 16;

/// What following a chain needs.
pub(super) struct Walk<'a> {
    pub(super) servers: &'a Servers,
    /// One permit for each query of the VM that waits for a server.
    pub(super) waiting: &'a Semaphore,
    pub(super) may_follow: MayAsk<'a>,
}

/// Why a chain has no end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It leads through a name that the policy refuses.
    Denied,
    /// Too many queries of this VM wait already.
    Busy,
    /// No server has an answer, or it makes no sense.
    Failed,
}

impl Walk<'_> {
    /// Asks until there are records or it is certain that there are none. The name itself has been allowed.
    pub(super) async fn follow(&self, question: &Query) -> Result<Reply, Stop> {
        let kind = question.query_type();
        let mut answers = Vec::new();
        let mut name = question.name().to_lowercase();
        loop {
            let found = self.ask(&Query::query(name.clone(), kind)).await?;
            let end = self.aliases(&found, name.clone(), kind, &mut answers)?;
            let before = answers.len();
            let asked_for = |record: &&Record| record.name == end && record.record_type() == kind;
            answers.extend(found.answers.iter().filter(asked_for).take(MAX_RECORDS).map(tamed));
            let certain = found.code == ResponseCode::NXDomain || found.authority.is_some() || end == name;
            if answers.len() > before {
                return Ok(Reply::records(answers));
            }
            if certain {
                let authority = found.authority.as_ref().map(tamed);
                return Ok(Reply { code: found.code, answers, authority });
            }
            name = end;
        }
    }

    async fn ask(&self, query: &Query) -> Result<Found, Stop> {
        if let Some(found) = self.servers.cached(query) {
            return Ok(found);
        }
        let _permit = self.waiting.try_acquire().map_err(|_| Stop::Busy)?;
        self.servers.ask(query).await.ok_or(Stop::Failed)
    }

    /// Moves the aliases in what was found over to the answer; gives the name that they lead to.
    fn aliases(
        &self,
        found: &Found,
        mut name: Name,
        kind: RecordType,
        answers: &mut Vec<Record>,
    ) -> Result<Name, Stop> {
        if kind == RecordType::CNAME {
            return Ok(name);
        }
        loop {
            let alias = found.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == name => Some((record, &target.0)),
                _ => None,
            });
            let Some((record, target)) = alias else {
                return Ok(name);
            };
            if !host_name(target).is_some_and(|target| (self.may_follow)(&target)) {
                return Err(Stop::Denied);
            }
            if answers.len() == MAX_ALIASES {
                return Err(Stop::Failed);
            }
            answers.push(tamed(record));
            name = target.to_lowercase();
        }
    }
}

/// The record with a life within our bounds.
fn tamed(record: &Record) -> Record {
    let mut record = record.clone();
    record.ttl = record.ttl.clamp(MIN_TTL, MAX_TTL);
    record
}
