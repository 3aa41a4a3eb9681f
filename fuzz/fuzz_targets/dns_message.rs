//! What a guest asks its resolver, and what a name server answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    agentos_netstack::dns::fuzz::query(bytes);
    agentos_netstack::dns::fuzz::upstream(bytes);
});
