//! A copy of a database that is kept by its scan and its feed of changes alone.
#![allow(dead_code, clippy::unwrap_used)]

use bson::{Document, RawDocumentBuf, Timestamp, doc};
use futures::{StreamExt, TryStreamExt};
use model::{
    ChangeItem, ChangeStream, CollectionId, CollectionInfo, EngineTime, Following, Gap, Kind, Part, Patcher, Plan,
    Position, ScanItem, Selection, Source, Until,
};
use mongo::{MongoSource, Patches};
use mongodb::Database;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use testkit::source::MemoryAttachments;

pub type Documents = BTreeMap<Vec<u8>, Vec<u8>>;

/// One collection with its documents by key.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub info: CollectionInfo,
    pub documents: Documents,
    /// The greatest time that it was read at.
    pub read: u64,
}

pub type State = BTreeMap<CollectionId, Held>;

#[derive(Debug, Clone)]
enum What {
    Put(Vec<u8>),
    Patch(Vec<u8>),
    Delete,
    Catalog(Option<CollectionInfo>),
}

#[derive(Debug, Clone)]
struct Change {
    time: u64,
    collection: CollectionId,
    key: Vec<u8>,
    what: What,
}

/// A scan, and all changes since.
#[derive(Debug, Clone)]
pub struct Copy {
    pub selection: Selection,
    pub position: Position,
    pub base: State,
    /// The time up to which changes are complete.
    pub complete: Option<EngineTime>,
    pub commits: usize,
    changes: Vec<Change>,
    /// Changes after the last commit.
    open: Vec<Change>,
}

/// What a scan gives: the collections by identity, and where changes go on from.
pub async fn scan(source: &MongoSource, selection: &Selection) -> Copy {
    let Plan::Scan { parts, start, .. } = source.plan(selection, None).await.unwrap() else { panic!() };
    let mut base = State::new();
    let mut waiting: VecDeque<Part> = parts.into();
    let mut gone = Vec::new();
    while let Some(part) = waiting.pop_front() {
        let id = part.collection.id.clone();
        if gone.contains(&id) {
            continue;
        }
        let held = || Held { info: part.collection.clone(), documents: Documents::new(), read: 0 };
        base.entry(id.clone()).or_insert_with(held);
        let mut items = source.read(&part, Arc::new(MemoryAttachments::default())).await.unwrap();
        while let Some(item) = items.next().await.transpose().unwrap() {
            let held = base.get_mut(&id).unwrap();
            match item {
                ScanItem::Batch(batch) => held
                    .documents
                    .extend((0..batch.len()).map(|i| (batch.key_of(i).to_vec(), batch.body_of(i).to_vec()))),
                ScanItem::Catalog(info) => held.info = info,
                ScanItem::Progress { true_at } => held.read = held.read.max(true_at.order),
                ScanItem::Skipped(bad) => panic!("{bad:?}"),
                ScanItem::Gone => {
                    base.remove(&id);
                    gone.push(id.clone());
                    break;
                }
                ScanItem::Again(parts) => {
                    held.documents.clear();
                    waiting.retain(|p| p.collection.id != id);
                    waiting.extend(parts);
                    break;
                }
            }
        }
    }
    let position = start.expect("a position to go on from");
    Copy::new(selection.clone(), position, base)
}

impl Copy {
    /// What was read, and no changes yet.
    pub fn new(selection: Selection, position: Position, base: State) -> Copy {
        let (changes, open) = (Vec::new(), Vec::new());
        Copy { selection, position, base, complete: None, commits: 0, changes, open }
    }

    /// Opens the feed where it stands.
    pub async fn feed(&self, source: &MongoSource, until: Until) -> ChangeStream {
        let collections = match self.complete {
            Some(time) => self.at(time.order).into_values().map(|h| h.info).collect(),
            None => self.base.values().map(|h| h.info.clone()).collect(),
        };
        let time = self.complete.unwrap_or(EngineTime::ZERO);
        let from = Following { position: self.position.clone(), time, collections, selection: self.selection.clone() };
        source.changes(&from, until, Arc::new(MemoryAttachments::default())).await.unwrap()
    }

