//! Other programs that give a network namespace a way out in user space: what VMs' networks are compared with.
//!
//! They are Debian's packages, downloaded by `apt-get` and unpacked beside the bench's own executable; nothing is
//! installed. One that the host has already is used as it is. Where neither can be had, or a program doesn't work here, the
//! reason is said and the rows do without it.

use crate::Failure;
use crate::host::find_program;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const SLIRP4NETNS: &str = "slirp4netns";
pub(crate) const PASTA: &str = "pasta";

/// What stands for the host in a namespace, and in a VM.
pub(crate) const HOST: &str = "10.0.2.2";

const PATIENCE: Duration = Duration::from_secs(10);

struct Program {
    name: &'static str,
    /// Its own package first, then what it needs that few hosts have.
    packages: &'static [&'static str],
    arguments: fn(holder: u32) -> Vec<String>,
}

const PROGRAMS: [Program; 2] = [
    Program { name: SLIRP4NETNS, packages: &["slirp4netns", "libslirp0"], arguments: slirp4netns },
    Program { name: PASTA, packages: &["passt"], arguments: pasta },
];

fn slirp4netns(holder: u32) -> Vec<String> {
    words(&format!("--configure --mtu=65520 {holder} tap0"))
}

/// Its own MTU is the same. The addresses are those of the others, and no port leads inward.
fn pasta(holder: u32) -> Vec<String> {
    let mut arguments = words("--foreground --config-net --address 10.0.2.15 --netmask 24");
    arguments.extend(words(&format!("--gateway {HOST} -t none -u none -T none -U none")));
    if rustix::process::geteuid().is_root() {
        // Another user, which it would become otherwise, may not enter the namespace.
        arguments.extend(words("--runas 0"));
    }
    arguments.push(holder.to_string());
    arguments
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// A process that ends when this is dropped.
struct Held(Child);

impl Held {
    fn spawn(command: &mut Command) -> std::io::Result<Self> {
        command.spawn().map(Self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // One that has ended by itself is still to be waited for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A network namespace with one of the programs at work.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    _program: Held,
    /// Its namespaces are those meant.
    holder: Held,
}

impl Rival {
    /// All that can be had. What is not there is fetched only where the bench `may_fetch`.
    pub(crate) async fn start_all(may_fetch: bool) -> Vec<Self> {
        let mut rivals = Vec::new();
        for program in &PROGRAMS {
            match Self::start(program, may_fetch).await {
                Ok(rival) => rivals.push(rival),
                Err(failure) => eprintln!("  nothing is compared with {}: {failure}", program.name),
            }
        }
        rivals
    }

    async fn start(program: &Program, may_fetch: bool) -> Result<Self, Failure> {
        let (executable, libraries) = find(program, may_fetch)?;
        let holder = Held::spawn(
            Command::new("unshare")
                .args(["--user", "--map-root-user", "--net", "cat"])
                // It ends with the bench, if not before.
                .stdin(Stdio::piped())
                .stdout(Stdio::null()),
        )?;
        let pid = holder.0.id();
        // By then it has its namespaces.
        let comm = format!("/proc/{pid}/comm");
        wait("no namespace came about", || fs::read_to_string(&comm).is_ok_and(|name| name == "cat\n"))
            .await?;
        let log = std::env::temp_dir().join(format!("{}.log", program.name));
        let mut running = Held::spawn(
            Command::new(executable)
                .args((program.arguments)(pid))
                .env("LD_LIBRARY_PATH", libraries)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(&log)?),
        )?;
        let mut ended = None;
        wait("no route came about", || {
            ended = running.0.try_wait().ok().flatten();
            ended.is_some() || has_default_route(pid)
        })
        .await?;
        if let Some(status) = ended {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("{status}: {}", said.lines().last().unwrap_or_default()).into());
        }
        Ok(Self { name: program.name, _program: running, holder })
    }

    /// Runs a program in the namespace.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.holder.0.id().to_string();
        command.args(["--target", &target, "--user", "--preserve-credentials", "--net", "--"]).arg(program);
        command
    }
}

async fn wait(otherwise: &str, mut until: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !until() {
        if Instant::now() > deadline {
            return Err(otherwise.into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// In the network namespace of the process.
fn has_default_route(pid: u32) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap_or_default();
    // The second column is the destination.
    table.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000"))
}

/// The executable, and where its libraries are beside those of the host.
fn find(program: &Program, may_fetch: bool) -> Result<(PathBuf, PathBuf), Failure> {
    if let Some(executable) = find_program(program.name) {
        return Ok((executable, PathBuf::new()));
    }
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).ok_or("this program is in no target directory")?;
    let tools = target.join("bench-tools");
    let root = tools.join(program.name);
    if !root.is_dir() {
        if !may_fetch {
            return Err("it is neither installed nor fetched".into());
        }
        fetch(program, &tools, &root)?;
    }
    // As Debian names directories of libraries.
    let libraries = root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    Ok((root.join("usr/bin").join(program.name), libraries))
}

/// Whatever happens, what is at `root` is whole.
fn fetch(program: &Program, tools: &Path, root: &Path) -> Result<(), Failure> {
    let packages = program.packages.join(" and ");
    eprintln!("  fetching Debian's {packages}, less than 1 MB, to {}", tools.display());
    let fresh = tools.join(format!("{}.{}", program.name, std::process::id()));
    fs::create_dir_all(&fresh)?;
    let unpacked = download(program, &fresh).and_then(|()| unpack(&fresh));
    let placed = unpacked.and_then(|tree| Ok(fs::rename(tree, root)?));
    fs::remove_dir_all(&fresh)?;
    placed
}

fn download(program: &Program, directory: &Path) -> Result<(), Failure> {
    let mut apt = Command::new("apt-get");
    // Who asks for another user to download would have to let that one in here.
    apt.args(["--option", "APT::Sandbox::User=root", "--option", "Acquire::http::Timeout=20", "download"]);
    succeed(apt.args(program.packages).current_dir(directory))
}

fn unpack(directory: &Path) -> Result<PathBuf, Failure> {
    let tree = directory.join("tree");
    for entry in fs::read_dir(directory)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            succeed(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&tree))?;
        }
    }
    Ok(tree)
}

/// Shows what the command says: it may take a while.
fn succeed(command: &mut Command) -> Result<(), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}").into()) }
}
