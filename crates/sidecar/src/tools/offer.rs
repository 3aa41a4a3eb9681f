//! The host tools that a VM is offered: checked once, when the VM is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use agentos_agents::permission::name_fits;
use agentos_proto::v1;
use rmcp::model::JsonObject;
use serde_json::Value;

use super::schema::Schema;
use crate::errors::Failure;

/// From a call to its answer, where the tool says nothing else.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// A typing error must not hold a caller for days.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// Every model's request carries them all.
const MAX_TOOLS: usize = 128;
/// Those without tools are in agents' instructions all the same.
const MAX_KITS: usize = MAX_TOOLS;
const MAX_DESCRIPTION_CHARS: usize = 1024;
/// Of one tool, which are part of its description.
const MAX_EXAMPLES_BYTES: usize = 16 * 1024;
const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Of all tools together: a list of them is written for whoever asks.
const MAX_OFFER_BYTES: usize = 1 << 20;
const MAX_RULES: usize = 128;
const MAX_PATTERN_BYTES: usize = 128;

/// Models take names of up to 64 characters, of which agents use some to say whose tool it is:
/// `mcp__agentos-tools__NAME`.
pub(super) const MAX_NAME_CHARS: usize = 64 - "mcp__agentos-tools__".len();

/// All tools of a VM, by the names that programs in it know them by.
#[derive(Debug)]
pub(crate) struct ToolOffer {
    kits: Vec<Kit>,
    tools: BTreeMap<String, Tool>,
}

#[derive(Debug)]
struct Kit {
    name: String,
    description: String,
}

/// One tool.
pub(crate) struct Tool {
    pub(crate) kit: String,
    pub(crate) name: String,
    /// Whether it may be called.
    pub(crate) allowed: bool,
    /// With its examples.
    pub(crate) description: String,
    pub(crate) input_schema: Arc<JsonObject>,
    pub(crate) timeout: Duration,
    schema: Schema,
    schema_bytes: usize,
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tool").field("kit", &self.kit).field("name", &self.name).finish_non_exhaustive()
    }
}

impl ToolOffer {
    /// Checks what a client offers; none where it offers nothing.
    pub(crate) fn validate(
        kits: Vec<v1::ToolKit>,
        permissions: Option<v1::ToolPermissions>,
    ) -> Result<Option<Self>, Failure> {
        if kits.is_empty() {
            return Ok(None);
        }
        if kits.len() > MAX_KITS {
            let message = format!("a VM has at most {MAX_KITS} tool kits, not {}", kits.len());
            return Err(Failure::invalid("tool_kits", message));
        }
        let count: usize = kits.iter().map(|kit| kit.tools.len()).sum();
        if count > MAX_TOOLS {
            let message = format!("a VM has at most {MAX_TOOLS} host tools, not {count}");
            return Err(Failure::invalid("tool_kits", message));
        }
        let permissions = permissions.unwrap_or_default();
        check_rules(&permissions.rules)?;
        let mut offer = Self { kits: Vec::new(), tools: BTreeMap::new() };
        let mut names = BTreeSet::new();
        for kit in kits {
            check_kit(&kit)?;
            if !names.insert(kit.name.clone()) {
                return Err(refused(&kit.name, "two tool kits have this name"));
            }
            for tool in kit.tools {
                offer.add(&kit.name, tool, &permissions)?;
            }
            offer.kits.push(Kit { name: kit.name, description: kit.description });
        }
        let bytes: usize = offer.tools.values().map(|tool| tool.description.len() + tool.schema_bytes).sum();
        if bytes > MAX_OFFER_BYTES {
            let message = format!(
                "schemas and descriptions of all host tools have {bytes} bytes, of at most {MAX_OFFER_BYTES}"
            );
            return Err(Failure::invalid("tool_kits", message));
        }
        Ok(Some(offer))
    }

