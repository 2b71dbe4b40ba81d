//! Where the changes between two times are.

use super::cover::{Cover, Piece};
use super::object::LogObject;
use super::{CATALOG_SPACE, CatalogChange, unwrapped};
use crate::buffers::Buffers;
use crate::frame::Frame;
use crate::objects::Objects;
use crate::segment::SegmentEntry;
use model::{CollectionId, EngineTime, Error, Kind, Result, ResultExt};
use std::collections::HashSet;
use std::sync::Arc;

/// A frame of the log: where it is and what it is about.
#[derive(Debug, Clone)]
pub(crate) struct LogFrame {
    object: Arc<LogObject>,
    /// The object as layers name segments.
    pub entry: Arc<SegmentEntry>,
    /// Number of the frame in the object, the header's counted as 0.
    pub number: u32,
    pub collection: CollectionId,
    pub space: String,
    /// Whether it holds patches.
    pub is_patch: bool,
    /// Whether it holds neither patches nor deletions.
    pub is_put: bool,
    /// Of its changes count those after this time …
    pub after: EngineTime,
    /// … up to and including this one.
    pub until: EngineTime,
}

impl LogFrame {
    /// Reads the frame, also with changes that do not count.
    pub async fn read(&self, objects: &Objects) -> Result<Frame> {
        self.object.frame(objects, self.number as usize - 1).await
    }

    /// What is made of this frame and those after it in its object, as many as `bodies` has entries: whether
    /// those of their documents are wanted. Each is decoded when it is asked for, in memory of these buffers.
    pub async fn read_with<T: Send + 'static>(
        &self,
        objects: &Objects,
        buffers: &Buffers,
        bodies: Vec<bool>,
        work: impl FnOnce(&mut dyn Iterator<Item = Result<Frame>>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.object.frames(objects, buffers, self.number as usize - 1, bodies, work).await
    }

    /// Whether another frame is in the same object.
    pub fn is_in_object_of(&self, other: &LogFrame) -> bool {
        Arc::ptr_eq(&self.object, &other.object)
    }

    /// Whether another frame stands right after this one in the same object.
    pub fn goes_on_in(&self, other: &LogFrame) -> bool {
        self.is_in_object_of(other) && self.number + 1 == other.number
    }
}

/// What the log says between two times.
#[derive(Debug, Default)]
pub(crate) struct LogIndex {
    /// In order: of changes at the same time, what comes first here came first.
    pub frames: Vec<LogFrame>,
    /// Changes of collections, in order.
    pub catalog: Vec<CatalogChange>,
}

impl LogIndex {
    /// The collections whose documents have changed.
    pub fn touched(&self) -> HashSet<&CollectionId> {
        self.frames.iter().map(|f| &f.collection).collect()
    }

    /// When a collection was last dropped or emptied.
    pub fn dropped(&self, id: &CollectionId) -> Option<EngineTime> {
        self.catalog.iter().rev().find(|(dropped, info, _)| dropped == id && info.is_none()).map(|(.., time)| *time)
    }
}

/// Lists the frames of what a cover names, and reads those about collections themselves.
pub(crate) async fn index(objects: &Objects, cover: &Cover) -> Result<LogIndex> {
    let mut index = LogIndex::default();
    for Piece { object, after, until } in &cover.pieces {
        for (i, info) in object.header.frames.iter().enumerate() {
            let (collection, space) = (info.collection.clone(), info.kind.space().to_owned());
            let (object, entry, number) = (object.clone(), object.entry.clone(), i as u32 + 1);
            let is_patch = info.kind == Kind::Patch;
            let is_put = !is_patch && !info.kind.is_tombstone();
            let (after, until) = (*after, *until);
            let frame = LogFrame { object, entry, number, collection, space, is_patch, is_put, after, until };
            if frame.space == CATALOG_SPACE {
                let read = frame.read(objects).await?;
                let of = catalog_changes(&read, after, until).context(|| format!("reading {}", frame.entry.object));
                index.catalog.extend(of?);
            } else {
                index.frames.push(frame);
            }
        }
    }
    Ok(index)
}

/// The changes of collections in a frame, after one time and up to another.
pub(crate) fn catalog_changes(frame: &Frame, after: EngineTime, until: EngineTime) -> Result<Vec<CatalogChange>> {
    let mut changes = Vec::new();
    for (i, time) in frame.times.iter().enumerate() {
        if time.order <= after.order || time.order > until.order {
            continue;
        }
        let info = match frame.batch.kind.is_tombstone() {
            true => None,
            false => Some(
                serde_json::from_slice(unwrapped(&frame.batch, i))
                    .map_err(|e| Error::corrupt(format!("a change of a collection cannot be read: {e}")))?,
            ),
        };
        changes.push((frame.batch.collection.clone(), info, *time));
    }
    Ok(changes)
}
