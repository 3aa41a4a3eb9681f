//! Directories of the host that a guest may write to: what it leaves there for the API, for the host, and for others.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use agentos::{ErrorKind, Mount};

use crate::attempts::{Canary, Guest, PROBE, guests, names, outside, with_probe};
use crate::support::within;
use crate::support::world::World;

#[tokio::test]
async fn links_that_a_guest_leaves_lead_the_api_nowhere_outside() {
    let world = World::new().await;
    let canary = Canary::new(&world);
    let project = world.host_dir("project");
    let outside_dir = canary.directory.display().to_string();
    for guest in guests(&world, world.options().mount("/work", Mount::host_dir(&project).read_write())).await
    {
        let links = [
            (format!("{outside_dir}/canary"), "file"),
            ("../outside/canary".to_owned(), "up"),
            (format!("/proc/self/root{outside_dir}/canary"), "root"),
            (format!("/proc/1/root{outside_dir}/canary"), "init"),
            (outside_dir.clone(), "dir"),
            ("../outside".to_owned(), "updir"),
            ("../../../../../../../../../../..".to_owned(), "top"),
        ];
        let made: Vec<String> = links.iter().map(|(to, name)| format!("symlink {to} /work/{name}")).collect();
        guest.check("ok", &made).await;
        for name in ["file", "up"] {
            let control = fs::read_to_string(project.join(name)).unwrap();
            assert_eq!(control, Canary::TEXT, "the control: on the host the link leads there");
        }
        for name in ["file", "up", "root", "init", "dir/canary", "updir/canary"] {
            try_everything(&guest, &format!("/work/{name}")).await;
        }
        try_everything(&guest, &format!("/work/top{outside_dir}/canary")).await;
        for name in ["dir", "updir", "dir/new", "updir/new/newer"] {
            let _ = guest.vm.mkdir(format!("/work/{name}")).recursive().await;
            let _ = guest.vm.write_file(format!("/work/{name}/file"), "x").await;
        }
        let seen = guest.vm.readdir_recursive("/work").await.unwrap();
        assert!(seen.iter().all(|entry| !entry.path.contains("canary")), "{}: {seen:?}", guest.user);
        for name in ["dir", "updir"] {
            let listed = guest.vm.readdir(format!("/work/{name}")).await.unwrap_or_default();
            assert!(!listed.contains(&"canary".to_owned()), "{}: {name}: {listed:?}", guest.user);
        }
        for name in names(&project) {
            guest.vm.delete(format!("/work/{name}")).recursive().await.unwrap();
        }
        assert_eq!(names(&project), [] as [&str; 0], "{}", guest.user);
        canary.check();
    }
}

async fn try_everything(guest: &Guest, path: &str) {
    let vm = &guest.vm;
    if let Ok(bytes) = vm.read_file(path).await {
        assert_ne!(bytes, Canary::TEXT.as_bytes(), "{}: read {path}", guest.user);
    }
    if let Ok(stat) = vm.stat(path).await {
        assert_ne!(stat.size, Canary::TEXT.len() as u64, "{}: stat {path}", guest.user);
    }
    for result in vm.read_files([path]).await.unwrap() {
        assert_ne!(result.content.as_deref(), Some(Canary::TEXT.as_bytes()), "{}: {path}", guest.user);
    }
    assert!(!guest.shell(&format!("cat {path} 2>/dev/null")).await.contains(Canary::TEXT));
    let _ = vm.write_file(path, "overwritten").await;
    let _ = vm.write_files([(path, "overwritten")]).await;
    let _ = vm.move_path(path, "/tmp/taken").await;
    let _ = vm.write_file("/tmp/given", "overwritten").await;
    let _ = vm.move_path("/tmp/given", path).await;
    let _ = vm.delete(path).recursive().await;
}

