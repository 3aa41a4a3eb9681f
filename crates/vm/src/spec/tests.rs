use agentos_guest_protocol::launcher::IdMode;
use agentos_guest_protocol::launcher::PlannedMountKind;

use super::*;
use crate::network::Secret;

fn host() -> Host {
    let findings = HostFindings {
        ids: IdMode::Range,
        cgroup_memory: true,
        cgroup_cpu: true,
        cgroup_processes: true,
        max_open_files: 1 << 20,
        no_uplink: None,
    };
    Host { findings, memory_bytes: 16 << 30, has_ipv6: false }
}

/// A host where nothing but rlimits is to be had.
fn poor_host() -> Host {
    let findings = HostFindings { max_open_files: 4096, ..HostFindings::default() };
    Host { findings, memory_bytes: 2 << 30, has_ipv6: false }
}

pub(crate) fn test_spec() -> VmSpec {
    VmSpec::validate(VmOptions::default(), &host()).unwrap()
}

fn refusal(options: VmOptions) -> String {
    VmSpec::validate(options, &host()).unwrap_err().to_string()
}

fn memory(path: &str) -> MountOptions {
    let kind = MountKind::Memory { max_bytes: None, read_only: false };
    MountOptions { path: path.into(), kind }
}

fn host_dir(path: &str, source: &str) -> MountOptions {
    let kind = MountKind::HostDir { source: source.into(), read_only: true, allow_sockets: false };
    MountOptions { path: path.into(), kind }
}

fn plan(spec: &VmSpec) -> BootPlan {
    spec.boot_plan(IdRange::Single, "group".to_owned())
}

#[test]
fn defaults_follow_the_host() {
    let rich = plan(&test_spec()).limits;
    assert_eq!(rich.memory_bytes, Some(4 << 30));
    assert_eq!(rich.disk_bytes, 1 << 30);
    assert_eq!((rich.processes, rich.open_files), (4096, 65_536));
    assert_eq!(rich.disk_inodes, (1 << 30) / 4096);

    let poor = VmSpec::validate(VmOptions::default(), &poor_host()).unwrap();
    assert_eq!(plan(&poor).limits.memory_bytes, None);
    assert_eq!(plan(&poor).limits.disk_bytes, 512 << 20);
    assert_eq!(plan(&test_spec()).hostname, "agentos");
}

#[test]
fn a_limit_that_nothing_enforces_is_refused_when_it_is_asked_for() {
    let limits = [
        LimitOptions { memory_bytes: Some(1 << 30), ..Default::default() },
        LimitOptions { cpu_millis: Some(500), ..Default::default() },
        LimitOptions { processes: Some(100), ..Default::default() },
    ];
    for limits in limits {
        let options = VmOptions { limits, ..Default::default() };
        let error = VmSpec::validate(options.clone(), &poor_host()).unwrap_err();
        assert!(error.problem.is_unsupported(), "{error}");
        assert!(VmSpec::validate(options, &host()).is_ok());
    }
    // tmpfs and rlimits enforce these two everywhere.
    let limits = LimitOptions { disk_bytes: Some(1 << 30), open_files: Some(64), ..Default::default() };
    assert!(VmSpec::validate(VmOptions { limits, ..Default::default() }, &poor_host()).is_ok());
}

#[test]
fn insane_limits_name_their_field_and_bounds() {
    let limits = LimitOptions { processes: Some(0), ..Default::default() };
    assert_eq!(
        refusal(VmOptions { limits, ..Default::default() }),
        "limits.processes: 0 is not between 8 and 4194304"
    );
    let limits = LimitOptions { memory_bytes: Some(1), ..Default::default() };
    assert!(refusal(VmOptions { limits, ..Default::default() }).starts_with("limits.memory_bytes: 1 is not"));
}

#[test]
fn mount_paths_are_checked() {
    let refused = |mounts| refusal(VmOptions { mounts, ..Default::default() });
    assert_eq!(refused(vec![memory("work")]), "mounts: Path must be absolute: work");
    assert_eq!(refused(vec![memory("/a/../b")]), "mounts: Path must be normalized: /a/../b");
    assert_eq!(refused(vec![host_dir("/work", "src")]), "mounts: Path must be absolute: src");
    for reserved in ["/", "/proc", "/proc/sys", "/dev/shm", "/sys/kernel/"] {
        assert!(refused(vec![memory(reserved)]).starts_with("mounts: nothing can be mounted at "));
    }
    assert_eq!(refused(vec![memory("/a"), memory("/a/.")]), "mounts: /a is given twice");
}

#[test]
fn outer_mounts_come_first_and_command_directories_lead_the_path() {
    let options = VmOptions {
        mounts: vec![memory("/work/cache/x"), host_dir("/work/", "/srv/src"), memory("/work/cache")],
        command_dirs: vec![b"/opt/tools".to_vec(), b"/opt/more".to_vec()],
        ..Default::default()
    };
    let spec = VmSpec::validate(options, &host()).unwrap();
    let plan = plan(&spec);
    let targets: Vec<_> = plan.mounts.iter().map(|mount| String::from_utf8_lossy(&mount.target)).collect();
    let expected =
        ["/work", "/work/cache", "/work/cache/x", "/opt/agentos/commands/0", "/opt/agentos/commands/1"];
    assert_eq!(targets, expected);
    let PlannedMountKind::HostDir(commands) = &plan.mounts[3].kind else { panic!("not a host directory") };
    assert!(commands.read_only);
    let path = String::from_utf8_lossy(spec.environment().get(b"PATH").unwrap());
    assert!(path.starts_with("/opt/agentos/commands/0:/opt/agentos/commands/1:/usr/local/sbin:"), "{path}");
    assert!(path.ends_with(":/bin"), "{path}");
}

