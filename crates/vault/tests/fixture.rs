//! Vaults of format 1 as a released program wrote them. They are never written again: whatever
//! changes, they must be readable for ever.
//!
//! They were made by this test with `REWOUND_WRITE_FIXTURE=NAME`, which refuses to overwrite them. The first
//! two are from before there was a change log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use futures::TryStreamExt;
use model::{
    BatchBuilder, ChangeBatch, CollectionId, Consistency, Encoding, EngineTime, Kind, Position, Seams, Selection,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vault::storage::{LocalStorage, Storage};
use vault::{Access, BackupOptions, Flush, Identity, PointDetails, Vault, VerifyOptions};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1")
}

/// The two states that the fixture holds.
fn worlds() -> [World; 2] {
    let world = |version: u8| {
        let mut files = Model::default();
        for i in 0..20u8 {
            let body = format!("{{\"n\": {i}.0, \"é\":\"\\ud83d\", \"v\":{}}}", if i % 7 == 0 { version } else { 0 });
            files.documents.push((format!("key {i}/ü").into_bytes(), body.into_bytes()));
        }
        files.documents.truncate(usize::from(21 - version));
        files.documents.push((vec![0xff, 0, version], b"[]".to_vec()));
        files.attachments.insert("key 1/ü/small".into(), vec![version; 500]);
        files.attachments.insert("key 1/ü/large".into(), vec![7; 1_200_000]);
        let lines = (0..5u8).map(|i| (vec![b'0' + i], vec![b'0' + i, b' '])).collect();
        World::from([
            ("files".into(), files),
            ("lines".into(), Model { ordered: true, documents: lines, ..Model::default() }),
            ("empty".into(), Model::default()),
        ])
    };
    [world(1), world(2)]
}

async fn write(path: &Path, plain: bool) {
    assert!(!path.exists(), "a fixture is never written twice");
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::open(path).unwrap());
    let mut keys = Keys::new(1);
    keys.identity = Identity::generate();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if !plain {
        std::fs::write(path.with_extension("key"), keys.identity.secret_text()).unwrap();
    }
    let vault = init(storage, &keys, plain).await.unwrap();
    for (i, world) in worlds().iter().enumerate() {
        keys.clock.advance(60_000);
        let options = BackupOptions { workers: 1, ..BackupOptions::default() };
        backup(&vault, "fixture", world, 1000 * (i as u64 + 1), options).await.unwrap();
    }
    // Two flushes that are rolled up, a third, and a point; and one more of a run that died.
    keys.clock.advance(60_000);
    let run = vault.start_run(&description("fixture", &worlds()[1]), BackupOptions::default()).await.unwrap();
    run.follow_from(&Position("2000".into()), EngineTime::wall(2000)).await.unwrap();
    for time in [2100, 2200, 2300] {
        run.append(flush(time)).await.unwrap();
        if time == 2200 {
            run.roll_up().await;
        }
    }
    let details = PointDetails {
        time: EngineTime::wall(2300),
        consistency: Consistency::OneTime,
        position: Some(Position("2300".into())),
        gap: None,
        skipped: vec![],
    };
    run.commit(details).await.unwrap();
    let run = vault.start_run(&description("fixture", &worlds()[1]), BackupOptions::default()).await.unwrap();
    run.follow_from(&Position("2300".into()), EngineTime::wall(2300)).await.unwrap();
    run.append(flush(2400)).await.unwrap();
}

/// The flush up to a time: a put, a deletion of an older one, and a new collection.
fn flush(time: i64) -> Flush {
    let (files, time) = (CollectionId::new("files"), EngineTime::wall(time));
    let change = |kind: Kind, key: String, body: String| {
        let mut builder = BatchBuilder::new(files.clone(), kind, Encoding::Json);
        builder.push(key.as_bytes(), body.as_bytes());
        ChangeBatch { batch: builder.take(), times: vec![time] }
    };
    let changes = vec![
        change(Kind::Document, format!("log {}", time.millis), format!("{{\"time\":{}}}", time.millis)),
        change(Kind::Tombstone, format!("log {}", time.millis - 100), String::new()),
    ];
    let made = info(&format!("made {}", time.millis), false);
    Flush { to: Position(time.millis.to_string()), time, changes, catalog: vec![(made.id.clone(), Some(made), time)] }
}

async fn read(path: &Path, plain: bool, log: bool) {
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::open(path).unwrap());
    let identities = match plain {
        true => Vec::new(),
        false => Identity::parse_file(&std::fs::read_to_string(path.with_extension("key")).unwrap()).unwrap(),
    };
    let access = Access { identities, config: None, seams: Seams::system() };
    let vault = Vault::open(storage, access).await.unwrap();
    let points = vault.points().await.unwrap();
    assert_eq!((points.points.len(), points.broken.len()), (if log { 3 } else { 2 }, 0));
    for (point, world) in points.points.iter().zip(worlds()) {
        assert!(same(&restore(&vault, point).await.unwrap(), &world));
    }
    let versions = vault.find("files", "key 7/ü".as_bytes(), None).await.unwrap();
    assert_eq!(versions.len(), 2);
    let report = vault.verify(&VerifyOptions::default(), &|_| {}).await.unwrap();
    assert!(report.damages.is_empty() && report.notes.is_empty(), "{report:?}");
    if !log {
        return;
    }
    let source = &points.points[0].name.source;
    let all = Selection::default();
    let mut states = vec![(2300, vault.resolve(&points.points[2], &all, None).await.unwrap())];
    for (asked, given) in [(2450, 2400), (2300, 2300), (2250, 2200), (2199, 2100), (2099, 2000)] {
        states.push((given, vault.resolve_at(source, EngineTime::wall(asked), &all, None).await.unwrap()));
    }
    for (given, state) in states {
        assert_eq!(state.time(), EngineTime::wall(given));
        let mut documents = BTreeMap::new();
        for collection in state.collections() {
            let batches: Vec<_> = state.read(collection).try_collect().await.unwrap();
            for batch in batches.iter().filter(|b| b.kind != Kind::Attachment && b.collection.as_str() == "files") {
                (0..batch.len())
                    .for_each(|i| drop(documents.insert(batch.key_of(i).to_vec(), batch.body_of(i).to_vec())));
            }
        }
        let made = state.collections().iter().filter(|c| c.info.name.starts_with("made ")).count();
        assert_eq!(made as i64, (given - 2000) / 100);
        assert_eq!(documents.len(), 20 + usize::from(given > 2000));
        if given > 2000 {
            let body = format!("{{\"time\":{given}}}");
            assert_eq!(documents[format!("log {given}").as_bytes()], body.as_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_of_format_1_are_readable_for_ever() {
    for (name, plain, log) in
        [("encrypted", false, false), ("plain", true, false), ("log-encrypted", false, true), ("log-plain", true, true)]
    {
        let path = folder().join(name);
        if std::env::var_os("REWOUND_WRITE_FIXTURE").is_some_and(|wanted| wanted == name) {
            write(&path, plain).await;
        }
        read(&path, plain, log).await;
    }
}