/// How often the API goes through a path that a guest changes under it all the time.
const ROUNDS: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_becomes_a_link_while_it_is_walked_leads_nowhere_outside() {
    let world = World::new().await;
    let canary = Canary::new(&world);
    let project = world.host_dir("project");
    fs::create_dir(project.join("dir")).unwrap();
    fs::write(project.join("dir/canary"), "inside").unwrap();
    symlink("../outside", project.join("link")).unwrap();
    let options = with_probe(world.options().mount("/work", Mount::host_dir(&project).read_write()));
    let vm = world.vm_with(options).await;
    let swapper = vm.spawn(PROBE, ["swap", "/work/dir", "/work/link"]).await.unwrap();
    let mut seen_inside = 0;
    for round in 0..ROUNDS {
        let read = within("a read", vm.read_file("/work/dir/canary")).await;
        assert_ne!(read.as_deref().ok(), Some(Canary::TEXT.as_bytes()), "round {round}");
        seen_inside += usize::from(read.is_ok());
        let _ = within("a write", vm.write_file("/work/dir/canary", "inside")).await;
        let _ = within("a new file", vm.write_file("/work/link/deep/new", "inside")).await;
        let _ = within("a directory", vm.mkdir("/work/dir/other").recursive()).await;
        let listed = within("a list", vm.readdir_recursive("/work/dir")).await.unwrap_or_default();
        assert!(
            listed.iter().all(|entry| entry.size != Canary::TEXT.len() as u64),
            "round {round}: {listed:?}"
        );
        let _ = within("a move", vm.move_path("/work/dir/other", "/work/link/moved")).await;
        let _ = within("a deletion", vm.delete("/work/link/deep").recursive()).await;
        let _ = within("a deletion", vm.delete("/work/dir/moved").recursive()).await;
        canary.check();
    }
    assert!(seen_inside > 0, "the guest's own file was never met: nothing raced");
    swapper.kill().await.unwrap();
}

/// The same for a live mount, whose place is looked at before something is attached there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_becomes_a_link_while_it_is_mounted_on_leads_nowhere_outside() {
    let world = World::new().await;
    let canary = Canary::new(&world);
    let project = world.host_dir("project");
    fs::create_dir(project.join("dir")).unwrap();
    symlink("../outside", project.join("link")).unwrap();
    let options = with_probe(world.options().mount("/work", Mount::host_dir(&project).read_write()));
    let vm = world.vm_with(options).await;
    let swapper = vm.spawn(PROBE, ["swap", "/work/dir", "/work/link"]).await.unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut mounted = 0;
    for _ in 0..ROUNDS / 4 {
        for target in ["/work/dir", "/work/dir/below"] {
            if within("a mount", vm.mount_fs(target, Mount::memory())).await.is_ok() {
                mounted += 1;
                let _ = within("a write", vm.write_file(format!("{target}/new"), "inside")).await;
                let _ = within("an unmount", vm.unmount_fs(target)).await;
            }
        }
        canary.check();
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    assert!(mounted > 0, "never mounted: nothing raced");
    swapper.kill().await.unwrap();
}

/// A tree so deep that no path reaches its end, and names that a terminal would obey.
#[tokio::test]
async fn a_tree_of_monstrous_depth_and_names_is_listed_and_deleted() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let options = world.options().mount("/work", Mount::host_dir(&project).read_write());
    for guest in guests(&world, options).await {
        let names_for_terminals = "mkdir /work/deep && ln -s . /work/deep/loop && \
             touch \"$(printf '/work/deep/\\033]0;x\\007')\" \"$(printf '/work/deep/\\377\\376')\" && echo made";
        assert_eq!(guest.shell(names_for_terminals).await, "made\n", "{}", guest.user);
        guest.check("ok", &["deepen /work/deep 3000"]).await;
        // All of it, or an error: never a hang, and never what is elsewhere.
        if let Ok(listed) = within("a list", guest.vm.readdir_recursive("/work/deep")).await {
            assert!(listed.iter().all(|entry| entry.path.starts_with("/work/deep/")), "{}", guest.user);
        }
        within("a deletion", guest.vm.delete("/work/deep").recursive()).await.unwrap();
        assert_eq!(names(&project), [] as [&str; 0], "{}", guest.user);
        guest.check_alive().await;
    }
}

