//! What an export of changes tells, item by item, as batches for the change log.
//!
//! Deletions of documents, revisions and attachments are told by tombstones. Those of attachments do not
//! say their collection: that of their document, or of their revision, which are told with them.
//! Counters do not either, and are told without their document: the server is asked.

use crate::catalog::RANGES;
use crate::contents::{self, Recent, owner};
use crate::dump::{Event, Item, Reader, parse};
use crate::gather::{Entry, Gather, Head, Owners, Route, SEGMENT_MAX, Tombstone, hash_bytes};
use crate::keys::{self, lower};
use crate::marks;
use crate::metadata::{Attached, Metadata};
use crate::server::Server;
use bytes::Bytes;
use futures::StreamExt;
use model::{AttachmentStore, Batch, Error, ErrorKind, Kind, Result, Selection};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes from which on it is asked whether an attachment is an old one, instead of storing it again
/// whenever its document has changed.
const ASKED: u64 = 16 << 10;
/// Counters whose documents are asked for at once.
const AT_ONCE: usize = 500;
/// Collections up to which a deleted revision is looked for in all: a document that moved has left
/// revisions in its old collection, and the server names the new one.
const LOOKED_IN: usize = 16;

/// Where changes begin.
#[derive(Debug, Clone)]
pub(crate) struct Since {
    /// The database.
    pub database: String,
    /// The last etag that was read before.
    pub etag: u64,
}

/// Makes batches of changes.
pub(crate) struct Told {
    server: Arc<Server>,
    since: Since,
    store: Arc<dyn AttachmentStore>,
    no_attachments: bool,
    /// Whether it is only to be found out if everything can be told.
    dry: bool,
    /// Whether deletions are told as entries of their own.
    marks: bool,
    gather: Gather,
    recent: Recent,
    /// The collections that are known by name.
    known: Vec<String>,
    /// The collections of documents that are there, and of those that were deleted.
    now: Owners,
    gone: Owners,
    /// Of revisions that were deleted.
    revisions: Owners,
    /// Keys of attachments by their documents.
    attached: HashMap<String, Vec<String>>,
    /// Keys of attachments that were deleted, and how the server tells it.
    detached: Vec<(String, Bytes)>,
    /// Counters, with their keys, until it is known where they belong.
    counters: Vec<(String, Bytes)>,
    /// Groups of counters by document: how many, and whether any may be new.
    groups: HashMap<String, (u64, bool)>,
    pub seen: Seen,
}

/// What was seen of changes.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Documents that were put or deleted.
    pub documents: u64,
    /// Groups of counters that may be new, or have become others.
    pub counters: u64,
    /// Segments of time series that may be new.
    pub series: u64,
    /// Deletions in time series: they do not tell which segments went.
    pub ranges: u64,
}

impl Told {
    pub fn new(
        server: Arc<Server>,
        since: Since,
        selection: Selection,
        store: Arc<dyn AttachmentStore>,
        known: Vec<String>,
        dry: bool,
    ) -> Told {
        let no_attachments = selection.no_attachments;
        let mut gather = Gather::new(Route::Each, selection, store.clone());
        gather.tells_deletions = true;
        Told {
            server,
            since,
            store,
            no_attachments,
            dry,
            marks: false,
            gather,
            recent: Recent::default(),
            known,
            now: Owners::default(),
            gone: Owners::default(),
            revisions: Owners::default(),
            attached: HashMap::new(),
            detached: Vec::new(),
            counters: Vec::new(),
            groups: HashMap::new(),
            seen: Seen::default(),
        }
    }

    /// Tells deletions as entries of their own: what was there is in a backup that only the server can
    /// look into, so that nothing could be taken away from it.
    pub fn mark_deletions(&mut self) {
        self.marks = true;
        self.gather.keeps_empty = true;
    }

    /// Takes the next event of an export.
    pub async fn take(&mut self, reader: &mut Reader, event: Event) -> Result<Vec<Batch>> {
        if let Event::Item(item) = event {
            self.item(reader, item).await?;
        }
        Ok(self.gather.take_ready())
    }