#[test]
fn the_environment_is_merged_over_the_base_and_hides_its_values() {
    let env = vec![(b"LANG".to_vec(), b"de_DE".to_vec()), (b"TOKEN".to_vec(), b"hidden".to_vec())];
    let spec = VmSpec::validate(VmOptions { env, ..Default::default() }, &host()).unwrap();
    let get = |name: &str| spec.environment().get(name.as_bytes()).unwrap();
    assert_eq!(get("LANG"), b"de_DE");
    assert_eq!(get("HOME"), b"/home/user");
    assert_eq!(get("HOSTNAME"), b"agentos");
    let shown = format!("{spec:?}");
    assert!(shown.contains("TOKEN") && !shown.contains("hidden"), "{shown}");

    let root = VmSpec::validate(VmOptions { root: true, ..Default::default() }, &host()).unwrap();
    assert_eq!(root.environment().get(b"USER").unwrap(), b"root");
    assert_eq!(root.home(), "/root");
}

#[test]
fn environment_names_and_values_are_checked() {
    let refused = |name: &[u8], value: &[u8]| {
        refusal(VmOptions { env: vec![(name.to_vec(), value.to_vec())], ..Default::default() })
    };
    assert_eq!(refused(b"A=B", b""), "env: name 'A=B' is empty or contains '=' or NUL");
    assert!(refused(b"", b"x").starts_with("env: name ''"));
    assert_eq!(refused(b"A", b"x\0y"), "env: value of 'A' contains NUL");
    assert!(refused(b"A", &vec![b'x'; 100 << 20]).contains("longer than the kernel takes"));
}

#[test]
fn a_secret_takes_the_place_of_a_variable_that_nobody_has_set() {
    let secret = |name: &str| Secret::new(name, "a long value".to_owned().into()).unwrap();
    let options = |secrets: Vec<Secret>| VmOptions {
        env: vec![(b"TAKEN".to_vec(), b"1".to_vec())],
        network: NetworkOptions { secrets, ..Default::default() },
        ..Default::default()
    };
    assert_eq!(refusal(options(vec![secret("A"), secret("A")])), "secrets: A is given twice");
    for taken in ["TAKEN", "PATH"] {
        let refused = refusal(options(vec![secret(taken)]));
        assert!(refused.starts_with(&format!("secrets: {taken} is in the environment already")), "{refused}");
    }
    assert!(refusal(options(vec![secret("A=B")])).contains("'A=B'"));
    let mut spec = VmSpec::validate(options(vec![secret("A")]), &host()).unwrap();
    assert!(!format!("{spec:?}").contains("a long value"));
    assert_eq!(spec.take_secrets().0.len(), 1);
    assert!(spec.take_secrets().0.is_empty(), "nobody else has them");
    spec.add_env([("A", "placeholder"), ("TAKEN", "2")]);
    assert_eq!(spec.environment().get(b"A").unwrap(), b"placeholder");
    assert_eq!(spec.environment().get(b"TAKEN").unwrap(), b"1", "the user's own");
}

#[test]
fn what_somebody_mounts_is_told_from_what_the_base_has() {
    let options = VmOptions { mounts: vec![memory("/etc/ssl"), memory("/work")], ..Default::default() };
    let spec = VmSpec::validate(options, &host()).unwrap();
    assert!(spec.is_mounted("/etc/ssl/certs/x.crt") && spec.is_mounted("/work"));
    assert!(!spec.is_mounted("/etc/sslx") && !spec.is_mounted("/etc"));
}

#[test]
fn ports_and_graces_are_checked() {
    let ports =
        |ports: &[u16]| refusal(VmOptions { loopback_exempt_ports: ports.to_vec(), ..Default::default() });
    assert_eq!(ports(&[0]), "loopback_exempt_ports: port 0 is no port");
    assert_eq!(ports(&[80, 80]), "loopback_exempt_ports: port 80 is given twice");
    let dispose_grace = Some(Duration::from_secs(100_000));
    assert!(refusal(VmOptions { dispose_grace, ..Default::default() }).starts_with("dispose_grace: "));
}

#[test]
fn a_host_has_ipv6_where_one_of_its_addresses_is_routed_between_networks() {
    let line = |address: &str, scope: &str| format!("{address} 02 40 {scope} 80     eth0\n");
    let loopback = line("00000000000000000000000000000001", "10");
    let link_local = line("fe800000000000000000000000000001", "20");
    let unique_local = line("fd7a115ca1e000000000000000000001", "00");
    let global = line("2a000db8000100000000000000000010", "00");
    let without = [loopback, link_local, unique_local].concat();
    assert!(!has_global_address("") && !has_global_address(&without));
    assert!(has_global_address(&(without + &global)));
}

#[test]
fn a_storage_directory_is_a_path_of_the_host_and_has_no_limit() {
    let options = |path: &str, disk_bytes| VmOptions {
        storage: StorageOptions::Directory(path.into()),
        limits: LimitOptions { disk_bytes, ..Default::default() },
        ..Default::default()
    };
    let spec = VmSpec::validate(options("/srv//state/", None), &host()).unwrap();
    assert_eq!(spec.storage(), Some(&b"/srv/state"[..]));
    assert_eq!(test_spec().storage(), None);
    assert_eq!(refusal(options("state", None)), "storage: Path must be absolute: state");
    let error = VmSpec::validate(options("/srv/state", Some(1 << 30)), &host()).unwrap_err();
    assert!(error.problem.is_unsupported());
    assert!(error.to_string().starts_with("limits.disk_bytes: "), "{error}");
}
