//! A restore into MongoDB under way.

use crate::catalog::Options;
use crate::connect::Server;
use crate::insert::cut;
use crate::json;
use crate::names;
use crate::place::{Place, Way};
use crate::retry::{self, drop_collection};
use crate::target::{Removed, Target, fingerprint, sizes};
use crate::views;
use async_trait::async_trait;
use bson::doc;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use model::{
    Batch, CollectionId, CollectionInfo, Encoding, Engine, Error, ErrorKind, Kind, Leftovers, RestoreReport, Result,
    Seams, SinkSession,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

/// KiB of documents on their way to the server: each is in memory about four times.
const UNDER_WAY: usize = 24 << 10;
/// How long commands under way may take to end when a restore is given up.
const ENDING: Duration = Duration::from_secs(10);
/// Collections that are made, indexed or renamed side by side.
const SIDE_BY_SIDE: usize = 4;

/// What all parts of a restore share.
pub(crate) struct Session {
    server: Arc<Server>,
    engine: Engine,
    targets: HashMap<CollectionId, Arc<Target>>,
    /// In the order of the plan.
    order: Vec<CollectionId>,
    commands: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
    writing: tokio::sync::Mutex<JoinSet<()>>,
    failure: Arc<Failure>,
}

/// The first error of what runs by itself.
#[derive(Default)]
struct Failure {
    is_there: AtomicBool,
    first: Mutex<Option<Error>>,
}

impl Failure {
    fn set(&self, error: Error) {
        let mut first = self.first.lock().unwrap_or_else(|e| e.into_inner());
        if !self.is_there.swap(true, Ordering::Relaxed) {
            *first = Some(error);
        }
    }

    /// What becomes of a writer that ended by itself.
    fn note(&self, ended: std::result::Result<(), JoinError>) {
        if let Err(e) = ended {
            self.set(Error::bug("writing to MongoDB broke off").caused_by(e));
        }
    }

    /// The error, to whoever asks first; others hear that there was one.
    fn check(&self) -> Result<()> {
        if !self.is_there.load(Ordering::Relaxed) {
            return Ok(());
        }
        let first = self.first.lock().unwrap_or_else(|e| e.into_inner()).take();
        Err(first.unwrap_or_else(|| Error::new(ErrorKind::Interrupted, "writing was stopped by an error before")))
    }
}

impl Session {
    /// Clears away what restores that were killed left.
    pub async fn begin(server: Arc<Server>, places: Vec<Place>, engine: Engine, concurrency: usize) -> Result<Session> {
        for place in &places {
            let partial = place.is_partial.then_some(&place.name);
            for name in partial.into_iter().chain(&place.leftovers) {
                drop_collection(&server, &place.database, name).await?;
            }
        }
        let run: String = Seams::system().bytes::<4>().iter().map(|b| format!("{b:02x}")).collect();
        let order = places.iter().map(|p| p.planned.info.id.clone()).collect();
        let target = |mut place: Place| {
            if place.is_partial {
                place.existing = None;
            }
            (place.planned.info.id.clone(), Arc::new(Target::new(server.clone(), place, &run)))
        };
        Ok(Session {
            targets: places.into_iter().map(target).collect(),
            server: server.clone(),
            engine,
            order,
            commands: Arc::new(Semaphore::new(concurrency)),
            kibibytes: Arc::new(Semaphore::new(UNDER_WAY)),
            writing: tokio::sync::Mutex::default(),
            failure: Arc::default(),
        })
    }

    fn target(&self, id: &CollectionId) -> Result<&Arc<Target>> {
        let unknown = || Error::bug(format!("documents came for the collection {id}, which is not part of the plan"));
        self.targets.get(id).ok_or_else(unknown)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.order.iter().filter_map(|id| self.targets.get(id))
    }

    /// The batch in BSON, if a collection has room for what it holds.
    fn understand(&self, target: &Target, batch: Batch) -> Result<Batch> {
        let shown = target.place.shown();
        let unsupported = |what: &str| {
            Error::unsupported(format!("{shown} has {what}, and a collection of MongoDB has no place for them"))
                .hint("restore into the engine that they came from")
        };
        match (&batch.kind, batch.encoding) {
            (Kind::Document, Encoding::Bson) if target.place.way != Way::View => Ok(batch),
            (Kind::Document, Encoding::Json) if self.engine.0 != "mongodb" => json::to_bson(&batch, shown),
            (Kind::Document, _) => Err(unsupported("documents in another encoding than BSON")),
            (Kind::Attachment, _) => Err(unsupported("attachments")
                .hint("leave them out with --no-attachments, or restore into the engine that they came from")),
            (other, _) => Err(unsupported(&format!("{} entries", other.space()))),
        }
    }

    /// Runs a step for all collections, some side by side.
    async fn each<'a, F: Future<Output = Result<()>> + Send>(&'a self, step: impl Fn(&'a Target) -> F) -> Result<()> {
        let steps: Vec<F> = self.all().map(|target| step(target)).collect();
        futures::stream::iter(steps).buffer_unordered(SIDE_BY_SIDE).try_collect().await
    }

    /// All that can be done while nothing that was there is touched.
    async fn complete(&self) -> Result<()> {
        while let Some(ended) = self.writing.lock().await.join_next().await {
            self.failure.note(ended);
        }
        self.failure.check()?;
        self.each(Target::make).await?;
        self.each(Target::index).await?;
        // Before the first is renamed: after a restart it would be written anew.
        for target in self.all() {
            target.refuse_newcomers().await?;
        }
        Ok(())
    }

    /// Puts everything in its place.
    async fn put_in_place(&self) -> Result<()> {
        self.each(Target::rename).await?;
        self.each(Target::copy).await?;
        self.make_views().await?;
        self.take_over_users().await?;
        self.each(Target::unmark).await?;
        let mut one_each: BTreeMap<&str, &Target> = BTreeMap::new();
        for target in self.all().filter(|t| !matches!(t.place.way, Way::View | Way::Users)) {
            one_each.insert(&target.place.database, target);
        }
        for target in one_each.values() {
            target.settle().await?;
        }
        Ok(())
    }

    async fn make_views(&self) -> Result<()> {
        let mut by_database: BTreeMap<&str, Vec<(&Target, Options)>> = BTreeMap::new();
        for target in self.all().filter(|t| t.place.way == Way::View) {
            by_database.entry(&target.place.database).or_default().push((target, target.options()));
        }
        for (database, all) in by_database {
            let named: Vec<(&str, &Options)> =
                all.iter().map(|(t, options)| (t.place.name.as_str(), options)).collect();
            for i in views::in_order(&named) {
                let (name, options) = named[i];
                let place = &all[i].0.place;
                match &place.existing {
                    Some(existing)
                        if existing.options.kind == options.kind && existing.options.options == options.options =>
                    {
                        continue;
                    }
                    Some(_) => drop_collection(&self.server, database, name).await?,
                    None => {}
                }
                let doing = || format!("making the view {}", place.shown());
                let is_fine = |code, again| again && code == 48;
                retry::run(&self.server, database, views::create(name, options), doing, is_fine).await?;
            }
        }
        Ok(())
    }

    /// Has the server add users and roles to its own.
    async fn take_over_users(&self) -> Result<()> {
        let users: Vec<&Arc<Target>> = self.all().filter(|t| t.place.way == Way::Users).collect();
        if users.is_empty() {
            return Ok(());
        }
        let mut command =
            doc! { "_mergeAuthzCollections": 1, "drop": false, "db": "", "writeConcern": { "w": "majority" } };
        for target in &users {
            let field = match target.place.name.as_str() {
                "system.users" => "tempUsersCollection",
                _ => "tempRolesCollection",
            };
            command.insert(field, format!("admin.{}", target.scratch()));
        }
        retry::run(&self.server, "admin", command, || "adding users and roles".to_owned(), |_, _| false).await?;
        for target in users {
            drop_collection(&self.server, "admin", target.scratch()).await?;
        }
        Ok(())
    }

    /// Removes what was written, as far as nothing else was there before.
    async fn take_back(&self) -> Vec<String> {
        let mut writing = self.writing.lock().await;
        // A command that is cut short here may still run there, and make its collection anew.
        let end = async { while writing.join_next().await.is_some() {} };
        if tokio::time::timeout(ENDING, end).await.is_err() {
            writing.shutdown().await;
        }
        let (mut left, mut is_reached) = (Vec::new(), true);
        for target in self.all() {
            match target.remove(is_reached).await {
                Removed::All => {}
                Removed::Not(what) => left.push(what),
                Removed::Unreachable(what) => {
                    is_reached = false;
                    left.push(what);
                }
            }
        }
        left
    }
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, collection: &CollectionInfo) -> Result<()> {
        let target = self.target(&collection.id)?;
        if names::is_of_users(target.place.shown()) || self.engine.0 != "mongodb" {
            return Ok(());
        }
        target.learn(Options::from_json(&collection.options)?)
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        self.failure.check()?;
        batch.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let target = self.target(&batch.collection)?;
        let mut batch = self.understand(target, batch)?;
        let pieces = cut(&mut batch, target.place.shown())?;
        target.make().await?;
        let is_ordered = target.place.planned.info.ordered;
        // Where documents were before, or are gone by now (capped), the server cannot tell what came
        // twice.
        let is_counted_here = target.place.way == Way::Into || is_ordered;
        if is_counted_here {
            let mut seen = target.seen.lock().await;
            if seen.insert(fingerprint(&batch)) {
                let (documents, bytes) = sizes(&pieces);
                target.count(documents, bytes);
            } else if is_ordered {
                return Ok(());
            }
            if is_ordered {
                // The lock stays: one writes at a time.
                for piece in &pieces {
                    target.namespace().put(&batch, piece, true).await?;
                }
                return Ok(());
            }
        }
        for piece in pieces {
            let kibibytes = (piece.bytes / 1024 + 1).min(UNDER_WAY) as u32;
            let stopped = |_| Error::bug("a restore went on after its end");
            let room = self.kibibytes.clone().acquire_many_owned(kibibytes).await.map_err(stopped)?;
            let turn = self.commands.clone().acquire_owned().await.map_err(stopped)?;
            self.failure.check()?;
            let (target, batch, failure) = (target.clone(), batch.clone(), self.failure.clone());
            let mut writing = self.writing.lock().await;
            while let Some(ended) = writing.try_join_next() {
                self.failure.note(ended);
            }
            writing.spawn(async move {
                match target.namespace().put(&batch, &piece, false).await {
                    Ok((documents, bytes)) if !is_counted_here => target.count(documents, bytes),
                    Ok(_) => {}
                    Err(error) => failure.set(error),
                }
                drop((room, turn));
            });
        }
        Ok(())
    }

    fn last_step(&self) -> Option<BoxFuture<'static, Result<()>>> {
        let targets: Vec<_> = self.all().cloned().collect();
        Some(Box::pin(async move {
            for target in targets {
                target.expire().await?;
            }
            Ok(())
        }))
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        if let Err(error) = self.complete().await {
            let left = self.take_back().await;
            return Err(match left.is_empty() {
                true => error,
                false => error.hint(format!("left behind in the target: {}", left.join(", "))),
            });
        }
        self.put_in_place().await.map_err(|e| {
            let more = "everything is written, but not all of it is in its place: run the restore again with --if-exists replace";
            let hint = e.hint_text().map_or(more.to_owned(), |hint| format!("{hint}; {more}"));
            e.hint(hint)
        })?;
        let mut report = RestoreReport::default();
        for target in self.all() {
            let (documents, bytes) = target.written();
            report.documents += documents;
            report.bytes += bytes;
        }
        Ok(report)
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        Leftovers { what: self.take_back().await }
    }
}
