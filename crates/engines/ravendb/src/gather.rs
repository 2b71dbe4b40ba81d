//! From items of a dump to batches: one builder for each collection and kind.

use crate::catalog::RANGES;
use crate::dump::{Event, Item, Reader, parse};
use crate::keys::{self, lower};
use crate::metadata::{self, Attached, Metadata};
use crate::ranges::{Ranges, is_empty};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::limits::{BATCH, BATCH_DOCUMENTS};
use model::{
    AttachmentRef, AttachmentStore, Batch, BatchBuilder, CollectionId, Encoding, Error, Kind, Result, Selection,
};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The collection of what belongs to the database, not to one of its collections.
pub(crate) const DATABASE: &str = "@database";
/// Bytes of a time series' segment at most: the server's are 2 KiB.
pub(crate) const SEGMENT_MAX: u64 = 1 << 20;

/// The identity of a collection: names ignore case.
pub(crate) fn collection_id(name: &str) -> CollectionId {
    CollectionId::new(lower(name))
}

/// What an attachment's entry says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The key of its document.
    pub document: String,
    /// The change vector of the revision that it belongs to, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    pub name: String,
    pub hash: String,
    #[serde(rename = "contentType")]
    pub content_type: String,
    pub size: u64,
}

impl Entry {
    /// What is said of an attachment of a document, or of one of its revisions.
    pub fn of(id: &str, revision: Option<&str>, attached: Attached) -> Entry {
        Entry {
            document: id.to_owned(),
            revision: revision.map(str::to_owned),
            name: attached.name,
            hash: attached.hash,
            content_type: attached.content_type,
            size: attached.size,
        }
    }
}

/// The head of an attachment's content in a dump.
#[derive(Deserialize)]
pub(crate) struct Head {
    #[serde(rename = "Hash")]
    pub hash: String,
}

/// A deletion, as the server tells it.
#[derive(Deserialize)]
pub(crate) struct Tombstone {
    #[serde(rename = "Key")]
    pub key: String,
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "Collection")]
    collection: Option<String>,
}

impl Tombstone {
    /// As the server tells it.
    pub fn of(body: &[u8]) -> Result<Tombstone> {
        parse(body, "a tombstone")
    }

    /// The kind space of what was deleted.
    pub fn space(&self) -> &'static str {
        match self.kind.as_str() {
            "Attachment" => Kind::Attachment.space(),
            "Revision" => Kind::Revision.space(),
            _ => Kind::Document.space(),
        }
    }

    /// The collection of what was deleted.
    pub fn collection(&self) -> &str {
        self.collection.as_deref().filter(|c| !c.is_empty()).unwrap_or(metadata::EMPTY)
    }

    /// The change vector of a revision that was deleted.
    pub fn vector(&self) -> &str {
        self.key.rsplit(keys::SEPARATOR).next().unwrap_or_default()
    }
}

/// Where items go.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    /// All belong to this collection, as the server was asked for nothing else.
    All(String),
    /// Only those of this collection are meant.
    Only(String),
    /// Each to its own collection.
    Each,
}

/// Gathers items.
pub(crate) struct Gather {
    route: Route,
    selection: Selection,
    /// None: attachments are not wanted.
    store: Option<Arc<dyn AttachmentStore>>,
    contents: HashMap<[u8; 32], AttachmentRef>,
    /// Whether attachments without content are left out, not an error.
    pub lenient: bool,
    /// Which documents have counters, where counters do not come by collection.
    pub owners: Arc<Owners>,
    /// The same, of what was read so far.
    counted: Owners,
    /// Whether what came is changes, so that what is gone is a deletion.
    pub tells_deletions: bool,
    /// Whether segments of time series without values are kept: they delete what an older backup has.
    pub keeps_empty: bool,
    /// What newer files of a chain say, where there is one.
    pub newer: Option<Newer>,
    builders: Vec<(CollectionId, Kind, BatchBuilder)>,
    ready: Vec<Batch>,
}

