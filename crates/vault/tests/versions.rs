//! Generated histories: the versions of each document, and what changed between any two times, are
//! those of a simple model, however the history was written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use common::*;
use futures::TryStreamExt;
use model::{
    BatchBuilder, ChangeBatch, CollectionId, CollectionInfo, Consistency, Encoding, Engine, EngineTime, FeedKind,
    FixedClock, Kind, Patcher, Position, Result, Selection,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use testkit::faulty::CountingStorage;
use vault::storage::{MemoryStorage, Storage};
use vault::{
    BackupOptions, Change, CollectionChange, Difference, Flush, PointDetails, Run, Vault, Version, Wanted, WriteOutcome,
};

/// A patch of this test's engine appends its text.
struct Append;

impl Patcher for Append {
    fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()> {
        into.extend_from_slice(body);
        into.extend_from_slice(patch);
        Ok(())
    }
}

fn patcher() -> Option<Arc<dyn Patcher>> {
    Some(Arc::new(Append))
}

const NAMES: [&str; 2] = ["books", "loans"];

#[derive(Debug, Clone, PartialEq)]
enum Op {
    Put(u8, u8),
    Patch(u8, u8),
    Delete(u8),
    Drop,
    Options(u8),
    Rename,
}

type Docs = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Clone, Default, PartialEq)]
struct Collection {
    name: String,
    options: u8,
    docs: Docs,
}

/// Collections by identity.
type Db = BTreeMap<String, Collection>;

/// What happened at which time, to which collection.
#[derive(Debug, Clone)]
struct Event {
    time: u64,
    id: String,
    op: Op,
}

#[derive(Debug, Clone)]
struct History(Vec<Event>);

impl History {
    /// Keeps of some wishes what an engine could do; a collection that is dropped comes back under
    /// another identity.
    fn possible(wishes: Vec<(bool, usize, Op)>, renames: bool) -> History {
        let mut events: Vec<Event> = Vec::new();
        let mut ids = [0, 0];
        let mut db = Db::new();
        let mut time = 10;
        for (together, which, op) in wishes {
            let id = format!("{}{}", NAMES[which], ids[which]);
            let docs = db.get(&id).map(|c| &c.docs);
            let has = |key: &u8| docs.is_some_and(|d| d.contains_key(&key_of(*key)));
            let fits = match &op {
                Op::Put(..) => true,
                Op::Patch(key, _) | Op::Delete(key) => has(key),
                Op::Rename => renames && docs.is_some(),
                Op::Drop | Op::Options(_) => docs.is_some(),
            };
            if !fits {
                continue;
            }
            let is_ddl = matches!(op, Op::Drop | Op::Options(_) | Op::Rename) || docs.is_none();
            let after_ddl = events.last().is_none_or(|e| matches!(e.op, Op::Drop | Op::Options(_) | Op::Rename));
            if !together || is_ddl || after_ddl {
                time += 1;
            }
            ids[which] += u32::from(op == Op::Drop);
            let event = Event { time, id, op };
            apply(&mut db, &event);
            events.push(event);
        }
        History(events)
    }

    fn at(&self, time: u64) -> Db {
        let mut db = Db::new();
        self.0.iter().filter(|e| e.time <= time).for_each(|e| apply(&mut db, e));
        db
    }
}

fn apply(db: &mut Db, Event { id, op, .. }: &Event) {
    let name = id.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let collection = db.entry(id.clone()).or_insert_with(|| Collection { name, ..Collection::default() });
    match op {
        Op::Put(key, v) => drop(collection.docs.insert(key_of(*key), vec![b'p', *v])),
        Op::Patch(key, v) => collection.docs.get_mut(&key_of(*key)).unwrap().extend([b'+', *v]),
        Op::Delete(key) => drop(collection.docs.remove(&key_of(*key))),
        Op::Options(to) => collection.options = *to,
        Op::Rename => collection.name.push('x'),
        Op::Drop => drop(db.remove(id)),
    }
}

