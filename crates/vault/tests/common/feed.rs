//! A small model of an engine that tells every change: histories, what a feed gives of them, and what
//! was there at any time.

use super::*;
use futures::TryStreamExt;
use model::{ChangeBatch, Gap, Patcher, Position};
use vault::{Flush, LogName, Run, State};

/// A patch of this test's engine appends its text, or flips a bit, so that a document may come back to
/// what it was.
pub struct Append;

impl Patcher for Append {
    fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let from = into.len();
        into.extend_from_slice(body);
        match patch {
            [b'^', bit] => into[from + 1] ^= bit,
            _ => into.extend_from_slice(patch),
        }
        Ok(())
    }
}

pub const KEYS: u8 = 8;
pub const COLLECTIONS: u8 = 3;

#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Put(u8, u8),
    Patch(u8, u8),
    Flip(u8),
    Delete(u8),
    Create,
    Drop,
    Empty,
    Rename(u8),
}

#[derive(Debug, Clone)]
pub struct Event {
    pub time: u64,
    pub collection: u8,
    pub op: Op,
}

pub type Docs = BTreeMap<Vec<u8>, Vec<u8>>;
/// Collections that exist: their names and documents.
pub type Db = BTreeMap<u8, (String, Docs)>;

#[derive(Debug, Clone)]
pub struct History(pub Vec<Event>);

impl History {
    /// Makes a history that an engine could have: only what exists is changed, and what happens to
    /// collections happens at times of its own.
    pub fn possible(wishes: Vec<(bool, u8, Op)>) -> History {
        let mut events = Vec::new();
        let mut db = Db::new();
        let mut time = 10;
        let mut made = 0;
        let mut alone = true;
        for (together, collection, op) in wishes {
            let collection_alone = !matches!(op, Op::Put(..) | Op::Patch(..) | Op::Flip(_) | Op::Delete(_));
            // A dropped collection comes back under another identity.
            let there = db.contains_key(&collection);
            let (collection, op) = match (there, op) {
                (false, Op::Create | Op::Put(..)) => {
                    if made > collection {
                        continue;
                    }
                    made = made.max(collection) + 1;
                    (collection, Op::Create)
                }
                (false, _) | (true, Op::Create) => continue,
                (true, op) => (collection, op),
            };
            let event = Event { time: 0, collection, op };
            if !fits(&db, &event) {
                continue;
            }
            if !together || alone || collection_alone {
                time += 1;
            }
            alone = collection_alone;
            let event = Event { time, ..event };
            apply(&mut db, &event);
            events.push(event);
        }
        History(events)
    }

    pub fn at(&self, time: u64) -> Db {
        let mut db = Db::new();
        self.0.iter().filter(|e| e.time <= time).for_each(|e| apply(&mut db, e));
        db
    }

    pub fn between(&self, after: u64, until: u64) -> Vec<&Event> {
        self.0.iter().filter(|e| after < e.time && e.time <= until).collect()
    }
}

pub fn fits(db: &Db, event: &Event) -> bool {
    let docs = db.get(&event.collection).map(|(_, docs)| docs);
    match event.op {
        Op::Patch(key, _) | Op::Flip(key) | Op::Delete(key) => docs.is_some_and(|d| d.contains_key(&key_of(key))),
        _ => true,
    }
}

pub fn apply(db: &mut Db, event: &Event) {
    if event.op == Op::Create {
        db.insert(event.collection, (format!("name {}", event.collection), Docs::new()));
        return;
    }
    let (name, docs) = db.get_mut(&event.collection).expect("the collection is there");
    match event.op {
        Op::Put(key, v) => drop(docs.insert(key_of(key), vec![b'p', v])),
        Op::Patch(key, v) => docs.get_mut(&key_of(key)).expect("the document is there").extend([b'+', v]),
        Op::Flip(key) => docs.get_mut(&key_of(key)).expect("the document is there")[1] ^= 1,
        Op::Delete(key) => drop(docs.remove(&key_of(key))),
        Op::Empty => docs.clear(),
        Op::Rename(to) => *name = format!("renamed {} {to}", event.collection),
        Op::Drop => drop(db.remove(&event.collection)),
        Op::Create => unreachable!(),
    }
}

pub fn key_of(key: u8) -> Vec<u8> {
    vec![b'k', key]
}

pub fn id_of(collection: u8) -> CollectionId {
    CollectionId::new(format!("id {collection}"))
}

pub fn info_of(collection: u8, name: &str) -> CollectionInfo {
    CollectionInfo { id: id_of(collection), name: name.into(), options: serde_json::Value::Null, ordered: false }
}

pub fn at(time: u64) -> EngineTime {
    // Several times of one millisecond, as engines have.
    EngineTime { order: time, millis: time as i64 / 3 * 3 }
}

pub fn position(time: u64) -> Position {
    Position(time.to_string())
}

