use std::sync::Arc;

use proptest::prelude::*;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, crypto, pki_types};

use super::*;

fn named(name: &str, wire: Wire) -> Sniffed {
    Sniffed::Name(HostName::parse(name).unwrap(), wire)
}

/// What a real client sends first.
fn hello_of_rustls(server: &str) -> Vec<u8> {
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let server = pki_types::ServerName::try_from(server.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), server).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

fn vector_16(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    [&length.to_be_bytes(), content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), vector_16(content).as_slice()].concat()
}

/// The content of a server name extension with these entries.
fn names(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let entries = entries.iter().map(|(kind, name)| [&[*kind], vector_16(name).as_slice()].concat());
    vector_16(&entries.collect::<Vec<_>>().concat())
}

/// A handshake message, without records around it.
fn hello(extensions: &[u8]) -> Vec<u8> {
    let suites = vector_16(&[0x13, 1]);
    let body = [&[3, 3], &[7_u8; 32][..], &[0], &suites, &[1, 0], &vector_16(extensions)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[CLIENT_HELLO], &length[1..], &body].concat()
}

/// The message in records of these sizes, the last as large as needed.
fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut rest = message;
    let mut bytes = Vec::new();
    for size in sizes.iter().copied().chain([MAX_RECORD_BYTES]) {
        let (fragment, after) = rest.split_at(size.min(rest.len()));
        if !fragment.is_empty() {
            bytes.extend([CONTENT_HANDSHAKE, 3, 1]);
            bytes.extend(vector_16(fragment));
        }
        rest = after;
    }
    bytes
}

fn simple_hello(name: &str) -> Vec<u8> {
    hello(&extension(EXTENSION_SERVER_NAME, &names(&[(NAME_TYPE_HOST, name.as_bytes())])))
}

/// Hands over the bytes cut as told, as reads of a socket would, until there is an answer.
fn sniff_in_pieces(bytes: &[u8], pieces: &[usize]) -> Sniffed {
    let mut end = 0_usize;
    for piece in pieces.iter().copied().chain([usize::MAX]) {
        end = end.saturating_add(piece).min(bytes.len());
        let sniffed = sniff(&bytes[..end]);
        if sniffed != Sniffed::Incomplete {
            return sniffed;
        }
    }
    Sniffed::Incomplete
}

#[test]
fn a_tls_client_says_its_server() {
    assert_eq!(sniff(&hello_of_rustls("API.example.com")), named("api.example.com", Wire::Tls));
    // A client that connects to an address sends no name.
    assert_eq!(sniff(&hello_of_rustls("203.0.113.7")), Sniffed::Nameless(Wire::Tls));
}

#[test]
fn what_follows_a_hello_does_not_matter() {
    let bytes = [records(&simple_hello("a.example"), &[]), b"early data".to_vec()].concat();
    assert_eq!(sniff(&bytes), named("a.example", Wire::Tls));
}

#[test]
fn a_hello_with_more_than_one_name_has_none() {
    let (one, two) = ((NAME_TYPE_HOST, &b"a.example"[..]), (NAME_TYPE_HOST, &b"b.example"[..]));
    let twice = [extension(0, &names(&[one])), extension(0, &names(&[two]))].concat();
    for extensions in [extension(0, &names(&[one, two])), twice, extension(0, &names(&[(1, b"a.example")]))] {
        assert_eq!(sniff(&records(&hello(&extensions), &[])), Sniffed::Nameless(Wire::Tls));
    }
}

#[test]
fn a_name_that_is_none_is_not_guessed() {
    for name in ["", "127.0.0.1", "a b", "a.example\0.b.example", "*.example"] {
        assert_eq!(sniff(&records(&simple_hello(name), &[])), Sniffed::Nameless(Wire::Tls), "{name:?}");
    }
}

#[test]
fn malformed_tls_has_no_name() {
    let sound = simple_hello("a.example");
    let mut longer_than_its_parts = [sound.as_slice(), &[0]].concat();
    longer_than_its_parts[3] += 1;
    let mut no_hello = sound.clone();
    no_hello[0] = 2;
    let endless = [CLIENT_HELLO, 0xff, 0xff, 0xff];
    for message in [&longer_than_its_parts, &no_hello, &endless[..]] {
        assert_eq!(sniff(&records(message, &[])), Sniffed::Nameless(Wire::Tls), "{message:?}");
    }
    // An empty record, one that is too long, and an alert in the middle of a hello.
    let alert = [records(&sound, &[])[..5].to_vec(), vec![0; 46], vec![21]].concat();
    let mut cut = records(&sound, &[8])[..13].to_vec();
    cut.push(21);
    assert_ne!(sniff(&alert), Sniffed::Incomplete);
    for bytes in [&[22, 3, 1, 0, 0][..], &[22, 3, 1, 0x40, 1], &cut] {
        assert_eq!(sniff(bytes), Sniffed::Nameless(Wire::Tls), "{bytes:?}");
    }
}

#[test]
fn a_request_says_its_host() {
    for (request, host) in [
        ("GET / HTTP/1.1\r\nHost: A.Example\r\n\r\n", "a.example"),
        ("POST /x HTTP/1.1\r\nAccept: */*\r\nhost:\ta.example:8080 \r\n\r\nHost: b.example", "a.example"),
        ("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example"),
        ("GET http://a.example/b HTTP/1.1\r\nHost: a.example:80\r\n\r\n", "a.example"),
        ("M-SEARCH / HTTP/1.0\r\nHost: a.example.\r\n\r\n", "a.example"),
    ] {
        assert_eq!(sniff(request.as_bytes()), named(host, Wire::Http), "{request}");
    }
}

