//! WebSockets out of a VM, by a client that knows nothing of what is in between.

use agentos::{EgressPolicy, EgressRule};

use crate::lab::Lab;
use crate::lab::certificates::Authority;
use crate::lab::guest::sh;
use crate::lab::names::Entry;
use crate::lab::web::{Site, Web};

/// Says a short text and a long one, and what became of them. Node has the client; before version 22 it must be asked
/// for.
const CLIENT: &str = r#"
const long = "l".repeat(200_000), said = [];
const socket = new WebSocket(process.argv[2]);
socket.onopen = () => { socket.send("short"); socket.send(long); };
socket.onmessage = (message) => {
    said.push(message.data === long ? "long" : message.data);
    if (said.length === 2) socket.close(1000);
};
socket.onerror = () => { console.log("error"); process.exit(); };
socket.onclose = (end) => console.log(said.join(" "), end.code);
"#;

#[tokio::test]
async fn a_websocket_talks_both_ways_in_the_clear_and_over_tls() {
    let Some(lab) = Lab::new() else { return };
    let (names, authority) = (lab.names(), Authority::new());
    for name in ["chat.example", "other.example"] {
        names.set(name, Entry::addresses(&["198.51.100.80"]));
    }
    lab.host("chat", &["198.51.100.80"]);
    let plain = Web::serve(lab.tcp("chat", "198.51.100.80:80"), Site::WebSocket);
    let tls = authority.server(&["chat.example", "other.example"]);
    let secure = Web::serve_tls(lab.tcp("chat", "198.51.100.80:443"), tls, Site::WebSocket);
    let client = lab.file("client.js", CLIENT);
    let trusted = lab.file("ca.pem", authority.pem());
    let chat = |ca: &str, client: &str, url: &str| {
        format!("NODE_NO_WARNINGS=1 NODE_EXTRA_CA_CERTS={ca} node --experimental-websocket {client} {url}")
    };
    let outside = |url| chat(trusted.to_str().unwrap(), client.to_str().unwrap(), url);
    let urls = ["ws://chat.example/a", "wss://chat.example/a"];
    let others = ["ws://other.example/a", "wss://other.example/a"];
    for url in urls.iter().chain(&others) {
        assert_eq!(lab.outside(&outside(url)).await, "short long 1000", "the control: {url}");
    }

    let world = lab.world().await;
    let by_name = EgressPolicy::none().allow(EgressRule::name("chat.example"));
    let all_but_one = EgressPolicy::public().deny(EgressRule::name("other.example"));
    for (policy, kind) in [(EgressPolicy::public(), "public"), (by_name, "by name"), (all_but_one, "but one")]
    {
        let vm = world.vm_with(world.options().network(policy)).await;
        vm.write_file("/tmp/ca.pem", authority.pem()).await.unwrap();
        vm.write_file("/tmp/client.js", CLIENT).await.unwrap();
        let inside = |url| chat("/tmp/ca.pem", "/tmp/client.js", url);
        for url in urls {
            assert_eq!(sh(&vm, &inside(url)).await, "short long 1000", "{kind}: {url}");
        }
        for url in others {
            let expected = if kind == "public" { "short long 1000" } else { "error" };
            assert_eq!(sh(&vm, &inside(url)).await, expected, "{kind}: {url}");
        }
    }
    // Two by the controls, one by each of three VMs, and the other name by the VM that may.
    assert_eq!((plain.asked().len(), secure.asked().len()), (6, 6));
}
