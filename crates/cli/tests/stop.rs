//! Ctrl-C in the middle of work.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, ran};
use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits until something is so.
fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(180), "waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A host with an attachment that takes much longer to read than a signal needs, and no room on disk:
/// small enough that a disk with a gigabyte free is not refused.
fn with_endless_attachment() -> Host {
    let host = Host::ready();
    host.write("lib/books/b1.attachments/endless", "");
    let file = fs::OpenOptions::new().write(true).open(host.path("lib/books/b1.attachments/endless")).unwrap();
    file.set_len(3 << 30).unwrap();
    host
}

#[test]
fn a_backup_stops_cleanly() {
    for name in ["-INT", "-TERM"] {
        let host = with_endless_attachment();
        let child = host.command(&["backup", "folder:lib", "--to", "v", "--json"]).spawn().unwrap();
        let parts = host.path("v/parts");
        wait_until("the first part", || parts.exists());
        signal(&child, name);
        let ended = ran(child.wait_with_output().unwrap()).ends(130);
        let error = ended.json().pop().unwrap();
        assert_eq!((error["type"].as_str(), error["kind"].as_str()), (Some("error"), Some("interrupted")));
        assert!(error["message"].as_str().unwrap().contains("stored in the vault"), "{error}");
        // No sign of life is left that would hold up a prune, and the vault is as good as before.
        assert_eq!(fs::read_dir(host.path("v/active")).map_or(0, Iterator::count), 0);
        fs::remove_file(host.path("lib/books/b1.attachments/endless")).unwrap();
        host.backup();
        host.read(&["verify", "v"]).ends(0);
        host.read(&["restore", "v", "--into", "folder:out"]).ends(0);
        assert!(host.tree("out") == host.tree("lib"));
    }
}

/// How nice a process is (proc(5): the 17th number after the name).
#[cfg(target_os = "linux")]
fn niceness(process: &str) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn a_backup_gives_way_to_the_database() {
    let ours = niceness("self");
    for (options, expected) in
        [(&[][..], ours.max(15)), (&["--nice", "0"], ours), (&["--nice", "17"], ours.max(17)), (&["--live"], ours)]
    {
        let host = with_endless_attachment();
        let mut command = host.command(&[&["backup", "folder:lib", "--to", "v"], options].concat());
        let mut child = command.env_remove("REWOUND_NICE").spawn().unwrap();
        let parts = host.path("v/parts");
        wait_until("the first part", || parts.exists());
        let nice = niceness(&child.id().to_string());
        signal(&child, "-KILL");
        child.wait().unwrap();
        assert_eq!(nice, expected, "{options:?}");
    }
}

#[test]
fn a_copy_stops_cleanly_and_takes_back_what_it_wrote() {
    let host = Host::new();
    host.sample("lib");
    let lines: String = (0..400_000).map(|i| format!("{{\"_id\":{i}}}\n")).collect();
    host.write("lib/members.jsonl", lines);
    let child = host.command(&["copy", "folder:lib", "folder:out"]).spawn().unwrap();
    wait_until("the target", || host.path("out").exists());
    signal(&child, "-INT");
    let ended = ran(child.wait_with_output().unwrap());
    // The copy may have been faster than the signal: then it is complete.
    if ended.code == 0 {
        assert!(host.tree("out") == host.tree("lib"));
        return;
    }
    let ended = ended.fails(130, "interrupted");
    if ended.err.contains("taken back") {
        assert!(!host.path("out").exists(), "{}", ended.err);
    }
}

#[test]
fn the_second_signal_ends_at_once() {
    let host = with_endless_attachment();
    let child = host.command(&["backup", "folder:lib", "--to", "v"]).spawn().unwrap();
    wait_until("the vault's first part", || host.path("v/parts").exists());
    signal(&child, "-INT");
    signal(&child, "-INT");
    assert_eq!(ran(child.wait_with_output().unwrap()).code, 130);
}
