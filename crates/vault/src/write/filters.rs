//! The keys of a run on their way into key filters.
//!
//! They are collected in buckets by the first bits of their hashes. Buckets that fill up go to a
//! temporary file, so that memory does not grow with the number of keys; at the end the buckets are
//! sorted, a few at a time, and become filters.

use crate::filter::{self, Encoded, Encoder, FRAME_BITS};
use crate::hash::HashKeys;
use crate::manifest::Shard;
use crate::segment::{FrameEntry, SegmentEntry};
use model::limits::{FILTER_BUCKET, FILTER_KEYS, FILTER_SEGMENTS, FILTER_SHARD_KEYS};
use model::{Error, Result};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Buckets are numbered by this many bits: as many as the largest collection of keys can have
/// shards.
const BUCKET_BITS: u32 = 6;

/// Collects the keys of up to [`FILTER_SEGMENTS`] segments.
#[derive(Debug)]
pub(crate) struct FilterBuilder {
    buckets: Vec<Bucket>,
    spill: Spill,
    /// The number of each segment in the run, and of its frames.
    segments: Vec<(u32, u32)>,
    frames: u32,
    keys: usize,
    /// Keys that a bucket keeps in memory, and that a filter holds at most.
    sizes: (usize, usize),
}

#[derive(Debug, Default)]
struct Bucket {
    held: Vec<u64>,
    /// Where in the file a full bucket's keys went, each time.
    spilled: Vec<u64>,
}

impl Default for FilterBuilder {
    fn default() -> Self {
        FilterBuilder::new((FILTER_BUCKET, FILTER_SHARD_KEYS), tempfile::tempfile)
    }
}

impl FilterBuilder {
    fn new(sizes: (usize, usize), open: fn() -> io::Result<File>) -> Self {
        FilterBuilder {
            buckets: Vec::new(),
            spill: Spill { open, file: None, end: 0, failed: false },
            segments: Vec::new(),
            frames: 0,
            keys: 0,
            sizes,
        }
    }

    /// Adds a segment by its number in the run, with the key hashes of each of its frames. The
    /// order decides what the filters look like.
    pub fn add(&mut self, segment: u32, keys: &[Vec<u64>]) {
        self.buckets.resize_with(1 << BUCKET_BITS, Bucket::default);
        for (frame, hashes) in (self.frames..).zip(keys) {
            for hash in hashes {
                let bucket = &mut self.buckets[(hash >> (64 - BUCKET_BITS)) as usize];
                bucket.held.push(filter::entry(*hash, frame));
                if bucket.held.len() >= self.sizes.0 {
                    self.spill.take(bucket, self.sizes.0);
                }
            }
            self.keys += hashes.len();
        }
        self.frames += keys.len() as u32;
        self.segments.push((segment, keys.len() as u32));
    }

