//! The agent store: exact npm packages, unpacked once per host and shared read-only by every VM.
//!
//! ```text
//! <home>/agents
//! ├── packages/NAME-VERSION                 finished: complete and verified, or absent
//! ├── packages/AGENT+NODE.compile-cache     what a warm-up left (see crate::plan::WarmUp)
//! ├── downloads/NAME-VERSION,PART.tgz       a tarball on its way; a later install resumes it
//! ├── staging/NAME-VERSION                  an unpacking on its way; a later install starts it again
//! └── locks/NAME-VERSION                    flocked by the one install that works on it
//! ```
//!
//! A package goes `absent → downloading → verified → unpacking → finished`. Only the last step, one rename, makes it
//! visible, so whoever finds the directory may use it, and a killed install leaves nothing that looks installed. Two
//! installs at once, of this process or of others, meet at the lock: the second one waits, shows the first one's
//! progress and finds the work done.
//! No script of a package is ever run.
//!
//! Installing blocks, so [`Store::install`] runs on threads of its own, one per package: the network, the digest and
//! the unpacking of one overlap with those of the other.

mod download;
mod lock;
mod npmrc;
mod unpack;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

pub use download::DownloadError;
pub use npmrc::{PUBLIC_REGISTRY, RegistrySettings, SettingsError};
pub use unpack::UnpackError;

use crate::registry::{Agent, Package};

/// A host's store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    settings: Option<Arc<RegistrySettings>>,
}

/// What an install has fetched so far of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The package with its version.
    pub package: String,
    /// Bytes of its tarball that are here, those of an earlier attempt included.
    pub received_bytes: u64,
    /// Size of the tarball.
    pub total_bytes: Option<u64>,
    /// Where it will be, on the host.
    pub place: PathBuf,
    /// Another installation is fetching it, and this one waits for that.
    pub waiting: bool,
}

/// The finished packages of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    packages_dir: PathBuf,
    packages: Vec<Package>,
    needs_node: bool,
    /// Whether a warm-up is known.
    warms_up: bool,
    record: Option<InstallRecord>,
}

/// What an install did, for the session's `_agentos/install` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallRecord {
    /// The packages that were fetched, with their versions.
    pub packages: Vec<String>,
    /// The size of their tarballs.
    pub total_bytes: u64,
    /// The directory they are in.
    pub place: PathBuf,
    /// How long it took.
    pub duration: Duration,
}

/// Why an agent could not be installed. Nothing is half installed then.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// npm has no Node for this processor.
    #[error("there is no Node package for {arch}")]
    Processor {
        /// The processor.
        arch: &'static str,
    },
    /// The user's npm configuration can't be used.
    #[error("reading the npm configuration")]
    Settings(#[source] SettingsError),
    /// A directory of the store can't be made, locked or moved.
    #[error("store: {step} {}", path.display())]
    Directory {
        /// What was tried.
        step: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk or a quota is full.
    #[error("no space left for {package} in {}", place.display())]
    NoSpace {
        /// The package.
        package: String,
        /// The store.
        place: PathBuf,
    },
    /// The tarball could not be fetched, or isn't the one that was pinned.
    #[error("fetching {package}")]
    Download {
        /// The package.
        package: String,
        /// Why.
        #[source]
        source: DownloadError,
    },
    /// The tarball could not be unpacked.
    #[error("unpacking {package}")]
    Unpack {
        /// The package.
        package: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// Another installation works on the package and doesn't come to an end.
    #[error(
        "another installation of {package} holds {} and has not got on for {} s; end it, then try again",
        lock.display(),
        waited.as_secs()
    )]
    Locked {
        /// The package.
        package: String,
        /// The file that is locked; `fuser` and `lslocks` say by whom.
        lock: PathBuf,
        /// How long this one has waited without a sign of the other one's work.
        waited: Duration,
    },
    /// The caller went away.
    #[error("the installation was cancelled")]
    Cancelled,
    /// A thread of the install ended without an answer.
    #[error("an installation thread ended without an answer")]
    Vanished,
}

