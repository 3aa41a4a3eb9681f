//! A first run of an agent in a VM of its own, for the code that it leaves compiled.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::compose::Composition;
use super::{
    AcpSetup, LaunchPlan, PlanError, PlanMount, node_binary, node_dirs, npm_arch, package_dir, store_mount,
};
use crate::registry::Agent;
use crate::registry::template::Gap;
use crate::store::{Installed, Store};

/// Where a warm-up writes its compile cache; no session ever sees it.
const GUEST_WARM_UP: &str = "/opt/agentos/warm-up";
/// Where whatever the agent keeps goes, with its VM.
const SCRATCH_HOME: &str = "/tmp/agentos-warm-up";

/// A directory of the store can't be made or moved for a warm-up.
#[derive(Debug, thiserror::Error)]
#[error("preparing {}", path.display())]
pub struct PrepareError {
    /// The directory.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl PrepareError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// One run of an agent in a VM of its own that leaves a compile cache behind.
///
/// A session whose Node finds compiled code is ready in two thirds of the time. The cache is code that later sessions
/// run without looking at it, so a guest that could write it could reach into every other VM. It is therefore made
/// in a fresh VM that sees the store and nothing of any user, and is read-only ever after. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct WarmUp {
    /// What to run: with its input at its end, so that it exits by itself.
    pub plan: LaunchPlan,
    scratch: PathBuf,
    finished: PathBuf,
}

/// Plans the warm-up of an installation.
pub fn plan_warm_up(agent: &Agent, store: &Store, installed: &Installed) -> Result<WarmUp, PlanError> {
    let nothing = |what| PlanError::Nothing { agent: agent.id.clone(), what };
    let layer = agent.data.warm_up.as_ref().ok_or_else(|| nothing("a warm-up"))?;
    let (scratch, finished) = store.compile_cache_places(installed);
    let value = |gap: &Gap| match gap {
        Gap::Node => node_binary(agent, installed),
        Gap::Package(key) => package_dir(agent, installed, key),
        Gap::State | Gap::Config | Gap::Home => Ok(SCRATCH_HOME.to_owned()),
        Gap::Arch => Ok(npm_arch().to_owned()),
        Gap::Machine => Ok(std::env::consts::ARCH.to_owned()),
        _ => Err(nothing("a session")),
    };
    let mut made = Composition::new(agent, &value)?;
    made.add(&agent.data.always)?;
    made.add(&agent.data.store)?;
    made.add(layer)?;
    made.fix("NODE_COMPILE_CACHE", format!("{GUEST_WARM_UP}/cache"));
    let composed = made.finish(&BTreeMap::new())?;
    let plan = LaunchPlan {
        argv: composed.argv,
        env: composed.env,
        cwd: "/".to_owned(),
        mounts: vec![
            store_mount(installed.packages_dir()),
            PlanMount { host_path: scratch.clone(), guest_path: GUEST_WARM_UP.to_owned(), read_only: false },
        ],
        state: Vec::new(),
        state_dir: None,
        files: composed.files,
        path_dirs: node_dirs(installed),
        launch: agent.launch,
        acp: AcpSetup::default(),
        agent_version: agent.version().map(str::to_owned),
    };
    Ok(WarmUp { plan, scratch, finished })
}

impl WarmUp {
    /// Makes the directory that the run writes into.
    pub fn prepare(&self) -> Result<(), PrepareError> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(&self.scratch).map_err(PrepareError::at(&self.scratch))
    }

    /// Takes over what the run left, so that later sessions find it; of two at once the first wins.
    pub fn adopt(self) -> Result<(), PrepareError> {
        let cache = self.scratch.join("cache");
        match fs::rename(&cache, &self.finished) {
            Err(_) if self.finished.is_dir() => Ok(()),
            renamed => renamed.map_err(PrepareError::at(&cache)),
        }
    }
}

impl Drop for WarmUp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}
