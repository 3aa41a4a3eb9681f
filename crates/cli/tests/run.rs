//! `agentos run` with the real Pi, from the prompt to the files. The model is the offline one; the agent is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use rustix::process::Signal;
use serde_json::Value;
use support::{Running, World, eventually, random_word};

/// What the offline model was asked, one line per request.
fn requests(world: &World) -> Vec<Value> {
    let log = std::fs::read_to_string(world.path("requests.jsonl")).unwrap_or_default();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_real_pi_writes_the_file_and_runs_the_command() {
    let world = World::with_agents();
    let (file, text, word) = (format!("{}.txt", random_word()), random_word(), random_word());
    let out = world.path("out");
    // The command waits for us, so that Pi can be looked at while it works.
    let prompt = format!(
        "demo:write {file} <<{text}\n\
         demo:run touch {word}.started; until [ -e {word}.go ]; do sleep 0.02; done; echo {word} | rev"
    );
    let mut running = world.start(["run", "pi", &prompt, "--keep=box", "--out", &out.display().to_string()]);
    drop(running.stdin.take());
    let inside = |script: &str| world.agentos(["exec", "--vm", "box", "--", "sh", "-c", script]);
    eventually("the command runs", || inside(&format!("test -e {word}.started")).code == Some(0));

    // Pi puts its name in place of its arguments; what it is shows in its executable and in its child.
    let list = "for p in /proc/[0-9]*; do \
                echo $(readlink $p/exe) $(cut -d ' ' -f 4 $p/stat) ${p#/proc/} $(tr '\\0' ' ' < $p/cmdline); done";
    let processes = inside(list).expect(0).text();
    let fields: Vec<Vec<&str>> = processes.lines().map(|line| line.split_whitespace().collect()).collect();
    let bash = fields.iter().find(|fields| fields.len() > 4 && fields[3].ends_with("bash"));
    let bash = bash.unwrap_or_else(|| panic!("no shell of the tool's in\n{processes}"));
    let pi = fields.iter().find(|fields| fields.len() > 3 && fields[2] == bash[1]);
    let pi = pi.unwrap_or_else(|| panic!("no parent of the tool's shell in\n{processes}"));
    assert!(pi[0].starts_with("/opt/agentos/packages/node-linux-") && pi[3] == "pi", "{processes}");

    inside(&format!("touch {word}.go")).expect(0);
    let result = running.finish().expect(0);
    let reversed: String = word.chars().rev().collect();
    assert!(result.text().contains(&reversed), "the command's output is shown: {}", result.text());
    assert!(result.text().contains(&file), "the file is named: {}", result.text());
    assert_eq!(std::fs::read_to_string(out.join(&file)).unwrap().trim_end(), text);

    let requests = requests(&world);
    let first = &requests[0]["body"];
    let system = first["messages"][0]["content"].as_str().unwrap();
    assert!(
        system.contains("coding assistant") && system.contains("inside pi"),
        "Pi's own system prompt: {system}"
    );
    let tools: Vec<&str> = first["tools"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|tool| tool["function"]["name"].as_str())
        .collect();
    for tool in ["read", "bash", "edit", "write"] {
        assert!(tools.contains(&tool), "Pi's own tools: {tools:?}");
    }
    let edit =
        first["tools"].as_array().unwrap().iter().find(|tool| tool["function"]["name"] == "edit").unwrap();
    assert!(edit["function"]["parameters"]["properties"]["edits"].is_object(), "Pi's own schema: {edit}");
    let last = requests.last().unwrap()["body"].to_string();
    assert!(last.contains(&reversed), "the tool's result went back to the model");
}

#[test]
fn the_readme_s_first_prompt_leaves_a_program() {
    let world = World::with_agents();
    let out = world.directory("out");
    let prompt = "Write a hello world in TypeScript to hello.ts";
    let result = world.agentos(["run", "pi", prompt, "--out", &out.display().to_string()]).expect(0);
    assert!(std::fs::read_to_string(out.join("hello.ts")).unwrap().contains("console.log"));
    assert!(result.text().contains("[demo model]"), "{}", result.text());
    assert!(result.stderr.contains("ANTHROPIC_API_KEY"), "how to get a real one: {}", result.stderr);
}

#[test]
fn without_a_place_to_go_new_files_are_printed() {
    let world = World::with_agents();
    let (file, text) = (format!("{}.txt", random_word()), random_word());
    let result = world.agentos(["run", "pi", &format!("Write \"{text}\" to {file}")]).expect(0);
    let shown = result.text();
    let printed = shown.split_once(&format!("--- {file}\n")).unwrap_or_else(|| panic!("{shown}")).1;
    assert!(printed.starts_with(&text), "{shown}");
    assert!(shown.contains("--out"), "{shown}");
}

#[test]
fn out_overwrites_nothing_and_loses_nothing() {
    let world = World::with_agents();
    let out = world.directory("out");
    std::fs::write(out.join("a.txt"), "mine").unwrap();
    let place = out.display().to_string();
    let prompt = "demo:write a.txt <<made\ndemo:write b.txt <<also made";
    let result = world.agentos(["run", "pi", prompt, "--out", &place]).expect(5);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap().trim_end().to_owned();
    assert_eq!([read("a.txt"), read("a.txt.new"), read("b.txt")], ["mine", "made", "also made"]);
    assert!(result.text().contains("--force"), "{}", result.text());
    world.agentos(["run", "pi", prompt, "--out", &place, "--force"]).expect(0);
    assert_eq!(read("a.txt"), "made");
}

#[test]
fn what_can_t_work_is_refused_before_the_agent_starts() {
    let world = World::with_agents();
    std::fs::write(world.path("file"), "").unwrap();
    let result =
        world.agentos(["run", "pi", "hello", "--out", &world.path("file").display().to_string()]).expect(2);
    assert!(result.stderr.contains("not a directory"), "{}", result.stderr);
    world.agentos(["run", "pi", "hello", "--force"]).expect(2);
    let unknown = world.agentos(["run", "nobody", "hello"]).expect(1);
    assert!(unknown.stderr.contains("Unknown agent type: nobody"), "{}", unknown.stderr);
    assert!(requests(&world).is_empty(), "no model was asked");
}

#[test]
fn names_that_are_dangerous_stay_in_the_vm() {
    let world = World::with_agents();
    let out = world.path("out");
    let prompt = "demo:run mkdir -p .git/hooks d; echo x > .git/hooks/pre-commit; echo x > d/fine; \
                  echo x > \"$(printf 'evil\\033[31m')\"; ln -s /etc/passwd link";
    let result = world.agentos(["run", "pi", prompt, "--out", &out.display().to_string()]).expect(1);
    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["d"], "{}", result.text());
    assert!(result.text().contains("evil^[[31m"), "it is named, harmlessly: {}", result.text());
}

