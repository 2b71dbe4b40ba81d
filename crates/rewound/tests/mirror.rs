//! Folders kept in step with a scripted source, which changes, stumbles and is left in the lurch at
//! random: in the end the folder is what the source is, to the byte.
#![allow(clippy::unwrap_used)]

mod support;

use async_trait::async_trait;
use futures::StreamExt;
use model::*;
use mongo::extjson;
use rewound::mirror::{Listener, MirrorEvent, MirrorOptions, mirror};
use rewound::{Job, NoObserver, Stop};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::Shared;

/// Repeats for a seed.
struct Dice(SeededRandom);

impl Dice {
    fn below(&self, n: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % n
    }
}

/// A document: its fields in their order. The order is what applying a patch twice spoils.
type Fields = Vec<(String, i32)>;

/// A collection: its name, and its documents by `_id`.
#[derive(Clone, Default, PartialEq, Debug)]
struct Content {
    name: String,
    documents: BTreeMap<i32, Fields>,
}

type World = BTreeMap<u32, Content>;

#[derive(Clone, Debug)]
enum Op {
    Put(u32, i32, Fields),
    /// A field that is set, where it is or at the end; none: it is removed.
    Patch(u32, i32, String, Option<i32>),
    Delete(u32, i32),
    Make(u32, String),
    Rename(u32, String),
    Drop(u32),
    Empty(u32),
}

fn apply(world: &mut World, op: &Op) {
    match op {
        Op::Put(c, key, fields) => drop(world.get_mut(c).unwrap().documents.insert(*key, fields.clone())),
        Op::Patch(c, key, field, value) => {
            let fields = world.get_mut(c).unwrap().documents.get_mut(key).unwrap();
            let at = fields.iter().position(|(name, _)| name == field);
            match (at, value) {
                (Some(at), Some(value)) => fields[at].1 = *value,
                (None, Some(value)) => fields.push((field.clone(), *value)),
                (Some(at), None) => drop(fields.remove(at)),
                (None, None) => {}
            }
        }
        Op::Delete(c, key) => drop(world.get_mut(c).unwrap().documents.remove(key)),
        Op::Make(c, name) => {
            world.insert(*c, Content { name: name.clone(), ..Content::default() });
        }
        Op::Rename(c, name) => world.get_mut(c).unwrap().name = name.clone(),
        Op::Drop(c) => drop(world.remove(c)),
        Op::Empty(c) => world.get_mut(c).unwrap().documents.clear(),
    }
}

/// The document that is changed.
fn target(op: &Op) -> Option<(u32, i32)> {
    match op {
        Op::Put(c, key, _) | Op::Patch(c, key, ..) | Op::Delete(c, key) => Some((*c, *key)),
        _ => None,
    }
}

fn text(key: i32, fields: &Fields) -> String {
    let fields: String = fields.iter().map(|(name, n)| format!(",\"{name}\":{{\"$numberInt\":\"{n}\"}}")).collect();
    format!("{{\"_id\":{{\"$numberInt\":\"{key}\"}}{fields}}}")
}

fn bson(text: &str) -> Vec<u8> {
    let mut document = Vec::new();
    extjson::read(text.as_bytes(), 100, &mut document).unwrap();
    document
}

fn key_of(key: i32) -> Vec<u8> {
    [b"\x10_id\0", &key.to_le_bytes()[..]].concat()
}

fn info(id: u32, content: &Content) -> CollectionInfo {
    CollectionInfo {
        id: CollectionId::new(id.to_string()),
        name: content.name.clone(),
        options: serde_json::json!({ "type": "collection", "options": {}, "indexes": [] }),
        ordered: false,
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Default)]
struct Trouble {
    /// One of so many commits ends the feed with an error; 0: none does.
    stumbles: u64,
    /// One of so many commits is a gap.
    gaps: u64,
}

