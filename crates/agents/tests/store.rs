//! The store against a registry on loopback that behaves badly in one way per story.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod fake_registry;

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use agentos_agents::registry::{Agent, Package};
use agentos_agents::store::{
    DownloadError, InstallError, PUBLIC_REGISTRY, Progress, RegistrySettings, UnpackError,
};
use agentos_agents::{Registry, Store};
use base64::Engine as _;
use fake_registry::{Behaviour, FakeRegistry, answer, answer_range, good};
use tokio::sync::mpsc;

fn integrity(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA512, bytes);
    format!("sha512-{}", base64::engine::general_purpose::STANDARD.encode(digest))
}

/// A tarball with one header per entry, written raw: the tar crate would refuse to write the paths that must be
/// refused when they are read.
fn tarball(entries: &[(&str, u8, &[u8])]) -> Vec<u8> {
    let mut raw = Vec::new();
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::new(*kind));
        if matches!(kind, b'1' | b'2') {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        raw.extend_from_slice(header.as_bytes());
        raw.extend_from_slice(content);
        raw.resize(raw.len().next_multiple_of(512), 0);
    }
    raw.resize(raw.len() + 1024, 0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&raw).unwrap();
    gzip.finish().unwrap()
}

/// A tarball that doesn't compress, so that cutting it leaves something on both sides.
fn large_tarball() -> Vec<u8> {
    let mut state = 1u64;
    let noise: Vec<u8> = (0..900_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    tarball(&[("package/cli.js", b'0', b"entry"), ("package/noise", b'0', &noise)])
}

fn small_tarball() -> Vec<u8> {
    tarball(&[("package/cli.js", b'0', b"entry"), ("package/lib/a.js", b'0', b"a")])
}

/// An agent whose one package is this tarball.
fn agent(name: &str, body: &[u8]) -> Agent {
    let mut agent = Registry::built_in().find("pi").unwrap().clone();
    agent.needs_node = false;
    agent.agent_package = name.to_owned();
    agent.packages = vec![Package {
        key: name.to_owned(),
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        integrity: integrity(body),
        tarball_bytes: body.len() as u64,
        entry: "cli.js".to_owned(),
        only: Vec::new(),
        inside: Vec::new(),
    }];
    agent
}

async fn install(store: &Store, agent: &Agent) -> (Result<bool, InstallError>, Vec<Progress>) {
    let (sender, mut progress) = mpsc::channel(4096);
    let result = store.install(agent, sender).await.map(|installed| installed.record().is_some());
    let mut steps = Vec::new();
    while let Ok(step) = progress.try_recv() {
        steps.push(step);
    }
    (result, steps)
}

/// Nothing looks installed, and nothing is being installed.
fn assert_nothing_installed(root: &Path, store: &Store, agent: &Agent) {
    assert!(store.installed(agent).is_none());
    for directory in ["packages", "staging"] {
        let left: Vec<_> =
            std::fs::read_dir(root.join(directory)).map(|dir| dir.collect()).unwrap_or_default();
        assert!(left.is_empty(), "{directory} holds {left:?}");
    }
}

#[tokio::test]
async fn an_install_says_size_and_place_first_and_is_found_by_the_next_one() {
    let body = large_tarball();
    let agent = agent("@scope/tool", &body);
    let registry =
        FakeRegistry::start(vec![("/npm/@scope/tool/-/tool-1.0.0.tgz".into(), good(body.clone()))]);
    let home = tempfile::tempdir().unwrap();
    let store = Store::with_settings(home.path().join("agents"), registry.settings());
    assert!(store.installed(&agent).is_none());

    let (result, steps) = install(&store, &agent).await;
    assert!(result.unwrap(), "the first install fetches");
    let place = home.path().join("agents/packages/scope+tool-1.0.0");
    assert_eq!((steps[0].received_bytes, steps[0].total_bytes), (0, Some(body.len() as u64)));
    assert_eq!((steps[0].package.as_str(), &steps[0].place), ("@scope/tool@1.0.0", &place));
    assert_eq!(steps.last().unwrap().received_bytes, body.len() as u64);
    assert!(steps.windows(2).all(|pair| pair[0].received_bytes <= pair[1].received_bytes), "{steps:?}");
    assert_eq!(std::fs::read(place.join("cli.js")).unwrap(), b"entry");

    let (result, _) = install(&store, &agent).await;
    assert!(!result.unwrap(), "the second install finds the first one's");
    assert_eq!(registry.requests().len(), 1);
    assert!(std::fs::read_dir(home.path().join("agents/downloads")).unwrap().next().is_none());
}

#[tokio::test]
async fn a_tarball_that_is_not_the_pinned_one_is_refused() {
    let agent = agent("tool", &large_tarball());
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(small_tarball()))]);
    let home = tempfile::tempdir().unwrap();
    let store = Store::with_settings(home.path().to_owned(), registry.settings());
    let (result, _) = install(&store, &agent).await;
    let error = result.unwrap_err();
    let InstallError::Download { source: DownloadError::Integrity { expected, actual, .. }, .. } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!((expected, actual), (&agent.packages[0].integrity, &integrity(&small_tarball())));
    assert_nothing_installed(home.path(), &store, &agent);
    let left = std::fs::read_dir(home.path().join("downloads")).unwrap().count();
    assert_eq!(left, 0, "what is wrong is not resumed");
}

