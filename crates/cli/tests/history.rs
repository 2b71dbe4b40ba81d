//! One document back, what changed, and proof over time, through the real binary.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// All objects of the vault in a folder of it.
fn objects(host: &Host, folder: &str) -> Vec<PathBuf> {
    fn walk(folder: PathBuf, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(path, all) } else { all.push(path) }
        }
    }
    let mut all = Vec::new();
    walk(host.path("v").join(folder), &mut all);
    all.sort();
    all
}

fn flip(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn samples_cover_the_vault_in_turn() {
    let host = Host::ready();
    host.backup();
    host.write("lib/books/b1.json", "{\"second\":1}");
    host.backup();
    let total = host.read(&["verify", "v", "--json"]).ends(0).summary()["objects"].as_u64().unwrap();
    let sample = || host.read(&["verify", "v", "--sample", "1/3", "--json"]).ends(0).summary();
    let runs: Vec<Value> = (0..3).map(|_| sample()).collect();
    let first: Vec<u64> = runs.iter().map(|r| r["sample"]["first"].as_u64().unwrap()).collect();
    assert_eq!(first, [first[0], (first[0] + 1) % 3, (first[0] + 2) % 3]);
    // Records of checks are objects too: those of the runs in between may have been looked at.
    let seen: u64 = runs.iter().map(|r| r["objects"].as_u64().unwrap()).sum();
    assert!(seen >= total && seen <= total + 5, "{seen} of {total}");
    let shares: f64 = runs.iter().map(|r| r["share"].as_f64().unwrap()).sum();
    assert!((0.95..1.05).contains(&shares), "{shares}");
    let chosen = host.read(&["verify", "v", "--sample", "2/5", "--part", "5"]).ends(0);
    assert!(chosen.out.contains("Checked parts 5 to 1 of 5: "), "{}", chosen.out);
    host.read(&["verify", "v", "--sample", "0/5"]).fails(2, "not a share");

    // A flipped bit is found by one of the parts, whichever the object is in, or by those whose
    // collections are in it.
    flip(&objects(&host, "segments")[0]);
    let codes: Vec<i32> = (0..9).map(|_| host.read(&["verify", "v", "--sample", "1/9"]).code).collect();
    assert!(codes.contains(&6) && codes.contains(&0), "{codes:?}");
    // What is missing is found by every part.
    fs::remove_file(&objects(&host, "segments")[0]).unwrap();
    host.read(&["verify", "v", "--sample", "1/1000", "--quick"]).ends(6);
}

#[test]
fn a_backup_heals_what_a_check_has_found() {
    for plain in [true, false] {
        let host = Host::ready();
        if plain {
            fs::remove_dir_all(host.path("v")).unwrap();
            host.run(&["init", "v", "--plain"]).ends(0);
        }
        let before = host.backup();
        let before = before["id"].as_str().unwrap();
        let tree = host.tree("lib");
        for segment in objects(&host, "segments") {
            flip(&segment);
        }
        host.read(&["restore", "v", "--into", "folder:no", "--point", before]).ends(1);
        let broken = host.read(&["verify", "v"]).ends(6);
        assert!(broken.out.contains("DAMAGED") && broken.out.contains("hits books"), "{}", broken.out);
        let status = host.read(&["status", "v"]).ends(6);
        assert!(status.out.contains("damaged:") && status.err.contains("a check has failed"), "{status:?}");
        // The next backup stores it anew, and the old point can be restored again.
        host.backup();
        host.read(&["restore", "v", "--into", "folder:out", "--point", before]).ends(0);
        assert!(host.tree("out") == tree);
        let healed = host.read(&["verify", "v", "--json"]).ends(0);
        assert!(!healed.of("healed").is_empty(), "{healed:?}");
        host.read(&["status", "v"]).ends(0);
        // It builds on what it has stored, not on what is damaged.
        let last = host.backup();
        assert_eq!(last["changed"], 0, "{last}");
        assert!(last["stored"].as_u64() < Some(10_000), "{last}");
    }
}

#[test]
fn what_only_find_needs_is_made_anew() {
    for plain in [true, false] {
        let host = Host::ready();
        if plain {
            fs::remove_dir_all(host.path("v")).unwrap();
            host.run(&["init", "v", "--plain"]).ends(0);
        }
        host.backup();
        let filters = objects(&host, "filters");
        flip(&filters[0]);
        let broken = host.read(&["verify", "v"]).ends(6);
        assert!(broken.out.contains("hits nothing") && broken.out.contains("--repair"), "{}", broken.out);
        assert_eq!(host.read(&["find", "v", "books", "b7", "--show"]).ends(0).out, "{ \"i\": 7.0, \"i\":7 }");
        let repaired = host.read(&["verify", "v", "--repair"]).ends(0);
        assert!(repaired.out.contains("REPAIRED"), "{}", repaired.out);
        host.read(&["verify", "v"]).ends(0);
        assert_eq!(host.read(&["find", "v", "books", "b7", "--show"]).ends(0).out, "{ \"i\": 7.0, \"i\":7 }");
        assert!(filters[0].exists());
        // A prune takes nothing away that stands in for something damaged.
        host.read(&["prune", "v"]).ends(0);
        host.read(&["verify", "v"]).ends(0);
    }
}

#[test]
fn a_drill_restores_compares_and_leaves_nothing() {
    let host = Host::ready();
    host.sample("other");
    host.backup();
    host.run(&["backup", "folder:other", "--to", "v", "--as", "branch"]).ends(0);
    let temporary = host.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let drill = |args: &[&str]| {
        let mut command = host.command(&[&["drill", "v"], args].concat());
        command.env("REWOUND_IDENTITY", host.path("key.txt")).env("TMPDIR", &temporary);
        common::ran(command.output().unwrap())
    };
    let ran = drill(&["--json"]).ends(0);
    assert_eq!((ran.summary()["sources"].as_u64(), ran.summary()["failed"].as_u64()), (Some(2), Some(0)));
    assert!(ran.of("drill").iter().all(|d| d["documents"] == 27 && d["problems"] == Value::Array(vec![])), "{ran:?}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);

    // Into a folder that is there, or not; never into one that holds something.
    fs::create_dir(host.path("empty")).unwrap();
    drill(&["--into", "folder:empty", "--source", "branch"]).ends(0);
    assert_eq!(fs::read_dir(host.path("empty")).unwrap().count(), 0);
    drill(&["--into", "folder:new"]).ends(0);
    assert!(!host.path("new").exists());
    let other = host.tree("other");
    drill(&["--into", "folder:other"]).fails(1, "is not empty");
    assert!(host.tree("other") == other);

    let status = host.read(&["status", "v", "--json"]).ends(0);
    assert!(status.of("source").iter().all(|s| s["drill"]["good"] == true), "{status:?}");
    for segment in objects(&host, "segments") {
        flip(&segment);
    }
    let failed = drill(&[]).ends(6);
    assert!(failed.out.contains("FAILED"), "{failed:?}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    let status = host.read(&["status", "v"]).ends(6);
    assert!(status.out.contains("FAILED"), "{status:?}");
}

#[test]
fn status_says_when_something_is_old() {
    let host = Host::ready();
    host.run(&["status", "v"]).ends(0);
    host.run(&["status", "v", "--max-age", "1h"]).ends(4);
    host.backup();
    let fresh = host.run(&["status", "v", "--max-age", "1h"]).ends(0).out;
    assert!(fresh.contains("lib") && fresh.contains("Never verified") && fresh.contains("never"), "{fresh}");
    std::thread::sleep(Duration::from_millis(1100));
    let stale = host.run(&["status", "v", "--max-age", "1s", "--json"]).ends(4);
    assert_eq!(stale.of("source")[0]["stale"], true);
    assert!(stale.of("source")[0]["age"].as_u64() >= Some(1));
    host.run(&["status", "v", "--max-age", "soon"]).fails(2, "is not an age");
    // A check on a host that can only write is recorded too.
    host.run(&["verify", "v", "--quick"]).ends(0);
    let text = host.run(&["status", "v"]).ends(0).out;
    assert!(text.contains("stored bytes: good"), "{text}");

    host.run(&["init", "w", "--plain"]).ends(0);
    let two = host.run(&["status", "v", "w"]).ends(0).out;
    assert!(two.contains("There is no point yet") && two.contains("w:"), "{two}");
    let part = host.run(&["status", "nowhere", "v", "--json"]).ends(3);
    assert_eq!(part.of("vault").iter().filter(|v| v["error"].is_object()).count(), 1);
    host.run(&["status", "nowhere", "neither"]).fails(1, "there is no vault");
}

#[test]
fn a_document_comes_back_only_where_it_harms_nothing() {
    let host = Host::ready();
    host.backup();
    host.write("lib/books/b3.json", "{\"second\":  1.10}");
    fs::remove_file(host.path("lib/books/b3.attachments/cover.svg")).unwrap();
    host.backup();
    let back = |more: &[&str]| {
        let all = ["find", "v", "books", "b3", "--restore", "--into", "folder:lib", "--version", "2"];
        host.read(&[&all, more].concat())
    };
    // Somebody has changed it since: it stays as it is unless the user wants the old one.
    let before = host.tree("lib");
    back(&[]).fails(1, "another version of document b3");
    assert!(host.tree("lib") == before);
    let summary = back(&["--if-exists", "merge", "--json"]).ends(0).summary();
    assert_eq!((summary["documents"].as_u64(), summary["attachments"].as_u64()), (Some(1), Some(2)));
    assert_eq!((&summary["proof"]["holds"], &summary["proof"]["documents"]), (&Value::from(true), &Value::from(3)));
    assert_eq!(fs::read_to_string(host.path("lib/books/b3.json")).unwrap(), "{ \"i\": 3.0, \"i\":3 }");
    assert!(host.path("lib/books/b3.attachments/cover.svg").exists());
    assert_eq!(host.tree("lib").len(), before.len() + 1);
    // Once more changes nothing.
    back(&[]).ends(0);
    // A file of lines is one whole: a folder cannot take one more.
    host.write("lib/members.jsonl", "{\"_id\":1}\n{\"_id\":3}\n");
    host.backup();
    let line = ["find", "v", "members", "2", "--restore", "--into", "folder:lib", "--version", "2"];
    host.read(&line).fails(1, "cannot be merged into the file members.jsonl");
    // A folder without the collection gets none.
    fs::create_dir(host.path("none")).unwrap();
    let none = host.read(&["find", "v", "books", "b3", "--restore", "--into", "folder:none"]);
    none.fails(1, "has no collection books");
    assert_eq!(fs::read_dir(host.path("none")).unwrap().count(), 0);
}

#[test]
fn what_changed_between_two_points_is_told() {
    let host = Host::ready();
    let first = host.backup();
    host.write("lib/books/b1.json", "{\"changed\": 1}");
    fs::remove_file(host.path("lib/books/b2.json")).unwrap();
    host.write("lib/books/b99.json", "{}");
    host.write("lib/books/b3.attachments/cover.svg", "<svg x='1'/>");
    fs::remove_file(host.path("lib/loans.json")).unwrap();
    host.write("lib/new/one.json", "1");
    let second = host.backup();
    let id = |point: &Value| point["id"].as_str().unwrap().to_owned();
    let text = host.read(&["diff", "v", &id(&first), &id(&second)]).ends(0).out;
    let expected = [
        "~ books/b1",
        "- books/b2",
        "+ books/b99",
        "~ books/b3/cover.svg (attachment)",
        "+ collection new created",
        "+ new/one",
        "- collection loans dropped",
        "- loans/1",
        "- loans/2",
        "2 added, 2 changed, 3 deleted",
    ];
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let mut sorted = expected;
    sorted.sort_unstable();
    assert_eq!(lines, sorted, "{text}");
    // The other way round, and from a time to the newest point.
    let back = host.read(&["diff", "v", &id(&second), &id(&first), "--json"]).ends(0).summary();
    assert_eq!(
        (back["added"].as_u64(), back["changed"].as_u64(), back["deleted"].as_u64()),
        (Some(3), Some(2), Some(2))
    );
    let time = first["time"].as_str().unwrap();
    let by_time = host.read(&["diff", "v", time, "--json"]).ends(0);
    assert_eq!(by_time.summary()["collections"], 2);
    let only = host.read(&["diff", "v", time, "--only", "new", "--only", "books/b1", "--json"]).ends(0);
    assert_eq!(
        only.of("document").iter().map(|d| d["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>(),
        ["b1", "one"]
    );
    let none = host.read(&["diff", "v", &id(&second), "now"]).ends(0);
    assert_eq!(none.out, "0 added, 0 changed, 0 deleted\n");
    host.read(&["diff", "v", "soon"]).fails(2, "not a time");
    host.read(&["diff", "v", "3d ago"]).fails(1, "no point at or before");
    // Documents that were only stored anew are no change.
    host.run(&["backup", "folder:lib", "--to", "v", "--full"]).ends(0);
    let none = host.read(&["diff", "v", &id(&second), "--json"]).ends(0);
    assert_eq!(none.json().len(), 1, "{none:?}");
}