impl Gather {
    pub fn new(route: Route, mut selection: Selection, store: Arc<dyn AttachmentStore>) -> Gather {
        selection.understand_keys(keys::keys);
        let store = (!selection.no_attachments).then_some(store);
        Gather {
            route,
            selection,
            store,
            contents: HashMap::new(),
            lenient: false,
            owners: Arc::default(),
            counted: Owners::default(),
            tells_deletions: false,
            keeps_empty: false,
            newer: None,
            builders: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// The batches that are full.
    pub fn take_ready(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.ready)
    }

    /// All batches, as nothing more comes.
    pub fn finish(&mut self) -> Vec<Batch> {
        // Attachments last: who takes them knows their documents by then.
        self.builders.sort_by_key(|(_, kind, _)| *kind == Kind::Attachment);
        let rest = self.builders.drain(..).filter(|(.., b)| !b.is_empty()).map(|(.., mut builder)| builder.take());
        self.ready.extend(rest);
        self.take_ready()
    }

    /// Takes the next event of a dump.
    pub async fn take(&mut self, reader: &mut Reader, event: Event) -> Result<()> {
        match event {
            Event::Value { section, body } if &*section != "BuildVersion" => {
                self.of_database(&section, &section, &body)
            }
            Event::Value { .. } => Ok(()),
            Event::Item(item) => self.item(reader, item).await,
            Event::Blob(_) | Event::BlobEnd => Err(Error::bug("raw bytes of a dump that nobody took")),
        }
    }

    async fn item(&mut self, reader: &mut Reader, item: Item) -> Result<()> {
        let kind = keys::kind_of(&item.section);
        match (&kind, item.blob) {
            (Kind::TimeSeries, Some(size)) if size <= SEGMENT_MAX => {
                let blob = reader.blob(size).await?;
                self.time_series(&item.body, &blob)
            }
            (Kind::TimeSeries, Some(size)) => {
                Err(Error::corrupt(format!("the dump holds a segment of a time series with {size} bytes")))
            }
            (_, Some(_)) => match self.store.clone() {
                Some(store) => {
                    let head: Head = parse(&item.body, "the head of an attachment")?;
                    let reference = reader.store_blob(&*store).await?;
                    self.contents.insert(hash_bytes(&head.hash), reference);
                    Ok(())
                }
                None => reader.skip_blob().await,
            },
            (Kind::Document | Kind::Revision, None) => self.document(kind, &item),
            (Kind::Tombstone, None) => self.tombstone(&item.body),
            (Kind::Counter, None) => {
                let key = keys::of_item(&item.body)?;
                // Counters do not say which collection they belong to.
                let owner = key.split(keys::SEPARATOR).next().unwrap_or_default();
                let collection = match &self.route {
                    Route::All(name) => name.clone(),
                    _ => self.counted.of(owner).or(self.owners.of(owner)).unwrap_or(DATABASE).to_owned(),
                };
                self.owned(&collection, kind, &key, &item.body);
                Ok(())
            }
            (_, None) => {
                let key = keys::of_item(&item.body)?;
                self.of_database(&item.section, &key, &item.body)
            }
        }
    }

    fn document(&mut self, kind: Kind, item: &Item) -> Result<()> {
        let metadata = Metadata::of(&item.body, item.metadata)?;
        let collection = metadata.collection();
        // 4.1 gives the revisions of all collections, whatever it was asked for.
        if let Route::All(name) | Route::Only(name) = &self.route
            && *name != collection
            && lower(name) != lower(&collection)
        {
            return Ok(());
        }
        let (id, name) = (lower(metadata.id()?), self.name(&collection));
        if !self.takes(&name) || !self.selection.takes_key(&name, id.as_bytes()) {
            return Ok(());
        }
        if kind == Kind::Document && metadata.counters.is_some() && matches!(self.route, Route::Each) {
            self.counted.add(&id, &collection);
        }
        let revision = match kind {
            Kind::Revision => {
                let of = metadata.change_vector.as_deref();
                Some(of.ok_or_else(|| Error::corrupt(format!("a revision of {id} has no change vector")))?.to_owned())
            }
            _ => None,
        };
        if self.is_old(&kind, revision.as_ref().unwrap_or(&id)) {
            return Ok(());
        }
        let attachments = if self.store.is_some() { metadata.attachments()? } else { Vec::new() };
        self.push(&name, kind, revision.as_ref().unwrap_or(&id).as_bytes(), &item.body);
        for attached in attachments {
            self.attachment(&name, &id, revision.as_deref(), attached)?;
        }
        Ok(())
    }

    fn attachment(&mut self, collection: &str, id: &str, revision: Option<&str>, attached: Attached) -> Result<()> {
        let Some(content) = self.contents.get(&hash_bytes(&attached.hash)).cloned() else {
            if self.lenient {
                return Ok(());
            }
            return Err(Error::corrupt(format!(
                "the content of the attachment {} of {id} did not come",
                attached.name
            )));
        };
        if content.length != attached.size && attached.size != 0 {
            return Err(Error::corrupt(format!(
                "the attachment {} of {id} has {} bytes, not {}",
                attached.name, content.length, attached.size
            )));
        }
        let key = attached.key(id, revision);
        self.push_attachment(collection, &key, Entry::of(id, revision, attached), content)
    }

    pub fn push_attachment(&mut self, collection: &str, key: &str, entry: Entry, content: AttachmentRef) -> Result<()> {
        let body = serde_json::to_vec(&entry).map_err(|e| Error::bug("an attachment's entry").caused_by(e))?;
        let builder = self.builder(collection, Kind::Attachment);
        self.builders[builder].2.push_attachment(key.as_bytes(), &body, content);
        self.settle(builder);
        Ok(())
    }

    /// The raw bytes become a member of the item, as base64.
    pub fn time_series(&mut self, body: &[u8], blob: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        struct Segment {
            #[serde(rename = "@raven-data")]
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            #[serde(rename = "Collection")]
            collection: Option<String>,
        }
        let segment: Segment = parse(body, "the head of a time series")?;
        let collection = segment.data.collection.unwrap_or_else(|| metadata::EMPTY.to_owned());
        if !self.takes(&collection) {
            return Ok(());
        }
        let key = keys::of_item(body)?;
        if self.newer.as_ref().is_some_and(|newer| newer.ranges.have_deleted(&key, blob)) {
            return Ok(());
        }
        let name = self.name(&collection);
        if is_empty(blob) && !self.keeps_empty {
            match self.tells_deletions {
                true => self.owned(&name, Kind::tombstone_of(Kind::TimeSeries.space()), &key, b""),
                // Older files may have it with values.
                false => drop(self.is_old(&Kind::TimeSeries, &key)),
            }
            return Ok(());
        }
        let open = body.strip_suffix(b"}").unwrap_or(body);
        let whole = [open, b",\"@raven-blob\":\"", STANDARD.encode(blob).as_bytes(), b"\"}"].concat();
        self.owned(&name, Kind::TimeSeries, &key, &whole);
        Ok(())
    }

    /// Something that belongs to one document, by the first part of its key.
    fn owned(&mut self, collection: &str, kind: Kind, key: &str, body: &[u8]) {
        let owner = key.split(keys::SEPARATOR).next().unwrap_or_default();
        let is_old = self.is_old(&kind, key) || self.newer.as_ref().is_some_and(|n| n.has_deleted(owner));
        if !is_old && self.takes(collection) && self.selection.takes_key(&self.name(collection), owner.as_bytes()) {
            self.push(collection, kind, key.as_bytes(), body);
        }
    }

    fn tombstone(&mut self, body: &[u8]) -> Result<()> {
        let tombstone = Tombstone::of(body)?;
        // A dump as a source is a state: what it says to be deleted is not there.
        if let Some(newer) = &mut self.newer {
            newer.deleted(&tombstone);
        }
        Ok(())
    }

    /// Whether a newer file of the chain knows better.
    fn is_old(&mut self, kind: &Kind, key: &str) -> bool {
        self.newer.as_mut().is_some_and(|newer| !newer.is_first(kind.space(), key))
    }

    fn of_database(&mut self, section: &str, key: &str, body: &[u8]) -> Result<()> {
        // A state says what there is, not what was deleted.
        if section == RANGES {
            return match &mut self.newer {
                Some(newer) => newer.ranges.add(body),
                None => Ok(()),
            };
        }
        if section == "CompareExchangeTombstones" {
            if let Some(newer) = &mut self.newer {
                newer.is_first("CompareExchange", key);
            }
            return Ok(());
        }
        if self.newer.as_ref().is_some_and(|n| n.is_whole_in_newest(section))
            || self.is_old(&keys::kind_of(section), key)
        {
            return Ok(());
        }
        match (&self.route, section) {
            // Conflicts come with the collection that was asked for.
            (Route::All(name), "Conflicts") => {
                let name = name.clone();
                self.push(&name, Kind::Meta(section.to_owned()), key.as_bytes(), body);
            }
            // Else they say it themselves.
            (_, "Conflicts") => {
                let name = metadata::conflict_of(body).unwrap_or_else(|| DATABASE.to_owned());
                if self.takes(&name) {
                    self.push(&self.name(&name), Kind::Meta(section.to_owned()), key.as_bytes(), body);
                }
            }
            // Nothing of the database was asked for.
            (Route::All(name), _) if name != DATABASE => {}
            _ if self.takes(DATABASE) => self.push(DATABASE, keys::kind_of(section), key.as_bytes(), body),
            _ => {}
        }
        Ok(())
    }

    fn takes(&self, collection: &str) -> bool {
        match &self.route {
            Route::All(_) => true,
            Route::Each => self.selection.takes(collection),
            Route::Only(name) => name == collection || lower(name) == lower(collection),
        }
    }

    /// The name that the server gives a collection; documents may write it otherwise.
    fn name(&self, collection: &str) -> String {
        match &self.route {
            Route::All(name) | Route::Only(name) => name.clone(),
            Route::Each => collection.to_owned(),
        }
    }

    pub fn push(&mut self, collection: &str, kind: Kind, key: &[u8], body: &[u8]) {
        let builder = self.builder(collection, kind);
        self.builders[builder].2.push(key, body);
        self.settle(builder);
    }

    fn builder(&mut self, collection: &str, kind: Kind) -> usize {
        let found = self.builders.iter().position(|(id, k, _)| *k == kind && is_id(id, collection));
        found.unwrap_or_else(|| {
            let id = collection_id(collection);
            let builder = BatchBuilder::new(id.clone(), kind.clone(), Encoding::Json);
            self.builders.push((id, kind, builder));
            self.builders.len() - 1
        })
    }

    fn settle(&mut self, builder: usize) {
        let built = &mut self.builders[builder].2;
        if built.bytes() < BATCH && built.len() < BATCH_DOCUMENTS {
            return;
        }
        let full = built.take();
        if full.kind == Kind::Attachment {
            let owners = self.builders.iter_mut().filter(|(id, kind, builder)| {
                *id == full.collection && matches!(kind, Kind::Document | Kind::Revision) && !builder.is_empty()
            });
            self.ready.extend(owners.map(|(.., builder)| builder.take()));
        }
        self.ready.push(full);
    }
}

/// Which documents have counters, and their collections.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    names: Vec<String>,
    of: HashMap<u64, u32>,
}

