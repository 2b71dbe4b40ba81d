//! The vaults that one backup goes to, side by side: a vault that fails leaves, the others go on.

use crate::metered::Metered;
use crate::progress::Job;
use crate::tee::Tee;
use model::{AttachmentStore, Batch, CollectionId, CollectionInfo, EngineTime, Error, Result};
use std::sync::Arc;
use vault::{PointDetails, Run, Vault, WriteOutcome};

/// One vault of a backup.
pub(crate) struct Lane {
    /// Where the vault is, as the user wrote it.
    pub url: String,
    /// The vault; none if it could not be opened.
    pub vault: Option<Vault>,
    /// The run, while it goes well.
    pub run: Option<Arc<Run>>,
    /// Why it did not go well.
    pub error: Option<Error>,
}

impl Lane {
    /// Gives the run up.
    async fn abandon(&mut self) {
        // Somebody may still be writing with it: then its sign of life expires by itself.
        if let Some(run) = self.run.take().and_then(Arc::into_inner)
            && let Err(error) = run.abandon().await
        {
            tracing::warn!("{}: taking away the run's sign of life failed: {error}", self.url);
        }
    }
}

/// All vaults of a backup.
pub(crate) struct Lanes {
    pub lanes: Vec<Lane>,
    /// Attachments for several vaults.
    tee: Option<Arc<Tee>>,
}

impl Lanes {
    /// Lanes with runs that have been started, or failed to.
    pub fn new(lanes: Vec<Lane>) -> Self {
        let mut all = Lanes { lanes, tee: None };
        if all.lanes.len() > 1 {
            // A lane that failed already gets a store that is never used.
            let nothing: Arc<dyn AttachmentStore> = Arc::new(model::HashingStore);
            let stores =
                all.lanes.iter().map(|l| l.run.as_ref().map_or(nothing.clone(), |run| run.attachments())).collect();
            let tee = Tee::new(stores);
            let failed: Vec<usize> = (0..all.lanes.len()).filter(|i| all.lanes[*i].run.is_none()).collect();
            failed.into_iter().for_each(|i| tee.leave_out(i));
            all.tee = Some(Arc::new(tee));
        }
        all
    }

    /// The lanes that still go well.
    pub fn alive(&self) -> Vec<usize> {
        (0..self.lanes.len()).filter(|i| self.lanes[*i].run.is_some()).collect()
    }

    /// Where the source puts attachments.
    pub fn attachments(&self, job: &Job) -> Result<Arc<dyn AttachmentStore>> {
        let store: Arc<dyn AttachmentStore> = match (&self.tee, &self.lanes[..]) {
            (Some(tee), _) => tee.clone(),
            (None, [Lane { run: Some(run), .. }]) => run.attachments(),
            _ => return Err(Error::bug("no vault is left to write to")),
        };
        Ok(Metered::in_front_of(store, job))
    }

    /// Bytes stored by all runs so far.
    pub fn stored(&self) -> u64 {
        self.lanes.iter().filter_map(|l| l.run.as_ref()).map(|run| run.stored()).sum()
    }

    /// Tells some lanes that a collection begins; gives those for which that went well.
    pub async fn begin(&mut self, lanes: &[usize], info: &CollectionInfo) -> Vec<usize> {
        let results = self.each(lanes, |_, run| run.begin(info)).await;
        self.keep(lanes, results).await.into_iter().map(|(i, ())| i).collect()
    }

    /// Tells some lanes that a collection has been read to its end.
    pub async fn end(&mut self, lanes: &[usize], id: &CollectionId) {
        let results = self.each(lanes, |_, run| run.end(id)).await;
        self.keep(lanes, results).await;
    }

    /// Tells some lanes that nothing that was written of a collection counts.
    pub async fn discard(&self, lanes: &[usize], id: &CollectionId) {
        for run in lanes.iter().filter_map(|i| self.lanes[*i].run.as_ref()) {
            run.discard(id).await;
        }
    }

