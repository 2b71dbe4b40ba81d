//! A new RavenDB database as a target of a backup that RavenDB made itself.

use super::entry::{Counts, Entry};
use super::folder::{Passage, absolute};
use super::on_top::{Finished, OnTop, Told};
use super::operation::Operation;
use super::{Native, check, is_native, is_of_native};
use crate::server::{Build, Server};
use crate::sink::planned;
use async_trait::async_trait;
use futures::StreamExt;
use model::{
    AttachmentStore, Batch, CollectionInfo, Description, Encoding, Error, ErrorKind, Indexes, Kind, Leftovers, Loss,
    RestoreOptions, RestorePlan, RestoreReport, Result, Sink, SinkSession,
};
use reqwest::Method;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// How long a database that was restored may take until it answers.
const OPENING: Duration = Duration::from_secs(120);

/// A database that the server restores out of files of its own.
#[derive(Debug)]
pub struct NativeSink {
    server: Arc<Server>,
    native: Native,
    /// The builds that the backup is of, and of the target.
    builds: Mutex<(Option<u64>, u64)>,
    told: Arc<Told>,
}

impl NativeSink {
    /// The database that the server stands for; nothing is opened yet.
    pub fn new(server: Arc<Server>, native: Native) -> NativeSink {
        NativeSink { server, native, builds: Mutex::default(), told: Arc::default() }
    }

    fn builds(&self) -> MutexGuard<'_, (Option<u64>, u64)> {
        self.builds.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Refuses what RavenDB's own restore does not do.
fn check_options(options: &RestoreOptions) -> Result<()> {
    let all = options.kinds.is_empty() && options.without_kinds.is_empty() && options.rename.is_empty();
    match options.selection.is_all() && all && options.indexes == Indexes::Built {
        true => Ok(()),
        false => Err(Error::unsupported("RavenDB restores its own backups as a whole").hint(
            "leave out --only, --exclude, --no-attachments, --rename, --kinds, --without-kinds and --indexes; take \
             what you need from the restored database",
        )),
    }
}

#[async_trait]
impl Sink for NativeSink {
    async fn prepare(&self, what: &Description, options: &RestoreOptions) -> Result<RestorePlan> {
        if !what.collections.iter().any(is_native) {
            return Err(Error::input("this point was not made with --native-dir: it is no backup of RavenDB's own")
                .hint("leave --native-dir out"));
        }
        check_options(options)?;
        let (build, database) = (self.server.build().await?, self.server.database()?);
        check(&build)?;
        let folder = absolute(&self.native.folder)?;
        if self.server.stats().await?.is_some() {
            return Err(Error::input(format!("the database {database} is there already"))
                .hint("RavenDB restores its own backups into new databases only: name one that is not there yet"));
        }
        let from = Build::of(&what.version);
        *self.builds() = (from, build.build);
        let mut losses = Vec::new();
        if from.is_some_and(|from| from / 1000 > build.build / 1000) {
            losses.push(Loss {
                what: "what only newer servers know".into(),
                why: format!("the backup is of {}, the target is {}", what.version, build.version()),
            });
        }
        let mut phases = vec![format!(
            "write the files that RavenDB made into a new folder in {}, and check them",
            folder.display()
        )];
        let has_changes = !what.collections.iter().all(is_native);
        if has_changes {
            phases.push(
                "write what has changed since beside them, as RavenDB's own incremental backups say it, deletions \
                 first"
                    .into(),
            );
        }
        phases
            .push(format!("have the server make the database {database} out of them, with all its settings and tasks"));
        phases.push(match has_changes {
            false => "remove the folder, and compare the numbers of documents, counters, time series, indexes, \
                      revisions and attachments with those at the backup; what is in them only RavenDB has read"
                .into(),
            true => "remove the folder, compare the numbers of documents, counters, revisions and attachments with \
                     those at that time, and read back and compare what has changed since, but for time series; what \
                     has not changed only RavenDB has read"
                .into(),
        });
        Ok(RestorePlan { phases, collections: planned(what, options)?, losses })
    }

    fn takes(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Json
    }

    fn takes_opaque(&self) -> bool {
        true
    }

    fn provable<'a>(&self, batch: &'a Batch) -> Option<Cow<'a, Batch>> {
        let (from, to) = *self.builds();
        self.told.provable(batch, from.is_none_or(|from| from / 1000 == to / 1000))
    }

    async fn begin(&self, plan: RestorePlan, store: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let passage = Passage::new(&self.native.folder)?;
        let (from, to) = *self.builds();
        let on_top = match plan.collections.iter().all(|c| is_native(&c.info)) {
            true => None,
            false => {
                let build = from.unwrap_or(to).min(to);
                Some(OnTop::new(&passage, build, store.clone(), self.told.clone()).await?)
            }
        };
        Ok(Box::new(Session {
            server: self.server.clone(),
            passage,
            store,
            written: Mutex::default(),
            on_top: tokio::sync::Mutex::new(on_top),
            told: self.told.clone(),
        }))
    }
}

/// A restore under way.
struct Session {
    server: Arc<Server>,
    passage: Passage,
    store: Arc<dyn AttachmentStore>,
    /// The files, with what is said of them.
    written: Mutex<Vec<(PathBuf, Entry)>>,
    /// What has changed since the server made them.
    on_top: tokio::sync::Mutex<Option<OnTop>>,
    told: Arc<Told>,
}

