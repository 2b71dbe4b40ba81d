//! What younger layers and the change log say of a collection: a table of changed keys that the
//! oldest layer is streamed against.

use crate::frame::Frame;
use crate::hash::{HashKeys, key_after};
use crate::read::blocks::Blocks;
use crate::read::change::{Change, Cursor, Op, Spot};
use crate::read::spill::{OpenFile, Sorter};
use crate::read::table::Table;
use model::{Batch, CollectionId, EngineTime, Error, Kind, Patcher, Result};

/// Collects the changes of one collection and kind space.
#[derive(Debug)]
pub(crate) struct Changes {
    keys: HashKeys,
    gathered: Gathered,
    /// Of the keys of a frame.
    hashes: Vec<u64>,
    record: Vec<u8>,
    memory: usize,
    open: OpenFile,
}

#[derive(Debug)]
enum Gathered {
    /// All in memory.
    Table(Table),
    /// To be sorted with the help of a file, as memory does not hold them.
    Sorter(Sorter),
}

impl Changes {
    /// Collects changes in about so much memory.
    pub fn new(keys: HashKeys, memory: usize, open: OpenFile) -> Self {
        let gathered = Gathered::Table(Table::new(memory));
        Changes { keys, gathered, hashes: Vec::new(), record: Vec::new(), memory, open }
    }

