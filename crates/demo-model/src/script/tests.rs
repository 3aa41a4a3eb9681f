use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::conversation::{Arguments, Call, Content, Tool, ToolCall, ToolInput};

fn pi_tools() -> Vec<Tool> {
    let tool =
        |name: &str, schema| Tool { name: name.into(), namespace: None, input: ToolInput::Schema(schema) };
    let text = json!({"type": "string"});
    vec![
        tool("read", json!({"type": "object", "required": ["path"], "properties": {"path": text}})),
        tool(
            "bash",
            json!({"type": "object", "required": ["command"], "properties": {"command": text, "timeout": {"type": "number"}}}),
        ),
        tool(
            "write",
            json!({"type": "object", "required": ["path", "content"], "properties": {"path": text, "content": text}}),
        ),
    ]
}

fn asked(prompt: &str) -> Conversation {
    Conversation {
        system: "You are an agent.".into(),
        tools: pi_tools(),
        json_schema: None,
        turns: vec![Turn::User(vec![prompt.into()])],
    }
}

fn answered(mut conversation: Conversation, call: &ToolCall, text: &str, failed: bool) -> Conversation {
    let id = format!("c{}", conversation.turns.len());
    let Arguments::Object(arguments) = &call.arguments else { panic!("an object") };
    let calls = vec![Call { id: id.clone(), name: call.name.clone(), arguments: arguments.clone().into() }];
    conversation.turns.push(Turn::Assistant { text: String::new(), calls });
    let result = ToolResult { call_id: id, name: None, text: text.into(), failed };
    conversation.turns.push(Turn::Results(vec![result]));
    conversation
}

#[track_caller]
fn call_of(reply: Reply) -> ToolCall {
    match reply {
        Reply::Answer(Answer { content: Content::Call(call), .. }) => call,
        other => panic!("expected a call, got {other:?}"),
    }
}

#[track_caller]
fn text_of(reply: Reply) -> String {
    match reply {
        Reply::Answer(Answer { content: Content::Text(text), .. }) => {
            assert!(text.starts_with(MARK), "{text}");
            text
        }
        other => panic!("expected a text, got {other:?}"),
    }
}

fn w(path: &str, content: &str) -> Step {
    Step::Write { path: path.into(), content: content.into() }
}

fn r(command: &str) -> Step {
    Step::Run { command: command.into() }
}

#[track_caller]
fn check(prompt: &str, steps: &[Step]) {
    assert_eq!(prompt::steps(prompt).unwrap_or_default(), steps, "{prompt}");
}

#[test]
fn a_question_about_the_beginning_is_answered_with_it() {
    for question in
        ["What was my first request?", "Which task did I give you first?", "What did I ask you to do first?"]
    {
        let mut conversation = asked("Write \"x\" to first.txt");
        conversation.turns.push(Turn::Assistant { text: "done".into(), calls: Vec::new() });
        conversation.turns.push(Turn::User(vec![question.into()]));
        let text = text_of(decide(&conversation));
        assert!(text.ends_with("Write \"x\" to first.txt"), "{text}");
    }
    let other = text_of(decide(&asked("What is the first prime number?")));
    assert!(other.contains("offline script"), "{other}");
}