/// A source whose history is known.
struct Script {
    /// What happened at times 1, 2, 3…
    history: Mutex<Vec<Vec<Op>>>,
    /// Held while something happens: what happens depends on what was before.
    happening: Mutex<()>,
    dice: Dice,
    trouble: Trouble,
    /// Whether parts of collections are read at times of their own.
    apart: bool,
    /// Whether things change while parts are read.
    is_busy: bool,
}

impl Script {
    fn new(seed: u64) -> Script {
        let (apart, trouble) = (seed % 2 == 1, Trouble::default());
        Script {
            history: Mutex::default(),
            happening: Mutex::default(),
            dice: Dice(SeededRandom::new(seed)),
            trouble,
            apart,
            is_busy: true,
        }
    }

    fn now(&self) -> u64 {
        self.history.lock().unwrap().len() as u64
    }

    fn world(&self, time: u64) -> World {
        let mut world = World::new();
        self.history.lock().unwrap().iter().take(time as usize).flatten().for_each(|op| apply(&mut world, op));
        world
    }

    /// Something happens, perhaps several things at once.
    fn happen(&self) {
        let _alone = self.happening.lock().unwrap();
        let mut world = self.world(self.now());
        let mut ops = Vec::new();
        for _ in 0..=self.dice.below(3) {
            let op = self.roll(&world);
            // Changes of one document at one time have an order only within one kind.
            if ops.iter().any(|other| target(other).is_some() && target(other) == target(&op)) {
                continue;
            }
            apply(&mut world, &op);
            let is_ddl = !matches!(op, Op::Put(..) | Op::Patch(..) | Op::Delete(..));
            ops.push(op);
            if is_ddl {
                break;
            }
        }
        // What changes collections happens at a time of its own.
        if ops.len() > 1 && !matches!(ops.last(), Some(Op::Put(..) | Op::Patch(..) | Op::Delete(..))) {
            let last = ops.pop().unwrap();
            self.history.lock().unwrap().extend([ops, vec![last]]);
            return;
        }
        self.history.lock().unwrap().push(ops);
    }

    fn roll(&self, world: &World) -> Op {
        let dice = |n| self.dice.below(n);
        let name = || format!("db.c{}", dice(5));
        let free = |name: &String| !world.values().any(|c| c.name == *name);
        let any = || world.keys().nth(dice(world.len() as u64) as usize).copied().unwrap();
        let new = || {
            let next = self.history.lock().unwrap().iter().flatten().filter(|op| matches!(op, Op::Make(..))).count();
            next as u32 + 1
        };
        if world.is_empty() || dice(40) == 0 {
            let name = name();
            if free(&name) {
                return Op::Make(new(), name);
            }
        }
        let c = any();
        let there: Vec<i32> = world[&c].documents.keys().copied().collect();
        let fields = || (0..dice(4)).map(|i| (format!("f{i}"), dice(100) as i32)).collect();
        match dice(60) {
            0 => return Op::Drop(c),
            1 => return Op::Empty(c),
            2 => {
                let name = name();
                if free(&name) {
                    return Op::Rename(c, name);
                }
            }
            _ => {}
        }
        if there.is_empty() || dice(4) == 0 {
            return Op::Put(c, dice(12) as i32, fields());
        }
        let key = there[dice(there.len() as u64) as usize];
        match dice(6) {
            0 => Op::Delete(c, key),
            _ => Op::Patch(c, key, format!("f{}", dice(5)), (dice(3) > 0).then(|| dice(100) as i32)),
        }
    }

