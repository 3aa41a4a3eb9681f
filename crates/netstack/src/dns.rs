//! The VM's resolver.
