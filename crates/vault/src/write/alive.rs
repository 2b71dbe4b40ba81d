//! Signs of life: while a run writes, it keeps `active/<run>` fresh, so that a prune knows whom
//! to wait for.

use crate::storage::Storage;
use bytes::Bytes;
use model::limits::{ACTIVE_RENEW, GRACE};
use model::{Clock, Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Where signs of life are.
pub(crate) const ACTIVE: &str = "active/";

/// A run's sign of life; renewed in the background until it is dropped.
#[derive(Debug)]
pub(crate) struct Alive {
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    path: String,
    renewed: Arc<AtomicI64>,
    task: tokio::task::JoinHandle<()>,
}

impl Alive {
    /// Writes the sign and starts renewing it.
    pub async fn start(storage: Arc<dyn Storage>, clock: Arc<dyn Clock>, run: &str) -> Result<Self> {
        let path = format!("{ACTIVE}{run}");
        storage.replace(&path, Bytes::from(run.to_owned())).await?;
        storage.sync().await?;
        let renewed = Arc::new(AtomicI64::new(clock.now_millis()));
        let task = tokio::spawn({
            let (storage, clock, path, renewed) = (storage.clone(), clock.clone(), path.clone(), renewed.clone());
            async move {
                loop {
                    tokio::time::sleep(ACTIVE_RENEW).await;
                    let before = clock.now_millis();
                    match storage.replace(&path, Bytes::from_static(b"alive")).await {
                        Ok(()) => renewed.store(before, Ordering::Relaxed),
                        Err(e) => tracing::warn!("renewing {path} failed: {e}"),
                    }
                }
            }
        });
        Ok(Alive { storage, clock, path, renewed, task })
    }

    /// Renews the sign now.
    pub async fn renew(&self) -> Result<()> {
        let before = self.clock.now_millis();
        self.storage.replace(&self.path, Bytes::from_static(b"alive")).await?;
        self.renewed.store(before, Ordering::Relaxed);
        Ok(())
    }

    /// Fails if the sign was not renewed for so long that a prune may take this run for dead.
    pub fn check(&self) -> Result<()> {
        let silent = self.clock.now_millis() - self.renewed.load(Ordering::Relaxed);
        if silent > GRACE.as_millis() as i64 / 2 {
            return Err(Error::new(
                model::ErrorKind::Retry,
                format!(
                    "this run gave no sign of life for {} hours, so what it stored may have been removed",
                    silent / 3_600_000
                ),
            )
            .hint("run the backup again: what is still there is not sent again"));
        }
        Ok(())
    }

    /// Ends the run: takes the sign away.
    pub async fn end(self) -> Result<()> {
        self.task.abort();
        self.storage.delete(&self.path).await
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.task.abort();
    }
}
