//! A policy file, as people write them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        agentos::fuzz::policy_file(text);
    }
});
