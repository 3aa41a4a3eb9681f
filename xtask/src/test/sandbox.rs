//! The place one run of the tests happens in.
//!
//! ```text
//! /tmp/agentos-test-PID-USER/
//!   bin/       the test executables, `agentos`, the tools  (only when the user changes)
//!   source/    a readable copy of the source tree          (only when the user changes)
//!   agents/    a copy of the agent store of the caller     (only when the user changes)
//!   typescript/ a copy of the built TypeScript package     (only when the user changes)
//!   home/      HOME, with AGENTOS_HOME in it
//!   runtime/   XDG_RUNTIME_DIR, 0700
//!   tmp/       TMPDIR
//!   skips/     what tests record about themselves
//! ```
//!
//! The source tree and its target directory may be in a directory that only the caller can enter, so a run as another
//! user gets copies. The name is short because the path of a unix socket has at most 107 bytes.

use super::artifacts::{Built, Executable};
use crate::{Failure, workspace};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Users that no system hands out: above those of people, below those that systemd takes for services. One for each run,
/// because the kernel has budgets per user (processes, descriptors in flight, inotify) and two runs at once would eat
/// each other's.
const UNPRIVILEGED_IDS: std::ops::Range<u32> = 60_600..61_100;

/// What of the caller's environment a test may see. Keys of model providers, above all, must not reach one: a test
/// that spends money or passes only for those who have a key is worse than none.
const KEPT_VARIABLES: &[&str] =
    &["PATH", "LANG", "TERM", "TZ", "CI", "RUST_BACKTRACE", "RUST_LOG", "LD_LIBRARY_PATH"];
/// Prefixes, compared without case: the ways to a package registry.
const KEPT_PREFIXES: &[&str] = &[
    "lc_",
    "npm_config_",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "ssl_cert_",
    "node_extra_ca_certs",
];

/// Never copied: built, fetched or of no use to a test.
const NOT_SOURCE: &[&str] = &["target", ".git", "node_modules"];

/// Who runs the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    Root,
    Unprivileged,
}

impl Runner {
    pub(crate) fn from_name(name: &str) -> Result<Self, Failure> {
        match name {
            "root" => Ok(Self::Root),
            "unprivileged" => Ok(Self::Unprivileged),
            other => Err(format!("`{other}` is neither `root` nor `unprivileged`").into()),
        }
    }

    /// Who runs this program.
    pub(crate) fn caller() -> Self {
        if rustix::process::geteuid().is_root() { Self::Root } else { Self::Unprivileged }
    }

    /// The id to change to; none when the caller already is who runs the tests.
    fn foreign_id(self) -> Option<u32> {
        let ids = UNPRIVILEGED_IDS;
        let of_this_run = ids.start + std::process::id() % (ids.end - ids.start);
        (self == Self::Unprivileged && rustix::process::geteuid().is_root()).then_some(of_this_run)
    }
}

impl std::fmt::Display for Runner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Root => "root",
            Self::Unprivileged => "unprivileged",
        })
    }
}

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) runner: Runner,
    directory: PathBuf,
    source: PathBuf,
    agentos: Option<PathBuf>,
    probe: Option<PathBuf>,
    lab: Option<PathBuf>,
    agents: PathBuf,
}

impl Sandbox {
    pub(crate) fn prepare(root: &Path, built: &Built, runner: Runner) -> Result<Self, Failure> {
        let user = if runner == Runner::Root { "root" } else { "user" };
        let directory = std::env::temp_dir().join(format!("agentos-test-{}-{user}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let foreign = runner.foreign_id();
        for (name, mode) in [("home", 0o755), ("runtime", 0o700), ("tmp", 0o755), ("skips", 0o755)] {
            let path = directory.join(name);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            if foreign.is_some() {
                chown(&path, foreign, foreign)?;
            }
        }
        let store = root.join("target/test-agents");
        fs::create_dir_all(&store)?;
        let mut sandbox = Self {
            runner,
            source: root.to_path_buf(),
            agentos: built.agentos.clone(),
            probe: built.probe.clone(),
            lab: built.lab.clone(),
            agents: store.clone(),
            directory,
        };
        if let Some(id) = foreign {
            sandbox.move_in(root, built, &store, id)?;
        }
        sandbox.furnish_home(foreign)?;
        Ok(sandbox)
    }

    /// Copies what another user could not reach.
    fn move_in(&mut self, root: &Path, built: &Built, store: &Path, id: u32) -> Result<(), Failure> {
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o755))?;
        let bin = self.directory.join("bin");
        fs::create_dir(&bin)?;
        for path in built
            .executables
            .iter()
            .map(|executable| &executable.path)
            .chain(&built.agentos)
            .chain(&built.probe)
            .chain(&built.lab)
        {
            place_executable(path, &bin)?;
        }
        self.agentos = built.agentos.as_ref().map(|_| bin.join("agentos"));
        self.probe = built.probe.as_ref().and_then(|path| Some(bin.join(path.file_name()?)));
        self.lab = built.lab.as_ref().and_then(|path| Some(bin.join(path.file_name()?)));
        self.source = self.directory.join("source");
        copy_tree(root, &self.source, &Owner::Caller)?;
        self.agents = self.directory.join("agents");
        copy_tree(store, &self.agents, &Owner::Id(id))?;
        Ok(())
    }

