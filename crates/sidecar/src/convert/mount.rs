//! Mounts. Functions, because both sides of the conversion are other crates' types.

use agentos_proto::v1::{self, mount::Kind};
use agentos_vm::spec::{MountKind, MountOptions};

use crate::errors::Failure;

pub(crate) fn mount_options(mount: v1::Mount) -> Result<MountOptions, Failure> {
    let read_only = mount.read_only;
    let kind = match mount.kind {
        Some(Kind::Memory(memory)) => {
            MountKind::Memory { max_bytes: (memory.max_bytes != 0).then_some(memory.max_bytes), read_only }
        }
        Some(Kind::HostDir(directory)) => MountKind::HostDir {
            source: directory.host_path.into_bytes(),
            read_only,
            allow_sockets: directory.allow_sockets,
        },
        None => return Err(Failure::invalid(&mount.path, format!("mount at {} has no kind", mount.path))),
    };
    Ok(MountOptions { path: mount.path.into_bytes(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_mount_without_a_size_takes_the_default() {
        let memory = |max_bytes| v1::Mount {
            path: "/m".into(),
            read_only: false,
            kind: Some(Kind::Memory(v1::MemoryMount { max_bytes })),
        };
        let kind = |mount| mount_options(mount).unwrap().kind;
        assert!(matches!(kind(memory(0)), MountKind::Memory { max_bytes: None, read_only: false }));
        assert!(matches!(kind(memory(7)), MountKind::Memory { max_bytes: Some(7), read_only: false }));
    }

    #[test]
    fn a_mount_without_a_kind_is_refused_by_its_path() {
        let failure = mount_options(v1::Mount { path: "/m".into(), ..Default::default() }).unwrap_err();
        assert!(failure.into_detail().message.contains("/m"));
    }
}
