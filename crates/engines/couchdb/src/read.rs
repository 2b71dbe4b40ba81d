//! Rows become batches.

use crate::client::Client;
use crate::content;
use crate::document::{self, Content};
use crate::error::unheard;
use crate::extras::{self, Extra};
use crate::fetch::{self, Fetched, Pace};
use crate::inline;
use crate::leaf::Leaf;
use crate::members::quoted;
use crate::rows::{self, Row};
use crate::server::Server;
use futures::stream::{self, TryStreamExt};
use model::{
    AttachmentRef, AttachmentStore, Batch, BatchBuilder, CollectionId, Encoding, Error, ErrorKind, Kind, Piece, Result,
    ScanItem, Selection, Skipped, limits,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;

/// What a plan tells the reading of one database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub database: String,
    pub id: String,
    /// Where it begins, if that is not where all databases do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    pub selection: Selection,
}

/// The way to whoever reads.
pub(crate) type Out = Sender<Result<ScanItem>>;

/// What reading documents needs.
#[derive(Clone)]
pub(crate) struct Reader {
    pub server: Arc<Server>,
    pub database: String,
    pub collection: CollectionId,
    pub store: Arc<dyn AttachmentStore>,
    pub pace: Arc<Pace>,
    pub selection: Arc<Selection>,
    /// Where reading all begins.
    pub since: String,
    /// Documents are fetched by so many requests side by side.
    pub concurrency: usize,
    /// Their turns, which all databases that are read at the same time share.
    pub turns: Arc<Semaphore>,
}

/// A document with its attachments.
pub(crate) struct Read<'a> {
    /// What it is now; none: it is gone.
    pub body: Option<Cow<'a, [u8]>>,
    /// Its attachments.
    pub attached: Attached,
}

/// The attachments of a document.
pub(crate) enum Attached {
    None,
    /// Their entry, with the content in it.
    Inline(Vec<u8>),
    /// What their entry says, and their content.
    Stored(Vec<u8>, AttachmentRef),
}

impl Reader {
    fn client(&self) -> &Client {
        &self.server.client
    }

    /// Reads a whole database.
    pub async fn scan(&self, out: &Out) -> Result<()> {
        let name = &self.selection;
        let whole = name.takes_all_of(&self.database);
        if whole {
            let extras = extras::read(&self.server, &self.database).await?;
            for batch in self.extras(&extras).into_iter().filter(|b| !b.kind.is_tombstone()) {
                send(out, ScanItem::Batch(batch)).await?;
            }
            return self.scan_all(out).await;
        }
        let prefix = format!("{}/", self.database);
        let ids = self.selection.only.iter().filter_map(|p| p.strip_prefix(&prefix)).map(str::to_owned);
        let rows: Vec<Row> = ids.map(|id| Row { id, revs: Vec::new() }).collect();
        self.give(rows, out).await
    }

    async fn scan_all(&self, out: &Out) -> Result<()> {
        let pages = stream::try_unfold((self.clone(), Some(self.since.clone())), |(reader, since)| async move {
            let Some(since) = since else { return Ok(None) };
            let page = rows::page(reader.client(), &reader.database, &since, rows::PAGE).await?;
            let next = (page.more && page.last != since).then_some(page.last);
            Ok::<_, Error>(Some((page.rows, (reader, next))))
        });
        let pace = self.pace.clone();
        let chunks = pages.map_ok(move |mut rows| {
            let mut chunks = Vec::new();
            while !rows.is_empty() {
                let rest = rows.split_off(rows.len().min(pace.count()));
                chunks.push(Ok(std::mem::replace(&mut rows, rest)));
            }
            stream::iter(chunks)
        });
        let (reader, out) = (self.clone(), out.clone());
        let giving = chunks.try_flatten().map_ok(move |rows| {
            let (reader, out) = (reader.clone(), out.clone());
            async move { reader.give(rows, &out).await }
        });
        giving.try_buffer_unordered(self.concurrency).try_collect::<()>().await
    }

