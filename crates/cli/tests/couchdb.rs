//! Databases of CouchDB's protocol through the binary, on a real server.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use testkit::pouchdb::CouchServer;

/// A leaf revision.
fn leaf(id: &str, history: &[&str], members: &str) -> String {
    let (start, ids) = (history.len(), serde_json::to_string(history).unwrap());
    format!(
        r#"{{"_id":"{id}","_rev":"{start}-{}",{members},"_revisions":{{"start":{start},"ids":{ids}}}}}"#,
        history[0]
    )
}

/// A database with an example of most things.
fn fill(couch: &CouchServer) -> String {
    let db = couch.database();
    let mut all: Vec<_> = (0..500).map(|i| leaf(&format!("d{i}"), &["a"], &format!(r#""i":{i}"#))).collect();
    all.push(leaf("conflict", &["a2", "a1"], r#""v":"a""#));
    all.push(leaf("conflict", &["b2", "b1"], r#""v":"b""#));
    all.push(leaf("gone", &["c2", "c1"], r#""_deleted":true,"why":"kept""#));
    all.push(leaf("small", &["f"], r#""_attachments":{"a.txt":{"content_type":"text/plain","data":"aGVsbG8="}}"#));
    let large = "QUFB".repeat(2 << 20);
    all.push(leaf("large", &["f"], &format!(r#""_attachments":{{"b":{{"content_type":"x/y","data":"{large}"}}}}"#)));
    couch.put_all(&db, &all);
    couch.put_all(&db, &[leaf("_design/no", &["e"], r#""validate_doc_update":"function(){throw({forbidden:'no'})}""#)]);
    couch.done("PUT", &format!("/{db}/_security"), r#"{"admins":{"names":["bob"]}}"#);
    db
}

/// All documents of a database, deleted and conflicting ones with them.
fn state(couch: &CouchServer, db: &str) -> Vec<String> {
    let rows = couch.done("GET", &format!("/{db}/_changes?style=all_docs"), "");
    let mut all = vec![couch.done("GET", &format!("/{db}/_security"), "").to_string()];
    for row in rows["results"].as_array().unwrap() {
        let id = row["id"].as_str().unwrap();
        let state = couch.done("GET", &format!("/{db}/{id}?open_revs=all&revs=true&attachments=true"), "");
        // Neither the order of leaves nor that of what is said of an attachment is data.
        let mut leaves: Vec<_> =
            state.as_array().unwrap().iter().map(|leaf| sorted(leaf.clone()).to_string()).collect();
        leaves.sort();
        all.push(leaves.join(","));
    }
    all.sort();
    all
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Array(all) => all.into_iter().map(sorted).collect(),
        Value::Object(all) => {
            let mut all: Vec<_> = all.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all.into_iter().collect()
        }
        other => other,
    }
}

/// Without printing megabytes.
#[track_caller]
fn same(found: &[String], expected: &[String]) {
    let short = |s: &String| s.chars().take(500).collect::<String>();
    for (a, b) in found.iter().zip(expected) {
        assert!(a == b, "\n{}\n{}", short(a), short(b));
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn a_database_from_the_first_backup_to_the_restore() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = fill(&couch);
    let url = couch.url(&db);
    let backup = |more: &[&str]| host.run(&[&["backup", &url, "--to", "v", "--json"], more].concat()).ends(0);
    let first = backup(&[]);
    assert_eq!(first.of("vault")[0]["point"]["engine"], "couchdb");
    let before = state(&couch, &db);

    // Nothing has changed, then something has.
    let second = backup(&[]);
    assert_eq!(second.of("vault")[0]["point"]["changed"], 0, "{second:?}");
    couch.done("PUT", &format!("/{db}/_security"), r#"{"admins":{"names":["eve"]}}"#);
    couch.put_all(&db, &[]);
    let design = format!("/{db}/_design/no?rev=1-e");
    couch.done("DELETE", &design, "");
    couch.put_all(
        &db,
        &[
            leaf("d7", &["b", "a"], r#""i":700"#),
            leaf("d8", &["b", "a"], r#""_deleted":true"#),
            leaf("small", &["g", "f"], r#""_attachments":{"n":{"content_type":"text/plain","data":"d29ybGQ="}}"#),
            leaf("new", &["a"], r#""n":1"#),
        ],
    );
    let third = backup(&[]);
    assert!(third.of("summary")[0].to_string().contains("changes"), "{third:?}");
    let after = state(&couch, &db);
    host.read(&["verify", "v"]).ends(0);

    // Both states come back, with proof; what is there is refused, and replaced when asked for.
    let to = couch.database_name();
    let into = couch.url(&to);
    let points = host.read(&["points", "v", "--json"]).ends(0).of("point");
    let oldest =
        points.iter().map(|p| p["id"].as_str().or(p["point"].as_str()).unwrap().to_owned()).collect::<Vec<_>>();
    let ran = host.read(&["restore", "v", "--into", &into, "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    same(&state(&couch, &to), &after);
    host.read(&["restore", "v", "--into", &into]).fails(1, "the target has already");
    for point in &oldest {
        let args = ["restore", "v", "--into", &into, "--point", point, "--if-exists", "replace", "--json"];
        let ran = host.read(&args).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
        let now = state(&couch, &to);
        assert!(now == before || now == after);
    }

    // One document through time.
    let found = host.read(&["find", "v", &db, "d7", "--json"]).ends(0);
    assert!(found.out.contains("changed") || found.of("version").len() == 2, "{found:?}");
    let shown = host.read(&["find", "v", &db, "conflict", "--show"]).ends(0);
    assert!(shown.out.contains(r#""v":"b""#) && shown.out.contains(r#""v":"a""#), "{shown:?}");
}

#[test]
fn all_databases_of_a_server() {
    let (couch, host) = (CouchServer::start(), Host::ready());
    for i in 0..12 {
        couch.done("PUT", &format!("/fs_{i}"), "");
        couch.put_all(&format!("fs_{i}"), &[leaf("a", &["a"], &format!(r#""i":{i}"#))]);
    }
    couch.done("PUT", "/other", "");
    host.run(&["backup", &couch.url("fs_*"), "--to", "v"]).ends(0);
    let there = CouchServer::start();
    let ran = host.read(&["restore", "v", "--into", &there.url(""), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    for i in 0..12 {
        assert_eq!(state(&couch, &format!("fs_{i}")), state(&there, &format!("fs_{i}")));
    }
    assert_eq!(there.ask("GET", "/other", "").0, 404);
}
