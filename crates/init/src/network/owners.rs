//! Which process holds a socket, by the links in /proc/PID/fd.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::network::SocketOwner;

/// A guest may have as many descriptors as it has processes times their limit; whoever holds none of the first of this
/// many stays unknown. Each costs a microsecond or two.
const MAX_DESCRIPTORS: usize = 1 << 17;

const MAX_COMMAND_BYTES: u64 = 256;

/// The owners of these sockets, as far as they have any. PID 1 is no owner: what it holds is the sidecar's.
pub(super) fn find(mut wanted: BTreeSet<u64>) -> BTreeMap<u64, SocketOwner> {
    let mut owners = BTreeMap::new();
    let mut left = MAX_DESCRIPTORS;
    for pid in pids() {
        if wanted.is_empty() || left == 0 {
            break;
        }
        // A process that ends meanwhile holds nothing.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let mut owner = None;
        for descriptor in descriptors.filter_map(Result::ok).take(left) {
            left -= 1;
            let target = fs::read_link(descriptor.path());
            let socket = target.ok().and_then(|target| socket(target.to_str()?));
            let Some(inode) = socket.filter(|inode| wanted.remove(inode)) else { continue };
            let owner = owner.get_or_insert_with(|| SocketOwner { pid, command: command(pid) });
            owners.insert(inode, owner.clone());
        }
    }
    owners
}

fn pids() -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != 1).collect()
}

/// `socket:[4711]`.
fn socket(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn command(pid: i32) -> Bytes {
    let read = |name: &str| {
        let mut text = Vec::new();
        if let Ok(file) = File::open(format!("/proc/{pid}/{name}")) {
            // A process that ends meanwhile has no command line any more.
            let _ = file.take(MAX_COMMAND_BYTES).read_to_end(&mut text);
        }
        text
    };
    let line = read("cmdline");
    match line.strip_suffix(b"\0").unwrap_or(&line) {
        b"" => Bytes::from([b"[", read("comm").trim_ascii_end(), b"]"].concat()),
        line => {
            let spaced = line.iter().map(|byte| if *byte == 0 { b' ' } else { *byte });
            Bytes::from(spaced.collect::<Vec<u8>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_sockets_name_one() {
        assert_eq!(socket("socket:[4711]"), Some(4711));
        for other in ["pipe:[4711]", "/tmp/socket:[1]", "socket:[]", "socket:[1", "socket:[-1]"] {
            assert_eq!(socket(other), None, "{other}");
        }
    }

    #[test]
    fn a_command_line_is_one_line_of_bounded_length() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo here; read line", &"x".repeat(1000)])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // For a moment after its exec a process has no command line yet.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let command = command(child.id() as i32);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(command.starts_with(b"sh -c echo here; read line xxx"), "{command:?}");
        assert_eq!(command.len() as u64, MAX_COMMAND_BYTES);
    }
}