/// Where progress goes. A slow reader misses steps, it never slows a download.
#[derive(Clone)]
struct Reporter {
    sender: mpsc::Sender<Progress>,
    package: String,
    place: PathBuf,
}

impl Reporter {
    fn report(&self, received_bytes: u64, total_bytes: u64) {
        self.send(received_bytes, total_bytes, false);
    }

    fn send(&self, received_bytes: u64, total_bytes: u64, waiting: bool) {
        let _ = self.sender.try_send(Progress {
            package: self.package.clone(),
            received_bytes,
            total_bytes: Some(total_bytes),
            place: self.place.clone(),
            waiting,
        });
    }
}

/// One package on its way, under its lock.
struct Work<'a> {
    package: &'a Package,
    client: &'a download::Client,
    cancelled: &'a AtomicBool,
    staging: &'a Path,
    reporter: &'a dyn Fn(&Package) -> Reporter,
}

impl Store {
    /// The store in a directory, which is made when something is installed. The npm configuration is read then too.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, settings: None }
    }

    /// The store in a directory with a given npm configuration instead of the user's.
    #[must_use]
    pub fn with_settings(root: PathBuf, settings: RegistrySettings) -> Self {
        Self { root, settings: Some(Arc::new(settings)) }
    }

    /// The directory that VMs see.
    #[must_use]
    pub fn packages_dir(&self) -> PathBuf {
        self.root.join("packages")
    }

    /// What the agent's installation is, if all of it is here.
    #[must_use]
    pub fn installed(&self, agent: &Agent) -> Option<Installed> {
        let packages = agent.all_packages()?;
        if !packages.iter().all(|package| self.is_finished(package)) {
            return None;
        }
        Some(self.describe(agent, packages, None))
    }

    /// Fetches packages that belong to no agent, and returns where each of them is. It blocks.
    pub fn fetch(
        &self,
        packages: &[Package],
        progress: &mpsc::Sender<Progress>,
    ) -> Result<Vec<PathBuf>, InstallError> {
        let missing: Vec<Package> = packages.iter().filter(|p| !self.is_finished(p)).cloned().collect();
        self.install_all(&missing, progress, &AtomicBool::new(false))?;
        Ok(packages.iter().map(|package| self.packages_dir().join(package.directory_name())).collect())
    }

    /// Fetches what the agent lacks, reporting on `progress`. Dropping the future stops the downloads; what is here
    /// by then is resumed by the next install.
    pub async fn install(
        &self,
        agent: &Agent,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Installed, InstallError> {
        let packages =
            agent.all_packages().ok_or(InstallError::Processor { arch: std::env::consts::ARCH })?;
        let started = Instant::now();
        let missing: Vec<Package> = packages.iter().filter(|p| !self.is_finished(p)).cloned().collect();
        let guard = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let (store, wanted, cancelled) = (self.clone(), missing.clone(), Arc::clone(&guard.0));
        let work = tokio::task::spawn_blocking(move || store.install_all(&wanted, &progress, &cancelled));
        work.await.map_err(|_| InstallError::Vanished)??;
        let record = (!missing.is_empty()).then(|| InstallRecord {
            packages: missing.iter().flat_map(Package::parts).map(|(part, _)| part.label()).collect(),
            total_bytes: missing.iter().flat_map(Package::parts).map(|(part, _)| part.tarball_bytes).sum(),
            place: self.packages_dir(),
            duration: started.elapsed(),
        });
        Ok(self.describe(agent, packages, record))
    }

    /// Whether sessions of this installation would start faster after a warm-up.
    #[must_use]
    pub fn needs_warm_up(&self, installed: &Installed) -> bool {
        installed.cache_name().is_some() && installed.compile_cache_name().is_none()
    }

    /// Where a warm-up writes and where its result goes.
    pub(crate) fn compile_cache_places(&self, installed: &Installed) -> (PathBuf, PathBuf) {
        let name = installed.cache_name().unwrap_or_else(|| "none.compile-cache".to_owned());
        let scratch = self.root.join("staging").join(format!("{name}-{}", uuid::Uuid::new_v4().simple()));
        (scratch, self.packages_dir().join(name))
    }

    fn describe(&self, agent: &Agent, packages: Vec<Package>, record: Option<InstallRecord>) -> Installed {
        Installed {
            packages_dir: self.packages_dir(),
            packages,
            needs_node: agent.needs_node,
            warms_up: agent.data.warm_up.is_some(),
            record,
        }
    }

    fn is_finished(&self, package: &Package) -> bool {
        let directory = self.packages_dir().join(package.directory_name());
        package.parts().all(|(part, below)| directory.join(below).join(&part.entry).is_file())
    }

    fn install_all(
        &self,
        packages: &[Package],
        progress: &mpsc::Sender<Progress>,
        cancelled: &AtomicBool,
    ) -> Result<(), InstallError> {
        if packages.is_empty() {
            return Ok(());
        }
        let settings = match &self.settings {
            Some(settings) => Arc::clone(settings),
            None => Arc::new(RegistrySettings::from_user().map_err(InstallError::Settings)?),
        };
        for directory in ["packages", "downloads", "staging", "locks"] {
            make_directory(&self.root.join(directory))?;
        }
        let client = download::Client::new(&settings);
        std::thread::scope(|scope| {
            let install = |package| {
                let client = &client;
                scope.spawn(move || self.install_one(package, client, progress, cancelled))
            };
            let threads: Vec<_> = packages.iter().map(install).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or(Err(InstallError::Vanished)))
                .fold(Ok(()), Result::and)
        })
    }

    fn install_one(
        &self,
        package: &Package,
        client: &download::Client,
        progress: &mpsc::Sender<Progress>,
        cancelled: &AtomicBool,
    ) -> Result<(), InstallError> {
        let name = package.directory_name();
        let finished = self.packages_dir().join(&name);
        let staging = self.root.join("staging").join(&name);
        let reporter = |part: &Package| Reporter {
            sender: progress.clone(),
            package: part.label(),
            place: finished.clone(),
        };
        // The other installation's tarballs grow before everyone's eyes.
        let mut seen: Vec<Option<u64>> = vec![None; package.parts().count()];
        let mut waiting = || {
            let mut got_on = false;
            for ((part, _), seen) in package.parts().zip(&mut seen) {
                let received = fs::metadata(self.tarball(package, part)).map_or(0, |found| found.len());
                if seen.replace(received).is_none_or(|before| received > before) {
                    got_on = true;
                    reporter(part).send(received.min(part.tarball_bytes), part.tarball_bytes, true);
                }
            }
            got_on
        };
        let label = package.label();
        let wait = lock::Wait { package: &label, patience: lock::PATIENCE, cancelled, waiting: &mut waiting };
        let _lock = lock::take(&self.root.join("locks").join(&name), wait)?;
        // Another install may have finished while this one waited for the lock.
        if self.is_finished(package) {
            for (part, _) in package.parts() {
                reporter(part).report(part.tarball_bytes, part.tarball_bytes);
            }
            return Ok(());
        }
        for (part, _) in package.parts() {
            reporter(part).report(0, part.tarball_bytes);
        }
        // What is there without its entry was damaged by someone else; what is in staging by a killed install.
        for stale in [&finished, &staging] {
            remove_directory(stale)?;
        }
        let work = Work { package, client, cancelled, staging: &staging, reporter: &reporter };
        let tarballs = self.fill_staging(&work).inspect_err(|_| drop(fs::remove_dir_all(&staging)))?;
        Self::put_in_place(&staging, &finished)?;
        tarballs.iter().for_each(|path| drop(fs::remove_file(path)));
        Ok(())
    }

    /// Fetches and unpacks every part; the tarballs that are of no more use.
    fn fill_staging(&self, work: &Work<'_>) -> Result<Vec<PathBuf>, InstallError> {
        let mut tarballs = Vec::new();
        for (part, below) in work.package.parts() {
            let path = self.tarball(work.package, part);
            let reporter = (work.reporter)(part);
            let job =
                download::Job { package: part, path: &path, reporter: &reporter, cancelled: work.cancelled };
            let archive =
                work.client.fetch(&job).map_err(|source| self.download_failed(part, &path, source))?;
            tarballs.push(path);
            unpack::unpack(archive, &work.staging.join(below), part)
                .map_err(|source| self.unpack_failed(part, &tarballs, source))?;
        }
        Ok(tarballs)
    }

    /// Where a part's tarball is fetched to: under the name of the whole, because the lock is the whole's.
    fn tarball(&self, whole: &Package, part: &Package) -> PathBuf {
        let name = format!("{},{}.tgz", whole.directory_name(), part.directory_name());
        self.root.join("downloads").join(name)
    }

    fn put_in_place(staging: &Path, finished: &Path) -> Result<(), InstallError> {
        // The rename must not reach the disk before the files do: a finished package is never looked into again.
        let directory = fs::File::open(staging).map_err(at("opening", staging))?;
        rustix::fs::syncfs(&directory).map_err(|error| at("writing out", staging)(error.into()))?;
        fs::rename(staging, finished).map_err(at("moving into place", finished))
    }

    fn unpack_failed(&self, part: &Package, tarballs: &[PathBuf], source: UnpackError) -> InstallError {
        if source.is_no_space() {
            tarballs.iter().for_each(|path| drop(fs::remove_file(path)));
            return InstallError::NoSpace { package: part.label(), place: self.root.clone() };
        }
        InstallError::Unpack { package: part.label(), source }
    }

    fn download_failed(&self, package: &Package, tarball: &Path, source: DownloadError) -> InstallError {
        let package = package.label();
        if source.is_no_space() {
            // Half a tarball on a full disk helps nobody.
            let _ = fs::remove_file(tarball);
            return InstallError::NoSpace { package, place: self.root.clone() };
        }
        match source {
            DownloadError::Cancelled => InstallError::Cancelled,
            source => InstallError::Download { package, source },
        }
    }
}

