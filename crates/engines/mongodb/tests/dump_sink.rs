//! Writing folders as mongodump does, without a server.
#![allow(clippy::unwrap_used)]

mod common;
mod dumps;

use bson::doc;
use dumps::{Sample, batch, bodies, dumped, files, fixture, info, read_all, sample, write};
use model::{Batch, CollectionId, Description, Encoding, Engine, ErrorKind, IfExists, RestoreOptions, Sink, Source};
use mongo::{CollectionKind, DumpSink, DumpSource, Options};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use testkit::source::MemoryAttachments;

#[tokio::test(flavor = "multi_thread")]
async fn large_documents_and_many_small_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dump");
    let info = info("a", "db.c", CollectionKind::Collection, doc! {}, vec![]);
    let large = |i: i32| doc! { "_id": i, "x": "y".repeat((16 << 20) - 40) }.to_vec().unwrap();
    let small: Vec<Vec<u8>> = (10..50_000).map(|i| doc! { "_id": i }.to_vec().unwrap()).collect();
    let mut documents = vec![large(1), large(2)];
    documents.extend(small);
    documents.push(large(3));
    let description = Description { collections: vec![info.clone()], ..sample().description };
    let sample = Sample { description, batches: vec![batch(&info, &documents)] };
    for gzip in [false, true] {
        let options = RestoreOptions { if_exists: IfExists::Replace, ..RestoreOptions::default() };
        if gzip {
            fs::remove_dir_all(&path).unwrap();
        }
        let report = write(&DumpSink::new(&path).gzip(gzip), &sample, &options).await.unwrap();
        assert_eq!(report.documents, documents.len() as u64);
        assert!(bodies(&read_all(&path).await, "db.c") == documents);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_twice_counts_once_and_giving_up_leaves_nothing() {
    for gzip in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/dump");
        let sink = DumpSink::new(&path).gzip(gzip);
        let sample = sample();
        let options = RestoreOptions::default();
        let begin = || async {
            let plan = sink.prepare(&sample.description, &options).await.unwrap();
            sink.begin(plan, Arc::new(MemoryAttachments::default())).await.unwrap()
        };
        let session = begin().await;
        session.catalog(&sample.description.collections[0]).await.unwrap();
        session.write(sample.batches[0].clone()).await.unwrap();
        assert!(!path.exists(), "nothing is to be seen before all is there");
        assert_eq!(session.abort().await.what, Vec::<String>::new());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let session = begin().await;
        for info in &sample.description.collections {
            session.catalog(info).await.unwrap();
        }
        for _ in 0..2 {
            let writes = sample.batches.iter().map(|batch| session.write(batch.clone()));
            for done in futures::future::join_all(writes).await {
                done.unwrap();
            }
        }
        let report = session.finish().await.unwrap();
        let expected: usize = sample.batches.iter().map(Batch::len).sum();
        assert_eq!(report.documents, expected as u64);
        let all = read_all(&path).await;
        assert_eq!(all.collections.values().map(|(_, e)| e.len()).sum::<usize>(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_hold_something() {
    let (_dir, path) = dumped(false).await;
    let sample = sample();
    let with = |if_exists| RestoreOptions { if_exists, ..RestoreOptions::default() };
    let error = write(&DumpSink::new(&path), &sample, &with(IfExists::Fail)).await.unwrap_err();
    assert!(error.to_string().contains("db, other, prelude.json"), "{error}");
    let error = write(&DumpSink::new(&path), &sample, &with(IfExists::Merge)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.hint_text().unwrap().contains("replace"));

    // Only one collection is replaced, which lies there under another name of file.
    for end in ["bson", "metadata.json"] {
        fs::rename(path.join(format!("db/hard.{end}")), path.join(format!("db/renamed.{end}"))).unwrap();
    }
    let before = read_all(&path).await;
    let mut only = with(IfExists::Replace);
    only.selection.only = vec!["db.hard".into()];
    let mut changed = Sample { description: sample.description.clone(), batches: sample.batches[..1].to_vec() };
    changed.description.collections.truncate(1);
    write(&DumpSink::new(&path), &changed, &only).await.unwrap();
    let after = read_all(&path).await;
    assert_eq!((before.of("db.hard").len() > 6, after.of("db.hard").len()), (true, 6));
    assert!(!path.join("db/renamed.bson").exists());
    for (name, collection) in before.collections.iter().filter(|(name, _)| *name != "db.hard") {
        assert_eq!(&after.collections[name], collection);
    }
    let names = fs::read_dir(&path).unwrap().count();
    assert_eq!(names, 3, "nothing hidden is left");

    // mongorestore would read only half of it.
    let error = write(&DumpSink::new(&path).gzip(true), &changed, &only).await.unwrap_err();
    assert!(error.to_string().contains("only one kind"), "{error}");
    // All of it may change.
    write(&DumpSink::new(&path).gzip(true), &sample, &with(IfExists::Replace)).await.unwrap();
    assert!(files(&path).keys().all(|p| p.extension().unwrap() == "gz"));
    assert_eq!(read_all(&path).await.of("db.hard").len(), before.of("db.hard").len());

    // What a restore that was killed leaves is in nobody's way unseen.
    fs::create_dir(path.join(".rewound-0123")).unwrap();
    assert!(
        write(&DumpSink::new(&path), &sample, &with(IfExists::Replace))
            .await
            .unwrap_err()
            .to_string()
            .contains(".rewound-0123")
    );
    assert!(DumpSource::new(&path).describe().await.is_err());

    // An empty folder, which may be where a volume is mounted.
    let dir = tempfile::tempdir().unwrap();
    write(&DumpSink::new(dir.path()), &sample, &with(IfExists::Fail)).await.unwrap();
    assert_eq!(read_all(dir.path()).await.collections.len(), sample.description.collections.len());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_refused_first() {
    let dir = tempfile::tempdir().unwrap();
    let sink = DumpSink::new(dir.path().join("dump"));
    let sample = sample();
    let foreign = Description { engine: Engine::new("folder"), ..sample.description.clone() };
    let error = sink.prepare(&foreign, &RestoreOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.hint_text().unwrap().contains("folder:PATH"));
    for (from, to) in [("db.hard", "../x"), ("db.hard", "a/b.c"), ("db.hard", "plain"), ("db.hard", "db.log")] {
        let options = RestoreOptions { rename: vec![(from.into(), to.into())], ..RestoreOptions::default() };
        let error = sink.prepare(&sample.description, &options).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Input && error.hint_text().is_some(), "{to}: {error}");
    }
    let session = sink
        .begin(
            sink.prepare(&sample.description, &RestoreOptions::default()).await.unwrap(),
            Arc::new(MemoryAttachments::default()),
        )
        .await
        .unwrap();
    let json = Batch { encoding: Encoding::Json, ..sample.batches[0].clone() };
    assert_eq!(session.write(json).await.unwrap_err().kind(), ErrorKind::Unsupported);
    session.abort().await;
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read() {
    for gzip in [false, true] {
        let (dir, path) = dumped(gzip).await;
        let sample = sample();
        let all = read_all(&path).await;
        assert_eq!(all.collections.len(), sample.description.collections.len());
        for info in &sample.description.collections {
            let (read, _) = &all.collections[&info.name];
            let mut expected = info.clone();
            expected.id = match Options::from_json(&info.options).unwrap().kind {
                CollectionKind::Collection => info.id.clone(),
                CollectionKind::View => CollectionId::new(format!("view:{}", info.name)),
                CollectionKind::TimeSeries => CollectionId::new(format!("dump:{}", info.name)),
            };
            assert_eq!(read, &expected);
            let written: Vec<Vec<u8>> = sample
                .batches
                .iter()
                .filter(|b| b.collection == info.id)
                .flat_map(|b| (0..b.len()).map(|i| b.body_of(i).to_vec()))
                .collect();
            assert_eq!(bodies(&all, &info.name), written, "{}", info.name);
        }
        let description = DumpSource::new(&path).describe().await.unwrap();
        assert_eq!((description.engine.0.as_str(), description.version.as_str()), ("mongodb", "6.0.5"));
        assert_eq!(description.identity, format!("mongodump:{}", path.canonicalize().unwrap().display()));
        assert_eq!(description.losses, []);
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1, "nothing is left beside it");

        let names: Vec<String> = files(&path).keys().map(|p| p.display().to_string()).collect();
        let gz = if gzip { ".gz" } else { "" };
        for name in [
            "prelude.json",
            "db/empty.bson",
            "db/with%2Fslash.bson",
            "db/a+b.%C3%BC..c.metadata.json",
            "db/metrics.metadata.json",
            "db/system.buckets.metrics.bson",
            "db/view.metadata.json",
        ] {
            assert!(names.contains(&format!("{name}{gz}")), "{name} in {names:?}");
        }
        assert!(!names.iter().any(|n| n.contains("view.bson") || n.contains("db/metrics.bson")));
        assert!(names.iter().all(|n| n.len() <= 255 + "other/".len()));
    }
    let (_dir, path) = dumped(false).await;
    assert_eq!(fs::read(path.join("db/empty.bson")).unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mongodump_made_is_written_the_same() {
    let from = fixture().join("dump");
    let source = DumpSource::new(&from);
    let description = source.describe().await.unwrap();
    let all = read_all(&from).await;
    let batches = all.collections.values().filter(|(_, entries)| !entries.is_empty()).map(|(info, entries)| {
        let bodies: Vec<Vec<u8>> = entries.iter().map(|e| e.body.clone()).collect();
        batch(info, &bodies)
    });
    let sample = Sample { batches: batches.collect(), description };
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("again");
    write(&DumpSink::new(&to), &sample, &RestoreOptions::default()).await.unwrap();
    let (mut theirs, mut ours) = (files(&from), files(&to));
    theirs.retain(|path, _| !path.starts_with("admin"));
    let prelude = |files: &mut BTreeMap<PathBuf, Vec<u8>>| -> BTreeMap<String, String> {
        serde_json::from_slice(&files.remove(Path::new("prelude.json")).unwrap()).unwrap()
    };
    let (their, our) = (prelude(&mut theirs), prelude(&mut ours));
    assert_eq!(their["ServerVersion"], our["ServerVersion"]);
    assert!(our["ToolVersion"].starts_with("rewound "));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, bytes) in &theirs {
        assert_eq!(String::from_utf8_lossy(&ours[path]), String::from_utf8_lossy(bytes), "{}", path.display());
    }
}
