//! Points of changing sources restore exactly what was there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use model::{BatchBuilder, Consistency, Encoding, EngineTime, Kind};
use proptest::prelude::*;
use std::sync::Arc;
use vault::storage::{MemoryStorage, Storage};
use vault::{Access, BackupOptions, PointDetails, VerifyOptions};

fn memory(keys: &Keys) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new(keys.seams.clock.clone()))
}

fn options() -> BackupOptions {
    BackupOptions { level: 1, workers: 2, ..BackupOptions::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// One step of a source's life.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, u16),
    Delete(u8, u8),
    Insert(u8, u8, u16),
    Attach(u8, u8, u32),
    Drop(u8),
    Backup,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u8, 0..30u8, any::<u16>()).prop_map(|(c, k, v)| Step::Put(c, k, v)),
        3 => (0..3u8, 0..30u8).prop_map(|(c, k)| Step::Delete(c, k)),
        1 => (0..3u8, 0..30u8, any::<u16>()).prop_map(|(c, k, v)| Step::Insert(c, k, v)),
        1 => (0..3u8, 0..4u8, 0..2_500_000u32).prop_map(|(c, k, v)| Step::Attach(c, k, v)),
        1 => (0..3u8).prop_map(Step::Drop),
        2 => Just(Step::Backup),
    ]
}

