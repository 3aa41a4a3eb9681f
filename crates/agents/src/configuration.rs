//! Whether an agent's own configuration names a provider, read the way the agent reads it.
//!
//! A file that is there says nothing yet: pi keeps an empty `auth.json` after a logout, and a `models.json` may only
//! rename things. A file counts when it holds a credential, or an address together with what is offered there. One
//! that can't be read is an error rather than a silent "no": its owner meant something by it.
//!
//! The files come out of a VM, so they are anybody's text; no value of them is ever shown.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde_json::Value;

use crate::registry::Agent;

/// The largest file that is looked into; a configuration with hundreds of models is a tenth of this.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// A file by which an agent may be configured.
#[derive(Debug, Clone, Copy)]
pub struct ConfigurationFile {
    /// Its path below the agent's configuration directory.
    pub name: &'static str,
    names_provider: fn(&Value) -> bool,
}

/// Where an agent keeps its own configuration.
#[derive(Debug, Clone, Copy)]
pub struct Configuration {
    /// The variable that moves the directory.
    pub variable: &'static str,
    /// The directory below the user's home.
    pub directory: &'static str,
    /// The files in it.
    pub files: &'static [ConfigurationFile],
}

/// A configuration file that its agent could not read either.
#[derive(Debug, thiserror::Error)]
#[error("{path} can't be read as JSON, so that nobody can tell which model it configures")]
pub struct Malformed {
    /// The file.
    pub path: String,
    /// Where it stops being JSON.
    #[source]
    pub source: serde_json::Error,
}

/// Pi 1.5.2: docs/configuration.md, providers.md and models-configuration.md of its package.
const PI: Configuration = Configuration {
    variable: "PI_CODING_AGENT_DIR",
    directory: ".pi/agent",
    files: &[
        ConfigurationFile { name: "auth.json", names_provider: holds_credential },
        ConfigurationFile { name: "models.json", names_provider: holds_provider },
    ],
};

/// Where this agent keeps its own configuration, if that is known.
#[must_use]
pub fn of(agent: &Agent) -> Option<Configuration> {
    (agent.id == "pi").then_some(PI)
}

impl Configuration {
    /// The directory that an agent with this environment looks into. `None` where only the agent can tell: a path that
    /// isn't absolute depends on where it is when it looks, `~` on whom it takes its user for, and one with `..` on
    /// the links on its way.
    #[must_use]
    pub fn directory_in(&self, env: &BTreeMap<String, String>, home: &str) -> Option<String> {
        // Set to nothing it is as good as unset.
        let Some(moved) = env.get(self.variable).filter(|path| !path.is_empty()) else {
            return Some(format!("{home}/{}", self.directory));
        };
        let path = Path::new(moved);
        let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        plain.then(|| moved.clone())
    }
}

impl ConfigurationFile {
    /// Whether this content names a provider. `path` is for the error alone.
    pub fn names_provider(&self, path: &str, content: &[u8]) -> Result<bool, Malformed> {
        let content = without_comments(&String::from_utf8_lossy(content));
        if content.trim().is_empty() {
            return Ok(false);
        }
        let value =
            serde_json::from_str(&content).map_err(|source| Malformed { path: path.to_owned(), source })?;
        Ok((self.names_provider)(&value))
    }
}

/// `{"anthropic": {"type": "api_key", "key": "..."}, "openai": {"type": "oauth", "refresh": "...", ...}}`
fn holds_credential(value: &Value) -> bool {
    let credential = |entry: &Value| ["key", "access", "refresh"].iter().any(|name| is_text(&entry[name]));
    value.as_object().is_some_and(|providers| providers.values().any(credential))
}

/// `{"providers": {"ollama": {"baseUrl": "...", "apiKey": "...", "models": [...]}}}`
fn holds_provider(value: &Value) -> bool {
    let usable = |entry: &Value| is_text(&entry["apiKey"]) || is_text(&entry["baseUrl"]);
    value["providers"].as_object().is_some_and(|providers| providers.values().any(usable))
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty())
}

