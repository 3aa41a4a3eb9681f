//! The JSON Schema of a tool's input: what is compiled when the VM is made, and held against what its programs say.
//!
//! Who writes the schema is trusted, who writes the input is not. A schema that refers to itself would be followed as deep
//! as the input goes, and where it has two ways on at each step, twice as often with every step: what a check costs would
//! be up to the guest. Such schemas are refused. Of others a check costs at most as much as input and schema are large,
//! multiplied, in time and, where nothing fits, in memory; that product is bounded.

use std::collections::HashMap;
use std::error::Error;

use boon::{CompileError, Compiler, Draft, SchemaIndex, Schemas, UrlLoader, ValidationError};
use percent_encoding::percent_decode_str;
use serde_json::Value;

/// What is wrong with an input, place by place: more of it helps no model.
const MAX_COMPLAINTS: usize = 10;
/// Complaints quote what they are about.
const MAX_COMPLAINT_CHARS: usize = 300;

/// References are followed one inside the other, here and where an input is checked.
const MAX_REFERENCES: usize = 32;

/// Values of the input times values of the schema: tens of milliseconds and of megabytes at the worst.
const MAX_COST: usize = 250_000;

/// Why a schema can't be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error(transparent)]
    Compile(#[from] Box<CompileError>),
    #[error("it refers to itself at {0}, so that an input could be checked for ever")]
    Recursive(String),
    #[error("its references lead from one to the next more than {MAX_REFERENCES} times")]
    Deep,
    #[error("with what its references lead to it has more than {MAX_COST} values")]
    Large,
    #[error("it embeds another schema, {0}")]
    Embedded(String),
    #[error("it refers to {0}: a reference has to be a place in the schema, such as #/$defs/NAME")]
    Reference(String),
}

/// A compiled schema.
pub(super) struct Schema {
    schemas: Schemas,
    root: SchemaIndex,
    size: usize,
}

/// A schema is whole: what it refers to elsewhere is not fetched, neither from files nor from the network.
struct NothingElsewhere;

impl UrlLoader for NothingElsewhere {
    fn load(&self, _: &str) -> Result<Value, Box<dyn Error>> {
        Err("a tool's schema can't refer to other documents".into())
    }
}

impl Schema {
    pub(super) fn compile(schema: Value) -> Result<Self, SchemaError> {
        const PLACE: &str = "urn:agentos:tool";
        let mut measure = Measure { schema: &schema, way: vec!["#".to_owned()], known: HashMap::new() };
        let size = measure.size(&schema)?;
        if size > MAX_COST {
            return Err(SchemaError::Large);
        }
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.enable_format_assertions();
        compiler.use_loader(Box::new(NothingElsewhere));
        compiler.add_resource(PLACE, schema).map_err(Box::new)?;
        let mut schemas = Schemas::new();
        let root = compiler.compile(PLACE, &mut schemas).map_err(Box::new)?;
        Ok(Self { schemas, root, size })
    }

    /// Whether an input fits, or what is wrong with it.
    pub(super) fn check(&self, input: &Value) -> Result<(), String> {
        let (values, most) = (values(input), MAX_COST / self.size);
        if values > most {
            return Err(format!("it has {values} values, and for a schema of this size at most {most}"));
        }
        self.schemas.validate(input, self.root).map_err(|error| {
            let mut complaints = Vec::new();
            complain(&error, &mut complaints);
            complaints.join("; ")
        })
    }
}

/// Puts what is wrong in the end, place by place; what is around it only says that something in there is.
fn complain(error: &ValidationError<'_, '_>, complaints: &mut Vec<String>) {
    if complaints.len() == MAX_COMPLAINTS {
        return;
    }
    match &error.causes[..] {
        [] => {
            let complaint = format!("at '{}': {}", error.instance_location, error.kind);
            complaints.push(shortened(complaint));
        }
        causes => causes.iter().for_each(|cause| complain(cause, complaints)),
    }
}

/// With its beginning and its end, which say where and what.
fn shortened(complaint: String) -> String {
    let count = complaint.chars().count();
    if count <= MAX_COMPLAINT_CHARS {
        return complaint;
    }
    let half = MAX_COMPLAINT_CHARS / 2;
    let begin = complaint.chars().take(half);
    begin.chain(['…']).chain(complaint.chars().skip(count - half)).collect()
}

/// Measures a schema, the way to where it is in mind: a reference that leads back to it goes round for ever.
struct Measure<'a> {
    schema: &'a Value,
    way: Vec<String>,
    /// Places that were referred to, and how large they are.
    known: HashMap<String, usize>,
}

impl<'a> Measure<'a> {
    /// How many values there are, what references lead to counted as often as they do.
    fn size(&mut self, part: &'a Value) -> Result<usize, SchemaError> {
        let mut size = 1_usize;
        match part {
            Value::Array(parts) => {
                for part in parts {
                    size = size.saturating_add(self.size(part)?);
                }
            }
            Value::Object(members) => {
                for (name, value) in members {
                    let of_value = match (name.as_str(), value) {
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => self.enter(to)?,
                        // References below it would be looked up in another place than here.
                        ("$id", Value::String(id)) if !std::ptr::eq(part, self.schema) => {
                            return Err(SchemaError::Embedded(id.clone()));
                        }
                        _ => self.size(value)?,
                    };
                    size = size.saturating_add(of_value);
                }
            }
            _ => {}
        }
        Ok(size)
    }

