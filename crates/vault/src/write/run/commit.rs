//! From what a run has written to its point.

use super::{Collection, PointDetails, Run, State};
use crate::crypto::Audience;
use crate::hash::Digest;
use crate::log::Chain;
use crate::manifest::{Catalog, Contents, Layer, LayerCollection, LayerRef, Manifest, POINT_CONTEXT, ScanSpan, Totals};
use crate::name::{ObjectKind, PointName};
use crate::segment::SegmentEntry;
use crate::write::packer::{Placement, Placements};
use crate::{prune, signed};
use model::{EngineTime, Error, ErrorKind, FeedKind, Result};
use std::sync::Arc;

impl Run {
    pub(super) async fn complete(&self, details: PointDetails) -> Result<(PointName, Manifest)> {
        let state = std::mem::take(&mut *self.state.lock().await);
        let chain = self.finish_chain(&details).await?;
        let manifest = match chain {
            Some(chain) if state.collections.is_empty() && state.scanned.is_none() => {
                self.continued(chain, details).await?
            }
            chain => self.scanned(state, chain, details).await?,
        };
        // As at the start, just before the point: first the sign of life, then the look at what a
        // prune means to remove.
        self.alive.check()?;
        self.alive.renew().await?;
        prune::check_before_commit(&self.vault, &self.tag, &manifest).await?;
        let name = self.store_point(&manifest).await?;
        prune::check_after_commit(&self.vault, &name, &manifest).await?;
        self.vault.keep_newest(&self.tag, &name);
        Ok((name, manifest))
    }

    async fn store_layer(&self, state: &mut State, contents: Contents, time: EngineTime) -> Result<Option<LayerRef>> {
        let whole: Vec<_> = state
            .collections
            .iter()
            .filter(|c| c.whole && !c.discarded && !self.base.is_empty())
            .map(|c| c.entry.info.id.clone())
            .collect();
        let nothing_new = state.collections.iter().all(|c| !c.wrote || c.discarded) && whole.is_empty();
        if nothing_new && !self.base.is_empty() {
            return Ok(None);
        }
        let missing = || Error::bug("a segment was not stored");
        let take = |list: &mut Vec<Option<SegmentEntry>>| {
            std::mem::take(list).into_iter().collect::<Option<Vec<_>>>().ok_or_else(missing)
        };
        let mut collections = in_runs(state.packer.take_placements());
        for collection in &mut collections {
            if matches!(&collection.read[..], [(0, read)] if *read == time) {
                collection.read.clear();
            }
        }
        let layer = Layer {
            rewound: "layer".into(),
            run: self.id.clone(),
            time,
            segments: take(&mut state.segments)?,
            collections,
            contents,
            filters: std::mem::take(&mut state.filters),
            hashes: take(&mut state.hash_segments)?,
            hash_collections: in_runs(state.hashes.take_placements()),
        };
        let stored = self.writer.put_json(ObjectKind::Layer, Audience::Writers, &layer).await?;
        Ok(Some(LayerRef {
            object: stored.path,
            filters: layer.filters,
            discarded: state.packer.has_discarded(),
            raw: state.raw,
            run: self.id.clone(),
            whole,
            time,
            earliest: state.earliest.filter(|e| *e < time),
        }))
    }

    /// The manifest of a point with layers of this run.
    async fn scanned(&self, mut state: State, chain: Option<Chain>, details: PointDetails) -> Result<Manifest> {
        state.packer.finish()?;
        state.hashes.finish()?;
        self.store_ready(&mut state).await?;
        while let Some(done) = state.sealing.join_next().await {
            self.sealed(&mut state, done).await?;
        }
        if !state.filter.is_empty() {
            let last = std::mem::take(&mut state.filter);
            state.full.push_back(last);
        }
        self.store_filters(&mut state).await?;
        let contents = self.contents.finish().await?;
        let (from, to) = self.check_scan(&state, chain.as_ref(), &details)?;
        let mut layers: Vec<Arc<LayerRef>> = self.base.iter().map(|l| l.reference.clone()).collect();
        if let Some(layer) = self.store_layer(&mut state, contents, to).await? {
            layers.push(Arc::new(layer));
        }
        let mut digest = Digest::default();
        let mut totals = Totals { changed: state.changed, deleted: state.deleted, ..Totals::default() };
        let mut collections = Vec::with_capacity(state.collections.len());
        for Collection { entry, .. } in state.collections.into_iter().filter(|c| !c.discarded) {
            digest.merge(&entry.digest);
            totals.documents += entry.documents;
            totals.attachments += entry.attachments;
            totals.document_bytes += entry.document_bytes;
            totals.attachment_bytes += entry.attachment_bytes;
            collections.push(entry);
        }
        let catalog = Catalog { losses: self.losses.clone(), collections };
        let mut scan =
            (from < to || to < details.time).then_some(ScanSpan { from, to, catalog: None, catalog_object: None });
        let mut last = None;
        if let (Some(chain), Some(scan)) = (chain.as_ref().filter(|c| c.has_changes()), &mut scan) {
            let mut changed = catalog.clone();
            chain.change(&mut changed);
            totals.counted = false;
            last = Some(changed);
            (scan.catalog, scan.catalog_object) = self.store_catalog(&catalog).await?;
        }
        let (catalog, catalog_object) = self.store_catalog(last.as_ref().unwrap_or(&catalog)).await?;
        let log = chain.as_ref().and_then(Chain::span);
        Ok(Manifest {
            layers,
            log,
            scan,
            catalog,
            catalog_object,
            totals: Totals { stored: self.stored() + chain.map_or(0, |c| c.bytes), ..totals },
            digest,
            ..self.empty_manifest(details)
        })
    }

