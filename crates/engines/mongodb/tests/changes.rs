//! The feed of changes, compared with the server: documents byte for byte, options and indexes, at
//! the end and in between.
#![allow(clippy::unwrap_used)]

mod common;
mod following;
mod writer;

use bson::{Document, doc};
use common::Place;
use following::{compare_catalog, scan};
use futures::StreamExt;
use model::{CollectionInfo, Selection, Source, Until};
use mongo::{MongoSource, Server};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::mongod::{Mongod, Options};
use writer::Writer;

fn newest() -> Arc<Mongod> {
    Arc::new(Mongod::start(Options { newest: true, ..Options::replica_set() }))
}

/// A server that has room for transactions larger than an entry of the oplog.
fn roomy() -> Arc<Mongod> {
    let arguments = ["--wiredTigerEngineConfigString", "cache_size=1G"].map(str::to_owned).to_vec();
    Arc::new(Mongod::start(Options { arguments, ..Options::replica_set() }))
}

/// The catalog after a command, and when that was.
struct Step {
    command: Document,
    time: u64,
    catalog: Vec<CollectionInfo>,
}

async fn run_steps(place: &Place, source: &MongoSource, commands: Vec<Document>) -> Vec<Step> {
    let admin = Server::new(place.mongod.url(), None);
    let mut steps = Vec::new();
    for command in commands {
        let name = command.keys().next().unwrap().clone();
        let on_admin = ["renameCollection", "applyOps"].contains(&name.as_str());
        let answer = match on_admin {
            true => admin.admin(command.clone()).await.unwrap(),
            false => place.run(command.clone()).await,
        };
        assert!(!answer.contains_key("writeErrors"), "{command}: {answer}");
        let ts = answer.get_timestamp("operationTime").unwrap();
        let time = u64::from(ts.time) << 32 | u64::from(ts.increment);
        steps.push(Step { command, time, catalog: source.describe().await.unwrap().collections });
    }
    steps
}

