//! Pruning by rules through the real binary.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;

/// A host with a vault of four points, the first and the third stored in full.
fn four_points() -> Host {
    let host = Host::ready();
    for n in 0..4 {
        host.write("lib/books/n.json", format!("{{\"n\":{n}}}"));
        let full: &[&str] = if n % 2 == 0 { &["--full"] } else { &[] };
        host.run(&[&["backup", "folder:lib", "--to", "v"], full].concat()).ends(0);
    }
    host
}

fn ids(host: &Host) -> Vec<String> {
    let points = host.read(&["points", "v", "--json"]).ends(0);
    points.of("point").iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn rules_remove_points_and_a_dry_run_says_so_before() {
    let host = four_points();
    let before = ids(&host);
    let would = host.run(&["prune", "v", "--keep-last", "2", "--dry-run", "--json"]).ends(0);
    assert_eq!(ids(&host), before, "a dry run removed points");
    let did = host.run(&["prune", "v", "--keep-last", "2", "--json"]).ends(0);
    for report in [&would, &did] {
        let of = |kind: &str| -> Vec<String> {
            report.of(kind).iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!((of("removed"), of("kept")), (before[..2].to_vec(), before[2..].to_vec()));
        assert_eq!(report.of("kept")[1]["why"], serde_json::json!(["newest", "last"]));
        assert_eq!(report.of("remains")[0]["points"], 2);
        assert_eq!(report.summary()["removed_points"], 2);
        assert_eq!(report.summary()["pending"], 0);
    }
    let (would, did) = (would.summary(), did.summary());
    assert_eq!((&would["removed"], &would["bytes"]), (&did["removed"], &did["bytes"]));
    assert!(did["removed"].as_u64().unwrap() > 0);
    assert_eq!((would["dry_run"].as_bool(), did["dry_run"].as_bool()), (Some(true), Some(false)));
    assert_eq!(ids(&host), before[2..]);
    for id in &before[2..] {
        host.read(&["restore", "v", "--point", id, "--into", &format!("folder:{id}")]).ends(0);
    }
    host.read(&["verify", "v"]).ends(0);
    // The next backup goes on from what is left.
    host.run(&["backup", "folder:lib", "--to", "v"]).ends(0);
    assert_eq!(ids(&host).len(), 3);
}

#[test]
fn what_is_removed_is_listed_for_people() {
    let host = four_points();
    let ids = ids(&host);
    let text = host.run(&["prune", "v", "--keep-last", "1", "--keep-daily", "7", "--dry-run"]).ends(0).out;
    for (line, id) in text.lines().skip(1).zip(&ids) {
        let removed = line.ends_with("removed");
        assert!(line.starts_with(id.as_str()) && removed == (id != &ids[3]), "{line}");
    }
    assert!(text.contains("Would remove 3 points and ") && text.contains("newest, last, daily"), "{text}");
    assert!(text.contains("Of lib could still be restored: 1 point."), "{text}");
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let host = four_points();
    for (args, says) in [
        (&["--keep-last", "0"][..], "keep no point at all"),
        (&["--keep-last", "0", "--keep-within", "0d"], "keep no point at all"),
        (&["--keep-within", "6m"], "may mean months or minutes"),
        (&["--keep-any-second-within", "soon"], "not a duration"),
        (&["--keep-daily", "x"], "--keep-daily"),
    ] {
        let failed = host.run(&[&["prune", "v"], args].concat()).ends(2);
        assert!(failed.err.contains(says), "{}", failed.err);
    }
    let failed = host.run(&["prune", "v", "--keep-last", "1", "--source", "other"]).ends(1);
    assert!(failed.err.contains("holds no source other"), "{}", failed.err);
    assert_eq!(ids(&host).len(), 4);
}
