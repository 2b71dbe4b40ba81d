//! Scans of servers that are written to, and whose collections come and go, while they are read.
#![allow(clippy::unwrap_used)]

mod common;

use bson::{Document, doc};
use common::Place;
use futures::StreamExt;
use model::{CollectionId, EngineTime, Part, Plan, ScanItem, ScanStream, Selection, Source};
use mongo::{MongoSource, Server};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::mongod::{Mongod, Options};
use testkit::source::MemoryAttachments;

/// What a scan gave in the end.
#[derive(Debug, Default)]
struct Scanned {
    /// Name and documents by identity.
    collections: BTreeMap<CollectionId, (String, Vec<Document>)>,
    /// The times that something was read at.
    times: BTreeSet<EngineTime>,
}

impl Scanned {
    fn of(&self, name: &str) -> Option<&Vec<Document>> {
        let mut found = self.collections.values().filter(|(known, _)| known.ends_with(&format!(".{name}")));
        let documents = found.next().map(|(_, documents)| documents);
        assert!(found.next().is_none(), "two collections are called {name}");
        documents
    }
}

/// Reads all parts side by side, doing what the source says of collections that change.
async fn scan(source: &MongoSource, pause: Duration) -> Scanned {
    let Plan::Scan { parts, .. } = source.plan(&Selection::default(), None).await.unwrap() else { panic!() };
    let mut scanned = Scanned::default();
    let mut waiting: VecDeque<Part> = parts.into();
    let mut open: VecDeque<(Part, ScanStream)> = VecDeque::new();
    while !waiting.is_empty() || !open.is_empty() {
        while open.len() < 3
            && let Some(part) = waiting.pop_front()
        {
            let items = source.read(&part, Arc::new(MemoryAttachments::default())).await.unwrap();
            scanned
                .collections
                .entry(part.collection.id.clone())
                .or_insert_with(|| (part.collection.name.clone(), Vec::new()));
            open.push_back((part, items));
        }
        let Some((part, mut items)) = open.pop_front() else { break };
        // Time for the others to write in.
        tokio::time::sleep(pause).await;
        let id = part.collection.id.clone();
        let entry = scanned.collections.get_mut(&id);
        match items.next().await.transpose().unwrap() {
            None => continue,
            Some(ScanItem::Batch(batch)) => {
                let (_, documents) = entry.unwrap();
                documents.extend((0..batch.len()).map(|i| Document::from_reader(batch.body_of(i)).unwrap()));
            }
            Some(ScanItem::Catalog(info)) => entry.unwrap().0 = info.name,
            Some(ScanItem::Progress { true_at }) => drop(scanned.times.insert(true_at)),
            Some(ScanItem::Skipped(bad)) => panic!("{bad:?}"),
            Some(ScanItem::Gone) => {
                scanned.collections.remove(&id);
                open.retain(|(other, _)| other.collection.id != id);
                continue;
            }
            Some(ScanItem::Again(parts)) => {
                entry.unwrap().1.clear();
                open.retain(|(other, _)| other.collection.id != id);
                waiting.retain(|other| other.collection.id != id);
                waiting.extend(parts);
                continue;
            }
        }
        open.push_back((part, items));
    }
    scanned
}

/// The documents of one life of a collection all say which life that is.
fn one_life(documents: &[Document]) -> bool {
    documents.iter().map(|d| d.get_i32("life").unwrap()).collect::<BTreeSet<_>>().len() <= 1
}

/// Moves money, deletes and inserts again, in transactions: the sum over both collections is always
/// the same.
async fn move_money(place: Arc<Place>, stop: Arc<AtomicBool>) {
    let client = mongodb::Client::with_uri_str(place.mongod.url()).await.unwrap();
    let database = client.database(&place.name);
    let mut session = client.start_session().await.unwrap();
    let mut seed = 7u64;
    let mut number = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) % below) as i32
    };
    while !stop.load(Ordering::Relaxed) {
        let (from, to, amount) = (number(300), number(300), number(50));
        session.start_transaction().await.unwrap();
        let (a, b) = (database.collection::<Document>("a"), database.collection::<Document>("b"));
        let moved = async {
            a.update_one(doc! { "_id": from }, doc! { "$inc": { "money": -amount } }).session(&mut session).await?;
            let old = b.find_one_and_delete(doc! { "_id": to }).session(&mut session).await?.unwrap();
            let mut new = old.clone();
            new.insert("money", old.get_i32("money").unwrap() + amount);
            b.insert_one(new).session(&mut session).await
        };
        // Building an index interrupts transactions: the next one tries again.
        match moved.await {
            Ok(_) => drop(session.commit_transaction().await),
            Err(_) => drop(session.abort_transaction().await),
        }
    }
}

