//! The policy is data: what the parsers take and what they refuse, with the line.

use crate::SOURCES;
use crate::generator::policy::Action;
use crate::generator::source::{CALLS, CONSTANTS, POLICY, Problem, SourceError};
use crate::generator::{Checked, Sources, check};

const TABLE: &str = "# Numbers.\nread 0 63\nopen 2 -\nsocket 41 198\n";
const NUMBERS: &str = "# Numbers.\nEPERM = 1\nENOSYS = 38\nAF_UNIX = 1\n";
const TEXT: &str = "\
# Files.
allow read
EPERM open

rule socket  # Sockets.
    allow when arg0 == AF_UNIX  # Local.
    EPERM otherwise  # All else.
";

fn read(calls: &str, constants: &str, policy: &str) -> Result<Checked, SourceError> {
    check(&Sources { calls, constants, policy })
}

/// `TEXT` with one part replaced is refused for this reason on this line.
fn refused(part: &str, by: &str, line: usize, problem: &Problem) {
    assert!(TEXT.contains(part), "{part}");
    let error = read(TABLE, NUMBERS, &TEXT.replace(part, by)).unwrap_err();
    assert_eq!((error.file, error.line, &error.problem), (POLICY, line, problem), "{error}");
}

#[test]
fn the_text_these_tests_break_is_good() {
    let checked = read(TABLE, NUMBERS, TEXT).unwrap();
    assert_eq!(checked.policy.decisions["read"].otherwise, Action::Allow);
    assert_eq!(checked.policy.decisions["open"].otherwise, Action::Errno(1));
    assert_eq!(checked.policy.decisions["socket"].clauses.len(), 1);
    assert_eq!(checked.policy.unlisted, Action::Errno(38));
}

#[test]
fn the_repository_s_texts_are_good() {
    let checked = check(&SOURCES).unwrap();
    assert_eq!(checked.policy.decisions.len(), checked.calls.rows.len());
}

#[test]
fn every_line_needs_a_reason() {
    refused("# Files.\n", "", 1, &Problem::NoReason);
    refused("# Files.\n", "#\n", 2, &Problem::NoReason);
    refused("# Sockets.", "", 5, &Problem::NoReason);
    refused("# Local.", "#  ", 6, &Problem::NoReason);
    refused("# Files.\n", "# Files.\n\n", 3, &Problem::NoReason);
    assert!(
        read(
            TABLE,
            NUMBERS,
            &TEXT.replace("allow read", "# Why.\n\nallow read # Why.").replace("open", "open # Why.")
        )
        .is_ok()
    );
}

#[test]
fn unknown_and_repeated_names_are_refused() {
    refused("allow read", "allow raed", 2, &Problem::UnknownCall("raed".to_owned()));
    refused("EPERM open", "EPERM open read", 3, &Problem::Repeated("read".to_owned(), 2));
    refused("allow read", "allow read read", 2, &Problem::Repeated("read".to_owned(), 2));
    refused("EPERM open", "EPREM open", 3, &Problem::UnknownConstant("EPREM".to_owned()));
    refused("EPERM open", "refuse open", 3, &Problem::UnknownAction("refuse".to_owned()));
    refused("AF_UNIX", "AF_LOCAL", 6, &Problem::UnknownConstant("AF_LOCAL".to_owned()));
    refused("AF_UNIX", "0x1ffffffff", 6, &Problem::NotANumber("0x1ffffffff".to_owned()));
    refused("AF_UNIX", "010", 6, &Problem::NotANumber("010".to_owned()));
}

#[test]
fn every_call_of_the_table_must_be_decided() {
    let error = read(TABLE, NUMBERS, &TEXT.replace("EPERM open\n", "")).unwrap_err();
    assert_eq!((error.file, error.line), (CALLS, 3));
    assert_eq!(
        error.to_string(),
        "resources/seccomp/syscalls.table:3: `open` is not decided in guest.policy"
    );
}

#[test]
fn rules_must_be_whole() {
    let clauses = Problem::Shape("`ACTION when CONDITION` or `ACTION otherwise`");
    let conditions = Problem::Shape("`argN == A,B`, `argN & M`, `argN & M == A,B` or `argN within M`");
    refused("    EPERM otherwise  # All else.\n", "", 5, &Problem::NoOtherwise);
    refused("    allow when", "    EPERM otherwise  # Early.\n    allow when", 7, &Problem::AfterOtherwise);
    refused("    EPERM otherwise", "EPERM otherwise", 5, &Problem::NoOtherwise);
    refused("rule socket", "EPERM socket", 6, &Problem::Shape("a `rule` above an indented line"));
    refused("allow when", "allow if", 6, &clauses);
    refused("EPERM otherwise", "EPERM", 7, &clauses);
    for bad in ["arg6 == 1", "arg == 1", "arg0 = 1", "arg0 == 1 2", "arg0 == 1 and", "arg0 > 1", "arg00 == 1"]
    {
        refused("arg0 == AF_UNIX", bad, 6, &conditions);
    }
    for bad in ["arg0 & 0", "arg0 & 0 == 0", "arg0 & 1 == 2", "arg0 within 0xffffffff"] {
        refused("arg0 == AF_UNIX", bad, 6, &Problem::Pointless(bad.to_owned()));
    }
    refused("EPERM open", "EPERM", 3, &Problem::Shape("an action and the calls it goes for"));
}

#[test]
fn tables_are_strict_too() {
    let fails = |calls: &str, constants: &str, file: &str, line: usize, problem: &Problem| {
        let error = read(calls, constants, TEXT).unwrap_err();
        assert_eq!((error.file, error.line, &error.problem), (file, line, problem), "{error}");
    };
    let with_call = |row: &str| format!("{TABLE}{row}\n");
    fails(&with_call("read 7 7"), NUMBERS, CALLS, 5, &Problem::Repeated("read".to_owned(), 2));
    fails(&with_call("other 2 7"), NUMBERS, CALLS, 5, &Problem::Repeated("2".to_owned(), 3));
    fails(&with_call("other 7 63"), NUMBERS, CALLS, 5, &Problem::Repeated("63".to_owned(), 2));
    fails(&with_call("other 7"), NUMBERS, CALLS, 5, &Problem::Shape("a name and two numbers or `-`"));
    fails(
        &with_call("other - -"),
        NUMBERS,
        CALLS,
        5,
        &Problem::Shape("a number on one architecture at least"),
    );
    fails(&with_call("other x 7"), NUMBERS, CALLS, 5, &Problem::NotANumber("x".to_owned()));

    let with_constant = |row: &str| format!("{NUMBERS}{row}\n");
    fails(TABLE, &with_constant("AF_INET = 2"), CONSTANTS, 5, &Problem::UnusedConstant("AF_INET".to_owned()));
    fails(TABLE, &with_constant("EPERM = 2"), CONSTANTS, 5, &Problem::Repeated("EPERM".to_owned(), 2));
    fails(TABLE, &with_constant("AF_INET 2"), CONSTANTS, 5, &Problem::Shape("NAME = value"));
    fails(TABLE, &with_constant("inet = 2"), CONSTANTS, 5, &Problem::Shape("a NAME in capitals"));
    fails(
        TABLE,
        &with_constant("BOTH = EPERM|NEXT"),
        CONSTANTS,
        5,
        &Problem::UnknownConstant("NEXT".to_owned()),
    );
    let zero = NUMBERS.replace("EPERM = 1", "EPERM = 0");
    fails(TABLE, &zero, POLICY, 3, &Problem::NotAnErrno(0));
}
