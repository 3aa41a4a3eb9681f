//! Interception of TLS.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::{Authority, KEY, World, hear, listen, name, tls_client, within};

/// Takes one connection as `api.example` does, says yes, and tells what it heard.
async fn upstream(authority: &Authority, listener: &TcpListener, end: &str) -> String {
    let mut stream = authority.accept(listener, "api.example").await;
    let heard = hear(&mut stream, end).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
    stream.shutdown().await.unwrap();
    heard
}

async fn intercepted(headers: &[&str]) -> (Authority, TcpListener, World) {
    let (authority, listener) = (Authority::new(), listen().await);
    let world = World::interception(headers, listener.local_addr().unwrap(), authority.trust());
    (authority, listener, world)
}

#[tokio::test]
async fn the_secret_goes_in_where_all_names_agree() {
    let (authority, listener, world) = intercepted(&["authorization", "x-api-key"]).await;
    let address = listener.local_addr().unwrap();
    assert!(world.border.intercepts(&name("api.example"), address.port()));
    assert!(!world.border.intercepts(&name("api.example"), 1));
    assert!(!world.border.intercepts(&name("other.example"), address.port()));
    let request = format!(
        "GET /v1/x HTTP/1.1\r\nHost: api.example:{}\r\nAuthorization: Bearer {2}\r\nX-Api-Key: {2}\r\n\
         {1}\r\n",
        address.port(),
        "Connection: close\r\n",
        world.placeholder()
    );
    let guest = async { world.connect_tls(address).await.exchange(&request).await };
    let (head, answer) = tokio::join!(upstream(&authority, &listener, "\r\n\r\n"), guest);
    assert!(head.starts_with("GET /v1/x HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("authorization: Bearer {KEY}\r\n")), "{head}");
    assert!(head.contains(&format!("x-api-key: {KEY}\r\n")), "{head}");
    assert!(answer.ends_with("hi"), "{answer}");
    // It went to where the guest itself had connected to.
    assert_eq!(world.dialed.lock().unwrap()[0].address, Some(address));
    assert!(world.events().contains("PutIn"));
}

#[tokio::test]
async fn a_placeholder_anywhere_else_stays_one() {
    let (authority, listener, world) = intercepted(&["x-api-key"]).await;
    let address = listener.local_addr().unwrap();
    let placeholder = world.placeholder();
    let request = format!(
        "POST /{placeholder}?key={placeholder} HTTP/1.1\r\nHost: api.example:{}\r\nCookie: {placeholder}\r\n\
         Authorization: Bearer {placeholder}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{placeholder}",
        address.port(),
        placeholder.len()
    );
    let guest = async { world.connect_tls(address).await.exchange(&request).await };
    let end = format!("\r\n\r\n{placeholder}");
    let (seen, answer) = tokio::join!(upstream(&authority, &listener, &end), guest);
    assert_eq!(seen.matches(&placeholder).count(), 5, "{seen}");
    assert!(!seen.contains(KEY), "{seen}");
    assert!(answer.ends_with("hi"), "{answer}");
    assert!(!world.events().contains("PutIn"));
}

#[tokio::test]
async fn basic_authentication_takes_the_secret_as_its_password() {
    let (authority, listener, world) = intercepted(&["authorization"]).await;
    let address = listener.local_addr().unwrap();
    let request = format!(
        "GET /repo.git/info/refs HTTP/1.1\r\nHost: api.example:{}\r\nAuthorization: basic {}\r\n\
         Connection: close\r\n\r\n",
        address.port(),
        STANDARD.encode(format!("git:{}", world.placeholder()))
    );
    let guest = async { world.connect_tls(address).await.exchange(&request).await };
    let (head, _) = tokio::join!(upstream(&authority, &listener, "\r\n\r\n"), guest);
    let expected = STANDARD.encode(format!("git:{KEY}"));
    assert!(head.contains(&format!("authorization: Basic {expected}\r\n")), "{head}");
}

#[tokio::test]
async fn a_request_for_another_host_goes_nowhere() {
    let (_, listener, world) = intercepted(&["authorization"]).await;
    let address = listener.local_addr().unwrap();
    let port = address.port();
    for (target, host) in [
        ("/", "evil.example".to_owned()),
        ("/", "api.example".to_owned()),
        ("/", format!("api.example:{port}\r\nHost: evil.example")),
        ("/", format!("x@api.example:{port}")),
        ("https://evil.example/", format!("api.example:{port}")),
    ] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {}\r\n\r\n",
            world.placeholder()
        );
        let answer = world.connect_tls(address).await.exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 421 "), "{host}: {answer}");
    }
    assert_eq!(world.dialed(), 0);
    assert!(world.events().contains("OtherHost"));
}