#[tokio::test]
async fn a_download_that_is_cut_off_goes_on_where_it_stopped() {
    let body = large_tarball();
    let half = body.len() / 2;
    let agent = agent("tool", &body);
    let served = body.clone();
    let cut: Behaviour = Box::new(move |request, stream| match request.number {
        0 => {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", served.len());
            let _ = stream.write_all(&served[..half]);
        }
        _ => answer_range(request, stream, &served),
    });
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), cut)]);
    let home = tempfile::tempdir().unwrap();
    let store = Store::with_settings(home.path().to_owned(), registry.settings());
    install(&store, &agent).await.0.unwrap();
    let requests = registry.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].ends_with(&format!("bytes={half}-")), "{requests:?}");
    assert!(store.installed(&agent).is_some());
}

#[tokio::test]
async fn a_part_of_an_earlier_install_is_resumed_and_a_wrong_one_thrown_away() {
    let body = large_tarball();
    let agent = agent("tool", &body);
    for (part, expected) in
        [(body[..1000].to_vec(), vec!["bytes=1000-"]), (vec![7; 1000], vec!["bytes=1000-", ".tgz"])]
    {
        let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body.clone()))]);
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join("downloads")).unwrap();
        std::fs::write(home.path().join("downloads/tool-1.0.0,tool-1.0.0.tgz"), part).unwrap();
        let store = Store::with_settings(home.path().to_owned(), registry.settings());
        install(&store, &agent).await.0.unwrap();
        let requests = registry.requests();
        assert_eq!(requests.len(), expected.len(), "{requests:?}");
        assert!(requests.iter().zip(&expected).all(|(seen, end)| seen.ends_with(end)), "{requests:?}");
    }
}

#[tokio::test]
async fn a_registry_without_ranges_and_a_part_that_is_whole_are_both_fine() {
    let body = small_tarball();
    let agent = agent("tool", &body);
    let whole = body.clone();
    let no_ranges: Behaviour = Box::new(move |_, stream| answer(stream, "200 OK", &[], &whole));
    for (behaviour, part) in [(no_ranges, body[..100].to_vec()), (good(body.clone()), body.clone())] {
        let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), behaviour)]);
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join("downloads")).unwrap();
        std::fs::write(home.path().join("downloads/tool-1.0.0,tool-1.0.0.tgz"), part).unwrap();
        let store = Store::with_settings(home.path().to_owned(), registry.settings());
        install(&store, &agent).await.0.unwrap();
        assert_eq!(registry.requests().len(), 1);
    }
}

