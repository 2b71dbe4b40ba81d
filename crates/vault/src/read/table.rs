//! Changes in memory, as they came, found by the hashes of their keys.

use crate::read::change::{Change, Cursor, Op, Spot};
use crate::read::parts::Expected;
use crate::read::record::{Link, Record, Span, delete, most_bytes, span, take, write};
use model::{Error, Result};

/// In a slot: nothing of the key need be looked at any more.
const DONE: u64 = 1 << 31;
/// Bits of a slot that tell where the newest change of its key is, plus 1.
const PLACE: u64 = DONE - 1;
/// Slots to begin with, as a power of two.
const BITS: u32 = 8;
/// Keys that are looked at together, if none are told.
const NEAR: usize = 128;

/// Changes of many keys, gathered in any order.
#[derive(Debug)]
pub(crate) struct Table {
    limit: usize,
    /// Whether the places of changes are wanted that have no body.
    all_spots: bool,
    /// Changes, one after the other.
    records: Vec<u8>,
    /// One for each key: the first half of its hash, and where its newest change is; 0 for none. A key
    /// is in the first free slot from the one on that its hash begins with.
    slots: Vec<u64>,
    bits: u32,
    keys: usize,
    count: u64,
}

/// What somebody who looks at changes keeps meanwhile: many may look at the same table.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Of the key that is looked at.
    chain: Vec<Link>,
    /// Where the patches are of the keys that are looked at together.
    patches: Vec<Span>,
    /// What is looked at ahead.
    near: Vec<u32>,
    marks: Marks,
}

/// What need not be looked at any more, to be noted in the table when nobody looks at it.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Slots of keys.
    done: Vec<u32>,
    /// Places of single changes.
    taken: Vec<u32>,
}

/// Patches that are kept at hand while keys are looked at together: the first, and how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AtHand {
    from: u32,
    pub count: u32,
}

impl Table {
    /// A table that has room for about so many bytes, and tells the places only of bodies.
    pub fn new(limit: usize) -> Self {
        Table::expecting(Expected::default(), limit, false)
    }

    /// A table that need not grow often to hold what is expected; perhaps with the places of all changes.
    pub fn expecting(expected: Expected, limit: usize, all_spots: bool) -> Self {
        // Places have 31 bits.
        let limit = limit.min(1 << 30);
        // About those that are needed if three of four changes are of other keys.
        let most = (limit / 32).checked_ilog2().unwrap_or(0).max(BITS);
        let bits = (expected.changes * 3 / 4).next_power_of_two().ilog2().clamp(BITS, most);
        Table {
            limit,
            all_spots,
            records: Vec::with_capacity(expected.bytes.min(limit)),
            slots: vec![0; 1 << bits],
            bits,
            keys: 0,
            count: 0,
        }
    }

    /// Takes a change; false if it has no room for it. What is older than a document that has gone out
    /// ([`Table::goes_out`]) counts no more, and takes no room.
    pub fn push(&mut self, hash: u64, change: &Change<'_>) -> Result<bool> {
        let at = self.records.len();
        // Slots are doubled beside the old ones.
        if self.keys * 3 > self.slots.len() * 2 && at + self.slots.len() * 24 <= self.limit {
            self.grow();
        }
        let full = self.keys * 8 > self.slots.len() * 7;
        if full || self.bytes() + most_bytes(change) > self.limit {
            return Ok(false);
        }
        let slot = self.slot_of(hash, change.key)?;
        if self.slots[slot] & DONE != 0 {
            return Ok(true);
        }
        let before = self.slots[slot] & PLACE;
        self.keys += usize::from(before == 0);
        self.slots[slot] = (hash >> 32) << 32 | (at as u64 + 1);
        write(before as u32, change, self.all_spots, &mut self.records)?;
        self.count += 1;
        Ok(true)
    }

    /// How many changes there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes in memory.
    fn bytes(&self) -> usize {
        self.records.len() + self.slots.len() * 8
    }

    /// Whether there may be changes of a key with this hash. Tells fast of most that there are none.
    pub fn may_hold(&self, hash: u64) -> bool {
        self.first_alike(hash) != 0
    }

    /// Where the changes of a key are; none if there are none.
    pub fn find(&self, hash: u64, key: &[u8]) -> Result<Option<Cursor>> {
        let slot = self.slot_of(hash, key)?;
        let newest = (self.slots[slot] & PLACE) as u32;
        Ok((newest != 0).then(|| Cursor { block: slot as u32, offset: newest - 1, ordinal: 0 }))
    }

    /// Brings near to the processor what tells of some hashes, all at once, as it would otherwise wait
    /// for each of them: where changes are.
    pub fn near_slots(&self, hashes: &[u64]) {
        let first = |hash: &u64| self.slots[(hash >> (64 - self.bits)) as usize];
        std::hint::black_box(hashes.iter().map(first).fold(0, |all, slot| all ^ slot));
    }

