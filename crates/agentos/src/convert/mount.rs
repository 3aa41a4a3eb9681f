//! Mounts.

use agentos_proto::v1;

use super::error::RequestError;
use crate::mount::{Mount, MountKind, Unmounted};

pub(crate) fn mount(path: String, mount: &Mount) -> Result<v1::Mount, RequestError> {
    let kind = match &mount.kind {
        MountKind::Memory { max_bytes } => v1::mount::Kind::Memory(v1::MemoryMount { max_bytes: *max_bytes }),
        MountKind::HostDir { path, allow_sockets } => v1::mount::Kind::HostDir(v1::HostDirMount {
            host_path: super::vm::host_path(path)?,
            allow_sockets: *allow_sockets,
        }),
    };
    Ok(v1::Mount { path, read_only: mount.read_only, kind: Some(kind) })
}

pub(crate) fn mount_request(
    vm_id: &str,
    path: String,
    wish: &Mount,
) -> Result<v1::MountFsRequest, RequestError> {
    Ok(v1::MountFsRequest { vm_id: vm_id.to_owned(), mount: Some(mount(path, wish)?) })
}

pub(crate) fn unmount_request(vm_id: &str, path: String) -> v1::UnmountFsRequest {
    v1::UnmountFsRequest { vm_id: vm_id.to_owned(), path }
}

pub(crate) fn unmounted(reply: &v1::UnmountFsResponse) -> Unmounted {
    Unmounted { busy: reply.busy }
}
