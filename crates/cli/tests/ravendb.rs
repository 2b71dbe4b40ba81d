//! RavenDB through the binary, on real servers without a license: 5.4, and 4.1 where it is named. With
//! `REWOUND_TEST_RAVENDB_SHARED=7.1` all of it runs on another version. What runs on each: `ravendb_versions.rs`.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use std::fs;
use std::sync::Arc;
use testkit::ravendb::{Database, OLDEST, Raven};

#[test]
fn a_database_from_the_first_backup_to_the_restore() {
    let db = Raven::shared().shop();
    let host = Host::ready();
    let backup = || host.run(&["backup", &db.url(), "--to", "v", "--json"]).ends(0);
    let first = backup();
    assert_eq!(first.of("vault")[0]["point"]["engine"], "ravendb");
    assert_eq!(backup().of("vault")[0]["point"]["changed"], 0, "nothing has changed");
    host.read(&["verify", "v"]).ends(0);

    // Into a database that is made for it; twice is refused.
    let back = Raven::shared().no_database();
    let plan = host.read(&["restore", "v", "--into", &back.url(), "--dry-run"]).ends(0);
    assert!(plan.out.contains("not atomic"), "{}", plan.out);
    let ran = host.read(&["restore", "v", "--into", &back.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(db.counts(), back.counts());
    let text = String::from_utf8(back.done("GET", "/docs?id=nowhere", b"")).unwrap();
    assert!(text.contains('😀') && text.contains('\u{2028}'), "{text}");
    assert_eq!(back.done("GET", "/attachments?id=orders%2F7&name=big.bin", b""), vec![7; 3 << 20]);
    let counters = String::from_utf8(back.done("GET", "/counters?docId=Users%2F1&counter=zz", b"")).unwrap();
    assert!(counters.contains("\"TotalValue\":-4"), "{counters}");
    let series = String::from_utf8(back.done("GET", "/timeseries?docId=orders%2F8&name=Heart", b"")).unwrap();
    assert!(series.contains("70.5"), "{series}");
    let revisions = String::from_utf8(back.done("GET", "/revisions/config", b"")).unwrap();
    assert!(revisions.contains("Default"), "the settings are in force: {revisions}");
    host.read(&["restore", "v", "--into", &back.url()]).fails(1, "documents");
    host.read(&["restore", "v", "--into", &back.url(), "--if-exists", "merge"]).ends(0);

    // What changed, in whatever way, is found by comparing.
    db.delete("orders/5");
    db.delete("orders/7");
    db.put("orders/7", r#"{"moved":true,"@metadata":{"@collection":"Moved"}}"#);
    db.clean_tombstones();
    let point = backup().of("vault")[0]["point"].clone();
    assert!(point["deleted"].as_u64().unwrap() >= 3, "two orders and their attachments: {point}");
    let again = Raven::shared().no_database();
    let ran = host.read(&["restore", "v", "--into", &again.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(again.server().request("GET", &format!("/databases/{}/docs?id=orders%2F5", again.name), b"").0, 404);
    let moved = String::from_utf8(again.done("GET", "/docs?id=orders%2F7", b"")).unwrap();
    assert!(moved.contains("Moved"), "{moved}");
    let found = host.read(&["find", "v", "Users", "Users/1"]).ends(0);
    assert!(found.out.lines().count() >= 2, "{}", found.out);
}

#[test]
fn changes_are_read_by_etag_while_tombstones_are_held() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 2000);
    db.fill("Users", "users", 10);
    let host = Host::ready();
    let url = format!("{}?hold-tombstones=yes", db.url());
    let backup = || host.run(&["backup", &url, "--to", "v", "--json"]).ends(0);
    backup();
    db.delete("orders/5");
    db.delete("users/3");
    db.put("users/3", r#"{"elsewhere":true,"@metadata":{"@collection":"People"}}"#);
    db.put("orders/6", r#"{"N":"new","@metadata":{"@collection":"Orders"}}"#);
    db.done("PUT", "/cmpxchg?key=k1&index=0", br#"{"Object":{"a":1}}"#);
    db.clean_tombstones();
    let second = backup();
    assert_eq!(second.summary()["mode"], "changes", "{}", second.out);
    let into = Raven::shared().no_database();
    let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(into.count("CountOfDocuments"), 2009);
    let gone = into.server().request("GET", &format!("/databases/{}/docs?id=orders%2F5", into.name), b"");
    assert_eq!(gone.0, 404);
    let elsewhere = String::from_utf8(into.done("GET", "/docs?id=users%2F3", b"")).unwrap();
    assert!(elsewhere.contains("People"), "{elsewhere}");
    assert!(String::from_utf8(into.done("GET", "/cmpxchg?key=k1", b"")).unwrap().contains("\"a\":1"));

    // Both say the same.
    let full = host.run(&["backup", &url, "--to", "v", "--full", "--json"]).ends(0);
    assert!(!full.out.contains("mismatch"), "{}", full.out);
}

/// Restores what is in the vault `v`, and compares it with the database.
fn restored_is(host: &Host, db: &Database) {
    let into = Raven::shared().no_database();
    let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
    assert_eq!(db.counts(), into.counts());
    assert_eq!(db.documents(), into.documents());
}

#[test]
fn changes_are_read_by_etag_whatever_the_database_holds() {
    let db = Raven::shared().shop();
    let host = Host::ready();
    let url = format!("{}?hold-tombstones=yes", db.url());
    let backup = |mode: &str, what: &str| {
        db.clean_tombstones();
        let ran = host.run(&["backup", &url, "--to", "v", "--json"]).ends(0);
        assert_eq!(ran.summary()["mode"], mode, "{what}: {} {}", ran.out, ran.err);
        restored_is(&host, &db);
    };
    let count = |id: &str, name: &str, delta: i32, how: &str| {
        let change = format!(
            r#"{{"Documents":[{{"DocumentId":"{id}","Operations":[{{"Type":"{how}","CounterName":"{name}","Delta":{delta}}}]}}]}}"#
        );
        db.done("POST", "/counters", change.as_bytes());
    };
    let append = |id: &str, name: &str, at: &str| {
        let change = format!(
            r#"{{"Name":"{name}","Appends":[{{"Timestamp":"{at}T00:00:00.0000000Z","Values":[1.5],"Tag":"t"}}],"Deletes":null}}"#
        );
        db.done("POST", &format!("/timeseries?docId={}", testkit::ravendb::escaped(id)), change.as_bytes());
    };
    backup("scan", "the first");
    db.attach("orders/9", "new.bin", &vec![9; 3 << 20]);
    db.attach("orders/9", "A.txt", b"small");
    db.attach("Users/1", "late.txt", b"hello");
    backup("changes", "attachments are added");
    db.put("orders/7", r#"{"N":"changed","@metadata":{"@collection":"Orders"}}"#);
    db.done("DELETE", "/attachments?id=orders%2F9&name=A.txt", b"");
    db.delete("orders/8");
    backup("scan", "the document of a time series is deleted");
    db.put("orders/7", r#"{"N":"again","@metadata":{"@collection":"Orders"}}"#);
    db.done("DELETE", "/attachments?id=Users%2F1&name=late.txt", b"");
    db.attach("orders/9", "new.bin", b"replaced");
    db.delete("orders/11");
    backup("changes", "attachments go and change");
    count("Users/1", "Likes", 4, "Increment");
    count("orders/12", "Likes", 4, "Increment");
    append("orders/13", "Heart", "2024-05-01");
    backup("changes", "counters and time series");
    count("Users/1", "zz", 0, "Delete");
    append("orders/13", "Heart", "2024-05-02");
    backup("scan", "a document changes while a time series grows");
    append("orders/13", "Heart", "2024-05-03");
    count("orders/12", "Likes", 1, "Increment");
    backup("changes", "they grow");
    // Recreated here and elsewhere, with attachments that it had, and without.
    db.delete("orders/7");
    db.put("orders/7", r#"{"moved":1,"@metadata":{"@collection":"Moved"}}"#);
    db.attach("orders/7", "same.txt", b"hello");
    db.delete("orders/9");
    db.put("orders/9", r#"{"anew":1,"@metadata":{"@collection":"Orders"}}"#);
    backup("changes", "documents are made again");
    db.delete("orders/12");
    db.put("orders/12", r#"{"anew":1,"@metadata":{"@collection":"Orders"}}"#);
    backup("scan", "a document of counters is made again");
    db.attach("orders/20", "middling.bin", &vec![6; 5 << 20]);
    backup("changes", "an attachment of 5 MiB is added");
    db.attach("orders/20", "large.bin", &vec![5; 9 << 20]);
    backup("changes", "a large attachment is added");
    let full = host.run(&["backup", &url, "--to", "v", "--full", "--json"]).ends(0);
    assert!(!full.out.contains("mismatch"), "{}", full.out);
}

#[test]
fn a_live_backup_follows_and_tells_deletions() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 100);
    let host = Host::ready();
    let url = format!("{}?hold-tombstones=yes", db.url());
    let log = fs::File::create(host.path("live.jsonl")).unwrap();
    let mut live = host.command(&["backup", &url, "--to", "v", "--live", "--json"]).stdout(log).spawn().unwrap();
    let until = |what: &str, is_so: &dyn Fn(&str) -> bool| {
        let start = std::time::Instant::now();
        while !is_so(&fs::read_to_string(host.path("live.jsonl")).unwrap()) {
            let said = || fs::read_to_string(host.path("live.jsonl")).unwrap();
            assert!(start.elapsed().as_secs() < 180, "{what}: {}", said());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    until("the first point", &|said| said.contains("\"point\""));
    db.put("orders/1", r#"{"N":"new","@metadata":{"@collection":"Orders"}}"#);
    db.delete("orders/2");
    db.put("fresh/1", r#"{"N":1,"@metadata":{"@collection":"Fresh"}}"#);
    until("the changes", &|said| {
        said.contains("orders/2") || said.matches("\"changes\"").count() > 1 || said.contains("flush")
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    db.attach("orders/3", "large.bin", &vec![5; 9 << 20]);
    until("the large attachment", &|said| said.contains("large.bin"));
    let stopped = std::process::Command::new("kill").arg(live.id().to_string()).status().unwrap();
    assert!(stopped.success());
    assert!(live.wait().unwrap().success());
    assert_eq!(host.run(&["points", "v", "--json"]).ends(0).summary()["gaps"], 0);
    let into = Raven::shared().no_database();
    let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(into.done("GET", "/attachments?id=orders%2F3&name=large.bin", b""), vec![5; 9 << 20]);
    assert_eq!(into.documents(), db.documents(), "{}", fs::read_to_string(host.path("live.jsonl")).unwrap());
    assert_eq!(into.count("CountOfDocuments"), 100);
}

#[test]
fn without_the_hold_lost_tombstones_are_made_up_for_by_comparing() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 100);
    let host = Host::ready();
    let backup = || host.run(&["backup", &db.url(), "--to", "v", "--json"]).ends(0);
    backup();
    db.delete("orders/5");
    db.clean_tombstones();
    let second = backup();
    assert_eq!(second.of("vault")[0]["point"]["deleted"], 1);
}

#[test]
fn a_dump_of_ours_goes_into_a_server_and_back() {
    let db = Raven::shared().shop();
    let host = Host::ready();
    host.run(&["backup", &db.url(), "--to", "v"]).ends(0);
    host.read(&["copy", "v", "ravendbdump:shop.ravendbdump"]).ends(0);
    let back = Raven::shared().no_database();
    let ran = host.run(&["copy", "ravendbdump:shop.ravendbdump", &back.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(db.counts(), back.counts());
    // Cut short or damaged, it is refused before anything is touched.
    let whole = fs::read(host.path("shop.ravendbdump")).unwrap();
    let none = Raven::shared().no_database();
    host.write("short.ravendbdump", &whole[..whole.len() / 2]);
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x10;
    host.write("damaged.ravendbdump", damaged);
    for bad in ["ravendbdump:short.ravendbdump", "ravendbdump:damaged.ravendbdump"] {
        let ran = host.run(&["copy", bad, &none.url()]);
        assert_eq!(ran.code, 1, "{bad}: {ran:?}");
    }
    let databases = String::from_utf8(none.server().done("GET", "/databases?namesOnly=true", b"")).unwrap();
    assert!(!databases.contains(&format!("{}\"", none.name)), "{databases}");
}

#[test]
fn what_is_not_known_in_a_dump_is_named_and_kept() {
    let host = Host::ready();
    let dump = concat!(
        r#"{"BuildVersion":41000,"Docs":[{"N":1,"@metadata":{"@collection":"Orders","@id":"orders/1","@last-modified":"2026-01-01T00:00:00.0000000Z"}}],"#,
        r#""Novelties":[{"Name":"n","Text":"new"}],"TimeSeriesDeletedRanges":[]}"#
    );
    host.write("new.ravendbdump", dump);
    let ran = host.run(&["backup", "ravendbdump:new.ravendbdump", "--to", "v"]).ends(0);
    assert!(ran.err.contains("Novelties"), "{ran:?}");
    host.read(&["copy", "v", "ravendbdump:again.ravendbdump"]).ends(0);
    let again = host.run(&["backup", "ravendbdump:again.ravendbdump", "--to", "v", "--as", "again"]).ends(0);
    assert!(again.err.contains("Novelties"), "it is in the copy, too: {again:?}");
    // The server would pass it by without a word.
    let into = Raven::shared().no_database();
    let restore = ["restore", "v", "--source", "again", "--into", &into.url()];
    host.read(&restore).fails(1, "Novelties");
    let ran = host.read(&[&restore[..], &["--without-kinds", "unknown", "--json"]].concat()).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
    assert_eq!(into.count("CountOfDocuments"), 1);
}

/// What RavenDB itself makes of some files of backups.
fn natively_restored(files: &[std::path::PathBuf]) -> Database {
    let into = Raven::shared().no_database();
    let folder = into.server().folder().join(format!("to-{}", into.name));
    fs::create_dir_all(&folder).unwrap();
    for file in files {
        fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let what = format!(r#"{{"Type":"Local","DatabaseName":"{}","BackupLocation":"{}"}}"#, into.name, folder.display());
    let begun = into.server().done("POST", "/admin/restore/database", what.as_bytes());
    let begun: serde_json::Value = serde_json::from_slice(&begun).unwrap();
    let start = std::time::Instant::now();
    loop {
        let state = into.server().done("GET", &format!("/operations/state?id={}", begun["OperationId"]), b"");
        let state = String::from_utf8(state).unwrap();
        if state.contains("\"Completed\"") {
            return into;
        }
        assert!(!state.contains("Faulted") && start.elapsed().as_secs() < 180, "{state}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn the_oldest_server_4_1_both_ways_and_into_5_4() {
    let old = Arc::new(Raven::of(OLDEST));
    let db = old.database();
    // This server does not take the mark of a deletion where there is no revision before it.
    db.done("POST", "/admin/revisions/config", br#"{"Default":{"Disabled":false}}"#);
    db.fill("Orders", "orders", 500);
    // This server writes the control character into its dumps as it is.
    db.put("Users/1", r#"{"Text":"a\u0001\n\tb","@metadata":{"@collection":"Users"}}"#);
    db.put("Users/1", r#"{"Text":"a\u0001\n\tc","N":1234567890123456789012345,"@metadata":{"@collection":"Users"}}"#);
    db.attach("Users/1", "A.txt", b"hello");
    db.done("PUT", "/cmpxchg?key=k1&index=0", br#"{"Object":{"a":1}}"#);
    let host = Host::ready();
    host.run(&["backup", &db.url(), "--to", "v", "--json"]).ends(0);
    db.delete("orders/5");
    let second = host.run(&["backup", &db.url(), "--to", "v", "--json"]).ends(0);
    assert_eq!(second.of("vault")[0]["point"]["deleted"], 1);
    for into in [old.no_database(), Raven::shared().no_database()] {
        let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
        for name in ["CountOfDocuments", "CountOfRevisionDocuments", "CountOfAttachments"] {
            assert_eq!(into.count(name), db.count(name), "{name}");
        }
    }
}

#[test]
fn native_backups_are_read_each_file_as_a_point() {
    let db = Raven::shared().shop();
    let native = db.native();
    native.run(true);
    db.delete("orders/7");
    db.put("orders/9", r#"{"N":"new","@metadata":{"@collection":"Orders"}}"#);
    native.run(false);
    db.delete("orders/10");
    db.attach("orders/9", "late.txt", b"late");
    db.attach("orders/12", "late.txt", b"late");
    native.run(false);
    db.delete("orders/9");
    db.put("orders/9", r#"{"N":"elsewhere","@metadata":{"@collection":"Moved"}}"#);
    // Of an id with capitals RavenDB's own restore would make one without here.
    db.done("DELETE", "/attachments?id=orders%2F12&name=late.txt", b"");
    native.run(false);
    let host = Host::ready();
    let files = native.files();
    for (n, documents) in [(0, 3004), (1, 3003), (2, 3002), (3, 3002)] {
        let into = Raven::shared().no_database();
        let url = format!("ravendbdump:{}", files[n].display());
        let ran = host.run(&["copy", &url, &into.url(), "--json"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true);
        assert_eq!(into.count("CountOfDocuments"), documents);
        // RavenDB's own restore makes more revisions than there were: those are not compared.
        let same = |db: &Database| {
            let numbers =
                db.counts().into_iter().filter(|(name, _)| !name.contains("Revision") && *name != "CountOfAttachments");
            (numbers.collect::<Vec<_>>(), db.documents())
        };
        let (ours, theirs) = (same(&into), same(&natively_restored(&files[..=n])));
        assert_eq!(ours.0, theirs.0, "{}", files[n].display());
        let differ: Vec<_> = ours.1.iter().zip(&theirs.1).filter(|(a, b)| a != b).take(3).collect();
        assert!(differ.is_empty(), "{}: {differ:#?}", files[n].display());
    }
    host.run(&["backup", &format!("ravendbdump:{}", files[0].parent().unwrap().display()), "--to", "v"]).ends(0);
}

#[test]
fn a_server_killed_at_work_leaves_no_half_point_and_a_restore_can_be_run_again() {
    let server = Arc::new(Raven::start());
    let db = server.database();
    for n in 0..20 {
        db.fill("Orders", &format!("orders/{n}"), 1000);
    }
    let host = Host::ready();
    let killed_at_work = |args: &[&str], after: u64| {
        let mut child = host.command(args).env("REWOUND_IDENTITY", host.path("key.txt")).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(after));
        server.kill();
        let code = child.wait().unwrap().code();
        server.run();
        code
    };
    for after in [30, 150, 300] {
        let code = killed_at_work(&["backup", &db.url(), "--to", "v", "--json"], after);
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
    }
    let ran = host.run(&["backup", &db.url(), "--to", "v", "--json"]).ends(0);
    assert_eq!(ran.of("vault")[0]["point"]["documents"].as_u64().unwrap() / 1000, 20);
    host.read(&["verify", "v"]).ends(0);
    let into = server.no_database();
    for after in [100, 300, 600] {
        let code = killed_at_work(&["restore", "v", "--into", &into.url(), "--if-exists", "merge"], after);
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
    }
    let again = || host.read(&["restore", "v", "--into", &into.url(), "--if-exists", "merge", "--json"]);
    let mut ran = again();
    // A server killed while it makes a database leaves one that it never opens again.
    if ran.out.contains("VoronUnrecoverableError") {
        assert!(ran.code != 0 && ran.out.contains("delete it in RavenDB Studio"), "{ran:?}");
        let gone = format!(r#"{{"DatabaseNames":["{}"],"HardDelete":true}}"#, into.name);
        server.done("DELETE", "/admin/databases", gone.as_bytes());
        ran = again();
    }
    let ran = ran.ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(into.documents().len(), 10_000, "as many as one answer takes");
    assert_eq!(into.count("CountOfDocuments"), 20_000);
}

#[test]
fn holding_tombstones_begins_and_ends_by_flags() {
    for server in [Raven::shared(), Arc::new(Raven::of(OLDEST))] {
        let db = server.database();
        db.fill("Orders", "orders", 50);
        let host = Host::ready();
        // The older server cleans by the clock alone.
        let cleans = server.host() == Raven::shared().host();
        let clean = || {
            if cleans {
                db.clean_tombstones()
            }
        };
        let tasks = || String::from_utf8(db.done("GET", "/tasks", b"")).unwrap();
        let backup = |more: &[&str]| {
            let ran = host.run(&[&["backup", &db.url(), "--to", "v", "--json"], more].concat()).ends(0);
            ran.summary()["mode"].as_str().unwrap().to_owned()
        };
        let begun = host.run(&["backup", &db.url(), "--to", "v", "--hold-tombstones"]).ends(0);
        assert!(begun.err.contains("rewound holds tombstones"), "it is announced: {}", begun.err);
        assert!(tasks().contains("rewound holds tombstones"));
        db.delete("orders/1");
        clean();
        // It stays so without the flag.
        assert_eq!(backup(&[]), "changes");
        db.delete("orders/2");
        assert_eq!(backup(&["--release-tombstones"]), "scan");
        assert!(!tasks().contains("rewound holds tombstones"));
        db.delete("orders/3");
        clean();
        assert_eq!(backup(&[]), "scan");
        let into = Raven::shared().no_database();
        host.read(&["restore", "v", "--into", &into.url()]).ends(0);
        assert_eq!(into.count("CountOfDocuments"), 47);
    }
    let host = Host::ready();
    host.run(&["backup", "folder:x", "--to", "v", "--hold-tombstones"]).fails(2, "no tombstones");
}

#[test]
fn only_some_kinds_are_restored_and_indexes_stand_still() {
    let db = Raven::shared().shop();
    let host = Host::ready();
    host.run(&["backup", &db.url(), "--to", "v"]).ends(0);
    let restored = |more: &[&str]| {
        let into = Raven::shared().no_database();
        let url = into.url();
        let ran = host.read(&[&["restore", "v", "--json", "--into", &url], more].concat()).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{more:?}: {}", ran.out);
        into
    };
    let same = |into: &Database, name: &str| assert_eq!(into.count(name), db.count(name), "{name}");
    let into = restored(&["--without-kinds", "revisions,indexes,settings,counters"]);
    same(&into, "CountOfDocuments");
    for gone in ["CountOfRevisionDocuments", "CountOfIndexes", "CountOfCounterEntries"] {
        assert_eq!(into.count(gone), 0, "{gone}");
    }
    same(&into, "CountOfTimeSeriesSegments");
    let into = restored(&["--kinds", "indexes"]);
    assert_eq!(into.count("CountOfDocuments"), 0);
    same(&into, "CountOfIndexes");
    for (how, status) in [("stopped", "Paused"), ("disabled", "Disabled")] {
        let into = restored(&["--indexes", how]);
        same(&into, "CountOfIndexes");
        let all: serde_json::Value = serde_json::from_slice(&into.done("GET", "/indexes/status", b"")).unwrap();
        let all = all["Indexes"].as_array().unwrap();
        assert!(!all.is_empty() && all.iter().all(|index| index["Status"] == status), "{how}: {all:?}");
    }
    let none = Raven::shared().no_database();
    host.read(&["restore", "v", "--into", &none.url(), "--kinds", "rows"]).fails(1, "documents, revisions");
    host.read(&["restore", "v", "--into", "folder:out", "--kinds", "documents"]).fails(1, "RavenDB");
}

#[test]
fn a_database_is_replaced_only_when_the_new_one_is_proven() {
    for server in [Raven::shared(), Arc::new(Raven::of(OLDEST))] {
        let db = if server.host() == Raven::shared().host() { Raven::shared().shop() } else { server.database() };
        db.fill("Orders", "orders", 200);
        let host = Host::ready();
        host.run(&["backup", &db.url(), "--to", "v"]).ends(0);
        let (before, documents) = (db.counts(), db.documents());
        db.delete("orders/5");
        db.put("later/1", r#"{"N":1,"@metadata":{"@collection":"Later"}}"#);
        let replace = ["restore", "v", "--into", &db.url(), "--if-exists", "replace"];
        host.read(&[&replace[..], &["--only", "Orders"]].concat()).fails(1, "a part of the backup");
        let plan = host.read(&[&replace[..], &["--dry-run"]].concat()).ends(0);
        assert!(plan.out.contains("scratch"), "{}", plan.out);
        let ran = host.read(&[&replace[..], &["--json"]].concat()).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
        assert_eq!((db.counts(), db.documents()), (before, documents));
        let all = String::from_utf8(server.done("GET", "/databases?namesOnly=true", b"")).unwrap();
        assert!(!all.contains(&format!("{}-rewound-", db.name)), "the scratch database is gone: {all}");
    }
}

#[test]
fn a_server_killed_while_a_database_is_replaced_has_it_somewhere() {
    let server = Arc::new(Raven::start());
    let db = server.database();
    db.fill("Orders", "orders", 5000);
    let host = Host::ready();
    host.run(&["backup", &db.url(), "--to", "v"]).ends(0);
    db.fill("Later", "later", 10);
    let names = || -> Vec<String> {
        let all = server.done("GET", "/databases?namesOnly=true", b"");
        let all: serde_json::Value = serde_json::from_slice(&all).unwrap();
        all["Databases"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    // None: one that the server was killed over while it made it, and never opens again. It is deleted, as the
    // documentation says.
    let documents = |name: &str| -> Option<u64> {
        let (status, stats) = server.request("GET", &format!("/databases/{name}/stats"), b"");
        if status == 503 && String::from_utf8_lossy(&stats).contains("VoronUnrecoverableErrorException") {
            let what = serde_json::json!({ "DatabaseNames": [name], "HardDelete": true }).to_string();
            server.done("DELETE", "/admin/databases", what.as_bytes());
            return None;
        }
        serde_json::from_slice::<serde_json::Value>(&stats).unwrap()["CountOfDocuments"].as_u64()
    };
    for after in [200, 600, 900, 1200, 1600, 2200] {
        let args = ["restore", "v", "--into", &db.url(), "--if-exists", "replace"];
        let mut child = host.command(&args).env("REWOUND_IDENTITY", host.path("key.txt")).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(after));
        server.kill();
        child.wait().unwrap();
        server.run();
        let counts: Vec<u64> = names().iter().filter_map(|name| documents(name)).collect();
        assert!(counts.iter().any(|n| [5000, 5010].contains(n)), "{after}: {counts:?}");
    }
    // What is left of a new one that was cut short is replaced like any other.
    let ran = host.read(&["restore", "v", "--into", &db.url(), "--if-exists", "replace", "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(documents(&db.name), Some(5000));
}

#[test]
fn a_first_backup_is_of_one_time() {
    let db = Raven::shared().database();
    // The sums of the two collections are the same in each state that there ever is.
    let write = |n: u32| {
        let one = |collection: &str| {
            format!(
                r#"{{"Type":"PUT","Id":"{collection}/1","ChangeVector":null,"Document":{{"N":{n},"@metadata":{{"@collection":"{collection}"}}}}}}"#
            )
        };
        db.done("POST", "/bulk_docs", format!(r#"{{"Commands":[{},{}]}}"#, one("Aa"), one("Zz")).as_bytes());
    };
    write(0);
    for middle in ["Bb", "Mm", "Yy"] {
        db.fill(middle, middle, 3000);
    }
    let over = std::sync::atomic::AtomicBool::new(false);
    let host = Host::ready();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (1..).take_while(|_| !over.load(std::sync::atomic::Ordering::Relaxed)).for_each(&write);
        });
        let ran = host.run(&["backup", &db.url(), "--to", "v", "--json"]);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ran.ends(0).of("vault")[0]["point"]["consistency"], "one-time");
    });
    let into = Raven::shared().no_database();
    host.read(&["restore", "v", "--into", &into.url()]).ends(0);
    let number = |id: &str| {
        let answer = into.done("GET", &format!("/docs?id={id}"), b"");
        serde_json::from_slice::<serde_json::Value>(&answer).unwrap()["Results"][0]["N"].clone()
    };
    assert_eq!(number("Aa%2F1"), number("Zz%2F1"));
}

#[test]
fn a_secured_server_takes_a_client_certificate() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 300);
    let host = Host::ready();
    host.run(&["backup", &db.url(), "--to", "v"]).ends(0);
    let secured = Arc::new(Raven::start_secured());
    let into = secured.no_database();
    let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    let ran = host.run(&["backup", &into.url(), "--to", "v", "--as", "secured", "--json"]).ends(0);
    assert_eq!(ran.of("vault")[0]["point"]["documents"].as_u64().unwrap() / 100, 3);
    let authority = testkit::ravendb::fixture("authority.pem");
    let bare = format!("ravendb+https://{}/{}?ca={authority}", secured.host(), into.name);
    host.run(&["backup", &bare, "--to", "v"]).fails(1, "certificate");
    let pfx = |name: &str| format!("{bare}&certificate={}", testkit::ravendb::fixture(name));
    host.run(&["backup", &pfx("server.pfx"), "--to", "v", "--as", "secured"]).ends(0);
    // With a password, and encrypted as old tools do it.
    host.write("pw", "sesame\n");
    for name in ["client.pfx", "old.pfx"] {
        let url = pfx(name);
        host.run(&["backup", &url, "--to", "v", "--as", "secured", "--password-file", "pw"]).ends(0);
        let refused = host.run(&["backup", &url, "--to", "v", "--as", "secured"]).fails(1, "cannot be read");
        assert!(refused.err.contains("--password-file"), "{}", refused.err);
    }
    host.run(&["backup", &pfx("README.md"), "--to", "v"]).fails(1, "cannot be read");
}

#[test]
fn a_large_attachment_streams_both_ways() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 3);
    let large: Vec<u8> = (0..100u32 << 20).map(|n| (n ^ (n >> 8) ^ (n >> 19)) as u8).collect();
    db.attach("orders/1", "large.bin", &large);
    let host = Host::ready();
    let url = format!("{}?hold-tombstones=yes", db.url());
    host.run(&["backup", &url, "--to", "v"]).ends(0);
    // It need not be read again because its document changes.
    db.put("orders/1", r#"{"N":"new","@metadata":{"@collection":"Orders"}}"#);
    let ran = host.run(&["backup", &url, "--to", "v", "--json"]).ends(0);
    assert_eq!(ran.summary()["mode"], "changes", "{}", ran.out);
    let into = Raven::shared().no_database();
    let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert!(into.done("GET", "/attachments?id=orders%2F1&name=large.bin", b"") == large);
}

#[test]
fn what_cannot_work_is_said_before() {
    let host = Host::ready();
    let none = Raven::shared().no_database();
    host.run(&["backup", &none.url(), "--to", "v"]).fails(1, "there is no database");
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 3);
    host.run(&["backup", &db.url(), "--to", "v"]).ends(0);
    host.read(&["restore", "v", "--into", &none.url(), "--rename", "Orders=Other"]).fails(1, "cannot be renamed");
    host.run(&["backup", "ravendb+http://127.0.0.1:1/x", "--to", "v"]).fails(1, "asking for the server's version");
    host.run(&["backup", "ravendb+http://u:secret@h/x", "--to", "v"]).fails(1, "not right");
}

#[test]
fn a_drill_writes_a_dump_and_proves_every_kind_of_thing() {
    let db = Raven::shared().shop();
    let host = Host::ready();
    host.run(&["backup", &db.url(), "--to", "v"]).ends(0);
    let drilled = host.read(&["drill", "v", "--json"]).ends(0);
    let told = &drilled.of("drill")[0];
    assert!(told["documents"].as_u64().unwrap() > 3000, "{told}");
    assert_eq!((&told["problems"], &told["unproven"]), (&serde_json::json!([]), &serde_json::json!([])), "{told}");
}

#[test]
fn a_mirror_takes_attachments_of_any_size() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let host = Host::ready();
    let url = format!("{}?hold-tombstones=yes", db.url());
    let log = fs::File::create(host.path("live.jsonl")).unwrap();
    let args = ["copy", &url, "folder:live", "--only", "Orders", "--live", "--json"];
    let mut live = host.command(&args).stdout(log).spawn().unwrap();
    let said = || fs::read_to_string(host.path("live.jsonl")).unwrap();
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !is_so() {
            assert!(start.elapsed().as_secs() < 180, "{what}: {}", said());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    until("it is in step", &|| said().contains("\"in-step\""));
    for (document, size) in [("orders/3", 9 << 20), ("orders/4", 40 << 20)] {
        let content = vec![size as u8 ^ 5; size];
        db.attach(document, "large.bin", &content);
        until("the attachment is there", &|| {
            let is_it = |path: &std::path::Path| fs::metadata(path).is_ok_and(|m| m.len() == size as u64);
            let found = walk(&host.path("live")).into_iter().find(|path| is_it(path));
            found.is_some_and(|path| fs::read(path).unwrap() == content)
        });
    }
    db.put("orders/1", r#"{"N":"last","@metadata":{"@collection":"Orders"}}"#);
    until("the last change", &|| {
        host.tree("live").values().any(|file| String::from_utf8_lossy(file).contains("\"last\""))
    });
    assert!(std::process::Command::new("kill").arg(live.id().to_string()).status().unwrap().success());
    assert!(live.wait().unwrap().success());
    // Nothing was scanned for them.
    assert_eq!(said().matches("\"in-step\"").count(), 1, "{}", said());
    assert!(!said().contains("\"gap\""), "{}", said());
}

/// All files in a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files
}
