//! The first bytes of a connection, of which a policy by name reads the server's name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    agentos_netstack::sniff::fuzz::first_words(bytes);
});
