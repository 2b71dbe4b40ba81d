//! Every version of one document, with a few small reads.

use crate::filter::{self, Candidate};
use crate::frame::Frame;
use crate::manifest::{Layer, LayerCollection, LayerRef};
use crate::objects::Objects;
use crate::points::{self, Point};
use crate::read::segments::encoding_of;
use crate::segment;
use crate::vault::{Inner, Vault};
use bytes::Bytes;
use futures::StreamExt;
use model::{CollectionId, Encoding, Engine, EngineTime, Error, Kind, Result, ResultExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// One version of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// When it was read (engines that tell every change: when it came to be).
    pub time: EngineTime,
    /// The first point that shows it: its run.
    pub point: Option<String>,
    /// The source's name.
    pub source: String,
    /// Whether this is a deletion.
    pub deleted: bool,
    /// What it is.
    pub kind: Kind,
    /// How its body is encoded.
    pub encoding: Encoding,
    /// The body; empty for a deletion.
    pub body: Bytes,
}

impl Vault {
    /// Every version of one document, newest first; of one source if its tag is given. A version
    /// that was stored twice without a change in between comes once.
    pub async fn find(&self, collection: &str, key: &[u8], source: Option<&str>) -> Result<Vec<Version>> {
        self.find_any(collection, &|_| vec![key.to_vec()], source).await
    }

    /// As [`Vault::find`], of all documents with one of the keys that the engine gives.
    pub async fn find_any(
        &self,
        collection: &str,
        keys_of: &(dyn Fn(&Engine) -> Vec<Vec<u8>> + Sync),
        source: Option<&str>,
    ) -> Result<Vec<Version>> {
        let vault = &self.inner;
        let objects = vault.need_reader()?;
        let points = points::read_all(vault).await?;
        let mut versions = Vec::new();
        let mut tags: Vec<&str> = points.points.iter().map(|p| p.name.source.as_str()).collect();
        tags.sort_unstable();
        tags.dedup();
        let mut known_somewhere = false;
        for tag in tags.into_iter().filter(|t| source.is_none_or(|s| s == *t)) {
            let mut of_source: Vec<&Point> = points.of(tag).collect();
            of_source.sort_by_key(|p| p.manifest.time);
            let Some(newest) = of_source.last() else { continue };
            for key in keys_of(&newest.manifest.source.engine) {
                if let Some(found) = find_in(vault, &objects, &of_source, collection, &key).await? {
                    known_somewhere = true;
                    versions.extend(found);
                }
            }
        }
        if !known_somewhere {
            let mut names = Vec::new();
            if let Some(newest) = points.points.iter().rev().find(|p| source.is_none_or(|s| s == p.name.source)) {
                let catalog = points::catalog(vault, &newest.manifest).await?;
                names.extend(catalog.collections.into_iter().map(|c| c.info.name).take(20));
            }
            return Err(Error::input(format!("no point of this vault has a collection {collection:?}"))
                .hint(format!("the newest point has: {}", names.join(", "))));
        }
        versions.sort_by_key(|v| std::cmp::Reverse(v.time));
        Ok(versions)
    }
}

/// The versions in one source, oldest first; none if it never had the collection.
async fn find_in(
    vault: &Arc<Inner>,
    objects: &Objects,
    points: &[&Point],
    collection: &str,
    key: &[u8],
) -> Result<Option<Vec<Version>>> {
    // Layers in order, each with the first point that has it, and under which identity the
    // collection was known then.
    let mut layers: Vec<(&LayerRef, &Point, Option<CollectionId>)> = Vec::new();
    let mut known = false;
    // Points that share a catalog need not read it again.
    let mut catalogs: HashMap<String, Option<CollectionId>> = HashMap::new();
    let mut absent: Vec<(&Point, bool)> = Vec::new();
    for point in points {
        let id = match &point.manifest.catalog_object {
            Some(path) if catalogs.contains_key(path) => catalogs[path].clone(),
            _ => {
                let catalog = points::catalog(vault, &point.manifest).await?;
                let id = catalog.collections.into_iter().find(|c| c.info.name == collection).map(|c| c.info.id);
                if let Some(path) = &point.manifest.catalog_object {
                    catalogs.insert(path.clone(), id.clone());
                }
                id
            }
        };
        known |= id.is_some();
        absent.push((point, id.is_none()));
        for layer in &point.manifest.layers {
            if !layers.iter().any(|(l, ..)| l.object == layer.object) {
                layers.push((layer, point, id.clone()));
            }
        }
    }
    if !known {
        return Ok(None);
    }
    let looking = layers.iter().map(|(layer, point, id)| {
        let is_base = point.manifest.layers.first().is_some_and(|l| l.object == layer.object);
        async move {
            let Some(id) = id else { return Ok((*layer, *point, is_base, Vec::new())) };
            let found = look_in_layer(objects, layer, id, key).await?;
            let whole = is_base || layer.whole.contains(id);
            Ok::<_, Error>((*layer, *point, whole, found))
        }
    });
    let mut results: Vec<_> = Vec::new();
    let mut running = futures::stream::iter(looking).buffered(8);
    while let Some(result) = running.next().await {
        results.push(result?);
    }
    drop(running);
    let mut versions: Vec<Version> = Vec::new();
    for (layer, point, whole, found) in results {
        let deletion = |versions: &Vec<Version>| Version {
            time: layer.time,
            point: Some(point.name.id()),
            source: point.manifest.source.name.clone(),
            deleted: true,
            kind: Kind::Tombstone,
            encoding: versions.last().map_or(Encoding::Json, |v| v.encoding),
            body: Bytes::new(),
        };
        if found.is_empty() && whole && versions.last().is_some_and(|v| !v.deleted) {
            let gone = deletion(&versions);
            versions.push(gone);
        }
        for (frame, i) in found {
            let deleted = frame.batch.kind.is_tombstone();
            let version = Version {
                kind: frame.batch.kind.clone(),
                encoding: frame.batch.encoding,
                body: Bytes::copy_from_slice(frame.batch.body_of(i)),
                deleted,
                ..deletion(&versions)
            };
            let same = versions.last().is_some_and(|v| v.deleted == version.deleted && v.body == version.body);
            if !same {
                versions.push(version);
            }
        }
    }
    add_dropped(&mut versions, &absent);
    Ok(Some(versions))
}

