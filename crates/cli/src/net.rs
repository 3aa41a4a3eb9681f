//! What the VM may reach: `--net none|public|POLICY.toml` and `--allow HOST[:PORT]`; and how much of it at a time.

use std::fs::{File, FileType};
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use agentos::{AgentOsOptions, EgressPolicy, EgressRule, Limits};
use clap::Args;
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

/// As much as the SDK takes for a policy.
const MAX_POLICY_BYTES: u64 = 1 << 20;

/// What the sidecar takes, so that what it would refuse is wrong usage before anything starts.
const CONNECTIONS: RangeInclusive<i64> = 1..=65_535;
const MIN_BANDWIDTH_BYTES: u64 = 1_024;

#[derive(Debug, Default, Args)]
pub(crate) struct NetArgs {
    /// What the VM may reach: nothing, the public internet, or what a policy file says [default: public, or none with
    /// --allow]
    #[arg(long, value_name = "none|public|POLICY.toml")]
    pub(crate) net: Option<NetSpec>,
    /// Let the VM reach a name, *.DOMAIN, an address or a network, in addition to --net; IPv6 in brackets
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) allow: Vec<AllowSpec>,
}

impl NetArgs {
    /// None where the flags say nothing. Whoever names a host without a word on the rest means that host, and no other.
    pub(crate) fn policy(&self) -> Option<EgressPolicy> {
        let base = match &self.net {
            Some(spec) => spec.0.clone(),
            None if self.allow.is_empty() => return None,
            None => EgressPolicy::none(),
        };
        Some(self.allow.iter().fold(base, |policy, spec| policy.allow(spec.0.clone())))
    }
}

/// What a VM's network is made with and keeps.
#[derive(Debug, Default, Args)]
pub(crate) struct NetLimitArgs {
    /// Let the VM reach this port of the host's 127.0.0.1, as its own and at host.agentos.internal
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) loopback_exempt_port: Vec<u16>,
    /// Refuse TCP connections beyond so many at a time, from 1 to 65535 [default: 2048]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(CONNECTIONS))]
    pub(crate) connections_limit: Option<u32>,
    /// Let so many bytes a second out of the VM, and as many in, at least 1024; k, m and g are powers of 1024. What
    /// counts is the payload of TCP, UDP and pings, and not queries to the VM's own resolver [default: no limit]
    #[arg(long, value_name = "BYTES[k|m|g]")]
    pub(crate) bandwidth_limit: Option<BytesSpec>,
}

impl NetLimitArgs {
    pub(crate) fn declare(&self, options: AgentOsOptions) -> AgentOsOptions {
        let mut limits = Limits::default();
        if let Some(count) = self.connections_limit {
            limits = limits.connections(count);
        }
        if let Some(BytesSpec(bytes)) = self.bandwidth_limit {
            limits = limits.bandwidth_bytes(bytes);
        }
        let ports = self.loopback_exempt_port.iter();
        ports.fold(options.limits(limits), |options, port| options.loopback_exempt_port(*port))
    }
}

/// A number of bytes a second, written as docker's `--memory` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BytesSpec(pub(crate) u64);

impl FromStr for BytesSpec {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let (digits, unit) = match text.to_ascii_lowercase().as_bytes().last() {
            Some(b'k') => (&text[..text.len() - 1], 1 << 10),
            Some(b'm') => (&text[..text.len() - 1], 1 << 20),
            Some(b'g') => (&text[..text.len() - 1], 1 << 30),
            _ => (text, 1),
        };
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|_| is_number);
        let bytes = number.and_then(|number| number.checked_mul(unit)).ok_or(NetError::Bytes)?;
        if bytes < MIN_BANDWIDTH_BYTES { Err(NetError::FewBytes) } else { Ok(Self(bytes)) }
    }
}

#[derive(Debug, Error)]
pub(crate) enum NetError {
    #[error("it is neither `none` nor `public`, nor a policy file that can be read: {source}")]
    Read { source: io::Error },
    #[error("{}: a policy file must be a regular file, and this is {what}", .path.display())]
    NoFile { path: PathBuf, what: &'static str },
    #[error("{}: it is longer than {MAX_POLICY_BYTES} bytes, which no policy file may be", .path.display())]
    LongFile { path: PathBuf },
    #[error("{}: {source}", .path.display())]
    Policy { path: PathBuf, source: agentos::Error },
    #[error("{0}")]
    Host(agentos::Error),
    #[error("an IPv6 address or network stands in brackets, such as [2001:db8::1]:443")]
    Brackets,
    #[error("a host is needed and not a URL, such as example.com:443")]
    Url,
    #[error("port must be between 1 and 65535")]
    Port,
    #[error("it is a number of bytes, such as 500000, 512k or 10m")]
    Bytes,
    #[error("it must be {MIN_BANDWIDTH_BYTES} bytes or more, such as 500000, 512k or 10m")]
    FewBytes,
}

/// A policy file is read where its name is, so that what is wrong with it is wrong usage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetSpec(pub(crate) EgressPolicy);

impl FromStr for NetSpec {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let policy = match text {
            "none" => EgressPolicy::none(),
            "public" => EgressPolicy::public(),
            path => {
                let content = read_policy(Path::new(path))?;
                EgressPolicy::from_toml(&content)
                    .map_err(|source| NetError::Policy { path: path.into(), source })?
            }
        };
        Ok(Self(policy))
    }
}