fn key_of(key: u8) -> Vec<u8> {
    vec![b'k', key]
}

fn info_of(id: &str, collection: &Collection) -> CollectionInfo {
    let options = serde_json::json!({ "o": collection.options });
    CollectionInfo { id: CollectionId::new(id), name: collection.name.clone(), options, ordered: false }
}

fn at(time: u64) -> EngineTime {
    EngineTime { order: time, millis: time as i64 / 3 * 3 }
}

fn position(time: u64) -> Position {
    Position(time.to_string())
}

/// What a feed gives for the changes after one time up to another.
fn flush(history: &History, after: u64, until: u64) -> Flush {
    let mut changes: Vec<ChangeBatch> = Vec::new();
    let mut catalog = Vec::new();
    for Event { time, id, op } in history.0.iter().filter(|e| after < e.time && e.time <= until) {
        if !history.at(time - 1).contains_key(id) && history.at(*time).contains_key(id) {
            let made = (CollectionId::new(id), Some(info_of(id, &history.at(*time)[id])), at(*time));
            if !catalog.contains(&made) {
                catalog.push(made);
            }
        }
        let (kind, key, body) = match op {
            Op::Put(key, v) => (Kind::Document, *key, vec![b'p', *v]),
            Op::Patch(key, v) => (Kind::Patch, *key, vec![b'+', *v]),
            Op::Delete(key) => (Kind::Tombstone, *key, vec![]),
            Op::Options(_) | Op::Rename => {
                catalog.push((CollectionId::new(id), Some(info_of(id, &history.at(*time)[id])), at(*time)));
                continue;
            }
            Op::Drop => {
                catalog.push((CollectionId::new(id), None, at(*time)));
                continue;
            }
        };
        let mut builder = BatchBuilder::new(CollectionId::new(id), kind, Encoding::Bin);
        builder.push(&key_of(key), &body);
        changes.push(ChangeBatch { batch: builder.take(), times: vec![at(*time)] });
    }
    Flush { to: position(until), time: at(until), changes, catalog }
}

/// What one run does.
#[derive(Debug, Clone)]
struct Doing {
    /// Reads everything in two pieces, the second one so much later.
    scan: Option<u64>,
    compare: bool,
    /// How many times each flush takes in; none: the run only scans.
    flushes: Vec<u64>,
    /// It dies before its point.
    dies: bool,
    /// It begins that much before the last point.
    overlap: u64,
}

fn doing() -> impl Strategy<Value = Doing> {
    let scan = prop_oneof![2 => Just(None), 1 => (0..4u64).prop_map(Some)];
    let flushes = proptest::collection::vec(0..9u64, 1..6);
    (scan, any::<bool>(), flushes, 0..4u8, 0..4u64).prop_map(|(scan, compare, flushes, dies, overlap)| Doing {
        scan,
        compare,
        flushes,
        dies: dies == 0,
        overlap,
    })
}

fn wishes() -> impl Strategy<Value = Vec<(bool, usize, Op)>> {
    let key = 0..5u8;
    let what = prop_oneof![
        50 => (key.clone(), 0..4u8).prop_map(|(k, v)| Op::Put(k, v)),
        30 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Patch(k, v)),
        20 => key.prop_map(Op::Delete),
        2 => Just(Op::Drop),
        2 => any::<u8>().prop_map(Op::Options),
        1 => Just(Op::Rename),
    ];
    proptest::collection::vec((proptest::bool::weighted(0.3), 0..2usize, what), 5..80)
}

async fn start(vault: &Vault, feed: FeedKind, compare: bool) -> Run {
    let description = model::Description { feed, ..description("s", &World::new()) };
    let options = BackupOptions { compare, workers: 1, ..BackupOptions::default() };
    vault.start_run(&description, options).await.unwrap()
}

