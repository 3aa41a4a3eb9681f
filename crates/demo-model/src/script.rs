//! The script: one pure rule from a [`Conversation`] to a [`Reply`].
//!
//! ```text
//!  no tools offered ───────────────────────────────► a short text (titles, summaries), or JSON where that is demanded
//!  the last prompt ──► plan: steps, then an end
//!        │   demo: lines (directive)  or  natural language (prompt)
//!        ├── a step whose result is not in the conversation yet ──► a call of the agent's own tool (tools)
//!        ├── a result the wire marks as failed ───────────────────► the final text, which quotes it
//!        └── all steps done ──────────────────────────────────────► the final text, or the fault that was ordered
//!  not understood ─────────────────────────────────► what this is, what it can do, how to set a key
//! ```
//!
//! There is no state beside the conversation: how far a plan has come is counted from the tool results behind the
//! prompt. No clock, no I/O, no randomness, so that the same request always gets the same reply. Of a fault that passes
//! ([`Reply::Passing`]) the server counts how often it was.

mod directive;
mod program;
mod prompt;
mod quote;
mod run_clause;
mod schema;
mod text;
mod tools;
mod words;
mod write_clause;

use std::time::Duration;

use serde_json::Value;

use crate::conversation::{Answer, Conversation, Reply, ToolResult, Turn};

/// Every text the model says begins with this; where an answer must be JSON, the texts in it do.
pub const MARK: &str = "[demo model]";

/// One thing to be done with a tool of the agent.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Write {
        path: String,
        content: String,
    },
    Run {
        command: String,
    },
    Tool {
        name: String,
        arguments: Value,
    },
    /// Asks the agent for a tool it doesn't list yet.
    Search {
        name: String,
    },
}

/// How the turn ends once the steps are done.
#[derive(Debug, Clone, Default, PartialEq)]
enum End {
    #[default]
    Text,
    Status {
        code: u16,
        message: String,
    },
    Hang,
    Drop,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Plan {
    steps: Vec<Step>,
    say: Vec<String>,
    ask: bool,
    spread: Option<Duration>,
    end: End,
    /// How often the end comes before the text does.
    times: Option<u32>,
}

/// The whole script.
pub fn decide(conversation: &Conversation) -> Reply {
    let Some((at, prompt)) = last_prompt(conversation) else {
        return Reply::Answer(Answer::text(text::no_prompt()));
    };
    if conversation.tools.is_empty() || is_side_request(&prompt) {
        let said = text::without_tools(conversation, &prompt);
        let shaped =
            conversation.json_schema.as_ref().map(|schema| schema::instance(schema, &said).to_string());
        return Reply::Answer(Answer::text(shaped.unwrap_or(said)));
    }
    let plan = match directive::plan(&prompt) {
        Some(Ok(plan)) => plan,
        Some(Err(malformed)) => return Reply::Answer(Answer::text(text::malformed(&malformed))),
        None => match prompt::steps(&prompt) {
            Some(steps) => Plan { steps, ..Plan::default() },
            None if prompt::asks_for_the_first(&prompt) => Plan { ask: true, ..Plan::default() },
            None => return Reply::Answer(Answer::text(text::help())),
        },
    };
    match (follow(&plan, conversation, &conversation.turns[at + 1..]), plan.times) {
        (Followed { reply: fault, instead_of: Some(answer) }, Some(times)) => {
            Reply::Passing { prompt, times, fault: Box::new(fault), answer }
        }
        (followed, _) => followed.reply,
    }
}

/// The next move of a plan.
struct Followed {
    reply: Reply,
    /// Where it is a fault: the answer in whose place it comes.
    instead_of: Option<Answer>,
}

/// The next move of a plan, given what happened since its prompt.
fn follow(plan: &Plan, conversation: &Conversation, since: &[Turn]) -> Followed {
    let done = Done::of(since);
    let failed = done.results.iter().any(|r| r.failed);
    if !failed && let Some(step) = plan.steps.get(done.results.len()) {
        let call = match step {
            Step::Tool { name, arguments } if tools::is_deferred(name, conversation) => {
                if done.searched {
                    Ok(tools::unlisted_call(name, arguments))
                } else {
                    tools::call(&Step::Search { name: name.clone() }, conversation)
                }
            }
            step => tools::call(step, conversation),
        };
        let reply = Reply::Answer(match call {
            Ok(call) => Answer::call(call),
            Err(unfit) => Answer::text(text::unfit(unfit, &done.results)),
        });
        return Followed { reply, instead_of: None };
    }
    end(plan, conversation, &done.results)
}

fn end(plan: &Plan, conversation: &Conversation, results: &[&ToolResult]) -> Followed {
    let mut answer = Answer::text(text::last(plan, conversation, results));
    answer.spread = plan.spread;
    let reply = match &plan.end {
        End::Text => return Followed { reply: Reply::Answer(answer), instead_of: None },
        End::Drop => Reply::Answer(Answer { cut: true, ..answer.clone() }),
        End::Hang => Reply::Hang,
        End::Status { code, message } => Reply::Status { code: *code, message: text::status(*code, message) },
    };
    Followed { reply, instead_of: Some(answer) }
}

/// What the tools answered since the prompt.
struct Done<'a> {
    results: Vec<&'a ToolResult>,
    /// A search for tools came after the last step's result.
    searched: bool,
}

