//! Streams the oldest layer that counts against the changes since, in bounded memory.
//!
//! Changes are read first, all but the bodies of puts, and sorted by key. Then documents of the oldest
//! layer pass by in their own order: what has not changed goes on as it is, and patches are applied on
//! the way. Last come the documents that were put, in the order of the log, so that each of its frames
//! is decoded twice at most.

use crate::frame::Frame;
use crate::hash::HashKeys;
use crate::log::LogFrame;
use crate::objects::Objects;
use crate::read::change::Spot;
use crate::read::overlay::{Changes, Fate, Overlay, Patches, check_collection, retain};
use crate::read::segments::Segments;
use crate::read::spill::{OpenFile, Sorted, Sorter};
use crate::segment::SegmentEntry;
use futures::channel::mpsc;
use futures::stream::{self, BoxStream, FuturesOrdered};
use futures::{SinkExt, StreamExt, TryStreamExt};
use model::limits::{BATCH, BATCH_DOCUMENTS, FRAME};
use model::{AttachmentRef, Batch, CollectionId, Doc, Encoding, EngineTime, Error, ErrorKind, Kind, Patcher, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Frames that are decoded side by side.
const AHEAD: usize = 3;
/// Decoded frames that are kept of those that an ordered collection goes back to.
const RECENT: usize = 8;

/// Frames of the oldest layer, with the time they were read at.
pub(crate) type Base = BoxStream<'static, Result<(Frame, EngineTime)>>;

/// A frame of a layer.
#[derive(Debug, Clone)]
pub(crate) struct FramePlace {
    pub layer: usize,
    pub entry: Arc<SegmentEntry>,
    pub frame: u32,
    /// The engine time its documents were read at.
    pub read: EngineTime,
}

/// A frame with changes.
#[derive(Debug, Clone)]
pub(crate) enum ChangeFrame {
    Layer(FramePlace),
    Log(LogFrame),
}

impl ChangeFrame {
    fn layer(&self) -> usize {
        match self {
            ChangeFrame::Layer(place) => place.layer,
            ChangeFrame::Log(_) => 0,
        }
    }

    fn entry(&self) -> (&SegmentEntry, usize) {
        match self {
            ChangeFrame::Layer(place) => (&place.entry, place.frame as usize),
            ChangeFrame::Log(frame) => (&frame.entry, frame.number as usize),
        }
    }

    /// Bytes in memory.
    pub fn raw(&self) -> usize {
        let (entry, number) = self.entry();
        entry.frames.get(number).map(|f| f.raw as usize).filter(|raw| *raw > 0).unwrap_or(FRAME)
    }

    /// About so many bytes its changes take in a table: of bodies only those of patches. What the header
    /// of such a frame says of each patch is about as long as what a table needs.
    fn gathered(&self) -> usize {
        let (entry, number) = self.entry();
        let count = entry.frames.get(number).map_or(0, |f| f.count as usize);
        match self {
            ChangeFrame::Log(frame) if frame.is_patch => self.raw(),
            _ => count * 56,
        }
    }
}

/// Where frames with changes are read from.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub objects: Objects,
    pub segments: Arc<Segments>,
    pub id: CollectionId,
}

impl Reader {
    async fn read(&self, from: &ChangeFrame) -> Result<Frame> {
        let frame = match from {
            ChangeFrame::Log(frame) => frame.read(&self.objects).await?,
            ChangeFrame::Layer(place) => {
                let mut frames = self.segments.read(&place.entry, vec![place.frame]).await?;
                frames.pop().ok_or_else(|| Error::bug("a frame was not read"))?
            }
        };
        check_collection(&frame.batch, &self.id)?;
        Ok(frame)
    }
}

/// How much memory the changes of a state may take, all collections together that are read at once.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    used: AtomicUsize,
    pub open: OpenFile,
}

