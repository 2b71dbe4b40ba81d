//! Every version of one document, with a few small reads.

use crate::log::{self, CATALOG_SPACE, LogObject, may_hold};
use crate::manifest::{LayerRef, Manifest};
use crate::objects::{Objects, blocking};
use crate::points::{self, Point};
use crate::read::lookup::look_in_layer;
use crate::vault::{Inner, Vault};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use model::{
    CollectionId, CollectionInfo, Encoding, Engine, EngineTime, Error, ErrorKind, FeedKind, Kind, Patcher, Result,
    ResultExt,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Objects that are looked into side by side.
const SIDE_BY_SIDE: usize = 8;

/// One version of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// When it came to be, where the change log tells; else when it was read.
    pub time: EngineTime,
    /// The first point that shows it: its run; none if no point does.
    pub point: Option<String>,
    /// The object of the change log that tells of it, if one does.
    pub log: Option<String>,
    /// The source's name.
    pub source: String,
    /// The source's tag.
    pub tag: String,
    /// The source's engine.
    pub engine: Engine,
    /// Which changes the engine tells.
    pub feed: FeedKind,
    /// The collection, as it was known last.
    pub collection: Arc<CollectionInfo>,
    /// The key, in the engine's own bytes.
    pub key: Bytes,
    /// Whether this is a deletion.
    pub deleted: bool,
    /// What it is.
    pub kind: Kind,
    /// How its body is encoded.
    pub encoding: Encoding,
    /// The body; empty for a deletion.
    pub body: Bytes,
}

/// What to look for, in which source.
pub struct Wanted<'a> {
    /// The collection's name, at any time.
    pub collection: &'a str,
    /// The keys that an engine may mean.
    pub keys: &'a (dyn Fn(&Engine) -> Vec<Vec<u8>> + Sync),
    /// What applies an engine's patches.
    pub patcher: &'a (dyn Fn(&Engine) -> Option<Arc<dyn Patcher>> + Sync),
    /// The tag of the source; none: all.
    pub source: Option<&'a str>,
}

impl Vault {
    /// Every version of one document, newest first; of one source if its tag is given. A version
    /// that was stored twice without a change in between comes once.
    pub async fn find(&self, collection: &str, key: &[u8], source: Option<&str>) -> Result<Vec<Version>> {
        let wanted = Wanted { collection, keys: &|_| vec![key.to_vec()], patcher: &|_| None, source };
        self.find_any(&wanted).await
    }

    /// As [`Vault::find`], of all documents with one of the keys that the engine gives, from the
    /// layers of points and from the change log.
    pub async fn find_any(&self, wanted: &Wanted<'_>) -> Result<Vec<Version>> {
        let vault = &self.inner;
        let objects = vault.need_reader()?;
        let points = points::read_all(vault).await?;
        let mut by_tag: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
        for point in points.points.iter().filter(|p| wanted.source.is_none_or(|s| s == p.name.source)) {
            by_tag.entry(&point.name.source).or_default().push(point);
        }
        let (mut versions, mut known, mut names) = (Vec::new(), false, Vec::new());
        for (tag, mut of_source) in by_tag {
            of_source.sort_by_key(|p| (p.manifest.time, p.name.committed));
            let source = SourceOf::read(vault, &objects, tag, of_source, wanted).await?;
            names.extend(source.names.iter().cloned());
            known |= !source.collections.is_empty();
            let engine = source.engine();
            for key in (wanted.keys)(&engine) {
                versions.extend(source.versions(&key, (wanted.patcher)(&engine)).await?);
            }
        }
        if !known {
            names.truncate(20);
            let error = Error::input(format!("no point of this vault has a collection {:?}", wanted.collection));
            return Err(error.hint(format!("the newest point has: {}", names.join(", "))));
        }
        versions.reverse();
        versions.sort_by_key(|v| Reverse(v.time));
        Ok(versions)
    }
}

