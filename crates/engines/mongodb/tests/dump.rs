//! Reading folders of mongodump, without a server. `fixtures/mongodump` was made by mongodump 100.x
//! from a 6.0 server; the rest is made here.
#![allow(clippy::unwrap_used)]

mod common;
mod dumps;

use bson::{Document, doc};
use dumps::{bodies, dumped, files, fixture, gzip, read, read_all, skip_bad};
use model::{ErrorKind, Selection, Source};
use mongo::{CollectionKind, DumpSource, Options};
use std::fs;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn conformance() {
    for gzip in [false, true] {
        let (_dir, path) = dumped(gzip).await;
        testkit::source::conformance_of_keys(
            || Arc::new(DumpSource::new(&path)),
            |key| Some(mongo::keys::text(key)).filter(|text| mongo::keys::keys(text) == [key]),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mongodump_made_is_read() {
    let plain = read_all(&fixture().join("dump")).await;
    let names: Vec<&str> = plain.collections.keys().map(String::as_str).collect();
    let long = format!("shop.{}", "я".repeat(60));
    assert_eq!(
        names,
        [
            "other.x",
            "shop.a b.ü",
            "shop.books",
            "shop.cheap",
            "shop.clustered",
            "shop.empty",
            "shop.log",
            "shop.metrics",
            "shop.with/slash",
            &long
        ]
    );
    assert_eq!((plain.of("shop.books").len(), plain.of("shop.metrics").len()), (20, 2));
    let (books, _) = &plain.collections["shop.books"];
    let options = Options::from_json(&books.options).unwrap();
    assert_eq!((options.indexes.len(), books.id.as_str().len()), (4, 32));
    assert_eq!(options.indexes[1].get_document("key").unwrap(), &doc! { "title": 1, "n": -1 });
    let (metrics, _) = &plain.collections["shop.metrics"];
    let metrics = Options::from_json(&metrics.options).unwrap();
    assert_eq!(metrics.kind, CollectionKind::TimeSeries);
    assert_eq!(metrics.options.get_i64("expireAfterSeconds").unwrap(), 1_700_000_000);
    let log: Vec<i32> = bodies(&plain, "shop.log")
        .iter()
        .map(|b| Document::from_reader(&b[..]).unwrap().get_i32("_id").unwrap())
        .collect();
    assert_eq!((log, plain.collections["shop.log"].0.ordered), (vec![3, 1, 2], true));

    for other in ["dump.archive", "dump.archive.gz"] {
        let archive = read_all(&fixture().join(other)).await;
        assert_eq!(archive.sorted(), plain.clone().sorted(), "{other}");
        let description = DumpSource::new(fixture().join(other)).describe().await.unwrap();
        assert_eq!(description.version, "6.0.5");
    }
    let description = DumpSource::new(fixture().join("dump")).describe().await.unwrap();
    assert_eq!(description.version, "6.0.5");
    let losses: Vec<&str> = description.losses.iter().map(|l| l.what.as_str()).collect();
    assert_eq!(losses, ["admin.system.version"]);

    // One database, as mongodump -d makes it, and its folder by itself.
    for path in ["gz", "gz/shop"] {
        let gz = read_all(&fixture().join(path)).await;
        assert_eq!(gz.collections.len(), 9);
        for (name, collection) in &gz.collections {
            assert_eq!(collection, &plain.collections[name]);
        }
        assert_eq!(DumpSource::new(fixture().join(path)).describe().await.unwrap().version, "6.0.5");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cut_is_refused() {
    for packed in [false, true] {
        let (_dir, path) = dumped(packed).await;
        for (name, bytes) in files(&path) {
            let file = path.join(&name);
            let shown = name.display().to_string();
            let mut ends = vec![0];
            if shown.ends_with(".bson") {
                let mut docs = Vec::new();
                mongo::raw::sequence(&bytes, &mut docs).unwrap();
                ends.extend(docs.iter().map(|d| d.end as usize));
                // What no one can see: a plain file that is cut between two documents.
                assert!(bytes.is_empty() || ends.len() > 1);
            } else {
                ends.clear();
            }
            // Long files at every seventh byte.
            for cut in (0..bytes.len()).step_by(if bytes.len() > 150 { 7 } else { 1 }) {
                if ends.contains(&cut) {
                    continue;
                }
                fs::write(&file, &bytes[..cut]).unwrap();
                let error = read(&path, &Selection::default()).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{shown} at {cut}: {error}");
                let told = shown.rsplit('/').next().unwrap();
                assert!(error.to_string().contains(told) && error.hint_text().is_some(), "{shown} at {cut}: {error}");
            }
            fs::write(&file, &bytes).unwrap();
        }
        read_all(&path).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_of_a_compressed_file_is_seen() {
    let (_dir, path) = dumped(true).await;
    let file = path.join("db/hard.bson.gz");
    let bytes = fs::read(&file).unwrap();
    let all = bodies(&read_all(&path).await, "db.hard");
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1 << (at % 8);
        fs::write(&file, &wrong).unwrap();
        match read(&path, &Selection::default()).await {
            // Names, times and the like in a member's header have no checksum, and no meaning.
            Ok(read) => assert_eq!(bodies(&read, "db.hard"), all, "byte {at}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt, "byte {at}: {e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_with_its_place_and_left_out_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("dump/db");
    fs::create_dir_all(&folder).unwrap();
    let documents: Vec<Vec<u8>> =
        (0..1000).map(|i| doc! { "_id": i, "x": "y".repeat(i as usize) }.to_vec().unwrap()).collect();
    let before: usize = documents[..700].iter().map(Vec::len).sum();
    let mut bytes = documents.concat();
    bytes[before + 4] = 0x55;
    let path = dir.path().join("dump");
    for (name, content) in [("a.bson", bytes.clone()), ("b.bson.gz", gzip(&bytes))] {
        fs::write(folder.join(name), content).unwrap();
        let error = read(&path, &Selection::default()).await.unwrap_err();
        assert!(error.to_string().contains(&format!("{name}, at byte {}", before + 4)), "{error}");
        let all = read(&path, &skip_bad()).await.unwrap();
        let collection = format!("db.{}", &name[..1]);
        assert_eq!(bodies(&all, &collection), documents[..700], "{name}");
        assert_eq!(all.skipped.len(), 1);
        assert!(all.skipped[0].why.contains("700 documents come before"), "{:?}", all.skipped);
        // Whoever does not want that collection is not bothered.
        let others = Selection { exclude: vec![collection], ..Selection::default() };
        assert_eq!(read(&path, &others).await.unwrap().collections.len(), 0);
        fs::remove_file(folder.join(name)).unwrap();
    }
    // A compressed file that is cut: what could be decompressed is kept.
    let packed = gzip(&documents.concat());
    fs::write(folder.join("c.bson.gz"), &packed[..packed.len() / 2]).unwrap();
    let kept = bodies(&read(&path, &skip_bad()).await.unwrap(), "db.c");
    assert!(kept.len() < 1000 && kept == documents[..kept.len()], "{}", kept.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_for_one_collection_are_refused() {
    let (_dir, path) = dumped(false).await;
    let packed = gzip(&fs::read(path.join("db/hard.bson")).unwrap());
    fs::write(path.join("db/hard.bson.gz"), packed).unwrap();
    let error = read(&path, &Selection::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("db/hard.bson: hard.bson.gz is there, too"), "{error}");
    let rest = read(&path, &skip_bad()).await.unwrap();
    assert!(!rest.collections.contains_key("db.hard") && rest.skipped.len() == 1);
    fs::remove_file(path.join("db/hard.bson.gz")).unwrap();

    // Two files whose metadata gives the same name.
    fs::copy(path.join("db/empty.bson"), path.join("db/copy.bson")).unwrap();
    fs::copy(path.join("db/empty.metadata.json"), path.join("db/copy.metadata.json")).unwrap();
    let error = read(&path, &Selection::default()).await.unwrap_err().to_string();
    assert!(error.contains("copy.bson") && error.contains("empty.bson") && error.contains("db.empty"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_refused() {
    for (gone, told) in [
        ("db/hard.bson", "no file of documents"),
        ("db/metrics.metadata.json", "whose metadata is missing"),
        ("db/system.buckets.metrics.bson", "no file of documents"),
    ] {
        let (_dir, path) = dumped(false).await;
        fs::remove_file(path.join(gone)).unwrap();
        let error = read(&path, &Selection::default()).await.unwrap_err();
        assert!(error.to_string().contains(told), "{gone}: {error}");
    }
    let (_dir, path) = dumped(false).await;
    let long = fs::read_dir(path.join("db")).unwrap().map(|e| e.unwrap().path());
    let long = long.filter(|p| p.display().to_string().contains("%24")).find(|p| p.extension().unwrap() == "json");
    fs::remove_file(long.unwrap()).unwrap();
    let error = read(&path, &Selection::default()).await.unwrap_err();
    assert!(error.to_string().contains("its name is cut"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jobflow_remote_makes_is_read() {
    // `jf backup create --python`: no metadata. In mongodump's way files have the standard names, and
    // the metadata those of the project.
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("jf");
    fs::create_dir(&folder).unwrap();
    let one = doc! { "_id": 1 }.to_vec().unwrap();
    for name in ["jobs", "flows", "jf_auxiliary"] {
        fs::write(folder.join(format!("{name}.bson.gz")), gzip(&one)).unwrap();
    }
    fs::write(folder.join("batches.bson"), b"").unwrap();
    for path in [dir.path(), &folder] {
        let all = read_all(path).await;
        let names: Vec<&str> = all.collections.keys().map(String::as_str).collect();
        assert_eq!(names, ["jf.batches", "jf.flows", "jf.jf_auxiliary", "jf.jobs"]);
        assert_eq!(all.collections["jf.jobs"].0.id.as_str(), "dump:jf.jobs");
        let description = DumpSource::new(path).describe().await.unwrap();
        assert_eq!((description.losses.len(), description.version.as_str()), (1, "unknown"));
        assert!(description.losses[0].what.contains("jf.jobs"));
        assert!(description.losses[0].why.contains("jf admin index rebuild"));
    }
    let metadata = br#"{"indexes":[],"uuid":"","collectionName":"my_jobs","type":"collection"}"#;
    fs::write(folder.join("jobs.metadata.json.gz"), gzip(metadata)).unwrap();
    assert!(read_all(dir.path()).await.collections.contains_key("jf.my_jobs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_read_is_named() {
    let (_dir, path) = dumped(false).await;
    let one = doc! { "_id": 1 }.to_vec().unwrap();
    fs::create_dir_all(path.join("admin")).unwrap();
    fs::create_dir_all(path.join("notes")).unwrap();
    for name in ["oplog.bson", "admin/system.users.bson", "db/$admin.system.roles.bson", "config.bson.bak"] {
        fs::write(path.join(name), &one).unwrap();
    }
    let description = DumpSource::new(&path).describe().await.unwrap();
    let losses: Vec<(&str, &str)> = description.losses.iter().map(|l| (l.what.as_str(), l.why.as_str())).collect();
    assert_eq!(losses.len(), 3, "{losses:?}");
    assert_eq!(losses[0].0, "admin.system.users, db.$admin.system.roles");
    assert_eq!(losses[1].0, "config.bson.bak, notes/");
    assert!(losses[2].0 == "oplog.bson" && losses[2].1.contains("--oplogReplay"));
    let users = Selection { users: true, ..Selection::default() };
    assert_eq!(read(&path, &users).await.unwrap().of("admin.system.users").len(), 1);
    assert!(!read_all(&path).await.collections.contains_key("admin.system.users"));

    // A dump with files of a collection at its top is two things at once.
    fs::write(path.join("stray.bson"), &one).unwrap();
    let error = DumpSource::new(&path).describe().await.unwrap_err();
    assert!(error.to_string().contains("folder admin of another one"), "{error}");

    for (folder, kind) in [("nothing", ErrorKind::Missing), ("empty", ErrorKind::Input)] {
        let path = path.join("..").join(folder);
        if folder == "empty" {
            fs::create_dir(&path).unwrap();
        }
        assert_eq!(DumpSource::new(&path).describe().await.unwrap_err().kind(), kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_database_is_another_one() {
    let (_dir, path) = dumped(false).await;
    let before = read_all(&path).await;
    fs::create_dir(path.join("copy")).unwrap();
    for entry in fs::read_dir(path.join("db")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), path.join("copy").join(entry.file_name())).unwrap();
    }
    let all = read_all(&path).await;
    for (name, (info, entries)) in &before.collections {
        let Some(name) = name.strip_prefix("db.") else { continue };
        let (copy, copied) = &all.collections[&format!("copy.{name}")];
        assert_eq!((&copy.options, copied), (&info.options, entries));
    }
    let mut ids: Vec<&str> = all.collections.values().map(|(info, _)| info.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all.collections.len());
}