#[test]
fn nothing_an_agent_prints_controls_the_terminal() {
    let world = World::with_agents();
    let prompt = "demo:run printf 'a\\033]0;owned\\007\\302\\2332Jb'\ndemo:say \x1b[2J\u{9b}31m\u{202e}said";
    for flags in [&[][..], &["--json"]] {
        let result = world.agentos([&["run", "pi", prompt], flags].concat()).expect(0);
        let text = result.text();
        assert!(text.contains("said"), "{text}");
        let bad = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!text.contains(bad) && !result.stderr.contains(bad), "{text:?} {:?}", result.stderr);
    }
}

/// Answers each of its client's requests in turn.
const SHELL_AGENT: &str = r#"
n=0
while read -r line; do
    case $n in
        0) echo '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1}}' ;;
        1) echo '{"jsonrpc":"2.0","id":2,"result":{"sessionId":"s"}}' ;;
        2)
            printf made-by-a-command > made.txt
            echo '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"a shell says hello"}}}}'
            echo '{"jsonrpc":"2.0","id":3,"result":{"stopReason":"end_turn"}}'
            ;;
    esac
    n=$((n + 1))
done
"#;

#[test]
fn any_command_that_speaks_acp_is_an_agent() {
    let world = World::new();
    let (tools, out) = (world.directory("tools"), world.directory("out"));
    std::fs::write(tools.join("agent.sh"), SHELL_AGENT).unwrap();
    let mount = format!("{}:/tools", tools.display());
    let place = out.display().to_string();
    let run = ["run", "--command", "sh /tools/agent.sh --acp", "--mount", &mount, "--out", &place];
    let result = world.agentos([&run[..], &["Say hello"]].concat()).expect(0);
    assert!(result.text().contains("a shell says hello"), "{}", result.text());
    assert_eq!(std::fs::read_to_string(out.join("made.txt")).unwrap(), "made-by-a-command");

    world.agentos(["run", "--command", "x"]).expect(2);
    let both = world.agentos(["run", "--command", "x", "pi", "hello"]).expect(2);
    assert!(both.stderr.contains("either pi or the --command"), "{}", both.stderr);
    let missing = world.agentos(["run", "--command", "no-such-agent", "hello"]).expect(4);
    assert!(missing.stderr.contains("no-such-agent"), "it says which: {}", missing.stderr);
}