/// Every command that changes collections, one after the other.
fn catalog_commands(db: &str) -> Vec<Document> {
    let full = |name: &str| format!("{db}.{name}");
    let now = bson::DateTime::now();
    vec![
        doc! { "create": "a" },
        doc! { "create": "b", "validator": { "x": { "$gt": 1 } }, "validationLevel": "moderate", "collation": { "locale": "de" },
        "changeStreamPreAndPostImages": { "enabled": true }, "storageEngine": { "wiredTiger": { "configString": "block_compressor=zlib" } } },
        doc! { "create": "cap", "capped": true, "size": 1000, "max": 5 },
        doc! { "create": "huge", "capped": true, "size": 5_000_000_000i64 },
        doc! { "create": "clu", "clusteredIndex": { "key": { "_id": 1 }, "unique": true, "name": "c" }, "expireAfterSeconds": 3600 },
        doc! { "collMod": "clu", "expireAfterSeconds": 7200 },
        doc! { "collMod": "clu", "expireAfterSeconds": "off" },
        doc! { "insert": "a", "documents": [{ "_id": 1, "x": [1, 2] }, { "_id": 2 }] },
        doc! { "createIndexes": "new", "indexes": [{ "key": { "q": 1 }, "name": "q" }] },
        doc! { "createIndexes": "a", "indexes": [
            { "key": { "x": 1 }, "name": "x1", "expireAfterSeconds": 3600.5 },
            { "key": { "y": -1.0 }, "name": "y1", "unique": 1, "sparse": 1, "background": 1 },
            { "key": { "z": "text", "y": 1 }, "name": "z", "weights": { "z": 3.0 }, "default_language": "german" },
            { "key": { "w": 1 }, "name": "w", "partialFilterExpression": { "a": 1 }, "collation": { "locale": "de" } },
            { "key": { "g": "2dsphere" }, "name": "g", "2dsphereIndexVersion": 2.0 },
            { "key": { "d": "2d" }, "name": "d", "bits": 20.0, "min": -10, "max": 10.0 },
            { "key": { "$**": 1 }, "name": "wild", "wildcardProjection": { "x": 1 } },
            { "key": { "h": "hashed" }, "name": "h", "hidden": true },
            { "key": { "v": 1 }, "name": "v", "v": 1, "unique": false, "sparse": false },
            { "key": { "n": 1 }, "name": "n", "expireAfterSeconds": f64::NAN },
        ] },
        doc! { "collMod": "a", "index": { "name": "x1", "expireAfterSeconds": 10 } },
        doc! { "collMod": "a", "index": { "keyPattern": { "w": 1 }, "hidden": true } },
        doc! { "collMod": "a", "index": { "name": "w", "hidden": false } },
        doc! { "createIndexes": "a", "indexes": [{ "key": { "k": 1 }, "name": "k" }, { "key": { "k2": 1 }, "name": "k2" }] },
        doc! { "collMod": "a", "index": { "name": "k", "expireAfterSeconds": 50 } },
        doc! { "collMod": "a", "index": { "name": "k", "prepareUnique": true } },
        doc! { "delete": "a", "deletes": [{ "q": { "_id": 2 }, "limit": 1 }] },
        doc! { "collMod": "a", "index": { "name": "k", "unique": true } },
        doc! { "collMod": "a", "index": { "name": "k2", "prepareUnique": true } },
        doc! { "collMod": "a", "index": { "name": "k2", "prepareUnique": false } },
        doc! { "collMod": "a", "validator": { "q": { "$exists": false } } },
        doc! { "collMod": "a", "validationLevel": "moderate" },
        doc! { "collMod": "a", "validator": {} },
        doc! { "collMod": "a", "changeStreamPreAndPostImages": { "enabled": true } },
        doc! { "collMod": "a", "changeStreamPreAndPostImages": { "enabled": false } },
        doc! { "collMod": "a", "validator": { "z": 1 }, "validationAction": "warn",
        "index": { "name": "x1", "expireAfterSeconds": 20, "hidden": true } },
        doc! { "collMod": "new", "validationAction": "warn" },
        doc! { "collMod": "cap", "cappedSize": 5000, "cappedMax": 50 },
        doc! { "dropIndexes": "a", "index": "y1" },
        doc! { "dropIndexes": "a", "index": ["z", "g"] },
        doc! { "dropIndexes": "a", "index": "*" },
        doc! { "create": "ts", "timeseries": { "timeField": "t", "metaField": "m" }, "expireAfterSeconds": 1_000_000_000i64, "collation": { "locale": "fr" } },
        doc! { "insert": "ts", "documents": [{ "t": now, "m": { "a": 1 }, "v": 1 }] },
        doc! { "createIndexes": "ts", "indexes": [
            { "key": { "m.a": 1, "t": -1 }, "name": "x" }, { "key": { "t": 1 }, "name": "t1" },
            { "key": { "v": 1 }, "name": "v1" }, { "key": { "m": "hashed" }, "name": "m1", "hidden": true },
            { "key": { "m.g": "2dsphere" }, "name": "g" },
        ] },
        doc! { "collMod": "ts", "timeseries": { "granularity": "minutes" } },
        doc! { "collMod": "ts", "expireAfterSeconds": 100_000 },
        doc! { "collMod": "ts", "expireAfterSeconds": "off" },
        doc! { "collMod": "ts", "index": { "name": "x", "hidden": true } },
        doc! { "dropIndexes": "ts", "index": "t1" },
        doc! { "createIndexes": "ts", "indexes": [
            { "key": { "m.b": 1 }, "name": "p", "partialFilterExpression": { "m.c": 1 } },
            { "key": { "t": 1 }, "name": "pt", "partialFilterExpression": { "v": { "$gt": 1 } } },
        ] },
        doc! { "collMod": "ts", "index": { "name": "p", "hidden": true } },
        doc! { "collMod": "ts", "index": { "name": "x", "hidden": false } },
        doc! { "create": "ts2", "timeseries": { "timeField": "t", "granularity": "hours" } },
        doc! { "createIndexes": "ts2", "indexes": [{ "key": { "g": "2dsphere" }, "name": "g2" }, { "key": { "v": -1, "w": 1 }, "name": "vw" }] },
        doc! { "collMod": "ts2", "index": { "name": "vw", "hidden": true } },
        doc! { "create": "v", "viewOn": "a", "pipeline": [{ "$match": { "x": 1 } }], "collation": { "locale": "de" } },
        doc! { "create": "v2", "viewOn": "a" },
        doc! { "collMod": "v", "viewOn": "b", "pipeline": [] },
        doc! { "drop": "v" },
        doc! { "renameCollection": full("a"), "to": full("a2") },
        doc! { "renameCollection": full("a2"), "to": full("new"), "dropTarget": true },
        doc! { "convertToCapped": "new", "size": 4096 },
        doc! { "aggregate": "new", "pipeline": [{ "$out": "out" }], "cursor": {} },
        doc! { "aggregate": "new", "pipeline": [{ "$out": "out" }], "cursor": {} },
        doc! { "applyOps": [{ "op": "c", "ns": format!("{db}.$cmd"), "o": { "create": "applied", "collation": { "locale": "de" } } }] },
        doc! { "drop": "ts" },
        doc! { "insert": "out", "documents": [{ "_id": "again" }] },
        doc! { "drop": "out" },
        doc! { "insert": "out", "documents": [{ "_id": "again" }] },
        doc! { "dropDatabase": 1 },
        doc! { "create": "a" },
        doc! { "create": "v", "viewOn": "a" },
    ]
}

