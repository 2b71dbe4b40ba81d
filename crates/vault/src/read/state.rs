//! The state that a point restores: each collection as a stream of documents.

use crate::frame::Frame;
use crate::hash::HashKeys;
use crate::log;
use crate::manifest::{Catalog, CatalogEntry, Layer, LayerRef};
use crate::points::{self, Point};
use crate::read::contents::ContentReader;
use crate::read::overlay::{Fate, Overlay, Spot, check_collection, only, retain};
use crate::read::segments::Segments;
use crate::segment::SegmentEntry;
use crate::vault::{Inner, Vault};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use model::{
    AttachmentRef, AttachmentStore, Batch, BatchBuilder, CollectionId, Description, EngineTime, Error, Kind, Patcher,
    Result, ResultExt, Selection,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Segments that are decoded side by side for one collection.
const AHEAD: usize = 3;

/// A layer of a point, read.
#[derive(Debug)]
pub(crate) struct LoadedLayer {
    pub number: usize,
    pub reference: Arc<LayerRef>,
    pub layer: Layer,
    /// The layer's segments, to be shared: a table of frames can be long.
    segments: Vec<Arc<SegmentEntry>>,
}

/// What a point restores.
#[derive(Debug, Clone)]
pub struct State {
    point: Point,
    collections: Arc<Vec<CatalogEntry>>,
    losses: Vec<model::Loss>,
    selection: Selection,
    layers: Arc<Vec<LoadedLayer>>,
    segments: Arc<Segments>,
    keys: HashKeys,
    contents: Arc<ContentReader>,
    changes: Option<Arc<Changes>>,
}

impl Vault {
    /// The state that a point restores, of the collections that the selection means. Needs a
    /// recipient's identity, or a plain vault.
    pub async fn resolve(&self, point: &Point, selection: &Selection) -> Result<State> {
        let catalog = points::catalog(&self.inner, &point.manifest).await?;
        resolve(&self.inner, point, catalog, selection, None).await
    }

    /// The state of a source at a time between points: the newest point up to that time, and what
    /// the change log says since. `patcher` applies the engine's patches; without one a log that
    /// holds patches is refused.
    pub async fn resolve_at(
        &self,
        source: &str,
        at: EngineTime,
        selection: &Selection,
        patcher: Option<Arc<dyn Patcher>>,
    ) -> Result<State> {
        let points = self.points().await?;
        let point = points.of(source).filter(|p| p.manifest.time <= at).max_by_key(|p| p.manifest.time).cloned();
        let Some(point) = point else {
            return Err(Error::input(format!("there is no point at or before {at}"))
                .hint("`rewound points VAULT` shows which times can be restored"));
        };
        // A range that was read early may need changes from before the point's own time.
        let mut first = point.manifest.time;
        for layer in &point.manifest.layers {
            first = first.min(layer.earliest.unwrap_or(layer.time));
        }
        let index = log::index(&self.inner, source, first, at).await?;
        let mut catalog = points::catalog(&self.inner, &point.manifest).await?;
        for (id, info, _) in index.catalog.iter().filter(|(.., time)| *time > point.manifest.time) {
            let known = catalog.collections.iter().position(|c| c.info.id == *id);
            match (known, info) {
                (Some(i), Some(info)) => catalog.collections[i].info = info.clone(),
                (Some(i), None) => drop(catalog.collections.remove(i)),
                (None, Some(info)) => catalog.collections.push(CatalogEntry::empty(info.clone())),
                (None, None) => {}
            }
        }
        let changes = Changes { index, until: at, patcher };
        resolve(&self.inner, &point, catalog, selection, Some(Arc::new(changes))).await
    }
}

/// What the change log adds to a point.
struct Changes {
    index: log::LogIndex,
    until: EngineTime,
    patcher: Option<Arc<dyn Patcher>>,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("index", &self.index).field("until", &self.until).finish_non_exhaustive()
    }
}

async fn resolve(
    vault: &Arc<Inner>,
    point: &Point,
    catalog: Catalog,
    selection: &Selection,
    changes: Option<Arc<Changes>>,
) -> Result<State> {
    let objects = vault.need_reader()?;
    let mut layers = Vec::new();
    for (number, reference) in point.manifest.layers.iter().enumerate() {
        let layer = objects.layer(&reference.object).await?;
        let segments = layer.segments.iter().cloned().map(Arc::new).collect();
        layers.push(LoadedLayer { number, reference: reference.clone(), layer, segments });
    }
    let layers = Arc::new(layers);
    Ok(State {
        point: point.clone(),
        collections: Arc::new(catalog.collections.into_iter().filter(|c| selection.takes(&c.info.name)).collect()),
        losses: catalog.losses,
        selection: selection.clone(),
        segments: Arc::new(Segments::new(objects.clone())),
        keys: objects.keys.clone(),
        contents: Arc::new(ContentReader::new(objects, layers.clone())),
        layers,
        changes,
    })
}

