//! A restore into CouchDB under way.

use crate::client::{ANSWER_MAX, Request, segment};
use crate::copies;
use crate::extras;
use crate::inline;
use crate::replace;
use crate::server::Server;
use crate::writer::Writer;
use async_trait::async_trait;
use model::{
    AttachmentRef, AttachmentStore, Batch, CollectionId, CollectionInfo, ContentDigest, Error, ErrorKind, IfExists,
    Kind, Leftovers, PlannedCollection, RestoreReport, Result, SinkSession,
};
use reqwest::Method;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What of a restore the proof has to know: a source without settings leaves the server's own.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub finished: AtomicBool,
    pub settings: AtomicBool,
}

/// One database that is to be written.
#[derive(Debug)]
pub(crate) struct Goal {
    pub planned: PlannedCollection,
    pub is_there: bool,
    pub if_exists: IfExists,
}

/// A database that is being written.
pub(crate) struct Target {
    pub planned: PlannedCollection,
    pub writer: Writer,
    /// Whether it takes the place of another one.
    pub replaces: bool,
    pub made: bool,
    pub written: Mutex<Written>,
    info: Mutex<CollectionInfo>,
}

/// What was written into a database.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Batches that have come, by hash: one may come twice.
    seen: HashSet<u128>,
    pub report: RestoreReport,
    /// Stands for all entries, in any order.
    pub sum: u128,
    /// Where the content of large attachments is.
    pub contents: HashMap<ContentDigest, AttachmentRef>,
}

