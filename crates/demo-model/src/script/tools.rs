//! From a step to a call of what the agent offers: which tool, and arguments that fit its schema.

use serde_json::{Map, Value, json};

use super::Step;
use super::program::shell_quote;
use super::schema::{self, required, type_is};
use crate::conversation::{Arguments, Conversation, Tool, ToolCall, ToolInput};

/// Names of write tools without `_` and `-`, lower case, the most usual first.
const WRITE: &[&str] =
    &["write", "writefile", "createfile", "filewrite", "fswrite", "writetofile", "savefile"];
const SHELL: &[&str] = &[
    "bash",
    "shell",
    "shellcommand",
    "execcommand",
    "runshellcommand",
    "runcommand",
    "runterminalcmd",
    "runinterminal",
    "executecommand",
    "terminal",
    "execute",
    "localshell",
];
/// Claude keeps the tools of MCP servers behind a search until they are asked for.
const SEARCH: &str = "ToolSearch";

const PATH_KEYS: &[&str] = &[
    "path",
    "file_path",
    "filePath",
    "filepath",
    "absolute_path",
    "absolutePath",
    "target_file",
    "filename",
    "file_name",
    "file",
    "uri",
];
const CONTENT_KEYS: &[&str] =
    &["content", "contents", "file_text", "file_content", "fileContent", "text", "data", "body", "code_edit"];
const COMMAND_KEYS: &[&str] = &["command", "cmd", "commands", "script", "shell_command", "input", "code"];

/// Codex runs a command outside of its sandbox where its model asks for that and its user agrees.
const ESCALATED: &str = "require_escalated";

/// Why a step can't be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("the agent offers neither a write tool nor a shell tool")]
    WriteToolMissing,
    #[error("the agent offers no shell tool")]
    ShellToolMissing,
    #[error("the agent offers no tool of that name")]
    ToolUnknown,
    #[error("the schema of the agent's tool has no place for what the step needs")]
    NoPlace,
}

/// The call that carries out this step.
pub(super) fn call(step: &Step, conversation: &Conversation) -> Result<ToolCall, Unfit> {
    match step {
        Step::Write { path, content } => write(path, content, conversation),
        Step::Run { command } => {
            let tool = named(&conversation.tools, SHELL).ok_or(Unfit::ShellToolMissing)?;
            shell_call(tool, command, conversation)
        }
        Step::Tool { name, arguments } => {
            let tool = by_name(&conversation.tools, name).ok_or(Unfit::ToolUnknown)?;
            Ok(addressed(tool, direct_arguments(tool, arguments)))
        }
        Step::Search { name } => {
            let tool = search_tool(conversation).ok_or(Unfit::ToolUnknown)?;
            let arguments = json!({ "query": format!("select:{name}"), "max_results": 5 });
            Ok(addressed(tool, direct_arguments(tool, &arguments)))
        }
    }
}

/// Whether a tool of this name must be searched for before it can be called.
pub(super) fn is_deferred(name: &str, conversation: &Conversation) -> bool {
    by_name(&conversation.tools, name).is_none() && search_tool(conversation).is_some()
}

/// The call of a tool that was searched for: the agent knows it although the request doesn't list it.
pub(super) fn unlisted_call(name: &str, arguments: &Value) -> ToolCall {
    let arguments = Arguments::Object(arguments.as_object().cloned().unwrap_or_default());
    ToolCall { name: name.to_owned(), namespace: None, arguments }
}

pub(super) fn is_search(tool_name: &str) -> bool {
    tool_name == SEARCH
}

fn search_tool(conversation: &Conversation) -> Option<&Tool> {
    conversation.tools.iter().find(|t| t.name == SEARCH)
}

fn write(path: &str, content: &str, conversation: &Conversation) -> Result<ToolCall, Unfit> {
    let Some(tool) = named(&conversation.tools, WRITE) else {
        let shell = named(&conversation.tools, SHELL).ok_or(Unfit::WriteToolMissing)?;
        return shell_call(shell, &write_command(path, content), conversation);
    };
    let schema = schema_of(tool);
    let path_key = key(schema, PATH_KEYS).ok_or(Unfit::NoPlace)?;
    let content_key = key(schema, CONTENT_KEYS).ok_or(Unfit::NoPlace)?;
    let mut arguments = Map::new();
    let path =
        if demands_absolute(schema, &path_key) { absolute(path, conversation) } else { path.to_owned() };
    arguments.insert(path_key, Value::String(path));
    arguments.insert(content_key, Value::String(content.to_owned()));
    fill_required(schema, &mut arguments, "Write a file for the demo model's script");
    Ok(addressed(tool, Arguments::Object(arguments)))
}

