//! What the flags of `run`, `exec` and `shell` say, parsed: `HOST:GUEST:rw`, `DIR:rw`, `K=V`, `tcp:ADDRESS`, `8080:3000`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use agentos::Secret;
use thiserror::Error;

/// Where a project is shown in the VM.
pub(crate) const PROJECT_AT: &str = "/work";

/// A directory of the host at a path of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountSpec {
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
    pub(crate) writable: bool,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SpecError {
    #[error("it must be HOST:GUEST, HOST:GUEST:ro or HOST:GUEST:rw")]
    NoGuest,
    #[error("the path in the VM must be absolute, begin it with /")]
    RelativeGuest,
    #[error("the directory of the host is missing")]
    NoHost,
    #[error("it must be NAME=VALUE, or NAME to take the value from here")]
    NoName,
    #[error("it must be NAME, NAME=HOST or NAME=HOST:HEADER, with the value in the variable NAME")]
    NoSecretName,
    #[error("it must be NAME=HOST, NAME=HOST:HEADER or NAME=HOST:PORT:HEADER")]
    NoDestination,
    #[error("{name} is not set here")]
    NotSet { name: String },
    #[error("the value of {name} here is not UTF-8")]
    NotText { name: String },
    #[error("it must be unix:PATH or tcp:ADDRESS:PORT")]
    NoAddress,
    #[error(
        "it must be GUEST, HOST:GUEST or ADDRESS:HOST:GUEST: an IP address and ports from 1 to 65535, or HOST 0"
    )]
    NoPort,
}

/// Whether a path of the VM is `parent` or in it.
pub(crate) fn is_below(path: &str, parent: &str) -> bool {
    let parent = parent.trim_end_matches('/');
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Takes `:ro` or `:rw` off the end.
fn split_mode(text: &str) -> (&str, bool) {
    match text.rsplit_once(':') {
        Some((rest, "rw")) => (rest, true),
        Some((rest, "ro")) => (rest, false),
        _ => (text, false),
    }
}

impl FromStr for MountSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (rest, writable) = split_mode(text);
        let (host, guest) = rest.rsplit_once(':').ok_or(SpecError::NoGuest)?;
        if host.is_empty() {
            return Err(SpecError::NoHost);
        }
        if !guest.starts_with('/') {
            return Err(SpecError::RelativeGuest);
        }
        Ok(Self { host: host.into(), guest: guest.to_owned(), writable })
    }
}

/// The directory shown at [`PROJECT_AT`], which becomes the working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProjectSpec(pub(crate) MountSpec);

impl FromStr for ProjectSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (host, writable) = split_mode(text);
        if host.is_empty() {
            return Err(SpecError::NoHost);
        }
        Ok(Self(MountSpec { host: host.into(), guest: PROJECT_AT.to_owned(), writable }))
    }
}

/// A variable for the processes of the VM. Its value may be a secret: there is no `Debug` that shows it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EnvSpec {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl std::fmt::Debug for EnvSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

impl FromStr for EnvSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.is_empty() || text.starts_with('=') {
            return Err(SpecError::NoName);
        }
        if let Some((name, value)) = text.split_once('=') {
            return Ok(Self { name: name.to_owned(), value: value.to_owned() });
        }
        Ok(Self { name: text.to_owned(), value: own_variable(text)? })
    }
}

/// A port of the VM, and where the host shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishSpec {
    pub(crate) guest: u16,
    pub(crate) host: SocketAddr,
}

impl FromStr for PublishSpec {
    type Err = SpecError;

    /// As docker's `-p`, but of loopback where no address is named, and of the same number where no port is.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let port = |text: &str| text.parse::<u16>().map_err(|_| SpecError::NoPort);
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let (host, guest) = match text.rsplit_once(':') {
            None => (loopback(port(text)?), port(text)?),
            Some((host, guest)) if host.contains(':') => {
                (host.parse().map_err(|_| SpecError::NoPort)?, port(guest)?)
            }
            Some((host, guest)) => (loopback(port(host)?), port(guest)?),
        };
        if guest == 0 { Err(SpecError::NoPort) } else { Ok(Self { guest, host }) }
    }
}

/// A secret: its value is taken from here, and never given to the VM.
#[derive(Debug, Clone)]
pub(crate) struct SecretSpec {
    pub(crate) name: String,
    pub(crate) secret: Secret,
}

impl FromStr for SecretSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (name, destination) = match text.split_once('=') {
            Some((name, destination)) => (name, Some(destination)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(SpecError::NoSecretName);
        }
        let secret = Secret::new(name, own_variable(name)?);
        let secret = match destination {
            None => secret,
            Some(destination) => {
                let (host, header) = split_destination(destination).ok_or(SpecError::NoDestination)?;
                secret.header(host, header)
            }
        };
        Ok(Self { name: name.to_owned(), secret })
    }
}

/// `HOST[:PORT][:HEADER]`, in two parts. No header is a number.
fn split_destination(text: &str) -> Option<(&str, &str)> {
    let is_port = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (host, header) = match text.rsplit_once(':') {
        Some((host, last)) if !is_port(last) => (host, last),
        _ => (text, "authorization"),
    };
    (!host.is_empty() && !header.is_empty()).then_some((host, header))
}

/// The value of a variable here.
fn own_variable(name: &str) -> Result<String, SpecError> {
    match std::env::var(name) {
        Ok(value) => Ok(value),
        Err(std::env::VarError::NotPresent) => Err(SpecError::NotSet { name: name.to_owned() }),
        Err(std::env::VarError::NotUnicode(_)) => Err(SpecError::NotText { name: name.to_owned() }),
    }
}

