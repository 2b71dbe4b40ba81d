//! MongoDB in folders of JSON: copied there and back, and kept in step.
#![allow(clippy::unwrap_used)]

mod common;

use bson::{Bson, doc};
use common::Host;
use std::collections::BTreeMap;
use std::fs;
use testkit::mongod::Mongod;

/// A document from the bytes of its elements.
fn document(elements: &[&[u8]]) -> Vec<u8> {
    let inner = elements.concat();
    [&(inner.len() as u32 + 5).to_le_bytes()[..], &inner, b"\0"].concat()
}

/// What is easily lost.
fn hard_documents() -> Vec<Vec<u8>> {
    let binary = |subtype: bson::spec::BinarySubtype| Bson::Binary(bson::Binary { subtype, bytes: b"ab".to_vec() });
    let documents = [
        doc! { "_id": 1, "double": -0.0, "nan": f64::NAN, "string": "ü\0x", "": "empty", "a.b": 1, "$c": 2 },
        doc! { "_id": "1", "undefined": Bson::Undefined, "symbol": Bson::Symbol("s".into()), "null": null },
        doc! { "_id": "a/b", "min": Bson::MinKey, "max": Bson::MaxKey, "looks": { "$oid": "like one" } },
        doc! { "_id": bson::oid::ObjectId::from_bytes([3; 12]), "date": bson::DateTime::MAX, "long": 1i64 },
        doc! { "_id": bson::oid::ObjectId::from_bytes([3; 12]).to_hex(), "code": Bson::JavaScriptCode("f()".into()) },
        doc! { "_id": { "z": 1, "a": 2.5 }, "scope": bson::JavaScriptCodeWithScope { code: "g".into(), scope: doc! { "x": 1i64 } } },
        doc! { "_id": 2.5, "decimal": "-0E+3".parse::<bson::Decimal128>().unwrap() },
        doc! { "_id": binary(bson::spec::BinarySubtype::BinaryOld), "ts": bson::Timestamp { time: 5, increment: 6 } },
        doc! { "_id": Bson::Null, "regex": bson::Regex { pattern: "a/".try_into().unwrap(), options: "im".try_into().unwrap() } },
        doc! { "_id": "x".repeat(300) },
        doc! { "_id": "X".repeat(300) },
        doc! { "_id": "" },
    ];
    let mut all: Vec<Vec<u8>> = documents.iter().map(|d| d.to_vec().unwrap()).collect();
    // The same name twice, an array whose keys are none, a DBPointer, text that is no UTF-8.
    all.push(document(&[b"\x10_id\0\x09\0\0\0", b"\x10a\0\x01\0\0\0", b"\x02a\0\x02\0\0\0x\0"]));
    let array = document(&[b"\x105\0\x01\0\0\0", b"\x10x\0\x02\0\0\0"]);
    all.push(document(&[b"\x10_id\0\x0a\0\0\0", b"\x04array\0", &array]));
    all.push(document(&[
        b"\x10_id\0\x0b\0\0\0",
        b"\x0cpointer\0\x02\0\0\0c\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c",
    ]));
    all.push(document(&[b"\x10_id\0\x0c\0\0\0", b"\x02text\0\x03\0\0\0\xff\xfe\0"]));
    all.sort();
    all
}

/// The documents of a file of a dump, sorted.
fn dumped(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut docs = Vec::new();
    assert_eq!(mongo::raw::sequence(bytes, &mut docs), Ok(bytes.len()));
    let mut all: Vec<Vec<u8>> = docs.iter().map(|d| bytes[d.start as usize..d.end as usize].to_vec()).collect();
    all.sort();
    all
}

