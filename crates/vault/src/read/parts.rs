//! More changes than memory holds: in a temporary file, in parts by the hashes of their keys, so that
//! memory holds each part. Documents that may have changed are put aside beside them; then part after
//! part both come back.

use crate::read::bloom::Bloom;
use crate::read::change::{Change, Records};
use crate::read::overlay::Overlay;
use crate::read::spill::{OpenFile, Place, Sorter, Spill};
use crate::read::table::Table;
use bytes::Bytes;
use model::{AttachmentRef, Batch, CollectionId, Doc, Encoding, EngineTime, Error, Kind, Result};

/// The fewest and the most parts.
const PARTS: [usize; 2] = [16, 512];
/// So much of the memory a part is to take: what is near to the processor is found sooner.
const SHARE: usize = 32;
/// The fewest and the most bytes of one part that are written at once.
const CHUNK: [usize; 2] = [256, 128 << 10];

/// About how many changes there are, and how many bytes they take in a table.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected {
    pub changes: u64,
    pub bytes: usize,
}

/// Changes of many keys, gathered in any order, and documents that wait for them.
#[derive(Debug)]
pub(crate) struct Parts {
    memory: usize,
    open: OpenFile,
    spill: Spill,
    chunk: usize,
    parts: Vec<Part>,
    changed: Bloom,
    likes: Vec<Like>,
    /// What was read back last.
    read: Vec<u8>,
}

/// The changes and the documents of some keys.
#[derive(Debug, Default)]
struct Part {
    changes: Side,
    documents: Side,
}

/// Records: those that are not written yet, and where the others are.
#[derive(Debug, Default)]
struct Side {
    held: Vec<u8>,
    spilled: Vec<Place>,
}

/// What documents that wait have in common.
#[derive(Debug, Clone, PartialEq)]
struct Like {
    collection: CollectionId,
    kind: Kind,
    encoding: Encoding,
    read: EngineTime,
}

/// Documents that have waited for the changes of their part.
#[derive(Debug)]
pub(crate) struct Waited {
    pub batch: Batch,
    /// When they were read.
    pub read: EngineTime,
    pub hashes: Vec<u64>,
}

/// The places of a part's documents.
#[derive(Debug)]
pub(crate) struct Places(std::vec::IntoIter<Place>);

impl Side {
    /// Writes what is held, if that is as much as a chunk.
    fn settle(&mut self, chunk: usize, spill: &mut Spill) -> Result<()> {
        if self.held.len() < chunk {
            return Ok(());
        }
        self.spilled.push(spill.write(&mut self.held)?);
        // A large document must not leave its room behind in each part.
        self.held.shrink_to(2 * chunk);
        Ok(())
    }
}

/// By the last bits: tables go by the first.
fn part_of(hash: u64, parts: &[Part]) -> usize {
    hash as usize & (parts.len() - 1)
}

impl Parts {
    /// Parts for about so many changes, in about so many bytes of memory.
    pub fn new(expected: Expected, memory: usize, open: OpenFile) -> Result<Self> {
        let count = expected.bytes.saturating_mul(SHARE) / memory.max(1);
        let count = count.clamp(PARTS[0], PARTS[1]).next_power_of_two();
        let mut parts = Vec::new();
        parts.resize_with(count, Part::default);
        Ok(Parts {
            memory,
            open,
            spill: Spill::open(open)?,
            chunk: (memory / 8 / count).clamp(CHUNK[0], CHUNK[1]),
            parts,
            changed: Bloom::new(expected.changes, memory / 2),
            likes: Vec::new(),
            read: Vec::new(),
        })
    }

    /// Brings near to the processor what tells of some hashes.
    pub fn near(&self, hashes: &[u64]) {
        self.changed.near(hashes);
    }

    /// Takes a change.
    pub fn push(&mut self, hash: u64, change: &Change<'_>) -> Result<()> {
        self.changed.insert(hash);
        let part = part_of(hash, &self.parts);
        let side = &mut self.parts[part].changes;
        side.held.extend_from_slice(&hash.to_le_bytes());
        change.write(&mut side.held);
        side.settle(self.chunk, &mut self.spill)
    }

    /// Which of the keys with these hashes may have changed.
    pub fn may_hold(&self, hashes: &[u64], into: &mut Vec<usize>) {
        self.near(hashes);
        into.clear();
        into.extend((0..hashes.len()).filter(|i| self.changed.may_hold(hashes[*i])));
    }