/// A file written by a shell, byte for byte, for agents that offer nothing else.
fn write_command(path: &str, content: &str) -> String {
    let file = if path.starts_with('-') { format!("./{path}") } else { path.to_owned() };
    let write = format!("printf '%s' {} > {}", shell_quote(content), shell_quote(&file));
    match file.rsplit_once('/') {
        Some((directory, _)) if !directory.is_empty() && directory != "." => {
            format!("mkdir -p {} && {write}", shell_quote(directory))
        }
        _ => write,
    }
}

fn shell_call(tool: &Tool, command: &str, conversation: &Conversation) -> Result<ToolCall, Unfit> {
    let ToolInput::Schema(schema) = &tool.input else {
        return Ok(addressed(tool, Arguments::Text(command.to_owned())));
    };
    let key = key(schema, COMMAND_KEYS).ok_or(Unfit::NoPlace)?;
    let value = if type_is(&schema["properties"][key.as_str()], "array") {
        json!(["sh", "-c", command])
    } else {
        json!(command)
    };
    let mut arguments = Map::new();
    arguments.insert(key, value);
    let shown: String = command.chars().take(60).collect();
    fill_required(schema, &mut arguments, &format!("Run for the demo model's script: {shown}"));
    if may_only_read(conversation) && offers(schema, "sandbox_permissions", ESCALATED) {
        arguments.insert("sandbox_permissions".to_owned(), json!(ESCALATED));
        arguments
            .insert("justification".to_owned(), json!(format!("Run for the demo model's script: {shown}")));
    }
    Ok(addressed(tool, Arguments::Object(arguments)))
}

/// Codex tells its model in which sandbox commands run, and that one that needs more has to ask for it.
fn may_only_read(conversation: &Conversation) -> bool {
    conversation.system.contains("`sandbox_mode` is `read-only`")
}

/// Whether a parameter takes this value.
fn offers(schema: &Value, parameter: &str, value: &str) -> bool {
    let values = schema["properties"][parameter]["enum"].as_array();
    values.is_some_and(|values| values.iter().any(|known| known == value))
}

fn addressed(tool: &Tool, arguments: Arguments) -> ToolCall {
    ToolCall { name: tool.name.clone(), namespace: tool.namespace.clone(), arguments }
}

fn direct_arguments(tool: &Tool, arguments: &Value) -> Arguments {
    match (&tool.input, arguments) {
        (ToolInput::Text, Value::Object(map)) => {
            let text = map.get("input").and_then(Value::as_str);
            Arguments::Text(text.map_or_else(|| arguments.to_string(), str::to_owned))
        }
        (_, Value::Object(map)) => Arguments::Object(map.clone()),
        _ => Arguments::Object(Map::new()),
    }
}

fn schema_of(tool: &Tool) -> &Value {
    match &tool.input {
        ToolInput::Schema(schema) => schema,
        ToolInput::Text => &Value::Null,
    }
}

/// The first tool whose name is in this list; the list's order decides.
fn named<'a>(tools: &'a [Tool], names: &[&str]) -> Option<&'a Tool> {
    let plain = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    names.iter().find_map(|wanted| tools.iter().find(|t| plain(&t.name) == *wanted))
}

/// The tool of this very name, else the only one of an MCP server that ends in it (`mcp__server__NAME`, `server_NAME`).
fn by_name<'a>(tools: &'a [Tool], name: &str) -> Option<&'a Tool> {
    if let Some(tool) = tools.iter().find(|t| t.name == name) {
        return Some(tool);
    }
    // Codex names the group of a server `mcp__SERVER`, with or without the separator at its end.
    let joined = |t: &&Tool| {
        let rest = t.namespace.as_ref().and_then(|namespace| name.strip_prefix(namespace.as_str()));
        rest.is_some_and(|rest| rest.strip_prefix("__").unwrap_or(rest) == t.name)
    };
    if let Some(tool) = tools.iter().find(joined) {
        return Some(tool);
    }
    let ends = |t: &&Tool| t.name.strip_suffix(name).is_some_and(|head| head.ends_with(['_', '.', '-', '/']));
    let mut matching = tools.iter().filter(ends);
    let tool = matching.next()?;
    matching.next().is_none().then_some(tool)
}

