//! Servers of our own that the guest's connections end with.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::egress::{Facts, Shared};
use crate::border::{self, BorderEvent, Outside, Upstream};
use crate::event::NetworkEventKind;
use crate::name::HostName;

/// Refused requests of one connection that wait to be told.
const QUEUED_REFUSALS: usize = 16;

impl Shared {
    /// Serves a connection to the gateway.
    pub(super) async fn serve_gateway(self: &Arc<Self>, stream: DuplexStream) {
        self.border.serve_gateway(stream, &self.outside()).await;
    }

    /// Serves a connection whose TLS ends here. The policy has let it pass, and the name that it claims led there.
    pub(super) async fn intercept(
        self: &Arc<Self>,
        stream: DuplexStream,
        remote: SocketAddr,
        name: HostName,
    ) {
        self.border.intercept(stream, remote, name, &self.outside()).await;
    }

    /// Serves a connection that speaks plain HTTP, each of whose requests is held against the policy. `open` is a
    /// connection to its destination that stands already, if there is one.
    pub(super) async fn check_hosts(
        self: &Arc<Self>,
        stream: DuplexStream,
        facts: Arc<Facts>,
        open: Option<TcpStream>,
    ) {
        // A relay that has been refused so often that this is full has more to say than anybody listens to.
        let (refusals, mut refused) = mpsc::channel(QUEUED_REFUSALS);
        let (shared, teller) = (Arc::clone(self), Arc::clone(self));
        // Taken once, by the first request.
        let open = Arc::new(Mutex::new(open));
        let outside = Outside {
            dial: Arc::new(move |upstream| {
                let (shared, open) = (Arc::clone(&shared), Arc::clone(&open));
                Box::pin(async move {
                    let open = open.lock().unwrap_or_else(PoisonError::into_inner).take();
                    match open {
                        Some(stream) => Ok(stream),
                        None => shared.dial(&upstream).await,
                    }
                })
            }),
            events: Arc::new(move |event| {
                let BorderEvent::Refused { upstream, refusal } = event else { return };
                match refusal {
                    border::Refusal::Host { name, reason } => drop(refusals.try_send((name, reason))),
                    border::Refusal::Request | border::Refusal::OtherHost | border::Refusal::Method => {
                        teller.tell(&BorderEvent::Refused { upstream, refusal });
                    }
                    // An upstream that fails is no word of ours.
                    _ => {}
                }
            }),
        };
        let tell = async {
            while let Some((name, reason)) = refused.recv().await {
                self.request_refused(&facts, name.as_ref(), &reason).await;
            }
        };
        let allowed = |name: Option<&HostName>| self.decide_request(&facts, name);
        let serve = async {
            self.border.check_hosts(stream, facts.key.remote, &allowed, &outside).await;
            // Ends what is told.
            drop(outside);
        };
        tokio::join!(serve, tell);
    }

    fn outside(self: &Arc<Self>) -> Outside {
        let (dialer, teller) = (Arc::clone(self), Arc::clone(self));
        Outside {
            dial: Arc::new(move |upstream| {
                let shared = Arc::clone(&dialer);
                Box::pin(async move { shared.dial(&upstream).await })
            }),
            events: Arc::new(move |event| teller.tell(&event)),
        }
    }

    /// Connects for the border. Where the guest had chosen the address, the policy has allowed it; a route of the gateway
    /// is what the host declared, wherever it leads.
    async fn dial(&self, upstream: &Upstream) -> io::Result<TcpStream> {
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
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn tell(&self, event: &BorderEvent) {
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
        self.events.push(NetworkEventKind::Border { destination, reason });
    }
}
