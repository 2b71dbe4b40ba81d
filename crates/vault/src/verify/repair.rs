//! Making anew what can be made from other objects: key filters, from the segments of their layer.
//!
//! A filter's name holds the id of its content, by which readers find what is made anew: in an
//! encrypted vault it has another name. In a plain one it gets the very name that was lost.

use super::Check;
use crate::manifest::{FilterRef, Layer};
use crate::name::{ObjectKind, ObjectName};
use crate::objects::{ObjectWriter, blocking};
use crate::read::Segments;
use crate::write::FilterBuilder;
use model::{Error, Result, ResultExt};
use std::collections::HashSet;
use std::sync::Arc;

impl Check<'_> {
    /// Makes the filters anew that are damaged or missing.
    pub(super) async fn repair(&mut self) -> Result<()> {
        let lost: HashSet<String> = self
            .bad
            .keys()
            .filter(|path| ObjectName::parse(path).is_ok_and(|n| n.kind == ObjectKind::Filter))
            .cloned()
            .collect();
        let mut layers: Vec<String> = self
            .points
            .iter()
            .flat_map(|p| &p.manifest.layers)
            .filter(|l| l.filters.iter().any(|f| lost.contains(&f.object)))
            .map(|l| l.object.clone())
            .collect();
        layers.sort();
        layers.dedup();
        for path in layers {
            let Some(layer) = self.layer(&path).await? else { continue };
            match self.filters_of(&layer, &lost).await.context(|| format!("making the key filters of {path} anew")) {
                Ok(()) => {}
                Err(e) if crate::objects::is_damage(&e) => self.report.notes.push(e.to_string()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Does what the run did that wrote the layer, segment by segment, and stores what was lost.
    async fn filters_of(&mut self, layer: &Arc<Layer>, lost: &HashSet<String>) -> Result<()> {
        let objects = self.vault.need_reader()?;
        let keys = objects.keys.clone();
        let segments = Segments::new(objects.clone());
        let random = self.vault.seams.random.clone();
        let writer = Arc::new(ObjectWriter::new(objects, HashSet::new(), HashSet::new(), random));
        let mut builder = FilterBuilder::default();
        let stored: Vec<_> = layer.segments.iter().cloned().map(Some).collect();
        for (number, entry) in layer.segments.iter().enumerate() {
            let count = entry.frames.len().max(entry.counts.len());
            let frames = segments.read(entry, (0..count as u32).collect()).await?;
            let hashes: Vec<Vec<u64>> = frames
                .iter()
                .map(|f| {
                    let key = |i| keys.key(&f.batch.collection, &f.batch.kind, f.batch.key_of(i));
                    (0..f.batch.len()).map(key).collect()
                })
                .collect();
            builder.add(number as u32, &hashes);
            if builder.is_full() || number + 1 == layer.segments.len() {
                let full = std::mem::take(&mut builder);
                let segments = full.segments_of(&stored).ok_or_else(|| Error::bug("a segment has no entry"))?;
                let mut filters = full.finish(segments);
                loop {
                    let keys = keys.clone();
                    let (rest, encoded) = blocking(move || {
                        let encoded = filters.encode_next(&keys)?;
                        Ok((filters, encoded))
                    })
                    .await?;
                    filters = rest;
                    let Some(encoded) = encoded else { break };
                    let content = writer.objects.keys.content_id(&encoded.bytes);
                    if lost.iter().any(|path| has_content(path, &content)) {
                        let FilterRef { object, size, .. } = writer.put_filter(3, encoded).await?;
                        self.made.insert(object.clone());
                        self.there.insert(object, size);
                    }
                }
            }
        }
        self.vault.storage.sync().await
    }
}

fn has_content(path: &str, content: &[u8; 32]) -> bool {
    ObjectName::parse(path).is_ok_and(|n| n.content == *content)
}
