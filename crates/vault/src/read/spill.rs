//! What does not fit into memory: a temporary file that only this process can read, and records
//! sorted with its help.

use chacha20poly1305::aead::{AeadInPlace, KeyInit, OsRng};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use model::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Makes a temporary file.
pub(crate) type OpenFile = fn() -> io::Result<File>;

/// Bytes that authenticate what was written at once.
const TAG: usize = 16;
/// The most that is written at once of a sorted run: so much of each run is in memory when they are
/// merged.
const CHUNK: usize = 64 << 10;

/// A temporary file without a name, which goes with the process.
///
/// Documents of an encrypted vault must not reach a disk in the clear, and a flipped bit in a temporary
/// file must not reach a restore. So what is written is encrypted and authenticated with a key that is
/// nowhere but in this value. The file only grows: where something stands in it is used once, and so can
/// be its nonce.
pub(crate) struct Spill {
    file: File,
    cipher: ChaCha20Poly1305,
    end: u64,
}

impl std::fmt::Debug for Spill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spill").field("end", &self.end).finish_non_exhaustive()
    }
}

/// Where something stands in the file, and how many plain bytes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    at: u64,
    length: u32,
}

impl Spill {
    pub fn open(open: OpenFile) -> Result<Self> {
        let file = open().map_err(cannot_write)?;
        Ok(Spill { file, cipher: ChaCha20Poly1305::new(&ChaCha20Poly1305::generate_key(&mut OsRng)), end: 0 })
    }

    /// Writes some bytes; the buffer is empty afterwards. What is written goes to the page cache, so
    /// this may be done on a thread that others wait for.
    pub fn write(&mut self, bytes: &mut Vec<u8>) -> Result<Place> {
        let length = u32::try_from(bytes.len()).map_err(|_| Error::bug("too much for a temporary file at once"))?;
        let place = Place { at: self.end, length };
        let tag = self.cipher.encrypt_in_place_detached(&nonce(place), b"", bytes);
        bytes.extend_from_slice(&tag.map_err(|_| Error::bug("encrypting a temporary file failed"))?);
        self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(bytes)).map_err(cannot_write)?;
        self.end += bytes.len() as u64;
        bytes.clear();
        Ok(place)
    }

    /// Reads what was written into a buffer, in the place of what is there.
    pub fn read(&mut self, place: Place, into: &mut Vec<u8>) -> Result<()> {
        into.resize(place.length as usize + TAG, 0);
        let read = self.file.seek(SeekFrom::Start(place.at)).and_then(|_| self.file.read_exact(into));
        read.map_err(|e| Error::io("reading a temporary file back", e))?;
        let tag = Tag::clone_from_slice(&into[place.length as usize..]);
        into.truncate(place.length as usize);
        self.cipher.decrypt_in_place_detached(&nonce(place), b"", into, &tag).map_err(|_| {
            Error::corrupt("a temporary file does not hold what was written to it")
                .hint("the disk of the temporary folder is not sound: set TMPDIR to a folder on another one")
        })
    }
}

#[cfg(test)]
impl Spill {
    /// The file itself, to look at what is in it.
    pub fn into_file(self) -> File {
        self.file
    }
}

fn nonce(place: Place) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[..8].copy_from_slice(&place.at.to_le_bytes());
    nonce
}

fn cannot_write(cause: io::Error) -> Error {
    Error::io("writing a temporary file", cause)
        .hint("make room in the temporary folder, set TMPDIR to another one, or allow more memory")
}

/// What records are sorted by.
pub(crate) type SortKey = [u64; 2];

/// Sorts records by their keys; those with equal keys stay in the order in which they came.
#[derive(Debug)]
pub(crate) struct Sorter {
    limit: usize,
    open: OpenFile,
    held: Held,
    runs: Vec<VecDeque<Place>>,
    spill: Option<Spill>,
    count: u64,
    bytes: u64,
}

/// Records in memory.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: Vec<u8>,
    index: Vec<Item>,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    key: SortKey,
    start: u32,
    length: u32,
}

impl Held {
    fn size(&self) -> usize {
        self.bytes.len() + self.index.len() * size_of::<Item>()
    }

    fn sort(&mut self) {
        self.index.sort_unstable_by_key(|i| (i.key, i.start));
    }

    fn record(&self, item: Item) -> &[u8] {
        &self.bytes[item.start as usize..][..item.length as usize]
    }
}