    fn add(
        &mut self,
        kit: &str,
        tool: v1::HostTool,
        permissions: &v1::ToolPermissions,
    ) -> Result<(), Failure> {
        let known_as = format!("{kit}_{}", tool.name);
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if tool.name.is_empty() || !tool.name.chars().all(word) {
            return Err(refused(&known_as, "a tool's name is made of letters, digits, '-' and '_'"));
        }
        if known_as.len() > MAX_NAME_CHARS {
            let message = format!("kit and tool have more than {MAX_NAME_CHARS} characters together");
            return Err(refused(&known_as, &message));
        }
        let tool = Tool { allowed: allows(permissions, &known_as), ..Tool::validate(kit, &known_as, tool)? };
        match self.tools.insert(known_as.clone(), tool) {
            None => Ok(()),
            Some(_) => Err(refused(&known_as, "two tools of the kit have this name")),
        }
    }

    pub(crate) fn get(&self, known_as: &str) -> Option<&Tool> {
        self.tools.get(known_as)
    }

    /// The tools that may be called, by name.
    pub(crate) fn allowed(&self) -> impl Iterator<Item = (&str, &Tool)> {
        self.tools.iter().map(|(name, tool)| (name.as_str(), tool)).filter(|(_, tool)| tool.allowed)
    }

    /// What agents are told of it; nothing where they may call nothing.
    pub(crate) fn instructions(&self) -> String {
        let allowed: BTreeSet<&str> = self.allowed().map(|(_, tool)| tool.kit.as_str()).collect();
        if allowed.is_empty() {
            return String::new();
        }
        let mut text = String::from(
            "# Host tools\n\nThe application that runs this machine offers functions of its own. They are tools of the MCP \
             server `agentos-tools`, and of the command of that name: `agentos-tools list` shows them, \
             `agentos-tools describe NAME` what one takes, `agentos-tools call NAME '{\"json\": \"input\"}'` calls it.\n",
        );
        for kit in self.kits.iter().filter(|kit| allowed.contains(kit.name.as_str())) {
            text.push_str(&format!("- `{}_*`: {}\n", kit.name, kit.description));
        }
        text
    }
}

impl Tool {
    fn validate(kit: &str, known_as: &str, tool: v1::HostTool) -> Result<Self, Failure> {
        check_description(known_as, &tool.description)?;
        let timeout = tool.timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            let message = format!("its timeout is not between 1 ms and {} s", MAX_TIMEOUT.as_secs());
            return Err(refused(known_as, &message));
        }
        if tool.input_schema.len() > MAX_SCHEMA_BYTES {
            return Err(refused(known_as, &format!("its schema has more than {MAX_SCHEMA_BYTES} bytes")));
        }
        let schema: Value = serde_json::from_str(&tool.input_schema)
            .map_err(|error| refused(known_as, &format!("its input schema is no JSON: {error}")))?;
        let Value::Object(input_schema) = &schema else {
            return Err(refused(known_as, "its input schema is no JSON object"));
        };
        if input_schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(refused(known_as, "its input schema must be of type object"));
        }
        let input_schema = Arc::new(input_schema.clone());
        let schema = Schema::compile(schema)
            .map_err(|error| refused(known_as, &format!("its input schema is no JSON Schema: {error}")))?;
        let mut made = Self {
            kit: kit.to_owned(),
            name: tool.name,
            description: tool.description,
            allowed: false,
            schema_bytes: tool.input_schema.len(),
            input_schema,
            timeout,
            schema,
        };
        let examples = tool.examples.iter();
        let bytes: usize = examples.map(|example| example.description.len() + example.input.len()).sum();
        if bytes > MAX_EXAMPLES_BYTES {
            return Err(refused(
                known_as,
                &format!("its examples have more than {MAX_EXAMPLES_BYTES} bytes"),
            ));
        }
        for example in tool.examples {
            made.add_example(known_as, &example)?;
        }
        Ok(made)
    }

    /// MCP has no place for examples but the description.
    fn add_example(&mut self, known_as: &str, example: &v1::ToolExample) -> Result<(), Failure> {
        let refuse = |reason: &str| refused(known_as, &format!("its example {}: {reason}", example.input));
        check_description(known_as, &example.description)?;
        let input: Value =
            serde_json::from_str(&example.input).map_err(|error| refuse(&error.to_string()))?;
        self.check(&input).map_err(|reason| refuse(&reason))?;
        let line = format!("\nExample ({}): {}", example.description, example.input);
        self.description.push_str(&line);
        Ok(())
    }

    /// Whether an input fits the schema, or what is wrong with it.
    pub(crate) fn check(&self, input: &Value) -> Result<(), String> {
        self.schema.check(input)
    }
}

