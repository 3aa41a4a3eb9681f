//! Socket families that lead out of the VM or into parts of the kernel with a record.

use crate::attempts::{guests, outside};
use crate::support::world::World;

const REFUSED: [(&str, &str); 19] = [
    ("socket netlink raw 2", "EPROTONOSUPPORT"), // Once netfilter's ip6, now unused.
    ("socket netlink raw 4", "EPROTONOSUPPORT"), // sock_diag
    ("socket netlink raw 6", "EPROTONOSUPPORT"), // XFRM
    ("socket netlink raw 9", "EPROTONOSUPPORT"), // audit
    ("socket netlink raw 12", "EPROTONOSUPPORT"), // netfilter
    ("socket netlink raw 15", "EPROTONOSUPPORT"), // uevents
    ("socket netlink raw 16", "EPROTONOSUPPORT"), // generic
    ("socket netlink raw 21", "EPROTONOSUPPORT"), // crypto
    ("socket alg seqpacket 0", "EAFNOSUPPORT"),
    ("socket vsock stream 0", "EAFNOSUPPORT"),
    ("socket xdp raw 0", "EAFNOSUPPORT"),
    ("socket key raw 2", "EAFNOSUPPORT"),
    ("socket can raw 1", "EAFNOSUPPORT"),
    ("socket tipc stream 0", "EAFNOSUPPORT"),
    ("socketpair tipc", "EAFNOSUPPORT"),
    ("socket bluetooth raw 1", "EAFNOSUPPORT"),
    ("socket packet raw 0x300", "EPERM"),
    ("socket inet raw 1", "EPERM"),
    ("socket inet6 raw 58", "EPERM"),
];

#[tokio::test]
async fn families_that_lead_elsewhere_are_refused_and_the_usual_ones_are_not() {
    let world = World::new().await;
    for guest in guests(&world, world.options()).await {
        for (words, refused) in REFUSED {
            assert_eq!(guest.attempt(words).await, refused, "{}: {words}", guest.user);
        }
        let usual = [
            "socket unix stream 0",
            "socket inet stream 0",
            "socket inet6 datagram 0",
            "socket inet datagram 1",
        ];
        guest.check("ok", &usual).await;
        guest.check("ok", &["socket netlink raw 0", "socketpair unix"]).await;
    }
    // The controls that every user has; the other families depend on how the kernel was built.
    for words in ["socket netlink raw 16", "socket netlink raw 15"] {
        assert_eq!(outside(words), "ok", "{words}");
    }
    assert_eq!(outside("socket inet raw 1"), if crate::attempts::is_root() { "ok" } else { "EPERM" });
}
