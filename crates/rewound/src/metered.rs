//! An attachment store that counts what flows through it, and stops when asked.

use crate::progress::Job;
use crate::stop::interrupted;
use async_trait::async_trait;
use futures::StreamExt;
use model::{AttachmentRef, AttachmentStore, AttachmentStream, CollectionId, Result};
use std::sync::Arc;

/// Passes everything on to another store.
pub(crate) struct Metered {
    inner: Arc<dyn AttachmentStore>,
    job: Job,
}

impl Metered {
    /// Counts what goes to and comes from `inner` for a job.
    pub fn in_front_of(inner: Arc<dyn AttachmentStore>, job: &Job) -> Arc<dyn AttachmentStore> {
        Arc::new(Metered { inner, job: job.clone() })
    }

    fn count(&self, content: AttachmentStream) -> AttachmentStream {
        let job = self.job.clone();
        content
            .map(move |piece| {
                if job.stop.is_asked() {
                    return Err(interrupted());
                }
                piece.inspect(|bytes| job.advance(0, bytes.len() as u64))
            })
            .boxed()
    }
}

#[async_trait]
impl AttachmentStore for Metered {
    async fn put(&self, content: AttachmentStream) -> Result<AttachmentRef> {
        self.inner.put(self.count(content)).await
    }

    async fn known(&self, collection: &CollectionId, key: &[u8], name: &str) -> Result<Option<AttachmentRef>> {
        self.inner.known(collection, key, name).await
    }

    async fn open(&self, reference: &AttachmentRef) -> Result<AttachmentStream> {
        Ok(self.count(self.inner.open(reference).await?))
    }
}
