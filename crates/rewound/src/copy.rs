//! Source → target, without a vault in between: export, import, migrate.

use crate::parts::{Scan, by_collection};
use crate::progress::{Doing, Job};
use crate::registry::Target;
use crate::restore::Consent;
use crate::space;
use crate::spool::Spool;
use crate::transfer::{self, CollectionReport, Load, Piece, Way, Written};
use crate::translate;
use futures::{StreamExt, TryStreamExt, stream};
use model::{
    AttachmentStore, CollectionInfo, Error, ErrorKind, IfExists, Loss, Part, RestoreOptions, RestorePlan, Result,
    ScanItem, Skipped, Source,
};
use std::sync::{Arc, Mutex};
use vault::HashKeys;

/// A copy that is ready to begin; the target has not been touched. What a dry run shows.
pub struct Copy {
    source: Arc<dyn Source>,
    target: Target,
    options: RestoreOptions,
    groups: Vec<(CollectionInfo, Vec<Part>)>,
    skipped: Arc<Mutex<Vec<Skipped>>>,
    /// The source's name.
    pub name: String,
    /// What the target is going to do.
    pub plan: RestorePlan,
    /// The collections with their expected sizes, as far as the source knows them.
    pub collections: Vec<CollectionReport>,
    /// What the source cannot give.
    pub not_given: Vec<Loss>,
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copy").field("name", &self.name).field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// What a copy did.
#[derive(Debug)]
pub struct CopyReport {
    /// The source's name.
    pub source: String,
    /// What was written.
    pub written: Written,
    /// What was left out on request.
    pub skipped: Vec<Skipped>,
}

impl Copy {
    /// Plans the read and asks the target what it would do. Touches nothing.
    pub async fn prepare(job: &Job, source: Arc<dyn Source>, target: Target, options: RestoreOptions) -> Result<Copy> {
        job.phase(Doing::Checking, None, None);
        let source = job.stop.or(translate::for_target(source, &*target.sink)).await?;
        let mut description = job.stop.or(source.describe()).await?;
        let Scan { parts, skipped, .. } = Scan::of(job.stop.or(source.plan(&options.selection, None)).await?)?;
        let groups = by_collection(parts);
        let there: Vec<String> = description.collections.iter().map(|c| c.name.clone()).collect();
        transfer::check_names(&options, there.iter().map(String::as_str), groups.len())?;
        description.collections = groups.iter().map(|(info, _)| info.clone()).collect();
        transfer::check_kinds(&options, &*target.sink)?;
        let mut plan = job.stop.or(target.sink.prepare(&description, &options)).await?;
        plan.losses.extend(translate::losses(&description.engine, &*target.sink));
        let collections = groups.iter().map(|(info, parts)| CollectionReport {
            name: info.name.clone(),
            target: options.target_name(&info.name).to_owned(),
            documents: parts.iter().filter_map(|p| p.documents).sum(),
            attachments: 0,
            bytes: parts.iter().filter_map(|p| p.bytes).sum(),
        });
        Ok(Copy {
            collections: collections.collect(),
            skipped: Arc::new(Mutex::new(skipped)),
            name: description.name,
            not_given: description.losses,
            source,
            target,
            options,
            groups,
            plan,
        })
    }

    /// Writes to the target and reads it back. That the proof failed is part of the report.
    pub async fn run(self, job: &Job, consent: Consent) -> Result<CopyReport> {
        transfer::check_losses(&self.plan, consent.allow_loss)?;
        let all_known = self.groups.iter().all(|(_, parts)| parts.iter().all(|p| p.bytes.is_some()));
        let whole = self.options.selection.only.iter().all(|p| !p.contains('/'));
        if let (Some(folder), true) = (&self.target.folder, all_known && whole) {
            space::room_for_restore(folder, self.collections.iter().map(|c| c.bytes).sum())?;
        }
        let spool = Arc::new(Spool::default());
        let mut loads = Vec::with_capacity(self.groups.len());
        for (info, parts) in self.groups {
            let sum = |of: fn(&Part) -> Option<u64>| parts.iter().map(of).sum::<Option<u64>>();
            loads.push(Load {
                documents: sum(|p| p.documents),
                bytes: sum(|p| p.bytes),
                expected: None,
                by_key: !self.options.selection.takes_all_of(&info.name),
                info,
                pieces: pieces(self.source.clone(), parts, spool.clone(), self.skipped.clone()),
            });
        }
        // The digests are compared within this run only: any keys will do.
        let keys = HashKeys::derive(&job.seams.bytes());
        let way = Way {
            job,
            target: &self.target,
            keys: &keys,
            merge: self.options.if_exists == IfExists::Merge,
            verify: consent.verify,
            release: &|references| spool.release(references),
            // The source gives them so already.
            plain: None,
        };
        let written = way.write(self.plan, loads, spool.clone()).await?;
        let skipped = std::mem::take(&mut *self.skipped.lock().unwrap_or_else(|e| e.into_inner()));
        Ok(CopyReport { source: self.name, written, skipped })
    }
}

/// The content of all parts of a collection, one after the other.
fn pieces(
    source: Arc<dyn Source>,
    parts: Vec<Part>,
    attachments: Arc<dyn AttachmentStore>,
    skipped: Arc<Mutex<Vec<Skipped>>>,
) -> stream::BoxStream<'static, Result<Piece>> {
    stream::iter(parts)
        .then(move |part| {
            let (source, attachments) = (source.clone(), attachments.clone());
            async move { source.read(&part, attachments).await }
        })
        .try_flatten()
        .try_filter_map(move |item| {
            std::future::ready(Ok(match item {
                ScanItem::Batch(batch) => Some(Piece::Batch(batch)),
                ScanItem::Catalog(info) => Some(Piece::Catalog(info)),
                ScanItem::Skipped(bad) => {
                    skipped.lock().unwrap_or_else(|e| e.into_inner()).push(bad);
                    None
                }
                ScanItem::Progress { .. } => None,
                ScanItem::Gone | ScanItem::Again(_) => {
                    let error =
                        Error::new(ErrorKind::Retry, "a collection was dropped or overtaken while it was copied");
                    return std::future::ready(Err(error.hint(
                        "copy again; a backup into a vault and a restore from it can go on where a copy cannot",
                    )));
                }
            }))
        })
        .boxed()
}
