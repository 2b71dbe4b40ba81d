//! Time through the binary, on a real MongoDB: backups by changes, restores to a time, live backups
//! that are killed and stopped, and history that is lost.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use bson::{Document, doc};
use common::{Host, Ran, ran};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use testkit::mongod::{Mongod, Options};
use testkit::proxy::Proxy;

/// All documents of a database, sorted, by collection.
fn all(mongod: &Mongod, database: &str) -> Vec<(String, Vec<Vec<u8>>)> {
    let answer = mongod.done(database, doc! { "listCollections": 1, "nameOnly": true });
    let batch = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let names = batch.iter().map(|c| c.as_document().unwrap().get_str("name").unwrap().to_owned());
    let mut all: Vec<_> = names
        .filter(|name| !name.starts_with("system.views"))
        .map(|name| {
            let mut documents = mongod.documents(database, &name);
            documents.sort();
            (name, documents)
        })
        .collect();
    all.sort();
    all
}

/// The cluster's time, as `--at` takes it exactly.
fn now(mongod: &Mongod) -> String {
    let answer = mongod.done("admin", doc! { "appendOplogNote": 1, "data": { "mark": 1 } });
    let time = answer.get_timestamp("operationTime").unwrap();
    format!("ts:{},{}", time.time, time.increment)
}

fn set(mongod: &Mongod, database: &str, id: i32, value: Document) {
    let update = doc! { "q": { "_id": id }, "u": { "$set": value }, "upsert": true };
    mongod.done(database, doc! { "update": "orders", "updates": [update] });
}

fn seed(mongod: &Mongod, database: &str) {
    let orders: Vec<_> =
        (0..2000).map(|i| doc! { "_id": i, "n": i % 7, "text": "x".repeat(100), "list": [1, 2, 3] }).collect();
    mongod.done(database, doc! { "insert": "orders", "documents": orders });
    mongod.done(database, doc! { "insert": "old", "documents": [{ "_id": 1 }] });
}

/// Restores a time into a new database, which must be proven.
fn restored(host: &Host, mongod: &Mongod, more: &[&str]) -> Vec<(String, Vec<Vec<u8>>)> {
    let into = mongod.database_name();
    let url = mongod.url_of(&into);
    let ran = host.read(&[&["restore", "v", "--into", &url, "--json"], more].concat()).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    all(mongod, &into)
}

#[test]
fn backups_by_changes_and_restores_to_times_between() {
    let mongod = Mongod::shared();
    let name = mongod.database_name();
    seed(&mongod, &name);
    let host = Host::ready();
    let backup = |more: &[&str]| -> Ran {
        host.run(&[&["backup", &mongod.url_of(&name), "--to", "v", "--json"], more].concat()).ends(0)
    };
    let first = backup(&[]);
    assert_eq!(first.summary()["mode"], "scan");
    let size = first.of("vault")[0]["point"]["stored"].as_u64().unwrap();
    let mut times = Vec::new();
    let mark = |times: &mut Vec<_>| times.push((now(&mongod), all(&mongod, &name)));
    for round in 0..3 {
        mark(&mut times);
        set(&mongod, &name, round, doc! { "n": 1000 + round, "list.1": "changed" });
        mark(&mut times);
        mongod.done(&name, doc! { "delete": "orders", "deletes": [{ "q": { "_id": 100 + round }, "limit": 1 }] });
        mongod.done(&name, doc! { "insert": format!("new{round}"), "documents": [{ "_id": round }] });
        if round == 1 {
            mongod.done(&name, doc! { "drop": "old" });
            mongod.command(doc! { "renameCollection": format!("{name}.new0"), "to": format!("{name}.renamed") });
        }
        mark(&mut times);
        // Names in the vault tell seconds of this engine's clock: what is shown needs more than one.
        std::thread::sleep(Duration::from_millis(1100));
        // No identity is needed, and hardly anything is read or stored.
        let next = backup(&[]);
        assert_eq!(next.summary()["mode"], "changes", "{}", next.out);
        let point = &next.of("vault")[0]["point"];
        assert!(point["stored"].as_u64().unwrap() < size / 5, "{point} after {size}");
    }
    // What the changes say is what a new scan finds.
    let full = ran(host
        .command(&["backup", &mongod.url_of(&name), "--to", "v", "--full", "--json"])
        .env("REWOUND_IDENTITY", host.path("key.txt"))
        .output()
        .unwrap())
    .ends(0);
    assert_eq!(full.summary()["mode"], "scan");
    assert!(full.of("mismatch").is_empty() && !full.err.contains("could not be compared"), "{}", full.err);
    for (at, there) in &times {
        assert!(restored(&host, &mongod, &["--at", at]) == *there, "at {at}");
    }
    assert!(restored(&host, &mongod, &[]) == all(&mongod, &name));
    host.read(&["verify", "v"]).ends(0);

    // What can be restored is shown, and shows what can be given back.
    let points = host.run(&["points", "v", "--json"]).ends(0);
    let histories = points.of("history");
    let interval = &histories[0]["intervals"][0];
    assert_eq!(histories[0]["intervals"].as_array().unwrap().len(), 1, "{histories:?}");
    let shown = host.run(&["points", "v"]).ends(0);
    assert!(shown.out.contains("Any second can be restored"), "{}", shown.out);
    for end in ["from", "to"] {
        let at = interval[end].as_str().unwrap();
        let plan = host.read(&["restore", "v", "--into", "mongodump:nowhere", "--at", at, "--dry-run"]).ends(0);
        assert!(plan.err.contains("--at means"), "{}", plan.err);
    }
    for outside in ["2h ago", "2020-01-01T00:00:00Z"] {
        let refused = host.read(&["restore", "v", "--into", "mongodump:nowhere", "--at", outside]).fails(1, "");
        assert!(refused.err.contains("restored"), "{}", refused.err);
    }
    // An export of a time.
    let (at, _) = &times[4];
    host.read(&["copy", &format!("v@{at}"), "mongodump:export"]).ends(0);
    assert!(host.path(&format!("export/{name}/old.bson")).exists());
    host.read(&["copy", "v", "mongodump:newest"]).ends(0);
    assert!(!host.path(&format!("newest/{name}/old.bson")).exists());
}

