//! Vault → target.

use crate::choose::{self, PointChoice};
use crate::expiring;
use crate::opaque;
use crate::points::PointView;
use crate::progress::{Doing, Job};
use crate::registry::Target;
use crate::space;
use crate::time::exactly;
use crate::transfer::{self, CollectionReport, Load, Piece, Way, Written};
use crate::translate::{self, Plain};
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
    /// The point that is restored, or the last one whose layers the state is made of.
    pub point: PointView,
    /// The time whose state is restored.
    pub moment: Moment,
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
    /// The point that was restored, or the last one whose layers the state was made of.
    pub point: PointView,
    /// The time whose state was restored.
    pub moment: Moment,
    /// What was written.
    pub written: Written,
}

/// A time that is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// RFC 3339 in UTC.
    pub time: String,
    /// The same in milliseconds since 1970 UTC.
    pub millis: i64,
    /// The same as `--at` takes it, in the engine's exact order.
    pub at: String,
    /// Whether it is the time of the point.
    pub is_point: bool,
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
    /// Chooses the point and asks the target what it would do. Touches nothing. Holds about `memory`
    /// bytes of changes while the state is made, 128 MiB unless told; the rest goes to an encrypted
    /// temporary file.
    pub async fn prepare(
        job: &Job,
        vault: &Vault,
        target: Target,
        choice: &PointChoice,
        mut options: RestoreOptions,
        memory: Option<usize>,
    ) -> Result<Restore> {
        job.phase(Doing::Checking, None, None);
        let points = job.stop.or(vault.points()).await?;
        let tag = match &choice.point {
            Some(_) => choose::point(&points, choice)?.point.name.source,
            None => choose::source(&points, choice.source.as_deref())?,
        };
        if let Some(newest) = points.of(&tag).next_back() {
            let engine = &newest.manifest.source.engine;
            options.selection.understand_keys(|text| crate::registry::keys_of(engine, text));
        }
        let (state, notes) = job.stop.or(choose::state(vault, &points, choice, &options.selection)).await?;
        notes.into_iter().for_each(|note| job.note(note));
        let state = match memory {
            Some(bytes) => state.with_memory(bytes),
            None => state,
        };
        let point = state.point();
        let left_out = |p: &vault::Point| p.manifest.time <= state.time() && !p.manifest.skipped.is_empty();
        if options.as_new_revisions && points.of(&tag).any(left_out) {
            options.keep_others = true;
            job.note("backups left bad documents out, so nothing is deleted that the vault does not have");
        }
        let moment = Moment {
            time: state.time().to_string(),
            millis: state.time().millis,
            at: exactly(state.time(), point.manifest.source.feed),
            is_point: state.time() == point.manifest.time,
        };
        let catalog = vault.catalog(&point.manifest).await?;
        let there = catalog.collections.iter().chain(state.collections()).map(|c| c.info.name.as_str());
        transfer::check_names(&options, there, state.collections().len())?;
        transfer::check_new_revisions(&*target.sink, &options)?;
        let description = state.description();
        transfer::check_kinds(&options, &*target.sink)?;
        opaque::check(&description, &*target.sink, &options)?;
        let mut plan = job.stop.or(target.sink.prepare(&description, &options)).await?;
        plan.losses.extend(translate::losses(&description.engine, &*target.sink));
        if options.if_exists == IfExists::Replace {
            let count = job.stop.or(state.check_there()).await?;
            let there = if count == 1 {
                "the object that is needed is".to_owned()
            } else {
                format!("all {count} objects that are needed are")
            };
            plan.phases.insert(0, format!("{there} in the vault; what is inside is checked while it is read, before anything that is there is replaced"));
        }
        plan.phases.extend(expiring::count(job, &state, &*target.sink).await?);
        let collections = state.collections().iter().map(|entry| CollectionReport {
            name: entry.info.name.clone(),
            target: options.target_name(&entry.info.name).to_owned(),
            documents: entry.documents,
            attachments: if options.selection.no_attachments { 0 } else { entry.attachments },
            bytes: size(entry, &options),
        });
        Ok(Restore {
            keys: vault.hash_keys()?.clone(),
            point: PointView::from(state.point()),
            moment,
            collections: collections.collect(),
            not_in_backup: description.losses,
            target,
            options,
            plan,
            state,
        })
    }

    /// Looks at everything that would be written, where the target has more to tell of that than its
    /// plan, and adds it to this. Touches nothing.
    pub async fn rehearse(&mut self, job: &Job) -> Result<()> {
        let Some(rehearsal) = job.stop.or(self.target.sink.rehearse(&self.plan)).await? else { return Ok(()) };
        for entry in self.state.collections() {
            let mut batches = self.state.read_spaces(entry, |space| rehearsal.looks_at(space));
            while let Some(batch) = job.stop.or(batches.try_next()).await? {
                job.stop.or(rehearsal.see(&batch)).await?;
            }
        }
        self.plan.phases.extend(job.stop.or(rehearsal.lines()).await?);
        Ok(())
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
                documents: (all && entry.counted).then_some(entry.documents),
                bytes: (all && entry.counted).then(|| size(entry, &self.options)),
                expected: whole.then_some(entry.digest),
                by_key: !all,
                pieces: self.state.read(entry).map_ok(Piece::Batch).boxed(),
            }
        });
        let plain = Plain::of_engine(&self.state.description().engine, &*self.target.sink, self.state.attachments());
        let attachments = plain.as_ref().map_or_else(|| self.state.attachments(), |p| p.to.clone());
        let way = Way {
            job,
            target: &self.target,
            keys: &self.keys,
            merge: self.options.if_exists == IfExists::Merge,
            verify: consent.verify,
            release: &|_| {},
            plain,
        };
        let written = way.write(self.plan, loads.collect(), attachments).await?;
        Ok(RestoreReport { point: self.point, moment: self.moment, written })
    }
}

fn size(entry: &vault::CatalogEntry, options: &RestoreOptions) -> u64 {
    entry.document_bytes + if options.selection.no_attachments { 0 } else { entry.attachment_bytes }
}
