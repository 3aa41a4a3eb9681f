//! The user's npm configuration, as far as fetching packages needs it.
//!
//! Read as npm reads it: environment (`npm_config_*`) over the user's `.npmrc` over the global one, `${NAME}` filled
//! in from the environment, tokens valid only for addresses below the one they are written for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The public registry; also the host that other registries' metadata may still name.
pub const PUBLIC_REGISTRY: &str = "https://registry.npmjs.org/";

/// Which registry to ask, with what credentials, through what.
#[derive(Clone, Default)]
pub struct RegistrySettings {
    registry: Option<String>,
    scoped: BTreeMap<String, String>,
    /// By address without its scheme, `//host/path/`, the value of the Authorization header.
    credentials: BTreeMap<String, String>,
    pub(super) proxy: Option<String>,
    /// Whether HTTPS_PROXY and NO_PROXY of this process count.
    pub(super) environment_proxy: bool,
    pub(super) no_proxy: Vec<String>,
    /// PEM files with certificates beside the system's.
    pub(super) certificate_files: Vec<PathBuf>,
}

/// The configuration can't be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {}", path.display())]
pub struct SettingsError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

// Tokens are never printed.
impl fmt::Debug for RegistrySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrySettings")
            .field("registry", &self.registry)
            .field("scoped", &self.scoped)
            .field("credentials_for", &self.credentials.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl RegistrySettings {
    /// The public registry's or another one's plain settings.
    #[must_use]
    pub fn for_registry(registry: impl Into<String>) -> Self {
        Self { registry: Some(with_slash(registry.into())), ..Self::default() }
    }

    /// The settings of the user that runs this process.
    pub fn from_user() -> Result<Self, SettingsError> {
        Self::load(&|name| std::env::var(name).ok())
    }

    /// The settings that an environment names.
    pub fn load(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let npm = |name: &str| {
            set(&format!("npm_config_{name}")).or_else(|| set(&format!("NPM_CONFIG_{}", name.to_uppercase())))
        };
        let global = ["/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc"].map(PathBuf::from);
        let global = npm("globalconfig").map_or_else(|| global.to_vec(), |path| vec![PathBuf::from(path)]);
        let user = npm("userconfig").map(PathBuf::from);
        let user = user.or_else(|| set("HOME").map(|home| Path::new(&home).join(".npmrc")));

        let mut settings = Self { environment_proxy: true, ..Self::default() };
        for path in global.iter().chain(&user) {
            match fs::read_to_string(path) {
                Ok(text) => settings.merge(&text, variable),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A global file of a directory that isn't ours to read binds nobody.
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied && !user.iter().any(|u| u == path) => {
                }
                Err(source) => return Err(SettingsError { path: path.clone(), source }),
            }
        }
        if let Some(registry) = npm("registry") {
            settings.registry = Some(with_slash(registry));
        }
        if let Some(proxy) = npm("https_proxy").or_else(|| npm("proxy")) {
            settings.proxy = Some(proxy);
        }
        if let Some(names) = npm("noproxy") {
            settings.no_proxy = split_names(&names);
        }
        let files = [npm("cafile"), set("NODE_EXTRA_CA_CERTS")];
        settings.certificate_files.extend(files.into_iter().flatten().map(PathBuf::from));
        Ok(settings)
    }

    fn merge(&mut self, text: &str, variable: &dyn Fn(&str) -> Option<String>) {
        let mut users: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let key = key.trim();
            let value = expand(value.trim().trim_matches('"'), variable);
            if let Some((address, field)) = key.strip_prefix("//").and_then(|rest| rest.rsplit_once(':')) {
                let address = with_slash(format!("//{address}"));
                match field {
                    "_authToken" => drop(self.credentials.insert(address, format!("Bearer {value}"))),
                    "_auth" => drop(self.credentials.insert(address, format!("Basic {value}"))),
                    "username" => users.entry(address).or_default()[0] = Some(value),
                    "_password" => users.entry(address).or_default()[1] = Some(value),
                    _ => {}
                }
            } else if let Some(scope) = key.strip_suffix(":registry").filter(|scope| scope.starts_with('@')) {
                self.scoped.insert(scope.to_owned(), with_slash(value));
            } else {
                self.set(key, value);
            }
        }
        for (address, pair) in users {
            if let [Some(user), Some(password)] = pair {
                self.credentials.insert(address, basic(&user, &password));
            }
        }
    }

    fn set(&mut self, key: &str, value: String) {
        match key {
            "registry" => self.registry = Some(with_slash(value)),
            "https-proxy" => self.proxy = Some(value),
            "proxy" => self.proxy = self.proxy.take().or(Some(value)),
            "noproxy" | "no-proxy" => self.no_proxy = split_names(&value),
            "cafile" => self.certificate_files.push(PathBuf::from(value)),
            _ => {}
        }
    }

    /// The registry of a package, with a slash at its end.
    pub(super) fn registry_of(&self, package: &str) -> &str {
        let scope = package.split_once('/').map(|(scope, _)| scope);
        let scoped = scope.and_then(|scope| self.scoped.get(scope));
        scoped.or(self.registry.as_ref()).map_or(PUBLIC_REGISTRY, String::as_str)
    }

    /// The Authorization header for an address: the one of the longest address that it lies below.
    pub(super) fn authorization(&self, url: &str) -> Option<&str> {
        let at = url.find("//")?;
        let below = |address: &&String| url[at..].starts_with(address.as_str());
        let longest = self.credentials.keys().filter(below).max_by_key(|address| address.len())?;
        self.credentials.get(longest).map(String::as_str)
    }
}