/// Of rules that fit, the last one decides.
fn allows(permissions: &v1::ToolPermissions, known_as: &str) -> bool {
    let fitting = permissions.rules.iter().rev().find(|rule| name_fits(&rule.pattern, known_as));
    !fitting.map_or(permissions.denied, |rule| rule.denied)
}

fn check_rules(rules: &[v1::ToolRule]) -> Result<(), Failure> {
    if rules.len() > MAX_RULES {
        let message = format!("there are at most {MAX_RULES} rules for host tools, not {}", rules.len());
        return Err(Failure::invalid("tool_permissions", message));
    }
    if rules.iter().any(|rule| rule.pattern.len() > MAX_PATTERN_BYTES) {
        let message = format!("a rule for host tools has a pattern of at most {MAX_PATTERN_BYTES} bytes");
        return Err(Failure::invalid("tool_permissions", message));
    }
    Ok(())
}

fn check_kit(kit: &v1::ToolKit) -> Result<(), Failure> {
    let mut name = kit.name.chars();
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.next().is_some_and(|c| c.is_ascii_lowercase()) || !name.all(word) {
        let reason = "a kit's name is made of lower-case letters, digits and '-', a letter first";
        return Err(refused(&kit.name, reason));
    }
    if kit.name.len() > MAX_NAME_CHARS {
        let reason = format!("a kit's name has more than {MAX_NAME_CHARS} characters");
        return Err(refused(&kit.name, &reason));
    }
    check_description(&kit.name, &kit.description)
}

fn check_description(of: &str, description: &str) -> Result<(), Failure> {
    match description.chars().count() {
        0 => Err(refused(of, "a description is missing: models choose by it")),
        count if count > MAX_DESCRIPTION_CHARS => {
            Err(refused(of, &format!("a description has more than {MAX_DESCRIPTION_CHARS} characters")))
        }
        _ => Ok(()),
    }
}

