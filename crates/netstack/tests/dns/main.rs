//! The resolver between a guest's bytes and a name server of the test, whose log is the witness of what left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod hostile;
mod server;
mod transport;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentos_netstack::dns::{DEADLINE, MAX_RECORDS, MAX_WAITING, Resolver, Transport, Upstream};
use agentos_netstack::name::HostName;
use agentos_netstack::pins::{GRACE, Pins};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{MX, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use server::{Answer, Over, Server, a, alias, name};

fn host(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

fn everything(_: &HostName) -> bool {
    true
}

fn nothing(_: &HostName) -> bool {
    false
}

struct Vm {
    resolver: Resolver,
    pins: Arc<Pins>,
}

impl Vm {
    fn asking(servers: &[&Server]) -> Self {
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let pins = Arc::new(Pins::default());
        let hosts = vec![(host("host.agentos.internal"), IpAddr::from([10, 0, 2, 2]))];
        Self { resolver: Resolver::new(Upstream::servers(&addresses), hosts, pins.clone()), pins }
    }

    async fn ask(&self, text: &str, kind: RecordType) -> Message {
        self.ask_under(text, kind, &everything).await
    }

    async fn ask_under(
        &self,
        text: &str,
        kind: RecordType,
        may_ask: &(dyn Fn(&HostName) -> bool + Sync),
    ) -> Message {
        let answer = self.resolver.answer(&query(text, kind), Transport::Tcp, may_ask).await.unwrap();
        let message = Message::from_vec(&answer).unwrap();
        assert_eq!(message.id, 4_711);
        assert_eq!(message.queries, [Query::query(name(text), kind)]);
        message
    }

    fn names_of(&self, address: [u8; 4], later: Duration) -> Vec<HostName> {
        self.pins.names_of(IpAddr::from(address), Instant::now() + later)
    }
}

fn query(text: &str, kind: RecordType) -> Vec<u8> {
    query_of(name(text), kind)
}

fn query_of(name: Name, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 4_711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message.to_vec().unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[tokio::test]
async fn addresses_are_answered_kept_and_pinned_to_the_name_that_was_asked_for() {
    let server = Server::start(|query, _, _| {
        Answer::records(vec![a(&query.name().to_ascii(), 300, [203, 0, 113, 7])])
    })
    .await;
    let vm = Vm::asking(&[&server]);
    for _ in 0..3 {
        let answer = vm.ask("Api.Example.", RecordType::A).await;
        assert_eq!(answer.response_code, ResponseCode::NoError);
        assert!(answer.recursion_available && answer.recursion_desired && !answer.authoritative);
        assert_eq!(addresses(&answer), [IpAddr::from([203, 0, 113, 7])]);
    }
    assert_eq!(server.asked(), [("api.example.".to_owned(), RecordType::A, Over::Udp)]);
    assert_eq!(vm.names_of([203, 0, 113, 7], Duration::ZERO), [host("api.example")]);
}

#[tokio::test]
async fn the_letters_of_a_question_come_back_as_they_were_sent() {
    let server = Server::start(|query, _, _| {
        Answer::records(vec![a(&query.name().to_ascii(), 300, [203, 0, 113, 7])])
    })
    .await;
    let vm = Vm::asking(&[&server]);
    for text in ["aPi.ExAmPlE.", "ApI.eXaMpLe."] {
        let answer = vm.ask(text, RecordType::A).await;
        assert_eq!(answer.queries[0].name().to_ascii(), text);
        assert_eq!(answer.answers[0].name.to_ascii(), text);
    }
}

#[tokio::test]
async fn a_server_that_changes_its_answer_leaves_both_pinned_until_they_expire() {
    // The first answer lives for too short to be kept, so that the second question reaches the server.
    let server = Server::start(|query, _, before| {
        let (ttl, last) = if before == 0 { (0, 1) } else { (100, 2) };
        Answer::records(vec![a(&query.name().to_ascii(), ttl, [203, 0, 113, last])])
    })
    .await;
    let vm = Vm::asking(&[&server]);
    let first = vm.ask("turn.example.", RecordType::A).await;
    assert_eq!(first.answers[0].ttl, 1, "a life of nothing is told as a second");
    let deadline = Instant::now() + Duration::from_secs(10);
    let second = loop {
        let answer = vm.ask("turn.example.", RecordType::A).await;
        if addresses(&answer) != addresses(&first) {
            break answer;
        }
        assert!(Instant::now() < deadline, "the first answer never expired");
        tokio::task::yield_now().await;
    };
    assert_eq!(addresses(&second), [IpAddr::from([203, 0, 113, 2])]);
    assert_eq!(server.asked().len(), 2);
    for last in [1, 2] {
        assert_eq!(vm.names_of([203, 0, 113, last], Duration::ZERO), [host("turn.example")]);
    }
    let later = GRACE + Duration::from_secs(30);
    assert!(vm.names_of([203, 0, 113, 1], later).is_empty());
    assert_eq!(vm.names_of([203, 0, 113, 2], later), [host("turn.example")]);
    assert!(vm.names_of([203, 0, 113, 2], GRACE + Duration::from_secs(101)).is_empty());
}

#[tokio::test]
async fn nobody_is_told_of_a_life_longer_than_an_hour() {
    let server =
        Server::start(|_, _, _| Answer::records(vec![a("long.example.", 600_000, [203, 0, 113, 7])])).await;
    let vm = Vm::asking(&[&server]);
    for _ in 0..2 {
        let ttl = vm.ask("long.example.", RecordType::A).await.answers[0].ttl;
        assert!((3_590..=3_600).contains(&ttl), "{ttl}");
    }
    assert!(vm.names_of([203, 0, 113, 7], GRACE + Duration::from_secs(3_601)).is_empty());
}

#[tokio::test]
async fn names_and_records_that_are_not_there_come_with_the_zone_that_says_so() {
    let server = Server::start(|query, _, _| {
        let gone = query.name() == &name("gone.example.");
        Answer::nothing(if gone { ResponseCode::NXDomain } else { ResponseCode::NoError }, "example.")
    })
    .await;
    let vm = Vm::asking(&[&server]);
    for _ in 0..2 {
        for (text, code) in
            [("gone.example.", ResponseCode::NXDomain), ("bare.example.", ResponseCode::NoError)]
        {
            let answer = vm.ask(text, RecordType::A).await;
            assert_eq!(answer.response_code, code);
            assert!(answer.answers.is_empty());
            assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        }
    }
    assert_eq!(server.asked().len(), 2, "what isn't there is kept, too");
}

#[tokio::test]
async fn a_refused_name_is_refused_at_once_whatever_is_asked_and_not_a_byte_leaves() {
    let server = Server::start(|_, _, _| Answer::code(ResponseCode::NXDomain)).await;
    let vm = Vm::asking(&[&server]);
    let secret = format!("{}.{}.evil.example.", "k".repeat(63), "5".repeat(63));
    let kinds = [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::MX, RecordType::NS];
    for kind in kinds.into_iter().chain([RecordType::ANY, RecordType::HTTPS, RecordType::Unknown(65_280)]) {
        assert_eq!(
            vm.ask_under(&secret, kind, &nothing).await.response_code,
            ResponseCode::Refused,
            "{kind}"
        );
    }
    assert_eq!(server.asked(), []);
    // The control: the same question leaves where it may.
    vm.ask(&secret, RecordType::A).await;
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn an_alias_to_a_refused_name_is_refused_and_not_followed() {
    let server = Server::start(|query, _, _| {
        let link = alias("good.example.", "evil.example.");
        match query.name().to_ascii().as_str() {
            "good.example." => Answer::records(vec![link]),
            "whole.example." => Answer::records(vec![
                alias("whole.example.", "good.example."),
                link,
                a("evil.example.", 60, [203, 0, 113, 66]),
            ]),
            _ => Answer::records(vec![a("evil.example.", 60, [203, 0, 113, 66])]),
        }
    })
    .await;
    let vm = Vm::asking(&[&server]);
    let not_evil = |name: &HostName| name.as_str() != "evil.example";
    for text in ["good.example.", "whole.example."] {
        let answer = vm.ask_under(text, RecordType::A, &not_evil).await;
        assert_eq!(answer.response_code, ResponseCode::Refused, "{text}");
        assert!(answer.answers.is_empty());
    }
    assert!(server.asked().iter().all(|(asked, ..)| asked != "evil.example."));
    assert!(vm.names_of([203, 0, 113, 66], Duration::ZERO).is_empty());
    // Another policy over the same cache: the link is followed, and the whole chain comes back.
    let answer = vm.ask("good.example.", RecordType::A).await;
    assert_eq!(
        answer.answers,
        [alias("good.example.", "evil.example."), a("evil.example.", 60, [203, 0, 113, 66])]
    );
    assert_eq!(vm.names_of([203, 0, 113, 66], Duration::ZERO), [host("good.example")]);
}

#[tokio::test]
async fn aliases_that_lead_in_a_circle_or_to_our_own_names_end() {
    let server = Server::start(|query, _, _| match query.name().to_ascii().as_str() {
        "one.example." => Answer::records(vec![alias("one.example.", "two.example.")]),
        "two.example." => Answer::records(vec![alias("two.example.", "one.example.")]),
        inward => {
            Answer::records(vec![alias(inward, "x.localhost."), a("x.localhost.", 60, [203, 0, 113, 1])])
        }
    })
    .await;
    let vm = Vm::asking(&[&server]);
    assert_eq!(vm.ask("one.example.", RecordType::A).await.response_code, ResponseCode::ServFail);
    assert_eq!(vm.ask("inward.example.", RecordType::A).await.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn records_of_other_names_are_neither_passed_on_nor_pinned() {
    let server = Server::start(|_, _, _| {
        Answer::records(vec![
            a("bank.example.", 60, [203, 0, 113, 66]),
            a("mine.example.", 60, [203, 0, 113, 7]),
        ])
    })
    .await;
    let vm = Vm::asking(&[&server]);
    let answer = vm.ask("mine.example.", RecordType::A).await;
    assert_eq!(addresses(&answer), [IpAddr::from([203, 0, 113, 7])]);
    assert!(vm.names_of([203, 0, 113, 66], Duration::ZERO).is_empty());
}

#[tokio::test]
async fn no_more_addresses_are_taken_than_a_name_can_use() {
    let server = Server::start(|query, over, _| {
        if over == Over::Udp {
            return Answer::code(ResponseCode::NoError).map(|answer| Answer { truncated: true, ..answer });
        }
        let owner = query.name().to_ascii();
        Answer::records((0..1_000_u32).map(|number| a(&owner, 60, number.to_be_bytes())).collect())
    })
    .await;
    let vm = Vm::asking(&[&server]);
    let answer = vm.ask("flood.example.", RecordType::A).await;
    assert_eq!(answer.answers.len(), MAX_RECORDS);
    assert_eq!(vm.names_of([0, 0, 0, 255], Duration::ZERO), [host("flood.example")]);
    assert!(vm.names_of([0, 0, 1, 0], Duration::ZERO).is_empty());
}

#[tokio::test]
async fn text_service_and_mail_records_pass() {
    let server = Server::start(|query, _, _| {
        let data = match query.query_type() {
            RecordType::TXT => RData::TXT(TXT::new(vec!["v=spf1 -all".to_owned()])),
            RecordType::SRV => RData::SRV(SRV::new(1, 2, 5_060, name("sip.example."))),
            _ => RData::MX(MX::new(10, name("mail.example."))),
        };
        Answer::records(vec![Record::from_rdata(query.name().clone(), 60, data)])
    })
    .await;
    let vm = Vm::asking(&[&server]);
    for (text, kind) in
        [("example.", RecordType::TXT), ("_sip._tcp.example.", RecordType::SRV), ("example.", RecordType::MX)]
    {
        let answer = vm.ask(text, kind).await;
        assert_eq!(answer.answers.len(), 1, "{kind}");
        assert_eq!(answer.answers[0].record_type(), kind);
    }
    assert_eq!(server.asked().len(), 3, "targets are not asked for by us");
}

#[tokio::test]
async fn what_would_lead_around_names_is_answered_with_nothing() {
    let server = Server::start(|_, _, _| Answer::code(ResponseCode::ServFail)).await;
    let vm = Vm::asking(&[&server]);
    for kind in [RecordType::HTTPS, RecordType::SVCB, RecordType::AAAA, RecordType::DNSKEY, RecordType::NULL]
    {
        let answer = vm.ask("api.example.", kind).await;
        assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    assert_eq!(vm.ask("api.example.", RecordType::AXFR).await.response_code, ResponseCode::Refused);
    let any = vm.ask("api.example.", RecordType::ANY).await;
    assert_eq!(any.answers[0].record_type(), RecordType::HINFO);
    assert_eq!(server.asked(), []);
}

#[tokio::test]
async fn a_vm_with_ipv6_asks_for_its_addresses() {
    let server = Server::start(|query, _, _| {
        let data = RData::from("2001:db8::7".parse::<IpAddr>().unwrap());
        Answer::records(vec![Record::from_rdata(query.name().clone(), 60, data)])
    })
    .await;
    let mut vm = Vm::asking(&[&server]);
    vm.resolver = vm.resolver.with_ipv6(true);
    let answer = vm.ask("api.example.", RecordType::AAAA).await;
    let address: IpAddr = "2001:db8::7".parse().unwrap();
    assert_eq!(addresses(&answer), [address]);
    assert_eq!(vm.pins.names_of(address, Instant::now()), [host("api.example")]);
}

#[tokio::test]
async fn names_of_the_vm_are_answered_without_asking() {
    let server = Server::start(|_, _, _| Answer::code(ResponseCode::ServFail)).await;
    let vm = Vm::asking(&[&server]);
    // They are no business of the policy: they lead nowhere but to ourselves.
    for (text, address) in [
        ("host.agentos.internal.", [10, 0, 2, 2]),
        ("localhost.", [127, 0, 0, 1]),
        ("app.localhost.", [127, 0, 0, 1]),
    ] {
        let answer = vm.ask_under(text, RecordType::A, &nothing).await;
        assert_eq!((addresses(&answer), answer.answers[0].ttl), (vec![IpAddr::from(address)], 60), "{text}");
        let empty = vm.ask_under(text, RecordType::MX, &nothing).await;
        assert_eq!((empty.response_code, empty.answers.len()), (ResponseCode::NoError, 0), "{text}");
        assert!(addresses(&vm.ask(text, RecordType::AAAA).await).is_empty());
    }
    assert_eq!(vm.names_of([10, 0, 2, 2], Duration::ZERO), [host("host.agentos.internal")]);
    assert!(vm.names_of([127, 0, 0, 1], Duration::ZERO).is_empty());
    for text in ["nobody.agentos.internal.", "3.2.0.10.in-addr.arpa.", "1.1.168.192.in-addr.arpa."] {
        assert_eq!(vm.ask(text, RecordType::PTR).await.response_code, ResponseCode::NXDomain, "{text}");
    }
    for (text, target) in
        [("2.2.0.10.in-addr.arpa.", "host.agentos.internal."), ("1.0.0.127.in-addr.arpa.", "localhost.")]
    {
        let answer = vm.ask(text, RecordType::PTR).await;
        assert!(matches!(&answer.answers[0].data, RData::PTR(found) if found.0 == name(target)), "{text}");
    }
    assert_eq!(server.asked(), []);
    // The control: addresses of the public network are asked for.
    vm.ask("8.8.8.8.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails() {
    let broken = Server::start(|_, _, _| Answer::code(ResponseCode::Refused)).await;
    let sound =
        Server::start(|query, _, _| Answer::records(vec![a(&query.name().to_ascii(), 60, [203, 0, 113, 7])]))
            .await;
    let vm = Vm::asking(&[&broken, &sound]);
    assert_eq!(vm.ask("one.example.", RecordType::A).await.answers.len(), 1);
    assert_eq!(vm.ask("two.example.", RecordType::A).await.answers.len(), 1);
    assert_eq!(broken.asked().len(), 2, "a server that answers stays the first");
    let vm = Vm::asking(&[&broken]);
    assert_eq!(vm.ask("one.example.", RecordType::A).await.response_code, ResponseCode::ServFail);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_waited_for_once_while_another_answers() {
    let silent = Server::start(|_, _, _| None).await;
    let sound =
        Server::start(|query, _, _| Answer::records(vec![a(&query.name().to_ascii(), 60, [203, 0, 113, 7])]))
            .await;
    let vm = Vm::asking(&[&silent, &sound]);
    assert_eq!(vm.ask("one.example.", RecordType::A).await.answers.len(), 1);
    let start = tokio::time::Instant::now();
    assert_eq!(vm.ask("two.example.", RecordType::A).await.answers.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(silent.asked().iter().all(|(asked, ..)| asked == "one.example."));
}

#[tokio::test(start_paused = true)]
async fn silent_servers_are_given_up_within_the_deadline() {
    let server = Server::start(|_, _, _| None).await;
    for servers in [&[&server][..], &[&server, &server], &[&server, &server, &server]] {
        let vm = Vm::asking(servers);
        let start = tokio::time::Instant::now();
        assert_eq!(vm.ask("quiet.example.", RecordType::A).await.response_code, ResponseCode::ServFail);
        assert!(start.elapsed() <= DEADLINE, "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn more_questions_than_may_wait_fail_at_once_while_what_is_known_is_still_answered() {
    let server = Server::start(|query, _, _| {
        (query.name() == &name("known.example."))
            .then(|| Answer::records(vec![a("known.example.", 60, [203, 0, 113, 7])]))?
    })
    .await;
    let vm = Arc::new(Vm::asking(&[&server]));
    vm.ask("known.example.", RecordType::A).await;
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..MAX_WAITING {
        let vm = vm.clone();
        waiting.spawn(async move { vm.ask(&format!("n{number}.example."), RecordType::A).await });
    }
    let reached =
        |count: usize| server.asked().iter().filter(|(asked, ..)| asked.starts_with('n')).count() >= count;
    while !reached(MAX_WAITING) {
        tokio::task::yield_now().await;
    }
    let start = tokio::time::Instant::now();
    assert_eq!(vm.ask("more.example.", RecordType::A).await.response_code, ResponseCode::ServFail);
    assert_eq!(vm.ask("known.example.", RecordType::A).await.answers.len(), 1);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(server.asked().iter().all(|(asked, ..)| asked != "more.example."));
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().response_code, ResponseCode::ServFail);
    }
    // The places are free again.
    assert_eq!(vm.ask("known.example.", RecordType::A).await.answers.len(), 1);
}