impl Owners {
    pub fn add(&mut self, id: &str, collection: &str) {
        let known = self.names.iter().position(|name| name == collection);
        let number = known.unwrap_or_else(|| {
            self.names.push(collection.to_owned());
            self.names.len() - 1
        });
        self.of.insert(short(id), number as u32);
    }

    pub fn of(&self, id: &str) -> Option<&str> {
        self.of.get(&short(id)).and_then(|n| self.names.get(*n as usize)).map(String::as_str)
    }
}

/// What the newer files of a chain of backups have put or deleted: older ones are read after them.
#[derive(Debug, Default)]
pub(crate) struct Newer {
    seen: HashSet<u128>,
    /// What the file that is read now adds.
    now: HashSet<u128>,
    files: u32,
    is_last: bool,
    ranges: Ranges,
}

impl Newer {
    /// An older file begins; `is_last` if there is none older than it.
    pub fn begin(&mut self, is_last: bool) {
        self.seen.extend(self.now.drain());
        self.ranges.begin();
        self.files += 1;
        self.is_last = is_last;
    }

    /// Whether no newer file has it.
    fn is_first(&mut self, space: &str, key: &str) -> bool {
        let hash = long(space, key);
        if !self.is_last {
            self.now.insert(hash);
        }
        !self.seen.contains(&hash)
    }

