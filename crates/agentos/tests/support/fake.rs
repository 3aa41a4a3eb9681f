//! A sidecar that answers what a test tells it to, behind the real socket and the real protocol.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agentos_proto::v1;
use agentos_proto::v1::session_service_server::{SessionService, SessionServiceServer};
use agentos_proto::v1::sidecar_service_server::{SidecarService, SidecarServiceServer};
use agentos_proto::v1::vm_service_server::{VmService, VmServiceServer};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status};

/// What the client runs as; the fake claims the same unless told otherwise.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the fake saw, and how it behaves.
pub(crate) struct Script {
    pub(crate) version: &'static str,
    pub(crate) leases: AtomicUsize,
    pub(crate) created: AtomicUsize,
    pub(crate) disposed: Mutex<Vec<String>>,
    pub(crate) create_entered: AtomicUsize,
    /// Whether sessions are begun and never finished.
    pub(crate) sessions_hang: AtomicBool,
    pub(crate) closed_sessions: Mutex<Vec<String>>,
    /// What was answered to requests for permission.
    pub(crate) answers: Mutex<Vec<(String, v1::PermissionReply)>>,
    /// The number of the newest event of the session; a reader waits for the next one.
    pub(crate) newest_event: tokio::sync::watch::Sender<u64>,
    /// CreateVm takes one permit: a test without permits keeps it waiting.
    pub(crate) create_permits: Semaphore,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            version: VERSION,
            leases: AtomicUsize::new(0),
            created: AtomicUsize::new(0),
            disposed: Mutex::default(),
            create_entered: AtomicUsize::new(0),
            sessions_hang: AtomicBool::new(false),
            closed_sessions: Mutex::default(),
            answers: Mutex::default(),
            newest_event: tokio::sync::watch::Sender::new(0),
            create_permits: Semaphore::new(1000),
        }
    }
}

