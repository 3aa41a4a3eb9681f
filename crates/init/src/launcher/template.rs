//! The root directory that every VM on Base::Host starts from: a skeleton, and an /etc that is synthetic where it
//! names users and networks, and a copy of the host's public parts where programs in /usr need their configuration.
//!
//! Never copied: what is not readable by all, what is named private, sockets and devices. The copy is bounded.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use agentos_guest_protocol::launcher::{BootFailure, IdMode};

use crate::wire::io_failure;

/// The layers in the template's directory: the root directory, and what hides the host's /usr/local in /usr.
pub(super) const ROOT: &str = "root";
pub(super) const USR_LOCAL: &str = "usr-local";

/// The VM's user on disk, before any idmap.
const USER: u32 = 1000;

const DIRECTORIES: [(&str, u32); 24] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/agentos", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o755),
    ("run", 0o755),
    ("srv", 0o755),
    // Empty: there is no sysfs in a VM, but programs look for the directory.
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/lib/misc", 0o755),
    ("var/local", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o775),
    ("var/opt", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];

const LINKS: [(&str, &str); 4] = [
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("etc/mtab", "/proc/self/mounts"),
    ("etc/os-release", "../usr/lib/os-release"),
];

/// Written as they are; the host's own would name its users, its network and its services.
const FILES: [(&str, &str); 9] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
         www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
         user:x:1000:1000:user:/home/user:/bin/sh\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nmail:x:8:\nwww-data:x:33:\nutmp:x:43:\nstaff:x:50:\n\
         users:x:100:user\nnogroup:x:65534:\nuser:x:1000:\n",
    ),
    ("etc/hostname", "agentos\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost agentos\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    // One try of one second: without a network the answer is "unreachable" at once, with one it comes at once.
    ("etc/resolv.conf", "nameserver 10.0.2.3\noptions timeout:1 attempts:1\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n\
         protocols: files\nservices: files\nethers: files\nrpc: files\n",
    ),
    (
        "etc/profile",
        "# Login shells start here.\n\
         if [ -z \"$PATH\" ]; then\n\
         \tPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         fi\n\
         export PATH\n\
         if [ -n \"$BASH\" ] && [ -f /etc/bash.bashrc ]; then\n\
         \t. /etc/bash.bashrc\n\
         fi\n",
    ),
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
    ("etc/host.conf", "multi on\n"),
];

/// Names in the host's /etc that programs of /usr read and anybody may: exact, or a prefix where they end with `*`.
const PUBLIC: [&str; 43] = [
    "ssl",
    "ca-certificates*",
    "pki",
    "crypto-policies",
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "timezone",
    "mime.types",
    "mailcap*",
    "services",
    "protocols",
    "networks",
    "rpc",
    "ethertypes",
    "java*",
    "maven*",
    "gradle*",
    "python3*",
    "python",
    "perl",
    "ruby*",
    "php*",
    "lua*",
    "fonts",
    "terminfo",
    "magic*",
    "inputrc",
    "bash.bashrc",
    "bash_completion*",
    "vim",
    "nanorc",
    "wgetrc",
    "gai.conf",
    "locale*",
    "environment.d",
    "ImageMagick-*",
    "glvnd",
    "gtk-3.0",
    "xdg",
    "login.defs",
];

/// Never copied, wherever it stands.
const PRIVATE: [&str; 4] = ["private", "shadow", "gshadow", ".git-credentials"];

const MAX_ENTRIES: usize = 20_000;
const MAX_BYTES: u64 = 64 << 20;
/// Deeper than any configuration is; a loop of bind mounts ends here.
const MAX_DEPTH: usize = 16;

/// Builds the template and says which directories of the host belong below the base.
pub(super) fn build(template: &Path, ids: IdMode) -> Result<Vec<String>, BootFailure> {
    let local = template.join(USR_LOCAL);
    build_usr_local(&local)
        .map_err(|error| io_failure("make layer", local.as_os_str().as_encoded_bytes(), &error))?;
    let root = &template.join(ROOT);
    let fail = |step: &str, path: &Path, error: io::Error| {
        io_failure(step, path.as_os_str().as_encoded_bytes(), &error)
    };
    make_directory(root, 0o755).map_err(|error| fail("mkdir", root, error))?;
    for (name, mode) in DIRECTORIES {
        let path = root.join(name);
        make_directory(&path, mode).map_err(|error| fail("mkdir", &path, error))?;
    }
    for (name, target) in LINKS {
        let path = root.join(name);
        symlink(target, &path).map_err(|error| fail("symlink", &path, error))?;
    }
    copy_public(Path::new("/etc"), &root.join("etc"))
        .map_err(|error| fail("copy", Path::new("/etc"), error))?;
    for (name, content) in FILES {
        let path = root.join(name);
        write_public(&path, content.as_bytes()).map_err(|error| fail("write", &path, error))?;
    }
    let home = root.join("home/user");
    make_directory(&home, 0o755).map_err(|error| fail("mkdir", &home, error))?;
    if ids == IdMode::Range {
        chown(&home, Some(USER), Some(USER)).map_err(|error| fail("chown", &home, error))?;
    }
    link_system_directories(root).map_err(|error| fail("symlink", root, error))
}