    /// The rest, as nothing more comes.
    pub async fn finish(&mut self) -> Result<Vec<Batch>> {
        self.place_counters().await?;
        for (key, body) in std::mem::take(&mut self.detached) {
            let found = owner(&key).map(|(id, revision)| {
                let of_revision = revision.and_then(|vector| self.revisions.of(vector));
                let mut all: Vec<&str> =
                    [of_revision, self.now.of(id), self.gone.of(id)].into_iter().flatten().collect();
                all.dedup();
                all.into_iter().map(str::to_owned).collect::<Vec<_>>()
            });
            let collections = found.filter(|all| !all.is_empty()).ok_or_else(|| {
                let text = format!("the server does not tell which collection {} was in", keys::text(key.as_bytes()));
                Error::new(ErrorKind::HistoryLost, text)
            })?;
            for collection in collections {
                self.drop_attachment(&collection, &key);
                self.mark(&collection, &key, &body);
            }
        }
        for (id, (count, is_new)) in std::mem::take(&mut self.groups) {
            // A group of its own appears only with its document, or out of one that became too large.
            if count > 1 || (is_new && self.now.of(&id).is_some()) {
                self.seen.counters += count;
            }
        }
        Ok(self.gather.finish())
    }

    fn drop_attachment(&mut self, collection: &str, key: &str) {
        let kind = Kind::tombstone_of(Kind::Attachment.space());
        self.gather.push(collection, kind, key.as_bytes(), b"");
    }

    fn mark(&mut self, collection: &str, key: &str, body: &[u8]) {
        if self.marks {
            self.gather.push(collection, marks::kind(), key.as_bytes(), body);
        }
    }

    async fn item(&mut self, reader: &mut Reader, item: Item) -> Result<()> {
        let kind = keys::kind_of(&item.section);
        match (kind, item.blob) {
            (Kind::TimeSeries, Some(size)) if size <= SEGMENT_MAX => {
                let blob = reader.blob(size).await?;
                self.seen.series += 1;
                self.gather.time_series(&item.body, &blob)
            }
            (Kind::TimeSeries, _) => Err(Error::corrupt("the export holds a segment of a time series without content")),
            (_, Some(size)) if size > contents::AT_HAND || self.no_attachments || self.dry => reader.skip_blob().await,
            (_, Some(size)) => {
                let head: Head = parse(&item.body, "the head of an attachment")?;
                let content = reader.blob(size).await?;
                self.recent.add(hash_bytes(&head.hash), content.into());
                Ok(())
            }
            (kind @ (Kind::Document | Kind::Revision), None) => self.document(kind, &item).await,
            (Kind::Tombstone, None) => self.tombstone(item.body),
            (Kind::Counter, None) => {
                let key = keys::of_item(&item.body)?;
                let id = key.split(keys::SEPARATOR).next().unwrap_or_default().to_owned();
                let is_new = !has_older(&item.body, &self.since);
                let (count, any) = self.groups.entry(id).or_default();
                (*count, *any) = (*count + 1, *any || is_new);
                self.counters.push((key, item.body));
                if self.counters.len() >= AT_ONCE { self.place_counters().await } else { Ok(()) }
            }
            (Kind::Meta(section), None) if section == RANGES => {
                self.seen.ranges += 1;
                Ok(())
            }
            (_, None) => Err(Error::bug(format!("an export of changes holds {}", item.section))),
        }
    }

    async fn document(&mut self, kind: Kind, item: &Item) -> Result<()> {
        let metadata = Metadata::of(&item.body, item.metadata)?;
        let (id, collection) = (metadata.id()?, metadata.collection());
        let key = lower(id);
        let all = if self.no_attachments { Vec::new() } else { metadata.attachments()? };
        let revision = match kind {
            Kind::Revision => Some(
                metadata
                    .change_vector
                    .as_deref()
                    .ok_or_else(|| Error::corrupt(format!("a revision of {id} has no change vector")))?,
            ),
            _ => None,
        };
        if revision.is_none() {
            self.seen.documents += 1;
            self.now.add(&key, &collection);
            if !all.is_empty() {
                self.attached.insert(key.clone(), all.iter().map(|a| a.key(&key, None)).collect());
            }
        }
        self.gather.push(&collection, kind, revision.unwrap_or(&key).as_bytes(), &item.body);
        for attached in all {
            self.attachment(&collection, id, revision, attached).await?;
        }
        Ok(())
    }