/// Of what the engine did at one time, a transaction, only the last is ever seen.
fn once_a_time(versions: Vec<Version>) -> Vec<Version> {
    let mut kept: Vec<Version> = Vec::with_capacity(versions.len());
    for version in versions {
        if kept.last().is_some_and(|k| k.time == version.time) {
            kept.pop();
        }
        kept.push(version);
    }
    kept
}

/// Where an event is told.
#[derive(Debug, Clone, Copy)]
enum Told {
    Layer,
    /// Number of the log object.
    Log(usize),
}

/// Something that happened to the document, or was seen of it.
#[derive(Debug, Clone)]
struct Event {
    time: EngineTime,
    /// What was seen stands after changes of the same time: they are in it already.
    seen: bool,
    what: What,
    told: Told,
}

#[derive(Debug, Clone)]
enum What {
    Put(Kind, Encoding, Bytes),
    Patch(Bytes),
    Gone,
    /// A scan did not see it, which began at this time.
    Unseen(EngineTime),
}

/// One source, as far as its collection of a name goes.
struct SourceOf<'a> {
    objects: &'a Objects,
    tag: &'a str,
    points: Vec<&'a Point>,
    /// For each point, the collections that its scan had, and those that it restores, of those that
    /// are looked for.
    has: Vec<[HashSet<CollectionId>; 2]>,
    /// The collections that had the name, as they were known last.
    collections: BTreeMap<CollectionId, Arc<CollectionInfo>>,
    /// Objects of the log by time, each with the time up to which those before it are complete.
    log: Vec<(LogObject, EngineTime)>,
    /// When collections were dropped, and which object tells.
    drops: Vec<(CollectionId, EngineTime, usize)>,
    /// Collections of the newest point.
    names: Vec<String>,
}