/// The parameter for a purpose: a known name, else a required string whose name holds one.
fn key(schema: &Value, known: &[&str]) -> Option<String> {
    let properties = schema["properties"].as_object()?;
    if let Some(name) = known.iter().find(|name| properties.contains_key(**name)) {
        return Some((*name).to_owned());
    }
    let required = required(schema);
    required
        .into_iter()
        .find(|name| known.iter().any(|k| name.to_ascii_lowercase().contains(k)))
        .map(str::to_owned)
}

/// Gives every other required parameter a harmless value of its type.
fn fill_required(schema: &Value, arguments: &mut Map<String, Value>, description: &str) {
    for name in required(schema) {
        if !arguments.contains_key(name) {
            arguments.insert(name.to_owned(), schema::instance(&schema["properties"][name], description));
        }
    }
}

fn demands_absolute(schema: &Value, key: &str) -> bool {
    let described = schema["properties"][key]["description"].as_str().unwrap_or_default();
    // "absolute or relative" demands nothing.
    let described = described.to_ascii_lowercase();
    key.to_ascii_lowercase().contains("absolute")
        || described.contains("absolute")
            && !described.contains("or relative")
            && !described.contains("relative or")
}

/// The path below the working directory the agent states, else as it is.
fn absolute(path: &str, conversation: &Conversation) -> String {
    if path.starts_with('/') || path.starts_with('~') {
        return path.to_owned();
    }
    let texts = conversation.turns.iter().flat_map(|turn| match turn {
        crate::conversation::Turn::User(blocks) => blocks.as_slice(),
        _ => &[],
    });
    let stated = std::iter::once(&conversation.system).chain(texts).find_map(|text| working_directory(text));
    match stated {
        Some(directory) => {
            format!("{}/{}", directory.trim_end_matches('/'), path.trim_start_matches("./"))
        }
        None => path.to_owned(),
    }
}

/// `Working directory: /x`, `<cwd>/x</cwd>`, `working in the directory: /x`, `Workspace Directories:\n - /x`.
fn working_directory(text: &str) -> Option<&str> {
    const STATES: &[&str] =
        &["working directory", "<cwd>", "cwd:", "in the directory", "workspace directories"];
    /// How far after the words the path may stand.
    const REACH: usize = 48;
    let lower = text.to_ascii_lowercase();
    STATES.iter().find_map(|state| {
        lower.match_indices(state).find_map(|(at, _)| {
            let from = at + state.len();
            let rest = &text[from..];
            let slash = rest.char_indices().take(REACH).find(|(_, c)| *c == '/')?.0;
            let path = &rest[slash..];
            let lead = rest[..slash].chars().next_back();
            let begins = lead.is_none_or(|c| c.is_whitespace() || "`\"'(:>".contains(c));
            let line = path.split(['\n', '\r', '<', '`', '"', '\'', '>']).next()?;
            let line = line.trim_end().trim_end_matches(['.', ',', ')']);
            (begins && !line.is_empty() && !line.starts_with("//")).then_some(line)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_state_their_working_directory_in_many_ways() {
        for (text, expected) in [
            ("Current working directory: /home/user/work\nDate: x", Some("/home/user/work")),
            ("<environment_context>\n  <cwd>/w x</cwd>", Some("/w x")),
            ("I'm currently working in the directory: /w", Some("/w")),
            ("- **Workspace Directories:**\n  - /home/user", Some("/home/user")),
            (" - Primary working directory: /a/b\n", Some("/a/b")),
            ("the working directory is set by the user; and/or not", None),
            ("nothing", None),
        ] {
            assert_eq!(working_directory(text), expected, "{text}");
        }
    }

    #[test]
    fn a_shell_writes_any_bytes() {
        assert_eq!(write_command("a.txt", "x'y\n"), "printf '%s' 'x'\\''y\n' > a.txt");
        assert_eq!(write_command("d/e f/a", ""), "mkdir -p 'd/e f' && printf '%s' '' > 'd/e f/a'");
        assert_eq!(write_command("/a", "x"), "printf '%s' x > /a");
    }
}
