//! A RavenDB database as a source of the backups that its server makes.

use super::entry::{Counts, Entry};
use super::folder::{Passage, absolute};
use super::operation::Operation;
use super::{COLLECTION, Native, NativeKind, check};
use crate::catalog;
use crate::changes::{self, Place, Verdict};
use crate::dump::files;
use crate::server::Server;
use crate::source::RavenSource;
use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use model::{
    AttachmentStore, Batch, BatchBuilder, ChangeStream, Consistency, Description, Encoding, Error, ErrorKind,
    Following, Gap, Kind, Part, Plan, Result, ScanItem, ScanStream, Selection, Source, SourceState, Until,
};
use reqwest::Method;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a server that makes other backups is waited for.
const BUSY: Duration = Duration::from_secs(300);

/// A RavenDB database whose server makes a backup of it whenever it is read.
#[derive(Debug)]
pub struct NativeSource {
    server: Arc<Server>,
    inner: RavenSource,
    native: Native,
}

impl NativeSource {
    /// The database that the server stands for; nothing is opened yet.
    pub fn new(server: Arc<Server>, native: Native) -> NativeSource {
        NativeSource { inner: RavenSource::new(server.clone()), server, native }
    }
}

#[async_trait]
impl Source for NativeSource {
    async fn describe(&self) -> Result<Description> {
        let description = self.inner.describe().await?;
        Ok(Description { collections: vec![catalog::info(COLLECTION)], losses: Vec::new(), ..description })
    }

    async fn plan(&self, selection: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        if !selection.is_all() {
            return Err(Error::input("a backup that RavenDB makes itself is always of the whole database")
                .hint("leave --only, --exclude and --no-attachments out, or --native-dir"));
        }
        check(&self.server.build().await?)?;
        absolute(&self.native.folder)?;
        let (stats, hold) = self.inner.stand().await?;
        // Before the server begins: what changes while it writes is told once more.
        let start = match hold.filter(|_| changes::obstacle(&stats).is_none()) {
            Some(hold) => {
                let own = changes::own(&self.server).await?;
                Some(Place::before_native(&stats, hold, own).position()?)
            }
            None => None,
        };
        let part = Part { collection: catalog::info(COLLECTION), token: String::new(), documents: None, bytes: None };
        // It is of some time while the server wrote it; with the changes since, it is of their end.
        let consistency = if start.is_some() { Consistency::PerDocument } else { Consistency::OneTime };
        let scan = Plan::Scan { start, parts: vec![part], at: None, consistency, skipped: Vec::new() };
        let Some((last, from)) = last.and_then(|last| Some((last, last.position.clone()?))) else { return Ok(scan) };
        Ok(match Place::of(&from)?.judge(&stats, hold) {
            Verdict::Lost(why) => Plan::Gap { gap: Gap { from: last.time, to: None, why }, then: Box::new(scan) },
            _ => scan,
        })
    }

    async fn changes(
        &self,
        from: &Following,
        until: Until,
        attachments: Arc<dyn AttachmentStore>,
    ) -> Result<ChangeStream> {
        self.inner.changes(from, until, attachments).await
    }

    async fn read(&self, _: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let made = make(self.server.clone(), self.native.clone(), attachments);
        Ok(made.map(|batch| batch.map(ScanItem::Batch)).into_stream().boxed())
    }
}

/// Has the server make a backup, and takes its files.
async fn make(server: Arc<Server>, native: Native, store: Arc<dyn AttachmentStore>) -> Result<Batch> {
    let (build, database) = (server.build().await?, server.database()?);
    let word = native.kind.word();
    let before = server.must_stats().await?;
    let passage = Passage::new(&native.folder)?;
    let shown = passage.path().display().to_string();
    let asked = serde_json::json!({ "BackupType": word, "LocalSettings": { "FolderPath": passage.path() } });
    let doing = format!("RavenDB makes its own backup of type {word}");
    let began = Instant::now();
    let operation = loop {
        let request = server.of_database(Method::POST, &["admin", "backup"], &[])?.body(asked.to_string());
        match Operation::begin(&server, request, Some(database.clone()), &doing).await {
            Err(e) if is_busy(&e) && began.elapsed() < BUSY => tokio::time::sleep(Duration::from_secs(1)).await,
            begun => break begun,
        }
    };
    operation.map_err(|e| refused(e, native.kind))?.wait(&doing).await?;
    let after = server.must_stats().await?;
    let mut entry = Entry::new(word, &build, database, Counts::of(&before), before.etag() == after.etag());
    let files = passage.files()?;
    if files.is_empty() {
        return Err(Error::missing(format!("{doing}, and says that it is done, but nothing is in {shown}")).hint(
            "--native-dir must be a folder that this host and the server see under the same name; what the server \
             wrote is in the folder of that name on its own machine",
        ));
    }
    let info = catalog::info(COLLECTION);
    let mut batch = BatchBuilder::new(info.id, Kind::Attachment, Encoding::Json);
    for (name, path) in files {
        let content = files::of_file(store.put(files::open(&path).await?).await, &path)?;
        entry.size = content.length;
        batch.push_attachment(name.as_bytes(), &entry.body()?, content);
    }
    if let Err(left) = passage.remove() {
        tracing::warn!("left behind: {left}");
    }
    Ok(batch.take())
}

/// Whether the server makes as many backups as it may already, of other databases perhaps.
fn is_busy(error: &Error) -> bool {
    error.message().contains("maximum number of concurrent backup")
}

/// Says what can be done where a license allows no backup of this type.
fn refused(error: Error, kind: NativeKind) -> Error {
    match (error.kind(), kind, error.message().contains("402")) {
        (ErrorKind::Unsupported, NativeKind::Snapshot, true) => error.hint(
            "pass --native-type backup: that type needs no license; or leave --native-dir out, then Rewound reads \
             the database itself",
        ),
        (ErrorKind::Unsupported, NativeKind::Backup, true) => {
            error.hint("leave --native-dir out, then Rewound reads the database itself")
        }
        _ => error,
    }
}
