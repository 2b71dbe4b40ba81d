//! The sink against real servers.
#![allow(clippy::unwrap_used)]

mod common;

use bson::{Document, RawDocumentBuf, doc};
use common::{Place, document, hard_documents};
use futures::{StreamExt, TryStreamExt};
use model::{
    Batch, BatchBuilder, CollectionId, CollectionInfo, Description, Encoding, Engine, ErrorKind, FeedKind, IfExists,
    Kind, Plan, RestoreOptions, RestoreReport, Result, ScanItem, Selection, Sink, SinkSession, Source,
};
use mongo::{MongoSink, MongoSource, Server};
use std::collections::BTreeMap;
use std::sync::Arc;
use testkit::mongod::{Mongod, Options};
use testkit::source::MemoryAttachments;

/// All that a database holds: options and indexes of each collection, and its documents.
type Contents = BTreeMap<String, (Document, Vec<Document>, Vec<Vec<u8>>)>;

async fn contents(place: &Place) -> Contents {
    let mut all = Contents::new();
    let listed: Vec<Document> =
        place.database.list_collections().await.unwrap().with_type::<Document>().try_collect().await.unwrap();
    for spec in listed {
        let name = spec.get_str("name").unwrap().to_owned();
        let is_view = spec.get_str("type").unwrap() == "view";
        let mut options = spec.get_document("options").unwrap().clone();
        if name == "system.views" || name.starts_with("system.buckets.") {
            options.remove("validator");
        }
        let mut indexes: Vec<Document> = Vec::new();
        if !is_view && !name.starts_with("system.buckets.") {
            let cursor = place.database.run_cursor_command(doc! { "listIndexes": &name }).await.unwrap();
            indexes = cursor.try_collect().await.unwrap();
        }
        let mut documents = raw(place, &name).await;
        // The definitions of views name their database.
        if name == "system.views" {
            documents.clear();
        }
        if !options.contains_key("capped") {
            documents.sort();
            indexes.sort_by_key(|i| i.get_str("name").unwrap().to_owned());
        }
        all.insert(name, (options, indexes, documents));
    }
    all
}

async fn raw(place: &Place, name: &str) -> Vec<Vec<u8>> {
    let collection = place.database.collection::<RawDocumentBuf>(name);
    let found = collection.find(doc! {}).await.unwrap();
    found.map_ok(|d| d.into_bytes()).try_collect().await.unwrap()
}

fn assert_same(found: &Contents, expected: &Contents) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, (options, indexes, documents)) in expected {
        let (o, i, d) = &found[name];
        assert_eq!(o, options, "{name}");
        for (found, index) in i.iter().zip(indexes) {
            assert_eq!(found, index, "{name}");
        }
        assert_eq!(i.len(), indexes.len(), "{name}");
        assert_eq!(d.len(), documents.len(), "{name}");
        for (a, b) in d.iter().zip(documents) {
            assert_eq!(a, b, "{name}: {:?} {:?}", String::from_utf8_lossy(a), String::from_utf8_lossy(b));
        }
    }
}

fn sink(place: &Place) -> MongoSink {
    MongoSink::new(place.server())
}

fn with(if_exists: IfExists) -> RestoreOptions {
    RestoreOptions { if_exists, ..RestoreOptions::default() }
}

/// What a source holds, as a restore gets it.
async fn read(source: &MongoSource) -> (Description, Vec<Batch>) {
    let description = source.describe().await.unwrap();
    let plan = source.plan(&Selection::default(), None).await.unwrap();
    let Plan::Scan { parts, .. } = plan else { panic!("a scan") };
    let mut batches = Vec::new();
    for part in parts {
        let mut items = source.read(&part, Arc::new(MemoryAttachments::default())).await.unwrap();
        while let Some(item) = items.next().await {
            if let ScanItem::Batch(batch) = item.unwrap() {
                batches.push(batch);
            }
        }
    }
    (description, batches)
}

async fn begin(sink: &MongoSink, what: &Description, options: &RestoreOptions) -> Result<Box<dyn SinkSession>> {
    let plan = sink.prepare(what, options).await?;
    assert!(!plan.phases.is_empty());
    let session = sink.begin(plan, Arc::new(MemoryAttachments::default())).await?;
    for info in what.collections.iter().filter(|i| options.selection.takes(&i.name)) {
        session.catalog(info).await?;
    }
    Ok(session)
}

