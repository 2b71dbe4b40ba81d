//! A database in memory that remembers every change, tells them in order, loses old ones, and fails
//! now and then: what each of its states was is known exactly.
#![allow(dead_code, clippy::unwrap_used)]

use async_trait::async_trait;
use futures::StreamExt;
use model::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A patch of this engine appends its text.
pub struct Append;

impl Patcher for Append {
    fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()> {
        into.extend_from_slice(body);
        into.extend_from_slice(patch);
        Ok(())
    }
}

pub fn patcher() -> Option<Arc<dyn Patcher>> {
    Some(Arc::new(Append))
}

/// What a collection is: its name and documents.
pub type State = BTreeMap<u64, (String, BTreeMap<String, String>)>;

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Op {
    Create(String),
    Drop,
    Rename(String),
    Put(String, String),
    Patch(String, String),
    Delete(String),
}

/// Numbers that look like chance.
#[derive(Debug)]
pub struct Dice(SeededRandom);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(SeededRandom::new(seed))
    }

    pub fn below(&self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end.max(1)
    }
}

/// How often the source fails, out of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// The feed fails with an error that may pass.
    pub errors: u64,
    /// The feed ends.
    pub ends: u64,
    /// Old changes are forgotten.
    pub forgets: u64,
    /// A change is not told.
    pub lies: u64,
}

pub struct Db {
    inner: Mutex<Inner>,
    dice: Dice,
    pub trouble: Mutex<Trouble>,
    /// Whether the source reads at the time of the plan, or each part when it is read.
    pub snapshot: bool,
    /// Whether there are patches, which only these tests can apply.
    pub patches: bool,
}

struct Inner {
    /// What it is now.
    current: State,
    /// The time of each, the collection, what.
    log: Vec<(u64, u64, Op)>,
    now: u64,
    /// Changes up to here are forgotten.
    floor: u64,
    collections: u64,
    scans: u64,
}

/// When it all begins.
pub const BEGIN: i64 = 1_760_000_000_000;

pub fn time(order: u64) -> EngineTime {
    EngineTime { order, millis: BEGIN + order as i64 * 10 }
}

fn id(collection: u64) -> CollectionId {
    CollectionId::new(format!("c{collection}"))
}

fn info(collection: u64, name: &str) -> CollectionInfo {
    CollectionInfo { id: id(collection), name: name.into(), options: serde_json::Value::Null, ordered: false }
}

impl Db {
    pub fn new(seed: u64) -> Arc<Db> {
        Db::with(seed, true)
    }

    pub fn with(seed: u64, patches: bool) -> Arc<Db> {
        let inner = Inner { current: State::new(), log: Vec::new(), now: 100, floor: 0, collections: 0, scans: 0 };
        let db = Db {
            inner: Mutex::new(inner),
            dice: Dice::new(seed),
            trouble: Mutex::default(),
            snapshot: seed % 2 == 0,
            patches,
        };
        for _ in 0..40 {
            db.write();
        }
        Arc::new(db)
    }

    /// What the database was at a time.
    pub fn at(&self, time: u64) -> State {
        let inner = self.inner.lock().unwrap();
        let mut state = State::new();
        for (_, collection, op) in inner.log.iter().filter(|(t, ..)| *t <= time) {
            apply(&mut state, *collection, op);
        }
        state
    }

    pub fn now(&self) -> u64 {
        self.inner.lock().unwrap().now
    }

    pub fn scans(&self) -> u64 {
        self.inner.lock().unwrap().scans
    }

    /// Forgets all changes so far.
    pub fn forget(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.floor = inner.now;
    }

