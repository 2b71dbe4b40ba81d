//! Changes on their way out, grouped by collection and kind.

use model::limits::BATCH_DOCUMENTS;
use model::{BatchBuilder, ChangeBatch, CollectionId, Encoding, EngineTime, Kind};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Bytes at which changes are given on (1 MiB).
const FULL: usize = 1 << 20;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Does {
    /// The whole document.
    Put,
    /// A change of the document that is there.
    Patch,
    /// No document any more.
    Delete,
}

impl Does {
    fn kind(self) -> Kind {
        match self {
            Does::Put => Kind::Document,
            Does::Patch => Kind::Patch,
            Does::Delete => Kind::Tombstone,
        }
    }
}

/// Changes that have not been given on yet.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    open: Vec<Open>,
    places: HashMap<(u32, Does), usize>,
    bytes: usize,
    is_full: bool,
    /// What was done to each key (by hash) at the time of a transaction.
    seen: HashMap<u64, Does>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Open {
    builder: BatchBuilder,
    times: Vec<EngineTime>,
}

impl Gather {
    /// Begins with the changes of another time.
    pub fn another_time(&mut self) {
        self.seen.clear();
    }

    /// Whether another kind of change of this key at the same time comes before this one: then that
    /// must be given on first, as only the order in which they are given tells theirs.
    pub fn is_second(&mut self, number: u32, does: Does, key: &[u8]) -> bool {
        let hash = self.hasher.hash_one((number, key));
        self.seen.insert(hash, does).is_some_and(|before| before != does)
    }

    /// Adds a change of the collection that has this number here.
    pub fn push(&mut self, number: u32, id: &CollectionId, does: Does, key: &[u8], body: &[u8], time: EngineTime) {
        let at = *self.places.entry((number, does)).or_insert_with(|| {
            let builder = BatchBuilder::new(id.clone(), does.kind(), Encoding::Bson);
            self.open.push(Open { builder, times: Vec::new() });
            self.open.len() - 1
        });
        let open = &mut self.open[at];
        open.builder.push(key, body);
        open.times.push(time);
        self.bytes += key.len() + body.len();
        self.is_full |= self.bytes >= FULL || open.times.len() >= BATCH_DOCUMENTS;
    }

    /// Whether it is time to give them on.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// All changes, and how many bytes they have.
    pub fn take(&mut self) -> (Vec<ChangeBatch>, usize) {
        self.places.clear();
        self.seen.clear();
        self.is_full = false;
        let batches = self.open.drain(..).map(|mut open| ChangeBatch { batch: open.builder.take(), times: open.times });
        (batches.collect(), std::mem::take(&mut self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grouped_and_in_order() {
        let (a, b) = (CollectionId::new("a"), CollectionId::new("b"));
        let mut gather = Gather::default();
        let at = |order| EngineTime { order, millis: 0 };
        gather.push(0, &a, Does::Put, b"1", b"x", at(1));
        gather.push(1, &b, Does::Put, b"1", b"y", at(2));
        gather.push(0, &a, Does::Delete, b"1", b"", at(3));
        gather.push(0, &a, Does::Put, b"1", b"z", at(4));
        let (batches, bytes) = gather.take();
        let told: Vec<_> =
            batches.iter().map(|c| (c.batch.collection.as_str(), c.batch.kind.clone(), c.batch.len())).collect();
        assert_eq!(told, [("a", Kind::Document, 2), ("b", Kind::Document, 1), ("a", Kind::Tombstone, 1)]);
        assert_eq!(batches[0].times, [at(1), at(4)]);
        assert_eq!((batches[0].batch.body_of(1), batches[0].batch.key_of(1)), (&b"z"[..], &b"1"[..]));
        assert_eq!(bytes, 7);
        assert!(gather.take().0.is_empty());
    }

    #[test]
    fn two_kinds_of_change_of_a_key_at_one_time_are_told() {
        let mut gather = Gather::default();
        assert!(!gather.is_second(0, Does::Put, b"1"));
        assert!(!gather.is_second(0, Does::Put, b"1"));
        assert!(!gather.is_second(1, Does::Delete, b"1"));
        assert!(!gather.is_second(0, Does::Patch, b"2"));
        assert!(gather.is_second(0, Does::Patch, b"1"));
        gather.another_time();
        assert!(!gather.is_second(0, Does::Delete, b"1"));
    }

    #[test]
    fn full_by_bytes_and_by_number() {
        let id = CollectionId::new("a");
        let mut gather = Gather::default();
        gather.push(0, &id, Does::Put, b"1", &vec![0; FULL], EngineTime::ZERO);
        assert!(gather.is_full());
        gather.take();
        for _ in 0..BATCH_DOCUMENTS {
            assert!(!gather.is_full());
            gather.push(0, &id, Does::Delete, b"1", b"", EngineTime::ZERO);
        }
        assert!(gather.is_full());
    }
}
