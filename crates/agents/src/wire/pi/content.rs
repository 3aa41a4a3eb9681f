//! A prompt's content blocks, as ACP has them, turned into what pi takes: one text and some images.

use serde_json::{Value, json};

/// The text and images of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PiPrompt {
    pub(super) message: String,
    pub(super) images: Vec<Value>,
}

/// Turns content blocks into a prompt for pi.
pub(super) fn for_pi(blocks: &[Value]) -> Result<PiPrompt, String> {
    let mut parts: Vec<String> = Vec::new();
    let mut images = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let kind = block["type"].as_str().unwrap_or("none");
        match kind {
            "text" => parts.push(field(block, index, "text", "text")?.to_owned()),
            "image" => {
                let data = field(block, index, "image", "data")?;
                let mime = field(block, index, "image", "mimeType")?;
                images.push(json!({ "type": "image", "data": data, "mimeType": mime }));
            }
            "resource_link" => parts.push(field(block, index, "resource_link", "uri")?.to_owned()),
            "resource" => {
                let resource = &block["resource"];
                let uri = field(resource, index, "resource", "uri")?;
                let text = field(resource, index, "resource", "text")?;
                parts.push(format!("<resource uri=\"{uri}\">\n{text}\n</resource>"));
            }
            other => return Err(format!("pi takes no content of type {other} (block {index})")),
        }
    }
    let message = parts.join("\n");
    if message.trim().is_empty() && images.is_empty() {
        return Err("the prompt is empty".to_owned());
    }
    Ok(PiPrompt { message, images })
}

fn field<'a>(block: &'a Value, index: usize, kind: &str, name: &str) -> Result<&'a str, String> {
    block[name].as_str().ok_or_else(|| format!("content block {index} of type {kind} lacks {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_resources_and_images_become_one_prompt() {
        let blocks = [
            json!({ "type": "text", "text": "look at" }),
            json!({ "type": "resource_link", "uri": "file:///work/a.rs", "name": "a.rs" }),
            json!({ "type": "resource", "resource": { "uri": "x:1", "text": "body" } }),
            json!({ "type": "image", "data": "aGk=", "mimeType": "image/png" }),
        ];
        let prompt = for_pi(&blocks).unwrap();
        assert_eq!(prompt.message, "look at\nfile:///work/a.rs\n<resource uri=\"x:1\">\nbody\n</resource>");
        assert_eq!(prompt.images, [json!({ "type": "image", "data": "aGk=", "mimeType": "image/png" })]);
    }

    #[test]
    fn what_pi_cannot_take_is_refused_by_its_place() {
        for (blocks, error) in [
            (vec![], "the prompt is empty"),
            (vec![json!({ "type": "text", "text": " \n" })], "the prompt is empty"),
            (vec![json!({ "type": "text" })], "content block 0 of type text lacks text"),
            (vec![json!({ "type": "audio", "data": "" })], "pi takes no content of type audio (block 0)"),
            (vec![json!(7)], "pi takes no content of type none (block 0)"),
            (
                vec![json!({ "type": "resource", "resource": { "uri": "x", "blob": "" } })],
                "content block 0 of type resource lacks text",
            ),
        ] {
            assert_eq!(for_pi(&blocks).unwrap_err(), error);
        }
    }
}