    /// Does one thing, or several at one time.
    pub fn write(&self) {
        let now = self.now() + 1 + self.dice.below(3);
        let together = if self.dice.below(4) == 0 { 1 + self.dice.below(4) } else { 1 };
        for _ in 0..together {
            let mut inner = self.inner.lock().unwrap();
            let inner = &mut *inner;
            let state = &mut inner.current;
            let some = state.keys().nth(self.dice.below(state.len() as u64) as usize).copied();
            let key = format!("k{}", self.dice.below(12));
            let text = format!("{{{}}}", self.dice.below(1000));
            let (collection, op) = match (self.dice.below(30), some) {
                (_, None) | (0, _) if state.len() < 5 => {
                    inner.collections += 1;
                    (inner.collections, Op::Create(format!("n{}", inner.collections)))
                }
                (_, None) => continue,
                (1, Some(c)) if together == 1 => (c, Op::Drop),
                (2, Some(c)) if together == 1 => (c, Op::Rename(format!("r{now}"))),
                (3..=16, Some(c)) => (c, Op::Put(key, text)),
                (17..=23, Some(c)) if self.patches && state[&c].1.contains_key(&key) => (c, Op::Patch(key, text)),
                (_, Some(c)) if state[&c].1.contains_key(&key) => (c, Op::Delete(key)),
                (_, Some(c)) => (c, Op::Put(key, text)),
            };
            apply(state, collection, &op);
            inner.log.push((now, collection, op));
        }
        let mut inner = self.inner.lock().unwrap();
        inner.now = now;
        if self.dice.below(1000) < self.trouble.lock().unwrap().forgets {
            inner.floor = now - self.dice.below(3);
        }
    }

    /// What happened after a time, up to the end or to about so many things.
    fn since(&self, after: u64, most: usize) -> (Vec<(u64, u64, Op)>, u64) {
        let inner = self.inner.lock().unwrap();
        // In the order of time, so that old changes need not be looked at.
        let from = inner.log.partition_point(|(t, ..)| *t <= after);
        let mut found: Vec<_> = inner.log[from..].iter().take(most + 20).cloned().collect();
        let mut until = inner.now;
        if found.len() > most {
            let cut = found[most].0;
            found.retain(|(t, ..)| *t < cut || *t == found_first(after, &inner.log[from..]));
            until = found.last().map_or(after, |(t, ..)| *t);
        }
        (found, until)
    }

    fn floor(&self) -> u64 {
        self.inner.lock().unwrap().floor
    }
}

/// The first time after a time: what happened then is never cut in two.
fn found_first(after: u64, log: &[(u64, u64, Op)]) -> u64 {
    log.iter().map(|(t, ..)| *t).find(|t| *t > after).unwrap_or(after)
}

fn apply(state: &mut State, collection: u64, op: &Op) {
    if let Op::Create(name) = op {
        state.insert(collection, (name.clone(), BTreeMap::new()));
        return;
    }
    let Some((name, documents)) = state.get_mut(&collection) else { return };
    match op {
        Op::Drop => drop(state.remove(&collection)),
        Op::Rename(to) => name.clone_from(to),
        Op::Put(key, body) => drop(documents.insert(key.clone(), body.clone())),
        Op::Patch(key, text) => {
            if let Some(body) = documents.get_mut(key) {
                body.push_str(text);
            }
        }
        Op::Delete(key) => drop(documents.remove(key)),
        Op::Create(_) => {}
    }
}

/// A shared [`Db`] as a source.
pub struct Scripted(pub Arc<Db>);

#[async_trait]
impl Source for Scripted {
    async fn describe(&self) -> Result<Description> {
        Ok(Description {
            engine: Engine::new("scripted"),
            identity: "scripted".into(),
            name: "scripted".into(),
            version: "1".into(),
            feed: FeedKind::EveryChange,
            collections: self.0.inner.lock().unwrap().current.iter().map(|(c, (name, _))| info(*c, name)).collect(),
            losses: Vec::new(),
        })
    }

    async fn plan(&self, _: &Selection, last: Option<&SourceState>) -> Result<Plan> {
        let now = self.0.now();
        if let Some(position) = last.and_then(|l| l.position.clone()) {
            let after: u64 = position.0.parse().unwrap();
            if after >= self.0.floor() {
                return Ok(Plan::Changes { from: position });
            }
            let gap = Gap { from: time(after), to: None, why: "forgotten".into() };
            return Ok(Plan::Gap { gap, then: Box::new(self.scan(now)) });
        }
        Ok(self.scan(now))
    }

