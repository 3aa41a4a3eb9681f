//! Files: what is asked, what is carried, what is refused.

use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;

use agentos_guest_protocol::filesystem::{FileCall, FileFailure, FileRequest, FileResponse, WriteTicket};
use agentos_guest_protocol::init::Failure;
use bytes::Bytes;

use super::fake::{FakeInit, World, bytes, file, soon};
use crate::filesystem::{Content, FileError};

fn absent(path: &str) -> Failure {
    Failure::File(FileFailure { errno: 2, call: FileCall::Open, path: bytes(path) })
}

async fn read_all(content: &mut Content) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = soon(content.next()).await.unwrap() {
        all.extend(chunk);
    }
    all
}

#[tokio::test]
async fn paths_are_refused_at_the_door_and_errors_speak_like_the_kernel() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let refused = soon(vm.stat(b"/a/../b")).await.unwrap_err();
    assert_eq!(
        (refused.to_string().as_str(), refused.errno()),
        ("Path must be normalized: /a/../b", Some(22))
    );
    let reading = tokio::spawn({
        let vm = vm.clone();
        async move { vm.read_file(b"//x/.").await }
    });
    let (id, request) = init.file_request().await;
    assert!(matches!(request, FileRequest::Read { path } if path == bytes("/x")));
    init.fail(id, absent("/x"));
    let error = soon(reading).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "ENOENT: no such file or directory, open '/x'");
    assert_eq!(error.path(), Some(&b"/x"[..]));
}

#[tokio::test]
async fn content_comes_in_the_answer_from_a_file_or_through_a_pipe() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let body: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 253) as u8).collect();
    let stream = || file(FileResponse::Stream { size_bytes: body.len() as u64 });
    let mut regular = tempfile::tempfile().unwrap();
    regular.write_all(&body).unwrap();
    let (pipe_read, pipe_write) = rustix::pipe::pipe().unwrap();
    let feeding = std::thread::spawn({
        let body = body.clone();
        move || std::fs::File::from(pipe_write).write_all(&body)
    });
    let answers = [
        (file(FileResponse::Content(body.clone().into())), Vec::new()),
        (stream(), vec![OwnedFd::from(regular)]),
        (stream(), vec![pipe_read]),
    ];
    for (response, descriptors) in answers {
        let play = async {
            let (id, _) = init.file_request().await;
            init.answer(id, response, descriptors);
        };
        let (content, ()) = soon(async { tokio::join!(vm.read_file(b"/x"), play) }).await;
        let mut content = content.unwrap();
        assert_eq!(content.size_hint(), body.len() as u64);
        assert!(read_all(&mut content).await == body);
        assert!(content.next().await.unwrap().is_none());
    }
    feeding.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_read_batch_pipelines_keeps_its_order_and_survives_a_failure() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let paths = ["/0", "relative", "/2", "/3"].map(|path| path.as_bytes().to_vec()).to_vec();
    let mut batch = vm.read_files(paths);
    let play = async {
        // All are asked for before any is answered, and the answers come backwards.
        let mut asked = Vec::new();
        for _ in 0..3 {
            asked.push(init.file_request().await);
        }
        for (id, request) in asked.into_iter().rev() {
            let FileRequest::Read { path } = request else { panic!("not a read") };
            match path.as_slice() {
                b"/2" => init.fail(id, absent("/2")),
                name => init.answer(id, file(FileResponse::Content(name.to_vec().into())), Vec::new()),
            }
        }
    };
    let read = async {
        let mut results = Vec::new();
        while let Some(result) = batch.next().await {
            results.push(match result {
                Ok(mut content) => String::from_utf8(read_all(&mut content).await).unwrap(),
                Err(error) => error.to_string(),
            });
        }
        results
    };
    let (results, ()) = soon(async { tokio::join!(read, play) }).await;
    let expected =
        ["/0", "Path must be absolute: relative", "ENOENT: no such file or directory, open '/2'", "/3"];
    assert_eq!(results, expected);
}

#[tokio::test]
async fn what_fits_is_written_in_one_request() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let play = async {
        let (id, request) = init.file_request().await;
        assert!(matches!(request, FileRequest::Write { content, .. } if content.len() == 256 * 1024));
        init.answer(id, file(FileResponse::Done), Vec::new());
    };
    let content = Bytes::from(vec![1; 256 * 1024]);
    soon(async { tokio::join!(vm.write_file(b"/x", content), play) }).await.0.unwrap();
}

async fn open_write(init: &FakeInit, ticket: u32, descriptor: OwnedFd) {
    let (id, request) = init.file_request().await;
    assert!(matches!(request, FileRequest::OpenWrite { .. }), "{request:?}");
    let response = FileResponse::WriteOpened { ticket: WriteTicket(ticket) };
    init.answer(id, file(response), vec![descriptor]);
}

#[tokio::test]
async fn more_goes_through_a_descriptor_and_is_committed() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let body: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 253) as u8).collect();
    let mut seen = tempfile::tempfile().unwrap();
    let play = async {
        open_write(&init, 4, seen.try_clone().unwrap().into()).await;
        let (id, request) = init.file_request().await;
        assert!(matches!(request, FileRequest::CommitWrite { ticket: WriteTicket(4) }), "{request:?}");
        init.answer(id, file(FileResponse::Done), Vec::new());
    };
    let write = async {
        let mut writer = vm.open_write(b"/x").unwrap();
        for part in body.chunks(100_000) {
            writer.write(Bytes::copy_from_slice(part)).await.unwrap();
        }
        writer.commit().await
    };
    soon(async { tokio::join!(write, play) }).await.0.unwrap();
    let mut written = Vec::new();
    seen.rewind().unwrap();
    seen.read_to_end(&mut written).unwrap();
    assert!(written == body);
}

