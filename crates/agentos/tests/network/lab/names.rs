//! A DNS server whose answers the test changes while it runs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// What there is under a name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    addresses: Vec<IpAddr>,
    /// Given one after the other to those who ask for addresses of the first one's family; the last stays.
    turns: Vec<IpAddr>,
    alias: Option<String>,
    failure: Option<ResponseCode>,
    ttl_s: u32,
}

impl Entry {
    pub(crate) fn addresses(addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Self { addresses, ttl_s: 60, ..Self::default() }
    }

    /// Another address for each query, as who rebinds names answers. The last stays.
    pub(crate) fn turns(addresses: &[&str]) -> Self {
        let turns = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Self { turns, ttl_s: 1, ..Self::default() }
    }

    /// Another name for the one given, whose own entry is answered with it.
    pub(crate) fn alias(name: &str) -> Self {
        Self { alias: Some(name.to_owned()), ttl_s: 60, ..Self::default() }
    }

    pub(crate) fn failure(code: ResponseCode) -> Self {
        Self { failure: Some(code), ..Self::default() }
    }
}

#[derive(Clone, Default)]
pub(crate) struct Names {
    // Both are held for a look.
    zone: Arc<Mutex<HashMap<String, Entry>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    pub(super) fn serve(datagrams: UdpSocket, streams: TcpListener) -> Self {
        let names = Self::default();
        let by_datagram = names.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, from)) = datagrams.recv_from(&mut buffer).await {
                if let Some(answer) = by_datagram.reply(&buffer[..length]) {
                    let _ = datagrams.send_to(&answer, from).await;
                }
            }
        });
        let by_stream = names.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = streams.accept().await {
                tokio::spawn(by_stream.clone().converse(stream));
            }
        });
        names
    }

    /// Sets or changes what the name stands for.
    pub(crate) fn set(&self, name: &str, entry: Entry) {
        self.zone.lock().unwrap().insert(name.to_owned(), entry);
    }

    /// The names that were asked for, in order, each as often as it was.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    async fn converse(self, mut stream: TcpStream) {
        while let Ok(length) = stream.read_u16().await {
            let mut query = vec![0; usize::from(length)];
            if stream.read_exact(&mut query).await.is_err() {
                return;
            }
            let Some(answer) = self.reply(&query) else { return };
            let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
            framed.extend(answer);
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }

    fn reply(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let name = question.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        self.asked.lock().unwrap().push(name.clone());
        let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = self.fill(&name, question.query_type, &mut answer.answers);
        answer.queries.push(question);
        answer.to_vec().ok()
    }

    fn fill(&self, name: &str, kind: RecordType, records: &mut Vec<Record>) -> ResponseCode {
        let mut zone = self.zone.lock().unwrap();
        let Some(entry) = zone.get_mut(name) else { return ResponseCode::NXDomain };
        if let Some(failure) = entry.failure {
            return failure;
        }
        let own = Name::from_ascii(format!("{name}.")).unwrap();
        if let Some(alias) = entry.alias.clone() {
            let other = Name::from_ascii(format!("{alias}.")).unwrap();
            records.push(Record::from_rdata(own, entry.ttl_s, RData::CNAME(CNAME(other))));
            drop(zone);
            return self.fill(&alias, kind, records);
        }
        let mut addresses = entry.addresses.clone();
        if let Some(turn) = entry.turns.first().copied().filter(|turn| is_kind(*turn, kind)) {
            addresses.push(turn);
            if entry.turns.len() > 1 {
                entry.turns.remove(0);
            }
        }
        for address in addresses.into_iter().filter(|address| is_kind(*address, kind)) {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            };
            records.push(Record::from_rdata(own.clone(), entry.ttl_s, data));
        }
        ResponseCode::NoError
    }
}

fn is_kind(address: IpAddr, kind: RecordType) -> bool {
    kind == if address.is_ipv4() { RecordType::A } else { RecordType::AAAA }
}