impl<'a> Done<'a> {
    fn of(since: &'a [Turn]) -> Self {
        let mut done = Self { results: Vec::new(), searched: false };
        for turn in since {
            let Turn::Results(results) = turn else { continue };
            for result in results {
                if called_name(since, result).is_some_and(tools::is_search) {
                    done.searched = true;
                } else {
                    done.results.push(result);
                    done.searched = false;
                }
            }
        }
        done
    }
}

/// The tool a result belongs to.
fn called_name<'a>(turns: &'a [Turn], result: &'a ToolResult) -> Option<&'a str> {
    let calls = turns.iter().flat_map(|turn| match turn {
        Turn::Assistant { calls, .. } => calls.as_slice(),
        _ => &[],
    });
    let by_id = calls.clone().find(|call| !result.call_id.is_empty() && call.id == result.call_id);
    by_id.map(|call| call.name.as_str()).or(result.name.as_deref())
}

/// The last user turn that says something of the user's, and its place. Of several blocks with directives the last one
/// counts: a prompt that had no answer and the next one come as one message from Claude.
fn last_prompt(conversation: &Conversation) -> Option<(usize, String)> {
    let turns = conversation.turns.iter().enumerate().rev();
    turns.into_iter().find_map(|(at, turn)| {
        let said = user_blocks(turn)?;
        let from = said.iter().rposition(|block| directive::is_in(block)).unwrap_or(0);
        Some((at, said[from..].join("\n")))
    })
}

/// The first thing the user said in this conversation.
fn first_prompt(conversation: &Conversation) -> Option<String> {
    conversation.turns.iter().find_map(user_blocks).map(|said| said.join("\n"))
}

/// What the user wrote in this turn, without the context agents add to it.
fn user_blocks(turn: &Turn) -> Option<Vec<String>> {
    let Turn::User(blocks) = turn else { return None };
    let said: Vec<String> = blocks.iter().filter_map(|block| without_context(block)).collect();
    (!said.is_empty()).then_some(said)
}

/// A block without the context that agents wrap in tags of their own; `None` where nothing else is in it.
fn without_context(block: &str) -> Option<String> {
    const WRAPPED: &[&str] = &[
        "system-reminder",
        "environment_context",
        "session_context",
        "user_instructions",
        "INSTRUCTIONS",
        "permissions instructions",
        "collaboration_mode",
        "skills_instructions",
        "environment_details",
    ];
    let mut text = block.to_owned();
    for tag in WRAPPED {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        while let Some(start) = text.find(&open) {
            let Some(length) = text[start..].find(&close) else { break };
            text.replace_range(start..start + length + close.len(), "");
        }
    }
    let said = text.trim();
    let context = said.starts_with("# AGENTS.md instructions")
        || said.starts_with("This is the Gemini CLI. We are setting up the context")
        || said.starts_with("[Request interrupted by user")
        // Claude's remark beside the result of its tool search.
        || said == "Tool loaded.";
    (!said.is_empty() && !context).then(|| said.to_owned())
}

/// Requests an agent makes for itself with its tools still attached.
fn is_side_request(prompt: &str) -> bool {
    prompt.starts_with("[SUGGESTION MODE")
}

#[cfg(test)]
mod tests;
