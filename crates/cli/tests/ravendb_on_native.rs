//! What has changed since a backup that RavenDB made itself, on top of it, through the binary and a real server
//! without a license. With `REWOUND_TEST_RAVENDB_SHARED=7.1` all of it runs on another version.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, Ran};
use std::fs;
use std::time::{Duration, Instant};
use testkit::ravendb::{Database, Raven};

/// A host with a folder `shared` that holds somebody else's file.
fn sharing() -> Host {
    let host = Host::ready();
    host.write("shared/other.txt", "stays");
    host
}

fn held(db: &Database) -> String {
    format!("{}?hold-tombstones=yes", db.url())
}

/// Backs up by the server itself.
fn native(host: &Host, db: &Database) -> Ran {
    let args = ["backup", &held(db), "--to", "v", "--native-dir", "shared", "--native-type", "backup", "--json"];
    host.run(&args).ends(0)
}

/// Backs up what has changed.
fn changes(host: &Host, db: &Database) -> Ran {
    let ran = host.run(&["backup", &held(db), "--to", "v", "--json"]).ends(0);
    assert_eq!(ran.summary()["mode"], "changes", "{ran:?}");
    ran
}

/// Restores a point, or the newest, by the server itself.
fn back(host: &Host, db: &Database, more: &[&str]) -> Ran {
    host.read(&[&["restore", "v", "--into", &db.url(), "--native-dir", "shared", "--json"], more].concat())
}

fn id(ran: &Ran) -> String {
    ran.of("vault")[0]["point"]["id"].as_str().unwrap().to_owned()
}