#[tokio::test]
async fn a_pipe_that_init_stops_reading_gives_the_reason_of_the_commit() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let play = async {
        let (pipe_read, pipe_write) = rustix::pipe::pipe().unwrap();
        open_write(&init, 4, pipe_write).await;
        drop(pipe_read);
        let (id, _) = init.file_request().await;
        let full = FileFailure { errno: 28, call: FileCall::Write, path: bytes("/x") };
        init.fail(id, Failure::File(full));
    };
    let content = Bytes::from(vec![1; 1 << 20]);
    let (written, ()) = soon(async { tokio::join!(vm.write_file(b"/x", content), play) }).await;
    assert_eq!(written.unwrap_err().to_string(), "ENOSPC: no space left on device, write '/x'");
}

#[tokio::test]
async fn a_writer_that_is_dropped_is_aborted_also_when_the_answer_comes_late() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let mut writer = vm.open_write(b"/x").unwrap();
    let opening = open_write(&init, 4, tempfile::tempfile().unwrap().into());
    let content = Bytes::from(vec![1; 300_000]);
    soon(async { tokio::join!(writer.write(content.clone()), opening) }).await.0.unwrap();
    drop(writer);
    let (id, request) = init.file_request().await;
    assert!(matches!(request, FileRequest::AbortWrite { ticket: WriteTicket(4) }), "{request:?}");
    init.answer(id, file(FileResponse::Done), Vec::new());

    let id = tokio::select! {
        _ = vm.write_file(b"/x", content) => panic!("nobody has answered"),
        (id, _) = init.file_request() => id,
    };
    let opened = FileResponse::WriteOpened { ticket: WriteTicket(5) };
    init.answer(id, file(opened), vec![tempfile::tempfile().unwrap().into()]);
    let (_, request) = init.file_request().await;
    assert!(matches!(request, FileRequest::AbortWrite { ticket: WriteTicket(5) }), "{request:?}");
}

/// Open descriptors of this process that refer to a memfd of this name.
fn descriptors_of(name: &str) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().contains(name)).count()
}

#[tokio::test]
async fn a_write_that_fails_has_let_go_of_the_file_before_its_caller_hears_of_it() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let name = "full-file-of-a-failing-write";
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let full = rustix::fs::memfd_create(name, flags).unwrap();
    rustix::fs::fcntl_add_seals(&full, rustix::fs::SealFlags::GROW).unwrap();
    let write = tokio::spawn({
        let vm = vm.clone();
        async move { vm.write_file(b"/mnt/x", Bytes::from(vec![1; 1_000_000])).await }
    });
    open_write(&init, 4, full).await;
    let (id, request) = init.file_request().await;
    assert!(matches!(request, FileRequest::AbortWrite { ticket: WriteTicket(4) }), "{request:?}");
    assert_eq!(descriptors_of(name), 0, "the sidecar's own descriptor makes the mount busy");
    // Requests are served in order: had the write ended by now, this one would find it so.
    let probe = tokio::spawn({
        let vm = vm.clone();
        async move { vm.exists(b"/probe").await }
    });
    let (probe_id, _) = init.file_request().await;
    init.answer(probe_id, file(FileResponse::Exists(true)), Vec::new());
    assert!(soon(probe).await.unwrap().unwrap());
    assert!(!write.is_finished(), "the caller hears of it while init still has the file");
    init.answer(id, file(FileResponse::Done), Vec::new());
    assert_eq!(soon(write).await.unwrap().unwrap_err().errno(), Some(1));
}

#[tokio::test]
async fn a_write_batch_gives_one_result_per_file_in_order() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let write = async {
        let mut batch = vm.write_batch();
        for path in ["/0", "relative", "/2", "/3"] {
            batch.start(path.as_bytes()).await;
            batch.write(Bytes::from_static(b"content")).await;
        }
        batch.finish().await
    };
    let play = async {
        for _ in 0..3 {
            let (id, request) = init.file_request().await;
            let FileRequest::Write { path, .. } = request else { panic!("not a write") };
            match path.as_slice() {
                b"/2" => init.fail(id, absent("/2")),
                _ => init.answer(id, file(FileResponse::Done), Vec::new()),
            }
        }
    };
    let (results, ()) = soon(async { tokio::join!(write, play) }).await;
    let errors: Vec<_> =
        results.iter().map(|result| result.as_ref().err().and_then(FileError::errno)).collect();
    assert_eq!(errors, [None, Some(22), Some(2), None]);
}

#[tokio::test]
async fn answers_in_any_order_go_to_whom_they_are_for() {
    let World { vm, init, launcher: _launcher, .. } = World::new().await;
    let ask = |path: &'static str| {
        let vm = vm.clone();
        tokio::spawn(async move { vm.exists(path.as_bytes()).await })
    };
    let (yes, no) = (ask("/yes"), ask("/no"));
    let mut asked = [init.file_request().await, init.file_request().await];
    asked.reverse();
    for (id, request) in asked {
        let FileRequest::Exists { path } = request else { panic!("not exists") };
        init.answer(id, file(FileResponse::Exists(path == bytes("/yes"))), Vec::new());
    }
    assert!(soon(yes).await.unwrap().unwrap());
    assert!(!soon(no).await.unwrap().unwrap());
}