#[tokio::test]
async fn the_second_request_of_a_connection_is_judged_as_the_first() {
    let (authority, listener, world) = intercepted(&["authorization"]).await;
    let address = listener.local_addr().unwrap();
    let guest = async {
        let mut guest = world.connect_tls(address).await;
        guest.say(&format!("GET / HTTP/1.1\r\nHost: api.example:{}\r\n\r\n", address.port())).await;
        guest.hear("hi").await;
        let request =
            format!("GET / HTTP/1.1\r\nHost: evil.example\r\nAuthorization: {}\r\n\r\n", world.placeholder());
        guest.exchange(&request).await
    };
    let (_, answer) = tokio::join!(upstream(&authority, &listener, "\r\n\r\n"), guest);
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    assert_eq!(world.dialed(), 1);
}

#[tokio::test]
async fn an_upstream_without_the_names_certificate_gets_nothing() {
    let (authority, listener, world) = intercepted(&["authorization"]).await;
    let address = listener.local_addr().unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: api.example:{}\r\nAuthorization: {}\r\n\r\n",
        address.port(),
        world.placeholder()
    );
    for (authority, name) in [(&authority, "evil.example"), (&Authority::new(), "api.example")] {
        let guest = async { world.connect_tls(address).await.exchange(&request).await };
        let (upstream, answer) = tokio::join!(authority.try_accept(&listener, name), guest);
        assert!(upstream.is_err(), "the handshake was broken off");
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("certificate"), "{answer}");
    }
    assert!(world.events().contains("Certificate"));
}

#[tokio::test]
async fn a_hello_for_another_name_than_the_stack_read_gets_no_connection() {
    let (_, listener, world) = intercepted(&["authorization"]).await;
    let address = listener.local_addr().unwrap();
    let authority = world.border.authority_pem().unwrap();
    let guest = world.connect_intercepted(address, "api.example");
    let handshake = tls_client(authority, "other.example", guest.stream);
    assert!(within("handshake", handshake).await.is_err());
    within("the border's side", guest.served).await.unwrap();
    // A name that isn't declared is nothing that the border would take.
    let guest = world.connect_intercepted(address, "other.example");
    within("the border's side", guest.served).await.unwrap();
    assert!(world.events().contains("Handshake") && world.events().contains("OtherHost"));
    assert_eq!(world.dialed(), 0);
}

#[tokio::test]
async fn a_guest_that_does_not_know_the_authority_is_told_to_the_host() {
    let (_, listener, world) = intercepted(&["authorization"]).await;
    let address = listener.local_addr().unwrap();
    let guest = world.connect_intercepted(address, "api.example");
    let stranger = World::interception(&["authorization"], address, Authority::new().trust());
    let handshake = tls_client(stranger.border.authority_pem().unwrap(), "api.example", guest.stream);
    assert!(within("handshake", handshake).await.is_err());
    within("the border's side", guest.served).await.unwrap();
    assert!(world.events().contains("Handshake"));
}

#[tokio::test]
async fn a_request_that_repeats_the_placeholder_without_end_is_refused() {
    let (_authority, listener, world) = intercepted(&["x-api-key"]).await;
    let address = listener.local_addr().unwrap();
    let line = format!("X-Api-Key: {}\r\n", world.placeholder().repeat(50));
    let request = format!(
        "GET / HTTP/1.1\r\nHost: api.example:{}\r\n{}Connection: close\r\n\r\n",
        address.port(),
        line.repeat(10)
    );
    let answer = world.connect_tls(address).await.exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(world.dialed(), 0);
}