#[test]
fn a_refused_write_to_a_project_explains_rw() {
    let world = World::with_agents();
    let project = world.directory("project");
    let show = project.display().to_string();
    let result = world.agentos(["run", "pi", "Write \"x\" to new.txt", "--project", &show]).expect(0);
    assert!(result.stderr.contains(&format!("--project {show}:rw")), "{}", result.stderr);
    assert!(!project.join("new.txt").exists());
    let result =
        world.agentos(["run", "pi", "Write \"x\" to new.txt", "--project", &format!("{show}:rw")]).expect(0);
    assert!(project.join("new.txt").exists());
    assert!(result.text().contains(&project.join("new.txt").display().to_string()), "{}", result.text());
    assert!(!result.stderr.contains(":rw"), "{}", result.stderr);
}

#[test]
fn json_lines_tell_everything_in_order() {
    let world = World::with_agents();
    let result = world.agentos(["run", "pi", "Write \"x\" to new.txt", "--json"]).expect(0);
    let lines = result.json_lines();
    let lines: Vec<&Value> = lines.iter().filter(|line| line["type"] != "install").collect();
    let kinds: Vec<&str> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "session");
    assert_eq!(kinds[kinds.len() - 2..], ["files", "result"]);
    let events: Vec<u64> = lines.iter().filter_map(|line| line["sequenceNumber"].as_u64()).collect();
    assert!(events.len() > 3 && events.iter().copied().eq(1..=events.len() as u64), "{events:?}");
    let files = &lines[lines.len() - 2]["files"];
    assert_eq!(files[0]["path"], "/home/user/new.txt");
    let last = lines[lines.len() - 1];
    assert_eq!(
        (&last["ok"], &last["stopReason"], &last["model"]),
        (&true.into(), &"end_turn".into(), &"demo".into())
    );
    assert!(last["text"].as_str().unwrap().starts_with("[demo model]"), "{last}");
}

#[test]
fn a_model_that_refuses_is_a_failure_with_its_reason_and_the_files_come_all_the_same() {
    let world = World::with_agents();
    let out = world.path("out");
    let place = out.display().to_string();
    let prompt = "demo:write kept.txt <<made before\ndemo:status 400 no such thing";
    let result = world.agentos(["run", "pi", prompt, "--out", &place]).expect(4);
    assert!(result.stderr.contains("no such thing"), "{}", result.stderr);
    assert!(out.join("kept.txt").exists(), "{}", result.text());
    let json = world.agentos(["run", "pi", "demo:status 400 no such thing", "--json"]).expect(4).json_lines();
    let last = json.last().unwrap();
    assert_eq!((&last["ok"], &last["error"]["kind"]), (&false.into(), &"Model".into()));
}

#[test]
fn an_interrupt_cancels_the_turn_and_the_files_come_all_the_same() {
    let world = World::with_agents();
    let out = world.path("out");
    let place = out.display().to_string();
    let prompt = "demo:write early.txt <<made before\ndemo:run sleep 1000";
    let mut running = world.start(["run", "pi", prompt, "--out", &place]);
    drop(running.stdin.take());
    let mut shown = String::new();
    while !shown.contains("sleep 1000") {
        let line = running.line();
        assert!(!line.is_empty(), "it ended early: {shown}");
        shown.push_str(&line);
    }
    running.signal(Signal::INT);
    running.finish().expect(130);
    assert!(out.join("early.txt").exists());
}

/// A provider on this host's loopback device: the offline model, over HTTP.
struct Provider {
    running: Running,
    url: String,
}

impl Provider {
    fn start(world: &World) -> Self {
        let mut running = world.start(["demo-model", "--exit-with-stdin", "--listen", "tcp:127.0.0.1:0"]);
        let url = running.line().trim().replace("127.0.0.1", "localhost");
        Self { running, url }
    }