/// A database with hard documents in `hard`, and some in `plain` with an index.
fn database(host: &Host, mongod: &Mongod) -> String {
    let name = mongod.database_name();
    host.write("dump/db/hard.bson", hard_documents().concat());
    let meta = r#"{"indexes":[{"v":{"$numberInt":"2"},"key":{"_id":{"$numberInt":"1"}},"name":"_id_"}],"collectionName":"hard","type":"collection","options":{}}"#;
    host.write("dump/db/hard.metadata.json", meta);
    host.run(&["copy", "mongodump:dump", &mongod.url_of(&name)]).ends(0);
    let plain: Vec<_> = (0..500).map(|i| doc! { "_id": i, "n": i % 7 }).collect();
    mongod.done(&name, doc! { "insert": "plain", "documents": plain });
    let index = doc! { "key": { "n": 1 }, "name": "n", "partialFilterExpression": { "n": { "$gt": 3 } } };
    mongod.done(&name, doc! { "createIndexes": "plain", "indexes": [index] });
    mongod.done(&name, doc! { "create": "recent", "viewOn": "plain", "pipeline": [{ "$match": { "n": 1 } }] });
    name
}

/// The documents of a database, by collection, byte for byte.
fn bytes_of(host: &Host, mongod: &Mongod, name: &str) -> BTreeMap<String, Vec<Vec<u8>>> {
    let dump = format!("mongodump:look-{name}");
    let _ = fs::remove_dir_all(host.path(&format!("look-{name}")));
    host.run(&["copy", &mongod.url_of(name), &dump]).ends(0);
    let files = host.tree(&format!("look-{name}/{name}"));
    files.into_iter().filter(|(file, _)| file.ends_with(".bson")).map(|(file, bytes)| (file, dumped(&bytes))).collect()
}

