//! Archives of mongodump.
#![allow(clippy::unwrap_used)]

mod archives;
mod common;
mod dumps;

use dumps::{bodies, gzip, read, read_all, skip_bad};
use model::{Consistency, ErrorKind, Plan, Selection, Source};
use mongo::DumpSource;
use mongo::dump::archive;
use std::fs;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn archives() {
    let (bytes, documents) = archives::mixed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.archive");
    for content in [bytes.clone(), gzip(&bytes)] {
        fs::write(&path, content).unwrap();
        let all = read_all(&path).await;
        let names: Vec<&str> = all.collections.keys().map(String::as_str).collect();
        assert_eq!(names, ["db.a", "db.b", "db.metrics", "db.view"]);
        for (name, expected) in &documents {
            assert_eq!(&bodies(&all, name), expected);
        }
        assert_eq!(all.collections["db.metrics"].0.id.as_str(), "dump:db.metrics");
        let description = DumpSource::new(&path).describe().await.unwrap();
        assert_eq!(description.version, "6.0.5");
        assert!(description.losses.iter().any(|l| l.why.contains("--oplogReplay")), "{:?}", description.losses);
        testkit::source::conformance_of_keys(
            || Arc::new(DumpSource::new(&path)),
            |key| Some(mongo::keys::text(key)).filter(|text| mongo::keys::keys(text) == [key]),
        )
        .await;
    }
    let plan = DumpSource::new(&path).plan(&Selection::default(), None).await.unwrap();
    assert!(matches!(plan, Plan::Scan { consistency: Consistency::PerDocument, at: None, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cut_of_an_archive_is_refused() {
    let (bytes, _) = archives::mixed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.archive");
    for cut in 0..bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        let error = read(&path, &Selection::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{cut}: {error}");
        assert!(error.to_string().contains("x.archive") && error.hint_text().is_some(), "{cut}: {error}");
    }
    let packed = gzip(&bytes);
    for cut in 0..packed.len() {
        fs::write(&path, &packed[..cut]).unwrap();
        assert_eq!(read(&path, &Selection::default()).await.unwrap_err().kind(), ErrorKind::Corrupt, "{cut}");
    }
}

#[test]
fn every_flipped_bit_of_documents_in_an_archive_is_seen() {
    let (bytes, _) = archives::mixed();
    let index = |bytes: &[u8]| archive::index(bytes).unwrap();
    let sound = index(&bytes);
    assert!(sound.flaw.is_none() && sound.stored.values().all(|s| s.flaw.is_none()));
    let prelude = bytes.windows(4).position(|w| w == [0xFF; 4]).unwrap();
    for at in prelude + 4..bytes.len() {
        for bit in 0..8 {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << bit;
            let index = index(&wrong);
            let is_seen = index.flaw.is_some() || index.stored.values().any(|s| s.flaw.is_some());
            assert!(is_seen, "bit {bit} of byte {at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sound_in_a_damaged_archive_is_kept_on_request() {
    let (mut bytes, documents) = archives::mixed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.archive");
    // One letter within a document: only the checksum tells.
    let at = bytes.windows(5).position(|w| w == b"beta\0").unwrap();
    bytes[at] = b'B';
    fs::write(&path, &bytes).unwrap();
    let error = read(&path, &Selection::default()).await.unwrap_err();
    assert!(error.to_string().contains("collection db.b") && error.to_string().contains("checksum"), "{error}");
    let all = read(&path, &skip_bad()).await.unwrap();
    assert_eq!(bodies(&all, "db.a"), documents["db.a"]);
    assert_eq!(all.skipped.len(), 1);
    let others = Selection { exclude: vec!["db.b".into()], ..Selection::default() };
    assert_eq!(read(&path, &others).await.unwrap().collections.len(), 3);

    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let all = read(&path, &skip_bad()).await.unwrap();
    assert_eq!(bodies(&all, "db.a"), documents["db.a"]);
    assert!(all.skipped.iter().any(|s| s.why.contains("its end is missing") || s.why.contains("middle")));
}