async fn restore(
    sink: &MongoSink,
    what: &Description,
    batches: &[Batch],
    options: &RestoreOptions,
) -> Result<RestoreReport> {
    let session = begin(sink, what, options).await?;
    let taken = |b: &&Batch| what.collections.iter().any(|i| i.id == b.collection && options.selection.takes(&i.name));
    for batch in batches.iter().filter(taken) {
        session.write(batch.clone()).await?;
    }
    let last_step = session.last_step();
    let report = session.finish().await?;
    if let Some(step) = last_step {
        step.await?;
    }
    Ok(report)
}

/// A description of made-up collections, by name, of this engine.
fn described(engine: &str, collections: &[(&str, Document)]) -> Description {
    let info = |(name, options): &(&str, Document)| CollectionInfo {
        id: CollectionId::new(name),
        name: (*name).into(),
        options: match engine {
            "mongodb" => bson::Bson::Document(options.clone()).into_canonical_extjson(),
            _ => serde_json::Value::Null,
        },
        ordered: options.get_document("options").is_ok_and(|o| o.contains_key("capped")),
    };
    Description {
        engine: Engine::new(engine),
        identity: "x".into(),
        name: "x".into(),
        version: "1".into(),
        feed: FeedKind::LatestState,
        collections: collections.iter().map(info).collect(),
        losses: Vec::new(),
    }
}

fn plain() -> Document {
    doc! { "type": "collection", "options": {}, "indexes": [] }
}

fn batch_of(name: &str, documents: &[Vec<u8>]) -> Batch {
    let mut batch = BatchBuilder::new(CollectionId::new(name), Kind::Document, Encoding::Bson);
    for bytes in documents {
        batch.push(b"", bytes);
    }
    batch.take()
}

fn bytes(document: Document) -> Vec<u8> {
    document.to_vec().unwrap()
}

/// Names of what is in the database.
async fn names(place: &Place) -> Vec<String> {
    let mut names = place.database.list_collection_names().await.unwrap();
    names.sort();
    names
}

/// Empty timestamps on the top level, which an insert fills in.
fn empty_timestamps() -> Vec<Vec<u8>> {
    let zero = bson::Timestamp { time: 0, increment: 0 };
    let mut all: Vec<Vec<u8>> = (0..30)
        .map(|i| bytes(doc! { "_id": { "ts": i, "x": "ü" }, "a": 1, "zero": zero, "$b": i, "c.d": zero, "s": "x".repeat(1000) }))
        .collect();
    all.push(document(&[
        b"\x10_id\0\x63\0\0\0",
        b"\x11t\0\0\0\0\0\0\0\0\0",
        b"\x11t\0\0\0\0\0\0\0\0\0",
        b"\x02s\0\x03\0\0\0\xff\xfe\0",
    ]));
    all
}