fn with_slash(mut address: String) -> String {
    if !address.ends_with('/') {
        address.push('/');
    }
    address
}

fn split_names(names: &str) -> Vec<String> {
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// npm keeps the password in base64 and the header wants both in base64 together.
fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let password = engine.decode(password).unwrap_or_default();
    let mut pair = format!("{user}:").into_bytes();
    pair.extend(password);
    format!("Basic {}", engine.encode(pair))
}

/// Fills in `${NAME}`; a name that isn't set stays as it is written, as npm leaves it.
fn expand(value: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else { break };
        let name = &rest[start + 2..start + length];
        out.push_str(&rest[..start]);
        match variable(name) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[start..=start + length]),
        }
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> RegistrySettings {
        let mut settings = RegistrySettings::default();
        settings.merge(text, &|name| (name == "TOKEN").then(|| "s3cret".to_owned()));
        settings
    }

    #[test]
    fn a_scope_has_its_own_registry_and_the_rest_the_default() {
        let settings = parse("registry=https://npm.example/all\n@own:registry = https://own.example/npm/\n");
        assert_eq!(settings.registry_of("@own/tool"), "https://own.example/npm/");
        assert_eq!(settings.registry_of("@other/tool"), "https://npm.example/all/");
        assert_eq!(settings.registry_of("tool"), "https://npm.example/all/");
        assert_eq!(parse("").registry_of("tool"), PUBLIC_REGISTRY);
    }

    #[test]
    fn a_token_goes_only_below_the_address_it_is_written_for() {
        let settings = parse(
            "; comment\n//own.example/npm/:_authToken=${TOKEN}\n//own.example/:_auth=YTpi\n# more\n\
             //u.example/:username=u\n//u.example/:_password=cHc=\n",
        );
        assert_eq!(
            settings.authorization("https://own.example/npm/tool/-/tool-1.tgz"),
            Some("Bearer s3cret")
        );
        assert_eq!(settings.authorization("https://own.example/else"), Some("Basic YTpi"));
        assert_eq!(settings.authorization("https://own.example.evil/npm/"), None);
        assert_eq!(settings.authorization("https://u.example/tool"), Some("Basic dTpwdw=="));
        assert!(!format!("{settings:?}").contains("s3cret"));
    }

    #[test]
    fn variables_that_are_not_set_stay_written() {
        let none = |_: &str| None;
        assert_eq!(expand("a${X}b${", &none), "a${X}b${");
        assert_eq!(expand("${X}/${X}", &|_| Some("y".into())), "y/y");
    }

    #[test]
    fn the_environment_wins_over_the_files() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(".npmrc"), "registry=https://file.example/\nhttps-proxy=http://p:1\n")
            .unwrap();
        let home = home.path().to_str().unwrap().to_owned();
        let load = |extra: &[(&str, &str)]| {
            let none = ("npm_config_globalconfig", "/nowhere");
            let set: BTreeMap<String, String> = [("HOME", home.as_str()), none]
                .iter()
                .chain(extra)
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            RegistrySettings::load(&|name| set.get(name).cloned()).unwrap()
        };
        assert_eq!(load(&[]).registry_of("a"), "https://file.example/");
        assert_eq!(load(&[]).proxy.as_deref(), Some("http://p:1"));
        assert_eq!(
            load(&[("npm_config_registry", "https://env.example")]).registry_of("a"),
            "https://env.example/"
        );
        assert_eq!(
            load(&[("NPM_CONFIG_REGISTRY", "https://env.example")]).registry_of("a"),
            "https://env.example/"
        );
    }
}