#[tokio::test]
async fn two_installs_at_once_fetch_once() {
    let body = large_tarball();
    let agent = agent("tool", &body);
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body))]);
    let home = tempfile::tempdir().unwrap();
    // Two stores share nothing but the directory, as two processes would.
    let one = Store::with_settings(home.path().to_owned(), registry.settings());
    let two = Store::with_settings(home.path().to_owned(), registry.settings());
    let (first, second) = tokio::join!(install(&one, &agent), install(&two, &agent));
    first.0.unwrap();
    second.0.unwrap();
    assert_eq!(registry.requests().len(), 1, "the second one waits and finds the work done");
    assert!(one.installed(&agent).is_some());
}

#[tokio::test]
async fn an_install_that_waits_for_another_one_says_so() {
    let body = small_tarball();
    let agent = agent("tool", &body);
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body.clone()))]);
    let home = tempfile::tempdir().unwrap();
    let store = Store::with_settings(home.path().to_owned(), registry.settings());
    std::fs::create_dir_all(home.path().join("locks")).unwrap();
    let other = std::fs::File::create(home.path().join("locks/tool-1.0.0")).unwrap();
    other.lock().unwrap();
    let (sender, mut progress) = mpsc::channel(64);
    let installing = tokio::spawn(async move { store.install(&agent, sender).await.map(|_| ()) });
    let step = progress.recv().await.unwrap();
    assert_eq!((step.waiting, step.package.as_str(), step.received_bytes), (true, "tool@1.0.0", 0));
    // Nothing is told twice: what comes next is what has changed.
    std::fs::write(home.path().join("downloads/tool-1.0.0,tool-1.0.0.tgz"), &body[..3]).unwrap();
    let step = progress.recv().await.unwrap();
    assert_eq!((step.waiting, step.received_bytes), (true, 3));
    assert_eq!(registry.requests().len(), 0);
    drop(other);
    installing.await.unwrap().unwrap();
    let mut last = step;
    while let Some(step) = progress.recv().await {
        last = step;
    }
    assert_eq!((last.waiting, Some(last.received_bytes)), (false, last.total_bytes));
}

#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_an_error_that_names_it() {
    let agent = agent("tool", &small_tarball());
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = tempfile::tempdir().unwrap();
    let settings = RegistrySettings::for_registry(format!("http://{address}"));
    let store = Store::with_settings(home.path().to_owned(), settings);
    let error = install(&store, &agent).await.0.unwrap_err();
    let InstallError::Download { source: DownloadError::Unreachable { url, .. }, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(url.contains(&address.to_string()), "{url}");
    assert_nothing_installed(home.path(), &store, &agent);
}

#[tokio::test]
async fn a_registry_that_fails_for_a_moment_is_asked_again_and_one_that_refuses_is_not() {
    let body = small_tarball();
    let agent = agent("tool", &body);
    let flaky: Behaviour = Box::new(move |request, stream| match request.number {
        0 => answer(stream, "503 Service Unavailable", &[], b"later"),
        _ => answer_range(request, stream, &body),
    });
    let refusing: Behaviour = Box::new(|_, stream| answer(stream, "401 Unauthorized", &[], b"no"));
    for (behaviour, requests, fine) in [(flaky, 2, true), (refusing, 1, false)] {
        let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), behaviour)]);
        let home = tempfile::tempdir().unwrap();
        let store = Store::with_settings(home.path().to_owned(), registry.settings());
        let result = install(&store, &agent).await.0;
        assert_eq!(result.is_ok(), fine, "{result:?}");
        assert_eq!(registry.requests().len(), requests);
        if let Err(error) = result {
            assert!(matches!(
                error,
                InstallError::Download { source: DownloadError::Status { status: 401, .. }, .. }
            ));
        }
    }
}