    /// The same if it is known that memory will not hold them.
    pub fn of_many(keys: HashKeys, memory: usize, open: OpenFile) -> Self {
        // Half at most, as what was collected is here while blocks are made of it.
        let gathered = Gathered::Sorter(Sorter::new(memory / 2, open));
        Changes { keys, gathered, hashes: Vec::new(), record: Vec::new(), memory, open }
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
                self.sort(&self.keys.key_prefix(&batch.collection, &batch.kind))?;
            }
            if let Gathered::Sorter(sorter) = &mut self.gathered {
                self.record.clear();
                change.write(&mut self.record);
                sorter.push([hash, time], &self.record)?;
            }
        }
        Ok(())
    }

    /// Goes over to sorting, as there are more changes than memory holds.
    fn sort(&mut self, prefix: &highway::HighwayHasher) -> Result<()> {
        // Little more memory, as the table is here until its last change is sorted.
        let sorter = Gathered::Sorter(Sorter::new(self.memory / 8, self.open));
        let gathered = std::mem::replace(&mut self.gathered, sorter);
        let (Gathered::Table(table), Gathered::Sorter(sorter)) = (gathered, &mut self.gathered) else {
            return Err(Error::bug("changes that are sorted are to be sorted"));
        };
        table.drain(|change, record| sorter.push([key_after(prefix, change.key), change.time], record))
    }

    /// After it, documents can be looked up.
    pub fn finish(self) -> Result<Overlay> {
        let sorter = match self.gathered {
            Gathered::Table(table) => return Ok(Overlay::Table(table)),
            Gathered::Sorter(sorter) => sorter,
        };
        let (count, bytes) = (sorter.count(), sorter.bytes());
        let sorted = sorter.finish()?;
        // Sorted in memory it is there until the blocks are made.
        let memory = self.memory.saturating_sub(sorted.held());
        Ok(Overlay::Blocks(Blocks::new(sorted, count, bytes, memory, self.open)?))
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
        Some(Patches { key, from: half(16), end: half(20) })
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
        Patches { key: self.key, from: if self.patches { self.from } else { self.end }, end: self.end }
    }
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        match self {
            Overlay::Table(table) => table.count() == 0,
            Overlay::Blocks(blocks) => blocks.count() == 0,
        }
    }

    /// Which of the keys with these hashes may have changed: tells fast of most that they have not.
    pub fn may_hold(&mut self, hashes: &[u64], into: &mut Vec<usize>) {
        into.clear();
        match self {
            Overlay::Table(table) => {
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
        self.of_key(key, |nth, change, _| {
            sum.end = nth + 1;
            let is_later = change.time > read.order || change.is_copy;
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
            return Ok(Fate::Becomes { start: sum.start, patches: sum.patches() });
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
        let patcher = patcher.ok_or_else(|| Error::unsupported("this engine's patches are not known"))?;
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

    /// Gives the documents that the oldest layer does not hold or no longer places: where they are put
    /// in an ordered collection, body, patches. The oldest layer must have been streamed.
    pub fn rest(&mut self, mut give: impl FnMut(Spot, Spot, Patches) -> Result<()>) -> Result<()> {
        let mut sum: Option<Sum> = None;
        let mut key: Vec<u8> = Vec::new();
        let see = |cursor: Cursor, nth: u32, change: &Change<'_>, taken: bool| {
            if nth == 0 {
                if let Some(sum) = sum.take() {
                    left(&sum, &key, &mut give)?;
                }
                key.clear();
                key.extend_from_slice(change.key);
            }
            let sum = sum.get_or_insert_with(|| Sum::new(cursor));
            sum.end = nth + 1;
            if !taken {
                sum.see(nth, change);
            }
            Ok(())
        };
        match self {
            Overlay::Table(table) => table.rest(see)?,
            Overlay::Blocks(blocks) => blocks.all(see)?,
        }
        sum.map_or(Ok(()), |sum| left(&sum, &key, &mut give))
    }
}

/// What the changes of a key come to that no document of the oldest layer has taken.
fn left(sum: &Sum, key: &[u8], give: &mut impl FnMut(Spot, Spot, Patches) -> Result<()>) -> Result<()> {
    match sum.start {
        Some(start) => give(sum.place.unwrap_or(start), start, sum.patches()),
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

    fn overlaid(frames: &[Plain], base: &[(u8, u64)], ordered: bool, until: u64, memory: usize) -> Outcome {
        let keys = HashKeys::derive(&[3; 32]);
        let mut changes = Changes::new(keys.clone(), memory, tempfile::tempfile);
        for layers in [false, true] {
            for (number, (is_copy, kind, all)) in frames.iter().enumerate().filter(|(_, f)| f.0 == layers) {
                let frame = frame(kind.clone(), all);
                match is_copy {
                    true => changes.add_layer_frame(number as u32, &frame, at(all.first().map_or(0, |c| c.2))).unwrap(),
                    false => changes.add_log_frame(number as u32, &frame, 0, until).unwrap(),
                }
            }
        }
        let mut overlay = changes.finish().unwrap();
        let mut here: Vec<(u8, Vec<u8>)> = Vec::new();
        let body_at = |spot: Spot| vec![b'+', frames[spot.frame as usize].2[spot.doc as usize].1];
        for (key, read) in base {
            match overlay.fate(keys.key(&id(), &Kind::Document, &[*key]), &[*key], at(*read), ordered).unwrap() {
                Fate::Kept => here.push((*key, vec![b'b', *key])),
                Fate::Dropped => {}
                Fate::Becomes { start, patches } => {
                    let start = start.map_or(vec![b'b', *key], body_at);
                    here.push((*key, applied(&mut overlay, patches, &start)));
                    overlay.take(patches);
                }
            }
        }
        let mut rest = Vec::new();
        let given = overlay.rest(|place, start, patches| {
            let mut bytes = Vec::new();
            patches.write(&mut bytes);
            assert_eq!(Patches::read(&bytes), Some(patches));
            rest.push((place, start, patches));
            Ok(())
        });
        if let Err(e) = given {
            assert_eq!(e.kind(), ErrorKind::Corrupt);
            let key = e.message().split("document ").nth(1).unwrap().as_bytes()[0];
            return Err(key);
        }
        rest.sort_by_key(|(place, ..)| *place);
        for (_, start, patches) in rest {
            let body = applied(&mut overlay, patches, &body_at(start));
            here.push((frames[start.frame as usize].2[start.doc as usize].0, body));
        }
        if !ordered {
            here.sort();
        }
        Ok(here)
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
            for memory in [0, 600, 1 << 20] {
                let got = overlaid(&frames, &base, ordered, until, memory);
                match &expected {
                    // Which of several is named is not told by the keys' order.
                    Err(_) => prop_assert!(got.is_err()),
                    Ok(_) => prop_assert_eq!(&got, &expected, "with {} bytes", memory),
                }
            }
        }
    }

    #[test]
    fn changes_that_are_not_understood_are_refused() {
        let mut changes = Changes::new(HashKeys::derive(&[3; 32]), 1 << 20, tempfile::tempfile);
        let mut without_times = frame(Kind::Document, &[(1, 1, 1)]);
        without_times.times.clear();
        assert_eq!(changes.add_log_frame(0, &without_times, 0, 9).unwrap_err().kind(), ErrorKind::Corrupt);
        changes.add_log_frame(0, &frame(Kind::Patch, &[(1, 1, 5)]), 0, 9).unwrap();
        let mut overlay = changes.finish().unwrap();
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
