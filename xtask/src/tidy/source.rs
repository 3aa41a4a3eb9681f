//! Rules over one Rust file.

use super::rust::{code, has_word};
use super::{File, Problem};

/// A longer file is doing more than one thing.
const LONGEST_LINES: usize = 600;
/// From here on a file needs to say what it is for.
const NEEDS_STORY_LINES: usize = 40;
/// The one place for unsafe code.
const UNSAFE_IS_FINE: &str = "crates/linux/";
/// The one file besides that may lift the compiler's ban, for what the macros of Node-API generate. Unsafe code by hand
/// is a problem there as anywhere.
const MAY_LIFT_THE_BAN: &str = "sdk/typescript/native/src/lib.rs";
/// A pause between two looks at a condition is no wait for time; functions that poll are named for it.
const POLLING: &[&str] = &["wait", "eventually", "until", "poll", "leftovers"];

pub(super) fn check(file: &File) -> Vec<Problem> {
    if !file.path.ends_with(".rs") {
        return Vec::new();
    }
    let code = code(&file.text);
    let lines: Vec<&str> = code.lines().collect();
    let production = if is_test_file(&file.path) { 0 } else { production_lines(&lines) };
    let mut problems = Vec::new();
    if production > LONGEST_LINES {
        let what = format!("{production} lines, {LONGEST_LINES} at most (tests not counted)");
        problems.push(Problem::new(&file.path, what));
    }
    if production > NEEDS_STORY_LINES && !file.text.starts_with("//!") {
        problems.push(Problem::new(&file.path, "needs a `//!` text at the top that says what it is for"));
    }
    for (index, line) in lines.iter().enumerate() {
        if let Some(what) = by_hand(&file.path, line).or_else(|| unfinished(line)).or_else(|| unbounded(line))
        {
            problems.push(Problem::at(&file.path, index, what));
        }
        if index >= production && sleeps(line) && !is_polling(&lines[..index]) {
            let what = "a test waits for a condition with a deadline, not for time to pass";
            problems.push(Problem::at(&file.path, index, what));
        }
    }
    problems
}

fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.contains("/benches/") || path.ends_with("/tests.rs")
}

/// The lines before the unit tests at the end of the file.
fn production_lines(lines: &[&str]) -> usize {
    let starts_tests = |pair: &[&str]| {
        pair[0].trim_end() == "#[cfg(test)]"
            && pair[1].starts_with("mod ")
            && pair[1].trim_end().ends_with('{')
    };
    lines.windows(2).position(starts_tests).unwrap_or(lines.len())
}

fn by_hand(path: &str, line: &str) -> Option<&'static str> {
    if path.starts_with(UNSAFE_IS_FINE) {
        return None;
    }
    if has_word(line, "unsafe_code") && path != MAY_LIFT_THE_BAN {
        return Some("the ban on unsafe code is lifted where macros generate it, and nowhere else");
    }
    has_word(line, "unsafe").then_some("unsafe code belongs to crates/linux")
}

fn unfinished(line: &str) -> Option<&'static str> {
    let macros = [concat!("to", "do!"), concat!("unimple", "mented!")];
    if macros.iter().any(|name| line.contains(name)) {
        return Some("unfinished code");
    }
    let ignored = concat!("#[ig", "nore");
    line.contains(ignored)
        .then_some("a test that can't run says why through AGENTOS_TEST_SKIPS, see CONTRIBUTING.md")
}

/// `std::sync::mpsc::channel` takes no bound, tokio's takes one; a oneshot channel holds one message by its nature.
fn unbounded(line: &str) -> Option<&'static str> {
    let without_bound =
        |call: &str| call.starts_with("()") || (call.starts_with("::<") && call.contains(">()"));
    let is_unbounded = has_word(line, "unbounded_channel")
        || has_word(line, "UnboundedSender")
        || line.split("mpsc::channel").skip(1).any(without_bound);
    is_unbounded.then_some("channels have a bound")
}

fn sleeps(line: &str) -> bool {
    has_word(line, "sleep") && (line.contains("sleep(") || line.trim_start().starts_with("use "))
}

