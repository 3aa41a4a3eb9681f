//! Servers of ours that programs in a VM connect to.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::errors;

/// A listener that fails to accept is asked again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections, so many at a time; further ones wait to be accepted. Ends with its future, and they with it.
pub(crate) async fn serve<F, E>(
    listener: TcpListener,
    at_once: usize,
    server: &'static str,
    connection: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Error + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(at_once));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = connection(stream);
                connections.spawn(async move {
                    if let Err(error) = served.await {
                        tracing::debug!(server, error = errors::chain(&error), "a connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(server, %error, "a listener in a VM");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}
