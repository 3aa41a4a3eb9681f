//! Just enough of Rust's lexical structure to tell code from comments and text.

/// The source with comments and the insides of literals replaced by spaces, line by line as it was.
pub(super) fn code(source: &str) -> String {
    let characters: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < characters.len() {
        let end = skipped(&characters, at);
        if end > at {
            code.extend(
                characters[at..end].iter().map(|character| if *character == '\n' { '\n' } else { ' ' }),
            );
            at = end;
        } else {
            code.push(characters[at]);
            at += 1;
        }
    }
    code
}

/// The end of the comment or literal that starts at `at`; `at` itself when none does.
fn skipped(characters: &[char], at: usize) -> usize {
    let next = |offset: usize| characters.get(at + offset).copied();
    match (characters[at], next(1)) {
        ('/', Some('/')) => find(characters, at, |c| c == '\n'),
        ('/', Some('*')) => block_comment(characters, at),
        ('"', _) => string(characters, at + 1),
        ('r', Some('"' | '#')) if !continues_a_name(characters, at) => raw_string(characters, at),
        ('\'', Some('\\')) => find(characters, at + 3, |c| c == '\'') + 1,
        ('\'', Some(_)) if next(2) == Some('\'') => at + 3,
        _ => at,
    }
    .min(characters.len())
}

fn find(characters: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    (from..characters.len()).find(|index| wanted(characters[*index])).unwrap_or(characters.len())
}

fn block_comment(characters: &[char], at: usize) -> usize {
    let (mut depth, mut index) = (0, at);
    while index < characters.len() {
        match (characters[index], characters.get(index + 1)) {
            ('/', Some('*')) => (depth, index) = (depth + 1, index + 2),
            ('*', Some('/')) => (depth, index) = (depth - 1, index + 2),
            _ => index += 1,
        }
        if depth == 0 {
            break;
        }
    }
    index
}

fn string(characters: &[char], mut index: usize) -> usize {
    while index < characters.len() && characters[index] != '"' {
        index += if characters[index] == '\\' { 2 } else { 1 };
    }
    index + 1
}

/// `r"..."` and `r##"..."##`; a raw name such as `r#type` is code.
fn raw_string(characters: &[char], at: usize) -> usize {
    let quote = find(characters, at + 1, |c| c != '#');
    let hashes = quote - at - 1;
    if characters.get(quote) != Some(&'"') {
        return at;
    }
    let closes = |index: usize| {
        characters[index] == '"' && (1..=hashes).all(|offset| characters.get(index + offset) == Some(&'#'))
    };
    (quote + 1..characters.len())
        .find(|index| closes(*index))
        .map_or(characters.len(), |end| end + hashes + 1)
}

/// Whether the character before is part of the same name, as in `for"` which can't be, or `br"`, which is literal.
fn continues_a_name(characters: &[char], at: usize) -> bool {
    let is_name = |index: usize| characters[index].is_alphanumeric() || characters[index] == '_';
    match at {
        0 => false,
        1 => is_name(0) && characters[0] != 'b',
        _ => is_name(at - 1) && (characters[at - 1] != 'b' || is_name(at - 2)),
    }
}

/// Whether `word` stands in `line` as a whole word.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let is_name = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(start, _)| {
        !is_name(line[..start].chars().next_back()) && !is_name(line[start + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, visible: &[&str], hidden: &[&str]) {
        let code = code(source);
        assert_eq!(code.lines().count(), source.lines().count(), "{source}");
        for word in visible {
            assert!(has_word(&code, word), "{word} should be code in {source}");
        }
        for word in hidden {
            assert!(!code.contains(word), "{word} should be hidden in {source}");
        }
    }

    #[test]
    fn comments_are_hidden() {
        check("a // hidden\nb", &["a", "b"], &["hidden"]);
        check("a /* hidden /* hidden */ hidden\n */ b", &["a", "b"], &["hidden"]);
    }

    #[test]
    fn literals_are_hidden() {
        check(r#"a("hidden \" hidden"); b"#, &["a", "b"], &["hidden"]);
        check("a(r#\"hidden \" hidden\"#); b", &["a", "b"], &["hidden"]);
        check("a(br\"hidden\\\"); b", &["a", "b"], &["hidden"]);
        check(r"a('\''); b('\u{1f600}'); c", &["a", "b", "c"], &["1f600"]);
    }

    #[test]
    fn lifetimes_and_raw_names_are_code() {
        check("fn a<'b>(c: &'b str) { r#type }", &["a", "c", "str", "type"], &[]);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("x unsafe {", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
        assert!(!has_word("not_unsafe", "unsafe"));
    }
}