/// The text of a policy file. What never ends, or never begins, must not hold up the command.
fn read_policy(path: &Path) -> Result<String, NetError> {
    let unreadable = |source| NetError::Read { source };
    // A FIFO that nobody writes to would not open.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| unreadable(errno.into()))?;
    let file = File::from(file);
    let kind = file.metadata().map_err(unreadable)?.file_type();
    if !kind.is_file() {
        return Err(NetError::NoFile { path: path.into(), what: describe(kind) });
    }
    let mut content = Vec::new();
    // One more tells a file of just that length from a longer one.
    let read = file.take(MAX_POLICY_BYTES + 1).read_to_end(&mut content).map_err(unreadable)?;
    if read as u64 > MAX_POLICY_BYTES {
        return Err(NetError::LongFile { path: path.into() });
    }
    String::from_utf8(content).map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// What can be opened and is no regular file, which a socket can't.
fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a device"
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AllowSpec(pub(crate) EgressRule);

impl FromStr for AllowSpec {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let (host, port) = split_port(text)?;
        let rule: EgressRule = host.parse().map_err(NetError::Host)?;
        let Some(port) = port else { return Ok(Self(rule)) };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port @ 1..=u16::MAX) if digits => Ok(Self(rule.port(port))),
            _ => Err(NetError::Port),
        }
    }
}