    /// Puts some documents of a batch, read at one time, aside until the changes of their part come.
    pub fn put_aside(&mut self, batch: &Batch, read: EngineTime, hashes: &[u64], which: &[usize]) -> Result<()> {
        let like =
            Like { collection: batch.collection.clone(), kind: batch.kind.clone(), encoding: batch.encoding, read };
        let number = match self.likes.iter().rposition(|l| *l == like) {
            Some(number) => number,
            None => {
                self.likes.push(like);
                self.likes.len() - 1
            }
        };
        for i in which {
            let (hash, key, body) = (hashes[*i], batch.key_of(*i), batch.body_of(*i));
            let part = part_of(hash, &self.parts);
            let side = &mut self.parts[part].documents;
            side.held.extend_from_slice(&hash.to_le_bytes());
            for half in [number, key.len(), body.len()] {
                side.held.extend_from_slice(&(half as u32).to_le_bytes());
            }
            side.held.extend_from_slice(key);
            side.held.extend_from_slice(body);
            if let Some(attachment) = batch.attachments.get(*i) {
                side.held.extend_from_slice(&attachment.digest);
                side.held.extend_from_slice(&attachment.length.to_le_bytes());
                side.held.extend_from_slice(&(attachment.place.len() as u32).to_le_bytes());
                side.held.extend_from_slice(attachment.place.as_bytes());
            }
            side.settle(self.chunk, &mut self.spill)?;
        }
        Ok(())
    }

    /// Writes what is held.
    pub fn settle(&mut self) -> Result<()> {
        for part in &mut self.parts {
            for side in [&mut part.changes, &mut part.documents] {
                if !side.held.is_empty() {
                    side.settle(0, &mut self.spill)?;
                }
                side.held = Vec::new();
            }
        }
        Ok(())
    }

    /// Says that all documents have come that may wait.
    pub fn all_have_come(&mut self) -> Result<()> {
        self.changed = Bloom::new(0, 0);
        self.settle()
    }

    /// The changes of the next part, and where its documents are; none after the last one.
    pub fn next_part(&mut self) -> Result<Option<(Overlay, Places)>> {
        let Some(part) = self.parts.pop() else { return Ok(None) };
        let overlay = self.overlay(&part.changes)?;
        Ok(Some((overlay, Places(part.documents.spilled.into_iter()))))
    }

    fn overlay(&mut self, changes: &Side) -> Result<Overlay> {
        let mut table = Table::new(self.memory / 2);
        if self.each(changes, |hash, change, _| table.push(hash, change))? {
            return Ok(Overlay::of_table(table));
        }
        // Next to nothing but changes of very few keys makes parts so unlike.
        drop(table);
        let mut sorter = Sorter::new(self.memory / 4, self.open);
        self.each(changes, |hash, change, record| sorter.push([hash, change.time], record).map(|()| true))?;
        Overlay::sorted(sorter, self.memory / 2, self.open)
    }

    /// Shows changes with their hashes, in the order in which they came, as long as that is wanted;
    /// tells whether it was to the end.
    fn each(&mut self, side: &Side, mut show: impl FnMut(u64, &Change<'_>, &[u8]) -> Result<bool>) -> Result<bool> {
        for place in &side.spilled {
            self.spill.read(*place, &mut self.read)?;
            let mut rest = &self.read[..];
            while let Some((hash, after)) = rest.split_first_chunk() {
                let mut records = Records::new(after, 0);
                let (change, _) = records.expect()?;
                let (record, after) = after.split_at(records.at);
                if !show(u64::from_le_bytes(*hash), &change, record)? {
                    return Ok(false);
                }
                rest = after;
            }
        }
        Ok(true)
    }

    /// The next documents of a part; none after the last ones.
    pub fn documents(&mut self, places: &mut Places) -> Result<Option<Vec<Waited>>> {
        let Some(place) = places.0.next() else { return Ok(None) };
        let mut chunk = Vec::new();
        self.spill.read(place, &mut chunk)?;
        let mut reader = Reader { chunk: chunk.into(), at: 0 };
        let mut all: Vec<Waited> = Vec::new();
        let mut last = None;
        while reader.at < reader.chunk.len() {
            let (hash, number) = (u64::from_le_bytes(reader.array()?), reader.number()?);
            let like = self.likes.get(number).ok_or_else(cut)?;
            if last.replace(number) != Some(number) {
                all.push(Waited { batch: like.batch(&reader.chunk), read: like.read, hashes: Vec::new() });
            }
            let waited = all.last_mut().ok_or_else(cut)?;
            waited.hashes.push(hash);
            waited.batch.docs.push(reader.document()?);
            if like.kind == Kind::Attachment {
                waited.batch.attachments.push(reader.attachment()?);
            }
        }
        Ok(Some(all))
    }
}

impl Like {
    /// A batch without documents, in a buffer.
    fn batch(&self, buffer: &Bytes) -> Batch {
        Batch {
            collection: self.collection.clone(),
            kind: self.kind.clone(),
            encoding: self.encoding,
            body: buffer.clone(),
            keys: Some(buffer.clone()),
            docs: Vec::new(),
            attachments: Vec::new(),
        }
    }
}

/// Reads the documents of a chunk.
struct Reader {
    chunk: Bytes,
    at: usize,
}

impl Reader {
    fn take(&mut self, length: usize) -> Result<&[u8]> {
        let taken = self.at.checked_add(length).and_then(|end| self.chunk.get(self.at..end)).ok_or_else(cut)?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| cut())
    }

    fn number(&mut self) -> Result<usize> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn document(&mut self) -> Result<Doc> {
        let (key, body) = (self.number()?, self.number()?);
        let at = self.at;
        self.take(key)?;
        self.take(body)?;
        let start = (at + key) as u32;
        Ok(Doc { start, end: self.at as u32, key_start: at as u32, key_len: key as u32 })
    }

