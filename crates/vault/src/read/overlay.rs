//! What younger layers and the change log say of a collection: a table of changed keys that the
//! oldest layer is streamed against.

use crate::read::apply::{self, Applier};
use crate::read::blocks::Blocks;
use crate::read::change::{Change, Cursor, Op, Spot};
use crate::read::spill::{OpenFile, Sorter};
use crate::read::table::{AtHand, Look, Marks, Table};
use model::{Batch, CollectionId, EngineTime, Error, Result};
use std::sync::Arc;

/// The changed keys of one collection and kind space.
#[derive(Debug)]
pub(crate) enum Overlay {
    /// In memory, as they came; others may look at them, too.
    Table(Arc<Table>, Look),
    /// Sorted, a part of them in a file.
    Blocks(Blocks),
}

/// What has become of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// As it is.
    Kept,
    /// Gone, or to be emitted elsewhere.
    Dropped,
    /// Made of a body and patches.
    Becomes {
        /// The body to begin with; none: the document's own.
        start: Option<Spot>,
        /// What to apply to it.
        patches: Patches,
    },
}

/// Patches of one key, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patches {
    key: Cursor,
    /// The first patch that counts, of the key's changes; `end` if none does.
    from: u32,
    /// How many changes the key has.
    end: u32,
    at_hand: AtHand,
}

impl Patches {
    pub fn is_empty(&self) -> bool {
        self.from == self.end
    }

    /// As bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.ordinal.to_le_bytes());
        for half in [self.key.block, self.key.offset, self.from, self.end] {
            out.extend_from_slice(&half.to_le_bytes());
        }
    }

    /// From the bytes that [`Patches::write`] makes.
    pub fn read(bytes: &[u8]) -> Option<Patches> {
        let bytes: &[u8; 24] = bytes.try_into().ok()?;
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let ordinal = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        let key = Cursor { block: half(8), offset: half(12), ordinal };
        Some(Patches { key, from: half(16), end: half(20), at_hand: AtHand::default() })
    }
}

/// What the changes of one key come to, seen in order.
#[derive(Debug, Clone, Copy)]
struct Sum {
    key: Cursor,
    end: u32,
    any: bool,
    /// The newest body, if nothing deletes it.
    start: Option<Spot>,
    /// Where the patches on top begin.
    from: u32,
    patches: bool,
    deleted: bool,
    /// The first change after the last deletion.
    place: Option<Spot>,
}

impl Sum {
    fn new(key: Cursor) -> Self {
        Sum { key, end: 0, any: false, start: None, from: 0, patches: false, deleted: false, place: None }
    }

    fn see(&mut self, nth: u32, change: &Change<'_>) {
        self.any = true;
        if change.op == Op::Patch {
            self.patches = true;
        } else {
            self.start = (change.op == Op::Put).then_some(change.spot);
            (self.from, self.patches) = (nth + 1, false);
        }
        if change.op == Op::Delete {
            (self.deleted, self.place) = (true, None);
        } else {
            self.place.get_or_insert(change.spot);
        }
    }

    fn patches(&self) -> Patches {
        let from = if self.patches { self.from } else { self.end };
        Patches { key: self.key, from, end: self.end, at_hand: AtHand::default() }
    }
}

impl Overlay {
    /// Of changes in memory.
    pub fn of_table(table: Table) -> Overlay {
        Overlay::Table(Arc::new(table), Look::default())
    }

    /// Another way to look at the same changes, which must be in memory. What is marked with it must be told
    /// to this one, by [`Overlay::mark`], before [`Overlay::rest`].
    pub fn shared(&self) -> Result<Overlay> {
        match self {
            Overlay::Table(table, _) => Ok(Overlay::Table(table.clone(), Look::default())),
            Overlay::Blocks(_) => Err(Error::bug("changes in a file cannot be shared")),
        }
    }

    /// What was marked in it, to be told to the one that it shares its changes with.
    pub fn marks(self) -> Marks {
        match self {
            Overlay::Table(_, mut look) => std::mem::take(look.marks()),
            Overlay::Blocks(_) => Marks::default(),
        }
    }

    /// Takes what was marked by somebody who shares its changes.
    pub fn mark(&mut self, marks: Marks) {
        if let Overlay::Table(_, look) = self {
            look.marks().add(marks);
        }
    }