impl<'a> SourceOf<'a> {
    async fn read(
        vault: &'a Arc<Inner>,
        objects: &'a Objects,
        tag: &'a str,
        points: Vec<&'a Point>,
        wanted: &Wanted<'_>,
    ) -> Result<SourceOf<'a>> {
        let mut source = SourceOf {
            objects,
            tag,
            points,
            has: Vec::new(),
            collections: BTreeMap::new(),
            log: read_log(vault, tag).await?,
            drops: Vec::new(),
            names: Vec::new(),
        };
        let mut catalogs = Catalogs::default();
        // For each point, the collections of its scan, and those that it restores.
        let mut all: Vec<[Arc<Vec<CollectionInfo>>; 2]> = Vec::new();
        for point in &source.points {
            let manifest = &point.manifest;
            let now = catalogs.get(vault, manifest, false).await?;
            let scanned = match &manifest.scan {
                Some(_) => catalogs.get(vault, manifest, true).await?,
                None => now.clone(),
            };
            all.push([scanned, now]);
        }
        let changes = source.catalog_changes().await?;
        let infos =
            all.iter().flatten().flat_map(|c| c.iter()).chain(changes.iter().filter_map(|(_, info, ..)| info.as_ref()));
        let ids: HashSet<CollectionId> =
            infos.clone().filter(|i| i.name == wanted.collection).map(|i| i.id.clone()).collect();
        for info in infos.filter(|i| ids.contains(&i.id)) {
            source.collections.insert(info.id.clone(), Arc::new(info.clone()));
        }
        let ids_in = |c: &Arc<Vec<CollectionInfo>>| -> HashSet<CollectionId> {
            c.iter().filter(|i| ids.contains(&i.id)).map(|i| i.id.clone()).collect()
        };
        source.has = all.iter().map(|pair| pair.each_ref().map(ids_in)).collect();
        let drops = changes.iter().filter(|(id, info, ..)| info.is_none() && ids.contains(id));
        source.drops = drops.map(|(id, _, time, object)| (id.clone(), *time, *object)).collect();
        source.names = all.last().map(|[_, c]| c.iter().take(20).map(|i| i.name.clone()).collect()).unwrap_or_default();
        Ok(source)
    }

    fn engine(&self) -> Engine {
        self.points.last().map_or_else(|| Engine::new(""), |p| p.manifest.source.engine.clone())
    }

    /// Changes of collections that the log tells of, in order, each with the number of the object.
    async fn catalog_changes(&self) -> Result<Vec<(CollectionId, Option<CollectionInfo>, EngineTime, usize)>> {
        let mut all = Vec::new();
        for (number, (object, after)) in self.log.iter().enumerate() {
            for (i, info) in object.header.frames.iter().enumerate().filter(|(_, f)| f.kind.space() == CATALOG_SPACE) {
                let frame = object.frame(self.objects, i).await?;
                let changes = log::catalog_changes(&frame, *after, EngineTime::MAX);
                let changes = changes.context(|| format!("reading what became of collection {}", info.collection))?;
                all.extend(changes.into_iter().map(|(id, info, time)| (id, info, time, number)));
            }
        }
        Ok(all)
    }

    /// The versions of the document with this key, oldest first.
    async fn versions(&self, key: &[u8], patcher: Option<Arc<dyn Patcher>>) -> Result<Vec<Version>> {
        let mut versions: Vec<Version> = Vec::new();
        for (id, info) in &self.collections {
            let mut events = self.seen(id, key).await?;
            events.extend(self.logged(id, key).await?);
            events.sort_by_key(|e| (e.time, e.seen));
            versions.extend(once_a_time(self.told(info, key, &events, patcher.as_deref())?));
        }
        // A collection that was made anew under its name: what was in both has not gone.
        versions.sort_by_key(|v| (v.time, !v.deleted));
        let mut kept: Vec<Version> = Vec::new();
        for version in versions {
            if !version.deleted && kept.last().is_some_and(|k| k.deleted && k.time == version.time) {
                kept.pop();
            }
            let same = kept.last().is_some_and(|k| k.deleted == version.deleted && k.body == version.body);
            let is_first = kept.is_empty() && version.deleted;
            if !same && !is_first {
                kept.push(version);
            }
        }
        for i in 0..kept.len() {
            let until = kept.get(i + 1).map(|v| v.time);
            let shows = |p: &&&Point| p.manifest.time >= kept[i].time && until.is_none_or(|u| p.manifest.time < u);
            kept[i].point = self.points.iter().find(shows).map(|p| p.name.id());
        }
        Ok(kept)
    }

    /// What the layers of points show of a document.
    async fn seen(&self, id: &CollectionId, key: &[u8]) -> Result<Vec<Event>> {
        let mut layers: Vec<(&LayerRef, bool)> = Vec::new();
        let mut events = Vec::new();
        let mut had = false;
        for (point, has) in self.points.iter().zip(&self.has) {
            let [scanned, has] = has.each_ref().map(|ids| ids.contains(id));
            had |= scanned;
            if had && !has {
                events.push(Event { time: point.manifest.time, seen: true, what: What::Gone, told: Told::Layer });
            }
            had = has;
            for (number, layer) in point.manifest.layers.iter().enumerate() {
                // What a layer holds of a collection counts where the scan had the collection.
                if scanned && !layers.iter().any(|(l, _)| l.object == layer.object) {
                    layers.push((layer, number == 0 || layer.whole.contains(id)));
                }
            }
        }
        let looking = layers.into_iter().map(|(layer, whole)| async move {
            let found = look_in_layer(self.objects, layer, id, key).await?;
            Ok::<_, Error>((layer, whole, found))
        });
        let looking: Vec<_> = looking.collect();
        let mut running = futures::stream::iter(looking).buffered(SIDE_BY_SIDE);
        while let Some((layer, whole, found)) = running.try_next().await? {
            let unseen = What::Unseen(layer.earliest.unwrap_or(layer.time));
            if found.is_empty() && whole {
                events.push(Event { time: layer.time, seen: true, what: unseen.clone(), told: Told::Layer });
            }
            for copy in found {
                let batch = &copy.frame.batch;
                let (time, what) = match batch.kind.is_tombstone() {
                    // That it was not there was known when all had been read.
                    true => (layer.time, unseen.clone()),
                    false => {
                        let body = Bytes::copy_from_slice(batch.body_of(copy.doc));
                        (copy.read, What::Put(batch.kind.clone(), batch.encoding, body))
                    }
                };
                events.push(Event { time, seen: true, what, told: Told::Layer });
            }
        }
        Ok(events)
    }

    /// What the change log tells of a document, in order.
    async fn logged(&self, id: &CollectionId, key: &[u8]) -> Result<Vec<Event>> {
        let hash = self.objects.keys.key(id, &Kind::Document, key);
        let looking = self.log.iter().enumerate().map(|(number, (object, after))| async move {
            let mut events = Vec::new();
            for (i, info) in object.header.frames.iter().enumerate() {
                let is_ours = info.collection == *id && info.kind.space() == "document";
                if !is_ours || !may_be_in(&info.keys, hash)? {
                    continue;
                }
                let frame = object.frame(self.objects, i).await?;
                let (key, after) = (key.to_vec(), *after);
                events.extend(blocking(move || Ok(events_of(&frame, &key, after, number))).await?);
            }
            Ok::<_, Error>(events)
        });
        let looking: Vec<_> = looking.collect();
        let mut running = futures::stream::iter(looking).buffered(SIDE_BY_SIDE);
        let mut events: Vec<Event> = Vec::new();
        while let Some(found) = running.try_next().await? {
            events.extend(found);
        }
        let drops = self.drops.iter().filter(|(dropped, ..)| dropped == id);
        events.extend(drops.map(|(_, time, object)| Event {
            time: *time,
            seen: false,
            what: What::Gone,
            told: Told::Log(*object),
        }));
        Ok(events)
    }

    /// The versions that events make, in order.
    fn told(
        &self,
        info: &Arc<CollectionInfo>,
        key: &[u8],
        events: &[Event],
        patcher: Option<&dyn Patcher>,
    ) -> Result<Vec<Version>> {
        let mut versions: Vec<Version> = Vec::new();
        let mut now: Option<(Kind, Encoding, Bytes)> = None;
        for (i, event) in events.iter().enumerate() {
            let before = now.clone();
            now = match &event.what {
                What::Put(kind, encoding, body) => Some((kind.clone(), *encoding, body.clone())),
                What::Gone => None,
                // The scan may have come by before the document was made.
                What::Unseen(since) => {
                    let made = |e: &Event| !e.seen && e.time > *since && matches!(e.what, What::Put(..));
                    if events[..i].iter().any(made) { now } else { None }
                }
                What::Patch(patch) => match now {
                    Some((kind, encoding, body)) => {
                        let patcher =
                            patcher.ok_or_else(|| Error::unsupported("this engine's patches are not known"))?;
                        Some((kind, encoding, patcher.applied(&body, patch)?.into()))
                    }
                    // From before the first scan, which saw what became of it.
                    None if events[i + 1..].iter().any(|e| !matches!(e.what, What::Patch(_))) => None,
                    None => return Err(self.patches_nothing(key)),
                },
            };
            if now == before {
                continue;
            }
            let (kind, encoding, body) = match (&now, &before) {
                (Some(version), _) => version.clone(),
                (None, Some((_, encoding, _))) => (Kind::Tombstone, *encoding, Bytes::new()),
                (None, None) => continue,
            };
            let Some(newest) = self.points.last().map(|p| &p.manifest.source) else { continue };
            versions.push(Version {
                time: event.time,
                point: None,
                log: match event.told {
                    Told::Layer => None,
                    Told::Log(number) => self.log.get(number).map(|(object, _)| object.name.to_string()),
                },
                source: newest.name.clone(),
                tag: self.tag.to_owned(),
                engine: newest.engine.clone(),
                feed: newest.feed,
                collection: info.clone(),
                key: Bytes::copy_from_slice(key),
                deleted: now.is_none(),
                kind,
                encoding,
                body,
            });
        }
        Ok(versions)
    }

    fn patches_nothing(&self, key: &[u8]) -> Error {
        let key = String::from_utf8_lossy(key);
        Error::corrupt(format!("the change log of {} updates document {key}, which is not there", self.tag))
            .hint("run `rewound verify`, and `rewound backup --full` to heal the history")
    }
}

