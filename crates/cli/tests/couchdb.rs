//! Databases of CouchDB's protocol through the binary, on a real server.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use std::sync::{Arc, Mutex};
use testkit::pouchdb::CouchServer;
use testkit::web::{Web, forward};

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
    let login = into.rsplit_once('@').map_or("", |(login, _)| login);
    if let Some((_, password)) = login.rsplit_once(':').filter(|(scheme, _)| scheme.contains("//")) {
        assert!(!ran.out.contains(password) && ran.out.contains(":***@"), "{ran:?}");
    }
    same(&state(&couch, &to), &after);
    host.read(&["restore", "v", "--into", &into]).fails(1, "the target has already");
    for point in oldest.iter().take(1) {
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

#[test]
fn dumps_become_vaults_and_databases_dumps() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = fill(&couch);
    let url = couch.url(&db);
    let copied = couch.database_name();
    // What a dump has no place for is named first.
    host.read(&["copy", &url, "couchbackup:shop.txt"]).fails(1, "_security");
    let ran = host.read(&["copy", &url, "couchbackup:shop.txt", "--allow-loss", "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    host.run(&["backup", "couchbackup:shop.txt", "--to", "v"]).ends(0);
    let to = couch.database_name();
    host.read(&["restore", "v", "--into", &couch.url(&to)]).ends(0);
    // Without a vault in between, and in the place of another one.
    for more in [&[][..], &["--if-exists", "replace"]] {
        let ran = host.read(&[&["copy", "couchbackup:shop.txt", &couch.url(&copied), "--json"], more].concat()).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    }
    let without_security = |db: &str| {
        state(&couch, db).into_iter().filter(|s| !s.starts_with('{') || s.contains("_id")).collect::<Vec<_>>()
    };
    same(&without_security(&to), &without_security(&db));
    same(&without_security(&copied), &without_security(&db));

    let dump = host.path("shop.txt");
    let whole = std::fs::read(&dump).unwrap();
    std::fs::write(&dump, &whole[..whole.len() - 100]).unwrap();
    host.run(&["backup", "couchbackup:shop.txt", "--to", "v"]).fails(1, "shop.txt line");
    let ran = host.run(&["backup", "couchbackup:shop.txt", "--to", "v", "--skip-bad"]).ends(3);
    assert!(ran.out.contains("left out: shop.txt line 2: the line is no JSON after 505 documents"), "{ran:?}");
}

#[test]
fn live_backup_stores_what_changes() {
    let (couch, host) = (CouchServer::start(), Host::ready());
    couch.done("PUT", "/shop", "");
    couch.put_all("shop", &[leaf("a", &["1"], r#""v":1"#)]);
    let log = std::fs::File::create(host.path("live.jsonl")).unwrap();
    let mut live =
        host.command(&["backup", &couch.url("shop"), "--to", "v", "--live", "--json"]).stdout(log).spawn().unwrap();
    let until_told = |what: &str| {
        let start = std::time::Instant::now();
        while !std::fs::read_to_string(host.path("live.jsonl")).unwrap().contains(what) {
            assert!(start.elapsed().as_secs() < 180, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    until_told(r#""type":"point""#);
    couch.put_all("shop", &[leaf("a", &["2", "1"], r#""v":2"#), leaf("b", &["1"], r#""v":1"#)]);
    until_told(r#""ids":["a","b"]"#);
    let stopped = std::process::Command::new("kill").args(["-INT", &live.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    assert!(live.wait().unwrap().code().is_some());
    let to = couch.database_name();
    let ran = host.read(&["restore", "v", "--into", &couch.url(&to), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    same(&state(&couch, &to), &state(&couch, "shop"));
}

#[test]
fn changes_bring_attachments_of_any_size_once() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = fill(&couch);
    couch.done("DELETE", &format!("/{db}/_design/no?rev=1-e"), "");
    let url = couch.url(&db);
    host.run(&["backup", &url, "--to", "v"]).ends(0);
    let parts = || host.tree("v/parts").len();
    let scanned = parts();
    let put = |revisions: &[&str], data: &str| {
        let attached = format!(r#""_attachments":{{"b":{{"content_type":"x/y","data":"{data}"}}}}"#);
        couch.put_all(&db, &[leaf("large", revisions, &attached)]);
    };
    let backup = || {
        let ran = host.run(&["backup", &url, "--to", "v", "--json"]).ends(0);
        assert_eq!(ran.summary()["mode"], "changes", "{ran:?}");
    };
    let proven = || {
        let to = couch.database_name();
        let ran = host.read(&["restore", "v", "--into", &couch.url(&to), "--json"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
        same(&state(&couch, &to), &state(&couch, &db));
    };
    // The document changes, its attachment does not.
    let path = format!("/{db}/large");
    let touch = || {
        let mut document = couch.done("GET", &path, "");
        document["touched"] = true.into();
        couch.done("PUT", &path, &document.to_string())["rev"].as_str().unwrap().to_owned()
    };
    let rev = touch();
    backup();
    assert_eq!(parts(), scanned);
    proven();
    // Another one, in several parts, which stays when the document changes again.
    put(&["g", rev.strip_prefix("2-").unwrap(), "f"], &"QUJD".repeat((17 << 20) / 3 + 1));
    backup();
    assert_eq!(parts(), scanned + 2);
    touch();
    backup();
    assert_eq!(parts(), scanned + 2);
    proven();
    // Change log and scan say the same of it.
    let full = host.read(&["backup", &url, "--to", "v", "--full", "--json"]).ends(0);
    assert!(!full.out.contains("mismatch"), "{full:?}");
    assert_eq!(parts(), scanned + 2);
    // One document alone comes back, too.
    let one = couch.database_name();
    let ran =
        host.read(&["restore", "v", "--into", &couch.url(&one), "--only", &format!("{db}/small"), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    assert_eq!(couch.ask("GET", &format!("/{one}/small/a.txt"), "").1, "hello");
    host.read(&["verify", "v"]).ends(0);
}

/// Of a few KiB, too: what a change leaves as it was is not asked for.
#[test]
fn attachments_that_did_not_change_are_not_asked_for() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = couch.database();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (server, seen, of_document) = (couch.host.clone(), asked.clone(), format!("/{db}/d/"));
    let web = Web::start(move |question| {
        let name = question.path.strip_prefix(&of_document).filter(|_| question.method == "GET");
        seen.lock().unwrap().extend(name.map(str::to_owned));
        forward(&server, question)
    });
    let url = couch.url(&db).replace(&couch.host, &web.host);
    let backup = |mode: &str, flags: &[&str]| {
        let ran = host.read(&[&["backup", &url, "--to", "v", "--json"], flags].concat()).ends(0);
        assert_eq!(ran.summary()["mode"], mode, "{ran:?}");
        assert!(!ran.out.contains("mismatch"), "{ran:?}");
        let mut names = std::mem::take(&mut *asked.lock().unwrap());
        names.sort();
        names
    };
    let put = |attached: &[(&str, &str)]| {
        let mut document = couch.done("GET", &format!("/{db}/d"), "");
        let number = document["number"].as_u64().unwrap() + 1;
        document["number"] = number.into();
        for (name, data) in attached {
            document["_attachments"][*name] = serde_json::json!({ "content_type": "x/y", "data": data });
        }
        couch.done("PUT", &format!("/{db}/d"), &document.to_string());
    };
    let data = |text: &str, kib: usize| text.repeat((kib << 10) / 3 + 1);
    couch.done("PUT", &format!("/{db}/d"), r#"{"number":0}"#);
    put(&[("a", &data("QUFB", 5)), ("b", &data("QUJD", 50)), ("tiny", "QUFB")]);
    // An entry that all is part of comes as a whole.
    couch.put_all(&db, &[leaf("icon", &["f"], r#""_attachments":{"i":{"content_type":"x/y","data":"QUFB"}}"#)]);
    assert_eq!(backup("scan", &[]), ["a", "b", "tiny"]);
    put(&[]);
    assert_eq!(backup("changes", &[]), [""; 0]);
    put(&[("b", &data("QUJE", 6))]);
    assert_eq!(backup("changes", &[]), ["b"]);
    put(&[("new", "QUJE")]);
    assert_eq!(backup("changes", &[]), ["new"]);
    put(&[]);
    assert_eq!(backup("changes", &[]), [""; 0]);
    let proven = || {
        let to = couch.database_name();
        let ran = host.read(&["restore", "v", "--into", &couch.url(&to), "--json"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
        same(&state(&couch, &to), &state(&couch, &db));
    };
    proven();
    // A scan that compares all finds the same, and the next change its contents.
    assert_eq!(backup("scan", &["--full"]), ["a", "b", "new", "tiny"]);
    put(&[]);
    assert_eq!(backup("changes", &[]), [""; 0]);
    proven();
    host.read(&["verify", "v"]).ends(0);
}

#[test]
fn several_vaults_share_what_is_fetched() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    host.run(&["init", "w", "--plain"]).ends(0);
    let db = couch.database();
    couch.put_all(&db, &[leaf("a", &["1"], r#""v":1"#)]);
    let url = couch.url(&db);
    host.run(&["backup", &url, "--to", "v", "--to", "w"]).ends(0);
    let data = "QUJD".repeat((2 << 20) / 3 + 1);
    let small = "QUJD".repeat(50_000);
    let entry = |data: &str| format!(r#"{{"content_type":"x/y","data":"{data}"}}"#);
    let attached = format!(r#""_attachments":{{"l":{},"s":{}}}"#, entry(&data), entry(&small));
    couch.put_all(&db, &[leaf("b", &["1"], &attached)]);
    for _ in 0..2 {
        let ran = host.run(&["backup", &url, "--to", "v", "--to", "w", "--json"]).ends(0);
        assert_eq!(ran.summary()["mode"], "changes", "{ran:?}");
        couch.put_all(&db, &[leaf("c", &["1"], r#""v":1"#)]);
    }
    for vault in ["v", "w"] {
        assert_eq!(host.tree(&format!("{vault}/parts")).len(), 1, "{vault}");
        let to = couch.database_name();
        let ran = host.read(&["restore", vault, "--into", &couch.url(&to), "--json"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    }
}
