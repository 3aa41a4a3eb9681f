//! Values that fit a JSON schema: for required parameters nobody spoke of, and for answers that must be JSON.

use std::cell::Cell;

use serde_json::{Map, Value, json};

/// Schemas may refer to themselves; nothing an agent asks for is nested deeper.
const DEEPEST: usize = 8;

/// A schema that refers to itself many times over would otherwise grow by its power.
const MOST_VALUES: usize = 1_000;

/// A small value of this schema whose texts are `text`.
pub(super) fn instance(schema: &Value, text: &str) -> Value {
    Maker { root: schema, text, left: Cell::new(MOST_VALUES) }.make(schema, 0)
}

/// Gemini writes types in capitals, and a nullable type is a list.
pub(super) fn type_is(schema: &Value, name: &str) -> bool {
    let eq = |v: &Value| v.as_str().is_some_and(|t| t.eq_ignore_ascii_case(name));
    match &schema["type"] {
        Value::Array(types) => types.iter().any(eq),
        single => eq(single),
    }
}

pub(super) fn required(schema: &Value) -> Vec<&str> {
    schema["required"]
        .as_array()
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

struct Maker<'a> {
    root: &'a Value,
    text: &'a str,
    /// How many values may still be made.
    left: Cell<usize>,
}

impl Maker<'_> {
    fn make(&self, schema: &Value, depth: usize) -> Value {
        let Some(left) = self.left.get().checked_sub(1).filter(|_| depth <= DEEPEST) else {
            return Value::Null;
        };
        self.left.set(left);
        if let Some(fixed) =
            schema.get("const").or_else(|| schema.get("default")).or_else(|| first(schema, "enum"))
        {
            return fixed.clone();
        }
        if let Some(inner) =
            self.referred(schema).or_else(|| first(schema, "anyOf")).or_else(|| first(schema, "oneOf"))
        {
            return self.make(inner, depth + 1);
        }
        if type_is(schema, "string") {
            json!(self.text)
        } else if type_is(schema, "boolean") {
            json!(false)
        } else if type_is(schema, "integer") || type_is(schema, "number") {
            // Generated schemas give the least safe integer as minimum; one is a better number.
            let least = schema.get("minimum").filter(|least| least.as_f64().is_some_and(|least| least > 1.0));
            least.cloned().unwrap_or(json!(1))
        } else if type_is(schema, "array") {
            let wanted = schema["minItems"].as_u64().is_some_and(|least| least > 0);
            if wanted { json!([self.make(&schema["items"], depth + 1)]) } else { json!([]) }
        } else if type_is(schema, "object") || schema["properties"].is_object() {
            let property = |name: &str| (name.to_owned(), self.make(&schema["properties"][name], depth + 1));
            Value::Object(required(schema).into_iter().map(property).collect::<Map<_, _>>())
        } else if type_is(schema, "null") {
            Value::Null
        } else {
            json!(self.text)
        }
    }

    /// The target of a reference within the schema.
    fn referred(&self, schema: &Value) -> Option<&Value> {
        let pointer = schema["$ref"].as_str()?.strip_prefix('#')?;
        self.root.pointer(pointer)
    }
}

fn first<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema.get(key)?.as_array()?.first()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_all_that_is_required_and_nothing_else() {
        let schema = json!({
            "type": "OBJECT",
            "required": ["why", "score", "list", "mode", "inner", "maybe"],
            "properties": {
                "why": {"type": "STRING"}, "score": {"type": "INTEGER", "minimum": 3}, "extra": {"type": "string"},
                "list": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}},
                "mode": {"enum": ["a", "b"]}, "inner": {"type": "object"}, "maybe": {"anyOf": [{"type": "boolean"}]}
            },
            "$defs": {"item": {"type": ["string", "null"]}}
        });
        let expected =
            json!({"why": "x", "score": 3, "list": ["x"], "mode": "a", "inner": {}, "maybe": false});
        assert_eq!(instance(&schema, "x"), expected);
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}});
        assert!(instance(&schema, "x").to_string().len() < 200);
        let names: Vec<String> = (0..30).map(|i| format!("n{i}")).collect();
        let wide = json!({"type": "object", "required": names, "properties": {"n0": {"$ref": "#"}, "n1": {"$ref": "#"}}});
        assert!(instance(&wide, "x").to_string().len() < 50_000);
    }
}
