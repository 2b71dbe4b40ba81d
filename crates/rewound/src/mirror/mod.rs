//! A folder of plain JSON that is kept in step with a source while that changes.
//!
//! First everything is scanned, then changes are followed; what happened during the scan is told
//! apart from it by the times at which documents were read. A source that tells no changes is
//! scanned again and again, and compared. Where the mirror stands is in the folder itself, so that
//! it goes on after its end, however that came.

mod anew;
mod apply;
mod fold;
mod scan;

use crate::progress::{Doing, Job};
use crate::spool::Spool;
use crate::transfer::while_doing;
use crate::{registry, translate};
use folder::mirror::{Mirror, Touched};
use futures::StreamExt;
use model::{
    ChangeItem, CollectionId, CollectionInfo, Engine, EngineTime, Error, ErrorKind, Following, Gap, Patcher, Position,
    Result, Selection, Source, Until,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often the mirror remembers where it is while things change: what came since is read again
/// after a crash.
const SAVED_BUSY: Duration = Duration::from_secs(1);
/// How often while nothing changes.
const SAVED_IDLE: Duration = Duration::from_secs(60);
/// How long a source that cannot be reached is left alone, at first and at most.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How to keep a folder in step.
#[derive(Debug, Clone)]
pub struct MirrorOptions {
    /// What of the source.
    pub selection: Selection,
    /// How often a source that tells no changes is compared.
    pub every: Duration,
}

/// Something that happened to a mirror.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum MirrorEvent {
    /// Files of one collection were written or deleted.
    Write(FilesEvent),
    /// The folder has everything that the source had when it was scanned.
    InStep {
        /// Documents and attachments that were met.
        documents: u64,
        /// Files written, and deleted.
        written: u64,
        /// Files deleted.
        deleted: u64,
        /// Whether changes are followed from here on; else the source is scanned again by and by.
        follows: bool,
    },
    /// The source cannot be reached or read; it is tried again.
    Away {
        /// Why.
        why: String,
    },
    /// The source can be reached again.
    Back,
    /// The source no longer tells what happened since: everything is scanned anew.
    Gap {
        /// From when to when, and why.
        #[serde(flatten)]
        gap: Gap,
    },
}

/// Files of one collection that were written or deleted.
#[derive(Debug, Clone, Serialize)]
pub struct FilesEvent {
    /// The collection's name.
    pub collection: String,
    /// The keys of the documents, as people write them.
    pub ids: Vec<String>,
    /// The files, in the same order, as paths in the folder.
    pub files: Vec<String>,
    /// Whether they were deleted; else they were written.
    pub deleted: bool,
}

/// What a mirror did until it was asked to stop.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MirrorReport {
    /// The source's name.
    pub source: String,
    /// Scans of everything.
    pub scans: u64,
    /// Files written.
    pub written: u64,
    /// Files deleted.
    pub deleted: u64,
    /// Up to when the folder is in step, if the source tells.
    pub time: Option<EngineTime>,
}

/// Takes events as they happen. Called from the work itself: must be quick.
pub type Listener = Arc<dyn Fn(MirrorEvent) + Send + Sync>;

/// What the mirror remembers in its folder.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Memory {
    /// Identity of the source.
    source: String,
    /// Its engine.
    engine: String,
    selection: Selection,
    /// Whether everything has been scanned.
    whole: bool,
    /// Where to go on; none: everything is to be scanned.
    position: Option<Position>,
    time: Option<EngineTime>,
    /// The collections as they were at that position.
    collections: Vec<CollectionInfo>,
}

/// Keeps a folder in step until the job is asked to stop, which is its good end.
pub async fn mirror(
    job: &Job,
    source: Arc<dyn Source>,
    folder: &Path,
    options: &MirrorOptions,
    listener: Listener,
) -> Result<MirrorReport> {
    job.phase(Doing::Checking, None, None);
    let source = job.stop.or(translate::for_target(source, &folder::FolderSink::new(folder))).await?;
    let description = job.stop.or(source.describe()).await?;
    let losses = translate::losses(&description.engine, &folder::FolderSink::new(folder));
    losses.into_iter().for_each(|loss| job.note(format!("not in the folder: {}: {}", loss.what, loss.why)));
    let path = folder.to_owned();
    let mirror = blocking(move || Mirror::open(&path)).await?;
    let memory = remembered(&mirror, &description, &options.selection)?;
    let mut worker = Worker {
        job,
        patcher: registry::patcher(&description.engine),
        report: MirrorReport { source: description.name, ..MirrorReport::default() },
        engine: description.engine,
        source,
        mirror: Arc::new(mirror),
        spool: Arc::default(),
        options,
        memory,
        listener,
        has_feed: true,
        saved: Instant::now(),
        unsaved: false,
    };
    let result = worker.run().await;
    // Whatever ended it: what was done is known to the next one.
    let closed = worker.save(true).await;
    match result {
        Err(e) if e.kind() == ErrorKind::Interrupted => closed.map(|()| worker.report),
        Err(e) => Err(e),
        Ok(()) => closed.map(|()| worker.report),
    }
}

