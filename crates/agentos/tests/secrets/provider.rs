//! Look-alikes of model providers: TLS and the head of each request are theirs, the answers are the offline model's.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use agentos::{AgentOs, AgentOsOptions, InstallAgent};
use http::{HeaderMap, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;

use crate::lab::Lab;
use crate::lab::certificates::Authority;
use crate::lab::names::Entry;
use crate::support::within;
use crate::support::world::{World, binary};

const ADDRESS: &str = "198.51.100.80";

/// The providers on one host of the lab, and a sidecar that takes them for the real ones.
pub(crate) struct Place {
    pub(crate) lab: Lab,
    pub(crate) world: World,
    pub(crate) provider: Provider,
    /// What the sidecar keeps, but for its agents.
    pub(crate) state: PathBuf,
}

impl Place {
    pub(crate) async fn new() -> Option<Self> {
        Self::with_agents(&["pi"]).await
    }

    pub(crate) async fn with_agents(agents_wanted: &[&str]) -> Option<Self> {
        let lab = Lab::new()?;
        install(agents_wanted).await;
        let (names, authority) = (lab.names(), Authority::new());
        let hosts =
            ["api.anthropic.com", "api.openai.com", "openrouter.ai", "generativelanguage.googleapis.com"];
        lab.host("provider", &[ADDRESS]);
        for host in hosts {
            names.set(host, Entry::addresses(&[ADDRESS]));
        }
        let listener = lab.tcp("provider", &format!("{ADDRESS}:443"));
        let provider = Provider::serve(listener, authority.server(&hosts), lab.directory()).await;
        let trusted = lab.file("authority.pem", authority.pem());
        let state = lab.directory().join("state");
        std::fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink(agents(), state.join("agents")).unwrap();
        let log = Path::new("trace");
        let world = lab
            .world_with(&[("SSL_CERT_FILE", &trusted), ("AGENTOS_HOME", &state), ("AGENTOS_LOG", log)])
            .await;
        Some(Self { lab, world, provider, state })
    }

    pub(crate) fn options(&self) -> AgentOsOptions {
        self.world.options()
    }

    pub(crate) async fn vm(&self, options: AgentOsOptions) -> AgentOs {
        self.world.vm_with(options).await
    }
}

/// What was asked of a provider.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or(""))
    }
}

pub(crate) struct Provider {
    // Held for a look.
    log: Arc<Mutex<Vec<Asked>>>,
    _model: Child,
}

impl Provider {
    async fn serve(listener: TcpListener, tls: TlsAcceptor, directory: &Path) -> Self {
        let socket = directory.join("model.sock");
        let mut model = Command::new(binary())
            .args(["demo-model", "--exit-with-stdin", "--listen"])
            .arg(format!("unix:{}", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut printed = BufReader::new(model.stdout.take().unwrap());
        within("the offline model", printed.read_line(&mut line)).await.unwrap();
        let log = Arc::<Mutex<Vec<Asked>>>::default();
        let written = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, log, socket) = (tls.clone(), Arc::clone(&written), socket.clone());
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let answer = service_fn(|request| {
                        log.lock()
                            .unwrap()
                            .push(Asked { uri: request.uri().clone(), headers: request.headers().clone() });
                        forward(request, &socket)
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    // A client that goes away in the middle is no fault of the test.
                    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { log, _model: model }
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

/// The offline model knows no path before `/v1`.
async fn forward(mut request: Request<Incoming>, socket: &Path) -> Result<Response<Incoming>, Infallible> {
    let target = request.uri().to_string();
    *request.uri_mut() = target.strip_prefix("/api").unwrap_or(&target).parse().unwrap();
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Ok(sender.send_request(request).await.unwrap())
}

/// In the lab there is no way to a registry. Some agents are hundreds of megabytes: whoever waits for these is told how
/// it goes by the installation itself.
async fn install(agents: &[&str]) {
    let world = World::new().await;
    for agent in agents {
        let install: InstallAgent = world.sidecar.install_agent(*agent);
        install.await.unwrap();
    }
}

/// Where this user's agents are.
fn agents() -> PathBuf {
    let home = std::env::var_os("AGENTOS_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".local/share/agentos"));
    home.join("agents")
}