impl State {
    /// The point.
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// The selected collections, in the order in which they are restored.
    pub fn collections(&self) -> &[CatalogEntry] {
        &self.collections
    }

    /// The source as it described itself, with the selected collections.
    pub fn description(&self) -> Description {
        let source = &self.point.manifest.source;
        Description {
            engine: source.engine.clone(),
            identity: source.identity.clone(),
            name: source.name.clone(),
            version: source.version.clone(),
            feed: source.feed,
            collections: self.collections.iter().map(|c| c.info.clone()).collect(),
            losses: self.losses.clone(),
        }
    }

    /// Whether all documents of a collection are selected, so that what is read must have the
    /// catalog's count and digest.
    pub fn is_whole(&self, collection: &CatalogEntry) -> bool {
        self.selection.takes_all_of(&collection.info.name)
            && (!self.selection.no_attachments || collection.attachments == 0)
            && self.changes.is_none()
    }

    /// Gives the content of attachments of this state.
    pub fn attachments(&self) -> Arc<dyn AttachmentStore> {
        self.contents.clone()
    }

    /// The documents of a collection, attachments last. Those of an ordered collection come in
    /// order. No tombstones come, and no document twice.
    pub fn read(&self, collection: &CatalogEntry) -> BoxStream<'static, Result<Batch>> {
        let id = &collection.info.id;
        let from = self.layers.iter().rposition(|l| l.reference.whole.contains(id)).unwrap_or(0);
        let mut spaces: BTreeSet<(bool, String)> = BTreeSet::new();
        for layer in &self.layers[from..] {
            let of_collection = Layer::of(&layer.layer.collections, id).iter();
            // False comes before true: attachments are last.
            spaces.extend(of_collection.map(|c| (c.space == "attachment", c.space.clone())));
        }
        if let Some(changes) = &self.changes {
            let of_collection = changes.index.frames.iter().filter(|f| f.collection == *id);
            spaces.extend(of_collection.map(|f| (f.space == "attachment", f.space.clone())));
        }
        let name = collection.info.name.clone();
        let reading = spaces.into_iter().filter(|(attachments, _)| !(*attachments && self.selection.no_attachments));
        let streams: Vec<_> = reading
            .map(|(_, space)| {
                let state = self.clone();
                let (id, ordered) = (id.clone(), collection.info.ordered && space == "document");
                stream::once(async move { state.read_space(from, id, space, ordered).await }).try_flatten().boxed()
            })
            .collect();
        let selection = self.selection.clone();
        let whole = selection.takes_all_of(&name);
        stream::iter(streams)
            .flatten()
            .map(move |batch| {
                let batch = batch.context(|| format!("reading collection {name}"))?;
                if whole {
                    return Ok(batch);
                }
                Ok(retain(&batch, |i| takes(&selection, &name, &batch, i)))
            })
            .try_filter(|batch| std::future::ready(!batch.is_empty()))
            .boxed()
    }

    /// Reads one kind space of a collection: the oldest layer that counts, streamed against the
    /// changes of the younger ones, then what only those hold.
    async fn read_space(
        self,
        from: usize,
        id: CollectionId,
        space: String,
        ordered: bool,
    ) -> Result<BoxStream<'static, Result<Batch>>> {
        let base = self.frames_of(from, &id, &space);
        let mut changes = Vec::new();
        let mut overlay = Overlay::default();
        for layer in self.layers.iter().skip(from + 1) {
            for place in self.frames_of(layer.number, &id, &space) {
                let frame = read_one(&self.segments, &place).await?;
                check_collection(&frame.batch, &id)?;
                overlay.add_layer_frame(&self.keys, changes.len() as u32, &frame, place.read);
                changes.push(place);
            }
        }
        if let Some(log) = &self.changes {
            for found in log.index.frames.iter().filter(|f| f.collection == id && f.space == space) {
                let place =
                    FramePlace { layer: usize::MAX, entry: found.entry.clone(), frame: found.number, read: log.until };
                let frame = read_one(&self.segments, &place).await?;
                overlay.add_log_frame(&self.keys, changes.len() as u32, &frame, log.until)?;
                changes.push(place);
            }
        }
        // A collection that was empty has no frames, but it was read too.
        self.layers.iter().skip(from).for_each(|l| overlay.set_read(l.reference.time));
        let stream = self.stream_frames(base, id.clone());
        if overlay.is_empty() {
            return Ok(stream.map_ok(move |(frame, _)| renumber(frame.batch, from)).boxed());
        }
        overlay.finish();
        let merge = Merge {
            segments: self.segments.clone(),
            keys: self.keys.clone(),
            changes,
            overlay,
            ordered,
            base_layer: from,
            patcher: self.changes.as_ref().and_then(|c| c.patcher.clone()),
            last: None,
        };
        Ok(merge.run(stream))
    }

    /// Where the frames of a collection and kind space are in a layer, in order.
    fn frames_of(&self, layer: usize, id: &CollectionId, space: &str) -> Vec<FramePlace> {
        let Some(loaded) = self.layers.get(layer) else { return Vec::new() };
        loaded
            .layer
            .timed_frames_of(id, space)
            .into_iter()
            .map(|(segment, frame, read)| {
                let entry = loaded.segments.get(segment as usize).cloned().unwrap_or_else(no_segment);
                FramePlace { layer, entry, frame, read }
            })
            .collect()
    }

    /// Decodes frames, some segments ahead, in order.
    fn stream_frames(
        &self,
        places: Vec<FramePlace>,
        id: CollectionId,
    ) -> BoxStream<'static, Result<(Frame, EngineTime)>> {
        let mut groups: Vec<(Arc<SegmentEntry>, Vec<u32>, EngineTime)> = Vec::new();
        for place in places {
            match groups.last_mut() {
                // At most 8 frames at once: that bounds what is decoded ahead.
                Some((entry, frames, read))
                    if Arc::ptr_eq(entry, &place.entry) && frames.len() < 8 && *read == place.read =>
                {
                    frames.push(place.frame);
                }
                _ => groups.push((place.entry, vec![place.frame], place.read)),
            }
        }
        let segments = self.segments.clone();
        stream::iter(groups)
            .map(move |(entry, frames, read)| {
                let segments = segments.clone();
                async move { segments.read(&entry, frames).await.map(|frames| (frames, read)) }
            })
            .buffered(AHEAD)
            .map_ok(|(frames, read)| stream::iter(frames.into_iter().map(move |f| Ok((f, read)))))
            .try_flatten()
            .and_then(move |(frame, read)| {
                std::future::ready(check_collection(&frame.batch, &id).map(|()| (frame, read)))
            })
            .boxed()
    }
}