/// Reads everything, the keys from 2 on at a later time; gives that.
async fn scan(run: &Run, history: &History, time: u64, later: u64) -> u64 {
    run.scanned_at(at(time)).await;
    for (id, collection) in history.at(time) {
        let info = info_of(&id, &collection);
        run.begin(&info).await.unwrap();
        for (piece, time) in [time, time + later].into_iter().enumerate() {
            run.read_at(&info.id, at(time)).await;
            let db = history.at(time);
            let Some(collection) = db.get(&id) else {
                run.discard(&info.id).await;
                break;
            };
            let mut builder = BatchBuilder::new(info.id.clone(), Kind::Document, Encoding::Bin);
            for (key, body) in collection.docs.iter().filter(|(key, _)| usize::from(key[1] >= 2) == piece) {
                builder.push(key, body);
            }
            assert_eq!(run.write(builder.take()).await.unwrap(), WriteOutcome::Written);
        }
        run.end(&info.id).await.unwrap();
    }
    time + later
}

fn details(time: u64) -> PointDetails {
    let consistency = Consistency::OneTime;
    PointDetails { time: at(time), consistency, position: Some(position(time)), gap: None, skipped: vec![] }
}

/// The first time whose state is known, and the last; with them the source's tag.
async fn follow(vault: &Vault, clock: &FixedClock, history: &History, doings: &[Doing]) -> (String, u64, u64) {
    let (mut tag, mut first, mut reached, mut last) = (String::new(), None, 12, 12);
    for (number, doing) in doings.iter().enumerate() {
        clock.advance(1000);
        let run = start(vault, FeedKind::EveryChange, doing.compare).await;
        // As an engine does, it goes on from the last point, or further back.
        let from = if number == 0 { 12 } else { last - doing.overlap.min(last - 11) };
        let mut least = last;
        let scan_of = if run.has_base() { doing.scan } else { Some(doing.scan.unwrap_or(0)) };
        if let Some(later) = scan_of {
            least = scan(&run, history, last, later).await;
        }
        run.follow_from(&position(from), at(from)).await.unwrap();
        let mut time = from;
        let rest = least.saturating_sub(from + doing.flushes.iter().sum::<u64>());
        for length in doing.flushes.iter().copied().chain([rest]) {
            run.append(flush(history, time, time + length)).await.unwrap();
            time += length;
        }
        reached = reached.max(time);
        // The first one makes the point that everything builds on.
        if doing.dies && number > 0 {
            drop(run);
            continue;
        }
        tag = run.commit(details(time)).await.unwrap().0.source;
        first = first.or(Some(least));
        last = time;
    }
    (tag, first.unwrap(), last)
}

async fn vault_of(seed: u64, plain: bool) -> (Vault, Arc<FixedClock>, Arc<CountingStorage>) {
    let keys = Keys::new(seed);
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
    let counting = CountingStorage::new(storage);
    (init(counting.clone(), &keys, plain).await.unwrap(), keys.clock, counting)
}

async fn find(vault: &Vault, name: &str, key: u8) -> Vec<Version> {
    let keys = |_: &Engine| vec![key_of(key)];
    let wanted = Wanted { collection: name, keys: &keys, patcher: &|_| patcher(), source: None };
    vault.find_any(&wanted).await.unwrap()
}

