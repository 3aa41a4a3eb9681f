//! Destinations whose TLS is intercepted, and real clients that know nothing of it.

use std::path::PathBuf;
use std::process::Command;

use agentos::{AgentOs, AgentOsOptions, Secret};

use crate::lab::Lab;
use crate::lab::certificates::Authority;
use crate::lab::guest::sh;
use crate::lab::names::{Entry, Names};
use crate::lab::web::{Asked, Site, Web};
use crate::support::world::World;

const VALUE: &str = "the-real-token-0123456789";

/// A declared destination and another host, each with TLS and without.
struct Place {
    lab: Lab,
    names: Names,
    world: World,
    authority: Authority,
    api: Web,
    plain: Web,
    other: Web,
}

impl Place {
    async fn new() -> Option<Self> {
        Self::with(|_| Site::Text("fetched")).await
    }

    /// With this on the declared host.
    async fn with(site: impl FnOnce(&Lab) -> Site) -> Option<Self> {
        let lab = Lab::new()?;
        let own = site(&lab);
        let (names, authority) = (lab.names(), Authority::new());
        lab.host("api", &["198.51.100.80"]);
        lab.host("other", &["198.51.100.81"]);
        names.set("api.example", Entry::addresses(&["198.51.100.80"]));
        names.set("other.example", Entry::addresses(&["198.51.100.81"]));
        let (site, tls) = (Site::Text("fetched"), |name: &str| authority.server(&[name]));
        let api = Web::serve_tls(lab.tcp("api", "198.51.100.80:443"), tls("api.example"), own);
        let plain = Web::serve(lab.tcp("api", "198.51.100.80:80"), site.clone());
        let other = Web::serve_tls(lab.tcp("other", "198.51.100.81:443"), tls("other.example"), site);
        let trusted = lab.file("authority.pem", authority.pem());
        let world = lab.world_with(&[("SSL_CERT_FILE", &trusted)]).await;
        Some(Self { lab, names, world, authority, api, plain, other })
    }

    fn options(&self) -> AgentOsOptions {
        let secret = Secret::new("TOKEN", VALUE).bearer("api.example").header("api.example", "x-token");
        self.world.options().secret(secret)
    }

    async fn vm(&self) -> AgentOs {
        let vm = self.world.vm_with(self.options()).await;
        vm.write_file("/tmp/outside.pem", self.authority.pem()).await.unwrap();
        vm
    }
}

fn last(web: &Web) -> Asked {
    web.asked().pop().unwrap()
}

#[tokio::test]
async fn real_clients_send_the_secret_and_never_see_it() {
    let Some(place) = Place::new().await else { return };
    let vm = place.vm().await;
    let java = r#"import java.net.*; import java.net.http.*;
        public class Get { public static void main(String[] a) throws Exception {
            var ask = HttpRequest.newBuilder(URI.create("https://api.example/java"))
                .header("authorization", "Bearer " + System.getenv("TOKEN")).build();
            System.out.println(HttpClient.newHttpClient().send(ask, HttpResponse.BodyHandlers.ofString()).body());
        } }"#;
    vm.write_file("/tmp/Get.java", java).await.unwrap();
    let mut clients = vec![
        r#"curl -sS -H "authorization: Bearer $TOKEN" https://api.example/curl"#,
        r#"node -e 'fetch("https://api.example/node", {headers: {authorization: "Bearer " + process.env.TOKEN}})
            .then(a => a.text()).then(console.log)'"#,
        r#"/usr/bin/python3 -c 'import os, urllib.request as r
print(r.urlopen(r.Request("https://api.example/python", headers={"authorization": "Bearer " + os.environ["TOKEN"]})).read().decode())'"#,
    ];
    if !sh(&vm, "command -v java").await.is_empty() {
        clients.push("java /tmp/Get.java 2>/dev/null");
    }
    for client in clients {
        assert_eq!(sh(&vm, client).await, "fetched", "{client}");
        let asked = last(&place.api);
        assert_eq!(asked.header("authorization"), format!("Bearer {VALUE}"), "{client}");
        assert_eq!(asked.header("host"), "api.example");
    }
    // openssl shows whose certificate it is.
    let issuer = "openssl s_client -connect api.example:443 -servername api.example -verify_return_error </dev/null \
         2>/dev/null | grep issuer=";
    assert!(sh(&vm, issuer).await.contains("agentOS VM authority"));
}

/// A repository as a web server has it.
fn repository(lab: &Lab) -> PathBuf {
    let directory = lab.directory().join("repositories/repository.git");
    std::fs::create_dir_all(&directory).unwrap();
    let script = "git init -q . && echo 'from the repository' > letter && git add letter && \
        git -c user.name=Test -c user.email=test@api.example commit -q -m 'Write a letter' && git update-server-info";
    let mut command = Command::new("/bin/sh");
    let made =
        command.args(["-c", script]).env("HOME", lab.directory()).current_dir(&directory).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::rename(directory.join(".git"), lab.directory().join("git")).unwrap();
    lab.directory().join("git")
}