    /// Of changes that are sorted by hash and time, in about so much memory.
    pub fn sorted(sorter: Sorter, memory: usize, open: OpenFile) -> Result<Overlay> {
        let (count, bytes) = (sorter.count(), sorter.bytes());
        let sorted = sorter.finish()?;
        // Sorted in memory it is there until the blocks are made.
        let memory = memory.saturating_sub(sorted.held());
        Ok(Overlay::Blocks(Blocks::new(sorted, count, bytes, memory, open)?))
    }

    /// Without changes.
    pub fn none() -> Overlay {
        Overlay::of_table(Table::new(0))
    }

    pub fn is_empty(&self) -> bool {
        match self {
            Overlay::Table(table, _) => table.count() == 0,
            Overlay::Blocks(blocks) => blocks.count() == 0,
        }
    }

    /// Which of the keys with these hashes may have changed: tells fast of most that they have not.
    /// What became of keys before it cannot be applied any more.
    pub fn may_hold(&mut self, hashes: &[u64], into: &mut Vec<usize>) {
        into.clear();
        match self {
            Overlay::Table(table, look) => {
                look.put_away();
                table.near_slots(hashes);
                into.extend((0..hashes.len()).filter(|i| table.may_hold(hashes[*i])));
                table.near_changes(look, into.iter().map(|i| hashes[*i]), true);
            }
            Overlay::Blocks(blocks) => into.extend((0..hashes.len()).filter(|i| blocks.may_hold(hashes[*i]))),
        }
    }

    fn find(&mut self, hash: u64, key: &[u8]) -> Result<Option<Cursor>> {
        match self {
            Overlay::Table(table, _) => table.find(hash, key),
            Overlay::Blocks(blocks) => blocks.find(hash, key),
        }
    }

    fn of_key(&mut self, key: Cursor, show: impl FnMut(u32, &Change<'_>, bool) -> Result<bool>) -> Result<()> {
        match self {
            Overlay::Table(table, look) => table.of_key(look, key, show),
            Overlay::Blocks(blocks) => blocks.of_key(key, show),
        }
    }

    /// What becomes of a document of the oldest layer, read at `read`. In an ordered collection it
    /// keeps its place unless it was deleted in between; in others, changed documents are emitted
    /// after the unchanged ones.
    pub fn fate(&mut self, hash: u64, key: &[u8], read: EngineTime, ordered: bool) -> Result<Fate> {
        let Some(key) = self.find(hash, key)? else { return Ok(Fate::Kept) };
        let mut sum = Sum::new(key);
        let counts = |time: u64, is_copy: bool| time > read.order || is_copy;
        self.of_key(key, |nth, change, _| {
            sum.end = nth + 1;
            let is_later = counts(change.time, change.is_copy);
            if is_later {
                sum.see(nth, change);
            }
            // Otherwise it is in the document already.
            Ok(!is_later)
        })?;
        if !sum.any {
            return Ok(Fate::Kept);
        }
        let only_patches = sum.start.is_none() && !sum.deleted;
        if only_patches || (ordered && !sum.deleted) {
            let mut patches = sum.patches();
            if let Overlay::Table(_, look) = self {
                patches.at_hand = look.have_at_hand(patches.from, counts);
            }
            return Ok(Fate::Becomes { start: sum.start, patches });
        }
        Ok(Fate::Dropped)
    }

    /// Says that a document has been made of its changes: they need not be looked at any more.
    pub fn take(&mut self, patches: Patches) {
        match self {
            Overlay::Table(_, look) => look.take(patches.key),
            Overlay::Blocks(blocks) => blocks.take(patches.key, patches.end),
        }
    }

    /// Applies patches to a body; the document that it becomes is appended.
    pub fn apply(&mut self, patches: Patches, body: &[u8], applier: &mut Applier, into: &mut Vec<u8>) -> Result<()> {
        if patches.is_empty() {
            into.extend_from_slice(body);
            return Ok(());
        }
        if let Overlay::Table(table, look) = self
            && patches.at_hand.count > 0
        {
            return applier.apply(table.at_hand(look, patches.at_hand), body, into);
        }
        let patcher = applier.patcher()?;
        let mut between: Option<Vec<u8>> = None;
        self.of_key(patches.key, |nth, change, taken| {
            if nth < patches.from || change.op != Op::Patch || taken {
                return Ok(false);
            }
            let before = between.as_deref().unwrap_or(body);
            if nth + 1 == patches.end {
                patcher.apply(before, change.patch, into)?;
            } else {
                between = Some(patcher.applied(before, change.patch)?);
            }
            Ok(false)
        })
    }

    /// Gives the documents that the oldest layer does not hold or no longer places. The oldest layer must
    /// have been streamed. Patches are written out if they take no more bytes than `most`.
    pub fn rest(&mut self, most: usize, mut give: impl FnMut(Left<'_>) -> Result<()>) -> Result<()> {
        let mut sum: Option<Sum> = None;
        let (mut key, mut written): (Vec<u8>, Vec<u8>) = Default::default();
        let see = |cursor: Cursor, nth: u32, change: &Change<'_>, taken: bool| {
            if nth == 0 {
                if let Some(sum) = sum.take() {
                    left(&sum, &key, &written, most, &mut give)?;
                }
                key.clear();
                key.extend_from_slice(change.key);
                written.clear();
            }
            let sum = sum.get_or_insert_with(|| Sum::new(cursor));
            sum.end = nth + 1;
            if !taken {
                sum.see(nth, change);
                match change.op {
                    // One that is too long stays so.
                    Op::Patch if written.len() <= most => apply::write(change.patch, &mut written),
                    Op::Patch => {}
                    _ => written.clear(),
                }
            }
            Ok(())
        };
        match self {
            Overlay::Table(table, look) => {
                let still = || Error::bug("changes are still looked at when what is left of them is wanted");
                Arc::get_mut(table).ok_or_else(still)?.note(look.marks());
                table.rest(look, see)?;
            }
            Overlay::Blocks(blocks) => blocks.all(see)?,
        }
        sum.map_or(Ok(()), |sum| left(&sum, &key, &written, most, &mut give))
    }
}

/// A document that the oldest layer does not hold or no longer places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'a> {
    /// Where it is put in an ordered collection.
    pub place: Spot,
    /// The body to begin with.
    pub start: Spot,
    pub patches: Patches,
    /// The patches, written out; none if they are too long for it.
    pub written: Option<&'a [u8]>,
}

