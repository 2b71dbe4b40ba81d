//! What a damaged object hits: points, collections, documents.

use super::{Check, Hit};
use crate::frame::Frame;
use crate::manifest::Layer;
use crate::name::{ContentsName, ObjectKind, ObjectName};
use crate::points::{self, Point};
use crate::segment;
use bytes::Bytes;
use model::{Encoding, Result};

/// Keys named for one hit.
const NAMED: usize = 20;

/// What the loss of an object means that no restore needs.
pub(super) fn advice(object: &str) -> Option<String> {
    if ContentsName::parse(object).is_some() {
        return Some(
            "only prunes need it: everything can be restored; until they have removed the changes it stands for, they remove no segments and no parts".into(),
        );
    }
    let text = match ObjectName::parse(object).ok()?.kind {
        ObjectKind::Filter => {
            "only `find` uses it, and does without: everything can be restored; `rewound verify --repair` makes it anew"
        }
        ObjectKind::Hashes => {
            "only backups use it: everything can be restored; the next backup reads and compares everything anew"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

impl Check<'_> {
    pub(super) async fn hits(&mut self, object: &str) -> Result<Vec<Hit>> {
        let mut hits: Vec<Hit> = self.hits_in_contents(object).await?;
        for point in self.points.clone() {
            let whole_point = Hit {
                source: point.manifest.source.name.clone(),
                points: vec![point.name.id()],
                collection: None,
                documents: Vec::new(),
                keys: Vec::new(),
                engine: point.manifest.source.engine.clone(),
                document_count: point.manifest.totals.documents,
                times: Vec::new(),
            };
            let mut found = Vec::new();
            if point.name.to_string() == object || point.manifest.catalog_objects().any(|path| path == object) {
                found.push(whole_point.clone());
            }
            for reference in point.manifest.layers.clone() {
                if reference.object == object {
                    found.push(whole_point.clone());
                }
                if let Some(layer) = self.layer(&reference.object).await? {
                    found.extend(self.hits_in_layer(&point, &layer, object).await?);
                }
            }
            for hit in found {
                let same = |h: &&mut Hit| {
                    h.source == hit.source && h.collection == hit.collection && h.documents == hit.documents
                };
                match hits.iter_mut().find(same) {
                    Some(known) if !known.points.contains(&hit.points[0]) => known.points.push(hit.points[0].clone()),
                    Some(_) => {}
                    None => hits.push(hit),
                }
            }
        }
        Ok(hits)
    }

    async fn hits_in_layer(&self, point: &Point, layer: &Layer, object: &str) -> Result<Vec<Hit>> {
        let hit = |collection: Option<String>, keys: Vec<Vec<u8>>, document_count: u64| Hit {
            source: point.manifest.source.name.clone(),
            points: vec![point.name.id()],
            collection,
            documents: keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect(),
            keys,
            engine: point.manifest.source.engine.clone(),
            document_count,
            times: Vec::new(),
        };
        let mut hits = Vec::new();
        for (number, segment) in layer.segments.iter().enumerate().filter(|(_, s)| s.object == object) {
            let number = number as u32;
            for collection in &layer.collections {
                let frames: Vec<u32> =
                    collection.places().filter(|(s, _)| *s == number).map(|(_, frame)| frame).collect();
                if frames.is_empty() {
                    continue;
                }
                let count = frames.iter().map(|f| u64::from(segment.documents_in(*f as usize))).sum();
                let name = self.collection_name(point, &collection.id).await?;
                let keys = self.keys_of(layer, collection, number, &frames).await.unwrap_or_default();
                hits.push(hit(Some(name), keys, count));
            }
        }
        let contents = &layer.contents;
        if contents.packs.iter().any(|p| p.segment.object == object)
            || contents.borrowed.iter().any(|b| *b.object == *object)
            || contents.parts.iter().any(|p| p.object == object)
        {
            hits.push(hit(Some("(content of attachments)".into()), Vec::new(), 0));
        }
        Ok(hits)
    }

    async fn collection_name(&self, point: &Point, id: &model::CollectionId) -> Result<String> {
        let name = match points::catalog(self.vault, &point.manifest).await {
            Ok(catalog) => catalog.collections.into_iter().find(|c| c.info.id == *id).map(|c| c.info.name),
            Err(_) => None,
        };
        Ok(name.unwrap_or_else(|| id.to_string()))
    }

    /// The first keys in some frames of a segment, from the hash lists: these hold the same keys in
    /// the same order.
    async fn keys_of(
        &self,
        layer: &Layer,
        collection: &crate::manifest::LayerCollection,
        segment: u32,
        frames: &[u32],
    ) -> Result<Vec<Vec<u8>>> {
        let mut before = 0usize;
        let mut wanted: Vec<std::ops::Range<usize>> = Vec::new();
        for (s, f) in collection.places() {
            let count = layer.segments.get(s as usize).map_or(0, |e| e.documents_in(f as usize)) as usize;
            if s == segment && frames.contains(&f) {
                wanted.push(before..before + count);
            }
            before += count;
        }
        let objects = self.vault.objects()?;
        let mut at = 0usize;
        let mut keys = Vec::new();
        let mut open: Option<(u32, Vec<(Bytes, u32)>)> = None;
        let lists = Layer::of(&layer.hash_collections, &collection.id).iter().filter(|c| c.space == collection.space);
        for (s, f) in lists.flat_map(|list| list.places()) {
            let Some(entry) = layer.hashes.get(s as usize) else { continue };
            if open.as_ref().is_none_or(|(o, _)| *o != s) {
                open = Some((s, objects.segment(&entry.object).await?));
            }
            let Some((stored, raw)) = open.as_ref().and_then(|(_, frames)| frames.get(f as usize)) else { continue };
            let Frame { batch, .. } = segment::read_frame(Encoding::Bin, stored, *raw)?;
            for i in 0..batch.len() {
                if wanted.iter().any(|w| w.contains(&(at + i))) {
                    keys.push(batch.key_of(i).to_vec());
                    if keys.len() == NAMED {
                        return Ok(keys);
                    }
                }
            }
            at += batch.len();
        }
        Ok(keys)
    }
}