#[tokio::test]
async fn git_uses_the_secret_as_its_password() {
    let Some(place) = Place::with(|lab| {
        let site = Site::Files(repository(lab));
        Site::Locked(format!("git:{VALUE}"), Box::new(site))
    })
    .await
    else {
        return;
    };
    let vm = place.vm().await;
    let clone = "git clone -q \"https://git:$TOKEN@api.example/\" /tmp/copy && cat /tmp/copy/letter";
    assert_eq!(sh(&vm, clone).await, "from the repository");
    // The control: whoever has the placeholder alone is kept out.
    assert!(
        sh(&vm, "git clone -q https://git:other@api.example/ /tmp/other")
            .await
            .contains("Authentication failed")
    );
}

#[tokio::test]
async fn a_placeholder_sent_anywhere_else_stays_one() {
    let Some(place) = Place::new().await else { return };
    let vm = place.vm().await;
    let placeholder = sh(&vm, "printenv TOKEN").await;
    assert!(!placeholder.contains(VALUE) && placeholder.len() > 20, "{placeholder}");
    for command in [
        r#"curl -sS --cacert /tmp/outside.pem -H "authorization: Bearer $TOKEN" https://other.example/"#,
        r#"curl -sS -H "authorization: Bearer $TOKEN" http://api.example/"#,
        r#"curl -sS -H "x-other: $TOKEN" -H "cookie: $TOKEN" "https://api.example/?key=$TOKEN" -d "$TOKEN""#,
        // Another host by the name of the declared one, and the declared host by another name.
        r#"curl -sS -k --connect-to api.example:443:other.example:443 -H "authorization: $TOKEN" https://api.example/"#,
        r#"curl -sS -H "host: other.example" -H "authorization: $TOKEN" https://api.example/"#,
    ] {
        sh(&vm, command).await;
    }
    let all: Vec<Asked> =
        [&place.api, &place.plain, &place.other].iter().flat_map(|web| web.asked()).collect();
    assert!(all.len() >= 3, "the attempts themselves work: {all:?}");
    for asked in &all {
        let whole = format!("{asked:?}");
        assert!(!whole.contains(VALUE), "{whole}");
        assert!(whole.contains(&placeholder), "{whole}");
    }
}

#[tokio::test]
async fn the_secret_goes_to_no_server_that_only_claims_to_be_the_one() {
    let Some(place) = Place::new().await else { return };
    // Its certificate is of an authority that nobody outside believes.
    place.lab.host("liar", &["198.51.100.82"]);
    let names = place.lab.names_at("liar-names", "198.51.100.54");
    names.set("api.example", Entry::addresses(&["198.51.100.82"]));
    let stranger = Authority::new();
    let liar = Web::serve_tls(
        place.lab.tcp("liar", "198.51.100.82:443"),
        stranger.server(&["api.example"]),
        Site::Text("thanks"),
    );
    let options = place.options().dns_server("198.51.100.54:53".parse().unwrap());
    let vm = place.world.vm_with(options).await;
    let answer = sh(&vm, r#"curl -sS -H "authorization: Bearer $TOKEN" https://api.example/"#).await;
    assert!(answer.contains("certificate is not accepted"), "{answer}");
    assert!(liar.asked().is_empty());
}

/// Both names are declared, and the server has a certificate for both: but one of them led elsewhere.
#[tokio::test]
async fn a_secret_goes_to_no_address_that_its_name_did_not_lead_to() {
    let Some(place) = Place::new().await else { return };
    place.lab.host("both", &["198.51.100.83"]);
    place.names.set("both.example", Entry::addresses(&["198.51.100.83"]));
    let tls = place.authority.server(&["both.example", "api.example"]);
    let both = Web::serve_tls(place.lab.tcp("both", "198.51.100.83:443"), tls, Site::Text("fetched"));
    let other = Secret::new("OTHER", "another-token-0123456789").bearer("both.example");
    let vm = place.world.vm_with(place.options().secret(other)).await;
    let honest = r#"curl -sS -H "authorization: Bearer $OTHER" https://both.example/"#;
    assert_eq!(sh(&vm, honest).await, "fetched");
    assert_eq!(last(&both).header("authorization"), "Bearer another-token-0123456789", "the control");
    let elsewhere = r#"curl -sS -k --connect-to api.example:443:both.example:443 \
        -H "authorization: Bearer $TOKEN" https://api.example/"#;
    assert_eq!(sh(&vm, elsewhere).await, "fetched");
    let placeholder = sh(&vm, "printenv TOKEN").await;
    assert_eq!(last(&both).header("authorization"), format!("Bearer {placeholder}"));
}

#[tokio::test]
async fn variables_of_the_user_stay_as_they_are() {
    let Some(place) = Place::new().await else { return };
    let vm = place.world.vm_with(place.options().env("SSL_CERT_FILE", "/mine.pem")).await;
    assert_eq!(sh(&vm, "printenv SSL_CERT_FILE").await, "/mine.pem");
    assert_eq!(sh(&vm, "printenv NODE_EXTRA_CA_CERTS").await, "/opt/agentos/trust/authority.pem");
    // Without anything to intercept a VM is as any other.
    let plain = place.world.vm().await;
    assert_eq!(
        sh(&plain, "ls -d /opt/agentos 2>/dev/null; printenv NODE_EXTRA_CA_CERTS SSL_CERT_FILE").await,
        ""
    );
}
