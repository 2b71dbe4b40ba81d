//! What changed is resolved in as much memory as it may take: with little or much of it, the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::feed::{self, Append, History, Op, at, details, position};
use common::*;
use futures::TryStreamExt;
use model::{BatchBuilder, ChangeBatch, CollectionId, CollectionInfo, Encoding, ErrorKind, Kind, Patcher, Selection};
use proptest::prelude::*;
use std::sync::Arc;
use vault::storage::{MemoryStorage, Storage};
use vault::{BackupOptions, Flush, State, Vault, WriteOutcome};

fn patcher() -> Option<Arc<dyn Patcher>> {
    Some(Arc::new(Append))
}

async fn new_vault(plain: bool) -> Vault {
    let keys = Keys::new(1);
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
    init(storage, &keys, plain).await.unwrap()
}

fn id() -> CollectionId {
    CollectionId::new("many")
}

/// Keys in an order that is not that of their numbers.
fn key(number: u32) -> Vec<u8> {
    format!("{:08x}", number.wrapping_mul(0x9e37_79b9)).into_bytes()
}

type Documents = Vec<(Vec<u8>, Vec<u8>)>;

/// What becomes of each document, by its number: eight ways for those that were there, and two that
/// come later. The even half of the base is read at time 10, before any change, the odd half at 20.
struct Plan {
    count: u32,
    base: [Documents; 2],
    changes: Vec<ChangeBatch>,
    kept: Documents,
    last: Documents,
}

impl Plan {
    fn new(count: u32) -> Plan {
        let mut plan = Plan { count, base: [vec![], vec![]], changes: vec![], kept: vec![], last: vec![] };
        let body = |number: u32| format!("base {number}").into_bytes();
        let mut at_times: Vec<Vec<(u32, Kind, Vec<u8>)>> = vec![Vec::new(); 60];
        for half in [0, 1] {
            let first = half * count / 2;
            for number in first..first + count / 2 {
                let (put, patch) = (format!("put {number}").into_bytes(), format!(", {number}").into_bytes());
                let (mut now, mut comes_back) = (body(number), None);
                // In the second half this is in the document already.
                if number % 16 == 9 {
                    at_times[15].push((number, Kind::Patch, b" early".to_vec()));
                    now.extend(b" early");
                }
                plan.base[half as usize].push((key(number), if half == 1 { now.clone() } else { body(number) }));
                let time = 21 + (number.wrapping_mul(31) % 30) as usize;
                let mut change = |later: usize, kind: Kind, body: &[u8]| {
                    at_times[time + later].push((number, kind, body.to_vec()));
                };
                match number % 8 {
                    1 => {
                        change(0, Kind::Document, &put);
                        now = put;
                    }
                    2 => {
                        change(0, Kind::Patch, &patch);
                        change(1, Kind::Patch, b"!");
                        now.extend([&patch[..], b"!"].concat());
                    }
                    3 => {
                        change(0, Kind::Tombstone, b"");
                        continue;
                    }
                    4 => {
                        change(0, Kind::Patch, b"lost");
                        change(1, Kind::Document, &put);
                        change(2, Kind::Patch, &patch);
                        now = [&put[..], &patch].concat();
                    }
                    5 => {
                        change(0, Kind::Tombstone, b"");
                        change(1, Kind::Document, &put);
                        change(2, Kind::Patch, &patch);
                        comes_back = Some((time + 1, [&put[..], &patch].concat()));
                    }
                    _ => {}
                }
                match comes_back {
                    Some((time, body)) => plan.last.push((vec![time as u8], [key(number), body].concat())),
                    None => plan.kept.push((key(number), now)),
                }
            }
        }
        for number in count..count + count / 4 {
            let time = 21 + (number.wrapping_mul(17) % 30) as usize;
            at_times[time].push((number, Kind::Document, body(number)));
            at_times[time + 3].push((number, Kind::Patch, b" new".to_vec()));
            if number % 8 == 3 {
                at_times[time + 4].push((number, Kind::Tombstone, vec![]));
                continue;
            }
            plan.last.push((vec![time as u8], [key(number), [&body(number)[..], b" new"].concat()].concat()));
        }
        // In the order of time, and of one time in the order of numbers.
        plan.last.sort_by_key(|(time, _)| time.clone());
        plan.last = plan.last.drain(..).map(|(_, all)| (all[..8].to_vec(), all[8..].to_vec())).collect();
        for (time, mut all) in at_times.into_iter().enumerate() {
            // Put at one time: those that come back, by number, before those that are new.
            all.sort_by_key(|(number, ..)| *number);
            for kind in [Kind::Document, Kind::Patch, Kind::Tombstone] {
                let mut builder = BatchBuilder::new(id(), kind.clone(), Encoding::Bin);
                all.iter().filter(|c| c.1 == kind).for_each(|(number, _, body)| builder.push(&key(*number), body));
                let times = vec![at(time as u64); builder.len()];
                plan.changes.push(ChangeBatch { batch: builder.take(), times });
            }
        }
        plan
    }