async fn everything(place: &Place, is_set: bool) {
    let mut create = vec![
        doc! { "create": "capped", "capped": true, "size": 65536, "max": 40 },
        doc! { "create": "clustered", "clusteredIndex": { "v": 2, "key": { "_id": 1 }, "name": "c", "unique": true }, "expireAfterSeconds": 1_500_000_000 },
        doc! { "create": "collated", "collation": { "locale": "de", "strength": 2 } },
        doc! { "create": "validated", "validator": { "n": { "$gte": 0 } }, "validationLevel": "strict", "validationAction": "error" },
        doc! { "create": "metrics", "timeseries": { "timeField": "t", "metaField": "m", "granularity": "minutes" }, "expireAfterSeconds": 1_500_000_000 },
        doc! { "create": "metrics2", "timeseries": { "timeField": "t" } },
        doc! { "create": "with.dots and ünï/slash" },
        doc! { "create": "empty", "storageEngine": { "wiredTiger": { "configString": "block_compressor=zstd" } } },
        doc! { "create": "old", "idIndex": { "v": 1, "key": { "_id": 1 }, "name": "_id_" } },
        doc! { "create": "l".repeat(200) },
    ];
    if is_set {
        create.push(doc! { "create": "images", "changeStreamPreAndPostImages": { "enabled": true } });
    }
    for command in create {
        place.run(command).await;
    }
    for bytes in hard_documents() {
        place.insert_raw("hard", &bytes).await;
    }
    place.insert("capped", (0..50).rev().map(|i| doc! { "_id": i, "x": "y" }).collect()).await;
    place.insert("clustered", (0..20).map(|i| doc! { "_id": i, "v": i * 2 }).collect()).await;
    place.insert("collated", ["a", "b", "ä"].iter().map(|s| doc! { "_id": s }).collect()).await;
    place.insert_raw("validated", &bytes(doc! { "_id": 1, "n": -1 })).await;
    for name in ["metrics", "metrics2"] {
        let measures = (0..2500)
            .map(|i| doc! { "t": bson::DateTime::from_millis(1_700_000_000_000 + i * 30_000), "m": i % 3, "v": i });
        place.insert(name, measures.collect()).await;
    }
    place.insert("with.dots and ünï/slash", vec![doc! { "_id": 1 }]).await;
    place.insert(&"l".repeat(200), vec![doc! { "_id": 1 }]).await;
    place
        .insert("system.js", vec![doc! { "_id": "f", "value": bson::Bson::JavaScriptCode("function() {}".into()) }])
        .await;
    let documents = (0..3000).map(|i| {
        doc! { "n": i, "title": format!("Book {i}"), "tags": [i % 7, i % 11], "place": { "type": "Point", "coordinates": [i % 90, i % 45] },
        "flat": [i % 90, 1], "at": bson::DateTime::from_millis(4_000_000_000_000), "sub": { "a": i, "b": { "c": 1 } } }
    });
    place.insert("books", documents.collect()).await;
    let index = |key: Document, name: &str, more: Document| {
        let mut index = doc! { "key": key, "name": name };
        index.extend(more);
        index
    };
    let indexes = vec![
        index(doc! { "n": 1 }, "unique", doc! { "unique": true }),
        index(doc! { "n": -1, "title": 1 }, "compound", doc! {}),
        index(doc! { "absent": 1 }, "sparse", doc! { "sparse": true, "unique": true }),
        index(
            doc! { "title": 1 },
            "partial",
            doc! { "partialFilterExpression": { "n": { "$gt": 5 } }, "unique": true },
        ),
        index(doc! { "tags": 1 }, "multikey", doc! { "background": true }),
        index(doc! { "at": 1 }, "ttl", doc! { "expireAfterSeconds": 3600 }),
        index(doc! { "n": "hashed" }, "hashed", doc! {}),
        index(
            doc! { "title": "text", "sub.a": "text" },
            "text",
            doc! { "weights": { "title": 3 }, "default_language": "german" },
        ),
        index(doc! { "$**": 1 }, "wild", doc! { "wildcardProjection": { "sub": 1 } }),
        index(doc! { "sub.$**": 1 }, "wild2", doc! {}),
        index(doc! { "place": "2dsphere" }, "sphere", doc! { "2dsphereIndexVersion": 2 }),
        index(doc! { "flat": "2d" }, "flat", doc! { "bits": 20, "min": -200.0, "max": 200.0 }),
        index(doc! { "title": -1 }, "collated", doc! { "collation": { "locale": "sv", "strength": 1 } }),
        index(doc! { "sub.a": 1 }, "hidden", doc! { "hidden": true }),
        index(doc! { "sub.b": 1.0 }, "v1", doc! { "v": 1 }),
        index(doc! { "_id": "hashed" }, "id hashed", doc! {}),
    ];
    place.run(doc! { "createIndexes": "books", "indexes": indexes }).await;
    let indexes = vec![
        index(doc! { "x": 1 }, "inherits", doc! {}),
        index(doc! { "y": 1 }, "simple", doc! { "collation": { "locale": "simple" } }),
        index(doc! { "z": 1 }, "other", doc! { "collation": { "locale": "en" } }),
    ];
    place.run(doc! { "createIndexes": "collated", "indexes": indexes }).await;
    let indexes = vec![index(doc! { "m": 1, "t": -1 }, "mt", doc! {})];
    place.run(doc! { "createIndexes": "metrics", "indexes": indexes }).await;
    for (name, on, pipeline) in [
        ("a view", "z view", vec![doc! { "$match": { "n": 1 } }]),
        ("b view", "books", vec![doc! { "$lookup": { "from": "a view", "as": "x", "pipeline": [] } }]),
        ("z view", "books", vec![doc! { "$match": { "n": { "$gt": 0 } } }, doc! { "$project": { "n": 1 } }]),
    ] {
        place.run(doc! { "create": name, "viewOn": on, "pipeline": pipeline }).await;
    }
    place.run(doc! { "create": "collated view", "viewOn": "collated", "pipeline": [], "collation": { "locale": "de", "strength": 2 } }).await;
}