    /// The changes after a time up to another, grouped as a feed may group them.
    fn items(&self, after: u64, to: u64) -> Vec<ChangeItem> {
        let mut world = self.world(after);
        let mut groups: Vec<(u32, Kind, BatchBuilder, Vec<EngineTime>)> = Vec::new();
        let mut catalog = Vec::new();
        let history: Vec<Vec<Op>> = self.history.lock().unwrap()[after as usize..to as usize].to_vec();
        for (i, ops) in history.iter().enumerate() {
            let time = moment(after + i as u64 + 1);
            for op in ops {
                let before = world.clone();
                apply(&mut world, op);
                let mut change = |c: u32, kind: Kind, key: i32, body: &[u8]| {
                    let at = groups.iter().position(|(id, k, ..)| *id == c && *k == kind).unwrap_or_else(|| {
                        let builder = BatchBuilder::new(CollectionId::new(c.to_string()), kind.clone(), Encoding::Bson);
                        groups.push((c, kind.clone(), builder, Vec::new()));
                        groups.len() - 1
                    });
                    groups[at].2.push(&key_of(key), body);
                    groups[at].3.push(time);
                };
                match op {
                    Op::Put(c, key, fields) => change(*c, Kind::Document, *key, &bson(&text(*key, fields))),
                    Op::Delete(c, key) => change(*c, Kind::Tombstone, *key, b""),
                    Op::Patch(c, key, field, value) => {
                        let is_there = before[c].documents[key].iter().any(|(name, _)| name == field);
                        let does = match (is_there, value) {
                            (true, Some(n)) => format!("{{\"u\":{{\"{field}\":{n}}}}}"),
                            (false, Some(n)) => format!("{{\"i\":{{\"{field}\":{n}}}}}"),
                            (_, None) => format!("{{\"d\":{{\"{field}\":false}}}}"),
                        };
                        change(*c, Kind::Patch, *key, &bson(&format!("{{\"$v\":2,\"diff\":{does}}}")));
                    }
                    Op::Make(c, _) | Op::Rename(c, _) => catalog.push((*c, Some(info(*c, &world[c])), time)),
                    Op::Drop(c) => catalog.push((*c, None, time)),
                    Op::Empty(c) => catalog.extend([(*c, None, time), (*c, Some(info(*c, &world[c])), time)]),
                }
            }
        }
        let mut items: Vec<ChangeItem> = groups
            .into_iter()
            .map(|(.., mut b, times)| ChangeItem::Batch(ChangeBatch { batch: b.take(), times }))
            .collect();
        for (c, info, time) in catalog {
            items.push(ChangeItem::Catalog { info, collection: CollectionId::new(c.to_string()), time });
        }
        items
    }
}

fn moment(order: u64) -> EngineTime {
    EngineTime { order, millis: order as i64 * 1000 }
}

struct Source_(Arc<Script>);

#[async_trait]
impl Source for Source_ {
    async fn describe(&self) -> Result<Description> {
        let world = self.0.world(self.0.now());
        Ok(Description {
            engine: Engine::new("mongodb"),
            identity: "script".into(),
            name: "script".into(),
            version: "1".into(),
            feed: FeedKind::EveryChange,
            collections: world.iter().map(|(id, content)| info(*id, content)).collect(),
            losses: Vec::new(),
        })
    }

    async fn plan(&self, selection: &Selection, _: Option<&SourceState>) -> Result<Plan> {
        let now = self.0.now();
        let part = |id: u32, content: &Content, half: u32| Part {
            collection: info(id, content),
            token: format!("{now} {half} {}", serde_json::to_string(selection).unwrap()),
            documents: None,
            bytes: None,
        };
        let world = self.0.world(now);
        let taken = world.iter().filter(|(_, content)| selection.takes(&content.name));
        let parts = taken.flat_map(|(id, content)| [part(*id, content, 0), part(*id, content, 1)]).collect();
        let at = (!self.0.apart).then(|| moment(now));
        let start = Some(Position(now.to_string()));
        Ok(Plan::Scan { start, parts, at, consistency: Consistency::OneTime, skipped: Vec::new() })
    }

