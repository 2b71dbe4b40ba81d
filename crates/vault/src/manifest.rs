//! Points, catalogs and layers as they are stored.

use crate::hash::Digest;
use crate::segment::SegmentEntry;
use model::{CollectionId, CollectionInfo, Consistency, Engine, EngineTime, FeedKind, Gap, Loss, Position, Skipped};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the signature of a point is bound to.
pub(crate) const POINT_CONTEXT: &str = "rewound format 1 point";

/// A committed, restorable state of one source: the content of a point's object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `point`.
    pub rewound: String,
    /// Version of the format.
    pub format: u32,
    /// The run that made it.
    pub run: String,
    /// What was backed up.
    pub source: SourceInfo,
    /// When the run began, milliseconds since 1970 UTC, by the writer's clock.
    pub started: i64,
    /// When it was committed, likewise.
    pub committed: i64,
    /// The engine time that is restored.
    pub time: EngineTime,
    /// What can be said of the state.
    pub consistency: Consistency,
    /// Where changes go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The point of the same source that this one follows: its object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// A hole in the history before this point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// Layers, oldest first.
    pub layers: Vec<Arc<LayerRef>>,
    /// What the run wrote of the change log. The state is the layers with all changes up to `time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSpan>,
    /// The last scan, where it is not all that the state consists of, or took its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<ScanSpan>,
    /// The collections, here if they are few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<Catalog>,
    /// The object that holds the catalog, if it is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog_object: Option<String>,
    /// Sizes.
    pub totals: Totals,
    /// Bad input that was left out, on the user's request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// The state's digest: count and sum over all collections.
    pub digest: Digest,
}

/// What one run wrote of the change log: its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpan {
    /// The run.
    pub run: String,
    /// Changes after this time …
    pub from: EngineTime,
    /// … up to and including this one are in it.
    pub to: EngineTime,
    /// How many flushes it has.
    pub objects: u32,
    /// blake3 of the stored bytes of its last flush, in hex.
    pub last: String,
}

/// The scan that a state is based on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanSpan {
    /// The least engine time that anything was read at: changes since then count.
    pub from: EngineTime,
    /// The greatest: the earliest time that can be restored with this scan.
    pub to: EngineTime,
    /// The collections as they were read, if they are others than the point's, and few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog: Option<Catalog>,
    /// The object that holds them, if they are others and many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog_object: Option<String>,
}

impl Manifest {
    /// The least and the greatest engine time that the last scan read at.
    pub fn scanned(&self) -> (EngineTime, EngineTime) {
        match &self.scan {
            Some(scan) => (scan.from, scan.to),
            None => {
                let own = self.layers.iter().filter(|l| l.run == self.run).filter_map(|l| l.earliest);
                (own.min().unwrap_or(self.time), self.time)
            }
        }
    }

    /// Paths of the objects that hold the catalogs of this point.
    pub(crate) fn catalog_objects(&self) -> impl Iterator<Item = &String> {
        self.catalog_object.iter().chain(self.scan.as_ref().and_then(|s| s.catalog_object.as_ref()))
    }
}

/// A source as points know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// The engine.
    pub engine: Engine,
    /// The engine's own identity of the source.
    pub identity: String,
    /// What people call it.
    pub name: String,
    /// Version of the server or format.
    pub version: String,
    /// Which changes the engine tells.
    pub feed: FeedKind,
}

/// Sizes of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Whether documents, attachments and their bytes are those of the state; else they are those of
    /// the last scan, as the change log goes on from there.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub counted: bool,
    /// Documents in the state.
    pub documents: u64,
    /// Attachments in the state.
    pub attachments: u64,
    /// Bytes of documents in the state.
    pub document_bytes: u64,
    /// Bytes of attachments in the state.
    pub attachment_bytes: u64,
    /// Documents and attachments that this run stored, because they were new or changed.
    pub changed: u64,
    /// Documents and attachments that were deleted since the previous point.
    pub deleted: u64,
    /// Bytes that this run added to the vault, the point's own object not counted.
    pub stored: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Totals {
            counted: true,
            documents: 0,
            attachments: 0,
            document_bytes: 0,
            attachment_bytes: 0,
            changed: 0,
            deleted: 0,
            stored: 0,
        }
    }
}

/// All collections of a state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// What a backup of the source could not contain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<Loss>,
    /// The collections, in the source's order.
    pub collections: Vec<CatalogEntry>,
}

/// A collection of a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// As the engine has it.
    pub info: CollectionInfo,
    /// Documents, of all kinds but attachments.
    pub documents: u64,
    /// Attachments.
    pub attachments: u64,
    /// Bytes of documents.
    pub document_bytes: u64,
    /// Bytes of attachments.
    pub attachment_bytes: u64,
    /// Over documents and attachments.
    pub digest: Digest,
    /// Whether counts and digest are those of the state; else they are those of the last scan, as the
    /// change log has touched the collection since.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub counted: bool,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

impl CatalogEntry {
    /// A collection without documents.
    pub(crate) fn empty(info: CollectionInfo) -> Self {
        CatalogEntry {
            info,
            documents: 0,
            attachments: 0,
            document_bytes: 0,
            attachment_bytes: 0,
            digest: Digest::default(),
            counted: true,
        }
    }
}

/// A layer as a point names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// Path of the layer's object.
    pub object: String,
    /// The layer's key filters: here, so that one lookup needs not read the layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) filters: Vec<FilterRef>,
    /// Whether the filters also name frames that no collection has, of what was discarded while the
    /// run went on: then the layer must be asked which frames count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) discarded: bool,
    /// Bytes of documents and deletions that it holds.
    pub raw: u64,
    /// The run that wrote it.
    pub run: String,
    /// Collections that this layer holds whole: what older layers say of them no longer counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whole: Vec<CollectionId>,
    /// The engine time it was read at; the greatest, if parts were read at several.
    pub time: EngineTime,
    /// The least of those times, if there are several: changes since then count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest: Option<EngineTime>,
}

