//! Gives the content of attachments back.

use crate::direct::Direct;
use crate::manifest::{Borrowed, ContentPart};
use crate::objects::{Objects, blocking};
use crate::read::state::LoadedLayer;
use crate::segment;
use crate::write::Place;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use model::{AttachmentRef, AttachmentStore, AttachmentStream, Batch, Encoding, Error, Result, ResultExt, in_turn};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Reads contents of one state. Keeps the last packs and their last frames: attachments are restored about in the
/// order in which they were packed, those of a scan and those that have changed since by turns.
#[derive(Debug)]
pub(crate) struct ContentReader {
    objects: Objects,
    layers: Arc<Vec<LoadedLayer>>,
    /// The one that was used last comes last.
    packs: Arc<Mutex<Vec<OpenPack>>>,
}

#[derive(Debug)]
struct OpenPack {
    path: Arc<str>,
    frames: Vec<(Bytes, u32)>,
    /// Number of the first content of each frame that has been decoded so far.
    decoded: Vec<(u64, Option<Batch>)>,
}

/// Packs kept (4, of at most 16 MiB each): what was read side by side was packed side by side, so two scans' packs
/// and those of changes take turns.
const PACKS: usize = 4;
/// Decoded frames kept of a pack.
const DECODED: usize = 4;

impl ContentReader {
    pub fn new(objects: Objects, layers: Arc<Vec<LoadedLayer>>) -> Self {
        ContentReader { objects, layers, packs: Arc::default() }
    }

    fn find(&self, place: &str) -> Result<Where> {
        if let Some(direct) = Direct::read(place) {
            return Ok(match direct? {
                Direct::Parts(parts) => Where::Parts(parts),
                Direct::Packed(at) => Where::Packed(at),
            });
        }
        let none = || Error::corrupt("an attachment refers to a content that its layer does not have");
        self.find_in_layer(place).ok_or_else(none)
    }

    fn find_in_layer(&self, place: &str) -> Option<Where> {
        let (layer, place) = place.split_once('/')?;
        let contents = &self.layers.get(layer.parse::<usize>().ok()?)?.layer.contents;
        Some(match Place::parse(place)? {
            Place::Packed(n) => {
                let at = contents.packs.partition_point(|p| p.first <= n).checked_sub(1)?;
                let pack = &contents.packs[at];
                Where::Packed(Borrowed {
                    object: pack.segment.object.as_str().into(),
                    size: pack.segment.size,
                    index: n - pack.first,
                })
            }
            Place::Borrowed(n, more) => Where::Packed(contents.borrowed.get(usize::try_from(n).ok()?)?.after(more)?),
            Place::Parts(first, count) => {
                let (first, count) = (usize::try_from(first).ok()?, usize::try_from(count).ok()?);
                Where::Parts(contents.parts.get(first..first.checked_add(count)?)?.to_vec())
            }
        })
    }

    /// One content of a pack.
    async fn packed(&self, at: &Borrowed) -> Result<Bytes> {
        let mut packs = self.packs.lock().await;
        let open = match packs.iter().position(|open| open.path == at.object) {
            Some(kept) => packs.remove(kept),
            None => {
                if packs.len() >= PACKS {
                    packs.remove(0);
                }
                let frames = self.objects.segment(&at.object).await?;
                OpenPack { path: at.object.clone(), frames, decoded: Vec::new() }
            }
        };
        packs.push(open);
        let open = packs.last_mut().ok_or_else(|| Error::bug("a pack was not read"))?;
        open.content(at.index).context(|| format!("reading {}", at.object))
    }

    async fn part(&self, part: &ContentPart) -> Result<Bytes> {
        let plain = self.objects.read(&part.object).await?;
        let raw = u32::try_from(part.raw).map_err(|_| Error::corrupt("a part claims more bytes than any has"))?;
        // A salt may follow the one frame that holds the content.
        blocking(move || segment::decompress(first_frame(&plain)?, raw))
            .await
            .context(|| format!("reading {}", part.object))
    }
}

/// The first zstd frame of some bytes.
fn first_frame(bytes: &[u8]) -> Result<&[u8]> {
    let length =
        zstd::zstd_safe::find_frame_compressed_size(bytes).map_err(|_| Error::corrupt("a part is not a zstd frame"))?;
    bytes.get(..length).ok_or_else(|| Error::corrupt("a part ends too early"))
}

