//! What the tests of dumps share: a sample, written as a dump, and the dumps that mongodump made.
#![allow(dead_code, clippy::unwrap_used)]

use bson::{Document, doc};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use model::{
    Batch, CollectionId, CollectionInfo, Description, Encoding, Engine, FeedKind, Kind, RestoreOptions, RestoreReport,
    Result, Selection, Sink,
};
use mongo::{CollectionKind, DumpSink, DumpSource, Options};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use testkit::source::{Everything, MemoryAttachments, read_everything};

/// A database with one of each.
pub struct Sample {
    pub description: Description,
    pub batches: Vec<Batch>,
}

pub fn info(id: &str, name: &str, kind: CollectionKind, options: Document, indexes: Vec<Document>) -> CollectionInfo {
    let options = Options { kind, options, indexes };
    let id = if id.len() == 1 { id.repeat(32) } else { id.to_owned() };
    CollectionInfo {
        id: CollectionId::new(id),
        name: name.into(),
        ordered: options.is_capped(),
        options: options.to_json(),
    }
}

pub fn batch(info: &CollectionInfo, documents: &[Vec<u8>]) -> Batch {
    let mut docs = Vec::new();
    let body = documents.concat();
    mongo::raw::sequence(&body, &mut docs).unwrap();
    assert_eq!(docs.len(), documents.len());
    Batch {
        collection: info.id.clone(),
        kind: Kind::Document,
        encoding: Encoding::Bson,
        body: Bytes::from(body),
        keys: None,
        docs,
        attachments: Vec::new(),
    }
}

pub fn sample() -> Sample {
    let id = || doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" };
    let long = format!("db.{}", "я".repeat(100));
    let plain = |id_: &str, name: &str| info(id_, name, CollectionKind::Collection, doc! {}, vec![id()]);
    let collections = vec![
        info(
            "1",
            "db.hard",
            CollectionKind::Collection,
            doc! { "validator": { "z": { "$gt": 1i64 }, "a": { "$type": "int" } }, "collation": { "locale": "de" } },
            vec![id(), doc! { "v": 2, "key": { "b": 1, "a": -1.0 }, "name": "x", "unique": true }],
        ),
        info("2", "db.log", CollectionKind::Collection, doc! { "capped": true, "size": 4096 }, vec![id()]),
        info(
            "3",
            "db.metrics",
            CollectionKind::TimeSeries,
            doc! { "timeseries": { "timeField": "t" }, "expireAfterSeconds": 3_100_000_000i64 },
            vec![doc! { "v": 2, "key": { "m": 1 }, "name": "m_1" }],
        ),
        info("dump:db.view", "db.view", CollectionKind::View, doc! { "viewOn": "hard", "pipeline": [] }, vec![]),
        plain("4", "db.empty"),
        plain("5", "db.with/slash"),
        plain("6", "db.a b.ü..c"),
        plain("7", &long),
        plain("8", "other.system.js"),
        plain("dump:other.no uuid", "other.no uuid"),
        // The names of both of its files are cut.
        info(
            "9",
            &format!("db.{}", "ü".repeat(100)),
            CollectionKind::TimeSeries,
            doc! { "timeseries": { "timeField": "t" } },
            vec![],
        ),
    ];
    let one = |n: i32| doc! { "_id": n }.to_vec().unwrap();
    let mut batches = vec![
        batch(&collections[0], &crate::common::hard_documents()[..6]),
        batch(&collections[0], &crate::common::hard_documents()[6..]),
        batch(&collections[1], &[one(3), one(1), one(2)]),
        batch(&collections[2], &[doc! { "_id": 1, "control": { "version": 1 }, "data": {} }.to_vec().unwrap()]),
    ];
    batches.extend(collections[5..].iter().map(|info| batch(info, &[one(7)])));
    let description = Description {
        engine: Engine::new("mongodb"),
        identity: "mongodb:x".into(),
        name: "x".into(),
        version: "6.0.5".into(),
        feed: FeedKind::EveryChange,
        collections,
        losses: Vec::new(),
    };
    Sample { description, batches }
}

pub async fn write(sink: &DumpSink, sample: &Sample, options: &RestoreOptions) -> Result<RestoreReport> {
    let plan = sink.prepare(&sample.description, options).await?;
    assert!(plan.losses.is_empty() && !plan.phases.is_empty());
    let ids: Vec<_> = plan.collections.iter().map(|c| c.info.id.clone()).collect();
    let session = sink.begin(plan, Arc::new(MemoryAttachments::default())).await?;
    for info in sample.description.collections.iter().filter(|info| ids.contains(&info.id)) {
        session.catalog(info).await?;
    }
    for batch in sample.batches.iter().filter(|batch| ids.contains(&batch.collection)) {
        session.write(batch.clone()).await?;
    }
    session.finish().await
}

pub async fn dumped(gzip: bool) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/dump");
    write(&DumpSink::new(&path).gzip(gzip), &sample(), &RestoreOptions::default()).await.unwrap();
    (dir, path)
}

pub async fn read(path: &Path, selection: &Selection) -> Result<Everything> {
    read_everything(&DumpSource::new(path), selection, Arc::default()).await
}

pub async fn read_all(path: &Path) -> Everything {
    read(path, &Selection::default()).await.unwrap()
}

pub fn bodies(all: &Everything, name: &str) -> Vec<Vec<u8>> {
    all.of(name).iter().map(|entry| entry.body.clone()).collect()
}

pub fn skip_bad() -> Selection {
    Selection { skip_bad: true, ..Selection::default() }
}

/// All files below a folder, by path.
pub fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(path).unwrap());
            }
        }
    }
    found
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mongodump")
}