    fn enter(&mut self, to: &str) -> Result<usize, SchemaError> {
        if self.way.iter().any(|place| place == to) {
            return Err(SchemaError::Recursive(to.to_owned()));
        }
        if let Some(size) = self.known.get(to) {
            return Ok(*size);
        }
        if self.way.len() > MAX_REFERENCES {
            return Err(SchemaError::Deep);
        }
        let pointer = to.strip_prefix('#').map(|pointer| percent_decode_str(pointer).decode_utf8_lossy());
        let part = pointer.and_then(|pointer| self.schema.pointer(&pointer));
        let part = part.ok_or_else(|| SchemaError::Reference(to.to_owned()))?;
        self.way.push(to.to_owned());
        let size = self.size(part)?;
        self.way.pop();
        self.known.insert(to.to_owned(), size);
        Ok(size)
    }
}

/// How many values there are in an input, itself counted.
fn values(input: &Value) -> usize {
    1 + match input {
        Value::Array(items) => items.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_that_goes_round_is_refused_and_one_that_only_says_a_thing_once_is_not() {
        let object = |properties: Value| json!({ "type": "object", "properties": properties });
        let mut twice = object(json!({ "a": { "$ref": "#/$defs/a" }, "b": { "$ref": "#/$defs/a" } }));
        twice["$defs"] = json!({ "a": { "$ref": "#/$defs/%74ext" }, "text": { "type": "string" } });
        let schema = Schema::compile(twice.clone()).unwrap();
        schema.check(&json!({ "a": "x" })).unwrap();
        schema.check(&json!({ "b": 1 })).unwrap_err();
        Schema::compile(object(json!({ "$ref": { "type": "string" } }))).unwrap();

        twice["$defs"]["text"] = json!({ "anyOf": [{ "$ref": "#/$defs/a" }, { "type": "string" }] });
        for schema in [
            twice,
            json!({ "type": "object", "$ref": "#" }),
            object(json!({ "not": { "$ref": "#" } })),
            object(json!({ "a": { "not": { "$ref": "#/properties/a" } } })),
            object(json!({ "a": { "$dynamicRef": "#" } })),
        ] {
            let refused = Schema::compile(schema).err().unwrap();
            assert!(matches!(refused, SchemaError::Recursive(_)), "{refused}");
        }
        let chain = (0..2000).map(|at| (format!("{at}"), json!({ "$ref": format!("#/$defs/{}", at + 1) })));
        let mut deep = object(json!({ "a": { "$ref": "#/$defs/0" } }));
        deep["$defs"] = Value::Object(chain.collect());
        assert!(matches!(Schema::compile(deep).err(), Some(SchemaError::Deep)));
        for reference in ["#there", "file:///etc/x", "#/nowhere"] {
            let refused = Schema::compile(object(json!({ "a": { "$ref": reference } }))).err().unwrap();
            assert!(matches!(refused, SchemaError::Reference(_)), "{refused}");
        }
    }

    #[test]
    fn what_a_check_costs_is_bounded_by_the_input_and_the_schema_together() {
        let choice = |literals: usize| {
            let each: Vec<Value> = (0..literals).map(|at| json!({ "const": at })).collect();
            json!({ "type": "object", "properties": { "a": { "items": { "anyOf": each } } } })
        };
        let zeros = |count: usize| json!({ "a": vec!["0"; count] });
        let schema = Schema::compile(choice(100)).unwrap();
        let wrong = schema.check(&zeros(1_000)).unwrap_err();
        assert!(wrong.contains("value must be 0"), "{wrong}");
        let refused = schema.check(&zeros(10_000)).unwrap_err();
        assert!(refused.contains("it has 10002 values"), "{refused}");

        // Each of them is twice the next one.
        let twice = |at: usize| json!({ "$ref": format!("#/$defs/{at}") });
        let doubling = (0..30).map(|at| (at.to_string(), json!({ "anyOf": [twice(at + 1), twice(at + 1)] })));
        let mut fan = json!({ "type": "object", "properties": { "a": { "$ref": "#/$defs/0" } } });
        fan["$defs"] = Value::Object(doubling.chain([("30".to_owned(), json!({ "const": 1 }))]).collect());
        assert!(matches!(Schema::compile(fan).err(), Some(SchemaError::Large)));

        let mut embedded = choice(1);
        embedded["$id"] = json!("https://example.com/whole");
        Schema::compile(embedded.clone()).unwrap();
        embedded["$defs"] = json!({ "x": { "$id": "x", "type": "string" } });
        assert!(matches!(Schema::compile(embedded).err(), Some(SchemaError::Embedded(_))));
    }

    #[test]
    fn formats_are_checked_and_complaints_are_short() {
        let schema =
            json!({ "type": "object", "properties": { "day": { "type": "string", "format": "date" } } });
        let schema = Schema::compile(schema).unwrap();
        schema.check(&json!({ "day": "2026-01-31" })).unwrap();
        let wrong = schema.check(&json!({ "day": "x".repeat(100_000) })).unwrap_err();
        assert!(wrong.contains("/day") && wrong.contains("date"), "{wrong}");
        assert!(wrong.chars().count() <= MAX_COMPLAINT_CHARS + 1, "{}", wrong.len());
    }
}
