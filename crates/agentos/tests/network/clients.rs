//! Programs as people use them, against servers of their kind.

use std::collections::HashMap;
use std::process::Command;

use agentos::AgentOs;

use crate::lab::Lab;
use crate::lab::certificates::Authority;
use crate::lab::guest::{sh, with_probe};
use crate::lab::names::Entry;
use crate::lab::web::{Site, Web};
use crate::support::world::World;

/// One name with TLS, a VM that trusts it, and the same for whoever is outside.
struct Place {
    lab: Lab,
    _world: World,
    vm: AgentOs,
    authority: Authority,
}

const ADDRESS: &str = "198.51.100.80";

impl Place {
    async fn new() -> Option<Self> {
        let lab = Lab::new()?;
        let (names, authority) = (lab.names(), Authority::new());
        names.set("registry.example", Entry::addresses(&[ADDRESS]));
        lab.host("registry", &[ADDRESS]);
        lab.file("ca.pem", authority.pem());
        let world = lab.world().await;
        let vm = world.vm_with(with_probe(world.options())).await;
        vm.write_file("/tmp/ca.pem", authority.pem()).await.unwrap();
        vm.mkdir("/tmp/work").await.unwrap();
        Some(Self { lab, _world: world, vm, authority })
    }

    fn secure(&self, site: Site) -> Web {
        let listener = self.lab.tcp("registry", &format!("{ADDRESS}:443"));
        Web::serve_tls(listener, self.authority.server(&["registry.example"]), site)
    }

    /// The same command outside, as the control, and then in the VM. `{ca}` in it stands for the authority's file,
    /// `{work}` for a fresh directory.
    async fn check(&self, command: &str, expected: &str) {
        let at = |directory: &str, ca: &str| command.replace("{work}", directory).replace("{ca}", ca);
        let work = tempfile::tempdir_in(self.lab.directory()).unwrap();
        let ca = self.lab.directory().join("ca.pem");
        let outside = self.lab.outside(&at(work.path().to_str().unwrap(), ca.to_str().unwrap())).await;
        assert_eq!(outside, expected, "the control: {command}");
        let inside = sh(&self.vm, &at("/tmp/work", "/tmp/ca.pem")).await;
        assert_eq!(inside, expected, "{command}");
    }
}

fn run(program: &str, directory: &std::path::Path, arguments: &[&str]) {
    let mut command = Command::new(program);
    let command = command.args(arguments).current_dir(directory).env("HOME", directory);
    let output = command.env("GIT_CONFIG_NOSYSTEM", "1").output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[tokio::test]
async fn curl_and_the_libraries_of_python_and_node_fetch_over_tls() {
    let Some(place) = Place::new().await else { return };
    let web = place.secure(Site::Text("fetched"));
    let clients = [
        "curl -sS --cacert {ca} https://registry.example/",
        "SSL_CERT_FILE={ca} python3 -c 'import urllib.request as r; print(r.urlopen(\"https://registry.example/\").read().decode())'",
        "REQUESTS_CA_BUNDLE={ca} /usr/bin/python3 -c 'from pip._vendor import requests as r; print(r.get(\"https://registry.example/\").text)'",
        "NODE_EXTRA_CA_CERTS={ca} node -e 'fetch(\"https://registry.example/\").then(a => a.text()).then(console.log)'",
    ];
    for client in clients {
        place.check(client, "fetched").await;
    }
    assert_eq!(web.asked().len(), 2 * clients.len());
}

#[tokio::test]
async fn openssl_sees_the_server_s_own_certificate() {
    let Some(place) = Place::new().await else { return };
    place.secure(Site::Text("fetched"));
    let command = "openssl s_client -connect registry.example:443 -servername registry.example -CAfile {ca} \
         -verify_return_error </dev/null >{work}/said 2>/dev/null; \
         grep -q 'own authority' {work}/said && grep -q 'Verify return code: 0 (ok)' {work}/said && echo believed";
    place.check(command, "believed").await;
}

#[tokio::test]
async fn git_clones_over_https() {
    let Some(place) = Place::new().await else { return };
    let directory = place.lab.directory().join("repositories");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("letter"), "from the repository\n").unwrap();
    run("git", &directory, &["init", "-q", "."]);
    run("git", &directory, &["add", "letter"]);
    let identity = ["-c", "user.name=Test", "-c", "user.email=test@registry.example"];
    let commit = ["commit", "-q", "-m", "Write a letter"];
    run("git", &directory, &[&identity[..], &commit[..]].concat());
    run("git", &directory, &["update-server-info"]);
    place.secure(Site::Files(directory));
    let clone = "cd {work} && git -c http.sslCAInfo={ca} clone -q https://registry.example/.git copy && cat copy/letter";
    place.check(clone, "from the repository").await;
}

