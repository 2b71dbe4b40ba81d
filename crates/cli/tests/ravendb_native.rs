//! RavenDB's own backups through the binary, on a real server without a license: it makes those of the type
//! Backup, and refuses snapshots. With `REWOUND_TEST_RAVENDB_SHARED=7.1` all of it runs on another version.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, Ran};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::ravendb::{Database, OLDEST, Raven};

/// A host with a folder `shared` that holds somebody else's file.
fn sharing() -> Host {
    let host = Host::ready();
    host.write("shared/other.txt", "stays");
    host
}

/// Backs up by the server itself.
fn native(host: &Host, db: &Database, more: &[&str]) -> Ran {
    let args = ["backup", &db.url(), "--to", "v", "--native-dir", "shared", "--native-type", "backup"];
    host.run(&[&args, more].concat())
}

/// Restores the newest point, or another one, by the server itself.
fn back(host: &Host, db: &Database, more: &[&str]) -> Ran {
    host.read(&[&["restore", "v", "--into", &db.url(), "--native-dir", "shared"], more].concat())
}

fn point(ran: &Ran) -> serde_json::Value {
    ran.of("vault")[0]["point"].clone()
}

fn id(ran: &Ran) -> String {
    point(ran)["id"].as_str().unwrap().to_owned()
}

/// Nothing is in the shared folder but what was there before.
#[track_caller]
fn is_clean(host: &Host) {
    assert_eq!(host.tree("shared").into_iter().collect::<Vec<_>>(), [("other.txt".to_owned(), b"stays".to_vec())]);
    assert_eq!(fs::read_dir(host.path("shared")).unwrap().count(), 1, "no empty folders either");
}

/// Waits until the program has made its folder in the shared one.
fn until_begun(shared: &Path) {
    let start = Instant::now();
    while fs::read_dir(shared).unwrap().count() == 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_backup_that_the_server_made_comes_back_through_the_server() {
    let db = Raven::shared().shop();
    let host = sharing();
    let ran = native(&host, &db, &["--json"]).ends(0);
    is_clean(&host);
    assert_eq!((&point(&ran)["documents"], &point(&ran)["attachments"]), (&0.into(), &1.into()), "{}", ran.out);
    host.read(&["verify", "v"]).ends(0);

    let into = Raven::shared().no_database();
    let plan = back(&host, &into, &["--dry-run"]).ends(0);
    assert!(plan.out.contains("new folder") && !plan.out.contains("import"), "{}", plan.out);
    let ran = back(&host, &into, &["--json"]).ends(0);
    is_clean(&host);
    assert!(ran.out.contains("has what was counted at the backup"), "{}", ran.out);
    assert_eq!((&ran.summary()["proof"]["holds"], &ran.summary()["proof"]["unproven"]), (&true.into(), &1.into()));
    assert_eq!(db.documents(), into.documents());
    for same in ["CountOfDocuments", "CountOfCounterEntries", "CountOfTimeSeriesSegments", "CountOfIndexes"] {
        assert_eq!(db.count(same), into.count(same), "{same}");
    }
    assert_eq!(into.done("GET", "/attachments?id=orders%2F7&name=big.bin", b""), vec![7; 3 << 20]);

    // A database that is there stays as it is.
    back(&host, &into, &[]).fails(1, "is there already");
    let none = Raven::shared().no_database();
    back(&host, &none, &["--only", "Orders"]).fails(1, "Orders");
    back(&host, &none, &["--without-kinds", "revisions"]).fails(1, "kind");
    back(&host, &none, &["--exclude", "Orders"]).fails(1, "as a whole");
    is_clean(&host);
}

#[test]
fn only_the_server_looks_into_its_own_backups() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let host = sharing();
    let first = native(&host, &db, &["--json"]).ends(0);
    let none = Raven::shared().no_database();
    let refused = host.read(&["restore", "v", "--into", &none.url()]).fails(1, "only RavenDB opens it");
    assert!(refused.err.contains("--native-dir"), "{}", refused.err);
    host.read(&["copy", "v", "ravendbdump:out.ravendbdump"]).fails(1, "only RavenDB opens it");
    host.read(&["find", "v", "Orders", "orders/1"]).fails(1, "is not known");
    host.read(&["diff", "v", &id(&first)]).fails(1, "nobody else can look into it");
    host.read(&["restore", "v", "--into", "folder:out", "--native-dir", "shared"]).fails(2, "no backups of its own");
    host.run(&["backup", "folder:lib", "--to", "v", "--native-dir", "shared"]).fails(2, "no backups of its own");

    // Everybody gets the files out, and a drill compares them byte by byte.
    let drilled = host.read(&["drill", "v", "--json"]).ends(0);
    assert!(drilled.out.contains("\"documents\":1"), "{}", drilled.out);
    let ran = host.read(&["restore", "v", "--into", "folder:out", "--json"]).ends(0);
    assert_eq!((&ran.summary()["proof"]["holds"], &ran.summary()["proof"]["documents"]), (&true.into(), &1.into()));
    let files: Vec<String> = host.tree("out").into_keys().filter(|f| f.ends_with("backup")).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    assert!(file.starts_with("@native/") && file.ends_with(".ravendb-full-backup"), "{file}");
    let ran = host.run(&["copy", &format!("ravendbdump:out/{file}"), &none.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    assert_eq!(none.count("CountOfDocuments"), 20);
}

#[test]
fn a_server_without_a_license_refuses_snapshots_and_nothing_is_written() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 3);
    let host = sharing();
    let (before, url) = (host.tree("v"), db.url());
    for kind in [&[][..], &["--native-type", "snapshot"]] {
        let args = [&["backup", &url, "--to", "v", "--native-dir", "shared"], kind].concat();
        let refused = host.run(&args).fails(1, "Your current license doesn't include the snapshot backups feature");
        assert!(refused.err.contains("--native-type backup"), "{}", refused.err);
        assert_eq!(host.tree("v"), before);
        is_clean(&host);
    }
}

