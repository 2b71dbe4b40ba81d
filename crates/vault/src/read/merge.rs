//! Streams the oldest layer that counts against the changes since, in bounded memory.
//!
//! Changes are read first. If memory holds them, the log is read from its end: what is put, and is neither put again
//! nor deleted by what was read before, goes out at once. Of other puts all is read but the bodies. Then documents of
//! the oldest layer pass by in their own order: what has not changed goes on as it is, and patches are applied on the
//! way. If memory does not hold the changes, documents that have some wait for them, and come part by part
//! (`parts.rs`); those of an ordered collection cannot wait, and each is looked up in a file (`blocks.rs`). Last come
//! the other documents that were put, in the order of the log, so that each of its frames is decoded twice at most.

use crate::frame::Frame;
use crate::read::ahead;
use crate::read::apply::Applier;
use crate::read::base::Base;
use crate::read::bodies::{Bodies, ChangeFrame, Reader, groups, objects};
use crate::read::change::Spot;
use crate::read::gather::{Changes, Finished};
use crate::read::hashes::Hashes;
use crate::read::out::{Making, Out, renumber};
use crate::read::overlay::{Fate, Overlay, Patches, retain};
use crate::read::parts::{Expected, Parts, Waited};
use crate::read::pass::Pass;
use crate::read::spill::{OpenFile, Sorter};
use crate::read::winners::Winners;
use futures::channel::mpsc;
use futures::stream::{self, BoxStream, FuturesOrdered};
use futures::{SinkExt, StreamExt, TryStreamExt};
use model::{Batch, EngineTime, Error, Patcher, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of patches that are kept beside the place of a body until that is read.
const BESIDE: usize = 64 << 10;

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

/// Merges one kind space of a collection with its changes.
#[derive(Debug)]
pub(crate) struct Merge {
    hashes: Hashes,
    frames: Arc<Vec<ChangeFrame>>,
    /// What is not later does not count.
    dropped: u64,
    bodies: Bodies,
    /// All changes, or those of the part that is looked at.
    overlay: Overlay,
    parts: Option<Parts>,
    share: Share,
    ordered: bool,
    base_layer: usize,
}

/// What is done to a body before it goes out.
#[derive(Debug, Clone, Copy)]
enum Patched<'a> {
    Not,
    /// By patches in the overlay.
    By(Patches),
    /// By patches that were written out.
    ByWritten(&'a [u8]),
}

impl Merge {
    /// Of these changes: those of layers, oldest first, then those of the log. What is not later than `dropped`
    /// does not count.
    pub fn new(
        reader: Reader,
        frames: Vec<ChangeFrame>,
        dropped: Option<EngineTime>,
        share: Share,
        (base_layer, ordered): (usize, bool),
    ) -> Merge {
        let frames = Arc::new(frames);
        Merge {
            hashes: Hashes::default(),
            bodies: Bodies::new(reader, frames.clone()),
            frames,
            dropped: dropped.map_or(0, |d| d.order),
            overlay: Overlay::none(),
            parts: None,
            share,
            ordered,
            base_layer,
        }
    }

    /// The documents that there are.
    pub fn run(mut self, base: Base, patcher: Option<Arc<dyn Patcher>>) -> BoxStream<'static, Result<Batch>> {
        let (sender, receiver) = mpsc::channel::<Result<Batch>>(2);
        let work = async move {
            let mut out = Out::new(sender.clone(), base.segments().buffers().clone());
            if let Err(e) = self.feed(base, patcher, &mut out).await {
                // A reader that is gone needs no error.
                let _ = { sender }.send(Err(e)).await;
            }
        };
        // Driven by whoever reads: nothing goes on when the stream is dropped.
        stream::select(receiver, stream::once(work).filter_map(|()| std::future::ready(None))).boxed()
    }

    async fn feed(&mut self, base: Base, patcher: Option<Arc<dyn Patcher>>, out: &mut Out) -> Result<()> {
        let mut applier = Applier::new(patcher.clone());
        self.gather(base.latest(), &mut applier, out).await?;
        if self.parts.is_none() && self.overlay.is_empty() {
            return self.unchanged(base, out).await;
        }
        let winners = match self.parts.take() {
            Some(parts) => self.by_parts(parts, base, &mut applier, out).await?,
            None => {
                match self.ordered {
                    true => self.one_by_one(base, &mut applier, out).await?,
                    false => self.side_by_side(base, patcher, out).await?,
                }
                let mut winners = Sorter::new(self.share.bytes / 16, self.share.memory.open);
                self.left(&mut winners, &mut applier, out).await?;
                winners
            }
        };
        let winners = Winners::new(winners.finish()?);
        match self.ordered {
            true => self.rest_in_order(winners, &mut applier, out).await?,
            false => self.rest(winners, &mut applier, out).await?,
        }
        out.flush().await
    }

    /// Reads the changes. If the log alone tells of them and memory is expected to hold them, it is read from its
    /// end, object by object: then each document that was put after the oldest layer was read, at `latest`, goes
    /// out at once, as nothing can change it any more.
    async fn gather(&mut self, latest: EngineTime, applier: &mut Applier, out: &mut Out) -> Result<()> {
        let frames = self.frames.clone();
        let expected = Expected {
            changes: frames.iter().map(|f| f.count() as u64).sum(),
            bytes: frames.iter().map(ChangeFrame::gathered).sum(),
        };
        let most = self.share.bytes / 16 * 14;
        let layers = frames.iter().take_while(|f| matches!(f, ChangeFrame::Layer(_))).count();
        let from_end = !self.ordered && layers == 0 && expected.bytes <= most;
        let (memory, room) = match expected.bytes <= most {
            true => (most, (most - expected.bytes).min(self.share.bytes / 4)),
            // Most of them will be in the file anyway: what is decoded ahead and sorted has its room, too.
            false => (self.share.bytes / 4 * if self.ordered { 2 } else { 3 }, self.share.bytes / 16),
        };
        let mut changes = Changes::new(self.hashes.clone(), expected, memory, self.share.memory.open, self.ordered)?;
        let order = match from_end {
            true => objects(&frames),
            // At the same time a copy comes after what the log says.
            false => vec![layers..frames.len(), 0..layers],
        };
        let whole = match from_end {
            true => Bodies::that_may_wait(&frames, &order, room),
            // What would not stay here is decoded when its bodies are wanted.
            false => Bodies::that_fit(&frames, order.iter().cloned().flatten(), room),
        };
        self.bodies.room = if from_end { 0 } else { room };
        let groups: Vec<_> = order.into_iter().flat_map(|part| groups(&frames, part)).collect();
        let (reader, hashes) = (self.bodies.reader.clone(), self.hashes.clone());
        let mut reading = stream::iter(groups)
            .map(|group| {
                let (reader, hashes) = (&reader, hashes.clone());
                let (of_group, whole) = (&frames[group.clone()], whole[group.clone()].to_vec());
                async move {
                    let read = reader.read_with(of_group, whole, move |frames| hashed(frames, &hashes)).await?;
                    Ok::<_, Error>(group.zip(read))
                }
            })
            .buffered(ahead());
        let mut waiting: Vec<(u32, Frame, Vec<u64>)> = Vec::new();
        while let Some(group) = reading.try_next().await? {
            for (at, (frame, of_keys)) in group {
                let (number, read) = (at as u32, (&frame, &of_keys[..]));
                match &frames[at] {
                    ChangeFrame::Layer(place) => changes.add_layer_frame(number, read, place.read)?,
                    ChangeFrame::Log(log) => {
                        changes.add_log_frame(number, read, (log.after.order.max(self.dropped), log.until.order))?;
                    }
                }
                match from_end {
                    true if whole[at] && frames[at].is_put() => waiting.push((number, frame, of_keys)),
                    false if whole[at] => self.bodies.keep(number, frame),
                    _ => {}
                }
                if from_end && !frames[at].is_followed(frames.get(at + 1)) {
                    for (number, frame, of_keys) in waiting.drain(..) {
                        settle(&mut changes, number, (frame, &of_keys), latest.order, applier, &mut out.making)?;
                        out.send_ready().await?;
                    }
                }
            }
        }
        drop(reading);
        match changes.finish()? {
            Finished::Whole(overlay) => self.overlay = overlay,
            Finished::Parts(parts) => self.parts = Some(parts),
        }
        Ok(())
    }

    /// The documents of the oldest layer, none of which has changed.
    async fn unchanged(&self, base: Base, out: &mut Out) -> Result<()> {
        let mut base = base.frames();
        while let Some((frame, _)) = base.try_next().await? {
            out.send(renumber(frame.batch, self.base_layer)).await?;
        }
        Ok(())
    }

    /// Lets documents pass by changes that are in memory there where they are decoded.
    async fn side_by_side(&mut self, base: Base, patcher: Option<Arc<dyn Patcher>>, out: &mut Out) -> Result<()> {
        let (keys, layer, buffers) = (self.hashes.clone(), self.base_layer, base.segments().buffers().clone());
        let overlay = self.overlay.shared()?;
        let mut passed = base.each(move |frames, read| {
            let (mut overlay, mut applier) = (overlay.shared()?, Applier::new(patcher.clone()));
            let mut pass = Pass::new(&mut overlay, &mut applier, layer);
            let (mut making, mut hashes) = (Making::new(buffers.clone()), Vec::new());
            for frame in frames {
                let batch = frame?.batch;
                keys.of_batch(&batch, &mut hashes);
                pass.batch(batch, &hashes, read, &mut making)?;
            }
            Ok((making.end(), overlay.marks()))
        });
        while let Some(((ready, last), marks)) = passed.try_next().await? {
            self.overlay.mark(marks);
            for batch in ready {
                out.send(batch).await?;
            }
            if let Some(last) = last {
                out.making.take_in(last)?;
                out.send_ready().await?;
            }
        }
        Ok(())
    }

    /// Lets documents of an ordered collection pass by changes one after the other.
    async fn one_by_one(&mut self, base: Base, applier: &mut Applier, out: &mut Out) -> Result<()> {
        let (mut base, mut hashes) = (base.frames(), Vec::new());
        while let Some((frame, read)) = base.try_next().await? {
            self.hashes.of_batch(&frame.batch, &mut hashes);
            self.pass_in_order(frame.batch, &hashes, read, applier, out).await?;
        }
        Ok(())
    }

    /// Lets documents that may have changed wait for the changes of their part; gives the places of the
    /// bodies of those that are left.
    async fn by_parts(&mut self, mut parts: Parts, base: Base, applier: &mut Applier, out: &mut Out) -> Result<Sorter> {
        let (mut base, mut hashes, mut aside) = (base.frames(), Vec::new(), Vec::new());
        while let Some((frame, read)) = base.try_next().await? {
            let batch = frame.batch;
            self.hashes.of_batch(&batch, &mut hashes);
            parts.may_hold(&hashes, &mut aside);
            if aside.is_empty() {
                out.send(renumber(batch, self.base_layer)).await?;
                continue;
            }
            parts.put_aside(&batch, read, &hashes, &aside)?;
            let mut waits = aside.iter().peekable();
            let stays = retain(&batch, |i| waits.next_if(|w| **w == i).is_none());
            out.send(renumber(stays, self.base_layer)).await?;
        }
        parts.all_have_come()?;
        let mut winners = Sorter::new(self.share.bytes / 8, self.share.memory.open);
        while let Some((overlay, mut places)) = parts.next_part()? {
            self.overlay = overlay;
            let mut pass = Pass::new(&mut self.overlay, applier, self.base_layer);
            while let Some(waited) = parts.documents(&mut places)? {
                for Waited { batch, read, hashes } in waited {
                    pass.batch(batch, &hashes, read, &mut out.making)?;
                    out.send_ready().await?;
                }
            }
            self.left(&mut winners, applier, out).await?;
        }
        self.overlay = Overlay::none();
        Ok(winners)
    }

    /// Documents of the oldest layer of an ordered collection, with the changes that they have.
    async fn pass_in_order(
        &mut self,
        batch: Batch,
        hashes: &[u64],
        read: EngineTime,
        applier: &mut Applier,
        out: &mut Out,
    ) -> Result<()> {
        let mut maybe = Vec::new();
        self.overlay.may_hold(hashes, &mut maybe);
        let mut fates = vec![Fate::Kept; batch.len()];
        for i in maybe {
            fates[i] = self.overlay.fate(hashes[i], batch.key_of(i), read, true)?;
        }
        if fates.iter().any(|f| matches!(f, Fate::Becomes { .. })) {
            return self.in_place(&batch, &fates, applier, out).await;
        }
        out.flush().await?;
        let kept = match fates.iter().all(|f| *f == Fate::Kept) {
            true => batch,
            false => retain(&batch, |i| fates[i] == Fate::Kept),
        };
        out.send(renumber(kept, self.base_layer)).await
    }

    /// Documents of an ordered collection that keep their places.
    async fn in_place(&mut self, batch: &Batch, fates: &[Fate], applier: &mut Applier, out: &mut Out) -> Result<()> {
        for (i, fate) in fates.iter().enumerate() {
            match fate {
                Fate::Dropped => {}
                Fate::Kept => self.emit(batch, i, Patched::Not, applier, out).await?,
                Fate::Becomes { start, patches } => {
                    let patched = Patched::By(*patches);
                    match start {
                        Some(start) => self.document(*start, patched, applier, out).await?,
                        None => self.emit(batch, i, patched, applier, out).await?,
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
        patched: Patched<'_>,
        applier: &mut Applier,
        out: &mut Out,
    ) -> Result<()> {
        let frame = self.bodies.fetch(start.frame).await?;
        self.emit(&frame.batch, start.doc as usize, patched, applier, out).await
    }

    /// A document, as it is or patched.
    async fn emit(
        &mut self,
        batch: &Batch,
        i: usize,
        patched: Patched<'_>,
        applier: &mut Applier,
        out: &mut Out,
    ) -> Result<()> {
        let body = batch.body_of(i);
        out.making.like(batch, body.len()).push(batch.key_of(i), |into| match patched {
            Patched::By(patches) => self.overlay.apply(patches, body, applier, into),
            Patched::ByWritten(written) => applier.apply_written(written, body, into),
            Patched::Not => {
                into.extend_from_slice(body);
                Ok(())
            }
        })?;
        out.send_ready().await
    }

    /// Gathers the documents that the oldest layer does not place: in an ordered collection by when they
    /// came, in others by where their bodies are. Those with very many patches go out at once.
    async fn left(&mut self, winners: &mut Sorter, applier: &mut Applier, out: &mut Out) -> Result<()> {
        let (mut record, mut long, ordered) = (Vec::new(), Vec::new(), self.ordered);
        self.overlay.rest(if ordered { 0 } else { BESIDE }, |left| {
            let (start, by) = (left.start, if ordered { left.place } else { left.start });
            record.clear();
            record.extend_from_slice(&start.frame.to_le_bytes());
            record.extend_from_slice(&start.doc.to_le_bytes());
            match left.written {
                _ if ordered && left.patches.is_empty() => {}
                _ if ordered => left.patches.write(&mut record),
                Some(written) => record.extend_from_slice(written),
                None => {
                    long.push((start, left.patches));
                    return Ok(());
                }
            }
            winners.push([u64::from(by.frame), u64::from(by.doc)], &record)
        })?;
        for (start, patches) in long {
            self.document(start, Patched::By(patches), applier, out).await?;
        }
        Ok(())
    }

    async fn rest_in_order(&mut self, mut winners: Winners, applier: &mut Applier, out: &mut Out) -> Result<()> {
        while let Some((start, patches)) = winners.next()? {
            let patched = Patches::read(&patches).map_or(Patched::Not, Patched::By);
            self.document(start, patched, applier, out).await?;
        }
        Ok(())
    }

    async fn rest(&mut self, mut winners: Winners, applier: &mut Applier, out: &mut Out) -> Result<()> {
        let mut reading = FuturesOrdered::new();
        loop {
            while reading.len() < ahead()
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
                if !patches.is_empty() {
                    self.emit(batch, i, Patched::ByWritten(&patches), applier, out).await?;
                    continue;
                }
                as_it_is(batch, i, &mut plain);
            }
            out.send(renumber(plain, self.bodies.layer(number))).await?;
        }
    }
}

/// Adds the documents of a frame that nothing can change any more ([`Changes::settled`]).
fn settle(
    changes: &mut Changes,
    number: u32,
    (frame, hashes): (Frame, &[u64]),
    latest: u64,
    applier: &mut Applier,
    into: &mut Making,
) -> Result<()> {
    let batch = &frame.batch;
    let mut plain = retain(batch, |_| false);
    changes.settled(number, (&frame, hashes), latest, |i, patches| {
        let Some(patches) = patches else {
            as_it_is(batch, i, &mut plain);
            return Ok(());
        };
        let body = batch.body_of(i);
        into.like(batch, body.len()).push(batch.key_of(i), |made| applier.apply(patches, body, made))
    })?;
    into.add(renumber(plain, 0));
    Ok(())
}

/// Adds a document to a part of its batch ([`retain`]).
fn as_it_is(batch: &Batch, i: usize, part: &mut Batch) {
    part.docs.extend(batch.docs.get(i));
    part.attachments.extend(batch.attachments.get(i).cloned());
}

/// Decodes frames, and hashes their keys while they are near.
fn hashed(frames: &mut dyn Iterator<Item = Result<Frame>>, hashes: &Hashes) -> Result<Vec<(Frame, Vec<u64>)>> {
    let hashed = |frame: Result<Frame>| {
        let (frame, mut of_keys) = (frame?, Vec::new());
        hashes.of_batch(&frame.batch, &mut of_keys);
        Ok((frame, of_keys))
    };
    frames.map(hashed).collect()
}
