//! The program under a real kernel: each refusal, the ordinary calls that must not suffer, and the deaths.
//!
//! What a refusal proves depends on what would have happened without it, so that calls with rules are also made without
//! the program. The arguments of plain refusals are chosen to do no harm if the program should ever let them through.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use agentos_linux::seccomp::{guest_program, install};

use crate::child::{Call, Filter, Outcome, end_of, outcomes, raw, terminal};
use crate::number;

const EPERM: Outcome = Outcome::Error(libc::EPERM);
const ENOSYS: Outcome = Outcome::Error(libc::ENOSYS);
/// No descriptor, no flag set, no valid address: what it is to the call, the call can't succeed.
const BAD: u64 = u64::MAX;
const AT_FDCWD: u64 = libc::AT_FDCWD as u64;

/// `None` where the architecture lacks the call.
fn call(name: &str, arguments: &[u64]) -> Option<Call> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let what = format!("{name}({arguments:x?})");
    Some(Call { what, number: number(name)?.into(), arguments: all })
}

fn check(filter: Filter, expected: &[(Option<Call>, Outcome)]) {
    let expected: Vec<(Call, Outcome)> =
        expected.iter().filter_map(|(call, outcome)| Some((call.clone()?, *outcome))).collect();
    let calls: Vec<Call> = expected.iter().map(|(call, _)| call.clone()).collect();
    for ((call, expected), outcome) in expected.iter().zip(outcomes(filter, &calls)) {
        assert_eq!(outcome, *expected, "{}", call.what);
    }
}

/// The same calls succeed without the program and are refused with it.
fn check_refused_though_possible(refused: Outcome, calls: &[Option<Call>]) {
    let all_get = |outcome| calls.iter().map(|call| (call.clone(), outcome)).collect::<Vec<_>>();
    check(Filter::None, &all_get(Outcome::Success));
    check(Filter::Guest, &all_get(refused));
}

/// The program makes no difference to these.
fn check_untouched(calls: Vec<Option<Call>>) {
    let calls: Vec<Call> = calls.into_iter().flatten().collect();
    let without = outcomes(Filter::None, &calls);
    let with = outcomes(Filter::Guest, &calls);
    for ((call, without), with) in calls.iter().zip(without).zip(with) {
        assert_eq!(with, without, "{}", call.what);
    }
}

#[test]
fn what_belongs_to_the_machine_is_refused() {
    let refused = "mount umount2 pivot_root chroot move_mount open_tree open_tree_attr mount_setattr fsopen fsconfig
        fsmount fspick quotactl quotactl_fd swapon swapoff acct setns pidfd_getfd userfaultfd move_pages migrate_pages
        settimeofday clock_settime adjtimex clock_adjtime init_module finit_module delete_module kexec_load
        kexec_file_load bpf perf_event_open add_key request_key keyctl reboot syslog vhangup sethostname setdomainname
        iopl ioperm lookup_dcookie nfsservctl name_to_handle_at open_by_handle_at fanotify_init fanotify_mark";
    let refused: Vec<_> = refused.split_whitespace().map(|name| (call(name, &[BAD; 6]), EPERM)).collect();
    check(Filter::Guest, &refused);
}

#[test]
fn calls_that_a_filter_cannot_judge_and_unknown_ones_do_not_exist() {
    let absent =
        "clone3 openat2 fchmodat2 io_uring_setup io_uring_enter io_uring_register memfd_secret statmount
        listmount modify_ldt lsm_list_modules io_setup io_submit io_getevents io_destroy";
    let mut absent: Vec<_> = absent.split_whitespace().map(|name| (call(name, &[BAD; 6]), ENOSYS)).collect();
    for number in [400, 423, 500, 1000, 0x3fff_ffff] {
        let unknown = Call { what: format!("call {number}"), number, arguments: [BAD; 6] };
        absent.push((Some(unknown), ENOSYS));
    }
    check(Filter::Guest, &absent);
}