/// Ways to a set-id bit on a file at /work.
const SET_ID: [&str; 26] = [
    "chmod /work/file 0o4755",
    "chmod /work/file 0o2755",
    "chmod /work/file 0o6777",
    "chmod /work/directory 0o2755",
    "fchmod /work/file 0o4755",
    "fchmodat /work/file 0o4755",
    "fchmodat2 /work/file 0o4755",
    "chmod /proc/self/root/work/file 0o4755",
    "chmod /proc/self/cwd/file 0o4755",
    "chmod /tmp/alias 0o4755",
    "fchmod /tmp/alias 0o2755",
    "creat /work/new 0o4755",
    "creat /work/new 0o2755",
    "open-mode /work/new 0o4755",
    "open-mode /work/new 0o2755",
    "open-mode /tmp/dangling 0o4755",
    "open-mode /proc/self/cwd/new 0o6755",
    "openat2-mode /work/new 0o4755",
    "tmpfile-mode /work 0o4755 /work/new",
    "mknod /work/new 0o104755 0",
    "mknod /work/new 0o4755 0",
    "mknod /work/new 0o012755 0",
    "mknod /work/new 0o142755 0",
    "mkdir-mode /work/new 0o2755",
    "mkdir-mode /work/new 0o4755",
    "capability /work/file",
];

#[tokio::test]
async fn set_id_bits_never_appear_on_the_host() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let options = world.options().mount("/work", Mount::host_dir(&project).read_write());
    for guest in guests(&world, options).await {
        let prepare = "cd /work && echo content > file && mkdir -p directory && \
             ln -sf /work/file /tmp/alias && ln -sf /work/new /tmp/dangling; ls /work";
        assert_eq!(guest.shell(prepare).await, "directory\nfile\n", "{}", guest.user);
        for words in SET_ID {
            let outcome = guest.shell(&format!("cd /work && {PROBE} {words}")).await;
            let refused = ["EPERM\n", "ENOSYS\n"].contains(&outcome.as_str());
            assert!(refused, "{}: {words}: {outcome}", guest.user);
            assert_eq!(set_id_files(&project), [] as [&str; 0], "{}: {words}", guest.user);
        }
        // Programs that take modes along: each may fail or leave the bits out.
        guest
            .shell(
                "cp -a /usr/bin/su /usr/bin/passwd /work/; cp --preserve=all /usr/bin/mount /work/; \
                 ln /usr/bin/su /work/hard; mv /usr/bin/chsh /work/; install -m 4755 /usr/bin/id /work/installed; \
                 tar -C /usr/bin -cf - su newgrp | tar -C /work -xpf -; umask 0; mkdir -m 2777 /work/shared; \
                 chmod -R u+s,g+s /work; perl -e 'chmod 04755, \"/work/file\"'; \
                 python3 -c 'import os; os.chmod(\"/work/file\", 0o4755)'",
            )
            .await;
        assert_eq!(set_id_files(&project), [] as [&str; 0], "{}", guest.user);
        for program in ["su", "umount", "newgrp"] {
            let _ = guest.vm.move_path(format!("/usr/bin/{program}"), format!("/work/moved-{program}")).await;
        }
        assert_eq!(set_id_files(&project), [] as [&str; 0], "{}: moved through the API", guest.user);
        for name in names(&project) {
            guest.vm.delete(format!("/work/{name}")).recursive().await.unwrap();
        }
    }
    let file = project.join("control");
    for words in ["open-mode {} 0o4755", "fchmodat {} 0o6755"] {
        assert_eq!(outside(&words.replace("{}", file.to_str().unwrap())), "ok");
        assert_eq!(set_id_files(&project), ["control"], "the control: {words}");
    }
}

/// Files with a set-id bit or a file capability at or below a directory.
fn set_id_files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in names(directory) {
        let path = directory.join(&name);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut value = [0u8; 64];
        let capable = rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]).is_ok();
        if capable || (!metadata.is_symlink() && metadata.mode() & 0o6000 != 0) {
            found.push(name);
        }
        if metadata.is_dir() {
            found.extend(set_id_files(&path));
        }
    }
    found
}

