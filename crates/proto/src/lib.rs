//! The wire contract between SDKs and the sidecar, generated from `proto/agentos/v1/*.proto`.
//!
//! Nothing here is written by hand: change the contract in the `.proto` files. Every layer below and above uses
//! the same nouns, one file each: sidecar, vm, mount, process, filesystem, shell, network, session, error.

/// Version 1 of the contract.
pub mod v1 {
    #![allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
    tonic::include_proto!("agentos.v1");
}
