//! As much of DNS as it takes to ask for an address and to be answered (RFC 1035).

use crate::Failure;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

const HEADER_BYTES: usize = 12;

/// Type A, class IN.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];

/// One of those set aside for examples (RFC 5737), which are as public as any.
const ANSWER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Longer than a bench takes.
const TTL_S: u32 = 3600;

/// A DNS server that knows every name, until it is dropped.
pub(crate) struct Names {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Names {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = socket.local_addr()?;
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                counted.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = answer(query.get(..length).unwrap_or_default()) {
                    // Whoever asked may have gone.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Ok(Self { address, asked, task: task.abort_handle() })
    }

    /// How many queries came here.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks for the address of a name.
pub(crate) fn query(id: u16, name: &str) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    // Recursion desired, one question.
    let mut query = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        // Names of the bench are short.
        query.push(u8::try_from(label.len()).unwrap_or(0));
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(ADDRESS);
    query
}

/// An answer is one only if it has an address.
pub(crate) fn check_answer(id: u16, answer: &[u8]) -> Result<(), Failure> {
    let number = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    let code = answer.get(3).map(|byte| byte & 0xf);
    match (number(0), code, number(6)) {
        (Some(of), Some(0), Some(records)) if of == id && records > 0 => Ok(()),
        _ => Err(format!("a name was answered with code {code:?}").into()),
    }
}

/// None: that was no query.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = HEADER_BYTES;
    loop {
        match query.get(end)? {
            0 => break,
            length => end += 1 + usize::from(*length),
        }
    }
    let question = query.get(HEADER_BYTES..end + 5)?;
    let has_address = question.ends_with(&ADDRESS);
    // An answer, recursion desired and available, no error, one question.
    let mut answer = vec![query[0], query[1], 0x81, 0x80, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0];
    answer.extend(question);
    if has_address {
        // The name is the one of the question.
        answer.extend([0xc0, 12]);
        answer.extend(ADDRESS);
        answer.extend(TTL_S.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(ANSWER.octets());
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_for_an_address_is_answered_with_one_and_others_with_none() {
        let mut query = query(7, "cached.example");
        let address = answer(&query).unwrap();
        assert!(address.ends_with(&[0, 4, 198, 51, 100, 1]));
        assert!(check_answer(7, &address).is_ok());
        assert!(check_answer(8, &address).is_err());
        let kind = query.len() - 3;
        query[kind] = 28;
        assert!(check_answer(7, &answer(&query).unwrap()).is_err());
    }

    #[test]
    fn what_is_cut_short_is_no_query() {
        let query = query(7, "cached.example");
        assert!((0..query.len()).all(|length| answer(&query[..length]).is_none()));
    }
}
