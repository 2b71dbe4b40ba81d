//! Key filters: which frame may hold a key, found with one small read.
//!
//! A filter covers up to 256 segments. Its keys are spread over partitions of equal size by the
//! first bits of their hashes; each partition names the segments and their frames again, so that
//! one partition is all that a lookup needs.

use crate::hash::HashKeys;
use crate::manifest::FilterRef;
use crate::objects::Objects;
use crate::segment::{FrameEntry, SegmentEntry};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use model::limits::{FILTER_KEYS, FILTER_PARTITION_KEYS, FILTER_SEGMENTS};
use model::{Error, Result};

/// Bits of a frame's number in an entry that is being collected.
const FRAME_BITS: u32 = 24;

/// Collects the keys of a run's segments.
#[derive(Debug, Default)]
pub(crate) struct FilterBuilder {
    /// The first 40 bits of a key's hash, then its frame's number: together 8 bytes a key, as this
    /// table is most of what a large backup holds in memory. A filter needs no more of a hash: 7
    /// bits for the partition and 26 within it.
    entries: Vec<u64>,
    segments: Vec<SegmentEntry>,
    frames: u32,
}

impl FilterBuilder {
    /// Adds a segment with the key hashes of each of its frames.
    pub fn add(&mut self, segment: &SegmentEntry, keys: &[Vec<u64>]) {
        for (i, hashes) in keys.iter().enumerate() {
            let frame = u64::from(self.frames) + i as u64;
            self.entries.extend(hashes.iter().map(|h| h >> FRAME_BITS << FRAME_BITS | frame));
        }
        self.frames += keys.len() as u32;
        let mut segment = segment.clone();
        if segment.frames.len() != keys.len() {
            // Whoever reads this must look at the segment's own table; zeros say so.
            segment.frames = vec![FrameEntry { stored: 0, raw: 0, count: 0, check: 0 }; keys.len()];
        }
        self.segments.push(segment);
    }

    pub fn is_full(&self) -> bool {
        self.segments.len() >= FILTER_SEGMENTS
            || self.entries.len() >= FILTER_KEYS
            || self.frames >= 1 << (FRAME_BITS - 1)
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The filter's bytes, and what a [`FilterRef`] says of them: bits and slot.
    pub fn encode(mut self, keys: &HashKeys) -> Result<(Vec<u8>, u32, u32)> {
        self.entries.sort_unstable();
        let wanted = self.entries.len().div_ceil(FILTER_PARTITION_KEYS).max(1);
        let bits = wanted.next_power_of_two().trailing_zeros();
        let mut table = Vec::new();
        write_table(&mut table, &self.segments)?;
        let mut partitions = Vec::with_capacity(1 << bits);
        let mut rest = &self.entries[..];
        for partition in 0..1u64 << bits {
            let end = rest.partition_point(|entry| partition_of(*entry, bits) <= partition);
            let (here, after) = rest.split_at(end);
            rest = after;
            partitions.push(here);
        }
        // Encoded twice, as holding all of them would take half as much memory again as the keys.
        let longest = partitions.iter().map(|entries| encode_partition(&table, entries, bits).len()).max();
        // 12 bytes before each payload: its check and its length.
        let slot = longest.unwrap_or_default() + 12;
        let mut out = Vec::with_capacity(slot * partitions.len());
        for entries in partitions {
            let payload = encode_partition(&table, entries, bits);
            let end = out.len() + slot;
            out.extend_from_slice(&keys.frame(&payload).to_le_bytes());
            out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            out.extend_from_slice(&payload);
            out.resize(end, 0);
        }
        Ok((out, bits, slot as u32))
    }
}

fn partition_of(hash: u64, bits: u32) -> u64 {
    if bits == 0 { 0 } else { hash >> (64 - bits) }
}

/// The part of a hash that is kept: `width` bits after the first `bits`.
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
    pub place: Option<(std::ops::Range<u64>, FrameEntry)>,
}