/// Catalogs by their objects: points that share one need not read it again.
#[derive(Default)]
struct Catalogs(HashMap<String, Arc<Vec<CollectionInfo>>>);

impl Catalogs {
    async fn get(&mut self, vault: &Inner, manifest: &Manifest, scanned: bool) -> Result<Arc<Vec<CollectionInfo>>> {
        let path = match &manifest.scan {
            Some(scan) if scanned && (scan.catalog.is_some() || scan.catalog_object.is_some()) => &scan.catalog_object,
            _ => &manifest.catalog_object,
        };
        if let Some(known) = path.as_ref().and_then(|path| self.0.get(path)) {
            return Ok(known.clone());
        }
        let catalog = match scanned {
            true => points::scanned_catalog(vault, manifest).await?,
            false => points::catalog(vault, manifest).await?,
        };
        let infos = Arc::new(catalog.collections.into_iter().map(|c| c.info).collect::<Vec<_>>());
        if let Some(path) = path {
            self.0.insert(path.clone(), infos.clone());
        }
        Ok(infos)
    }
}

/// What a frame of the log tells of a document.
fn events_of(frame: &crate::frame::Frame, key: &[u8], after: EngineTime, object: usize) -> Vec<Event> {
    let batch = &frame.batch;
    let is_ours = |i: &usize| batch.key_of(*i) == key && frame.times[*i].order > after.order;
    (0..batch.len())
        .filter(is_ours)
        .map(|i| Event {
            time: frame.times[i],
            seen: false,
            what: match &batch.kind {
                kind if kind.is_tombstone() => What::Gone,
                Kind::Patch => What::Patch(Bytes::copy_from_slice(batch.body_of(i))),
                kind => What::Put(kind.clone(), batch.encoding, Bytes::copy_from_slice(batch.body_of(i))),
            },
            told: Told::Log(object),
        })
        .collect()
}