impl Target {
    pub fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn info(&self) -> CollectionInfo {
        self.info.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

pub(crate) struct Session {
    server: Arc<Server>,
    goals: HashMap<CollectionId, Goal>,
    targets: tokio::sync::Mutex<HashMap<CollectionId, Arc<Target>>>,
    store: Arc<dyn AttachmentStore>,
    writing: tokio::sync::Mutex<JoinSet<Result<()>>>,
    turns: Arc<Semaphore>,
    failed: Arc<Mutex<Option<Error>>>,
    told: Arc<Told>,
}

impl Session {
    pub fn new(
        server: Arc<Server>,
        goals: Vec<Goal>,
        store: Arc<dyn AttachmentStore>,
        concurrency: usize,
        told: Arc<Told>,
    ) -> Session {
        Session {
            server,
            goals: goals.into_iter().map(|g| (g.planned.info.id.clone(), g)).collect(),
            targets: Default::default(),
            store,
            writing: Default::default(),
            turns: Arc::new(Semaphore::new(concurrency)),
            failed: Default::default(),
            told,
        }
    }

    async fn target(&self, id: &CollectionId) -> Result<Arc<Target>> {
        let found = self.targets.lock().await.get(id).cloned();
        found.ok_or_else(|| Error::bug(format!("documents of {id} came before their collection")))
    }

    fn check(&self) -> Result<()> {
        match self.failed.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits for all that is under way.
    async fn join(&self) -> Result<()> {
        let mut writing = self.writing.lock().await;
        while let Some(ended) = writing.join_next().await {
            ended.map_err(|e| Error::bug("a write ended by itself").caused_by(e))??;
        }
        self.check()
    }

    async fn complete(&self) -> Result<()> {
        self.join().await?;
        for target in self.targets.lock().await.values() {
            for batch in target.writer.complete().await? {
                let all: Vec<usize> = (0..batch.len()).collect();
                target.writer.attached(&batch, &all, &self.store).await?;
            }
            target.writer.settle().await?;
        }
        Ok(())
    }
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, collection: &CollectionInfo) -> Result<()> {
        let mut targets = self.targets.lock().await;
        if let Some(target) = targets.get(&collection.id) {
            *target.info.lock().unwrap_or_else(|e| e.into_inner()) = collection.clone();
            return Ok(());
        }
        let goal = self
            .goals
            .get(&collection.id)
            .ok_or_else(|| Error::bug(format!("{} is not in the plan", collection.name)))?;
        let replaces = goal.is_there && goal.if_exists == IfExists::Replace;
        let made = replaces || !goal.is_there;
        let name = if replaces { replace::scratch_name(&goal.planned.target) } else { goal.planned.target.clone() };
        let copies = match made {
            true => create(&self.server, &name, collection).await?,
            false => copies::count(&self.server.client, &name).await?,
        };
        let writer = Writer::new(self.server.clone(), &name, copies).await?;
        let target = Target {
            planned: goal.planned.clone(),
            writer,
            replaces,
            made,
            written: Mutex::default(),
            info: Mutex::new(collection.clone()),
        };
        targets.insert(collection.id.clone(), Arc::new(target));
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        self.check()?;
        batch.check()?;
        let target = self.target(&batch.collection).await?;
        if batch.is_empty() {
            return Ok(());
        }
        let is_known = matches!(batch.kind, Kind::Document | Kind::Attachment) || batch.kind == inline::kind();
        {
            let mut written = target.written();
            if !written.seen.insert(fingerprint(&batch)) {
                return Ok(());
            }
            account(&mut written, &batch);
        }
        if batch.kind == extras::settings() {
            self.told.settings.store(true, Ordering::Relaxed);
        }
        if target.writer.hold(&batch) {
            return Ok(());
        }
        if !is_known {
            return Err(Error::unsupported(format!("CouchDB has no place for {} entries", batch.kind.space())));
        }
        let turn =
            self.turns.clone().acquire_owned().await.map_err(|_| Error::bug("a restore went on after its end"))?;
        if batch.kind == Kind::Attachment {
            // Its content is only kept until this returns.
            return put(&target, &batch, &self.store).await;
        }
        let (store, failed) = (self.store.clone(), self.failed.clone());
        let mut writing = self.writing.lock().await;
        while let Some(ended) = writing.try_join_next() {
            ended.map_err(|e| Error::bug("a write ended by itself").caused_by(e))??;
        }
        writing.spawn(async move {
            let result = put(&target, &batch, &store).await;
            drop(turn);
            if let Err(error) = result {
                // The first one is the one that matters.
                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
            Ok(())
        });
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        if let Err(error) = self.complete().await {
            let left = self.abort().await.what;
            return Err(if left.is_empty() {
                error
            } else {
                error.hint(format!("left behind in the target: {}", left.join(", ")))
            });
        }
        self.told.finished.store(true, Ordering::Relaxed);
        let mut report = RestoreReport::default();
        for target in self.targets.lock().await.values() {
            if target.replaces {
                let settings = self.told.settings.load(Ordering::Relaxed);
                replace::put_in_place(&self.server, target, &self.store, settings).await?;
            }
            let written = target.written();
            report.documents += written.report.documents;
            report.attachments += written.report.attachments;
            report.bytes += written.report.bytes;
        }
        Ok(report)
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        let mut left = Vec::new();
        {
            let mut writing = self.writing.lock().await;
            // Whatever is under way may end well or not.
            while writing.join_next().await.is_some() {}
        }
        for target in self.targets.lock().await.values().filter(|t| t.made) {
            if let Err(e) = delete(&self.server, &target.writer.database).await {
                left.push(format!("database {} ({e})", target.writer.database));
            }
        }
        Leftovers { what: left }
    }
}

async fn put(target: &Target, batch: &Batch, store: &Arc<dyn AttachmentStore>) -> Result<()> {
    if batch.kind == Kind::Document {
        return target.writer.documents(batch).await;
    }
    let numbers = target.writer.hold_design_entries(batch);
    target.writer.attached(batch, &numbers, store).await.map(drop)
}

fn account(written: &mut Written, batch: &Batch) {
    for i in 0..batch.len() {
        if batch.kind != extras::checkpoints() {
            written.sum = written.sum.wrapping_add(entry(batch, i));
        }
        written.report.bytes += (batch.body_of(i).len()) as u64;
    }
    for content in &batch.attachments {
        written.contents.insert(content.digest, content.clone());
        written.report.bytes += content.length;
    }
    match batch.kind {
        Kind::Document => written.report.documents += batch.len() as u64,
        Kind::Attachment => written.report.attachments += batch.len() as u64,
        ref kind if *kind == inline::kind() => written.report.attachments += batch.len() as u64,
        _ => {}
    }
}

fn short(hasher: &blake3::Hasher) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// 128 bits that stand for one entry.
pub(crate) fn entry(batch: &Batch, i: usize) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for part in [batch.kind.space().as_bytes(), batch.key_of(i), batch.body_of(i)] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    if let Some(content) = batch.attachments.get(i) {
        hasher.update(&content.digest);
    }
    short(&hasher)
}

/// 128 bits that stand for a batch.
pub(crate) fn fingerprint(batch: &Batch) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for i in 0..batch.len() {
        hasher.update(&entry(batch, i).to_le_bytes());
    }
    short(&hasher)
}

/// Makes a database as it was; gives how many copies of it there are.
pub(crate) async fn create(server: &Server, name: &str, info: &CollectionInfo) -> Result<u64> {
    let welcome = server.welcome().await?;
    let mut options = Vec::new();
    if welcome.is_couchdb {
        if let Some(q) = info.options.get("q").and_then(Value::as_u64) {
            options.push(format!("q={q}"));
        }
        if info.options.get("partitioned").is_some() {
            options.push("partitioned=true".into());
        }
    }
    let query = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
    let request = Request::new(Method::PUT, format!("{}{query}", segment(name)));
    match server.client.bytes(&request, ANSWER_MAX).await {
        // The answer to a first try was lost: there is an empty one, which was not there before.
        Err(e) if e.to_string().contains(" 412 ") && is_empty(server, name).await? => {}
        other => drop(other.map_err(|e| e.context(format!("making database {name}")))?),
    }
    // Some servers make another name of it.
    let found = server.info(name).await?.filter(|info| info.db_name == name);
    let found = found.ok_or_else(|| {
        Error::unsupported(format!("the server does not take the name {name} as it is"))
            .hint("restore under another name with --rename")
    })?;
    if let Some(limit) = info.options.get("revs_limit").and_then(Value::as_u64)
        && server.revs_limit(name).await?.is_some_and(|now| now != limit)
    {
        // Before longer histories come.
        let request = Request::put(format!("{}/_revs_limit", segment(name)), limit.to_string());
        server.client.bytes(&request, ANSWER_MAX).await?;
    }
    Ok(found.copies())
}

async fn is_empty(server: &Server, name: &str) -> Result<bool> {
    Ok(server.info(name).await?.is_some_and(|info| info.doc_count == 0 && info.doc_del_count.unwrap_or(0) == 0))
}

/// Removes a database that we made.
pub(crate) async fn delete(server: &Server, name: &str) -> Result<()> {
    let request = Request::new(Method::DELETE, segment(name));
    match server.client.bytes(&request, ANSWER_MAX).await {
        Err(e) if e.kind() == ErrorKind::Missing => Ok(()),
        other => other.map(drop),
    }
}
