//! A guest, an upstream and what is between them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentos_netstack::border::{
    Border, BorderEvent, Connected, Destination, HeaderScheme, Outside, Route, Secret, Trust, Upstream,
};
use agentos_netstack::name::HostName;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The secret of all tests.
pub(crate) const KEY: &str = "sk-ant-api03-0123456789abcdefghijklmnopqrstuvwxyz";

const DEADLINE: Duration = Duration::from_secs(30);

/// A test that hangs fails with a reason.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

pub(crate) fn name(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

pub(crate) fn secret() -> Secret {
    Secret::new("API_KEY", KEY.to_owned().into()).unwrap().placeholder_prefix("sk-ant-").unwrap()
}

/// A border, and the stack around it, which connects to the listeners of the test.
pub(crate) struct World {
    pub(crate) border: Arc<Border>,
    pub(crate) outside: Outside,
    pub(crate) dialed: Arc<Mutex<Vec<Upstream>>>,
    events: Arc<Mutex<Vec<BorderEvent>>>,
}

impl World {
    /// `hosts` says which listener is behind a name. What isn't there is refused as if by the policy.
    pub(crate) fn new(border: Border, hosts: &[(&str, SocketAddr)]) -> Self {
        let hosts: BTreeMap<String, SocketAddr> =
            hosts.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let dialed = Arc::new(Mutex::new(Vec::new()));
        let events = Arc::new(Mutex::new(Vec::new()));
        let (log, sink) = (Arc::clone(&dialed), Arc::clone(&events));
        let outside = Outside {
            dial: Arc::new(move |upstream| {
                let address = upstream.name.as_ref().and_then(|name| hosts.get(name.as_str()).copied());
                log.lock().unwrap().push(upstream);
                Box::pin(async move {
                    let stream = TcpStream::connect(address.ok_or(io::ErrorKind::PermissionDenied)?).await?;
                    Ok(Box::new(stream) as Connected)
                })
            }),
            events: Arc::new(move |event| sink.lock().unwrap().push(event)),
        };
        Self { border: Arc::new(border), outside, dialed, events }
    }

    /// A gateway with the route `anthropic` to this listener, without TLS, below `/base`.
    pub(crate) fn gateway(upstream: &TcpListener) -> Self {
        let address = upstream.local_addr().unwrap();
        let url = format!("http://api.example:{}/base", address.port());
        let route = Route::unencrypted("anthropic", &url).unwrap();
        let route = route.credential("x-api-key".parse().unwrap(), HeaderScheme::Plain, "API_KEY").unwrap();
        let border = Border::new(vec![secret()], vec![route], Trust::nobody().unwrap()).unwrap();
        Self::new(border, &[("api.example", address)])
    }

    /// The secret declared for `api.example` in these headers; its TLS, on the port of this address, is intercepted.
    pub(crate) fn interception(headers: &[&str], upstream: SocketAddr, trust: Trust) -> Self {
        let mut declared = secret();
        for header in headers {
            let header = header.parse().unwrap();
            let destination = Destination { host: name("api.example"), port: upstream.port(), header };
            declared = declared.destination(destination).unwrap();
        }
        let border = Border::new(vec![declared], Vec::new(), trust).unwrap();
        Self::new(border, &[("api.example", upstream)])
    }

    pub(crate) fn placeholder(&self) -> String {
        self.border.placeholders().next().unwrap().1.to_owned()
    }

    /// A connection of the guest to the gateway.
    pub(crate) fn connect(&self) -> Guest<DuplexStream> {
        let (guest, stack) = duplex(64 * 1024);
        let (border, outside) = (Arc::clone(&self.border), self.outside.clone());
        let served = tokio::spawn(async move { border.serve_gateway(stack, &outside).await });
        Guest { stream: guest, served }
    }

    /// A connection of the guest to `destination`, before its first byte.
    pub(crate) fn connect_intercepted(&self, destination: SocketAddr, sni: &str) -> Guest<DuplexStream> {
        let (guest, stack) = duplex(64 * 1024);
        let (border, outside, sni) = (Arc::clone(&self.border), self.outside.clone(), name(sni));
        let served = tokio::spawn(async move { border.intercept(stack, destination, sni, &outside).await });
        Guest { stream: guest, served }
    }

    /// A connection of the guest that speaks plain HTTP, by a policy that knows one name.
    pub(crate) fn connect_plain(&self, destination: SocketAddr) -> Guest<DuplexStream> {
        let (guest, stack) = duplex(64 * 1024);
        let (border, outside) = (Arc::clone(&self.border), self.outside.clone());
        let served = tokio::spawn(async move {
            border.check_hosts(stack, destination, &crate::plain::allowed, &outside).await;
        });
        Guest { stream: guest, served }
    }

    /// A connection to the destination after a TLS handshake in which the guest believes the VM's authority.
    pub(crate) async fn connect_tls(
        &self,
        destination: SocketAddr,
    ) -> Guest<client::TlsStream<DuplexStream>> {
        let guest = self.connect_intercepted(destination, "api.example");
        let stream = tls_client(self.border.authority_pem().unwrap(), "api.example", guest.stream);
        Guest { stream: within("handshake", stream).await.unwrap(), served: guest.served }
    }

    /// What has happened, in the words of `Debug`, which show no secret.
    pub(crate) fn events(&self) -> String {
        let events = format!("{:?}", self.events.lock().unwrap());
        assert!(!events.contains(KEY), "an event shows the secret");
        events
    }

    pub(crate) fn dialed(&self) -> usize {
        self.dialed.lock().unwrap().len()
    }
}

pub(crate) struct Guest<S> {
    pub(crate) stream: S,
    /// The border's side of the connection.
    pub(crate) served: JoinHandle<()>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guest<S> {
    pub(crate) async fn say(&mut self, text: &str) {
        within("saying", self.stream.write_all(text.as_bytes())).await.unwrap();
    }

    /// What comes until it ends with this text, at most the head if that is an empty line.
    pub(crate) async fn hear(&mut self, end: &str) -> String {
        hear(&mut self.stream, end).await
    }

    /// What comes until the connection ends.
    pub(crate) async fn hear_all(mut self) -> String {
        let mut heard = Vec::new();
        // A side of TLS that goes without saying goodbye is an end as well.
        let _end = within("the answer", self.stream.read_to_end(&mut heard)).await;
        within("the end of the connection", self.served).await.unwrap();
        String::from_utf8(heard).unwrap()
    }

    /// One request, which asks for the connection to be closed, and its answer.
    pub(crate) async fn exchange(mut self, request: &str) -> String {
        self.say(request).await;
        self.hear_all().await
    }
}

pub(crate) async fn hear<S: AsyncRead + Unpin>(stream: &mut S, end: &str) -> String {
    let mut heard = Vec::new();
    let what = format!("text that ends with {end:?}");
    within(&what, async {
        while !heard.ends_with(end.as_bytes()) {
            let byte = stream.read_u8().await;
            heard.push(byte.unwrap_or_else(|error| {
                panic!("{error} after {:?}, before {end:?}", String::from_utf8_lossy(&heard))
            }));
        }
    })
    .await;
    String::from_utf8(heard).unwrap()
}

pub(crate) async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    within("a connection to the upstream", listener.accept()).await.unwrap().0
}

/// A certificate authority of the world outside.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::nobody().unwrap().with_extra(self.pem.as_bytes()).unwrap()
    }

    pub(crate) async fn accept(&self, listener: &TcpListener, name: &str) -> server::TlsStream<TcpStream> {
        let stream = self.try_accept(listener, name).await;
        stream.expect("the border trusts the upstream")
    }

    /// Takes a connection as a server that has a certificate for this name.
    pub(crate) async fn try_accept(
        &self,
        listener: &TcpListener,
        name: &str,
    ) -> io::Result<server::TlsStream<TcpStream>> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let stream = accept(listener).await;
        within("handshake outside", TlsAcceptor::from(Arc::new(config)).accept(stream)).await
    }
}

pub(crate) async fn tls_client<S: AsyncRead + AsyncWrite + Unpin>(
    authority: &str,
    sni: &str,
    stream: S,
) -> io::Result<client::TlsStream<S>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}
