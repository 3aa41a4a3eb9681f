//! One message, one packet.
//!
//! A packet is a version byte, a kind byte, then a `postcard` body. A body that does not fit into
//! [`MAX_FRAME_BYTES`] is *spilled*: it travels in a sealed memfd that is the packet's last descriptor, and the
//! packet itself holds only the body's length.
//!
//! ```text
//! whole:   [version][0][postcard body ...]
//! spilled: [version][1][length: u32 little endian]      + memfd as the last descriptor
//! ```
//!
//! A packet that is too short, too long, of another version, or followed by trailing bytes is an error; the receiver
//! closes the connection, because a peer that frames wrongly can't be understood any further.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Spoken by this build. Sidecar, launcher and init are one binary, so a difference means a forged frame.
pub const VERSION: u8 = 1;

/// The kernel would take packets of up to 208 KiB; staying below leaves room for its own bookkeeping.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// The largest body in a memfd: a recursive listing of about half a million names.
pub const MAX_SPILL_BYTES: usize = 64 * 1024 * 1024;

/// Descriptors beside one packet, the spilled body's among them.
pub const MAX_DESCRIPTORS: usize = 16;

const KIND_WHOLE: u8 = 0;
const KIND_SPILLED: u8 = 1;
const HEADER_BYTES: usize = 2;

const _: () = assert!(MAX_FRAME_BYTES < 208 * 1024);
const _: () = assert!(MAX_SPILL_BYTES <= u32::MAX as usize);

/// A message ready to be sent.
#[derive(Debug)]
pub enum Encoded {
    /// The whole packet.
    Whole(Vec<u8>),
    /// The packet, and the body to be put into a sealed memfd.
    Spilled { packet: Vec<u8>, body: Vec<u8> },
}

/// A received packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<T> {
    /// The message itself.
    Whole(T),
    /// The message is in the packet's last descriptor and has this many bytes; see [`decode_spilled`].
    Spilled { len: usize },
}

#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("message of {len} bytes is longer than {MAX_SPILL_BYTES}")]
    TooLong { len: usize },
    #[error("message can't be encoded")]
    Encode(#[source] postcard::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("packet of {len} bytes is shorter than its header")]
    TooShort { len: usize },
    #[error("packet of {len} bytes is longer than {MAX_FRAME_BYTES}")]
    TooLong { len: usize },
    #[error("version {0} is not {VERSION}")]
    Version(u8),
    #[error("packet kind {0} is unknown")]
    Kind(u8),
    #[error("spilled body of {len} bytes is not between 1 and {MAX_SPILL_BYTES}")]
    SpillLength { len: usize },
    #[error("{len} bytes follow the message")]
    Trailing { len: usize },
    #[error("message can't be decoded")]
    Decode(#[source] postcard::Error),
}

/// Turns a message into one packet, spilling its body where it is too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Encoded, EncodeError> {
    let mut packet = postcard::to_extend(message, vec![VERSION, KIND_WHOLE]).map_err(EncodeError::Encode)?;
    if packet.len() <= MAX_FRAME_BYTES {
        return Ok(Encoded::Whole(packet));
    }
    let body = packet.split_off(HEADER_BYTES);
    let len = body.len();
    if len > MAX_SPILL_BYTES {
        return Err(EncodeError::TooLong { len });
    }
    packet[1] = KIND_SPILLED;
    packet.extend_from_slice(&(len as u32).to_le_bytes());
    Ok(Encoded::Spilled { packet, body })
}

/// Reads one packet.
pub fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<Frame<T>, DecodeError> {
    let len = packet.len();
    if len > MAX_FRAME_BYTES {
        return Err(DecodeError::TooLong { len });
    }
    let Some((&[version, kind], body)) = packet.split_first_chunk::<HEADER_BYTES>() else {
        return Err(DecodeError::TooShort { len });
    };
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    match kind {
        KIND_WHOLE => decode_body(body).map(Frame::Whole),
        KIND_SPILLED => {
            let length: [u8; 4] = body.try_into().map_err(|_| DecodeError::TooShort { len })?;
            let len = u32::from_le_bytes(length) as usize;
            if len == 0 || len > MAX_SPILL_BYTES {
                return Err(DecodeError::SpillLength { len });
            }
            Ok(Frame::Spilled { len })
        }
        other => Err(DecodeError::Kind(other)),
    }
}

/// Reads the body that came in a memfd. The caller has checked the descriptor's seals and its size against the
/// packet's.
pub fn decode_spilled<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    decode_body(body)
}

fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(DecodeError::Decode)?;
    if rest.is_empty() { Ok(message) } else { Err(DecodeError::Trailing { len: rest.len() }) }
}
