//! Writing documents into one database: many at once, every row of every answer read.

use crate::client::{ANSWER_MAX, Request, segment};
use crate::document;
use crate::extras;
use crate::members::quoted;
use crate::server::Server;
use bytes::Bytes;
use model::{Batch, Error, ErrorKind, Kind, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// Bytes of documents in one request.
pub(crate) const TOGETHER: usize = 1 << 20;

/// Writes into one database.
#[derive(Debug)]
pub(crate) struct Writer {
    pub server: Arc<Server>,
    pub database: String,
    /// Whether the server takes multipart bodies.
    pub multipart: bool,
    /// How many copies of the database there are.
    copies: u64,
    held: Mutex<Held>,
}

/// What must wait until all else is written.
#[derive(Debug, Default)]
struct Held {
    /// Design documents, as they may refuse others: their leaves without attachments.
    designs: Vec<Vec<u8>>,
    /// Entries with attachments of design documents.
    design_entries: Vec<Batch>,
    /// Settings and `_local` documents.
    extras: Vec<(Kind, Vec<u8>, Vec<u8>)>,
    /// Documents whose attachments have not come yet, and those whose attachments have, by hash.
    awaited: HashSet<u64>,
    arrived: HashSet<u64>,
}

impl Writer {
    /// Writes into a database that is there, of which there are so many copies.
    pub async fn new(server: Arc<Server>, database: &str, copies: u64) -> Result<Writer> {
        let multipart = server.welcome().await?.is_couchdb;
        Ok(Writer { server, database: database.to_owned(), multipart, copies, held: Mutex::default() })
    }

    /// The path of a request that writes. All copies that are up are waited for, as whatever reads the
    /// database back may read any of them.
    pub fn lasting(&self, path: &str) -> String {
        match (self.copies, path.contains('?')) {
            (0 | 1, _) => path.to_owned(),
            (copies, true) => format!("{path}&w={copies}"),
            (copies, false) => format!("{path}?w={copies}"),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Keeps what must wait of a batch that is no documents; gives whether it was that.
    pub fn hold(&self, batch: &Batch) -> bool {
        let is_extra =
            batch.kind == Kind::Local || batch.kind == extras::settings() || batch.kind == extras::checkpoints();
        if is_extra {
            let mut held = self.held();
            for i in 0..batch.len() {
                held.extras.push((batch.kind.clone(), batch.key_of(i).to_vec(), batch.body_of(i).to_vec()));
            }
        }
        is_extra
    }

    /// Keeps the entries with attachments of design documents for later; gives the others' numbers.
    pub fn hold_design_entries(&self, batch: &Batch) -> Vec<usize> {
        let (designs, others): (Vec<_>, Vec<_>) = (0..batch.len()).partition(|i| is_design(batch.key_of(*i)));
        let mut held = self.held();
        for i in designs {
            let mut docs = batch.clone();
            docs.docs = vec![batch.docs[i]];
            docs.attachments = batch.attachments.get(i).cloned().into_iter().collect();
            held.design_entries.push(docs);
        }
        others
    }

    /// Says that the attachments of a document have been written.
    pub fn arrived(&self, key: &[u8]) {
        let hash = hash(key);
        let mut held = self.held();
        held.awaited.remove(&hash);
        held.arrived.insert(hash);
    }

    /// Writes documents; leaves that have attachments come with the entries of these.
    pub async fn documents(&self, batch: &Batch) -> Result<()> {
        let mut waiting = Bulk::default();
        for i in 0..batch.len() {
            let leaves = document::leaves(batch.body_of(i))?;
            let is_design = is_design(batch.key_of(i));
            if leaves.iter().any(|leaf| !leaf.attachments.is_empty()) {
                let hash = hash(batch.key_of(i));
                let mut held = self.held();
                if !held.arrived.contains(&hash) {
                    held.awaited.insert(hash);
                }
            }
            for leaf in leaves.iter().filter(|leaf| leaf.attachments.is_empty()) {
                match is_design {
                    true => self.held().designs.push(leaf.text.as_bytes().to_vec()),
                    false => waiting.push(leaf.text.as_bytes()),
                }
            }
            if waiting.body.len() >= TOGETHER {
                self.bulk(waiting.take(false)).await?;
            }
        }
        self.bulk(waiting.take(false)).await
    }

    /// Sends documents, and reads what the server says of each.
    pub async fn bulk(&self, body: Option<Bytes>) -> Result<()> {
        match self.rows(body).await?.into_iter().find(|row| row.error.is_some()) {
            Some(row) => Err(self.refused(&row)),
            None => Ok(()),
        }
    }

    /// Sends documents as new revisions; gives the ids of those that somebody else has changed meanwhile.
    pub async fn bulk_new(&self, mut bulk: Bulk) -> Result<HashSet<String>> {
        let mut overtaken = HashSet::new();
        for row in self.rows(bulk.take(true)).await? {
            match (&row.id, row.error.as_deref()) {
                (_, None) => {}
                (Some(id), Some("conflict")) => drop(overtaken.insert(id.clone())),
                _ => return Err(self.refused(&row)),
            }
        }
        Ok(overtaken)
    }

    async fn rows(&self, body: Option<Bytes>) -> Result<Vec<Row>> {
        let Some(body) = body else { return Ok(Vec::new()) };
        let request = Request::post(self.lasting(&format!("{}/_bulk_docs", segment(&self.database))), body);
        self.server.client.json(&request, ANSWER_MAX, |bytes| serde_json::from_slice(bytes)).await
    }

    fn refused(&self, row: &Row) -> Error {
        let said = [row.error.as_deref(), row.reason.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let text =
            format!("the server refuses document {} of {}: {said}", row.id.as_deref().unwrap_or("?"), self.database);
        Error::input(text)
            .hint("if a design document of the target refuses it (validate_doc_update), restore into a new database")
    }

    /// Writes what had to wait. Attachments of design documents are given back, to be written before
    /// [`Writer::settle`].
    pub async fn complete(&self) -> Result<Vec<Batch>> {
        let (designs, entries) = {
            let mut held = self.held();
            (std::mem::take(&mut held.designs), std::mem::take(&mut held.design_entries))
        };
        let mut waiting = Bulk::default();
        for design in &designs {
            waiting.push(design);
            if waiting.body.len() >= TOGETHER {
                self.bulk(waiting.take(false)).await?;
            }
        }
        self.bulk(waiting.take(false)).await?;
        Ok(entries)
    }

    /// Writes `_local` documents and, last of all, who may do what.
    pub async fn settle(&self) -> Result<()> {
        let missing = self.held().awaited.len();
        if missing > 0 {
            return Err(Error::corrupt(format!(
                "the attachments of {missing} documents of {} did not come",
                self.database
            ))
            .hint("they were left out of the backup or of the restore: take a backup that has them"));
        }
        let mut extras = std::mem::take(&mut self.held().extras);
        extras.sort_by_key(|(_, key, _)| key == extras::SECURITY.as_bytes());
        for (kind, key, body) in extras {
            match () {
                () if kind != extras::settings() => self.local(&body).await?,
                () if key == extras::SECURITY.as_bytes() => self.put("_security", body).await?,
                () => self.put("_revs_limit", body).await?,
            }
        }
        Ok(())
    }

    async fn put(&self, what: &str, body: Vec<u8>) -> Result<()> {
        let request = Request::put(format!("{}/{what}", segment(&self.database)), body);
        self.server.client.bytes(&request, ANSWER_MAX).await.map(drop)
    }

    /// Writes `_local` documents; those that are there get a new content.
    async fn local(&self, body: &[u8]) -> Result<()> {
        for text in extras::listed(body)? {
            let mut waiting = Bulk::default();
            waiting.push(text.get().as_bytes());
            match self.bulk(waiting.take(true)).await {
                Err(e) if e.to_string().contains("conflict") => self.local_again(text).await?,
                other => other?,
            }
        }
        Ok(())
    }

    async fn local_again(&self, text: &RawValue) -> Result<()> {
        #[derive(Deserialize)]
        struct Local {
            _id: String,
        }
        #[derive(Deserialize)]
        struct Now {
            _rev: String,
        }
        let bad = |e| Error::corrupt("a _local document is no JSON").caused_by(e);
        let local: Local = serde_json::from_str(text.get()).map_err(bad)?;
        let path = crate::client::document_path(&self.database, &local._id).unwrap_or_default();
        let now: Option<Now> = self.server.client.find(&Request::get(path)).await?;
        let now = now.ok_or_else(|| Error::new(ErrorKind::Retry, format!("{} comes and goes", local._id)))?;
        let mut with = b"{\"_rev\":".to_vec();
        quoted(&now._rev, &mut with);
        with.push(b',');
        with.extend_from_slice(&text.get().as_bytes()[1..]);
        let mut waiting = Bulk::default();
        waiting.push(&with);
        self.bulk(waiting.take(true)).await
    }
}

/// Whether a key is that of a design document.
pub(crate) fn is_design(key: &[u8]) -> bool {
    key.starts_with(b"_design/")
}

/// 64 bits that stand for a key.
pub(crate) fn hash(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(key).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[derive(Debug, Deserialize)]
struct Row {
    id: Option<String>,
    error: Option<String>,
    reason: Option<String>,
}

/// Documents for one request.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    body: Vec<u8>,
}

impl Bulk {
    /// Adds a document.
    pub fn push(&mut self, text: &[u8]) {
        if !self.body.is_empty() {
            self.body.push(b',');
        }
        self.body.extend_from_slice(text);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The request's body; none if there is no document. With `new`, the server makes the revisions.
    pub fn take(&mut self, new: bool) -> Option<Bytes> {
        if self.body.is_empty() {
            return None;
        }
        let docs = std::mem::take(&mut self.body);
        let start: &[u8] = if new { b"{\"docs\":[" } else { b"{\"new_edits\":false,\"docs\":[" };
        Some([start, &docs, b"]}"].concat().into())
    }
}