    /// The home gets the caller's registry settings, and its agent store is the one that outlives the run.
    fn furnish_home(&self, foreign: Option<u32>) -> Result<(), Failure> {
        let home = self.home();
        fs::create_dir_all(self.agentos_home())?;
        symlink(&self.agents, self.agentos_home().join("agents"))?;
        if let Some(settings) =
            std::env::home_dir().map(|home| home.join(".npmrc")).filter(|path| path.is_file())
        {
            fs::copy(settings, home.join(".npmrc"))?;
        }
        if let Some(id) = foreign {
            for path in [".npmrc", ".local", ".local/share", ".local/share/agentos"] {
                let path = home.join(path);
                if path.exists() {
                    chown(path, Some(id), Some(id))?;
                }
            }
        }
        Ok(())
    }

    fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    fn agentos_home(&self) -> PathBuf {
        self.home().join(".local/share/agentos")
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the tests of one executable record that they could not run.
    pub(crate) fn skips_file(&self, executable: &Executable) -> PathBuf {
        self.directory.join("skips").join(executable.label().replace("::", "."))
    }

    /// A command that runs one test executable here, as the runner.
    pub(crate) fn command(&self, executable: &Executable) -> Result<Command, Failure> {
        let name = executable.path.file_name().ok_or("a test executable without a name")?;
        let foreign = self.runner.foreign_id();
        let program =
            if foreign.is_some() { self.directory.join("bin").join(name) } else { executable.path.clone() };
        let package = self.source.join(&executable.directory);
        let mut command = self.program(&program, &package);
        command.env("CARGO_MANIFEST_DIR", &package).env("AGENTOS_TEST_SKIPS", self.skips_file(executable));
        if executable.runs_once {
            keep_toolchain(&mut command);
        }
        Ok(command)
    }

    /// A command that runs a program in a directory, as the runner, who must be able to reach both.
    pub(crate) fn program(&self, program: &Path, directory: &Path) -> Command {
        let mut command = Command::new(program);
        self.set_environment(&mut command);
        command.stdin(Stdio::null()).current_dir(directory);
        if let Some(id) = self.runner.foreign_id() {
            // Setting the user as root also drops the supplementary groups.
            command.uid(id).gid(id);
        }
        command
    }

    /// The program, or a copy of it where the runner is another user than the caller.
    pub(crate) fn reachable_program(&self, program: &Path) -> Result<PathBuf, Failure> {
        if self.runner.foreign_id().is_none() {
            return Ok(program.to_path_buf());
        }
        let name = program.file_name().ok_or("a program without a name")?;
        let bin = self.directory.join("bin");
        place_executable(program, &bin)?;
        Ok(bin.join(name))
    }

    /// The directory, or a copy of it under this name where the runner is another user than the caller.
    pub(crate) fn reachable_tree(&self, tree: &Path, name: &str) -> Result<PathBuf, Failure> {
        if self.runner.foreign_id().is_none() {
            return Ok(tree.to_path_buf());
        }
        let copy = self.directory.join(name);
        copy_tree(tree, &copy, &Owner::Caller)?;
        Ok(copy)
    }

    /// Cargo itself, with the caller's toolchain and everything else of this place.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = workspace::cargo(&self.source);
        self.set_environment(&mut command);
        keep_toolchain(&mut command);
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn set_environment(&self, command: &mut Command) {
        let home = self.home();
        command.env_clear();
        pass_on(command, |name| {
            let lower = name.to_ascii_lowercase();
            KEPT_VARIABLES.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
        });
        command
            .env("HOME", &home)
            .env("AGENTOS_HOME", self.agentos_home())
            .env("AGENTOS_TEST_AGENT_STORE", &self.agents)
            .env("TMPDIR", self.directory.join("tmp"))
            .env("XDG_RUNTIME_DIR", self.directory.join("runtime"))
            .env("XDG_DATA_HOME", home.join(".local/share"))
            .env("XDG_CACHE_HOME", home.join(".cache"))
            .env("XDG_CONFIG_HOME", home.join(".config"));
        if let Some(agentos) = &self.agentos {
            command.env("AGENTOS_SIDECAR", agentos);
        }
        if let Some(probe) = &self.probe {
            command.env("AGENTOS_TEST_PROBE", probe);
        }
        if let Some(lab) = &self.lab {
            command.env("AGENTOS_TEST_LAB", lab);
        }
    }

    /// Best effort: what can't be removed is named and left for the person to look at.
    pub(crate) fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            println!("could not remove {}: {error}", self.directory.display());
        }
    }
}