/// Stands for a segment that a layer's table lacks: reading it fails as damage.
fn no_segment() -> Arc<SegmentEntry> {
    Arc::new(SegmentEntry {
        object: String::new(),
        size: 0,
        head: String::new(),
        frames: vec![],
        raw: 0,
        counts: vec![],
    })
}

#[derive(Debug, Clone)]
struct FramePlace {
    layer: usize,
    entry: Arc<SegmentEntry>,
    frame: u32,
    /// The engine time its documents were read at.
    read: EngineTime,
}

/// Streams the oldest layer against a table of changes.
struct Merge {
    segments: Arc<Segments>,
    keys: HashKeys,
    changes: Vec<FramePlace>,
    overlay: Overlay,
    ordered: bool,
    base_layer: usize,
    patcher: Option<Arc<dyn Patcher>>,
    last: Option<(u32, Frame)>,
}

impl Merge {
    fn run(mut self, mut base: BoxStream<'static, Result<(Frame, EngineTime)>>) -> BoxStream<'static, Result<Batch>> {
        let (sender, receiver) = futures::channel::mpsc::channel::<Result<Batch>>(2);
        let work = async move {
            let mut sender = sender;
            let result = self.feed(&mut base, &mut sender).await;
            if let Err(e) = result {
                // A reader that is gone needs no error.
                let _ = futures::SinkExt::send(&mut sender, Err(e)).await;
            }
        };
        // Driven by whoever reads: nothing goes on when the stream is dropped.
        stream::select(receiver, stream::once(work).filter_map(|()| std::future::ready(None))).boxed()
    }

    async fn feed(
        &mut self,
        base: &mut BoxStream<'static, Result<(Frame, EngineTime)>>,
        out: &mut futures::channel::mpsc::Sender<Result<Batch>>,
    ) -> Result<()> {
        while let Some((frame, read)) = base.try_next().await? {
            let batch = &frame.batch;
            let mut fates = Vec::with_capacity(batch.len());
            for i in 0..batch.len() {
                let hash = self.keys.key(&batch.collection, &batch.kind, batch.key_of(i));
                fates.push(self.overlay.fate(hash, batch.key_of(i), read, self.ordered)?);
            }
            if fates.iter().all(|f| *f == Fate::Kept) {
                send(out, renumber(frame.batch, self.base_layer)).await?;
                continue;
            }
            let mut at = 0;
            while at < fates.len() {
                let run = fates[at..].iter().take_while(|f| !matches!(f, Fate::Becomes { .. })).count();
                let here = at..at + run;
                let kept = retain(batch, |i| here.contains(&i) && fates[i] == Fate::Kept);
                send(out, renumber(kept, self.base_layer)).await?;
                at += run;
                if let Some(Fate::Becomes { start, patches }) = fates.get(at) {
                    let body = match start {
                        Some(start) => self.fetch(*start).await?,
                        None => renumber(only(batch, at), self.base_layer),
                    };
                    let changed = self.patched(body, patches).await?;
                    send(out, changed).await?;
                    at += 1;
                }
            }
        }
        // Neighbours in one frame go out together.
        let mut pending: Option<(u32, Vec<usize>)> = None;
        for (start, patches) in self.overlay.rest(self.ordered)? {
            if !patches.is_empty() {
                if let Some(done) = pending.take() {
                    let batch = self.fetch_many(done).await?;
                    send(out, batch).await?;
                }
                let body = self.fetch(start).await?;
                let changed = self.patched(body, &patches).await?;
                send(out, changed).await?;
                continue;
            }
            match &mut pending {
                Some((frame, docs)) if *frame == start.frame => docs.push(start.doc as usize),
                _ => {
                    if let Some(done) = pending.replace((start.frame, vec![start.doc as usize])) {
                        let batch = self.fetch_many(done).await?;
                        send(out, batch).await?;
                    }
                }
            }
        }
        if let Some(done) = pending {
            let batch = self.fetch_many(done).await?;
            send(out, batch).await?;
        }
        Ok(())
    }

    async fn frame(&mut self, number: u32) -> Result<&Frame> {
        if self.last.as_ref().is_none_or(|(n, _)| *n != number) {
            let place = self.changes.get(number as usize).ok_or_else(|| Error::bug("a change without a frame"))?;
            self.last = Some((number, read_one(&self.segments, place).await?));
        }
        self.last.as_ref().map(|(_, f)| f).ok_or_else(|| Error::bug("a frame was not read"))
    }

    async fn fetch(&mut self, spot: Spot) -> Result<Batch> {
        let layer = self.changes.get(spot.frame as usize).map_or(0, |p| p.layer);
        let frame = self.frame(spot.frame).await?;
        Ok(renumber(only(&frame.batch, spot.doc as usize), layer))
    }

    /// A batch of one document with patches applied.
    async fn patched(&mut self, batch: Batch, patches: &[Spot]) -> Result<Batch> {
        if patches.is_empty() {
            return Ok(batch);
        }
        let patcher = self.patcher.clone().ok_or_else(|| Error::unsupported("this engine's patches are not known"))?;
        let mut body = batch.body_of(0).to_vec();
        for spot in patches {
            let frame = self.frame(spot.frame).await?;
            body = patcher.apply(&body, frame.batch.body_of(spot.doc as usize))?;
        }
        let mut builder = BatchBuilder::new(batch.collection.clone(), batch.kind.clone(), batch.encoding);
        builder.push(batch.key_of(0), &body);
        Ok(builder.take())
    }

    async fn fetch_many(&mut self, (number, docs): (u32, Vec<usize>)) -> Result<Batch> {
        let layer = self.changes.get(number as usize).map_or(0, |p| p.layer);
        let frame = self.frame(number).await?;
        let mut batch = retain(&frame.batch, |_| false);
        batch.docs = docs.iter().filter_map(|i| frame.batch.docs.get(*i).copied()).collect();
        batch.attachments = docs.iter().filter_map(|i| frame.batch.attachments.get(*i).cloned()).collect();
        Ok(renumber(batch, layer))
    }
}

async fn read_one(segments: &Segments, place: &FramePlace) -> Result<Frame> {
    let mut frames = segments.read(&place.entry, vec![place.frame]).await?;
    frames.pop().ok_or_else(|| Error::bug("a frame was not read"))
}

async fn send(out: &mut futures::channel::mpsc::Sender<Result<Batch>>, batch: Batch) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    futures::SinkExt::send(out, Ok(batch))
        .await
        .map_err(|_| Error::new(model::ErrorKind::Interrupted, "the reader of a collection has gone"))
}

/// Places of attachments mean something in their own layer only: says which.
fn renumber(mut batch: Batch, layer: usize) -> Batch {
    if batch.kind == Kind::Attachment {
        for attachment in &mut batch.attachments {
            *attachment = AttachmentRef {
                place: format!("{layer}/{}", attachment.place).into(),
                digest: attachment.digest,
                length: attachment.length,
            };
        }
    }
    batch
}

/// Whether a document is selected; an attachment is, if it or the document it belongs to is.
fn takes(selection: &Selection, collection: &str, batch: &Batch, i: usize) -> bool {
    let key = batch.key_of(i);
    if selection.takes_key(collection, key) {
        return true;
    }
    if batch.kind != Kind::Attachment {
        return false;
    }
    #[derive(serde::Deserialize)]
    struct Owner {
        document: String,
    }
    serde_json::from_slice::<Owner>(batch.body_of(i))
        .is_ok_and(|owner| selection.takes_key(collection, owner.document.as_bytes()))
}