/// What an earlier mirror of the same source left in the folder, or a beginning.
fn remembered(mirror: &Mirror, description: &model::Description, selection: &Selection) -> Result<Memory> {
    let value = mirror.memory();
    let new = Memory {
        source: description.identity.clone(),
        engine: description.engine.0.clone(),
        selection: selection.clone(),
        ..Memory::default()
    };
    if value.is_null() {
        return Ok(new);
    }
    let memory: Memory =
        serde_json::from_value(value).map_err(|e| Error::corrupt("the mirror's memory is damaged").caused_by(e))?;
    if memory.source != description.identity {
        return Err(Error::input(format!("the folder is the mirror of {}, not of {}", memory.source, new.source))
            .hint("choose an empty folder for this source"));
    }
    // With another selection, another part of the source is to be there.
    Ok(if memory.selection == *selection { memory } else { Memory { whole: memory.whole, ..new } })
}

/// How following ended.
enum Ended {
    /// The source tells no changes.
    NoFeed,
    /// History was lost.
    Gap(Gap),
    /// The source cannot be reached.
    Away(Error),
}

struct Worker<'a> {
    job: &'a Job,
    source: Arc<dyn Source>,
    engine: Engine,
    mirror: Arc<Mirror>,
    /// Attachments on their way.
    spool: Arc<Spool>,
    patcher: Option<Arc<dyn Patcher>>,
    options: &'a MirrorOptions,
    memory: Memory,
    listener: Listener,
    has_feed: bool,
    report: MirrorReport,
    /// When it last remembered where it is.
    saved: Instant,
    /// Whether anything has changed since.
    unsaved: bool,
}

/// Runs what may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::bug("a worker of the mirror stopped").caused_by(e)),
    }
}

