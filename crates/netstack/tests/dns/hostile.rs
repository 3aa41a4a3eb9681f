//! Bytes that nobody would send in good faith.

use super::*;
use proptest::prelude::*;

/// A resolver that has nobody to ask: what it can say is decided by the bytes alone.
fn answer(bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Vm::asking(&[]).resolver.answer(bytes, transport, &everything))
}

fn code(bytes: &[u8]) -> Option<ResponseCode> {
    answer(bytes, Transport::Udp).map(|answer| Message::from_vec(&answer).unwrap().response_code)
}

#[test]
fn what_is_no_query_is_dropped() {
    assert_eq!(code(b""), None);
    assert_eq!(code(b"hello"), None);
    let mut reply = query("a.example.", RecordType::A);
    reply[2] |= 0x80;
    assert_eq!(code(&reply), None, "an answer to an answer would never end");
}

#[test]
fn what_is_no_proper_query_is_told_so() {
    let good = query("a.example.", RecordType::A);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let with_class = |class: DNSClass| {
        let mut message = Message::from_vec(&good).unwrap();
        message.queries[0].set_query_class(class);
        message.to_vec().unwrap()
    };
    assert_eq!(code(&good), Some(ResponseCode::ServFail), "the control: there is nobody to ask");
    assert_eq!(code(&with(2, 0x28)), Some(ResponseCode::NotImp), "an update");
    assert_eq!(code(&with(5, 0)), Some(ResponseCode::FormErr), "no question");
    assert_eq!(code(&with(5, 2)), Some(ResponseCode::FormErr), "two questions, one of them missing");
    assert_eq!(code(&with(4, 0xff)), Some(ResponseCode::FormErr), "65,281 questions");
    assert_eq!(code(&with(12, 0x40)), Some(ResponseCode::FormErr), "a label of a kind that isn't");
    assert_eq!(code(&with(12, 0xc0)), Some(ResponseCode::FormErr), "a name that points at itself");
    assert_eq!(code(&good[..good.len() - 3]), Some(ResponseCode::FormErr), "half a question");
    assert_eq!(code(&[&good[..], &[0; 4_096]].concat()), Some(ResponseCode::FormErr), "too long");
    assert_eq!(code(&with_class(DNSClass::CH)), Some(ResponseCode::Refused), "version.bind and the like");
}

#[test]
fn names_that_no_host_has_are_not_asked_for() {
    let strange: [&[&[u8]]; 5] = [
        &[b"a b", b"example"],
        &[b"a.b", b"example"],
        &[b"a\0b", b"example"],
        &[b"127", b"0", b"0", b"1"],
        &[b"a", b"0x7f"],
    ];
    for labels in strange {
        let name = Name::from_labels(labels.iter().copied()).unwrap();
        assert_eq!(code(&query_of(name.clone(), RecordType::A)), Some(ResponseCode::NXDomain), "{name}");
    }
    assert_eq!(code(&query(".", RecordType::NS)), Some(ResponseCode::Refused));
}

fn any_query() -> impl Strategy<Value = Vec<u8>> {
    let labels = proptest::collection::vec("[a-zA-Z0-9_. -]{1,20}", 1..6);
    let any_name =
        labels.prop_map(|labels| Name::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap());
    let ours =
        proptest::sample::select(vec!["localhost.", "host.agentos.internal.", "2.2.0.10.in-addr.arpa.", "."]);
    let names = prop_oneof![any_name, ours.prop_map(name)];
    (names, any::<u16>()).prop_map(|(name, kind)| query_of(name, RecordType::from(kind)))
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    for (transport, limit) in [(Transport::Udp, 4_096), (Transport::Tcp, 65_535)] {
        let Some(answer) = answer(bytes, transport) else { continue };
        prop_assert!(answer.len() <= limit);
        prop_assert_eq!(&answer[..2], &bytes[..2], "the id is the query's");
        let message = Message::from_vec(&answer).unwrap();
        if transport == Transport::Udp && message.edns.is_none() {
            prop_assert!(answer.len() <= 512);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes)?;
    }

    #[test]
    fn queries_with_bytes_changed_cut_or_added_do_no_harm(
        query in any_query(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = query;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len()) / 4);
        bytes.extend(tail);
        check(&bytes)?;
    }
}
