//! `agentos chat` and `agentos sessions resume` with real agents and the offline model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use support::terminal::Terminal;
use support::{Finished, Running, World};

/// A conversation of these lines.
fn chat(world: &World, arguments: &[&str], lines: &str) -> Finished {
    let mut running = world.start(arguments);
    running.write(lines);
    running.finish()
}

/// Reads what is printed until it has this in it.
fn wait_for(running: &mut Running, text: &str) {
    loop {
        let line = running.line();
        assert!(!line.is_empty(), "it ended before it printed {text}");
        if line.contains(text) {
            return;
        }
    }
}

fn only_session(world: &World) -> String {
    let listed = world.agentos(["sessions", "list", "--json"]).expect(0).json_lines();
    assert_eq!(listed.len(), 1, "{listed:?}");
    listed[0]["sessionId"].as_str().unwrap().to_owned()
}

#[test]
fn lines_are_prompts_and_a_conversation_is_resumed_in_another_vm() {
    let world = World::with_agents();
    let first = "Run the command `echo knit-$((20 + 2))`\n\nWrite \"x\" to note.txt\n";
    let talk = chat(&world, &["chat", "pi", "--allow-all"], first).expect(0);
    let text = talk.text();
    assert!(text.contains("knit-22") && text.contains("note.txt"), "{text}");
    let diff = text.find("+x").unwrap_or_else(|| panic!("changes are shown: {text}"));
    assert!(text.find("knit-22").unwrap() < diff, "turn after turn: {text}");
    assert!(talk.stderr.contains("demo model"), "{}", talk.stderr);

    let id = only_session(&world);
    let resumed = chat(&world, &["sessions", "resume", &id[..8]], "What was my first request?\n").expect(0);
    let text = resumed.text();
    assert!(text.contains("knit-"), "the agent knows: {text}");
    assert!(!text.contains("note.txt"), "what was shown before is not shown again: {text}");
    assert_eq!(only_session(&world), id, "it is the same session");
    world.agentos(["sessions", "resume", "no-such-session"]).expect(1);
}

#[test]
fn the_user_decides_what_an_agent_does() {
    let world = World::with_agents();
    let project = world.directory("project");
    let shown = format!("{}:rw", project.display());
    // The answers stand between the prompts, as somebody would type them.
    let lines =
        "Write \"one\" to refused.txt\nn\nWrite \"three\" to unasked.txt\nWrite \"two\" to allowed.txt\ny\n";
    let talk = chat(&world, &["chat", "claude", "--project", &shown], lines).expect(0);
    let text = talk.text();
    assert!(text.contains("The agent asks:") && text.contains("+two"), "{text}");
    assert!(!project.join("refused.txt").exists() && !project.join("unasked.txt").exists(), "{text}");
    assert!(project.join("allowed.txt").exists(), "{text}");
}

#[test]
fn only_what_is_typed_after_a_question_answers_it() {
    let world = World::with_agents();
    let project = world.directory("project");
    let shown = format!("{}:rw", project.display());
    let mut terminal = Terminal::start(&world, &["chat", "claude", "--project", &shown]);
    terminal.wait_for("an invitation", |screen| screen.trim_end().ends_with('>'));
    // The second line is there long before the agent asks, and so is the beginning of a third.
    terminal.type_keys("Write \"one\" to note.txt\ry\ryes");
    let kept = "kept for after this turn";
    let screen = terminal.wait_for("the question", |screen| screen.contains("[n]o:"));
    assert!(screen.contains(kept), "{screen}");
    terminal.type_keys("\r");
    terminal.wait_for("the question again", |screen| screen.matches("[n]o:").count() == 2);
    assert!(!project.join("note.txt").exists(), "nothing was answered yet");
    terminal.type_keys("no\r");
    // The line goes on to be a prompt.
    terminal.wait_for("the next turn", |screen| {
        let (_, after) = screen.rsplit_once("[n]o:").unwrap();
        after.contains("> y") && after.trim_end().ends_with('>')
    });
    assert!(!project.join("note.txt").exists(), "{}", terminal.contents());
    terminal.type_keys("\x04");
    assert_eq!(terminal.wait_for_end(), 0);
}

#[test]
fn ctrl_c_cancels_the_turn_and_then_ends_the_conversation() {
    let world = World::with_agents();
    let mut running = world.start(["chat", "pi", "--allow-all"]);
    running.write("Run the command `echo begun; sleep 1000`\n");
    wait_for(&mut running, "sleep 1000");
    running.signal(rustix::process::Signal::INT);
    // The conversation goes on.
    running.write("Run the command `echo knit-$((20 + 2))`\n");
    wait_for(&mut running, "knit-22");
    wait_for(&mut running, "[demo model]");
    // The input stays open, so that nothing but the signal ends it. Within the turn's last moments it takes two.
    while running.child.try_wait().unwrap().is_none() {
        running.signal(rustix::process::Signal::INT);
        std::thread::yield_now();
    }
    running.finish().expect(130);
}

#[test]
fn an_agent_that_cannot_be_started_ends_it_with_the_reason() {
    let world = World::with_agents();
    let unknown = chat(&world, &["chat", "nobody"], "hello\n").expect(1);
    assert!(unknown.stderr.contains("Unknown agent type: nobody"), "{}", unknown.stderr);
}