/// A part of it, for one collection.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Memory {
    pub fn new(limit: usize, open: OpenFile) -> Arc<Self> {
        Arc::new(Memory { limit, used: AtomicUsize::new(0), open })
    }

    /// What is left of it, as far as it is needed. Those who come late get an eighth at least: who
    /// waits for others that may wait for him would wait for ever.
    pub fn share(self: &Arc<Self>, needed: usize) -> Share {
        let left = self.limit.saturating_sub(self.used.load(Ordering::Relaxed));
        let bytes = left.max(self.limit / 8).min(needed);
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Share { memory: self.clone(), bytes }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bodies of puts, in the frames that hold them.
#[derive(Debug)]
struct Bodies {
    reader: Reader,
    frames: Arc<Vec<ChangeFrame>>,
    /// Frames that stay decoded, as many as there is room for.
    kept: HashMap<u32, Arc<Frame>>,
    room: usize,
    recent: VecDeque<(u32, Arc<Frame>)>,
}

impl Bodies {
    /// Keeps a frame if it has bodies that may be wanted, and there is room.
    fn keep(&mut self, number: u32, frame: Frame) {
        let kind = &frame.batch.kind;
        let contents = frame.batch.attachments.iter().map(|a| a.place.len()).sum::<usize>();
        let size = contents
            + frame.batch.body.len()
            + frame.batch.keys.as_ref().map_or(0, |k| k.len())
            + frame.batch.len() * 32;
        if kind.is_tombstone() || *kind == Kind::Patch || size > self.room {
            return;
        }
        self.room -= size;
        self.kept.insert(number, Arc::new(frame));
    }

    /// Reads a frame, without waiting for it here.
    fn read(&self, number: u32) -> impl Future<Output = Result<Arc<Frame>>> + use<> {
        let (kept, reader) = (self.kept.get(&number).cloned(), self.reader.clone());
        let frame = self.frames.get(number as usize).cloned();
        async move {
            match (kept, frame) {
                (Some(kept), _) => Ok(kept),
                (None, Some(frame)) => reader.read(&frame).await.map(Arc::new),
                (None, None) => Err(Error::bug("a change without a frame")),
            }
        }
    }

    /// Reads a frame that is soon wanted again.
    async fn fetch(&mut self, number: u32) -> Result<Arc<Frame>> {
        if let Some(at) = self.recent.iter().position(|(n, _)| *n == number) {
            let found = self.recent.remove(at).ok_or_else(|| Error::bug("a frame was not kept"))?;
            let frame = found.1.clone();
            self.recent.push_back(found);
            return Ok(frame);
        }
        let frame = self.read(number).await?;
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((number, frame.clone()));
        Ok(frame)
    }

    fn layer(&self, frame: u32) -> usize {
        self.frames.get(frame as usize).map_or(0, ChangeFrame::layer)
    }
}

/// Merges one kind space of a collection with its changes.
#[derive(Debug)]
pub(crate) struct Merge {
    keys: HashKeys,
    bodies: Bodies,
    overlay: Overlay,
    share: Share,
    ordered: bool,
    base_layer: usize,
}

impl Merge {
    /// Reads changes: those of layers, oldest first, then those of the log. What is not later than
    /// `dropped` does not count.
    pub async fn read(
        reader: Reader,
        keys: HashKeys,
        frames: Vec<ChangeFrame>,
        dropped: Option<EngineTime>,
        share: Share,
        (base_layer, ordered): (usize, bool),
    ) -> Result<Merge> {
        let dropped = dropped.map_or(0, |d| d.order);
        let (memory, gathered) = (share.bytes / 16 * 14, frames.iter().map(ChangeFrame::gathered).sum::<usize>());
        let (mut changes, room) = match gathered <= memory {
            true => (Changes::new(keys.clone(), memory, share.memory.open), (memory - gathered).min(share.bytes / 4)),
            // Most of them will be in the file anyway: what is decoded ahead and sorted has its room, too.
            false => (Changes::of_many(keys.clone(), share.bytes / 2, share.memory.open), share.bytes / 16),
        };
        let layers = frames.iter().take_while(|f| matches!(f, ChangeFrame::Layer(_))).count();
        // At the same time a copy comes after what the log says.
        let order: Vec<u32> = (layers as u32..frames.len() as u32).chain(0..layers as u32).collect();
        let frames = Arc::new(frames);
        let mut bodies = Bodies {
            reader: reader.clone(),
            frames: frames.clone(),
            kept: HashMap::new(),
            room,
            recent: VecDeque::new(),
        };
        let mut reading = stream::iter(order)
            .map(|number| {
                let (reader, frame) = (&reader, &frames[number as usize]);
                async move { reader.read(frame).await.map(|read| (number, frame, read)) }
            })
            .buffered(AHEAD);
        while let Some((number, from, frame)) = reading.try_next().await? {
            match from {
                ChangeFrame::Layer(place) => changes.add_layer_frame(number, &frame, place.read)?,
                ChangeFrame::Log(log) => {
                    changes.add_log_frame(number, &frame, log.after.order.max(dropped), log.until.order)?;
                }
            }
            bodies.keep(number, frame);
        }
        drop(reading);
        let overlay = changes.finish()?;
        Ok(Merge { keys, bodies, overlay, share, ordered, base_layer })
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.overlay.is_empty()
    }

    /// The documents that there are.
    pub fn run(mut self, mut base: Base, patcher: Option<Arc<dyn Patcher>>) -> BoxStream<'static, Result<Batch>> {
        let (sender, receiver) = mpsc::channel::<Result<Batch>>(2);
        let work = async move {
            let mut out = Out { sender, made: None };
            if let Err(e) = self.feed(&mut base, patcher.as_deref(), &mut out).await {
                // A reader that is gone needs no error.
                let _ = out.sender.send(Err(e)).await;
            }
        };
        // Driven by whoever reads: nothing goes on when the stream is dropped.
        stream::select(receiver, stream::once(work).filter_map(|()| std::future::ready(None))).boxed()
    }

    async fn feed(&mut self, base: &mut Base, patcher: Option<&dyn Patcher>, out: &mut Out) -> Result<()> {
        let (mut hashes, mut maybe, mut fates) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((frame, read)) = base.try_next().await? {
            let batch = &frame.batch;
            self.keys.keys_of(batch, &mut hashes);
            self.overlay.may_hold(&hashes, &mut maybe);
            fates.clear();
            fates.resize(batch.len(), Fate::Kept);
            for i in &maybe {
                fates[*i] = self.overlay.fate(hashes[*i], batch.key_of(*i), read, self.ordered)?;
            }
            let becomes = fates.iter().any(|f| matches!(f, Fate::Becomes { .. }));
            if self.ordered && becomes {
                self.in_place(batch, &fates, patcher, out).await?;
                continue;
            }
            if self.ordered {
                out.flush().await?;
            }
            if fates.iter().all(|f| *f == Fate::Kept) {
                out.send(renumber(frame.batch, self.base_layer)).await?;
                continue;
            }
            out.send(renumber(retain(batch, |i| fates[i] == Fate::Kept), self.base_layer)).await?;
            for (i, fate) in fates.iter().enumerate() {
                if let Fate::Becomes { patches, .. } = fate {
                    self.emit(batch, i, Some(*patches), patcher, out).await?;
                    self.overlay.take(*patches);
                }
            }
        }
        let winners = self.winners()?;
        match self.ordered {
            true => self.rest_in_order(winners, patcher, out).await?,
            false => self.rest(winners, patcher, out).await?,
        }
        out.flush().await
    }

    /// Documents of an ordered collection that keep their places.
    async fn in_place(
        &mut self,
        batch: &Batch,
        fates: &[Fate],
        patcher: Option<&dyn Patcher>,
        out: &mut Out,
    ) -> Result<()> {
        for (i, fate) in fates.iter().enumerate() {
            match fate {
                Fate::Dropped => {}
                Fate::Kept => self.emit(batch, i, None, patcher, out).await?,
                Fate::Becomes { start, patches } => {
                    match start {
                        Some(start) => self.document(*start, Some(*patches), patcher, out).await?,
                        None => self.emit(batch, i, Some(*patches), patcher, out).await?,
                    }
                    self.overlay.take(*patches);
                }
            }
        }
        Ok(())
    }

    /// One document of a body in the changes, and of patches.
    async fn document(
        &mut self,
        start: Spot,
        patches: Option<Patches>,
        patcher: Option<&dyn Patcher>,
        out: &mut Out,
    ) -> Result<()> {
        let frame = self.bodies.fetch(start.frame).await?;
        self.emit(&frame.batch, start.doc as usize, patches, patcher, out).await
    }

    /// A document, as it is or patched.
    async fn emit(
        &mut self,
        batch: &Batch,
        i: usize,
        patches: Option<Patches>,
        patcher: Option<&dyn Patcher>,
        out: &mut Out,
    ) -> Result<()> {
        let body = batch.body_of(i);
        out.like(batch, body.len()).await?.push(batch.key_of(i), |into| match patches {
            Some(patches) => self.overlay.apply(patches, body, patcher, into),
            None => {
                into.extend_from_slice(body);
                Ok(())
            }
        })
    }

    /// The documents that the oldest layer does not place: in an ordered collection in the order in
    /// which they came, in others in the order of their bodies.
    fn winners(&mut self) -> Result<Winners> {
        let mut sorter = Sorter::new(self.share.bytes / 16, self.share.memory.open);
        let (mut record, ordered) = (Vec::new(), self.ordered);
        self.overlay.rest(|place, start, patches| {
            let by = if ordered { place } else { start };
            record.clear();
            record.extend_from_slice(&start.frame.to_le_bytes());
            record.extend_from_slice(&start.doc.to_le_bytes());
            if !patches.is_empty() {
                patches.write(&mut record);
            }
            sorter.push([u64::from(by.frame), u64::from(by.doc)], &record)
        })?;
        Ok(Winners { sorted: sorter.finish()?, next: None })
    }

    async fn rest_in_order(
        &mut self,
        mut winners: Winners,
        patcher: Option<&dyn Patcher>,
        out: &mut Out,
    ) -> Result<()> {
        while let Some((start, patches)) = winners.next()? {
            self.document(start, patches, patcher, out).await?;
        }
        Ok(())
    }

    async fn rest(&mut self, mut winners: Winners, patcher: Option<&dyn Patcher>, out: &mut Out) -> Result<()> {
        let mut reading = FuturesOrdered::new();
        loop {
            while reading.len() < AHEAD
                && let Some((number, docs)) = winners.of_one_frame()?
            {
                let frame = self.bodies.read(number);
                reading.push_back(async move { frame.await.map(|frame| (number, docs, frame)) });
            }
            let Some((number, docs, frame)) = reading.try_next().await? else { return Ok(()) };
            let batch = &frame.batch;
            let mut plain = retain(batch, |_| false);
            for (doc, patches) in docs {
                let i = doc as usize;
                match patches {
                    Some(patches) => self.emit(batch, i, Some(patches), patcher, out).await?,
                    None => {
                        plain.docs.extend(batch.docs.get(i));
                        plain.attachments.extend(batch.attachments.get(i).cloned());
                    }
                }
            }
            out.send(renumber(plain, self.bodies.layer(number))).await?;
        }
    }
}

