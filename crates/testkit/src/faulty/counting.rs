//! Counting what is asked of a storage.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use model::Result;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use vault::storage::{Created, Entry, Storage};

/// How many operations there were of each type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpCounts {
    /// Reads, of objects and of ranges.
    pub reads: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Listings.
    pub lists: u64,
    /// Creations, also of objects that existed.
    pub creates: u64,
    /// Replacements.
    pub replaces: u64,
    /// Bytes that were written by both.
    pub bytes_written: u64,
    /// Deletions.
    pub deletes: u64,
    /// Looks at one object.
    pub stats: u64,
    /// Syncs.
    pub syncs: u64,
}

impl OpCounts {
    /// What remote storage would charge for: all but syncs.
    pub fn requests(&self) -> u64 {
        self.reads + self.lists + self.creates + self.replaces + self.deletes + self.stats
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter(Mutex<OpCounts>);

impl Counter {
    pub(super) fn add(&self, add: impl FnOnce(&mut OpCounts)) {
        add(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()));
    }

    pub(super) fn get(&self) -> OpCounts {
        *self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Counts what is asked of any storage.
#[derive(Debug)]
pub struct CountingStorage {
    inner: Arc<dyn Storage>,
    counts: Counter,
}

impl CountingStorage {
    /// Counts from now on.
    pub fn new(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(CountingStorage { inner, counts: Counter::default() })
    }

    /// What was asked so far.
    pub fn operations(&self) -> OpCounts {
        self.counts.get()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        self.counts.add(|c| *c = OpCounts::default());
    }
}

#[async_trait]
impl Storage for CountingStorage {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        self.counts.add(|c| (c.creates, c.bytes_written) = (c.creates + 1, c.bytes_written + bytes.len() as u64));
        self.inner.create(name, bytes).await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.counts.add(|c| (c.replaces, c.bytes_written) = (c.replaces + 1, c.bytes_written + bytes.len() as u64));
        self.inner.replace(name, bytes).await
    }

    async fn sync(&self) -> Result<()> {
        self.counts.add(|c| c.syncs += 1);
        self.inner.sync().await
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        self.counts.add(|c| c.reads += 1);
        let bytes = self.inner.read(name).await?;
        self.counts.add(|c| c.bytes_read += bytes.len() as u64);
        Ok(bytes)
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        self.counts.add(|c| c.reads += 1);
        let bytes = self.inner.read_range(name, range).await?;
        self.counts.add(|c| c.bytes_read += bytes.len() as u64);
        Ok(bytes)
    }

    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        self.counts.add(|c| c.stats += 1);
        self.inner.stat(name).await
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        self.counts.add(|c| c.lists += 1);
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.counts.add(|c| c.deletes += 1);
        self.inner.delete(name).await
    }

    async fn free_space(&self) -> Result<Option<u64>> {
        self.inner.free_space().await
    }
}