#[tokio::test]
async fn a_registry_that_keeps_tarballs_elsewhere_is_asked_where() {
    let body = small_tarball();
    let agent = agent("@own/tool", &body);
    let stated = format!(r#"{{"dist":{{"tarball":"{PUBLIC_REGISTRY}files/tool.tgz"}}}}"#);
    let metadata: Behaviour = Box::new(move |_, stream| answer(stream, "200 OK", &[], stated.as_bytes()));
    let moved: Behaviour =
        Box::new(|_, stream| answer(stream, "302 Found", &["Location: /cdn/x".into()], b""));
    let registry = FakeRegistry::start(vec![
        ("/npm/@own%2ftool/1.0.0".into(), metadata),
        ("/npm/files/tool.tgz".into(), moved),
        ("/cdn/x".into(), good(body)),
    ]);
    let home = tempfile::tempdir().unwrap();
    let npmrc = home.path().join("npmrc");
    let host = registry.address;
    std::fs::write(
        &npmrc,
        format!(
            "@own:registry=http://{host}/npm\n//{host}/npm/:_authToken=t0ken\nregistry=http://127.0.0.1:1/\n"
        ),
    )
    .unwrap();
    let variables = HashMap::from([("npm_config_userconfig", npmrc.to_str().unwrap().to_owned())]);
    let settings = RegistrySettings::load(&|name| {
        variables
            .get(name)
            .cloned()
            .or_else(|| (name == "npm_config_globalconfig").then(|| "/nowhere".into()))
    });
    let store = Store::with_settings(home.path().join("agents"), settings.unwrap());
    install(&store, &agent).await.0.unwrap();
    let requests = registry.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    assert!(requests[..3].iter().all(|request| request.ends_with("auth=Bearer t0ken")), "{requests:?}");
    assert!(
        !requests[3].contains("t0ken"),
        "a redirect out of the registry takes no token along: {requests:?}"
    );
}

#[tokio::test]
async fn a_tarball_with_anything_but_files_in_it_is_refused_and_writes_nothing_outside() {
    let stories: [(&str, u8); 6] = [
        ("package/../../escaped", b'0'),
        ("/tmp/agentos-escaped", b'0'),
        ("../escaped", b'0'),
        ("package/link", b'2'),
        ("package/hard", b'1'),
        ("package/device", b'3'),
    ];
    for (path, kind) in stories {
        let body = tarball(&[("package/cli.js", b'0', b"entry"), (path, kind, b"")]);
        let agent = agent("tool", &body);
        let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body))]);
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("a/b/agents");
        let store = Store::with_settings(root.clone(), registry.settings());
        let error = install(&store, &agent).await.0.unwrap_err();
        let InstallError::Unpack { source, .. } = &error else { panic!("{path}: {error:?}") };
        assert!(
            matches!(source, UnpackError::Outside { .. } | UnpackError::NotAFile { .. }),
            "{path}: {source:?}"
        );
        assert_nothing_installed(&root, &store, &agent);
        assert!(!Path::new("/tmp/agentos-escaped").exists());
        assert!(!root.join("escaped").exists() && !root.join("staging/escaped").exists());
    }
}

#[tokio::test]
async fn a_tarball_that_is_cut_or_lacks_its_entry_is_refused() {
    let mut cut = large_tarball();
    cut.truncate(cut.len() / 2);
    let without = tarball(&[("package/other.js", b'0', b"x")]);
    for body in [cut, without, b"not a tarball".to_vec()] {
        let agent = agent("tool", &body);
        let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body))]);
        let home = tempfile::tempdir().unwrap();
        let store = Store::with_settings(home.path().to_owned(), registry.settings());
        let error = install(&store, &agent).await.0.unwrap_err();
        assert!(matches!(error, InstallError::Unpack { .. }), "{error:?}");
        assert_nothing_installed(home.path(), &store, &agent);
    }
}

