//! Random sequences of calls against a model of a tree in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rustix::io::Errno;

use super::support::Vm;

/// Files have content, directories none. The root is implied.
#[derive(Debug, Clone, Default)]
struct Model(BTreeMap<String, Option<Vec<u8>>>);

#[derive(Debug, Clone)]
enum Call {
    Write(String, Vec<u8>),
    Stream(String, Vec<u8>, bool),
    Mkdir(String, bool),
    Rename(String, String),
    Delete(String, bool),
}

/// Few names, so that calls meet.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.iter().map(|name| format!("/{name}")).collect())
}

fn call() -> impl Strategy<Value = Call> {
    let content = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        3 => (path(), content()).prop_map(|(path, content)| Call::Write(path, content)),
        1 => (path(), content(), any::<bool>()).prop_map(|(path, content, commit)| Call::Stream(path, content, commit)),
        2 => (path(), any::<bool>()).prop_map(|(path, recursive)| Call::Mkdir(path, recursive)),
        2 => (path(), path()).prop_map(|(from, to)| Call::Rename(from, to)),
        2 => (path(), any::<bool>()).prop_map(|(path, recursive)| Call::Delete(path, recursive)),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Absent,
    File,
    Directory,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Model {
    fn kind(&self, path: &str) -> Kind {
        match self.0.get(path) {
            None if path.is_empty() => Kind::Directory,
            None => Kind::Absent,
            Some(Some(_)) => Kind::File,
            Some(None) => Kind::Directory,
        }
    }

    fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a String> {
        let prefix = format!("{path}/");
        self.0.keys().filter(move |key| key.starts_with(&prefix))
    }

    /// What looking a parent up says.
    fn parent_error(&self, path: &str) -> Option<Errno> {
        let names: Vec<&str> = parent(path).split('/').skip(1).collect();
        let mut at = String::new();
        for name in names {
            at = format!("{at}/{name}");
            match self.kind(&at) {
                Kind::Absent => return Some(Errno::NOENT),
                Kind::File => return Some(Errno::NOTDIR),
                Kind::Directory => {}
            }
        }
        None
    }

    fn make_parents(&mut self, path: &str) -> Result<(), Errno> {
        let up = parent(path).to_owned();
        match self.kind(&up) {
            Kind::Directory => Ok(()),
            Kind::File => Err(Errno::NOTDIR),
            Kind::Absent => {
                self.make_parents(&up)?;
                self.0.insert(up, None);
                Ok(())
            }
        }
    }

    fn write(&mut self, path: &str, content: &[u8], commit: bool) -> Result<(), Errno> {
        self.make_parents(path)?;
        if self.kind(path) == Kind::Directory {
            return Err(Errno::ISDIR);
        }
        if commit {
            self.0.insert(path.to_owned(), Some(content.to_vec()));
        }
        Ok(())
    }

    fn mkdir(&mut self, path: &str, recursive: bool) -> Result<(), Errno> {
        if recursive {
            match self.kind(path) {
                Kind::Directory => return Ok(()),
                Kind::File => return Err(Errno::EXIST),
                Kind::Absent => self.make_parents(path)?,
            }
        } else if let Some(errno) = self.parent_error(path) {
            return Err(errno);
        } else if self.kind(path) != Kind::Absent {
            return Err(Errno::EXIST);
        }
        self.0.insert(path.to_owned(), None);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        if let Some(errno) = self.parent_error(from) {
            return Err(errno);
        }
        if self.kind(from) == Kind::Absent {
            return Err(Errno::NOENT);
        }
        if let Some(errno) = self.parent_error(to) {
            return Err(errno);
        }
        // The kernel looks at ancestry before it looks at types.
        if to.starts_with(&format!("{from}/")) {
            return Err(Errno::INVAL);
        }
        if from.starts_with(&format!("{to}/")) {
            return Err(Errno::NOTEMPTY);
        }
        if from == to {
            return Ok(());
        }
        match (self.kind(from), self.kind(to)) {
            (Kind::File, Kind::Directory) => return Err(Errno::ISDIR),
            (Kind::Directory, Kind::File) => return Err(Errno::NOTDIR),
            (Kind::Directory, Kind::Directory) if self.below(to).next().is_some() => {
                return Err(Errno::NOTEMPTY);
            }
            _ => {}
        }
        let moved: Vec<String> = self.below(from).cloned().chain([from.to_owned()]).collect();
        for path in moved {
            if let Some(node) = self.0.remove(&path) {
                self.0.insert(format!("{to}{}", &path[from.len()..]), node);
            }
        }
        Ok(())
    }

    fn delete(&mut self, path: &str, recursive: bool) -> Result<(), Errno> {
        if let Some(errno) = self.parent_error(path) {
            return Err(errno);
        }
        if self.kind(path) == Kind::Absent {
            return Err(Errno::NOENT);
        }
        let below: Vec<String> = self.below(path).cloned().collect();
        if !recursive && !below.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        for path in below.iter().map(String::as_str).chain([path]) {
            self.0.remove(path);
        }
        Ok(())
    }

    fn apply(&mut self, call: &Call) -> Result<(), Errno> {
        match call {
            Call::Write(path, content) => self.write(path, content, true),
            Call::Stream(path, content, commit) => self.write(path, content, *commit),
            Call::Mkdir(path, recursive) => self.mkdir(path, *recursive),
            Call::Rename(from, to) => self.rename(from, to),
            Call::Delete(path, recursive) => self.delete(path, *recursive),
        }
    }
}

fn apply(vm: &Vm, call: &Call) -> Result<(), Errno> {
    let result = match call {
        Call::Write(path, content) => vm.write(path, content),
        Call::Stream(path, content, commit) => vm.open_write(path).and_then(|(ticket, sink)| {
            std::io::Write::write_all(&mut std::fs::File::from(sink), content).unwrap();
            if *commit { vm.commit(ticket) } else { vm.abort(ticket) }
        }),
        Call::Mkdir(path, recursive) => vm.mkdir(path, *recursive),
        Call::Rename(from, to) => vm.rename(from, to),
        Call::Delete(path, recursive) => vm.delete(path, *recursive),
    };
    result.map_err(|failure| Errno::from_raw_os_error(failure.errno))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_leaves_the_tree_that_was_meant(
        calls in prop::collection::vec(call(), 1..40)
    ) {
        let vm = Vm::new();
        let mut model = Model::default();
        for call in &calls {
            prop_assert_eq!(apply(&vm, call), model.apply(call), "{:?} on {:?}", call, model);
            let listed: Vec<String> = vm.list("/", None, &[]);
            let expected: Vec<String> = model.0.iter().map(|(path, node)| {
                if node.is_none() { format!("{path}/") } else { path.clone() }
            }).collect();
            let mut sorted = listed.clone();
            sorted.sort_by(|one, other| one.trim_end_matches('/').cmp(other.trim_end_matches('/')));
            prop_assert_eq!(sorted, expected);
        }
        for (path, node) in &model.0 {
            prop_assert!(vm.exists(path));
            if let Some(content) = node {
                prop_assert_eq!(&vm.read(path).unwrap(), content);
            }
        }
    }

    #[test]
    fn no_path_makes_a_call_panic_or_leave(path in prop::collection::vec(any::<u8>(), 0..60)) {
        let vm = Vm::new();
        let canary = vm.beyond("canary");
        std::fs::write(&canary, "untouched").unwrap();
        let _ = vm.write(&path, "x");
        let _ = vm.read(&path);
        let text = String::from_utf8_lossy(&path).into_owned();
        let _ = vm.delete(&text, true);
        prop_assert_eq!(std::fs::read(canary).unwrap(), b"untouched");
    }
}
