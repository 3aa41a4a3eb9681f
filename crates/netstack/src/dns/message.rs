//! Queries and answers as bytes.
//!
//! The header is looked at before anything else is parsed, because it says how much there is to parse.

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

/// Longest query that is parsed. A name has 255 bytes at most; the rest is room for options.
pub const MAX_QUERY_BYTES: usize = 4_096;

/// Answers over UDP to a client that says nothing about its size: RFC 1035, section 4.2.1.
const PLAIN_UDP_BYTES: u16 = 512;

/// What we give over UDP at most, whatever a client says it would take.
const MAX_UDP_BYTES: u16 = 4_096;

/// What we say that we take over UDP: what goes through any network in one piece.
const OUR_UDP_BYTES: u16 = 1_232;

/// An OPT record without options: root, type, class, TTL, length.
const OPT_BYTES: u16 = 11;

/// How a query came, which says how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// 512 bytes, or what the client says it takes, up to 4,096.
    Udp,
    /// 65,535 bytes.
    Tcp,
}

/// What of a query comes back in its answer.
#[derive(Debug)]
pub(super) struct Envelope {
    id: u16,
    op_code: OpCode,
    recursion_desired: bool,
    /// As it came: clients compare it to the letter, and some mix capitals in to know forged answers.
    question: Option<Query>,
    /// The size that the client takes over UDP, if it speaks EDNS.
    edns_bytes: Option<u16>,
}

/// What came, if it was a query at all.
#[derive(Debug)]
pub(super) enum Incoming {
    Question(Envelope, Query),
    Fault(Envelope, ResponseCode),
}

/// What is answered.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// The zone that knows of nothing, which says for how long that may be believed.
    pub(super) authority: Option<Record>,
}

impl Default for Reply {
    /// There is such a name, but nothing of what was asked for.
    fn default() -> Self {
        Self::code(ResponseCode::NoError)
    }
}

impl Reply {
    pub(super) fn code(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: None }
    }

    pub(super) fn records(answers: Vec<Record>) -> Self {
        Self { code: ResponseCode::NoError, answers, authority: None }
    }
}

/// Reads what came. `None` for what a server must not answer: less than a header, or itself an answer, to which
/// another answer would be the start of a conversation without end.
pub(super) fn read(bytes: &[u8]) -> Option<Incoming> {
    let Header { metadata, counts } = Header::read(&mut BinDecoder::new(bytes)).ok()?;
    if metadata.message_type != MessageType::Query {
        return None;
    }
    let mut envelope = Envelope {
        id: metadata.id,
        op_code: metadata.op_code,
        recursion_desired: metadata.recursion_desired,
        question: None,
        edns_bytes: None,
    };
    if metadata.op_code != OpCode::Query {
        return Some(Incoming::Fault(envelope, ResponseCode::NotImp));
    }
    let parsed = (bytes.len() <= MAX_QUERY_BYTES && counts.queries == 1).then(|| Message::from_vec(bytes));
    let Some(Ok(message)) = parsed else {
        return Some(Incoming::Fault(envelope, ResponseCode::FormErr));
    };
    envelope.edns_bytes = message.edns.as_ref().map(Edns::max_payload);
    let Some(question) = message.queries.into_iter().next() else {
        return Some(Incoming::Fault(envelope, ResponseCode::FormErr));
    };
    envelope.question = Some(question.clone());
    if message.edns.is_some_and(|edns| edns.version() > 0) {
        return Some(Incoming::Fault(envelope, ResponseCode::BADVERS));
    }
    if question.query_class() != DNSClass::IN {
        return Some(Incoming::Fault(envelope, ResponseCode::Refused));
    }
    Some(Incoming::Question(envelope, question))
}

impl Envelope {
    /// The bytes of an answer, no more than the client takes over this transport.
    pub(super) fn seal(self, reply: Reply, transport: Transport) -> Option<Vec<u8>> {
        let limit = match (transport, self.edns_bytes) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP_BYTES,
            (Transport::Udp, Some(bytes)) => bytes.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES),
        };
        let mut message = self.message(reply);
        if let Some(bytes) = fit(&mut message, limit) {
            return Some(bytes);
        }
        // What a server told us can be read, but not written: nobody has the answer then.
        message.metadata.response_code = ResponseCode::ServFail;
        message.answers.clear();
        message.authorities.clear();
        fit(&mut message, limit)
    }

    fn message(self, reply: Reply) -> Message {
        let mut message = Message::response(self.id, self.op_code);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = reply.code;
        message.answers = reply.answers;
        message.authorities.extend(reply.authority);
        if let Some(question) = self.question {
            for record in message.answers.iter_mut().filter(|record| record.name == *question.name()) {
                record.name = question.name().clone();
            }
            message.queries.push(question);
        }
        if self.edns_bytes.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(OUR_UDP_BYTES);
            message.edns = Some(edns);
        }
        message
    }
}

/// The message in at most `limit` bytes: as many of its answers as there is room for, and a mark if these aren't all.
/// They are not left out altogether, because there are clients that never ask again over TCP.
fn fit(message: &mut Message, limit: u16) -> Option<Vec<u8>> {
    let options = message.edns.take();
    let room = limit - options.as_ref().map_or(0, |_| OPT_BYTES);
    let written = encode(message, room)?;
    let Header { metadata: Metadata { truncation, .. }, counts } =
        Header::read(&mut BinDecoder::new(&written)).ok()?;
    if truncation {
        message.metadata.truncation = true;
        message.answers.truncate(usize::from(counts.answers));
        message.authorities.truncate(usize::from(counts.authorities));
    }
    message.edns = options;
    encode(message, limit)
}

fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(PLAIN_UDP_BYTES));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}