    /// The same for the newest change of each hash, or for all.
    pub fn near_changes(&self, look: &mut Look, hashes: impl Iterator<Item = u64>, all: bool) {
        let places = hashes.map(|hash| (self.first_alike(hash) & PLACE) as u32).filter(|place| *place != 0);
        self.near_places(&mut look.near, places, all);
    }

    fn near_places(&self, places: &mut Vec<u32>, newest: impl Iterator<Item = u32>, all: bool) {
        places.clear();
        places.extend(newest);
        let mut touched = 0;
        while !places.is_empty() {
            for place in &mut *places {
                let at = *place as usize - 1;
                // Most changes take two lines of the processor's cache.
                touched ^= self.records.get(at + 64).copied().unwrap_or_default();
                *place = self.before(at).unwrap_or_default();
            }
            if !std::hint::black_box(all) {
                break;
            }
            places.retain(|place| *place != 0);
        }
        std::hint::black_box(touched);
    }

    /// Shows the changes of a key, sorted by time, those of the same time in the order in which they
    /// came: which one it is from 0, and whether it is taken. Those for which it is told so are marked.
    pub fn of_key(
        &self,
        look: &mut Look,
        key: Cursor,
        mut show: impl FnMut(u32, &Change<'_>, bool) -> Result<bool>,
    ) -> Result<()> {
        let key = self.take_apart(&mut look.chain, key.offset)?;
        for (nth, link) in look.chain.iter().enumerate() {
            let Link { time, at, is_copy, op, spot, patch, is_taken } = *link;
            let change = Change { key, time, is_copy, op, spot, patch: span(&self.records, patch) };
            if show(nth as u32, &change, is_taken)? {
                look.marks.taken.push(at);
            }
        }
        Ok(())
    }

    /// Whether the newest body of a key is the one at a place, put later than `since`, and nothing deletes it:
    /// then where its changes are, and the patches on top of it.
    pub fn newest_is(
        &self,
        look: &mut Look,
        (hash, key): (u64, &[u8]),
        spot: Spot,
        since: u64,
    ) -> Result<Option<(Cursor, AtHand)>> {
        let slot = self.slot_of(hash, key)?;
        let newest = (self.slots[slot] & PLACE) as u32;
        if newest == 0 || self.slots[slot] & DONE != 0 {
            return Ok(None);
        }
        self.take_apart(&mut look.chain, newest - 1)?;
        let Some(body) = look.chain.iter().rposition(|link| link.op != Op::Patch) else { return Ok(None) };
        let link = look.chain[body];
        if link.op != Op::Put || link.spot != spot || link.time <= since {
            return Ok(None);
        }
        let patches = look.have_at_hand(body as u32 + 1, |_, _| true);
        Ok(Some((Cursor { block: slot as u32, offset: newest - 1, ordinal: 0 }, patches)))
    }

    /// Says that the document has gone out that the key has become which was looked at last: those of the oldest
    /// layer are to be dropped, as if this one had been deleted when it was put.
    pub fn goes_out(&mut self, look: &Look, key: Cursor) {
        for link in look.chain.iter().rev() {
            if link.op != Op::Patch {
                delete(&mut self.records, link.at);
                break;
            }
            take(&mut self.records, link.at);
        }
        self.slots[key.block as usize] |= DONE;
    }

    /// Takes the changes of a key apart, from the newest one on; gives the key.
    fn take_apart(&self, chain: &mut Vec<Link>, newest: u32) -> Result<&[u8]> {
        chain.clear();
        let mut next = newest + 1;
        while next != 0 {
            let at = next - 1;
            let record = self.record(at as usize)?;
            chain.push(record.link(at));
            next = record.before;
        }
        // Next to always they came in order, or the latest ones first.
        if !chain.is_sorted_by(|one, next| one.time < next.time) {
            chain.reverse();
            if !chain.is_sorted_by_key(|link| link.time) {
                chain.sort_by_key(|link| link.time);
            }
        }
        self.record(newest as usize).map(|record| record.key)
    }

    /// The patches that a look has at hand.
    pub fn at_hand<'a>(&'a self, look: &'a Look, AtHand { from, count }: AtHand) -> impl Iterator<Item = &'a [u8]> {
        let spans = look.patches.get(from as usize..(from + count) as usize).unwrap_or_default();
        spans.iter().map(|patch| span(&self.records, *patch))
    }

    /// Where the change of the same key is that came before one, plus 1; 0 for none.
    fn before(&self, at: usize) -> Option<u32> {
        self.records.get(at..)?.first_chunk().map(|before| u32::from_le_bytes(*before))
    }

    /// The change at a place.
    #[inline]
    fn record(&self, at: usize) -> Result<Record<'_>> {
        Record::read(&self.records, at).ok_or_else(nowhere)
    }