#[tokio::test]
async fn packages_inside_a_package_are_finished_together_with_it() {
    let (outer, inner) = (small_tarball(), tarball(&[("package/cli.js", b'0', b"inner")]));
    let mut whole = agent("tool", &outer);
    whole.packages[0].inside = agent("@in/side", &inner).packages;
    let absent = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(outer.clone()))]);
    let home = tempfile::tempdir().unwrap();
    let store = Store::with_settings(home.path().to_owned(), absent.settings());
    install(&store, &whole).await.0.unwrap_err();
    assert_nothing_installed(home.path(), &store, &whole);

    let present = FakeRegistry::start(vec![
        ("/npm/tool/-/tool-1.0.0.tgz".into(), good(outer)),
        ("/npm/@in/side/-/side-1.0.0.tgz".into(), good(inner)),
    ]);
    let store = Store::with_settings(home.path().to_owned(), present.settings());
    install(&store, &whole).await.0.unwrap();
    let inside = home.path().join("packages/tool-1.0.0/node_modules/@in/side/cli.js");
    assert_eq!(std::fs::read(inside).unwrap(), b"inner");
    std::fs::remove_dir_all(home.path().join("packages/tool-1.0.0/node_modules")).unwrap();
    assert!(store.installed(&whole).is_none(), "what was damaged is not installed");
}

#[tokio::test]
async fn only_what_is_wanted_is_unpacked() {
    let body = tarball(&[
        ("package/cli.js", b'0', b"entry"),
        ("package/include/a.h", b'0', b"h"),
        ("package/lib/a.js", b'0', b"a"),
    ]);
    let mut agent = agent("tool", &body);
    agent.packages[0].only = vec!["cli.js".to_owned(), "lib".to_owned()];
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body))]);
    let home = tempfile::tempdir().unwrap();
    let store = Store::with_settings(home.path().to_owned(), registry.settings());
    install(&store, &agent).await.0.unwrap();
    let place = home.path().join("packages/tool-1.0.0");
    assert!(place.join("cli.js").is_file() && place.join("lib/a.js").is_file());
    assert!(!place.join("include").exists());
}

#[tokio::test]
async fn what_a_killed_install_left_is_replaced() {
    let body = small_tarball();
    let agent = agent("tool", &body);
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body))]);
    let home = tempfile::tempdir().unwrap();
    for stale in ["staging/tool-1.0.0", "packages/tool-1.0.0"] {
        std::fs::create_dir_all(home.path().join(stale)).unwrap();
        std::fs::write(home.path().join(stale).join("stale"), "x").unwrap();
    }
    let store = Store::with_settings(home.path().to_owned(), registry.settings());
    assert!(store.installed(&agent).is_none(), "a directory without its entry is not installed");
    install(&store, &agent).await.0.unwrap();
    assert!(!home.path().join("packages/tool-1.0.0/stale").exists());
    assert!(store.installed(&agent).is_some());
}

#[tokio::test]
async fn a_dropped_install_stops_its_download_and_the_next_one_resumes_it() {
    let body = large_tarball();
    let agent = agent("tool", &body);
    let released = Arc::new(AtomicBool::new(false));
    let (served, gate) = (body.clone(), Arc::clone(&released));
    let half = body.len() / 2;
    let slow: Behaviour = Box::new(move |request, stream| match request.number {
        0 => {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", served.len());
            let _ = stream.write_all(&served[..half]);
            // The rest comes when the install has been dropped; it must not be taken any more.
            while !gate.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let _ = stream.write_all(&served[half..half + 10]);
            let _ = stream.read(&mut [0]);
        }
        _ => answer_range(request, stream, &served),
    });
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), slow)]);
    let home = tempfile::tempdir().unwrap();
    let store = Store::with_settings(home.path().to_owned(), registry.settings());
    let (sender, mut progress) = mpsc::channel(64);
    {
        let installing = store.install(&agent, sender);
        let started = async { while progress.recv().await.is_some_and(|step| step.received_bytes == 0) {} };
        // Dropped once bytes have come, or after the first report where the half is below the reporting step.
        tokio::select! { _ = installing => panic!("it can't finish"), () = started => {}, () = half_arrived(home.path(), half) => {} }
    }
    released.store(true, Ordering::SeqCst);
    let (result, _) = install(&store, &agent).await;
    result.unwrap();
    let requests = registry.requests();
    assert!(requests.last().unwrap().contains("bytes="), "{requests:?}");
}

