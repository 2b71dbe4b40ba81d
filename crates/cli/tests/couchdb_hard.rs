//! Hard cases of CouchDB's protocol through the binary: large attachments in little memory, servers that
//! go away while they are followed.
#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine;
use common::Host;
use md5::{Digest, Md5};
use std::collections::BTreeMap;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::captured::Captured;
use testkit::pouchdb::CouchServer;
use testkit::proxy::Proxy;
use testkit::web::{Answer, Asked, Web};

const LARGE: usize = 100 << 20;

fn info(name: &str) -> String {
    format!(
        r#"{{"db_name":"{name}","purge_seq":"0-x","update_seq":"1-x","doc_del_count":0,"doc_count":1,"props":{{}},"cluster":{{"q":2,"n":1}},"instance_start_time":"1795230343"}}"#
    )
}

/// A CouchDB with one document that has a large attachment.
fn large(content: &[u8]) -> Captured {
    let digest = base64::engine::general_purpose::STANDARD.encode(Md5::digest(content));
    let text = format!(
        r#"{{"_id":"d","_rev":"1-a","_revisions":{{"start":1,"ids":["a"]}},"_attachments":{{"big":{{"content_type":"x/y","revpos":1,"digest":"md5-{digest}","length":{},"stub":true}}}}}}"#,
        content.len()
    );
    let mut captured = Captured {
        changes: br#"{"results":[{"seq":"1-x","id":"d","changes":[{"rev":"1-a"}]}],"last_seq":"1-x","pending":0}"#
            .to_vec(),
        local: br#"{"rows":[]}"#.to_vec(),
        security: b"{}".to_vec(),
        info: info("big").into_bytes(),
        ..Captured::default()
    };
    captured.revisions.insert(("d".into(), "1-a".into()), text);
    captured.contents.insert(("d".into(), "1-a".into(), "big".into()), (content.to_vec(), None));
    captured
}

/// A CouchDB that takes it: gives the hash of what came as the attachment.
#[derive(Default)]
struct Taker {
    is_made: Mutex<bool>,
    attached: Mutex<Option<blake3::Hash>>,
}

impl Taker {
    fn answer(&self, asked: &Asked) -> Answer {
        match (&*asked.method, &*asked.path) {
            ("GET", "/") => Answer::json(r#"{"couchdb":"Welcome","version":"3.5.0","uuid":"2"}"#),
            ("GET", "/big") if *self.is_made.lock().unwrap() => Answer::json(info("big")),
            ("PUT", "/big") => {
                *self.is_made.lock().unwrap() = true;
                Answer { status: 201, ..Answer::json("{}") }
            }
            ("GET", "/big/_revs_limit") => Answer::json("1000"),
            ("PUT", "/big/_revs_limit" | "/big/_security") => Answer::json("{}"),
            ("POST", "/big/_bulk_docs") => Answer { status: 201, ..Answer::json("[]") },
            ("PUT", "/big/d") => {
                let boundary = asked.header("content-type").unwrap().split("boundary=").nth(1).unwrap();
                let end = asked.body.len() - format!("\r\n--{}--", boundary.trim_matches('"')).len();
                *self.attached.lock().unwrap() = Some(blake3::hash(&asked.body[end - LARGE..end]));
                Answer { status: 201, ..Answer::json("{}") }
            }
            _ => Answer::status(404, "not_found"),
        }
    }
}

/// Waits for the end of a program that must succeed; gives the most memory that it had, in MiB.
fn memory(mut child: Child) -> usize {
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        most = line.and_then(|l| l.trim().split(' ').next()?.parse().ok()).unwrap_or(most);
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stdout));
    most / 1024
}

