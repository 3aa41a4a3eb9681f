//! What reaches the user's terminal: text of agents made harmless, colours only where they are wanted, and writes that
//! report a closed pipe instead of panicking.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// Makes control sequences visible, so that text from a VM can't move the cursor, rename the window, hide what stands
/// there or turn the writing direction round. Newlines and tabs stay; a carriage return goes.
pub(crate) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => {}
            '\0'..='\x1f' => {
                out.push('^');
                out.push(char::from(c as u8 + b'@'));
            }
            '\x7f' => out.push_str("^?"),
            '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}' => {
                // Writing to a String can't fail.
                let _ = write!(out, "<U+{:04X}>", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// As [`harmless`], on one line: for names and titles.
pub(crate) fn harmless_line(text: &str) -> String {
    harmless(text).replace('\n', "^J").replace('\t', "^I")
}

/// A character that a terminal, or an eye, may take for something else than a letter.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// One line of JSON in which no character controls a terminal either.
pub(crate) fn json_line(value: &serde_json::Value) -> String {
    let json = value.to_string();
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        // Only in strings: everything else of JSON is ASCII without DEL. Writing to a String can't fail.
        if is_hidden(c) || c == '\x7f' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

/// Colours for one stream; empty strings where they are not wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Palette {
    colours: bool,
}

impl Palette {
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colours: false }
    }

    pub(crate) fn for_stdout() -> Self {
        Self { colours: wanted(io::stdout().is_terminal()) }
    }

    pub(crate) fn for_stderr() -> Self {
        Self { colours: wanted(io::stderr().is_terminal()) }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }
}

/// <https://no-color.org>: any non-empty value means no colours.
fn wanted(is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes text to standard output at once.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::from_stdout)
}

/// Tells the user something that is not the result. Nobody to tell it to is no failure.
pub(crate) fn notice(text: &str) {
    let _ = writeln!(
        io::stderr().lock(),
        "{}",
        Palette::for_stderr().dim(&format!("agentos: {}", harmless(text)))
    );
}

/// Rows with aligned columns; the last one runs free.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_become_visible() {
        assert_eq!(harmless("\x1b]0;owned\x07"), "^[]0;owned^G");
        assert_eq!(harmless("a\u{9b}2Jb"), "a<U+009B>2Jb");
        assert_eq!(harmless("a\tb\r\nc\x7f\x08"), "a\tb\nc^?^H");
        assert_eq!(harmless_line("a\nb\tc"), "a^Jb^Ic");
    }

    #[test]
    fn text_that_turns_the_direction_round_becomes_visible() {
        assert_eq!(harmless("exe.\u{202e}txt"), "exe.<U+202E>txt");
    }

    #[test]
    fn json_is_the_same_value_without_a_control_character() {
        let value = serde_json::json!({ "a": "\x1b[2J \u{9b}2J \u{202e} \x7f \u{e0041} \u{1f642}" });
        let line = json_line(&value);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
        assert!(!line.trim_end().contains(|c: char| c.is_control() || is_hidden(c)), "{line:?}");
        assert!(line.contains('\u{1f642}'));
    }

    #[test]
    fn other_text_stays_as_it_is() {
        let text = "naïve — 日本語 🙂\n\tx";
        assert_eq!(harmless(text), text);
    }

    #[test]
    fn columns_are_aligned_and_lines_not_padded() {
        let rows = [["a".to_owned(), "b".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(table(&rows), "a     b\nlong\n");
    }
}
