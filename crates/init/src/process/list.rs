//! The processes of the VM as its own /proc shows them.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use agentos_guest_protocol::Bytes;
use agentos_guest_protocol::process::ProcessEntry;

/// USER_HZ: the unit of times in /proc/PID/stat, 100 on every architecture that Linux has.
const TICKS_PER_SECOND: u64 = 100;

/// A command line is shown up to this length: a process can make its own as long as its address space.
const MAX_COMMAND_BYTES: u64 = 128 * 1024;

/// Beyond this many bytes of command lines in one list, each is shown up to [`MAX_LATER_COMMAND_BYTES`].
const MAX_LIST_BYTES: u64 = 8 * 1024 * 1024;
const MAX_LATER_COMMAND_BYTES: u64 = 256;

/// A process may have as many arguments as its command line has bytes; this many are shown one by one, and what follows
/// as the last one.
const MAX_ARGUMENTS: usize = 1024;

/// What an argument takes beside its bytes, here and in the sidecar.
const ARGUMENT_COST_BYTES: u64 = 32;

/// Every process but PID 1. A process that ends while it is looked at is left out.
pub(crate) fn list() -> Vec<ProcessEntry> {
    let boot_ms = boot_time_ms();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut listed_bytes = 0;
    let mut processes: Vec<ProcessEntry> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != 1)
        .filter_map(|pid| {
            let room =
                if listed_bytes < MAX_LIST_BYTES { MAX_COMMAND_BYTES } else { MAX_LATER_COMMAND_BYTES };
            let process = entry(pid, boot_ms, room)?;
            // Every argument costs, an empty one too.
            let cost = |argument: &Bytes| argument.len() as u64 + ARGUMENT_COST_BYTES;
            listed_bytes += process.argv.iter().map(cost).sum::<u64>();
            Some(process)
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    processes
}

fn entry(pid: i32, boot_ms: u64, room: u64) -> Option<ProcessEntry> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = Stat::parse(&stat)?;
    let mut command = Vec::new();
    if let Ok(file) = fs::File::open(format!("/proc/{pid}/cmdline")) {
        // A process that ends meanwhile has no command line any more.
        let _ = file.take(room).read_to_end(&mut command);
    }
    let link = |name: &str| {
        let target = fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
        Bytes::from(target.into_os_string().into_vec())
    };
    Some(ProcessEntry {
        pid,
        ppid: if stat.ppid == 1 { 0 } else { stat.ppid },
        pgid: stat.pgid,
        sid: stat.sid,
        argv: arguments(&command, &stat.name),
        cwd: link("cwd"),
        exe: link("exe"),
        zombie: stat.zombie,
        start_time_ms: boot_ms + stat.start_ticks * 1000 / TICKS_PER_SECOND,
    })
}

fn arguments(command: &[u8], name: &[u8]) -> Vec<Bytes> {
    if command.is_empty() {
        return vec![Bytes::from([b"[", name, b"]"].concat())];
    }
    let command = command.strip_suffix(b"\0").unwrap_or(command);
    command.splitn(MAX_ARGUMENTS, |byte| *byte == 0).map(|argument| Bytes::from(argument.to_vec())).collect()
}

/// The fields of /proc/PID/stat that are of use here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: Vec<u8>,
    zombie: bool,
    ppid: i32,
    pgid: i32,
    sid: i32,
    start_ticks: u64,
}

impl Stat {
    /// The name stands in parentheses and may itself hold any of them, and spaces: the last `)` ends it.
    fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let name = line.get(open + 1..close)?.to_vec();
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<i32>().ok();
        Some(Self {
            name,
            zombie: matches!(*fields.first()?, "Z" | "X"),
            ppid: number(1)?,
            pgid: number(2)?,
            sid: number(3)?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

/// When the machine was booted, in milliseconds since the epoch.
fn boot_time_ms() -> u64 {
    let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let ms = |time: rustix::time::Timespec| time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000;
    ms(now).saturating_sub(ms(since_boot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_confuse() {
        let line = b"42 (a) b (c) S 7 42 41 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.name, b"a) b (c");
        assert_eq!((stat.ppid, stat.pgid, stat.sid, stat.start_ticks), (7, 42, 41, 12345));
    }

    #[test]
    fn garbage_is_no_process() {
        for line in [&b""[..], b"1", b")(", b"1 (x)", b"1 (x) S 1"] {
            assert_eq!(Stat::parse(line), None);
        }
    }

    #[test]
    fn a_command_line_of_nothing_but_ends_is_no_flood_of_arguments() {
        assert_eq!(arguments(&vec![0; 128 * 1024], b"sh").len(), MAX_ARGUMENTS);
    }

    #[test]
    fn arguments_are_split_at_nul_and_an_empty_one_is_kept() {
        assert_eq!(
            arguments(b"sh\0-c\0\0", b"sh"),
            ["sh", "-c", ""].map(|a| Bytes::from(a.as_bytes().to_vec()))
        );
        assert_eq!(arguments(b"", b"defunct"), [Bytes::from(b"[defunct]".to_vec())]);
    }
}
