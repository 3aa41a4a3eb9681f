//! The file API against directories of this machine, each test with a root of its own.

mod deleting;
mod faults;
mod listing;
mod model;
mod moving;
mod overlays;
mod pooling;
mod races;
mod reading;
mod support;
mod writing;