/// Restores all of a database into another one, in every way.
async fn round_trip(from: &Place, to: &Place) {
    let source = MongoSource::new(from.server());
    let (description, batches) = read(&source).await;
    let expected = contents(from).await;
    let sum = batches.iter().map(Batch::len).sum::<usize>() as u64;

    let report = restore(&sink(to), &description, &batches, &with(IfExists::Fail)).await.unwrap();
    assert_eq!(report.documents, sum);
    assert_eq!(report.bytes, batches.iter().map(Batch::raw_bytes).sum::<u64>());
    assert_same(&contents(to).await, &expected);

    let error = sink(to).prepare(&description, &with(IfExists::Fail)).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("books: about 3000 documents") && text.contains("metrics: about"), "{text}");
    assert!(text.contains("--if-exists"), "{text}");
    assert_same(&contents(to).await, &expected);

    // Over what is there, and over something else.
    for if_exists in [IfExists::Replace, IfExists::Merge] {
        let report = restore(&sink(to), &description, &batches, &with(if_exists)).await.unwrap();
        assert_eq!(report.documents, sum, "{if_exists:?}");
        assert_same(&contents(to).await, &expected);
    }
}

#[tokio::test]
async fn everything_comes_back_on_a_replica_set() {
    let (from, to) = (Place::new().await, Place::new().await);
    everything(&from, true).await;
    round_trip(&from, &to).await;
}

#[tokio::test]
async fn everything_comes_back_on_the_newest_standalone() {
    let server = Arc::new(Mongod::start(Options { newest: true, ..Options::default() }));
    let (from, to) = (Place::on(server.clone()).await, Place::on(server).await);
    everything(&from, false).await;
    round_trip(&from, &to).await;
}

#[tokio::test]
async fn what_an_insert_would_change_stays() {
    let to = Place::new().await;
    let what = described(
        "mongodb",
        &[
            ("x.c", plain()),
            ("x.capped", doc! { "type": "collection", "options": { "capped": true, "size": 1048576 }, "indexes": [] }),
        ],
    );
    let mut documents = empty_timestamps();
    documents.insert(3, bytes(doc! { "_id": "plain" }));
    for name in ["x.c", "x.capped"] {
        let batches = [batch_of(name, &documents), batch_of(name, &documents)];
        let mut options = with(IfExists::Fail);
        options.selection.only = vec![name.into()];
        let report = restore(&sink(&to), &what, &batches, &options).await.unwrap();
        assert_eq!(report.documents, documents.len() as u64);
        let mut found = raw(&to, &name[2..]).await;
        let mut expected = documents.clone();
        if name == "x.c" {
            found.sort();
            expected.sort();
        }
        assert_eq!(found, expected);
    }
    // Over documents with the same keys, and with keys that are only equal.
    to.database.collection::<Document>("c").update_many(doc! {}, doc! { "$set": { "a": 2 } }).await.unwrap();
    let mut options = with(IfExists::Merge);
    options.selection.only = vec!["x.c".into()];
    documents.push(bytes(doc! { "_id": 7i64, "kind": "long", "$set": 1, "z": { "$a.b": 1 } }));
    to.insert("c", vec![doc! { "_id": 7.0 }, doc! { "_id": "stays" }]).await;
    let report = restore(&sink(&to), &what, &[batch_of("x.c", &documents)], &options).await.unwrap();
    assert_eq!(report.documents, documents.len() as u64);
    documents.push(bytes(doc! { "_id": "stays" }));
    let mut found = raw(&to, "c").await;
    found.sort();
    documents.sort();
    assert_eq!(found, documents);
}

#[tokio::test]
async fn documents_that_no_server_keeps_are_named() {
    let to = Place::new().await;
    let what = described("mongodb", &[("x.c", plain())]);
    for (wrong, name) in [
        (bytes(doc! { "a": 1, "_id": "the one" }), "the one"),
        (bytes(doc! { "a": 1 }), "x.c"),
        (b"\x05\0\0\0\x01".to_vec(), "no BSON"),
    ] {
        let session = begin(&sink(&to), &what, &with(IfExists::Fail)).await.unwrap();
        let error = session.write(batch_of("x.c", &[bytes(doc! { "_id": 1 }), wrong])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(name) || name == "x.c", "{error}");
        assert!(session.abort().await.what.is_empty());
        assert!(names(&to).await.is_empty());
    }
    // What the server itself refuses.
    let session = begin(&sink(&to), &what, &with(IfExists::Fail)).await.unwrap();
    session.write(batch_of("x.c", &[bytes(doc! { "_id": [1], "x": 1 })])).await.unwrap();
    let error = session.finish().await.unwrap_err();
    assert!(error.to_string().contains("[1]"), "{error}");
    assert!(names(&to).await.is_empty());
}