    async fn read(&self, part: &Part, _: Arc<dyn AttachmentStore>) -> Result<ScanStream> {
        // Meanwhile, things change.
        if self.0.is_busy && self.0.dice.below(2) == 0 {
            self.0.happen();
        }
        let mut token = part.token.splitn(3, ' ');
        let mut number = || token.next().unwrap().parse::<u64>().unwrap();
        let (planned, half) = (number(), number() as i32);
        let selection: Selection = serde_json::from_str(token.next().unwrap()).unwrap();
        let time = if self.0.apart { self.0.now() } else { planned };
        let id: u32 = part.collection.id.as_str().parse().unwrap();
        let Some(content) = self.0.world(time).remove(&id) else {
            return Ok(futures::stream::iter([Ok(ScanItem::Gone)]).boxed());
        };
        let mut batch = BatchBuilder::new(part.collection.id.clone(), Kind::Document, Encoding::Bson);
        for (key, fields) in content.documents.iter().filter(|(key, _)| **key % 2 == half) {
            if selection.takes_key(&part.collection.name, &key_of(*key)) {
                batch.push(&key_of(*key), &bson(&text(*key, fields)));
            }
        }
        let mut items = Vec::new();
        if self.0.apart {
            items.push(Ok(ScanItem::Progress { true_at: moment(time) }));
        }
        if !batch.is_empty() {
            items.push(Ok(ScanItem::Batch(batch.take())));
        }
        Ok(futures::stream::iter(items).boxed())
    }

    async fn changes(&self, from: &Following, until: Until, _: Arc<dyn AttachmentStore>) -> Result<ChangeStream> {
        assert_eq!(until, Until::Stopped);
        let script = self.0.clone();
        let at: u64 = from.position.0.parse().unwrap();
        // What was known there is what was there.
        let mut known: Vec<_> = from.collections.iter().map(|c| (c.id.to_string(), c.name.clone())).collect();
        known.sort();
        let mut there: Vec<_> = script.world(at).into_iter().map(|(id, c)| (id.to_string(), c.name)).collect();
        there.sort();
        // A scan sees collections as they are when it comes to them.
        if !script.apart && known != there {
            let fresh = script.world(at + 100_000).into_iter().map(|(id, c)| (id.to_string(), c.name));
            let fresh: Vec<_> = fresh.collect();
            assert!(known.iter().all(|k| there.contains(k) || fresh.contains(k)), "{known:?} {there:?}");
        }
        Ok(futures::stream::unfold((script, at, Vec::new()), |(script, mut at, mut waiting)| async move {
            loop {
                if let Some(item) = waiting.pop() {
                    return Some((item, (script, at, waiting)));
                }
                let dice = |n: u64| n > 0 && script.dice.below(n) == 0;
                if dice(script.trouble.stumbles) {
                    let error = Error::new(ErrorKind::Retry, "the connection is lost");
                    return Some((Err(error), (script, at, waiting)));
                }
                if dice(script.trouble.gaps) {
                    let gap = Gap { from: moment(at), to: None, why: "rolled over".into() };
                    return Some((Ok(ChangeItem::Gap(gap)), (script, at, waiting)));
                }
                let to = (at + 1 + script.dice.below(4)).min(script.now());
                if to == at {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                waiting.push(Ok(ChangeItem::Commit { position: Position(to.to_string()), time: moment(to) }));
                waiting.extend(script.items(at, to).into_iter().rev().map(Ok));
                at = to;
            }
        })
        .boxed())
    }
}

/// The files that a mirror of a world has.
fn expected(world: &World) -> BTreeMap<String, String> {
    let files = world.values().flat_map(|content| {
        let name = &content.name;
        content.documents.iter().map(move |(key, fields)| (format!("{name}/{key}.json"), text(*key, fields)))
    });
    files.collect()
}

/// The files of documents that are there.
fn files(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for folder in std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if name == ".rewound-mirror" {
            continue;
        }
        for file in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let file = file.path();
            let of = file.file_name().unwrap().to_str().unwrap();
            if let Ok(text) = std::fs::read_to_string(&file) {
                all.insert(format!("{name}/{of}"), text);
            }
        }
    }
    all
}

fn silent() -> Listener {
    Arc::new(|_| {})
}

fn options() -> MirrorOptions {
    MirrorOptions { selection: Selection::default(), every: Duration::from_millis(30) }
}