impl Installed {
    /// The directory that VMs see.
    #[must_use]
    pub fn packages_dir(&self) -> &Path {
        &self.packages_dir
    }

    /// The package of Node, where the agent needs one.
    #[must_use]
    pub fn node(&self) -> Option<&Package> {
        if self.needs_node { self.packages.last() } else { None }
    }

    /// Whether it is nothing at all: some agents need none of the store's packages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// Whether it has this package in this version.
    #[must_use]
    pub fn holds(&self, package: &Package) -> bool {
        self.packages.contains(package)
    }

    /// What was done to get here; `None` where everything was here already.
    #[must_use]
    pub fn record(&self) -> Option<InstallRecord> {
        self.record.clone()
    }

    /// The directory in the store with compiled code for this agent on this Node, once a warm-up has made it.
    #[must_use]
    pub fn compile_cache_name(&self) -> Option<String> {
        self.cache_name().filter(|name| self.packages_dir.join(name).is_dir())
    }

    fn cache_name(&self) -> Option<String> {
        let node = self.node().filter(|_| self.warms_up)?;
        let own = self.packages.first().filter(|own| own.name != node.name)?;
        Some(format!("{}+{}.compile-cache", own.directory_name(), node.directory_name()))
    }
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError::Directory { step, path: path.to_owned(), source }
}

fn make_directory(path: &Path) -> Result<(), InstallError> {
    fs::create_dir_all(path).map_err(at("making", path))
}

fn remove_directory(path: &Path) -> Result<(), InstallError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("removing", path)(error)),
        _ => Ok(()),
    }
}