/// What the changes of a key come to that no document of the oldest layer has taken.
fn left(
    sum: &Sum,
    key: &[u8],
    written: &[u8],
    most: usize,
    give: &mut impl FnMut(Left<'_>) -> Result<()>,
) -> Result<()> {
    match sum.start {
        Some(start) => {
            let (place, patches) = (sum.place.unwrap_or(start), sum.patches());
            give(Left { place, start, patches, written: (written.len() <= most).then_some(written) })
        }
        // Patches alone are right only for a document that was deleted, or put anew, before the scan
        // came by: then a later deletion or put is in the log too.
        None if sum.patches => {
            let key = String::from_utf8_lossy(key);
            Err(Error::corrupt(format!("the change log updates document {key}, which is in no layer"))
                .hint("this time cannot be restored exactly; run `rewound backup --full` to heal the history"))
        }
        None => Ok(()),
    }
}

/// The part of a batch that passes a test, sharing its buffers.
pub(crate) fn retain(batch: &Batch, mut keep: impl FnMut(usize) -> bool) -> Batch {
    let kept: Vec<usize> = (0..batch.len()).filter(|i| keep(*i)).collect();
    Batch {
        collection: batch.collection.clone(),
        kind: batch.kind.clone(),
        encoding: batch.encoding,
        body: batch.body.clone(),
        keys: batch.keys.clone(),
        docs: kept.iter().map(|i| batch.docs[*i]).collect(),
        attachments: kept.iter().filter_map(|i| batch.attachments.get(*i).cloned()).collect(),
    }
}

/// A batch under another collection's identity is a sign of damage.
pub(crate) fn check_collection(batch: &Batch, id: &CollectionId) -> Result<()> {
    if batch.collection == *id {
        return Ok(());
    }
    Err(Error::corrupt(format!("a frame of collection {id} holds documents of {}", batch.collection)))
}

#[cfg(test)]
mod tests;
