//! Changes sorted by key, in small blocks: as many of them in memory as it may take, the others in a
//! temporary file, from which a key's changes come back with one read.

use crate::read::bloom::Bloom;
use crate::read::change::{Change, Cursor, GOES_ON, Records, SAME};
use crate::read::spill::{OpenFile, Place, Sorted, Spill};
use model::{Error, Result};
use std::ops::ControlFlow;

/// Bytes of a block: decrypting one costs about as much as the read itself.
const BLOCK: u64 = 2 << 10;
/// Bytes of a block where there are very many changes for the memory: more would make each key that has
/// changed too dear. Places in a block are told in 16 bits.
const BLOCK_MOST: u64 = 32 << 10;
/// Bytes in memory for each block, beside its content.
const PER_BLOCK: u64 = (size_of::<Block>() + 8 + 4) as u64;

/// What stands at the end of a block: for each of its keys a part of the hash, where the first change
/// is, and how many come before that.
const TAG: usize = 4;
const ENTRY: usize = TAG + 2 + 2;

/// The part of a hash that tells keys of a block apart: not the first bits, in which they are alike.
fn tag(hash: u64) -> [u8; TAG] {
    (hash as u32).to_le_bytes()
}

/// A block, taken apart.
#[derive(Debug, Clone, Copy)]
struct Parts<'a> {
    records: &'a [u8],
    tags: &'a [u8],
    places: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(block: &'a [u8]) -> Option<Self> {
        let (rest, count) = block.split_at_checked(block.len().checked_sub(2)?)?;
        let count = usize::from(u16::from_le_bytes(count.try_into().ok()?));
        let (records, table) = rest.split_at_checked(rest.len().checked_sub(count * ENTRY)?)?;
        let (tags, places) = table.split_at(count * TAG);
        Some(Parts { records, tags, places })
    }

    /// Where keys with this tag begin: offset, and how many changes come before.
    fn places_of(self, tag: [u8; TAG]) -> impl Iterator<Item = (u32, u64)> {
        let tags = self.tags.chunks_exact(TAG).enumerate();
        tags.filter(move |(_, t)| **t == tag).map(move |(i, _)| {
            let half = |at: usize| u16::from_le_bytes([self.places[at], self.places[at + 1]]);
            (u32::from(half(i * 4)), u64::from(half(i * 4 + 2)))
        })
    }
}

#[derive(Debug)]
struct Block {
    ordinal: u64,
    stored: Stored,
}

#[derive(Debug)]
enum Stored {
    Held(Box<[u8]>),
    Spilled(Place),
}

/// Changes sorted by hash; those of one key stand together, sorted by time.
#[derive(Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    /// The hash of the first change of each block.
    firsts: Vec<u64>,
    /// For each beginning of a hash, of `bits` bits, the first block that begins with it or later.
    index: Vec<u32>,
    bits: u32,
    count: u64,
    spill: Option<Spill>,
    bloom: Bloom,
    /// The block that was read last from the file.
    last: (usize, Vec<u8>),
    /// Changes that need not be looked at any more, by their numbers.
    taken: Bits,
}

#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, at: u64) {
        self.0[(at / 64) as usize] |= 1 << (at % 64);
    }

    fn get(&self, at: u64) -> bool {
        self.0[(at / 64) as usize] >> (at % 64) & 1 == 1
    }
}

