//! What a test executable printed, as data.
//!
//! The line-based output of libtest is its only stable one. The summary line is the authority on how many tests
//! passed; the lines above it give names. Output of child processes can end up in the middle of a line, so a name
//! may be missing, but a test is never counted twice or invented.

/// What one executable, or one doc-test run with several summaries, reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) failed_names: Vec<String>,
    pub(crate) ignored_names: Vec<String>,
    pub(crate) ignored: usize,
    /// How many summary lines there were; none means that the executable ended before its end.
    pub(crate) summaries: usize,
}

pub(crate) fn parse(output: &str) -> Report {
    let mut report = Report::default();
    for line in output.lines() {
        if let Some(summary) = line.strip_prefix("test result: ") {
            report.summaries += 1;
            report.passed += count(summary, "passed");
            report.failed += count(summary, "failed");
            report.ignored += count(summary, "ignored");
        } else if let Some((name, verdict)) = verdict(line) {
            match verdict {
                Verdict::Failed => report.failed_names.push(name),
                Verdict::Ignored => report.ignored_names.push(name),
            }
        }
    }
    report
}

enum Verdict {
    Failed,
    Ignored,
}

/// The name and verdict of a `test NAME ... VERDICT` line, unless the verdict is `ok`.
fn verdict(line: &str) -> Option<(String, Verdict)> {
    let (name, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    // `#[should_panic]` tests are listed with a remark behind their name.
    let name = name.strip_suffix(" - should panic").unwrap_or(name).trim().to_owned();
    if verdict.ends_with("FAILED") {
        Some((name, Verdict::Failed))
    } else if verdict.starts_with("ignored") {
        Some((name, Verdict::Ignored))
    } else {
        None
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; ...`.
fn count(summary: &str, word: &str) -> usize {
    summary
        .split(['.', ';'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passing_executable_is_counted() {
        let report = parse(
            "\nrunning 2 tests\ntest a::b ... ok\ntest c ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(report, Report { passed: 2, summaries: 1, ..Report::default() });
    }

    #[test]
    fn failed_and_ignored_tests_are_named() {
        let report = parse(
            "test a - should panic ... FAILED\ntest b ... ignored, too slow\ntest c ... ok\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0s\n",
        );
        assert_eq!((report.passed, report.failed, report.ignored), (1, 1, 1));
        assert_eq!(report.failed_names, ["a"]);
        assert_eq!(report.ignored_names, ["b"]);
    }

    #[test]
    fn several_summaries_are_added() {
        let one = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";
        let report = parse(&one.repeat(2));
        assert_eq!((report.passed, report.ignored, report.summaries), (4, 2, 2));
    }

    #[test]
    fn an_executable_that_died_has_no_summary() {
        assert_eq!(parse("running 2 tests\ntest a ... ok\n").summaries, 0);
    }

    #[test]
    fn output_in_the_middle_of_a_line_does_not_hide_a_failure() {
        let report = parse("test a ... noise of a child\nFAILED\ntest b ... more noise FAILED\n");
        assert_eq!(report.failed_names, ["b"]);
    }

    #[test]
    fn a_test_that_prints_numbers_does_not_change_the_count() {
        let report = parse("3 passed; 4 failed\ntest result: ok. 1 passed; 0 failed; 0 ignored\n");
        assert_eq!((report.passed, report.failed), (1, 0));
    }
}
