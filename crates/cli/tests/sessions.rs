//! `agentos sessions`: what is kept of a real agent's work, looked at by commands that each start a sidecar of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails where it stands")]

mod support;

use support::{World, random_word};

#[test]
fn a_session_is_listed_shown_exported_and_deleted() {
    let world = World::with_agents();
    let word = random_word();
    let ran = world.agentos(["run", "pi", &format!("Run the command `echo {word}`"), "--json"]).expect(0);
    let lines = ran.json_lines();
    let id = lines.iter().find(|line| line["type"] == "session").unwrap()["sessionId"].as_str().unwrap();
    world.agentos(["run", "pi", "Run the command `true`"]).expect(0);

    let listed = world.agentos(["sessions", "list", "--json"]).expect(0).json_lines();
    assert_eq!((listed.len(), &listed[1]["sessionId"]), (2, &lines[0]["sessionId"]), "the newest first");
    assert_eq!(
        (&listed[1]["agentType"], &listed[1]["model"], &listed[1]["live"]),
        (&"pi".into(), &"demo".into(), &false.into())
    );
    assert_eq!(listed[1]["ended"]["reason"], "closed");
    let table = world.agentos(["sessions", "list"]).expect(0).text();
    let row = table.lines().find(|line| line.starts_with(&id[..8])).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("pi") && row.contains("ended"), "{row}");
    let newest = world.agentos(["sessions", "list", "--limit", "1"]).expect(0);
    assert_eq!(newest.text().lines().count(), 2, "{}", newest.text());
    assert!(newest.stderr.contains("older sessions"), "{}", newest.stderr);

    let shown = world.agentos(["sessions", "show", &id[..8]]).expect(0).text();
    assert!(shown.contains(&format!("you: Run the command `echo {word}`")), "{shown}");
    assert!(shown.contains(id) && shown.contains("[demo model]"), "{shown}");

    let exported = world.agentos(["sessions", "export", id]).expect(0).json_lines();
    let numbers: Vec<u64> = exported.iter().map(|line| line["sequenceNumber"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(listed[1]["events"], numbers.len());
    assert!(exported.iter().all(|line| line["atMs"].is_u64() && line["notification"]["jsonrpc"] == "2.0"));

    let file = world.path("talk.md").display().to_string();
    let export = ["sessions", "export", &id[..8], "--format", "markdown", "--output", &file];
    world.agentos(export).expect(0);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.starts_with("# ")
            && text.contains("### Tool: ")
            && text.contains("## Prompt\n\n> Run the command")
            && text.contains("## Answer"),
        "{text}"
    );
    assert!(text.contains(&word), "{text}");
    let again = world.agentos(export).expect(1);
    assert!(again.stderr.contains("--force"), "{}", again.stderr);
    world.agentos(export.into_iter().chain(["--force"])).expect(0);

    let deleted = world.agentos(["sessions", "delete", "no-such", &id[..8]]).expect(1);
    assert_eq!(
        deleted.text(),
        format!("deleted {id}\n"),
        "one that isn't there is no reason to keep the other"
    );
    assert!(deleted.stderr.contains("Session not found: no-such"), "{}", deleted.stderr);
    assert_eq!(world.agentos(["sessions", "list", "--json"]).expect(0).json_lines().len(), 1);
    let gone = world.agentos(["sessions", "show", id]).expect(1);
    assert!(gone.stderr.contains(&format!("Session not found: {id}")), "{}", gone.stderr);
}

#[test]
fn where_nothing_is_kept_the_list_is_empty_and_no_name_is_a_session() {
    let world = World::new();
    assert_eq!(world.agentos(["sessions", "list", "--json"]).expect(0).text(), "");
    assert_eq!(world.agentos(["sessions", "list"]).expect(0).text().lines().count(), 1);
    for arguments in
        [&["sessions", "show", "x"][..], &["sessions", "export", ""], &["sessions", "delete", "%"]]
    {
        let failed = world.agentos(arguments).expect(1);
        assert!(failed.stderr.contains("Session not found"), "{}", failed.stderr);
        assert!(failed.stderr.contains("agentos sessions list"), "{}", failed.stderr);
    }
    assert_eq!(world.agentos(["sessions", "export", "x", "--force"]).code, Some(2));
}
