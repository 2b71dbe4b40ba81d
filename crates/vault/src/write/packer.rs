//! Packs frames into segments.
//!
//! Each collection has a lane of its own while it is read, so that segments of large collections
//! hold nothing else and come out the same next time; what is left at its end goes into segments
//! that small collections share.

use crate::buffers::Buffers;
use crate::frame::OpenFrame;
use crate::segment::Draft;
use model::limits::{FRAME, HASH_LIST, SEGMENT_MAX, SEGMENT_MIN, SEGMENT_TARGET};
use model::{Batch, CollectionId, Encoding, EngineTime, Error, Result};
use std::collections::HashMap;

/// Where a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Placement {
    pub segment: u32,
    pub frame: u32,
}

/// Frames of a collection and kind space in order, with the times they were read at where those
/// are not the layer's.
pub(crate) type Placements = HashMap<(CollectionId, String), Vec<(Placement, Option<EngineTime>)>>;

#[derive(Debug)]
struct Lane {
    open: Option<OpenFrame>,
    draft: Draft,
    documents: u64,
}

type LaneKey = (CollectionId, Encoding);

/// Raw bytes that segments are cut by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub min: usize,
    pub target: usize,
    pub max: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { min: SEGMENT_MIN, target: SEGMENT_TARGET, max: SEGMENT_MAX }
    }
}

impl Sizes {
    /// Those of lists of hashes.
    pub const HASHES: Sizes = Sizes { min: HASH_LIST, target: HASH_LIST, max: HASH_LIST };
}

/// Packs documents into frames and frames into segments.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    sizes: Sizes,
    buffers: Buffers,
    /// The lane that was written to last, which is not among the others: most documents follow one of their
    /// own collection.
    current: Option<(LaneKey, Lane)>,
    lanes: HashMap<LaneKey, Lane>,
    shared: HashMap<Encoding, Draft>,
    placements: Placements,
    /// Whether frames were discarded after they went into a segment.
    discarded: bool,
    next: u32,
    ready: Vec<(u32, Draft)>,
}

impl Packer {
    /// A packer that fills these buffers.
    pub fn new(sizes: Sizes, buffers: Buffers) -> Self {
        Packer { sizes, buffers, ..Packer::default() }
    }

    /// Adds a document that was read at a time of its own, if that is given.
    pub fn push(&mut self, batch: &Batch, i: usize, key_hash: u64, read: Option<EngineTime>) -> Result<()> {
        let is_its = |((collection, encoding), _): &(LaneKey, Lane)| {
            *collection == batch.collection && *encoding == batch.encoding
        };
        if !self.current.as_ref().is_some_and(is_its) {
            self.rest();
            let key = (batch.collection.clone(), batch.encoding);
            let empty = || Lane { open: None, draft: Draft::new(batch.encoding), documents: 0 };
            let lane = self.lanes.remove(&key).unwrap_or_else(empty);
            self.current = Some((key, lane));
        }
        let Some((_, lane)) = &mut self.current else { return Err(Error::bug("a lane is gone")) };
        if let Some(open) = lane.open.take_if(|open| !open.fits(batch) || open.read != read) {
            lane.draft.push(open.close()?);
        }
        let buffers = &self.buffers;
        let open =
            lane.open.get_or_insert_with(|| OpenFrame::in_buffer(batch, buffers.take(batch.body.len())).at(read));
        open.push(batch, i, key_hash, None);
        lane.documents += 1;
        let raw = lane.draft.raw + open.raw();
        let cut = raw >= self.sizes.max || (raw >= self.sizes.min && is_cut(key_hash, raw as u64 / lane.documents));
        if (cut || open.raw() >= FRAME)
            && let Some(open) = lane.open.take()
        {
            lane.draft.push(open.close()?);
        }
        if cut {
            lane.documents = 0;
            let draft = std::mem::replace(&mut lane.draft, Draft::new(batch.encoding));
            self.cut_shared_of(&batch.collection)?;
            self.cut(draft);
        }
        Ok(())
    }