async fn catalog_follows(mongod: Arc<Mongod>) {
    let place = Place::on(mongod).await;
    let source = MongoSource::new(place.server());
    place.insert("before", vec![doc! { "_id": 1 }]).await;
    let mut copy = scan(&source, &Selection::default()).await;
    let steps = run_steps(&place, &source, catalog_commands(&place.name)).await;
    copy.catch_up(&source).await;
    for step in &steps {
        compare_catalog(&step.command.to_string(), &copy.at(step.time), &step.catalog);
    }
    copy.compare(&source, &place.database).await;
    // And once more, from a position with collections that are known by the feed alone.
    place.run(doc! { "dropDatabase": 1 }).await;
    let steps = run_steps(&place, &source, catalog_commands(&place.name)).await;
    copy.catch_up(&source).await;
    for step in &steps {
        compare_catalog(&step.command.to_string(), &copy.at(step.time), &step.catalog);
    }
    copy.compare(&source, &place.database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_and_indexes_are_what_the_server_lists() {
    catalog_follows(Mongod::shared()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_and_indexes_are_what_the_newest_server_lists() {
    catalog_follows(newest()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renamed_to_and_from_another_database() {
    let place = Place::new().await;
    let (here, there) = (format!("{}_here", place.name), format!("{}_there", place.name));
    let admin = Server::new(place.mongod.url(), None);
    let source = |name: &str| MongoSource::new(Arc::new(Server::new(place.mongod.url(), None))).of_database(name);
    let client = mongodb::Client::with_uri_str(place.mongod.url()).await.unwrap();
    let (from, to) = (client.database(&here), client.database(&there));
    from.collection("a").insert_many((0..50).map(|i| doc! { "_id": i, "x": "x" })).await.unwrap();
    to.collection("a").insert_one(doc! { "_id": "old" }).await.unwrap();
    let mut one = scan(&source(&here), &Selection::default()).await;
    let mut two = scan(&source(&there), &Selection::default()).await;
    let rename = doc! { "renameCollection": format!("{here}.a"), "to": format!("{there}.a"), "dropTarget": true };
    admin.admin(rename).await.unwrap();
    one.catch_up(&source(&here)).await;
    two.catch_up(&source(&there)).await;
    assert!(one.now().is_empty());
    two.compare(&source(&there), &to).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_come_whole() {
    let place = Place::on(roomy()).await;
    let source = MongoSource::new(place.server());
    place.run(doc! { "create": "a" }).await;
    place.run(doc! { "create": "b" }).await;
    let mut copy = scan(&source, &Selection::default()).await;
    let client = mongodb::Client::with_uri_str(place.mongod.url()).await.unwrap();
    let database = client.database(&place.name);
    let (a, b) = (database.collection::<Document>("a"), database.collection::<Document>("b"));
    let mut session = client.start_session().await.unwrap();

    // Several kinds of change of the same document, and a collection that is made inside.
    session.start_transaction().await.unwrap();
    for i in 0..3 {
        a.insert_one(doc! { "_id": 1, "n": i }).session(&mut session).await.unwrap();
        a.update_one(doc! { "_id": 1 }, doc! { "$set": { "m": i } }).session(&mut session).await.unwrap();
        b.insert_one(doc! { "_id": i }).session(&mut session).await.unwrap();
        if i < 2 {
            a.delete_one(doc! { "_id": 1 }).session(&mut session).await.unwrap();
        }
    }
    b.delete_one(doc! { "_id": 1 }).session(&mut session).await.unwrap();
    let made = database.collection::<Document>("made");
    made.insert_one(doc! { "_id": 1 }).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();

    // One that is more than an entry holds, several times, with writes of others in between.
    session.start_transaction().await.unwrap();
    let filler = "x".repeat(5_000_000);
    for i in 0..5 {
        a.insert_one(doc! { "_id": format!("big{i}"), "filler": &filler }).session(&mut session).await.unwrap();
        b.insert_one(doc! { "_id": format!("other{i}") }).await.unwrap();
    }
    a.update_many(doc! { "filler": { "$exists": true } }, doc! { "$set": { "x": 1 } })
        .session(&mut session)
        .await
        .unwrap();
    a.delete_one(doc! { "_id": "big3" }).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();

    // One that is given up leaves nothing.
    session.start_transaction().await.unwrap();
    a.insert_one(doc! { "_id": "never" }).session(&mut session).await.unwrap();
    session.abort_transaction().await.unwrap();

    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
    for time in copy.times() {
        copy.compare_at(&place.database, time).await;
    }
    let big = copy.now().values().find(|h| h.info.name.ends_with(".a")).unwrap().documents.len();
    assert_eq!(big, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_inside_of_a_long_transaction_sees_all_of_it() {
    let place = Place::on(roomy()).await;
    let source = MongoSource::new(place.server());
    place.run(doc! { "create": "a" }).await;
    let mut copy = scan(&source, &Selection::default()).await;
    let client = mongodb::Client::with_uri_str(place.mongod.url()).await.unwrap();
    let a = client.database(&place.name).collection::<Document>("a");
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let filler = "x".repeat(9_000_000);
    for i in 0..3 {
        a.insert_one(doc! { "_id": i, "filler": &filler }).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
    // The entry before the last one of the transaction.
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let part = doc! { "o.partialTxn": true, "o.applyOps.ns": format!("{}.a", place.name) };
    let entry = oplog.find_one(part).sort(doc! { "$natural": -1 }).await.unwrap().unwrap();
    let ts = entry.get_timestamp("ts").unwrap();
    let (term, wall) = (entry.get_i64("t").unwrap(), entry.get_datetime("wall").unwrap().timestamp_millis());
    copy.position = model::Position(format!("oplog:{},{};term={term};wall={wall}", ts.time, ts.increment));
    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_selected() {
    let place = Place::new().await;
    let source = MongoSource::new(place.server());
    let name = |collection: &str| format!("{}.{collection}", place.name);
    place.insert("a", vec![doc! { "_id": 1 }]).await;
    place.insert("b", vec![doc! { "_id": 1 }, doc! { "_id": 2 }]).await;
    place.insert("c", vec![doc! { "_id": 1 }]).await;
    let mut selection = Selection { only: vec![name("a"), format!("{}/2", name("b"))], ..Selection::default() };
    selection.understand_keys(mongo::keys::keys);
    let mut copy = scan(&source, &selection).await;
    for collection in ["a", "b", "c", "d"] {
        place.insert(collection, vec![doc! { "_id": 3 }]).await;
        place
            .run(doc! { "update": collection, "updates": [{ "q": {}, "u": { "$set": { "x": 1 } }, "multi": true }] })
            .await;
    }
    copy.catch_up(&source).await;
    let state = copy.now();
    let count = |collection: &str| state.values().find(|h| h.info.name == name(collection)).map(|h| h.documents.len());
    assert_eq!((count("a"), count("b"), count("c"), count("d")), (Some(2), Some(1), None, None));
    // What servers do for $out is followed; a foreign collection that takes the name is not known.
    place.run(doc! { "aggregate": "c", "pipeline": [{ "$out": "a" }], "cursor": {} }).await;
    copy.catch_up(&source).await;
    let a = copy.now().into_values().find(|h| h.info.name == name("a")).unwrap();
    assert_eq!(a.documents, following::documents(&place.database, &a.info).await);
    let admin = Server::new(place.mongod.url(), None);
    let onto = doc! { "renameCollection": name("c"), "to": name("a"), "dropTarget": true };
    admin.admin(onto).await.unwrap();
    let mut feed = copy.feed(&source, Until::Now).await;
    let mut gap = None;
    while let Some(item) = feed.next().await {
        gap = copy.take(item.unwrap());
    }
    assert!(gap.unwrap().why.contains(&name("a")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_written_is_followed() {
    let arguments = ["--setParameter", "ttlMonitorSleepSecs=1"].map(str::to_owned).to_vec();
    let mongod = Arc::new(Mongod::start(Options { arguments, ..Options::replica_set() }));
    let place = Place::on(mongod).await;
    let source = MongoSource::new(place.server());
    // Another seed writes something else.
    let seed = std::env::var("REWOUND_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut writer = Writer::new(&place, seed).await;
    for _ in 0..300 {
        writer.write().await;
    }
    let mut copy = scan(&source, &Selection::default()).await;
    for _ in 0..5 {
        for _ in 0..500 {
            writer.write().await;
        }
        copy.catch_up(&source).await;
    }
    // Until the last documents have expired.
    tokio::time::sleep(Duration::from_secs(3)).await;
    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
    let (times, earliest) = (copy.times(), copy.earliest());
    let later: Vec<u64> = times.into_iter().filter(|t| *t > earliest).collect();
    assert!(later.len() > 1000, "{}", later.len());
    let mut compared = 0;
    for i in 0..20 {
        compared += copy.compare_at(&place.database, later[i * (later.len() - 1) / 19]).await;
    }
    assert!(compared >= 40, "{compared}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_between_scan_and_changes() {
    let place = Arc::new(Place::new().await);
    let source = MongoSource::new(place.server());
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (place, stop) = (place.clone(), stop.clone());
        tokio::spawn(async move {
            let mut writer = Writer::new(&place, 2).await;
            while !stop.load(Ordering::Relaxed) {
                writer.write().await;
            }
        })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..4 {
        let mut copy = scan(&source, &Selection::default()).await;
        let began = Instant::now();
        while copy.times().last().is_none_or(|last| *last <= copy.earliest()) || copy.len() < 50 {
            assert!(began.elapsed() < Duration::from_secs(180), "nothing is written");
            tokio::time::sleep(Duration::from_millis(300)).await;
            copy.catch_up(&source).await;
        }
        let times = copy.times();
        let later: Vec<u64> = times.into_iter().filter(|t| *t >= copy.earliest()).collect();
        for i in 0..5 {
            copy.compare_at(&place.database, later[i * (later.len() - 1) / 4]).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    let mut copy = scan(&source, &Selection::default()).await;
    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_followed_on_request() {
    let mongod = newest();
    let source = MongoSource::new(Arc::new(Server::new(mongod.url(), None)));
    mongod.done("admin", doc! { "createUser": "first", "pwd": "x", "roles": [] });
    let selection = Selection { users: true, ..Selection::default() };
    let (mut with, mut without) = (scan(&source, &selection).await, scan(&source, &Selection::default()).await);
    mongod.done("admin", doc! { "createUser": "second", "pwd": "x", "roles": [] });
    mongod.done("admin", doc! { "createRole": "r", "privileges": [], "roles": [] });
    mongod.done("admin", doc! { "dropUser": "first" });
    with.catch_up(&source).await;
    without.catch_up(&source).await;
    let names: Vec<String> = with.now().into_values().map(|h| h.info.name).collect();
    assert!(names.contains(&"admin.system.users".to_owned()) && names.contains(&"admin.system.roles".to_owned()));
    let users = with.now().into_values().find(|h| h.info.name == "admin.system.users").unwrap().documents;
    let there: Vec<Vec<u8>> = mongod.documents("admin", "system.users");
    assert_eq!(users.into_values().collect::<Vec<_>>(), there);
    assert!(without.now().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_understood_is_named() {
    let place = Place::new().await;
    let source = MongoSource::new(place.server());
    place.insert("a", vec![doc! { "_id": 1 }]).await;
    let copy = scan(&source, &Selection::default()).await;
    let described = source.describe().await.unwrap();
    let id = described.collections[0].id.as_str().to_owned();
    let uuid = bson::Uuid::parse_str(&id).unwrap();
    let other = Place::new().await;
    other.insert("a", vec![doc! { "_id": 1 }]).await;
    let mut elsewhere = scan(&MongoSource::new(other.server()), &Selection::default()).await;
    // A change that makes the document that it changes: its entry does not say so.
    let change = doc! { "op": "u", "ns": format!("{}.a", place.name), "ui": uuid,
    "o": { "$v": 2, "diff": { "u": { "x": 5 } } }, "o2": { "_id": 98 } };
    let insert = doc! { "op": "i", "ns": format!("{}.a", place.name), "ui": uuid, "o": { "_id": 7 } };
    let admin = Server::new(place.mongod.url(), None);
    admin.admin(doc! { "applyOps": [insert, change] }).await.unwrap();
    let items: Vec<_> = copy.feed(&source, Until::Now).await.collect().await;
    let error = items.into_iter().find_map(Result::err).unwrap();
    assert_eq!(error.kind(), model::ErrorKind::Unsupported);
    assert!(error.to_string().contains(&format!("on {}.a at ts:", place.name)), "{error}");
    // Who follows another database does not mind.
    elsewhere.catch_up(&MongoSource::new(other.server())).await;
}
