//! Whoever looks for the secret finds it in the sidecar and nowhere else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use agentos::{AgentOs, FileType, PermissionPolicy, Secret, Stdin};

use crate::lab::guest::sh;
use crate::provider::Place;
use crate::support::within;

/// Larger ones are of the base.
const MAX_FILE_BYTES: u64 = 16 << 20;

#[tokio::test]
async fn nothing_in_a_vm_and_nothing_that_is_kept_of_it_has_the_secret() {
    let Some(place) = Place::new().await else { return };
    let key = format!("sk-ant-api03-{}", uuid::Uuid::new_v4().simple());
    let token = format!("token-{}", uuid::Uuid::new_v4().simple());
    let options = place
        .options()
        .secret(Secret::new("ANTHROPIC_API_KEY", &key))
        .secret(Secret::new("TOKEN", &token).bearer("api.openai.com"));
    let vm = place.vm(options).await;

    // An agent, a client that has just used the other secret, one that is still at it, and a dump of a process.
    let session = vm.create_session("pi").permission_policy(PermissionPolicy::AllowAll).await.unwrap();
    let turn = "Run the command `env; cat /proc/*/environ; curl -sS http://10.0.2.4/anthropic/v1/models`";
    within("the turn", session.prompt(turn)).await.unwrap();
    let ask = r#"curl -sS -H "authorization: Bearer $TOKEN" https://api.openai.com/v1/models -o /tmp/answer; echo $?"#;
    assert_eq!(sh(&vm, ask).await, "0");
    let reader = "exec 3<>/dev/tcp/10.0.2.4/80; printf 'GET /anthropic/v1/models HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' >&3
        head -n 1 <&3; cat";
    let held = vm.spawn("/bin/bash", ["-c", reader]).stdin(Stdin::Piped).await.unwrap();
    within("an answer", futures_util::StreamExt::next(&mut held.stdout())).await.unwrap().unwrap();
    sh(&vm, "ulimit -c unlimited; cd /home/user; sh -c 'kill -SEGV $$'; true").await;

    let asked = place.provider.asked();
    assert!(asked.iter().any(|asked| asked.header("x-api-key") == key), "the key was used");
    assert!(asked.iter().any(|asked| asked.header("authorization").contains(&token)), "the token was used");
    let secrets = [key.as_bytes(), token.as_bytes()];

    let guests = guests(&vm).await;
    assert!(guests.len() >= 3, "init, the agent and a client: {guests:?}");
    for pid in guests {
        assert_eq!(found_in_memory(pid, &secrets), 0, "process {pid}");
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(!secrets.iter().any(|secret| contains(&environment, secret)), "process {pid}");
    }
    // The control: whoever has it is found.
    let sidecar = sidecar(&place.world.sidecar.describe().sidecar_id);
    assert!(found_in_memory(sidecar, &secrets) > 0, "the sidecar has it");

    look_at_files(&vm, &secrets).await;
    session.close().await.unwrap();
    vm.dispose().await.unwrap();
    // Transcripts, logs, and what else there is beside the agents' packages.
    let seen = look_below(&place.state, &secrets) + look_below(place.world.runtime_dir(), &secrets);
    assert!(seen >= 2, "{seen}: transcripts and a log");
}

/// The processes of a VM, in the host's numbers: those in its PID namespace.
async fn guests(vm: &AgentOs) -> Vec<u32> {
    let namespace = sh(vm, "readlink /proc/self/ns/pid").await;
    processes().filter(|pid| is_in(*pid, &namespace)).collect()
}

fn is_in(pid: u32, namespace: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|own| own == Path::new(namespace))
}

fn sidecar(id: &str) -> u32 {
    let is_it = |pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = arguments.split(|byte| *byte == 0);
        let is_sidecar = words.clone().any(|word| word == b"sidecar");
        is_sidecar && words.any(|word| word == id.as_bytes())
    };
    processes().find(is_it).unwrap()
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
}

/// How often a process has one of these in its memory.
fn found_in_memory(pid: u32, wanted: &[&[u8]]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        if rights.starts_with('r') {
            found += found_between(&memory, start, end, wanted);
        }
    }
    found
}

fn found_between(memory: &File, start: u64, end: u64, wanted: &[&[u8]]) -> usize {
    const PIECE: u64 = 1 << 20;
    // What lies over the edge of two pieces is in both.
    const OVERLAP: u64 = 256;
    let (mut found, mut at) = (0, start);
    let mut buffer = vec![0; (PIECE + OVERLAP) as usize];
    while at < end {
        let length = (end - at).min(PIECE + OVERLAP) as usize;
        // What has no memory behind it can't be read.
        let read = memory.read_at(&mut buffer[..length], at).unwrap_or(0);
        found += wanted.iter().filter(|wanted| contains(&buffer[..read], wanted)).count();
        at += PIECE;
    }
    found
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    let first = wanted[0];
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Every file of the VM that isn't the base's.
async fn look_at_files(vm: &AgentOs, secrets: &[&[u8]]) {
    let base = ["proc", "dev", "sys", "usr", "packages", "bin", "sbin", "lib", "lib64"];
    let walk = base.into_iter().fold(vm.readdir_recursive("/"), |walk, name| walk.exclude(name));
    let entries = walk.await.unwrap();
    let files = entries.iter().filter(|entry| entry.file_type == FileType::File);
    let mut looked_at = 0;
    for file in files.filter(|file| file.size <= MAX_FILE_BYTES) {
        let Ok(content) = vm.read_file(&*file.path).await else { continue };
        looked_at += 1;
        for secret in secrets {
            assert!(!contains(&content, secret), "{}", file.path);
        }
    }
    assert!(looked_at > 100, "{looked_at} files");
    assert!(entries.iter().any(|entry| entry.path == "/tmp/answer"));
}

/// Every file below a directory of the host, links apart. How many there were.
fn look_below(directory: &Path, secrets: &[&[u8]]) -> usize {
    let mut left: Vec<PathBuf> = vec![directory.to_owned()];
    let mut seen = 0;
    while let Some(path) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if metadata.is_file() {
            let content = fs::read(&path).unwrap();
            seen += 1;
            for secret in secrets {
                assert!(!contains(&content, secret), "{}", path.display());
            }
        }
    }
    seen
}