fn split_port(text: &str) -> Result<(&str, Option<&str>), NetError> {
    if text.contains("://") {
        return Err(NetError::Url);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(NetError::Brackets)?;
        // Brackets are for what has colons: around a name they would hide a typing error.
        if !host.contains(':') {
            return Err(NetError::Brackets);
        }
        return match after.strip_prefix(':') {
            None if after.is_empty() => Ok((host, None)),
            None => Err(NetError::Brackets),
            Some(port) => Ok((host, Some(port))),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, rest)) if rest.contains(':') => Err(NetError::Brackets),
        Some((host, port)) => Ok((host, Some(port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        net: NetArgs,
    }

    fn policy(flags: &[&str]) -> Option<EgressPolicy> {
        let line = <Line as clap::Parser>::parse_from(["x"].iter().chain(flags));
        line.net.policy()
    }

    fn refusal(flags: &[&str]) -> String {
        <Line as clap::Parser>::try_parse_from(["x"].iter().chain(flags)).unwrap_err().to_string()
    }

    #[test]
    fn nothing_said_leaves_the_default_to_the_vm() {
        assert_eq!(policy(&[]), None);
        assert_eq!(policy(&["--net", "none"]), Some(EgressPolicy::none()));
        assert_eq!(policy(&["--net", "public"]), Some(EgressPolicy::public()));
    }

    #[test]
    fn who_allows_a_host_and_says_no_more_allows_that_host_alone() {
        let one = EgressPolicy::none().allow(EgressRule::name("a.example").port(443));
        assert_eq!(policy(&["--allow", "a.example:443"]), Some(one));
        let more = EgressPolicy::public()
            .allow(EgressRule::network("10.0.0.5"))
            .allow(EgressRule::name("*.b.example"));
        assert_eq!(policy(&["--net", "public", "--allow", "10.0.0.5", "--allow", "*.b.example"]), Some(more));
    }

    #[test]
    fn limits_and_ports_of_the_host_reach_the_options() {
        #[derive(Debug, clap::Parser)]
        struct Limited {
            #[command(flatten)]
            net: NetLimitArgs,
        }
        let flags = "x --loopback-exempt-port 3000 --loopback-exempt-port 5432 --connections-limit 64 --bandwidth-limit 2M";
        let line = <Limited as clap::Parser>::parse_from(flags.split(' '));
        let shown = format!("{:?}", line.net.declare(AgentOsOptions::default()));
        for part in ["[3000, 5432]", "connections: Some(64)", "bandwidth_bytes: Some(2097152)"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let shown = format!("{:?}", NetLimitArgs::default().declare(AgentOsOptions::default()));
        assert_eq!(shown, format!("{:?}", AgentOsOptions::default()));
        for (flag, value, reason) in [
            ("--loopback-exempt-port", "0", "1..=65535"),
            ("--connections-limit", "-1", "1..=65535"),
            ("--connections-limit", "0", "1..=65535"),
            ("--connections-limit", "65536", "1..=65535"),
            ("--bandwidth-limit", "fast", "a number of bytes"),
            ("--bandwidth-limit", "1", "1024 bytes or more"),
        ] {
            let argument = format!("{flag}={value}");
            let error = <Limited as clap::Parser>::try_parse_from(["x", &argument]).unwrap_err();
            let message = error.to_string();
            assert_eq!(error.exit_code(), 2, "{message}");
            assert!(message.contains(flag) && message.contains(reason), "{flag} {value}: {message}");
        }
        for edge in ["--connections-limit=1", "--connections-limit=65535", "--bandwidth-limit=1k"] {
            assert!(<Limited as clap::Parser>::try_parse_from(["x", edge]).is_ok(), "{edge}");
        }
    }

    #[test]
    fn bytes_are_numbers_with_a_unit_or_without() {
        for (text, bytes) in
            [("1024", 1_024), ("500000", 500_000), ("512k", 512 << 10), ("10M", 10 << 20), ("1g", 1 << 30)]
        {
            assert_eq!(text.parse::<BytesSpec>().unwrap().0, bytes, "{text}");
        }
        for text in ["", "k", "0", "0m", "1023", "-1", "+1", "1.5m", "1mb", "99999999999g", "1 k", "ä"] {
            assert!(text.parse::<BytesSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_names_addresses_and_networks() {
        for (text, rule) in [
            ("a.example", EgressRule::name("a.example")),
            ("*.a.example:80", EgressRule::name("*.a.example").port(80)),
            ("192.0.2.7:80", EgressRule::network("192.0.2.7").port(80)),
            ("10.0.0.0/8:5432", EgressRule::network("10.0.0.0/8").port(5432)),
            ("[2001:db8::1]", EgressRule::network("2001:db8::1")),
            ("[2001:db8::1]:443", EgressRule::network("2001:db8::1").port(443)),
            ("[2001:db8::/32]:443", EgressRule::network("2001:db8::/32").port(443)),
            ("*:443", EgressRule::any().port(443)),
        ] {
            assert_eq!(text.parse::<AllowSpec>().unwrap().0, rule, "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            (":443", "it is empty"),
            ("a.example:", "between 1 and 65535"),
            ("a.example:0", "between 1 and 65535"),
            ("a.example:65536", "between 1 and 65535"),
            ("a.example:+80", "between 1 and 65535"),
            ("https://a.example", "not a URL"),
            ("2001:db8::1", "in brackets"),
            ("[2001:db8::1", "in brackets"),
            ("[2001:db8::1]443", "in brackets"),
            ("[a.example]:443", "in brackets"),
            ("10.0.0.1/8", "beyond /8"),
            ("10.0.0.300:80", "ends in a number"),
        ] {
            let message = refusal(&["--allow", text]);
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn a_policy_file_is_read_or_refused_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        let path = path.to_str().unwrap();
        std::fs::write(path, "base = \"none\"\n[[rule]]\nallow = \"a.example\"\n").unwrap();
        let expected = EgressPolicy::none().allow(EgressRule::name("a.example"));
        assert_eq!(policy(&["--net", path]), Some(expected));
        std::fs::write(path, "base = \"none\"\n[[rule]]\nalow = \"a.example\"\n").unwrap();
        let message = refusal(&["--net", path]);
        assert!(message.contains("policy.toml: policy, line 3: unknown field `alow`"), "{message}");
        let message = refusal(&["--net", "pubic"]);
        assert!(message.contains("neither `none` nor `public`"), "{message}");
    }

    #[test]
    fn what_is_no_regular_file_or_has_no_end_is_no_policy() {
        let directory = tempfile::tempdir().unwrap();
        let (fifo, file) = (directory.path().join("fifo"), directory.path().join("policy.toml"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        for (path, what) in
            [(directory.path(), "a directory"), (&fifo, "a pipe"), (Path::new("/dev/zero"), "a device")]
        {
            let message = refusal(&["--net", path.to_str().unwrap()]);
            assert!(message.contains(&format!("must be a regular file, and this is {what}")), "{message}");
        }
        let mut text = "base = \"none\"\n".to_owned();
        text.push_str(&" ".repeat((1 << 20) - text.len()));
        std::fs::write(&file, &text).unwrap();
        assert_eq!(policy(&["--net", file.to_str().unwrap()]), Some(EgressPolicy::none()));
        std::fs::write(&file, text + " ").unwrap();
        let message = refusal(&["--net", file.to_str().unwrap()]);
        assert!(message.contains("policy.toml: it is longer than 1048576 bytes"), "{message}");
    }
}
