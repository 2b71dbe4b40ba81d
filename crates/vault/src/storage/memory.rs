//! A vault in memory, for tests.

use super::names::{check_name, check_prefix};
use super::{Created, Entry, Storage};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use model::{Clock, Error, Result};
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// Objects in memory, gone with the last clone of this.
#[derive(Debug, Clone)]
pub struct MemoryStorage {
    objects: Arc<Mutex<BTreeMap<String, (Bytes, i64)>>>,
    clock: Arc<dyn Clock>,
}

impl MemoryStorage {
    /// An empty storage that takes its times from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        MemoryStorage { objects: Arc::default(), clock }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, (Bytes, i64)>> {
        self.objects.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created> {
        check_name(name)?;
        match self.objects().entry(name.to_owned()) {
            btree_map::Entry::Occupied(_) => Ok(Created::Existed),
            btree_map::Entry::Vacant(free) => {
                free.insert((bytes, self.clock.now_millis()));
                Ok(Created::New)
            }
        }
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        check_name(name)?;
        self.objects().insert(name.to_owned(), (bytes, self.clock.now_millis()));
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        check_name(name)?;
        let objects = self.objects();
        let found = objects.get(name).ok_or_else(|| Error::missing(format!("there is no {name} in memory")))?;
        Ok(found.0.clone())
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let bytes = self.read(name).await?;
        let at = |n: u64| usize::try_from(n).map_or(bytes.len(), |n| n.min(bytes.len()));
        Ok(bytes.slice(at(range.start)..at(range.end).max(at(range.start))))
    }

    async fn stat(&self, name: &str) -> Result<Option<Entry>> {
        check_name(name)?;
        let entry = |(bytes, modified): &(Bytes, i64)| Entry {
            name: name.to_owned(),
            size: bytes.len() as u64,
            modified: *modified,
        };
        Ok(self.objects().get(name).map(entry))
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>> {
        check_prefix(prefix)?;
        let found: Vec<_> = self
            .objects()
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, (bytes, modified))| {
                Ok(Entry { name: name.clone(), size: bytes.len() as u64, modified: *modified })
            })
            .collect();
        Ok(stream::iter(found).boxed())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.objects().remove(name);
        Ok(())
    }

    async fn free_space(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