#[test]
fn a_server_that_makes_no_backups_without_a_task_says_so() {
    let db = Arc::new(Raven::of(OLDEST)).database();
    let host = sharing();
    let refused = native(&host, &db, &[]).fails(1, "makes no backups without a task");
    assert!(refused.err.contains("ravendbdump:FOLDER"), "{}", refused.err);
    is_clean(&host);
}

#[test]
fn own_and_ordinary_backups_take_turns_in_one_vault() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 50);
    let host = sharing();
    let held = format!("{}?hold-tombstones=yes", db.url());
    let ordinary = |more: &[&str]| host.run(&[&["backup", &held, "--to", "v", "--json"], more].concat()).ends(0);
    let mode = |ran: &Ran| ran.summary()["mode"].as_str().unwrap().to_owned();
    let put = |id: &str, text: &str| db.put(id, &format!(r#"{{"N":"{text}","@metadata":{{"@collection":"Orders"}}}}"#));

    let a = ordinary(&[]);
    put("orders/1", "second");
    let b = native(&host, &db, &["--json"]).ends(0);
    assert_eq!(mode(&b), "scan");
    db.delete("orders/2");
    let c = ordinary(&["--full"]);
    assert_eq!(mode(&c), "scan");
    put("orders/3", "third");
    let d = ordinary(&[]);
    assert_eq!(mode(&d), "changes");
    db.delete("orders/4");
    let e = native(&host, &db, &["--json"]).ends(0);
    let f = native(&host, &db, &["--json"]).ends(0);
    put("orders/5", "last");
    let g = ordinary(&["--full"]);
    is_clean(&host);
    host.read(&["verify", "v"]).ends(0);

    let number = |db: &Database, id: &str| {
        let (status, answer) = db.server().request("GET", &format!("/databases/{}/docs?id={id}", db.name), b"");
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        (status != 404).then(|| answer["Results"][0]["N"].clone())
    };
    let all = |db: &Database| ["1", "2", "3", "4", "5"].map(|n| number(db, &format!("orders%2F{n}")));
    let (new, gone) = (|text: &str| Some(text.into()), None);
    let old = |n: u64| Some(serde_json::Value::from(n));
    let states = [
        (&a, false, [old(1), old(2), old(3), old(4), old(5)]),
        (&b, true, [new("second"), old(2), old(3), old(4), old(5)]),
        (&c, false, [new("second"), gone.clone(), old(3), old(4), old(5)]),
        (&d, false, [new("second"), gone.clone(), new("third"), old(4), old(5)]),
        (&e, true, [new("second"), gone.clone(), new("third"), gone.clone(), old(5)]),
        (&f, true, [new("second"), gone.clone(), new("third"), gone.clone(), old(5)]),
        (&g, false, [new("second"), gone.clone(), new("third"), gone.clone(), new("last")]),
    ];
    for (ran, own, wanted) in states {
        let (into, id) = (Raven::shared().no_database(), id(ran));
        match own {
            true => back(&host, &into, &["--point", &id]).ends(0),
            false => host.read(&["restore", "v", "--into", &into.url(), "--point", &id]).ends(0),
        };
        assert_eq!(all(&into), wanted, "{id}");
        if !own {
            let other = Raven::shared().no_database();
            back(&host, &other, &["--point", &id]).fails(1, "not made with --native-dir");
        }
    }

    // What cannot be looked into tells neither of changes nor of deletions.
    let versions = |id: &str| -> Vec<(bool, String)> {
        let found = host.read(&["find", "v", "Orders", id, "--json"]).ends(0);
        assert!(found.err.contains("3 points"), "{}", found.err);
        let of = |v: &serde_json::Value| (v["deleted"] == true, v["point"].as_str().unwrap().to_owned());
        found.of("version").iter().map(of).collect()
    };
    let last = |ran: &Ran| id(ran);
    assert_eq!(versions("orders/1"), [(false, last(&a)), (false, last(&c))]);
    assert_eq!(versions("orders/2"), [(false, last(&a)), (true, last(&c))]);
    assert_eq!(versions("orders/4"), [(false, last(&a)), (true, last(&g))]);
    assert_eq!(versions("orders/9"), [(false, last(&a))]);
    let between = host.read(&["diff", "v", &id(&a), &id(&g)]).ends(0);
    let mut lines: Vec<&str> = between.out.lines().filter(|line| line.contains("Orders/")).collect();
    lines.sort();
    assert_eq!(
        lines,
        ["- Orders/orders/2", "- Orders/orders/4", "~ Orders/orders/1", "~ Orders/orders/3", "~ Orders/orders/5"]
    );
    for (from, to) in [(&a, &e), (&b, &g)] {
        host.read(&["diff", "v", &id(from), &id(to)]).fails(1, "nobody else can look into it");
    }
}

#[test]
fn nothing_is_left_of_what_is_interrupted_or_fails() {
    let server = Arc::new(Raven::start());
    let db = server.database();
    for n in 0..20 {
        db.fill("Orders", &format!("orders/{n}"), 1000);
    }
    let host = sharing();
    let shared = host.path("shared");
    let url = db.url();
    let backup = ["backup", &url, "--to", "v", "--native-dir", "shared", "--native-type", "backup"];
    // By Ctrl-C.
    let mut child = host.command(&backup).spawn().unwrap();
    until_begun(&shared);
    let asked = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(asked.success());
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    is_clean(&host);
    // By a server that dies.
    let mut child = host.command(&backup).spawn().unwrap();
    until_begun(&shared);
    server.kill();
    let code = child.wait().unwrap().code();
    server.run();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    is_clean(&host);
    host.run(&backup).ends(0);
    // Files that are not what they were.
    let vault = host.path("v");
    let whole: Vec<_> = host.tree("v").into_iter().filter(|(_, bytes)| bytes.len() > 20_000).collect();
    assert!(!whole.is_empty());
    for (name, bytes) in &whole {
        let mut bad = bytes.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(vault.join(name), bad).unwrap();
    }
    let into = server.no_database();
    let failed = back(&host, &into, &[]);
    assert_eq!(failed.code, 1, "{failed:?}");
    is_clean(&host);
    let names = String::from_utf8(server.done("GET", "/databases?namesOnly=true", b"")).unwrap();
    assert!(!names.contains(&format!("{:?}", into.name)), "no database is made: {names}");
    for (name, bytes) in &whole {
        fs::write(vault.join(name), bytes).unwrap();
    }
    back(&host, &into, &[]).ends(0);
    is_clean(&host);
    assert_eq!(into.count("CountOfDocuments"), 20_000);
}

#[test]
fn what_cannot_work_is_said_before() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 3);
    let host = sharing();
    let backup = |more: &[&str]| host.run(&[&["backup", &db.url(), "--to", "v"], more].concat());
    backup(&["--native-dir", "nowhere"]).fails(1, "is no folder");
    backup(&["--native-dir", "shared", "--only", "Orders"]).fails(1, "of the whole database");
    assert_eq!(backup(&["--native-type", "backup"]).code, 2);
    assert_eq!(backup(&["--native-dir", "shared", "--live"]).code, 2);
    is_clean(&host);
}