fn refused(of: &str, reason: &str) -> Failure {
    Failure::invalid(of, format!("Host tool {of}: {reason}"))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// `clock_wait`, whose input is `{"for": STRING}`, and `clock_stop`, which takes nothing.
    pub(in crate::tools) fn offer(permissions: v1::ToolPermissions) -> ToolOffer {
        ToolOffer::validate(vec![kit()], Some(permissions)).unwrap().unwrap()
    }

    fn kit() -> v1::ToolKit {
        let schema = json!({
            "type": "object", "properties": { "for": { "type": "string" } }, "required": ["for"],
        });
        v1::ToolKit {
            name: "clock".into(),
            description: "Time.".into(),
            tools: vec![
                v1::HostTool {
                    name: "wait".into(),
                    description: "Waits.".into(),
                    input_schema: schema.to_string(),
                    examples: vec![v1::ToolExample {
                        description: "a while".into(),
                        input: r#"{"for":"a"}"#.into(),
                    }],
                    timeout_ms: Some(1_000),
                },
                v1::HostTool {
                    name: "stop".into(),
                    description: "Stops.".into(),
                    input_schema: r#"{"type":"object"}"#.into(),
                    ..Default::default()
                },
            ],
        }
    }

    #[test]
    fn what_is_wrong_with_an_offer_is_said_by_name() {
        type Spoil = fn(&mut v1::ToolKit);
        let cases: [(Spoil, &str); 17] = [
            (|kit| kit.name = "Clock".into(), "lower-case"),
            (|kit| kit.name = String::new(), "lower-case"),
            (|kit| kit.name = "a_b".into(), "lower-case"),
            (|kit| kit.description.clear(), "description is missing"),
            (|kit| kit.tools[0].name = "wait for".into(), "made of letters"),
            (|kit| kit.tools[0].name = "x".repeat(60), "more than 44 characters"),
            (|kit| kit.tools[0].description = "x".repeat(1_025), "more than 1024"),
            (|kit| kit.tools[0].timeout_ms = Some(0), "timeout"),
            (|kit| kit.tools[0].timeout_ms = Some(u64::MAX), "timeout"),
            (|kit| kit.tools[0].input_schema = "{".into(), "no JSON"),
            (|kit| kit.tools[0].input_schema = r#"{"type":"string"}"#.into(), "type object"),
            (
                |kit| kit.tools[0].input_schema = r#"{"type":"object","minProperties":"x"}"#.into(),
                "no JSON Schema",
            ),
            (
                |kit| kit.tools[0].input_schema = r#"{"type":"object","$ref":"file:///etc/x"}"#.into(),
                "no JSON Schema",
            ),
            (|kit| kit.tools[0].examples[0].input = r#"{"for":1}"#.into(), "its example"),
            (
                |kit| kit.tools[0].examples = vec![kit.tools[0].examples[0].clone(); 1_000],
                "its examples have",
            ),
            (|kit| kit.name = "x".repeat(45), "a kit's name has more than 44"),
            (|kit| kit.tools = vec![kit.tools[0].clone(); MAX_TOOLS + 1], "at most 128 host tools, not 129"),
        ];
        for (spoil, expected) in cases {
            let mut kit = kit();
            spoil(&mut kit);
            let refused = ToolOffer::validate(vec![kit], None).unwrap_err();
            assert!(refused.message().contains(expected), "{expected}: {}", refused.message());
        }
        let twice = ToolOffer::validate(vec![kit(), kit()], None).unwrap_err();
        assert!(twice.message().contains("two tool kits"), "{}", twice.message());
        let empty = v1::ToolKit { tools: Vec::new(), ..kit() };
        let many = ToolOffer::validate(vec![empty; MAX_KITS + 1], None).unwrap_err();
        assert!(many.message().contains("at most 128 tool kits, not 129"), "{}", many.message());
        let mut large = kit();
        large.tools[0].input_schema = format!(r#"{{"type":"object","title":"{}"}}"#, "x".repeat(60_000));
        large.tools[0].examples.clear();
        large.tools =
            (0..20).map(|at| v1::HostTool { name: format!("t{at}"), ..large.tools[0].clone() }).collect();
        let large = ToolOffer::validate(vec![large], None).unwrap_err();
        assert!(large.message().contains("of at most 1048576"), "{}", large.message());
        assert!(ToolOffer::validate(Vec::new(), None).unwrap().is_none());
    }

    #[test]
    fn of_rules_that_fit_the_last_one_decides() {
        let rule = |denied, pattern: &str| v1::ToolRule { denied, pattern: pattern.into() };
        let rules = vec![rule(false, "clock_*"), rule(true, "*_wait")];
        for denied in [true, false] {
            let offer = offer(v1::ToolPermissions { denied, rules: rules.clone() });
            assert!(offer.get("clock_stop").unwrap().allowed && !offer.get("clock_wait").unwrap().allowed);
            assert_eq!(offer.allowed().map(|(name, _)| name).collect::<Vec<_>>(), ["clock_stop"]);
        }
        let nothing = offer(v1::ToolPermissions { denied: true, rules: Vec::new() });
        assert!(!nothing.get("clock_stop").unwrap().allowed);
        assert!(
            nothing.instructions().is_empty()
                && offer(Default::default()).instructions().contains("`clock_*`")
        );
        for (rules, expected) in [
            (vec![rule(true, "*"); MAX_RULES + 1], "at most 128 rules"),
            (vec![rule(true, &"x".repeat(MAX_PATTERN_BYTES + 1))], "at most 128 bytes"),
        ] {
            let refused = ToolOffer::validate(vec![kit()], Some(v1::ToolPermissions { denied: true, rules }));
            let refused = refused.unwrap_err();
            assert!(refused.message().contains(expected), "{}", refused.message());
        }
    }

    #[test]
    fn an_input_is_held_against_the_schema() {
        let offer = offer(Default::default());
        let wait = offer.get("clock_wait").unwrap();
        wait.check(&json!({ "for": "ever" })).unwrap();
        let wrong = wait.check(&json!({ "for": 1 })).unwrap_err();
        assert!(wrong.contains("/for") && wrong.contains("string"), "{wrong}");
        assert!(wait.description.ends_with(r#"Example (a while): {"for":"a"}"#), "{}", wait.description);
    }
}
