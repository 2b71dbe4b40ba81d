//! What younger layers and the change log say of a collection: a table of changed keys that the
//! oldest layer is streamed against.

use crate::frame::Frame;
use crate::hash::HashKeys;
use model::{Batch, CollectionId, EngineTime, Error, Kind, Result};

/// Where a change's body is: the frame's number among those given, the document's in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub frame: u32,
    pub doc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Put,
    Delete,
    Patch,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    key: (u32, u32),
    time: u64,
    /// A copy from a layer stands after log entries of the same time: they are in it already.
    is_copy: bool,
    /// Number in the order of reading.
    number: u32,
    op: Op,
    spot: Spot,
}

/// The changed keys of one collection and kind space.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    entries: Vec<Entry>,
    keys: Vec<u8>,
    taken: Vec<bool>,
    /// The greatest engine time at which the collection was read.
    read: u64,
}

/// What has become of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// As it is.
    Kept,
    /// Gone, or to be emitted elsewhere.
    Dropped,
    /// Made of a body and patches, in order.
    Becomes {
        /// The body to begin with; none: the document's own.
        start: Option<Spot>,
        /// Patches on top.
        patches: Vec<Spot>,
    },
}

impl Overlay {
    /// Adds a frame of a layer that was read at `time`.
    pub fn add_layer_frame(&mut self, keys: &HashKeys, number: u32, frame: &Frame, time: EngineTime) {
        self.read = self.read.max(time.order);
        self.add(keys, number, &frame.batch, true, |_| time);
    }

    /// Adds a frame of the change log, up to and including `until`.
    pub fn add_log_frame(&mut self, keys: &HashKeys, number: u32, frame: &Frame, until: EngineTime) -> Result<()> {
        if frame.times.len() != frame.batch.len() {
            return Err(Error::corrupt("a frame of the change log has no times"));
        }
        self.add(keys, number, &frame.batch, false, |i| frame.times[i]);
        self.entries.retain(|e| e.is_copy || e.time <= until.order);
        Ok(())
    }

    fn add(&mut self, keys: &HashKeys, frame: u32, batch: &Batch, is_copy: bool, time: impl Fn(usize) -> EngineTime) {
        let op = match &batch.kind {
            kind if kind.is_tombstone() => Op::Delete,
            Kind::Patch => Op::Patch,
            _ => Op::Put,
        };
        for i in 0..batch.len() {
            let key = batch.key_of(i);
            let start = self.keys.len() as u32;
            self.keys.extend_from_slice(key);
            self.entries.push(Entry {
                hash: keys.key(&batch.collection, &batch.kind, key),
                key: (start, start + key.len() as u32),
                time: time(i).order,
                is_copy,
                number: self.entries.len() as u32,
                op,
                spot: Spot { frame, doc: i as u32 },
            });
        }
    }

