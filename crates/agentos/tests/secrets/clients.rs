//! Programs that send a secret in ways of their own: git's protocol over HTTP, both ways, and the requests library of
//! Python.

use std::path::PathBuf;
use std::process::Command;

use agentos::{AgentOs, Secret};

use crate::lab::Lab;
use crate::lab::certificates::Authority;
use crate::lab::guest::sh;
use crate::lab::names::Entry;
use crate::lab::web::{Site, Web};
use crate::support::world::World;

const VALUE: &str = "the-real-token-0123456789";

struct Place {
    lab: Lab,
    _world: World,
    api: Web,
    vm: AgentOs,
}

/// One declared host with TLS, that lets nobody in without the secret.
async fn place(site: impl FnOnce(&Lab) -> Site) -> Option<Place> {
    let lab = Lab::new()?;
    let (names, authority) = (lab.names(), Authority::new());
    names.set("api.example", Entry::addresses(&["198.51.100.80"]));
    lab.host("api", &["198.51.100.80"]);
    let site = Site::Locked(format!("git:{VALUE}"), Box::new(site(&lab)));
    let api = Web::serve_tls(lab.tcp("api", "198.51.100.80:443"), authority.server(&["api.example"]), site);
    let trusted = lab.file("authority.pem", authority.pem());
    let world = lab.world_with(&[("SSL_CERT_FILE", &trusted)]).await;
    let secret = Secret::new("TOKEN", VALUE).bearer("api.example");
    let vm = world.vm_with(world.options().secret(secret)).await;
    Some(Place { lab, _world: world, api, vm })
}

fn run(directory: &std::path::Path, script: &str) -> String {
    let mut shell = Command::new("/bin/sh");
    let output = shell.args(["-c", script]).env("HOME", directory).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const IDENTITY: &str =
    "git config --global user.name Test && git config --global user.email test@api.example";

/// A repository that can be pushed to.
fn repositories(lab: &Lab) -> PathBuf {
    let root = lab.directory().join("repositories");
    std::fs::create_dir(&root).unwrap();
    let script = format!(
        "{IDENTITY} && git init -q -b main first && cd first && echo 'from the repository' > letter && \
         git add letter && git commit -q -m 'Write a letter' && cd .. && \
         git clone -q --bare first letters.git && git -C letters.git config http.receivepack true"
    );
    run(&root, &script);
    root
}

#[tokio::test]
async fn git_clones_and_pushes_with_a_password_that_it_does_not_have() {
    let Some(place) = place(|lab| Site::Git(repositories(lab))).await else { return };
    // Of noise, so that packing makes it no smaller than what is read in one piece.
    let script = format!(
        "{IDENTITY} && git clone -q \"https://git:$TOKEN@api.example/letters.git\" /tmp/copy && cd /tmp/copy && \
         cat letter && head -c 3000000 /dev/urandom > noise && git add noise && \
         git commit -q -m 'Add noise' && git push -q origin main && git rev-parse HEAD && sha256sum < noise"
    );
    let said = sh(&place.vm, &script).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "from the repository"), "{said}");
    let root = place.lab.directory().join("repositories");
    assert_eq!(run(&root, "git -C letters.git rev-parse main").trim(), lines[1]);
    assert_eq!(run(&root, "git -C letters.git show main:noise | sha256sum").trim(), lines[2].trim());
    // It was git's own protocol, not files.
    let asked = place.api.asked();
    assert!(asked.iter().any(|asked| asked.target == "/letters.git/git-receive-pack"), "{asked:?}");
    let other = sh(&place.vm, "git clone -q https://git:other@api.example/letters.git /tmp/other").await;
    assert!(other.contains("Authentication failed"), "the control: {other}");
}

#[tokio::test]
async fn the_requests_library_believes_the_authority_and_sends_the_secret() {
    let Some(place) = place(|_| Site::Text("fetched")).await else { return };
    // It comes with pip, where that is of the distribution.
    let fetch = |password: &str| {
        format!(
            "/usr/bin/python3 -c 'import os\nfrom pip._vendor import requests\n\
             answer = requests.get(\"https://api.example/\", auth=(\"git\", {password}))\n\
             print(answer.status_code, answer.text)'"
        )
    };
    let fetch = |password: &str| fetch(password).replace("\\n", "\n");
    assert_eq!(sh(&place.vm, &fetch("os.environ[\"TOKEN\"]")).await, "200 fetched");
    assert_eq!(sh(&place.vm, &fetch("\"other\"")).await, "401", "the control");
}