impl Sorter {
    /// Holds about so many bytes in memory; the rest goes to a file.
    pub fn new(limit: usize, open: OpenFile) -> Self {
        // Places in memory are told in 32 bits.
        let limit = limit.min(1 << 31);
        Sorter { limit, open, held: Held::default(), runs: Vec::new(), spill: None, count: 0, bytes: 0 }
    }

    /// Takes a record.
    pub fn push(&mut self, key: SortKey, record: &[u8]) -> Result<()> {
        let (start, length) = (self.held.bytes.len() as u32, record.len() as u32);
        self.held.bytes.extend_from_slice(record);
        // An empty record would leave no trace of when it came.
        if record.is_empty() {
            self.held.bytes.push(0);
        }
        self.held.index.push(Item { key, start, length });
        self.count += 1;
        self.bytes += u64::from(length);
        if self.held.size() > self.limit { self.write_run() } else { Ok(()) }
    }

    /// How many records it has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write_run(&mut self) -> Result<()> {
        if self.held.index.is_empty() {
            return Ok(());
        }
        let spill = match &mut self.spill {
            Some(spill) => spill,
            none => none.insert(Spill::open(self.open)?),
        };
        self.held.sort();
        let target = (self.limit / 16).clamp(256, CHUNK);
        let (mut run, mut chunk) = (VecDeque::new(), Vec::new());
        for item in &self.held.index {
            chunk.extend_from_slice(&item.key[0].to_le_bytes());
            chunk.extend_from_slice(&item.key[1].to_le_bytes());
            chunk.extend_from_slice(&item.length.to_le_bytes());
            chunk.extend_from_slice(self.held.record(*item));
            if chunk.len() >= target {
                run.push_back(spill.write(&mut chunk)?);
            }
        }
        if !chunk.is_empty() {
            run.push_back(spill.write(&mut chunk)?);
        }
        self.runs.push(run);
        self.held.bytes.clear();
        self.held.index.clear();
        Ok(())
    }

    /// The records, sorted.
    pub fn finish(mut self) -> Result<Sorted> {
        if self.runs.is_empty() {
            self.held.sort();
            return Ok(Sorted::Held(self.held, 0));
        }
        self.write_run()?;
        drop(std::mem::take(&mut self.held));
        let Some(spill) = self.spill else { return Err(Error::bug("runs without a temporary file")) };
        let mut merge = Merge { spill, runs: Vec::with_capacity(self.runs.len()), next: BinaryHeap::new(), last: None };
        for (number, places) in self.runs.into_iter().enumerate() {
            merge.runs.push(Run { places, chunk: Vec::new(), at: 0 });
            merge.advance(number)?;
        }
        Ok(Sorted::Merged(merge))
    }
}

/// Sorted records.
#[derive(Debug)]
pub(crate) enum Sorted {
    Held(Held, usize),
    Merged(Merge),
}

/// Merges sorted runs.
#[derive(Debug)]
pub(crate) struct Merge {
    spill: Spill,
    runs: Vec<Run>,
    /// The first record of each run. Of equal keys the older run's comes first.
    next: BinaryHeap<Reverse<(SortKey, usize)>>,
    /// The run whose first record was given last.
    last: Option<usize>,
}

#[derive(Debug)]
struct Run {
    places: VecDeque<Place>,
    chunk: Vec<u8>,
    at: usize,
}

/// Bytes before each record in a run: its key and its length.
const HEAD: usize = 20;

impl Sorted {
    /// Bytes that are in memory.
    pub fn held(&self) -> usize {
        match self {
            Sorted::Held(held, _) => held.size(),
            Sorted::Merged(merge) => merge.runs.len() * CHUNK,
        }
    }

    /// The next record with its key.
    pub fn next(&mut self) -> Result<Option<(SortKey, &[u8])>> {
        match self {
            Sorted::Held(held, at) => {
                let Some(item) = held.index.get(*at).copied() else { return Ok(None) };
                *at += 1;
                Ok(Some((item.key, held.record(item))))
            }
            Sorted::Merged(merge) => merge.next(),
        }
    }
}

impl Merge {
    /// Makes the record after the one that `at` shows the run's next one.
    fn advance(&mut self, number: usize) -> Result<()> {
        let run = &mut self.runs[number];
        if run.at >= run.chunk.len() {
            let Some(place) = run.places.pop_front() else {
                run.chunk = Vec::new();
                return Ok(());
            };
            self.spill.read(place, &mut run.chunk)?;
            run.at = 0;
        }
        let (key, _) = head(&run.chunk, run.at)?;
        self.next.push(Reverse((key, number)));
        Ok(())
    }