impl Worker<'_> {
    async fn run(&mut self) -> Result<()> {
        let mut pause = AWAY.0;
        let mut is_away = false;
        let mut lost = 0;
        loop {
            let before = self.memory.time;
            let ended = match self.memory.position.is_some() && self.memory.whole {
                true => self.follow(&mut is_away).await?,
                false => match self.scan().await {
                    Ok(()) if self.memory.position.is_some() => continue,
                    Ok(()) => Ended::NoFeed,
                    // Nobody is there yet to whom it could be told later.
                    Err(e) if self.memory.whole && self.is_passing(&e) => Ended::Away(e),
                    Err(e) => return while_doing(Err(e), "scanning the source"),
                },
            };
            if self.memory.time > before {
                (pause, lost) = (AWAY.0, 0);
            }
            match ended {
                Ended::NoFeed => {
                    pause = AWAY.0;
                    if std::mem::take(&mut is_away) {
                        self.tell(MirrorEvent::Back);
                    }
                    self.memory.position = None;
                    self.rest(self.options.every).await?;
                }
                Ended::Gap(gap) => {
                    lost += 1;
                    if lost > 2 {
                        let text = format!("the source loses its history faster than it can be scanned: {}", gap.why);
                        return Err(Error::new(ErrorKind::HistoryLost, text)
                            .hint("make it keep more history (MongoDB: a larger oplog), then run the command again"));
                    }
                    self.job.note(format!("history was lost, so everything is scanned anew: {}", gap.why));
                    self.tell(MirrorEvent::Gap { gap });
                    self.memory.position = None;
                    self.save(false).await?;
                }
                Ended::Away(error) => {
                    if !std::mem::replace(&mut is_away, true) {
                        self.job.note(format!("the source cannot be read, and is tried again: {error}"));
                        self.tell(MirrorEvent::Away { why: error.to_string() });
                    }
                    self.rest(pause).await?;
                    pause = (pause * 2).min(AWAY.1);
                }
            }
        }
    }

    /// Whether an error of the source may pass.
    fn is_passing(&self, error: &Error) -> bool {
        match error.kind() {
            ErrorKind::Retry => true,
            // Somebody is just about to write what is wrong now.
            ErrorKind::Input | ErrorKind::Missing => !self.has_feed,
            _ => false,
        }
    }

    async fn rest(&self, time: Duration) -> Result<()> {
        let sleep = async {
            tokio::time::sleep(time).await;
            Ok(())
        };
        self.job.stop.or(sleep).await
    }

    fn tell(&self, event: MirrorEvent) {
        (self.listener)(event);
    }

    /// Counts and tells what was touched.
    fn touched(&mut self, collection: &str, touched: Vec<Touched>) {
        let (deleted, written): (Vec<_>, Vec<_>) = touched.into_iter().partition(|t| t.deleted);
        self.report.written += written.len() as u64;
        self.report.deleted += deleted.len() as u64;
        for (all, deleted) in [(written, false), (deleted, true)] {
            if all.is_empty() {
                continue;
            }
            let (ids, files) = all.into_iter().map(|t| (String::from_utf8_lossy(&t.key).into_owned(), t.file)).unzip();
            self.tell(MirrorEvent::Write(FilesEvent { collection: collection.to_owned(), ids, files, deleted }));
        }
    }

    /// Runs work on the folder where it may block.
    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Mirror) -> Result<T> + Send + 'static) -> Result<T> {
        let mirror = self.mirror.clone();
        blocking(move || work(&mirror)).await
    }

    /// Remembers where it is, once everything is durable.
    async fn save(&mut self, is_end: bool) -> Result<()> {
        let memory = serde_json::to_value(&self.memory)
            .map_err(|e| Error::bug("the mirror's memory is no JSON").caused_by(e))?;
        let complete = self.memory.whole.then(|| self.engine.clone());
        self.on_disk(move |mirror| mirror.save(memory, complete.as_ref(), is_end)).await?;
        (self.saved, self.unsaved) = (Instant::now(), false);
        if let Some(position) = self.memory.position.clone() {
            // That it is told late does no harm.
            let told = self.source.durable(&position).await;
            told.unwrap_or_else(|e| tracing::debug!("telling the source what is stored: {e}"));
        }
        Ok(())
    }

    /// The collection as it was when the changes came that are being applied.
    fn info(&self, id: &CollectionId) -> Option<&CollectionInfo> {
        self.memory.collections.iter().find(|c| c.id == *id)
    }

    /// Follows changes until they end.
    async fn follow(&mut self, is_away: &mut bool) -> Result<Ended> {
        let (Some(position), true) = (self.memory.position.clone(), self.has_feed) else { return Ok(Ended::NoFeed) };
        self.job.phase(Doing::Following, None, None);
        let following = Following {
            position,
            time: self.memory.time.unwrap_or(EngineTime::ZERO),
            collections: self.memory.collections.clone(),
            selection: self.options.selection.clone(),
        };
        let feed = self.job.stop.or(self.source.changes(&following, Until::Stopped, self.spool.clone())).await;
        let mut items = match feed {
            Ok(items) => items,
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                self.job.note(format!("changes cannot be followed ({e}): everything is compared again and again"));
                self.has_feed = false;
                return Ok(Ended::NoFeed);
            }
            Err(e) if e.kind() == ErrorKind::Retry => return Ok(Ended::Away(e)),
            Err(e) => return Err(e),
        };
        let mut pending = Vec::new();
        loop {
            match self.job.stop.or(async { items.next().await.transpose() }).await {
                Ok(Some(ChangeItem::Commit { position, time })) => {
                    self.unsaved |= !pending.is_empty();
                    let before = Some(self.memory.collections.clone()).filter(|_| pending.iter().any(is_catalog));
                    if let Err(e) = self.apply(std::mem::take(&mut pending)).await {
                        // They are those of the position, which is not this commit's.
                        self.memory.collections = before.unwrap_or(std::mem::take(&mut self.memory.collections));
                        return if e.kind() == ErrorKind::Retry { Ok(Ended::Away(e)) } else { Err(e) };
                    }
                    (self.memory.position, self.memory.time) = (Some(position), Some(time));
                    self.report.time = Some(time);
                    if std::mem::take(is_away) {
                        self.tell(MirrorEvent::Back);
                    }
                    if self.saved.elapsed() >= if self.unsaved { SAVED_BUSY } else { SAVED_IDLE } {
                        self.save(false).await?;
                    }
                }
                Ok(Some(ChangeItem::Gap(gap))) => return Ok(Ended::Gap(gap)),
                Ok(Some(item)) => pending.push(item),
                Ok(None) => {
                    return Ok(Ended::Away(Error::new(ErrorKind::Retry, "the source stopped telling its changes")));
                }
                Err(e) if e.kind() == ErrorKind::Retry => return Ok(Ended::Away(e)),
                Err(e) => return Err(e),
            }
        }
    }
}

fn is_catalog(item: &ChangeItem) -> bool {
    matches!(item, ChangeItem::Catalog { .. })
}
