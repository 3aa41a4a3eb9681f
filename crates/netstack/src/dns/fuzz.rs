//! What must hold for the resolver, whatever a guest asks and a name server answers. Fuzz targets bring bytes that a
//! fuzzer makes up, the tests at the end theirs.

#![allow(clippy::expect_used, reason = "it is called by tests, which fail by panicking")]

use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{DnsResponse, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::net::NetError;
use tokio::runtime::{Builder, Runtime};

use super::{MAX_RECORDS, MAX_TTL, MIN_TTL, Resolver, Transport, Upstream, host_name};
use crate::name::HostName;
use crate::pins::Pins;

/// The policy of the test refuses this name and all below it.
const REFUSED: &str = "evil.example";

/// Chains are short, see `chain`.
const MAX_ALIASES: usize = 16;

/// # Panics
///
/// If what is answered to these bytes is no answer to them, or longer than it may be.
pub fn query(bytes: &[u8]) {
    let (resolver, _) = resolver(&Upstream::servers(&[]));
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Some(answer) = answer(&resolver, bytes, transport) {
            check_answer(bytes, &answer, transport);
        }
    }
}

/// The bytes are what a name server says to a question for `www.a.example`, of a type that the first of them decides.
///
/// # Panics
///
/// If anything in the answer that a guest gets, or a pin, isn't about the name that was asked for.
pub fn upstream(bytes: &[u8]) {
    let Some((kind, said)) = bytes.split_first() else { return };
    let kinds = [RecordType::A, RecordType::AAAA, RecordType::CNAME, RecordType::TXT, RecordType::SRV];
    let kind = kinds[usize::from(*kind) % kinds.len()];
    let name = Name::from_ascii("www.a.example.").expect("a name");
    let question = Query::query(name.clone(), kind);
    let upstream = Upstream::servers(&[]);
    let Ok(response) = DnsResponse::from_buffer(said.to_vec()) else { return };
    let said = hickory_resolver::net::DnsError::from_response(response).map_err(NetError::from);
    upstream.current().keep(&question, said.as_ref());

    let (resolver, pins) = resolver(&upstream);
    let mut query = Message::query();
    query.add_query(question);
    let query = query.to_vec().expect("a query");
    // All of it is in here: over UDP some of the addresses might be cut off, which are pinned nevertheless.
    let Some(answer) = answer(&resolver, &query, Transport::Tcp) else { return };
    let answer = check_answer(&query, &answer, Transport::Tcp);
    assert!(answer.answers.len() <= MAX_RECORDS + MAX_ALIASES, "{} records", answer.answers.len());
    let mut owner = name.clone();
    for record in &answer.answers {
        assert_eq!(record.name.to_lowercase(), owner.to_lowercase(), "it is about another name: {record}");
        assert!((MIN_TTL..=MAX_TTL).contains(&record.ttl), "it lives for {} s", record.ttl);
        if let RData::CNAME(alias) = &record.data
            && kind != RecordType::CNAME
        {
            assert!(host_name(&alias.0).is_some_and(|alias| may_ask(&alias)), "a refused alias is followed");
            owner = alias.0.clone();
        } else {
            assert_eq!(record.record_type(), kind);
        }
    }
    let host = HostName::parse("www.a.example").expect("a name");
    for record in &answer.answers {
        if let Some(address) = record.data.ip_addr() {
            assert_eq!(
                pins.names_of(address, Instant::now()),
                std::slice::from_ref(&host),
                "{address} is not pinned"
            );
        }
    }
}

/// What the answer says, if it is a proper one.
fn check_answer(query: &[u8], answer: &[u8], transport: Transport) -> Message {
    let message = Message::from_vec(answer).expect("an answer that can be read");
    let limit = match (transport, &message.edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, Some(_)) => 4_096,
        (Transport::Udp, None) => 512,
    };
    assert!(answer.len() <= limit, "{} bytes over {transport:?}", answer.len());
    assert_eq!(query.get(..2), answer.get(..2), "the id is the query's");
    assert_ne!(answer[2] & 0x80, 0, "an answer says that it is one");
    let code = message.response_code;
    assert!(message.answers.is_empty() || code == ResponseCode::NoError || code == ResponseCode::NXDomain);
    message
}

fn resolver(upstream: &Upstream) -> (Resolver, Arc<Pins>) {
    let pins = Arc::new(Pins::default());
    (Resolver::new(upstream.clone(), Vec::new(), Arc::clone(&pins)).with_ipv6(true), pins)
}

fn may_ask(name: &HostName) -> bool {
    name.as_str() != REFUSED && !name.as_str().ends_with(&format!(".{REFUSED}"))
}

/// What needs nobody outside is there at once, and here is nobody outside.
fn answer(resolver: &Resolver, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(resolver.answer(query, transport, &may_ask)))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};
    use proptest::prelude::*;

    use super::*;

    fn any_record() -> impl Strategy<Value = Record> {
        const NAMES: &[&str] =
            &["www.a.example.", "WWW.a.example.", "b.example.", "evil.example.", "c.b.example.", "."];
        let name = || prop::sample::select(NAMES).prop_map(|name| Name::from_ascii(name).unwrap());
        let data = prop_oneof![
            any::<u32>().prop_map(|bits| RData::A(A(bits.into()))),
            name().prop_map(|name| RData::CNAME(CNAME(name))),
        ];
        (name(), any::<u32>(), data).prop_map(|(name, ttl, data)| Record::from_rdata(name, ttl, data))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn what_a_server_says_is_passed_on_only_where_it_was_asked_for(
            kind: u8,
            records in prop::collection::vec(any_record(), 0..12),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut message = Message::query();
            message.metadata.message_type = hickory_proto::op::MessageType::Response;
            let name = Name::from_ascii("www.a.example.").unwrap();
            message.add_query(Query::query(name, RecordType::A));
            message.answers = records;
            let mut bytes = [vec![kind], message.to_vec().unwrap()].concat();
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            upstream(&bytes);
            query(&bytes[1..]);
        }
    }
}
