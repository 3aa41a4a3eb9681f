//! Heads of hostile or unusual guests and upstreams.

use std::sync::Arc;

use agentos_netstack::border::{Outside, Upstream};
use tokio::io::AsyncWriteExt;

use crate::support::{World, accept, hear, listen, within};

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_in_time_ends_the_connection() {
    let world = World::gateway(&listen().await);
    let mut guest = world.connect();
    guest.say("GET /anthropic/x HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
    // Not `within`, whose deadline is shorter than the border's; no time passes for anybody else.
    guest.served.await.unwrap();
    assert_eq!(world.dialed(), 0);
}

#[tokio::test]
async fn a_head_that_never_ends_in_size_is_refused() {
    let world = World::gateway(&listen().await);
    let mut guest = world.connect();
    guest.say("GET /anthropic/x HTTP/1.1\r\nHost: x\r\nX-Long: ").await;
    let piece = [b'a'; 4096];
    let mut sent = 0;
    within("the refusal", async {
        while guest.stream.write_all(&piece).await.is_ok() {
            sent += piece.len();
        }
    })
    .await;
    assert!(sent < 1 << 20, "{sent} bytes were taken");
    assert_eq!(world.dialed(), 0);
}

#[tokio::test]
async fn a_head_with_too_many_lines_or_two_lengths_is_refused() {
    let world = World::gateway(&listen().await);
    let many = "X-A: b\r\n".repeat(1000);
    for lines in [many.as_str(), "Content-Length: 1\r\nContent-Length: 2\r\n", "Transfer-Encoding: gzip\r\n"]
    {
        let request = format!("POST /anthropic/x HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        let answer = world.connect().exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{lines:.40}: {answer}");
    }
    assert_eq!(world.dialed(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_no_connection_is_given_up() {
    let mut world = World::gateway(&listen().await);
    world.outside = Outside {
        dial: Arc::new(|_: Upstream| Box::pin(std::future::pending())),
        events: Arc::clone(&world.outside.events),
    };
    let answer = world.connect().exchange("GET /anthropic/x HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(world.events().contains("ConnectTimeout"));
}

#[tokio::test]
async fn an_endless_head_of_the_upstream_is_given_up() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let upstream = async {
        let mut stream = accept(&listener).await;
        hear(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nx-long: ").await.unwrap();
        let mut sent = 0;
        while sent < 1 << 26 && stream.write_all(&[b'a'; 4096]).await.is_ok() {
            sent += 4096;
        }
        sent
    };
    let guest = world.connect().exchange("GET /anthropic/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (sent, answer) = within("giving up", async { tokio::join!(upstream, guest) }).await;
    assert!(sent < 1 << 26, "all of it was taken");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn an_upstream_that_switches_protocols_by_itself_is_not_followed() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let upstream = async {
        let mut stream = accept(&listener).await;
        let head = hear(&mut stream, "\r\n\r\n").await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        head
    };
    let guest = world.connect().exchange(
        "GET /anthropic/x HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
    );
    let (head, answer) = tokio::join!(upstream, guest);
    assert!(!head.to_lowercase().contains("upgrade"), "{head}");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn the_length_of_a_body_that_is_not_sent_is_told() {
    let listener = listen().await;
    let world = World::gateway(&listener);
    let upstream = async {
        let mut stream = accept(&listener).await;
        let head = hear(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n").await.unwrap();
        head
    };
    let guest =
        world.connect().exchange("HEAD /anthropic/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (head, answer) = tokio::join!(upstream, guest);
    assert!(head.starts_with("HEAD /base/x "), "{head}");
    assert!(answer.contains("content-length: 12345\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}
