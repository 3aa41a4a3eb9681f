//! Whether an agent's own configuration names a provider, read the way the agent reads it.
//!
//! A file that is there says nothing yet: pi keeps an empty `auth.json` after a logout, and a `models.json` may only
//! rename things. A file counts when it holds a credential, or an address together with what is offered there. One
//! that can't be read is an error rather than a silent "no": its owner meant something by it.
//!
//! The files come out of a VM, so they are anybody's text; no value of them is ever shown.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;
use serde_json::Value;

use crate::registry::template::Template;

/// The largest file that is looked into; a configuration with hundreds of models is a tenth of this.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// Where an agent keeps its own configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The variable that moves the directory.
    #[serde(default)]
    pub variable: Option<String>,
    /// Where the configuration is in the directory that the variable names; unset where it is that one.
    #[serde(default)]
    pub below: Option<String>,
    /// The directory below the user's home.
    pub directory: String,
    /// Where the variable moves it for a session of its own, which is for a user who has no such directory: an agent
    /// that keeps what it remembers in the same place has it with its session then.
    #[serde(default)]
    pub moved: Option<Template>,
    /// The files in it that may name a provider, by their path, and the places in them that do when a text stands there:
    /// names, with dots between them, and `*` for any.
    #[serde(default)]
    pub files: BTreeMap<String, Vec<String>>,
}

/// A configuration file that its agent could not read either.
#[derive(Debug, thiserror::Error)]
#[error("{path} can't be read, so that nobody can tell which model it configures")]
pub struct Malformed {
    /// The file.
    pub path: String,
    /// Where it stops being what it is named.
    #[source]
    pub source: Unreadable,
}

/// What stops a file from being read; nothing of its text is in it.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is no TOML.
    #[error("{message} at line {line}")]
    Toml {
        /// What the reader says.
        message: String,
        /// Where it stops.
        line: usize,
    },
}

impl Unreadable {
    fn toml(content: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| content.get(..span.start)).unwrap_or_default();
        Self::Toml { message: error.message().to_owned(), line: before.matches('\n').count() + 1 }
    }
}

impl Configuration {
    /// The directory that an agent with this environment looks into. `None` where only the agent can tell: a path that
    /// isn't absolute depends on where it is when it looks, `~` on whom it takes its user for, and one with `..` on
    /// the links on its way.
    #[must_use]
    pub fn directory_in(&self, env: &BTreeMap<String, String>, home: &str) -> Option<String> {
        // Set to nothing it is as good as unset.
        let moved = self.variable.as_ref().and_then(|name| env.get(name)).filter(|path| !path.is_empty());
        let Some(moved) = moved else { return Some(format!("{home}/{}", self.directory)) };
        let path = Path::new(moved);
        let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        plain.then(|| self.within(moved))
    }

    /// The directory of the configuration where the variable names this one.
    #[must_use]
    pub fn within(&self, named: &str) -> String {
        match &self.below {
            Some(below) => format!("{}/{below}", named.trim_end_matches('/')),
            None => named.to_owned(),
        }
    }
}

/// Whether the content of a configuration file has a text in one of these places. `path` tells what it is written in,
/// and is for the error.
pub fn names_provider(path: &str, content: &[u8], places: &[String]) -> Result<bool, Malformed> {
    let content = String::from_utf8_lossy(content);
    let malformed = |source| Malformed { path: path.to_owned(), source };
    let value = match path.ends_with(".toml") {
        true => toml::from_str(&content).map_err(|error| malformed(Unreadable::toml(&content, &error)))?,
        false => {
            let content = without_comments(&content);
            if content.trim().is_empty() {
                return Ok(false);
            }
            serde_json::from_str(&content).map_err(|error| malformed(error.into()))?
        }
    };
    Ok(places.iter().any(|place| has_text(&value, place)))
}

fn has_text(value: &Value, place: &str) -> bool {
    let (name, rest) = match place.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (place, None),
    };
    let there = |value: &Value| rest.map_or_else(|| is_text(value), |rest| has_text(value, rest));
    match (value, name) {
        (Value::Object(entries), "*") => entries.values().any(there),
        (Value::Object(entries), name) => entries.get(name).is_some_and(there),
        _ => false,
    }
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
        let registry = Registry::built_in();
        let pi = &registry.find("pi").unwrap().configuration[0];
        names_provider("/home/user/x.json", content.as_bytes(), &pi.files[name])
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
        let registry = Registry::built_in();
        let pi = &registry.find("pi").unwrap().configuration[0];
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
    fn toml_is_read_by_the_files_name_and_its_mistakes_show_no_value() {
        let places = ["model_providers.*.base_url".to_owned()];
        let read = |content: &str| names_provider("/h/config.toml", content.as_bytes(), &places);
        assert!(read("[model_providers.mine]\nbase_url = \"http://x\"").unwrap());
        assert!(!read("model = \"x\"").unwrap() && !read("").unwrap());
        let error = read("a = 1\ntoken = \"s3cret\" oops").unwrap_err();
        assert!(error.to_string().contains("/h/config.toml"), "{error}");
        assert!(error.source.to_string().contains("line 2"), "{}", error.source);
        assert!(!format!("{error:?}{}", error.source).contains("s3cret"));
    }

    #[test]
    fn text_that_looks_like_a_comment_or_a_comma_stays_in_strings() {
        assert_eq!(without_comments(r#"{"a":"//,}\"//"} // c"#), r#"{"a":"//,}\"//"} "#);
        assert_eq!(without_comments("[1,\n]"), "[1 \n]");
    }
}
