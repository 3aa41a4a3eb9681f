//! Servers of our own that the guest's connections end with.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::egress::{Facts, Shared};
use super::stats::Counter;
use super::tell::{self, Asker, Refusals};
use crate::border::{self, BorderEvent, Outside, Upstream};
use crate::event::NetworkEventKind;
use crate::name::HostName;

impl Shared {
    /// Answers the queries of a connection to the resolver.
    pub(super) async fn serve_resolver(&self, stream: DuplexStream, facts: &Facts) {
        let (stream, refusals, telling) = tell::attentive(stream);
        let serve = async {
            let may_ask = |name: &HostName| match self.query_refusal(name) {
                Some(refused) => {
                    refusals.add(self, refused);
                    false
                }
                None => true,
            };
            self.resolver.serve_stream(stream, &may_ask).await;
            // Ends what is told.
            drop(refusals);
        };
        tokio::join!(serve, telling.tell_all(self, Asker::from(facts)));
    }

    /// Serves a connection to the gateway.
    pub(super) async fn serve_gateway(self: &Arc<Self>, stream: DuplexStream, facts: &Facts) {
        let (stream, refusals, telling) = tell::attentive(stream);
        let outside = self.outside(refusals, |_| Some("gateway".to_owned()));
        let serve = async {
            self.border.serve_gateway(stream, &outside).await;
            drop(outside);
        };
        tokio::join!(serve, telling.tell_all(self, Asker::from(facts)));
    }

    /// Serves a connection whose TLS ends here. The policy has let it pass, and the name that it claims led there.
    pub(super) async fn intercept(self: &Arc<Self>, stream: DuplexStream, facts: &Facts, name: HostName) {
        let (stream, refusals, telling) = tell::attentive(stream);
        let outside = self.outside(refusals, |upstream| Some(format!("secret for {}", upstream?)));
        let serve = async {
            self.border.intercept(stream, facts.key.remote, name, &outside).await;
            drop(outside);
        };
        tokio::join!(serve, telling.tell_all(self, Asker::from(facts)));
    }

    /// Serves a connection that speaks plain HTTP, each of whose requests is held against the policy. `open` is a
    /// connection to its destination that stands already, if there is one.
    pub(super) async fn check_hosts(
        self: &Arc<Self>,
        stream: DuplexStream,
        facts: Arc<Facts>,
        open: Option<TcpStream>,
    ) {
        let (stream, refusals, telling) = tell::attentive(stream);
        let (shared, teller, refused) = (Arc::clone(self), Arc::clone(self), Arc::clone(&facts));
        // Taken once, by the first request.
        let open = Arc::new(Mutex::new(open));
        let outside = Outside {
            dial: Arc::new(move |upstream| {
                let (shared, open) = (Arc::clone(&shared), Arc::clone(&open));
                Box::pin(async move {
                    let open = open.lock().unwrap_or_else(PoisonError::into_inner).take();
                    match open {
                        Some(stream) => shared.counted(stream, &upstream),
                        None => shared.dial(&upstream).await,
                    }
                })
            }),
            events: Arc::new(move |event| {
                let BorderEvent::Refused { upstream, refusal } = event else { return };
                match refusal {
                    border::Refusal::Host { name, reason } => {
                        teller.stats.refused();
                        let told = teller.refusal_of(&refused, name.as_ref(), &reason);
                        refusals.add(&teller, told);
                    }
                    border::Refusal::Request | border::Refusal::OtherHost | border::Refusal::Method => {
                        teller.note(&refusals, BorderEvent::Refused { upstream, refusal }, None);
                    }
                    // An upstream that fails is no word of ours.
                    _ => {}
                }
            }),
        };
        let allowed = |name: Option<&HostName>| self.decide_request(&facts, name);
        let serve = async {
            self.border.check_hosts(stream, facts.key.remote, &allowed, &outside).await;
            drop(outside);
        };
        tokio::join!(serve, telling.tell_all(self, Asker::from(&*facts)));
    }

    /// `rule` says what was declared for an upstream.
    fn outside(
        self: &Arc<Self>,
        refusals: Refusals,
        rule: impl Fn(Option<&Upstream>) -> Option<String> + Send + Sync + 'static,
    ) -> Outside {
        let (dialer, teller) = (Arc::clone(self), Arc::clone(self));
        Outside {
            dial: Arc::new(move |upstream| {
                let shared = Arc::clone(&dialer);
                Box::pin(async move { shared.dial(&upstream).await })
            }),
            events: Arc::new(move |event| {
                let rule = rule(upstream(&event));
                teller.note(&refusals, event, rule);
            }),
        }
    }

    /// Connects for the border. Where the guest had chosen the address, the policy has allowed it; a route of the gateway
    /// is what the host declared, wherever it leads.
    async fn dial(&self, upstream: &Upstream) -> io::Result<border::Connected> {
        let stream = match upstream.address {
            Some(address) => TcpStream::connect(address).await?,
            None => {
                let name = upstream.name.as_ref().ok_or(io::ErrorKind::NotFound)?;
                let addresses = self.resolver.addresses(name).await?;
                let targets: Vec<SocketAddr> =
                    addresses.into_iter().map(|address| SocketAddr::new(address, upstream.port)).collect();
                TcpStream::connect(targets.as_slice()).await?
            }
        };
        // Heads and events are small and urgent, and a host that vanished is to be found out about.
        super::tcp::prepare(&stream)?;
        self.counted(stream, upstream)
    }

    /// The connection, what goes over which is counted as traffic with whoever is at its other end.
    fn counted(&self, stream: TcpStream, upstream: &Upstream) -> io::Result<border::Connected> {
        let name = upstream.name.as_ref().map(HostName::to_string);
        let counter = self.stats.count(stream.peer_addr()?.ip(), name);
        Ok(Box::new(Counted { stream, counter }))
    }

    /// Has the host told of what happens at the border.
    fn note(&self, refusals: &Refusals, event: BorderEvent, rule: Option<String>) {
        let (destination, reason) = match event {
            BorderEvent::Refused { upstream, refusal } => {
                self.stats.refused();
                (
                    upstream.as_ref().map_or_else(|| "gateway".to_owned(), Upstream::to_string),
                    refusal.to_string(),
                )
            }
            BorderEvent::Echoed { upstream } => {
                (upstream.to_string(), "the answer held a secret, which was starred out".to_owned())
            }
            BorderEvent::Handshake { upstream, error } => (
                upstream.to_string(),
                format!("the guest does not accept the VM's own certificate authority: {error}"),
            ),
            BorderEvent::PutIn { secret, upstream } => {
                tracing::debug!(secret, %upstream, "secret was put in");
                return;
            }
        };
        refusals.add(self, NetworkEventKind::Border { destination, reason, rule, process: None });
    }
}

fn upstream(event: &BorderEvent) -> Option<&Upstream> {
    match event {
        BorderEvent::Refused { upstream, .. } => upstream.as_ref(),
        BorderEvent::Echoed { upstream }
        | BorderEvent::Handshake { upstream, .. }
        | BorderEvent::PutIn { upstream, .. } => Some(upstream),
    }
}

/// A connection outside that is not carried, but spoken over by a server of our own.
struct Counted {
    stream: TcpStream,
    counter: Counter,
}

impl Counted {
    fn sent(&self, result: io::Result<usize>) -> io::Result<usize> {
        result.inspect(|sent| self.counter.sent(*sent))
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.counter.received(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        Poll::Ready(self.sent(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, pieces));
        Poll::Ready(self.sent(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
