//! The contract between SDKs and the sidecar: what they say to each other, and where they meet.
//!
//! The messages are generated from `proto/agentos/v1/*.proto`: change the contract there. Every layer below and above
//! uses the same nouns, one file each: sidecar, vm, mount, process, filesystem, shell, network, session, error. By hand
//! there is only [`rendezvous`], the files by which the two find each other, and what keeps a secret secret.

pub mod rendezvous;
mod secret;

/// Version 1 of the contract.
pub mod v1 {
    #![allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
    tonic::include_proto!("agentos.v1");
}