fn apply(world: &mut World, step: &Step) {
    let name = |c: &u8| format!("c{c}");
    let body = |v: &u16| format!("{{\"v\":{v},\"pad\":\"{}\"}}", "x".repeat(usize::from(*v) % 90)).into_bytes();
    let key = |k: &u8| format!("k{k}").into_bytes();
    match step {
        Step::Put(c, k, v) | Step::Insert(c, k, v) => {
            let model = world.entry(name(c)).or_insert_with(|| Model { ordered: *c == 0, ..Model::default() });
            let at = model.documents.iter().position(|(d, _)| *d == key(k));
            match (at, step) {
                (Some(at), _) => model.documents[at].1 = body(v),
                (None, Step::Insert(..)) => model.documents.insert(0, (key(k), body(v))),
                (None, _) => model.documents.push((key(k), body(v))),
            }
        }
        Step::Delete(c, k) => {
            if let Some(model) = world.get_mut(&name(c)) {
                model.documents.retain(|(d, _)| *d != key(k));
            }
        }
        Step::Attach(c, k, v) => {
            if let Some(model) = world.get_mut(&name(c)) {
                let content = vec![(*v % 251) as u8; *v as usize % if *k == 0 { 2_500_000 } else { 5000 }];
                model.attachments.insert(format!("a{k}"), content);
            }
        }
        Step::Drop(c) => {
            world.remove(&name(c));
        }
        Step::Backup => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_point_restores_its_state(steps in proptest::collection::vec(step(), 1..60), plain: bool, seed: u64) {
        runtime().block_on(async {
            let keys = Keys::new(seed);
            let vault = init(memory(&keys), &keys, plain).await.unwrap();
            let mut world = World::new();
            let mut taken = Vec::new();
            for (time, step) in steps.iter().chain([&Step::Backup]).enumerate() {
                apply(&mut world, step);
                if matches!(step, Step::Backup) {
                    let (name, _) = backup(&vault, "s", &world, 1000 + time as u64, options()).await.unwrap();
                    taken.push((name, world.clone()));
                }
            }
            for (name, expected) in &taken {
                let point = point(&vault, name).await;
                let restored = restore(&vault, &point).await.unwrap();
                assert!(same(&restored, expected), "expected {expected:?}\ngot {restored:?}");
            }
            let report = vault.verify(&VerifyOptions::default(), &|_| {}).await.unwrap();
            assert!(report.damages.is_empty(), "{:?}", report.damages);
        });
    }
}

fn big_world(seed: u64, documents: usize) -> World {
    let random = |i: usize| blake3::hash(&[seed.to_le_bytes(), (i as u64).to_le_bytes()].concat());
    let body = |i: usize| {
        format!("{{\"_id\":{i},\"a\":\"{}\",\"b\":\"{}\"}}", random(i).to_hex(), "lorem ipsum ".repeat(20)).into_bytes()
    };
    let documents = (0..documents).map(|i| (format!("key-{i:08}").into_bytes(), body(i))).collect();
    World::from([("big".into(), Model { documents, ..Model::default() })])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_backup_adds_next_to_nothing_and_one_percent_adds_one_percent() {
    let keys = Keys::new(1);
    let vault = init(memory(&keys), &keys, false).await.unwrap();
    let mut world = big_world(1, 60_000);
    let (_, first) = backup(&vault, "s", &world, 1, options()).await.unwrap();
    let (_, second) = backup(&vault, "s", &world, 2, options()).await.unwrap();
    assert_eq!(second.totals.changed, 0);
    assert!(second.totals.stored * 1000 < first.totals.stored, "{} of {}", second.totals.stored, first.totals.stored);
    let big = &mut world.get_mut("big").unwrap().documents;
    for i in (0..big.len()).step_by(100) {
        big[i].1.extend_from_slice(b" ");
    }
    let (name, third) = backup(&vault, "s", &world, 3, options()).await.unwrap();
    assert_eq!(third.totals.changed, 600);
    assert!(third.totals.stored * 50 < first.totals.stored, "{} of {}", third.totals.stored, first.totals.stored);
    assert!(same(&restore(&vault, &point(&vault, &name).await).await.unwrap(), &world));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backup_of_the_same_documents_finds_its_segments() {
    let keys = Keys::new(1);
    for plain in [true, false] {
        let storage = memory(&keys);
        let vault = init(storage.clone(), &keys, plain).await.unwrap();
        let world = big_world(1, 60_000);
        let (_, first) = backup(&vault, "s", &world, 1, options()).await.unwrap();
        let (_, other) = backup(&vault, "another source", &world, 1, options()).await.unwrap();
        let filters = testkit::storage::list(&*storage, "filters/").await;
        let full = BackupOptions { full: true, ..options() };
        let (name, again) = backup(&vault, "s", &world, 2, full).await.unwrap();
        // In whatever order the segments were stored, the filter is the same.
        assert_eq!(testkit::storage::list(&*storage, "filters/").await, filters);
        for manifest in [&other, &again] {
            assert!(
                manifest.totals.stored * 10 < first.totals.stored,
                "{} of {}",
                manifest.totals.stored,
                first.totals.stored
            );
        }
        assert!(same(&restore(&vault, &point(&vault, &name).await).await.unwrap(), &world));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn find_shows_every_version() {
    let keys = Keys::new(2);
    let vault = init(memory(&keys), &keys, false).await.unwrap();
    let mut world = World::new();
    let texts: Vec<Option<&str>> = vec![None, Some("1"), Some("1"), Some("2"), None, Some("3")];
    for (time, text) in texts.iter().enumerate() {
        let model = world.entry("c".into()).or_default();
        model.documents.retain(|(k, _)| k == b"other");
        if model.documents.is_empty() {
            model.documents.push((b"other".to_vec(), b"0".to_vec()));
        }
        model.documents.extend(text.map(|t| (b"k".to_vec(), t.as_bytes().to_vec())));
        backup(&vault, "s", &world, 10 + time as u64, options()).await.unwrap();
        keys.clock.advance(1);
    }
    world.clear();
    backup(&vault, "s", &world, 20, options()).await.unwrap();
    let found = vault.find("c", b"k", None).await.unwrap();
    let seen: Vec<_> =
        found.iter().rev().map(|v| (v.time.order, v.deleted, String::from_utf8_lossy(&v.body).into_owned())).collect();
    let expected = [(11, false, "1"), (13, false, "2"), (14, true, ""), (15, false, "3"), (20, true, "")];
    assert_eq!(seen, expected.map(|(t, d, b)| (t, d, b.to_owned())));
    assert!(vault.find("c", b"nobody", None).await.unwrap().is_empty());
    assert!(vault.find("nowhere", b"k", None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_an_identity_writes_but_does_not_read() {
    let mut keys = Keys::new(3);
    let folder = tempfile::tempdir().unwrap();
    keys.config = Some(vault::Config::at(folder.path()));
    let storage = memory(&keys);
    init(storage.clone(), &keys, false).await.unwrap();
    let writer = Access { identities: Vec::new(), ..keys.reader() };
    let vault = vault::Vault::open(storage.clone(), writer.clone()).await.unwrap();
    let mut world = big_world(2, 500);
    backup(&vault, "s", &world, 1, options()).await.unwrap();
    world.get_mut("big").unwrap().documents.truncate(400);
    world.get_mut("big").unwrap().documents[7].1 = b"{}".to_vec();
    let (name, manifest) = backup(&vault, "s", &world, 2, options()).await.unwrap();
    assert_eq!((manifest.totals.changed, manifest.totals.deleted), (1, 100));
    let error = vault.resolve(&point(&vault, &name).await, &Default::default(), None).await.unwrap_err();
    assert_eq!(error.kind(), model::ErrorKind::Credentials);
    assert!(error.hint_text().unwrap().contains("--identity"));
    let report = vault.verify(&VerifyOptions { quick: true, ..VerifyOptions::default() }, &|_| {}).await.unwrap();
    assert!(report.damages.is_empty() && report.checked_references);
    assert!(vault.verify(&VerifyOptions::default(), &|_| {}).await.is_err());

    // A host with neither can still check every stored byte.
    let nobody = Access { config: None, ..writer };
    let blind = vault::Vault::open(storage.clone(), nobody).await.unwrap();
    let report = blind.verify(&VerifyOptions { quick: true, ..VerifyOptions::default() }, &|_| {}).await.unwrap();
    assert!(report.damages.is_empty() && !report.checked_references);
    assert_eq!(report.points, 2);

    // A reader elsewhere, without the config, reads all of it.
    let reader = Access { config: None, ..keys.reader() };
    let vault = vault::Vault::open(storage.clone(), reader).await.unwrap();
    assert!(same(&restore(&vault, &point(&vault, &name).await).await.unwrap(), &world));

    let stranger = Access { identities: vec![vault::Identity::generate()], ..keys.reader() };
    assert_eq!(vault::Vault::open(storage, stranger).await.unwrap_err().kind(), model::ErrorKind::Credentials);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks_in_clear() {
    let keys = Keys::new(4);
    let storage = memory(&keys);
    let vault = init(storage.clone(), &keys, false).await.unwrap();
    let model = Model {
        documents: vec![(b"SECRET-key".to_vec(), b"{\"x\":\"SECRET-body\"}".to_vec())],
        attachments: [("SECRET-att".to_owned(), b"SECRET-content".to_vec())].into(),
        ..Model::default()
    };
    let world = World::from([("SECRET-name".into(), model)]);
    backup(&vault, "SECRET-source", &world, 1, options()).await.unwrap();
    use futures::TryStreamExt;
    let all: Vec<_> = storage.list("").await.unwrap().try_collect().await.unwrap();
    assert!(all.len() > 5);
    for entry in all {
        let bytes = storage.read(&entry.name).await.unwrap();
        assert!(!entry.name.contains("SECRET"));
        assert!(!bytes.windows(6).any(|w| w == b"SECRET"), "{}", entry.name);
        assert!(entry.name == "vault.json" || bytes.starts_with(b"age-encryption.org/v1"), "{}", entry.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tiny_collections_share_few_objects() {
    use futures::TryStreamExt;
    let keys = Keys::new(5);
    let storage = memory(&keys);
    let vault = init(storage.clone(), &keys, false).await.unwrap();
    let one = |i: usize| Model {
        documents: vec![(b"k".to_vec(), format!("{{\"i\":{i}}}").into_bytes())],
        ..Model::default()
    };
    let mut world: World = (0..5_000).map(|i| (format!("collection-{i:06}"), one(i))).collect();
    let (name, _) = backup(&vault, "s", &world, 1, options()).await.unwrap();
    let objects: Vec<_> = storage.list("").await.unwrap().try_collect().await.unwrap();
    assert!(objects.len() < 15, "{}", objects.len());
    assert!(same(&restore(&vault, &point(&vault, &name).await).await.unwrap(), &world));
    world.insert("collection-000007".into(), one(0));
    let (name, manifest) = backup(&vault, "s", &world, 2, options()).await.unwrap();
    assert_eq!(manifest.totals.changed, 1);
    assert!(same(&restore(&vault, &point(&vault, &name).await).await.unwrap(), &world));
}

/// What was discarded while a run went on stays in segments that are stored already, and in their
/// key filters, but is no version of anything.
#[tokio::test]
async fn find_does_not_show_what_was_discarded() {
    let keys = Keys::new(8);
    let vault = init(memory(&keys), &keys, false).await.unwrap();
    let world = World::from([("c".to_owned(), Model::default())]);
    let run = vault.start_run(&description("s", &world), options()).await.unwrap();
    let info = info("c", false);
    let write = async |version: &str, documents: std::ops::Range<usize>| {
        run.begin(&info).await.unwrap();
        for i in documents {
            let body = format!("\"{version}{}\"", "x".repeat(1 << 20));
            let mut builder = BatchBuilder::new(info.id.clone(), Kind::Document, Encoding::Json);
            builder.push(format!("k{i}").as_bytes(), body.as_bytes());
            run.write(builder.take()).await.unwrap();
        }
    };
    // More than a segment each time.
    write("old", 0..30).await;
    run.discard(&info.id).await;
    write("new", 0..20).await;
    run.end(&info.id).await.unwrap();
    let details = PointDetails {
        time: EngineTime::wall(1000),
        consistency: Consistency::OneTime,
        position: None,
        gap: None,
        skipped: Vec::new(),
    };
    run.commit(details).await.unwrap();
    for i in 0..30 {
        let found = vault.find("c", format!("k{i}").as_bytes(), None).await.unwrap();
        let versions: Vec<_> = found.iter().map(|v| std::str::from_utf8(&v.body[1..4]).unwrap()).collect();
        assert_eq!(versions, if i < 20 { vec!["new"] } else { vec![] }, "k{i}");
    }
}
