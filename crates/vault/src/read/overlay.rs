//! What younger layers and the change log say of a collection: a table of changed keys that the
//! oldest layer is streamed against.

use crate::frame::Frame;
use crate::hash::{HashKeys, key_after};
use crate::read::blocks::Blocks;
use crate::read::change::{Change, Cursor, Op, Spot};
use crate::read::parts::{Expected, Parts};
use crate::read::spill::{OpenFile, Sorter};
use crate::read::table::{AtHand, Table};
use model::{Batch, CollectionId, EngineTime, Error, Kind, Patcher, Result};

/// Collects the changes of one collection and kind space.
#[derive(Debug)]
pub(crate) struct Changes {
    keys: HashKeys,
    gathered: Gathered,
    expected: Expected,
    /// Of the keys of a frame.
    hashes: Vec<u64>,
    record: Vec<u8>,
    memory: usize,
    open: OpenFile,
    ordered: bool,
}

#[derive(Debug)]
enum Gathered {
    /// All in memory.
    Table(Table),
    /// In parts that will each be in memory, as not all of them can.
    Parts(Parts),
    /// To be sorted with the help of a file, as documents must pass by them in their own order.
    Sorter(Sorter),
}

/// All changes.
#[derive(Debug)]
pub(crate) enum Finished {
    /// To be looked at while documents come.
    Whole(Overlay),
    /// Documents must wait for those of their part.
    Parts(Box<Parts>),
}

impl Changes {
    /// Collects changes of a collection that is ordered or not in about so much memory. Goes over to a
    /// file when they do not fit; at once, if that is expected.
    pub fn new(keys: HashKeys, expected: Expected, memory: usize, open: OpenFile, ordered: bool) -> Result<Self> {
        let gathered = match (expected.bytes <= memory, ordered) {
            (true, _) => Gathered::Table(Table::expecting(expected, memory)),
            // Half at most, as what was collected is here while blocks are made of it.
            (false, true) => Gathered::Sorter(Sorter::new(memory / 2, open)),
            (false, false) => Gathered::Parts(Parts::new(expected, memory, open)?),
        };
        Ok(Changes { keys, gathered, expected, hashes: Vec::new(), record: Vec::new(), memory, open, ordered })
    }

    /// Adds a frame of the change log: of its changes those after one time and up to another. Frames
    /// come in order, and those of layers after all of them: copies stand after log entries of the
    /// same time.
    pub fn add_log_frame(&mut self, number: u32, frame: &Frame, after: u64, until: u64) -> Result<()> {
        if frame.times.len() != frame.batch.len() {
            return Err(Error::corrupt("a frame of the change log has no times"));
        }
        self.add(number, &frame.batch, false, |i| {
            let time = frame.times[i].order;
            (after < time && time <= until).then_some(time)
        })
    }

    /// Adds a frame of a layer that was read at `time`.
    pub fn add_layer_frame(&mut self, number: u32, frame: &Frame, time: EngineTime) -> Result<()> {
        self.add(number, &frame.batch, true, |_| Some(time.order))
    }

    fn add(&mut self, frame: u32, batch: &Batch, is_copy: bool, time: impl Fn(usize) -> Option<u64>) -> Result<()> {
        let op = match &batch.kind {
            kind if kind.is_tombstone() => Op::Delete,
            Kind::Patch => Op::Patch,
            _ => Op::Put,
        };
        self.keys.keys_of(batch, &mut self.hashes);
        if let Gathered::Table(table) = &mut self.gathered {
            table.near_slots(&self.hashes);
            table.near_changes(self.hashes.iter().copied(), false);
        }
        if let Gathered::Parts(parts) = &self.gathered {
            parts.near(&self.hashes);
        }
        for i in 0..batch.len() {
            let Some(time) = time(i) else { continue };
            let (key, hash) = (batch.key_of(i), self.hashes[i]);
            let spot = Spot { frame, doc: i as u32 };
            let patch = if op == Op::Patch { batch.body_of(i) } else { b"" };
            let change = Change { key, time, is_copy, op, spot, patch };
            if let Gathered::Table(table) = &mut self.gathered {
                if table.push(hash, &change)? {
                    continue;
                }
                self.go_over(&self.keys.key_prefix(&batch.collection, &batch.kind))?;
            }
            match &mut self.gathered {
                Gathered::Table(_) => return Err(Error::bug("a table of changes stays full")),
                Gathered::Parts(parts) => parts.push(hash, &change)?,
                Gathered::Sorter(sorter) => {
                    self.record.clear();
                    change.write(&mut self.record);
                    sorter.push([hash, time], &self.record)?;
                }
            }
        }
        Ok(())
    }

