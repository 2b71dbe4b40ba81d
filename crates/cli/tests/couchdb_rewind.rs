//! Rewinding databases of CouchDB's protocol that clients replicate with, through the binary.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use serde_json::Value;
use testkit::pouchdb::CouchServer;

fn put(couch: &CouchServer, path: &str, members: &str) {
    let (status, now) = couch.ask("GET", path, "");
    let rev = (status == 200).then(|| serde_json::from_str::<Value>(&now).unwrap()["_rev"].to_string());
    let rev = rev.map(|rev| format!("\"_rev\":{rev},")).unwrap_or_default();
    couch.done("PUT", path, &format!("{{{rev}{members}}}"));
}

fn get(couch: &CouchServer, path: &str) -> Value {
    couch.done("GET", path, "")
}

/// What members a new one has on which revision.
fn generation(document: &Value) -> u64 {
    document["_rev"].as_str().unwrap().split('-').next().unwrap().parse().unwrap()
}

/// A database in which much has been changed since the first of two backups.
fn changed(couch: &CouchServer, host: &Host) -> String {
    let db = couch.database();
    for i in 0..50 {
        put(couch, &format!("/{db}/d{i}"), &format!(r#""i":{i}"#));
    }
    let file = r#""n":1,"_attachments":{"a/ü.txt":{"content_type":"text/plain","data":"aGVsbG8="}}"#;
    put(couch, &format!("/{db}/file"), file);
    let large = "QUFB".repeat(2 << 20);
    put(
        couch,
        &format!("/{db}/large"),
        &format!(r#""_attachments":{{"b":{{"content_type":"x/y","data":"{large}"}}}}"#),
    );
    couch.done("PUT", &format!("/{db}/_local/mine"), r#"{"a":1}"#);
    host.run(&["backup", &couch.url(&db), "--to", "v"]).ends(0);
    put(couch, &format!("/{db}/d7"), r#""i":700"#);
    put(couch, &format!("/{db}/d8"), r#""_deleted":true"#);
    put(couch, &format!("/{db}/file"), r#""n":2"#);
    put(couch, &format!("/{db}/large"), r#""_deleted":true"#);
    put(couch, &format!("/{db}/new"), r#""n":1"#);
    host.run(&["backup", &couch.url(&db), "--to", "v"]).ends(0);
    db
}

#[test]
fn one_document_comes_back_as_a_new_revision() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = changed(&couch, &host);
    let into = couch.url(&db);
    let find = |key: &str, more: &[&str]| {
        host.read(&[&["find", "v", &db, key, "--restore", "--into", &into, "--json"], more].concat())
    };
    // What was deleted; the newest version says that it was.
    let versions = host.read(&["find", "v", &db, "d8", "--json"]).ends(0).of("version");
    assert_eq!(versions.iter().map(|v| v["deleted"] == true).collect::<Vec<_>>(), [false, true], "{versions:?}");
    host.read(&["find", "v", &db, "d8", "--restore", "--into", &into]).fails(1, "was deleted at");
    assert_eq!(find("d8", &["--version", "2"]).ends(0).summary()["proof"]["holds"], true);
    let back = get(&couch, &format!("/{db}/d8"));
    assert_eq!((&back["i"], generation(&back)), (&Value::from(8), 3));
    // Again: it is there already.
    find("d8", &["--version", "2"]).ends(0);
    assert_eq!(get(&couch, &format!("/{db}/d8")), back);
    // With its attachments, byte for byte, small and large.
    for (key, name, content) in [("file", "a%2F%C3%BC.txt", "hello".to_owned()), ("large", "b", "AAA".repeat(2 << 20))]
    {
        let ran = find(key, &["--version", "2", "--if-exists", "merge"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
        assert_eq!(generation(&get(&couch, &format!("/{db}/{key}"))), 3);
        assert!(couch.ask("GET", &format!("/{db}/{key}/{name}"), "").1 == content, "{key}");
    }
    // What somebody changed since is not overwritten unasked.
    host.read(&["find", "v", &db, "d7", "--version", "2", "--restore", "--into", &into])
        .fails(1, "the target has another version");
    find("d7", &["--version", "2", "--if-exists", "merge"]).ends(0);
    let back = get(&couch, &format!("/{db}/d7"));
    assert_eq!((&back["i"], generation(&back)), (&Value::from(7), 3));
    assert_eq!(get(&couch, &format!("/{db}/new"))["n"], 1, "others are not touched");
}

#[test]
fn a_live_database_is_rewound() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = changed(&couch, &host);
    let into = couch.url(&db);
    let replica = couch.database();
    let url = |db: &str| couch.url(db).trim_start_matches("couchdb+").to_owned();
    let replicate = || {
        let body = serde_json::json!({ "source": url(&db), "target": url(&replica) }).to_string();
        assert_eq!(couch.done("POST", "/_replicate", &body)["ok"], true);
    };
    replicate();
    let points = host.read(&["points", "v", "--json"]).ends(0).of("point");
    let first = points.iter().min_by_key(|p| p["millis"].as_i64()).unwrap()["id"].as_str().unwrap().to_owned();
    let restore = ["restore", "v", "--into", &into, "--point", &first, "--as-new-revisions"];
    host.read(&[&restore[..], &["--if-exists", "merge"]].concat()).ends(2);

    let plan = host.read(&[&restore[..], &["--dry-run"]].concat()).ends(0);
    let told = format!("{db}: 4 documents changed by a new revision, 1 deleted by one, 48 left alone");
    assert!(plan.out.contains(&told) && plan.out.contains("Nothing was touched"), "{plan:?}");
    assert_eq!(get(&couch, &format!("/{db}/d7"))["i"], 700);

    let ran = host.read(&[&restore[..], &["--json"]].concat()).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    assert!(ran.of("note").iter().any(|n| n["message"].as_str().unwrap().starts_with(&told)), "{ran:?}");
    replicate();
    for db in [&db, &replica] {
        assert_eq!(get(&couch, &format!("/{db}/d7"))["i"], 7);
        assert_eq!(get(&couch, &format!("/{db}/d8"))["i"], 8);
        assert_eq!(generation(&get(&couch, &format!("/{db}/d9"))), 1);
        assert_eq!(couch.ask("GET", &format!("/{db}/new"), "").0, 404);
        assert_eq!(couch.ask("GET", &format!("/{db}/file/a%2F%C3%BC.txt"), "").1, "hello");
        assert!(couch.ask("GET", &format!("/{db}/large/b"), "").1 == "AAA".repeat(2 << 20));
    }
    // What is as it was stays so; one document alone, too.
    let again = host.read(&restore).ends(0);
    assert!(again.out.contains("0 documents changed by a new revision, 0 deleted by one, 52 left"), "{again:?}");
    put(&couch, &format!("/{db}/d1"), r#""i":100"#);
    put(&couch, &format!("/{db}/d2"), r#""i":200"#);
    let ran = host.read(&[&restore[..], &["--only", &format!("{db}/d1"), "--json"]].concat()).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    assert_eq!([1, 200], ["d1", "d2"].map(|id| get(&couch, &format!("/{db}/{id}"))["i"].as_i64().unwrap()));
}

#[test]
fn only_couchdb_has_new_revisions() {
    let host = Host::ready();
    host.backup();
    host.read(&["restore", "v", "--into", "folder:there", "--as-new-revisions"])
        .fails(1, "--as-new-revisions is for CouchDB");
    assert!(!host.path("there").exists());
}

#[test]
fn nothing_is_deleted_that_a_backup_of_a_part_cannot_know() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = couch.database();
    let into = couch.url(&db);
    for id in ["a", "b"] {
        put(&couch, &format!("/{db}/{id}"), r#""n":1"#);
    }
    host.run(&["backup", &into, "--to", "v", "--only", &format!("{db}/a")]).ends(0);
    put(&couch, &format!("/{db}/a"), r#""n":2"#);
    let ran = host.read(&["restore", "v", "--into", &into, "--as-new-revisions"]).ends(0);
    assert!(ran.out.contains("nothing is deleted") && ran.out.contains("1 document changed"), "{ran:?}");
    assert_eq!(["a", "b"].map(|id| get(&couch, &format!("/{db}/{id}"))["n"].clone()), [1, 1]);
}
