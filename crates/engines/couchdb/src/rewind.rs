//! Rewinding databases that clients replicate with: what documents were becomes new revisions on top of
//! what they are. Nothing is written where that is the same already.

use crate::extras;
use crate::inline;
use crate::past::{Past, SIDE_BY_SIDE};
use crate::server::Server;
use async_trait::async_trait;
use model::{
    AttachmentStore, Batch, CollectionId, CollectionInfo, Error, Kind, Leftovers, PlannedCollection, Rehearsal,
    RestoreReport, Result, SinkSession,
};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// One database that is to be rewound.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub planned: PlannedCollection,
    /// Whether all of it is: then what was not there then is deleted.
    pub whole: bool,
}

/// The databases of which a backup has more than single documents: it has their settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whole(Arc<Mutex<HashSet<CollectionId>>>);

impl Whole {
    /// Learns from what a backup has.
    pub fn note(&self, batch: &Batch) {
        if batch.kind == extras::settings() {
            self.0.lock().unwrap_or_else(|e| e.into_inner()).insert(batch.collection.clone());
        }
    }

    fn has(&self, id: &CollectionId) -> bool {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).contains(id)
    }
}

/// Databases that are being rewound, or looked at for that.
pub(crate) struct Rewind {
    known: Whole,
    pasts: HashMap<CollectionId, Arc<Past>>,
    /// Writes nothing without one.
    store: Option<Arc<dyn AttachmentStore>>,
    /// Batches that are under way.
    taking: tokio::sync::Mutex<JoinSet<Result<()>>>,
    turns: Arc<Semaphore>,
}

impl Rewind {
    /// Without a store, it only looks.
    pub async fn new(
        server: &Arc<Server>,
        goals: Vec<Goal>,
        known: Whole,
        store: Option<Arc<dyn AttachmentStore>>,
    ) -> Result<Rewind> {
        let mut pasts = HashMap::new();
        for goal in goals {
            let past = Past::new(server, &goal).await?;
            pasts.insert(goal.planned.info.id, Arc::new(past));
        }
        let turns = Arc::new(Semaphore::new(SIDE_BY_SIDE));
        Ok(Rewind { known, pasts, store, taking: Default::default(), turns })
    }

    /// Takes a batch: it is brought in beside others.
    async fn take(&self, batch: Batch) -> Result<()> {
        batch.check()?;
        let past = self.pasts.get(&batch.collection).cloned();
        let past = past.ok_or_else(|| Error::bug(format!("{} is not in the plan", batch.collection)))?;
        let store = self.store.clone();
        let turn =
            self.turns.clone().acquire_owned().await.map_err(|_| Error::bug("a rewind went on after its end"))?;
        if batch.kind == Kind::Attachment {
            // Its content is only kept until this returns.
            return past.take(&batch, store.as_ref()).await;
        }
        let mut taking = self.taking.lock().await;
        while let Some(ended) = taking.try_join_next() {
            ended.map_err(ended_by_itself)??;
        }
        taking.spawn(async move {
            let result = past.take(&batch, store.as_ref()).await;
            drop(turn);
            result
        });
        Ok(())
    }

    /// Waits for all that is under way.
    async fn join(&self) -> Result<()> {
        let mut taking = self.taking.lock().await;
        while let Some(ended) = taking.join_next().await {
            ended.map_err(ended_by_itself)??;
        }
        Ok(())
    }

    /// Waits for all that is under way, whether it ends well or not.
    async fn settle(&self) {
        let mut taking = self.taking.lock().await;
        while taking.join_next().await.is_some() {}
    }

    async fn complete(&self) -> Result<RestoreReport> {
        self.join().await?;
        let mut report = RestoreReport::default();
        let mut pasts: Vec<_> = self.pasts.iter().collect();
        pasts.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        for (id, past) in pasts {
            let is_known = self.known.has(id);
            if past.whole && !is_known {
                let name = &past.name;
                report.notes.push(format!("{name}: nothing is deleted, as the backup may not have all that there was"));
            }
            past.complete(past.whole && is_known, self.store.as_ref()).await?;
            let counts = past.counts();
            report.documents += counts.changed + counts.deleted;
            report.attachments += counts.attachments;
            report.bytes += counts.bytes;
            report.notes.extend(past.lines());
        }
        Ok(report)
    }

    /// What has been written so far, and stays.
    fn left(&self) -> Vec<String> {
        let counts = self.pasts.values().map(|past| (&past.name, past.counts()));
        let written = counts.map(|(name, counts)| (name, counts.changed + counts.deleted)).filter(|(_, n)| *n > 0);
        let mut left: Vec<_> = written
            .map(|(name, n)| format!("{n} new revisions in {name} (the same command goes on from there)"))
            .collect();
        left.sort();
        left
    }
}

fn ended_by_itself(e: tokio::task::JoinError) -> Error {
    Error::bug("a write ended by itself").caused_by(e)
}

#[async_trait]
impl SinkSession for Rewind {
    async fn catalog(&self, _: &CollectionInfo) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        self.take(batch).await
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        match self.complete().await {
            Ok(report) => Ok(report),
            Err(e) => {
                self.settle().await;
                let left = self.left();
                Err(if left.is_empty() { e } else { e.also(format!("left behind in the target: {}", left.join(", "))) })
            }
        }
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        // Whatever is under way may end well or not.
        self.settle().await;
        Leftovers { what: self.left() }
    }
}

#[async_trait]
impl Rehearsal for Rewind {
    fn looks_at(&self, space: &str) -> bool {
        let kinds = [Kind::Document, Kind::Attachment, inline::kind(), extras::settings()];
        kinds.iter().any(|kind| kind.space() == space)
    }

    async fn see(&self, batch: &Batch) -> Result<()> {
        self.known.note(batch);
        if batch.kind == extras::settings() { Ok(()) } else { self.take(batch.clone()).await }
    }

    async fn lines(self: Box<Self>) -> Result<Vec<String>> {
        Ok(self.complete().await?.notes)
    }
}