fn order(db: &Database, id: &str, text: &str) {
    db.put(id, &format!(r#"{{"N":"{text}","@metadata":{{"@collection":"Orders"}}}}"#));
}

/// All that a database says of itself, without what the server makes anew.
fn state(db: &Database) -> Vec<String> {
    let json = |path: &str| -> serde_json::Value { serde_json::from_slice(&db.done("GET", path, b"")).unwrap() };
    let mut all = db.documents();
    for name in ["CountOfDocuments", "CountOfCounterEntries", "CountOfTimeSeriesSegments", "CountOfIndexes"] {
        all.push(format!("{name} {}", db.count(name)));
    }
    for value in json("/cmpxchg?start=0&pageSize=100")["Results"].as_array().unwrap() {
        all.push(format!("{} {}", value["Key"], value["Value"]));
    }
    for index in json("/indexes")["Results"].as_array().unwrap() {
        all.push(format!("{} {} {}", index["Name"], index["Type"], index["Maps"]));
    }
    for subscription in json("/subscriptions?start=0&pageSize=100")["Results"].as_array().unwrap() {
        all.push(format!("{} {}", subscription["SubscriptionName"], subscription["Query"]));
    }
    all.push(json("/debug/identities").to_string());
    for id in ["Users/1", "orders/8"] {
        let counters = json(&format!("/counters?docId={}", id.replace('/', "%2F")));
        let of = |c: &serde_json::Value| format!("{} {}", c["CounterName"], c["TotalValue"]);
        all.extend(counters["Counters"].as_array().unwrap().iter().map(of));
    }
    let series =
        db.server().request("GET", &format!("/databases/{}/timeseries?docId=orders%2F8&name=Heart", db.name), b"");
    let series: serde_json::Value = serde_json::from_slice(&series.1).unwrap_or_default();
    for entry in series["Entries"].as_array().into_iter().flatten() {
        all.push(format!("{} {} {}", entry["Timestamp"], entry["Values"], entry["Tag"]));
    }
    all
}

/// The change vectors of the revisions of a document.
fn revisions(db: &Database, id: &str) -> Vec<String> {
    let path = format!("/revisions?id={id}&start=0&pageSize=100&metadataOnly=true");
    let answer: serde_json::Value = serde_json::from_slice(&db.done("GET", &path, b"")).unwrap();
    let vector = |r: &serde_json::Value| r["@metadata"]["@change-vector"].as_str().unwrap().to_owned();
    answer["Results"].as_array().unwrap().iter().map(vector).collect()
}

/// Nothing is in the shared folder but what was there before.
#[track_caller]
fn is_clean(host: &Host) {
    assert_eq!(host.tree("shared").into_iter().collect::<Vec<_>>(), [("other.txt".to_owned(), b"stays".to_vec())]);
    assert_eq!(fs::read_dir(host.path("shared")).unwrap().count(), 1, "no empty folders either");
}

#[test]
fn every_kind_of_change_comes_back_on_top_of_a_backup_that_the_server_made() {
    let db = Raven::shared().shop();
    let host = sharing();
    db.attach("orders/12", "old.bin", &vec![1; 100_000]);
    // One that stays as it is, so that it is known whether the others are of the same document.
    let stays = r#"{"Documents":[{"DocumentId":"Users/1","Operations":[{"Type":"Increment","CounterName":"Stays","Delta":1}]}]}"#;
    db.done("POST", "/counters", stays.as_bytes());
    let mut points = vec![(id(&native(&host, &db)), state(&db), revisions(&db, "Users%2F1"))];
    let mut next = || {
        let ran = changes(&host, &db);
        points.push((id(&ran), state(&db), revisions(&db, "Users%2F1")));
    };

    order(&db, "orders/1", "second");
    db.delete("orders/2");
    db.delete("odd");
    order(&db, "odd", "moved");
    db.delete("orders/3");
    order(&db, "orders/3", "again");
    db.done("DELETE", "/attachments?id=orders%2F7&name=same.txt", b"");
    db.attach("orders/9", "new.txt", b"fresh");
    order(&db, "orders/12", "keeps its attachment");
    db.put("fresh/1", r#"{"N":1,"@metadata":{"@collection":"Fresh"}}"#);
    db.put("Users/1", r#"{"N":77,"@metadata":{"@collection":"Users"}}"#);
    next();

    order(&db, "orders/2", "back");
    db.delete("orders/1");
    db.delete("fresh/1");
    db.delete("orders/7");
    db.attach("orders/9", "new.txt", b"fresher");
    next();

    let exchange: serde_json::Value = serde_json::from_slice(&db.done("GET", "/cmpxchg?key=k1", b"")).unwrap();
    if let Some(index) = exchange["Results"][0]["Index"].as_u64() {
        db.done("DELETE", &format!("/cmpxchg?key=k1&index={index}"), b"");
    }
    db.done("PUT", "/cmpxchg?key=k2&index=0", br#"{"Object":{"b":2}}"#);
    db.done("DELETE", "/indexes?name=ByN", b"");
    let made = r#"{"Indexes":[{"Name":"ByText","Maps":["from o in docs.Orders select new { o.Text }"]}]}"#;
    db.done("PUT", "/admin/indexes", made.as_bytes());
    db.done("DELETE", "/subscriptions?taskName=S1", b"");
    db.done("PUT", "/subscriptions", br#"{"Name":"S2","Query":"from Orders"}"#);
    db.done("POST", "/identity/next?name=users%7C", b"");
    next();

    let more = r#"{"Documents":[{"DocumentId":"Users/1","Operations":[{"Type":"Increment","CounterName":"Likes","Delta":4},{"Type":"Delete","CounterName":"zz"}]}]}"#;
    db.done("POST", "/counters", more.as_bytes());
    next();

    let series = r#"{"Name":"Heart","Appends":[{"Timestamp":"2024-01-01T00:00:00.0000000Z","Values":[71.5],"Tag":"t"},{"Timestamp":"2024-01-02T00:00:00.0000000Z","Values":[72],"Tag":null}],"Deletes":null}"#;
    db.done("POST", "/timeseries?docId=orders%2F8", series.as_bytes());
    next();
    is_clean(&host);
    host.read(&["verify", "v"]).ends(0);

    for (number, (id, wanted, vectors)) in points.iter().enumerate() {
        let into = Raven::shared().no_database();
        let plan = back(&host, &into, &["--point", id, "--dry-run"]).ends(0);
        assert_eq!(plan.out.contains("incremental backups"), number > 0, "{}", plan.out);
        let ran = back(&host, &into, &["--point", id]).ends(0);
        is_clean(&host);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{number}: {}", ran.out);
        assert!(ran.out.contains("has what was counted at the backup"), "{number}: {}", ran.out);
        assert_eq!(state(&into), *wanted, "{number}");
        let there = revisions(&into, "Users%2F1");
        assert!(vectors.iter().all(|vector| there.contains(vector)), "{number}: {vectors:?} {there:?}");
        let content = |id: &str, name: &str| {
            let path = format!("/databases/{}/attachments?id={id}&name={name}", into.name);
            let (status, content) = into.server().request("GET", &path, b"");
            (status == 200).then_some(content)
        };
        assert_eq!(content("orders%2F12", "old.bin"), Some(vec![1; 100_000]), "{number}");
        assert_eq!(content("orders%2F7", "big.bin").is_some(), number < 2, "{number}");
        let fresh: Option<&[u8]> = [None, Some(&b"fresh"[..]), Some(b"fresher")][number.min(2)];
        assert_eq!(content("orders%2F9", "new.txt").as_deref(), fresh, "{number}");
    }
    // A time between, too.
    let all = host.run(&["points", "v", "--json"]).of("point");
    let second = all.iter().find(|p| p["id"] == points[1].0.as_str()).unwrap();
    let into = Raven::shared().no_database();
    back(&host, &into, &["--at", second["time"].as_str().unwrap()]).ends(0);
    assert_eq!(state(&into), points[1].1);
}

#[test]
fn what_is_in_the_log_is_found_and_the_rest_is_said_to_be_unknown() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let host = sharing();
    let a = native(&host, &db);
    order(&db, "orders/1", "second");
    db.delete("orders/2");
    order(&db, "orders/99", "new");
    let b = changes(&host, &db);
    order(&db, "orders/1", "third");
    order(&db, "orders/2", "back");
    db.delete("orders/3");
    let c = changes(&host, &db);

    let versions = |id: &str| -> Vec<(bool, String)> {
        let found = host.read(&["find", "v", "Orders", id, "--json"]).ends(0);
        assert!(found.err.contains("cannot be looked into"), "{}", found.err);
        let of = |v: &serde_json::Value| (v["deleted"] == true, v["point"].as_str().unwrap().to_owned());
        found.of("version").iter().map(of).collect()
    };
    assert_eq!(versions("orders/1"), [(false, id(&b)), (false, id(&c))]);
    assert_eq!(versions("orders/2"), [(true, id(&b)), (false, id(&c))]);
    assert_eq!(versions("orders/3"), [(true, id(&c))]);
    assert_eq!(versions("ORDERS/99"), [(false, id(&b))]);
    host.read(&["find", "v", "Orders", "orders/4"]).fails(1, "is not known");

    let told = |from: &str, to: &str| -> Vec<String> {
        let ran = host.read(&["diff", "v", from, to]).ends(0);
        assert!(ran.err.contains("cannot be looked into"), "{}", ran.err);
        let mut lines: Vec<String> = ran.out.lines().filter(|l| l.contains("Orders/")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(told(&id(&b), &id(&c)), ["+ Orders/orders/2", "- Orders/orders/3", "~ Orders/orders/1"]);
    assert_eq!(told(&id(&a), &id(&b)), ["+ Orders/orders/1", "+ Orders/orders/99", "- Orders/orders/2"]);

    // One document comes back without the rest.
    let into = Raven::shared().database();
    into.fill("Orders", "orders", 3);
    let point = c.of("vault")[0]["point"]["time"].as_str().unwrap().to_owned();
    let find = |id: &str| {
        host.read(&[
            "find",
            "v",
            "Orders",
            id,
            "--restore",
            "--into",
            &into.url(),
            "--at",
            &point,
            "--if-exists",
            "merge",
        ])
    };
    find("orders/1").ends(0);
    assert!(into.documents().iter().any(|d| d.contains("third")));
    find("orders/3").fails(1, "was deleted at");

    // Only the server puts both together.
    host.read(&["restore", "v", "--into", "folder:out"]).fails(1, "only the server can put the two together");
    host.read(&["copy", "v", "folder:out"]).fails(1, "only the server can put the two together");
    host.read(&["copy", "v", "ravendbdump:out.ravendbdump"]).fails(1, "put the two together");
    let none = Raven::shared().no_database();
    host.read(&["restore", "v", "--into", &none.url()]).fails(1, "put the two together");
    assert!(!host.path("out").exists());
    // The point without changes is files, as before.
    host.read(&["restore", "v", "--point", &id(&a), "--into", "folder:files"]).ends(0);

    let drilled = host.read(&["drill", "v", "--json"]).ends(0);
    assert!(drilled.out.contains("\"documents\":1") && drilled.out.contains("put the two together"), "{}", drilled.out);
    host.read(&["status", "v"]).ends(0);

    // What a point needs stays.
    host.read(&["prune", "v", "--keep-last", "1"]).ends(0);
    host.read(&["verify", "v"]).ends(0);
    back(&host, &none, &[]).ends(0);
    assert_eq!(none.documents(), db.documents());
    is_clean(&host);
}

#[test]
fn what_cannot_go_on_top_is_a_new_scan_and_said() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let host = sharing();
    let scans = |why: &str, more: &[&str]| {
        let ran = host.run(&[&["backup", &db.url(), "--to", "v", "--json"], more].concat()).ends(0);
        assert_eq!(ran.summary()["mode"], "scan", "{why}: {ran:?}");
        assert!(ran.err.contains(why), "{}", ran.err);
        let into = Raven::shared().no_database();
        let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true);
        into
    };
    // Without the hold nothing can go on top.
    let plain = ["backup", &db.url(), "--to", "v", "--native-dir", "shared", "--native-type", "backup"];
    host.run(&plain).ends(0);
    order(&db, "orders/1", "second");
    assert_eq!(scans("", &[]).documents(), db.documents());
    // The hold is given up.
    native(&host, &db);
    order(&db, "orders/1", "third");
    changes(&host, &db);
    db.delete("orders/2");
    let into = scans("stored beside the backup that the server made", &["--release-tombstones"]);
    assert_eq!(into.documents(), db.documents());
    assert_eq!(host.run(&["points", "v", "--json"]).ends(0).summary()["gaps"], 0);
    // A large attachment can.
    native(&host, &db);
    db.attach("orders/3", "large.bin", &vec![5; 9 << 20]);
    changes(&host, &db);
    let into = Raven::shared().no_database();
    back(&host, &into, &[]).ends(0);
    assert_eq!(into.done("GET", "/attachments?id=orders%2F3&name=large.bin", b""), vec![5; 9 << 20]);
    // Everything, as it was asked for: what comes after it goes on top of that.
    native(&host, &db);
    order(&db, "orders/5", "before");
    changes(&host, &db);
    db.delete("orders/6");
    let full = host.read(&["backup", &held(&db), "--to", "v", "--full", "--json"]).ends(0);
    assert_eq!(full.summary()["mode"], "scan");
    db.delete("orders/7");
    order(&db, "orders/8", "after");
    changes(&host, &db);
    let into = Raven::shared().no_database();
    host.read(&["restore", "v", "--into", &into.url()]).ends(0);
    assert_eq!(into.documents(), db.documents());
    assert_eq!(host.run(&["points", "v", "--json"]).ends(0).summary()["gaps"], 0);
    // A part.
    native(&host, &db);
    order(&db, "orders/4", "part");
    scans("", &["--only", "Orders"]);
    native(&host, &db);
    db.put("users/1", r#"{"N":1,"@metadata":{"@collection":"Users"}}"#);
    assert_eq!(scans("of the whole database", &["--exclude", "Users"]).count("CountOfDocuments"), 17);
    is_clean(&host);
}

#[test]
fn a_collection_that_older_scans_have_is_not_mixed_with_the_servers_backup() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let host = sharing();
    let scanned = host.run(&["backup", &held(&db), "--to", "v", "--json"]).ends(0);
    for n in 0..20 {
        db.delete(&format!("orders/{n}"));
    }
    let own = native(&host, &db);
    order(&db, "orders/50", "new");
    let on_top = changes(&host, &db);
    let into = Raven::shared().no_database();
    back(&host, &into, &[]).ends(0);
    assert_eq!(into.count("CountOfDocuments"), 1);
    let again = host.run(&["backup", &held(&db), "--to", "v", "--full", "--json"]).ends(0);
    assert_eq!(again.summary()["mode"], "scan");
    let into = Raven::shared().no_database();
    host.read(&["restore", "v", "--into", &into.url()]).ends(0);
    assert_eq!(into.documents(), db.documents());
    let found = host.read(&["find", "v", "Orders", "orders/5", "--json"]).ends(0);
    let all: Vec<(bool, String)> = found
        .of("version")
        .iter()
        .map(|v| (v["deleted"] == true, v["point"].as_str().unwrap_or_default().to_owned()))
        .collect();
    assert_eq!(all, [(false, id(&scanned)), (true, id(&again))], "{own:?} {on_top:?}");
}

#[test]
fn a_live_backup_goes_on_top_of_a_backup_that_the_server_made() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 100);
    let host = sharing();
    native(&host, &db);
    let log = fs::File::create(host.path("live.jsonl")).unwrap();
    let url = held(&db);
    let mut live = host.command(&["backup", &url, "--to", "v", "--live", "--json"]).stdout(log).spawn().unwrap();
    let said = || fs::read_to_string(host.path("live.jsonl")).unwrap();
    order(&db, "orders/1", "live");
    db.delete("orders/2");
    // It is in the vault as soon as a state of then can be found.
    let start = Instant::now();
    let is_found = || host.read(&["find", "v", "Orders", "orders/2", "--json"]).out.contains("\"deleted\":true");
    while !is_found() {
        assert!(start.elapsed() < Duration::from_secs(180), "{}", said());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Killed: what is stored stays, and the next run goes on.
    live.kill().unwrap();
    live.wait().unwrap();
    db.delete("orders/3");
    changes(&host, &db);
    host.read(&["verify", "v"]).ends(0);
    let into = Raven::shared().no_database();
    let ran = back(&host, &into, &[]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
    assert_eq!(into.documents(), db.documents());
    is_clean(&host);
}

#[test]
fn nothing_is_left_of_a_restore_that_is_interrupted() {
    let db = Raven::shared().database();
    for n in 0..10 {
        db.fill("Orders", &format!("orders/{n}"), 1000);
    }
    let host = sharing();
    native(&host, &db);
    db.fill("Orders", "orders/0", 1000);
    db.delete("orders/1/1");
    changes(&host, &db);
    let into = Raven::shared().no_database();
    let url = into.url();
    let mut command = host.command(&["restore", "v", "--into", &url, "--native-dir", "shared"]);
    let mut child = command.env("REWOUND_IDENTITY", host.path("key.txt")).spawn().unwrap();
    let start = Instant::now();
    while fs::read_dir(host.path("shared")).unwrap().count() == 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    is_clean(&host);
    let names = String::from_utf8(into.server().done("GET", "/databases?namesOnly=true", b"")).unwrap();
    if names.contains(&format!("{:?}", into.name)) {
        // It was through already.
        assert_eq!(code, Some(0));
        return;
    }
    back(&host, &into, &[]).ends(0);
    assert_eq!(into.documents(), db.documents());
    is_clean(&host);
}

#[test]
fn several_vaults_go_on_together_only_from_the_same_place() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let host = sharing();
    for vault in ["w", "x"] {
        host.run(&["init", vault, "--recipient", &host.recipient("key.txt")]).ends(0);
    }
    let url = held(&db);
    let own = ["backup", &url, "--native-dir", "shared", "--native-type", "backup", "--to", "v", "--to", "w"];
    host.run(&own).ends(0);
    host.run(&["backup", &url, "--to", "x"]).ends(0);
    let checked = |vault: &str, own: bool| {
        let into = Raven::shared().no_database();
        let (url, own) = (into.url(), if own { &["--native-dir", "shared"][..] } else { &[] });
        host.read(&[&["restore", vault, "--into", &url], own].concat()).ends(0);
        assert_eq!(into.documents(), db.documents(), "{vault}");
    };
    db.delete("orders/1");
    order(&db, "orders/2", "both");
    let both = host.run(&["backup", &url, "--to", "v", "--to", "w", "--json"]).ends(0);
    assert_eq!(both.summary()["mode"], "changes");
    ["v", "w"].iter().for_each(|vault| checked(vault, true));
    db.delete("orders/3");
    let all = host.run(&["backup", &url, "--to", "v", "--to", "x", "--json"]).ends(0);
    assert!(all.err.contains("back it up by itself"), "{}", all.err);
    ["v", "x"].iter().for_each(|vault| checked(vault, false));
    db.delete("orders/4");
    let all = host.run(&["backup", &url, "--to", "v", "--to", "x", "--json"]).ends(0);
    assert_eq!(all.summary()["mode"], "changes");
    ["v", "x"].iter().for_each(|vault| checked(vault, false));
    is_clean(&host);
}