fn may_be_in(keys: &str, hash: u64) -> Result<bool> {
    if keys.is_empty() {
        return Ok(true);
    }
    let filter = BASE64.decode(keys).map_err(|_| Error::corrupt("a key filter of the change log is not base64"))?;
    Ok(may_hold(&filter, hash))
}

/// All of a source's log, by time, whatever has been lost of it: each object with the time up to
/// which those before it hold everything, as what two chains hold counts once.
async fn read_log(vault: &Arc<Inner>, tag: &str) -> Result<Vec<(LogObject, EngineTime)>> {
    let listed = log::current(log::list(vault, tag).await?);
    let mut opening = futures::stream::iter(listed)
        .map(|listed| {
            let vault = vault.clone();
            async move { log::open(&vault, &listed).await }
        })
        .buffer_unordered(SIDE_BY_SIDE);
    let mut all = Vec::new();
    while let Some(opened) = opening.next().await {
        match opened {
            Ok(object) => all.push(object),
            // Rolled up since the listing, or lost: `verify` says what that hits.
            Err(e) if e.kind() == ErrorKind::Missing => tracing::warn!("an object of the change log is gone: {e}"),
            Err(e) => return Err(e),
        }
    }
    all.sort_by_key(|o| (o.header.from_time.order, Reverse(o.header.to_time.order), o.header.first));
    let mut complete = EngineTime::ZERO;
    let mut log = Vec::new();
    for object in all {
        let to = object.header.to_time;
        if to.order > complete.order {
            log.push((object, complete));
            complete = to;
        }
    }
    Ok(log)
}