    /// Sorts the table: after it, documents can be looked up.
    pub fn finish(&mut self) {
        let keys = &self.keys;
        let key_of = |e: &Entry| &keys[e.key.0 as usize..e.key.1 as usize];
        self.entries.sort_by(|a, b| {
            (a.hash, key_of(a), a.time, a.is_copy, a.number).cmp(&(b.hash, key_of(b), b.time, b.is_copy, b.number))
        });
        self.taken = vec![false; self.entries.len()];
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn range(&self, hash: u64, key: &[u8]) -> std::ops::Range<usize> {
        let key_of = |e: &Entry| &self.keys[e.key.0 as usize..e.key.1 as usize];
        let start = self.entries.partition_point(|e| (e.hash, key_of(e)) < (hash, key));
        let count = self.entries[start..].partition_point(|e| (e.hash, key_of(e)) == (hash, key));
        start..start + count
    }

    /// What becomes of a document of the oldest layer, read at `read`. In an ordered collection it
    /// keeps its place unless it was deleted in between; in others, changed documents are emitted
    /// after the unchanged ones.
    pub fn fate(&mut self, hash: u64, key: &[u8], read: EngineTime, ordered: bool) -> Result<Fate> {
        let range = self.range(hash, key);
        let later: Vec<usize> =
            range.clone().filter(|i| self.entries[*i].time > read.order || self.entries[*i].is_copy).collect();
        // What is not later is in the document already.
        range.for_each(|i| self.taken[i] |= !later.contains(&i));
        if later.is_empty() {
            return Ok(Fate::Kept);
        }
        let (start, patches) = self.compose(&later);
        let deleted = later.iter().any(|i| self.entries[*i].op == Op::Delete);
        let has_body = start.is_some() || !deleted;
        let only_patches = start.is_none() && has_body;
        if only_patches || (ordered && !deleted) {
            later.iter().for_each(|i| self.taken[*i] = true);
            return Ok(Fate::Becomes { start, patches });
        }
        Ok(Fate::Dropped)
    }

    /// The newest body and the patches on top of it; no body if only patches are left, or nothing.
    fn compose(&self, entries: &[usize]) -> (Option<Spot>, Vec<Spot>) {
        let last = entries.iter().rposition(|i| self.entries[*i].op != Op::Patch);
        let rest = last.map_or(entries, |l| &entries[l + 1..]);
        let patches = rest.iter().map(|i| self.entries[*i].spot).collect();
        let start = last.map(|l| &self.entries[entries[l]]).filter(|e| e.op == Op::Put).map(|e| e.spot);
        (start, patches)
    }

    /// The documents that the oldest layer does not hold or no longer places, in the order in which
    /// they came: (where it first came, body, patches). The oldest layer must have been streamed.
    pub fn rest(&mut self, ordered: bool) -> Result<Vec<(Spot, Vec<Spot>)>> {
        let mut rest: Vec<(u32, Spot, Vec<Spot>)> = Vec::new();
        let mut at = 0;
        while at < self.entries.len() {
            let first = self.entries[at];
            let key = self.keys[first.key.0 as usize..first.key.1 as usize].to_vec();
            let range = self.range(first.hash, &key);
            at = range.end;
            let left: Vec<usize> = range.filter(|i| !self.taken[*i]).collect();
            let Some(newest) = left.last() else { continue };
            let after_delete = left.iter().rposition(|i| self.entries[*i].op == Op::Delete).map_or(0, |d| d + 1);
            let (start, patches) = self.compose(&left);
            let Some(start) = start else {
                self.check_patches(&left)?;
                continue;
            };
            let place = if ordered { left[after_delete] } else { *newest };
            rest.push((self.entries[place].number, start, patches));
        }
        rest.sort_unstable_by_key(|(number, ..)| *number);
        Ok(rest.into_iter().map(|(_, start, patches)| (start, patches)).collect())
    }

    /// Patches without a document are right only for a document that was deleted, or put anew,
    /// before the scan came by: then a later delete or put is in the log too.
    fn check_patches(&self, entries: &[usize]) -> Result<()> {
        let dangling = |i: usize| {
            let later_end = entries[i + 1..].iter().any(|j| self.entries[*j].op != Op::Patch);
            self.entries[entries[i]].op == Op::Patch && !(self.entries[entries[i]].time <= self.read && later_end)
        };
        let after_delete = entries.iter().rposition(|i| self.entries[*i].op == Op::Delete);
        let bad = (0..entries.len()).find(|i| dangling(*i) && after_delete.is_none_or(|d| *i > d));
        match bad {
            None => Ok(()),
            Some(i) => {
                let entry = &self.entries[entries[i]];
                let key = String::from_utf8_lossy(&self.keys[entry.key.0 as usize..entry.key.1 as usize]);
                Err(Error::corrupt(format!("the change log updates document {key}, which is in no layer"))
                    .hint("this time cannot be restored exactly; run `rewound backup --full` to heal the history"))
            }
        }
    }

    /// The greatest time at which layers were read counts for patches without a document.
    pub fn set_read(&mut self, time: EngineTime) {
        self.read = self.read.max(time.order);
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

/// One document of a batch, sharing its buffers.
pub(crate) fn only(batch: &Batch, i: usize) -> Batch {
    let mut one = retain(batch, |_| false);
    one.docs.extend(batch.docs.get(i).copied());
    one.attachments.extend(batch.attachments.get(i).cloned());
    one
}

/// A batch under another collection's identity is a sign of damage.
pub(crate) fn check_collection(batch: &Batch, id: &CollectionId) -> Result<()> {
    if batch.collection == *id {
        return Ok(());
    }
    Err(Error::corrupt(format!("a frame of collection {id} holds documents of {}", batch.collection)))
}
