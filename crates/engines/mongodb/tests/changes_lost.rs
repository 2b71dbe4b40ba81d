//! Following changes through whatever interrupts it, and saying so where history is lost.
#![allow(clippy::unwrap_used)]

mod common;
mod following;

use bson::{Document, doc};
use common::Place;
use following::{Copy, scan};
use futures::StreamExt;
use model::{ChangeItem, ErrorKind, FeedKind, Gap, Plan, Position, Selection, Source, SourceState, Until};
use mongo::{MongoSource, Server};
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::mongod::{Mongod, Options};

async fn state(source: &MongoSource, copy: &Copy) -> SourceState {
    let identity = source.describe().await.unwrap().identity;
    SourceState { identity, position: Some(copy.position.clone()), time: copy.complete.unwrap() }
}

/// What a feed gives if it gives nothing but a gap.
async fn only_gap(copy: &Copy, source: &MongoSource) -> Gap {
    let items: Vec<_> = copy.feed(source, Until::Now).await.collect().await;
    match &items[..] {
        [Ok(ChangeItem::Gap(gap))] => gap.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_is_proven_before_it_is_used() {
    let place = Place::new().await;
    let source = MongoSource::new(place.server());
    let all = Selection::default();
    place.insert("a", vec![doc! { "_id": 1 }]).await;
    let mut copy = scan(&source, &all).await;
    copy.catch_up(&source).await;
    let known = state(&source, &copy).await;
    let plan = source.plan(&all, Some(&known)).await.unwrap();
    assert_eq!(plan, Plan::Changes { from: copy.position.clone() });

    // A server that is another one, or that was set back and has written something else since.
    let text = copy.position.0.clone();
    let (head, wall) = text.rsplit_once('=').unwrap();
    let other_wall = format!("{head}={}", wall.parse::<i64>().unwrap() + 1);
    let (time, rest) = text.strip_prefix("oplog:").unwrap().split_once(',').unwrap();
    let in_between = format!("oplog:{time},4000000;{}", rest.split_once(';').unwrap().1);
    let in_the_future = format!("oplog:{},{rest}", time.parse::<u32>().unwrap() + 1_000_000);
    for (position, why) in [
        (other_wall, "restored or set up anew"),
        (text.replace("term=", "term=7"), "restored or set up anew"),
        (in_between, "restored or set up anew"),
        (in_the_future, "restored or set up anew"),
        (format!("oplog:1000,{rest}"), "has been overwritten"),
        ("ts:1,1".into(), "another version of Rewound"),
    ] {
        // Something newer, so that there is an entry after each of them.
        place.insert("a", vec![doc! {}]).await;
        let wrong = SourceState { position: Some(Position(position.clone())), ..known.clone() };
        let Plan::Gap { gap, then } = source.plan(&all, Some(&wrong)).await.unwrap() else { panic!("{position}") };
        assert!(gap.why.contains(why), "{position}: {}", gap.why);
        let Plan::Scan { start, at, .. } = *then else { panic!() };
        assert!(start.is_some());
        assert_eq!((gap.from, gap.to), (known.time, at));
        let mut lost = copy.clone();
        lost.position = Position(position);
        assert_eq!(only_gap(&lost, &source).await.why, gap.why);
    }
    let elsewhere = SourceState { identity: "mongodb:0123".into(), ..known.clone() };
    let Plan::Gap { gap, .. } = source.plan(&all, Some(&elsewhere)).await.unwrap() else { panic!() };
    assert!(gap.why.contains("another replica set"), "{}", gap.why);
    let without = SourceState { position: None, ..known };
    assert!(matches!(source.plan(&all, Some(&without)).await.unwrap(), Plan::Scan { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_dropped_and_made_again_is_no_gap() {
    let place = Place::new().await;
    let source = MongoSource::new(place.server());
    place.insert("a", vec![doc! { "_id": 1 }]).await;
    let mut copy = scan(&source, &Selection::default()).await;
    place.run(doc! { "dropDatabase": 1 }).await;
    place.insert("a", vec![doc! { "_id": 2 }]).await;
    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oplog_that_has_been_overwritten_is_a_gap() {
    let parameters = ["--oplogSize", "10", "--syncdelay", "1", "--setParameter", "minSnapshotHistoryWindowInSeconds=1"];
    let arguments = parameters.map(str::to_owned).to_vec();
    let mongod = Arc::new(Mongod::start(Options { arguments, ..Options::replica_set() }));
    let place = Place::on(mongod).await;
    let source = MongoSource::new(place.server());
    place.insert("a", vec![doc! { "_id": 1 }]).await;
    let mut copy = scan(&source, &Selection::default()).await;
    copy.catch_up(&source).await;
    let known = state(&source, &copy).await;
    let (began, filler) = (Instant::now(), "x".repeat(1_000_000));
    let gap = loop {
        assert!(began.elapsed() < Duration::from_secs(180), "the oplog is not overwritten");
        place.insert("b", (0..5).map(|_| doc! { "filler": &filler }).collect()).await;
        place.run(doc! { "delete": "b", "deletes": [{ "q": {}, "limit": 0 }] }).await;
        if let Plan::Gap { gap, .. } = source.plan(&Selection::default(), Some(&known)).await.unwrap() {
            break gap;
        }
    };
    assert!(gap.why.contains("has been overwritten"), "{}", gap.why);
    assert_eq!(gap.from, known.time);
    let told = only_gap(&copy, &source).await;
    assert_eq!((told.from, told.to), (known.time, None));
    // A new scan heals it.
    let mut copy = scan(&source, &Selection::default()).await;
    place.insert("a", vec![doc! { "_id": 2 }]).await;
    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
}

/// Follows for ever, until a document with this `_id` in `a` has come.
async fn until_seen(copy: &mut Copy, feed: &mut model::ChangeStream, id: i32) {
    let key = mongo::keys::key(&id.into()).unwrap();
    let has_it =
        |copy: &Copy| copy.now().values().any(|h| h.info.name.ends_with(".a") && h.documents.contains_key(&key));
    let began = Instant::now();
    while !has_it(copy) {
        assert!(began.elapsed() < Duration::from_secs(180), "{id} does not come");
        let item = tokio::time::timeout(Duration::from_secs(30), feed.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(copy.take(item), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_come_every_second() {
    let place = Place::new().await;
    let source = MongoSource::new(place.server());
    place.insert("a", vec![doc! { "_id": 1 }]).await;
    let mut copy = scan(&source, &Selection::default()).await;
    let mut feed = copy.feed(&source, Until::Stopped).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        let item = tokio::time::timeout(Duration::from_millis(1500), feed.next()).await.unwrap().unwrap();
        assert_eq!(copy.take(item.unwrap()), None);
    }
    assert!((4..12).contains(&copy.commits), "{}", copy.commits);
    // What is written comes within a moment.
    let began = Instant::now();
    place.insert("a", vec![doc! { "_id": 2 }]).await;
    until_seen(&mut copy, &mut feed, 2).await;
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_and_elections_lose_nothing() {
    let mongod = Arc::new(Mongod::start(Options::replica_set()));
    let place = Arc::new(Place::on(mongod.clone()).await);
    let source = MongoSource::new(place.server());
    place.insert("a", vec![doc! { "_id": 0 }]).await;
    let mut copy = scan(&source, &Selection::default()).await;
    let mut feed = copy.feed(&source, Until::Stopped).await;
    for round in 1..4 {
        // Writes that are under way when the server goes away.
        let writing = {
            let (place, first) = (place.clone(), round * 100_000);
            tokio::spawn(async move {
                let mut written = 0;
                let collection = place.database.collection::<Document>("a");
                while collection.insert_one(doc! { "_id": first + written, "x": "y".repeat(100) }).await.is_ok() {
                    written += 1;
                    if written > 20_000 {
                        break;
                    }
                }
            })
        };
        until_seen(&mut copy, &mut feed, round * 100_000 + 50).await;
        match round {
            1 => {
                let step_down = doc! { "replSetStepDown": 1, "force": true };
                Server::new(mongod.url(), None).admin(step_down).await.unwrap();
            }
            _ => {
                mongod.kill();
                mongod.run();
            }
        }
        writing.abort();
        mongod.await_primary();
        let update = doc! { "update": "a", "updates": [{ "q": { "_id": 0 }, "u": { "$set": { "round": round } } }] };
        place.run(update).await;
        place.insert("a", vec![doc! { "_id": -round }]).await;
        until_seen(&mut copy, &mut feed, -round).await;
    }
    drop(feed);
    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
    // The same position serves after a restart of the reader.
    let known = state(&source, &copy).await;
    assert!(matches!(source.plan(&Selection::default(), Some(&known)).await.unwrap(), Plan::Changes { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cursor_is_opened_again() {
    // All sessions are killed: no other test may have one there.
    let place = Place::on(Arc::new(Mongod::start(Options::replica_set()))).await;
    let source = MongoSource::new(place.server());
    place.insert("a", vec![doc! { "_id": 0 }]).await;
    let mut copy = scan(&source, &Selection::default()).await;
    let mut feed = copy.feed(&source, Until::Stopped).await;
    until_seen(&mut copy, &mut feed, 0).await;
    let admin = Server::new(place.mongod.url(), None);
    for round in 1..4 {
        admin.admin(doc! { "killAllSessions": [] }).await.unwrap();
        place.insert("a", vec![doc! { "_id": round }]).await;
        until_seen(&mut copy, &mut feed, round).await;
    }
    drop(feed);
    copy.catch_up(&source).await;
    copy.compare(&source, &place.database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read_the_oplog() {
    let mongod = Arc::new(Mongod::start(Options { auth: true, ..Options::replica_set() }));
    mongod.done("admin", doc! { "createUser": "root", "pwd": "pw", "roles": ["root"] });
    let url = |user: &str, database: &str| {
        format!("mongodb://{user}:pw@{}/{database}?directConnection=true&authSource=admin", mongod.host())
    };
    let server = |user: &str, database: &str| Arc::new(Server::new(url(user, database), None));
    let root = server("root", "");
    root.admin(doc! { "createUser": "backup", "pwd": "pw", "roles": ["backup"] }).await.unwrap();
    let read = doc! { "role": "read", "db": "shop" };
    root.admin(doc! { "createUser": "one", "pwd": "pw", "roles": [read.clone()] }).await.unwrap();
    // The least that following one database takes.
    let oplog = doc! { "resource": { "db": "local", "collection": "oplog.rs" }, "actions": ["find"] };
    root.admin(doc! { "createRole": "oplog", "privileges": [oplog], "roles": [] }).await.unwrap();
    root.admin(doc! { "createUser": "follower", "pwd": "pw", "roles": ["oplog", read] }).await.unwrap();
    let write = |id: i32| doc! { "insert": "things", "documents": [{ "_id": id }] };
    root.run("shop", write(1)).await.unwrap();
    let client = mongodb::Client::with_uri_str(url("root", "")).await.unwrap();
    for (user, id) in [("backup", 2), ("follower", 3)] {
        let source = MongoSource::new(server(user, "shop"));
        assert_eq!(source.describe().await.unwrap().feed, FeedKind::EveryChange);
        let mut copy = scan(&source, &Selection::default()).await;
        root.run("shop", write(id)).await.unwrap();
        copy.catch_up(&source).await;
        copy.compare(&source, &client.database("shop")).await;
    }
    let source = MongoSource::new(server("one", "shop"));
    let description = source.describe().await.unwrap();
    assert_eq!(description.feed, FeedKind::LatestState);
    let told: Vec<_> = description.losses.iter().map(|l| format!("{}: {}", l.what, l.why)).collect();
    assert!(told.iter().any(|t| t.contains("every second") && t.contains("find on local.oplog.rs")), "{told:?}");
    let position = Some(Position("oplog:1,1;term=1;wall=1".into()));
    let last = SourceState { identity: description.identity, position, time: model::EngineTime::ZERO };
    let plan = source.plan(&Selection::default(), Some(&last)).await.unwrap();
    assert!(matches!(plan, Plan::Scan { start: None, .. }), "{plan:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_tells_no_changes() {
    let mongod = Arc::new(Mongod::start(Options::default()));
    let place = Place::on(mongod).await;
    place.insert("a", vec![doc! { "_id": 1 }]).await;
    let source = MongoSource::new(place.server());
    assert_eq!(source.describe().await.unwrap().feed, FeedKind::LatestState);
    let plan = source.plan(&Selection::default(), None).await.unwrap();
    assert!(matches!(plan, Plan::Scan { start: None, .. }));
}

#[tokio::test]
async fn a_server_that_once_does_not_answer_is_no_other_one() {
    let arguments = ["--setParameter", "enableTestCommands=1"].map(str::to_owned).to_vec();
    let mongod = Mongod::start(Options { arguments, ..Options::replica_set() });
    let source = MongoSource::new(Arc::new(Server::new(mongod.url(), None)));
    let identity = source.describe().await.unwrap().identity;
    for how in [doc! { "closeConnection": true }, doc! { "errorCode": 94 }] {
        let mut data = doc! { "failCommands": ["replSetGetConfig"] };
        data.extend(how);
        mongod.done("admin", doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data });
        let error = source.describe().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        assert_eq!(source.describe().await.unwrap().identity, identity);
    }
}