/// Documents made of bodies in the changes.
struct Winners {
    sorted: Sorted,
    /// One that was looked at already.
    next: Option<(Spot, Option<Patches>)>,
}

/// A frame's number, and its documents that are wanted, with their patches.
type OneFrame = (u32, Vec<(u32, Option<Patches>)>);

impl Winners {
    fn next(&mut self) -> Result<Option<(Spot, Option<Patches>)>> {
        if let Some(next) = self.next.take() {
            return Ok(Some(next));
        }
        let Some((_, record)) = self.sorted.next()? else { return Ok(None) };
        let (spot, patches) = record.split_at_checked(8).ok_or_else(|| Error::bug("a document without a place"))?;
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| spot[at + i]));
        Ok(Some((Spot { frame: half(0), doc: half(4) }, Patches::read(patches))))
    }

    /// The next ones that have their bodies in the same frame: its number, and which they are.
    fn of_one_frame(&mut self) -> Result<Option<OneFrame>> {
        let Some((first, patches)) = self.next()? else { return Ok(None) };
        let mut docs = vec![(first.doc, patches)];
        while let Some((spot, patches)) = self.next()? {
            if spot.frame != first.frame {
                self.next = Some((spot, patches));
                break;
            }
            docs.push((spot.doc, patches));
        }
        Ok(Some((first.frame, docs)))
    }
}

