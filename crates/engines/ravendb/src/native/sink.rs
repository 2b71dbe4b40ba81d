//! A new RavenDB database as a target of a backup that RavenDB made itself.

use super::entry::{Counts, Entry};
use super::folder::{Passage, absolute};
use super::operation::Operation;
use super::{Native, check, is_native};
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
}

impl NativeSink {
    /// The database that the server stands for; nothing is opened yet.
    pub fn new(server: Arc<Server>, native: Native) -> NativeSink {
        NativeSink { server, native }
    }
}

/// Refuses what RavenDB's own restore does not do.
fn check_options(options: &RestoreOptions) -> Result<()> {
    let selection = &options.selection;
    let whole = selection.only.is_empty() && selection.exclude.is_empty() && !selection.no_attachments;
    let all = options.kinds.is_empty() && options.without_kinds.is_empty() && options.rename.is_empty();
    match whole && all && options.indexes == Indexes::Built {
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
        let mut losses = Vec::new();
        if Build::of(&what.version).is_some_and(|from| from / 1000 > build.build / 1000) {
            losses.push(Loss {
                what: "what only newer servers know".into(),
                why: format!("the backup is of {}, the target is {}", what.version, build.version()),
            });
        }
        let phases = vec![
            format!("write the files that RavenDB made into a new folder in {}, and check them", folder.display()),
            format!("have the server make the database {database} out of them, with all its settings and tasks"),
            "remove the folder, and compare the numbers of documents, counters, time series, indexes, revisions and \
             attachments with those at the backup; what is in them only RavenDB has read"
                .into(),
        ];
        Ok(RestorePlan { phases, collections: planned(what, options)?, losses })
    }

    fn takes(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Json
    }

    fn provable<'a>(&self, _: &'a Batch) -> Option<Cow<'a, Batch>> {
        None
    }

    async fn begin(&self, _: RestorePlan, store: Arc<dyn AttachmentStore>) -> Result<Box<dyn SinkSession>> {
        let passage = Passage::new(&self.native.folder)?;
        Ok(Box::new(Session { server: self.server.clone(), passage, store, written: Mutex::default() }))
    }
}

/// A restore under way.
struct Session {
    server: Arc<Server>,
    passage: Passage,
    store: Arc<dyn AttachmentStore>,
    /// The files, with what is said of them.
    written: Mutex<Vec<(PathBuf, Entry)>>,
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

    /// Has the server restore; what it says then of the database.
    async fn restore(&self) -> Result<Vec<String>> {
        let (folder, entry) = self.backup()?;
        let database = self.server.database()?;
        let doing = format!("RavenDB restores its own backup into the database {database}");
        let asked = serde_json::json!({ "Type": "Local", "DatabaseName": database, "BackupLocation": folder });
        let request = self.server.request(Method::POST, &["admin", "restore", "database"], &[])?;
        Operation::begin(&self.server, request.body(asked.to_string()), None, &doing).await?.wait(&doing).await?;
        let now = self.held().await?;
        let made = format!("RavenDB restored its own backup of type {} of the server {}", entry.kind, entry.server);
        let wrong = entry.held.missing_in(&now);
        match (entry.steady, wrong.is_empty()) {
            (_, true) => Ok(vec![format!("{made}; the database has what was counted at the backup: {}", now.text())]),
            (false, false) => Ok(vec![
                made,
                format!(
                    "the numbers could not be compared, as the database was written to while it was backed up: it \
                     had {} before, and has {} now",
                    entry.held.text(),
                    now.text()
                ),
            ]),
            (true, false) => Err(Error::corrupt(format!(
                "the database {database} is not what it was at the backup: RavenDB restored {}",
                wrong.join(", ")
            ))
            .hint("the database stays as it is now, and the point is untouched; the server's log says more")),
        }
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
        if batch.kind != Kind::Attachment {
            return Err(Error::corrupt("there are other things than files in a point of RavenDB's own backup"));
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
        let mut notes = restored?;
        notes.extend(left);
        Ok(RestoreReport {
            attachments: sizes.len() as u64,
            bytes: sizes.iter().sum(),
            notes,
            ..RestoreReport::default()
        })
    }

    async fn abort(self: Box<Self>) -> Leftovers {
        Leftovers { what: self.passage.remove().err().into_iter().collect() }
    }
}