#[test]
fn new_namespaces_are_refused_and_other_flags_are_not() {
    let thread = libc::CLONE_THREAD as u64;
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        // A thread without shared signal handlers is always EINVAL: the control makes no process.
        let clone = call("clone", &[flag as u64 | thread, 0, 0, 0, 0]);
        check(Filter::None, &[(clone.clone(), Outcome::Error(libc::EINVAL))]);
        let upper_half = call("clone", &[1 << 32 | flag as u64 | thread, 0, 0, 0, 0]);
        let unshare = call("unshare", &[flag as u64]);
        let with_others = call("unshare", &[(flag | libc::CLONE_FILES) as u64]);
        check(Filter::Guest, &[(clone, EPERM), (upper_half, EPERM), (unshare, EPERM), (with_others, EPERM)]);
    }
    const CLONE_NEWTIME: u64 = 0x80;
    check(Filter::Guest, &[(call("unshare", &[CLONE_NEWTIME]), EPERM)]);
    check_untouched(vec![
        call("clone", &[thread, 0, 0, 0, 0]),
        call("unshare", &[(libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SYSVSEM) as u64]),
        call("unshare", &[0]),
    ]);
}

#[test]
fn setuid_and_setgid_bits_cannot_be_set() {
    let directory = tempfile::tempdir().unwrap();
    let path =
        |name: &str| CString::new(directory.path().join(name).into_os_string().into_encoded_bytes()).unwrap();
    let file = path("file");
    let handle = std::fs::File::create(directory.path().join("file")).unwrap();
    let descriptor = handle.as_raw_fd() as u64;
    let file = file.as_ptr() as u64;
    let folder = path("");
    let folder = folder.as_ptr() as u64;
    let tmpfile = (libc::O_TMPFILE | libc::O_WRONLY) as u64;
    let create = (libc::O_CREAT | libc::O_WRONLY) as u64;

    let mut paths = Vec::new();
    let mut refused = Vec::new();
    for (index, bits) in [0o4755, 0o2755, 0o6755].into_iter().enumerate() {
        // Calls that must not find the file there get one of their own, for the control makes it.
        let mut fresh = |name: &str| {
            paths.push(path(&format!("{name}{index}")));
            paths[paths.len() - 1].as_ptr() as u64
        };
        refused.extend([
            call("chmod", &[file, bits]),
            call("fchmod", &[descriptor, bits]),
            call("fchmodat", &[AT_FDCWD, file, bits]),
            call("mkdir", &[fresh("a"), bits]),
            call("mkdirat", &[AT_FDCWD, fresh("b"), bits]),
            call("mknod", &[fresh("c"), u64::from(libc::S_IFIFO) | bits, 0]),
            call("mknodat", &[AT_FDCWD, fresh("d"), u64::from(libc::S_IFREG) | bits, 0]),
            call("creat", &[fresh("e"), bits]),
            call("open", &[fresh("f"), create, bits]),
            call("openat", &[AT_FDCWD, fresh("g"), create, bits]),
            call("openat", &[AT_FDCWD, folder, tmpfile, bits]),
        ]);
    }
    refused.push(call("chmod", &[folder, 0o2755]));
    check_refused_though_possible(EPERM, &refused);
    let made = std::fs::metadata(directory.path().join("g0")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&made.permissions()) & 0o7000,
        0o4000,
        "the control set it"
    );

    let sticky_directory = path("sticky");
    let fifo = path("fifo");
    check(
        Filter::Guest,
        &[
            (call("chmod", &[file, 0o755]), Outcome::Success),
            (call("fchmod", &[descriptor, 0o1644]), Outcome::Success),
            (call("mkdirat", &[AT_FDCWD, sticky_directory.as_ptr() as u64, 0o1777]), Outcome::Success),
            (
                call("mknodat", &[AT_FDCWD, fifo.as_ptr() as u64, u64::from(libc::S_IFIFO) | 0o644, 0]),
                Outcome::Success,
            ),
            (call("openat", &[AT_FDCWD, file, create, 0o644]), Outcome::Success),
            (call("openat", &[AT_FDCWD, file, libc::O_RDONLY as u64, 0o6755]), Outcome::Success),
        ],
    );
}

