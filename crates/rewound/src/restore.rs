//! Vault → target.

use crate::choose::{self, PointChoice};
use crate::points::PointView;
use crate::progress::{Doing, Job};
use crate::registry::Target;
use crate::space;
use crate::transfer::{self, CollectionReport, Load, Piece, Way, Written};
use futures::StreamExt;
use futures::TryStreamExt;
use model::{IfExists, Loss, RestoreOptions, RestorePlan, Result};
use serde::Serialize;
use vault::{HashKeys, State, Vault};

/// A restore that is ready to begin; nothing has been touched yet. What a dry run shows.
#[derive(Debug)]
pub struct Restore {
    state: State,
    keys: HashKeys,
    target: Target,
    options: RestoreOptions,
    /// The point that is restored.
    pub point: PointView,
    /// What the target is going to do.
    pub plan: RestorePlan,
    /// The collections with their sizes; of those of which only some documents are meant, the
    /// sizes of all.
    pub collections: Vec<CollectionReport>,
    /// What the backup could not contain.
    pub not_in_backup: Vec<Loss>,
}

/// What a restore did.
#[derive(Debug)]
pub struct RestoreReport {
    /// The point that was restored.
    pub point: PointView,
    /// What was written.
    pub written: Written,
}

/// Whether and how to go on with a [`Restore`].
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Consent {
    /// Accept what the plan says cannot come back.
    pub allow_loss: bool,
    /// Read the target back and compare it.
    pub verify: bool,
}

impl Restore {
    /// Chooses the point and asks the target what it would do. Touches nothing.
    pub async fn prepare(
        job: &Job,
        vault: &Vault,
        target: Target,
        choice: &PointChoice,
        mut options: RestoreOptions,
    ) -> Result<Restore> {
        job.phase(Doing::Checking, None, None);
        let points = job.stop.or(vault.points()).await?;
        let chosen = choose::point(&points, choice)?;
        chosen.notes.into_iter().for_each(|note| job.note(note));
        let engine = &chosen.point.manifest.source.engine;
        options.selection.understand_keys(|text| crate::registry::keys_of(engine, text));
        let state = job.stop.or(vault.resolve(&chosen.point, &options.selection)).await?;
        let catalog = vault.catalog(&chosen.point.manifest).await?;
        let there = catalog.collections.iter().map(|c| c.info.name.as_str());
        transfer::check_names(&options, there, state.collections().len())?;
        let description = state.description();
        let plan = job.stop.or(target.sink.prepare(&description, &options)).await?;
        let collections = state.collections().iter().map(|entry| CollectionReport {
            name: entry.info.name.clone(),
            target: options.target_name(&entry.info.name).to_owned(),
            documents: entry.documents,
            attachments: if options.selection.no_attachments { 0 } else { entry.attachments },
            bytes: size(entry, &options),
        });
        Ok(Restore {
            keys: vault.hash_keys()?.clone(),
            point: PointView::from(&chosen.point),
            collections: collections.collect(),
            not_in_backup: description.losses,
            target,
            options,
            plan,
            state,
        })
    }

    /// Writes to the target, compares what is sent with the point's digests, and reads the target
    /// back. That the proof failed is part of the report, not an error.
    pub async fn run(self, job: &Job, consent: Consent) -> Result<RestoreReport> {
        transfer::check_losses(&self.plan, consent.allow_loss)?;
        let whole = self.state.collections().iter().all(|c| self.state.is_whole(c));
        if let (Some(folder), true) = (&self.target.folder, whole) {
            space::room_for_restore(folder, self.collections.iter().map(|c| c.bytes).sum())?;
        }
        let loads = self.state.collections().iter().map(|entry| {
            let whole = self.state.is_whole(entry);
            let all = self.options.selection.takes_all_of(&entry.info.name);
            Load {
                info: entry.info.clone(),
                documents: all.then_some(entry.documents),
                bytes: all.then(|| size(entry, &self.options)),
                expected: whole.then_some(entry.digest),
                by_key: !all,
                pieces: self.state.read(entry).map_ok(Piece::Batch).boxed(),
            }
        });
        let way = Way {
            job,
            target: &self.target,
            keys: &self.keys,
            merge: self.options.if_exists == IfExists::Merge,
            verify: consent.verify,
            release: &|_| {},
        };
        let written = way.write(self.plan, loads.collect(), self.state.attachments()).await?;
        Ok(RestoreReport { point: self.point, written })
    }
}

fn size(entry: &vault::CatalogEntry, options: &RestoreOptions) -> u64 {
    entry.document_bytes + if options.selection.no_attachments { 0 } else { entry.attachment_bytes }
}