/// Bodies of all documents by name of the collection and key: where a collection was made anew, of the
/// one that is there.
fn body_at(history: &History, name: &str, key: u8, time: u64) -> Option<Vec<u8>> {
    history.at(time).into_values().find(|c| c.name == name)?.docs.remove(&key_of(key))
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What differs, by the model: collections by what people call them, with what became of them.
fn expected(older: &Db, newer: &Db) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut compare = |name: &str, before: &Docs, now: &Docs| {
        for key in before.keys().chain(now.keys()) {
            let change = match (before.get(key), now.get(key)) {
                (None, Some(_)) => Change::Added,
                (Some(_), None) => Change::Deleted,
                (before, now) if before != now => Change::Changed,
                _ => continue,
            };
            all.insert(format!("{name} {} {change:?}", key[1]));
        }
    };
    let none = Docs::new();
    let mut collections = Vec::new();
    let mut taken = BTreeSet::new();
    for (id, now) in newer {
        let left = || older.iter().find(|(old, c)| !newer.contains_key(*old) && c.name == now.name);
        let before = older.get_key_value(id).or_else(left);
        taken.extend(before.map(|(id, _)| id.clone()));
        compare(&now.name, before.map_or(&none, |(_, c)| &c.docs), &now.docs);
        match before {
            None => collections.push((now.name.clone(), CollectionChange::Created)),
            Some((old, before)) => {
                if old != id {
                    collections.push((now.name.clone(), CollectionChange::Recreated));
                }
                if before.name != now.name {
                    collections.push((now.name.clone(), CollectionChange::Renamed(before.name.clone())));
                }
                if before.options != now.options {
                    collections.push((now.name.clone(), CollectionChange::Options));
                }
            }
        }
    }
    for (_, before) in older.iter().filter(|(id, _)| !taken.contains(*id)) {
        compare(&before.name, &before.docs, &none);
        collections.push((before.name.clone(), CollectionChange::Dropped));
    }
    all.extend(collections.into_iter().map(|(name, change)| format!("{name} {change:?}")));
    all
}

