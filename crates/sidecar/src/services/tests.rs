//! The daemon's side of the wire, over a real socket, without a launcher: what needs no VM.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentos_agents::transcript::{Event, SessionRecord};
use agentos_proto::v1;
use hyper_util::rt::TokioIo;
use prost::Message;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use v1::filesystem_service_client::FilesystemServiceClient;
use v1::network_service_client::NetworkServiceClient;
use v1::session_service_client::SessionServiceClient;
use v1::session_store_service_client::SessionStoreServiceClient;
use v1::sidecar_service_client::SidecarServiceClient;
use v1::vm_service_client::VmServiceClient;

use crate::client::Incoming;
use crate::host::Host;
use crate::options::Config;

const DEADLINE: Duration = Duration::from_secs(20);

/// A served host. Nobody answers its wish for a launcher, as in a sidecar that is ending.
struct Served {
    host: Arc<Host>,
    socket: PathBuf,
    _dir: TempDir,
}

fn serve(pool: &str) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::under_test(pool, dir.path());
    let socket = config.socket.clone();
    let (starts, requests) = sync_channel(1);
    drop(requests);
    let host = Arc::new(Host::new(config, starts));
    let incoming = Incoming::new(UnixListener::bind(&socket).unwrap(), Arc::clone(&host));
    let router = super::router(&host);
    tokio::spawn(router.serve_with_incoming(incoming));
    Served { host, socket, _dir: dir }
}

impl Served {
    async fn connect(&self) -> Channel {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://sidecar").connect_with_connector(connector).await.unwrap()
    }

    async fn wait_until(&self, what: &str, condition: impl Fn(&Host) -> bool) {
        let until = async {
            loop {
                let changed = self.host.changed();
                if condition(&self.host) {
                    return;
                }
                changed.await;
            }
        };
        timeout(DEADLINE, until).await.unwrap_or_else(|_| panic!("never happened: {what}"));
    }
}

fn detail(status: &tonic::Status) -> v1::ErrorDetail {
    v1::ErrorDetail::decode(status.details()).unwrap()
}

#[tokio::test]
async fn hello_says_who_serves() {
    let served = serve("blue");
    let mut client = SidecarServiceClient::new(served.connect().await);
    let hello = client.hello(v1::HelloRequest { client_version: "0.0.1".into() }).await.unwrap().into_inner();
    assert_eq!(hello.sidecar_version, crate::VERSION);
    assert_eq!((hello.sidecar_id.as_str(), hello.pool.as_str()), ("sidecar-under-test", "blue"));
}