#[cfg(target_os = "linux")]
#[test]
fn large_attachments_stream_both_ways() {
    let mut content = vec![0; LARGE];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let expected = blake3::hash(&content);
    let captured = large(&content);
    drop(content);
    let from = Web::start(move |asked| captured.answer(asked));
    let taker = Arc::new(Taker::default());
    let answering = taker.clone();
    let into = Web::start(move |asked| answering.answer(asked));
    let host = Host::ready();
    let backup = host.command(&["backup", &format!("couchdb+http://{}/big", from.host), "--to", "v"]).spawn().unwrap();
    let backup = memory(backup);
    let target = format!("couchdb+http://{}/big", into.host);
    let restore = host
        .command(&["restore", "v", "--into", &target, "--no-verify"])
        .env("REWOUND_IDENTITY", host.path("key.txt"))
        .spawn()
        .unwrap();
    let restore = memory(restore);
    assert_eq!(*taker.attached.lock().unwrap(), Some(expected));
    // With all of it in memory both would have more than 200.
    assert!(backup < 180 && restore < 180, "a backup in {backup} MiB, a restore in {restore} MiB");
    // Nothing has changed: it is not fetched again.
    let again = host.run(&["backup", &format!("couchdb+http://{}/big", from.host), "--to", "v", "--json"]).ends(0);
    assert_eq!(again.of("vault")[0]["point"]["changed"], 0, "{again:?}");
}

#[test]
fn large_attachments_that_are_known_are_not_fetched_again() {
    let content: Vec<u8> = (0..20u32 << 20).step_by(4).flat_map(u32::to_le_bytes).collect();
    let host = Host::ready();
    let backup = |captured: Captured, vault: &[&str], code| {
        let web = Web::start(move |asked| captured.answer(asked));
        let url = format!("couchdb+http://{}/big", web.host);
        let ran = host.run(&[&["backup", &url, "--as", "big", "--json"], vault].concat()).ends(code);
        ran.of("vault").iter().map(|v| v["point"]["changed"].clone()).collect::<Vec<_>>()
    };
    backup(large(&content), &["--to", "v"], 0);
    // Of what was purged the server does not tell: everything is read again, but for what it no longer gives.
    let without = |purged: u32| {
        let mut captured = large(&content);
        captured.info =
            info("big").replace(r#""purge_seq":"0-x""#, &format!(r#""purge_seq":"{purged}-x""#)).into_bytes();
        captured.contents.clear();
        captured
    };
    assert_eq!(backup(without(1), &["--to", "v"], 5), [0]);
    // Another vault has nothing yet: for both of them it is fetched.
    host.run(&["init", "w", "--plain"]).ends(0);
    backup(without(1), &["--to", "v", "--to", "w"], 1);
    backup(large(&content), &["--to", "v", "--to", "w"], 5);
    assert_eq!(backup(without(2), &["--to", "v", "--to", "w"], 5), [0, 0]);
    for vault in ["v", "w"] {
        host.read(&["verify", vault]).ends(0);
        let out = format!("folder:{}", host.path(&format!("out-{vault}")).display());
        host.read(&["restore", vault, "--into", &out, "--allow-loss"]).ends(0);
        let restored = std::fs::read(host.path(&format!("out-{vault}/big/d.attachments/big"))).unwrap();
        assert!(restored == content, "{vault}");
    }
}

fn put(couch: &CouchServer, db: &str, id: &str, generation: usize) {
    let ids: Vec<String> = (1..=generation).rev().map(|n| format!("\"r{n}\"")).collect();
    let text = format!(
        r#"{{"_id":"{id}","_rev":"{generation}-r{generation}","n":{generation},"_revisions":{{"start":{generation},"ids":[{}]}}}}"#,
        ids.join(",")
    );
    couch.put_all(db, &[text]);
}

/// The leaf revisions of a database.
fn leaves(couch: &CouchServer, db: &str) -> BTreeMap<String, String> {
    let feed = couch.done("GET", &format!("/{db}/_changes?style=all_docs"), "");
    let rows = feed["results"].as_array().unwrap();
    rows.iter().map(|row| (row["id"].to_string(), row["changes"].to_string())).collect()
}

/// Waits until a live backup has stored something more.
struct Live<'a> {
    host: &'a Host,
    child: Child,
}

