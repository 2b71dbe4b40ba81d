//! Key filters: which frame may hold a key, found with one small read.
//!
//! A filter covers up to 256 segments, and where these hold many keys, only the keys whose hashes
//! begin with some bits: its shard. Its keys are spread over partitions of equal size by the next
//! bits of their hashes; each partition names the segments and their frames again, so that one
//! partition is all that a lookup needs.

use crate::hash::HashKeys;
use crate::manifest::{FilterRef, Shard};
use crate::objects::{Objects, is_damage};
use crate::segment::{FrameEntry, SegmentEntry};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use model::limits::FILTER_PARTITION_KEYS;
use model::{Error, Result};
use std::ops::Range;

/// Bits of a frame's number in an entry.
pub(crate) const FRAME_BITS: u32 = 24;

/// A key on its way into a filter: the first 40 bits of its hash, then its frame's number. A filter
/// needs no more of a hash: up to 8 bits for shard and partition, and 26 within it.
pub(crate) fn entry(hash: u64, frame: u32) -> u64 {
    hash >> FRAME_BITS << FRAME_BITS | u64::from(frame)
}

/// A filter's bytes, and what a [`FilterRef`] says of them.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub bytes: Vec<u8>,
    pub shard: Shard,
    pub bits: u32,
    pub slot: u32,
}

/// Encodes a filter, partition by partition.
pub(crate) struct Encoder<'a> {
    keys: &'a HashKeys,
    table: Vec<u8>,
    shard: Shard,
    bits: u32,
    bytes: Vec<u8>,
    spans: Vec<Range<usize>>,
}

impl<'a> Encoder<'a> {
    /// A filter of segments, for so many keys in a shard.
    pub fn new(keys: &'a HashKeys, segments: &[SegmentEntry], shard: Shard, count: usize) -> Result<Self> {
        let mut table = Vec::new();
        write_table(&mut table, segments)?;
        let partitions = count.div_ceil(FILTER_PARTITION_KEYS).next_power_of_two();
        // A key takes about 4 bytes; no more than what is used is ever touched.
        let bytes = Vec::with_capacity(count * 5 + (table.len() + 1024) * partitions);
        let spans = Vec::with_capacity(partitions);
        Ok(Encoder { keys, table, shard, bits: partitions.trailing_zeros(), bytes, spans })
    }

    /// How many of a hash's first bits shard and partition tell.
    pub fn told(&self) -> u32 {
        self.shard.bits + self.bits
    }

    /// Adds the next partitions, from the sorted entries of all their keys.
    pub fn add(&mut self, partitions: usize, mut entries: &[u64]) {
        for partition in self.spans.len()..self.spans.len() + partitions {
            let is_here = |e: &u64| partition_of(*e, self.shard.bits, self.bits) <= partition as u64;
            let (here, after) = entries.split_at(entries.partition_point(is_here));
            entries = after;
            let start = self.bytes.len();
            let payload = encode_partition(&self.table, here, self.told());
            self.bytes.extend_from_slice(&self.keys.frame(&payload).to_le_bytes());
            self.bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(&payload);
            self.spans.push(start..self.bytes.len());
        }
    }

    /// Gives every partition as much room as the longest one takes.
    pub fn finish(self) -> Encoded {
        let Encoder { mut bytes, spans, shard, bits, .. } = self;
        let slot = spans.iter().map(|span| span.len()).max().unwrap_or_default();
        bytes.resize(slot * spans.len(), 0);
        // From the last to the first: each moves up, over what has been moved already.
        for (i, span) in spans.into_iter().enumerate().rev() {
            let (at, length) = (i * slot, span.len());
            bytes.copy_within(span, at);
            bytes[at + length..at + slot].fill(0);
        }
        Encoded { bytes, shard, bits, slot: slot as u32 }
    }
}

/// The partition of a hash: the `bits` bits after the `skip` bits of the shard.
fn partition_of(hash: u64, skip: u32, bits: u32) -> u64 {
    if bits == 0 { 0 } else { (hash << skip) >> (64 - bits) }
}

/// The part of a hash that is kept: `width` bits after the first `bits`, which shard and partition
/// tell.
fn kept(hash: u64, bits: u32, width: u32) -> u64 {
    (hash << bits) >> (64 - width)
}

