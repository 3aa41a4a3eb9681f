//! How long answers may be, and queries over a stream.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// More than fits into a datagram, and of different lengths, so that a cut falls anywhere.
async fn verbose_server() -> Server {
    Server::start(|query, over, _| {
        let text = |number: usize| RData::TXT(TXT::new(vec!["x".repeat(20 + number % 7)]));
        let records = (0..200).map(|number| Record::from_rdata(query.name().clone(), 60, text(number)));
        match over {
            Over::Udp => {
                Answer::code(ResponseCode::NoError).map(|answer| Answer { truncated: true, ..answer })
            }
            Over::Tcp => Answer::records(records.collect()),
        }
    })
    .await
}

fn query_with_size(text: &str, bytes: u16) -> Vec<u8> {
    let mut message = Message::from_vec(&query(text, RecordType::TXT)).unwrap();
    let mut edns = Edns::new();
    edns.set_max_payload(bytes);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

#[tokio::test]
async fn what_a_server_cuts_is_asked_for_again_over_tcp() {
    let server = verbose_server().await;
    let vm = Vm::asking(&[&server]);
    let answer = vm.ask("long.example.", RecordType::TXT).await;
    assert_eq!((answer.answers.len(), answer.truncation), (200, false));
    let over: Vec<Over> = server.asked().into_iter().map(|(.., over)| over).collect();
    assert_eq!(over, [Over::Udp, Over::Tcp]);
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_a_datagram_is_cut_and_says_so() {
    let server = verbose_server().await;
    let vm = Vm::asking(&[&server]);
    let plain = query("long.example.", RecordType::TXT);
    for (query, limit) in [
        (plain, 512),
        (query_with_size("long.example.", 0), 512),
        (query_with_size("long.example.", 1_232), 1_232),
        (query_with_size("long.example.", 65_535), 4_096),
    ] {
        let answer = vm.resolver.answer(&query, Transport::Udp, &everything).await.unwrap();
        assert!(answer.len() <= limit && answer.len() > limit - 80, "{} of {limit}", answer.len());
        let message = Message::from_vec(&answer).unwrap();
        assert!(message.truncation && !message.answers.is_empty());
        assert_eq!(message.edns.is_some(), Message::from_vec(&query).unwrap().edns.is_some());
    }
    let whole = vm.resolver.answer(&query_with_size("long.example.", 512), Transport::Tcp, &everything).await;
    assert!(!Message::from_vec(&whole.unwrap()).unwrap().truncation);
}

#[tokio::test]
async fn an_unknown_version_of_edns_is_told_so() {
    let vm = Vm::asking(&[]);
    let mut message = Message::from_vec(&query_with_size("a.example.", 1_232)).unwrap();
    message.edns.as_mut().unwrap().set_version(1);
    let bytes = message.to_vec().unwrap();
    let answer = vm.resolver.answer(&bytes, Transport::Udp, &everything).await.unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    // The upper bits of the code are in the record of the options, without which it would read as success.
    assert_eq!((u16::from(answer.response_code), answer.edns.unwrap().version()), (16, 0));
}

async fn send(stream: &mut DuplexStream, bytes: &[u8]) {
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
}

async fn receive(stream: &mut DuplexStream) -> Message {
    let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn a_stream_carries_many_queries_whose_answers_keep_their_order() {
    let server =
        Server::start(|query, _, _| Answer::records(vec![a(&query.name().to_ascii(), 60, [203, 0, 113, 7])]))
            .await;
    let vm = Vm::asking(&[&server]);
    let (mut client, stream) = tokio::io::duplex(64);
    let client = async move {
        for text in ["one.example.", "two.example."] {
            send(&mut client, &query(text, RecordType::A)).await;
        }
        for text in ["one.example.", "two.example."] {
            assert_eq!(receive(&mut client).await.queries[0].name(), &name(text));
        }
    };
    let serving = tokio::spawn(async move { vm.resolver.serve_stream(stream, &everything).await });
    client.await;
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_idles_stalls_or_talks_nonsense_is_ended() {
    let vm = Vm::asking(&[]);
    let idle = agentos_netstack::dns::IDLE;
    let too_long = [&[0xff, 0xff][..], &[0; 100]].concat();
    let no_query = [&[0, 3][..], b"abc"].concat();
    for (sent, patience) in [
        (&[][..], idle),
        (&[0][..], idle),
        (&[0, 40, 1, 2, 3][..], idle),
        (&too_long[..], Duration::ZERO),
        (&no_query[..], Duration::ZERO),
    ] {
        let (mut client, stream) = tokio::io::duplex(4_096);
        client.write_all(sent).await.unwrap();
        let start = tokio::time::Instant::now();
        vm.resolver.serve_stream(stream, &everything).await;
        assert!(start.elapsed() <= patience + Duration::from_millis(10), "{sent:?}: {:?}", start.elapsed());
    }
    // A client that takes no answers is no better.
    let (mut client, stream) = tokio::io::duplex(64);
    let start = tokio::time::Instant::now();
    let asking = async {
        for _ in 0..3 {
            send(&mut client, &query("localhost.", RecordType::A)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = vm.resolver.serve_stream(stream, &everything) => {}
        () = asking => {}
    }
    assert!(start.elapsed() <= idle + Duration::from_millis(10), "{:?}", start.elapsed());
}