    /// Notes what need not be looked at any more.
    pub fn note(&mut self, marks: &mut Marks) {
        for at in marks.taken.drain(..) {
            take(&mut self.records, at);
        }
        for slot in marks.done.drain(..) {
            self.slots[slot as usize] |= DONE;
        }
    }

    /// Shows the changes of all keys that are not taken whole, those of one key together: where, which
    /// one of its key it is, and whether it is taken.
    pub fn rest(
        &self,
        look: &mut Look,
        mut show: impl FnMut(Cursor, u32, &Change<'_>, bool) -> Result<()>,
    ) -> Result<()> {
        let mut left = Vec::with_capacity(NEAR);
        let mut slots = self.slots.iter().enumerate();
        loop {
            left.clear();
            let is_left = |(_, slot): &(usize, &u64)| **slot & PLACE != 0 && **slot & DONE == 0;
            left.extend(slots.by_ref().filter(is_left).map(|(number, slot)| (number as u32, slot & PLACE)).take(NEAR));
            if left.is_empty() {
                return Ok(());
            }
            self.near_places(&mut look.near, left.iter().map(|(_, place)| *place as u32), true);
            for (slot, newest) in &left {
                let key = Cursor { block: *slot, offset: *newest as u32 - 1, ordinal: 0 };
                self.of_key(look, key, |nth, change, taken| show(key, nth, change, taken).map(|()| false))?;
            }
        }
    }

    /// All changes that are to be looked at, in the order in which they came.
    pub fn drain(self, mut give: impl FnMut(&Change<'_>) -> Result<()>) -> Result<()> {
        let Table { records, slots, .. } = self;
        drop(slots);
        let mut at = 0;
        while at < records.len() {
            let record = Record::read(&records, at).ok_or_else(nowhere)?;
            let Link { time, is_copy, op, spot, patch, is_taken, .. } = record.link(at as u32);
            if !is_taken {
                give(&Change { key: record.key, time, is_copy, op, spot, patch: span(&records, patch) })?;
            }
            at = record.end;
        }
        Ok(())
    }

    /// The slot on which the search for a hash ends: one that begins like it and for which `is` holds, or
    /// the free one after them.
    fn search(&self, hash: u64, mut is: impl FnMut(u32) -> Result<bool>) -> Result<usize> {
        let last = self.slots.len() - 1;
        let mut number = (hash >> (64 - self.bits)) as usize;
        for _ in 0..=last {
            let slot = self.slots[number];
            if slot == 0 || (slot >> 32 == hash >> 32 && is((slot & PLACE) as u32)?) {
                return Ok(number);
            }
            number = (number + 1) & last;
        }
        Err(nowhere())
    }

    /// The first slot that may be that of a hash; 0 if there is none.
    fn first_alike(&self, hash: u64) -> u64 {
        self.search(hash, |_| Ok(true)).map_or(0, |number| self.slots[number])
    }

    /// The slot of a key, or the free one where it belongs.
    fn slot_of(&self, hash: u64, key: &[u8]) -> Result<usize> {
        self.search(hash, |place| Ok(self.record(place as usize - 1)?.key == key))
    }

    fn grow(&mut self) {
        self.bits += 1;
        let old = std::mem::replace(&mut self.slots, vec![0; 1 << self.bits]);
        let last = self.slots.len() - 1;
        for slot in old.into_iter().filter(|slot| *slot != 0) {
            let mut number = (slot >> (64 - self.bits)) as usize;
            while self.slots[number] != 0 {
                number = (number + 1) & last;
            }
            self.slots[number] = slot;
        }
    }
}

impl Look {
    /// Forgets the patches that were at hand.
    pub fn put_away(&mut self) {
        self.patches.clear();
    }

    /// Has at hand the patches of the key that was looked at last: those from one of its changes on
    /// that count.
    pub fn have_at_hand(&mut self, from: u32, counts: impl Fn(u64, bool) -> bool) -> AtHand {
        let first = self.patches.len();
        let links = self.chain.iter().skip(from as usize);
        let links = links.filter(|link| link.op == Op::Patch && counts(link.time, link.is_copy));
        self.patches.extend(links.map(|link| link.patch));
        AtHand { from: first as u32, count: (self.patches.len() - first) as u32 }
    }

    /// Marks a key: nothing of it need be looked at any more.
    pub fn take(&mut self, key: Cursor) {
        self.marks.done.push(key.block);
    }

    /// What was marked.
    pub fn marks(&mut self) -> &mut Marks {
        &mut self.marks
    }
}

impl Marks {
    /// Adds what somebody else has marked.
    pub fn add(&mut self, mut other: Marks) {
        self.done.append(&mut other.done);
        self.taken.append(&mut other.taken);
    }
}

fn nowhere() -> Error {
    Error::bug("a table of changes does not hold what it says")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::read::change::Spot;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Hash, key, time.
    type Plain = (u64, Vec<u8>, u64);

    fn change<'a>((_, key, time): &'a Plain, number: usize) -> Change<'a> {
        let op = [Op::Put, Op::Delete, Op::Patch][number % 3];
        let spot = Spot { frame: number as u32 * 1000, doc: number as u32 };
        Change { key, time: *time, is_copy: number % 5 == 0, op, spot, patch: if op == Op::Patch { key } else { b"" } }
    }

