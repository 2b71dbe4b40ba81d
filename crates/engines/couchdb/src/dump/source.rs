//! A dump as a source.

use crate::document::{self, Content};
use crate::dump::convert::{self, Contents};
use crate::dump::parse::{Flaw, Form, Found, walk};
use crate::error::unheard;
use crate::inline;
use crate::leaf::Leaf;
use crate::read::about;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use model::{
    AttachmentRef, AttachmentStore, BatchBuilder, CollectionId, CollectionInfo, Consistency, Description, Encoding,
    Engine, Error, FeedKind, Kind, Loss, Part, Piece, Plan, Result, ScanItem, ScanStream, Selection, Skipped, Source,
    SourceState, limits,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

/// Items that may wait for whoever reads.
const WAITING: usize = 2;
/// Flaws that one error lists.
const SHOWN: usize = 20;

/// A dump that couchdb-dump, Convertigo FullSync or couchbackup has made, plain or compressed.
#[derive(Debug, Clone)]
pub struct DumpSource {
    path: PathBuf,
    form: Form,
}

impl DumpSource {
    /// The dump at this path; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>, form: Form) -> DumpSource {
        DumpSource { path: path.into(), form }
    }

    fn collection(&self) -> CollectionInfo {
        let name = name(&self.path);
        CollectionInfo { id: CollectionId::new(&name), name, options: serde_json::Value::Null, ordered: false }
    }
}

/// The name of the database, as it was part of the file's.
pub(crate) fn name(path: &Path) -> String {
    let name = path.file_name().map_or_else(|| "dump".into(), |n| n.to_string_lossy().into_owned());
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let name = [".json", ".txt", ".jsonl", ".backup"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    name.strip_suffix("_backup").unwrap_or(name).to_owned()
}

/// The dump's bytes, unpacked.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let fail = |e| Error::io(format!("opening the dump {}", path.display()), e);
    let mut file = File::open(path).map_err(fail)?;
    let mut magic = [0; 2];
    let packed = file.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    file.rewind().map_err(fail)?;
    Ok(match packed {
        true => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        false => Box::new(file),
    })
}

/// What is known of the documents before a place in the dump.
#[derive(Default)]
struct Known(HashMap<u64, u64>);

impl Known {
    /// Whether a document is new; a flaw if another one was there under its id.
    fn is_new(&mut self, line: u64, id: &str, revisions: &[&str]) -> Result<bool, Flaw> {
        let short = |hash: blake3::Hash| hash.as_bytes()[..8].iter().fold(0u64, |all, b| all << 8 | u64::from(*b));
        let mut hasher = blake3::Hasher::new();
        for revision in revisions {
            hasher.update(revision.as_bytes());
        }
        let now = short(hasher.finalize());
        match self.0.insert(short(blake3::hash(id.as_bytes())), now) {
            None => Ok(true),
            // What was written again after an interruption.
            Some(before) if before == now => Ok(false),
            Some(_) => Err(Flaw {
                line,
                id: Some(id.to_owned()),
                why: "the document was there before, with another content".into(),
            }),
        }
    }
}

/// One sound document.
struct Document {
    id: String,
    body: Vec<u8>,
    contents: Vec<Content>,
    bytes: Contents,
}

fn understand(id: &str, revisions: &[&str], without: bool) -> Result<Document> {
    let mut bytes = Contents::new();
    let texts: Vec<String> = match without {
        true => revisions.iter().map(|r| (*r).to_owned()).collect(),
        false => revisions.iter().map(|r| convert::from_dump(r, &mut bytes)).collect::<Result<_>>()?,
    };
    let mut leaves = texts.iter().map(|t| Leaf::parse(t, without)).collect::<Result<Vec<_>>>()?;
    let body = document::body(&mut leaves)?.into_owned();
    Ok(Document { id: id.to_owned(), body, contents: document::contents(&leaves), bytes })
}

/// Goes through a dump; gives sound documents, and flaws.
fn go(
    path: &Path,
    form: Form,
    without: bool,
    mut give: impl FnMut(Result<Document, Flaw>) -> Result<()>,
) -> Result<()> {
    let mut known = Known::default();
    let mut failed = None;
    let walked = walk(form, open(path)?, |found| {
        let found = match found {
            Found::Flaw(flaw) => Err(flaw),
            Found::Document { line, id, revisions } => match known.is_new(line, id, revisions) {
                Ok(false) => return true,
                Err(flaw) => Err(flaw),
                Ok(true) => understand(id, revisions, without).map_err(|e| Flaw {
                    line,
                    id: Some(id.to_owned()),
                    why: e.message().to_owned(),
                }),
            },
        };
        failed = give(found).err();
        failed.is_none()
    });
    if let Some(error) = failed {
        return Err(error);
    }
    match walked {
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData
            ) =>
        {
            give(Err(Flaw { line: 0, id: None, why: format!("the compressed file is cut off or damaged: {e}") }))
        }
        other => other.map_err(|e| Error::io(format!("reading the dump {}", path.display()), e)),
    }
}

fn skipped(path: &Path, flaw: &Flaw) -> Skipped {
    let file = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    let of = flaw.id.as_ref().map(|id| format!(", document {id}")).unwrap_or_default();
    let what = if flaw.line == 0 { file.into_owned() } else { format!("{file} line {}{of}", flaw.line) };
    Skipped { what, why: flaw.why.clone() }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::bug("reading a dump ended by itself").caused_by(e))?
}