    fn host(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// It ends with its input, whose other end is ours.
    fn end(mut self) {
        drop(self.running.stdin.take());
        self.running.finish().expect(0);
    }
}

const KEY: &str = "sk-ant-api03-secret-of-the-test";

/// A run in an environment with a key, and one of a provider that no gateway knows.
fn run_with_keys(world: &World, provider: &Provider, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = world.command(arguments);
    command.env("ANTHROPIC_API_KEY", KEY).env("ANTHROPIC_BASE_URL", &provider.url);
    let output = command.env("GROQ_API_KEY", "given-when-asked").env("UNRELATED_KEY", KEY).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(!text.contains(KEY), "{text}");
    (output.status.code(), text)
}

#[test]
fn a_key_of_the_caller_is_used_without_the_vm_having_it() {
    let world = World::with_agents();
    let provider = Provider::start(&world);
    let show = ["run", "pi", "Run the command `env`"];
    let (code, text) = run_with_keys(&world, &provider, &show);
    assert_eq!(code, Some(0), "{text}");
    if world.vms_have_a_network() {
        let said =
            format!("agentos: model {}, key from ANTHROPIC_API_KEY, kept outside the VM", provider.host());
        assert!(text.contains(&said), "{text}");
        assert!(text.contains("ANTHROPIC_API_KEY=sk-ant-api03-"), "the agent has a placeholder: {text}");
        let (code, text) = run_with_keys(&world, &provider, &[&show[..], &["--model", "provider"]].concat());
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(&said) && text.contains("giving the agent GROQ_API_KEY"), "{text}");
    } else {
        assert!(text.contains("the secret ANTHROPIC_API_KEY can't be used: VMs have no network"), "{text}");
    }
    assert!(!text.contains("UNRELATED_KEY"), "{text}");
    let (code, text) = run_with_keys(&world, &provider, &[&show[..], &["--model", "demo"]].concat());
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("ANTHROPIC_API_KEY"), "{text}");
    provider.end();
}

#[test]
fn a_key_that_no_gateway_knows_is_left_unless_it_is_asked_for() {
    let world = World::with_agents();
    let mut command = world.command(["run", "pi", "demo:say hello"]);
    let output = command.env("GROQ_API_KEY", KEY).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("not using GROQ_API_KEY"), "{stderr}");
}

#[test]
fn a_secret_is_named_and_its_value_comes_from_here() {
    let world = World::new();
    let shown = |flags: &[&str]| {
        let script = ["--", "sh", "-c", "echo $OPENAI_API_KEY $TOKEN"];
        let mut command = world.command([&["exec"], flags, &script].concat());
        let output = command.env("OPENAI_API_KEY", KEY).env("TOKEN", KEY).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(!text.concat().contains(KEY), "{text:?}");
        (output.status.code(), text)
    };
    let (code, [stdout, stderr]) =
        shown(&["--secret", "OPENAI_API_KEY", "--secret", "TOKEN=api.example:x-token"]);
    assert_eq!(code, Some(0), "{stderr}");
    let placeholders: Vec<&str> = stdout.split_whitespace().collect();
    assert!(placeholders.len() == 2 && placeholders[0].starts_with("sk-proj-"), "{stdout}");
    let (code, [_, stderr]) = shown(&["--secret", "TOKEN"]);
    assert!(code == Some(125) && stderr.contains("TOKEN: it has no destination"), "{stderr}");
    let (code, [_, stderr]) = shown(&["--secret", "AGENTOS_SURELY_UNSET"]);
    assert!(code == Some(2) && stderr.contains("AGENTOS_SURELY_UNSET is not set here"), "{stderr}");
    let (code, [_, stderr]) = shown(&["--secret", "OPENAI_API_KEY", "--env", "OPENAI_API_KEY"]);
    assert!(code == Some(125) && stderr.contains("in the environment already"), "{stderr}");
}

#[test]
fn without_a_provider_where_one_is_demanded_the_variables_are_named() {
    let world = World::with_agents();
    let mut command = world.command(["run", "pi", "hello"]);
    let output = command.env("AGENTOS_MODEL", "provider").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("ANTHROPIC_API_KEY"), "{stderr}");
}