    /// Puts the current lane to the others.
    fn rest(&mut self) {
        self.lanes.extend(self.current.take());
    }

    /// A collection has been read: its last frames move to the shared segments.
    pub fn end(&mut self, collection: &CollectionId) -> Result<()> {
        self.rest();
        for encoding in [Encoding::Bson, Encoding::Json, Encoding::Bin] {
            let Some(mut lane) = self.lanes.remove(&(collection.clone(), encoding)) else { continue };
            if let Some(open) = lane.open.take() {
                lane.draft.push(open.close()?);
            }
            if lane.draft.raw >= self.sizes.min {
                self.cut(lane.draft);
                continue;
            }
            let shared = self.shared.entry(encoding).or_insert_with(|| Draft::new(encoding));
            lane.draft.frames.into_iter().for_each(|f| shared.push(f));
            if shared.raw >= self.sizes.target {
                let draft = std::mem::replace(shared, Draft::new(encoding));
                self.cut(draft);
            }
        }
        Ok(())
    }

    /// Ends everything.
    pub fn finish(&mut self) -> Result<()> {
        self.rest();
        let mut collections: Vec<_> = self.lanes.keys().map(|(c, _)| c.clone()).collect();
        collections.sort();
        collections.iter().try_for_each(|c| self.end(c))?;
        for encoding in [Encoding::Bson, Encoding::Json, Encoding::Bin] {
            if let Some(draft) = self.shared.remove(&encoding).filter(|d| !d.frames.is_empty()) {
                self.cut(draft);
            }
        }
        Ok(())
    }

    /// Forgets all frames of a collection; those in segments that are cut already stay there
    /// unused.
    pub fn discard(&mut self, collection: &CollectionId) {
        self.rest();
        self.lanes.retain(|(c, _), _| c != collection);
        for draft in self.shared.values_mut() {
            draft.frames.retain(|f| f.collection != *collection);
            draft.raw = draft.frames.iter().map(|f| f.raw()).sum();
        }
        let discarded = &mut self.discarded;
        self.placements.retain(|(c, _), placements| {
            let is_other = c != collection;
            *discarded |= !is_other && !placements.is_empty();
            is_other
        });
    }

    /// The segments that are ready to be stored, with their numbers.
    pub fn take_ready(&mut self) -> Vec<(u32, Draft)> {
        std::mem::take(&mut self.ready)
    }

    /// Where the frames of each collection and kind space went, in order.
    pub fn take_placements(&mut self) -> Placements {
        std::mem::take(&mut self.placements)
    }

    /// Whether segments hold frames that were discarded.
    pub fn has_discarded(&self) -> bool {
        self.discarded
    }

    /// Frames of one collection keep their order only if what is shared goes first.
    fn cut_shared_of(&mut self, collection: &CollectionId) -> Result<()> {
        let holding: Vec<Encoding> = self
            .shared
            .iter()
            .filter(|(_, d)| d.frames.iter().any(|f| f.collection == *collection))
            .map(|(e, _)| *e)
            .collect();
        for encoding in holding {
            if let Some(draft) = self.shared.remove(&encoding) {
                self.cut(draft);
            }
        }
        Ok(())
    }

    fn cut(&mut self, draft: Draft) {
        let segment = self.next;
        self.next += 1;
        for (frame, closed) in draft.frames.iter().enumerate() {
            let key = (closed.collection.clone(), closed.kind.space().to_owned());
            let placement = Placement { segment, frame: frame as u32 };
            self.placements.entry(key).or_default().push((placement, closed.read));
        }
        self.ready.push((segment, draft));
    }
}

/// Whether a segment may end after the document with this key. Only the key decides, so that a
/// changed document moves no boundary; large documents end segments more often, so that the
/// boundary is found before the largest size forces one.
fn is_cut(key_hash: u64, average: u64) -> bool {
    let one_in = match average {
        0..=8191 => 256,
        8192..=131_071 => 16,
        _ => 1,
    };
    key_hash % one_in == 0
}
