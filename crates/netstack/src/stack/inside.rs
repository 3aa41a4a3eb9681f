//! Servers of our own that the guest's connections end with.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::net::TcpStream;

use super::egress::Shared;
use crate::border::{BorderEvent, Outside, Upstream};
use crate::event::NetworkEventKind;
use crate::name::HostName;

impl Shared {
    /// Serves a connection to the gateway.
    pub(super) async fn serve_gateway(self: &Arc<Self>, stream: DuplexStream) {
        self.border.serve_gateway(stream, &self.outside()).await;
    }

    /// Serves a connection whose TLS ends here. Its destination has been allowed, by the name that it claims.
    pub(super) async fn intercept(
        self: &Arc<Self>,
        stream: DuplexStream,
        remote: SocketAddr,
        name: HostName,
    ) {
        self.border.intercept(stream, remote, name, &self.outside()).await;
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
                let addresses = self.resolver.addresses(&upstream.name).await?;
                let targets: Vec<SocketAddr> =
                    addresses.into_iter().map(|address| SocketAddr::new(address, upstream.port)).collect();
                TcpStream::connect(targets.as_slice()).await?
            }
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn tell(&self, event: &BorderEvent) {
        let named = |upstream: &Upstream| format!("{}:{}", upstream.name, upstream.port);
        let (destination, reason) = match event {
            BorderEvent::Refused { upstream, refusal } => {
                self.stats.refused();
                (upstream.as_ref().map_or_else(|| "gateway".to_owned(), named), refusal.to_string())
            }
            BorderEvent::Echoed { upstream } => {
                (named(upstream), "the answer held a secret, which was starred out".to_owned())
            }
            BorderEvent::Handshake { upstream, error } => (
                named(upstream),
                format!("the guest does not accept the VM's own certificate authority: {error}"),
            ),
            BorderEvent::PutIn { secret, upstream } => {
                tracing::debug!(secret, upstream = named(upstream), "secret was put in");
                return;
            }
        };
        self.events.push(NetworkEventKind::Border { destination, reason });
    }
}