    /// Scans, follows up to time 60 in flushes of so many times each; gives the state at the end.
    async fn resolve(&self, vault: &Vault, ordered: bool, length: u64) -> State {
        let info = CollectionInfo { id: id(), name: "many".into(), options: serde_json::Value::Null, ordered };
        let run = feed::start(vault, BackupOptions { level: 1, workers: 1, ..BackupOptions::default() }).await;
        run.scanned_at(at(10)).await;
        run.begin(&info).await.unwrap();
        for (documents, time) in self.base.iter().zip([10, 20]) {
            run.read_at(&id(), at(time)).await;
            for chunk in documents.chunks(5000) {
                let mut builder = BatchBuilder::new(id(), Kind::Document, Encoding::Bin);
                chunk.iter().for_each(|(key, body)| builder.push(key, body));
                assert_eq!(run.write(builder.take()).await.unwrap(), WriteOutcome::Written);
            }
        }
        run.end(&id()).await.unwrap();
        run.follow_from(&position(10), at(10)).await.unwrap();
        let mut time = 10;
        while time < 60 {
            let until = (time + length).min(60);
            let now = |c: &&ChangeBatch| c.times.first().is_some_and(|t| t.order > time && t.order <= until);
            let changes = self.changes.iter().filter(now).cloned().collect();
            run.append(Flush { to: position(until), time: at(until), changes, catalog: vec![] }).await.unwrap();
            time = until;
        }
        run.commit(details(60, None)).await.unwrap();
        let points = vault.points().await.unwrap();
        let source = points.points[0].name.source.clone();
        vault.resolve_at(&source, at(60), &Selection::default(), patcher()).await.unwrap()
    }

    async fn check(&self, state: &State, ordered: bool, memory: usize) {
        let state = state.clone().with_memory(memory);
        let batches: Vec<_> = state.read(&state.collections()[0]).try_collect().await.unwrap();
        let all = batches.iter().flat_map(|b| (0..b.len()).map(|i| (b.key_of(i).to_vec(), b.body_of(i).to_vec())));
        let (mut got, mut expected): (Documents, Documents) = (all.collect(), [&self.kept[..], &self.last].concat());
        if !ordered {
            got.sort();
            expected.sort();
        }
        let first = got.iter().zip(&expected).position(|(a, b)| a != b);
        let shown = first.map(|i| (String::from_utf8_lossy(&got[i].1), String::from_utf8_lossy(&expected[i].1)));
        assert!(first.is_none(), "of {} the {first:?} with {memory} bytes: {shown:?}", self.count);
        assert_eq!(got.len(), expected.len());
    }
}

#[test]
fn many_changed_keys_fit_into_little_memory() {
    feed::block(async {
        let plan = Plan::new(200_000);
        let state = plan.resolve(&new_vault(false).await, false, 10).await;
        for memory in [8 << 20, 256 << 20] {
            plan.check(&state, false, memory).await;
        }
    });
}

#[test]
fn an_ordered_collection_keeps_its_order_in_little_memory() {
    feed::block(async {
        let plan = Plan::new(20_000);
        let state = plan.resolve(&new_vault(true).await, true, 3).await;
        for memory in [200_000, 256 << 20] {
            plan.check(&state, true, memory).await;
        }
    });
}

#[test]
fn a_key_that_changes_all_the_time_is_no_matter() {
    feed::block(async {
        let vault = new_vault(true).await;
        let mut plan = Plan::new(16);
        // One document of the base, one that is put anew before, and one that comes back.
        for number in [0, 4, 5] {
            let mut builder = BatchBuilder::new(id(), Kind::Patch, Encoding::Bin);
            (0..50_000).for_each(|_| builder.push(&key(number), b"^\x01"));
            builder.push(&key(number), b"+");
            let times = vec![at(55); builder.len()];
            plan.changes.push(ChangeBatch { batch: builder.take(), times });
            let mut all = plan.kept.iter_mut().chain(&mut plan.last);
            all.find(|(k, _)| *k == key(number)).unwrap().1.push(b'+');
        }
        let state = plan.resolve(&vault, false, 50).await;
        for memory in [0, 50_000, 256 << 20] {
            plan.check(&state, false, memory).await;
        }
    });
}

#[test]
fn patches_need_somebody_who_applies_them() {
    feed::block(async {
        let vault = new_vault(true).await;
        Plan::new(16).resolve(&vault, false, 50).await;
        let source = vault.points().await.unwrap().points[0].name.source.clone();
        let state = vault.resolve_at(&source, at(60), &Selection::default(), None).await.unwrap();
        let read: Result<Vec<_>, _> = state.read(&state.collections()[0]).try_collect().await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

fn op() -> impl Strategy<Value = (bool, u8, Op)> {
    let key = 0..feed::KEYS;
    let what = prop_oneof![
        40 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Put(k, v)),
        40 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Patch(k, v)),
        15 => key.prop_map(Op::Delete),
        3 => Just(Op::Create),
        3 => Just(Op::Empty),
        1 => Just(Op::Drop),
    ];
    (proptest::bool::weighted(0.3), 0..feed::COLLECTIONS, what)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_memory_gives_what_there_was(
        wishes in proptest::collection::vec(op(), 30..150),
        scans in proptest::collection::vec(0..8u64, 1..4),
        follow in 1..40u64,
        grouped: bool,
    ) {
        let history = History::possible(wishes);
        feed::block(async {
            let vault = new_vault(true).await;
            let run = feed::start(&vault, BackupOptions { workers: 1, ..BackupOptions::default() }).await;
            let mut times: Vec<u64> = scans.iter().map(|t| 15 + t).collect();
            times.sort_unstable();
            let last = feed::scan(&run, &history, &times).await;
            run.follow_from(&position(times[0]), at(times[0])).await.unwrap();
            let mut time = times[0];
            while time < last + follow {
                run.append(feed::flush(&history, time, time + 5, grouped)).await.unwrap();
                time += 5;
            }
            run.commit(details(time, None)).await.unwrap();
            let source = vault.points().await.unwrap().points[0].name.source.clone();
            for at_time in [last, (last + time) / 2, time] {
                let state = vault.resolve_at(&source, at(at_time), &Selection::default(), patcher()).await.unwrap();
                for memory in [0, 3000, 20_000, 1 << 20] {
                    let db = feed::read(&state.clone().with_memory(memory)).await.unwrap();
                    assert_eq!(db, history.at(at_time), "at {at_time} with {memory} bytes");
                }
            }
        });
    }
}