    fn attachment(&mut self) -> Result<AttachmentRef> {
        let (digest, length) = (self.array()?, u64::from_le_bytes(self.array()?));
        let place = self.number()?;
        let place = std::str::from_utf8(self.take(place)?).map_err(|_| cut())?.into();
        Ok(AttachmentRef { digest, length, place })
    }
}

fn cut() -> Error {
    Error::bug("documents that were put aside are cut")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::BatchBuilder;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What a document is known by: kind, time, key, body, and the length of its attachment.
    type Known = (Kind, u64, Vec<u8>, Vec<u8>, Option<u64>);

    fn batch(kind: &Kind, documents: &[(Vec<u8>, Vec<u8>)]) -> Batch {
        let mut builder = BatchBuilder::new(CollectionId::new("c"), kind.clone(), Encoding::Json);
        for (key, body) in documents {
            let place = format!("place of {}", body.len()).into();
            let content = AttachmentRef { digest: [key.len() as u8; 32], length: body.len() as u64, place };
            match kind {
                Kind::Attachment => builder.push_attachment(key, body, content),
                _ => builder.push(key, body),
            }
        }
        builder.take()
    }

    fn known(batch: &Batch, i: usize, read: EngineTime) -> Known {
        batch.check().unwrap();
        let attachment = batch.attachments.get(i).map(|a| {
            assert_eq!((a.digest[31], &*a.place), (batch.key_of(i).len() as u8, &*format!("place of {}", a.length)));
            a.length
        });
        (batch.kind.clone(), read.order, batch.key_of(i).to_vec(), batch.body_of(i).to_vec(), attachment)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn documents_come_back_with_the_changes_of_their_part(
            batches in proptest::collection::vec((0..3usize, 0..3u64, proptest::collection::vec((0..90u8, 0..400usize), 0..40)), 0..12),
            memory in prop_oneof![Just(0usize), Just(20_000), Just(1 << 20)],
            bytes in prop_oneof![Just(0usize), Just(1 << 20)],
        ) {
            let kinds = [Kind::Document, Kind::Attachment, Kind::Meta("other".into())];
            let hash = |key: &[u8]| u64::from(key[0]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut parts = Parts::new(Expected { changes: 30, bytes }, memory, tempfile::tempfile).unwrap();
            for key in (0..90u8).step_by(3) {
                let spot = crate::read::change::Spot { frame: key.into(), doc: 7 };
                let op = crate::read::change::Op::Put;
                let change = Change { key: &[key, 1], time: 5, is_copy: false, op, spot, patch: b"" };
                parts.push(hash(&[key]), &change).unwrap();
            }
            parts.settle().unwrap();
            // Of those of one part the first ones come first.
            let mut expected: BTreeMap<u64, Vec<Known>> = BTreeMap::new();
            for (kind, read, documents) in batches {
                let documents: Vec<_> = documents.iter().map(|(key, length)| (vec![*key, 1], vec![*key; *length])).collect();
                let batch = batch(&kinds[kind], &documents);
                let hashes: Vec<u64> = (0..batch.len()).map(|i| hash(batch.key_of(i))).collect();
                let mut maybe = Vec::new();
                parts.may_hold(&hashes, &mut maybe);
                prop_assert!((0..batch.len()).filter(|i| batch.key_of(*i)[0] % 3 == 0).all(|i| maybe.contains(&i)));
                let read = EngineTime { order: read, millis: 3 };
                parts.put_aside(&batch, read, &hashes, &maybe).unwrap();
                maybe.iter().for_each(|i| expected.entry(hashes[*i]).or_default().push(known(&batch, *i, read)));
            }
            parts.all_have_come().unwrap();
            let (mut got, mut found): (BTreeMap<u64, Vec<Known>>, usize) = Default::default();
            while let Some((mut overlay, mut places)) = parts.next_part().unwrap() {
                let mut maybe = Vec::new();
                while let Some(all) = parts.documents(&mut places).unwrap() {
                    for Waited { batch, read, hashes } in all {
                        overlay.may_hold(&hashes, &mut maybe);
                        prop_assert!((0..batch.len()).filter(|i| batch.key_of(*i)[0] % 3 == 0).all(|i| maybe.contains(&i)));
                        for (i, hash) in hashes.iter().enumerate() {
                            got.entry(*hash).or_default().push(known(&batch, i, read));
                        }
                    }
                }
                overlay.rest(0, |_| { found += 1; Ok(()) }).unwrap();
            }
            prop_assert_eq!(found, 30);
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn large_documents_leave_no_room_behind() {
        let mut parts = Parts::new(Expected::default(), 1 << 20, tempfile::tempfile).unwrap();
        for hash in 0..16 {
            let large = batch(&Kind::Document, &[(vec![1], vec![0; 1 << 20])]);
            parts.put_aside(&large, EngineTime { order: 1, millis: 1 }, &[hash], &[0]).unwrap();
        }
        let held: usize = parts.parts.iter().map(|p| p.documents.held.capacity()).sum();
        assert!(held <= 1 << 20, "{held}");
    }
}
