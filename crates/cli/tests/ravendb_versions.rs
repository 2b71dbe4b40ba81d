//! What must work with every version of RavenDB, and from one version to another, on real servers without
//! a license. `ravendb.rs` says more of one of them.
//!
//! They are run by `REWOUND_TEST_NEWER_RAVENDB=1 ./dev/test --test ravendb_versions -- --ignored`, as the servers are
//! large, and without a license refuse some things after a while.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, Ran};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::ravendb::{Database, OLDEST, Raven, SHARED};

const NEWEST: &str = "7.1";

/// Values of a time series.
fn values(db: &Database, id: &str, name: &str) -> serde_json::Value {
    let path = format!("/timeseries?docId={}&name={name}", testkit::ravendb::escaped(id));
    let (status, answer) = db.server().request("GET", &format!("/databases/{}{path}", db.name), b"");
    // Of a series that is not there, some versions say so, and others give an empty one.
    if status == 404 {
        return serde_json::json!([]);
    }
    serde_json::from_slice::<serde_json::Value>(&answer).unwrap()["Entries"].clone()
}

/// Numbers of what a database holds. Servers count segments of time series without any value as long as
/// they have them, and import none.
fn counts(db: &Database) -> Vec<(&'static str, u64)> {
    db.counts().into_iter().filter(|(name, _)| *name != "CountOfTimeSeriesSegments").collect()
}

/// Compares a database with what was made of it.
fn same(db: &Database, into: &Database) {
    assert_eq!(counts(db), counts(into));
    assert_eq!(db.documents(), into.documents());
    for (id, name) in [("orders/8", "Heart"), ("orders/13", "Beat"), ("orders/13", "Heart")] {
        assert_eq!(values(db, id, name), values(into, id, name), "{id} {name}");
    }
}

/// Newer servers without a license begin to enforce its limits a minute or two after they were started,
/// which is in the middle of a test where the machine has much to do. They say so.
fn is_license(ran: &Ran) -> bool {
    ran.code == 1 && ran.out.contains("402 Payment Required")
}

/// What is left out then.
const LIMITED: [&str; 2] = ["--without-kinds", "subscriptions,settings"];

/// Writes something into a new database, and proves it.
fn written(host: &Host, server: &Arc<Raven>, what: &[&str], option: &[&str]) -> Database {
    let run = |more: &[&str]| {
        let into = server.no_database();
        let url = into.url();
        (host.read(&[what, option, &[&url, "--json"], more].concat()), into)
    };
    let (mut ran, mut into) = run(&[]);
    if is_license(&ran) {
        (ran, into) = run(&LIMITED);
    }
    let ran = ran.ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
    into
}

/// Restores the vault `v` into a new database.
fn restored(host: &Host, server: &Arc<Raven>) -> Database {
    written(host, server, &["restore", "v"], &["--into"])
}

/// Copies a dump into a new database.
fn imported(host: &Host, server: &Arc<Raven>, dump: &str) -> Database {
    written(host, server, &["copy", &format!("ravendbdump:{dump}")], &[])
}

fn append(db: &Database, id: &str, name: &str, times: &[&str]) {
    let one =
        |at: &&str| serde_json::json!({ "Timestamp": format!("{at}T00:00:00.0000000Z"), "Values": [1.5], "Tag": "t" });
    let change =
        serde_json::json!({ "Name": name, "Appends": times.iter().map(one).collect::<Vec<_>>(), "Deletes": null });
    db.done("POST", &format!("/timeseries?docId={}", testkit::ravendb::escaped(id)), change.to_string().as_bytes());
}

/// Deletes values of a time series, all of them if no times are given.
fn cut(db: &Database, id: &str, name: &str, range: Option<(&str, &str)>) {
    let at = |time: &str| format!("{time}T00:00:00.0000000Z");
    let range = serde_json::json!({ "From": range.map(|r| at(r.0)), "To": range.map(|r| at(r.1)) });
    let change = serde_json::json!({ "Name": name, "Appends": null, "Deletes": [range] });
    db.done("POST", &format!("/timeseries?docId={}", testkit::ravendb::escaped(id)), change.to_string().as_bytes());
}

