//! Generated histories: what a point and the change log resolve to at any time equals a simple
//! model, whenever and in whatever pieces the scan read.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use futures::TryStreamExt;
use model::{
    BatchBuilder, ChangeBatch, CollectionId, Consistency, Encoding, EngineTime, Kind, Patcher, Position, Result,
    Selection,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use vault::storage::{MemoryStorage, Storage};
use vault::{BackupOptions, Flush, PointDetails, Vault};

/// A patch of this test's engine appends its text.
struct Append;

impl Patcher for Append {
    fn apply(&self, body: &[u8], patch: &[u8]) -> Result<Vec<u8>> {
        Ok([body, patch].concat())
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8),
    Patch(u8),
    Delete,
}

/// Events: (key, what); event i happens at time 10 + i.
type History = Vec<(u8, Op)>;
type Docs = BTreeMap<Vec<u8>, Vec<u8>>;

fn op() -> impl Strategy<Value = (u8, Op)> {
    let what = prop_oneof![
        3 => any::<u8>().prop_map(Op::Put),
        3 => any::<u8>().prop_map(Op::Patch),
        2 => Just(Op::Delete),
    ];
    (0..8u8, what)
}

/// Histories in which only documents that exist are patched or deleted, as an engine's are.
fn possible(history: History) -> History {
    let mut there = [false; 8];
    history
        .into_iter()
        .filter(|(key, op)| {
            let was = there[usize::from(*key)];
            there[usize::from(*key)] = !matches!(op, Op::Delete);
            let fits = matches!(op, Op::Put(_)) || was;
            if !fits {
                there[usize::from(*key)] = was;
            }
            fits
        })
        .collect()
}

fn at(time: u64) -> EngineTime {
    EngineTime { order: time, millis: time as i64 }
}

/// The documents after all events up to a time.
fn state(history: &History, time: u64) -> Docs {
    let mut docs = Docs::new();
    for (i, (key, op)) in history.iter().enumerate().filter(|(i, _)| 10 + *i as u64 <= time) {
        let _ = i;
        let key = vec![b'k', *key];
        match op {
            Op::Put(v) => drop(docs.insert(key, vec![b'p', *v])),
            Op::Patch(v) => docs.get_mut(&key).unwrap().extend([b'+', *v]),
            Op::Delete => drop(docs.remove(&key)),
        }
    }
    docs
}

/// Scans the collection in pieces, each key range at a time of its own.
async fn scan(vault: &Vault, history: &History, times: &[u64]) -> String {
    let world = World::from([("c".into(), Model::default())]);
    let options = BackupOptions { compare: false, ..BackupOptions::default() };
    let run = vault.start_run(&description("s", &world), options).await.unwrap();
    let info = info("c", false);
    run.begin(&info).await.unwrap();
    for (piece, time) in times.iter().enumerate() {
        run.read_at(&info.id, at(*time)).await;
        let mut builder = BatchBuilder::new(info.id.clone(), Kind::Document, Encoding::Bin);
        for (key, body) in state(history, *time) {
            if usize::from(key[1]) * times.len() / 8 == piece {
                builder.push(&key, &body);
            }
        }
        run.write(builder.take()).await.unwrap();
    }
    run.end(&info.id).await.unwrap();
    let greatest = times.iter().max().copied().unwrap();
    let details = PointDetails {
        time: at(greatest),
        consistency: Consistency::PerDocument,
        position: None,
        gap: None,
        skipped: vec![],
    };
    run.commit(details).await.unwrap().0.source
}

async fn write_log(vault: &Vault, source: &str, history: &History, from: u64, flush: usize) {
    let mut log = vault.start_log(source, Encoding::Bin).await.unwrap();
    let events: Vec<(u64, &(u8, Op))> =
        history.iter().enumerate().map(|(i, e)| (10 + i as u64, e)).filter(|(t, _)| *t > from).collect();
    for events in events.chunks(flush) {
        let mut changes = Vec::new();
        for (time, (key, op)) in events {
            let (kind, body) = match op {
                Op::Put(v) => (Kind::Document, vec![b'p', *v]),
                Op::Patch(v) => (Kind::Patch, vec![b'+', *v]),
                Op::Delete => (Kind::Tombstone, vec![]),
            };
            let mut builder = BatchBuilder::new(CollectionId::new("c"), kind, Encoding::Bin);
            builder.push(&[b'k', *key], &body);
            changes.push(ChangeBatch { batch: builder.take(), times: vec![at(*time)] });
        }
        let time = at(events.last().unwrap().0);
        let position = |t: u64| Position(t.to_string());
        log.append(Flush { from: position(events[0].0 - 1), to: position(time.order), time, changes, catalog: vec![] })
            .await
            .unwrap();
    }
}

async fn resolved(vault: &Vault, source: &str, time: u64) -> Result<Docs> {
    let state = vault.resolve_at(source, at(time), &Selection::default(), Some(Arc::new(Append))).await?;
    let mut docs = Docs::new();
    for collection in state.collections() {
        let mut batches = state.read(collection);
        while let Some(batch) = batches.try_next().await? {
            for i in 0..batch.len() {
                assert!(docs.insert(batch.key_of(i).to_vec(), batch.body_of(i).to_vec()).is_none(), "a key came twice");
            }
        }
    }
    Ok(docs)
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_time_resolves_to_what_was_there(
        history in proptest::collection::vec(op(), 1..60).prop_map(possible),
        first in 0..30u64,
        spread in proptest::collection::vec(0..15u64, 1..4),
        flush in 1..9usize,
        plain: bool,
    ) {
        block(async {
            let keys = Keys::new(1);
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
            let vault = init(storage, &keys, plain).await.unwrap();
            let times: Vec<u64> = spread.iter().map(|s| 5 + first + s).collect();
            let (earliest, greatest) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            let source = scan(&vault, &history, &times).await;
            // The log begins before the scan did.
            write_log(&vault, &source, &history, earliest.saturating_sub(2), flush).await;
            for time in (*greatest..greatest + 63).step_by(7) {
                let got = resolved(&vault, &source, time).await.unwrap();
                assert_eq!(got, state(&history, time), "at {time}, scanned at {times:?}");
            }
            assert!(resolved(&vault, &source, greatest - 1).await.is_err());
        });
    }
}

#[test]
fn a_patch_without_a_document_is_damage() {
    block(async {
        let keys = Keys::new(2);
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
        let vault = init(storage, &keys, true).await.unwrap();
        let source = scan(&vault, &vec![], &[20]).await;
        // Its put at time 10 is in no layer, and time 10 is before the scan, which did not see it.
        let history = vec![(1, Op::Put(0)), (1, Op::Delete)];
        write_log(&vault, &source, &history, 0, 5).await;
        assert!(resolved(&vault, &source, 40).await.unwrap().is_empty());
        let mut log = vault.start_log(&source, Encoding::Bin).await.unwrap();
        let mut builder = BatchBuilder::new(CollectionId::new("c"), Kind::Patch, Encoding::Bin);
        builder.push(b"k", b"+");
        let change = ChangeBatch { batch: builder.take(), times: vec![at(50)] };
        let position = Position("x".into());
        log.append(Flush {
            from: position.clone(),
            to: position,
            time: at(50),
            changes: vec![change],
            catalog: vec![],
        })
        .await
        .unwrap();
        let error = resolved(&vault, &source, 60).await.unwrap_err();
        assert_eq!(error.kind(), model::ErrorKind::Corrupt);
        assert!(error.to_string().contains("document k"), "{error}");
    });
}

#[test]
fn a_hole_in_the_log_is_found() {
    use futures::StreamExt;
    block(async {
        for lost in 0..3 {
            let keys = Keys::new(3);
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(keys.seams.clock.clone()));
            let vault = init(storage.clone(), &keys, false).await.unwrap();
            let source = scan(&vault, &vec![], &[5]).await;
            let history: History = (0..4).map(|i| (i, Op::Put(i))).collect();
            write_log(&vault, &source, &history, 0, 1).await;
            assert_eq!(resolved(&vault, &source, 50).await.unwrap().len(), 4);
            let names: Vec<_> =
                storage.list(&format!("history/{source}/log/")).await.unwrap().map(|e| e.unwrap().name).collect().await;
            let mut names: Vec<String> = names;
            names.sort();
            storage.delete(&names[lost]).await.unwrap();
            assert_eq!(resolved(&vault, &source, 50).await.unwrap_err().kind(), model::ErrorKind::Missing, "{lost}");
        }
    });
}
