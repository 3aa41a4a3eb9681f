//! What must hold for whatever comes over a socket from a guest. The fuzz target brings bytes that a fuzzer makes up,
//! the tests at the end theirs.

#![allow(clippy::expect_used, clippy::panic, reason = "it is called by tests, which fail by panicking")]

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{Encoded, Frame, MAX_SPILL_BYTES, decode, decode_spilled, encode};
use crate::init::{InitMessage, InitRequest};
use crate::launcher::{LauncherEvent, LauncherRequest};
use crate::path;

/// # Panics
///
/// If a message that was read can't be written and read again, or becomes longer by it.
pub fn frame(packet: &[u8]) {
    // From a guest comes only the first; the others are read by the same code.
    one::<InitMessage>(packet);
    one::<InitRequest>(packet);
    one::<LauncherEvent>(packet);
    one::<LauncherRequest>(packet);
    if let Ok(clean) = path::clean(packet) {
        assert_eq!(path::clean(&clean).as_ref(), Ok(&clean), "a clean path is clean");
        let is_plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        assert!(clean == b"/" || clean.split(|byte| *byte == b'/').skip(1).all(is_plain));
        assert!(clean.len() <= packet.len());
    }
}

fn one<T: Serialize + DeserializeOwned>(packet: &[u8]) {
    let message: T = match decode(packet) {
        Ok(Frame::Whole(message)) => message,
        Ok(Frame::Spilled { len }) => return assert!((1..=MAX_SPILL_BYTES).contains(&len)),
        Err(_) => return,
    };
    let Ok(Encoded::Whole(again)) = encode(&message) else { panic!("a message that came can't be sent") };
    assert!(again.len() <= packet.len(), "{} bytes became {}", packet.len(), again.len());
    // Numbers can be spelled in several ways; what we write is one of them, and stays.
    let Ok(Frame::Whole(message)) = decode::<T>(&again) else { panic!("what was written can't be read") };
    let Ok(Encoded::Whole(third)) = encode(&message) else { panic!("what was read can't be written") };
    assert_eq!(again, third);
    let body = again.get(2..).expect("a header");
    let spilled = decode_spilled::<T>(body).map(|message| encode(&message));
    assert!(matches!(spilled, Ok(Ok(Encoded::Whole(same))) if same == again), "spilled, it is another");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Bytes;
    use crate::filesystem::{DirEntry, FileResponse, FileType};
    use crate::init::{Event, RequestId, Response};
    use crate::network::{ListenerEntry, SocketOwner};
    use crate::process::Status;

    fn any_message() -> impl Strategy<Value = InitMessage> {
        let owner = (any::<i32>(), prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(pid, command)| SocketOwner { pid, command: Bytes::from(command) });
        let listener = (any::<std::net::SocketAddr>(), prop::option::of(owner))
            .prop_map(|(address, owner)| ListenerEntry { address, owner });
        let entry =
            (prop::collection::vec(any::<u8>(), 0..9), any::<u64>()).prop_map(|(path, size_bytes)| {
                DirEntry { path: Bytes::from(path), file_type: FileType::Other, size_bytes }
            });
        let response = prop_oneof![
            Just(()).prop_map(|()| Response::Done),
            any::<i32>().prop_map(|pid| Response::Spawned { pid }),
            prop::collection::vec(listener, 0..4).prop_map(Response::Listeners),
            prop::collection::vec(entry, 0..4).prop_map(|all| Response::File(FileResponse::Entries(all))),
        ];
        prop_oneof![
            Just(()).prop_map(|()| InitMessage::Ready),
            (any::<u32>(), response).prop_map(|(id, response)| InitMessage::Response {
                id: RequestId(id),
                response: Ok(response)
            }),
            (any::<i32>(), any::<i32>()).prop_map(|(pid, code)| InitMessage::Event(Event::Exited {
                pid,
                status: Status::Exited(code)
            })),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_frame_with_bytes_changed_is_refused_or_another_sound_one(
            message in any_message(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut: prop::sample::Index,
        ) {
            let Encoded::Whole(mut packet) = encode(&message).unwrap() else { panic!("a short message") };
            frame(&packet);
            for (index, byte) in changes {
                let at = index.index(packet.len());
                packet[at] = byte;
            }
            frame(&packet);
            packet.truncate(cut.index(packet.len()) + 1);
            frame(&packet);
        }

        #[test]
        fn paths_are_cleaned_once(path in "(/|\\.|a|b|\\x00|é){0,12}") {
            frame(path.as_bytes());
        }
    }
}