#[tokio::test]
async fn documents_of_any_size() {
    let to = Place::new().await;
    let what = described("mongodb", &[("x.c", plain())]);
    let big = |id: i32, value: bson::Bson| {
        let empty = bytes(doc! { "_id": id, "t": value.clone(), "s": "" }).len();
        bytes(doc! { "_id": id, "t": value, "s": "x".repeat((16 << 20) - empty) })
    };
    let zero = bson::Timestamp { time: 0, increment: 0 };
    let mut documents = vec![big(1, 1.into()), big(2, zero.into())];
    documents.extend((3..20_000).map(|i| bytes(doc! { "_id": i, "s": "y".repeat(i as usize % 300) })));
    assert_eq!(documents[1].len(), 16 << 20);
    for if_exists in [IfExists::Fail, IfExists::Merge] {
        let batches = [batch_of("x.c", &documents[..2]), batch_of("x.c", &documents[2..])];
        restore(&sink(&to), &what, &batches, &with(if_exists)).await.unwrap();
        let mut found = raw(&to, "c").await;
        found.sort();
        documents.sort();
        assert!(found == documents);
        documents[0] = big(1, 2.into());
        documents.sort();
    }
}

#[tokio::test]
async fn batches_may_come_twice_and_side_by_side() {
    let to = Place::new().await;
    let what = described("mongodb", &[("x.a", plain()), ("x.b", plain())]);
    let many: Vec<Vec<u8>> = (0..5000).map(|i| bytes(doc! { "_id": i, "s": "z".repeat(500) })).collect();
    let mut batches: Vec<Batch> = Vec::new();
    for name in ["x.a", "x.b"] {
        batches.extend(many.chunks(700).map(|c| batch_of(name, c)));
        // Cut in another way.
        batches.extend(many.chunks(900).map(|c| batch_of(name, c)));
    }
    let session = begin(&sink(&to).concurrency(3), &what, &with(IfExists::Fail)).await.unwrap();
    for result in futures::future::join_all(batches.iter().map(|b| session.write(b.clone()))).await {
        result.unwrap();
    }
    let report = session.finish().await.unwrap();
    assert_eq!(report.documents, 10_000);
    for name in ["a", "b"] {
        let mut found = raw(&to, name).await;
        let mut expected = many.clone();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn replacing_leaves_other_collections_alone() {
    let (from, to) = (Place::new().await, Place::new().await);
    from.insert("a", vec![doc! { "_id": 1, "new": true }]).await;
    from.insert("b", vec![doc! { "_id": 1, "new": true }]).await;
    from.run(doc! { "create": "c", "viewOn": "a", "pipeline": [] }).await;
    from.run(doc! { "create": "t", "timeseries": { "timeField": "t" } }).await;
    from.insert("t", vec![doc! { "t": bson::DateTime::from_millis(0), "new": true }]).await;
    to.insert("a", vec![doc! { "_id": 2 }]).await;
    to.insert("other", vec![doc! { "_id": 3 }]).await;
    // Something of another kind is in the way of each of these.
    to.run(doc! { "create": "b", "viewOn": "other", "pipeline": [] }).await;
    to.insert("c", vec![doc! { "_id": 4 }]).await;
    to.insert("t", vec![doc! { "_id": 5 }]).await;
    let (description, batches) = read(&MongoSource::new(from.server())).await;
    let error = sink(&to).prepare(&description, &with(IfExists::Merge)).await.unwrap_err();
    assert!(error.to_string().contains("a view is there"), "{error}");
    let plan = sink(&to).prepare(&description, &with(IfExists::Replace)).await.unwrap();
    assert!(plan.phases.iter().any(|p| p.contains(&format!("{}.a", to.name))), "{:?}", plan.phases);
    restore(&sink(&to), &description, &batches, &with(IfExists::Replace)).await.unwrap();
    let mut expected = contents(&from).await;
    let mut found = contents(&to).await;
    let (_, _, other) = found.remove("other").unwrap();
    assert_eq!(other, [bytes(doc! { "_id": 3 })]);
    assert_same(&found, &expected);

    // Renamed, and one only.
    let mut options = with(IfExists::Replace);
    let name = |n: &str| format!("{}.{n}", from.name);
    options.selection.only = vec![name("a")];
    options.add_rename(&format!("{}={}.b", name("a"), to.name)).unwrap();
    restore(&sink(&to), &description, &batches, &options).await.unwrap();
    let a = expected["a"].clone();
    expected.insert("b".into(), a);
    let mut found = contents(&to).await;
    found.remove("other").unwrap();
    assert_same(&found, &expected);
}

#[tokio::test]
async fn what_is_in_the_way_is_refused() {
    let to = Place::new().await;
    let full = doc! { "type": "collection", "options": { "capped": true, "size": 4096 }, "indexes": [
    { "v": 2, "key": { "_id": 1 }, "name": "_id_" }, { "v": 2, "key": { "a": 1 }, "name": "a" }] };
    let what = described("mongodb", &[("x.c", full)]);
    let prepare = async |if_exists| sink(&to).prepare(&what, &with(if_exists)).await;
    // Empty, but not the same.
    to.run(doc! { "create": "c" }).await;
    assert!(prepare(IfExists::Fail).await.unwrap_err().to_string().contains("other options"));
    to.run(doc! { "drop": "c" }).await;
    to.run(doc! { "create": "c", "capped": true, "size": 4096 }).await;
    prepare(IfExists::Fail).await.unwrap();
    to.run(doc! { "createIndexes": "c", "indexes": [{ "key": { "a": 1 }, "name": "a" }] }).await;
    prepare(IfExists::Fail).await.unwrap();
    to.run(doc! { "createIndexes": "c", "indexes": [{ "key": { "b": 1 }, "name": "b" }] }).await;
    assert!(prepare(IfExists::Fail).await.unwrap_err().to_string().contains("other indexes (b)"));
    prepare(IfExists::Merge).await.unwrap();
    to.run(doc! { "dropIndexes": "c", "index": "a" }).await;
    to.run(doc! { "createIndexes": "c", "indexes": [{ "key": { "a": -1 }, "name": "a" }] }).await;
    assert!(
        prepare(IfExists::Merge).await.unwrap_err().to_string().contains("x.c: a") || {
            let text = prepare(IfExists::Merge).await.unwrap_err().to_string();
            text.contains(&format!("{}.c: a", to.name))
        }
    );
    prepare(IfExists::Replace).await.unwrap();

    // Two that become one.
    let what = described("mongodb", &[("x.c", plain()), ("y.c", plain())]);
    let error = sink(&to).prepare(&what, &with(IfExists::Replace)).await.unwrap_err();
    assert!(error.to_string().contains("x.c and y.c would both become"), "{error}");
}

#[tokio::test]
async fn documents_that_come_meanwhile_are_not_lost() {
    let to = Place::new().await;
    let what = described("mongodb", &[("x.c", plain())]);
    let session = begin(&sink(&to), &what, &with(IfExists::Fail)).await.unwrap();
    session.write(batch_of("x.c", &[bytes(doc! { "_id": 1 })])).await.unwrap();
    to.insert("c", vec![doc! { "_id": 2 }]).await;
    let error = session.finish().await.unwrap_err();
    assert!(error.to_string().contains("during the restore"), "{error}");
    assert_eq!(names(&to).await, ["c"]);
    assert_eq!(raw(&to, "c").await, [bytes(doc! { "_id": 2 })]);
}

#[tokio::test]
async fn giving_up_leaves_nothing() {
    let (from, to) = (Place::new().await, Place::new().await);
    everything(&from, true).await;
    let (description, batches) = read(&MongoSource::new(from.server())).await;
    let target = sink(&to);
    let session = begin(&target, &description, &with(IfExists::Fail)).await.unwrap();
    for batch in &batches {
        session.write(batch.clone()).await.unwrap();
    }
    assert_eq!(session.abort().await.what, Vec::<String>::new());
    let left: Vec<_> = names(&to).await.into_iter().filter(|n| n != "system.views").collect();
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn an_index_that_cannot_be_built_leaves_what_was_there() {
    let to = Place::new().await;
    let unique = doc! { "type": "collection", "options": {}, "indexes": [{ "v": 2, "key": { "a": 1 }, "name": "by a", "unique": true }] };
    let what = described("mongodb", &[("x.c", unique)]);
    to.insert("c", vec![doc! { "_id": "old" }]).await;
    let documents = [bytes(doc! { "_id": 1, "a": 1 }), bytes(doc! { "_id": 2, "a": 1 })];
    let error = restore(&sink(&to), &what, &[batch_of("x.c", &documents)], &with(IfExists::Replace)).await.unwrap_err();
    assert!(error.to_string().contains("by a"), "{error}");
    assert_eq!(names(&to).await, ["c"]);
    assert_eq!(raw(&to, "c").await, [bytes(doc! { "_id": "old" })]);

    // Merged into a collection with that index, it is the document that is named.
    to.run(doc! { "createIndexes": "c", "indexes": [{ "key": { "a": 1 }, "name": "by a", "unique": true }] }).await;
    let error = restore(&sink(&to), &what, &[batch_of("x.c", &documents)], &with(IfExists::Merge)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("by a"), "{error}");
}

#[tokio::test]
async fn an_interrupted_restore_can_be_run_again() {
    let (from, to) = (Place::new().await, Place::new().await);
    everything(&from, true).await;
    let (description, batches) = read(&MongoSource::new(from.server())).await;
    let expected = contents(&from).await;
    for if_exists in [IfExists::Fail, IfExists::Replace] {
        let session = begin(&sink(&to), &description, &with(if_exists)).await.unwrap();
        for batch in &batches {
            session.write(batch.clone()).await.unwrap();
        }
        drop(session);
        assert!(names(&to).await.iter().any(|n| n.starts_with("books.rewound-")));
        let plan = sink(&to).prepare(&description, &with(if_exists)).await.unwrap();
        assert!(plan.phases[0].contains("books.rewound-"), "{:?}", plan.phases);
        restore(&sink(&to), &description, &batches, &with(if_exists)).await.unwrap();
        assert_same(&contents(&to).await, &expected);
    }
}

#[tokio::test]
async fn a_server_that_is_killed_is_waited_for() {
    let server = Arc::new(Mongod::start(Options::replica_set()));
    let to = Place::on(server.clone()).await;
    let what = described("mongodb", &[("x.c", plain())]);
    let many: Vec<Vec<u8>> = (0..40_000).map(|i| bytes(doc! { "_id": i, "s": "z".repeat(1000) })).collect();
    let session = begin(&sink(&to), &what, &with(IfExists::Fail)).await.unwrap();
    let mut starting = None;
    for (i, chunk) in many.chunks(300).enumerate() {
        session.write(batch_of("x.c", chunk)).await.unwrap();
        if i == 20 {
            // In the middle of several commands.
            server.kill();
            let server = server.clone();
            starting = Some(tokio::task::spawn_blocking(move || {
                std::thread::sleep(std::time::Duration::from_millis(1000));
                server.run();
                server.await_primary();
            }));
        }
    }
    let report = session.finish().await.unwrap();
    starting.unwrap().await.unwrap();
    assert_eq!(report.documents, many.len() as u64);
    let mut found = raw(&to, "c").await;
    let mut expected = many;
    found.sort();
    expected.sort();
    assert!(found == expected);
}

#[tokio::test]
async fn giving_up_without_a_server_says_what_stays() {
    let server = Arc::new(Mongod::start(Options::default()));
    let to = Place::on(server.clone()).await;
    let what = described("mongodb", &[("x.c", plain()), ("x.d", plain())]);
    let url = format!("{}&serverSelectionTimeoutMS=50", server.url_of(&to.name));
    let target = MongoSink::new(Arc::new(Server::new(url, None)));
    let session = begin(&target, &what, &with(IfExists::Fail)).await.unwrap();
    for name in ["x.c", "x.d"] {
        session.write(batch_of(name, &[bytes(doc! { "_id": 1 })])).await.unwrap();
    }
    server.kill();
    let left = session.abort().await.what;
    assert!(left.len() == 2 && left[0].contains(".c.rewound-"), "{left:?}");
    server.run();
    restore(&sink(&to), &what, &[], &with(IfExists::Fail)).await.unwrap();
    assert_eq!(names(&to).await, ["c", "d"]);
}

#[tokio::test]
async fn a_time_series_of_somebody_else_is_never_taken_for_an_incomplete_one() {
    let to = Place::new().await;
    to.run(doc! { "create": "t", "timeseries": { "timeField": "t" } }).await;
    to.insert("t", vec![doc! { "t": bson::DateTime::from_millis(0) }]).await;
    // As an interrupted restore of a collection of that name leaves it.
    to.insert("t.rewound-0123abcd", vec![doc! { "_id": 1 }]).await;
    let series = doc! { "type": "timeseries", "options": { "timeseries": { "timeField": "t" } }, "indexes": [] };
    let what = described("mongodb", &[("x.t", series)]);
    let error = sink(&to).prepare(&what, &with(IfExists::Fail)).await.unwrap_err();
    assert!(error.to_string().contains("1 buckets"), "{error}");
    let session = begin(&sink(&to), &what, &with(IfExists::Replace)).await.unwrap();
    assert_eq!(raw(&to, "t").await.len(), 1);
    session.abort().await;
    assert_eq!(names(&to).await, ["system.buckets.t", "system.views", "t"]);
}

#[tokio::test]
async fn documents_of_other_engines() {
    let to = Place::new().await;
    let what = described("folder", &[("books", Document::new()), ("a.b", Document::new())]);
    let target = sink(&to);
    let plan = target.prepare(&what, &with(IfExists::Fail)).await.unwrap();
    assert!(plan.losses.iter().any(|l| l.why.contains("_id is added")), "{:?}", plan.losses);
    let mut batch = BatchBuilder::new(CollectionId::new("books"), Kind::Document, Encoding::Json);
    batch.push(b"one", br#"{"n":1,"deep":{"$oid":"0123456789abcdef01234567"}}"#);
    batch.push(b"two", br#"{"a":2.5,"_id":7}"#);
    let report = restore(&target, &what, &[batch.take()], &with(IfExists::Fail)).await.unwrap();
    assert_eq!(report.documents, 2);
    assert_eq!(names(&to).await, ["a.b", "books"]);
    let oid = bson::oid::ObjectId::parse_str("0123456789abcdef01234567").unwrap();
    let mut found = raw(&to, "books").await;
    let mut expected = vec![bytes(doc! { "_id": "one", "n": 1, "deep": oid }), bytes(doc! { "_id": 7, "a": 2.5 })];
    found.sort();
    expected.sort();
    assert_eq!(found, expected);

    let session = begin(&target, &what, &with(IfExists::Merge)).await.unwrap();
    let mut odd = BatchBuilder::new(CollectionId::new("books"), Kind::Counter, Encoding::Json);
    odd.push(b"k", b"{}");
    assert_eq!(session.write(odd.take()).await.unwrap_err().kind(), ErrorKind::Unsupported);
    session.abort().await;

    let nowhere = MongoSink::new(Arc::new(Server::new(to.mongod.url(), None)));
    let error = nowhere.prepare(&what, &with(IfExists::Fail)).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("DATABASE"), "{error:?}");
}

#[tokio::test]
async fn users_and_roles() {
    let server = Arc::new(Mongod::start(Options::replica_set()));
    let to = Place::on(server.clone()).await;
    server.command(doc! { "createUser": "ann", "pwd": "x", "roles": ["read"] });
    server.command(doc! { "createRole": "r1", "privileges": [], "roles": [] });
    let admin =
        Place { mongod: server.clone(), name: "admin".into(), database: to.database.client().database("admin") };
    let (users, roles) = (raw(&admin, "system.users").await, raw(&admin, "system.roles").await);
    assert_eq!((users.len(), roles.len()), (1, 1));
    server.command(doc! { "dropUser": "ann" });
    server.command(doc! { "dropRole": "r1" });
    server.command(doc! { "createUser": "bob", "pwd": "x", "roles": ["read"] });
    let what =
        described("mongodb", &[("admin.system.users", Document::new()), ("admin.system.roles", Document::new())]);
    let batches = [batch_of("admin.system.users", &users), batch_of("admin.system.roles", &roles)];
    for _ in 0..2 {
        restore(&sink(&to), &what, &batches, &with(IfExists::Fail)).await.unwrap();
        let now = raw(&admin, "system.users").await;
        assert!(now.len() == 2 && now.contains(&users[0]));
        assert_eq!(raw(&admin, "system.roles").await, roles);
    }
    let left: Vec<_> = names(&admin).await.into_iter().filter(|n| n.contains("rewound")).collect();
    assert!(left.is_empty(), "{left:?}");
}