/// What cargo needs to be the caller's cargo.
fn keep_toolchain(command: &mut Command) {
    let needed =
        ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "HOME", "RUSTFLAGS", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
    pass_on(command, |name| needed.contains(&name));
}

/// Hands on the variables of the caller that are wanted.
fn pass_on(command: &mut Command, wanted: impl Fn(&str) -> bool) {
    for (name, value) in std::env::vars_os() {
        if name.to_str().is_some_and(&wanted) {
            command.env(name, value);
        }
    }
}

/// Links where that is enough (same file system, readable for all), else copies.
fn place_executable(path: &Path, directory: &Path) -> Result<(), Failure> {
    let name = path.file_name().ok_or("an executable without a name")?;
    let target = directory.join(name);
    let open_to_all = fs::metadata(path)?.permissions().mode() & 0o005 == 0o005;
    if open_to_all && fs::hard_link(path, &target).is_ok() {
        return Ok(());
    }
    fs::copy(path, &target)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Who owns a copy.
pub(super) enum Owner {
    /// The caller, with everything readable for all.
    Caller,
    /// This user, with the modes of the original.
    Id(u32),
}

pub(super) fn copy_tree(from: &Path, to: &Path, owner: &Owner) -> Result<(), Failure> {
    fs::create_dir(to)?;
    settle(to, 0o755, owner)?;
    for entry in fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // The agent store is made of node_modules; a source tree is not.
            let is_source = !NOT_SOURCE.iter().any(|name| entry.file_name() == *name);
            if is_source || matches!(owner, Owner::Id(_)) {
                copy_tree(&source, &target, owner)?;
            }
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
            settle(&target, fs::metadata(&source)?.permissions().mode(), owner)?;
        }
    }
    Ok(())
}

fn settle(path: &Path, mode: u32, owner: &Owner) -> Result<(), Failure> {
    match owner {
        Owner::Caller => {
            let execute = if mode & 0o100 != 0 { 0o111 } else { 0 };
            fs::set_permissions(path, fs::Permissions::from_mode(0o644 | execute))?;
        }
        Owner::Id(id) => {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            chown(path, Some(*id), Some(*id))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_source_is_readable_and_leaves_out_what_was_built() {
        let base = std::env::temp_dir().join(format!("xtask-copy-{}", std::process::id()));
        let from = base.join("from");
        fs::create_dir_all(from.join("target")).unwrap();
        fs::create_dir_all(from.join("src")).unwrap();
        fs::write(from.join("src/a.rs"), "a").unwrap();
        fs::set_permissions(from.join("src/a.rs"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(from.join("src"), fs::Permissions::from_mode(0o700)).unwrap();

        copy_tree(&from, &base.join("to"), &Owner::Caller).unwrap();

        let mode = |path: &str| fs::metadata(base.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("to/src/a.rs"), 0o644);
        assert_eq!(mode("to/src"), 0o755);
        assert!(!base.join("to/target").exists());
        fs::remove_dir_all(base).unwrap();
    }
}