/// Whether the function around the end of `before` is one that polls, or a test whose clock is paused: there, sleeping
/// takes no time and is exact.
fn is_polling(before: &[&str]) -> bool {
    let Some(start) = before.iter().rposition(|line| line.contains("fn ")) else { return false };
    let name = before[start].split_once("fn ").map_or("", |(_, rest)| rest);
    let attribute = start.checked_sub(1).map_or("", |above| before[above]);
    POLLING.iter().any(|start| name.starts_with(start)) || attribute.contains("start_paused = true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        check(&File { path: path.to_owned(), text: text.to_owned() }).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn unsafe_code_is_found_outside_of_its_crate() {
        let block = format!("fn a() {{ {} {{}} }}\n", "unsafe");
        assert_eq!(problems("crates/vm/src/a.rs", &block).len(), 1);
        assert!(problems("crates/linux/src/a.rs", &block).is_empty());
        assert!(problems("crates/vm/src/a.rs", "// unsafe\nconst A: &str = \"unsafe\";\n").is_empty());
    }

    #[test]
    fn the_ban_on_unsafe_code_is_lifted_in_one_file_where_none_is_written_by_hand() {
        let lift = "#![allow(\n    unsafe_code,\n    reason = \"generated\"\n)]\n";
        assert_eq!(problems("crates/vm/src/lib.rs", lift).len(), 1);
        assert!(problems(MAY_LIFT_THE_BAN, lift).is_empty());
        let block = format!("{lift}fn a() {{ {} {{}} }}\n", "unsafe");
        assert_eq!(problems(MAY_LIFT_THE_BAN, &block).len(), 1);
    }

    #[test]
    fn a_long_file_is_a_problem_and_its_tests_do_not_count() {
        let long = format!("//! Story.\n{}", "fn a() {}\n".repeat(LONGEST_LINES));
        assert_eq!(problems("crates/vm/src/a.rs", &long).len(), 1);
        assert!(problems("crates/vm/tests/a.rs", &long).is_empty());
        let tested =
            format!("//! Story.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn a() {}\n".repeat(LONGEST_LINES));
        assert!(problems("crates/vm/src/a.rs", &tested).is_empty());
    }

    #[test]
    fn a_file_without_a_story_is_a_problem() {
        let silent = "fn a() {}\n".repeat(NEEDS_STORY_LINES + 1);
        assert_eq!(problems("crates/vm/src/a.rs", &silent).len(), 1);
        assert!(problems("crates/vm/src/a.rs", &format!("//! Why.\n{silent}")).is_empty());
    }

    #[test]
    fn unfinished_and_ignored_code_is_found() {
        assert_eq!(problems("crates/vm/src/a.rs", concat!("fn a() { to", "do!() }\n")).len(), 1);
        assert_eq!(problems("crates/vm/src/a.rs", concat!("#[ig", "nore = \"slow\"]\n")).len(), 1);
    }

    #[test]
    fn unbounded_channels_are_found() {
        assert_eq!(problems("crates/vm/src/a.rs", "let (a, b) = mpsc::channel();\n").len(), 1);
        assert_eq!(problems("crates/vm/src/a.rs", "let (a, b) = mpsc::channel::<u8>();\n").len(), 1);
        assert_eq!(problems("crates/vm/src/a.rs", "let (a, b) = mpsc::unbounded_channel();\n").len(), 1);
        assert!(problems("crates/vm/src/a.rs", "let (a, b) = mpsc::channel(16);\n").is_empty());
        assert!(problems("crates/vm/src/a.rs", "let (a, b) = oneshot::channel();\n").is_empty());
    }

    #[test]
    fn a_test_that_sleeps_is_found_and_one_that_polls_is_not() {
        let sleeping = "fn it_works() {\n    thread::sleep(SECOND);\n}\n";
        assert_eq!(problems("crates/vm/tests/a.rs", sleeping).len(), 1);
        assert!(problems("crates/vm/src/a.rs", sleeping).is_empty());
        let polling = "fn wait_for(condition: impl Fn() -> bool) {\n    thread::sleep(PAUSE);\n}\n";
        assert!(problems("crates/vm/tests/a.rs", polling).is_empty());
        let paused = format!("#[tokio::test(start_paused = true)]\nasync {sleeping}");
        assert!(problems("crates/vm/tests/a.rs", &paused).is_empty());
        let unit = format!("#[cfg(test)]\nmod tests {{\n{sleeping}}}\n");
        assert_eq!(problems("crates/vm/src/a.rs", &unit).len(), 1);
    }
}
