//! A registry on loopback whose every path behaves as its test wants.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agentos_agents::store::RegistrySettings;

/// What a registry does with the requests for one path.
pub(crate) type Behaviour = Box<dyn Fn(&Request, &mut TcpStream) + Send + Sync>;

pub(crate) struct Request {
    /// How many requests for this path came before.
    pub(crate) number: usize,
    headers: HashMap<String, String>,
}

impl Request {
    /// The first byte a range request asks for.
    pub(crate) fn offset(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

pub(crate) struct FakeRegistry {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl FakeRegistry {
    pub(crate) fn start(paths: Vec<(String, Behaviour)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let paths: Arc<Vec<_>> =
            Arc::new(paths.into_iter().map(|(p, b)| (p, b, AtomicUsize::new(0))).collect());
        let (stopping, log) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (paths, log) = (Arc::clone(&paths), Arc::clone(&log));
                std::thread::spawn(move || {
                    let _ = serve(&mut stream.unwrap(), &paths, &log);
                });
            }
        });
        Self { address, stop, thread: Some(thread), seen }
    }

    pub(crate) fn settings(&self) -> RegistrySettings {
        RegistrySettings::for_registry(format!("http://{}/npm", self.address))
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn serve(
    stream: &mut TcpStream,
    paths: &[(String, Behaviour, AtomicUsize)],
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let range = headers.get("range").map(|range| format!(" {range}")).unwrap_or_default();
    let auth = headers.get("authorization").map(|value| format!(" auth={value}")).unwrap_or_default();
    log.lock().unwrap().push(format!("{path}{range}{auth}"));
    match paths.iter().find(|(known, ..)| *known == path) {
        Some((_, behaviour, count)) => {
            let number = count.fetch_add(1, Ordering::SeqCst);
            behaviour(&Request { number, headers }, stream);
        }
        None => answer(stream, "404 Not Found", &[], b""),
    }
    Ok(())
}

pub(crate) fn answer(stream: &mut TcpStream, status: &str, headers: &[String], body: &[u8]) {
    let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for header in headers {
        let _ = write!(stream, "{header}\r\n");
    }
    let _ = stream.write_all(b"\r\n");
    let _ = stream.write_all(body);
}

/// Serves a body, or the rest of it that is asked for.
pub(crate) fn answer_range(request: &Request, stream: &mut TcpStream, body: &[u8]) {
    match request.offset() {
        Some(from) if from < body.len() => {
            let range = format!("Content-Range: bytes {from}-{}/{}", body.len() - 1, body.len());
            answer(stream, "206 Partial Content", &[range], &body[from..]);
        }
        Some(_) => answer(stream, "416 Range Not Satisfiable", &[], b""),
        None => answer(stream, "200 OK", &[], body),
    }
}

pub(crate) fn good(body: Vec<u8>) -> Behaviour {
    Box::new(move |request, stream| answer_range(request, stream, &body))
}
