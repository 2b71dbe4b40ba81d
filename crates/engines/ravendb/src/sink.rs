//! A RavenDB database as a sink: one import of a dump that is made on the fly.

use crate::choice::{Choice, KINDS};
use crate::dump::Compressor;
use crate::maker::Maker;
use crate::native;
use crate::proof;
use crate::replace::{self, Sum};
use crate::server::{Build, Server, Stats};
use crate::upload::{self, Upload};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::{
    AttachmentStore, Batch, CollectionInfo, Description, Encoding, Error, IfExists, Indexes, Kind, Leftovers, Loss,
    PlannedCollection, RestoreOptions, RestorePlan, RestoreReport, Result, Sink, SinkSession,
};
use std::borrow::Cow;
use std::sync::Arc;
use tokio::sync::Mutex;

/// A RavenDB database that is written to: a new one, an empty one, or one that is merged into.
#[derive(Debug)]
pub struct RavenSink {
    server: Arc<Server>,
    how: std::sync::Mutex<How>,
}

/// What was found out before a restore.
#[derive(Debug, Clone, Default)]
struct How {
    /// The build of the server that the backup is of, and of the target.
    from: Option<u64>,
    to: u64,
    choice: Choice,
    indexes: Indexes,
    /// Whether the database that is there is to be replaced.
    replaces: bool,
}

impl How {
    fn same_version(&self) -> bool {
        self.from.is_none_or(|from| from / 1000 == self.to / 1000)
    }
}

impl RavenSink {
    /// The database that the server stands for; nothing is opened yet.
    pub fn new(server: Arc<Server>) -> RavenSink {
        RavenSink { server, how: std::sync::Mutex::default() }
    }

    fn how(&self) -> std::sync::MutexGuard<'_, How> {
        self.how.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Whether a backup is of a server of another version.
fn from_other(version: &str, build: &Build) -> bool {
    Build::of(version).is_some_and(|from| from / 1000 != build.build / 1000)
}

/// What a database holds, for people; none if nothing.
fn content(stats: &Stats) -> Option<String> {
    let counted = [
        (stats.count_of_documents, "documents"),
        (stats.count_of_revision_documents, "revisions"),
        (stats.count_of_attachments, "attachments"),
        (stats.count_of_indexes, "indexes"),
    ];
    let all: Vec<_> = counted.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// The collections that go into a database under their own names.
pub(crate) fn planned(what: &Description, options: &RestoreOptions) -> Result<Vec<PlannedCollection>> {
    let chosen = what.collections.iter().filter(|info| options.selection.takes(&info.name));
    let all: Vec<_> = chosen.map(|info| PlannedCollection { info: info.clone(), target: info.name.clone() }).collect();
    if let Some(renamed) = all.iter().find(|c| options.target_name(&c.info.name) != c.info.name) {
        return Err(Error::unsupported(format!("the collection {} cannot be renamed", renamed.info.name))
            .hint("documents of RavenDB say themselves which collection they are in; restore it under its own name"));
    }
    Ok(all)
}

#[async_trait]
impl Sink for RavenSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        native::refuse(&what.collections)?;
        let build = self.server.build().await?;
        let database = self.server.database()?;
        let collections = planned(what, options)?;
        let mut phases = Vec::new();
        let (choice, mut replaces) = (Choice::of(options), false);
        match self.server.stats().await? {
            None => phases.push(format!("make the database {database}")),
            Some(stats) => match (content(&stats), options.if_exists) {
                (None, _) => phases.push(format!("write into the empty database {database}")),
                (Some(there), IfExists::Merge) => phases.push(format!(
                    "merge into the database {database}, which holds {there}: what has the same id is \
                     overwritten, but for subscriptions, which stay"
                )),
                (Some(there), IfExists::Fail) => {
                    return Err(Error::input(format!("the database {database} holds {there}")).hint(
                        "name a database that is not there yet, it will be made; or pass --if-exists merge to write into this one",
                    ));
                }
                (Some(there), IfExists::Replace) => {
                    let selection = &options.selection;
                    let whole = selection.only.is_empty() && selection.exclude.is_empty() && !selection.no_attachments;
                    if !whole || !choice.is_all() {
                        return Err(Error::input(format!(
                            "the database {database} holds {there}, and would be replaced by a part of the backup"
                        ))
                        .hint("restore the part into a new database, or pass --if-exists merge"));
                    }
                    replaces = true;
                    phases.push(format!(
                        "write into a scratch database {database}-rewound-… and read it back; only then delete the \
                         database {database}, which holds {there}, write it anew out of the scratch database, read \
                         it back, and delete the scratch database"
                    ));
                }
            },
        }
        phases.push(
            "send everything as one import: documents and attachments, revisions, counters, time series, indexes. \
             The server's import is not atomic: what it took before an error stays, unless the database was made for it"
                .into(),
        );
        phases.push(
            "compare with what was sent, but for what the server makes anew: change vectors, flags, the times of \
             documents with counters or time series, subscriptions and settings"
                .into(),
        );
        if from_other(&what.version, &build) {
            phases.push("indexes are written in the words of the target's version: those are not compared".into());
        }
        phases.push("last, put the database's settings in force (revisions, expiration, tasks, connections)".into());
        match options.indexes {
            Indexes::Built => {}
            Indexes::Stopped => phases.push(
                "indexing is stopped before, and stays so until it is started in RavenDB Studio or the database is \
                 loaded again"
                    .into(),
            ),
            Indexes::Disabled => phases.push(
                "indexing is stopped before, and each index disabled at the end: enable them in RavenDB Studio".into(),
            ),
        }
        let from = Build::of(&what.version);
        *self.how() = How { from, to: build.build, choice, indexes: options.indexes, replaces };
        let mut losses = Vec::new();
        if from.is_some_and(|from| from / 1000 > build.build / 1000) {
            losses.push(Loss {
                what: "what only newer servers know".into(),
                why: format!("the backup is of {}, the target is {}", what.version, build.version()),
            });
        }
        Ok(RestorePlan { phases, collections, losses })
    }

