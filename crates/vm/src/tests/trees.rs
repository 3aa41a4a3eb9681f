//! Directories as values, against an init that says what the test tells it to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use agentos_guest_protocol::filesystem::{
    DirEntry, FileCall, FileFailure, FileRequest, FileResponse, FileType,
};
use agentos_guest_protocol::init::Failure;
use bytes::Bytes;

use super::fake::{FakeInit, World, bytes, file, soon};
use crate::tree::{Tree, TreeError, TreeFile, TreeLimits};

const LIMITS: TreeLimits = TreeLimits { files: 10, bytes: 1000 };

/// A file of the scripted VM: its content, mode, and time of change.
#[derive(Clone)]
struct Played(&'static str, u32, i64);

/// Answers for a VM that has these files below /state, a link among them, and notes what it is asked.
async fn play(init: FakeInit, files: BTreeMap<&'static str, Played>, asked: Arc<Mutex<Vec<String>>>) {
    loop {
        let (id, request) = init.file_request().await;
        let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
        let note = |what: String| asked.lock().unwrap().push(what);
        match request {
            FileRequest::ReadDirRecursive { .. } => {
                let entry = |(path, Played(content, mode, mtime_ns)): (&&str, &Played)| DirEntry {
                    path: bytes(*path),
                    file_type: FileType::File,
                    size_bytes: content.len() as u64,
                    mode: 0o100_000 | *mode,
                    mtime_ns: *mtime_ns,
                };
                let mut entries: Vec<_> = files.iter().map(entry).collect();
                let link = DirEntry {
                    path: bytes("/state/link"),
                    file_type: FileType::Symlink,
                    ..entries[0].clone()
                };
                entries.push(link);
                init.answer(id, file(FileResponse::Entries(entries)), Vec::new());
            }
            FileRequest::ReadPlain { path } => {
                note(format!("read {}", text(&path)));
                match files.get(text(&path).as_str()) {
                    Some(Played("gone", ..)) | None => {
                        let failure = FileFailure { errno: 2, call: FileCall::Open, path };
                        init.fail(id, Failure::File(failure));
                    }
                    // Longer than it was said to be.
                    Some(Played("grows", ..)) => {
                        init.answer(id, file(FileResponse::Content(vec![b'x'; 2000].into())), Vec::new());
                    }
                    Some(Played(content, ..)) => {
                        let content = content.as_bytes().to_vec().into();
                        init.answer(id, file(FileResponse::Content(content)), Vec::new());
                    }
                }
            }
            FileRequest::Write { path, content } => {
                note(format!("write {} {}", text(&path), text(&content)));
                init.answer(id, file(FileResponse::Done), Vec::new());
            }
            FileRequest::SetMode { path, mode } => {
                note(format!("mode {} {mode:o}", text(&path)));
                init.answer(id, file(FileResponse::Done), Vec::new());
            }
            FileRequest::Mkdir { path, .. } => {
                note(format!("mkdir {}", text(&path)));
                init.answer(id, file(FileResponse::Done), Vec::new());
            }
            other => panic!("{other:?}"),
        }
    }
}

fn tree_file(path: &str, mode: u32, mtime_ns: i64, content: &'static str) -> TreeFile {
    TreeFile { path: path.into(), mode, mtime_ns, content: Bytes::from_static(content.as_bytes()) }
}

/// Reads /state of such a VM.
async fn read(
    files: &[(&'static str, Played)],
    limits: TreeLimits,
    former: Option<&Tree>,
) -> (Result<Tree, TreeError>, Vec<String>) {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let asked = Arc::default();
    let player = tokio::spawn(play(init, files.iter().cloned().collect(), Arc::clone(&asked)));
    let tree = soon(vm.read_tree(b"/state", limits, former)).await;
    player.abort();
    let asked = asked.lock().unwrap().clone();
    (tree, asked)
}

#[tokio::test]
async fn a_tree_has_the_regular_files_with_their_permissions_and_no_link() {
    let files = [("/state/a", Played("one", 0o4755, 5)), ("/state/dir/b", Played("two", 0o600, 6))];
    let (tree, asked) = read(&files, LIMITS, None).await;
    let expected = vec![tree_file("a", 0o755, 5, "one"), tree_file("dir/b", 0o600, 6, "two")];
    assert_eq!(tree.unwrap().files, expected);
    assert_eq!(asked, ["read /state/a", "read /state/dir/b"]);
}

#[tokio::test]
async fn what_has_not_changed_is_not_read_again() {
    let former = Tree {
        files: vec![
            tree_file("same", 0o644, 5, "same"),
            tree_file("later", 0o644, 5, "later"),
            tree_file("longer", 0o644, 5, "long"),
            tree_file("deleted", 0o644, 5, "deleted"),
        ],
    };
    let files = [
        ("/state/later", Played("LATER", 0o644, 6)),
        ("/state/longer", Played("longer", 0o644, 5)),
        ("/state/same", Played("never read", 0o600, 5)),
    ];
    // The size of what is listed is that of the former content.
    let files = files.map(|(path, played)| match path {
        "/state/same" => (path, Played("same", played.1, played.2)),
        _ => (path, played),
    });
    let (tree, asked) = read(&files, LIMITS, Some(&former)).await;
    let expected = vec![
        tree_file("later", 0o644, 6, "LATER"),
        tree_file("longer", 0o644, 5, "longer"),
        tree_file("same", 0o600, 5, "same"),
    ];
    assert_eq!(tree.unwrap().files, expected);
    assert_eq!(asked, ["read /state/later", "read /state/longer"]);
}

#[tokio::test]
async fn limits_hold_before_and_while_files_are_read() {
    let files = [("/state/a", Played("one", 0o644, 5)), ("/state/b", Played("two", 0o644, 5))];
    let (few, asked) = read(&files, TreeLimits { files: 1, bytes: 1000 }, None).await;
    assert!(matches!(few, Err(TreeError::TooManyFiles { limit: 1 })), "{few:?}");
    let (small, more) = read(&files, TreeLimits { files: 2, bytes: 5 }, None).await;
    assert!(matches!(small, Err(TreeError::TooManyBytes { limit: 5 })), "{small:?}");
    assert!(asked.is_empty() && more.is_empty(), "nothing is read of what is known to be too much");
    let (exact, _) = read(&files, TreeLimits { files: 2, bytes: 6 }, None).await;
    assert_eq!(exact.unwrap().files.len(), 2);
    let (lied, _) = read(&[("/state/a", Played("grows", 0o644, 5))], LIMITS, None).await;
    assert!(matches!(lied, Err(TreeError::TooManyBytes { limit: 1000 })), "{lied:?}");
}

#[tokio::test]
async fn a_file_that_goes_meanwhile_is_left_out() {
    let files = [("/state/a", Played("gone", 0o644, 5)), ("/state/b", Played("two", 0o644, 5))];
    let (tree, _) = read(&files, LIMITS, None).await;
    assert_eq!(tree.unwrap().files, [tree_file("b", 0o644, 5, "two")]);
}

#[tokio::test]
async fn a_tree_is_written_below_its_directory_and_nowhere_else() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let asked = Arc::default();
    let player = tokio::spawn(play(init, BTreeMap::new(), Arc::clone(&asked)));
    let tree = Tree { files: vec![tree_file("dir/b", 0o4711, 5, "two")] };
    soon(vm.write_tree(b"/state", &tree)).await.unwrap();
    let expected = ["mkdir /state", "write /state/dir/b two", "mode /state/dir/b 711"];
    assert_eq!(*asked.lock().unwrap(), expected);
    let climbing = Tree { files: vec![tree_file("../b", 0o644, 5, "two")] };
    let error = soon(vm.write_tree(b"/state", &climbing)).await.unwrap_err();
    assert!(matches!(error, TreeError::File(_)), "{error:?}");
    assert_eq!(asked.lock().unwrap().last().unwrap(), "mkdir /state");
    player.abort();
}
