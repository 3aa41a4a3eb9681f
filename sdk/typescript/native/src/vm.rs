//! A VM: its life and its files.

use std::sync::{Mutex, PoisonError};

use agentos::AgentOs;
use napi::bindgen_prelude::{Object, Uint8Array};
use napi::{Env, Result};
use napi_derive::napi;
use tokio::task::{AbortHandle, JoinSet};

use crate::options::CreateWish;
use crate::{promise, runtime};

/// A handle of the Rust SDK. The VM is disposed when that is asked for, and at the latest when the environment of Node
/// that made it ends, with its process or as a worker thread.
#[napi]
pub struct Vm {
    pub(crate) vm: AgentOs,
    /// Those who tell handlers of the VM. Their streams keep it alive, and they go with this handle. Locked to add one.
    tellers: Mutex<JoinSet<()>>,
}

/// A promise of a [`Vm`].
#[napi]
pub fn create_vm(env: &Env, wish: CreateWish) -> Result<Object<'_>> {
    let options = wish.into_options();
    promise::of(env, async move { Ok(Vm { vm: AgentOs::create(options).await?, tellers: Mutex::default() }) })
}

impl Vm {
    pub(crate) fn keep_telling(
        &self,
        teller: impl Future<Output = ()> + Send + 'static,
    ) -> Result<AbortHandle> {
        let runtime = runtime::get()?;
        let mut tellers = self.tellers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended are let go of here, so that there are never more than were alive at once.
        while tellers.try_join_next().is_some() {}
        Ok(tellers.spawn_on(teller, runtime.handle()))
    }
}

#[napi]
impl Vm {
    /// A promise of nothing.
    #[napi]
    pub fn dispose<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { vm.dispose().await })
    }

    /// A promise of a `Uint8Array`.
    #[napi]
    pub fn read_file<'env>(&self, env: &'env Env, path: String) -> Result<Object<'env>> {
        let vm = self.vm.clone();
        promise::of(env, async move { Ok(Uint8Array::from(vm.read_file(path).await?)) })
    }

    /// A promise of nothing. The content is copied: JavaScript may change it at once.
    #[napi]
    pub fn write_file<'env>(
        &self,
        env: &'env Env,
        path: String,
        content: Uint8Array,
    ) -> Result<Object<'env>> {
        let (vm, content) = (self.vm.clone(), content.to_vec());
        promise::of(env, async move { vm.write_file(path, content).await })
    }
}
