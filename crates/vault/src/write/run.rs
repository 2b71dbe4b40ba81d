//! One backup into a vault: its start, and what is written.

mod commit;
mod newest;

use self::newest::Newest;
use crate::checks;
use crate::crypto::Audience;
use crate::log::Chain;
use crate::manifest::{CatalogEntry, FilterRef, Manifest, SourceInfo};
use crate::name::{ObjectKind, PointName};
use crate::objects::{ObjectWriter, blocking};
use crate::points;
use crate::prune;
use crate::read::Segments;
use crate::segment::{Draft, SegmentEntry};
use crate::storage::Storage;
use crate::vault::Inner;
use crate::write::alive::Alive;
use crate::write::chain::ChainBase;
use crate::write::changed::ChangedContents;
use crate::write::contents::{KnownContents, RunContents};
use crate::write::filters::FilterBuilder;
use crate::write::known::{self, Compared, KNOWN_MAX, KnownSpace, OldLayer};
use crate::write::packer::{Packer, Sizes};
use crate::write::pieces::{KnownPieces, lists_after};
use futures::TryStreamExt;
use model::limits::{LAYERS_MAX, SEGMENT_TARGET};
use model::{
    AttachmentStore, Batch, BatchBuilder, CollectionId, CollectionInfo, Consistency, Description, Encoding, EngineTime,
    Error, Gap, Kind, Loss, Position, Result, ResultExt, Skipped, SourceState,
};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

/// How a backup is written.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// zstd level, 1 to 19; 0 stores everything as it is.
    pub level: i32,
    /// Store everything, also what has not changed.
    pub full: bool,
    /// Keep hashes of documents, so that the next run can find out what has changed.
    pub compare: bool,
    /// Segments that are compressed side by side.
    pub workers: usize,
    /// The name of the source in this vault, if it is not the engine's.
    pub name: Option<String>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        BackupOptions { level: 3, full: false, compare: true, workers, name: None }
    }
}

/// What a caller must do after writing a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Go on.
    Written,
    /// The order of an ordered collection has changed: read all of it again, from its start.
    /// Nothing that was written of it in this run counts.
    ReadAgain,
}

