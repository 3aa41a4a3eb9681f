//! Heads of requests and answers on their way through the border.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    agentos_netstack::sniff::fuzz::first_words(bytes);
    agentos_netstack::border::fuzz::request_head(bytes);
    agentos_netstack::border::fuzz::answer_head(bytes);
});