/// These, or the one that is to be looked at again: `REWOUND_SEED=7 cargo test -p rewound --test mirror`.
fn seeds(all: std::ops::Range<u64>) -> std::ops::Range<u64> {
    match std::env::var("REWOUND_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => all,
    }
}

async fn wait_until(what: impl Fn() -> bool) -> bool {
    for _ in 0..1000 {
        if what() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Mirrors until the folder is what the source is; cut off a few times on the way.
async fn run(seed: u64, trouble: Trouble) {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("mirror");
    let script = Arc::new(Script { trouble, ..Script::new(seed) });
    (0..20).for_each(|_| script.happen());
    for round in 0..5 {
        let stop = Stop::new();
        let job = Job::new(Arc::new(NoObserver), stop.clone());
        let (source, folder) = (Arc::new(Source_(script.clone())), root.clone());
        let running = tokio::spawn(async move {
            loop {
                match mirror(&job, source.clone(), &folder, &options(), silent()).await {
                    // What was cut off may still be at its last write.
                    Err(e) if e.to_string().contains("another process") => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    other => return other,
                }
            }
        });
        for _ in 0..30 {
            script.happen();
            if script.dice.below(3) == 0 {
                tokio::time::sleep(Duration::from_millis(script.dice.below(8))).await;
            }
        }
        if round < 4 {
            // Cut off where it stands.
            running.abort();
            if let Ok(ended) = running.await {
                panic!("seed {seed}: it ended by itself: {ended:?}");
            }
            continue;
        }
        // Scans go on changing it.
        let wanted = || expected(&script.world(script.now()));
        let done = wait_until(|| files(&root) == wanted()).await;
        stop.ask();
        let report = running.await.unwrap().unwrap();
        let wanted = wanted();
        assert!(done, "seed {seed}\nthere   {:?}\nwanted  {wanted:?}\n{report:?}", files(&root));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_end_up_as_the_source_is() {
    for seed in seeds(0..12) {
        run(seed, Trouble::default()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_that_stumble_are_followed_all_the_same() {
    for seed in seeds(100..103) {
        run(seed, Trouble { stumbles: 60, gaps: 0 }).await;
    }
    for seed in seeds(200..204) {
        run(seed, Trouble { stumbles: 0, gaps: 25 }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_people_change_are_put_right_by_the_next_change() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().to_owned();
    let script = Arc::new(Script { is_busy: false, ..Script::new(0) });
    let fields = |n| vec![("a".to_owned(), n), ("b".to_owned(), n)];
    script.history.lock().unwrap().extend([
        vec![Op::Make(1, "db.c".into())],
        vec![Op::Put(1, 1, fields(1)), Op::Put(1, 2, fields(2)), Op::Put(1, 3, fields(3))],
    ]);
    let stop = Stop::new();
    let job = Job::new(Arc::new(NoObserver), stop.clone());
    let (source, folder) = (Arc::new(Source_(script.clone())), root.clone());
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    let listener: Listener = Arc::new(move |event| told.lock().unwrap().push(event));
    let running = tokio::spawn(async move { mirror(&job, source, &folder, &options(), listener).await });
    assert!(wait_until(|| root.join("rewound.json").exists()).await);
    std::fs::write(root.join("db.c/1.json"), "{\"_id\":1,\"mine\":true}").unwrap();
    std::fs::remove_file(root.join("db.c/2.json")).unwrap();
    std::fs::write(root.join("db.c/notes.json"), "{\"mine\":true}").unwrap();
    let patch = |key| Op::Patch(1, key, "a".into(), Some(9));
    script.history.lock().unwrap().push(vec![patch(1), patch(2), patch(3)]);
    let mut wanted = expected(&script.world(script.now()));
    wanted.insert("db.c/notes.json".into(), "{\"mine\":true}".into());
    assert!(wait_until(|| files(&root) == wanted).await, "{:?}", files(&root));
    script.history.lock().unwrap().push(vec![Op::Delete(1, 3)]);
    script.history.lock().unwrap().push(vec![Op::Drop(1)]);
    assert!(wait_until(|| files(&root).len() == 1).await, "{:?}", files(&root));
    assert!(root.join("db.c/notes.json").exists(), "what others wrote stays");
    stop.ask();
    running.await.unwrap().unwrap();
    let events = events.lock().unwrap();
    let last = events.iter().rev().find_map(|e| match e {
        MirrorEvent::Write(files) if files.deleted => Some(files.clone()),
        _ => None,
    });
    let mut last = last.unwrap();
    last.files.sort();
    last.ids.sort();
    assert_eq!((last.collection.as_str(), last.ids), ("db.c", vec!["1".to_owned(), "2".into()]));
    assert_eq!(last.files, ["db.c/1.json", "db.c/2.json"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_without_a_feed_is_compared_again_and_again() {
    let memory = Arc::new(support::Memory::with(&[("books", 30), ("empty", 0)]));
    let home = tempfile::tempdir().unwrap();
    let root = home.path().to_owned();
    memory.attachments.lock().unwrap().push(("books".into(), "k1/cover".into(), vec![7; 300_000]));
    let stop = Stop::new();
    let job = Job::new(Arc::new(NoObserver), stop.clone());
    let (source, folder) = (Arc::new(Shared(memory.clone())), root.clone());
    let running = tokio::spawn(async move { mirror(&job, source, &folder, &options(), silent()).await });
    let cover = root.join("books/k1.attachments/cover");
    assert!(wait_until(|| root.join("rewound.json").exists()).await);
    assert_eq!(files(&root).len(), 30);
    assert_eq!(std::fs::read(&cover).unwrap(), vec![7; 300_000]);
    let at = std::fs::metadata(root.join("books/k2.json")).unwrap().modified().unwrap();
    {
        let mut all = memory.collections.lock().unwrap();
        let books = all.get_mut("books").unwrap();
        books.retain(|(key, _)| key != "k5");
        books[0].1 = "{\"new\":1}".into();
        all.remove("empty");
        all.insert("more".into(), vec![("x".into(), "[1]".into())]);
        *memory.attachments.lock().unwrap() = vec![("books".into(), "k2/cover".into(), b"small".to_vec())];
    }
    let is_done = || {
        let files = files(&root);
        files.get("books/k0.json").is_some_and(|t| t == "{\"new\":1}")
            && !files.contains_key("books/k5.json")
            && files.contains_key("more/x.json")
            && !cover.exists()
            && root.join("books/k2.attachments/cover").exists()
            && !root.join("empty").exists()
    };
    assert!(wait_until(is_done).await, "{:?}", files(&root));
    assert_eq!(std::fs::metadata(root.join("books/k2.json")).unwrap().modified().unwrap(), at, "left as it was");
    stop.ask();
    let report = running.await.unwrap().unwrap();
    assert!(report.scans >= 2);
}

#[tokio::test]
async fn a_folder_is_the_mirror_of_one_source() {
    let home = tempfile::tempdir().unwrap();
    let stop = Stop::new();
    let job = Job::new(Arc::new(NoObserver), stop.clone());
    let script = Arc::new(Script::new(0));
    script.happen();
    let ended = async {
        assert!(wait_until(|| home.path().join("rewound.json").exists()).await);
        stop.ask();
    };
    let source: Arc<dyn Source> = Arc::new(Source_(script));
    let options = options();
    let (report, ()) = tokio::join!(mirror(&job, source, home.path(), &options, silent()), ended);
    report.unwrap();
    let job = Job::new(Arc::new(NoObserver), Stop::new());
    let other = Arc::new(Shared(Arc::new(support::Memory::with(&[]))));
    let error = mirror(&job, other, home.path(), &options, silent()).await.unwrap_err();
    assert!(error.to_string().contains("the mirror of script"), "{error}");
}
