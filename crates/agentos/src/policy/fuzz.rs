//! What must hold for policy files, whatever is in them. The fuzz target brings texts that a fuzzer makes up, the tests
//! of [`file`](super::file) theirs.

#![allow(clippy::expect_used, reason = "it is called by tests, which fail by panicking")]

use toml::{Table, Value};

use super::file::parse;
use super::{Action, EgressPolicy, EgressProtocol, EgressRule, PolicyBase, Target};

/// # Panics
///
/// If anything of a file that is accepted was passed over, so that the policy might be wider than what is written; or
/// if the line of a mistake isn't one of the text.
pub(crate) fn policy_file(text: &str) {
    let policy = match parse(text) {
        Ok(policy) => policy,
        Err(error) => {
            let lines = text.matches('\n').count() + 1;
            return assert!((1..=lines).contains(&error.line), "line {} of {lines}", error.line);
        }
    };
    let table: Table = text.parse().expect("a policy is a document");
    says_all_of(&table, &policy);
    assert_eq!(parse(&written(&policy)).expect("what was read can be written"), policy);

    // One more rule at the end is there, or is refused, but never lost.
    let closed = format!("{text}\n[[rule]]\ndeny = \"*\"\n");
    if let Ok(closed) = parse(&closed) {
        assert_eq!(closed.base, policy.base);
        assert_eq!(closed.rules.len(), policy.rules.len() + 1);
        assert_eq!(closed.rules.last(), Some(&(Action::Deny, EgressRule::any())));
    }
}

/// Everything in the document is in the policy, and the other way round.
fn says_all_of(table: &Table, policy: &EgressPolicy) {
    let base = match policy.base {
        PolicyBase::None => "none",
        PolicyBase::Public => "public",
    };
    assert_eq!(table.get("base").and_then(Value::as_str), Some(base));
    assert!(table.keys().all(|key| key == "base" || key == "rule"), "a key was passed over: {table}");
    let rules = table.get("rule").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    assert_eq!(rules.len(), policy.rules.len(), "a rule was passed over: {table}");
    for (written, (action, rule)) in rules.iter().zip(&policy.rules) {
        let action = match action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let target = match &rule.target {
            Target::Any => "*",
            Target::Name(text) | Target::Network(text) => text,
        };
        assert_eq!(written.get(action).and_then(Value::as_str), Some(target));
        let keys = 1
            + usize::from(rule.ports.is_some())
            + usize::from(rule.protocol.is_some())
            + usize::from(written.get("private").is_some());
        assert_eq!(written.as_table().map(Table::len), Some(keys), "a key was passed over: {written}");
        let private = written.get("private").and_then(Value::as_bool) == Some(true);
        assert_eq!(rule.private_addresses, private);
        assert!(rule.ports.as_ref().is_none_or(|ports| *ports.start() > 0 && ports.start() <= ports.end()));
    }
}

/// A file that says the same.
fn written(policy: &EgressPolicy) -> String {
    let base = if policy.base == PolicyBase::None { "none" } else { "public" };
    let mut text = format!("base = \"{base}\"\n");
    for (action, rule) in &policy.rules {
        let action = if *action == Action::Allow { "allow" } else { "deny" };
        let target = match &rule.target {
            Target::Any => "*",
            Target::Name(text) | Target::Network(text) => text,
        };
        text += &format!("[[rule]]\n{action} = \"{target}\"\n");
        if let Some(ports) = &rule.ports {
            text += &format!("ports = \"{}-{}\"\n", ports.start(), ports.end());
        }
        if let Some(protocol) = rule.protocol {
            let name = match protocol {
                EgressProtocol::Tcp => "tcp",
                EgressProtocol::Udp => "udp",
                EgressProtocol::Icmp => "icmp",
            };
            text += &format!("protocol = \"{name}\"\n");
        }
        if rule.private_addresses {
            text += "private = true\n";
        }
    }
    text
}
