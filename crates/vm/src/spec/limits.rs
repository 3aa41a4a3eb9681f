//! Limits: what was asked for, what this host can enforce, what is the default.

use agentos_guest_protocol::launcher::IdMode;

use super::{Host, SpecError, SpecField, SpecProblem};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

const DEFAULT_MAX_MEMORY_BYTES: u64 = 4 * GIB;
const DEFAULT_MAX_DISK_BYTES: u64 = GIB;
const DEFAULT_PROCESSES: u32 = 4096;
const DEFAULT_OPEN_FILES: u32 = 65_536;

/// Below it, not even init and a shell fit.
const MIN_MEMORY_BYTES: u64 = 8 * MIB;
const MIN_DISK_BYTES: u64 = MIB;
/// A shell, a pipe of two and init's helpers.
const MIN_PROCESSES: u32 = 8;
/// The kernel's own PID_MAX_LIMIT.
const MAX_PROCESSES: u32 = 4 * 1024 * 1024;
/// Three standard descriptors, a loader's and a few of the program's own.
const MIN_OPEN_FILES: u32 = 16;
/// The least the kernel's CPU bandwidth control takes: 1 ms in every 100.
const MIN_CPU_MILLIS: u32 = 10;
const MAX_CPU_MILLIS: u32 = 1000 * 8192;

/// One inode per 4 KiB, as a disk file system is made by default; an inode of tmpfs costs about 1 KiB of the kernel's
/// memory, hence the ceiling.
const BYTES_PER_INODE: u64 = 4096;
const MIN_INODES: u64 = 1024;
const MAX_INODES: u64 = 4 * 1024 * 1024;

const _: () =
    assert!(MIN_DISK_BYTES <= MIN_MEMORY_BYTES / 2, "the default disk of the smallest VM is allowed");

/// What was asked for; None is the default.
#[derive(Debug, Clone, Default)]
pub struct LimitOptions {
    pub memory_bytes: Option<u64>,
    /// Thousandths of one CPU.
    pub cpu_millis: Option<u32>,
    pub processes: Option<u32>,
    pub open_files: Option<u32>,
    pub disk_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DecidedLimits {
    pub(super) memory_bytes: Option<u64>,
    pub(super) cpu_millis: Option<u32>,
    pub(super) processes: u32,
    pub(super) open_files: u32,
    pub(super) disk_bytes: u64,
    pub(super) disk_inodes: u64,
}

pub(super) fn decide(options: &LimitOptions, host: &Host) -> Result<DecidedLimits, SpecError> {
    let findings = &host.findings;
    check(SpecField::MemoryLimit, options.memory_bytes, MIN_MEMORY_BYTES, u64::MAX / 2)?;
    check(SpecField::CpuLimit, options.cpu_millis, MIN_CPU_MILLIS, MAX_CPU_MILLIS)?;
    check(SpecField::ProcessLimit, options.processes, MIN_PROCESSES, MAX_PROCESSES)?;
    check(SpecField::OpenFileLimit, options.open_files, MIN_OPEN_FILES, findings.max_open_files)?;
    check(SpecField::DiskLimit, options.disk_bytes, MIN_DISK_BYTES, u64::MAX / 2)?;

    if options.memory_bytes.is_some() && !findings.cgroup_memory {
        return Err(unenforceable(SpecField::MemoryLimit, "no writable memory cgroup"));
    }
    if options.cpu_millis.is_some() && !findings.cgroup_cpu {
        return Err(unenforceable(SpecField::CpuLimit, "no writable cpu cgroup"));
    }
    // With ids of its own a VM is bounded by RLIMIT_NPROC as well, which counts per user id; with the one id all VMs
    // and the caller's own processes are counted together.
    if options.processes.is_some() && !findings.cgroup_processes && findings.ids == IdMode::Single {
        return Err(unenforceable(SpecField::ProcessLimit, "no writable pids cgroup"));
    }

    let default_memory = (host.memory_bytes / 2).clamp(MIN_MEMORY_BYTES, DEFAULT_MAX_MEMORY_BYTES);
    let memory = options.memory_bytes.unwrap_or(default_memory);
    let disk_bytes = options.disk_bytes.unwrap_or((memory / 2).min(DEFAULT_MAX_DISK_BYTES));
    Ok(DecidedLimits {
        memory_bytes: findings.cgroup_memory.then_some(memory),
        cpu_millis: options.cpu_millis,
        processes: options.processes.unwrap_or(DEFAULT_PROCESSES),
        open_files: options.open_files.unwrap_or(DEFAULT_OPEN_FILES.min(findings.max_open_files)),
        disk_bytes,
        disk_inodes: (disk_bytes / BYTES_PER_INODE).clamp(MIN_INODES, MAX_INODES),
    })
}

fn check<T: Into<u64> + Copy>(field: SpecField, value: Option<T>, min: T, max: T) -> Result<(), SpecError> {
    let (min, max) = (min.into(), max.into());
    match value.map(Into::into) {
        Some(value) if value < min || value > max => {
            Err(field.refuse(SpecProblem::OutOfRange { value, min, max }))
        }
        _ => Ok(()),
    }
}

fn unenforceable(field: SpecField, missing: &'static str) -> SpecError {
    field.refuse(SpecProblem::NotEnforceable { missing })
}
