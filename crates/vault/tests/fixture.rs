//! Vaults of format 1 as a released program wrote them. They are never written again: whatever
//! changes, they must be readable for ever.
//!
//! They were made by this test with `REWOUND_WRITE_FIXTURE=1`, which refuses to overwrite them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use futures::TryStreamExt;
use model::{BatchBuilder, ChangeBatch, CollectionId, Encoding, EngineTime, Kind, Position, Seams, Selection};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vault::storage::{LocalStorage, Storage};
use vault::{Access, BackupOptions, Flush, Identity, Vault, VerifyOptions};

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
    let mut source = String::new();
    for (i, world) in worlds().iter().enumerate() {
        keys.clock.advance(60_000);
        let options = BackupOptions { workers: 1, ..BackupOptions::default() };
        source = backup(&vault, "fixture", world, 1000 * (i as u64 + 1), options).await.unwrap().0.source;
    }
    let mut log = vault.start_log(&source, Encoding::Json).await.unwrap();
    let mut builder = BatchBuilder::new(CollectionId::new("files"), Kind::Document, Encoding::Json);
    builder.push(b"from the log", b"{\"log\":true}");
    let time = EngineTime::wall(2500);
    let changes = vec![ChangeBatch { batch: builder.take(), times: vec![time] }];
    let (from, to) = (Position("2000".into()), Position("2500".into()));
    log.append(Flush { from, to, time, changes, catalog: vec![] }).await.unwrap();
}

async fn read(path: &Path, plain: bool) {
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::open(path).unwrap());
    let identities = match plain {
        true => Vec::new(),
        false => Identity::parse_file(&std::fs::read_to_string(path.with_extension("key")).unwrap()).unwrap(),
    };
    let access = Access { identities, config: None, seams: Seams::system() };
    let vault = Vault::open(storage, access).await.unwrap();
    let points = vault.points().await.unwrap();
    assert_eq!((points.points.len(), points.broken.len()), (2, 0));
    for (point, world) in points.points.iter().zip(worlds()) {
        assert!(same(&restore(&vault, point).await.unwrap(), &world));
    }
    let versions = vault.find("files", "key 7/ü".as_bytes(), None).await.unwrap();
    assert_eq!(versions.len(), 2);
    let report = vault.verify(&VerifyOptions::default(), &|_| {}).await.unwrap();
    assert!(report.damages.is_empty() && report.notes.is_empty(), "{report:?}");
    let source = &points.points[0].name.source;
    let state = vault.resolve_at(source, EngineTime::wall(2600), &Selection::default(), None).await.unwrap();
    let mut documents = BTreeMap::new();
    for collection in state.collections() {
        let batches: Vec<_> = state.read(collection).try_collect().await.unwrap();
        for batch in batches.iter().filter(|b| b.kind != Kind::Attachment) {
            (0..batch.len()).for_each(|i| drop(documents.insert(batch.key_of(i).to_vec(), batch.body_of(i).to_vec())));
        }
    }
    assert_eq!(documents[&b"from the log"[..]], b"{\"log\":true}");
    assert_eq!(documents.len(), 26);
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_of_format_1_are_readable_for_ever() {
    for (name, plain) in [("encrypted", false), ("plain", true)] {
        let path = folder().join(name);
        if std::env::var_os("REWOUND_WRITE_FIXTURE").is_some() {
            write(&path, plain).await;
        }
        read(&path, plain).await;
    }
}