#[test]
fn the_overlay_s_deleted_mark_and_other_devices_cannot_be_made() {
    // On a tmpfs: where /tmp is an overlay the control could not make the mark either.
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path =
        |name: &str| CString::new(directory.path().join(name).into_os_string().into_encoded_bytes()).unwrap();
    let (one, two, disk) = (path("one"), path("two"), path("disk"));
    check_refused_though_possible(
        EPERM,
        &[
            call("mknod", &[one.as_ptr() as u64, u64::from(libc::S_IFCHR), 0]),
            call("mknodat", &[AT_FDCWD, two.as_ptr() as u64, u64::from(libc::S_IFCHR) | 0o600, 0]),
        ],
    );
    let disk = call("mknodat", &[AT_FDCWD, disk.as_ptr() as u64, u64::from(libc::S_IFBLK) | 0o600, 0x0800]);
    check(Filter::Guest, &[(disk, EPERM)]);
}

#[test]
fn sockets_are_local_internet_or_interface_lists() {
    // The old spelling of AF_PACKET.
    const SOCK_PACKET: u64 = 10;
    let (stream, datagram, raw, packets) = (
        libc::SOCK_STREAM as u64,
        libc::SOCK_DGRAM as u64,
        libc::SOCK_RAW as u64,
        libc::SOCK_SEQPACKET as u64,
    );
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
    let (unix, four, six, netlink) =
        (libc::AF_UNIX as u64, libc::AF_INET as u64, libc::AF_INET6 as u64, libc::AF_NETLINK as u64);
    let socket = |family: u64, kind: u64, protocol: i32| call("socket", &[family, kind, protocol as u64]);
    check_untouched(vec![
        socket(unix, stream | flags, 0),
        socket(unix, packets, 0),
        socket(unix, datagram, 0),
        socket(four, stream | flags, 0),
        socket(four, stream, libc::IPPROTO_TCP),
        socket(four, datagram | flags, libc::IPPROTO_UDP),
        socket(six, stream | flags, 0),
        socket(six, datagram, 0),
        socket(four, datagram, libc::IPPROTO_ICMP),
        socket(six, datagram, libc::IPPROTO_ICMPV6),
        socket(netlink, raw | flags, libc::NETLINK_ROUTE),
        socket(netlink, datagram, libc::NETLINK_ROUTE),
    ]);
    let (no_family, no_type, no_protocol) = (
        Outcome::Error(libc::EAFNOSUPPORT),
        Outcome::Error(libc::ESOCKTNOSUPPORT),
        Outcome::Error(libc::EPROTONOSUPPORT),
    );
    let mut refused = vec![
        (socket(four, raw, libc::IPPROTO_ICMP), EPERM),
        (socket(six, raw | flags, libc::IPPROTO_RAW), EPERM),
        (socket(four, stream, libc::IPPROTO_MPTCP), no_protocol),
        (socket(four, datagram, libc::IPPROTO_UDPLITE), no_protocol),
        (socket(four, packets, libc::IPPROTO_SCTP), no_type),
        (socket(four, SOCK_PACKET, 3), no_type),
        (socket(libc::AF_PACKET as u64, raw, 3), EPERM),
        (socket(1 << 32 | libc::AF_PACKET as u64, raw, 3), EPERM),
    ];
    for protocol in
        [libc::NETLINK_NETFILTER, libc::NETLINK_CRYPTO, libc::NETLINK_GENERIC, libc::NETLINK_AUDIT]
    {
        refused.push((socket(netlink, raw, protocol), no_protocol));
    }
    for family in
        [libc::AF_ALG, libc::AF_VSOCK, libc::AF_BLUETOOTH, libc::AF_CAN, libc::AF_TIPC, libc::AF_XDP, 0, 99]
    {
        refused.push((socket(family as u64, datagram, 0), no_family));
    }
    check(Filter::Guest, &refused);

    let mut pair = [0_i32; 2];
    let pair = pair.as_mut_ptr() as u64;
    check_untouched(vec![call("socketpair", &[unix, stream | flags, 0, pair])]);
    let tipc = call("socketpair", &[libc::AF_TIPC as u64, stream, 0, pair]);
    check(Filter::Guest, &[(tipc, no_family)]);
}

