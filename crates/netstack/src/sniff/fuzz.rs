//! What must hold for the first bytes of a connection, whatever they are. Fuzz targets bring bytes that a fuzzer makes
//! up, the tests beside this their own.

use tokio_rustls::rustls::server::Acceptor;

use super::{MAX_SNIFF_BYTES, Sniffed, Wire, sniff};
use crate::name::HostName;

/// Reads whose ends are all looked at; of longer ones, only some.
const ALL_CUTS_BYTES: usize = 512;

/// # Panics
///
/// If the name depends on the cuts, or is another one to a TLS server.
pub fn first_words(bytes: &[u8]) {
    let whole = sniff(bytes);
    let step = (bytes.len() / ALL_CUTS_BYTES).max(1);
    for end in (0..bytes.len()).step_by(step) {
        let early = sniff(&bytes[..end]);
        assert!(
            early == Sniffed::Incomplete || early == whole,
            "{early:?} after {end} bytes, then {whole:?}"
        );
    }
    match &whole {
        Sniffed::Incomplete => assert!(bytes.len() < MAX_SNIFF_BYTES, "it is waited for without end"),
        Sniffed::Name(name, wire) => {
            assert_eq!(HostName::parse(name.as_str()).as_ref(), Ok(name));
            assert_ne!(*wire, Wire::Unknown, "a name was found in an unknown language");
            if *wire == Wire::Tls
                && let Some(heard) = name_that_a_server_hears(bytes)
            {
                assert_eq!(heard.as_ref(), Some(name), "a server hears another name");
            }
        }
        Sniffed::Nameless(_) => {}
    }
}

/// The name in the hello as rustls reads it; `None` if that takes the bytes for no whole hello.
fn name_that_a_server_hears(mut bytes: &[u8]) -> Option<Option<HostName>> {
    let mut acceptor = Acceptor::default();
    while acceptor.read_tls(&mut bytes).is_ok_and(|read| read > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Some(hello.server_name().and_then(|name| HostName::parse(name).ok()));
            }
            Err(_) => return None,
        }
    }
    None
}