impl OpenPack {
    fn content(&mut self, index: u64) -> Result<Bytes> {
        let no_such = || Error::corrupt("the pack of an attachment does not hold it");
        let mut number = 0;
        loop {
            if self.decoded.len() == number {
                let (stored, raw) = self.frames.get(number).ok_or_else(no_such)?;
                let batch = segment::read_frame(Encoding::Bin, stored, *raw)?.batch;
                let next = self.decoded.last().map_or(0, |(first, _)| *first);
                let first = if number == 0 { 0 } else { next + self.count_of(number - 1)? };
                self.forget_all_but(DECODED - 1);
                self.decoded.push((first, Some(batch)));
            }
            let first = self.decoded[number].0;
            if index < first {
                return Err(no_such());
            }
            let past = self.decoded.get(number + 1).is_some_and(|(next, _)| index >= *next);
            if !past {
                let batch = self.batch(number)?;
                let inside = (index - first) as usize;
                if inside < batch.len() {
                    let doc = batch.docs[inside];
                    return Ok(batch.body.slice(doc.start as usize..doc.end as usize));
                }
            }
            number += 1;
        }
    }

    fn batch(&mut self, number: usize) -> Result<Batch> {
        if let Some(batch) = &self.decoded[number].1 {
            return Ok(batch.clone());
        }
        let (stored, raw) = &self.frames[number];
        let batch = segment::read_frame(Encoding::Bin, stored, *raw)?.batch;
        self.forget_all_but(DECODED - 1);
        self.decoded[number].1 = Some(batch.clone());
        Ok(batch)
    }

    fn count_of(&mut self, number: usize) -> Result<u64> {
        Ok(self.batch(number)?.len() as u64)
    }

    fn forget_all_but(&mut self, keep: usize) {
        let held = self.decoded.iter().filter(|(_, b)| b.is_some()).count();
        let mut drop = held.saturating_sub(keep);
        for (_, batch) in &mut self.decoded {
            if drop > 0 && batch.take().is_some() {
                drop -= 1;
            }
        }
    }
}

enum Where {
    Packed(Borrowed),
    Parts(Vec<ContentPart>),
}

#[async_trait]
impl AttachmentStore for ContentReader {
    async fn put(&self, _: AttachmentStream) -> Result<AttachmentRef> {
        Err(Error::bug("a vault that is read takes no contents"))
    }

    async fn open(&self, reference: &AttachmentRef) -> Result<AttachmentStream> {
        let Some(pieces) = reference.pieces() else { return self.open_one(reference).await };
        // Their digests are those that the whole one is made of.
        let reader = Arc::new(self.again());
        Ok(in_turn(pieces?, move |content| {
            let reader = reader.clone();
            async move { reader.open_one(&content).await }
        }))
    }
}

impl ContentReader {
    /// The same reader, for a stream to keep.
    fn again(&self) -> ContentReader {
        ContentReader { objects: self.objects.clone(), layers: self.layers.clone(), packs: self.packs.clone() }
    }

    /// One content that is not made of pieces.
    async fn open_one(&self, reference: &AttachmentRef) -> Result<AttachmentStream> {
        if let Some(content) = reference.inline_content() {
            return Ok(stream::iter([Ok(content?)]).boxed());
        }
        let place = self.find(&reference.place)?;
        let (digest, length) = (reference.digest, reference.length);
        let wrong = || Error::corrupt("the content of an attachment does not have its digest");
        match place {
            Where::Packed(at) => {
                let content = self.packed(&at).await?;
                if content.len() as u64 != length || *blake3::hash(&content).as_bytes() != digest {
                    return Err(wrong());
                }
                Ok(stream::iter([Ok(content)]).boxed())
            }
            Where::Parts(parts) => {
                let reader = self.again();
                let start = (parts.into_iter(), blake3::Hasher::new(), 0u64, reader, false);
                Ok(stream::try_unfold(start, move |(mut parts, mut hasher, mut seen, reader, done)| async move {
                    if done {
                        return Ok(None);
                    }
                    match parts.next() {
                        Some(part) => {
                            let piece = reader.part(&part).await?;
                            hasher.update(&piece);
                            seen += piece.len() as u64;
                            Ok(Some((piece, (parts, hasher, seen, reader, false))))
                        }
                        None if seen == length && *hasher.finalize().as_bytes() == digest => {
                            Ok(Some((Bytes::new(), (parts, hasher, seen, reader, true))))
                        }
                        None => Err(wrong()),
                    }
                })
                .boxed())
            }
        }
    }
}