/// What the caller knows of the state that was read.
#[derive(Debug, Clone)]
pub struct PointDetails {
    /// The engine time that a restore gives.
    pub time: EngineTime,
    /// What can be said of the state.
    pub consistency: Consistency,
    /// Where changes go on.
    pub position: Option<Position>,
    /// A hole in the history before this point.
    pub gap: Option<Gap>,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

/// A backup under way. Dropped without [`Run::commit`], it leaves objects that no point names: the
/// next run finds and uses them, a prune removes them.
#[derive(Debug)]
pub struct Run {
    pub(super) vault: Arc<Inner>,
    pub(super) id: String,
    source: SourceInfo,
    losses: Vec<Loss>,
    pub(super) tag: String,
    started: i64,
    pub(super) options: BackupOptions,
    pub(super) previous: Option<(PointName, Manifest)>,
    /// Layers of the previous point that this one builds on; empty if everything is stored.
    base: Vec<OldLayer>,
    /// What the change log builds on, if it can build on the previous point.
    pub(super) chain_base: Option<ChainBase>,
    pub(super) chain: Mutex<Option<Chain>>,
    known_segments: Arc<HashMap<String, SegmentEntry>>,
    hash_lists: Segments,
    known_collections: HashSet<CollectionId>,
    pub(super) writer: Arc<ObjectWriter>,
    contents: Arc<RunContents>,
    pub(super) pieces: Arc<KnownPieces>,
    pub(super) changed: Arc<ChangedContents>,
    pub(super) alive: Alive,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    packer: Packer,
    hashes: Packer,
    collections: Vec<Collection>,
    /// Where each collection is in `collections`.
    index: HashMap<CollectionId, usize>,
    sealing: JoinSet<Result<SealedSegment>>,
    segments: Vec<Option<SegmentEntry>>,
    hash_segments: Vec<Option<SegmentEntry>>,
    filter: FilterBuilder,
    /// What is full and waits for its segments to be stored.
    full: VecDeque<FilterBuilder>,
    filters: Vec<FilterRef>,
    changed: u64,
    deleted: u64,
    raw: u64,
    /// What was read without a time of its own was read at this one.
    scanned: Option<EngineTime>,
    /// The least time that anything was read at.
    earliest: Option<EngineTime>,
    /// The greatest.
    latest: Option<EngineTime>,
    /// Whether something was left out, as it is unchanged, that was read at the least time.
    left_out: bool,
    /// Of the keys of the batch that is being written.
    key_hashes: Vec<u64>,
    /// Whether that least time was not the least after all.
    uneven: bool,
}

#[derive(Debug)]
struct Collection {
    entry: CatalogEntry,
    known: Option<HashMap<String, KnownSpace>>,
    whole: bool,
    wrote: bool,
    counted_changed: u64,
    /// The time that documents are read at from now on, where it is not the run's.
    read: Option<EngineTime>,
    /// Whether nothing that was written of it counts.
    discarded: bool,
}

#[derive(Debug)]
struct SealedSegment {
    number: u32,
    entry: SegmentEntry,
    is_hashes: bool,
}

impl State {
    fn note_read(&mut self, time: EngineTime) {
        self.uneven |= self.left_out && self.earliest.is_some_and(|e| time < e);
        self.earliest = Some(self.earliest.map_or(time, |e| e.min(time)));
        self.latest = Some(self.latest.map_or(time, |l| l.max(time)));
    }
}

impl Run {
    pub(crate) async fn start(
        vault: Arc<Inner>,
        description: &Description,
        time_of_run: i64,
        options: BackupOptions,
    ) -> Result<Run> {
        vault.signing()?;
        let objects = vault.objects()?;
        let id = crate::hash::hex(&vault.seams.bytes::<8>());
        // First the sign of life, then the look at what a prune means to remove: a prune does it
        // the other way round, so one of the two sees the other.
        let alive = Alive::start(vault.storage.clone(), vault.seams.clock.clone(), &id).await?;
        let mut doomed = prune::doomed(&vault.storage).await?;
        // What a check has found damaged is no better than absent: its content is stored anew.
        doomed.extend(checks::damaged(&vault).await?);
        let source = SourceInfo {
            engine: description.engine.clone(),
            identity: description.identity.clone(),
            name: options.name.clone().unwrap_or_else(|| description.name.clone()),
            version: description.version.clone(),
            feed: description.feed,
        };
        // A name given by the user is the source's identity in this vault, so that it can move.
        let identity = options.name.as_ref().map_or_else(|| source.identity.clone(), |n| format!("as:{n}"));
        let tag = objects.keys.source_tag(&source.engine.0, &identity);
        let Newest { history, log, point } = Newest::find(&vault, &tag).await?;
        vault.check_newest(&tag, &history).await?;
        let (previous, mut base) = match point {
            Some((name, manifest, layers)) => (Some((name, manifest)), layers),
            None => (None, Vec::new()),
        };
        let mut trusted: HashSet<String> = previous.iter().filter_map(|(_, m)| m.catalog_object.clone()).collect();
        let mut known_segments = HashMap::new();
        for OldLayer { reference, layer } in &base {
            trusted.extend(layer.objects().map(str::to_owned));
            trusted.insert(reference.object.clone());
            let known = layer.segments.iter().filter(|entry| !entry.frames.is_empty());
            known_segments.extend(known.map(|entry| (entry.object.clone(), entry.clone())));
        }
        let is_doomed = |path: &str| doomed.contains(path);
        let lost = missing_from(&vault.storage, &base).await?;
        if let Some(path) = &lost {
            tracing::warn!("the vault has lost {path}, which the last point needs: everything is stored anew");
        }
        let reusable =
            lost.is_none() && base.iter().all(|l| !is_doomed(&l.reference.object) && !l.layer.objects().any(is_doomed));
        let increments: u64 = base.iter().skip(1).map(|l| l.reference.raw).sum();
        let first = base.first().map_or(0, |l| l.reference.raw);
        let grown = base.len() >= LAYERS_MAX || increments > first / 2 + SEGMENT_TARGET as u64;
        let usable = reusable && !options.full;
        let layers = if usable { base.clone() } else { Vec::new() };
        let lists = match &previous {
            Some((_, manifest)) if usable => {
                let after = manifest.scanned().0.millis.max(0) as u64;
                lists_after(&vault, &tag, &log, after).await?
            }
            _ => Vec::new(),
        };
        let chain_base = match &previous {
            Some((_, manifest)) if reusable => ChainBase::load(&vault, manifest, log, is_doomed).await?,
            _ => None,
        };
        let mut known_collections = HashSet::new();
        // Without hashes of all that a layer holds, what is gone could not be told.
        let is_hashed = |l: &OldLayer| l.layer.collections.is_empty() || !l.layer.hash_collections.is_empty();
        if options.full || !options.compare || !reusable || grown || !base.iter().all(is_hashed) {
            base.clear();
        } else if let Some((_, manifest)) = &previous {
            // A collection that came after the scan has nothing to be compared with.
            let catalog = points::scanned_catalog(&vault, manifest).await?;
            known_collections = catalog.collections.into_iter().map(|c| c.info.id).collect();
        }
        let hash_lists = Segments::new(objects.clone());
        let writer = Arc::new(ObjectWriter::new(objects, trusted, doomed, vault.seams.random.clone()));
        let pieces = Arc::new(KnownPieces::new(vault.clone(), writer.clone(), layers, lists));
        let contents = Arc::new(RunContents::new(writer.clone(), pieces.clone(), options.level));
        let changed = RunContents::new(writer.clone(), pieces.clone(), options.level);
        let changed = Arc::new(ChangedContents::new(changed));
        let permits = Arc::new(Semaphore::new(options.workers.max(1)));
        let keys = writer.objects.keys.clone();
        let state = State {
            packer: Packer::new(Sizes::default(), writer.buffers.clone()).spread(keys),
            hashes: Packer::new(Sizes::HASHES, writer.buffers.clone()),
            ..State::default()
        };
        Ok(Run {
            vault,
            id,
            source,
            losses: description.losses.clone(),
            tag,
            started: time_of_run,
            options,
            previous,
            base,
            chain_base,
            chain: Mutex::default(),
            known_segments: Arc::new(known_segments),
            hash_lists,
            known_collections,
            writer,
            contents,
            pieces,
            changed,
            alive,
            permits,
            state: Mutex::new(state),
        })
    }

