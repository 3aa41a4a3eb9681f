//! Bodies: how they flow, and that they never pile up.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{World, accept, hear, listen, within};

const MEGABYTE: usize = 1 << 20;

#[tokio::test]
async fn a_guest_that_waits_to_be_asked_for_its_body_is_asked() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest
        .say(
            "POST /anthropic/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n\
             Content-Length: 4\r\n\r\n",
        )
        .await;
    assert!(guest.hear("\r\n\r\n").await.starts_with("HTTP/1.1 100 "));
    guest.say("body").await;
    let mut upstream = accept(&listener).await;
    let seen = hear(&mut upstream, "body").await;
    assert!(!seen.contains("expect"), "{seen}");
    upstream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(guest.hear_all().await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest
        .say(
            "POST /anthropic/x HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: close, te\r\n\
             Trailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
        .await;
    let mut upstream = accept(&listener).await;
    let seen = hear(&mut upstream, "\r\n\r\n").await + &hear(&mut upstream, "\r\n\r\n").await;
    assert!(seen.contains("hi") && seen.contains("te: trailers\r\n"), "{seen}");
    assert!(seen.to_lowercase().ends_with("0\r\nx-sum: 7\r\n\r\n"), "{seen}");
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n\
                  2\r\nho\r\n0\r\nx-end: 8\r\n\r\n";
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let answer = guest.hear_all().await;
    assert!(answer.to_lowercase().ends_with("0\r\nx-end: 8\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_hundred_megabytes_flow_in_either_direction() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let size = 100 * MEGABYTE;
    let guest = world.connect();
    let (mut from_border, mut to_border) = tokio::io::split(guest.stream);
    let piece = vec![b'x'; MEGABYTE];

    let sending = async {
        let head = format!(
            "POST /anthropic/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        );
        to_border.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..100 {
            to_border.write_all(&piece).await.unwrap();
        }
    };
    let upstream = async {
        let mut stream = accept(&listener).await;
        hear(&mut stream, "\r\n\r\n").await;
        let (mut from_border, mut to_border) = stream.split();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
        to_border.write_all(head.as_bytes()).await.unwrap();
        // An echo: both directions are full at the same time.
        tokio::io::copy(&mut (&mut from_border).take(size as u64), &mut to_border).await.unwrap()
    };
    let receiving = async {
        hear(&mut from_border, "\r\n\r\n").await;
        let mut buffer = vec![0; MEGABYTE];
        let mut received = 0;
        loop {
            let count = from_border.read(&mut buffer).await.unwrap();
            if count == 0 {
                return received;
            }
            received += count;
            assert!(piece.starts_with(&buffer[..count]));
        }
    };
    let flow = async { tokio::join!(sending, upstream, receiving) };
    let ((), echoed, received) = within("a hundred megabytes", flow).await;
    assert_eq!((echoed, received), (size as u64, size));
}

#[tokio::test]
async fn a_body_that_the_upstream_does_not_read_stays_with_the_guest() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest.say("POST /anthropic/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    let taken = fill_until_full(&mut guest.stream).await;
    assert!(taken < 16 * MEGABYTE, "{taken} bytes were taken");
}

#[tokio::test]
async fn a_body_that_the_guest_does_not_read_stays_with_the_upstream() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest.say("GET /anthropic/x HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut upstream = accept(&listener).await;
    hear(&mut upstream, "\r\n\r\n").await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n").await.unwrap();
    let taken = fill_until_full(&mut upstream).await;
    assert!(taken < 16 * MEGABYTE, "{taken} bytes were taken");
    drop(guest);
}

/// Writes until nothing more is taken for a while; the kernel's socket buffers, some megabytes, count.
async fn fill_until_full<W: tokio::io::AsyncWrite + Unpin>(stream: &mut W) -> usize {
    let (piece, pause) = (vec![b'x'; 64 * 1024], std::time::Duration::from_millis(500));
    let mut taken = 0;
    while taken < 100_000_000 - piece.len() {
        match tokio::time::timeout(pause, stream.write(&piece)).await {
            Ok(count) => taken += count.unwrap(),
            Err(_) => break,
        }
    }
    taken
}

/// Servers may read trailers as if they had stood in the head.
#[tokio::test]
async fn no_credential_of_the_guests_goes_out_behind_a_body() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let mut guest = world.connect();
    guest
        .say(
            "POST /anthropic/x HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTrailer: x-api-key, x-sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Api-Key: the-guests\r\nX-Sum: 7\r\n\r\n",
        )
        .await;
    let mut upstream = accept(&listener).await;
    let head = hear(&mut upstream, "\r\n\r\n").await;
    assert_eq!(head.matches(crate::support::KEY).count(), 1, "{head}");
    let rest = hear(&mut upstream, "\r\n\r\n").await;
    assert!(rest.to_lowercase().ends_with("0\r\nx-sum: 7\r\n\r\n"), "{rest}");
    assert!(!rest.contains("the-guests"), "{rest}");
}