/// Where the offline model listens.
#[derive(Debug, Clone)]
pub(crate) struct ListenSpec(pub(crate) agentos_demo_model::Listen);

impl FromStr for ListenSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        use agentos_demo_model::Listen;
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self(Listen::Unix(path.into()))),
            Some(("tcp", address)) => {
                address.parse().map(Listen::Tcp).map(Self).map_err(|_| SpecError::NoAddress)
            }
            _ => Err(SpecError::NoAddress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<(String, String, bool), SpecError> {
        let spec: MountSpec = text.parse()?;
        Ok((spec.host.to_string_lossy().into_owned(), spec.guest, spec.writable))
    }

    #[test]
    fn mounts_are_read_only_unless_they_say_rw() {
        assert_eq!(mount("src:/work"), Ok(("src".into(), "/work".into(), false)));
        assert_eq!(mount("src:/work:ro"), Ok(("src".into(), "/work".into(), false)));
        assert_eq!(mount("src:/work:rw"), Ok(("src".into(), "/work".into(), true)));
    }

    #[test]
    fn a_host_path_may_hold_colons() {
        assert_eq!(mount("a:b:/work:rw"), Ok(("a:b".into(), "/work".into(), true)));
    }

    #[test]
    fn what_is_no_mount_is_refused_with_the_reason() {
        assert_eq!(mount("src"), Err(SpecError::NoGuest));
        assert_eq!(mount("src:rw"), Err(SpecError::NoGuest));
        assert_eq!(mount("src:work"), Err(SpecError::RelativeGuest));
        assert_eq!(mount(":/work"), Err(SpecError::NoHost));
    }

    #[test]
    fn ports_are_published_on_loopback_unless_an_address_is_named() {
        let spec = |text: &str| text.parse().map(|spec: PublishSpec| (spec.host.to_string(), spec.guest));
        let at = |host: &str| Ok((host.to_owned(), 3000));
        assert_eq!(spec("3000"), at("127.0.0.1:3000"));
        assert_eq!(spec("8080:3000"), at("127.0.0.1:8080"));
        assert_eq!(spec("0:3000"), at("127.0.0.1:0"));
        assert_eq!(spec("0.0.0.0:8080:3000"), at("0.0.0.0:8080"));
        assert_eq!(spec("[::1]:8080:3000"), at("[::1]:8080"));
        for wrong in
            ["", "0", "8080:", ":3000", "8080:0", "host:80:80", "80:80:80", "70000", "127.0.0.1:3000"]
        {
            assert_eq!(spec(wrong), Err(SpecError::NoPort), "{wrong}");
        }
    }

    #[test]
    fn below_is_by_component() {
        assert!(is_below("/work", "/work") && is_below("/work/a", "/work/"));
        assert!(!is_below("/workshop", "/work"));
    }

    #[test]
    fn a_project_is_shown_at_work() {
        let spec: ProjectSpec = ".:rw".parse().unwrap();
        assert_eq!(spec.0, MountSpec { host: ".".into(), guest: "/work".into(), writable: true });
        let spec: ProjectSpec = "dir".parse().unwrap();
        assert!(!spec.0.writable);
        assert_eq!(":rw".parse::<ProjectSpec>(), Err(SpecError::NoHost));
    }

    #[test]
    fn variables_have_a_value_or_take_ours() {
        let spec: EnvSpec = "A=b=c".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.value.as_str()), ("A", "b=c"));
        let spec: EnvSpec = "PATH".parse().unwrap();
        assert_eq!(spec.value, std::env::var("PATH").unwrap());
        let unset = "AGENTOS_SURELY_UNSET".parse::<EnvSpec>();
        assert_eq!(unset, Err(SpecError::NotSet { name: "AGENTOS_SURELY_UNSET".into() }));
        assert_eq!("=x".parse::<EnvSpec>(), Err(SpecError::NoName));
    }

    #[test]
    fn a_secret_goes_to_a_host_in_a_header() {
        for (text, parts) in [
            ("api.example", Some(("api.example", "authorization"))),
            ("api.example:x-api-key", Some(("api.example", "x-api-key"))),
            ("api.example:8443", Some(("api.example:8443", "authorization"))),
            ("api.example:8443:x-api-key", Some(("api.example:8443", "x-api-key"))),
            (":x-api-key", None),
            ("api.example:", None),
            ("", None),
        ] {
            assert_eq!(split_destination(text), parts, "{text}");
        }
        let spec: SecretSpec = "PATH=api.example:x-key".parse().unwrap();
        let shown = format!("{spec:?}");
        assert!(shown.contains("PATH") && shown.contains("x-key"), "{shown}");
        assert!(!shown.contains(&std::env::var("PATH").unwrap()), "{shown}");
        let unset = "AGENTOS_SURELY_UNSET=api.example".parse::<SecretSpec>();
        assert_eq!(unset.unwrap_err(), SpecError::NotSet { name: "AGENTOS_SURELY_UNSET".into() });
        assert_eq!("=api.example".parse::<SecretSpec>().unwrap_err(), SpecError::NoSecretName);
    }

    #[test]
    fn values_of_variables_are_never_shown() {
        let spec: EnvSpec = "KEY=secret".parse().unwrap();
        assert!(!format!("{spec:?}").contains("secret"));
    }
}
