//! A VM: its life and its files.

use agentos::AgentOs;
use napi::bindgen_prelude::{Object, Uint8Array};
use napi::{Env, Result};
use napi_derive::napi;

use crate::options::CreateWish;
use crate::promise;

/// A handle of the Rust SDK. The VM is disposed when it is asked for, when the last handle of it is collected as
/// garbage, and when the process ends.
#[napi]
pub struct Vm {
    pub(crate) vm: AgentOs,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Vm").field(&self.vm).finish()
    }
}

/// A promise of a [`Vm`].
#[napi]
pub fn create_vm(env: &Env, wish: CreateWish) -> Result<Object<'_>> {
    let options = wish.into_options();
    promise::of(env, async move { Ok(Vm { vm: AgentOs::create(options).await? }) })
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
