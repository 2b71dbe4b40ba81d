//! The formats of mongodump (mongo-tools 100.x): folders, as source and sink, and archives, as
//! source.
//!
//! What can be damaged is checked before anything is read: a plan walks through every document of
//! every file (lengths, structure, end), with the checksums that compressed files and archives have.
//! What no check can see: a plain `.bson` file that was cut exactly between two documents, and bytes
//! that changed within a value; compress dumps, or use archives, to have checksums.

pub mod archive;
mod archive_source;
mod check;
mod contents;
mod crc;
mod files;
mod folder_sink;
mod folder_source;
mod metadata;
mod names;
mod read;
mod session;
mod target;
mod window;

pub use folder_sink::DumpSink;
pub use window::{Flaw, Stop};

use crate::keys;
use archive_source::Content;
use async_trait::async_trait;
use contents::{Bad, Contents, Entry, Place, refuse_or_skip};
use files::{Stamp, blocking, changed};
use futures::StreamExt;
use model::{
    AttachmentStore, Consistency, Description, Engine, Error, ErrorKind, FeedKind, Part, Plan, Result, ScanStream,
    Selection, Source, SourceState,
};
use read::Token;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Batches that may wait for whoever reads.
const WAITING: usize = 2;

/// A dump that mongodump made: a folder (`DIR` with a folder for each database, or the folder of one
/// database, whose name it has then), plain or compressed, or an archive, plain or compressed.
///
/// - Collections have the names and identities that their metadata gives, else those of their files.
/// - Dumps without metadata (jobflow-remote's `--python` mode) have no options and indexes: the
///   description says so.
/// - `oplog.bson` is not replayed; files that mongodump does not make are left out; both are named
///   in the description.
/// - The content of a compressed archive goes to an unnamed temporary file (in TMPDIR) while it is
///   planned, as the documents of each collection are spread over all of it.
#[derive(Debug)]
pub struct DumpSource {
    path: PathBuf,
    /// Where the content of an archive is, once a plan has read it.
    content: Arc<Mutex<Option<Content>>>,
}

impl DumpSource {
    /// The dump at this path; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> DumpSource {
        DumpSource { path: path.into(), content: Arc::default() }
    }
}

/// The dump's real path, and whether it is a folder.
fn root(path: &Path) -> Result<(PathBuf, bool)> {
    let fail = |e| Error::io(format!("opening the dump {}", path.display()), e);
    let root = std::fs::canonicalize(path).map_err(fail)?;
    let is_folder = std::fs::metadata(&root).map_err(fail)?.is_dir();
    Ok((root, is_folder))
}

#[async_trait]
impl Source for DumpSource {
    async fn describe(&self) -> Result<Description> {
        let path = self.path.clone();
        blocking(move || {
            let (root, is_folder) = root(&path)?;
            let contents =
                if is_folder { folder_source::list(&root, false)? } else { archive_source::list(&root, false)? };
            let name = root.file_name().map_or_else(|| "dump".into(), |name| name.to_string_lossy().into_owned());
            Ok(Description {
                engine: Engine::new("mongodb"),
                identity: format!("mongodump:{}", root.display()),
                name,
                version: contents.version.filter(|v| !v.is_empty()).unwrap_or_else(|| "unknown".into()),
                feed: FeedKind::LatestState,
                collections: contents.entries.into_iter().map(|entry| entry.info).collect(),
                losses: contents.losses,
            })
        })
        .await
    }

    async fn plan(&self, selection: &Selection, _: Option<&SourceState>) -> Result<Plan> {
        let (path, content, mut selection) = (self.path.clone(), self.content.clone(), selection.clone());
        selection.understand_keys(keys::keys);
        blocking(move || {
            let (root, is_folder) = root(&path)?;
            if is_folder {
                return plan_folder(&root, &selection);
            }
            let (contents, checked) = archive_source::check(&root, selection.users)?;
            *content.lock().unwrap_or_else(|e| e.into_inner()) = Some(checked);
            plan_archive(contents, &selection)
        })
        .await
    }

    fn side_by_side(&self) -> usize {
        // Decompressing is what costs; more than this fills memory for nothing.
        std::thread::available_parallelism().map_or(1, usize::from).min(4)
    }