    fn takes(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Json
    }

    fn kinds(&self) -> &'static [&'static str] {
        KINDS
    }

    fn leaves_out(&self, batch: &Batch) -> bool {
        self.how().choice.leaves_out(batch)
    }

    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        let how = self.how();
        match batch.kind {
            Kind::Attachment => Some(how.choice.part_of(batch)),
            _ => proof::provable(batch, how.same_version(), how.choice.is_rewriting()),
        }
    }

    async fn begin(&self, _: RestorePlan, store: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let build = self.server.build().await?;
        let how = self.how().clone();
        let scratch = if how.replaces { Some(Arc::new(replace::scratch(&self.server)?)) } else { None };
        let into = scratch.clone().unwrap_or_else(|| self.server.clone());
        let made = into.stats().await?.is_none();
        if made {
            into.create().await?;
        }
        if how.indexes != Indexes::Built {
            into.stop_indexing().await?;
        }
        let from = how.from.unwrap_or(build.build).min(build.build);
        let compressor = if build.is_old() { Compressor::gzip() } else { Compressor::none() };
        let upload = Upload::begin(&into, &build)?;
        let mut maker = Maker::new(upload, compressor, from, store)?;
        maker.settings_first = build.is_old();
        maker.refuses_unknown = true;
        // The server refuses all of an import for one of them.
        maker.kept = into.subscriptions().await?.into_iter().map(String::into_bytes).collect();
        maker.choice = how.choice.clone();
        let work = Mutex::new((maker, Sum::default()));
        Ok(Box::new(Session { server: self.server.clone(), scratch, build, made, how, work }))
    }
}

/// A restore under way.
struct Session {
    server: Arc<Server>,
    build: Build,
    /// The database that is written to first, if another one is replaced.
    scratch: Option<Arc<Server>>,
    /// Whether the database was made for it.
    made: bool,
    how: How,
    /// What makes the dump, and what stands for all of it where a database is replaced.
    work: Mutex<(Maker<Upload>, Sum)>,
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, _: &CollectionInfo) -> Result<()> {
        // Documents make their collections.
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        let (maker, sum) = &mut *self.work.lock().await;
        if self.scratch.is_some() {
            sum.add(&batch, self.how.same_version());
        }
        maker.write(&batch).await
    }

    fn last_step(&self) -> Option<BoxFuture<'static, Result<()>>> {
        let record = self.work.try_lock().ok()?.0.record();
        let disables = self.how.indexes == Indexes::Disabled;
        if record.is_none() && !disables {
            return None;
        }
        let (server, build) = (self.server.clone(), self.build.clone());
        let work = async move {
            if let Some(record) = record {
                upload::settings(&server, &build, &record).await?;
            }
            if disables { server.disable_indexes().await } else { Ok(()) }
        };
        Some(work.boxed())
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        let (maker, sum) = self.work.into_inner();
        let (upload, report) = maker.finish(false).await?;
        upload.finish().await?;
        if let Some(scratch) = &self.scratch {
            let proof = (sum, self.how.same_version());
            let stops = self.how.indexes != Indexes::Built;
            replace::put_in_place(&self.server, scratch, &self.build, proof, stops).await?;
        }
        Ok(report)
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        self.work.into_inner().0.out.abort().await;
        let into = self.scratch.as_ref().unwrap_or(&self.server);
        let database = into.database().unwrap_or_default();
        let left = match self.made {
            false => format!("what the server had taken of the import, in the database {database}"),
            true => match into.delete().await {
                Ok(()) => return Leftovers::default(),
                Err(e) => format!("the database {database}, which was made for the restore ({e})"),
            },
        };
        Leftovers { what: vec![left] }
    }
}