#[async_trait]
impl Source for DumpSource {
    async fn describe(&self) -> Result<Description> {
        let path = self.path.clone();
        let path = blocking(move || {
            std::fs::canonicalize(&path).map_err(|e| Error::io(format!("opening the dump {}", path.display()), e))
        })
        .await?;
        let why = match self.form {
            Form::CouchdbDump => "dumps of couchdb-dump have winners only: no conflicts, deletions, histories",
            Form::Couchbackup => "backups of couchbackup do not have them",
        };
        Ok(Description {
            engine: Engine::new("couchdb"),
            identity: format!("couchdb-dump:{}", path.display()),
            name: name(&path),
            version: "1".into(),
            feed: FeedKind::LatestState,
            collections: vec![self.collection()],
            losses: vec![Loss { what: "_security, settings and _local documents".into(), why: why.into() }],
        })
    }

    async fn plan(&self, selection: &Selection, _: Option<&SourceState>) -> Result<Plan> {
        let (path, form, selection) = (self.path.clone(), self.form, selection.clone());
        let collection = self.collection();
        let takes = selection.takes(&collection.name);
        let whole = selection.takes_all_of(&collection.name);
        let token = serde_json::to_string(&selection).map_err(|e| Error::bug("a plan is no JSON").caused_by(e))?;
        let (count, flaws) = blocking(move || {
            let (mut count, mut flaws) = (0, Vec::new());
            go(&path, form, selection.no_attachments, |found| {
                match found {
                    Ok(_) => count += 1,
                    Err(flaw) => flaws.push(skipped(&path, &flaw)),
                }
                Ok(())
            })?;
            if !flaws.is_empty() && !selection.skip_bad {
                return Err(refusal(&flaws));
            }
            Ok((count, flaws))
        })
        .await?;
        let part = Part { collection, token, documents: whole.then_some(count), bytes: None };
        let parts = if takes { vec![part] } else { Vec::new() };
        Ok(Plan::Scan { start: None, parts, at: None, consistency: Consistency::PerDocument, skipped: flaws })
    }

    async fn read(&self, part: &Part, store: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let selection: Selection = serde_json::from_str(&part.token)
            .map_err(|e| Error::bug("a part of another source was read from a dump").caused_by(e))?;
        let (out, items) = tokio::sync::mpsc::channel(WAITING);
        let (path, form, collection) = (self.path.clone(), self.form, part.collection.clone());
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let mut giver = Giver::new(&collection, store, &out, handle);
            let name = &collection.name;
            let read = go(&path, form, selection.no_attachments, |found| match found {
                Ok(document) if selection.takes_key(name, document.id.as_bytes()) => giver.give(document),
                Ok(_) => Ok(()),
                Err(_) if selection.skip_bad => Ok(()),
                Err(flaw) => Err(refusal(&[skipped(&path, &flaw)])),
            });
            if let Err(e) = read.and_then(|()| giver.end()) {
                // If nobody listens any more, nobody wants to know.
                let _ = out.blocking_send(Err(e));
            }
        });
        Ok(stream::unfold(items, |mut items| async { items.recv().await.map(|item| (item, items)) }).boxed())
    }
}

fn refusal(flaws: &[Skipped]) -> Error {
    let mut lines: Vec<String> = flaws.iter().take(SHOWN).map(|f| format!("{}: {}", f.what, f.why)).collect();
    if flaws.len() > SHOWN {
        lines.push(format!("and {} more", flaws.len() - SHOWN));
    }
    let text = match &lines[..] {
        [only] => format!("the dump is damaged: {only}"),
        all => format!("the dump is damaged in {} places:\n  {}", flaws.len(), all.join("\n  ")),
    };
    Error::input(text).hint("pass --skip-bad to take what is sound; what is left out is listed")
}

/// Puts documents into batches.
struct Giver<'a> {
    batches: [BatchBuilder; 3],
    store: Arc<dyn AttachmentStore>,
    out: &'a Sender<Result<ScanItem>>,
    handle: Handle,
}

impl<'a> Giver<'a> {
    fn new(
        collection: &CollectionInfo,
        store: Arc<dyn AttachmentStore>,
        out: &'a Sender<Result<ScanItem>>,
        handle: Handle,
    ) -> Giver<'a> {
        let kinds = [Kind::Document, inline::kind(), Kind::Attachment];
        let batches = kinds.map(|kind| BatchBuilder::new(collection.id.clone(), kind, Encoding::Json));
        Giver { batches, store, out, handle }
    }

    fn give(&mut self, document: Document) -> Result<()> {
        let key = document.id.as_bytes();
        let [documents, inlined, stored] = &mut self.batches;
        documents.push(key, &document.body);
        if !document.contents.is_empty() {
            let entry = about(&document.id, &document.contents, &document.body)?;
            let mut bytes = document.bytes;
            let contents = document.contents.iter().filter_map(|c| bytes.remove(c).map(|bytes| (c, bytes.into())));
            let one = |content: Bytes| stream::iter([Ok(content)]).boxed();
            match inline::fits(&document.contents) {
                true => {
                    let all: Vec<_> = contents.map(|(_, bytes): (_, Bytes)| Ok(bytes)).collect();
                    let adding = inline::add(entry, 0, stream::iter(all).boxed());
                    inlined.push(key, &self.handle.block_on(adding)?);
                }
                false => {
                    let pieces = contents.map(|(content, bytes)| {
                        let name = content.digest.clone();
                        let content = self.handle.block_on(self.store.put(one(bytes)))?;
                        Ok(Piece { name, content })
                    });
                    let content = AttachmentRef::of_pieces(&pieces.collect::<Result<Vec<_>>>()?)?;
                    stored.push_attachment(key, &entry, content);
                }
            }
        }
        self.send(limits::BATCH)
    }

    fn send(&mut self, least: usize) -> Result<()> {
        for batch in self.batches.iter_mut().filter(|b| !b.is_empty() && b.bytes() >= least) {
            self.out.blocking_send(Ok(ScanItem::Batch(batch.take()))).map_err(|_| unheard())?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.send(0)
    }
}