/// Pi allows `// comments` and commas before a closing bracket; JSON does not.
fn without_comments(text: &str) -> String {
    let text = text.trim_start_matches('\u{feff}');
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let (mut in_string, mut escaped) = (false, false);
    while let Some(c) = chars.next() {
        if in_string {
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else if c == '/' && chars.peek() == Some(&'/') {
            // The line's end stays, so that an error names the right line.
            while chars.next_if(|next| *next != '\n').is_some() {}
            continue;
        } else if c == '"' {
            in_string = true;
        } else if matches!(c, '}' | ']') && out.trim_end().ends_with(',') {
            let comma = out.trim_end().len() - 1;
            out.replace_range(comma..=comma, " ");
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn check(name: &str, content: &str) -> Result<bool, Malformed> {
        let pi = of(Registry::built_in().find("pi").unwrap()).unwrap();
        let file = pi.files.iter().find(|file| file.name == name).unwrap();
        file.names_provider("/home/user/x.json", content.as_bytes())
    }

    #[test]
    fn a_file_names_a_provider_by_what_it_holds() {
        for (name, content, names) in [
            ("auth.json", r#"{"anthropic":{"type":"api_key","key":"k"}}"#, true),
            ("auth.json", r#"{"anthropic":{"type":"oauth","access":"a","refresh":"r"}}"#, true),
            ("auth.json", "{}", false),
            ("auth.json", "", false),
            ("auth.json", r#"{"anthropic":{"type":"api_key","key":""}}"#, false),
            ("auth.json", "[1]", false),
            ("models.json", r#"{"providers":{"x":{"baseUrl":"http://localhost:1/v1","models":[]}}}"#, true),
            ("models.json", r#"{"providers":{"x":{"apiKey":"$NAME"}}}"#, true),
            ("models.json", r#"{"providers":{"x":{"name":"renamed"}}}"#, false),
            ("models.json", r#"{"providers":{}}"#, false),
            (
                "models.json",
                "\u{feff}// mine\n{\"providers\": {\"x\": {\"baseUrl\": \"http://a//b\", // yes,}\n},},\n}",
                true,
            ),
        ] {
            assert_eq!(check(name, content).unwrap(), names, "{name}: {content}");
        }
    }

    #[test]
    fn a_directory_that_only_the_agent_can_find_is_not_looked_for() {
        let pi = of(Registry::built_in().find("pi").unwrap()).unwrap();
        let directory = |value: &str| {
            let env = BTreeMap::from([("PI_CODING_AGENT_DIR".to_owned(), value.to_owned())]);
            pi.directory_in(&env, "/home/user")
        };
        let usual = Some("/home/user/.pi/agent".to_owned());
        assert_eq!((pi.directory_in(&BTreeMap::new(), "/home/user"), directory("")), (usual.clone(), usual));
        assert_eq!(directory("/work/pi"), Some("/work/pi".to_owned()));
        for elsewhere in ["pi", "./pi", "~", "~/pi", "/work/../pi", "/work/.."] {
            assert_eq!(directory(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn a_file_that_is_no_json_is_an_error_that_names_it_and_the_place_but_no_value() {
        let error = check("auth.json", "{\n\"anthropic\": {\"key\": \"s3cret\" oops}}").unwrap_err();
        assert!(error.to_string().contains("/home/user/x.json"), "{error}");
        assert!(error.source.to_string().contains("line 2"), "{}", error.source);
        assert!(!format!("{error:?}{error}{}", error.source).contains("s3cret"));
    }

    #[test]
    fn text_that_looks_like_a_comment_or_a_comma_stays_in_strings() {
        assert_eq!(without_comments(r#"{"a":"//,}\"//"} // c"#), r#"{"a":"//,}\"//"} "#);
        assert_eq!(without_comments("[1,\n]"), "[1 \n]");
    }
}
