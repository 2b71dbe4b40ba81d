//! Rewinding a database that clients replicate with, on a real server.
#![allow(clippy::unwrap_used)]

mod common;

use common::{fill, leaf, restore, server, sink, source};
use couch::CouchSink;
use futures::StreamExt;
use model::{ErrorKind, IfExists, Plan, RestoreOptions, ScanItem, Selection, Sink, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::pouchdb::CouchServer;
use testkit::source::MemoryAttachments;
use testkit::web::{Answer, Web};

fn anew() -> RestoreOptions {
    RestoreOptions { if_exists: IfExists::Merge, as_new_revisions: true, ..RestoreOptions::default() }
}

/// An id or a name as a part of a path.
fn path(id: &str) -> String {
    let escaped = |b: u8| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") };
    id.bytes().map(escaped).collect::<String>().replace("%5Fdesign%2F", "_design/")
}

/// What wins of each document that is there, without its revisions, with the content of attachments.
fn winners(couch: &CouchServer, db: &str) -> BTreeMap<String, Value> {
    let all = couch.done("GET", &format!("/{db}/_all_docs?include_docs=true"), "");
    let mut found = BTreeMap::new();
    for row in all["rows"].as_array().unwrap() {
        let mut doc = row["doc"].as_object().unwrap().clone();
        doc.remove("_rev");
        let id = row["id"].as_str().unwrap().to_owned();
        if let Some(files) = doc.remove("_attachments") {
            for (name, about) in files.as_object().unwrap() {
                let (status, content) = couch.ask("GET", &format!("/{db}/{}/{}", path(&id), path(name)), "");
                assert_eq!(status, 200);
                doc.insert(format!("file {name}"), json!([about["content_type"], about["digest"], content]));
            }
        }
        found.insert(id, Value::Object(doc));
    }
    found
}

fn rev(couch: &CouchServer, db: &str, id: &str) -> String {
    couch.done("GET", &format!("/{db}/{}", path(id)), "")["_rev"].as_str().unwrap().to_owned()
}

/// Writes as a client does.
fn put(couch: &CouchServer, db: &str, id: &str, members: &str) {
    let (status, now) = couch.ask("GET", &format!("/{db}/{}", path(id)), "");
    let rev = (status == 200).then(|| serde_json::from_str::<Value>(&now).unwrap()["_rev"].to_string());
    let rev = rev.map(|rev| format!("\"_rev\":{rev},")).unwrap_or_default();
    couch.done("PUT", &format!("/{db}/{}", path(id)), &format!("{{{rev}{members}}}"));
}

fn replicate(couch: &CouchServer, from: &str, to: &str) {
    let url = |db: &str| couch.url(db).trim_start_matches("couchdb+").to_owned();
    let body = json!({ "source": url(from), "target": url(to) }).to_string();
    let ran = couch.done("POST", "/_replicate", &body);
    assert_eq!(ran["ok"], true, "{ran}");
}

/// A database as it was, the same as clients have changed it since, and a replica of that.
fn changed(couch: &CouchServer) -> [String; 3] {
    let [was, live, replica] = [couch.database(), couch.database(), couch.database()];
    fill(couch, &was);
    fill(couch, &live);
    // It would refuse clients, too.
    couch.done("DELETE", &format!("/{live}/_design/refuses?rev={}", rev(couch, &live, "_design/refuses")), "");
    replicate(couch, &live, &replica);
    for i in 0..5 {
        put(couch, &live, "plain", &format!(r#""v":{i}"#));
        put(couch, &live, "files", &format!(r#""v":{i}"#));
    }
    put(couch, &live, "conflict", r#""v":"resolved""#);
    put(couch, &live, "gone", r#""v":"is back""#);
    put(couch, &live, "doc0007", r#""_deleted":true"#);
    put(couch, &live, "a/b/c", r#""_deleted":true"#);
    put(couch, &live, "emoji😀", r#""v":1"#);
    put(couch, &live, "new", r#""v":1"#);
    couch.put_all(
        &live,
        &[
            leaf("doc0001", &["q3", "q2", "x1"], r#""other":1"#),
            leaf("doc0001", &["p3", "p2", "x1"], r#""other":2"#),
            leaf("strange", &["a1"], r#""v":1"#),
            leaf("strange", &["b1"], r#""v":2"#),
            leaf("never", &["b2", "b1"], r#""_deleted":true"#),
        ],
    );
    put(couch, &live, "_design/later", r#""views":{"a":{"map":"function(doc){emit(2)}"}}"#);
    couch.done("PUT", &format!("/{live}/_security"), r#"{"admins":{"names":["eve"]}}"#);
    [was, live, replica]
}

#[tokio::test]
async fn a_live_database_and_its_replica_become_what_they_were() {
    let couch = CouchServer::shared();
    let [was, live, replica] = changed(&couch);
    let (before, untouched) = (winners(&couch, &was), rev(&couch, &live, "doc0100"));
    assert_ne!(winners(&couch, &live), before);
    let there = sink(&couch, &live);
    let report = restore(&source(&couch, &was), &there, &anew()).await.unwrap();
    // plain, files, conflict, doc0007, a/b/c, emoji, doc0001, _design/refuses; gone, new, strange, _design/later.
    let line = report.notes.iter().find(|n| n.starts_with(&live)).unwrap();
    assert!(line.contains("8 documents changed") && line.contains("4 deleted"), "{line}");
    assert!(report.notes.iter().any(|n| n.contains("1 document had conflicts")), "{:?}", report.notes);
    assert_eq!(report.documents, 12);
    assert_eq!(winners(&couch, &live), before);
    assert_eq!(rev(&couch, &live, "doc0100"), untouched);
    assert_eq!(couch.done("GET", &format!("/{live}/_security"), "")["admins"]["names"][0], "eve");

    // Whoever replicates takes it. The document that refuses others would refuse them there, too.
    let refuses = format!("/{live}/_design/refuses?rev={}", rev(&couch, &live, "_design/refuses"));
    couch.done("DELETE", &refuses, "");
    replicate(&couch, &live, &replica);
    let mut expected = before.clone();
    expected.remove("_design/refuses");
    assert_eq!(winners(&couch, &replica), expected);

    // Once more there is nothing to be done, but for that document.
    let report = restore(&source(&couch, &was), &there, &anew()).await.unwrap();
    assert_eq!(report.documents, 1, "{:?}", report.notes);
}

#[tokio::test]
async fn a_rehearsal_tells_and_touches_nothing() {
    let couch = CouchServer::shared();
    let [was, live, _] = changed(&couch);
    let (here, there) = (source(&couch, &was), sink(&couch, &live));
    // Of a sequence only the number tells: the rest is which nodes of a cluster have answered.
    let writes = || {
        let seq = couch.done("GET", &format!("/{live}"), "")["update_seq"].clone();
        seq.as_str().map_or(seq.to_string(), |text| text.split('-').next().unwrap().to_owned())
    };
    let before = (winners(&couch, &live), writes());
    let Plan::Scan { parts, .. } = here.plan(&Selection::default(), None).await.unwrap() else { panic!("no scan") };
    let what = model::Description {
        collections: parts.iter().map(|p| p.collection.clone()).collect(),
        ..here.describe().await.unwrap()
    };
    let plan = there.prepare(&what, &anew()).await.unwrap();
    let rehearsal = there.rehearse(&plan).await.unwrap().unwrap();
    for part in &parts {
        let mut items = here.read(part, Arc::new(MemoryAttachments::default())).await.unwrap();
        while let Some(item) = items.next().await {
            match item.unwrap() {
                ScanItem::Batch(batch) if rehearsal.looks_at(batch.kind.space()) => {
                    rehearsal.see(&batch).await.unwrap()
                }
                _ => {}
            }
        }
    }
    let lines = rehearsal.lines().await.unwrap();
    assert!(lines[0].contains("8 documents changed") && lines[0].contains("4 deleted"), "{lines:?}");
    assert_eq!((winners(&couch, &live), writes()), before);
}

#[tokio::test]
async fn what_clients_write_meanwhile_is_seen() {
    let couch = CouchServer::shared();
    let (was, live) = (couch.database(), couch.database());
    couch.put_all(&was, &[leaf("a", &["a1"], r#""v":1"#), leaf("b", &["b1"], r#""v":1"#)]);
    couch.put_all(&live, &[leaf("a", &["c2", "c1"], r#""v":2"#), leaf("b", &["b1"], r#""v":1"#)]);
    // The thread may outlive the test, and the server must not.
    let (behind, name, first) = (Arc::downgrade(&couch), live.clone(), AtomicBool::new(true));
    let web = Web::start(move |asked| {
        let behind = behind.upgrade().unwrap();
        if asked.path.ends_with("_bulk_docs") && first.swap(false, Ordering::SeqCst) {
            // Faster than we are.
            put(&behind, &name, "a", r#""v":3"#);
        }
        let query = if asked.query.is_empty() { String::new() } else { format!("?{}", asked.query) };
        let body = String::from_utf8(asked.body.clone()).unwrap();
        let (status, answer) = behind.ask(&asked.method, &format!("{}{query}", asked.path), &body);
        Answer { status, ..Answer::json(answer) }
    });
    let login = couch.url(&live);
    let login = login.trim_start_matches("couchdb+http://").split_once('@').map_or("", |(user, _)| user).to_owned();
    let at = if login.is_empty() { String::new() } else { format!("{login}@") };
    let there = CouchSink::new(server(&format!("couchdb+http://{at}{}/{live}", web.host)));
    restore(&source(&couch, &was), &there, &anew()).await.unwrap();
    assert_eq!(winners(&couch, &live), winners(&couch, &was));
    assert!(rev(&couch, &live, "a").starts_with("4-"), "over what the client wrote");
    assert_eq!(rev(&couch, &live, "b"), "1-b1");
}

#[tokio::test]
async fn what_cannot_be_rewound_is_refused() {
    let couch = CouchServer::shared();
    let (was, live) = (couch.database(), couch.database());
    couch.put_all(&was, &[leaf("a", &["a1"], r#""v":1"#)]);
    let error = restore(&source(&couch, &was), &sink(&couch, &couch.database_name()), &anew()).await.unwrap_err();
    assert_eq!((error.kind(), error.hint_text().is_some()), (ErrorKind::Missing, true), "{error}");
    // A document of the target that refuses others is named.
    couch.put_all(
        &live,
        &[leaf("_design/no", &["e1"], r#""validate_doc_update":"function(){throw({forbidden:'never'})}""#)],
    );
    let error = restore(&source(&couch, &was), &sink(&couch, &live), &anew()).await.unwrap_err();
    assert!(error.to_string().contains("refuses document a"), "{error}");
    assert!(error.hint_text().unwrap().contains("validate_doc_update"));
}

/// Several batches side by side, with attachments, while a client changes the same documents.
#[tokio::test(flavor = "multi_thread")]
async fn many_are_brought_back_side_by_side() {
    const MANY: usize = 1500;
    let couch = CouchServer::shared();
    let [was, live] = [couch.database(), couch.database()];
    let document = |i: usize, by: &str| {
        let file = (i % 50 == 7).then(|| {
            let data = "QUFB".repeat(if i == 57 { 2 << 20 } else { i });
            format!(r#","_attachments":{{"f":{{"content_type":"x/y","data":"{data}"}}}}"#)
        });
        let text = "some text ".repeat(50);
        leaf(&format!("d{i}"), &["1"], &format!(r#""by":"{by}","text":"{text}"{}"#, file.unwrap_or_default()))
    };
    for from in (0..MANY).step_by(500) {
        couch.put_all(&was, &(from..from + 500).map(|i| document(i, "us")).collect::<Vec<_>>());
        // A third is as it was, a third says something else, a third is not there.
        let theirs = |i: usize| leaf(&format!("d{i}"), &["x", "1"], r#""by":"them""#);
        let others: Vec<String> = (from..from + 500)
            .filter(|i| i % 3 > 0)
            .map(|i| if i % 3 == 1 { document(i, "us") } else { theirs(i) })
            .collect();
        couch.put_all(&live, &others);
        couch.put_all(&live, &(from..from + 500).map(|i| leaf(&format!("new{i}"), &["1"], "")).collect::<Vec<_>>());
    }
    let over = Arc::new(AtomicBool::new(false));
    let client = std::thread::spawn({
        let (couch, live, over) = (couch.clone(), live.clone(), over.clone());
        move || {
            let mut written = 0;
            while !over.load(Ordering::SeqCst) {
                // Overtaken itself, it goes on.
                let id = format!("d{}", (written * 37) % MANY);
                let (status, now) = couch.ask("GET", &format!("/{live}/{id}"), "");
                let rev = (status == 200).then(|| serde_json::from_str::<Value>(&now).unwrap()["_rev"].to_string());
                let rev = rev.map(|rev| format!("\"_rev\":{rev},")).unwrap_or_default();
                couch.ask("PUT", &format!("/{live}/{id}"), &format!(r#"{{{rev}"by":"a client"}}"#));
                written += 1;
            }
            written
        }
    });
    let there = sink(&couch, &live);
    let first = restore(&source(&couch, &was), &there, &anew()).await;
    over.store(true, Ordering::SeqCst);
    assert!(client.join().unwrap() > 0);
    first.unwrap();
    // What the client wrote afterwards is all that is left to do.
    restore(&source(&couch, &was), &there, &anew()).await.unwrap();
    let (found, expected) = (winners(&couch, &live), winners(&couch, &was));
    assert_eq!(found.len(), MANY);
    assert!(found == expected);
    let report = restore(&source(&couch, &was), &there, &anew()).await.unwrap();
    let line = report.notes.iter().find(|n| n.starts_with(&live)).unwrap();
    assert!(
        line.contains(&format!("0 documents changed by a new revision, 0 deleted by one, {MANY} left alone")),
        "{line}"
    );
}