#[test]
fn a_command_asks_to_leave_a_sandbox_that_only_reads_where_the_agent_has_a_way_to() {
    let text = json!({"type": "string"});
    let escalation = json!({"type": "string", "enum": ["use_default", "require_escalated"]});
    let schema = json!({
        "type": "object", "required": ["cmd"],
        "properties": {"cmd": text, "sandbox_permissions": escalation, "justification": text},
    });
    let tool = Tool { name: "exec_command".into(), namespace: None, input: ToolInput::Schema(schema) };
    let mut conversation = asked("Run the command `touch x`");
    conversation.tools = vec![tool];
    let asks = |conversation: &Conversation| match call_of(decide(conversation)).arguments {
        Arguments::Object(arguments) => arguments.get("sandbox_permissions").cloned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(asks(&conversation), None);
    conversation.system = "<permissions instructions> `sandbox_mode` is `read-only`: ...".into();
    assert_eq!(asks(&conversation), Some(json!("require_escalated")));
    // An agent without such a way is not told of one.
    conversation.tools = pi_tools();
    assert_eq!(asks(&conversation), None);
}

#[test]
fn a_hello_world_is_a_program_of_the_language_asked_for() {
    let ts = "const greeting: string = \"Hello, world!\";\n\nconsole.log(greeting);\n";
    for prompt in [
        "Write a hello world in TypeScript to hello.ts",
        "write a Hello World program in typescript into the file hello.ts.",
        "Please create a file hello.ts with a hello world in TypeScript",
        "Can you write a hello, world to hello.ts?",
        "Create hello.ts containing a hello world program",
        "Write a TypeScript hello world to `hello.ts`",
        "Create a hello world in TypeScript",
    ] {
        check(prompt, &[w("hello.ts", ts)]);
    }
    for file in
        ["a.js", "a.py", "a.rs", "a.go", "a.c", "a.cpp", "a.sh", "a.java", "a.rb", "a.html", "a.pl", "a.lua"]
    {
        let steps = prompt::steps(&format!("Write a hello world to {file}")).expect(file);
        let [Step::Write { path, content }] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!(path, file);
        assert!(content.contains("Hello, world!") && content.len() > 20, "{content}");
    }
    check("Write a hello world to hello.txt", &[w("hello.txt", "Hello, world!\n")]);
    check("Write hello world to hello.txt", &[w("hello.txt", "hello world")]);
}

#[test]
fn a_file_is_written_with_exactly_the_text_given() {
    check(r#"Write "hello there" to notes.txt"#, &[w("notes.txt", "hello there")]);
    check("write hello to the file /home/user/work/hello.txt", &[w("/home/user/work/hello.txt", "hello")]);
    check(
        r#"Write the text "a, then b. Run it!" to the file "my notes.txt"."#,
        &[w("my notes.txt", "a, then b. Run it!")],
    );
    check("Save 'x y' as out/data", &[w("out/data", "x y")]);
    check("Put “grüße 🎉” into ü.txt", &[w("ü.txt", "grüße 🎉")]);
    check(
        "Create a file foo.txt containing go to the shop and in to it",
        &[w("foo.txt", "go to the shop and in to it")],
    );
    check("Create a file named foo containing the quick fox", &[w("foo", "the quick fox")]);
    check("Create a file foo.txt with the content bar baz", &[w("foo.txt", "bar baz")]);
    check("Create a file foo.txt with the exact content `bar`", &[w("foo.txt", "bar")]);
    check("Create a file called foo.txt that says \"hi\"", &[w("foo.txt", "hi")]);
    check("Create a file containing hello world named foo.txt", &[w("foo.txt", "hello world")]);
    check("Write to foo.txt: some words", &[w("foo.txt", "some words")]);
    check("Create an empty file foo.txt", &[w("foo.txt", "")]);
    check("Write exactly `k=\"v\"` to .env", &[w(".env", "k=\"v\"")]);
    check("Write \"x\" to Makefile", &[w("Makefile", "x")]);
    check("Create foo.txt with content: line one", &[w("foo.txt", "line one")]);
    check("Write \"two\nlines\" to f.txt", &[w("f.txt", "two\nlines")]);
    check("In this directory, write \"x\" to a.txt.", &[w("a.txt", "x")]);
}

#[test]
fn a_fence_is_content_or_a_command() {
    check(
        "Create a file main.py with the following content:\n\n```python\nprint('write x to y')\n\nrun()\n```\n\nThen run `python3 main.py`.",
        &[w("main.py", "print('write x to y')\n\nrun()\n"), r("python3 main.py")],
    );
    check("Write this to a.sh:\n```\necho 1\n```", &[w("a.sh", "echo 1\n")]);
    check("Run the following command:\n```sh\nls -la\n```", &[r("ls -la")]);
}

#[test]
fn a_command_is_run_as_it_stands() {
    check("Run the command `ls -la | wc -l`", &[r("ls -la | wc -l")]);
    check("run: echo \"a b\" && printf '%s' c; read x", &[r("echo \"a b\" && printf '%s' c; read x")]);
    check("Run the command: echo run and write x", &[r("echo run and write x")]);
    check("Run \"sleep 1\" and tell me what it says", &[r("sleep 1")]);
    check("Please run ls -la and show me the output.", &[r("ls -la")]);
    check("Execute cargo test.", &[r("cargo test")]);
    check("Run bash script.sh", &[r("bash script.sh")]);
    check("Run git commit -m \"a b\" --amend", &[r("git commit -m \"a b\" --amend")]);
    check("Run the shell command 'uname -a' in the terminal", &[r("uname -a")]);
    check("Run make test", &[r("make test")]);
    check("List the files in `src dir`", &[r("ls -la -- 'src dir'")]);
    check("Read notes.txt", &[r("cat -- notes.txt")]);
}

#[test]
fn several_requests_become_several_steps() {
    check("Write \"x\" to a.txt and then run `cat a.txt`", &[w("a.txt", "x"), r("cat a.txt")]);
    check(
        "Write \"x\" to a.txt, then write 'y' to b.txt and run: cat a.txt b.txt",
        &[w("a.txt", "x"), w("b.txt", "y"), r("cat a.txt b.txt")],
    );
    check("1. Write \"x\" to a.txt\n2. Run `cat a.txt`", &[w("a.txt", "x"), r("cat a.txt")]);
    check(r#""Write \"a b\" to a.txt and then run `cat a.txt`""#, &[w("a.txt", "a b"), r("cat a.txt")]);
    let steps = prompt::steps("Write a hello world in Python to hello.py and run it").unwrap();
    assert_eq!(steps[1], r("python3 ./hello.py"));
}

#[test]
fn what_is_not_understood_gets_the_whole_truth() {
    for prompt in [
        "Hello",
        "What is the capital of France?",
        "Fix the failing tests",
        "Run the tests",
        "Write a sorting function to sort.py",
        "Write some documentation to README.md",
        "Write \"x\" to a.txt and then write a poem to b.txt",
        "",
        "   ",
        "\"",
        "`",
        "run",
        "write",
        "write to",
        "run:",
    ] {
        assert_eq!(prompt::steps(prompt), None, "{prompt}");
    }
    let text = text_of(decide(&asked("What is the capital of France?")));
    for part in
        ["offline script", "not a language model", "Write a hello world", "ANTHROPIC_API_KEY", "--model"]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn two_steps_take_two_calls_and_the_text_quotes_both() {
    let conversation = asked("Write \"x\" to a.txt and then run `cat a.txt`");
    let first = call_of(decide(&conversation));
    assert_eq!(
        (first.name.as_str(), first.arguments.to_object()),
        ("write", json!({"path": "a.txt", "content": "x"}))
    );
    let conversation = answered(conversation, &first, "Wrote 1 byte", false);
    let second = call_of(decide(&conversation));
    assert_eq!(
        (second.name.as_str(), second.arguments.to_object()),
        ("bash", json!({"command": "cat a.txt"}))
    );
    let conversation = answered(conversation, &second, "the output", false);
    let text = text_of(decide(&conversation));
    assert!(text.contains("Wrote 1 byte") && text.contains("the output"), "{text}");
}

#[test]
fn a_failed_step_ends_the_plan() {
    let conversation = asked("Write \"x\" to a.txt and then run `cat a.txt`");
    let first = call_of(decide(&conversation));
    let text = text_of(decide(&answered(conversation, &first, "the user said no", true)));
    assert!(text.contains("failed") && text.contains("the user said no"), "{text}");
}

#[test]
fn a_later_prompt_starts_a_new_plan_and_memory_can_be_proved() {
    let conversation = asked("Write \"x\" to a.txt");
    let first = call_of(decide(&conversation));
    let mut conversation = answered(conversation, &first, "ok", false);
    conversation.turns.push(Turn::Assistant { text: "done".into(), calls: vec![] });
    conversation.turns.push(Turn::User(vec!["run `ls`".into()]));
    assert_eq!(call_of(decide(&conversation)).name, "bash");
    conversation.turns.pop();
    conversation.turns.push(Turn::User(vec!["demo:ask".into()]));
    assert!(text_of(decide(&conversation)).contains("Write \"x\" to a.txt"));
}

#[test]
fn context_that_agents_add_is_not_a_prompt() {
    let mut conversation = asked("# AGENTS.md instructions for /w\n\n<INSTRUCTIONS>\nrun x\n</INSTRUCTIONS>");
    conversation
        .turns
        .push(Turn::User(vec!["<environment_context>\n<cwd>/w</cwd>\n</environment_context>".into()]));
    conversation.turns.push(Turn::User(vec![
        "<system-reminder>\nwrite to-dos and run them\n</system-reminder>".into(),
        "run `ls`".into(),
    ]));
    let call = call_of(decide(&conversation));
    assert_eq!(call.arguments.to_object(), json!({"command": "ls"}));
    let mut conversation = answered(conversation, &call, "files", false);
    conversation.turns.push(Turn::User(vec!["<system-reminder>\nbe brief\n</system-reminder>".into()]));
    assert!(text_of(decide(&conversation)).contains("files"));
}

#[test]
fn arguments_fit_the_schema_of_each_agent() {
    let one = |name: &str,
               properties: serde_json::Value,
               required: serde_json::Value,
               prompt: &str,
               system: &str| {
        let schema = json!({"type": "object", "properties": properties, "required": required});
        let tools = vec![Tool { name: name.into(), namespace: None, input: ToolInput::Schema(schema) }];
        let turns = vec![Turn::User(vec![prompt.into()])];
        call_of(decide(&Conversation { system: system.into(), tools, json_schema: None, turns }))
            .arguments
            .to_object()
    };
    let write = "Write \"x\" to d/a.txt";
    let absolute = json!({"type": "string", "description": "The absolute path to the file to write (must be absolute, not relative)"});
    let properties = json!({"file_path": absolute, "content": {"type": "string"}});
    let claude = one(
        "Write",
        properties.clone(),
        json!(["file_path", "content"]),
        write,
        " - Primary working directory: /w\n - x",
    );
    assert_eq!(claude, json!({"file_path": "/w/d/a.txt", "content": "x"}));
    let unstated = one("Write", properties, json!(["file_path", "content"]), write, "no directory");
    assert_eq!(unstated["file_path"], "d/a.txt");
    let properties = json!({"content": {"type": "string"}, "filePath": {"type": "string", "description": "Absolute path, or relative to the project"}});
    let opencode = one("write", properties, json!(["content", "filePath"]), write, "Working directory: /w");
    assert_eq!(opencode["content"], "x");
    let codex = one(
        "exec_command",
        json!({"cmd": {"type": "string"}, "workdir": {"type": "string"}}),
        json!(["cmd"]),
        write,
        "",
    );
    assert_eq!(codex, json!({"cmd": "mkdir -p d && printf '%s' x > d/a.txt"}));
    let list = json!({"command": {"type": "array", "items": {"type": "string"}}});
    let array = one("shell", list, json!(["command"]), "run `a b`", "");
    assert_eq!(array, json!({"command": ["sh", "-c", "a b"]}));
    let properties = json!({"command": {"type": "STRING"}, "description": {"type": "STRING"}, "n": {"type": "INTEGER", "minimum": 1}, "mode": {"enum": ["fast"]}});
    let gemini =
        one("run_shell_command", properties, json!(["command", "description", "n", "mode"]), "run `ls`", "");
    assert_eq!(gemini["n"], 1);
    assert_eq!(gemini["mode"], "fast");
    assert!(gemini["description"].as_str().is_some_and(|d| d.contains("ls")));
}

#[test]
fn a_tool_of_an_mcp_server_is_found_by_the_end_of_its_name_or_searched_for() {
    let mut conversation = asked("demo:tool probe {\"q\": 1}");
    let tool = |name: &str| Tool { name: name.into(), namespace: None, input: ToolInput::Schema(json!({})) };
    assert!(text_of(decide(&conversation)).contains("no tool of that name"));
    conversation.tools.push(tool("mcp__server__probe"));
    assert_eq!(call_of(decide(&conversation)).name, "mcp__server__probe");

    let mut conversation = asked("demo:tool mcp__s__t {\"q\": 1}\ndemo:run ls");
    conversation.tools.push(tool("ToolSearch"));
    let search = call_of(decide(&conversation));
    assert_eq!(
        (search.name.as_str(), &search.arguments.to_object()["query"]),
        ("ToolSearch", &json!("select:mcp__s__t"))
    );
    let conversation = answered(conversation, &search, "found", false);
    let call = call_of(decide(&conversation));
    assert_eq!((call.name.as_str(), call.arguments.to_object()), ("mcp__s__t", json!({"q": 1})));
    assert_eq!(call_of(decide(&answered(conversation, &call, "done", false))).name, "bash");
}

#[test]
fn faults_come_after_the_steps() {
    assert_eq!(decide(&asked("demo:hang")), Reply::Hang);
    let status = decide(&asked("demo:status 429 slow down"));
    assert_eq!(status, Reply::Status { code: 429, message: format!("{MARK} 429: slow down") });
    let conversation = asked("demo:drop\ndemo:run ls");
    let call = call_of(decide(&conversation));
    let Reply::Answer(answer) = decide(&answered(conversation, &call, "x", false)) else {
        panic!("an answer")
    };
    assert!(answer.cut);
    let Reply::Answer(answer) = decide(&asked("demo:slow 2500")) else { panic!("an answer") };
    assert_eq!(answer.spread, Some(Duration::from_millis(2500)));
    assert_eq!(text_of(decide(&asked("demo:say hi there"))), format!("{MARK} hi there"));
    assert!(text_of(decide(&asked("demo:nonsense"))).contains("no directive demo:nonsense"));
}

#[test]
fn a_fault_that_passes_says_what_comes_after_it() {
    let reply = decide(&asked("demo:status 500 oh\ndemo:times 2\ndemo:say well"));
    let Reply::Passing { times: 2, fault, answer, .. } = reply else { panic!("{reply:?}") };
    assert!(matches!(*fault, Reply::Status { code: 500, .. }), "{fault:?}");
    assert_eq!(text_of(Reply::Answer(answer)), format!("{MARK} well"));
    text_of(decide(&asked("demo:times 2\ndemo:say nothing has failed")));
}

#[test]
fn of_two_prompts_in_one_message_the_last_one_counts() {
    let mut conversation = asked("demo:status 500");
    conversation.turns = vec![Turn::User(vec!["demo:status 500".into(), "demo:say well".into()])];
    assert_eq!(text_of(decide(&conversation)), format!("{MARK} well"));
}

#[test]
fn without_tools_there_is_only_a_short_text() {
    let mut conversation = asked("demo:hang");
    conversation.tools.clear();
    assert!(text_of(decide(&conversation)).contains("not a language model"));
    conversation.system = "Generate a short title.".into();
    conversation.turns =
        vec![Turn::User(vec!["Write a hello world in TypeScript to the file hello.ts".into()])];
    let title = text_of(decide(&conversation));
    assert!(title.contains("Write a hello world") && title.len() < 70, "{title}");
    conversation.turns.clear();
    text_of(decide(&conversation));
}

proptest! {
    #[test]
    fn any_prompt_gets_a_reply(prompt in "\\PC*", lines in prop::collection::vec("(write|run|demo:|\"|`|'|to|file|a.txt|with|:|,|```|\n| |[a-z]){0,12}", 0..6)) {
        decide(&asked(&prompt));
        decide(&asked(&lines.join("\n")));
        decide(&asked(&format!("demo:{}", lines.join("\n"))));
    }

    #[test]
    fn any_quoted_text_arrives_unchanged(text in "[^\"“”]{0,60}", name in "[A-Za-z0-9_-]{1,12}\\.[a-z]{1,4}") {
        // A quotation mark behind a back slash, or white space around, is the one thing the prompt can't say so.
        prop_assume!(!text.ends_with('\\'));
        check(&format!("Write \"{text}\" to {name}"), &[w(&name, &text)]);
        check(&format!("Create a file {name} containing \"{text}\""), &[w(&name, &text)]);
        check(&format!("Write \"{text}\" to {name} and then run `cat {name}`"), &[w(&name, &text), r(&format!("cat {name}"))]);
    }

    #[test]
    fn any_command_in_ticks_arrives_unchanged(command in "[^` \n][^`]{0,60}[^` \n.]") {
        prop_assume!(command.trim() == command);
        check(&format!("Run the command `{command}`"), &[r(&command)]);
        check(&format!("Run `{command}` and tell me what it prints."), &[r(&command)]);
    }

    #[test]
    fn any_command_line_after_run_arrives_unchanged(command in "[a-z][ -~]{0,60}[a-z0-9]") {
        check(&format!("run: {command}"), &[r(&command)]);
        check(&format!("demo:run {command}"), &[]);
        let expected = json!({"command": command.trim()});
        prop_assert_eq!(call_of(decide(&asked(&format!("demo:run {command}")))).arguments.to_object(), expected);
    }
}
