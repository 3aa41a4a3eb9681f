//! What this host can and can't do for VMs.
//!
//! [`facts`] looks at the host, [`table`] is a pure function from what was seen to the lines a user reads. The same
//! table answers `agentos doctor` and explains a create that failed because of the host, so the two never disagree.

mod facts;
mod table;

pub(crate) use facts::{Facts, Isolation, RefusedCall};
pub(crate) use table::{Facility, State, table, unsupported};