#[test]
fn nothing_can_be_typed_into_a_terminal_from_behind() {
    // As in asm-generic/ioctls.h; libc's have a type that differs between C libraries.
    const TIOCSTI: u64 = 0x5412;
    const TIOCLINUX: u64 = 0x541c;
    const TIOCSETD: u64 = 0x5423;
    const TIOCGWINSZ: u64 = 0x5413;
    let (_controller, user) = terminal();
    let user = user.as_raw_fd() as u64;
    let typed = b"x";
    let tricks: Vec<_> = [TIOCSTI, TIOCLINUX, TIOCSETD]
        .into_iter()
        // The kernel takes the request as 32 bits: the same one with other upper bits must not pass.
        .flat_map(|request| [request, request | 1 << 32, request | !0 << 32])
        .map(|request| (call("ioctl", &[user, request, typed.as_ptr() as u64]), EPERM))
        .collect();
    check(Filter::Guest, &tricks);

    let mut size = [0_u16; 4];
    let size = size.as_mut_ptr() as u64;
    check(Filter::Guest, &[(call("ioctl", &[user, TIOCGWINSZ, size]), Outcome::Success)]);
}

#[test]
fn leases_that_would_stall_writers_are_refused() {
    let file = tempfile::tempfile().unwrap();
    // A lease for reading needs a descriptor that can't write.
    let reader = std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    drop(file);
    let (lease, reading) = (libc::F_SETLEASE as u64, libc::F_RDLCK as u64);
    let descriptor = reader.as_raw_fd() as u64;
    check_refused_though_possible(
        EPERM,
        &[
            call("fcntl", &[descriptor, lease, reading]),
            call("fcntl", &[descriptor, lease | 1 << 32, reading]),
        ],
    );
    check(Filter::Guest, &[(call("fcntl", &[descriptor, libc::F_GETFD as u64]), Outcome::Success)]);
}

/// Init knows by it what belongs to a session. Other limits are anybody's own.
#[test]
fn the_limit_that_labels_processes_cannot_be_changed() {
    let limit = [5_u64, 5];
    let pointer = limit.as_ptr() as u64;
    let rttime = u64::from(libc::RLIMIT_RTTIME);
    let refused = [call("setrlimit", &[rttime, pointer]), call("prlimit64", &[0, rttime, pointer, 0])];
    check_refused_though_possible(Outcome::Error(libc::EINVAL), &refused);
    check_untouched(vec![
        call("prlimit64", &[0, u64::from(libc::RLIMIT_CORE), pointer, 0]),
        call("setrlimit", &[u64::from(libc::RLIMIT_CORE), pointer]),
    ]);
}

#[test]
fn personalities_of_debuggers_pass_and_weaker_memory_does_not() {
    const READ_IMPLIES_EXEC: u64 = 0x0040_0000;
    let randomize_not = libc::ADDR_NO_RANDOMIZE as u64;
    let personality = |persona| call("personality", &[persona]);
    check_untouched([0xffff_ffff, randomize_not, 0x0002_0000, 0].into_iter().map(personality).collect());
    check(
        Filter::Guest,
        &[(personality(READ_IMPLIES_EXEC), EPERM), (personality(READ_IMPLIES_EXEC | randomize_not), EPERM)],
    );
}