/// A package of npm: what the registry says of it, and its archive.
fn npm_package(lab: &Lab) -> HashMap<String, Vec<u8>> {
    let directory = lab.directory().join("npm");
    std::fs::create_dir_all(directory.join("package")).unwrap();
    let manifest = r#"{"name":"a-letter","version":"1.0.0","main":"index.js"}"#;
    std::fs::write(directory.join("package/package.json"), manifest).unwrap();
    std::fs::write(directory.join("package/index.js"), "module.exports = 'from the package';\n").unwrap();
    run("tar", &directory, &["-czf", "a-letter-1.0.0.tgz", "package"]);
    let archive = std::fs::read(directory.join("a-letter-1.0.0.tgz")).unwrap();
    let said = r#"{"name":"a-letter","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"a-letter",
        "version":"1.0.0","main":"index.js","dist":{"tarball":"https://registry.example/a-letter-1.0.0.tgz"}}}}"#;
    HashMap::from([
        ("/a-letter".to_owned(), said.as_bytes().to_vec()),
        ("/a-letter-1.0.0.tgz".to_owned(), archive),
    ])
}

#[tokio::test]
async fn npm_installs_a_package() {
    let Some(place) = Place::new().await else { return };
    place.secure(Site::Pages(npm_package(&place.lab)));
    let install = "cd {work} && npm install --silent --no-audit --no-fund --no-update-notifier --cafile {ca} \
         --cache {work}/cache --registry https://registry.example/ a-letter && \
         node -e 'console.log(require(\"a-letter\"))'";
    place.check(install, "from the package").await;
}

/// A wheel, and the page that leads to it.
fn wheel(lab: &Lab) -> HashMap<String, Vec<u8>> {
    let directory = lab.directory().join("wheel");
    let info = directory.join("a_letter-1.0.0.dist-info");
    std::fs::create_dir_all(&info).unwrap();
    std::fs::write(directory.join("a_letter.py"), "text = 'from the wheel'\n").unwrap();
    std::fs::write(info.join("METADATA"), "Metadata-Version: 2.1\nName: a-letter\nVersion: 1.0.0\n").unwrap();
    let format = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    std::fs::write(info.join("WHEEL"), format).unwrap();
    std::fs::write(info.join("RECORD"), "a_letter.py,,\n").unwrap();
    let name = "a_letter-1.0.0-py3-none-any.whl";
    let zip = ["-m", "zipfile", "-c", name, "a_letter.py", "a_letter-1.0.0.dist-info"];
    run("python3", &directory, &zip);
    let archive = std::fs::read(directory.join(name)).unwrap();
    let page = format!("<!DOCTYPE html><html><body><a href=\"/{name}\">{name}</a></body></html>");
    HashMap::from([("/simple/a-letter/".to_owned(), page.into_bytes()), (format!("/{name}"), archive)])
}

#[tokio::test]
async fn pip_installs_a_wheel() {
    let Some(place) = Place::new().await else { return };
    place.secure(Site::Pages(wheel(&place.lab)));
    let install = "/usr/bin/python3 -m pip --isolated install -q --no-cache-dir --disable-pip-version-check --no-deps \
         --root-user-action ignore --cert {ca} --index-url https://registry.example/simple --target {work}/lib a-letter && \
         PYTHONPATH={work}/lib python3 -c 'import a_letter; print(a_letter.text)'";
    place.check(install, "from the wheel").await;
}
