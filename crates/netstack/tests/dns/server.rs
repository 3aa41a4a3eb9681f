//! A name server on loopback that says what the test wants, over UDP and TCP, and remembers what it was asked.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Udp,
    Tcp,
}

/// What the server does about a question; the number counts the questions before this one. `None` is silence.
pub(crate) type Script = dyn Fn(&Query, Over, usize) -> Option<Answer> + Send + Sync;

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) truncated: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

impl Answer {
    pub(crate) fn code(code: ResponseCode) -> Option<Self> {
        Some(Self { code, truncated: false, answers: Vec::new(), authorities: Vec::new() })
    }

    pub(crate) fn records(answers: Vec<Record>) -> Option<Self> {
        Self::code(ResponseCode::NoError).map(|answer| Self { answers, ..answer })
    }

    pub(crate) fn nothing(code: ResponseCode, zone: &str) -> Option<Self> {
        let soa = SOA::new(name("ns.example."), name("admin.example."), 1, 3_600, 600, 86_400, 300);
        let authority = Record::from_rdata(name(zone), 300, RData::SOA(soa));
        Self::code(code).map(|answer| Self { authorities: vec![authority], ..answer })
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

pub(crate) fn a(owner: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(Ipv4Addr::from(address))))
}

pub(crate) fn alias(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 60, RData::CNAME(CNAME(name(target))))
}

/// Ends with the test that made it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<(Query, Over)>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(
        script: impl Fn(&Query, Over, usize) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = both_on_one_port().await;
        let address = udp.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let desk = Desk { script: Arc::new(script), log: log.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(desk.clone().serve_udp(udp));
        tasks.spawn(desk.serve_tcp(tcp));
        Self { address, log, _tasks: tasks }
    }

    /// What was asked, in order: name, type and way.
    pub(crate) fn asked(&self) -> Vec<(String, RecordType, Over)> {
        let log = self.log.lock().unwrap();
        log.iter().map(|(query, over)| (query.name().to_ascii(), query.query_type(), *over)).collect()
    }
}

async fn both_on_one_port() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // Another program may hold the same port of the other kind.
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

#[derive(Clone)]
struct Desk {
    script: Arc<Script>,
    log: Arc<Mutex<Vec<(Query, Over)>>>,
}

impl Desk {
    async fn serve_udp(self, socket: UdpSocket) {
        let mut buffer = vec![0; 4_096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(answer) = self.answer(&buffer[..length], Over::Udp) {
                socket.send_to(&answer, peer).await.unwrap();
            }
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(self.clone().serve_connection(stream));
        }
    }

    async fn serve_connection(self, mut stream: TcpStream) {
        while let Ok(length) = stream.read_u16().await {
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await.unwrap();
            let Some(answer) = self.answer(&query, Over::Tcp) else { continue };
            stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    }

    fn answer(&self, bytes: &[u8], over: Over) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).unwrap();
        let question = query.queries[0].clone();
        let before = {
            let mut log = self.log.lock().unwrap();
            log.push((question.clone(), over));
            log.len() - 1
        };
        let said = (self.script)(&question, over, before)?;
        let mut message = Message::error_msg(query.id, query.op_code, said.code);
        message.metadata.truncation = said.truncated;
        message.add_query(question);
        message.add_answers(said.answers);
        message.add_authorities(said.authorities);
        Some(message.to_vec().unwrap())
    }
}
