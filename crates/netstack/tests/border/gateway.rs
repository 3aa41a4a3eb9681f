//! The base-URL gateway.

use agentos_netstack::border::{Border, HeaderScheme, Route, Trust};
use tokio::io::AsyncWriteExt;

use crate::support::{Authority, KEY, World, accept, hear, listen, secret, within};

#[tokio::test]
async fn the_key_goes_out_and_what_the_guest_has_in_its_place_does_not() {
    let (authority, listener) = (Authority::new(), listen().await);
    let port = listener.local_addr().unwrap().port();
    let route = Route::new("anthropic", &format!("https://api.example:{port}/base/")).unwrap();
    let route = route.credential("x-api-key".parse().unwrap(), HeaderScheme::Plain, "API_KEY").unwrap();
    let border = Border::new(vec![secret()], vec![route], authority.trust()).unwrap();
    let world = World::new(border, &[("api.example", listener.local_addr().unwrap())]);
    assert!(world.border.authority_pem().is_none(), "nothing is intercepted");

    let upstream = async {
        let mut stream = authority.accept(&listener, "api.example").await;
        let head = hear(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        head
    };
    let request = format!(
        "GET /anthropic/v1/models?limit=1 HTTP/1.1\r\nHost: 10.0.2.4\r\nx-api-key: {}\r\n\
         Authorization: Bearer mine\r\nConnection: close, x-api-key\r\nanthropic-version: 1\r\n\r\n",
        world.placeholder()
    );
    let (head, answer) = tokio::join!(upstream, world.connect().exchange(&request));

    assert!(head.starts_with("GET /base/v1/models?limit=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("x-api-key: {KEY}\r\n")), "{head}");
    assert!(head.contains(&format!("host: api.example:{port}\r\n")), "{head}");
    assert!(head.contains("anthropic-version: 1\r\n"), "{head}");
    assert!(!head.contains("mine") && !head.contains(&world.placeholder()), "{head}");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hi"), "{answer}");
    assert!(world.events().contains("PutIn"));
}

#[tokio::test]
async fn an_event_stream_arrives_event_by_event() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest.say("POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "{}").await;
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    upstream.write_all(head).await.unwrap();
    assert!(guest.hear("\r\n\r\n").await.contains("text/event-stream"));
    for number in 0..3 {
        // Each is sent after the one before it has arrived, and ends as keys begin.
        let event = format!("data: {number} s");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        upstream.write_all(chunk.as_bytes()).await.unwrap();
        guest.hear(&event).await;
    }
    upstream.write_all(b"0\r\n\r\n").await.unwrap();
    guest.hear("0\r\n\r\n").await;
}

#[tokio::test]
async fn an_unknown_provider_is_answered_with_those_that_there_are() {
    let world = World::gateway(&listen().await);
    let answer = world.connect().exchange("GET /openai/v1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains(r#""type":"agentos_gateway""#), "{answer}");
    assert!(answer.contains("there are: anthropic"), "{answer}");
}

#[tokio::test]
async fn targets_that_lead_elsewhere_are_refused_before_anything_leaves() {
    let world = World::gateway(&listen().await);
    for (line, status) in [
        ("GET /anthropic/../x", "400"),
        ("GET /anthropic/%2e%2e/x", "400"),
        ("GET /anthropic/x/..%2f..", "400"),
        ("GET /anthropic/..%5c..", "400"),
        ("GET http://evil.example/anthropic/x", "400"),
        ("GET http://10.0.2.4/anthropic/x", "400"),
        ("GET //evil.example/anthropic/x", "404"),
        ("GET /@evil.example/anthropic/x", "404"),
        ("GET /anthropic@evil.example/x", "404"),
        ("GET /%61nthropic/x", "404"),
        ("CONNECT evil.example:443", "405"),
        ("OPTIONS *", "400"),
        ("TRACE /anthropic/x", "405"),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        let answer = world.connect().exchange(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
    }
    assert_eq!(world.dialed(), 0);
}

#[tokio::test]
async fn a_failing_upstream_is_told_apart_from_a_policy_that_refuses() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    drop(listener);
    let request = "GET /anthropic/x HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = world.connect().exchange(request).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("refused"), "{answer}");
    assert!(world.events().contains("Unreachable"));

    let route = Route::new("a", "https://denied.example").unwrap();
    let border = Border::new(vec![secret()], vec![route], Trust::nobody().unwrap()).unwrap();
    let world = World::new(border, &[]);
    let answer = world.connect().exchange("GET /a/x HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("policy"), "{answer}");
    assert!(world.events().contains("Policy"));
}

#[tokio::test]
async fn an_upstream_that_is_not_who_it_should_be_gets_nothing() {
    let (authority, listener) = (Authority::new(), listen().await);
    let address = listener.local_addr().unwrap();
    let route = Route::new("a", &format!("https://api.example:{}", address.port())).unwrap();
    let border = Border::new(vec![secret()], vec![route], authority.trust()).unwrap();
    let world = World::new(border, &[("api.example", address)]);
    let upstream = authority.try_accept(&listener, "evil.example");
    let guest = world.connect().exchange("GET /a/x HTTP/1.1\r\nHost: x\r\n\r\n");
    let (upstream, answer) = tokio::join!(upstream, guest);
    assert!(upstream.is_err(), "the handshake was broken off");
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("certificate"), "{answer}");
    assert!(world.events().contains("Certificate"));
}

#[tokio::test]
async fn an_echoed_key_is_starred_out_of_heads_bodies_and_trailers() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest.say("GET /anthropic/x HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: close\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    let head = format!(
        "HTTP/1.1 401 No {KEY}\r\nx-echo: <{KEY}>\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n"
    );
    upstream.write_all(head.as_bytes()).await.unwrap();
    let body = format!("wrong key: {KEY}!");
    for byte in body.bytes() {
        upstream.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']).await.unwrap();
        // Each byte is a piece of its own: it has been read before the next is sent.
        tokio::task::yield_now().await;
    }
    upstream.write_all(format!("0\r\nx-end: {KEY}\r\n\r\n").as_bytes()).await.unwrap();
    let answer = guest.hear_all().await;
    assert!(!answer.contains(&KEY[..8]), "{answer}");
    assert!(answer.contains("x-echo: <sk-*") && answer.contains("x-end: sk-*"), "{answer}");
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized"), "{answer}");
    assert!(world.events().contains("Echoed"));
}

#[tokio::test]
async fn an_answer_in_an_encoding_that_hides_echoes_is_refused() {
    let listener = listen().await;
    for encoding in ["content-encoding: gzip\r\ncontent-length: 2", "transfer-encoding: gzip, chunked"] {
        let world = World::gateway(&listener);
        let upstream = async {
            let mut stream = accept(&listener).await;
            let head = hear(&mut stream, "\r\n\r\n").await;
            let answer = format!("HTTP/1.1 200 OK\r\n{encoding}\r\n\r\n??");
            stream.write_all(answer.as_bytes()).await.unwrap();
            head
        };
        let guest = world.connect().exchange(
            "GET /anthropic/x HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip, br\r\nTE: gzip\r\n\
             Connection: close, te\r\n\r\n",
        );
        let (head, answer) = tokio::join!(upstream, guest);
        assert!(head.contains("accept-encoding: identity\r\n") && !head.contains("gzip"), "{head}");
        assert!(answer.starts_with("HTTP/1.1 502 "), "{encoding}: {answer}");
    }
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_not_followed() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let upstream = async {
        let mut stream = accept(&listener).await;
        hear(&mut stream, "\r\n\r\n").await;
        let answer = "HTTP/1.1 302 Found\r\nlocation: https://evil.example/\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let guest = world.connect().exchange("GET /anthropic/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let ((), answer) = tokio::join!(upstream, guest);
    assert!(answer.contains("location: https://evil.example/\r\n"), "{answer}");
    assert_eq!(world.dialed(), 1);
}

#[tokio::test]
async fn requests_of_one_connection_share_one_outside_for_as_long_as_it_lives() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
    let mut upstream = None;
    for _ in 0..2 {
        guest.say("GET /anthropic/x HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let stream = match &mut upstream {
            Some(stream) => stream,
            none => none.insert(accept(&listener).await),
        };
        hear(stream, "\r\n\r\n").await;
        stream.write_all(answer).await.unwrap();
        guest.hear("\r\n\r\n").await;
    }
    assert_eq!(world.dialed(), 1);
    // An upstream may close a connection that nothing happens on; nobody notices.
    drop(upstream);
    guest.say("GET /anthropic/x HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    upstream.write_all(answer).await.unwrap();
    assert!(guest.hear("\r\n\r\n").await.starts_with("HTTP/1.1 204 "));
    assert_eq!(world.dialed(), 2);
}

#[tokio::test]
async fn when_the_guest_hangs_up_the_upstreams_work_ends() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest.say("GET /anthropic/x HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    drop(guest.stream);
    let mut rest = Vec::new();
    let ended = within("the end", tokio::io::AsyncReadExt::read_to_end(&mut upstream, &mut rest)).await;
    assert!(rest.is_empty() && ended.is_ok_and(|bytes| bytes == 0));
    within("the border's side", guest.served).await.unwrap();
}
