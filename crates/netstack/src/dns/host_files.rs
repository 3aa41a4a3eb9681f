//! The two files by which a host resolves names: resolv.conf(5) and hosts(5).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::name::HostName;

/// What the C library takes of resolv.conf: `MAXNS` of its resolv.h.
const MAX_SERVERS: usize = 3;

/// Addresses by name. A name whose addresses are all the host's own has none.
pub(super) type HostTable = HashMap<HostName, Vec<IpAddr>>;

/// Where the two files are.
#[derive(Debug)]
pub(super) struct HostFiles {
    pub(super) servers: PathBuf,
    pub(super) hosts: PathBuf,
}

/// What tells one state of the files from another.
pub(super) type Stamp = [Option<(u64, u64, i64, i64)>; 2];

impl HostFiles {
    pub(super) fn stamp(&self) -> Stamp {
        [&self.servers, &self.hosts].map(|path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
        })
    }
}

/// The text of a file; none at all if there is no such file.
pub(super) fn text(path: &Path) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The name servers of a resolv.conf. If it names none, it is the host itself, as in the C library. Search domains and
/// options are the host's business: what a guest asks for are whole names.
pub(super) fn servers(text: &str) -> Vec<IpAddr> {
    let mut words = text.lines().map(str::split_whitespace);
    let named = words.by_ref().filter_map(|mut words| {
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    let servers: Vec<IpAddr> = named.take(MAX_SERVERS).collect();
    if servers.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { servers }
}

/// The names of a hosts file. Addresses that mean the machine itself mean another one in a VM, and are left out.
pub(super) fn hosts(text: &str) -> HostTable {
    let mut table = HostTable::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        let of_others = !address.is_loopback() && !address.is_unspecified() && !address.is_multicast();
        for name in words.filter_map(|word| HostName::parse(word).ok()) {
            let addresses = table.entry(name).or_default();
            if of_others && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_does() {
        let text = "# made by somebody\nsearch lan\nnameserver 192.0.2.1 # the router\n nameserver 2001:db8::1\n\
            nameserver fe80::1%eth0\nnameserver\nnameserver 192.0.2.2\nnameserver 192.0.2.3\noptions edns0\n";
        let expected = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(servers(text), expected);
        assert_eq!(servers("search lan\n"), [IpAddr::from([127, 0, 0, 1])]);
    }

    #[test]
    fn names_of_the_host_itself_have_no_address_for_others() {
        let table = hosts(
            "127.0.1.1 Laptop\n192.0.2.9 db db.lan # since May\n::1 db\nnonsense x\n0.0.0.0 ads.example\n",
        );
        let addresses = |name| table.get(&HostName::parse(name).unwrap()).map(Vec::as_slice);
        assert_eq!(addresses("laptop"), Some(&[][..]));
        assert_eq!(addresses("ads.example"), Some(&[][..]));
        assert_eq!(addresses("db"), Some(&[IpAddr::from([192, 0, 2, 9])][..]));
        assert_eq!(addresses("db.lan"), addresses("db"));
        assert_eq!(addresses("x"), None);
        assert_eq!(addresses("since"), None);
    }
}
