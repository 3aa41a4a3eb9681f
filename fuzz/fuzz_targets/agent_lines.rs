//! What an agent writes to its output.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    agentos_agents::wire::fuzz::agent_lines(bytes);
});
