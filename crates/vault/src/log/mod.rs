//! The change log: one self-describing object for each flush of changes, in chains, one for each run.
//!
//! A log object is a segment whose first frame holds a signed header; the others hold puts,
//! deletions and patches with their engine times, or what collections have become. Many small
//! objects are rolled up into one, which then counts in their place.
//!
//! No object says which one comes next: what is known between two times follows from the times that
//! the objects themselves cover ([`cover`]).

mod catalog;
pub(crate) mod contents;
mod cover;
mod gather;
mod header;
mod index;
mod keys;
mod listing;
mod object;
mod seal;
mod write;

pub(crate) use catalog::apply;
pub use contents::{ContentList, ListedContent, read_contents};
pub(crate) use cover::{Cover, Piece, cover};
pub(crate) use gather::CATALOG_SPACE;
pub use header::{LogHeader, parse};
pub(crate) use index::{LogFrame, LogIndex, catalog_changes, index};
pub(crate) use keys::may_hold;
pub(crate) use listing::{Listed, current, list, listed};
pub(crate) use object::{LogObject, check, open};
pub(crate) use write::Chain;

use crate::frame;
use model::{Batch, ChangeBatch, CollectionId, CollectionInfo, Encoding, EngineTime, Position};

/// A change of a collection itself: what it is from a time on; none: it was dropped.
pub(crate) type CatalogChange = (CollectionId, Option<CollectionInfo>, EngineTime);

/// What one flush writes: all changes between the last flush and this one.
#[derive(Debug, Clone)]
pub struct Flush {
    /// Position after the changes.
    pub to: Position,
    /// All changes up to this time are written.
    pub time: EngineTime,
    /// Changes of documents, in order. None of them: a heartbeat.
    pub changes: Vec<ChangeBatch>,
    /// Collections made or changed (`Some`) or dropped (`None`), with their times, in order.
    pub catalog: Vec<(CollectionId, Option<CollectionInfo>, EngineTime)>,
}

/// A flush that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Path of its object.
    pub object: String,
    /// Its stored bytes.
    pub bytes: u64,
}

/// The JSON in a body that is JSON, or JSON in BSON.
fn unwrapped(batch: &Batch, i: usize) -> &[u8] {
    let body = batch.body_of(i);
    match batch.encoding {
        Encoding::Bson => frame::split_header(Encoding::Bson, body).map_or(body, |(json, _)| json),
        Encoding::Json | Encoding::Bin => body,
    }
}
