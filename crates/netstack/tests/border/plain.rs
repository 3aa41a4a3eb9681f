//! Plain HTTP under a policy by name.

use agentos_netstack::border::{Border, Trust};
use agentos_netstack::name::HostName;
use agentos_netstack::policy::{Reason, Refusal};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::{KEY, World, accept, hear, listen, within};

const YES: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

async fn plain() -> (TcpListener, World) {
    let listener = listen().await;
    let border = Border::new(Vec::new(), Vec::new(), Trust::nobody().unwrap()).unwrap();
    let world = World::new(border, &[("good.example", listener.local_addr().unwrap())]);
    (listener, world)
}

/// What the tests' policy says: one name, and nothing without a name.
pub(crate) fn allowed(name: Option<&HostName>) -> Result<(), Refusal> {
    match name {
        Some(name) if name.as_str() == "good.example" => Ok(()),
        Some(_) => Err(Refusal { reason: Reason::NameMismatch, rule: None }),
        None => Err(Refusal { reason: Reason::NoName, rule: None }),
    }
}

#[tokio::test]
async fn a_request_for_a_host_that_is_allowed_goes_on_as_it_is() {
    let (listener, world) = plain().await;
    let address = listener.local_addr().unwrap();
    let upstream = async {
        let mut stream = accept(&listener).await;
        let head = hear(&mut stream, "\r\n\r\n").await;
        stream.write_all(YES.as_bytes()).await.unwrap();
        head
    };
    let request = format!(
        "GET http://good.example:8/a?b HTTP/1.1\r\nHost: Good.example:8\r\nAuthorization: Bearer {KEY}\r\n\
         Accept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    );
    let (head, answer) = tokio::join!(upstream, world.connect_plain(address).exchange(&request));
    assert!(head.starts_with("GET /a?b HTTP/1.1\r\n"), "{head}");
    for kept in ["host: Good.example:8\r\n", "accept-encoding: gzip\r\n", KEY] {
        assert!(head.contains(kept), "{kept}: {head}");
    }
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hi"), "{answer}");
    assert_eq!(world.dialed.lock().unwrap()[0].address, Some(address));
}

#[tokio::test]
async fn the_second_request_of_a_connection_is_judged_as_the_first() {
    let (listener, world) = plain().await;
    let mut guest = world.connect_plain(listener.local_addr().unwrap());
    guest.say("GET / HTTP/1.1\r\nHost: good.example\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    upstream.write_all(YES.as_bytes()).await.unwrap();
    guest.hear("hi").await;
    guest.say("POST /stolen HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3\r\n\r\nabc").await;
    let answer = guest.hear_all().await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("the request for evil.example may not leave"), "{answer}");
    assert!(world.events().contains("NameMismatch"), "{}", world.events());
    // The witness: nothing came after the first request.
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut upstream, &mut rest);
    assert_eq!(within("the end outside", read).await.unwrap_or(0), 0, "{rest:?}");
}

#[tokio::test]
async fn what_could_be_read_as_two_hosts_is_refused_before_anything_leaves() {
    let (listener, world) = plain().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: good.example\r\nHost: evil.example\r\n\r\n", "400"),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n", "421"),
        ("GET https://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: good.example@evil.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: good.example:80:80\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: ev\u{ef}l.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: 203.0.113.7\r\n\r\n", "403"),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "403"),
        ("GET / HTTP/1.0\r\n\r\n", "403"),
        ("CONNECT good.example:443 HTTP/1.1\r\nHost: good.example:443\r\n\r\n", "405"),
    ] {
        let answer = world.connect_plain(listener.local_addr().unwrap()).exchange(request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} "))
                || answer.starts_with(&format!("HTTP/1.0 {status} ")),
            "{request}: {answer}"
        );
    }
    assert_eq!(world.dialed(), 0);
}

