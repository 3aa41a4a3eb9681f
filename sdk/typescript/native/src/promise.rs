//! A future of the Rust SDK as a JavaScript promise.
//!
//! A promise that is not settled keeps the process alive, as those of Node's own file system do.

use napi::bindgen_prelude::{Object, ToNapiValue};
use napi::{Env, Result};

use crate::failure::thrown;
use crate::runtime;

pub(crate) fn of<T>(
    env: &Env,
    work: impl Future<Output = agentos::Result<T>> + Send + 'static,
) -> Result<Object<'_>>
where
    T: ToNapiValue + Send + 'static,
{
    let runtime = runtime::get()?;
    let (deferred, promise) = env.create_deferred()?;
    runtime.spawn(async move {
        let outcome = work.await;
        // Runs on the thread of JavaScript, or not at all where that has ended.
        deferred.resolve(move |env| outcome.map_err(|error| thrown(&env, &error)));
    });
    Ok(promise)
}