/// Reads the partition that a key's hash belongs to and finds the frames that may hold the key.
pub(crate) async fn look_up(objects: &Objects, filter: &FilterRef, hash: u64) -> Result<Vec<Candidate>> {
    let broken = || {
        Error::corrupt(format!("the key filter {} is damaged", filter.object))
            .hint("run `rewound verify` to see which points are hit")
    };
    let head = BASE64.decode(&filter.head).map_err(|_| broken())?;
    if filter.bits > 40 || filter.slot < 12 {
        return Err(broken());
    }
    let start = partition_of(hash, filter.bits) * u64::from(filter.slot);
    let slot = objects.read_range(&filter.object, filter.size, &head, start..start + u64::from(filter.slot)).await?;
    let payload = check_slot(&objects.keys, &slot).ok_or_else(broken)?;
    find(payload, hash, filter.bits).ok_or_else(broken)
}

fn check_slot<'a>(keys: &HashKeys, slot: &'a [u8]) -> Option<&'a [u8]> {
    let mut reader = Reader(slot);
    let check = reader.word()?;
    let length = u32::from_le_bytes(reader.bytes(4)?.try_into().ok()?);
    let payload = reader.bytes(u64::from(length))?;
    (keys.frame(payload) == check).then_some(payload)
}

/// The frames that may hold a key with this hash, by path of the segment and number, from the
/// decrypted payload of a partition: for tools and tests that have nothing but the bytes. Never
/// panics, whatever the bytes; none if they are no partition.
pub fn look_in(payload: &[u8], hash: u64, bits: u32) -> Option<Vec<(String, usize)>> {
    if bits >= 64 {
        return None;
    }
    Some(find(payload, hash, bits)?.into_iter().map(|c| (c.object, c.frame)).collect())
}

/// Finds the frames for a hash in a partition's payload.
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

    proptest! {
        #[test]
        fn every_key_is_found(hashes in proptest::collection::vec(any::<u64>(), 1..500)) {
            let mut builder = FilterBuilder::default();
            for (i, chunk) in hashes.chunks(60).enumerate() {
                let frames: Vec<Vec<u64>> = chunk.chunks(20).map(<[u64]>::to_vec).collect();
                builder.add(&segment(&format!("s{i}"), frames.len()), &frames);
            }
            let keys = HashKeys::derive(&[0; 32]);
            let (bytes, bits, slot) = builder.encode(&keys).unwrap();
            for (i, hash) in hashes.iter().enumerate() {
                let at = (partition_of(*hash, bits) * u64::from(slot)) as usize;
                let payload = check_slot(&keys, &bytes[at..at + slot as usize]).unwrap();
                let found = find(payload, *hash, bits).unwrap();
                let (object, frame) = (format!("s{}", i / 60), i % 60 / 20);
                prop_assert!(found.iter().any(|c| c.object == object && c.frame == frame), "{:?}", found);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), hash: u64) {
            let _ = find(&bytes, hash, 3);
            let _ = check_slot(&HashKeys::derive(&[0; 32]), &bytes);
        }
    }

    #[test]
    fn most_absent_keys_find_nothing() {
        let mut builder = FilterBuilder::default();
        let random =
            |i: u64| blake3::hash(&i.to_le_bytes()).as_bytes()[..8].try_into().map(u64::from_le_bytes).unwrap();
        builder.add(&segment("s", 1), &[(0..200_000).map(random).collect()]);
        let keys = HashKeys::derive(&[0; 32]);
        let (bytes, bits, slot) = builder.encode(&keys).unwrap();
        assert_eq!(bits, 1);
        let hits = (1_000_000..1_002_000)
            .map(random)
            .filter(|hash| {
                let at = (partition_of(*hash, bits) * u64::from(slot)) as usize;
                !find(check_slot(&keys, &bytes[at..at + slot as usize]).unwrap(), *hash, bits).unwrap().is_empty()
            })
            .count();
        assert!(hits < 40, "{hits} of 2000");
        assert!(bytes.len() < 200_000 * 4, "{}", bytes.len());
    }
}