    fn next(&mut self) -> Result<Option<(SortKey, &[u8])>> {
        if let Some(last) = self.last.take() {
            self.advance(last)?;
        }
        let Some(Reverse((key, number))) = self.next.pop() else { return Ok(None) };
        self.last = Some(number);
        let run = &mut self.runs[number];
        let (_, length) = head(&run.chunk, run.at)?;
        let start = run.at + HEAD;
        run.at = start + length;
        let record = run.chunk.get(start..run.at).ok_or_else(cut)?;
        Ok(Some((key, record)))
    }
}

fn head(chunk: &[u8], at: usize) -> Result<(SortKey, usize)> {
    let head: &[u8; HEAD] = chunk.get(at..at + HEAD).and_then(|h| h.try_into().ok()).ok_or_else(cut)?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    Ok(([word(0), word(8)], u32::from_le_bytes(std::array::from_fn(|i| head[16 + i])) as usize))
}

fn cut() -> Error {
    Error::bug("a sorted run ends within a record")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::ErrorKind;
    use proptest::prelude::*;

    fn all(mut sorted: Sorted) -> Vec<(SortKey, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some((key, record)) = sorted.next().unwrap() {
            all.push((key, record.to_vec()));
        }
        all
    }

    proptest! {
        #[test]
        fn records_are_sorted_and_equal_ones_stay_in_order(
            records in proptest::collection::vec((0..9u64, 0..4u64, any::<u8>()), 0..400),
            limit in prop_oneof![Just(1usize), 100usize..5000, Just(1 << 20)],
        ) {
            let mut sorter = Sorter::new(limit, tempfile::tempfile);
            let mut expected: Vec<(SortKey, Vec<u8>)> = Vec::new();
            for (a, b, byte) in records {
                let record = vec![byte; usize::from(byte % 40)];
                sorter.push([a, b], &record).unwrap();
                expected.push(([a, b], record));
            }
            prop_assert_eq!(sorter.count(), expected.len() as u64);
            expected.sort_by_key(|(key, _)| *key);
            prop_assert_eq!(all(sorter.finish().unwrap()), expected);
        }
    }

    #[test]
    fn memory_is_bounded_while_records_come() {
        let mut sorter = Sorter::new(1 << 20, tempfile::tempfile);
        for i in 0..300_000u64 {
            sorter.push([i.wrapping_mul(0x9e37_79b9_7f4a_7c15), 0], &[7; 30]).unwrap();
            assert!(sorter.held.bytes.len() <= 1 << 20);
        }
        assert!(sorter.runs.len() > 10);
        assert!(sorter.held.bytes.capacity() + sorter.held.index.capacity() * size_of::<Item>() <= 2 << 20);
        let sorted = all(sorter.finish().unwrap());
        assert_eq!(sorted.len(), 300_000);
        assert!(sorted.is_sorted_by_key(|(key, _)| *key));
    }

    #[test]
    fn the_file_shows_nothing_and_is_checked() {
        let secret = b"a secret that must not be seen".to_vec();
        let mut spill = Spill::open(tempfile::tempfile).unwrap();
        let places: Vec<Place> = (0..100).map(|_| spill.write(&mut secret.clone()).unwrap()).collect();
        let mut bytes = Vec::new();
        spill.file.seek(SeekFrom::Start(0)).unwrap();
        spill.file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 100 * (secret.len() + TAG));
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
        // The same bytes are others at every place.
        assert_ne!(bytes[..20], bytes[secret.len() + TAG..][..20]);
        let mut back = Vec::new();
        for place in &places {
            spill.read(*place, &mut back).unwrap();
            assert_eq!(back, secret);
        }
        let at = places[50].at;
        spill.file.seek(SeekFrom::Start(at + 3)).unwrap();
        spill.file.write_all(&[bytes[at as usize + 3] ^ 1]).unwrap();
        assert_eq!(spill.read(places[50], &mut back).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(spill.read(places[51], &mut back).is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_told() {
        let mut sorter = Sorter::new(100, || File::options().read(true).write(true).open("/dev/full"));
        let error = (0..100).find_map(|i| sorter.push([i, 0], b"record").err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::Full);
        assert!(error.to_string().contains("temporary file"), "{error}");
        assert!(error.hint_text().unwrap().contains("TMPDIR"));
        let mut sorter = Sorter::new(100, || Err(io::ErrorKind::PermissionDenied.into()));
        let error = (0..100).find_map(|i| sorter.push([i, 0], b"record").err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::Credentials);
    }
}
