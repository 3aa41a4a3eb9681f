//! The JSON Schema of a tool's input: what is compiled when the VM is made, and held against what its programs say.
//!
//! Who writes the schema is trusted, who writes the input is not. A schema that refers to itself would be followed as deep
//! as the input goes, and where it has two ways on at each step, twice as often with every step: what a check costs would
//! be up to the guest. Such schemas are refused.

use std::error::Error;

use boon::{CompileError, Compiler, Draft, SchemaIndex, Schemas, UrlLoader, ValidationError};
use percent_encoding::percent_decode_str;
use serde_json::Value;

/// What is wrong with an input, place by place: more of it helps no model.
const MAX_COMPLAINTS: usize = 10;

/// References are followed one inside the other, here and where an input is checked.
const MAX_REFERENCES: usize = 32;

/// Why a schema can't be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error(transparent)]
    Compile(#[from] Box<CompileError>),
    #[error("it refers to itself at {0}, so that an input could be checked for ever")]
    Recursive(String),
    #[error("its references lead from one to the next more than {MAX_REFERENCES} times")]
    Deep,
    #[error("it refers to {0}: a reference has to be a place in the schema, such as #/$defs/NAME")]
    Reference(String),
}

/// A compiled schema.
pub(super) struct Schema {
    schemas: Schemas,
    root: SchemaIndex,
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
        References { schema: &schema, way: vec!["#".to_owned()], done: Vec::new() }.follow(&schema)?;
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.use_loader(Box::new(NothingElsewhere));
        compiler.add_resource(PLACE, schema).map_err(Box::new)?;
        let mut schemas = Schemas::new();
        let root = compiler.compile(PLACE, &mut schemas).map_err(Box::new)?;
        Ok(Self { schemas, root })
    }

    /// Whether an input fits, or what is wrong with it.
    pub(super) fn check(&self, input: &Value) -> Result<(), String> {
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
        [] => complaints.push(format!("at '{}': {}", error.instance_location, error.kind)),
        causes => causes.iter().for_each(|cause| complain(cause, complaints)),
    }
}

/// Follows references, the way to where it is in mind: one that leads back to it goes round for ever.
struct References<'a> {
    schema: &'a Value,
    way: Vec<String>,
    done: Vec<String>,
}

impl<'a> References<'a> {
    fn follow(&mut self, part: &'a Value) -> Result<(), SchemaError> {
        match part {
            Value::Array(parts) => parts.iter().try_for_each(|part| self.follow(part)),
            Value::Object(members) => {
                members.iter().try_for_each(|(name, value)| match (name.as_str(), value) {
                    ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => self.enter(to),
                    _ => self.follow(value),
                })
            }
            _ => Ok(()),
        }
    }

    fn enter(&mut self, to: &str) -> Result<(), SchemaError> {
        if self.way.iter().any(|place| place == to) {
            return Err(SchemaError::Recursive(to.to_owned()));
        }
        if self.done.iter().any(|place| place == to) {
            return Ok(());
        }
        if self.way.len() > MAX_REFERENCES {
            return Err(SchemaError::Deep);
        }
        let pointer = to.strip_prefix('#').map(|pointer| percent_decode_str(pointer).decode_utf8_lossy());
        let part = pointer.and_then(|pointer| self.schema.pointer(&pointer));
        let part = part.ok_or_else(|| SchemaError::Reference(to.to_owned()))?;
        self.way.push(to.to_owned());
        self.follow(part)?;
        self.done.extend(self.way.pop());
        Ok(())
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
}