    /// Takes all changes that there are now.
    pub async fn catch_up(&mut self, source: &MongoSource) {
        self.open.clear();
        let mut feed = self.feed(source, Until::Now).await;
        while let Some(item) = feed.next().await {
            assert_eq!(self.take(item.unwrap()), None);
        }
        assert!(self.open.is_empty(), "a feed ends with a commit");
    }

    /// Takes one item, checking what feeds promise; gives a gap.
    pub fn take(&mut self, item: ChangeItem) -> Option<Gap> {
        match item {
            ChangeItem::Batch(change) => {
                change.batch.check().unwrap();
                assert_eq!(change.batch.len(), change.times.len());
                for (i, time) in change.times.iter().enumerate() {
                    let body = change.batch.body_of(i).to_vec();
                    let what = match change.batch.kind {
                        Kind::Document => What::Put(body),
                        Kind::Patch => What::Patch(body),
                        Kind::Tombstone => What::Delete,
                        _ => panic!("{:?}", change.batch.kind),
                    };
                    let key = change.batch.key_of(i).to_vec();
                    self.push(*time, change.batch.collection.clone(), key, what);
                }
            }
            ChangeItem::Catalog { info, collection, time } => {
                self.push(time, collection, Vec::new(), What::Catalog(info));
            }
            ChangeItem::Commit { position, time } => {
                assert!(self.complete.is_none_or(|before| before <= time), "time goes back");
                assert!(self.open.iter().all(|c| c.time <= time.order), "a change after its commit");
                self.open.sort_by_key(|c| c.time);
                self.changes.append(&mut self.open);
                (self.position, self.complete) = (position, Some(time));
                self.commits += 1;
            }
            ChangeItem::Gap(gap) => return Some(gap),
        }
        None
    }

    fn push(&mut self, time: EngineTime, collection: CollectionId, key: Vec<u8>, what: What) {
        let before = self.complete.map_or(0, |t| t.order);
        assert!(time.order > before, "a change of a time that was complete");
        assert_eq!(time.millis, (time.order >> 32) as i64 * 1000);
        self.open.push(Change { time: time.order, collection, key, what });
    }

    /// How many changes there were.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// The times of all changes, each once.
    pub fn times(&self) -> Vec<u64> {
        let mut times: Vec<u64> = self.changes.iter().map(|c| c.time).collect();
        times.dedup();
        times
    }

    /// The earliest time that the scan allows.
    pub fn earliest(&self) -> u64 {
        self.base.values().map(|h| h.read).max().unwrap_or(0)
    }

    /// Everything as it is now.
    pub fn now(&self) -> State {
        self.at(u64::MAX)
    }

    /// Everything as it was at a time, that included.
    pub fn at(&self, time: u64) -> State {
        let mut state = self.base.clone();
        for change in self.changes.iter().filter(|c| c.time <= time) {
            match (&change.what, state.get_mut(&change.collection)) {
                (What::Catalog(None), held) => {
                    // What was read later than that was there later.
                    if held.is_some_and(|h| h.read < change.time) {
                        state.remove(&change.collection);
                    }
                }
                (What::Catalog(Some(info)), Some(held)) => held.info = info.clone(),
                (What::Catalog(Some(info)), None) => {
                    let held = Held { info: info.clone(), documents: Documents::new(), read: 0 };
                    state.insert(change.collection.clone(), held);
                }
                (_, None) => panic!("a change of a collection that is not there"),
                // A capped collection is read as it is at some time after this one.
                (_, Some(held)) if change.time <= held.read && !held.info.ordered => {}
                (What::Put(body), Some(held)) => drop(held.documents.insert(change.key.clone(), body.clone())),
                (What::Delete, Some(held)) => drop(held.documents.remove(&change.key)),
                (What::Patch(patch), Some(held)) => {
                    let body = held.documents.get_mut(&change.key).expect("a patch of a document that is there");
                    *body = Patches.applied(body, patch).unwrap();
                }
            }
        }
        state
    }

