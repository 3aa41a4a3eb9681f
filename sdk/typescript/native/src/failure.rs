//! An error of the Rust SDK as a JavaScript error: the same message, and in `code` what callers branch on: the errno
//! name where a system call is behind it, else the kind.

use napi::bindgen_prelude::{JsObjectValue, Object};
use napi::{Env, Error, JsValue, Result, Status};

/// Only on the thread of JavaScript.
pub(crate) fn thrown(env: &Env, error: &agentos::Error) -> Error {
    let code = error.errno().map_or_else(|| format!("{:?}", error.kind()), str::to_owned);
    with_code(env, &code, &error.to_string())
}

/// An error that the Rust SDK has no part in.
pub(crate) fn with_code(env: &Env, code: &str, message: &str) -> Error {
    match object(env, code, message) {
        Ok(object) => Error::from(object.to_unknown()),
        Err(error) => error,
    }
}

fn object<'env>(env: &'env Env, code: &str, message: &str) -> Result<Object<'env>> {
    let mut object = env.create_error(Error::new(Status::GenericFailure, message))?;
    object.set_named_property("code", code)?;
    Ok(object)
}

/// Runs a call to its end on this thread, which is JavaScript's: what the call waits for must never be JavaScript.
pub(crate) fn wait<T>(env: &Env, call: impl Future<Output = agentos::Result<T>>) -> Result<T> {
    crate::runtime::get()?.block_on(call).map_err(|error| thrown(env, &error))
}
