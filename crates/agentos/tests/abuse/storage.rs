//! Storage directories that somebody has prepared: a guest of former times, or whoever could write to one.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentos::{AgentOs, ErrorKind, Storage};

use crate::attempts::{Canary, Guest, is_root, outside, run, with_probe};
use crate::support::world::World;

/// A storage that one VM has used.
async fn used(world: &World) -> PathBuf {
    let path = world.runtime_dir().join("state");
    let vm = world.vm_with(world.options().storage(Storage::directory(&path))).await;
    vm.write_file("/home/user/notes", "notes").await.unwrap();
    vm.dispose().await.unwrap();
    path
}

async fn next(world: &World, path: &Path) -> Guest {
    let vm = world.vm_with(with_probe(world.options().storage(Storage::directory(path)))).await;
    Guest { vm, user: "plain user" }
}

#[tokio::test]
async fn a_layer_that_is_a_link_is_not_followed() {
    let world = World::new().await;
    let path = used(&world).await;
    let canary = Canary::new(&world);
    // As an upper layer, the canary's directory would be shown and written to.
    let [layer, aside] = ["upper-root", "aside"].map(|name| path.join(name));
    fs::rename(&layer, &aside).unwrap();
    for target in [canary.directory.as_path(), Path::new("aside"), Path::new("/")] {
        symlink(target, &layer).unwrap();
        let options = world.options().storage(Storage::directory(&path));
        let error = AgentOs::create(options).await.expect_err("the link was followed");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        let text = error.to_string();
        assert!(text.contains("ELOOP") && text.contains(layer.to_str().unwrap()), "{text}");
        fs::remove_file(&layer).unwrap();
    }
    canary.check();
    // The control: the same directory, without the link.
    fs::rename(&aside, &layer).unwrap();
    assert_eq!(next(&world, &path).await.shell("cat notes").await, "notes");
}

#[tokio::test]
async fn work_directories_are_cleared_and_what_they_link_to_is_not() {
    let world = World::new().await;
    let path = used(&world).await;
    let canary = Canary::new(&world);
    let work = path.join("work-root");
    fs::remove_dir_all(&work).unwrap();
    symlink(&canary.directory, &work).unwrap();
    // Deeper than the kernel clears by itself; it would mount read-only then.
    let usr = path.join("work-usr/work");
    fs::create_dir_all(usr.join("a/b/c/d")).unwrap();
    symlink(&canary.directory, usr.join("a/b/c/link")).unwrap();
    fs::write(usr.join("a/b/file"), "left").unwrap();
    let guest = next(&world, &path).await;
    assert_eq!(guest.shell("echo more >> notes; cat notes").await, "notesmore\n");
    assert!(fs::symlink_metadata(&work).unwrap().is_dir());
    assert_eq!(fs::read_dir(&usr).unwrap().count(), 0);
    canary.check();
}

/// A root directory may have anything where the next VM mounts what it needs.
#[tokio::test]
async fn a_mount_point_that_is_a_link_is_not_followed() {
    let world = World::new().await;
    let path = used(&world).await;
    let canary = Canary::new(&world);
    for name in ["proc", "usr", "tmp", "dev"] {
        let place = path.join("upper-root").join(name);
        let before = fs::symlink_metadata(&place).is_ok();
        assert!(!before, "{name} was copied up");
        symlink(&canary.directory, &place).unwrap();
        let options = world.options().storage(Storage::directory(&path));
        let error = AgentOs::create(options).await.expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
        fs::remove_file(&place).unwrap();
    }
    canary.check();
    next(&world, &path).await.check_alive().await;
}

#[tokio::test]
async fn links_sockets_and_devices_in_a_prepared_directory_lead_nowhere() {
    let world = World::new().await;
    let path = used(&world).await;
    let canary = Canary::new(&world);
    let home = path.join("upper-root/home/user");
    symlink(&canary.file, home.join("link")).unwrap();
    symlink("../../../../outside/canary", home.join("relative")).unwrap();
    let _listener = UnixListener::bind(home.join("socket")).unwrap();
    fs::set_permissions(home.join("socket"), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = format!("connect-unix {}", home.join("socket").display());
    assert_eq!(outside(&socket), "ok");
    assert!(outside(&format!("read {}", home.join("link").display())).contains(Canary::TEXT));
    let guest = next(&world, &path).await;
    let user = "/home/user";
    guest.check("ENOENT", &[format!("read {user}/link"), format!("read {user}/relative")]).await;
    guest.check("ECONNREFUSED|EACCES|ENXIO", &[format!("connect-unix {user}/socket")]).await;
    assert!(guest.vm.read_file("/home/user/link").await.is_err());
    // A write through the link ends in the VM.
    let _ = guest.vm.write_file("/home/user/link", "overwritten").await;
    guest.shell("echo overwritten > relative").await;
    canary.check();
    guest.vm.dispose().await.unwrap();
    if is_root() {
        let node = home.join("zero");
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, rustix::fs::makedev(1, 3)).unwrap();
        rustix::fs::chmodat(rustix::fs::CWD, &node, mode, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(outside(&format!("open-for-writing {}", node.display())), "ok");
        let options = world.options().storage(Storage::directory(&path)).root(true);
        let guest = Guest { vm: world.vm_with(with_probe(options)).await, user: "root" };
        guest.check("EACCES", &[format!("open-for-writing {user}/zero")]).await;
    }
}

#[tokio::test]
async fn set_user_id_gains_nothing_in_a_vm_and_does_not_get_out_of_one() {
    let world = World::new().await;
    let path = used(&world).await;
    let home = path.join("upper-root/home/user");
    let program = |directory: &Path| {
        let program = directory.join("id");
        fs::copy("/usr/bin/id", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
        program
    };
    program(&home);
    if is_root() {
        let open = world.host_dir("open");
        fs::set_permissions(world.runtime_dir(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let effective = run(Command::new(program(&open)).arg("-u").uid(4242).gid(4242));
        assert_eq!(effective, "0", "the control: the bit works on the host");
        fs::set_permissions(world.runtime_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let guest = next(&world, &path).await;
    assert_eq!(guest.shell("./id -u; ./id -g").await, "1000\n1000\n");
    guest.vm.dispose().await.unwrap();
    for root in [false, true] {
        let options = world.options().storage(Storage::directory(&path)).root(root);
        let guest = Guest { vm: world.vm_with(with_probe(options)).await, user: "either" };
        // The root's home is another one.
        guest.shell("cd /home/user && echo > a").await;
        let attempts = ["open-mode /home/user/b 0o4777", "mkdir-mode /home/user/c 0o2777"];
        guest.attempts(&attempts).await;
        guest.check("EPERM", &["chmod /home/user/a 0o6755", "fchmodat /home/user/a 0o4755"]).await;
        guest.vm.dispose().await.unwrap();
        let found: Vec<_> = fs::read_dir(&home).unwrap().flatten().collect();
        assert!(found.iter().any(|entry| entry.file_name() == "a"), "{found:?}");
        for entry in found.iter().filter(|entry| entry.file_name() != "id") {
            let mode = entry.metadata().unwrap().mode();
            assert_eq!(mode & 0o6000, 0, "{entry:?}, root {root}: {mode:o}");
        }
    }
}