/// A running fake; dropping it closes its socket and every connection, as a death would.
pub(crate) struct Fake {
    pub(crate) script: Arc<Script>,
    /// Of its own, because connections are tasks too and must end with the fake.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub(crate) fn start(runtime_dir: &Path, pool: &str, script: Script) -> Self {
        let socket = runtime_dir.join(format!("{pool}.sock"));
        let _ = std::fs::remove_file(&socket);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        let script = Arc::new(script);
        let services = Services { script: Arc::clone(&script) };
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(SidecarServiceServer::new(services.clone()))
                .add_service(VmServiceServer::new(services.clone()))
                .add_service(SessionServiceServer::new(services))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { script, runtime: Some(runtime) }
    }

    pub(crate) fn disposed(&self) -> Vec<String> {
        self.script.disposed.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Services {
    script: Arc<Script>,
}

#[tonic::async_trait]
impl SidecarService for Services {
    async fn hello(&self, _: Request<v1::HelloRequest>) -> Result<Response<v1::HelloResponse>, Status> {
        Ok(Response::new(v1::HelloResponse {
            sidecar_version: self.script.version.to_owned(),
            sidecar_id: "fake".to_owned(),
            pool: String::new(),
        }))
    }

    type OpenLeaseStream = ReceiverStream<Result<v1::LeaseEvent, Status>>;

    async fn open_lease(
        &self,
        _: Request<v1::OpenLeaseRequest>,
    ) -> Result<Response<Self::OpenLeaseStream>, Status> {
        let number = self.script.leases.fetch_add(1, Ordering::SeqCst) + 1;
        let (send, receive) = tokio::sync::mpsc::channel(1);
        send.send(Ok(v1::LeaseEvent { lease_id: format!("lease-{number}") })).await.unwrap();
        // The stream stays open until the client goes.
        tokio::spawn(async move { send.closed().await });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn describe(
        &self,
        _: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        Ok(Response::new(v1::DescribeResponse::default()))
    }

    async fn dispose_lease(
        &self,
        _: Request<v1::DisposeLeaseRequest>,
    ) -> Result<Response<v1::DisposeLeaseResponse>, Status> {
        Ok(Response::new(v1::DisposeLeaseResponse {}))
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorResponse>, Status> {
        Ok(Response::new(v1::DoctorResponse {
            facilities: vec![v1::Facility {
                name: "user namespaces".into(),
                state: v1::FacilityState::Missing.into(),
                finding: "clone3: ENOSPC".into(),
                cost: "no VM can be created".into(),
                remedy: "sysctl user.max_user_namespaces=65536".into(),
            }],
        }))
    }
}

#[tonic::async_trait]
impl VmService for Services {
    async fn create_vm(
        &self,
        request: Request<v1::CreateVmRequest>,
    ) -> Result<Response<v1::CreateVmResponse>, Status> {
        if request.get_ref().detached_name == "taken" {
            return Err(refusal());
        }
        self.script.create_entered.fetch_add(1, Ordering::SeqCst);
        let script = Arc::clone(&self.script);
        // As a real sidecar that is past the point of no return: it goes on without its caller.
        let create = tokio::spawn(async move {
            script.create_permits.acquire().await.unwrap().forget();
            script.created.fetch_add(1, Ordering::SeqCst) + 1
        });
        let number = create.await.unwrap();
        Ok(Response::new(v1::CreateVmResponse { vm_id: format!("vm-{number}") }))
    }

    async fn attach_vm(
        &self,
        request: Request<v1::AttachVmRequest>,
    ) -> Result<Response<v1::AttachVmResponse>, Status> {
        Ok(Response::new(v1::AttachVmResponse { vm_id: request.into_inner().name }))
    }

    async fn dispose_vm(
        &self,
        request: Request<v1::DisposeVmRequest>,
    ) -> Result<Response<v1::DisposeVmResponse>, Status> {
        self.script.disposed.lock().unwrap().push(request.into_inner().vm_id);
        Ok(Response::new(v1::DisposeVmResponse {}))
    }

    async fn list_vms(
        &self,
        _: Request<v1::ListVmsRequest>,
    ) -> Result<Response<v1::ListVmsResponse>, Status> {
        Ok(Response::new(v1::ListVmsResponse {
            vms: vec![v1::VmInfo {
                vm_id: "vm-9".into(),
                detached_name: "kept".into(),
                state: v1::VmState::Failed.into(),
                reason: "init is gone".into(),
                created_at_ms: 1,
            }],
        }))
    }
}

/// As the sidecar refuses: a status with the error's parts in its details.
fn refusal() -> Status {
    let detail = v1::ErrorDetail {
        kind: v1::ErrorKind::AlreadyExists.into(),
        errno: "EEXIST".into(),
        object: "taken".into(),
        message: "EEXIST: a detached VM has that name, 'taken'".into(),
        retryable: true,
    };
    Status::with_details(Code::AlreadyExists, detail.message.clone(), detail.encode_to_vec().into())
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

/// A stream that has these messages and then ends.
impl Services {
    /// Events as the sidecar gives them: as many as were asked for, each as soon as there is one.
    fn piece_of_events(&self, request: v1::SessionEventsRequest) -> Stream<v1::SessionEvent> {
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let mut newest = self.script.newest_event.subscribe();
        assert!(request.max_events > 0, "a reader must not be sent more than it has asked for");
        let piece = request.since..request.since + u64::from(request.max_events);
        tokio::spawn(async move {
            for sequence_number in piece {
                let Ok(newest) =
                    newest.wait_for(|newest| *newest >= sequence_number).await.map(|newest| *newest)
                else {
                    return;
                };
                let notification_json = format!(r#"{{"method":"x","params":{sequence_number}}}"#);
                let at_ms = 1000 + sequence_number;
                let event = v1::SessionEvent { sequence_number, notification_json, at_ms, newest };
                if send.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(receive)
    }
}

fn stream<T>(messages: Vec<T>) -> Stream<T> {
    let (send, receive) = tokio::sync::mpsc::channel(messages.len().max(1));
    for message in messages {
        send.try_send(Ok(message)).unwrap();
    }
    ReceiverStream::new(receive)
}

/// An agent that asks for permission twice and says what else it can do: nothing.
#[tonic::async_trait]
impl SessionService for Services {
    type CreateSessionStream = Stream<v1::CreateSessionEvent>;
    type SessionEventsStream = Stream<v1::SessionEvent>;
    type InstallAgentStream = Stream<v1::InstallProgress>;

    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<Self::CreateSessionStream>, Status> {
        let install = v1::InstallProgress {
            package: request.into_inner().agent_type,
            received_bytes: 5,
            total_bytes: Some(10),
            place: "/store".into(),
            waiting: false,
        };
        let created = v1::SessionCreated {
            session_id: "s-1".into(),
            model: v1::ModelKind::Demo.into(),
            model_reason: "no key".into(),
            agent_type: "pi".into(),
            initialize_json: r#"{"agentInfo":{"name":"fake"}}"#.into(),
            session_json:
                r#"{"modes":{"currentModeId":"ask","availableModes":[{"id":"ask"},{"id":"code"}]}}"#.into(),
        };
        let event = |event| v1::CreateSessionEvent { event: Some(event) };
        let begun = event(v1::create_session_event::Event::Begun(v1::SessionBegun {
            session_id: "s-1".into(),
            attempt: 1,
        }));
        if self.script.sessions_hang.load(Ordering::SeqCst) {
            // The stream stays open until the client goes.
            let (send, receive) = tokio::sync::mpsc::channel(1);
            send.send(Ok(begun)).await.unwrap();
            tokio::spawn(async move { send.closed().await });
            return Ok(Response::new(ReceiverStream::new(receive)));
        }
        Ok(Response::new(stream(vec![
            begun,
            event(v1::create_session_event::Event::Install(install)),
            event(v1::create_session_event::Event::Created(created)),
        ])))
    }

    async fn session_events(
        &self,
        request: Request<v1::SessionEventsRequest>,
    ) -> Result<Response<Self::SessionEventsStream>, Status> {
        if !request.get_ref().permissions_only {
            return Ok(Response::new(self.piece_of_events(request.into_inner())));
        }
        let asked = |sequence_number: u64, id: &str| v1::SessionEvent {
            sequence_number,
            at_ms: 0,
            newest: 0,
            notification_json: format!(
                r#"{{"jsonrpc":"2.0","method":"_agentos/permission_request",
                    "params":{{"permissionId":"{id}","description":"run ls","params":{{"toolCall":1}}}}}}"#
            ),
        };
        let notification_json = r#"{"method":"x"}"#.into();
        let other = v1::SessionEvent { sequence_number: 5, notification_json, ..Default::default() };
        Ok(Response::new(stream(vec![asked(4, "p-1"), other, asked(6, "p-2")])))
    }

    async fn respond_permission(
        &self,
        request: Request<v1::RespondPermissionRequest>,
    ) -> Result<Response<v1::RespondPermissionResponse>, Status> {
        let request = request.into_inner();
        let reply = request.reply();
        self.script.answers.lock().unwrap().push((request.permission_id, reply));
        Ok(Response::new(v1::RespondPermissionResponse {}))
    }

    async fn raw_send(
        &self,
        request: Request<v1::RawSendRequest>,
    ) -> Result<Response<v1::RawSendResponse>, Status> {
        let request = request.into_inner();
        let session_json = match request.method.as_str() {
            "session/set_mode" => r#"{"modes":{"currentModeId":"code","availableModes":[{"id":"code"}]}}"#,
            _ => "",
        };
        let response_json = match request.method.as_str() {
            "session/set_mode" => r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.into(),
            method => format!(
                r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":-32601,"message":"no {method}",
                    "data":{{"supported":["session/set_mode"]}}}}}}"#
            ),
        };
        Ok(Response::new(v1::RawSendResponse { response_json, session_json: session_json.into() }))
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn prompt(&self, _: Request<v1::PromptRequest>) -> Result<Response<v1::PromptResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn cancel_session(
        &self,
        _: Request<v1::CancelSessionRequest>,
    ) -> Result<Response<v1::CancelSessionResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        self.script.closed_sessions.lock().unwrap().push(request.into_inner().session_id);
        Ok(Response::new(v1::CloseSessionResponse {}))
    }

    async fn read_instructions(
        &self,
        _: Request<v1::ReadInstructionsRequest>,
    ) -> Result<Response<v1::ReadInstructionsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn install_agent(
        &self,
        _: Request<v1::InstallAgentRequest>,
    ) -> Result<Response<Self::InstallAgentStream>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}
