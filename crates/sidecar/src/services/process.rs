//! Processes.
//!
//! Streams are polled by the connection itself: no task stands between a pipe of the guest and the socket of the
//! client, and a client that cancels drops the stream, and with it the exec or the reader, at once.

use std::sync::Arc;

use agentos_proto::v1::{self, ErrorKind, process_service_server::ProcessService};
use agentos_vm::Process;
use agentos_vm::process::OutputReader;
use futures_util::stream;
use tonic::{Request, Response, Status};

use super::Streamed;
use crate::convert::process;
use crate::errors::{Failure, of_vm};
use crate::host::Host;

#[derive(Debug)]
pub(super) struct Processes(pub(super) Arc<Host>);

impl Processes {
    fn process(&self, vm_id: &str, pid: i32) -> Result<Process, Status> {
        let hosted = self.0.vm(vm_id)?;
        Ok(hosted.vm.process(pid).ok_or_else(|| {
            Failure::new(ErrorKind::NotFound, pid.to_string(), format!("Process not found: {pid}"))
                .with_errno(rustix::io::Errno::SRCH)
        })?)
    }
}

/// A reader as a stream of events; dropping it detaches the reader.
pub(super) fn output_events(reader: OutputReader) -> Streamed<v1::OutputEvent> {
    Box::pin(stream::unfold(reader, |mut reader| async {
        let chunk = reader.next().await?;
        Some((Ok(v1::OutputEvent { offset: chunk.offset, data: chunk.data }), reader))
    }))
}

#[tonic::async_trait]
impl ProcessService for Processes {
    type ExecStream = Streamed<v1::ExecEvent>;

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        let vm_id = request.vm_id.clone();
        let exec = hosted.vm.exec(process::exec_spec(request)).await.map_err(of_vm(&vm_id))?;
        let pid = exec.pid();
        let events = stream::unfold(exec, move |mut exec| async move {
            let event = exec.next().await?;
            Some((Ok(process::exec_event(event, pid)), exec))
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn spawn(&self, request: Request<v1::SpawnRequest>) -> Result<Response<v1::SpawnResponse>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        let vm_id = request.vm_id.clone();
        let process = hosted.vm.spawn(process::process_spec(request)).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::SpawnResponse { pid: process.pid() }))
    }

    type ReadOutputStream = Streamed<v1::OutputEvent>;

    async fn read_output(
        &self,
        request: Request<v1::ReadOutputRequest>,
    ) -> Result<Response<Self::ReadOutputStream>, Status> {
        let request = request.into_inner();
        let process = self.process(&request.vm_id, request.pid)?;
        let output = match request.stream() {
            v1::OutputStreamKind::Stdout => process.stdout(),
            v1::OutputStreamKind::Stderr => process.stderr(),
            v1::OutputStreamKind::Unspecified => {
                return Err(Failure::invalid("stream", "Neither stdout nor stderr is named").into());
            }
        };
        Ok(Response::new(output_events(output.from_offset(request.from_offset))))
    }

    async fn write_stdin(
        &self,
        request: Request<v1::WriteStdinRequest>,
    ) -> Result<Response<v1::WriteStdinResponse>, Status> {
        let request = request.into_inner();
        let process = self.process(&request.vm_id, request.pid)?;
        process.write_stdin(request.data).await.map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::WriteStdinResponse {}))
    }

    async fn close_stdin(
        &self,
        request: Request<v1::CloseStdinRequest>,
    ) -> Result<Response<v1::CloseStdinResponse>, Status> {
        let request = request.into_inner();
        let process = self.process(&request.vm_id, request.pid)?;
        process.close_stdin().map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::CloseStdinResponse {}))
    }

    async fn wait_process(
        &self,
        request: Request<v1::WaitProcessRequest>,
    ) -> Result<Response<v1::WaitProcessResponse>, Status> {
        let request = request.into_inner();
        let exit = self.process(&request.vm_id, request.pid)?.wait().await;
        Ok(Response::new(v1::WaitProcessResponse { exit: Some(process::exit(&exit)) }))
    }

    async fn signal_process(
        &self,
        request: Request<v1::SignalProcessRequest>,
    ) -> Result<Response<v1::SignalProcessResponse>, Status> {
        let request = request.into_inner();
        let process = self.process(&request.vm_id, request.pid)?;
        process.signal(request.signal).await.map_err(of_vm(&request.vm_id))?;
        Ok(Response::new(v1::SignalProcessResponse {}))
    }

    async fn list_processes(
        &self,
        request: Request<v1::ListProcessesRequest>,
    ) -> Result<Response<v1::ListProcessesResponse>, Status> {
        let hosted = self.0.vm(&request.into_inner().vm_id)?;
        let processes = hosted.vm.list_processes().into_iter().map(process::spawned_process).collect();
        Ok(Response::new(v1::ListProcessesResponse { processes }))
    }

    async fn all_processes(
        &self,
        request: Request<v1::AllProcessesRequest>,
    ) -> Result<Response<v1::AllProcessesResponse>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        let processes = hosted.vm.all_processes().await.map_err(of_vm(&request.vm_id))?;
        let processes = processes.into_iter().map(process::process_info).collect();
        Ok(Response::new(v1::AllProcessesResponse { processes }))
    }
}
