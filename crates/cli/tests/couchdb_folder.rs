//! Databases of CouchDB's protocol as folders of JSON, through the binary.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use std::time::{Duration, Instant};
use testkit::pouchdb::CouchServer;

/// A database with an example of most things; conflicts, deletions and a gzip among them.
fn fill(couch: &CouchServer) -> String {
    let db = couch.database();
    let large = "QUFB".repeat(2 << 20);
    let all = [
        r#"{"_id":"plain","_rev":"1-a","n":1.0,"t":"é \" ","_revisions":{"start":1,"ids":["a"]}}"#.to_owned(),
        r#"{"_id":"c","_rev":"2-a2","v":"a","_revisions":{"start":2,"ids":["a2","a1"]}}"#.into(),
        r#"{"_id":"c","_rev":"2-b2","v":"b","_revisions":{"start":2,"ids":["b2","b1"]},"_attachments":{"won.txt":{"content_type":"text/plain","data":"d29u"}}}"#.into(),
        r#"{"_id":"gone","_rev":"2-g","_deleted":true,"_revisions":{"start":2,"ids":["g","f"]}}"#.into(),
        r#"{"_id":"a/b","_rev":"1-a","_revisions":{"start":1,"ids":["a"]},"_attachments":{"x/ü.txt":{"content_type":"text/x-odd","data":"aGVsbG8="},"y":{"content_type":"a/b","data":"AAEC"}}}"#.into(),
        format!(r#"{{"_id":"large","_rev":"1-a","_revisions":{{"start":1,"ids":["a"]}},"_attachments":{{"one":{{"content_type":"x/y","data":"{large}"}},"two":{{"content_type":"x/y","data":"QQ=="}}}}}}"#),
        r#"{"_id":"_design/d","_rev":"1-a","views":{},"_revisions":{"start":1,"ids":["a"]}}"#.into(),
    ];
    couch.put_all(&db, &all);
    couch.done("PUT", &format!("/{db}/_local/mine"), r#"{"a":1}"#);
    db
}

fn shown(host: &Host, folder: &str) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| match bytes.len() {
        0..1000 => String::from_utf8_lossy(&bytes).into_owned(),
        many => format!("{many} bytes, {}", bytes.iter().all(|b| *b == b'A')),
    };
    let all = host.tree(folder).into_iter().filter(|(name, _)| !name.contains("/."));
    all.map(|(name, bytes)| (name, text(bytes))).collect()
}

#[test]
fn documents_become_files_and_attachments_files_beside_them() {
    let (couch, host) = (CouchServer::shared(), Host::ready());
    let db = fill(&couch);
    let url = couch.url(&db);
    host.run(&["copy", &url, "folder:out"]).fails(1, "conflicts, deletions and histories");
    let ran =
        host.run(&["copy", &url, "folder:out", "--allow-loss", "--rename", &format!("{db}=shop"), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    let found = shown(&host, "out");
    let of = |name: &str| &found.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name} in {found:?}")).1;
    // pouchdb-server writes numbers anew, CouchDB gives their text back.
    let plain = ["1", "1.0"].map(|n| format!(r#"{{"_id":"plain","_rev":"1-a","n":{n},"t":"é \" "}}"#));
    assert!(plain.contains(of("shop/plain.json")), "{found:?}");
    assert_eq!(of("shop/c.json"), r#"{"_id":"c","_rev":"2-b2","v":"b"}"#);
    assert_eq!(of("shop/c.attachments/won.txt"), "won");
    assert_eq!(of("shop/a%2fb.json"), r#"{"_id":"a/b","_rev":"1-a"}"#);
    assert_eq!(of("shop/a%2fb.attachments/x%2f%c3%bc.txt"), "hello");
    assert_eq!(of("shop/large.attachments/one"), "6291456 bytes, true");
    assert_eq!(
        (&**of("shop/large.attachments/two"), &**of("shop/_design%2fd.json")),
        ("A", r#"{"_id":"_design/d","_rev":"1-a","views":{}}"#)
    );
    assert_eq!(found.len(), 10, "{found:?}");

    // The same from a vault.
    host.run(&["backup", &url, "--to", "v"]).ends(0);
    host.read(&["restore", "v", "--into", "folder:back"]).fails(1, "_security");
    let rename = format!("{db}=shop");
    let args = ["restore", "v", "--into", "folder:back", "--allow-loss", "--rename", &rename, "--json"];
    let ran = host.read(&args).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    assert_eq!(shown(&host, "back"), found);
}

#[test]
fn a_folder_follows_a_database() {
    let (couch, host) = (CouchServer::start(), Host::new());
    let db = fill(&couch);
    let mut live = host.command(&["copy", &couch.url(&db), "folder:out", "--live", "--json"]).spawn().unwrap();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(180), "{what}: {:?}", shown(&host, "out"));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let file = |name: &str| std::fs::read_to_string(host.path("out").join(&db).join(name)).ok();
    wait("a copy of all", &|| file("large.attachments/one").is_some() && file("_design%2fd.json").is_some());
    couch.put_all(
        &db,
        &[
            r#"{"_id":"plain","_rev":"2-b","n":2,"_revisions":{"start":2,"ids":["b","a"]}}"#.into(),
            r#"{"_id":"c","_rev":"3-b3","_deleted":true,"_revisions":{"start":3,"ids":["b3","b2","b1"]}}"#.into(),
            r#"{"_id":"_design/d","_rev":"2-b","_deleted":true,"_revisions":{"start":2,"ids":["b","a"]}}"#.into(),
            r#"{"_id":"a/b","_rev":"2-b","_revisions":{"start":2,"ids":["b","a"]},"_attachments":{"y":{"content_type":"a/b","data":"d29ybGQ="},"z":{"content_type":"a/b","data":"eg=="}}}"#.into(),
            r#"{"_id":"new","_rev":"1-a","_revisions":{"start":1,"ids":["a"]}}"#.into(),
        ],
    );
    wait("a change", &|| file("plain.json").is_some_and(|text| text.contains("2-b")));
    // The conflict that had lost wins now, and has no attachment.
    wait("another winner", &|| file("c.json").is_some_and(|text| text.contains(r#""v":"a""#)));
    wait("no attachment", &|| file("c.attachments/won.txt").is_none());
    wait("a deletion", &|| file("_design%2fd.json").is_none() && file("new.json").is_some());
    wait("attachments", &|| {
        file("a%2fb.attachments/y").as_deref() == Some("world")
            && file("a%2fb.attachments/z").is_some()
            && file("a%2fb.attachments/x%2f%c3%bc.txt").is_none()
    });
    // A folder has room for attachments that a vault's change log has none for.
    let larger = "QUJD".repeat((17 << 20) / 3);
    couch.put_all(&db, &[format!(r#"{{"_id":"large","_rev":"2-b","_revisions":{{"start":2,"ids":["b","a"]}},"_attachments":{{"one":{{"content_type":"x/y","data":"{larger}"}}}}}}"#)]);
    wait("larger attachments", &|| {
        let size = std::fs::metadata(host.path("out").join(&db).join("large.attachments/one")).map(|m| m.len());
        size.is_ok_and(|bytes| bytes == (17 << 20) / 3 * 3) && file("large.attachments/two").is_none()
    });
    let stopped = std::process::Command::new("kill").args(["-INT", &live.id().to_string()]).status().unwrap();
    assert!(stopped.success() && live.wait().unwrap().success());
}