#[test]
fn a_request_that_servers_may_read_differently_has_no_host() {
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHOST: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: b.example@a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example:80:90\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
        "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET http://a.example@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ] {
        assert_eq!(sniff(request.as_bytes()), Sniffed::Nameless(Wire::Http), "{request}");
    }
}

#[test]
fn a_hello_behind_another_record_has_no_name() {
    for record in [&[21, 3, 1, 0, 2, 1, 90][..], &[20, 3, 1, 0, 1, 1]] {
        let bytes = [record, &records(&simple_hello("a.example"), &[])].concat();
        assert_eq!(sniff(&bytes), Sniffed::Nameless(Wire::Tls));
    }
}

#[test]
fn a_request_is_one_to_whichever_server_would_take_it() {
    for request in [
        "GET / HTTP/1.9\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.01\r\nHost: a.example\r\n\r\n",
        "GET / http/1.1\r\nHost: a.example\r\n\r\n",
        "GET\t/\tHTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / now HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "\r\n\nGET / HTTP/3.0 \r\n",
        " GET  /  HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET /a b\r\n",
        "GET /path\r\n",
    ] {
        assert_eq!(sniff(request.as_bytes()), Sniffed::Nameless(Wire::Http), "{request}");
    }
    for request in ["\r\nGET / HTTP/1.1\r\n", "Get / HTTP/1.1\r\n", "X-1.a / HTTP/1.1\r\n"] {
        let request = format!("{request}Host: a.example\r\n\r\n");
        assert_eq!(sniff(request.as_bytes()), named("a.example", Wire::Http), "{request}");
    }
}

#[test]
fn what_is_neither_tls_nor_http_is_known_early() {
    for (bytes, at_most) in [
        (&b"SSH-2.0-OpenSSH_10.0\r\n"[..], 21),
        (b"EHLO client.example\r\n", 21),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", 1),
        (b"hello", 1),
        (b"{\"id\": 1}", 1),
        (b"\x16\x02\0\0", 2),
        (b"QUIT\r\n", 5),
        (&[b'A'; 80], 65),
        (b"GET key\r\n", 9),
    ] {
        let first = (0..=bytes.len()).find(|end| sniff(&bytes[..*end]) != Sniffed::Incomplete).unwrap();
        assert!(first <= at_most, "{:?}: known after {first}", String::from_utf8_lossy(bytes));
        assert_eq!(sniff(bytes), Sniffed::Nameless(Wire::Unknown));
    }
}

#[test]
fn http_2_in_the_clear_is_known_and_says_no_name() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for end in 0..=preface.len() {
        let expected = if end < 16 { Sniffed::Incomplete } else { Sniffed::Nameless(Wire::Http2) };
        assert_eq!(sniff(&preface[..end]), expected, "{end}");
    }
    assert_eq!(sniff(b"PRI * HTTP/2.1\r\n"), Sniffed::Nameless(Wire::Http));
}

#[test]
fn a_client_that_never_comes_to_the_point_is_given_up() {
    let head = [&b"GET / HTTP/1.1\r\nHost: a.example\r\nX: "[..], &[b'x'; MAX_SNIFF_BYTES]].concat();
    assert_eq!(sniff(&head[..MAX_SNIFF_BYTES - 1]), Sniffed::Incomplete);
    assert_eq!(sniff(&head), Sniffed::Nameless(Wire::Http));
    // The hello would end in its very last byte, but its records need some too.
    let padded = [extension(21, &[0; MAX_SNIFF_BYTES - 100]), extension(0, &names(&[(0, b"a.example")]))];
    let cut_small = records(&hello(&padded.concat()), &[1; 2_000]);
    assert_eq!(sniff(&cut_small), Sniffed::Nameless(Wire::Tls));
    assert_eq!(sniff(&records(&hello(&padded.concat()), &[])), named("a.example", Wire::Tls));
}

/// Bytes that come close: sound ones with a few changed.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let request = "POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\r\n".as_bytes().to_vec();
    let sound = prop_oneof![
        Just(records(&simple_hello("a.example"), &[])),
        Just(records(&simple_hello("a.example"), &[3, 20, 1])),
        Just(request),
    ];
    (sound, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)).prop_map(
        |(mut bytes, changes)| {
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn every_prefix_of_a_sound_hello_needs_more(
        name in "[a-z]{1,20}(\\.[a-z]{1,10}){1,4}",
        sizes in prop::collection::vec(1..40_usize, 0..6),
    ) {
        let bytes = records(&simple_hello(&name), &sizes);
        for end in 0..bytes.len() {
            prop_assert_eq!(sniff(&bytes[..end]), Sniffed::Incomplete);
        }
        prop_assert_eq!(sniff(&bytes), named(&name, Wire::Tls));
    }

    #[test]
    fn every_cut_gives_the_same_answer(
        bytes in mutated(),
        pieces in prop::collection::vec(0..30_usize, 0..20),
    ) {
        prop_assert_eq!(sniff_in_pieces(&bytes, &pieces), sniff(&bytes));
    }

    #[test]
    fn a_server_hears_no_other_name(bytes in mutated(), server in "[a-c]{1,5}(\\.[a-c]{1,5}){0,2}", at: prop::sample::Index, byte: u8) {
        fuzz::first_words(&bytes);
        let mut real = hello_of_rustls(&server);
        fuzz::first_words(&real);
        let at = at.index(real.len());
        real[at] = byte;
        fuzz::first_words(&real);
    }

    #[test]
    fn noise_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = sniff(&bytes);
        let _ = sniff(&[&[22, 3, 1][..], &bytes].concat());
        let _ = sniff(&[&b"GET / HTTP/1.1\r\nHost:"[..], &bytes].concat());
        let _ = sniff(&records(&hello(&bytes), &[]));
        let _ = sniff(&records(&hello(&extension(0, &bytes)), &[]));
    }
}
