//! Looking one key up in a layer, through its key filters.

use crate::filter::{self, Candidate};
use crate::frame::Frame;
use crate::manifest::LayerRef;
use crate::objects::{Objects, blocking, is_damage};
use crate::read::segments::{Segments, encoding_of};
use crate::segment;
use model::{CollectionId, EngineTime, Error, Kind, Result, ResultExt};
use std::collections::HashMap;

/// A copy of a document in a layer.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub frame: Frame,
    pub doc: usize,
    /// The engine time it was read at.
    pub read: EngineTime,
}

/// The documents with this key in a layer.
pub(super) async fn look_in_layer(
    objects: &Objects,
    layer: &LayerRef,
    id: &CollectionId,
    key: &[u8],
) -> Result<Vec<Copy>> {
    match through_filters(objects, layer, id, key).await {
        // Without its filters, a layer can still be read as a whole.
        Err(e) if is_damage(&e) => through_all(objects, layer, id, key).await.map_err(|_| e),
        found => found,
    }
}

async fn through_filters(objects: &Objects, layer: &LayerRef, id: &CollectionId, key: &[u8]) -> Result<Vec<Copy>> {
    let hash = objects.keys.key(id, &Kind::Document, key);
    let mut found = Vec::new();
    // Which frames count and when they were read the layer knows; as a rule nobody needs to ask.
    let mut places = None;
    let must_ask = layer.discarded || layer.earliest.is_some();
    for reference in &layer.filters {
        for candidate in filter::look_up(objects, reference, hash).await? {
            let frame = read_candidate(objects, &candidate).await?;
            if frame.batch.collection != *id || frame.batch.kind.space() != "document" {
                continue;
            }
            let hits: Vec<usize> = (0..frame.batch.len()).filter(|i| frame.batch.key_of(*i) == key).collect();
            if hits.is_empty() {
                continue;
            }
            let mut read = layer.time;
            if must_ask {
                let places = match &mut places {
                    Some(places) => places,
                    none => none.insert(places_of(objects, layer, id).await?),
                };
                // Taken out, as equal segments stand there once but may be named twice.
                match places.remove(&(candidate.object, candidate.frame)) {
                    Some(time) => read = time,
                    None => continue,
                }
            }
            found.extend(hits.into_iter().map(|doc| Copy { frame: frame.clone(), doc, read }));
        }
    }
    Ok(found)
}

/// The frames that a layer counts to a collection's documents, with the times they were read at.
async fn places_of(
    objects: &Objects,
    layer: &LayerRef,
    id: &CollectionId,
) -> Result<HashMap<(String, usize), EngineTime>> {
    let layer = objects.layer(&layer.object).await?;
    let mut places = HashMap::new();
    for (segment, frame, time) in layer.timed_frames_of(id, "document") {
        if let Some(entry) = layer.segments.get(segment as usize) {
            places.insert((entry.object.clone(), frame as usize), time);
        }
    }
    Ok(places)
}

/// Reads all frames of the collection in the layer.
async fn through_all(objects: &Objects, layer: &LayerRef, id: &CollectionId, key: &[u8]) -> Result<Vec<Copy>> {
    let layer = objects.layer(&layer.object).await?;
    let segments = Segments::new(objects.clone());
    let mut found = Vec::new();
    for (segment, number, read) in layer.timed_frames_of(id, "document") {
        let entry = layer.segments.get(segment as usize);
        let entry = entry.ok_or_else(|| Error::corrupt("a layer names a segment that it does not have"))?;
        for frame in segments.read(entry, vec![number]).await? {
            let hits: Vec<usize> = (0..frame.batch.len()).filter(|i| frame.batch.key_of(*i) == key).collect();
            found.extend(hits.into_iter().map(|doc| Copy { frame: frame.clone(), doc, read }));
        }
    }
    Ok(found)
}

/// Reads one frame from the middle of its segment; if that is damaged, another object with the same
/// content will do.
async fn read_candidate(objects: &Objects, candidate: &Candidate) -> Result<Frame> {
    let Candidate { object, size, head, frame, place } = candidate;
    let encoding = encoding_of(object)?;
    if let Some((range, entry)) = place {
        match objects.read_range(object, *size, head, range.clone()).await {
            Ok(stored) if objects.keys.frame(&stored) == entry.check => {
                let raw = entry.raw;
                let read = blocking(move || segment::read_frame(encoding, &stored, raw)).await;
                return read.context(|| format!("reading {object}"));
            }
            Err(e) if !is_damage(&e) => return Err(e),
            _ => {}
        }
    }
    let mut frames = objects.segment(object).await?;
    if *frame >= frames.len() {
        return Err(Error::corrupt(format!("the vault's object {object} has no frame {frame}")));
    }
    let (stored, raw) = frames.swap_remove(*frame);
    segment::read_frame(encoding, &stored, raw).context(|| format!("reading {object}"))
}
