//! Texts with gaps: what an agent's data says of paths and addresses that only a session knows.
//!
//! `{state}/settings.json` has one gap; `{{` and `}}` are braces. A text is taken apart when its agent's data is read,
//! so that a gap nobody can fill is found by the test that reads all agents, and not by the first user of one. Several
//! layers of data say parts of the same file: their tables are put together before they are written.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};

/// What a gap is filled with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// Node's executable.
    Node,
    /// The directory of one of the agent's packages, by its key.
    Package(String),
    /// The session's own directory.
    State,
    /// Where the agent keeps its configuration and what it remembers.
    Config,
    /// The home of the VM's user.
    Home,
    /// The working directory.
    Cwd,
    /// The demo model's address, without a path and a slash.
    Demo,
    /// The gateway's address of a provider.
    Gateway,
    /// The OS instructions.
    Instructions,
    /// The id by which the agent knows the session that goes on.
    Former,
    /// The processor, by npm's name for it: `x64`.
    Arch,
    /// The processor, by the name that compilers have for it: `x86_64`.
    Machine,
}

impl Gap {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "node" => Self::Node,
            "state" => Self::State,
            "config" => Self::Config,
            "home" => Self::Home,
            "cwd" => Self::Cwd,
            "demo" => Self::Demo,
            "gateway" => Self::Gateway,
            "instructions" => Self::Instructions,
            "former" => Self::Former,
            "arch" => Self::Arch,
            "machine" => Self::Machine,
            name => Self::Package(name.strip_prefix("package:").filter(|key| !key.is_empty())?.to_owned()),
        })
    }
}

/// A text that can't be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing is known by that name.
    #[error("there is nothing to put in for {{{name}}}")]
    Unknown {
        /// What stands in the braces.
        name: String,
    },
    /// A brace has no partner.
    #[error("a brace has no partner in '{text}'; one that is meant is written twice")]
    Brace {
        /// The whole text.
        text: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Text(String),
    Gap(Gap),
}

/// A text with gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Takes a text apart.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let brace = || TemplateError::Brace { text: text.to_owned() };
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else {
                let (name, after) =
                    from.strip_prefix('{').and_then(|from| from.split_once('}')).ok_or_else(brace)?;
                let gap = Gap::parse(name).ok_or_else(|| TemplateError::Unknown { name: name.to_owned() })?;
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Gap(gap));
                rest = after;
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    /// A text without gaps, whatever is in it.
    #[must_use]
    pub fn literal(text: String) -> Self {
        Self { parts: vec![Part::Text(text)] }
    }

    /// The text with every gap filled.
    pub fn fill<E>(&self, value: &impl Fn(&Gap) -> Result<String, E>) -> Result<String, E> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Gap(gap) => text.push_str(&value(gap)?),
            }
        }
        Ok(text)
    }

    /// The gaps, in their order.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.parts.iter().filter_map(|part| match part {
            Part::Gap(gap) => Some(gap),
            Part::Text(_) => None,
        })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(plain) => f.write_str(plain),
            Part::Gap(gap) => write!(f, "{{{gap:?}}}"),
        })
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A value with gaps in its texts and in the names of its tables.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    /// A text.
    Text(Template),
    /// A list.
    List(Vec<Tree>),
    /// A table.
    Table(BTreeMap<Template, Tree>),
    /// A number or a truth value.
    Plain(Value),
}

impl Tree {
    /// The value with every gap filled.
    pub fn fill<E>(&self, value: &impl Fn(&Gap) -> Result<String, E>) -> Result<Value, E> {
        Ok(match self {
            Self::Text(text) => Value::String(text.fill(value)?),
            Self::List(items) => {
                Value::Array(items.iter().map(|item| item.fill(value)).collect::<Result<_, E>>()?)
            }
            Self::Table(entries) => {
                let filled = entries.iter().map(|(name, entry)| Ok((name.fill(value)?, entry.fill(value)?)));
                Value::Object(filled.collect::<Result<Map<_, _>, E>>()?)
            }
            Self::Plain(plain) => plain.clone(),
        })
    }

    fn parse(value: Value) -> Result<Self, TemplateError> {
        Ok(match value {
            Value::String(text) => Self::Text(Template::parse(&text)?),
            Value::Array(items) => Self::List(items.into_iter().map(Self::parse).collect::<Result<_, _>>()?),
            Value::Object(entries) => {
                let parsed = entries
                    .into_iter()
                    .map(|(name, entry)| Ok((Template::parse(&name)?, Self::parse(entry)?)));
                Self::Table(parsed.collect::<Result<_, TemplateError>>()?)
            }
            plain => Self::Plain(plain),
        })
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Puts a later value over an earlier one: tables are put together, anything else replaces what was there.
pub fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                match under.get_mut(&name) {
                    Some(there) => merge(there, value),
                    None => drop(under.insert(name, value)),
                }
            }
        }
        (under, over) => *under = over,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(text: &str) -> Result<String, TemplateError> {
        let value = |gap: &Gap| Ok(format!("<{gap:?}>"));
        Template::parse(text)?.fill(&value)
    }

    #[test]
    fn gaps_are_filled_and_doubled_braces_stay() {
        assert_eq!(filled("a {state}/x{home}").unwrap(), "a <State>/x<Home>");
        assert_eq!(filled("{package:@a/b}").unwrap(), "<Package(\"@a/b\")>");
        assert_eq!(filled(r#"{{"a":"{demo}"}}"#).unwrap(), r#"{"a":"<Demo>"}"#);
        assert_eq!(filled("").unwrap(), "");
        assert_eq!(Template::literal("{x".to_owned()).fill(&|_| Err(())).unwrap(), "{x");
    }

    #[test]
    fn what_nobody_can_fill_is_refused_by_name() {
        assert_eq!(filled("{stat}"), Err(TemplateError::Unknown { name: "stat".to_owned() }));
        assert_eq!(filled("{package:}"), Err(TemplateError::Unknown { name: "package:".to_owned() }));
        for text in ["{state", "state}", "}{"] {
            assert_eq!(filled(text), Err(TemplateError::Brace { text: text.to_owned() }), "{text}");
        }
    }

    #[test]
    fn tables_are_put_together_and_the_later_value_counts() {
        let mut value = json!({"a": {"b": 1, "c": [1]}, "d": "x"});
        merge(&mut value, json!({"a": {"c": [2], "e": true}, "d": {"f": 1}}));
        assert_eq!(value, json!({"a": {"b": 1, "c": [2], "e": true}, "d": {"f": 1}}));
    }

    #[test]
    fn values_are_filled_through_and_through() {
        let tree: Tree = serde_json::from_value(json!({"{state}": [{"x": "{cwd}"}, 1, true]})).unwrap();
        let filled = tree.fill(&|gap| Ok::<_, ()>(format!("{gap:?}"))).unwrap();
        assert_eq!(filled, json!({"State": [{"x": "Cwd"}, 1, true]}));
        assert!(serde_json::from_value::<Tree>(json!(["{nothing}"])).is_err());
    }
}
