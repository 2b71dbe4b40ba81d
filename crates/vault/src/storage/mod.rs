//! Where a vault's objects are kept: a small trait, and its implementations for a local folder,
//! S3-compatible object storage and memory.
//!
//! Object names are relative paths of `[a-zA-Z0-9._-]` and `/`, not in the folder `tmp`. Objects
//! are written whole and, but for signs of life ([`Storage::replace`]), never changed.

mod local;
mod memory;
mod names;
mod past_cache;
mod remote;
mod url;

pub use local::LocalStorage;
pub use memory::MemoryStorage;
pub use remote::OpendalStorage;
pub use url::open;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use model::Result;
use std::fmt::Debug;
use std::ops::Range;

/// One listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, from the vault's root.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the storage's own clock, in milliseconds since 1970 UTC.
    pub modified: i64,
}

/// What [`Storage::create`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is new.
    New,
    /// An object of that name was there already and was left as it is.
    Existed,
}

/// What a vault asks of a storage.
///
/// Every method may be called from many tasks at once. Errors of kind
/// [`Retry`](model::ErrorKind::Retry) come out only after the implementation's own retries.
#[async_trait]
pub trait Storage: Send + Sync + Debug {
    /// For people: where this is, without secrets.
    fn location(&self) -> String;

    /// Whether a flush costs little (a local disk).
    fn is_local(&self) -> bool;

    /// Writes a whole object. Others see all of it or nothing, also when this process dies in the
    /// middle. An object of that name that is there already is left as it is where the storage can
    /// tell, and replaced by these bytes where it cannot; both are harmless, as names tell content.
    ///
    /// What was created is durable, against power loss too, only after [`Storage::sync`].
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created>;

    /// Writes a whole object in the place of the one of that name, if there is one, atomically: also
    /// after a power loss there is either the old state or all of the new one.
    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()>;

    /// Makes everything durable that was written through this handle before the call, and what
    /// [`Storage::create`] found there already.
    async fn sync(&self) -> Result<()>;

    /// The whole object; [`Missing`](model::ErrorKind::Missing) if there is none.
    async fn read(&self, name: &str) -> Result<Bytes>;

    /// The bytes of a range of the object, fewer where the object ends before the range does.
    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes>;

    /// Size and time of an object, or none if it does not exist.
    async fn stat(&self, name: &str) -> Result<Option<Entry>>;

    /// All objects whose names begin with `prefix` (which need not end at a `/`), at any depth, in
    /// no particular order. Objects written or deleted meanwhile may or may not be there.
    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<Entry>>>;

    /// Deletes an object; deleting one that does not exist is no error.
    async fn delete(&self, name: &str) -> Result<()>;

    /// Bytes still free, where the storage can tell.
    async fn free_space(&self) -> Result<Option<u64>>;
}