#[test]
fn what_programs_live_on_answers_as_without_the_program() {
    let null = c"/dev/null".as_ptr() as u64;
    let root = c"/".as_ptr() as u64;
    let mut buffer = vec![0_u64; 512];
    let buffer = buffer.as_mut_ptr() as u64;
    const LANDLOCK_CREATE_RULESET_VERSION: u64 = 1;
    let mut calls = vec![
        call("openat", &[AT_FDCWD, null, libc::O_RDWR as u64]),
        call("open", &[null, libc::O_RDONLY as u64]),
        call("statx", &[AT_FDCWD, root, 0, 0x7ff, buffer]),
        call("newfstatat", &[AT_FDCWD, root, buffer, 0]),
        call("faccessat2", &[AT_FDCWD, root, 0, 0]),
        call("getcwd", &[buffer, 4096]),
        call("memfd_create", &[null, 0]),
        call("pipe2", &[buffer, libc::O_CLOEXEC as u64]),
        call("eventfd2", &[0, 0]),
        call("epoll_create1", &[0]),
        call("inotify_init1", &[0]),
        call("timerfd_create", &[0, 0]),
        call("getrandom", &[buffer, 16, 0]),
        call("futex", &[buffer, libc::FUTEX_WAKE as u64, 1]),
        call("membarrier", &[0, 0, 0]),
        call("prctl", &[libc::PR_GET_DUMPABLE as u64]),
        call("prctl", &[libc::PR_SET_NAME as u64, null]),
        call("prlimit64", &[0, 7, 0, buffer]),
        call("sched_getaffinity", &[0, 128, buffer]),
        call("getpriority", &[0, 0]),
        call("capget", &[buffer, 0]),
        call("landlock_create_ruleset", &[0, 0, LANDLOCK_CREATE_RULESET_VERSION]),
        call("mmap", &[0, 4096, 3, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64, BAD, 0]),
        call("mseal", &[0, 0, 0]),
        call("close_range", &[1000, 1001, 0]),
        call("kill", &[0, 0]),
        call("ptrace", &[libc::PTRACE_TRACEME as u64]),
    ];
    // With nothing valid to work on each has an error of its own; a filter's would be EPERM or ENOSYS.
    let with_errors = "read write pread64 preadv2 copy_file_range splice sendfile fallocate ftruncate fadvise64 cachestat
        getdents64 renameat2 unlinkat symlinkat linkat utimensat fchownat setxattr getxattr getxattrat file_getattr
        epoll_pwait epoll_pwait2 ppoll pselect6 execve execveat waitid kcmp process_vm_readv
        process_vm_writev pidfd_open pidfd_send_signal process_madvise seccomp landlock_add_rule
        landlock_restrict_self rseq futex_waitv futex_wake futex_wait set_robust_list clock_gettime clock_nanosleep
        timer_create timer_delete mq_open semop msgctl shmctl shmat accept4 connect bind sendmsg recvmmsg getsockopt
        mbind get_mempolicy set_mempolicy pkey_alloc mlock2 madvise mremap mprotect map_shadow_stack sched_setattr
        setresuid setgroups rt_sigaction signalfd4 capset tgkill setpgid";
    calls.extend(with_errors.split_whitespace().map(|name| call(name, &[BAD; 6])));
    check_untouched(calls);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_of_other_abis_are_the_last_ones() {
    const X32_GETPID: libc::c_long = 0x4000_0000 + 39;
    let x32 = end_of(|| {
        raw(X32_GETPID, [0; 6]);
    });
    assert_eq!(x32.terminating_signal(), Some(libc::SIGSYS));

    let thirty_two_bit = end_of(|| {
        // SAFETY: i386's getpid (20) reads no argument and changes no memory; the kernel may clobber r8 to r11 on
        // this path. Either the filter ends the process here or, without IA32 emulation, a fault does.
        unsafe {
            std::arch::asm!("int 0x80", inout("eax") 20 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
    });
    let signal = thirty_two_bit.terminating_signal();
    assert!([Some(libc::SIGSYS), Some(libc::SIGSEGV)].contains(&signal), "{thirty_two_bit:?}");
}

#[test]
fn a_child_without_other_abis_lives() {
    assert_eq!(end_of(|| ()).exit_status(), Some(0));
}

/// The guest's program on a command.
fn guarded(mut command: Command) -> Command {
    // SAFETY: The closure runs between fork and exec; install makes two system calls and nothing else.
    unsafe { command.pre_exec(|| install(guest_program()).map_err(Into::into)) };
    command
}

fn shell(script: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-euc", script]).current_dir(&directory);
    guarded(command).output().unwrap()
}

#[test]
fn ordinary_programs_run() {
    let output = shell(
        "printf 'b\\na\\n' | sort > list; mkdir -p d/e; cp -a list d/e/; chmod 640 list; ln -s list link; mv d f
        (exit 3) || test $? = 3; sleep 0 & wait; tar -cf - f | tar -tf - | sort; cat link",
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "f/\nf/e/\nf/e/list\na\nb\n");
}

#[test]
fn tools_that_would_change_the_vm_s_walls_hear_no() {
    for script in [
        "unshare -U true",
        "unshare -n true",
        "mount -t tmpfs none .",
        "chmod u+s /proc/self/cwd",
        "chroot / true",
    ] {
        let output = shell(script);
        let told = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(!output.status.success(), "{script}");
        assert!(
            ["not permitted", "permission denied", "must be superuser"].iter().any(|no| told.contains(no)),
            "{told}"
        );
    }
}

#[test]
fn filters_and_no_new_privs_show_in_the_process() {
    let output = shell("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "NoNewPrivs:\t1\nSeccomp:\t2\n");
}

#[test]
fn a_program_the_kernel_refuses_is_an_error() {
    assert_eq!(install(&[]), Err(agentos_linux::Errno::INVAL));
    let too_long = vec![guest_program()[2]; usize::from(u16::MAX) + 2];
    assert_eq!(install(&too_long), Err(agentos_linux::Errno::INVAL));
}

#[test]
fn an_exec_costs_less_than_with_a_linear_program() {
    let linear = linear_program();
    let mut samples: [Vec<Duration>; 2] = Default::default();
    // Interleaved, so that what the machine does meanwhile falls on both alike.
    for _ in 0..200 {
        for (index, program) in [guest_program(), &linear].into_iter().enumerate() {
            samples[index].push(exec_true(program));
        }
    }
    let [ours, theirs] = samples.map(|mut samples| {
        samples.sort();
        samples[samples.len() / 2]
    });
    assert!(
        ours < theirs,
        "median of an exec: {ours:?} with the guest's program, {theirs:?} with a linear one"
    );
}

fn exec_true(program: &[libc::sock_filter]) -> Duration {
    let mut command = Command::new("/bin/true");
    let program = program.to_vec();
    // SAFETY: As in guarded; the copy was allocated before the fork.
    unsafe {
        command.pre_exec(
            move || {
                if program.is_empty() { Ok(()) } else { install(&program).map_err(Into::into) }
            },
        )
    };
    let start = Instant::now();
    assert!(command.status().unwrap().success());
    start.elapsed()
}

/// One comparison per number, as simple generators emit it: what the range search saves.
fn linear_program() -> Vec<libc::sock_filter> {
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![filter(0x20, 0, 0, 0)];
    for number in (0..470).rev() {
        program.extend([filter(0x15, 0, 1, number), filter(0x06, 0, 0, 0x7fff_0000)]);
    }
    program.push(filter(0x06, 0, 0, 0x7fff_0000));
    program
}