    /// A catalog as a point holds it: few collections stand in the point itself, which saves a lookup
    /// a request; of others, the path of an object.
    pub(in crate::write) async fn store_catalog(&self, catalog: &Catalog) -> Result<(Option<Catalog>, Option<String>)> {
        if serde_json::to_vec(catalog).is_ok_and(|json| json.len() <= 8 << 10) {
            return Ok((Some(catalog.clone()), None));
        }
        let stored = self.writer.put_json(ObjectKind::Catalog, Audience::Writers, catalog).await?;
        Ok((None, Some(stored.path)))
    }

    /// What a manifest says of the run and not of the state.
    pub(in crate::write) fn empty_manifest(&self, details: PointDetails) -> Manifest {
        Manifest {
            rewound: "point".into(),
            format: crate::vault_file::FORMAT,
            run: self.id.clone(),
            source: self.source.clone(),
            started: self.started,
            committed: self.vault.seams.clock.now_millis(),
            time: details.time,
            consistency: details.consistency,
            position: details.position,
            previous: self.previous.as_ref().map(|(name, _)| name.to_string()),
            gap: details.gap,
            layers: Vec::new(),
            log: None,
            scan: None,
            catalog: None,
            catalog_object: None,
            totals: Totals::default(),
            skipped: details.skipped,
            digest: Digest::default(),
        }
    }

    /// The least and the greatest time that was read at; fails if the log does not go on from there.
    fn check_scan(
        &self,
        state: &State,
        chain: Option<&Chain>,
        details: &PointDetails,
    ) -> Result<(EngineTime, EngineTime)> {
        let to = match chain {
            Some(_) => state.latest.ok_or_else(|| Error::bug("when was read what changes follow?"))?,
            None => details.time,
        };
        let from = state.earliest.map_or(to, |e| e.min(to));
        if let Some(chain) = chain
            && (chain.from.order > from.order || to.order > chain.time.order)
        {
            return Err(Error::bug(format!(
                "the scan read from {from} to {to}, but changes are known from {} to {}",
                chain.from, chain.time
            )));
        }
        if state.uneven && self.source.feed == FeedKind::EveryChange {
            return Err(Error::new(ErrorKind::Retry, "something was read at an earlier time than what came before it")
                .hint("run the backup again with --full"));
        }
        Ok((from, to))
    }

    async fn store_point(&self, manifest: &Manifest) -> Result<PointName> {
        let signed = signed::write(self.vault.signing()?, POINT_CONTEXT, manifest)?;
        let compressed = crate::objects::compress(&signed, 3)?;
        let (sealed, _) = self.writer.objects.cipher.seal(Audience::Writers, compressed)?;
        let name = PointName {
            source: self.tag.clone(),
            committed: manifest.committed.max(0) as u64,
            run: self.id.clone(),
            stored: *blake3::hash(&sealed).as_bytes(),
            encrypted: !self.writer.objects.cipher.is_plain(),
        };
        // All that the point names must survive a power loss before the point itself can; also the
        // point before it, whose run may have died between writing and syncing it.
        if let Some((previous, _)) = &self.previous
            && self.vault.storage.is_local()
        {
            let path = previous.to_string();
            match self.vault.storage.read(&path).await {
                Ok(stored) => drop(self.vault.storage.create(&path, stored).await?),
                // A prune has removed it, as there is a newer one by now.
                Err(e) if e.kind() == ErrorKind::Missing => {}
                Err(e) => return Err(e),
            }
        }
        self.vault.storage.sync().await?;
        self.alive.check()?;
        // Replacing is what never leaves half an object behind; the name is new.
        self.vault.storage.replace(&name.to_string(), sealed.into()).await?;
        self.vault.storage.sync().await?;
        Ok(name)
    }
}

/// Placements as runs of frames.
fn in_runs(placements: Placements) -> Vec<LayerCollection> {
    let mut collections: Vec<_> = placements
        .into_iter()
        .map(|((id, space), list)| {
            let mut frames: Vec<(u32, u32, u32)> = Vec::new();
            let mut read: Vec<(u32, EngineTime)> = Vec::new();
            for (number, (Placement { segment, frame }, time)) in list.into_iter().enumerate() {
                match frames.last_mut() {
                    Some((s, first, count)) if *s == segment && *first + *count == frame => *count += 1,
                    _ => frames.push((segment, frame, 1)),
                }
                if let Some(time) = time
                    && read.last().is_none_or(|(_, last)| *last != time)
                {
                    read.push((number as u32, time));
                }
            }
            LayerCollection { id, space, frames, read }
        })
        .collect();
    collections.sort_by(|a, b| (&a.id, &a.space).cmp(&(&b.id, &b.space)));
    collections
}