impl Live<'_> {
    fn start<'a>(host: &'a Host, url: &str) -> Live<'a> {
        let log = std::fs::File::create(host.path("live.jsonl")).unwrap();
        let child = host.command(&["backup", url, "--to", "v", "--live", "--json"]).stdout(log).spawn().unwrap();
        Live { host, child }
    }

    /// How often it has told that something is stored. Objects are no measure: they roll up.
    fn stored(&self) -> usize {
        let told = std::fs::read_to_string(self.host.path("live.jsonl")).unwrap();
        let is_stored = |line: &&str| line.contains(r#""type":"write""#) || line.contains(r#""type":"point""#);
        told.lines().filter(is_stored).count()
    }

    fn more_than(&mut self, stored: usize) {
        let start = Instant::now();
        while self.stored() <= stored {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended");
            assert!(start.elapsed() < Duration::from_secs(180), "nothing is stored");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop(mut self) -> i32 {
        // Longer than all databases go without being asked.
        let mut before = usize::MAX;
        while before != self.stored() {
            before = self.stored();
            std::thread::sleep(Duration::from_secs(6));
        }
        let stopped = std::process::Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(stopped.success());
        self.child.wait().unwrap().code().unwrap()
    }
}

fn restored(host: &Host, couch: &CouchServer, from: &str) {
    let to = couch.database_name();
    let ran = host.read(&["restore", "v", "--into", &couch.url(&to), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    assert_eq!(leaves(couch, &to), leaves(couch, from));
}

#[test]
fn a_server_that_is_away_for_a_while_is_followed_on() {
    let (couch, host) = (CouchServer::start(), Host::ready());
    couch.done("PUT", "/shop", "");
    put(&couch, "shop", "a", 1);
    let proxy = Proxy::start(&couch.host);
    let url = format!("couchdb+http://{}/shop", proxy.host());
    let mut live = Live::start(&host, &url);
    live.more_than(0);
    for round in 2..5 {
        proxy.refuse(true);
        put(&couch, "shop", "a", round);
        put(&couch, "shop", &format!("b{round}"), 1);
        std::thread::sleep(Duration::from_millis(1500));
        let before = live.stored();
        proxy.refuse(false);
        live.more_than(before);
    }
    assert_eq!(live.stop(), 0);
    restored(&host, &couch, "shop");
}

#[test]
fn a_server_that_was_killed_and_lost_all_is_a_gap_that_heals() {
    let (couch, host) = (CouchServer::start(), Host::ready());
    couch.done("PUT", "/shop", "");
    (0..20).for_each(|i| put(&couch, "shop", &format!("old{i}"), 1));
    let mut live = Live::start(&host, &couch.url("shop"));
    live.more_than(0);
    couch.kill();
    std::thread::sleep(Duration::from_secs(1));
    couch.run();
    couch.done("PUT", "/shop", "");
    (0..5).for_each(|i| put(&couch, "shop", &format!("new{i}"), 2));
    let before = live.stored();
    live.more_than(before);
    let code = live.stop();
    assert!(code == 0 || code == 5, "{code}");
    restored(&host, &couch, "shop");
}

#[test]
fn three_hundred_databases() {
    let (couch, host) = (CouchServer::start(), Host::ready());
    for i in 0..300 {
        couch.done("PUT", &format!("/many{i}"), "");
        put(&couch, &format!("many{i}"), "a", 1 + i % 3);
    }
    let backup =
        || host.run(&["backup", &couch.url(""), "--to", "v", "--json"]).ends(0).of("vault")[0]["point"].clone();
    let first = backup();
    assert!(first["changed"].as_u64().unwrap() >= 300, "{first}");
    assert_eq!(backup()["changed"], 0);
    put(&couch, "many7", "b", 1);
    couch.done("DELETE", "/many8", "");
    couch.done("PUT", "/new", "");
    put(&couch, "new", "a", 2);
    backup();
    let there = CouchServer::start();
    // Making databases is what takes time.
    let some = ["many0", "many7", "many299", "new"];
    let into = there.url("");
    let only: Vec<&str> = some.iter().flat_map(|name| ["--only", name]).collect();
    let ran = host.read(&[&["restore", "v", "--into", &into, "--json"], &only[..]].concat()).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true, "{ran:?}");
    for name in some {
        assert_eq!(leaves(&there, name), leaves(&couch, name), "{name}");
    }
    host.read(&["restore", "v", "--into", &into, "--only", "many8"]).fails(1, "no collection matches");
}