    fn deleted(&mut self, tombstone: &Tombstone) {
        match tombstone.kind.as_str() {
            "Document" => {
                let id = lower(&tombstone.key);
                self.now.insert(long("document", &id));
                self.now.insert(long("owner", &id));
            }
            "Revision" => {
                self.now.insert(long("revision", tombstone.vector()));
            }
            // Documents say themselves which attachments they have.
            _ => {}
        }
    }

    fn has_deleted(&self, owner: &str) -> bool {
        self.seen.contains(&long("owner", owner))
    }

    /// Each incremental backup holds all of these: what only older ones hold is gone.
    fn is_whole_in_newest(&self, section: &str) -> bool {
        self.files > 1 && matches!(section, "Indexes" | "DatabaseRecord" | "Subscriptions")
    }
}

fn short(text: &str) -> u64 {
    long("", text) as u64
}

fn long(space: &str, key: &str) -> u128 {
    let mut hasher = blake3::Hasher::new();
    let mut half = [0; 16];
    hasher.update(space.as_bytes()).update(&[0]).update(key.as_bytes());
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// Whether a name is of a collection; most names are in one case only by their first letter.
fn is_id(id: &CollectionId, name: &str) -> bool {
    id.as_str() == name || (id.as_str().len() == name.len() && id.as_str().eq_ignore_ascii_case(name)) || {
        !name.is_ascii() && id.as_str() == lower(name)
    }
}

/// A hash as bytes; what is none is hashed, so that each text stays one content.
pub(crate) fn hash_bytes(hash: &str) -> [u8; 32] {
    match STANDARD.decode(hash).ok().and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => bytes,
        None => *blake3::hash(hash.as_bytes()).as_bytes(),
    }
}
