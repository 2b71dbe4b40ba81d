//! Dumps of a real server's databases, and back.
#![allow(clippy::unwrap_used)]

mod common;

use common::{entries, fill, restore, sink, source};
use couch::dump::{DumpSink, DumpSource, Form};
use model::{ErrorKind, Kind, RestoreOptions, Selection, Sink, Source};
use std::fs;
use std::sync::Arc;
use testkit::pouchdb::CouchServer;
use testkit::source::{Entry, read_everything};

async fn dumped(dump: &DumpSource) -> Vec<Entry> {
    let all = read_everything(dump, &Selection::default(), Arc::default()).await.unwrap().sorted();
    all.collections.into_values().next().unwrap().1
}

#[tokio::test]
async fn databases_become_dumps_and_databases_again() {
    let couch = CouchServer::shared();
    let from = couch.database();
    fill(&couch, &from);
    let here = source(&couch, &from);
    let folder = tempfile::tempdir().unwrap();
    let held: Vec<_> = entries(&here, &from).await;
    let held: Vec<_> =
        held.into_iter().filter(|e| e.kind == Kind::Document || e.kind == Kind::Meta("attached".into())).collect();
    for (form, name) in [
        (Form::CouchdbDump, "shop_backup.json"),
        (Form::CouchdbDump, "shop_backup.json.gz"),
        (Form::Couchbackup, "shop.txt"),
    ] {
        let path = folder.path().join(name);
        restore(&here, &DumpSink::new(&path, form), &RestoreOptions::default()).await.unwrap();
        let dump = DumpSource::new(&path, form);
        assert_eq!(dump.describe().await.unwrap().collections[0].name, "shop");
        assert_eq!(dumped(&dump).await, held, "{name}");
        let again = restore(&here, &DumpSink::new(&path, form), &RestoreOptions::default()).await.unwrap_err();
        assert!(again.to_string().contains("exists already"));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing else is left");

    // couchdb-dump's own restore sends the file as it is.
    let body = fs::read_to_string(folder.path().join("shop_backup.json")).unwrap();
    let by_hand = couch.database();
    let answer = couch.done("POST", &format!("/{by_hand}/_bulk_docs"), &body);
    assert!(answer.as_array().unwrap().is_empty(), "{answer}");
    let back = entries(&source(&couch, &by_hand), &by_hand).await;
    let back: Vec<_> = back.into_iter().filter(|e| e.kind == Kind::Document).collect();
    assert_eq!(back, held.iter().filter(|e| e.kind == Kind::Document).cloned().collect::<Vec<_>>());

    // And ours, from the dump.
    let to = couch.database_name();
    let dump = DumpSource::new(folder.path().join("shop.txt"), Form::Couchbackup);
    common::restore_from(&dump, &sink(&couch, &to), &RestoreOptions::default()).await.unwrap();
    let back = entries(&source(&couch, &to), &to).await;
    assert!(held.iter().all(|e| back.contains(e)));
}

#[tokio::test]
async fn damage_is_refused_with_its_place_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.json");
    let good = r#"{"_id":"a","_rev":"1-x","v":1}"#;
    let begin = r#"{"new_edits":false,"docs":["#;
    let read = |form| DumpSource::new(&path, form);
    // As couchdb-dump's sed mangles a document that has `,"doc":` in it.
    fs::write(&path, format!("{begin}\n{good},\n{{\"_id\":\"m\",\"_rev\":\"1-x\",\"t\":\"x{{\"_id\":1}},\n]}}\n"))
        .unwrap();
    let error = read(Form::CouchdbDump).plan(&Selection::default(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("d.json line 3, document m"), "{error}");
    assert!(error.hint_text().unwrap().contains("--skip-bad"));
    let skip = Selection { skip_bad: true, ..Selection::default() };
    let all = read_everything(&read(Form::CouchdbDump), &skip, Arc::default()).await.unwrap();
    assert_eq!((all.of("d").len(), all.skipped.len()), (1, 1));

    for (text, why) in [
        (format!("{begin}\n{good},\n"), "cut off"),
        ("<html>no</html>".to_owned(), "begins with"),
        (
            format!(
                "{begin}\n{good},\n{good},\n{{\"_id\":\"b\",\"_rev\":\"1-x\"}},\n{{\"_id\":\"a\",\"_rev\":\"2-x\"}}\n]}}"
            ),
            "was there before",
        ),
        (
            format!("{begin}\n{{\"_id\":\"a\",\"_rev\":\"1-x\",\"_attachments\":{{\"x\":{{\"stub\":true}}}}}}\n]}}"),
            "does not have the content of attachment x",
        ),
    ] {
        fs::write(&path, &text).unwrap();
        let error = read(Form::CouchdbDump).plan(&Selection::default(), None).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // Compressed, and cut off.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut packed, format!("{begin}\n{good}\n]}}\n").as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    fs::write(&path, &packed[..packed.len() - 6]).unwrap();
    let error = read(Form::CouchdbDump).plan(&Selection::default(), None).await.unwrap_err();
    assert!(error.to_string().contains("cut off or damaged"), "{error}");
}

#[tokio::test]
async fn a_shallow_backup_has_what_wins() {
    let couch = CouchServer::shared();
    let from = couch.database();
    fill(&couch, &from);
    let here = source(&couch, &from);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.txt");
    let sink_of = || DumpSink::new(&path, Form::Couchbackup).shallow(true);
    let plan = sink_of().prepare(&here.describe().await.unwrap(), &RestoreOptions::default()).await.unwrap();
    assert!(plan.losses.iter().any(|loss| loss.what.contains("conflicts")));
    restore(&here, &sink_of(), &RestoreOptions::default()).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().next().unwrap().contains(r#""mode":"shallow""#));
    assert!(!text.contains("_revisions") && !text.contains("_deleted"));
    let lines = text.lines().skip(1).flat_map(|line| serde_json::from_str::<Vec<serde_json::Value>>(line).unwrap());
    let written: std::collections::BTreeMap<String, serde_json::Value> =
        lines.map(|doc| (doc["_id"].as_str().unwrap().to_owned(), doc)).collect();
    let all = couch.done("GET", &format!("/{from}/_all_docs"), "");
    assert_eq!(written.len(), all["rows"].as_array().unwrap().len());
    assert_eq!((&written["conflict"]["_rev"], &written["conflict"]["v"]), (&"2-b2".into(), &"b".into()));
    assert_eq!(written["files"]["_attachments"]["b.txt"]["data"], "aGVsbG8gaGVsbG8=");
    // As couchrestore sends it.
    let docs: Vec<_> = written.into_values().filter(|doc| doc["_id"] != "_design/refuses").collect();
    let by_hand = couch.database();
    let body = serde_json::json!({ "new_edits": false, "docs": docs }).to_string();
    assert_eq!(couch.done("POST", &format!("/{by_hand}/_bulk_docs"), &body), serde_json::json!([]));
}