async fn differences(vault: &Vault, older: &vault::State, newer: &vault::State, memory: usize) -> BTreeSet<String> {
    let all: Vec<Difference> = vault.diff(older, newer, memory).try_collect().await.unwrap();
    let mut set = BTreeSet::new();
    for difference in all {
        let text = match difference {
            Difference::Collection { name, change } => format!("{name} {change:?}"),
            Difference::Document { collection, space, key, change } => {
                assert_eq!(space, "document");
                format!("{collection} {} {change:?}", key[1])
            }
        };
        assert!(set.insert(text.clone()), "{text} came twice");
    }
    set
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn versions_are_those_that_there_were(
        wishes in wishes(),
        doings in proptest::collection::vec(doing(), 1..7),
        plain: bool,
    ) {
        let history = History::possible(wishes, false);
        block(async {
            let (vault, clock, _) = vault_of(1, plain).await;
            let (_, first, last) = follow(&vault, &clock, &history, &doings).await;
            for name in NAMES {
                let was_there = (first..=last).any(|t| history.at(t).values().any(|c| c.name == name));
                if !was_there {
                    continue;
                }
                for key in 0..5 {
                    let versions = find(&vault, name, key).await;
                    assert!(versions.windows(2).all(|v| v[0].time >= v[1].time), "newest first");
                    for pair in versions.windows(2) {
                        assert!((pair[0].deleted, &pair[0].body) != (pair[1].deleted, &pair[1].body), "{pair:?}");
                    }
                    for version in &versions {
                        let body = (!version.deleted).then(|| version.body.to_vec());
                        let time = version.time.order;
                        assert_eq!(body, body_at(&history, name, key, time), "{name} {key} at {time}: {versions:?}");
                        let came = version.log.is_none() || history.0.iter().any(|e| e.time == time);
                        assert!(came, "{version:?}");
                    }
                    for time in first..=last {
                        let version = versions.iter().find(|v| v.time.order <= time);
                        let body = version.filter(|v| !v.deleted).map(|v| v.body.to_vec());
                        assert_eq!(body, body_at(&history, name, key, time), "{name} {key} at {time}: {versions:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn differences_are_those_that_there_are(
        wishes in wishes(),
        doings in proptest::collection::vec(doing(), 1..7),
        times in proptest::collection::vec((0..100u64, 0..100u64), 6),
        memory in prop_oneof![Just(100usize), Just(1 << 20)],
        plain: bool,
    ) {
        let history = History::possible(wishes, true);
        block(async {
            let (vault, clock, _) = vault_of(2, plain).await;
            let (tag, first, last) = follow(&vault, &clock, &history, &doings).await;
            for (a, b) in times {
                let (a, b) = (first + a % (last - first + 1), first + b % (last - first + 1));
                let state = async |t: u64| {
                    vault.resolve_at(&tag, at(t), &Selection::default(), patcher()).await
                };
                // A time that only a dead run's chain knows may not be reached from the scan before it.
                let (Ok(older), Ok(newer)) = (state(a).await, state(b).await) else { continue };
                let got = differences(&vault, &older, &newer, memory).await;
                let wanted = expected(&history.at(a), &history.at(b));
                assert_eq!(got, wanted, "from {a} to {b}");
            }
        });
    }

    #[test]
    fn points_alone_tell_what_they_show(
        wishes in wishes(),
        scans in proptest::collection::vec((0..20u64, any::<bool>()), 2..6),
    ) {
        let history = History::possible(wishes, true);
        block(async {
            let (vault, clock, _) = vault_of(3, true).await;
            let mut time = 12;
            let mut times = Vec::new();
            for (later, compare) in scans {
                clock.advance(1000);
                let run = start(&vault, FeedKind::LatestState, compare).await;
                scan(&run, &history, time, 0).await;
                run.commit(PointDetails { position: None, ..details(time) }).await.unwrap();
                times.push(time);
                time += later + 1;
            }
            let mut points = vault.points().await.unwrap().points;
            points.sort_by_key(|p| p.manifest.time);
            for (older, a) in points.iter().zip(&times) {
                for (newer, b) in points.iter().zip(&times) {
                    let selection = Selection::default();
                    let older = vault.resolve(older, &selection, None).await.unwrap();
                    let newer = vault.resolve(newer, &selection, None).await.unwrap();
                    let got = differences(&vault, &older, &newer, 1 << 20).await;
                    assert_eq!(got, expected(&history.at(*a), &history.at(*b)), "from {a} to {b}");
                }
            }
        });
    }
}

#[test]
fn one_document_among_many_flushes_is_a_few_reads() {
    block(async {
        let (vault, clock, counting) = vault_of(4, false).await;
        let mut expected = Vec::new();
        for run_number in 0..2u64 {
            clock.advance(1000);
            let run = start(&vault, FeedKind::EveryChange, false).await;
            let begin = 1000 + run_number * 5000;
            if run_number == 0 {
                run.scanned_at(at(begin)).await;
                let info = info_of("books0", &Collection { name: "books".into(), ..Collection::default() });
                run.begin(&info).await.unwrap();
                run.end(&info.id).await.unwrap();
            }
            run.follow_from(&position(begin), at(begin)).await.unwrap();
            for i in 1..=5000 {
                let time = begin + i;
                let mut builder = BatchBuilder::new(CollectionId::new("books0"), Kind::Document, Encoding::Bin);
                for n in 0..3u64 {
                    let key = ((i * 3 + n) * 7919 % 4000).to_le_bytes();
                    let body = [&key[..], &time.to_le_bytes(), &[n as u8; 100]].concat();
                    if key == 77u64.to_le_bytes() {
                        expected.push((time, body.clone()));
                    }
                    builder.push(&key, &body);
                }
                let changes = vec![ChangeBatch { batch: builder.take(), times: vec![at(time); 3] }];
                let flush = Flush { to: position(time), time: at(time), changes, catalog: vec![] };
                run.append(flush).await.unwrap();
            }
            run.commit(details(begin + 5000)).await.unwrap();
        }
        let before = counting.operations();
        let began = std::time::Instant::now();
        let keys = |_: &Engine| vec![77u64.to_le_bytes().to_vec()];
        let wanted = Wanted { collection: "books", keys: &keys, patcher: &|_| None, source: None };
        let versions = vault.find_any(&wanted).await.unwrap();
        let (took, after) = (began.elapsed(), counting.operations());
        let mut got: Vec<_> = versions.iter().map(|v| (v.time.order, v.body.to_vec())).collect();
        got.reverse();
        assert_eq!(got, expected);
        assert!(expected.len() > 5);
        let (reads, bytes) = (after.reads - before.reads, after.bytes_read - before.bytes_read);
        println!("{} versions: {reads} reads, {bytes} bytes, {took:?}", versions.len());
        assert!(reads <= 50, "{reads} reads");
    });
}