/// What a feed gives for the changes after one time up to another.
pub fn flush(history: &History, after: u64, until: u64, grouped: bool) -> Flush {
    let mut changes: Vec<ChangeBatch> = Vec::new();
    let mut catalog = Vec::new();
    for Event { time, collection, op } in history.between(after, until) {
        let (kind, key, body) = match op {
            Op::Put(key, v) => (Kind::Document, *key, vec![b'p', *v]),
            Op::Patch(key, v) => (Kind::Patch, *key, vec![b'+', *v]),
            Op::Flip(key) => (Kind::Patch, *key, vec![b'^', 1]),
            Op::Delete(key) => (Kind::Tombstone, *key, vec![]),
            Op::Create | Op::Rename(_) => {
                let name = &history.at(*time)[collection].0;
                catalog.push((id_of(*collection), Some(info_of(*collection, name)), at(*time)));
                continue;
            }
            Op::Drop => {
                catalog.push((id_of(*collection), None, at(*time)));
                continue;
            }
            Op::Empty => {
                catalog.push((id_of(*collection), None, at(*time)));
                let name = &history.at(*time)[collection].0;
                catalog.push((id_of(*collection), Some(info_of(*collection, name)), at(*time)));
                continue;
            }
        };
        let last =
            changes.last_mut().filter(|c| grouped && c.batch.collection == id_of(*collection) && c.batch.kind == kind);
        let mut builder = BatchBuilder::new(id_of(*collection), kind, Encoding::Bin);
        if let Some(last) = last {
            (0..last.batch.len()).for_each(|i| builder.push(last.batch.key_of(i), last.batch.body_of(i)));
            builder.push(&key_of(key), &body);
            last.batch = builder.take();
            last.times.push(at(*time));
        } else {
            builder.push(&key_of(key), &body);
            changes.push(ChangeBatch { batch: builder.take(), times: vec![at(*time)] });
        }
    }
    Flush { to: position(until), time: at(until), changes, catalog }
}

pub fn details(time: u64, gap: Option<Gap>) -> PointDetails {
    PointDetails {
        time: at(time),
        consistency: Consistency::OneTime,
        position: Some(position(time)),
        gap,
        skipped: vec![],
    }
}

pub async fn start(vault: &Vault, options: BackupOptions) -> Run {
    let description = Description { feed: FeedKind::EveryChange, ..description("s", &World::new()) };
    vault.start_run(&description, options).await.unwrap()
}

/// Scans all collections in pieces, each range of keys at a time of its own; gives the last one.
pub async fn scan(run: &Run, history: &History, times: &[u64]) -> u64 {
    try_scan(run, history, times).await.unwrap()
}

/// The same, where it may fail.
pub async fn try_scan(run: &Run, history: &History, times: &[u64]) -> Result<u64> {
    let mut latest = times[0];
    run.scanned_at(at(times[0])).await;
    for (collection, (name, _)) in history.at(times[0]) {
        run.begin(&info_of(collection, &name)).await?;
        for (piece, time) in times.iter().enumerate() {
            run.read_at(&id_of(collection), at(*time)).await;
            latest = latest.max(*time);
            let db = history.at(*time);
            let Some((_, docs)) = db.get(&collection) else {
                run.discard(&id_of(collection)).await;
                break;
            };
            let mut builder = BatchBuilder::new(id_of(collection), Kind::Document, Encoding::Bin);
            for (key, body) in docs.iter().filter(|(key, _)| usize::from(key[1]) * times.len() / 8 == piece) {
                builder.push(key, body);
            }
            assert_eq!(run.write(builder.take()).await?, WriteOutcome::Written);
        }
        run.end(&id_of(collection)).await?;
    }
    Ok(latest)
}

pub async fn read(state: &State) -> Result<Db> {
    let mut db = Db::new();
    for collection in state.collections() {
        let mut docs = Docs::new();
        let mut batches = state.read(collection);
        while let Some(batch) = batches.try_next().await? {
            for i in 0..batch.len() {
                assert!(docs.insert(batch.key_of(i).to_vec(), batch.body_of(i).to_vec()).is_none(), "a key came twice");
            }
        }
        let id = collection.info.id.as_str().strip_prefix("id ").unwrap().parse().unwrap();
        assert!(db.insert(id, (collection.info.name.clone(), docs)).is_none(), "a collection came twice");
    }
    Ok(db)
}

pub fn patcher() -> Option<Arc<dyn Patcher>> {
    Some(Arc::new(Append))
}

pub async fn resolved(vault: &Vault, source: &str, time: u64) -> Result<Db> {
    read(&vault.resolve_at(source, at(time), &Selection::default(), patcher()).await?).await
}

pub async fn resolved_point(vault: &Vault, point: &Point) -> Result<Db> {
    read(&vault.resolve(point, &Selection::default(), patcher()).await?).await
}

pub fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub async fn log_names(storage: &Arc<dyn Storage>) -> Vec<LogName> {
    let entries: Vec<_> = storage.list("history/").await.unwrap().try_collect().await.unwrap();
    let mut names: Vec<LogName> = entries.iter().filter_map(|e| LogName::parse(&e.name)).collect();
    names.sort_by_key(|n| (n.run.clone(), n.first, n.last));
    names
}

/// Removes what rolled objects have taken the place of, as a prune does.
pub async fn remove_superseded(storage: &Arc<dyn Storage>) {
    let names = log_names(storage).await;
    for name in names.iter().filter(|n| names.iter().any(|other| n.is_superseded_by(other))) {
        storage.delete(&name.to_string()).await.unwrap();
    }
}