/// A collection that a point no longer has is a deletion of all that was in it.
fn add_dropped(versions: &mut Vec<Version>, absent: &[(&Point, bool)]) {
    for pair in absent.windows(2) {
        let [(_, before), (point, now)] = pair else { continue };
        let time = point.manifest.time;
        let at = versions.partition_point(|v| v.time <= time);
        if !before && *now && at > 0 && !versions[at - 1].deleted {
            let gone = Version {
                time,
                point: Some(point.name.id()),
                deleted: true,
                kind: Kind::Tombstone,
                body: Bytes::new(),
                ..versions[at - 1].clone()
            };
            versions.insert(at, gone);
        }
    }
}

/// The documents with this key in a layer: frames, and which of their documents.
async fn look_in_layer(
    objects: &Objects,
    layer: &LayerRef,
    id: &CollectionId,
    key: &[u8],
) -> Result<Vec<(Frame, usize)>> {
    let hash = objects.keys.key(id, &Kind::Document, key);
    let mut found = Vec::new();
    let mut counting = None;
    for filter in &layer.filters {
        for candidate in filter::look_up(objects, filter, hash).await? {
            let frame = read_candidate(objects, &candidate).await?;
            if frame.batch.collection != *id || frame.batch.kind.space() != "document" {
                continue;
            }
            if layer.discarded {
                let counting = match &mut counting {
                    Some(counting) => counting,
                    none => none.insert(frames_of(objects, layer, id).await?),
                };
                // Taken out, as equal segments stand there once but may be named twice.
                if !counting.remove(&(candidate.object, candidate.frame)) {
                    continue;
                }
            }
            let hits: Vec<usize> = (0..frame.batch.len()).filter(|i| frame.batch.key_of(*i) == key).collect();
            found.extend(hits.into_iter().map(|i| (frame.clone(), i)));
        }
    }
    Ok(found)
}

/// The frames that a layer counts to a collection's documents: path of the segment and number.
async fn frames_of(objects: &Objects, layer: &LayerRef, id: &CollectionId) -> Result<HashSet<(String, usize)>> {
    let layer = objects.layer(&layer.object).await?;
    let of_collection = Layer::of(&layer.collections, id).iter().filter(|c| c.space == "document");
    let places = of_collection.flat_map(LayerCollection::places);
    let name =
        |(segment, frame): (u32, u32)| Some((layer.segments.get(segment as usize)?.object.clone(), frame as usize));
    Ok(places.filter_map(name).collect())
}

/// Reads one frame from the middle of its segment.
async fn read_candidate(objects: &Objects, candidate: &Candidate) -> Result<Frame> {
    let Candidate { object, size, head, frame, place } = candidate;
    let encoding = encoding_of(object)?;
    let (stored, raw) = match place {
        Some((range, entry)) => {
            let stored = objects.read_range(object, *size, head, range.clone()).await?;
            if objects.keys.frame(&stored) != entry.check {
                return Err(Error::corrupt(format!("the vault's object {object} is damaged in frame {frame}"))
                    .hint("run `rewound verify` to see which points are hit"));
            }
            (stored, entry.raw)
        }
        None => {
            let mut frames = objects.segment(object).await?;
            if *frame >= frames.len() {
                return Err(Error::corrupt(format!("the vault's object {object} has no frame {frame}")));
            }
            frames.swap_remove(*frame)
        }
    };
    segment::read_frame(encoding, &stored, raw).context(|| format!("reading {object}"))
}