    async fn read(&self, part: &Part, _: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let token: Token = serde_json::from_str(&part.token)
            .map_err(|e| Error::bug("a part of another source was read from a dump").caused_by(e))?;
        let (path, content, info) = (self.path.clone(), self.content.clone(), part.collection.clone());
        let (out, items) = tokio::sync::mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let read = || {
                let (root, _) = root(&path)?;
                match &token.place {
                    Place::Nowhere => Ok(()),
                    Place::File { path, .. } => {
                        let file = check::path_of(&root, path);
                        read::file(&file, &file.display().to_string(), &token, &info, &out)
                    }
                    Place::Blocks { stamp, .. } => {
                        let shown = root.display().to_string();
                        let content = content_of(&root, &content)?;
                        let now = std::fs::metadata(&root).map(|found| Stamp::of(&found)).ok();
                        if now != *stamp || Some(content.stamp) != *stamp {
                            return Err(changed(&shown));
                        }
                        read::blocks(content.file, &shown, &token, &info, &out)
                    }
                }
            };
            if let Err(e) = read() {
                // If nobody listens any more, nobody wants to know.
                let _ = out.blocking_send(Err(e));
            }
        });
        Ok(futures::stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
    }
}

fn content_of(root: &Path, known: &Mutex<Option<Content>>) -> Result<Content> {
    let mut known = known.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(content) = &*known {
        return Ok(content.clone());
    }
    let content = archive_source::open(root)?;
    *known = Some(content.clone());
    Ok(content)
}

fn plan_folder(root: &Path, selection: &Selection) -> Result<Plan> {
    let mut contents = folder_source::list(root, selection.users)?;
    contents.entries.retain(|entry| selection.takes(&entry.info.name));
    let places: Vec<&Place> = contents.entries.iter().map(|entry| &entry.data).collect();
    let checked = check::all(root, &places)?;
    let mut parts = Vec::with_capacity(contents.entries.len());
    for (mut entry, checked) in std::mem::take(&mut contents.entries).into_iter().zip(checked) {
        let (mut documents, mut bytes) = (0, 0);
        if let (Some(found), Place::File { path, until, stamp, gzip }) = (checked, &mut entry.data) {
            (documents, bytes) = (found.documents, found.bytes);
            (*until, *stamp) = (found.bytes, Some(found.stamp));
            if let Some(flaw) = found.flaw {
                let of = if *gzip { " of its content" } else { "" };
                contents.bad.push(Bad {
                    namespace: Some(entry.info.name.clone()),
                    kind: ErrorKind::Corrupt,
                    what: format!("{}, at byte {}{of}", check::path_of(root, path).display(), flaw.at),
                    why: format!("{}; {documents} documents come before that", flaw.why),
                });
            }
        }
        parts.push(part(entry, documents, bytes, selection)?);
    }
    scan(parts, contents.bad, selection)
}

fn plan_archive(mut contents: Contents, selection: &Selection) -> Result<Plan> {
    contents.entries.retain(|entry| selection.takes(&entry.info.name));
    let mut parts = Vec::with_capacity(contents.entries.len());
    for entry in std::mem::take(&mut contents.entries) {
        let bytes = match &entry.data {
            Place::Blocks { ranges, .. } => ranges.iter().map(|(from, to)| to - from).sum(),
            _ => 0,
        };
        let documents = entry.documents;
        parts.push(part(entry, documents, bytes, selection)?);
    }
    scan(parts, contents.bad, selection)
}

fn part(entry: Entry, documents: u64, bytes: u64, selection: &Selection) -> Result<Part> {
    let whole = selection.takes_all_of(&entry.info.name);
    let token = Token { place: entry.data, selection: (!whole).then(|| selection.clone()) };
    Ok(Part {
        token: serde_json::to_string(&token).map_err(|e| Error::bug("a plan is no JSON").caused_by(e))?,
        collection: entry.info,
        documents: whole.then_some(documents),
        bytes: Some(bytes),
    })
}

fn scan(mut parts: Vec<Part>, bad: Vec<Bad>, selection: &Selection) -> Result<Plan> {
    let skipped = refuse_or_skip(bad, selection)?;
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    Ok(Plan::Scan { start: None, parts, at: None, consistency: Consistency::PerDocument, skipped })
}
