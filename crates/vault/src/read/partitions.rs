//! Records sorted into groups by hash, in little memory: what does not fit goes to a temporary file.

use crate::read::spill::{OpenFile, Place, Spill};
use model::{Error, Result};
use std::collections::VecDeque;

/// Bits of a hash that tell its partition.
const BITS: u32 = 6;
/// Bytes before each record: its hash, and its length.
const HEAD: usize = 12;

/// Takes records, and gives those with equal hashes back together.
#[derive(Debug)]
pub(crate) struct Partitions {
    /// Bytes that are held in memory, and that one group has.
    limit: usize,
    open: OpenFile,
    /// How many bits of the hashes are the same in all records.
    told: u32,
    buckets: Vec<Bucket>,
    held: usize,
    file: Option<Spill>,
}

#[derive(Debug, Default)]
struct Bucket {
    held: Vec<u8>,
    /// Where pieces of it are in the file.
    spilled: Vec<Place>,
    /// Bytes of all that it was given.
    bytes: usize,
}

impl Partitions {
    /// Holds about so many bytes in memory.
    pub fn new(limit: usize, open: OpenFile) -> Self {
        Self::of(limit, open, 0)
    }

    fn of(limit: usize, open: OpenFile, told: u32) -> Self {
        let mut buckets = Vec::new();
        buckets.resize_with(1 << BITS, Bucket::default);
        Partitions { limit, open, told, buckets, held: 0, file: None }
    }

    /// Takes a record.
    pub fn push(&mut self, hash: u64, record: &[u8]) -> Result<()> {
        let bucket = &mut self.buckets[((hash << self.told) >> (64 - BITS)) as usize];
        bucket.held.extend_from_slice(&hash.to_le_bytes());
        bucket.held.extend_from_slice(&(record.len() as u32).to_le_bytes());
        bucket.held.extend_from_slice(record);
        bucket.bytes += HEAD + record.len();
        self.held += HEAD + record.len();
        if self.held > self.limit { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Spill::open(self.open)?),
        };
        for bucket in self.buckets.iter_mut().filter(|b| !b.held.is_empty()) {
            bucket.spilled.push(file.write(&mut std::mem::take(&mut bucket.held))?);
        }
        self.held = 0;
        Ok(())
    }

    /// The groups: records with equal hashes are in the same one.
    pub fn groups(self) -> Groups {
        Groups { all: VecDeque::from([self]) }
    }

    fn read_back(&mut self, place: Place) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match &mut self.file {
            Some(file) => file.read(place, &mut bytes).map(|()| bytes),
            None => Err(Error::bug("a temporary file was not made")),
        }
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
            let (large, told) = (bucket.bytes > partitions.limit, partitions.told + BITS);
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
            let mut smaller = Partitions::of(partitions.limit, partitions.open, told);
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
    use std::io::{Read, Seek, SeekFrom};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn records_with_equal_hashes_stay_together_in_order(
            records in proptest::collection::vec((0..40u64, any::<u8>()), 0..600),
            limit in 20usize..20_000,
            spread: bool,
        ) {
            let mut expected: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
            let mut partitions = Partitions::new(limit, tempfile::tempfile);
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
        let mut partitions = Partitions::new(1000, tempfile::tempfile);
        (0..100).for_each(|i| partitions.push(i << 58, b"a secret that must not be seen").unwrap());
        let mut bytes = Vec::new();
        let mut file = partitions.file.take().unwrap().into_file();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() > 2000 && !bytes.windows(6).any(|w| w == b"secret"));
    }
}
