//! The source against real servers.
#![allow(clippy::unwrap_used)]

mod common;

use bson::doc;
use common::{Place, document, hard_documents};
use futures::TryStreamExt;
use model::{Consistency, Kind, Plan, ScanItem, Selection, Source};
use mongo::{MongoSource, Server};
use std::collections::BTreeSet;
use std::sync::Arc;
use testkit::mongod::{Mongod, Options};
use testkit::source::{MemoryAttachments, conformance_of_keys, read_everything};

fn text_of(key: &[u8]) -> Option<String> {
    Some(mongo::keys::text(key))
}

async fn sample(place: &Place) {
    for bytes in hard_documents() {
        place.insert_raw("hard", &bytes).await;
    }
    place.insert("books", (0..3000).map(|i| doc! { "title": format!("Book {i}"), "n": i }).collect()).await;
    place.run(doc! { "create": "capped", "capped": true, "size": 100_000 }).await;
    place.insert("capped", (0..50).rev().map(|i| doc! { "_id": i }).collect()).await;
    place.run(doc! { "create": "with.dots and ünï/slash" }).await;
    place.insert("with.dots and ünï/slash", vec![doc! { "_id": 1 }]).await;
    place.run(doc! { "create": "empty" }).await;
    place.run(doc! { "create": "clustered", "clusteredIndex": { "key": { "_id": 1 }, "unique": true } }).await;
    place.insert("clustered", (0..20).map(|i| doc! { "_id": i }).collect()).await;
    place.run(doc! { "create": "metrics", "timeseries": { "timeField": "t", "metaField": "m" } }).await;
    let measures = (0..100).map(|i| doc! { "t": bson::DateTime::from_millis(i * 60_000), "m": i % 3, "v": i });
    place.insert("metrics", measures.collect()).await;
    place.run(doc! { "create": "view", "viewOn": "books", "pipeline": [{ "$match": { "n": 1 } }] }).await;
    place
        .run(doc! { "createIndexes": "books", "indexes": [{ "key": { "title": "text", "n": 1 }, "name": "t" }] })
        .await;
}

#[tokio::test]
async fn a_replica_set_keeps_the_promises() {
    let place = Place::new().await;
    sample(&place).await;
    conformance_of_keys(|| Arc::new(MongoSource::new(place.server())), text_of).await;
    conformance_of_keys(|| Arc::new(MongoSource::new(place.server()).by_id(true)), text_of).await;
}

#[tokio::test]
async fn a_standalone_keeps_the_promises() {
    let place = Place::on(Arc::new(Mongod::start(Options { newest: true, ..Options::default() }))).await;
    sample(&place).await;
    conformance_of_keys(|| Arc::new(MongoSource::new(place.server())), text_of).await;
    let source = MongoSource::new(place.server());
    let plan = source.plan(&Selection::default(), None).await.unwrap();
    let Plan::Scan { start, at, consistency, .. } = plan else { panic!("a scan") };
    assert_eq!((start, at, consistency), (None, None, Consistency::PerDocument));
}

#[tokio::test]
async fn every_type_comes_byte_for_byte() {
    let place = Place::new().await;
    let documents = hard_documents();
    for bytes in &documents {
        place.insert_raw("hard", bytes).await;
    }
    for by_id in [false, true] {
        let source = MongoSource::new(place.server()).by_id(by_id);
        let all = read_everything(&source, &Selection::default(), Arc::default()).await.unwrap();
        let found: BTreeSet<_> = all.of(&format!("{}.hard", place.name)).iter().map(|e| e.body.clone()).collect();
        assert_eq!(found, documents.iter().cloned().collect::<BTreeSet<_>>());
    }
}