    /// The run's id, which becomes the point's.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the source's plan needs to know of the last point; none for the first backup.
    pub fn last(&self) -> Option<SourceState> {
        self.previous.as_ref().map(|(_, m)| SourceState {
            identity: m.source.identity.clone(),
            position: m.position.clone(),
            time: m.time,
        })
    }

    /// Whether this run stores everything.
    pub fn is_full(&self) -> bool {
        self.base.is_empty()
    }

    /// Bytes this run has added to the vault so far.
    pub fn stored(&self) -> u64 {
        self.writer.stored()
    }

    /// Where the source puts the content of attachments that it scans.
    pub fn attachments(&self) -> Arc<dyn AttachmentStore> {
        self.contents.clone()
    }

    /// Where the source puts the content of attachments that change while it is followed: what
    /// [`Run::append`] takes.
    pub fn changed_attachments(&self) -> Arc<dyn AttachmentStore> {
        self.changed.clone()
    }

    /// A collection is going to be read. Must come before its first batch, also for empty ones.
    pub async fn begin(&self, info: &CollectionInfo) -> Result<()> {
        let mut state = self.state.lock().await;
        if let Some(known) = state.index.get(&info.id).copied() {
            state.collections[known].entry.info = info.clone();
            return Ok(());
        }
        let comparable =
            self.known_collections.contains(&info.id) && known::known_hashes(&self.base, &info.id) <= KNOWN_MAX;
        let known = if comparable {
            let mut contents = KnownContents::default();
            let spaces = known::load(&self.writer.objects.keys, &self.hash_lists, &self.base, &info.id, &mut contents)
                .await
                .context(|| format!("finding out what is known of {}", info.name))?;
            self.contents.learn(contents).await;
            Some(spaces)
        } else {
            None
        };
        let whole = known.is_none();
        let number = state.collections.len();
        state.index.insert(info.id.clone(), number);
        state.collections.push(Collection {
            entry: CatalogEntry::empty(info.clone()),
            known,
            whole,
            wrote: false,
            counted_changed: 0,
            read: None,
            discarded: false,
        });
        Ok(())
    }

