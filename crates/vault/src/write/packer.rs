//! Packs frames into segments.
//!
//! Each collection has a lane of its own while it is read, so that segments of large collections
//! hold nothing else and come out the same next time; what is left at its end goes into segments
//! that small collections share.
//!
//! Collections that are read together fill their lanes alike. Were all cut at the same sizes, all would be
//! full at once: nothing to compress for a while, then a crowd of segments that everybody waits for, and as
//! much memory as all of them take. So the first segment of each collection ends at a size of its own, and
//! those after it each at another time than those of other collections.

use crate::buffers::Buffers;
use crate::frame::OpenFrame;
use crate::hash::HashKeys;
use crate::segment::Draft;
use model::limits::{FRAME, HASH_LIST, SEGMENT_MAX, SEGMENT_MIN, SEGMENT_TARGET};
use model::{Batch, CollectionId, Encoding, EngineTime, Error, Kind, Result};
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
    /// Raw bytes from which on its segment may be cut.
    min: usize,
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
    /// What the first cuts hang on; none: they are like all others.
    keys: Option<HashKeys>,
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

    /// The same, with first segments that end each at a size of its own.
    pub fn spread(self, keys: HashKeys) -> Self {
        Packer { keys: Some(keys), ..self }
    }

    /// Raw bytes from which on the first segment of a collection may be cut: half to one and a half of what
    /// the others need, by the keyed hash of its name, so that it is the same next time.
    fn first_min(&self, collection: &CollectionId) -> usize {
        let Some(keys) = &self.keys else { return self.sizes.min };
        let sixteenths = keys.key(collection, &Kind::Document, b"") % 16;
        self.sizes.min / 2 + self.sizes.min / 16 * sixteenths as usize
    }

    /// Adds a document that was read at a time of its own, if that is given.
    pub fn push(&mut self, batch: &Batch, i: usize, key_hash: u64, read: Option<EngineTime>) -> Result<()> {
        let is_its = |((collection, encoding), _): &(LaneKey, Lane)| {
            *collection == batch.collection && *encoding == batch.encoding
        };
        if !self.current.as_ref().is_some_and(is_its) {
            self.rest();
            let key = (batch.collection.clone(), batch.encoding);
            let lane = self.lanes.remove(&key).unwrap_or_else(|| Lane {
                open: None,
                draft: Draft::new(batch.encoding),
                documents: 0,
                min: self.first_min(&batch.collection),
            });
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
        let cut = raw >= self.sizes.max || (raw >= lane.min && is_cut(key_hash, raw as u64 / lane.documents));
        if (cut || open.raw() >= FRAME)
            && let Some(open) = lane.open.take()
        {
            lane.draft.push(open.close()?);
        }
        if cut {
            lane.documents = 0;
            lane.min = self.sizes.min;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::BatchBuilder;

    /// Large enough that a segment may end after each.
    const BODY: usize = 132_000;
    const SIZES: Sizes = Sizes { min: 2 << 20, target: 2 << 20, max: 4 << 20 };
    const COLLECTIONS: usize = 8;

    /// Packs collections that come by turns; the raw sizes of the segments that were full after each turn,
    /// with their collections.
    fn pack(mut packer: Packer) -> Vec<Vec<(CollectionId, usize)>> {
        let batches: Vec<Batch> = (0..COLLECTIONS)
            .map(|n| {
                let id = CollectionId::new(format!("orders{n}"));
                let mut builder = BatchBuilder::new(id, Kind::Document, Encoding::Json);
                builder.push(b"key", &vec![b'x'; BODY]);
                builder.take()
            })
            .collect();
        let turn = |_| {
            batches.iter().for_each(|batch| packer.push(batch, 0, 0, None).unwrap());
            let full = packer.take_ready().into_iter();
            full.map(|(_, draft)| (draft.frames[0].collection.clone(), draft.raw)).collect()
        };
        (0..64).map(turn).collect()
    }

    fn most_at_once(turns: &[Vec<(CollectionId, usize)>]) -> usize {
        turns.iter().map(Vec::len).max().unwrap()
    }

    #[test]
    fn collections_that_are_read_together_are_not_full_together() {
        let packer = || Packer::new(SIZES, Buffers::default());
        let keys = HashKeys::derive(&[1; 32]);
        let spread = pack(packer().spread(keys.clone()));
        assert_eq!(most_at_once(&pack(packer())), COLLECTIONS);
        assert!(most_at_once(&spread) <= COLLECTIONS / 2, "{spread:?}");
        // The same next time.
        assert_eq!(spread, pack(packer().spread(keys)));
        for n in 0..COLLECTIONS {
            let id = CollectionId::new(format!("orders{n}"));
            let sizes: Vec<usize> = spread.iter().flatten().filter(|(of, _)| *of == id).map(|(_, raw)| *raw).collect();
            let room = 2 * BODY;
            assert!((SIZES.min / 2..SIZES.min * 3 / 2 + room).contains(&sizes[0]), "{sizes:?}");
            assert!(sizes.len() > 2, "{sizes:?}");
            assert!(sizes[1..].iter().all(|raw| (SIZES.min..SIZES.min + room).contains(raw)), "{sizes:?}");
        }
    }
}
