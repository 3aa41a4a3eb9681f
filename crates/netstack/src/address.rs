//! Which addresses are whose.