/// A live backup of one database into `v`.
struct Live {
    child: Child,
    lines: Receiver<Value>,
}

impl Live {
    fn start(host: &Host, url: &str, more: &[&str]) -> Live {
        let mut command: Command = host.command(&[&["live", url, "--to", "v", "--json"], more].concat());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Live { child, lines }
    }

    /// Waits for an event.
    fn wait_for(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + Duration::from_secs(120);
        let mut last = Value::Null;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let event =
                self.lines.recv_timeout(left).unwrap_or_else(|e| panic!("waiting for {what}: {e}, after {last}"));
            if so(&event) {
                return event;
            }
            last = event;
        }
    }

    fn wait_for_write(&self, id: i32) -> Value {
        let id = id.to_string();
        self.wait_for("a write", |e| {
            e["type"] == "write" && e["ids"].as_array().unwrap().iter().any(|i| i.as_str() == Some(&id))
        })
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Waits for its end; gives its exit code and the last line.
    fn end(mut self) -> (i32, Value) {
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        (code, self.lines.iter().last().unwrap_or_default())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_live_backup_killed_started_again_and_stopped() {
    let mongod = Mongod::shared();
    let name = mongod.database_name();
    seed(&mongod, &name);
    let host = Host::ready();
    let live = Live::start(&host, &mongod.url_of(&name), &["--flush", "200ms"]);
    live.wait_for("the first point", |e| e["type"] == "point");
    set(&mongod, &name, 5000, doc! { "n": 1 });
    let write = live.wait_for_write(5000);
    assert_eq!((&write["collection"], &write["deleted"]), (&format!("{name}.orders").into(), &false.into()));
    assert!(host.path("v").join(write["object"].as_str().unwrap()).exists());
    let (at, there) = (now(&mongod), all(&mongod, &name));
    set(&mongod, &name, 5001, doc! { "n": 1 });
    live.wait_for_write(5001);
    live.wait_for("the lag", |e| e["type"] == "lag" && e["seconds"].as_f64().unwrap() < 5.0);
    drop(live); // kill -9
    // What it had written can be restored, though no point was made of it.
    assert!(restored(&host, &mongod, &["--at", &at]) == there);
    // What was written meanwhile is read when it starts again.
    mongod.done(&name, doc! { "delete": "orders", "deletes": [{ "q": { "_id": 5001 }, "limit": 1 }] });
    let (between, then) = (now(&mongod), all(&mongod, &name));
    let live = Live::start(&host, &mongod.url_of(&name), &[]);
    let deleted = live.wait_for_write(5001);
    assert!(deleted["type"] == "write");
    set(&mongod, &name, 5002, doc! { "n": 2 });
    live.wait_for_write(5002);
    live.signal("-TERM");
    let (code, summary) = live.end();
    assert_eq!((code, &summary["type"], &summary["gaps"]), (0, &"summary".into(), &0.into()), "{summary}");
    assert!(restored(&host, &mongod, &["--at", &at]) == there);
    assert!(restored(&host, &mongod, &["--at", &between]) == then);
    assert!(restored(&host, &mongod, &[]) == all(&mongod, &name));
    host.read(&["verify", "v"]).ends(0);
    assert_eq!(std::fs::read_dir(host.path("v/active")).map_or(0, Iterator::count), 1, "of the one that was killed");
}

/// Found by the soak: changes that filled a flush were never written, and held everything up.
#[test]
fn changes_that_are_more_than_may_wait_are_stored() {
    let mongod = Mongod::shared();
    let name = mongod.database_name();
    seed(&mongod, &name);
    let host = Host::ready();
    host.run(&["backup", &mongod.url_of(&name), "--to", "v"]).ends(0);
    let fill = |from: i32| {
        for collection in ["a", "b", "c"] {
            let documents: Vec<_> = (0..30).map(|i| doc! { "_id": from + i, "x": "y".repeat(500_000) }).collect();
            mongod.done(&name, doc! { "insert": collection, "documents": documents });
        }
    };
    fill(0);
    let next = host.run(&["backup", &mongod.url_of(&name), "--to", "v", "--json"]).ends(0);
    assert_eq!(next.summary()["mode"], "changes");
    assert!(restored(&host, &mongod, &[]) == all(&mongod, &name));

    let live = Live::start(&host, &mongod.url_of(&name), &[]);
    for collection in ["a", "b", "c"] {
        mongod.done(&name, doc! { "drop": collection });
    }
    fill(1000);
    set(&mongod, &name, 5000, doc! { "n": 1 });
    live.wait_for_write(5000);
    live.signal("-TERM");
    assert_eq!(live.end().0, 0);
    assert!(restored(&host, &mongod, &[]) == all(&mongod, &name));
}

/// Writes into a database until it is told to stop; every sort of write.
fn write_until(stop: &AtomicBool, mongod: &Mongod, name: &str, step: &mut i32) {
    while !stop.load(Ordering::SeqCst) {
        *step += 1;
        let (i, key) = (*step, *step * 37 % 3000);
        let update = doc! { "$set": { format!("f{}", i % 5): i }, "$push": { "list": { "$each": [i], "$slice": -4 } } };
        let update = doc! { "q": { "_id": key }, "u": update, "upsert": true };
        mongod.done(name, doc! { "update": "orders", "updates": [update] });
        mongod.done(name, doc! { "delete": "orders", "deletes": [{ "q": { "_id": key / 2 }, "limit": 1 }] });
        if i % 100 == 0 {
            mongod.done(name, doc! { "insert": format!("c{}", i / 100), "documents": [{ "_id": i }] });
        }
    }
}

#[test]
fn nothing_is_lost_when_the_network_and_the_server_fail_under_load() {
    let mongod = Mongod::start(Options::replica_set());
    let proxy = Proxy::start(&mongod.host());
    let name = mongod.database_name();
    seed(&mongod, &name);
    let host = Host::ready();
    let url = format!("mongodb://{}/{name}?directConnection=true", proxy.host());
    let live = Live::start(&host, &url, &["--flush", "200ms"]);
    // Whoever cannot be reached at all is no source. The first fault may hit the first scan, or what comes right after it.
    live.wait_for("a sign of life", |_| true);
    let mut times = Vec::new();
    let mut step = 0;
    for fault in 0..10 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| write_until(&stop, &mongod, &name, &mut step));
            std::thread::sleep(Duration::from_millis(300));
            match fault % 5 {
                0 => proxy.cut(),
                1 => proxy.cut_after(5000),
                2 => {
                    proxy.hold(true);
                    std::thread::sleep(Duration::from_millis(1500));
                    proxy.hold(false);
                }
                3 => {
                    proxy.refuse(true);
                    std::thread::sleep(Duration::from_millis(1500));
                    proxy.refuse(false);
                }
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(500));
            stop.store(true, Ordering::SeqCst);
        });
        times.push((now(&mongod), all(&mongod, &name)));
        if fault % 5 == 4 {
            // What the server acknowledged to nobody may be gone with it; what it has then counts.
            mongod.kill();
            std::thread::sleep(Duration::from_millis(500));
            mongod.run();
            mongod.await_primary();
            times.last_mut().unwrap().1 = all(&mongod, &name);
        }
    }
    set(&mongod, &name, 1_000_000, doc! { "last": true });
    live.wait_for_write(1_000_000);
    live.signal("-TERM");
    let (code, summary) = live.end();
    let points = || host.run(&["points", "v"]).out;
    assert_eq!((code, &summary["gaps"]), (0, &0.into()), "{summary} {}", points());
    assert!(restored(&host, &mongod, &[]) == all(&mongod, &name));
    let first = host.run(&["points", "v", "--json"]).ends(0).of("history")[0]["intervals"][0]["from"].clone();
    let first = first.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    let second = |at: &str| at[3..at.find(',').unwrap()].parse::<i64>().unwrap();
    let mut compared = 0;
    for (at, there) in times.iter().filter(|(at, _)| second(at) > first) {
        assert!(restored(&host, &mongod, &["--at", at]) == *there, "at {at}");
        compared += 1;
    }
    assert!(compared > 3, "{compared} of {} times could be compared", times.len());
}

