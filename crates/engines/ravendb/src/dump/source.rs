//! A dump, or a native backup folder, as a source.

use crate::catalog;
use crate::dump::{Event, Reader, files};
use crate::gather::{DATABASE, Gather, Newer, Owners, Route, collection_id};
use crate::keys::lower;
use crate::metadata::{Metadata, conflict_of};
use async_trait::async_trait;
use futures::StreamExt;
use model::{
    AttachmentStore, CollectionId, Consistency, Description, Engine, Error, ErrorKind, FeedKind, Part, Plan, Result,
    ScanItem, ScanStream, Selection, Source, SourceState,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// A `.ravendbdump` file, plain, gzip or zstd, or a folder of RavenDB's own backups, as it was at its
/// newest file.
#[derive(Debug)]
pub struct DumpSource {
    path: PathBuf,
    index: Mutex<Option<Arc<Index>>>,
}

/// What reading all of the files once has shown.
#[derive(Debug, Default)]
struct Index {
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
    build: u64,
    /// Names and numbers of documents, by identity.
    collections: BTreeMap<CollectionId, (String, u64)>,
    has_own: bool,
    owners: Arc<Owners>,
    /// Sections that nobody knows.
    unknown: BTreeSet<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Token {
    collection: String,
    selection: Selection,
}

impl DumpSource {
    /// The dump at a path; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> DumpSource {
        DumpSource { path: path.into(), index: Mutex::new(None) }
    }

    /// Reads everything once, so that damage is found before anything is written anywhere.
    async fn index(&self) -> Result<Arc<Index>> {
        let mut found = Vec::new();
        for path in files::chain(&self.path)? {
            let meta = std::fs::metadata(&path).map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
            found.push((path, meta.len(), meta.modified().ok()));
        }
        let known = self.index.lock().unwrap_or_else(|e| e.into_inner()).clone();
        if let Some(known) = known.filter(|known| known.files == found) {
            return Ok(known);
        }
        let mut index = Index { files: found.clone(), ..Index::default() };
        let mut owners = Owners::default();
        for (path, ..) in &found {
            files::of_file(index.look(path, &mut owners).await, path)?;
        }
        index.owners = Arc::new(owners);
        let index = Arc::new(index);
        *self.index.lock().unwrap_or_else(|e| e.into_inner()) = Some(index.clone());
        Ok(index)
    }
}

impl Index {
    /// Says once of a section that it is not known.
    fn name_unknown(&mut self, section: &str) {
        if !catalog::is_known(section) && self.unknown.insert(section.to_owned()) {
            tracing::warn!(
                "the dump holds {section}, which this version does not know: it is kept as it came, and cannot be \
                 restored into a server"
            );
        }
    }

    async fn look(&mut self, path: &Path, owners: &mut Owners) -> Result<()> {
        let mut reader = Reader::new(files::open(path).await?);
        while let Some(event) = reader.next().await? {
            match event {
                Event::Value { section, body } if &*section == "BuildVersion" => {
                    self.build = std::str::from_utf8(&body).ok().and_then(|t| t.parse().ok()).unwrap_or(0);
                }
                Event::Value { section, body } => {
                    sound(&body)?;
                    self.name_unknown(&section);
                    self.has_own = true;
                }
                Event::Item(item) => {
                    sound(&item.body)?;
                    match &*item.section {
                        _ if item.blob.is_some() => reader.skip_blob().await?,
                        "Docs" | "RevisionDocuments" => {
                            let metadata = Metadata::of(&item.body, item.metadata)?;
                            let name = metadata.collection();
                            let known = self.collections.entry(collection_id(&name));
                            let (_, documents) = known.or_insert_with(|| (name.to_string(), 0));
                            *documents += u64::from(&*item.section == "Docs");
                            if metadata.counters.is_some() {
                                owners.add(&lower(metadata.id()?), &name);
                            }
                        }
                        "Tombstones" | catalog::RANGES => {}
                        "Conflicts" => match conflict_of(&item.body) {
                            None => self.has_own = true,
                            Some(name) => drop(self.collections.entry(collection_id(&name)).or_insert((name, 0))),
                        },
                        section => {
                            self.name_unknown(section);
                            self.has_own = true;
                        }
                    }
                }
                Event::Blob(_) | Event::BlobEnd => {}
            }
        }
        Ok(())
    }

    fn names(&self) -> impl Iterator<Item = (String, Option<u64>)> {
        let is_one = self.files.len() == 1;
        let own = self.has_own.then(|| (DATABASE.to_owned(), None));
        self.collections.values().map(move |(name, n)| (name.clone(), is_one.then_some(*n))).chain(own)
    }
}

/// Whether an item is JSON from its first byte to its last.
fn sound(body: &[u8]) -> Result<()> {
    serde_json::from_slice::<serde::de::IgnoredAny>(body)
        .map(drop)
        .map_err(|e| Error::corrupt(format!("an item of the dump is damaged: {e}")).caused_by(e))
}

#[async_trait]
impl Source for DumpSource {
    async fn describe(&self) -> Result<Description> {
        let index = self.index().await?;
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let name = self.path.file_stem().map(|n| n.to_string_lossy().into_owned());
        Ok(Description {
            engine: Engine::new("ravendb"),
            identity: format!("ravendbdump:{}", path.display()),
            name: name.unwrap_or_else(|| "dump".into()),
            version: format!("dump build {}", index.build),
            feed: FeedKind::LatestState,
            collections: index.names().map(|(name, _)| catalog::info(&name)).collect(),
            losses: Vec::new(),
        })
    }

    async fn plan(&self, selection: &Selection, _: Option<&SourceState>) -> Result<Plan> {
        let index = self.index().await?;
        let mut parts = Vec::new();
        for (name, documents) in index.names().filter(|(name, _)| selection.takes(name)) {
            let token = Token { collection: name.clone(), selection: selection.clone() };
            parts.push(Part {
                collection: catalog::info(&name),
                token: serde_json::to_string(&token).map_err(|e| Error::bug("a part's token").caused_by(e))?,
                documents: documents.filter(|_| selection.takes_all_of(&name)),
                bytes: None,
            });
        }
        Ok(Plan::Scan { start: None, parts, at: None, consistency: Consistency::OneTime, skipped: Vec::new() })
    }

    async fn read(&self, part: &Part, attachments: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let token: Token = serde_json::from_str(&part.token)
            .map_err(|e| Error::bug("a part of another source was read from a dump").caused_by(e))?;
        let index = self.index().await?;
        let mut gather = Gather::new(Route::Only(token.collection), token.selection, attachments);
        gather.owners = index.owners.clone();
        gather.lenient = true;
        gather.newer = (index.files.len() > 1).then(Newer::default);
        let (out, items) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(error) = pump(&index, gather, &out).await {
                let _ = out.send(Err(error)).await;
            }
        });
        Ok(futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
    }
}

async fn pump(index: &Index, mut gather: Gather, out: &tokio::sync::mpsc::Sender<Result<ScanItem>>) -> Result<()> {
    let gone = |_| Error::new(ErrorKind::Interrupted, "nobody reads on");
    // The newest file first: what it has, older ones cannot say.
    for (i, (path, ..)) in index.files.iter().enumerate().rev() {
        if let Some(newer) = &mut gather.newer {
            newer.begin(i == 0);
        }
        let mut reader = Reader::new(files::open(path).await?);
        while let Some(event) = files::of_file(reader.next().await, path)? {
            files::of_file(gather.take(&mut reader, event).await, path)?;
            for batch in gather.take_ready() {
                out.send(Ok(ScanItem::Batch(batch))).await.map_err(gone)?;
            }
        }
    }
    for batch in gather.finish() {
        out.send(Ok(ScanItem::Batch(batch))).await.map_err(gone)?;
    }
    Ok(())
}
