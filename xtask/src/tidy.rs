//! `cargo xtask tidy`: the rules of the project that neither the compiler nor clippy checks.
//!
//! - [`imports`]: which crate may know which, over `cargo metadata`
//! - [`manifests`]: lints inherited everywhere, one version of every dependency
//! - [`source`]: unsafe code, file length, module stories, unbounded channels, sleeping tests
//! - [`text`]: unfinished work, paths of somebody's machine, dead links, white space
//!
//! Every rule is a plain function from what was read to the problems found, with a test that shows it a bad example.
//! The whole check is also a test of this package, so that the project's test run covers it.

mod imports;
mod manifests;
mod rust;
mod source;
mod text;

use crate::{Failure, workspace};
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

/// Built, fetched or not ours.
const NOT_OURS: &[&str] = &["target", ".git", "node_modules", "dist", "corpus", "artifacts"];

/// One thing to put right.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// Path from the root of the tree, with a line where there is one.
    place: String,
    what: String,
}

impl Problem {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }

    /// Lines are counted from one, as editors do.
    fn at(path: &str, line_index: usize, what: impl Into<String>) -> Self {
        Self::new(format!("{path}:{}", line_index + 1), what)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.what)
    }
}

/// One text file of the tree.
#[derive(Debug)]
struct File {
    /// From the root of the tree, with `/`.
    path: String,
    text: String,
}

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Failure> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("tidy takes no argument, `{unknown}` was given").into());
    }
    let problems = check(&workspace::root()?)?;
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("tidy");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} problems", problems.len());
    Ok(ExitCode::FAILURE)
}

fn check(root: &Path) -> Result<Vec<Problem>, Failure> {
    let mut problems = Vec::new();
    let files = read_tree(root, &mut problems)?;
    problems.extend(imports::check(&workspace::metadata(root)?));
    problems.extend(manifests::check(&files)?);
    problems.extend(files.iter().flat_map(source::check));
    problems.extend(text::check(root, &files));
    Ok(problems)
}

/// Every text file of the tree. Files of other kinds are data: they are only measured.
fn read_tree(root: &Path, problems: &mut Vec<Problem>) -> Result<Vec<File>, Failure> {
    /// A repository is cloned whole by everybody; what is larger belongs elsewhere.
    const LARGEST_BYTES: usize = 1024 * 1024;
    let mut files = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() && !NOT_OURS.iter().any(|name| entry.file_name() == *name) {
                directories.push(path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path)?;
                let path = path.strip_prefix(root)?.to_string_lossy().into_owned();
                if bytes.len() > LARGEST_BYTES {
                    problems.push(Problem::new(&path, format!("{} bytes in one file", bytes.len())));
                }
                if let Ok(text) = String::from_utf8(bytes) {
                    files.push(File { path, text });
                }
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let problems = check(&workspace::root().unwrap()).unwrap();
        let list: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert!(list.is_empty(), "{}", list.join("\n"));
    }
}