/// Where documents go.
struct Out {
    sender: mpsc::Sender<Result<Batch>>,
    /// Documents that were made anew.
    made: Option<Made>,
}

/// A batch in the making, in buffers that need not grow.
struct Made {
    like: (CollectionId, Kind, Encoding),
    body: Vec<u8>,
    keys: Vec<u8>,
    docs: Vec<Doc>,
}

impl Made {
    /// Adds a document, whose body is written by `body`.
    fn push(&mut self, key: &[u8], body: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
        let (start, key_start) = (self.body.len() as u32, self.keys.len() as u32);
        body(&mut self.body)?;
        self.keys.extend_from_slice(key);
        self.docs.push(Doc { start, end: self.body.len() as u32, key_start, key_len: key.len() as u32 });
        Ok(())
    }
}

impl Out {
    async fn send(&mut self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let gone = |_| Error::new(ErrorKind::Interrupted, "the reader of a collection has gone");
        self.sender.send(Ok(batch)).await.map_err(gone)
    }

    /// Where documents like those of a batch go, with room for one more.
    async fn like(&mut self, like: &Batch, bytes: usize) -> Result<&mut Made> {
        let fits = |made: &Made| {
            let room = made.body.len() + bytes <= BATCH && made.docs.len() < BATCH_DOCUMENTS;
            room && (&made.like.1, made.like.2) == (&like.kind, like.encoding)
        };
        if !self.made.as_ref().is_some_and(fits) {
            self.flush().await?;
        }
        Ok(self.made.get_or_insert_with(|| Made {
            like: (like.collection.clone(), like.kind.clone(), like.encoding),
            body: Vec::with_capacity(BATCH.max(bytes)),
            keys: Vec::new(),
            docs: Vec::new(),
        }))
    }

    async fn flush(&mut self) -> Result<()> {
        let Some(Made { like: (collection, kind, encoding), body, keys, docs }) = self.made.take() else {
            return Ok(());
        };
        let (body, keys) = (body.into(), Some(keys.into()));
        self.send(Batch { collection, kind, encoding, body, keys, docs, attachments: Vec::new() }).await
    }
}

/// Places of attachments mean something in their own layer only: says which.
pub(crate) fn renumber(mut batch: Batch, layer: usize) -> Batch {
    if batch.kind == Kind::Attachment {
        for attachment in batch.attachments.iter_mut().filter(|a| !a.is_inline()) {
            *attachment = AttachmentRef {
                place: format!("{layer}/{}", attachment.place).into(),
                digest: attachment.digest,
                length: attachment.length,
            };
        }
    }
    batch
}