    /// Compares what is held with the server: every document, byte for byte, and every option and index.
    pub async fn compare(&self, source: &MongoSource, database: &Database) {
        let state = self.now();
        let described = source.describe().await.unwrap().collections;
        compare_catalog("everything", &state, &described);
        for held in state.values() {
            let found = documents(database, &held.info).await;
            assert_same(&held.info.name, &held.documents, &found);
        }
    }

    /// Compares all documents as they were at a time with what the server says of that time; gives how
    /// many collections could be compared. Servers do not look back beyond a change of a collection.
    pub async fn compare_at(&self, database: &Database, time: u64) -> usize {
        let now = self.now();
        let mut compared = 0;
        for (id, held) in self.at(time).iter().filter(|(id, h)| now.contains_key(id) && !h.info.ordered) {
            if let Ok(found) = find(database, &now[id].info, Some(time)).await {
                assert_same(&format!("{} at {time}", held.info.name), &held.documents, &found);
                compared += 1;
            }
        }
        compared
    }
}

/// Compares what is known of collections, in the order of names.
pub fn compare_catalog(after: &str, state: &State, described: &[CollectionInfo]) {
    let tell = |info: &CollectionInfo| (info.name.clone(), info.id.clone(), info.ordered, info.options.to_string());
    let mut held: Vec<_> = state.values().map(|h| tell(&h.info)).collect();
    let mut there: Vec<_> = described.iter().map(tell).collect();
    held.sort();
    there.sort();
    for (held, there) in held.iter().zip(&there) {
        assert_eq!(held, there, "after {after}\nheld:   {held:?}\nserver: {there:?}\n");
    }
    assert_eq!(held.len(), there.len(), "after {after}\n{held:?}\n{there:?}");
}

fn assert_same(name: &str, held: &Documents, found: &Documents) {
    for (key, body) in held {
        let there = found.get(key);
        assert_eq!(there, Some(body), "{name} {}: {:?}\n{:?}", mongo::keys::text(key), read(body), there.map(read));
    }
    let more: Vec<_> = found.keys().filter(|k| !held.contains_key(*k)).map(|k| mongo::keys::text(k)).collect();
    assert!(more.is_empty(), "{name}: on the server there is also {more:?}");
}

fn read(body: impl AsRef<[u8]>) -> Document {
    Document::from_reader(body.as_ref()).unwrap()
}

/// The documents of a collection by key.
pub async fn documents(database: &Database, info: &CollectionInfo) -> Documents {
    find(database, info, None).await.unwrap()
}

/// The documents of a collection by key, as they are or as they were at a time.
async fn find(database: &Database, info: &CollectionInfo, at: Option<u64>) -> mongodb::error::Result<Documents> {
    let kind = info.options["type"].as_str().unwrap();
    let name = info.name.split_once('.').unwrap().1;
    let name = match kind {
        "view" => return Ok(Documents::new()),
        "timeseries" => format!("system.buckets.{name}"),
        _ => name.to_owned(),
    };
    let mut find = doc! { "find": name };
    if let Some(at) = at {
        // A name gives nothing for a time before its collection was dropped or renamed.
        find = doc! { "find": bson::Uuid::parse_str(info.id.as_str()).unwrap() };
        let ts = Timestamp { time: (at >> 32) as u32, increment: at as u32 };
        find.insert("readConcern", doc! { "level": "snapshot", "atClusterTime": ts });
    }
    let cursor = database.run_cursor_command(find).await?;
    let all: Vec<RawDocumentBuf> = cursor.with_type().try_collect().await?;
    let with_key = |body: RawDocumentBuf| {
        let bytes = body.into_bytes();
        let id = mongo::raw::id_element(&bytes).unwrap();
        (bytes[id.start..id.end].to_vec(), bytes)
    };
    Ok(all.into_iter().map(with_key).collect())
}