impl Blocks {
    /// Makes blocks of changes that come sorted by hash and time, those of the same time in order.
    /// Holds about `memory` bytes.
    pub fn new(mut sorted: Sorted, count: u64, bytes: u64, memory: usize, open: OpenFile) -> Result<Blocks> {
        let memory = memory as u64;
        let bloom = Bloom::new(count, (memory / 8) as usize);
        // What tells where blocks are takes a sixteenth at most.
        let target = (bytes.saturating_mul(16 * PER_BLOCK) / memory.max(1)).clamp(BLOCK, BLOCK_MOST);
        let directory = bytes / target * PER_BLOCK;
        let mut making = Making {
            target: target as usize,
            left: memory.saturating_sub(directory).saturating_sub(bloom.bytes()) as usize,
            open,
            records: Vec::new(),
            tags: Vec::new(),
            places: Vec::new(),
            first: (0, 0),
            last: None,
            made: Blocks {
                blocks: Vec::new(),
                firsts: Vec::new(),
                index: Vec::new(),
                bits: 0,
                count: 0,
                spill: None,
                bloom,
                last: (usize::MAX, Vec::new()),
                taken: Bits::default(),
            },
        };
        // Keys that have the same hash as the one before them: next to never there are any.
        let mut others: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (mut current, mut key): (Option<u64>, Vec<u8>) = (None, Vec::new());
        while let Some(([hash, _], record)) = sorted.next()? {
            let (change, _) = Records::new(record, 0).expect()?;
            if current != Some(hash) {
                making.push_others(current.unwrap_or_default(), &mut others)?;
                current = Some(hash);
                key.clear();
                key.extend_from_slice(change.key);
            }
            if change.key == key {
                making.push(hash, &change)?;
            } else {
                others.push((change.key.to_vec(), record.to_vec()));
            }
        }
        making.push_others(current.unwrap_or_default(), &mut others)?;
        making.close()?;
        let mut made = making.made;
        made.bits = made.blocks.len().next_power_of_two().trailing_zeros();
        let starts = |beginning: u64| made.firsts.partition_point(|first| made.beginning(*first) < beginning) as u32;
        made.index = (0..1 << made.bits).map(starts).collect();
        made.index.push(made.blocks.len() as u32);
        made.taken = Bits(vec![0; made.count.div_ceil(64) as usize]);
        Ok(made)
    }

    fn beginning(&self, hash: u64) -> u64 {
        hash.checked_shr(64 - self.bits).unwrap_or(0)
    }

    /// How many changes there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there may be changes of a key with this hash. Tells fast of most that there are none.
    pub fn may_hold(&self, hash: u64) -> bool {
        self.bloom.may_hold(hash)
    }

    /// Where the changes of a key begin; none if there are none.
    pub fn find(&mut self, hash: u64, key: &[u8]) -> Result<Option<Cursor>> {
        let beginning = self.beginning(hash) as usize;
        let (from, to) = (self.index[beginning] as usize, self.index[beginning + 1] as usize);
        let next = from + self.firsts[from..to].partition_point(|first| *first < hash);
        // It may stand at the end of a block that begins before it, or begin one or several.
        let mut number = next.saturating_sub(1);
        while number < next || self.firsts.get(number) == Some(&hash) {
            let Some(block) = self.blocks.get(number) else { break };
            let ordinal = block.ordinal;
            let parts = self.block(number)?.ok_or_else(|| Error::bug("a block has gone"))?;
            for (offset, before) in parts.places_of(tag(hash)) {
                let (change, _) = Records::new(parts.records, offset as usize).expect()?;
                if change.key == key {
                    return Ok(Some(Cursor { block: number as u32, offset, ordinal: ordinal + before }));
                }
            }
            number += 1;
        }
        Ok(None)
    }

