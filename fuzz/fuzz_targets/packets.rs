//! What a guest puts on its network device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    agentos_netstack::stack::fuzz::packets(bytes);
});