async fn half_arrived(root: &Path, bytes: usize) {
    let part = root.join("downloads/tool-1.0.0,tool-1.0.0.tgz");
    while std::fs::metadata(&part).map_or(0, |meta| meta.len()) < bytes as u64 {
        tokio::task::yield_now().await;
    }
}

/// A proxy that opens every tunnel to one address, whatever it is asked for, and counts.
struct FakeProxy {
    address: std::net::SocketAddr,
    tunnels: Arc<AtomicUsize>,
}

impl FakeProxy {
    fn start(to: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, tunnels) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&tunnels);
        // Ends with the test's process; it holds nothing but its listener.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if client.read(&mut byte).unwrap_or(0) == 0 {
                        break;
                    }
                    head.push(byte[0]);
                }
                assert!(
                    head.starts_with(b"CONNECT registry.invalid:80 "),
                    "{}",
                    String::from_utf8_lossy(&head)
                );
                count.fetch_add(1, Ordering::SeqCst);
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let server = TcpStream::connect(to).unwrap();
                for (mut from, mut into) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Self { address, tunnels }
    }
}

#[tokio::test]
async fn a_proxy_is_used_unless_the_registry_is_excepted() {
    let body = small_tarball();
    let agent = agent("tool", &body);
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body))]);
    let proxy = FakeProxy::start(registry.address);
    let home = tempfile::tempdir().unwrap();
    let settings = |registry: String, no_proxy: &str| {
        let npmrc = home.path().join("npmrc");
        let text =
            format!("registry={registry}/npm\nhttps-proxy=http://{}\nnoproxy={no_proxy}\n", proxy.address);
        std::fs::write(&npmrc, text).unwrap();
        RegistrySettings::load(&|name| match name {
            "npm_config_userconfig" => Some(npmrc.to_str().unwrap().to_owned()),
            "npm_config_globalconfig" => Some("/nowhere".to_owned()),
            _ => None,
        })
        .unwrap()
    };
    let through = Store::with_settings(home.path().join("a"), settings("http://registry.invalid".into(), ""));
    install(&through, &agent).await.0.unwrap();
    assert_eq!(proxy.tunnels.load(Ordering::SeqCst), 1);
    let past = settings(format!("http://{}", registry.address), "127.0.0.1");
    let past = Store::with_settings(home.path().join("b"), past);
    install(&past, &agent).await.0.unwrap();
    assert_eq!(proxy.tunnels.load(Ordering::SeqCst), 1);
    assert_eq!(registry.requests().len(), 2);
}

/// Needs root for the small file system; elsewhere there is nothing to be full.
#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_left_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let disk = home.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let Ok(_mounted) = SmallDisk::mount(&disk) else { return };
    let body = large_tarball();
    let agent = agent("tool", &body);
    let registry = FakeRegistry::start(vec![("/npm/tool/-/tool-1.0.0.tgz".into(), good(body))]);
    let store = Store::with_settings(disk.clone(), registry.settings());
    let error = install(&store, &agent).await.0.unwrap_err();
    assert!(matches!(&error, InstallError::NoSpace { place, .. } if *place == disk), "{error:?}");
    assert_nothing_installed(&disk, &store, &agent);
    let left = std::fs::read_dir(disk.join("downloads")).unwrap().count();
    assert_eq!(left, 0, "a full disk gets its space back");
}

struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> std::io::Result<Self> {
        use rustix::mount::{MountFlags, mount};
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"size=1200k"))?;
        Ok(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