impl Session {
    fn written(&self) -> MutexGuard<'_, Vec<(PathBuf, Entry)>> {
        self.written.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The folder with the files, and what is said of them.
    fn backup(&self) -> Result<(PathBuf, Entry)> {
        let written = self.written();
        let folder = written.first().and_then(|(path, entry)| Some((path.parent()?.to_owned(), entry.clone())));
        let folder = folder.ok_or_else(|| Error::corrupt("the point holds no file of RavenDB's own backup"))?;
        match written.iter().all(|(path, _)| path.parent() == Some(&folder.0)) {
            true => Ok(folder),
            false => Err(Error::corrupt("the files of RavenDB's own backup are not in one folder")),
        }
    }

    /// Has the server restore; what is to be said of the database then, and what has changed since the backup.
    async fn restore(&self) -> Result<(Vec<String>, Option<Finished>)> {
        let (folder, entry) = self.backup()?;
        let on_top = match self.on_top.lock().await.take() {
            Some(on_top) => {
                let first = self.written().first().map(|(path, _)| path.clone());
                Some(on_top.finish(&first.unwrap_or_default()).await?)
            }
            None => None,
        };
        let database = self.server.database()?;
        let doing = format!("RavenDB restores its own backup into the database {database}");
        let asked = serde_json::json!({ "Type": "Local", "DatabaseName": database, "BackupLocation": folder });
        let request = self.server.request(Method::POST, &["admin", "restore", "database"], &[])?;
        Operation::begin(&self.server, request.body(asked.to_string()), None, &doing).await?.wait(&doing).await?;
        let now = self.held().await?;
        let mut made = format!("RavenDB restored its own backup of type {} of the server {}", entry.kind, entry.server);
        let (mut held, mut steady) = (&entry.held, entry.steady);
        if let Some(done) = &on_top {
            done.tidy(&self.server, &self.server.build().await?).await?;
            made = format!(
                "{made}, with {} entries and {} deletions since; only RavenDB has read what has not changed",
                done.there.documents + done.there.attachments,
                done.gone
            );
            (held, steady) = done.standing.as_ref().map_or((held, false), |s| (&s.held, s.steady));
        }
        self.told.is_back.store(true, Ordering::Release);
        let wrong = held.missing_in(&now, on_top.is_some());
        let notes = match (steady, wrong.is_empty()) {
            (_, true) => vec![format!("{made}; the database has what was counted at the backup: {}", now.text())],
            (false, false) => vec![
                made,
                format!(
                    "the numbers could not be compared, as the database was written to while it was backed up: it \
                     had {} then, and has {} now",
                    held.text(),
                    now.text()
                ),
            ],
            (true, false) => {
                return Err(Error::corrupt(format!(
                    "the database {database} is not what it was at the backup: RavenDB restored {}",
                    wrong.join(", ")
                ))
                .hint("the database stays as it is now, and the point is untouched; the server's log says more"));
            }
        };
        Ok((notes, on_top))
    }

    /// What the database holds, once it is open.
    async fn held(&self) -> Result<Counts> {
        let began = Instant::now();
        loop {
            match self.server.must_stats().await {
                Ok(stats) => return Ok(Counts::of(&stats)),
                Err(e) if matches!(e.kind(), ErrorKind::Retry | ErrorKind::Missing) && began.elapsed() < OPENING => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

#[async_trait]
impl SinkSession for Session {
    async fn catalog(&self, _: &CollectionInfo) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<()> {
        if !is_of_native(&batch.collection) || batch.kind != Kind::Attachment {
            return match self.on_top.lock().await.as_mut() {
                Some(on_top) => on_top.write(&batch).await,
                None => Err(Error::corrupt("there are other things than files in a point of RavenDB's own backup")),
            };
        }
        for (i, content) in batch.attachments.iter().enumerate() {
            let name = String::from_utf8_lossy(batch.key_of(i)).into_owned();
            let entry = Entry::of(batch.body_of(i))?;
            let path = self.passage.place(&name)?;
            let failed = |e| Error::io(format!("writing {}", path.display()), e);
            let mut file = tokio::fs::File::create(&path).await.map_err(failed)?;
            let mut pieces = self.store.open(content).await?;
            let mut length = 0;
            while let Some(piece) = pieces.next().await {
                let piece = piece?;
                length += piece.len() as u64;
                file.write_all(&piece).await.map_err(failed)?;
            }
            file.flush().await.map_err(failed)?;
            if length != entry.size {
                return Err(Error::corrupt(format!("{name} should have {} bytes, but has {length}", entry.size)));
            }
            self.written().push((path, entry));
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<RestoreReport> {
        let restored = self.restore().await;
        let sizes: Vec<u64> = self.written().iter().map(|(_, entry)| entry.size).collect();
        let left = self.passage.remove().err().map(|left| format!("left behind: {left}"));
        let (mut notes, on_top) = restored?;
        notes.extend(left);
        let there = on_top.map(|done| done.there).unwrap_or_default();
        Ok(RestoreReport {
            attachments: there.attachments + sizes.len() as u64,
            bytes: there.bytes + sizes.iter().sum::<u64>(),
            notes,
            ..there
        })
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        Leftovers { what: self.passage.remove().err().into_iter().collect() }
    }
}
