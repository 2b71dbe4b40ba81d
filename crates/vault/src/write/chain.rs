//! A run that appends to the change log, beside or instead of a scan.

use crate::log::{self, Appended, Chain, Flush, Listed};
use crate::manifest::{Catalog, Manifest, ScanSpan, Totals};
use crate::name::HISTORY;
use crate::points;
use crate::vault::Inner;
use crate::write::{PointDetails, Run};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use model::limits::ATTACHMENT_PACKED;
use model::{CollectionInfo, EngineTime, Error, ErrorKind, Position, Result};
use std::sync::Arc;

/// What the change log builds on: the last point, if everything that it needs is there to stay.
#[derive(Debug)]
pub(super) struct ChainBase {
    /// The collections at the last point.
    pub catalog: Catalog,
    /// Stored bytes of the log since the last scan.
    pub log: u64,
}

impl ChainBase {
    /// Looks at what the last point needs beside its layers; none if a prune means to remove some of
    /// it, or it is damaged.
    pub async fn load(
        vault: &Arc<Inner>,
        manifest: &Manifest,
        log: Vec<Listed>,
        is_doomed: impl Fn(&str) -> bool,
    ) -> Result<Option<ChainBase>> {
        let (after, _) = manifest.scanned();
        let mut since = log::current(log);
        since.retain(|l| l.name.to > after.millis.max(0) as u64);
        let doomed = since.iter().any(|l| is_doomed(&l.name.to_string()));
        if doomed || manifest.catalog_objects().any(|path| is_doomed(path)) {
            return Ok(None);
        }
        match points::catalog(vault, manifest).await {
            Ok(catalog) => Ok(Some(ChainBase { catalog, log: since.iter().map(|l| l.size).sum() })),
            Err(e) if crate::objects::is_damage(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Run {
    /// Whether there is a last point on whose layers a chain can build: then nothing need be scanned.
    pub fn has_base(&self) -> bool {
        self.chain_base.is_some()
    }

    /// The collections at the last point; none if it cannot be built on.
    pub fn last_catalog(&self) -> Option<Vec<CollectionInfo>> {
        let base = self.chain_base.as_ref()?;
        Some(base.catalog.collections.iter().map(|c| c.info.clone()).collect())
    }

    /// Stored bytes of the change log between the last scan and the last point: what each restore
    /// reads beside the layers. A new scan makes an end to it.
    pub fn log_since_base(&self) -> u64 {
        self.chain_base.as_ref().map_or(0, |b| b.log)
    }

    /// Bytes of documents that the layers of the last point hold, not compressed.
    pub fn base_bytes(&self) -> u64 {
        self.previous.as_ref().map_or(0, |(_, m)| m.layers.iter().map(|l| l.raw).sum())
    }

    /// Begins this run's chain: it will hold the changes after this position, whose time is `time`.
    pub async fn follow_from(&self, position: &Position, time: EngineTime) -> Result<()> {
        let mut chain = self.chain.lock().await;
        if chain.as_ref().is_some_and(|c| c.flushes > 0) {
            return Err(Error::bug("a run has one chain, and it has begun"));
        }
        *chain = Some(Chain::new(&self.tag, &self.id, self.options.level, position, time));
        Ok(())
    }

    /// Writes one flush, durably: all changes since the last one. After an error nothing of it counts:
    /// it may be given again, alone or with what came since. The log can be read up to here from now
    /// on, whatever becomes of the run.
    pub async fn append(&self, mut flush: Flush) -> Result<Appended> {
        let mut chain = self.chain.lock().await;
        let chain = chain.as_mut().ok_or_else(|| Error::bug("no position was given to follow from"))?;
        // A prune may take the chain of a run away that was silent for too long.
        self.alive.check()?;
        let beside = flush.changes.iter().flat_map(|change| &change.batch.attachments).map(|a| a.place.len());
        match chain.begins_roll() || beside.sum::<usize>() >= ATTACHMENT_PACKED {
            true => self.changed.place_all(&mut flush.changes).await?,
            false => self.changed.place(&mut flush.changes).await?,
        }
        let (appended, listed) = chain.append(&self.vault, &flush).await?;
        self.pieces.learn(&listed).await?;
        if chain.is_due() {
            self.roll_up_chain(chain).await;
        }
        Ok(appended)
    }

    /// Rolls up the flushes since the last rolled object. That it fails harms nothing, as the flushes stay.
    /// Rare, and no part of the futures of those who call it, which are large enough.
    fn roll_up_chain<'a>(&'a self, chain: &'a mut Chain) -> BoxFuture<'a, ()> {
        let rolling = async {
            let Some(mut roll) = chain.take_roll() else { return Ok(()) };
            self.changed.place_all(&mut roll.changes).await?;
            let listed = chain.roll_up(&self.vault, roll).await?;
            self.pieces.learn(&listed).await
        };
        let told =
            |rolled: Result<()>| rolled.unwrap_or_else(|e| tracing::warn!("rolling up the change log failed: {e}"));
        rolling.map(told).boxed()
    }

    /// Rolls up the flushes so far into one object. Happens by itself now and then, and at the end.
    pub async fn roll_up(&self) {
        if let Some(chain) = self.chain.lock().await.as_mut() {
            self.roll_up_chain(chain).await;
        }
    }

    /// Completes the chain; none if nothing is to be followed.
    pub(super) async fn finish_chain(&self, details: &PointDetails) -> Result<Option<Chain>> {
        let Some(mut chain) = self.chain.lock().await.take() else { return Ok(None) };
        if chain.flushes == 0 {
            return Err(Error::bug("a chain without a flush: changes were to be followed, but none were given"));
        }
        if chain.time != details.time {
            return Err(Error::bug(format!("a point at {} with changes up to {}", details.time, chain.time)));
        }
        self.roll_up_chain(&mut chain).await;
        self.check_chain(chain.flushes).await?;
        Ok(Some(chain))
    }

    /// Fails if an object of the run's own chain is no longer there.
    async fn check_chain(&self, flushes: u32) -> Result<()> {
        let mut own = Vec::new();
        let mut entries = self.vault.storage.list(&format!("{HISTORY}{}/log/{}/", self.tag, self.id)).await?;
        while let Some(entry) = entries.try_next().await? {
            own.extend(log::listed(&entry));
        }
        let mut next = 0;
        for listed in log::current(own) {
            if listed.name.first <= next {
                next = next.max(listed.name.last + 1);
            }
        }
        if next < flushes {
            return Err(Error::new(
                ErrorKind::Retry,
                "what this run wrote of the change log is not all there any more",
            )
            .hint("run the backup again: it reads these changes anew"));
        }
        Ok(())
    }

    /// The manifest of a point with the layers of the last point, and this run's chain.
    pub(super) async fn continued(&self, chain: Chain, details: PointDetails) -> Result<Manifest> {
        let (Some((_, old)), Some(base)) = (&self.previous, &self.chain_base) else {
            return Err(Error::bug("changes were followed where there is nothing that they change"));
        };
        if chain.from.order > old.time.order {
            return Err(Error::bug(format!(
                "changes from {} on do not follow the last point's, {}",
                chain.from, old.time
            )));
        }
        let (from, to) = old.scanned();
        let mut scan = old.scan.clone().unwrap_or(ScanSpan { from, to, catalog: None, catalog_object: None });
        let (mut catalog, mut catalog_object) = (old.catalog.clone(), old.catalog_object.clone());
        if chain.has_changes() {
            if scan.catalog.is_none() && scan.catalog_object.is_none() {
                (scan.catalog, scan.catalog_object) = (catalog, catalog_object);
            }
            let mut changed = base.catalog.clone();
            chain.change(&mut changed);
            (catalog, catalog_object) = self.store_catalog(&changed).await?;
        }
        let totals = Totals {
            counted: old.totals.counted && !chain.has_changes(),
            changed: chain.changed,
            deleted: chain.deleted,
            stored: self.stored() + chain.bytes,
            ..old.totals
        };
        let position = details.position.clone().or_else(|| Some(chain.position.clone()));
        Ok(Manifest {
            position,
            layers: old.layers.clone(),
            log: chain.span(),
            scan: Some(scan),
            catalog,
            catalog_object,
            totals,
            digest: old.digest,
            ..self.empty_manifest(details)
        })
    }
}