    /// What is written of a collection from now on was read at this engine time, not at the run's:
    /// for engines that cannot keep one time for a whole scan.
    pub async fn read_at(&self, id: &CollectionId, time: EngineTime) {
        let mut state = self.state.lock().await;
        state.note_read(time);
        if let Some(number) = state.index.get(id).copied() {
            state.collections[number].read = Some(time);
        }
    }

    /// What is written from now on without a time of its own is read at this engine time: needed
    /// before anything is written where the point's time is to be later, as changes follow the scan.
    pub async fn scanned_at(&self, time: EngineTime) {
        let mut state = self.state.lock().await;
        state.note_read(time);
        state.scanned = Some(time);
    }

    /// Writes a batch, or what is new of it.
    pub async fn write(&self, batch: Batch) -> Result<WriteOutcome> {
        batch.check()?;
        let mut state = self.state.lock().await;
        let state = &mut *state;
        let keys = &self.writer.objects.keys;
        let number = state.index.get(&batch.collection).copied();
        let collection = number
            .and_then(|number| state.collections.get_mut(number))
            .ok_or_else(|| Error::bug(format!("collection {} was not begun", batch.collection)))?;
        let space = batch.kind.space();
        let ordered = collection.entry.info.ordered && space == "document";
        let mut known = match &mut collection.known {
            Some(spaces) if !spaces.contains_key(space) => Some(spaces.entry(space.to_owned()).or_default()),
            Some(spaces) => spaces.get_mut(space),
            None => None,
        };
        let read = collection.read.or(state.scanned);
        // Changes since the least time count for what is left out. So what was read later, after
        // some of them, must be there with its own time.
        let comparable = read <= state.earliest;
        keys.keys_of(&batch, &mut state.key_hashes);
        if let Some(known) = known.as_deref() {
            known.near(&state.key_hashes);
        }
        let mut kept_hashes = self.options.compare.then(|| HashList::new(&batch));
        for i in 0..batch.len() {
            let hash = keys.document(&batch, i);
            let key_hash = state.key_hashes[i];
            count(&mut collection.entry, &batch, i);
            collection.entry.digest.add(hash);
            if let Some(known) = known.as_deref_mut() {
                let compared = known.compare(key_hash, hash.short());
                if ordered && known.is_out_of_order() {
                    let info = collection.entry.info.clone();
                    state.changed -= collection.counted_changed;
                    *collection = Collection {
                        entry: CatalogEntry::empty(info.clone()),
                        known: None,
                        whole: true,
                        wrote: false,
                        counted_changed: 0,
                        read: collection.read,
                        discarded: false,
                    };
                    state.packer.discard(&info.id);
                    state.hashes.discard(&info.id);
                    return Ok(WriteOutcome::ReadAgain);
                }
                if compared == Compared::Same && comparable {
                    state.left_out = true;
                    continue;
                }
                if compared == Compared::Same {
                    state.packer.push(&batch, i, key_hash, read)?;
                    state.raw += batch.body_of(i).len() as u64;
                    collection.wrote = true;
                    continue;
                }
            }
            state.packer.push(&batch, i, key_hash, read)?;
            state.raw += batch.body_of(i).len() as u64;
            state.changed += 1;
            collection.counted_changed += 1;
            collection.wrote = true;
            if let Some(list) = &mut kept_hashes {
                list.push(&batch, i, hash.short());
            }
        }
        if let Some(list) = kept_hashes.and_then(HashList::take) {
            for i in 0..list.len() {
                state.hashes.push(&list, i, 0, None)?;
            }
        }
        self.store_ready(state).await?;
        Ok(WriteOutcome::Written)
    }

