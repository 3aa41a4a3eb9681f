//! The server's side of a WebSocket (RFC 6455), as far as a client that is told back what it says needs it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::web::Asked;

/// Section 1.3.
const KEY_END: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CLOSE: u8 = 8;

pub(super) fn accept(asked: &Asked) -> Response<Full<Bytes>> {
    let is_one = asked.header("upgrade").eq_ignore_ascii_case("websocket");
    let status = if is_one { 101 } else { 426 };
    let key = digest(
        &SHA1_FOR_LEGACY_USE_ONLY,
        format!("{}{KEY_END}", asked.header("sec-websocket-key")).as_bytes(),
    );
    let head =
        Response::builder().status(status).header("connection", "upgrade").header("upgrade", "websocket");
    head.header("sec-websocket-accept", STANDARD.encode(key)).body(Full::default()).unwrap()
}

/// Sends every frame back, the one that closes too.
pub(super) async fn echo(mut client: impl AsyncRead + AsyncWrite + Unpin) {
    // A client that goes away in the middle is no fault of the test.
    while one(&mut client).await.is_ok_and(|kind| kind != CLOSE) {}
}

/// Sends one frame back; what kind it is.
async fn one(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<u8> {
    let [first, second] = [client.read_u8().await?, client.read_u8().await?];
    assert_ne!(second & 0x80, 0, "clients mask what they say");
    let length = match second & 0x7f {
        126 => usize::from(client.read_u16().await?),
        127 => usize::try_from(client.read_u64().await?).unwrap(),
        short => usize::from(short),
    };
    let mut mask = [0; 4];
    client.read_exact(&mut mask).await?;
    let mut payload = vec![0; length];
    client.read_exact(&mut payload).await?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    let mut frame = vec![first];
    match u16::try_from(length) {
        Ok(short @ ..126) => frame.push(u8::try_from(short).unwrap()),
        Ok(length) => {
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    client.write_all(&frame).await?;
    client.flush().await?;
    Ok(first & 0x0f)
}