    /// Gives what some documents are now.
    async fn give(&self, rows: Vec<Row>, out: &Out) -> Result<()> {
        let kinds = [Kind::Document, inline::kind(), Kind::Attachment];
        let mut batches = kinds.map(|kind| BatchBuilder::new(self.collection.clone(), kind, Encoding::Json));
        let turn = self.turns.acquire().await.map_err(|_| unheard())?;
        let fetched = fetch::fetch(self.client(), &self.database, &rows, &self.pace).await?;
        // Whoever waits to be heard must not keep others from being read.
        drop(turn);
        let (plain, others) = fetched.plain_batches(&rows, &self.collection);
        for batch in plain {
            send(out, ScanItem::Batch(batch)).await?;
        }
        for i in others {
            let row = &rows[i];
            let read = match self.read_one(&fetched, i, row).await {
                Err(e) if self.selection.skip_bad && is_bad(&e) => {
                    let what = format!("{}/{}", self.database, row.id);
                    send(out, ScanItem::Skipped(Skipped { what, why: e.to_string() })).await?;
                    continue;
                }
                other => other?,
            };
            let key = row.id.as_bytes();
            let [documents, inlined, stored] = &mut batches;
            if let Some(body) = read.body {
                documents.push(key, &body);
            }
            match read.attached {
                Attached::Inline(entry) => inlined.push(key, &entry),
                Attached::Stored(about, content) => stored.push_attachment(key, &about, content),
                Attached::None => {}
            }
            for batch in &mut batches {
                if batch.bytes() >= limits::BATCH {
                    send(out, ScanItem::Batch(batch.take())).await?;
                }
            }
        }
        for mut batch in batches.into_iter().filter(|b| !b.is_empty()) {
            send(out, ScanItem::Batch(batch.take())).await?;
        }
        Ok(())
    }

    /// One document of those fetched; large content is put into the store.
    pub async fn read_one<'a>(&self, fetched: &'a Fetched, i: usize, row: &Row) -> Result<Read<'a>> {
        if let Some(text) = fetched.plain(i)
            && text.len() + 2 <= limits::DOCUMENT_MAX
        {
            return Ok(Read { body: Some(Cow::Borrowed(text)), attached: Attached::None });
        }
        let mut leaves = fetched.leaves(i, self.selection.no_attachments)?;
        if let Some(other) = leaves.iter().find(|leaf| leaf.id != row.id) {
            return Err(Error::corrupt(format!(
                "the server was asked for document {}, and gave one that says it is {}",
                row.id, other.id
            ))
            .hint("run the command again; if it stays so, look for a proxy between here and the server"));
        }
        if leaves.is_empty() {
            return Ok(Read { body: None, attached: Attached::None });
        }
        let body = document::body(&mut leaves)?;
        let attached = match leaves.iter().any(|leaf| !leaf.attachments.is_empty()) {
            true => self.attached(&leaves, document::contents(&leaves), &body).await?,
            false => Attached::None,
        };
        Ok(Read { body: Some(body), attached })
    }

    async fn attached(&self, leaves: &[Leaf<'_>], contents: Vec<Content>, body: &[u8]) -> Result<Attached> {
        let about = about(&leaves[0].id, &contents, body)?;
        if inline::fits(&contents) {
            let bytes = contents.iter().map(|c| c.bytes).sum();
            let content = content::stream_of(self.client(), &self.database, leaves, contents);
            return Ok(Attached::Inline(inline::add(about, bytes, content).await?));
        }
        let key = leaves[0].id.as_bytes();
        let mut pieces = Vec::with_capacity(contents.len());
        for one in contents {
            let name = one.name(leaves);
            let known = match one.is_told_apart() {
                true => self.store.known(&self.collection, key, &name).await?,
                false => None,
            };
            let content = match known {
                Some(known) => known,
                None => {
                    let content = content::stream_of(self.client(), &self.database, leaves, vec![one]);
                    self.store.put(content).await?
                }
            };
            pieces.push(Piece { name, content });
        }
        Ok(Attached::Stored(about, AttachmentRef::of_pieces(&pieces)?))
    }

    /// Batches of what is beside documents; what is not there as deletions.
    pub fn extras(&self, extras: &[Extra]) -> Vec<Batch> {
        let batch = |extra: &Extra| {
            let kind = match &extra.body {
                Some(_) => extra.kind.clone(),
                None => Kind::tombstone_of(extra.kind.space()),
            };
            let mut batch = BatchBuilder::new(self.collection.clone(), kind, Encoding::Json);
            batch.push(extra.key.as_bytes(), extra.body.as_deref().unwrap_or_default());
            batch.take()
        };
        extras.iter().map(batch).collect()
    }
}

/// What the entry of a document's attachments says.
pub(crate) fn about(document: &str, contents: &[Content], body: &[u8]) -> Result<Vec<u8>> {
    let mut out = b"{\"document\":".to_vec();
    quoted(document, &mut out);
    out.extend_from_slice(b",\"contents\":");
    serde_json::to_writer(&mut out, contents).map_err(|e| Error::bug("a list of contents is no JSON").caused_by(e))?;
    out.extend_from_slice(b",\"body\":");
    out.extend_from_slice(body);
    out.push(b'}');
    if out.len() > limits::DOCUMENT_MAX {
        return Err(document::too_large(document, out.len()));
    }
    Ok(out)
}

/// Whether an error is about one document, which can be left out.
fn is_bad(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Input | ErrorKind::Corrupt | ErrorKind::Unsupported)
}

async fn send(out: &Out, item: ScanItem) -> Result<()> {
    out.send(Ok(item)).await.map_err(|_| unheard())
}