    /// A collection has been read to its end: what was not seen of it is gone.
    pub async fn end(&self, id: &CollectionId) -> Result<()> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        let Some(number) = state.index.get(id).copied() else { return Ok(()) };
        let collection = &mut state.collections[number];
        if let Some(mut spaces) = collection.known.take() {
            let keys = &self.writer.objects.keys;
            for batch in known::gone(keys, &self.hash_lists, &self.base, id, &mut spaces).await? {
                for i in 0..batch.len() {
                    let key_hash = keys.key(id, &batch.kind, batch.key_of(i));
                    // When each was seen to be gone is not known: at the least time it may still
                    // have been there, and the log says so.
                    state.packer.push(&batch, i, key_hash, state.earliest)?;
                    state.hashes.push(&as_list(&batch), i, 0, None)?;
                }
                state.deleted += batch.len() as u64;
                collection.wrote = true;
            }
        }
        state.packer.end(id)?;
        self.store_ready(state).await
    }

    /// Nothing that was written of a collection counts: it no longer exists, or begins again.
    pub async fn discard(&self, id: &CollectionId) {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        let Some(number) = state.index.remove(id) else { return };
        let collection = &mut state.collections[number];
        collection.discarded = true;
        collection.known = None;
        state.changed -= collection.counted_changed;
        state.packer.discard(id);
        state.hashes.discard(id);
    }

    /// Stores the segments that are full, as many side by side as there are workers.
    async fn store_ready(&self, state: &mut State) -> Result<()> {
        for (number, draft) in state.packer.take_ready() {
            self.store_one(state, number, draft, false).await?;
        }
        for (number, draft) in state.hashes.take_ready() {
            self.store_one(state, number, draft, true).await?;
        }
        while let Some(done) = state.sealing.try_join_next() {
            self.sealed(state, done).await?;
        }
        Ok(())
    }

    async fn store_one(&self, state: &mut State, number: u32, mut draft: Draft, is_hashes: bool) -> Result<()> {
        let permit = loop {
            // What is done must be taken while waiting, or its memory would pile up.
            tokio::select! {
                biased;
                permit = self.permits.clone().acquire_owned() => {
                    break permit.map_err(|_| Error::bug("the workers are gone"))?;
                }
                Some(done) = state.sealing.join_next() => self.sealed(state, done).await?,
            }
        };
        let keys: Vec<_> = draft.frames.iter_mut().map(|f| std::mem::take(&mut f.key_hashes)).collect();
        if !is_hashes {
            // Here and not when it is stored, as segments are stored in no certain order and a
            // second attempt should make the same filters.
            state.filter.add(number, &keys);
            if state.filter.is_full() {
                state.full.push_back(std::mem::take(&mut state.filter));
            }
        }
        let (kind, audience) =
            if is_hashes { (ObjectKind::Hashes, Audience::Writers) } else { (ObjectKind::Segment, Audience::Readers) };
        let (writer, known, level) = (self.writer.clone(), self.known_segments.clone(), self.options.level);
        state.sealing.spawn(async move {
            let entry = writer.put_segment(kind, audience, level, draft, &known).await?;
            drop(permit);
            Ok(SealedSegment { number, entry, is_hashes })
        });
        Ok(())
    }

    async fn sealed(
        &self,
        state: &mut State,
        done: Result<Result<SealedSegment>, tokio::task::JoinError>,
    ) -> Result<()> {
        let done = done.map_err(|e| Error::bug(format!("a worker stopped: {e}")))??;
        let segments = if done.is_hashes { &mut state.hash_segments } else { &mut state.segments };
        place(segments, done.number, done.entry);
        self.store_filters(state).await
    }