fn encode_partition(table: &[u8], entries: &[u64], bits: u32) -> Vec<u8> {
    // 8 bits more than needed to number the keys: one lookup in 256 finds a frame for nothing.
    let width = (usize::BITS - entries.len().leading_zeros() + 8).min(64 - FRAME_BITS - bits);
    let mut out = table.to_vec();
    write_number(&mut out, entries.len() as u64);
    out.push(width as u8);
    let mut last = 0;
    for entry in entries {
        let value = kept(*entry, bits, width);
        write_number(&mut out, value - last);
        write_number(&mut out, entry & ((1 << FRAME_BITS) - 1));
        last = value;
    }
    out
}

fn write_table(out: &mut Vec<u8>, segments: &[SegmentEntry]) -> Result<()> {
    write_number(out, segments.len() as u64);
    for segment in segments {
        write_bytes(out, segment.object.as_bytes());
        write_number(out, segment.size);
        write_bytes(out, &segment.head_bytes()?);
        write_number(out, segment.frames.len() as u64);
        for frame in &segment.frames {
            write_number(out, u64::from(frame.stored));
            write_number(out, u64::from(frame.raw));
            out.extend_from_slice(&frame.check.to_le_bytes());
        }
    }
    Ok(())
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// LEB128, as in DWARF and protocol buffers.
fn write_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self, n: u64) -> Option<&'a [u8]> {
        let n = usize::try_from(n).ok().filter(|n| *n <= self.0.len())?;
        let (bytes, rest) = self.0.split_at(n);
        self.0 = rest;
        Some(bytes)
    }

    fn word(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

/// A frame that may hold a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Path of the segment.
    pub object: String,
    /// Its stored bytes.
    pub size: u64,
    /// Its head.
    pub head: Vec<u8>,
    /// Number of the frame in the segment.
    pub frame: usize,
    /// Where the frame's compressed bytes are in the decrypted object, and the frame's entry;
    /// none if only the segment's own table knows.
    pub place: Option<(Range<u64>, FrameEntry)>,
}

/// Reads the partition that a key's hash belongs to and finds the frames that may hold the key;
/// reads nothing if the filter is not of its shard.
pub(crate) async fn look_up(objects: &Objects, filter: &FilterRef, hash: u64) -> Result<Vec<Candidate>> {
    look_up_many(objects, filter, &[hash]).await
}

/// The frames that may hold one of some keys: each partition is read once. The hashes must be sorted.
pub(crate) async fn look_up_many(objects: &Objects, filter: &FilterRef, hashes: &[u64]) -> Result<Vec<Candidate>> {
    let broken = || {
        Error::corrupt(format!("the key filter {} is damaged", filter.object))
            .hint("run `rewound verify` to see which points are hit")
    };
    let shard = filter.shard;
    if shard.bits > 20 || filter.bits > 20 || filter.slot < 12 {
        return Err(broken());
    }
    let mut found = Vec::new();
    let head = BASE64.decode(&filter.head).map_err(|_| broken())?;
    let mut covered = hashes.iter().copied().filter(|hash| shard.covers(*hash)).peekable();
    while let Some(hash) = covered.next() {
        let partition = partition_of(hash, shard.bits, filter.bits);
        let start = partition * u64::from(filter.slot);
        let slot = read_slot(objects, filter, &head, start..start + u64::from(filter.slot)).await?;
        let payload = slot.as_deref().and_then(|slot| check_slot(&objects.keys, slot)).ok_or_else(broken)?;
        found.extend(find(payload, hash, shard.bits + filter.bits).ok_or_else(broken)?);
        while let Some(next) = covered.next_if(|h| partition_of(*h, shard.bits, filter.bits) == partition) {
            found.extend(find(payload, next, shard.bits + filter.bits).ok_or_else(broken)?);
        }
    }
    Ok(found)
}

/// A partition's bytes. If they are damaged, another object with the same content will do.
async fn read_slot(
    objects: &Objects,
    filter: &FilterRef,
    head: &[u8],
    range: Range<u64>,
) -> Result<Option<bytes::Bytes>> {
    match objects.read_range(&filter.object, filter.size, head, range.clone()).await {
        Ok(slot) if check_slot(&objects.keys, &slot).is_some() => return Ok(Some(slot)),
        Err(e) if !is_damage(&e) => return Err(e),
        _ => {}
    }
    let whole = objects.read(&filter.object).await?;
    Ok((range.end <= whole.len() as u64).then(|| whole.slice(range.start as usize..range.end as usize)))
}

fn check_slot<'a>(keys: &HashKeys, slot: &'a [u8]) -> Option<&'a [u8]> {
    let mut reader = Reader(slot);
    let check = reader.word()?;
    let length = u32::from_le_bytes(reader.bytes(4)?.try_into().ok()?);
    let payload = reader.bytes(u64::from(length))?;
    (keys.frame(payload) == check).then_some(payload)
}