/// A layer with an opaque local/: nothing of the host's shows through it.
fn build_usr_local(layer: &Path) -> io::Result<()> {
    make_directory(layer, 0o755)?;
    let local = layer.join("local");
    make_directory(&local, 0o755)?;
    rustix::fs::setxattr(&local, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())?;
    for name in ["bin", "etc", "games", "include", "lib", "sbin", "share", "src"] {
        make_directory(&local.join(name), 0o755)?;
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// /bin, /lib and the like as the host has them: links into /usr, or directories to be shown beside it.
fn link_system_directories(root: &Path) -> io::Result<Vec<String>> {
    let mut directories = vec!["usr".to_owned()];
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !(name == "bin" || name == "sbin" || name.starts_with("lib")) {
            continue;
        }
        let file_type = entry.file_type()?;
        if file_type.is_symlink() {
            symlink(fs::read_link(entry.path())?, root.join(&name))?;
        } else if file_type.is_dir() && name != "lost+found" {
            make_directory(&root.join(&name), 0o755)?;
            directories.push(name);
        }
    }
    directories.sort();
    Ok(directories)
}

fn is_public(name: &str) -> bool {
    PUBLIC.iter().any(|public| match public.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *public,
    })
}

/// What is left of the bounds of the copy.
struct Budget {
    entries: usize,
    bytes: u64,
}

fn copy_public(from: &Path, to: &Path) -> io::Result<()> {
    let mut budget = Budget { entries: MAX_ENTRIES, bytes: MAX_BYTES };
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_public) {
            copy_entry(&entry.path(), &to.join(entry.file_name()), 0, &mut budget)?;
        }
    }
    Ok(())
}

/// Copies one entry with what is below it. What can't be read is left out: it is not public.
fn copy_entry(from: &Path, to: &Path, depth: usize, budget: &mut Budget) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(from) else { return Ok(()) };
    let private = from.file_name().and_then(|name| name.to_str()).is_none_or(|name| PRIVATE.contains(&name));
    if private || depth > MAX_DEPTH || budget.entries == 0 {
        return Ok(());
    }
    budget.entries -= 1;
    let file_type = metadata.file_type();
    let mode = metadata.permissions().mode();
    if file_type.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if file_type.is_dir() && mode & 0o005 == 0o005 {
        make_directory(to, 0o755)?;
        let mut children: Vec<PathBuf> =
            fs::read_dir(from)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
        children.sort();
        for child in children {
            if let Some(name) = child.file_name() {
                copy_entry(&child, &to.join(name), depth + 1, budget)?;
            }
        }
        return Ok(());
    }
    let public_file = file_type.is_file() && mode & 0o004 != 0;
    if !public_file || file_type.is_fifo() || metadata.len() > budget.bytes {
        return Ok(());
    }
    budget.bytes -= metadata.len();
    match fs::read(from) {
        Ok(content) => {
            fs::write(to, content)?;
            fs::set_permissions(to, fs::Permissions::from_mode(mode & 0o755))
        }
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_names_are_exact_or_prefixes() {
        assert!(is_public("ssl") && is_public("java-17-openjdk") && is_public("python3.11"));
        for name in ["shadow", "passwd", "ssh", "sslx", "sudoers", "machine-id"] {
            assert!(!is_public(name), "{name}");
        }
    }

    #[test]
    fn what_is_not_readable_by_all_or_named_private_is_left_out() {
        let host = tempfile::tempdir().unwrap();
        let copy = tempfile::tempdir().unwrap();
        let ssl = host.path().join("ssl");
        fs::create_dir_all(ssl.join("private")).unwrap();
        fs::write(ssl.join("private/key.pem"), "secret").unwrap();
        fs::write(ssl.join("cert.pem"), "public").unwrap();
        fs::write(ssl.join("key.pem"), "secret").unwrap();
        fs::set_permissions(ssl.join("cert.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(ssl.join("key.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(&ssl, fs::Permissions::from_mode(0o755)).unwrap();
        copy_public(host.path(), copy.path()).unwrap();
        assert_eq!(fs::read_to_string(copy.path().join("ssl/cert.pem")).unwrap(), "public");
        assert!(!copy.path().join("ssl/key.pem").exists());
        assert!(!copy.path().join("ssl/private").exists());
    }
}