    proptest! {
        #[test]
        fn changes_are_found_by_their_keys(
            // Few hashes, and those that begin alike, so that keys share slots and halves of hashes.
            wishes in proptest::collection::vec((0..40u64, 0..3u8, 0..5u64), 0..1500),
            spread in prop_oneof![Just(0u32), Just(31), Just(58)],
            taken in proptest::collection::btree_set(0..40u64, 0..20),
        ) {
            let changes: Vec<Plain> = wishes
                .into_iter()
                .map(|(hash, key, time)| (hash << spread, [hash as u8, key].repeat(1 + hash as usize % 3), time))
                .collect();
            let mut table = Table::expecting(Expected::default(), 1 << 20, true);
            let mut expected: BTreeMap<(u64, &[u8]), Vec<Change<'_>>> = BTreeMap::new();
            for (number, plain) in changes.iter().enumerate() {
                prop_assert!(table.push(plain.0, &change(plain, number)).unwrap());
                expected.entry((plain.0, &plain.1)).or_default().push(change(plain, number));
            }
            prop_assert_eq!(table.count(), changes.len() as u64);
            let mut look = Look::default();
            for ((hash, key), of_key) in &mut expected {
                of_key.sort_by_key(|c| c.time);
                prop_assert!(table.may_hold(*hash));
                let place = table.find(*hash, key).unwrap().unwrap();
                for round in [false, true] {
                    let mut shown = 0;
                    table.of_key(&mut look, place, |nth, found, taken| {
                        assert_eq!((nth, *found, taken), (shown, of_key[nth as usize], round && nth == 1));
                        shown += 1;
                        Ok(nth == 1)
                    }).unwrap();
                    prop_assert_eq!(shown as usize, of_key.len());
                    table.note(look.marks());
                }
                prop_assert_eq!(table.find(*hash, b"another key").unwrap(), None);
                if taken.contains(&(*hash >> spread)) {
                    look.take(place);
                }
            }
            table.note(look.marks());
            let mut left = Vec::new();
            table.rest(&mut look, |_, nth, found, taken| {
                assert_eq!(taken, nth == 1);
                left.extend((nth == 0).then(|| found.key.to_vec()));
                Ok(())
            }).unwrap();
            left.sort();
            let of = |(hash, key): &(u64, &[u8])| (!taken.contains(&(hash >> spread))).then(|| key.to_vec());
            let mut wanted: Vec<Vec<u8>> = expected.keys().filter_map(of).collect();
            wanted.sort();
            prop_assert_eq!(left, wanted);
            let marked: Vec<Change<'_>> = expected.values().filter_map(|of_key| of_key.get(1)).copied().collect();
            let all = changes.iter().enumerate().map(|(number, plain)| change(plain, number));
            let mut wanted = all.filter(|change| !marked.contains(change));
            table.drain(|drained| {
                assert_eq!(Some(*drained), wanted.next());
                Ok(())
            }).unwrap();
            prop_assert_eq!(wanted.next(), None);
        }
    }

    #[test]
    fn it_is_as_large_as_it_may_be() {
        for limit in [0, 10_000, 300_000] {
            let mut table = Table::new(limit);
            let random = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let key = |i: u64| format!("key {i}").into_bytes();
            let all: Vec<Plain> = (0..100_000).map(|i| (random(i), key(i), i)).collect();
            let taken = all.iter().enumerate().take_while(|(i, c)| table.push(c.0, &change(c, *i)).unwrap()).count();
            assert!(table.bytes() <= limit.max(8 << BITS) && table.bytes() + limit / 5 >= limit, "{}", table.bytes());
            assert!(all[..taken].iter().all(|c| table.find(c.0, &c.1).unwrap().is_some()));
            let others = all[taken..].iter().filter(|c| table.may_hold(c.0)).count();
            assert!(others < 30, "{others}");
            let seen: BTreeSet<u32> =
                all[..taken].iter().map(|c| table.find(c.0, &c.1).unwrap().unwrap().block).collect();
            assert_eq!(seen.len(), taken);
        }
    }
}
