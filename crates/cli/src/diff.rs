//! A change of a file as ACP has it, two texts, as people read it.

use std::fmt::Write as _;

use serde_json::Value;

use crate::terminal::harmless_line;

/// Lines of a file that are told around a change.
pub(crate) const CONTEXT_LINES: usize = 3;

/// What a file was and is, from the first line that differs to the last one.
pub(crate) fn diff(block: &Value) -> String {
    let lines = |text: &Value| -> Vec<String> {
        text.as_str().map(|text| text.lines().map(str::to_owned).collect()).unwrap_or_default()
    };
    let (old, new) = (lines(&block["oldText"]), lines(&block["newText"]));
    let path = harmless_line(block["path"].as_str().unwrap_or_default());
    let was = if block["oldText"].is_null() { "/dev/null" } else { &path };
    let mut out = format!("--- {was}\n+++ {path}\n");
    let shorter = old.len().min(new.len());
    let same =
        |pairs: &mut dyn Iterator<Item = (&String, &String)>| pairs.take_while(|(a, b)| a == b).count();
    let before = same(&mut old.iter().zip(&new));
    let after = same(&mut old.iter().rev().zip(new.iter().rev())).min(shorter - before);
    let first = before.saturating_sub(CONTEXT_LINES);
    let context = after.min(CONTEXT_LINES);
    let (old_end, new_end) = (old.len() - after, new.len() - after);
    // A range without lines is named by the line before it.
    let range = |length: usize| if length == 0 { (first, 0) } else { (first + 1, length) };
    let (old_range, new_range) = (range(old_end + context - first), range(new_end + context - first));
    // Writing to a String can't fail.
    let _ = writeln!(out, "@@ -{},{} +{},{} @@", old_range.0, old_range.1, new_range.0, new_range.1);
    let mut put = |sign: char, lines: &[String]| {
        for line in lines {
            out.push(sign);
            out.push_str(line);
            out.push('\n');
        }
    };
    put(' ', &old[first..before]);
    put('-', &old[before..old_end]);
    put('+', &new[before..new_end]);
    put(' ', &old[old_end..old_end + context]);
    out
}
