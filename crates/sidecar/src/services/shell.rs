//! Shells.

use std::sync::Arc;

use agentos_proto::v1::{self, ErrorKind, shell_service_server::ShellService};
use agentos_vm::Shell;
use tonic::{Request, Response, Status};

use super::Streamed;
use super::process::output_events;
use crate::convert::process;
use crate::errors::{Failure, of_vm};
use crate::host::Host;

#[derive(Debug)]
pub(super) struct Shells(pub(super) Arc<Host>);

impl Shells {
    fn shell(&self, vm_id: &str, shell_id: &str) -> Result<Shell, Status> {
        let hosted = self.0.vm(vm_id)?;
        Ok(hosted.vm.shell(shell_id).ok_or_else(|| {
            Failure::new(ErrorKind::NotFound, shell_id, format!("Shell not found: {shell_id}"))
        })?)
    }
}

#[tonic::async_trait]
impl ShellService for Shells {
    async fn open_shell(
        &self,
        request: Request<v1::OpenShellRequest>,
    ) -> Result<Response<v1::OpenShellResponse>, Status> {
        let request = request.into_inner();
        let hosted = self.0.vm(&request.vm_id)?;
        let vm_id = request.vm_id.clone();
        let shell = hosted.vm.open_shell(process::shell_spec(request)?).await.map_err(of_vm(&vm_id))?;
        Ok(Response::new(v1::OpenShellResponse { shell_id: shell.id().to_owned(), pid: shell.pid() }))
    }

    async fn write_shell(
        &self,
        request: Request<v1::WriteShellRequest>,
    ) -> Result<Response<v1::WriteShellResponse>, Status> {
        let request = request.into_inner();
        let shell = self.shell(&request.vm_id, &request.shell_id)?;
        shell.write(request.data).await.map_err(of_vm(&request.shell_id))?;
        Ok(Response::new(v1::WriteShellResponse {}))
    }

    type ReadShellStream = Streamed<v1::OutputEvent>;

    async fn read_shell(
        &self,
        request: Request<v1::ReadShellRequest>,
    ) -> Result<Response<Self::ReadShellStream>, Status> {
        let request = request.into_inner();
        let shell = self.shell(&request.vm_id, &request.shell_id)?;
        Ok(Response::new(output_events(shell.output().from_offset(request.from_offset))))
    }

    async fn resize_shell(
        &self,
        request: Request<v1::ResizeShellRequest>,
    ) -> Result<Response<v1::ResizeShellResponse>, Status> {
        let request = request.into_inner();
        let shell = self.shell(&request.vm_id, &request.shell_id)?;
        let (cols, rows) = process::terminal_size(request.cols, request.rows)?;
        shell.resize(cols, rows).map_err(of_vm(&request.shell_id))?;
        Ok(Response::new(v1::ResizeShellResponse {}))
    }

    async fn wait_shell(
        &self,
        request: Request<v1::WaitShellRequest>,
    ) -> Result<Response<v1::WaitShellResponse>, Status> {
        let request = request.into_inner();
        let exit = self.shell(&request.vm_id, &request.shell_id)?.wait().await;
        Ok(Response::new(v1::WaitShellResponse { exit: Some(process::exit(&exit)) }))
    }

    async fn close_shell(
        &self,
        request: Request<v1::CloseShellRequest>,
    ) -> Result<Response<v1::CloseShellResponse>, Status> {
        let request = request.into_inner();
        self.shell(&request.vm_id, &request.shell_id)?.close().await;
        Ok(Response::new(v1::CloseShellResponse {}))
    }
}
