//! Rules over every text file: code, manifests, documents.

use super::rust::has_word;
use super::{File, Problem};
use std::path::{Path, PathBuf};

/// Work that somebody meant to do belongs into an issue, where it can be seen.
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// Kinds of files that people write; recorded data is left as it was recorded.
const WRITTEN: &[&str] = &[".rs", ".toml", ".md", ".proto", ".sh", ".ts", ".mts", ".mjs", ".cjs", "/run"];

pub(super) fn check(root: &Path, files: &[File]) -> Vec<Problem> {
    let machine = machine_paths(root);
    let mut problems = Vec::new();
    for file in files {
        let written = WRITTEN.iter().any(|end| file.path.ends_with(end));
        for (index, line) in file.text.split('\n').enumerate() {
            let whats = [
                personal(line, &machine),
                written.then(|| unfinished(line)).flatten(),
                written.then(|| white_space(line)).flatten(),
            ];
            problems.extend(whats.into_iter().flatten().map(|what| Problem::at(&file.path, index, what)));
        }
        if written && !file.text.is_empty() && !file.text.ends_with('\n') {
            problems.push(Problem::new(&file.path, "needs a newline at its end"));
        }
        if file.path.ends_with(".md") {
            problems.extend(dead_links(file, |target| root.join(target).exists()));
        }
    }
    problems
}

/// Directories that exist only on the machine at hand: where this tree lies and where cargo keeps its files.
fn machine_paths(root: &Path) -> Vec<String> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let default = std::env::home_dir().map(|home| home.join(".cargo"));
    [Some(root.to_path_buf()), cargo_home, default]
        .into_iter()
        .flatten()
        // A tree at the top of the file system has a name that may well be an ordinary word.
        .filter(|path| path.components().count() > 2)
        .map(|path| path.display().to_string())
        .collect()
}

fn personal(line: &str, machine: &[String]) -> Option<String> {
    machine
        .iter()
        .find(|path| line.contains(path.as_str()))
        .map(|path| format!("names a path of one machine: {path}"))
}

fn unfinished(line: &str) -> Option<String> {
    UNFINISHED
        .iter()
        .find(|word| has_word(line, word))
        .map(|word| format!("{word}: finish it or open an issue"))
}

fn white_space(line: &str) -> Option<String> {
    (line.ends_with([' ', '\t', '\r'])).then(|| "white space at the end of the line".to_owned())
}

/// Links to files of the tree whose target is not there.
fn dead_links(file: &File, exists: impl Fn(&Path) -> bool) -> Vec<Problem> {
    let directory = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            let is_elsewhere = target.is_empty() || target.contains(':');
            if !is_elsewhere && !exists(&directory.join(target)) {
                problems.push(Problem::at(
                    &file.path,
                    index,
                    format!("links to {target}, which is not there"),
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str) -> Vec<Problem> {
        check(
            Path::new("/somewhere/on/this/machine"),
            &[File { path: path.to_owned(), text: text.to_owned() }],
        )
    }

    #[test]
    fn good_text_has_no_problems() {
        assert!(check_one("a.rs", "fn a() {}\n").is_empty());
    }

    #[test]
    fn unfinished_work_is_found_in_comments_too() {
        for word in UNFINISHED {
            assert_eq!(check_one("a.rs", &format!("// {word}: later\n")).len(), 1);
        }
        assert!(check_one("a.rs", concat!("mktemp x.XX", "XXXX\n")).is_empty());
    }

    #[test]
    fn a_path_of_this_machine_is_found_in_any_file() {
        assert_eq!(check_one("data.json", "\"/somewhere/on/this/machine/target\"\n").len(), 1);
    }

    #[test]
    fn white_space_at_the_end_is_found() {
        assert_eq!(check_one("a.md", "text \n").len(), 1);
        assert_eq!(check_one("a.md", "text\r\n").len(), 1);
        assert_eq!(check_one("a.md", "text").len(), 1);
        assert!(check_one("recorded.txt", "text \n").is_empty());
    }

    #[test]
    fn dead_links_are_found() {
        let file = |text: &str| File { path: "docs/a.md".to_owned(), text: text.to_owned() };
        let exists = |path: &Path| path == Path::new("docs/there.md");
        assert_eq!(dead_links(&file("[a](gone.md) [b](there.md#part)\n"), exists).len(), 1);
        assert!(dead_links(&file("[a](https://example.org) [b](#here)\n"), exists).is_empty());
    }
}