    async fn read(&self, part: &Part, _: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        let planned: u64 = part.token.parse().unwrap();
        let db = self.0.clone();
        let collection: u64 = part.collection.id.as_str()[1..].parse().unwrap();
        let id = part.collection.id.clone();
        let items = futures::stream::once(async move {
            tokio::time::sleep(Duration::from_millis(db.dice.below(200))).await;
            let at = if db.snapshot { planned } else { db.now() };
            let mut items = Vec::new();
            let Some((_, documents)) = db.at(at).remove(&collection) else { return vec![Ok(ScanItem::Gone)] };
            items.push(Ok(ScanItem::Progress { true_at: time(at) }));
            for (key, body) in documents {
                let mut batch = BatchBuilder::new(id.clone(), Kind::Document, Encoding::Json);
                batch.push(key.as_bytes(), body.as_bytes());
                items.push(Ok(ScanItem::Batch(batch.take())));
            }
            items
        });
        Ok(items.flat_map(futures::stream::iter).boxed())
    }

    async fn changes(&self, from: &Following, until: Until, _: Arc<dyn AttachmentStore>) -> Result<ChangeStream> {
        let after: u64 = from.position.0.parse().unwrap();
        let items = futures::stream::unfold((self.0.clone(), after, false), move |(db, after, over)| async move {
            if over {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(1 + db.dice.below(30))).await;
            let trouble = *db.trouble.lock().unwrap();
            if after < db.floor() {
                let gap = Gap { from: time(after), to: None, why: "forgotten".into() };
                return Some((vec![Ok(ChangeItem::Gap(gap))], (db, after, true)));
            }
            let dice = db.dice.below(1000);
            if dice < trouble.errors {
                let error = Error::new(ErrorKind::Retry, "the server is away");
                return Some((vec![Err(error)], (db, after, true)));
            }
            if dice < trouble.errors + trouble.ends {
                return Some((vec![], (db, after, true)));
            }
            let (log, now) = db.since(after, 1 + db.dice.below(6) as usize);
            let mut items: Vec<Result<ChangeItem>> = Vec::new();
            for (at, collection, op) in &log {
                if matches!(op, Op::Put(..)) && db.dice.below(1000) < trouble.lies {
                    continue;
                }
                let (kind, key, body) = match op {
                    Op::Create(name) | Op::Rename(name) => {
                        let info = Some(info(*collection, name));
                        items.push(Ok(ChangeItem::Catalog { info, collection: id(*collection), time: time(*at) }));
                        continue;
                    }
                    Op::Drop => {
                        items.push(Ok(ChangeItem::Catalog {
                            info: None,
                            collection: id(*collection),
                            time: time(*at),
                        }));
                        continue;
                    }
                    Op::Put(key, body) => (Kind::Document, key, body.as_str()),
                    Op::Patch(key, text) => (Kind::Patch, key, text.as_str()),
                    Op::Delete(key) => (Kind::Tombstone, key, ""),
                };
                let mut batch = BatchBuilder::new(id(*collection), kind, Encoding::Json);
                batch.push(key.as_bytes(), body.as_bytes());
                items.push(Ok(ChangeItem::Batch(ChangeBatch { batch: batch.take(), times: vec![time(*at)] })));
            }
            let is_cut = !log.is_empty() && db.dice.below(1000) < trouble.ends;
            if is_cut {
                // It ends before what was done is complete: nothing of it counts.
                return Some((items, (db, after, true)));
            }
            items.push(Ok(ChangeItem::Commit { position: Position(now.to_string()), time: time(now) }));
            let over = until == Until::Now && now >= db.now();
            if log.is_empty() && !over {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            Some((items, (db, now, over)))
        });
        Ok(items.flat_map(futures::stream::iter).boxed())
    }
}

impl Scripted {
    fn scan(&self, now: u64) -> Plan {
        self.0.inner.lock().unwrap().scans += 1;
        let parts = self.0.at(now).into_iter().map(|(collection, (name, _))| Part {
            collection: info(collection, &name),
            token: now.to_string(),
            documents: None,
            bytes: None,
        });
        Plan::Scan {
            start: Some(Position(now.to_string())),
            parts: parts.collect(),
            at: Some(time(now)),
            consistency: Consistency::OneTime,
            skipped: Vec::new(),
        }
    }
}
