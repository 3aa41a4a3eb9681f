//! Tests that could not run here, and whether that is permitted.
//!
//! A test that lacks something of the machine appends one JSON line `{"test": NAME, "reason": WHY}` to the file that
//! `AGENTOS_TEST_SKIPS` names and returns. `tests/allowed-skips.toml` lists which tests may do so, for which user and
//! on which kind of machine; anything else is a failure, because a suite that skips silently proves nothing.

use super::machine;
use super::sandbox::Runner;
use crate::Failure;
use std::collections::BTreeMap;
use std::path::Path;

/// The rules of `tests/allowed-skips.toml`.
#[derive(Debug, Default)]
pub(crate) struct Allowed {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// Full test name, `*` standing for any text.
    test: String,
    /// None: whoever runs the test.
    runner: Option<Runner>,
    condition: machine::Condition,
}

impl Allowed {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let document: toml::Table = text.parse()?;
        if let Some(key) = document.keys().find(|key| *key != "skip") {
            return Err(format!("unknown key `{key}`").into());
        }
        let mut rules = Vec::new();
        for entry in document.get("skip").and_then(toml::Value::as_array).into_iter().flatten() {
            rules.push(Rule::from_entry(entry)?);
        }
        Ok(Self { rules })
    }

    pub(crate) fn permits(&self, test: &str, runner: Runner) -> bool {
        self.rules.iter().any(|rule| {
            rule.runner.is_none_or(|only| only == runner)
                && matches(&rule.test, test)
                && rule.condition.holds()
        })
    }
}

impl Rule {
    fn from_entry(entry: &toml::Value) -> Result<Self, Failure> {
        let table = entry.as_table().ok_or("a [[skip]] is a table")?;
        if let Some(key) = table.keys().find(|key| !["test", "as", "reason", "when"].contains(&key.as_str()))
        {
            return Err(format!("unknown key `{key}` in a [[skip]]").into());
        }
        let text = |key: &str| {
            let value = table.get(key).and_then(toml::Value::as_str).filter(|value| !value.is_empty());
            value.ok_or_else(|| format!("a [[skip]] needs `{key}`"))
        };
        // The reason is for the reader of the file; its presence is what is checked.
        text("reason")?;
        let runner = match text("as")? {
            "any" => None,
            name => Some(Runner::from_name(name)?),
        };
        Ok(Self {
            test: text("test")?.to_owned(),
            runner,
            condition: machine::Condition::from_name(text("when")?)?,
        })
    }
}

/// Whether `text` has the shape of `pattern`, in which each `*` stands for any text, none included.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => {
            let Some(text) = text.strip_prefix(start) else { return false };
            (0..=text.len()).filter_map(|at| text.get(at..)).any(|tail| matches(rest, tail))
        }
    }
}

/// Reads what one executable recorded: test name to reason. Reading a file that no test made gives nothing.
pub(crate) fn recorded(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(format!("{}: {error}", path.display()).into()),
    };
    let mut skips = BTreeMap::new();
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        let field = |key: &str| record[key].as_str().map(str::to_owned);
        match (field("test"), field("reason")) {
            (Some(test), Some(reason)) => skips.insert(test, reason),
            _ => return Err(format!("a skip needs `test` and `reason`: {line}").into()),
        };
    }
    Ok(skips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(matches("a::*", "a::b::c"));
        assert!(matches("*::c", "a::b::c"));
        assert!(matches("a*c", "ac"));
        assert!(!matches("a::*", "b::a::c"));
        assert!(!matches("a", "ab"));
    }

    #[test]
    fn a_rule_permits_its_test_for_its_user_only() {
        let allowed = Allowed::parse(
            "[[skip]]\ntest = \"vm::*\"\nas = \"unprivileged\"\nreason = \"why\"\nwhen = \"always\"\n",
        )
        .unwrap();
        assert!(allowed.permits("vm::a", Runner::Unprivileged));
        assert!(!allowed.permits("vm::a", Runner::Root));
        assert!(!allowed.permits("cli::a", Runner::Unprivileged));
    }

    #[test]
    fn a_rule_whose_condition_does_not_hold_permits_nothing() {
        let allowed =
            Allowed::parse("[[skip]]\ntest = \"*\"\nas = \"any\"\nreason = \"why\"\nwhen = \"never\"\n")
                .unwrap();
        assert!(!allowed.permits("vm::a", Runner::Root));
    }

    #[test]
    fn incomplete_and_misspelt_rules_are_refused() {
        for text in [
            "[[skip]]\ntest = \"*\"\nas = \"any\"\nwhen = \"always\"\n",
            "[[skip]]\ntest = \"*\"\nas = \"any\"\nreason = \"why\"\nwhen = \"full moon\"\n",
            "[[skip]]\ntest = \"*\"\nas = \"someone\"\nreason = \"why\"\nwhen = \"always\"\n",
            "[[skip]]\ntest = \"*\"\nas = \"any\"\nreason = \"why\"\nwhen = \"always\"\nwho = \"x\"\n",
            "[[skips]]\n",
        ] {
            Allowed::parse(text).unwrap_err();
        }
    }

    #[test]
    fn the_committed_file_is_valid() {
        Allowed::read(&crate::workspace::root().unwrap().join("tests/allowed-skips.toml")).unwrap();
    }
}
