//! What comes over the socket that a VM's init holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    agentos_guest_protocol::fuzz::frame(bytes);
});