/// A set-id program of the host whose content the guest exchanges would run the guest's code as its owner.
#[tokio::test]
async fn who_changes_a_set_id_file_takes_the_bits_off() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let file = project.join("program");
    for guest in guests(&world, world.options().mount("/work", Mount::host_dir(&project).read_write())).await
    {
        for through_the_api in [false, true] {
            fs::write(&file, "old").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
            assert_eq!(set_id_files(&project), ["program"], "the control: the host may");
            if through_the_api {
                guest.vm.write_file("/work/program", "new").await.unwrap();
            } else {
                guest.shell("echo new > /work/program").await;
            }
            assert_eq!(fs::read_to_string(&file).unwrap().trim(), "new", "{}", guest.user);
            let api = if through_the_api { "API" } else { "write" };
            assert_eq!(set_id_files(&project), [] as [&str; 0], "{}: {api}", guest.user);
        }
    }
}

#[tokio::test]
async fn what_a_guest_makes_belongs_to_the_owner_of_the_directory() {
    let world = World::new().await;
    let project = world.host_dir("project");
    let owner = fs::metadata(&project).unwrap().uid();
    for guest in guests(&world, world.options().mount("/work", Mount::host_dir(&project).read_write())).await
    {
        guest.shell("echo x > /work/file; mkdir /work/d; mkfifo /work/fifo; ln -s x /work/link").await;
        // No other id has a meaning there: nothing can be given to root or to anybody else of the host.
        guest
            .shell("chown 0:0 /work/file; chown 1:1 /work/file; chown 1000:1000 /work/file; chgrp 5 /work/d")
            .await;
        guest.vm.write_file("/work/api", "x").await.unwrap();
        for name in names(&project) {
            let metadata = fs::symlink_metadata(project.join(&name)).unwrap();
            assert_eq!(metadata.uid(), owner, "{}: {name}", guest.user);
            assert!(!metadata.file_type().is_block_device() && !metadata.file_type().is_char_device());
            guest.vm.delete(format!("/work/{name}")).recursive().await.unwrap();
        }
    }
}

/// A socket file is a door to whoever listens on the host, and mounts that are read-only or in another network
/// namespace leave it open.
#[tokio::test]
async fn sockets_and_fifos_of_the_host_are_refused_at_the_mount() {
    let world = World::new().await;
    let holder = world.host_dir("holder");
    let listener = UnixListener::bind(holder.join("door")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let fifos = world.host_dir("fifos");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, fifos.join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let vm = world.vm_with(with_probe(world.options())).await;
    for mount in [
        Mount::host_dir(&holder),
        Mount::host_dir(&holder).read_write(),
        Mount::host_dir(holder.join("door")),
        Mount::host_dir(&fifos),
        Mount::host_dir(&fifos).read_write(),
        Mount::host_dir(fifos.join("fifo")),
    ] {
        let refused = vm.mount_fs("/work", mount.clone()).await.unwrap_err();
        assert!(
            [ErrorKind::InvalidInput, ErrorKind::Permission, ErrorKind::Policy].contains(&refused.kind()),
            "{mount:?}: {refused:?}"
        );
        let at_create = agentos::AgentOs::create(world.options().mount("/work", mount.clone())).await;
        assert!(at_create.is_err(), "{mount:?} at create");
    }
    // The control: with the host's leave the door is open, so that what was refused matters.
    let with_leave = Mount::host_dir(&holder).allow_sockets();
    vm.mount_fs("/work", with_leave).await.unwrap();
    let out = vm.exec(format!("{PROBE} connect-unix /work/door")).await.unwrap();
    assert_eq!(out.stdout_lossy(), "ok\n");
    listener.accept().unwrap();
}

/// Where a VM's user is the sidecar's own user, the socket's mode and the peer's id are no obstacle.
#[tokio::test]
async fn the_sidecar_serves_no_guest_that_finds_its_socket() {
    let world = World::new().await;
    let name = names(world.runtime_dir()).into_iter().find(|name| name.ends_with(".sock")).unwrap();
    let socket = world.runtime_dir().join(&name);
    let leave = || Mount::host_dir(world.runtime_dir()).allow_sockets();
    let options = world.options().mount("/ro", leave()).mount("/rw", leave().read_write());
    for guest in guests(&world, options).await {
        let attempts = [format!("ask-grpc /ro/{name}"), format!("ask-grpc /rw/{name}")];
        guest.check("hung up|EPIPE|ECONNRESET|EACCES|ECONNREFUSED", &attempts).await;
    }
    assert_eq!(outside(&format!("ask-grpc {}", socket.display())), "answered", "the control");
}