/// The frames that may hold a key with this hash, by path of the segment and number, from the
/// decrypted payload of a partition: for tools and tests that have nothing but the bytes. `bits` are
/// the first bits of the hash that shard and partition tell. Never panics, whatever the bytes; none
/// if they are no partition.
pub fn look_in(payload: &[u8], hash: u64, bits: u32) -> Option<Vec<(String, usize)>> {
    if bits >= 64 {
        return None;
    }
    Some(find(payload, hash, bits)?.into_iter().map(|c| (c.object, c.frame)).collect())
}

/// Finds the frames for a hash in a partition's payload; see [`look_in`].
fn find(payload: &[u8], hash: u64, bits: u32) -> Option<Vec<Candidate>> {
    let mut reader = Reader(payload);
    let mut frames: Vec<(usize, usize)> = Vec::new();
    let mut segments = Vec::new();
    for number in 0..reader.number()? {
        let length = reader.number()?;
        let object = std::str::from_utf8(reader.bytes(length)?).ok()?.to_owned();
        let size = reader.number()?;
        let length = reader.number()?;
        let head = reader.bytes(length)?;
        let mut at = 0u64;
        let mut places = Vec::new();
        for frame in 0..reader.number()? {
            let (stored, raw, check) = (reader.number()?, reader.number()?, reader.word()?);
            let entry =
                FrameEntry { stored: u32::try_from(stored).ok()?, raw: u32::try_from(raw).ok()?, count: 0, check };
            places.push((at..at.checked_add(stored)?, entry));
            at = at.checked_add(stored)?;
            frames.push((number as usize, frame as usize));
        }
        segments.push((object, size, head, places));
    }
    let count = reader.number()?;
    let width = u32::from(*reader.bytes(1)?.first()?);
    if width == 0 || width + bits > 64 {
        return None;
    }
    let wanted = kept(hash, bits, width);
    let mut value = 0u64;
    let mut found = Vec::new();
    for _ in 0..count {
        value = value.checked_add(reader.number()?)?;
        let frame = reader.number()?;
        if value > wanted {
            break;
        }
        if value == wanted {
            let (segment, frame) = *frames.get(usize::try_from(frame).ok()?)?;
            let (object, size, head, places) = &segments[segment];
            let place = places.get(frame).filter(|(_, e)| e.stored > 0).cloned();
            found.push(Candidate { object: object.clone(), size: *size, head: head.to_vec(), frame, place });
        }
    }
    found.dedup();
    Some(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn segment(name: &str, frames: usize) -> SegmentEntry {
        let entry = |i: usize| FrameEntry { stored: 10 + i as u32, raw: 100, count: 1, check: i as u64 };
        SegmentEntry {
            object: name.into(),
            size: 1000,
            head: String::new(),
            frames: (0..frames).map(entry).collect(),
            raw: 1,
            counts: vec![],
        }
    }

    fn random(i: u64) -> u64 {
        blake3::hash(&i.to_le_bytes()).as_bytes()[..8].try_into().map(u64::from_le_bytes).unwrap()
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), hash: u64) {
            let _ = find(&bytes, hash, 3);
            let _ = check_slot(&HashKeys::derive(&[0; 32]), &bytes);
        }
    }

    #[test]
    fn most_absent_keys_find_nothing_in_any_shard() {
        let keys = HashKeys::derive(&[0; 32]);
        for shard in [Shard::default(), Shard { bits: 3, prefix: 5 }] {
            let into_shard = |i| random(i) >> shard.bits | (shard.prefix << 1).rotate_right(1 + shard.bits);
            let mut entries: Vec<u64> = (0..200_000).map(|i| entry(into_shard(i), 0)).collect();
            entries.sort_unstable();
            let mut encoder = Encoder::new(&keys, &[segment("s", 1)], shard, entries.len()).unwrap();
            encoder.add(2, &entries);
            let Encoded { bytes, bits, slot, .. } = encoder.finish();
            assert_eq!(bits, 1);
            let look = |hash| {
                assert!(shard.covers(hash));
                let at = (partition_of(hash, shard.bits, bits) * u64::from(slot)) as usize;
                let payload = check_slot(&keys, &bytes[at..at + slot as usize]).unwrap();
                !find(payload, hash, shard.bits + bits).unwrap().is_empty()
            };
            assert!((0..2000).all(|i| look(into_shard(i))));
            let hits = (1_000_000..1_002_000).filter(|i| look(into_shard(*i))).count();
            assert!(hits < 40, "{hits} of 2000");
            assert!(bytes.len() < 200_000 * 4, "{}", bytes.len());
        }
    }
}