/// Builds and drops indexes, drops a collection and makes it anew, renames one to and fro.
async fn change_catalog(place: Arc<Place>, admin: Arc<Server>, stop: Arc<AtomicBool>) {
    let full = |name: &str| format!("{}.{name}", place.name);
    let mut life = 0;
    while !stop.load(Ordering::Relaxed) {
        life += 1;
        place.run(doc! { "createIndexes": "a", "indexes": [{ "key": { "money": 1 }, "name": "m" }] }).await;
        place.insert("reborn", (0..40).map(|i| doc! { "_id": i, "life": life }).collect()).await;
        admin.admin(doc! { "renameCollection": full("there"), "to": full("back") }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        place.run(doc! { "dropIndexes": "a", "index": "m" }).await;
        place.run(doc! { "drop": "reborn" }).await;
        admin.admin(doc! { "renameCollection": full("back"), "to": full("there") }).await.unwrap();
    }
}

async fn fill(place: &Place) {
    // Several answers of the server for each collection.
    let filler = "x".repeat(30_000);
    for name in ["a", "b"] {
        place.insert(name, (0..300).map(|i| doc! { "_id": i, "money": 1000, "filler": &filler }).collect()).await;
    }
    place.insert("there", (0..100).map(|i| doc! { "_id": i, "life": 1, "filler": &filler }).collect()).await;
}

fn check(scanned: &Scanned) {
    for name in ["a", "b"] {
        let keys: BTreeSet<i32> = scanned.of(name).unwrap().iter().map(|d| d.get_i32("_id").unwrap()).collect();
        assert_eq!((keys.len(), scanned.of(name).unwrap().len()), (300, 300), "each document of {name} once");
    }
    if let Some(documents) = scanned.of("reborn") {
        assert!(one_life(documents), "documents of several collections under one name");
        assert!(documents.len() <= 40);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_time_whatever_is_written_meanwhile() {
    let place = Arc::new(Place::new().await);
    fill(&place).await;
    let stop = Arc::new(AtomicBool::new(false));
    let admin = Arc::new(Server::new(place.mongod.url(), None));
    let writing = tokio::spawn(move_money(place.clone(), stop.clone()));
    let changing = tokio::spawn(change_catalog(place.clone(), admin, stop.clone()));
    let (mut at_one_time, began) = (0, Instant::now());
    while at_one_time < 5 && began.elapsed() < Duration::from_secs(60) {
        let scanned = scan(&MongoSource::new(place.server()).concurrency(3), Duration::from_millis(20)).await;
        check(&scanned);
        let there = scanned.of("there").or_else(|| scanned.of("back"));
        assert_eq!(there.map(Vec::len), Some(100), "a renamed collection is read whole");
        if scanned.times.len() == 1 {
            let money = ["a", "b"].iter().flat_map(|name| scanned.of(name).unwrap());
            let sum: i32 = money.map(|d| d.get_i32("money").unwrap()).sum();
            assert_eq!(sum, 600_000, "no transaction is seen by half");
            at_one_time += 1;
        }
    }
    assert!(at_one_time >= 5, "only {at_one_time} scans saw one time");
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    changing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_read_by_name_never_gets_another_collection() {
    let mongod = Arc::new(Mongod::start(Options { auth: true, ..Options::replica_set() }));
    mongod.command(doc! { "createUser": "root", "pwd": "pw", "roles": ["root"] });
    let with = |user: &str| format!("mongodb://{user}:pw@{}/?directConnection=true&authSource=admin", mongod.host());
    let admin = Arc::new(Server::new(with("root"), None));
    admin.admin(doc! { "createUser": "reader", "pwd": "pw", "roles": ["readAnyDatabase"] }).await.unwrap();
    let client = mongodb::Client::with_uri_str(with("root")).await.unwrap();
    let name = mongod.database_name();
    let place = Arc::new(Place { mongod: mongod.clone(), database: client.database(&name), name });
    fill(&place).await;
    let stop = Arc::new(AtomicBool::new(false));
    let changing = tokio::spawn(change_catalog(place.clone(), admin, stop.clone()));
    for _ in 0..10 {
        let reader = Server::new(with("reader"), None);
        let scanned =
            scan(&MongoSource::new(Arc::new(reader)).of_database(&place.name), Duration::from_millis(5)).await;
        check(&scanned);
        for name in ["there", "back"] {
            // Renamed while it was read: left out for now, or read anew and whole.
            assert!(scanned.of(name).is_none_or(|found| found.len() == 100), "{:?}", scanned.of(name).map(Vec::len));
        }
    }
    stop.store(true, Ordering::Relaxed);
    changing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_collections() {
    // A server takes minutes to make 5,000 beside other work.
    let count = if std::env::var_os("REWOUND_LONG").is_some() { 5000 } else { 600 };
    let mongod = Arc::new(Mongod::start(Options::replica_set()));
    let place = Arc::new(Place::on(mongod).await);
    let making = (0..count).map(|i| {
        let place = place.clone();
        async move { place.insert(&format!("c{i}"), vec![doc! { "_id": i as i32 }]).await }
    });
    futures::stream::iter(making).buffer_unordered(16).collect::<Vec<()>>().await;
    let scanned = scan(&MongoSource::new(place.server()), Duration::ZERO).await;
    assert_eq!(scanned.collections.len(), count);
    for (name, documents) in scanned.collections.values() {
        let number: i32 = name.rsplit_once(".c").unwrap().1.parse().unwrap();
        assert_eq!(documents, &[doc! { "_id": number }], "{name}");
    }
    assert_eq!(scanned.times.len(), 1, "all at one time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_is_waited_for() {
    let mongod = Arc::new(Mongod::start(Options::replica_set()));
    let place = Place::on(mongod.clone()).await;
    let filler = "x".repeat(40_000);
    for from in (0..1500).step_by(300) {
        place.insert("large", (from..from + 300).map(|i| doc! { "_id": i, "filler": &filler }).collect()).await;
    }
    let stepping_down = tokio::spawn(async move {
        let server = Server::new(mongod.url(), None);
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // The connection may break before the answer is there.
            drop(server.admin(doc! { "replSetStepDown": 1, "force": true }).await);
            let mongod = mongod.clone();
            tokio::task::spawn_blocking(move || mongod.await_primary()).await.unwrap();
        }
    });
    let mut scans = 0;
    while !stepping_down.is_finished() || scans == 0 {
        let scanned = scan(&MongoSource::new(place.server()).concurrency(1), Duration::from_millis(5)).await;
        let keys: BTreeSet<i32> = scanned.of("large").unwrap().iter().map(|d| d.get_i32("_id").unwrap()).collect();
        assert_eq!((keys.len(), scanned.of("large").unwrap().len()), (1500, 1500));
        scans += 1;
    }
    stepping_down.await.unwrap();
}
