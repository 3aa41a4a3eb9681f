//! Where secrets are put in.