    /// Stores the filters that are full and have all their segments stored.
    async fn store_filters(&self, state: &mut State) -> Result<()> {
        while let Some(segments) = state.full.front().and_then(|f| f.segments_of(&state.segments)) {
            let Some(builder) = state.full.pop_front() else { break };
            // In the place of a segment, and of the frames that wait: so it takes no more memory.
            let permit = self.permits.acquire().await.map_err(|_| Error::bug("the workers are gone"))?;
            self.writer.buffers.clear();
            let mut filters = builder.finish(segments);
            loop {
                let keys = self.writer.objects.keys.clone();
                let (rest, encoded) = blocking(move || {
                    let encoded = filters.encode_next(&keys)?;
                    Ok((filters, encoded))
                })
                .await?;
                let Some(encoded) = encoded else { break };
                filters = rest;
                state.filters.push(self.writer.put_filter(self.options.level, encoded).await?);
            }
            drop(permit);
        }
        Ok(())
    }

    /// Completes the point: everything it needs is stored durably, then its manifest. Once this
    /// returns, the point can be restored.
    pub async fn commit(self, details: PointDetails) -> Result<(PointName, Manifest)> {
        let committed = self.complete(details).await;
        if let Err(e) = self.alive.end().await {
            // The point stands; the sign of life expires by itself.
            tracing::warn!("taking away the run's sign of life failed: {e}");
        }
        committed
    }

    /// Gives up: what was stored stays for the next run, no point is made.
    pub async fn abandon(self) -> Result<()> {
        self.state.lock().await.sealing.abort_all();
        self.alive.end().await
    }
}

/// An object of these layers that is no longer there, or has another size: a point must not build
/// on it.
async fn missing_from(storage: &Arc<dyn Storage>, layers: &[OldLayer]) -> Result<Option<String>> {
    let sizes: HashMap<&str, u64> = layers.iter().flat_map(|l| l.layer.sizes()).collect();
    if sizes.is_empty() {
        return Ok(None);
    }
    let mut left = sizes;
    for kind in [ObjectKind::Segment, ObjectKind::Part, ObjectKind::Hashes, ObjectKind::Filter] {
        let mut entries = storage.list(&format!("{}/", kind.folder())).await?;
        while let Some(entry) = entries.try_next().await? {
            if left.get(entry.name.as_str()) == Some(&entry.size) {
                left.remove(entry.name.as_str());
            }
        }
    }
    Ok(left.into_keys().next().map(str::to_owned))
}

fn count(entry: &mut CatalogEntry, batch: &Batch, i: usize) {
    if batch.kind == Kind::Attachment {
        entry.attachments += 1;
        entry.attachment_bytes += batch.attachments.get(i).map_or(0, |a| a.length);
    } else {
        entry.documents += 1;
        entry.document_bytes += batch.body_of(i).len() as u64;
    }
}

fn place(list: &mut Vec<Option<SegmentEntry>>, number: u32, entry: SegmentEntry) {
    let number = number as usize;
    if list.len() <= number {
        list.resize_with(number + 1, || None);
    }
    list[number] = Some(entry);
}

/// The hashes of a batch's documents, as documents of a hash list: the same kinds and keys, 8 bytes
/// of hash as bodies, none for deletions.
struct HashList(BatchBuilder);

impl HashList {
    fn new(batch: &Batch) -> Self {
        HashList(BatchBuilder::new(batch.collection.clone(), batch.kind.clone(), Encoding::Bin))
    }

    fn push(&mut self, batch: &Batch, i: usize, hash: u64) {
        match batch.attachments.get(i) {
            Some(content) => self.0.push_attachment(batch.key_of(i), &hash.to_le_bytes(), content.clone()),
            None => self.0.push(batch.key_of(i), &hash.to_le_bytes()),
        }
    }

    fn take(mut self) -> Option<Batch> {
        (!self.0.is_empty()).then(|| self.0.take())
    }
}

fn as_list(tombstones: &Batch) -> Batch {
    Batch { encoding: Encoding::Bin, ..tombstones.clone() }
}
