//! What may leave a VM.