    /// Goes over to a file, as there are more changes than memory holds.
    fn go_over(&mut self, prefix: &highway::HighwayHasher) -> Result<()> {
        // Little more memory, as the table is here until its last change has gone.
        let to = match self.ordered {
            true => Gathered::Sorter(Sorter::new(self.memory / 8, self.open)),
            false => Gathered::Parts(Parts::new(self.expected, self.memory, self.open)?),
        };
        let Gathered::Table(table) = std::mem::replace(&mut self.gathered, to) else {
            return Err(Error::bug("changes in a file are to go to one"));
        };
        let gathered = &mut self.gathered;
        table.drain(|change, record| {
            let hash = key_after(prefix, change.key);
            match gathered {
                Gathered::Parts(parts) => parts.push(hash, change),
                Gathered::Sorter(sorter) => sorter.push([hash, change.time], record),
                Gathered::Table(_) => Err(Error::bug("changes of a table are to go to one")),
            }
        })
    }

    /// After it, documents can be looked up.
    pub fn finish(self) -> Result<Finished> {
        match self.gathered {
            Gathered::Table(table) => Ok(Finished::Whole(Overlay::Table(table))),
            Gathered::Sorter(sorter) => Overlay::sorted(sorter, self.memory, self.open).map(Finished::Whole),
            Gathered::Parts(mut parts) => {
                parts.settle()?;
                Ok(Finished::Parts(Box::new(parts)))
            }
        }
    }
}

