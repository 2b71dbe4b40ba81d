//! Signs of life of those who read for long, so that no prune takes away what they still need.

use crate::storage::Storage;
use crate::vault::Vault;
use crate::write::ACTIVE;
use bytes::Bytes;
use model::limits::ACTIVE_RENEW;
use std::sync::Arc;
use std::time::Duration;

/// How the signs of life of readers begin.
pub(crate) const READER: &str = "reader-";
/// After this long without a sign of life a reader counts as gone. Shorter than a writer's grace, as
/// a reader that comes back can only fail, with an error that says so.
pub(crate) const READER_GRACE: Duration = Duration::from_secs(3600);

/// While this lives, prunes wait before they remove what can be read now. Where the storage cannot be
/// written it does nothing: then a prune may end what is being read, with an error.
#[derive(Debug)]
pub struct Reading {
    storage: Arc<dyn Storage>,
    path: String,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Vault {
    /// Says that somebody reads from now on. Ask for points only after this.
    pub async fn reading(&self) -> Reading {
        let storage = self.inner.storage.clone();
        let path = format!("{ACTIVE}{READER}{}", crate::hash::hex(&self.inner.seams.bytes::<8>()));
        let sign = Bytes::from_static(b"reading");
        let task = match storage.replace(&path, sign.clone()).await {
            Ok(()) => Some(tokio::spawn({
                let (storage, path) = (storage.clone(), path.clone());
                async move {
                    loop {
                        tokio::time::sleep(ACTIVE_RENEW).await;
                        if let Err(e) = storage.replace(&path, sign.clone()).await {
                            tracing::debug!("renewing {path} failed: {e}");
                        }
                    }
                }
            })),
            Err(e) => {
                tracing::debug!("reading without a sign of life: {e}");
                None
            }
        };
        Reading { storage, path, task }
    }
}

impl Reading {
    /// Takes the sign away.
    pub async fn end(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            if let Err(e) = self.storage.delete(&self.path).await {
                tracing::debug!("taking away {} failed: {e}", self.path);
            }
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Some(task) = self.task.take() else { return };
        task.abort();
        // Where nobody is left to take it away it expires by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (storage, path) = (self.storage.clone(), self.path.clone());
            runtime.spawn(async move { storage.delete(&path).await });
        }
    }
}