#[test]
fn a_folder_is_compared_again_and_again() {
    let host = Host::ready();
    let live = Live::start(&host, "folder:lib", &["--every", "300ms"]);
    live.wait_for("the first point", |e| e["type"] == "point");
    host.write("lib/books/new.json", "{\"new\":1}");
    live.wait_for("the second point", |e| e["type"] == "point");
    live.wait_for("the third point", |e| e["type"] == "point");
    live.signal("-INT");
    let (code, summary) = live.end();
    assert_eq!((code, &summary["changes"]), (0, &Value::Null), "{summary}");
    host.read(&["restore", "v", "--into", "folder:out"]).ends(0);
    assert!(host.tree("out") == host.tree("lib"));
}

#[test]
fn history_that_is_lost_is_a_gap_and_healed() {
    // The smallest oplog that there is, and a server that gives room back at once.
    let arguments = ["--oplogSize", "1", "--syncdelay", "1", "--setParameter", "minSnapshotHistoryWindowInSeconds=1"];
    let options = Options { arguments: arguments.map(str::to_owned).to_vec(), ..Options::replica_set() };
    let mongod = Mongod::start(options);
    let name = mongod.database_name();
    seed(&mongod, &name);
    let host = Host::ready();
    host.run(&["backup", &mongod.url_of(&name), "--to", "v"]).ends(0);
    let before = now(&mongod);
    let (second, number) = before.trim_start_matches("ts:").split_once(',').unwrap();
    let last = (second.parse().unwrap(), number.parse().unwrap());
    let began = Instant::now();
    // Until what came after the backup is gone too.
    while oldest(&mongod) <= last {
        let filler: Vec<_> = (0..20).map(|_| doc! { "x": "y".repeat(500_000) }).collect();
        mongod.done("filler", doc! { "insert": "filler", "documents": filler });
        assert!(began.elapsed() < Duration::from_secs(180), "the oplog does not roll");
    }
    set(&mongod, &name, 1, doc! { "n": 5 });
    let healed = host.run(&["backup", &mongod.url_of(&name), "--to", "v", "--json"]).ends(5);
    assert_eq!((&healed.summary()["mode"], healed.of("gap").len()), (&"scan".into(), 1));
    let points = host.run(&["points", "v"]).ends(0);
    assert!(points.out.contains("gap:"), "{}", points.out);
    let refused = host.read(&["restore", "v", "--into", "mongodump:x", "--at", &before]).fails(1, "gap");
    assert!(refused.err.contains("nearest"), "{}", refused.err);
    assert!(restored(&host, &mongod, &[]) == all(&mongod, &name));
    // From there on by changes again.
    set(&mongod, &name, 2, doc! { "n": 6 });
    let next = host.run(&["backup", &mongod.url_of(&name), "--to", "v", "--json"]).ends(0);
    assert_eq!(next.summary()["mode"], "changes");
}

/// The time of the oldest entry of the oplog.
fn oldest(mongod: &Mongod) -> (u32, u32) {
    let find = doc! { "find": "oplog.rs", "sort": { "$natural": 1 }, "limit": 1, "projection": { "ts": 1 } };
    let answer = mongod.done("local", find);
    let batch = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let time = batch[0].as_document().unwrap().get_timestamp("ts").unwrap();
    (time.time, time.increment)
}