/// Everything that a version is used for, on a server of its own.
fn everything(version: &str) {
    let server = Arc::new(Raven::of(version));
    let db = server.shop();
    let native = db.native();
    // Without a license 6.2 and 7.1 stop taking subscriptions after some imports.
    db.done("DELETE", "/subscriptions?taskName=S1", b"");
    for (series, month) in [("Beat", "05"), ("Heart", "08")] {
        // Too far apart for one segment.
        append(&db, "orders/13", series, &["2024-01-01", "2024-01-02", &format!("2024-{month}-01")]);
    }
    let host = Host::ready();
    let url = format!("{}?hold-tombstones=yes", db.url());
    let backup = || {
        db.clean_tombstones();
        let ran = host.run(&["backup", &url, "--to", "v", "--json"]).ends(0);
        same(&db, &restored(&host, &server));
        ran.summary()["mode"].as_str().unwrap().to_owned()
    };
    assert_eq!(backup(), "scan");
    native.run(true);

    // Deletions of each kind, and things that are made again elsewhere.
    db.delete("orders/5");
    db.delete("orders/7");
    db.put("orders/7", r#"{"moved":true,"@metadata":{"@collection":"Moved"}}"#);
    db.attach("orders/7", "same.txt", b"hello");
    db.attach("orders/9", "late.txt", b"late");
    db.put("odd", r#"{"N":2,"@metadata":{"@collection":"Ünï Cöl"}}"#);
    db.done("DELETE", "/cmpxchg?key=k1&index=1000", b"");
    db.done("PUT", "/cmpxchg?key=k2&index=0", br#"{"Object":{"a":2}}"#);
    assert_eq!(backup(), "changes");
    db.done("DELETE", "/attachments?id=orders%2F9&name=late.txt", b"");
    assert_eq!(backup(), "changes");
    cut(&db, "orders/13", "Heart", Some(("2024-08-01", "2024-08-01")));
    backup();
    cut(&db, "orders/13", "Beat", None);
    backup();
    let full = host.run(&["backup", &url, "--to", "v", "--full", "--json"]).ends(0);
    assert!(!full.out.contains("mismatch"), "{}", full.out);
    native.run(false);
    let folder = native.files()[0].parent().unwrap().display().to_string();
    same(&db, &imported(&host, &server, &folder));

    // Our dump goes into the server, and the server's own into another database.
    host.read(&["copy", "v", "ravendbdump:ours.ravendbdump"]).ends(0);
    same(&db, &imported(&host, &server, "ours.ravendbdump"));
    host.write("theirs.ravendbdump", db.done("POST", "/smuggler/export", b"{}"));
    same(&db, &imported(&host, &server, "theirs.ravendbdump"));

    live(&host, &db, &url);
    same(&db, &restored(&host, &server));

    let (before, documents) = (counts(&db), db.documents());
    db.delete("orders/20");
    db.put("later/1", r#"{"N":1,"@metadata":{"@collection":"Later"}}"#);
    let ran = host.read(&["restore", "v", "--into", &db.url(), "--if-exists", "replace", "--json"]);
    if is_license(&ran) {
        return;
    }
    let ran = ran.ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
    assert_eq!(counts(&db), before);
    assert!(db.documents() == documents);
}

/// Follows a database until what changed is in the vault.
fn live(host: &Host, db: &Database, url: &str) {
    let log = fs::File::create(host.path("live.jsonl")).unwrap();
    let mut live = host.command(&["backup", url, "--to", "v", "--live", "--json"]).stdout(log).spawn().unwrap();
    let said = || fs::read_to_string(host.path("live.jsonl")).unwrap();
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(180), "{what}: {}", said());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    until("it begins", &|| !said().is_empty());
    db.delete("orders/30");
    db.put("fresh/1", r#"{"N":1,"@metadata":{"@collection":"Fresh"}}"#);
    until("the changes are there", &|| {
        let deleted = host.read(&["find", "v", "Orders", "orders/30"]).out.contains("deleted");
        deleted && host.read(&["find", "v", "Fresh", "fresh/1"]).code == 0
    });
    assert!(std::process::Command::new("kill").arg(live.id().to_string()).status().unwrap().success());
    assert!(live.wait().unwrap().success(), "{}", said());
}

#[test]
#[ignore = "REWOUND_TEST_NEWER_RAVENDB gets its servers"]
fn everything_works_with_6_2() {
    everything("6.2");
}

#[test]
#[ignore = "REWOUND_TEST_NEWER_RAVENDB gets its servers"]
fn everything_works_with_7_1() {
    everything("7.1");
}

#[test]
#[ignore = "REWOUND_TEST_NEWER_RAVENDB gets its servers"]
fn backups_of_older_servers_go_into_the_newest() {
    let host = Host::ready();
    let old = Arc::new(Raven::of(OLDEST)).database();
    old.fill("Orders", "orders", 500);
    old.put("Users/1", r#"{"N":1,"@metadata":{"@collection":"Users"}}"#);
    old.done("POST", "/admin/revisions/config", br#"{"Default":{"Disabled":false}}"#);
    (0..3).for_each(|n| old.put("Users/1", &format!(r#"{{"N":{n},"@metadata":{{"@collection":"Users"}}}}"#)));
    old.attach("Users/1", "A ä.txt", b"hello");
    old.done("PUT", "/cmpxchg?key=k1&index=0", br#"{"Object":{"a":1}}"#);
    let backups = [(OLDEST, old), (SHARED, Arc::new(Raven::of(SHARED)).shop())];
    for (version, db) in &backups {
        host.run(&["backup", &db.url(), "--to", "v", "--as", version]).ends(0);
    }
    let newest = Arc::new(Raven::of(NEWEST));
    for (version, db) in &backups {
        let into = written(&host, &newest, &["restore", "v", "--source", version], &["--into"]);
        let counts = |db: &Database| db.counts().into_iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>();
        assert_eq!((counts(db), db.documents()), (counts(&into), into.documents()), "{version}");
        assert!(String::from_utf8(into.done("GET", "/cmpxchg?key=k1", b"")).unwrap().contains("\"a\":1"));
    }
}
