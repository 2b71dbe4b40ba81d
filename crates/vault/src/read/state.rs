//! The state that a point restores: each collection as a stream of documents.

use crate::log::LogFrame;
use crate::manifest::{Catalog, CatalogEntry, Layer, LayerRef};
use crate::objects::Objects;
use crate::points::Point;
use crate::read::at::Changes;
use crate::read::base::Base;
use crate::read::bodies::{ChangeFrame, FramePlace, Reader};
use crate::read::contents::ContentReader;
use crate::read::merge::{Memory, Merge};
use crate::read::out::renumber;
use crate::read::overlay::retain;
use crate::read::segments::Segments;
use crate::segment::SegmentEntry;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use model::{AttachmentStore, Batch, CollectionId, Description, EngineTime, Kind, Result, ResultExt, Selection};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Bytes of changes that are held in memory (128 MiB): the changes of about a million documents, and
/// with all else that a restore holds less than half of what it may take.
const MEMORY: usize = 128 << 20;

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
    pub(super) selection: Selection,
    pub(super) layers: Arc<Vec<LoadedLayer>>,
    segments: Arc<Segments>,
    contents: Arc<ContentReader>,
    pub(super) changes: Option<Arc<Changes>>,
    objects: Objects,
    log: Arc<LogOf>,
    memory: Arc<Memory>,
}

/// What the change log says of each collection.
#[derive(Debug, Default)]
struct LogOf {
    /// Numbers of the frames that speak of it, in order.
    frames: HashMap<CollectionId, Vec<u32>>,
    /// When it was last dropped or emptied.
    dropped: HashMap<CollectionId, EngineTime>,
}

impl LogOf {
    fn new(changes: &Changes) -> Self {
        let mut log = LogOf::default();
        for (number, frame) in changes.index.frames.iter().enumerate() {
            log.frames.entry(frame.collection.clone()).or_default().push(number as u32);
        }
        for (id, _, time) in changes.index.catalog.iter().filter(|(_, info, _)| info.is_none()) {
            log.dropped.insert(id.clone(), *time);
        }
        log
    }
}

impl State {
    /// What these layers hold of these collections, with the changes since.
    pub(super) fn new(
        objects: Objects,
        point: &Point,
        catalog: Catalog,
        selection: &Selection,
        layers: Vec<(Arc<LayerRef>, Layer)>,
        changes: Option<Changes>,
    ) -> State {
        let loaded = layers.into_iter().enumerate().map(|(number, (reference, layer))| {
            let segments = layer.segments.iter().cloned().map(Arc::new).collect();
            LoadedLayer { number, reference, layer, segments }
        });
        let layers = Arc::new(loaded.collect::<Vec<_>>());
        State {
            point: point.clone(),
            collections: Arc::new(catalog.collections.into_iter().filter(|c| selection.takes(&c.info.name)).collect()),
            losses: catalog.losses,
            selection: selection.clone(),
            segments: Arc::new(Segments::new(objects.clone())),
            contents: Arc::new(ContentReader::new(objects.clone(), layers.clone())),
            layers,
            log: Arc::new(changes.as_ref().map(LogOf::new).unwrap_or_default()),
            changes: changes.map(Arc::new),
            objects,
            memory: Memory::new(MEMORY, tempfile::tempfile),
        }
    }

    /// Holds about so many bytes of what has changed since the oldest layer was read, instead of 128
    /// MiB. If there is more, it goes to an encrypted temporary file, with the documents that wait for it.
    pub fn with_memory(mut self, bytes: usize) -> State {
        self.memory = Memory::new(bytes, tempfile::tempfile);
        self
    }

    /// The engine time whose state this is.
    pub fn time(&self) -> EngineTime {
        self.changes.as_ref().map_or(self.point.manifest.time, |c| c.until)
    }

    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

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
            && collection.counted
    }

    /// Gives the content of attachments of this state.
    pub fn attachments(&self) -> Arc<dyn AttachmentStore> {
        self.contents.clone()
    }

    /// The documents of a collection, attachments last. Those of an ordered collection come in
    /// order. No tombstones come, and no document twice.
    pub fn read(&self, collection: &CatalogEntry) -> BoxStream<'static, Result<Batch>> {
        self.read_spaces(collection, |_| true)
    }

    /// As [`State::read`], only of these kind spaces ([`model::Kind::space`]); others cost nothing.
    pub fn read_spaces(
        &self,
        collection: &CatalogEntry,
        wanted: impl Fn(&str) -> bool,
    ) -> BoxStream<'static, Result<Batch>> {
        let id = &collection.info.id;
        let from = self.layers.iter().rposition(|l| l.reference.whole.contains(id)).unwrap_or(0);
        let mut spaces: BTreeSet<(bool, String)> = BTreeSet::new();
        for layer in &self.layers[from..] {
            let of_collection = Layer::of(&layer.layer.collections, id).iter();
            // False comes before true: attachments are last.
            spaces.extend(of_collection.map(|c| (c.space == "attachment", c.space.clone())));
        }
        spaces.extend(self.log_frames(id).map(|f| (f.space == "attachment", f.space.clone())));
        let name = collection.info.name.clone();
        let reading = spaces
            .into_iter()
            .filter(|(attachments, space)| wanted(space) && !(*attachments && self.selection.no_attachments));
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
    /// changes of the younger ones and of the log, then what only those hold.
    async fn read_space(
        self,
        from: usize,
        id: CollectionId,
        space: String,
        ordered: bool,
    ) -> Result<BoxStream<'static, Result<Batch>>> {
        let dropped = self.log.dropped.get(&id).copied();
        // What was read up to the time that it was dropped at is gone.
        let is_there = |place: &FramePlace| dropped.is_none_or(|d| place.read.order > d.order);
        let base = self.frames_of(from, &id, &space).into_iter().filter(is_there).collect();
        let mut frames = Vec::new();
        for layer in self.layers.iter().skip(from + 1) {
            frames
                .extend(self.frames_of(layer.number, &id, &space).into_iter().filter(is_there).map(ChangeFrame::Layer));
        }
        frames.extend(self.log_frames(&id).filter(|f| f.space == space).cloned().map(ChangeFrame::Log));
        let base = Base::new(self.segments.clone(), id.clone(), base);
        let unchanged = |base: Base| base.frames().map_ok(move |(frame, _)| renumber(frame.batch, from)).boxed();
        if frames.is_empty() {
            return Ok(unchanged(base));
        }
        // What small changes take while they are sorted is a few times what they take in a frame.
        let needed = frames.iter().map(|f| 8 * f.raw()).sum::<usize>() + (1 << 20);
        let reader = Reader { objects: self.objects.clone(), segments: self.segments.clone(), id };
        let share = self.memory.share(needed);
        let merge = Merge::new(reader, frames, dropped, share, (from, ordered));
        Ok(merge.run(base, self.changes.as_ref().and_then(|c| c.patcher.clone())))
    }

    /// The frames of the log that speak of a collection.
    fn log_frames(&self, id: &CollectionId) -> impl Iterator<Item = &LogFrame> {
        let all = self.changes.as_ref().map(|c| &c.index.frames[..]).unwrap_or_default();
        self.log.frames.get(id).into_iter().flatten().filter_map(|number| all.get(*number as usize))
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

/// Whether a document is selected; an attachment is, if it or the document it belongs to is.
pub(super) fn takes(selection: &Selection, collection: &str, batch: &Batch, i: usize) -> bool {
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