#[tokio::test]
async fn ranges_together_give_everything_once() {
    let place = Place::new().await;
    let filler = "x".repeat(9000);
    for from in (0..18_000).step_by(3000) {
        place.insert("large", (from..from + 3000).map(|i| doc! { "_id": i, "filler": &filler }).collect()).await;
    }
    for by_id in [false, true] {
        let source = MongoSource::new(place.server()).concurrency(4).by_id(by_id);
        let Plan::Scan { parts, .. } = source.plan(&Selection::default(), None).await.unwrap() else { panic!() };
        assert!(parts.len() > 1, "{} parts", parts.len());
        let mut keys = Vec::new();
        for part in &parts {
            let mut items = source.read(part, Arc::new(MemoryAttachments::default())).await.unwrap();
            let before = keys.len();
            while let Some(item) = items.try_next().await.unwrap() {
                if let ScanItem::Batch(batch) = item {
                    keys.extend((0..batch.len()).map(|i| batch.key_of(i).to_vec()));
                }
            }
            assert!(keys.len() > before, "no range is empty");
        }
        let unique: BTreeSet<_> = keys.iter().collect();
        assert_eq!((keys.len(), unique.len()), (18_000, 18_000), "by_id: {by_id}");
    }
}

#[tokio::test]
async fn a_scan_sees_one_time() {
    let place = Place::new().await;
    place.insert("a", (0..1000).map(|i| doc! { "_id": i }).collect()).await;
    place.insert("b", vec![doc! { "_id": 1, "state": "old" }]).await;
    place.insert("gone", vec![doc! { "_id": 1 }]).await;
    place.insert("old_name", vec![doc! { "_id": 1 }]).await;
    let source = MongoSource::new(place.server());
    let Plan::Scan { parts, start, at, consistency, .. } = source.plan(&Selection::default(), None).await.unwrap()
    else {
        panic!()
    };
    assert!(start.is_some() && at.is_some());
    assert_eq!(consistency, Consistency::OneTime);
    // All of this comes after the plan's time.
    place.insert("a", vec![doc! { "_id": "new" }]).await;
    place.run(doc! { "delete": "a", "deletes": [{ "q": { "_id": 5 }, "limit": 1 }] }).await;
    place.insert("a", vec![doc! { "_id": 5, "reinserted": true }]).await;
    place.run(doc! { "update": "b", "updates": [{ "q": {}, "u": { "$set": { "state": "new" } } }] }).await;
    place.run(doc! { "drop": "gone" }).await;
    place.insert("gone", vec![doc! { "_id": "another collection of the same name" }]).await;
    let rename =
        doc! { "renameCollection": format!("{}.old_name", place.name), "to": format!("{}.new_name", place.name) };
    Server::new(place.mongod.url(), None).admin(rename).await.unwrap();
    for part in &parts {
        let name = part.collection.name.split_once('.').unwrap().1.to_owned();
        let items: Vec<ScanItem> =
            source.read(part, Arc::new(MemoryAttachments::default())).await.unwrap().try_collect().await.unwrap();
        let bodies: Vec<Vec<u8>> = items
            .iter()
            .filter_map(|i| if let ScanItem::Batch(b) = i { Some(b) } else { None })
            .flat_map(|b| (0..b.len()).map(|i| b.body_of(i).to_vec()))
            .collect();
        let is_gone = items.iter().any(|i| matches!(i, ScanItem::Gone));
        let renamed = items.iter().find_map(|i| if let ScanItem::Catalog(c) = i { Some(c.name.clone()) } else { None });
        match name.as_str() {
            "a" => {
                assert_eq!(bodies.len(), 1000);
                assert!(bodies.contains(&document(&[b"\x10_id\0\x05\0\0\0"])), "the one that was deleted later");
            }
            "b" => assert_eq!(bodies, [doc! { "_id": 1, "state": "old" }.to_vec().unwrap()]),
            // Read as it was, or told to be gone: never another collection's documents.
            "gone" => assert!(is_gone || bodies.len() == 1 && bodies[0] == doc! { "_id": 1 }.to_vec().unwrap()),
            "old_name" => {
                assert_eq!(bodies.len(), 1);
                assert!(renamed.is_none_or(|n| n.ends_with(".new_name")));
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn beyond_the_snapshot_window_reading_goes_on() {
    let arguments = vec!["--setParameter".into(), "minSnapshotHistoryWindowInSeconds=1".into()];
    let mongod = Arc::new(Mongod::start(Options { arguments, ..Options::replica_set() }));
    let place = Place::on(mongod).await;
    let filler = "x".repeat(40_000);
    for from in (0..3000).step_by(300) {
        place.insert("large", (from..from + 300).map(|i| doc! { "_id": i, "filler": &filler }).collect()).await;
    }
    let source = MongoSource::new(place.server()).concurrency(1);
    let Plan::Scan { parts, .. } = source.plan(&Selection::default(), None).await.unwrap() else { panic!() };
    let mut items = source.read(&parts[0], Arc::new(MemoryAttachments::default())).await.unwrap();
    let (mut seen, mut times, mut batches) = (BTreeSet::new(), BTreeSet::new(), 0);
    while let Some(item) = items.try_next().await.unwrap() {
        match item {
            ScanItem::Progress { true_at } => drop(times.insert(true_at)),
            ScanItem::Batch(batch) => {
                for i in 0..batch.len() {
                    assert!(seen.insert(batch.key_of(i).to_vec()), "no document comes twice");
                }
                batches += 1;
                if batches < 4 {
                    // Where the reading stands, what it goes on after, and what it has passed go away.
                    let last = i32::from_le_bytes(batch.key_of(batch.len() - 1)[5..9].try_into().unwrap());
                    let gone = doc! { "q": { "_id": { "$in": [last, last - 1, last - 300] } }, "limit": 0 };
                    place.run(doc! { "delete": "large", "deletes": [gone] }).await;
                    place.run(doc! { "insert": "large", "documents": [{ "_id": format!("new {last}") }] }).await;
                    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
                    place.run(doc! { "insert": "other", "documents": [{}] }).await;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(times.len() > 1, "the snapshot's time was renewed");
    for i in 0..3000 {
        let key = mongo::keys::key(&bson::Bson::Int32(i)).unwrap();
        let left = place.database.collection::<bson::Document>("large").find_one(doc! { "_id": i }).await.unwrap();
        assert!(left.is_none() || seen.contains(&key), "{i} is there");
    }
}

#[tokio::test]
async fn a_server_that_restarts_is_waited_for() {
    let mongod = Arc::new(Mongod::start(Options::replica_set()));
    let place = Place::on(mongod.clone()).await;
    let filler = "x".repeat(40_000);
    for from in (0..1500).step_by(300) {
        place.insert("large", (from..from + 300).map(|i| doc! { "_id": i, "filler": &filler }).collect()).await;
    }
    let source = MongoSource::new(place.server()).concurrency(1);
    let Plan::Scan { parts, .. } = source.plan(&Selection::default(), None).await.unwrap() else { panic!() };
    let mut items = source.read(&parts[0], Arc::new(MemoryAttachments::default())).await.unwrap();
    let (mut seen, mut killed) = (BTreeSet::new(), false);
    while let Some(item) = items.try_next().await.unwrap() {
        if let ScanItem::Again(parts) = item {
            // The numbers of records that this went on after may be others now.
            assert!(killed);
            seen.clear();
            items = source.read(&parts[0], Arc::new(MemoryAttachments::default())).await.unwrap();
        } else if let ScanItem::Batch(batch) = item {
            assert_eq!(batch.kind, Kind::Document);
            for i in 0..batch.len() {
                assert!(seen.insert(batch.key_of(i).to_vec()), "no document comes twice");
            }
            if !killed {
                killed = true;
                let mongod = mongod.clone();
                tokio::task::spawn_blocking(move || {
                    mongod.kill();
                    mongod.run();
                    mongod.await_primary();
                })
                .await
                .unwrap();
            }
        }
    }
    assert_eq!(seen.len(), 1500);
}