    /// Shows the changes of a key: which one it is from 0, and whether it is taken. Takes those for
    /// which it is told so.
    pub fn of_key(&mut self, key: Cursor, mut show: impl FnMut(u32, &Change<'_>, bool) -> Result<bool>) -> Result<()> {
        let mut taken = std::mem::take(&mut self.taken);
        let shown = self.walk(key, |cursor, begins, change| {
            if begins && cursor != key {
                return Ok(ControlFlow::Break(()));
            }
            if show((cursor.ordinal - key.ordinal) as u32, change, taken.get(cursor.ordinal))? {
                taken.set(cursor.ordinal);
            }
            Ok(ControlFlow::Continue(()))
        });
        self.taken = taken;
        shown
    }

    /// Says that so many changes of a key need not be looked at any more.
    pub fn take(&mut self, key: Cursor, count: u32) {
        (key.ordinal..key.ordinal + u64::from(count)).for_each(|change| self.taken.set(change));
    }

    /// Shows all changes, those of one key together: where its first one is, which one of them it is, and
    /// whether it is taken.
    pub fn all(&mut self, mut show: impl FnMut(Cursor, u32, &Change<'_>, bool) -> Result<()>) -> Result<()> {
        let taken = std::mem::take(&mut self.taken);
        let mut key = Cursor { block: 0, offset: 0, ordinal: 0 };
        let shown = self.walk(key, |cursor, begins, change| {
            if begins {
                key = cursor;
            }
            show(key, (cursor.ordinal - key.ordinal) as u32, change, taken.get(cursor.ordinal))?;
            Ok(ControlFlow::Continue(()))
        });
        self.taken = taken;
        shown
    }

    fn walk(
        &mut self,
        from: Cursor,
        mut show: impl FnMut(Cursor, bool, &Change<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut cursor = from;
        while let Some(parts) = self.block(cursor.block as usize)? {
            let mut records = Records::new(parts.records, cursor.offset as usize);
            while records.at < records.bytes.len() {
                let (change, flags) = records.expect()?;
                if show(cursor, flags & (SAME | GOES_ON) == 0, &change)?.is_break() {
                    return Ok(());
                }
                cursor.offset = records.at as u32;
                cursor.ordinal += 1;
            }
            cursor = Cursor { block: cursor.block + 1, offset: 0, ordinal: cursor.ordinal };
        }
        Ok(())
    }

    /// A block; none after the last one.
    fn block(&mut self, number: usize) -> Result<Option<Parts<'_>>> {
        let Some(block) = self.blocks.get(number) else { return Ok(None) };
        let bytes = match &block.stored {
            Stored::Held(bytes) => &bytes[..],
            Stored::Spilled(place) => {
                if self.last.0 != number {
                    let spill = self.spill.as_mut().ok_or_else(|| Error::bug("there is no temporary file"))?;
                    self.last.0 = usize::MAX;
                    spill.read(*place, &mut self.last.1)?;
                    self.last.0 = number;
                }
                &self.last.1[..]
            }
        };
        Parts::of(bytes).map(Some).ok_or_else(|| Error::bug("a block of changes is cut"))
    }
}

/// Blocks in the making.
struct Making {
    target: usize,
    /// Bytes that may still be held.
    left: usize,
    open: OpenFile,
    /// The current block.
    records: Vec<u8>,
    tags: Vec<u8>,
    places: Vec<u8>,
    /// Hash and ordinal of the first change of the current block.
    first: (u64, u64),
    /// Hash and key of the last change.
    last: Option<(u64, Vec<u8>)>,
    made: Blocks,
}

impl Making {
    fn push(&mut self, hash: u64, change: &Change<'_>) -> Result<()> {
        let is_first = self.records.is_empty();
        if is_first {
            self.first = (hash, self.made.count);
        }
        let goes_on = matches!(&self.last, Some((last, key)) if *last == hash && key == change.key);
        if is_first || !goes_on {
            self.tags.extend_from_slice(&tag(hash));
            self.places.extend_from_slice(&(self.records.len() as u16).to_le_bytes());
            self.places.extend_from_slice(&((self.made.count - self.first.1) as u16).to_le_bytes());
        }
        let flags = match (is_first, goes_on) {
            (_, false) => 0,
            (true, true) => GOES_ON,
            (false, true) => SAME,
        };
        change.write_as(&mut self.records, flags);
        if !goes_on {
            let (last, key) = self.last.get_or_insert_default();
            *last = hash;
            key.clear();
            key.extend_from_slice(change.key);
            self.made.bloom.insert(hash);
        }
        self.made.count += 1;
        if self.records.len() + self.tags.len() + self.places.len() >= self.target { self.close() } else { Ok(()) }
    }

    /// Puts other keys of one hash after each other, each with its changes in order.
    fn push_others(&mut self, hash: u64, others: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        others.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, record) in others.drain(..) {
            self.push(hash, &Records::new(&record, 0).expect()?.0)?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let count = (self.tags.len() / TAG) as u16;
        self.records.append(&mut self.tags);
        self.records.append(&mut self.places);
        self.records.extend_from_slice(&count.to_le_bytes());
        let stored = match self.left.checked_sub(self.records.len()) {
            Some(left) => {
                self.left = left;
                let held = self.records.as_slice().into();
                self.records.clear();
                Stored::Held(held)
            }
            None => {
                self.left = 0;
                let spill = match &mut self.made.spill {
                    Some(spill) => spill,
                    none => none.insert(Spill::open(self.open)?),
                };
                Stored::Spilled(spill.write(&mut self.records)?)
            }
        };
        self.made.blocks.push(Block { ordinal: self.first.1, stored });
        self.made.firsts.push(self.first.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::read::change::{Op, Spot};
    use crate::read::spill::Sorter;
    use proptest::prelude::*;

    type Plain = (u64, Vec<u8>, u64, bool, u32);

    fn change(plain: &Plain) -> Change<'_> {
        let (_, key, time, is_copy, doc) = plain;
        let op = [Op::Put, Op::Delete, Op::Patch][*doc as usize % 3];
        let spot = Spot { frame: doc * 1000, doc: *doc };
        let patch = if op == Op::Patch { &key[..] } else { b"" };
        Change { key, time: *time, is_copy: *is_copy, op, spot, patch }
    }

    fn blocks(changes: &[Plain], memory: usize) -> Blocks {
        let mut sorter = Sorter::new(memory, tempfile::tempfile);
        let mut record = Vec::new();
        for plain in changes {
            record.clear();
            change(plain).write(&mut record);
            sorter.push([plain.0, plain.2], &record).unwrap();
        }
        let (count, bytes) = (sorter.count(), sorter.bytes());
        Blocks::new(sorter.finish().unwrap(), count, bytes, memory, tempfile::tempfile).unwrap()
    }

    proptest! {
        #[test]
        fn changes_of_a_key_stand_together_in_order(
            wishes in proptest::collection::vec((0..6u64, 0..3u8, 0..5u64, any::<bool>(), 0..2000usize), 0..80),
            memory in prop_oneof![Just(0usize), Just(20_000), Just(1 << 20)],
            alike: bool,
        ) {
            // Few hashes, so that keys share one, or a part of it; keys of many bytes, so that there are
            // many blocks.
            let spread = if alike { 60 } else { 3 };
            let changes: Vec<Plain> = wishes.into_iter().enumerate().map(|(i, (hash, key, time, is_copy, length))| {
                // A key has one hash, but a hash may have several keys.
                let key = key * 6 + hash as u8;
                (hash << spread, vec![key; length / 700 * 700 + 1], time, is_copy, i as u32)
            }).collect();
            let mut blocks = blocks(&changes, memory);
            prop_assert_eq!(blocks.count(), changes.len() as u64);
            let keys: std::collections::BTreeSet<(u64, Vec<u8>)> = changes.iter().map(|c| (c.0, c.1.clone())).collect();
            let mut seen = vec![false; changes.len()];
            for (hash, key) in &keys {
                let mut expected: Vec<&Plain> = changes.iter().filter(|c| c.0 == *hash && c.1 == *key).collect();
                expected.sort_by_key(|c| c.2);
                prop_assert!(blocks.may_hold(*hash));
                let first = blocks.find(*hash, key).unwrap().unwrap();
                let mut expected = expected.into_iter();
                blocks.of_key(first, |nth, found, taken| {
                    assert_eq!(Some(*found), expected.next().map(change));
                    assert!(!taken && !std::mem::replace(&mut seen[first.ordinal as usize + nth as usize], true));
                    Ok(nth == 1)
                }).unwrap();
                prop_assert!(expected.next().is_none());
                prop_assert_eq!(blocks.find(*hash, b"another key").unwrap(), None);
                prop_assert_eq!(blocks.find(*hash + 1, key).unwrap(), None);
            }
            prop_assert!(seen.iter().all(|seen| *seen));
            let mut first = Vec::new();
            let mut next = 0;
            blocks.all(|cursor, nth, found, taken| {
                assert_eq!((cursor.ordinal + u64::from(nth), nth == 1), (next, taken));
                next += 1;
                first.extend((nth == 0).then(|| (cursor, found.key.to_vec())));
                Ok(())
            }).unwrap();
            prop_assert_eq!((next, first.len()), (changes.len() as u64, keys.len()));
            for (cursor, key) in first {
                prop_assert!(keys.iter().any(|(hash, k)| *k == key && blocks.find(*hash, k).unwrap() == Some(cursor)));
            }
        }
    }

    #[test]
    fn what_is_held_is_bounded() {
        let changes: Vec<Plain> = (0..20_000u32)
            .map(|i| (u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15), i.to_le_bytes().to_vec(), 5, false, i))
            .collect();
        for memory in [100_000, 400_000, 10 << 20] {
            let mut blocks = blocks(&changes, memory);
            let held = |b: &Block| match &b.stored {
                Stored::Held(bytes) => bytes.len(),
                Stored::Spilled(_) => 0,
            };
            let held: usize = blocks.blocks.iter().map(held).sum();
            let all = held + blocks.blocks.len() * PER_BLOCK as usize + blocks.bloom.bytes() as usize;
            assert!(all <= memory + memory / 20, "{all} of {memory}");
            assert_eq!(blocks.spill.is_none(), memory == 10 << 20);
            assert!(changes.iter().step_by(7).all(|c| blocks.find(c.0, &c.1).unwrap().is_some()));
        }
    }
}