#[tokio::test]
async fn a_websocket_goes_through() {
    let (listener, world) = plain().await;
    let mut guest = world.connect_plain(listener.local_addr().unwrap());
    guest
        .say(
            "GET /chat HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        )
        .await;
    let mut upstream = accept(&listener).await;
    let head = hear(&mut upstream, "\r\n\r\n").await;
    assert!(head.contains("upgrade: websocket\r\n") && head.contains("permessage-deflate"), "{head}");
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
    upstream.write_all(switch.as_bytes()).await.unwrap();
    guest.hear("\r\n\r\nhello").await;
    guest.say("and back").await;
    hear(&mut upstream, "and back").await;
}

#[tokio::test]
async fn a_client_that_is_through_with_its_request_gets_its_answer() {
    let (listener, world) = plain().await;
    let mut guest = world.connect_plain(listener.local_addr().unwrap());
    guest.say("GET / HTTP/1.1\r\nHost: good.example\r\n\r\n").await;
    guest.stream.shutdown().await.unwrap();
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    upstream.write_all(YES.as_bytes()).await.unwrap();
    let answer = guest.hear_all().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hi"), "{answer}");
}

#[tokio::test]
async fn a_client_that_is_gone_leaves_no_connection_behind() {
    let (listener, world) = plain().await;
    let mut guest = world.connect_plain(listener.local_addr().unwrap());
    guest.say("GET /events HTTP/1.1\r\nHost: good.example\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    drop(guest.stream);
    upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ndata: tick\n\n").await.unwrap();
    within("the border's side", guest.served).await.unwrap();
    let mut rest = Vec::new();
    let end = within("the end outside", tokio::io::AsyncReadExt::read_to_end(&mut upstream, &mut rest)).await;
    assert_eq!(end.unwrap_or(0), 0);
}

#[tokio::test]
async fn an_upgrade_is_carried_and_its_directions_end_by_themselves() {
    let (listener, world) = plain().await;
    let mut guest = world.connect_plain(listener.local_addr().unwrap());
    guest
        .say(
            "POST /attach HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: h2c, tcp\r\n\r\n",
        )
        .await;
    let mut upstream = accept(&listener).await;
    let head = hear(&mut upstream, "\r\n\r\n").await;
    assert!(head.contains("upgrade: tcp\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
    let switch = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    upstream.write_all(switch.as_bytes()).await.unwrap();
    let head = guest.hear("\r\n\r\n").await;
    assert!(head.contains("upgrade: tcp\r\n"), "{head}");
    guest.say("all that was said").await;
    guest.stream.shutdown().await.unwrap();
    let mut said = String::new();
    within("the guest's end", tokio::io::AsyncReadExt::read_to_string(&mut upstream, &mut said))
        .await
        .unwrap();
    assert_eq!(said, "all that was said");
    upstream.write_all(b"and an answer").await.unwrap();
    drop(upstream);
    assert_eq!(guest.hear_all().await, "and an answer");
}

#[tokio::test]
async fn an_upgrade_in_which_requests_would_hide_is_not_asked_for() {
    let (listener, world) = plain().await;
    let mut guest = world.connect_plain(listener.local_addr().unwrap());
    guest
        .say(
            "GET / HTTP/1.1\r\nHost: good.example\r\nConnection: close, Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c, TLS/1.2\r\nHTTP2-Settings: AAA\r\n\r\n",
        )
        .await;
    let mut upstream = accept(&listener).await;
    let head = hear(&mut upstream, "\r\n\r\n").await.to_lowercase();
    assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
    // Who switches to it all the same is not followed.
    let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
    upstream.write_all(switch.as_bytes()).await.unwrap();
    let answer = guest.hear_all().await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

/// A header that the guest names as one of its connection would be taken out of a request that was judged by it.
#[tokio::test]
async fn the_host_that_a_request_was_judged_by_is_the_host_that_it_goes_on_with() {
    let (listener, world) = plain().await;
    let upstream = async {
        let mut stream = accept(&listener).await;
        let head = hear(&mut stream, "\r\n\r\n").await;
        stream.write_all(YES.as_bytes()).await.unwrap();
        head
    };
    let request = "GET / HTTP/1.1\r\nHost: good.example\r\nConnection: close, Host\r\n\r\n";
    let guest = world.connect_plain(listener.local_addr().unwrap());
    let (head, _) = tokio::join!(upstream, guest.exchange(request));
    assert!(head.contains("host: good.example\r\n"), "{head}");
}

#[tokio::test]
async fn no_request_is_smuggled_behind_a_length_that_is_a_lie() {
    let (listener, world) = plain().await;
    for lengths in [
        "Content-Length: 61\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 61\r\n",
    ] {
        let mut guest = world.connect_plain(listener.local_addr().unwrap());
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n";
        guest
            .say(&format!("POST / HTTP/1.1\r\nHost: good.example\r\n{lengths}\r\n0\r\n\r\n{smuggled}"))
            .await;
        let mut upstream = accept(&listener).await;
        let head = hear(&mut upstream, "\r\n\r\n").await;
        assert!(!head.contains("content-length"), "{head}");
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        hear(&mut upstream, "0\r\n\r\n").await;
        upstream.write_all(YES.as_bytes()).await.unwrap();
        let answers = guest.hear_all().await;
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "nothing is read behind it: {answers}");
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut upstream, &mut rest);
        assert_eq!(within("the end outside", read).await.unwrap_or(0), 0, "{rest:?}");
    }
}
