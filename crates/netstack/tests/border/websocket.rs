//! WebSockets through the border.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Authority, KEY, World, hear, listen, within};

#[tokio::test]
async fn a_websocket_is_carried_after_its_head_and_echoes_are_starred_out() {
    let (authority, listener) = (Authority::new(), listen().await);
    let address = listener.local_addr().unwrap();
    let world = World::interception(&["authorization"], address, authority.trust());
    let request = format!(
        "GET /live HTTP/1.1\r\nHost: api.example:{}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Extensions: permessage-deflate\r\nAuthorization: Bearer {}\r\n\r\n",
        address.port(),
        world.placeholder()
    );
    let upstream = async {
        let mut stream = authority.accept(&listener, "api.example").await;
        let head = hear(&mut stream, "\r\n\r\n").await;
        // The first frame may come with the head.
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: x\r\n\r\n[hello]";
        stream.write_all(answer.as_bytes()).await.unwrap();
        (head, stream)
    };
    let guest = async {
        let mut guest = world.connect_tls(address).await;
        guest.say(&request).await;
        let head = guest.hear("\r\n\r\n").await;
        (head, guest)
    };
    let ((sent, mut upstream), (answered, mut guest)) = tokio::join!(upstream, guest);
    assert!(sent.contains("upgrade: websocket\r\n") && sent.contains("connection: upgrade\r\n"), "{sent}");
    assert!(sent.contains(&format!("authorization: Bearer {KEY}\r\n")), "{sent}");
    assert!(!sent.contains("permessage-deflate"), "{sent}");
    assert!(answered.starts_with("HTTP/1.1 101 "), "{answered}");
    assert!(answered.contains("sec-websocket-accept: x\r\n"), "{answered}");
    assert_eq!(guest.hear("]").await, "[hello]");

    for round in 0..3 {
        guest.say(&format!("<{round}>")).await;
        assert_eq!(hear(&mut upstream, ">").await, format!("<{round}>"));
        // What ends as the key begins isn't held back.
        let piece = format!("[{round}] s");
        upstream.write_all(piece.as_bytes()).await.unwrap();
        assert_eq!(guest.hear(" s").await, piece);
    }
    upstream.write_all(format!("[{KEY}]").as_bytes()).await.unwrap();
    let echoed = guest.hear("]").await;
    assert!(echoed.starts_with("[sk-***") && echoed.len() == KEY.len() + 2, "{echoed}");

    drop(guest.stream);
    let mut rest = Vec::new();
    let _end = within("the upstream's end", upstream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    within("the border's side", guest.served).await.unwrap();
}
