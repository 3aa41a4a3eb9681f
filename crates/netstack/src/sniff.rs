//! The name that a connection says it is for.
