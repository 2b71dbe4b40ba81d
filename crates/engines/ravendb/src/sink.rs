//! A RavenDB database as a sink: one import of a dump that is made on the fly.

use crate::dump::Compressor;
use crate::maker::Maker;
use crate::proof;
use crate::server::{Build, Server, Stats};
use crate::upload::{self, Upload};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::{
    AttachmentStore, Batch, CollectionInfo, Description, Encoding, Error, IfExists, Leftovers, Loss, PlannedCollection,
    RestoreOptions, RestorePlan, RestoreReport, Result, Sink, SinkSession,
};
use std::borrow::Cow;
use std::sync::Arc;
use tokio::sync::Mutex;

/// A RavenDB database that is written to: a new one, an empty one, or one that is merged into.
#[derive(Debug)]
pub struct RavenSink {
    server: Arc<Server>,
    /// The build of the server that the backup is of, and of the target.
    builds: std::sync::Mutex<(Option<u64>, u64)>,
}

impl RavenSink {
    /// The database that the server stands for; nothing is opened yet.
    pub fn new(server: Arc<Server>) -> RavenSink {
        RavenSink { server, builds: std::sync::Mutex::new((None, 0)) }
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
        let build = self.server.build().await?;
        let database = self.server.database()?;
        let collections = planned(what, options)?;
        let mut phases = Vec::new();
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
                    return Err(Error::unsupported(format!(
                        "the database {database} holds {there}, and cannot be replaced"
                    ))
                    .hint("restore into a new database, look at it, then remove the old one in RavenDB Studio"));
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
        let from = Build::of(&what.version);
        *self.builds.lock().unwrap_or_else(|e| e.into_inner()) = (from, build.build);
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

    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        let (from, to) = *self.builds.lock().unwrap_or_else(|e| e.into_inner());
        proof::provable(batch, from.is_none_or(|from| from / 1000 == to / 1000))
    }

    async fn begin(&self, _: RestorePlan, store: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let build = self.server.build().await?;
        let made = self.server.stats().await?.is_none();
        if made {
            self.server.create().await?;
        }
        let from = self.builds.lock().unwrap_or_else(|e| e.into_inner()).0.unwrap_or(build.build).min(build.build);
        let compressor = if build.is_old() { Compressor::gzip() } else { Compressor::none() };
        let upload = Upload::begin(&self.server, &build)?;
        let mut maker = Maker::new(upload, compressor, from, store)?;
        maker.settings_first = build.is_old();
        // The server refuses all of an import for one of them.
        maker.kept = self.server.subscriptions().await?.into_iter().map(String::into_bytes).collect();
        Ok(Box::new(Session { server: self.server.clone(), build, made, maker: Mutex::new(maker) }))
    }
}

/// A restore under way.
struct Session {
    server: Arc<Server>,
    build: Build,
    /// Whether the database was made for it.
    made: bool,
    maker: Mutex<Maker<Upload>>,
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, _: &CollectionInfo) -> Result<()> {
        // Documents make their collections.
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        self.maker.lock().await.write(&batch).await
    }

    fn last_step(&self) -> Option<BoxFuture<'static, Result<()>>> {
        let record = self.maker.try_lock().ok()?.record()?;
        let (server, build) = (self.server.clone(), self.build.clone());
        Some(async move { upload::settings(&server, &build, &record).await }.boxed())
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        let (upload, report) = self.maker.into_inner().finish(false).await?;
        upload.finish().await?;
        Ok(report)
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        self.maker.into_inner().out.abort().await;
        let database = self.server.database().unwrap_or_default();
        let left = match self.made {
            false => format!("what the server had taken of the import, in the database {database}"),
            true => match self.server.delete().await {
                Ok(()) => return Leftovers::default(),
                Err(e) => format!("the database {database}, which was made for the restore ({e})"),
            },
        };
        Leftovers { what: vec![left] }
    }
}