    /// Tells some lanes at which engine time the documents of a collection that follow were read.
    pub async fn read_at(&self, lanes: &[usize], id: &CollectionId, time: EngineTime) {
        for run in lanes.iter().filter_map(|i| self.lanes[*i].run.as_ref()) {
            run.read_at(id, time).await;
        }
    }

    /// Writes a batch to some lanes; gives those for which that went well, with what they said.
    pub async fn write(&mut self, lanes: &[usize], batch: Batch) -> Vec<(usize, WriteOutcome)> {
        let results = match lanes {
            [only] if self.tee.is_none() => match &self.lanes[*only].run {
                Some(run) => vec![run.write(batch).await],
                None => Vec::new(),
            },
            _ => {
                let batch = &batch;
                self.each(lanes, |i, run| async move { run.write(for_lane(batch, i)?).await }).await
            }
        };
        self.keep(lanes, results).await
    }

    /// Takes out lanes whose attachments could not be stored.
    pub async fn drop_failed(&mut self, lanes: Vec<usize>) -> Vec<usize> {
        let Some(tee) = self.tee.clone() else { return lanes };
        let mut good = Vec::with_capacity(lanes.len());
        for i in lanes {
            match tee.take_failure(i) {
                Some(error) => self.fail(i, error).await,
                None => good.push(i),
            }
        }
        good
    }

    /// Completes the point of each lane for which there are details, side by side.
    pub async fn commit(
        &mut self,
        details: impl Fn(usize) -> Option<PointDetails>,
    ) -> Vec<(usize, (vault::PointName, vault::Manifest))> {
        let commits = self.lanes.iter_mut().enumerate().filter_map(|(i, lane)| {
            let details = details(i)?;
            let run = lane.run.take().map(Arc::into_inner)?;
            // Committing is a large future, and moved about here.
            Some(Box::pin(async move {
                let committed = match run {
                    Some(run) => run.commit(details).await,
                    None => Err(Error::bug("a run is committed while something writes with it")),
                };
                (i, committed)
            }))
        });
        let mut points = Vec::new();
        for (i, committed) in futures::future::join_all(commits).await {
            match committed {
                Ok(point) => points.push((i, point)),
                Err(error) => self.lanes[i].error = Some(error),
            }
        }
        points
    }

    /// Gives all runs up: what they stored stays for the next ones.
    pub async fn abandon(&mut self) {
        for lane in &mut self.lanes {
            lane.abandon().await;
        }
    }

    /// The error of the first lane that failed.
    pub fn first_error(&mut self) -> Error {
        let error = self.lanes.iter_mut().find_map(|l| l.error.take());
        error.unwrap_or_else(|| Error::bug("no vault was written to, and none failed"))
    }

    /// Ends a lane.
    pub async fn fail(&mut self, i: usize, error: Error) {
        if let Some(tee) = &self.tee {
            tee.leave_out(i);
        }
        self.lanes[i].error.get_or_insert(error);
        self.lanes[i].abandon().await;
    }

    /// Does something with the runs of some lanes, side by side.
    async fn each<'a, T, F>(&'a self, lanes: &[usize], work: impl Fn(usize, &'a Run) -> F) -> Vec<Result<T>>
    where
        F: Future<Output = Result<T>>,
    {
        let working = lanes.iter().filter_map(|i| self.lanes[*i].run.as_deref().map(|run| work(*i, run)));
        futures::future::join_all(working).await
    }

    /// The good results; lanes with bad ones fail.
    async fn keep<T>(&mut self, lanes: &[usize], results: Vec<Result<T>>) -> Vec<(usize, T)> {
        let mut good = Vec::with_capacity(lanes.len());
        for (i, result) in lanes.iter().zip(results) {
            match result {
                Ok(value) => good.push((*i, value)),
                Err(error) => self.fail(*i, error).await,
            }
        }
        good
    }
}

/// A batch as one of several vaults takes it: with its own references to attachments.
fn for_lane(batch: &Batch, lane: usize) -> Result<Batch> {
    let mut batch = batch.clone();
    for reference in &mut batch.attachments {
        *reference = Tee::of_store(reference, lane)?;
    }
    Ok(batch)
}