#[tokio::test]
async fn a_lease_lives_as_long_as_its_stream() {
    let served = serve("blue");
    let mut client = SidecarServiceClient::new(served.connect().await);
    let mut stream = client.open_lease(v1::OpenLeaseRequest {}).await.unwrap().into_inner();
    let lease_id = stream.message().await.unwrap().unwrap().lease_id;
    let describe = v1::DescribeRequest { lease_id: lease_id.clone() };
    let described = client.describe(describe.clone()).await.unwrap().into_inner();
    assert_eq!(described.state(), v1::SidecarState::Ready);
    assert_eq!(described.active_vm_count, 0);

    drop(stream);
    served.wait_until("the lease ends", |host| host.describe(&lease_id).is_err()).await;
    let status = client.describe(describe).await.unwrap_err();
    assert_eq!(detail(&status).kind(), v1::ErrorKind::NotFound);
    assert_eq!(detail(&status).object, lease_id);
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_lease_and_leaves_the_sidecar_idle() {
    let served = serve("blue");
    let mut client = SidecarServiceClient::new(served.connect().await);
    let mut stream = client.open_lease(v1::OpenLeaseRequest {}).await.unwrap().into_inner();
    let lease_id = stream.message().await.unwrap().unwrap().lease_id;
    assert!(!served.host.is_idle());
    drop((client, stream));
    served.wait_until("idle", Host::is_idle).await;
    served.wait_until("the lease ends", |host| host.describe(&lease_id).is_err()).await;
}

#[tokio::test]
async fn a_disposed_lease_gives_out_no_vm() {
    let served = serve("");
    let channel = served.connect().await;
    let mut client = SidecarServiceClient::new(channel.clone());
    let mut stream = client.open_lease(v1::OpenLeaseRequest {}).await.unwrap().into_inner();
    let lease_id = stream.message().await.unwrap().unwrap().lease_id;
    for _ in 0..2 {
        client.dispose_lease(v1::DisposeLeaseRequest { lease_id: lease_id.clone() }).await.unwrap();
    }
    let described = client.describe(v1::DescribeRequest { lease_id: lease_id.clone() }).await.unwrap();
    assert_eq!(described.into_inner().state(), v1::SidecarState::Disposed);
    let create = v1::CreateVmRequest { lease_id, ..Default::default() };
    let status = VmServiceClient::new(channel).create_vm(create).await.unwrap_err();
    let expected = "Cannot lease VM from sidecar sidecar-under-test while it is disposed";
    assert_eq!(status.message(), expected);
    assert_eq!(detail(&status).kind(), v1::ErrorKind::Closed);
    assert!(served.host.is_idle(), "an explicit sidecar whose only lease is disposed has nothing to do");
}

#[tokio::test]
async fn a_create_that_fails_leaves_nothing_behind() {
    let served = serve("blue");
    let channel = served.connect().await;
    let mut client = SidecarServiceClient::new(channel.clone());
    let mut stream = client.open_lease(v1::OpenLeaseRequest {}).await.unwrap().into_inner();
    let lease_id = stream.message().await.unwrap().unwrap().lease_id;
    let mut vms = VmServiceClient::new(channel);
    let create = |name: &str| v1::CreateVmRequest {
        lease_id: lease_id.clone(),
        detached_name: name.into(),
        ..Default::default()
    };
    let host = Arc::clone(&served.host);
    let keeper = tokio::spawn(async move { host.launchers().keep().await });
    for _ in 0..2 {
        let attempt = timeout(DEADLINE, vms.create_vm(create("web"))).await.expect("nobody was told");
        assert_eq!(detail(&attempt.unwrap_err()).kind(), v1::ErrorKind::Closed, "there is no launcher");
    }
    // Else the name would have been taken at the second attempt.
    assert!(vms.list_vms(v1::ListVmsRequest {}).await.unwrap().into_inner().vms.is_empty());
    timeout(DEADLINE, keeper).await.expect("it has nothing to keep").unwrap();
}

#[tokio::test]
async fn unknown_ids_are_named() {
    let served = serve("blue");
    let channel = served.connect().await;
    let mut files = FilesystemServiceClient::new(channel.clone());
    let stat = v1::StatRequest { vm_id: "vm-x-1".into(), path: "/".into() };
    let status = files.stat(stat).await.unwrap_err();
    assert_eq!(status.message(), "VM not found: vm-x-1");
    let mut sessions = SessionServiceClient::new(channel.clone());
    let cancel = v1::CancelSessionRequest { session_id: "s-1".into() };
    let status = sessions.cancel_session(cancel).await.unwrap_err();
    assert_eq!(status.message(), "Session not found: s-1");
    let mut stored = SessionStoreServiceClient::new(channel);
    let history = v1::ReadHistoryRequest { session_id: "s-1".into(), ..Default::default() };
    let status = stored.read_history(history).await.unwrap_err();
    assert_eq!(
        (status.message(), detail(&status).kind()),
        ("Session not found: s-1", v1::ErrorKind::NotFound)
    );
}

#[tokio::test]
async fn the_built_in_agents_are_listed_without_a_vm() {
    let served = serve("blue");
    let mut sessions = SessionServiceClient::new(served.connect().await);
    let listed = sessions.list_agents(v1::ListAgentsRequest::default()).await.unwrap().into_inner().agents;
    let ids: Vec<_> = listed.iter().map(|agent| agent.id.as_str()).collect();
    assert!(ids.contains(&"pi") && ids.contains(&"claude"), "{ids:?}");
    assert!(listed.iter().all(|agent| !agent.installed), "nothing is installed in an empty home");
}

#[tokio::test]
async fn streams_that_begin_wrongly_are_refused() {
    let served = serve("blue");
    let channel = served.connect().await;
    let mut files = FilesystemServiceClient::new(channel.clone());
    let status = files.write_file(tokio_stream::iter(Vec::new())).await.unwrap_err();
    assert_eq!(detail(&status).kind(), v1::ErrorKind::InvalidInput);
    let mut network = NetworkServiceClient::new(channel);
    let body = v1::fetch_request::Part::Body("x".into());
    let part = v1::FetchRequest { part: Some(body) };
    let status = network.fetch(tokio_stream::iter(vec![part])).await.unwrap_err();
    assert_eq!(detail(&status).kind(), v1::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn more_streams_than_http2s_usual_limit_stay_open_at_once() {
    let served = serve("blue");
    let channel = served.connect().await;
    let streams = Mutex::new(Vec::new());
    for _ in 0..300 {
        let mut client = SidecarServiceClient::new(channel.clone());
        let opened = timeout(DEADLINE, client.open_lease(v1::OpenLeaseRequest {})).await;
        streams.lock().unwrap().push(opened.expect("the limit of streams is reached").unwrap());
    }
}

/// A host whose home has sessions of an earlier run, in each so many events.
async fn served_with_sessions(sessions: &[(&str, u64)]) -> Served {
    let served = serve("blue");
    let transcripts = served.host.sessions().transcripts().await.unwrap();
    for (id, events) in sessions {
        let (agent_type, model) = ("pi".to_owned(), "demo".to_owned());
        let record = SessionRecord { id: (*id).to_owned(), agent_type, model, created_ms: 5 };
        transcripts.begin(record).await.unwrap();
        let event = |sequence: u64| {
            let method = if sequence.is_multiple_of(100) { "rare" } else { "usual" };
            let notification = format!("{{\"method\":\"{method}\"}}").into();
            Event { sequence, at_ms: 1000 + sequence, notification }
        };
        transcripts.append(id, (1..=*events).map(event).collect()).await.unwrap();
    }
    served
}

async fn numbers(mut events: tonic::Streaming<v1::SessionEvent>) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        assert_eq!(event.at_ms, 1000 + event.sequence_number);
        numbers.push(event.sequence_number);
    }
    numbers
}

#[tokio::test]
async fn stored_sessions_are_listed_in_pages_and_by_the_beginning_of_their_id() {
    let served = served_with_sessions(&[("aa-1", 0), ("ab-2", 7), ("aa-3", 2)]).await;
    served.host.sessions().transcripts().await.unwrap().end("ab-2", "closed").await.unwrap();
    let mut store = SessionStoreServiceClient::new(served.connect().await);
    let mut list = async |before, limit, id_prefix: &str| {
        let request = v1::ListStoredSessionsRequest { before, limit, id_prefix: id_prefix.into() };
        let page = store.list_stored_sessions(request).await.unwrap().into_inner();
        let ids: Vec<String> = page.sessions.iter().map(|session| session.session_id.clone()).collect();
        (ids, page)
    };
    let (ids, first) = list(0, 2, "").await;
    assert_eq!(ids, ["aa-3", "ab-2"]);
    let ended = first.sessions[1].ended.clone().unwrap();
    assert_eq!(
        (ended.reason.as_str(), first.sessions[1].events, first.sessions[1].live),
        ("closed", 7, false)
    );
    assert_eq!((first.sessions[0].ended.clone(), first.sessions[0].model()), (None, v1::ModelKind::Demo));
    let (ids, last) = list(first.next_before, 2, "").await;
    assert_eq!((ids, last.next_before), (vec!["aa-1".to_owned()], 0));
    let (ids, whole) = list(0, 0, "aa").await;
    assert_eq!((ids, whole.next_before), (vec!["aa-3".to_owned(), "aa-1".to_owned()], 0));
}

#[tokio::test]
async fn a_transcript_is_read_in_part_and_by_method() {
    let served = served_with_sessions(&[("aa-1", 1000)]).await;
    let mut store = SessionStoreServiceClient::new(served.connect().await);
    let mut read = async |since, limit, method: &str| {
        let request =
            v1::ReadHistoryRequest { session_id: "aa-1".into(), since, limit, method: method.into() };
        numbers(store.read_history(request).await.unwrap().into_inner()).await
    };
    assert_eq!(read(0, 0, "").await, (1..=1000).collect::<Vec<_>>());
    assert_eq!(read(990, 5, "").await, (990..995).collect::<Vec<_>>());
    assert_eq!(read(1, 0, "rare").await, (1..=10).map(|n| n * 100).collect::<Vec<_>>());
    assert_eq!(read(101, 2, "rare").await, [200, 300]);
    assert_eq!(read(1, 0, "unheard_of").await, [0; 0]);
}

#[tokio::test]
async fn events_of_a_session_that_is_over_are_read_on() {
    let served = served_with_sessions(&[("aa-1", 1000)]).await;
    let mut sessions = SessionServiceClient::new(served.connect().await);
    let mut read = async |since, max_events| {
        let request =
            v1::SessionEventsRequest { session_id: "aa-1".into(), since, max_events, ..Default::default() };
        numbers(sessions.session_events(request).await.unwrap().into_inner()).await
    };
    assert_eq!(read(0, 0).await.len(), 1000);
    assert_eq!(read(300, 400).await, (300..700).collect::<Vec<_>>());
    assert_eq!(read(1001, 400).await, [0; 0]);
}

#[tokio::test]
async fn a_deleted_session_leaves_neither_events_nor_files() {
    let served = served_with_sessions(&[("aa-1", 3), ("ab-2", 3)]).await;
    let files = |id: &str| served._dir.path().join("home/sessions").join(id);
    for id in ["aa-1", "ab-2"] {
        std::fs::create_dir_all(files(id).join("agent/deep")).unwrap();
        std::fs::write(files(id).join("agent/deep/state"), "x").unwrap();
    }
    let mut store = SessionStoreServiceClient::new(served.connect().await);
    let delete = |id: &str| v1::DeleteSessionRequest { session_id: id.into() };
    store.delete_session(delete("aa-1")).await.unwrap();
    assert!(!files("aa-1").exists() && files("ab-2").join("agent/deep/state").exists());
    let history = v1::ReadHistoryRequest { session_id: "aa-1".into(), ..Default::default() };
    assert_eq!(detail(&store.read_history(history).await.unwrap_err()).kind(), v1::ErrorKind::NotFound);
    let again = store.delete_session(delete("aa-1")).await.unwrap_err();
    assert_eq!(again.message(), "Session not found: aa-1");
}