/// The changed keys of one collection and kind space.
#[derive(Debug)]
pub(crate) enum Overlay {
    /// In memory, as they came.
    Table(Table),
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
        Overlay::Table(Table::new(0))
    }

    pub fn is_empty(&self) -> bool {
        match self {
            Overlay::Table(table) => table.count() == 0,
            Overlay::Blocks(blocks) => blocks.count() == 0,
        }
    }

    /// Which of the keys with these hashes may have changed: tells fast of most that they have not.
    /// What became of keys before it cannot be applied any more.
    pub fn may_hold(&mut self, hashes: &[u64], into: &mut Vec<usize>) {
        into.clear();
        match self {
            Overlay::Table(table) => {
                table.put_away();
                table.near_slots(hashes);
                into.extend((0..hashes.len()).filter(|i| table.may_hold(hashes[*i])));
                table.near_changes(into.iter().map(|i| hashes[*i]), true);
            }
            Overlay::Blocks(blocks) => into.extend((0..hashes.len()).filter(|i| blocks.may_hold(hashes[*i]))),
        }
    }

    fn find(&mut self, hash: u64, key: &[u8]) -> Result<Option<Cursor>> {
        match self {
            Overlay::Table(table) => table.find(hash, key),
            Overlay::Blocks(blocks) => blocks.find(hash, key),
        }
    }

    fn of_key(&mut self, key: Cursor, show: impl FnMut(u32, &Change<'_>, bool) -> Result<bool>) -> Result<()> {
        match self {
            Overlay::Table(table) => table.of_key(key, show),
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
            if let Overlay::Table(table) = self {
                patches.at_hand = table.have_at_hand(patches.from, counts);
            }
            return Ok(Fate::Becomes { start: sum.start, patches });
        }
        Ok(Fate::Dropped)
    }

    /// Says that a document has been made of its changes: they need not be looked at any more.
    pub fn take(&mut self, patches: Patches) {
        match self {
            Overlay::Table(table) => table.take(patches.key),
            Overlay::Blocks(blocks) => blocks.take(patches.key, patches.end),
        }
    }

    /// Applies patches to a body; the document that it becomes is appended.
    pub fn apply(
        &mut self,
        patches: Patches,
        body: &[u8],
        patcher: Option<&dyn Patcher>,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        if patches.is_empty() {
            into.extend_from_slice(body);
            return Ok(());
        }
        let patcher = patcher.ok_or_else(nobody_applies)?;
        if let Overlay::Table(table) = self
            && patches.at_hand.count > 0
        {
            return apply_all(table.at_hand(patches.at_hand), body, patcher, into);
        }
        let mut between: Option<Vec<u8>> = None;
        self.of_key(patches.key, |nth, change, taken| {
            if nth < patches.from || change.op != Op::Patch || taken {
                return Ok(false);
            }
            let before = between.as_deref().unwrap_or(body);
            if nth + 1 == patches.end {
                patcher.apply(before, change.patch, into)?;
            } else {
                let mut after = Vec::with_capacity(before.len() + change.patch.len());
                patcher.apply(before, change.patch, &mut after)?;
                between = Some(after);
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
                    Op::Patch if written.len() <= most => write_patch(change.patch, &mut written),
                    Op::Patch => {}
                    _ => written.clear(),
                }
            }
            Ok(())
        };
        match self {
            Overlay::Table(table) => table.rest(see)?,
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

fn write_patch(patch: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(patch.len() as u32).to_le_bytes());
    out.extend_from_slice(patch);
}

/// Applies patches that were written out to a body; the document that it becomes is appended.
pub(crate) fn apply_written(
    written: &[u8],
    body: &[u8],
    patcher: Option<&dyn Patcher>,
    into: &mut Vec<u8>,
) -> Result<()> {
    if written.is_empty() {
        into.extend_from_slice(body);
        return Ok(());
    }
    let mut rest = written;
    let patches = std::iter::from_fn(|| {
        let (length, after) = rest.split_first_chunk()?;
        let (patch, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(patch)
    });
    apply_all(patches, body, patcher.ok_or_else(nobody_applies)?, into)
}

/// Applies one patch after the other.
fn apply_all<'a>(
    patches: impl Iterator<Item = &'a [u8]>,
    body: &[u8],
    patcher: &dyn Patcher,
    into: &mut Vec<u8>,
) -> Result<()> {
    let mut patches = patches.peekable();
    let (mut before, mut after): (Vec<u8>, Vec<u8>) = Default::default();
    let mut is_first = true;
    while let Some(patch) = patches.next() {
        let from = if is_first { body } else { &before[..] };
        if patches.peek().is_none() {
            return patcher.apply(from, patch, into);
        }
        after.clear();
        after.reserve(from.len() + patch.len());
        patcher.apply(from, patch, &mut after)?;
        std::mem::swap(&mut before, &mut after);
        is_first = false;
    }
    Err(Error::bug("patches that are to be applied are not there"))
}

fn nobody_applies() -> Error {
    Error::unsupported("this engine's patches are not known")
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::{BatchBuilder, Encoding, ErrorKind};
    use proptest::prelude::*;

    struct Append;

    impl Patcher for Append {
        fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()> {
            into.extend_from_slice(body);
            into.extend_from_slice(patch);
            Ok(())
        }
    }

    fn applied(overlay: &mut Overlay, patches: Patches, body: &[u8]) -> Vec<u8> {
        let mut made = b"others before it".to_vec();
        overlay.apply(patches, body, Some(&Append), &mut made).unwrap();
        made.split_off(16)
    }

    fn id() -> CollectionId {
        CollectionId::new("c")
    }

    fn frame(kind: Kind, changes: &[(u8, u8, u64)]) -> Frame {
        let mut builder = BatchBuilder::new(id(), kind, Encoding::Bin);
        changes.iter().for_each(|(key, body, _)| builder.push(&[*key], &[b'+', *body]));
        Frame { batch: builder.take(), times: changes.iter().map(|(.., t)| at(*t)).collect() }
    }

    fn at(time: u64) -> EngineTime {
        EngineTime { order: time, millis: 0 }
    }

    /// A frame of a layer (read at a time) or of the log: (is a layer's, kind, (key, body, time)…).
    type Plain = (bool, Kind, Vec<(u8, u8, u64)>);

    /// Layers first, each read after the one before; log frames in any order of time.
    fn frames() -> impl Strategy<Value = Vec<Plain>> {
        let kind = prop_oneof![4 => Just(Kind::Document), 1 => Just(Kind::Tombstone), 4 => Just(Kind::Patch)];
        let changes = proptest::collection::vec((0..12u8, any::<u8>(), 1..30u64), 0..12);
        let layers = proptest::collection::vec((proptest::bool::weighted(0.7), 5..12u64, changes.clone()), 0..3);
        let log = proptest::collection::vec((kind, changes), 0..14);
        (layers, log).prop_map(|(layers, log)| {
            let mut time = 0;
            let layers = layers.into_iter().map(|(puts, later, mut changes)| {
                time += later;
                changes.iter_mut().for_each(|c| c.2 = time);
                // A layer has a key once.
                changes.sort_by_key(|c| c.0);
                changes.dedup_by_key(|c| c.0);
                (true, if puts { Kind::Document } else { Kind::Tombstone }, changes)
            });
            layers.chain(log.into_iter().map(|(kind, changes)| (false, kind, changes))).collect()
        })
    }

    /// What there is in the end, in order, or the key that is patched without a document.
    type Outcome = std::result::Result<Vec<(u8, Vec<u8>)>, u8>;

    /// Each key's changes, one after the other; the simple way.
    fn expected(frames: &[Plain], base: &[(u8, u64)], ordered: bool, until: u64) -> Outcome {
        let mut here: Vec<(usize, usize, u8, Vec<u8>)> = Vec::new();
        let mut wrong: Option<u8> = None;
        for key in 0..12u8 {
            let mut all = Vec::new();
            for (f, (is_copy, kind, changes)) in frames.iter().enumerate() {
                for (d, (k, body, time)) in changes.iter().enumerate() {
                    if *k == key && (*is_copy || *time <= until) {
                        all.push(((*time, *is_copy, f, d), kind.clone(), vec![b'+', *body]));
                    }
                }
            }
            all.sort_by_key(|(place, ..)| *place);
            let found = base.iter().position(|(k, _)| *k == key);
            let mut body: Option<(usize, usize, Vec<u8>)> = found.map(|i| (0, i, vec![b'b', key]));
            let mut dangling = false;
            for ((time, is_copy, f, d), kind, bytes) in all {
                if found.is_some_and(|i| time <= base[i].1 && !is_copy) {
                    continue;
                }
                match (kind, &mut body) {
                    (Kind::Tombstone, _) => (body, dangling) = (None, false),
                    (Kind::Patch, Some((.., body))) => body.extend(bytes),
                    (Kind::Patch, none) => {
                        // Its place, though its body comes later.
                        *none = Some((f + 1, d, Vec::new()));
                        dangling = true;
                    }
                    (_, Some((_, _, body))) => (*body, dangling) = (bytes, false),
                    (_, none) => *none = Some((f + 1, d, bytes)),
                }
            }
            match body {
                Some(_) if dangling => wrong = wrong.or(Some(key)),
                Some((f, d, body)) => here.push((f, d, key, body)),
                None => {}
            }
        }
        match wrong {
            Some(key) => Err(key),
            None => {
                here.sort_by_key(|(f, d, key, _)| if ordered { (*f, *d, 0) } else { (0, 0, *key) });
                Ok(here.into_iter().map(|(.., key, body)| (key, body)).collect())
            }
        }
    }

    /// What a driver does of frames and a base, in so much memory.
    struct Driven<'a> {
        frames: &'a [Plain],
        ordered: bool,
        here: Vec<(u8, Vec<u8>)>,
        rest: Vec<(Spot, u8, Vec<u8>)>,
    }

    impl Driven<'_> {
        fn body_at(&self, spot: Spot) -> Vec<u8> {
            vec![b'+', self.frames[spot.frame as usize].2[spot.doc as usize].1]
        }

        fn document(&mut self, overlay: &mut Overlay, hash: u64, key: u8, read: EngineTime) {
            match overlay.fate(hash, &[key], read, self.ordered).unwrap() {
                Fate::Kept => self.here.push((key, vec![b'b', key])),
                Fate::Dropped => {}
                Fate::Becomes { start, patches } => {
                    let start = start.map_or(vec![b'b', key], |start| self.body_at(start));
                    self.here.push((key, applied(overlay, patches, &start)));
                    overlay.take(patches);
                }
            }
        }

        /// The documents that are left; the key that is patched without one.
        fn left(&mut self, overlay: &mut Overlay, most: usize) -> std::result::Result<(), u8> {
            let mut all = Vec::new();
            let given = overlay.rest(most, |left| {
                let mut bytes = Vec::new();
                left.patches.write(&mut bytes);
                assert_eq!(Patches::read(&bytes), Some(left.patches));
                all.push((left.place, left.start, left.patches, left.written.map(<[u8]>::to_vec)));
                Ok(())
            });
            for (place, start, patches, written) in all {
                let body = applied(overlay, patches, &self.body_at(start));
                match written {
                    Some(written) => {
                        let mut other = b"others before it".to_vec();
                        apply_written(&written, &self.body_at(start), Some(&Append), &mut other).unwrap();
                        assert_eq!(other[16..], body);
                        assert!(written.len() <= most);
                    }
                    None => assert!(!patches.is_empty() && body.len() > 7),
                }
                self.rest.push((place, self.frames[start.frame as usize].2[start.doc as usize].0, body));
            }
            given.map_err(|e| {
                assert_eq!(e.kind(), ErrorKind::Corrupt);
                e.message().split("document ").nth(1).unwrap().as_bytes()[0]
            })
        }
    }

    /// With `large`, it is known that memory will not hold the changes.
    fn overlaid(
        frames: &[Plain],
        base: &[(u8, u64)],
        ordered: bool,
        until: u64,
        (memory, large): (usize, bool),
    ) -> Outcome {
        let keys = HashKeys::derive(&[3; 32]);
        let expected = Expected { changes: 40, bytes: if large { usize::MAX } else { 0 } };
        let mut changes = Changes::new(keys.clone(), expected, memory, tempfile::tempfile, ordered).unwrap();
        for layers in [false, true] {
            for (number, (is_copy, kind, all)) in frames.iter().enumerate().filter(|(_, f)| f.0 == layers) {
                let frame = frame(kind.clone(), all);
                match is_copy {
                    true => changes.add_layer_frame(number as u32, &frame, at(all.first().map_or(0, |c| c.2))).unwrap(),
                    false => changes.add_log_frame(number as u32, &frame, 0, until).unwrap(),
                }
            }
        }
        let mut driven = Driven { frames, ordered, here: Vec::new(), rest: Vec::new() };
        let hash = |key: u8| keys.key(&id(), &Kind::Document, &[key]);
        match changes.finish().unwrap() {
            Finished::Whole(mut overlay) => {
                assert!(!large || ordered);
                base.iter().for_each(|(key, read)| driven.document(&mut overlay, hash(*key), *key, at(*read)));
                driven.left(&mut overlay, 12)?;
            }
            Finished::Parts(mut parts) => {
                assert!(!ordered);
                let mut maybe = Vec::new();
                for (key, read) in base {
                    let mut builder = BatchBuilder::new(id(), Kind::Document, Encoding::Bin);
                    builder.push(&[*key], &[b'b', *key]);
                    parts.may_hold(&[hash(*key)], &mut maybe);
                    match maybe.is_empty() {
                        true => driven.here.push((*key, vec![b'b', *key])),
                        false => parts.put_aside(&builder.take(), at(*read), &[hash(*key)], &[0]).unwrap(),
                    }
                }
                parts.all_have_come().unwrap();
                let mut wrong = None;
                while let Some((mut overlay, mut places)) = parts.next_part().unwrap() {
                    while let Some(all) = parts.documents(&mut places).unwrap() {
                        for waited in all {
                            assert_eq!(waited.batch.len(), waited.hashes.len());
                            for (i, found) in waited.hashes.iter().enumerate() {
                                let key = waited.batch.key_of(i)[0];
                                assert_eq!((*found, waited.batch.body_of(i)), (hash(key), &[b'b', key][..]));
                                driven.document(&mut overlay, hash(key), key, waited.read);
                            }
                        }
                    }
                    wrong = wrong.or(driven.left(&mut overlay, 12).err());
                }
                wrong.map_or(Ok(()), Err)?;
            }
        }
        driven.rest.sort_by_key(|(place, ..)| *place);
        driven.here.extend(driven.rest.into_iter().map(|(_, key, body)| (key, body)));
        if !ordered {
            driven.here.sort();
        }
        Ok(driven.here)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn documents_become_what_their_changes_make_of_them(
            frames in frames(),
            base in proptest::collection::btree_map(0..12u8, 0..15u64, 0..10),
            ordered: bool,
            until in prop_oneof![3 => Just(100u64), 1 => 0..30u64],
        ) {
            let base: Vec<(u8, u64)> = base.into_iter().collect();
            let expected = expected(&frames, &base, ordered, until);
            for memory in [(0, false), (600, false), (2500, false), (0, true), (1 << 20, true), (1 << 20, false)] {
                let got = overlaid(&frames, &base, ordered, until, memory);
                match &expected {
                    // Which of several is named is not told by the keys' order.
                    Err(_) => prop_assert!(got.is_err()),
                    Ok(_) => prop_assert_eq!(&got, &expected, "with {:?} bytes", memory),
                }
            }
        }
    }

    #[test]
    fn changes_that_are_not_understood_are_refused() {
        let keys = HashKeys::derive(&[3; 32]);
        let mut changes = Changes::new(keys, Expected::default(), 1 << 20, tempfile::tempfile, false).unwrap();
        let mut without_times = frame(Kind::Document, &[(1, 1, 1)]);
        without_times.times.clear();
        assert_eq!(changes.add_log_frame(0, &without_times, 0, 9).unwrap_err().kind(), ErrorKind::Corrupt);
        changes.add_log_frame(0, &frame(Kind::Patch, &[(1, 1, 5)]), 0, 9).unwrap();
        let Finished::Whole(mut overlay) = changes.finish().unwrap() else { panic!() };
        let hash = HashKeys::derive(&[3; 32]).key(&id(), &Kind::Document, &[1]);
        let Fate::Becomes { start: None, patches } = overlay.fate(hash, &[1], at(1), false).unwrap() else { panic!() };
        let error = overlay.apply(patches, b"body", None, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        // Another key with the same hash has not changed.
        let mut maybe = vec![5];
        overlay.may_hold(&[!hash, hash], &mut maybe);
        assert_eq!(maybe, [1]);
        assert_eq!(overlay.fate(hash, &[2], at(1), false).unwrap(), Fate::Kept);
    }
}