    pub fn is_full(&self) -> bool {
        self.segments.len() >= FILTER_SEGMENTS || self.keys >= FILTER_KEYS || self.frames >= 1 << (FRAME_BITS - 1)
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Its segments out of those of the run; none if one is not stored yet.
    pub fn segments_of(&self, stored: &[Option<SegmentEntry>]) -> Option<Vec<SegmentEntry>> {
        let entry = |&(number, frames): &(u32, u32)| {
            let mut segment = stored.get(number as usize)?.clone()?;
            if segment.frames.len() != frames as usize {
                // Whoever reads this must look at the segment's own table; zeros say so.
                segment.frames = vec![FrameEntry { stored: 0, raw: 0, count: 0, check: 0 }; frames as usize];
            }
            Some(segment)
        };
        self.segments.iter().map(entry).collect()
    }

    /// The filters of these keys, to be made one by one.
    pub fn finish(self, segments: Vec<SegmentEntry>) -> Filters {
        let wanted = self.keys.div_ceil(self.sizes.1).max(1);
        let bits = wanted.next_power_of_two().trailing_zeros().min(BUCKET_BITS);
        Filters { keys: self, segments, bits, next: 0 }
    }
}

/// Makes filters of collected keys: one, or where there are many keys, one of each shard.
#[derive(Debug)]
pub(crate) struct Filters {
    keys: FilterBuilder,
    segments: Vec<SegmentEntry>,
    bits: u32,
    next: u64,
}

impl Filters {
    /// The next filter; none after the last one.
    pub fn encode_next(&mut self, keys: &HashKeys) -> Result<Option<Encoded>> {
        if self.next >> self.bits > 0 {
            return Ok(None);
        }
        let shard = Shard { bits: self.bits, prefix: self.next };
        self.next += 1;
        let FilterBuilder { buckets, spill, sizes, .. } = &mut self.keys;
        let first = buckets.len() >> self.bits;
        let buckets = &mut buckets[shard.prefix as usize * first..][..first];
        let count = |buckets: &[Bucket]| buckets.iter().map(|b| b.held.len() + b.spilled.len() * sizes.0).sum();
        let mut encoder = Encoder::new(keys, &self.segments, shard, count(buckets))?;
        // No more than a partition's keys at a time, or a bucket's if it has those of several.
        let partitions = 1 << encoder.told().saturating_sub(BUCKET_BITS);
        for together in buckets.chunks_mut(1 << BUCKET_BITS.saturating_sub(encoder.told())) {
            let mut entries = Vec::with_capacity(count(together));
            for bucket in together {
                entries.append(&mut std::mem::take(&mut bucket.held));
                for at in &bucket.spilled {
                    spill.give(&mut entries, *at, sizes.0)?;
                }
            }
            entries.sort_unstable();
            encoder.add(partitions, &entries);
        }
        Ok(Some(encoder.finish()))
    }
}

/// A temporary file without a name, which goes with the process. It holds nothing but parts of
/// keyed hashes, which say nothing to anyone without the vault's naming secret, and the numbers of
/// frames.
#[derive(Debug)]
struct Spill {
    open: fn() -> io::Result<File>,
    file: Option<File>,
    end: u64,
    failed: bool,
}

impl Spill {
    /// Takes a bucket's keys out of memory. Where there is no room for them they stay there: a
    /// backup does not fail for want of temporary space. They are few and go to the page cache, so
    /// this may be done on a thread that others wait for.
    fn take(&mut self, bucket: &mut Bucket, count: usize) {
        if self.failed {
            return;
        }
        let bytes: Vec<u8> = bucket.held[..count].iter().flat_map(|entry| entry.to_le_bytes()).collect();
        match self.write(&bytes) {
            Ok(()) => {
                bucket.spilled.push(self.end);
                bucket.held.clear();
                self.end += bytes.len() as u64;
            }
            Err(e) => {
                tracing::warn!("keys cannot be kept in a temporary file and stay in memory, 8 bytes a document: {e}");
                self.failed = true;
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert((self.open)()?),
        };
        file.seek(SeekFrom::Start(self.end))?;
        file.write_all(bytes)
    }

    /// Gives keys back that were taken.
    fn give(&mut self, entries: &mut Vec<u64>, at: u64, count: usize) -> Result<()> {
        let mut bytes = vec![0; count * 8];
        let mut read = || {
            let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(|e: io::Error| {
            Error::io("reading keys back from a temporary file", e)
                .hint("run the backup again: it goes on with what is stored")
        })?;
        entries.extend(bytes.chunks_exact(8).filter_map(|b| b.try_into().ok()).map(u64::from_le_bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::buffers::Buffers;
    use crate::crypto::Cipher;
    use crate::filter::look_up;
    use crate::manifest::FilterRef;
    use crate::objects::Objects;
    use crate::storage::{MemoryStorage, Storage};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn segment(number: usize, frames: usize) -> SegmentEntry {
        let entry = |i: usize| FrameEntry { stored: 10 + i as u32, raw: 100, count: 1, check: i as u64 };
        SegmentEntry {
            object: format!("s{number}"),
            size: 1000,
            head: String::new(),
            frames: (0..frames).map(entry).collect(),
            raw: 1,
            counts: vec![],
        }
    }

    /// Frames of 20 keys, segments of 3 frames.
    fn build(hashes: &[u64], sizes: (usize, usize), open: fn() -> io::Result<File>) -> Filters {
        let mut builder = FilterBuilder::new(sizes, open);
        let mut stored = Vec::new();
        for (number, chunk) in hashes.chunks(60).enumerate() {
            let frames: Vec<Vec<u64>> = chunk.chunks(20).map(<[u64]>::to_vec).collect();
            assert!(builder.segments_of(&stored).is_some());
            builder.add(number as u32, &frames);
            assert!(builder.segments_of(&stored).is_none());
            stored.push(Some(segment(number, frames.len())));
        }
        let segments = builder.segments_of(&stored).unwrap();
        builder.finish(segments)
    }

    fn encode_all(mut filters: Filters) -> Vec<Encoded> {
        let keys = HashKeys::derive(&[0; 32]);
        std::iter::from_fn(|| filters.encode_next(&keys).unwrap()).collect()
    }

    /// Looks every key up, as `find` does.
    async fn all_found(hashes: &[u64], filters: &[Encoded]) {
        let storage = Arc::new(MemoryStorage::new(Arc::new(model::SystemClock)));
        let objects = Objects {
            storage: storage.clone(),
            keys: HashKeys::derive(&[0; 32]),
            cipher: Cipher::plain(),
            buffers: Buffers::of_segments(),
        };
        let mut references = Vec::new();
        for (i, Encoded { bytes, shard, bits, slot }) in filters.iter().enumerate() {
            let object = format!("f{i}");
            storage.create(&object, bytes.clone().into()).await.unwrap();
            let (size, head) = (bytes.len() as u64, String::new());
            references.push(FilterRef { object, size, head, shard: *shard, bits: *bits, slot: *slot });
        }
        for (i, hash) in hashes.iter().enumerate() {
            let covering: Vec<_> = references.iter().filter(|f| f.shard.covers(*hash)).collect();
            assert_eq!(covering.len(), 1);
            let found = look_up(&objects, covering[0], *hash).await.unwrap();
            let (object, frame) = (format!("s{}", i / 60), i % 60 / 20);
            assert!(found.iter().any(|c| c.object == object && c.frame == frame), "{found:?}");
            for other in references.iter().filter(|f| !f.shard.covers(*hash)) {
                assert!(look_up(&objects, other, *hash).await.unwrap().is_empty());
            }
        }
    }

    fn no_file() -> io::Result<File> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    proptest! {
        #[test]
        fn every_key_is_found(
            hashes in proptest::collection::vec(any::<u64>(), 1..500),
            bucket in 1usize..10,
            shard in prop_oneof![Just(1usize), 10usize..600],
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let spilled = encode_all(build(&hashes, (bucket, shard), tempfile::tempfile));
            let wanted = hashes.len().div_ceil(shard).next_power_of_two().min(64);
            prop_assert_eq!(spilled.len(), wanted);
            runtime.block_on(all_found(&hashes, &spilled));
            // Where the keys were kept makes no difference.
            let held = encode_all(build(&hashes, (bucket, shard), no_file));
            for (a, b) in spilled.iter().zip(&held) {
                prop_assert_eq!(&a.bytes, &b.bytes);
                prop_assert_eq!((a.shard, a.bits, a.slot), (b.shard, b.bits, b.slot));
            }
        }
    }

    #[test]
    fn few_keys_stay_in_memory_and_make_one_filter_of_all() {
        let hashes: Vec<u64> = (0..200u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let filters = build(&hashes, (FILTER_BUCKET, FILTER_SHARD_KEYS), || panic!("nothing need be spilled"));
        let filters = encode_all(filters);
        assert_eq!(filters.len(), 1);
        assert!(filters[0].shard.is_whole());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_no_end() {
        let full = || File::options().read(true).write(true).open("/dev/full");
        let hashes: Vec<u64> = (0..3000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let filters = build(&hashes, (8, 1000), full);
        assert!(filters.keys.spill.failed);
        let (kept, spilled) = (encode_all(filters), encode_all(build(&hashes, (8, 1000), tempfile::tempfile)));
        assert!(kept.iter().map(|f| &f.bytes).eq(spilled.iter().map(|f| &f.bytes)));
    }

    #[test]
    fn memory_is_bounded_while_keys_come() {
        let mut builder = FilterBuilder::default();
        let mut hash = 1u64;
        for number in 0..20 {
            let mut frame = Vec::new();
            for _ in 0..100_000 {
                hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                frame.push(hash);
            }
            builder.add(number, &[frame]);
        }
        assert_eq!(builder.keys, 2_000_000);
        assert!(!builder.spill.failed);
        let capacity: usize = builder.buckets.iter().map(|b| b.held.capacity() * 8).sum();
        assert!(capacity <= 2 << 20, "{capacity}");
    }
}