/// A key filter as a layer names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilterRef {
    /// Path of the object.
    pub object: String,
    /// Stored bytes.
    pub size: u64,
    /// The object's first bytes, as in [`SegmentEntry::head`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub head: String,
    /// Which keys it knows: all, if this is absent.
    #[serde(default, skip_serializing_if = "Shard::is_whole")]
    pub shard: Shard,
    /// The filter has 2 to this power partitions.
    pub bits: u32,
    /// Bytes of each partition.
    pub slot: u32,
}

/// The keys whose hashes begin with some bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shard {
    /// How many bits; none: all keys.
    pub bits: u32,
    /// These bits, as a number.
    pub prefix: u64,
}

impl Shard {
    pub fn is_whole(&self) -> bool {
        self.bits == 0
    }

    pub fn covers(&self, hash: u64) -> bool {
        hash.checked_shr(64 - self.bits.min(64)).unwrap_or_default() == self.prefix
    }
}

/// What one run stored: the content of a layer's object (one line of JSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Always `layer`.
    pub rewound: String,
    /// The run.
    pub run: String,
    /// The engine time it was read at.
    pub time: EngineTime,
    /// Segments, numbered from 0.
    pub segments: Vec<SegmentEntry>,
    /// Where each collection's documents are; sorted by collection and kind space.
    pub collections: Vec<LayerCollection>,
    /// Content of attachments.
    #[serde(default)]
    pub contents: Contents,
    /// Key filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<FilterRef>,
    /// Hash lists: a layer of their own making, readable by the writer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<SegmentEntry>,
    /// Where each collection's hashes are, in `hashes`; sorted likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hash_collections: Vec<LayerCollection>,
}

/// Frames of one collection and kind space, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerCollection {
    /// The collection.
    pub id: CollectionId,
    /// What the frames speak of ([`model::Kind::space`]).
    pub space: String,
    /// Runs of frames: segment, first frame, number of frames.
    pub frames: Vec<(u32, u32, u32)>,
    /// From which frame on (counted over all runs) documents were read at which time; before the
    /// first of these, and without any, at the layer's time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<(u32, EngineTime)>,
}

/// Where the content of attachments is. Documents of kind attachment refer to it by a place:
/// `n7` is the content with number 7 in `packs`, `x2+5` content 5 from entry 2 of `borrowed` on, `p3+2` the
/// two parts from number 3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// Segments of packed contents that this run wrote, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packs: Vec<Pack>,
    /// Packs that older runs wrote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub borrowed: Vec<Borrowed>,
    /// Parts of large contents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ContentPart>,
}

/// A segment of packed contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pack {
    /// Number of its first content.
    pub first: u64,
    /// The segment.
    pub segment: SegmentEntry,
}

/// A pack of an older run, or one content in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Borrowed {
    /// Path of the pack.
    pub object: Arc<str>,
    /// Its stored bytes.
    pub size: u64,
    /// Which content of the pack; the first one, if it means the pack.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub index: u64,
}

impl Borrowed {
    /// The content that comes so many after this one.
    pub fn after(&self, more: u64) -> Option<Borrowed> {
        Some(Borrowed { index: self.index.checked_add(more)?, ..self.clone() })
    }
}

fn is_zero(index: &u64) -> bool {
    *index == 0
}

/// A part of a large content: one object that holds nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContentPart {
    /// Path of the object.
    pub object: String,
    /// Its stored bytes.
    pub size: u64,
    /// Decompressed bytes.
    pub raw: u64,
}

impl Layer {
    /// Paths and stored bytes of all objects that this layer needs.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        let segments = self.segments.iter().chain(&self.hashes).map(|s| (s.object.as_str(), s.size));
        let filters = self.filters.iter().map(|f| (f.object.as_str(), f.size));
        let packs = self.contents.packs.iter().map(|p| (p.segment.object.as_str(), p.segment.size));
        let borrowed = self.contents.borrowed.iter().map(|b| (&*b.object, b.size));
        let parts = self.contents.parts.iter().map(|p| (p.object.as_str(), p.size));
        segments.chain(filters).chain(packs).chain(borrowed).chain(parts)
    }

    /// Paths of all objects that this layer needs.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        self.sizes().map(|(path, _)| path)
    }

    /// What a sorted list says of a collection.
    pub fn of<'a>(collections: &'a [LayerCollection], id: &CollectionId) -> &'a [LayerCollection] {
        let start = collections.partition_point(|c| c.id < *id);
        let count = collections[start..].partition_point(|c| c.id == *id);
        &collections[start..start + count]
    }

    /// The frames of a collection and kind space, in order, each with the time it was read at.
    pub fn timed_frames_of(&self, id: &CollectionId, space: &str) -> Vec<(u32, u32, EngineTime)> {
        let mut all = Vec::new();
        for collection in Self::of(&self.collections, id).iter().filter(|c| c.space == space) {
            all.extend(collection.places().enumerate().map(|(i, (segment, frame))| {
                let from = collection.read.partition_point(|(from, _)| *from as usize <= i);
                let time = from.checked_sub(1).map_or(self.time, |at| collection.read[at].1);
                (segment, frame, time)
            }));
        }
        all
    }
}

impl LayerCollection {
    /// Its frames, in order: (segment, frame).
    pub fn places(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let of_run = |(segment, first, count): &(u32, u32, u32)| {
            let segment = *segment;
            (*first..first.saturating_add(*count)).map(move |frame| (segment, frame))
        };
        self.frames.iter().flat_map(of_run)
    }
}
