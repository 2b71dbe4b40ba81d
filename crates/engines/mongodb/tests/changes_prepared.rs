//! Transactions that were prepared first, as only shards have them: from an oplog that is written by
//! hand, on a server that does not use it itself.
#![allow(clippy::unwrap_used)]

mod common;
mod following;

use bson::{Document, Timestamp, doc};
use common::Place;
use following::Copy;
use futures::StreamExt;
use model::{CollectionId, CollectionInfo, ErrorKind, Position, Selection, Until};
use mongo::MongoSource;
use std::collections::BTreeMap;
use std::sync::Arc;
use testkit::mongod::{Mongod, Options};

const NONE: Timestamp = Timestamp { time: 0, increment: 0 };

fn at(increment: u32) -> Timestamp {
    Timestamp { time: 1_700_000_000, increment }
}

fn uuid() -> bson::Uuid {
    bson::Uuid::from_bytes([0xAA; 16])
}

fn entry(increment: u32, op: &str, o: Document) -> Document {
    doc! {
        "op": op, "ns": if op == "i" { "db.a" } else { "admin.$cmd" }, "o": o, "ts": at(increment), "t": 1i64, "v": 2i64,
        "wall": bson::DateTime::from_millis(1_700_000_000_000),
    }
}

fn write(increment: u32, id: i32) -> Document {
    let mut entry = entry(increment, "i", doc! { "_id": id, "at": increment as i32 });
    entry.insert("ui", uuid());
    entry
}

fn insert(id: i32) -> Document {
    doc! { "op": "i", "ns": "db.a", "ui": uuid(), "o": { "_id": id }, "o2": { "_id": id } }
}

/// An entry of a transaction.
fn part(increment: u32, number: i64, o: Document, prev: Timestamp) -> Document {
    let mut entry = entry(increment, "c", o);
    let session = doc! { "id": bson::Uuid::from_bytes([number as u8; 16]), "uid": "x" };
    entry.extend(doc! { "lsid": session, "txnNumber": number, "prevOpTime": { "ts": prev, "t": 1i64 } });
    entry
}

async fn place() -> Place {
    let place = Place::on(Arc::new(Mongod::start(Options::default()))).await;
    place.mongod.done("local", doc! { "create": "oplog.rs", "capped": true, "size": 10_000_000 });
    place
}

fn copy() -> Copy {
    let info = CollectionInfo {
        id: CollectionId::new("aa".repeat(16)),
        name: "db.a".into(),
        options: serde_json::Value::Null,
        ordered: false,
    };
    let held = following::Held { info: info.clone(), documents: BTreeMap::new(), read: 0 };
    let position = Position("oplog:1700000000,1;term=1;wall=1700000000000".into());
    Copy::new(Selection::default(), position, BTreeMap::from([(info.id, held)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transactions_come_when_they_are_committed() {
    let place = place().await;
    let begun = doc! { "applyOps": [insert(10), insert(11)], "partialTxn": true };
    let prepared = doc! { "applyOps": [insert(12)], "prepare": true, "count": 3i64 };
    let given_up = doc! { "applyOps": [insert(20)], "prepare": true };
    let entries = vec![
        write(1, 1),
        part(2, 1, begun, NONE),
        write(3, 3),
        part(4, 1, prepared, at(2)),
        part(5, 2, given_up, NONE),
        write(6, 6),
        part(7, 1, doc! { "commitTransaction": 1, "commitTimestamp": at(4) }, at(4)),
        part(8, 2, doc! { "abortTransaction": 1 }, at(5)),
        write(9, 9),
    ];
    place.mongod.done("local", doc! { "insert": "oplog.rs", "documents": entries });
    let source = MongoSource::new(Arc::new(mongo::Server::new(place.mongod.url(), None)));
    let mut copy = copy();
    let mut feed = copy.feed(&source, Until::Stopped).await;
    while copy.position.0 != "oplog:1700000000,9;term=1;wall=1700000000000" {
        assert_eq!(copy.take(feed.next().await.unwrap().unwrap()), None);
    }
    let ids = |time: u32| {
        let state = copy.at(1_700_000_000 << 32 | u64::from(time));
        let read = |body: &Vec<u8>| Document::from_reader(&body[..]).unwrap().get_i32("_id").unwrap();
        state.values().next().unwrap().documents.values().map(read).collect::<Vec<_>>()
    };
    assert_eq!(ids(6), [3, 6]);
    assert_eq!(ids(7), [3, 6, 10, 11, 12]);
    assert_eq!(ids(9), [3, 6, 9, 10, 11, 12]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_is_not_whole_is_refused() {
    for (begun, last, why) in [
        (None, part(4, 1, doc! { "applyOps": [insert(2)], "count": 2i64 }, at(2)), "no longer in the oplog"),
        (None, part(4, 1, doc! { "applyOps": [insert(2)], "count": 2i64 }, NONE), "of its 2 operations 1 are there"),
        (None, part(4, 1, doc! { "commitTransaction": 1 }, NONE), "what it commits"),
        (
            Some(part(2, 9, doc! { "applyOps": [insert(1)], "partialTxn": true }, NONE)),
            part(4, 1, doc! { "applyOps": [insert(2)], "count": 2i64 }, at(2)),
            "the same transaction",
        ),
    ] {
        let place = place().await;
        let entries: Vec<Document> =
            [Some(write(1, 1)), begun, Some(write(3, 3)), Some(last)].into_iter().flatten().collect();
        place.mongod.done("local", doc! { "insert": "oplog.rs", "documents": entries });
        let source = MongoSource::new(Arc::new(mongo::Server::new(place.mongod.url(), None)));
        let mut copy = copy();
        let mut feed = copy.feed(&source, Until::Stopped).await;
        let told = loop {
            match feed.next().await.unwrap() {
                Ok(item) => match copy.take(item) {
                    Some(gap) => break gap.why,
                    None => continue,
                },
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Unsupported);
                    break e.to_string();
                }
            }
        };
        assert!(told.contains(why), "{told}");
        assert!(feed.next().await.is_none());
    }
}