    async fn attachment(&mut self, collection: &str, id: &str, revision: Option<&str>, of: Attached) -> Result<()> {
        let Since { database, etag } = &self.since;
        let asks = revision.is_none() && of.size > ASKED;
        if asks && contents::is_old(&self.server, id, &of.name, database, *etag).await? {
            return Ok(());
        }
        if self.dry {
            return Ok(());
        }
        let content = match self.recent.get(&of.hash) {
            Some(content) => futures::stream::iter([Ok(content)]).boxed(),
            None => contents::fetch(&self.server, id, revision, &of).await?.ok_or_else(|| {
                let text = format!("the attachment {} of {id} was replaced while it was read", of.name);
                Error::new(ErrorKind::HistoryLost, text)
            })?,
        };
        let stored = self.store.put(content).await?;
        if stored.length != of.size {
            let (name, length) = (&of.name, stored.length);
            return Err(Error::corrupt(format!("the attachment {name} of {id} has {length} bytes, not {}", of.size)));
        }
        let lower = lower(id);
        let key = of.key(&lower, revision);
        self.gather.push_attachment(collection, &key, Entry::of(&lower, revision, of), stored)
    }

    fn tombstone(&mut self, body: Bytes) -> Result<()> {
        let tombstone = Tombstone::of(&body)?;
        let collection = tombstone.collection();
        match tombstone.kind.as_str() {
            "Document" => {
                let id = lower(&tombstone.key);
                self.seen.documents += 1;
                self.gone.add(&id, collection);
                match self.marks {
                    true => self.gather.push(collection, Kind::Document, id.as_bytes(), &marks::of_document(&body)),
                    false => self.gather.push(collection, Kind::Tombstone, id.as_bytes(), b""),
                }
                // It is in another collection now: what it had before and has again is not told.
                for key in self.attached.get(&id).cloned().unwrap_or_default() {
                    self.drop_attachment(collection, &key);
                }
            }
            "Revision" => {
                let vector = tombstone.vector();
                self.revisions.add(vector, collection);
                let kind = || Kind::tombstone_of(Kind::Revision.space());
                self.gather.push(collection, kind(), vector.as_bytes(), b"");
                self.mark(collection, vector, &body);
                if self.known.len() <= LOOKED_IN {
                    for other in self.known.iter().filter(|other| lower(other) != lower(collection)) {
                        self.gather.push(other, kind(), vector.as_bytes(), b"");
                    }
                }
            }
            "Attachment" if !self.no_attachments => self.detached.push((tombstone.key, body)),
            _ => {}
        }
        Ok(())
    }

    /// Gives counters to the collections of their documents.
    async fn place_counters(&mut self) -> Result<()> {
        let counters = std::mem::take(&mut self.counters);
        if counters.is_empty() || self.dry {
            return Ok(());
        }
        let id = |key: &str| key.split(keys::SEPARATOR).next().unwrap_or_default().to_owned();
        let mut unknown: Vec<String> = counters.iter().map(|(key, _)| id(key)).collect();
        unknown.retain(|id| self.now.of(id).is_none());
        unknown.dedup();
        let mut asked = Owners::default();
        for (id, collection) in self.server.collections_of(&unknown).await? {
            asked.add(&lower(&id), &collection);
        }
        for (key, body) in counters {
            let id = id(&key);
            let found = self.now.of(&id).or_else(|| asked.of(&id)).map(str::to_owned);
            let collection = found.ok_or_else(|| {
                Error::new(ErrorKind::HistoryLost, format!("{id} was deleted while its counters were read"))
            })?;
            self.gather.push(&collection, Kind::Counter, key.as_bytes(), &body);
        }
        Ok(())
    }
}

/// Whether a group of counters has one that was there before.
fn has_older(body: &[u8], since: &Since) -> bool {
    let Ok(group) = serde_json::from_slice::<serde_json::Value>(body) else { return false };
    let ids = group["Values"]["@dbIds"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(mine) = ids.iter().position(|id| id.as_str() == Some(&since.database)) else { return false };
    let all = group["Values"]["@vals"].as_object().into_iter().flatten();
    // Values and etags by turns, for each database that has counted.
    let etags = all.filter_map(|(_, value)| value.as_array()?.get(mine * 2 + 1)?.as_u64());
    etags.into_iter().any(|etag| etag <= since.etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_were_there_before_are_known_by_their_etags() {
        let since = |etag| Since { database: "me".into(), etag };
        let group = br#"{"DocId":"a","Values":{"@dbIds":["me"],"@vals":{"zz":"me:71","likes":[3,22],"x":[1,90]}}}"#;
        assert!(has_older(group, &since(22)));
        assert!(!has_older(group, &since(21)));
        let other = br#"{"DocId":"a","Values":{"@dbIds":["other"],"@vals":{"likes":[3,22]}}}"#;
        assert!(!has_older(other, &since(99)));
    }
}
