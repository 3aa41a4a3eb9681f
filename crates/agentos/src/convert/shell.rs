//! Shells.

use agentos_proto::v1;
use bytes::Bytes;

use super::error::RequestError;
use super::process::{check_arguments, process_options};
use crate::options::ProcessOptions;
use crate::shell::ShellWish;

pub(crate) fn open_request(
    vm_id: &str,
    wish: ShellWish,
    options: ProcessOptions,
) -> Result<v1::OpenShellRequest, RequestError> {
    check_arguments(&wish.argv, &options)?;
    Ok(v1::OpenShellRequest {
        vm_id: vm_id.to_owned(),
        argv: wish.argv,
        options: Some(process_options(options)),
        cols: wish.cols.into(),
        rows: wish.rows.into(),
    })
}

pub(crate) fn write_request(vm_id: &str, shell_id: &str, data: Bytes) -> v1::WriteShellRequest {
    v1::WriteShellRequest { vm_id: vm_id.to_owned(), shell_id: shell_id.to_owned(), data }
}

pub(crate) fn read_request(vm_id: &str, shell_id: String, from_offset: u64) -> v1::ReadShellRequest {
    v1::ReadShellRequest { vm_id: vm_id.to_owned(), shell_id, from_offset }
}

pub(crate) fn resize_request(vm_id: &str, shell_id: &str, cols: u16, rows: u16) -> v1::ResizeShellRequest {
    let (cols, rows) = (cols.into(), rows.into());
    v1::ResizeShellRequest { vm_id: vm_id.to_owned(), shell_id: shell_id.to_owned(), cols, rows }
}

pub(crate) fn wait_request(vm_id: &str, shell_id: &str) -> v1::WaitShellRequest {
    v1::WaitShellRequest { vm_id: vm_id.to_owned(), shell_id: shell_id.to_owned() }
}

pub(crate) fn close_request(vm_id: &str, shell_id: &str) -> v1::CloseShellRequest {
    v1::CloseShellRequest { vm_id: vm_id.to_owned(), shell_id: shell_id.to_owned() }
}
