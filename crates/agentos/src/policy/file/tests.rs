use proptest::prelude::*;

use super::*;
use crate::ErrorKind;
use crate::policy::fuzz;

const WHOLE: &str = r#"
base = "none"

[[rule]]
allow = "*.npmjs.org"
ports = "443"

[[rule]]
allow = "10.0.0.0/8"
ports = "8000-8100"
protocol = "tcp"
private = true

[[rule]]
deny = "*"
ports = 25
"#;

/// The line and the reason, as a user reads them.
fn refusal(text: &str) -> String {
    let error = EgressPolicy::from_toml(text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    error.to_string()
}

#[test]
fn a_policy_is_read_from_a_file() {
    let expected = EgressPolicy::none()
        .allow(EgressRule::name("*.npmjs.org").port(443))
        .allow(
            EgressRule::network("10.0.0.0/8")
                .ports(8000..=8100)
                .protocol(EgressProtocol::Tcp)
                .to_private_addresses(),
        )
        .deny(EgressRule::any().port(25));
    assert_eq!(EgressPolicy::from_toml(WHOLE).unwrap(), expected);
    assert_eq!(EgressPolicy::from_toml("base = \"public\"").unwrap(), EgressPolicy::public());
}

#[test]
fn a_mistake_is_told_with_its_line_and_reason() {
    let rule = |lines: &str| format!("base = \"public\"\n\n[[rule]]\n{lines}\n");
    for (text, line, reason) in [
        ("base = \"pubic\"".to_owned(), 1, "`none` or `public`"),
        ("# nothing\n".to_owned(), 1, "missing field `base`"),
        ("base = \"none\"\nbase = \"public\"".to_owned(), 2, "duplicate key"),
        ("base = \"none\"\nrules = []".to_owned(), 2, "unknown field `rules`"),
        ("base = \"none\"\n[rule]\nallow = \"a\"".to_owned(), 2, "expected a sequence"),
        ("base = \"none\"\n[[rule]\n".to_owned(), 2, ""),
        (rule("alow = \"a.example\""), 4, "unknown field `alow`"),
        (rule("ports = 80"), 3, "neither `allow` nor `deny`"),
        (rule("allow = \"a.example\"\ndeny = \"a.example\""), 5, "both"),
        (rule("allow = \"a b\""), 4, "name holds ' '"),
        (rule("allow = \"a.example:80\""), 4, "name holds ':'"),
        (rule("allow = \"10.0.0.1/8\""), 4, "bits set beyond /8"),
        (rule("allow = \"https://a.example/\""), 4, "a host name or a network is needed and not a URL"),
        (rule("allow = [\"a.example\"]"), 4, "expected a string"),
        (rule("deny = \"a.example\"\nprivate = true"), 5, "denies private addresses anyway"),
        (rule("deny = \"a.example\"\nprotocol = \"icmp\"\nports = 1"), 6, "icmp has no ports"),
        (rule("deny = \"a.example\"\nprotocol = \"TCP\""), 5, "unknown variant `TCP`"),
    ] {
        let message = refusal(&text);
        let start = format!("policy, line {line}: ");
        assert!(message.starts_with(&start) && message.contains(reason), "{text}\n{message}");
    }
    for ports in
        ["0", "-1", "65536", "\"\"", "\"80-\"", "\"-80\"", "\"81-80\"", "\"+80\"", "\"80,81\"", "true"]
    {
        let message = refusal(&rule(&format!("allow = \"a.example\"\nports = {ports}")));
        assert!(message.starts_with("policy, line 5: ") && message.contains("8000-8100"), "{message}");
    }
}

#[test]
fn a_policy_is_read_up_to_a_bound_and_no_further() {
    let mut text = "base = \"none\"\n".to_owned();
    text.push_str(&"#\n".repeat((MAX_BYTES - text.len()) / 2 - 1));
    text.push_str(&" ".repeat(MAX_BYTES - text.len()));
    assert_eq!(EgressPolicy::from_toml(&text).unwrap(), EgressPolicy::none());
    let lines = text.lines().count();
    text.push(' ');
    let message = refusal(&text);
    let start = format!("policy, line {lines}: ");
    assert!(message.starts_with(&start) && message.contains("beyond 1048576 bytes"), "{message}");
}

#[test]
fn private_false_is_what_is_the_case_anyway() {
    let text = "base = \"none\"\n[[rule]]\ndeny = \"a.example\"\nprivate = false";
    let expected = EgressPolicy::none().deny(EgressRule::name("a.example"));
    assert_eq!(EgressPolicy::from_toml(text).unwrap(), expected);
}

/// Lines that a policy file may have, if in another order.
fn any_line() -> impl Strategy<Value = &'static str> {
    prop::sample::select(
        [
            "[[rule]]\nallow = \"*.a.example\"\n",
            "[[rule]]\ndeny = \"*\"\n",
            "[[rule]]\nallow = \"10.0.0.0/8\"\n",
            "rule = [{ allow = \"a.example\", ports = 443 }, { deny = \"::1\" }]\n",
            "ports = \"80-443\"\n",
            "protocol = \"udp\"\n",
            "private = true\n",
            "private = false\n",
            "deny = \"a.example\"\n",
            "base = \"public\"\n",
            "# a word\n",
        ]
        .as_slice(),
    )
}

proptest! {
    /// A file that ends between two lines can't be told from a shorter one, but half a line is no other line.
    #[test]
    fn a_file_that_was_cut_off_has_no_other_base_and_no_other_targets(end in 0..WHOLE.len()) {
        let whole = EgressPolicy::from_toml(WHOLE).unwrap();
        if let Ok(cut) = EgressPolicy::from_toml(&WHOLE[..end]) {
            prop_assert_eq!(cut.base, whole.base);
            let known = cut.rules.iter().zip(&whole.rules);
            for ((action, rule), (whole_action, whole_rule)) in known {
                prop_assert_eq!(action, whole_action);
                prop_assert_eq!(&rule.target, &whole_rule.target);
            }
        }
    }

    #[test]
    fn a_changed_byte_never_opens_the_base(at in 0..WHOLE.len(), byte: u8) {
        let mut bytes = WHOLE.as_bytes().to_vec();
        bytes[at] = byte;
        let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
        if let Ok(policy) = EgressPolicy::from_toml(&text) {
            prop_assert_eq!(policy.base, PolicyBase::None);
            prop_assert!(policy.rules.len() <= 3);
        }
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_line_of_it(
        text in "(base|rule|allow|deny|ports|=|\"|\\[\\[|\\]\\]|none|\\*|[0-9]|-|\n| |é|\\PC){0,40}",
    ) {
        if let Err(error) = parse(&text) {
            prop_assert!((1..=text.lines().count() + 1).contains(&error.line), "{}", error);
        }
        fuzz::policy_file(&text);
    }

    #[test]
    fn nothing_in_a_file_is_passed_over(
        lines in proptest::collection::vec(any_line(), 0..8),
        at: prop::sample::Index,
        byte in proptest::option::of("[\"\\n=*#.a0]"),
    ) {
        let mut text = format!("base = \"none\"\n{}", lines.concat());
        if let Some(byte) = byte {
            let at = at.index(text.len());
            text.replace_range(at..=at, &byte);
        }
        fuzz::policy_file(&text);
    }
}
