//! What becomes of a prompt when the model fails, for each agent, as a table: how it ended, and in which words. The
//! model is a provider to the agents, so that each tries again as often as it does with a real one.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use agentos::{AgentOs, Error, ErrorKind, PermissionPolicy, PromptResult, Session};
use serde_json::Value;

use super::support::world::World;
use super::support::{poll_pause, within, within_time};
use super::{demo_vm, model, random};

/// How long a prompt has that ends with its time: Codex needs half of the first before it tells of anything, Claude would
/// go on for minutes. Where a busy machine let nothing be seen, it is asked again and has the second, in which not even Pi
/// gives up.
const LIMITS: [Duration; 2] = [Duration::from_secs(7), Duration::from_secs(12)];

/// Longer than any agent needs to give up by itself, or to stop.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy)]
enum End {
    /// The agent gives up by itself, with the model's own words.
    Fails,
    /// The agent gives up by itself, with these words of its own.
    FailsWith(&'static str),
    /// It tries again until the time is over, and has told the model's own words.
    Tries,
    /// It tries again until the time is over, and has told these words, if any.
    TriesWith(&'static str),
    /// It waits, or tries again, until the time is over, and says nothing.
    Silent,
    /// It tries again, and has its answer.
    Succeeds,
}

use End::{Fails, FailsWith, Silent, Succeeds, Tries, TriesWith};

const FAULTS: [(&str, &str); 7] = [
    ("400", "demo:status 400 WORD"),
    ("429", "demo:status 429 WORD"),
    ("500", "demo:status 500 WORD"),
    ("hang", "demo:hang\ndemo:say WORD"),
    ("drop", "demo:drop\ndemo:say WORD and much more than what fits into one piece of an answer"),
    ("429 once", "demo:status 429 WORD\ndemo:times 1\ndemo:say WORD"),
    ("500 once", "demo:status 500 WORD\ndemo:times 1\ndemo:say WORD"),
];

const AGENTS: [(&str, [End; FAULTS.len()]); 6] = [
    ("pi", [Fails, Tries, Tries, Silent, TriesWith("terminated"), Succeeds, Succeeds]),
    ("pi-cli", [Fails, Tries, Tries, Silent, TriesWith("terminated"), Succeeds, Succeeds]),
    // Whether it finds a stream that breaks worth a line of its log depends on where it broke.
    ("opencode", [Fails, Tries, Tries, Silent, TriesWith(""), Succeeds, Succeeds]),
    (
        "claude",
        [
            Fails,
            TriesWith("status 429"),
            TriesWith("status 500"),
            Silent,
            TriesWith("no answer"),
            Succeeds,
            Succeeds,
        ],
    ),
    (
        "codex",
        [
            Fails,
            FailsWith("429 Too Many Requests"),
            TriesWith("Reconnecting"),
            Silent,
            FailsWith("stream disconnected"),
            FailsWith("429 Too Many Requests"),
            Succeeds,
        ],
    ),
    ("gemini", [Fails, Silent, Silent, Silent, FailsWith("terminated"), Succeeds, Succeeds]),
];

/// What is said of an agent that was silent.
const NO_REASON: &str = "it has told no reason";

/// How one prompt ended, and how often the model was asked for it and failed.
struct Cell {
    ended: Result<PromptResult, Error>,
    failures: usize,
    word: String,
}

impl Cell {
    fn words(&self) -> String {
        match &self.ended {
            Ok(reply) => format!("{}: {:?}", reply.stop_reason, reply.text),
            Err(error) => format!("{:?}: {error}", error.kind()),
        }
    }

    fn check(&self, expected: End) -> bool {
        let (kind, words) = match expected {
            Fails => (ErrorKind::Model, self.word.as_str()),
            FailsWith(words) => (ErrorKind::Model, words),
            Tries => (ErrorKind::Timeout, self.word.as_str()),
            TriesWith(words) => (ErrorKind::Timeout, words),
            Silent => (ErrorKind::Timeout, NO_REASON),
            Succeeds => {
                let said = self.ended.as_ref().is_ok_and(|reply| reply.text.contains(&self.word));
                return said && self.failures == 1;
            }
        };
        let told = |error: &Error| error.kind() == kind && error.to_string().contains(words);
        self.ended.as_ref().is_err_and(told) && self.failures > 0
    }

    /// Whether its time was over before the model had failed, or before the agent had told of it.
    fn is_early(&self, expected: End) -> bool {
        let is_silent = self.words().contains(NO_REASON);
        let is_late = |error: &Error| error.kind() == ErrorKind::Timeout;
        self.ended.as_ref().is_err_and(is_late)
            && (self.failures == 0 || (is_silent && !self.check(expected)))
    }
}

#[tokio::test]
async fn every_agent_ends_a_prompt_that_its_model_fails_with_the_reason_and_goes_on() {
    let (mut stories, mut rows, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    // The times below are the agents' own, not those of six that start at once, or are fetched.
    for (start, (agent, expected)) in
        AGENTS.map(|(agent, _)| tokio::spawn(start(agent))).into_iter().zip(AGENTS)
    {
        match start.await {
            Ok(place) => stories.push((agent, expected, place)),
            Err(failure) => failed.push(format!("{agent}: {failure}")),
        }
    }
    let stories: Vec<_> = stories
        .into_iter()
        .map(|(agent, expected, place)| (agent, tokio::spawn(story(agent, expected, place))))
        .collect();
    for (agent, story) in stories {
        match story.await {
            Ok(row) => rows.push((agent, row)),
            Err(failure) => failed.push(format!("{agent}: {failure}")),
        }
    }
    // Not what the test harness takes for its own and keeps to itself.
    std::io::stderr().write_all(table(&rows).as_bytes()).unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    for ((agent, row), (_, expected)) in rows.iter().zip(AGENTS) {
        for ((cell, (fault, _)), expected) in row.iter().zip(FAULTS).zip(expected) {
            let words = cell.words();
            assert!(cell.check(expected), "{agent}, {fault}: not {expected:?}: {words}, {}", cell.failures);
        }
    }
}

fn table(rows: &[(&str, Vec<Cell>)]) -> String {
    let mut text = format!("\n{:10}", "");
    for (fault, _) in FAULTS {
        let _ = write!(text, "{fault:>12}");
    }
    let mut quotes = String::new();
    for (agent, row) in rows {
        let _ = write!(text, "\n{agent:10}");
        for (cell, (fault, _)) in row.iter().zip(FAULTS) {
            let shown = match &cell.ended {
                Ok(reply) => reply.stop_reason.clone(),
                Err(error) => format!("{:?}", error.kind()),
            };
            let _ = write!(text, "{:>12}", format!("{shown} {}", cell.failures));
            let _ = writeln!(quotes, "{agent}, {fault}: {}", cell.words());
        }
    }
    format!("{text}\n(and how often the model has failed)\n\n{quotes}\n")
}

/// An agent that has answered once.
async fn start(agent: &'static str) -> (World, AgentOs, Session) {
    let world = World::new().await;
    let vm = world.vm().await;
    let session = model::session_with_a_provider(&vm, agent).await;
    goes_on(agent, &session).await;
    (world, vm, session)
}

async fn story(
    agent: &'static str,
    expected: [End; FAULTS.len()],
    (_world, vm, session): (World, AgentOs, Session),
) -> Vec<Cell> {
    let mut row = Vec::new();
    for ((_, fault), expected) in FAULTS.into_iter().zip(expected) {
        let limits: &[Option<Duration>] = match expected {
            Tries | TriesWith(_) | Silent => &LIMITS.map(Some),
            Fails | FailsWith(_) | Succeeds => &[None],
        };
        let mut cells = Vec::new();
        for limit in limits {
            let cell = cell(&vm, &session, fault, *limit).await;
            goes_on(agent, &session).await;
            let is_early = cell.is_early(expected);
            cells.push(cell);
            if !is_early {
                break;
            }
        }
        row.extend(cells.pop());
    }
    within("the end", session.close()).await.unwrap();
    row
}

async fn cell(vm: &AgentOs, session: &Session, fault: &str, limit: Option<Duration>) -> Cell {
    let word = random();
    let prompt = session.prompt(fault.replace("WORD", &word));
    let prompt = match limit {
        Some(limit) => prompt.timeout(limit),
        None => prompt,
    };
    let ended = within_time(PATIENCE, "the turn", prompt).await;
    let failures = failures(vm, &word).await;
    Cell { ended, failures, word }
}

/// How often the model has failed a request with this word.
async fn failures(vm: &AgentOs, word: &str) -> usize {
    let failed = |request: &&Value| {
        let decision = &request["decision"];
        let faulty = decision["kind"] == "status" || decision["kind"] == "hang" || decision["drop"] == true;
        faulty && model::texts(&request["body"]).contains(word)
    };
    model::asked(vm).await.iter().filter(failed).count()
}

/// A model that is well again answers, without a trace of what was before.
async fn goes_on(agent: &str, session: &Session) {
    let word = random();
    let answered = async {
        loop {
            match session.prompt(format!("demo:say {word}")).await {
                // An agent that needs long to stop.
                Err(error) if error.kind() == ErrorKind::Busy => poll_pause().await,
                ended => return ended,
            }
        }
    };
    let reply = within_time(PATIENCE, "a healthy model", answered)
        .await
        .unwrap_or_else(|error| panic!("{agent}: {error}"));
    assert!(reply.text.contains(&format!("[demo model] {word}")), "{agent}: {}", reply.text);
}

#[tokio::test]
async fn silence_has_a_reason_too_where_the_agent_has_told_one() {
    let world = World::new().await;
    let vm = world.vm().await;
    let session = model::session_with_a_provider(&vm, "pi-cli").await;
    // So that its first turn, which loads what it needs, is over.
    goes_on("pi-cli", &session).await;
    let word = random();
    // Pi waits for two seconds, for four, and before its last attempt for eight.
    let prompt = session.prompt(format!("demo:status 500 {word}")).idle_timeout(Duration::from_secs(6));
    let error = within("the silence", prompt).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains(&word), "{error}");
    goes_on("pi-cli", &session).await;
    let history = vm.read_history(session.id()).await.unwrap();
    let ends = history.iter().filter(|event| event.method() == "_agentos/turn_end");
    let reasons: Vec<String> = ends.map(|end| end.params().to_string()).collect();
    assert!(reasons.iter().any(|end| end.contains("timeout") && end.contains(&word)), "{reasons:?}");
}

#[tokio::test]
async fn an_agent_of_the_demo_model_soon_gives_up_what_a_script_fails_on_purpose() {
    let world = World::new().await;
    let vm = demo_vm(&world).await;
    for agent in ["pi", "pi-cli", "claude", "codex"] {
        let create = vm.create_session(agent).permission_policy(PermissionPolicy::AllowAll);
        let session = create.await.unwrap();
        let word = random();
        let prompt =
            session.prompt(format!("demo:drop\ndemo:say {word} and much more than fits into one piece"));
        let error = within("the turn", prompt).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model, "{agent}: {error}");
        // Claude asks once more for an answer in one piece.
        assert!((1..=2).contains(&failures(&vm, &word).await), "{agent}");
        goes_on(agent, &session).await;
        within("the end", session.close()).await.unwrap();
    }
}
