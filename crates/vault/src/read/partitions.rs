//! Records sorted into groups by hash, in little memory: what does not fit goes to a temporary file
//! without a name, encrypted with a key that nobody keeps.

use model::{Error, Result};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Bits of a hash that tell its partition.
const BITS: u32 = 6;
/// Bytes before each record: its hash, and its length.
const HEAD: usize = 12;

/// Takes records, and gives those with equal hashes back together.
#[derive(Debug)]
pub(crate) struct Partitions {
    /// Bytes that are held in memory, and that one group has.
    limit: usize,
    key: [u8; 32],
    /// How many bits of the hashes are the same in all records.
    told: u32,
    buckets: Vec<Bucket>,
    held: usize,
    file: Option<File>,
    end: u64,
}

#[derive(Debug, Default)]
struct Bucket {
    held: Vec<u8>,
    /// Where pieces of it are in the file: from, and bytes.
    spilled: Vec<(u64, usize)>,
}

impl Bucket {
    fn bytes(&self) -> usize {
        self.held.len() + self.spilled.iter().map(|(_, bytes)| bytes).sum::<usize>()
    }
}

impl Partitions {
    /// Holds about so many bytes in memory. The key must never have been used before.
    pub fn new(limit: usize, key: [u8; 32]) -> Self {
        Self::of(limit, key, 0)
    }

    fn of(limit: usize, key: [u8; 32], told: u32) -> Self {
        let mut buckets = Vec::new();
        buckets.resize_with(1 << BITS, Bucket::default);
        Partitions { limit, key, told, buckets, held: 0, file: None, end: 0 }
    }

    /// Takes a record.
    pub fn push(&mut self, hash: u64, record: &[u8]) -> Result<()> {
        let bucket = &mut self.buckets[((hash << self.told) >> (64 - BITS)) as usize];
        bucket.held.extend_from_slice(&hash.to_le_bytes());
        bucket.held.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bucket.held.extend_from_slice(record);
        self.held += HEAD + record.len();
        if self.held > self.limit { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        let failed = |e| {
            Error::io("writing a temporary file", e).hint("make room in the temporary folder, or set TMPDIR to another")
        };
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile().map_err(failed)?);
        }
        let Some(file) = &mut self.file else { return Err(Error::bug("a temporary file was not made")) };
        for bucket in self.buckets.iter_mut().filter(|b| !b.held.is_empty()) {
            let mut bytes = std::mem::take(&mut bucket.held);
            apply_key(&self.key, self.end, &mut bytes);
            file.write_all(&bytes).map_err(failed)?;
            bucket.spilled.push((self.end, bytes.len()));
            self.end += bytes.len() as u64;
        }
        self.held = 0;
        Ok(())
    }

    /// The groups: records with equal hashes are in the same one.
    pub fn groups(self) -> Groups {
        Groups { all: VecDeque::from([self]) }
    }

    fn read_back(&mut self, (from, length): (u64, usize)) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut read = || -> io::Result<()> {
            let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
            file.seek(SeekFrom::Start(from))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(|e| Error::io("reading a temporary file back", e))?;
        apply_key(&self.key, from, &mut bytes);
        Ok(bytes)
    }
}

/// Encrypts or decrypts what stands at a place of the file, no two things ever at the same one.
fn apply_key(key: &[u8; 32], at: u64, bytes: &mut [u8]) {
    let mut stream = blake3::Hasher::new_keyed(key).update(&at.to_le_bytes()).finalize_xof();
    let mut mask = [0; 4096];
    for piece in bytes.chunks_mut(mask.len()) {
        stream.fill(&mut mask[..piece.len()]);
        piece.iter_mut().zip(&mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// Gives the groups, one by one.
pub(crate) struct Groups {
    all: VecDeque<Partitions>,
}

impl Groups {
    /// The next group; none after the last one.
    pub fn next(&mut self) -> Result<Option<Group>> {
        while let Some(mut partitions) = self.all.pop_front() {
            if partitions.file.is_none() {
                let bytes: Vec<u8> = partitions.buckets.into_iter().flat_map(|b| b.held).collect();
                match bytes.is_empty() {
                    true => continue,
                    false => return Ok(Some(Group(bytes))),
                }
            }
            let Some(mut bucket) = partitions.buckets.pop() else { continue };
            let (large, told) = (bucket.bytes() > partitions.limit, partitions.told + BITS);
            // What was spilled came before what is held.
            let spilled = std::mem::take(&mut bucket.spilled);
            if !large || told + BITS > 64 {
                let mut bytes = Vec::new();
                for at in spilled {
                    bytes.extend(partitions.read_back(at)?);
                }
                bytes.append(&mut bucket.held);
                self.all.push_front(partitions);
                match bytes.is_empty() {
                    true => continue,
                    false => return Ok(Some(Group(bytes))),
                }
            }
            // Another key for another file.
            let place = [told.to_le_bytes(), (partitions.buckets.len() as u32).to_le_bytes()].concat();
            let key = *blake3::keyed_hash(&partitions.key, &place).as_bytes();
            let mut smaller = Partitions::of(partitions.limit, key, told);
            for at in spilled {
                for (hash, record) in Group(partitions.read_back(at)?).records() {
                    smaller.push(hash, record)?;
                }
            }
            for (hash, record) in Group(std::mem::take(&mut bucket.held)).records() {
                smaller.push(hash, record)?;
            }
            self.all.push_front(partitions);
            self.all.push_front(smaller);
        }
        Ok(None)
    }
}

/// Records.
pub(crate) struct Group(Vec<u8>);

impl Group {
    /// The records with their hashes, in the order in which those of one hash were pushed.
    pub fn records(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (head, after) = rest.split_at_checked(HEAD)?;
            let hash = u64::from_le_bytes(head[..8].try_into().ok()?);
            let length = u32::from_le_bytes(head[8..].try_into().ok()?);
            let (record, after) = after.split_at_checked(length as usize)?;
            rest = after;
            Some((hash, record))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn records_with_equal_hashes_stay_together_in_order(
            records in proptest::collection::vec((0..40u64, any::<u8>()), 0..600),
            limit in 20usize..20_000,
            spread: bool,
        ) {
            let mut expected: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
            let mut partitions = Partitions::new(limit, [7; 32]);
            for (number, byte) in records {
                let hash = if spread { number.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { number };
                let record = vec![byte; usize::from(byte % 50)];
                partitions.push(hash, &record).unwrap();
                expected.entry(hash).or_default().push(record);
            }
            let mut got: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
            let mut groups = partitions.groups();
            while let Some(group) = groups.next().unwrap() {
                let mut of_group: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
                group.records().for_each(|(hash, record)| of_group.entry(hash).or_default().push(record.to_vec()));
                // Hashes that begin alike cannot be told apart any further.
                prop_assert!(!spread || of_group.len() == 1 || group.0.len() <= limit + 64, "{} of {limit}", group.0.len());
                for (hash, records) in of_group {
                    prop_assert!(got.insert(hash, records).is_none(), "a hash in two groups");
                }
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn the_file_shows_nothing() {
        let mut partitions = Partitions::new(1000, [1; 32]);
        (0..100).for_each(|i| partitions.push(i << 58, b"a secret that must not be seen").unwrap());
        let mut bytes = Vec::new();
        let mut file = partitions.file.take().unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() > 2000 && !bytes.windows(6).any(|w| w == b"secret"));
    }
}