#[test]
fn documents_become_json_and_come_back_byte_for_byte() {
    let (host, mongod) = (Host::ready(), Mongod::shared());
    let name = database(&host, &mongod);
    let url = mongod.url_of(&name);
    let hard = hard_documents();
    assert_eq!(bytes_of(&host, &mongod, &name)["hard.bson"], hard, "they are there as they were written");

    let ran = host.run(&["copy", &url, "folder:out", "--json"]).ends(0);
    let proof = ran.summary()["proof"].clone();
    assert_eq!((&proof["holds"], &proof["unproven"]), (&true.into(), &0.into()), "{proof}");
    assert_eq!(proof["documents"], 500 + hard.len());
    let files = host.tree(&format!("out/{name}.hard"));
    for file in ["1.json", "%221%22.json", "a%2fb.json", "030303030303030303030303.json", "2.5.json", "%.json"] {
        assert!(files.contains_key(file), "{file} of {:?}", files.keys());
    }
    assert_eq!(files.keys().filter(|f| f.ends_with(".json")).count(), hard.len());
    assert_eq!(
        host.tree(&format!("out/{name}.plain"))["7.json"],
        br#"{"_id":{"$numberInt":"7"},"n":{"$numberInt":"0"}}"#
    );

    // A backup is brought into a folder in the same way.
    host.run(&["backup", &url, "--to", "v"]).ends(0);
    let ran = host.read(&["restore", "v", "--into", "folder:restored", "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["unproven"], 0);
    assert_eq!(host.tree("restored"), host.tree("out"));

    // And back, with indexes and views.
    let back = mongod.database_name();
    let renames: Vec<String> =
        ["hard", "plain", "recent"].iter().map(|c| format!("--rename={name}.{c}={back}.{c}")).collect();
    let args: Vec<&str> = renames.iter().map(String::as_str).collect();
    let ran = host.run(&[&["copy", "folder:out", &mongod.url(), "--json"], &args[..]].concat()).ends(0);
    let proof = ran.summary()["proof"].clone();
    assert_eq!((&proof["holds"], &proof["unproven"]), (&true.into(), &0.into()), "{proof}");
    assert_eq!(bytes_of(&host, &mongod, &back), bytes_of(&host, &mongod, &name));
    let indexes = mongod.done(&back, doc! { "listIndexes": "plain" }).to_string();
    assert!(indexes.contains("partialFilterExpression"), "{indexes}");
    assert_eq!(mongod.documents(&back, "recent").len(), 72);

    // What somebody changes in the folder comes along; what is no BSON is named.
    host.write(&format!("out/{name}.plain/7.json"), r#"{ "_id": 7, "price": 1.5 }"#);
    host.write(&format!("out/{name}.plain/mine.json"), r#"{ "n": 1 }"#);
    let other = mongod.database_name();
    let args: Vec<String> = renames.iter().map(|r| r.replace(&back, &other)).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    host.run(&[&["copy", "folder:out", &mongod.url()], &args[..]].concat()).ends(0);
    let found = mongod.documents(&other, "plain");
    assert!(found.contains(&doc! { "_id": 7, "price": 1.5 }.to_vec().unwrap()));
    assert!(found.contains(&doc! { "_id": "mine", "n": 1 }.to_vec().unwrap()));
    host.write(&format!("out/{name}.plain/mine.json"), "[1]");
    host.run(&[&["copy", "folder:out", &mongod.url(), "--if-exists", "replace"], &args[..]].concat()).fails(1, "mine");
}

/// A mirror under way: `rewound copy … --live --json`.
struct Live {
    child: std::process::Child,
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Live {
    fn start(host: &Host, source: &str, target: &str, more: &[&str]) -> Live {
        let args = [&["copy", source, target, "--live", "--json"], more].concat();
        let log = fs::File::create(host.path("live.jsonl")).unwrap();
        let errors = fs::OpenOptions::new().create(true).append(true).open(host.path("live.err")).unwrap();
        Live { child: host.command(&args).stdout(log).stderr(errors).spawn().unwrap() }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As SIGTERM does; gives what it said.
    fn stop(mut self, host: &Host) -> Vec<serde_json::Value> {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
        let code = self.child.wait().unwrap().code();
        let said = fs::read_to_string(host.path("live.jsonl")).unwrap();
        let errors = fs::read_to_string(host.path("live.err")).unwrap();
        assert_eq!(code, Some(0), "{said}\n{errors}");
        said.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed().as_secs() < 180, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The files of documents in a folder, without the mirror's own.
fn documents(host: &Host, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let mut all = host.tree(folder);
    all.retain(|file, _| !file.starts_with(".rewound"));
    all
}

/// That a folder is what a copy of the source is.
#[track_caller]
fn assert_in_step(host: &Host, source: &str, folder: &str) {
    let copy = |to: &str| {
        let _ = fs::remove_dir_all(host.path(to));
        host.run(&["copy", source, &format!("folder:{to}")]).ends(0);
        documents(host, to)
    };
    let began = std::time::Instant::now();
    loop {
        let (there, wanted) = (documents(host, folder), copy("wanted"));
        if there == wanted {
            return;
        }
        if began.elapsed().as_secs() > 180 {
            let differs = |(k, v): &(&String, &Vec<u8>)| there.get(*k) != Some(*v);
            let missing: Vec<_> = wanted.iter().filter(differs).map(|(k, _)| k).take(5).collect();
            let more: Vec<_> = there.keys().filter(|k| !wanted.contains_key(*k)).take(5).collect();
            panic!("missing or other: {missing:?}, too many: {more:?}");
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn a_database_is_kept_in_step() {
    let (host, mongod) = (Host::ready(), Mongod::shared());
    let name = database(&host, &mongod);
    let url = mongod.url_of(&name);
    let live = Live::start(&host, &url, "folder:live", &[]);
    wait_until("the first scan ends", || host.path("live/rewound.json").exists());
    let file = |file: &str| host.path(&format!("live/{name}.{file}"));
    let done = |command| mongod.done(&name, command);
    done(doc! { "insert": "plain", "documents": [{ "_id": "new", "a": [1, 2, 3] }] });
    wait_until("a document is created", || file("plain/new.json").exists());
    done(doc! { "update": "plain", "updates": [
        { "q": { "_id": "new" }, "u": { "$set": { "a.1": 5i64, "b.c": 1.5 }, "$unset": { "none": 1 } } },
        { "q": { "n": 3 }, "u": { "$inc": { "n": 10 }, "$push": { "list": "x" } }, "multi": true },
        { "q": { "_id": 7 }, "u": { "whole": true } },
    ] });
    done(doc! { "delete": "plain", "deletes": [{ "q": { "_id": 8 }, "limit": 1 }] });
    wait_until("a document is deleted", || !file("plain/8.json").exists());
    done(doc! { "insert": "made", "documents": [{ "_id": 1 }] });
    done(doc! { "insert": "dropped", "documents": [{ "_id": 1 }] });
    wait_until("a collection is made", || file("dropped/1.json").exists());
    done(doc! { "drop": "dropped" });
    mongod.command(doc! { "renameCollection": format!("{name}.made"), "to": format!("{name}.renamed") });
    wait_until("a collection is renamed", || file("renamed/1.json").exists() && !file("made").exists());
    wait_until("a collection is dropped", || !file("dropped").exists());
    assert_in_step(&host, &url, "live");
    let said = live.stop(&host);
    let of = |kind: &str| said.iter().filter(|l| l["type"] == kind).cloned().collect::<Vec<_>>();
    assert_eq!(of("in-step")[0]["follows"], true);
    let writes = of("write");
    let is_new = |w: &&serde_json::Value| w["files"] == serde_json::json!([format!("{name}.plain/new.json")]);
    let new = writes.iter().find(is_new).unwrap();
    assert_eq!((&new["ids"][0], &new["deleted"]), (&"new".into(), &false.into()));
    assert!(writes.iter().any(|w| w["deleted"] == true && w["ids"].as_array().unwrap().contains(&"8".into())));
    assert_eq!(said.last().unwrap()["type"], "summary");

    // It goes on where it was: without a scan, with what happened meanwhile.
    done(doc! { "update": "plain", "updates": [{ "q": { "_id": "new" }, "u": { "$set": { "meanwhile": true } } }] });
    mongod.command(doc! { "renameCollection": format!("{name}.renamed"), "to": format!("{name}.again") });
    let live = Live::start(&host, &url, "folder:live", &[]);
    wait_until("what happened meanwhile is there", || file("again/1.json").exists());
    assert_in_step(&host, &url, "live");
    let said = live.stop(&host);
    assert!(said.iter().all(|l| l["type"] != "in-step"), "{said:?}");
    // Another source has no place in this folder.
    host.run(&["copy", &mongod.url_of("other"), "folder:live", "--live"]).fails(1, "is the mirror of");
    // And the folder goes back into a database, as every folder of this kind.
    let back = mongod.database_name();
    let renames: Vec<String> =
        ["hard", "plain", "recent", "again"].iter().map(|c| format!("--rename={name}.{c}={back}.{c}")).collect();
    let args: Vec<&str> = renames.iter().map(String::as_str).collect();
    host.run(&[&["copy", "folder:live", &mongod.url()], &args[..]].concat()).ends(0);
    assert_eq!(bytes_of(&host, &mongod, &back), bytes_of(&host, &mongod, &name));
}

#[test]
fn mirrors_that_are_killed_go_on() {
    let (host, mongod) = (Host::ready(), Mongod::shared());
    let name = database(&host, &mongod);
    let url = mongod.url_of(&name);
    let running = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        // Somebody works all the time.
        scope.spawn(|| {
            let mut i = 0;
            while running.load(std::sync::atomic::Ordering::SeqCst) {
                i += 1;
                let key = i * 37 % 500;
                let update = doc! { "q": { "_id": key }, "u": { "$set": { format!("f{}", i % 4): i }, "$push": { "l": { "$each": [i], "$slice": -3 } } } };
                mongod.done(&name, doc! { "update": "plain", "updates": [update] });
                let other = doc! { "q": { "_id": (i * 11) % 500 }, "u": { "$unset": { format!("f{}", i % 4): 1 } } };
                mongod.done(&name, doc! { "update": "plain", "updates": [other] });
                mongod.done(&name, doc! { "delete": "plain", "deletes": [{ "q": { "_id": i % 97 }, "limit": 1 }] });
                if i % 3 == 0 {
                    let fields = doc! { "q": { "_id": i % 97 }, "u": { "back": i }, "upsert": true };
                    mongod.done(&name, doc! { "update": "plain", "updates": [fields] });
                }
                if i % 50 == 0 {
                    mongod.done(&name, doc! { "insert": format!("coll{}", i / 50 % 3), "documents": [{ "_id": i }] });
                    mongod.command(doc! { "renameCollection": format!("{name}.coll1"), "to": format!("{name}.coll3"), "dropTarget": true });
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        for i in 0..14u64 {
            let live = Live::start(&host, &url, "folder:live", &[]);
            // From the middle of the first scan to the middle of following.
            std::thread::sleep(std::time::Duration::from_millis(100 + i * 131 % 1300));
            live.kill();
        }
        running.store(false, std::sync::atomic::Ordering::SeqCst);
    });
    let live = Live::start(&host, &url, "folder:live", &[]);
    wait_until("it is whole", || host.path("live/rewound.json").exists());
    assert_in_step(&host, &url, "live");
    live.stop(&host);
    let left: Vec<_> = host.tree("live").into_keys().filter(|f| f.contains("rewound-tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_folder_is_compared_and_kept_in_step() {
    let host = Host::ready();
    let live = Live::start(&host, "folder:lib", "folder:live", &["--every", "100ms"]);
    wait_until("the first scan ends", || host.path("live/rewound.json").exists());
    assert_eq!(fs::read(host.path("live/books/b3.attachments/scan.bin")).unwrap(), vec![7; 2 << 20]);
    assert_eq!(fs::read(host.path("live/members/1.json")).unwrap(), b"{\"_id\":1}");
    host.write("lib/books/b1.json", "{\"other\":1}");
    host.write("lib/books/new.json", "{}");
    host.write("live/books/mine.txt", "left alone");
    fs::remove_file(host.path("lib/books/b2.json")).unwrap();
    fs::remove_dir_all(host.path("lib/books/b3.attachments")).unwrap();
    fs::remove_file(host.path("lib/loans.json")).unwrap();
    wait_until("all is as it is there", || {
        let files = documents(&host, "live");
        files.get("books/b1.json").is_some_and(|text| text == b"{\"other\":1}")
            && files.contains_key("books/new.json")
            && !files.keys().any(|f| f.contains("b2.json") || f.contains("b3.att") || f.starts_with("loans"))
    });
    assert!(host.path("live/books/mine.txt").exists());
    // Half a file is no reason to end.
    host.write("lib/books/half.json", "{");
    std::thread::sleep(std::time::Duration::from_millis(400));
    host.write("lib/books/half.json", "{\"whole\":1}");
    wait_until("the whole file is there", || host.path("live/books/half.json").exists());
    host.run(&["copy", "folder:lib", "folder:live", "--live"]).fails(1, "another process");
    live.stop(&host);
}

#[test]
fn what_cannot_be_live_is_refused() {
    let host = Host::ready();
    host.backup();
    host.run(&["copy", "v", "folder:live", "--live"]).fails(2, "the source is a vault");
    host.run(&["copy", "folder:lib", "mongodb://127.0.0.1:1", "--live"]).fails(2, "keeps a folder in step");
    host.run(&["copy", "folder:lib", "folder:live", "--live", "--every", "soon"]).fails(2, "no time span");
    assert_eq!(host.run(&["copy", "folder:lib", "folder:live", "--live", "--dry-run"]).code, 2);
    assert_eq!(host.run(&["copy", "folder:lib", "folder:live", "--every", "1s"]).code, 2);
    host.write("full/mine.txt", "mine");
    host.run(&["copy", "folder:lib", "folder:full", "--live"]).fails(1, "mine.txt");
}

#[test]
fn a_vault_at_a_time() {
    let host = Host::ready();
    host.backup();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let between = jiff::Timestamp::now().to_string();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    host.write("lib/books/later.json", "{}");
    host.backup();
    host.read(&["copy", &format!("v@{between}"), "folder:then"]).ends(0);
    host.read(&["copy", "v@now", "folder:now"]).ends(0);
    assert!(!host.path("then/books/later.json").exists() && host.path("now/books/later.json").exists());
    host.read(&["copy", "v@some day", "folder:x"]).fails(2, "not a time");
    host.read(&["copy", "v@2001-01-01 00:00", "folder:x"]).fails(1, "no point at or before");
    // A path that is there wins, whatever it looks like.
    fs::rename(host.path("v"), host.path("v@now")).unwrap();
    host.read(&["copy", "v@now", "folder:whole"]).ends(0);
    host.read(&["copy", "v@now@now", "folder:whole2"]).ends(0);
    host.read(&["copy", "w@now", "folder:x"]).fails(2, "does not say what it is");
}
