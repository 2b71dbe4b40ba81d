//! MongoDB through the binary, on real servers.
#![allow(clippy::unwrap_used)]

mod common;

use bson::{Document, doc};
use common::Host;
use std::fs;
use std::sync::Arc;
use testkit::mongod::{Mongod, Options};

/// A database with an example of most things, on the shared replica set.
struct Shop {
    mongod: Arc<Mongod>,
    name: String,
}

impl Shop {
    fn new() -> Shop {
        let mongod = Mongod::shared();
        let name = mongod.database_name();
        let shop = Shop { mongod, name };
        let orders = |from: i32| (from..from + 1000).map(|i| doc! { "_id": i, "n": i % 7, "text": "x".repeat(100) });
        for from in [0, 1000, 2000] {
            shop.done(doc! { "insert": "orders", "documents": orders(from).collect::<Vec<_>>() });
        }
        let indexes = vec![
            doc! { "key": { "n": 1, "text": -1 }, "name": "n_text" },
            doc! { "key": { "when": 1 }, "name": "ttl", "expireAfterSeconds": 3600 },
            doc! { "key": { "n": 1 }, "name": "partial", "partialFilterExpression": { "n": { "$gt": 3 } }, "hidden": true },
            doc! { "key": { "text": "hashed" }, "name": "hashed" },
        ];
        shop.done(doc! { "createIndexes": "orders", "indexes": indexes });
        shop.done(doc! { "create": "log", "capped": true, "size": 100_000 });
        let lines: Vec<_> = (0..50).rev().map(|i| doc! { "_id": i }).collect();
        shop.done(doc! { "insert": "log", "documents": lines });
        shop.done(doc! { "create": "metrics", "timeseries": { "timeField": "t", "metaField": "m" } });
        let measures: Vec<_> =
            (0..100).map(|i| doc! { "t": bson::DateTime::from_millis(i * 1000), "m": 1, "v": i }).collect();
        shop.done(doc! { "insert": "metrics", "documents": measures });
        shop.done(doc! { "create": "recent", "viewOn": "orders", "pipeline": [{ "$match": { "n": 1 } }] });
        shop.done(doc! { "insert": "odd/näme.x", "documents": [{ "_id": "one", "price": 2.5 }] });
        shop
    }

    fn done(&self, command: Document) -> Document {
        self.mongod.done(&self.name, command)
    }

    fn url(&self) -> String {
        self.mongod.url_of(&self.name)
    }

    /// Name, kind, options, and indexes of all collections of a database.
    fn catalog(mongod: &Mongod, database: &str) -> Vec<(String, String, Vec<String>)> {
        let answer = mongod.done(database, doc! { "listCollections": 1 });
        let batch = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
        let mut all: Vec<_> = batch
            .iter()
            .map(|c| c.as_document().unwrap())
            // The server makes these from the others, with options of its own version.
            .filter(|c| !c.get_str("name").unwrap().starts_with("system."))
            .map(|c| {
                let name = c.get_str("name").unwrap();
                let mut indexes = Vec::new();
                if c.get_str("type").unwrap() != "view" {
                    let answer = mongod.done(database, doc! { "listIndexes": name });
                    let batch = answer.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
                    indexes.extend(batch.iter().map(|i| i.to_string()));
                    indexes.sort();
                }
                (name.to_owned(), c.get_document("options").unwrap().to_string(), indexes)
            })
            .collect();
        all.sort();
        all
    }

    /// That a database has what this one has.
    fn assert_same(&self, mongod: &Mongod, database: &str) {
        assert_eq!(Shop::catalog(&self.mongod, &self.name), Shop::catalog(mongod, database));
        for collection in ["orders", "log", "system.buckets.metrics", "odd/näme.x"] {
            let (mut here, mut there) =
                (self.mongod.documents(&self.name, collection), mongod.documents(database, collection));
            if collection != "log" {
                here.sort();
                there.sort();
            }
            assert!(here == there && !here.is_empty(), "{collection}");
        }
    }
}

#[test]
fn a_database_from_the_first_backup_to_the_restore() {
    let shop = Shop::new();
    let host = Host::ready();
    let backup = || host.run(&["backup", &shop.url(), "--to", "v", "--json"]).ends(0);
    let first = backup();
    let point = &first.of("vault")[0]["point"];
    assert_eq!(point["engine"], "mongodb");
    // A second backup stores what has changed.
    assert_eq!(backup().of("vault")[0]["point"]["changed"], 0, "nothing has changed but the server's clock");
    shop.done(doc! { "update": "orders", "updates": [{ "q": { "_id": 7 }, "u": { "$set": { "n": 100 } } }] });
    shop.done(doc! { "delete": "orders", "deletes": [{ "q": { "_id": 8 }, "limit": 1 }] });
    let third = backup();
    let point = &third.of("vault")[0]["point"];
    assert_eq!((&point["changed"], &point["deleted"]), (&1.into(), &1.into()), "{point}");
    host.read(&["verify", "v"]).ends(0);

    // Into an empty server of another version, that is no replica set.
    let other = Mongod::start(Options { newest: true, ..Options::default() });
    let ran = host.read(&["restore", "v", "--into", &other.url(), "--json"]).ends(0);
    assert_eq!(ran.summary()["proof"]["holds"], true);
    shop.assert_same(&other, &shop.name);

    // Into another database of the same server; twice is refused, replace is not.
    let back = shop.mongod.database_name();
    let into = shop.mongod.url_of(&back);
    let plan = host.read(&["restore", "v", "--into", &into, "--dry-run"]).ends(0);
    assert!(plan.out.contains("index") && plan.out.contains("Nothing was touched"), "{}", plan.out);
    assert!(shop.mongod.documents(&back, "orders").is_empty());
    host.read(&["restore", "v", "--into", &into]).ends(0);
    shop.assert_same(&shop.mongod, &back);
    let refused = host.read(&["restore", "v", "--into", &into]).fails(1, "holds documents already");
    assert!(refused.err.contains(&format!("{back}.orders")), "{}", refused.err);
    shop.mongod.done(
        &back,
        doc! { "update": "orders", "updates": [{ "q": {}, "u": { "$set": { "spoilt": true } }, "multi": true }] },
    );
    shop.mongod.done(&back, doc! { "insert": "mine", "documents": [{ "_id": 1 }] });
    host.read(&["restore", "v", "--into", &into, "--if-exists", "replace"]).ends(0);
    assert_eq!(shop.mongod.documents(&back, "mine").len(), 1, "what the backup does not have stays");
    shop.mongod.done(&back, doc! { "drop": "mine" });
    shop.assert_same(&shop.mongod, &back);
}

#[test]
fn replace_first_looks_whether_all_is_there() {
    let shop = Shop::new();
    let host = Host::ready();
    host.run(&["backup", &shop.url(), "--to", "v"]).ends(0);
    let replace = ["restore", "v", "--into", &shop.url(), "--if-exists", "replace", "--memory", "1"];
    let plan = host.read(&[&replace[..], &["--dry-run"]].concat()).ends(0);
    assert!(plan.out.contains("in the vault; what is inside is checked"), "{}", plan.out);
    shop.done(doc! { "update": "orders", "updates": [{ "q": { "_id": 7 }, "u": { "$set": { "n": "newer" } } }] });
    let before = shop.mongod.documents(&shop.name, "orders");

    let folders = fs::read_dir(host.path("v/segments")).unwrap().map(|folder| folder.unwrap().path());
    folders.for_each(|folder| fs::remove_dir_all(folder).unwrap());
    let refused = host.read(&replace).fails(1, "that this restore needs");
    assert!(refused.err.contains("segments/") && refused.err.contains("rewound verify"), "{}", refused.err);
    host.read(&[&replace[..], &["--dry-run"]].concat()).fails(1, "that this restore needs");
    assert_eq!(shop.mongod.documents(&shop.name, "orders"), before);
}

#[test]
fn one_document_and_one_collection() {
    let shop = Shop::new();
    let host = Host::ready();
    host.run(&["backup", &shop.url(), "--to", "v"]).ends(0);
    let orders = format!("{}.orders", shop.name);
    let shown = host.read(&["find", "v", &orders, "7", "--show"]).ends(0);
    assert!(shown.out.starts_with(r#"{"_id":7,"n":0,"#), "{}", shown.out);
    let odd = format!("{}.odd/näme.x", shop.name);
    let shown = host.read(&["find", "v", &odd, "one", "--show"]).ends(0);
    assert_eq!(shown.out.trim_end(), r#"{"_id":"one","price":2.5}"#);
    host.read(&["find", "v", &orders, "no such key"]).fails(1, "no point has a document");

    // Bring back one document that was spoilt, and one that was deleted.
    let before = shop.mongod.documents(&shop.name, "orders");
    shop.done(doc! { "update": "orders", "updates": [{ "q": { "_id": 7 }, "u": { "$set": { "n": "spoilt" } } }] });
    shop.done(doc! { "delete": "orders", "deletes": [{ "q": { "_id": 8 }, "limit": 1 }] });
    let find = ["find", "v", &orders, "7", "--restore", "--into", &shop.url()];
    host.read(&find).fails(1, "another version of document 7");
    host.read(&[&find[..], &["--if-exists", "merge"]].concat()).ends(0);
    let only = format!("{orders}/8");
    host.read(&["restore", "v", "--only", &only, "--if-exists", "merge", "--into", &shop.url()]).ends(0);
    let sorted = |mut documents: Vec<Vec<u8>>| {
        documents.sort();
        documents
    };
    assert_eq!(sorted(shop.mongod.documents(&shop.name, "orders")), sorted(before));

    // One collection, under another name.
    let rename = format!("{orders}={}.orders_old", shop.name);
    host.read(&["restore", "v", "--only", &orders, "--rename", &rename, "--into", &shop.url()]).ends(0);
    assert_eq!(shop.mongod.documents(&shop.name, "orders_old").len(), 3000);

    // A selection of collections in a backup; a folder of JSON gets what it can hold.
    host.run(&["init", "w", "--plain"]).ends(0);
    let pattern = format!("{}.*o*", shop.name);
    host.run(&["backup", &shop.url(), "--to", "w", "--only", &pattern, "--exclude", &orders]).ends(0);
    let names: Vec<_> =
        host.run(&["restore", "w", "--into", &other_database(&shop), "--dry-run", "--json"]).ends(0).of("collection");
    assert_eq!(names.len(), 3, "{names:?}");
}

fn other_database(shop: &Shop) -> String {
    shop.mongod.url_of(&shop.mongod.database_name())
}

#[test]
fn what_cannot_be_done_is_said() {
    let host = Host::ready();
    let nowhere = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300";
    host.run(&["backup", nowhere, "--to", "v"]).fails(1, "127.0.0.1:1");
    host.run(&["backup", "mongodb://", "--to", "v"]).fails(2, "names no place");
    host.run(&["backup", "mongodb://127.0.0.1:1/?nonsense", "--to", "v"]).fails(1, "URL");

    let mongod = Mongod::start(Options { auth: true, ..Options::replica_set() });
    let create = doc! { "createUser": "saver", "pwd": "s3cret", "roles": ["backup"] };
    assert_eq!(mongod.command(create).get_f64("ok").unwrap(), 1.0);
    let url = format!("mongodb://saver@{}/?directConnection=true", mongod.host());
    host.write("password", "s3cret\n");
    host.run(&["backup", &url, "--to", "v", "--password-file", "password"]).ends(0);
    host.write("password", "wrong-one\n");
    let refused = host.run(&["backup", &url, "--to", "v", "--password-file", "password"]).fails(1, "uthenticat");
    assert!(!refused.err.contains("wrong-one"), "{}", refused.err);
    let mut command = host.command(&["backup", &url, "--to", "v"]);
    common::ran(command.env("REWOUND_PASSWORD", "s3cret").output().unwrap()).ends(0);
}

#[test]
fn roles_that_restores_need() {
    let host = Host::ready();
    let shop = Shop::new();
    host.run(&["backup", &shop.url(), "--to", "v"]).ends(0);
    let mongod = Mongod::start(Options { auth: true, ..Options::replica_set() });
    // The first user may make others.
    let root = doc! { "createUser": "root", "pwd": "pw", "roles": ["root"] };
    assert_eq!(mongod.command(root).get_f64("ok").unwrap(), 1.0);
    let restore = |user: &str, more: &[&str]| {
        let url = format!("mongodb://{user}@{}/?directConnection=true&authSource=admin", mongod.host());
        let arguments = [&["restore", "v", "--into", &url], more].concat();
        let mut command = host.command(&arguments);
        command.env("REWOUND_PASSWORD", "pw").env("REWOUND_IDENTITY", host.path("key.txt"));
        common::ran(command.output().unwrap())
    };
    make_user(&mongod, "restorer", &["restore"]);
    make_user(&mongod, "reader", &["readAnyDatabase"]);
    let refused = restore("reader", &[]).fails(1, "not authorized");
    assert!(refused.err.contains("docs/mongodb.md"), "{}", refused.err);
    // `restore` alone may write, but not look at what is there, nor read back what it wrote.
    restore("restorer", &["--no-verify"]).fails(1, "not authorized");
    make_user(&mongod, "both", &["backup", "restore"]);
    restore("both", &[]).ends(0);
    restore("both", &["--if-exists", "replace"]).ends(0);
}

/// Lets the first user make another one.
fn make_user(mongod: &Mongod, user: &str, roles: &[&str]) {
    let url = format!("mongodb://root:pw@{}/?directConnection=true&authSource=admin", mongod.host());
    let command = doc! { "createUser": user, "pwd": "pw", "roles": roles };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(mongo::Server::new(url, None).admin(command)).unwrap();
}

#[test]
fn the_largest_documents_and_many_collections() {
    let host = Host::ready();
    let mongod = Mongod::shared();
    let (from, to) = (mongod.database_name(), mongod.database_name());
    let big = |id: i32| doc! { "_id": id, "x": "y".repeat((16 << 20) - 40) };
    for id in 0..3 {
        mongod.done(&from, doc! { "insert": "big", "documents": [big(id)] });
    }
    for i in 0..300 {
        mongod.done(&from, doc! { "insert": format!("c{i}"), "documents": [{ "_id": i }] });
    }
    host.run(&["backup", &mongod.url_of(&from), "--to", "v"]).ends(0);
    host.read(&["restore", "v", "--into", &mongod.url_of(&to)]).ends(0);
    assert_eq!(Shop::catalog(&mongod, &from).len(), 301);
    assert_eq!(Shop::catalog(&mongod, &from), Shop::catalog(&mongod, &to));
    let count = mongod.done(&to, doc! { "count": "big" });
    assert_eq!(count.get_i32("n").unwrap(), 3);
}

#[test]
fn a_server_that_dies_during_a_restore() {
    let host = Host::ready();
    let shop = Shop::new();
    let filler = "x".repeat(1000);
    for from in (0..30_000).step_by(10_000) {
        let documents: Vec<_> = (from..from + 10_000).map(|i| doc! { "_id": i, "filler": &filler }).collect();
        shop.done(doc! { "insert": "large", "documents": documents });
    }
    host.run(&["backup", &shop.url(), "--to", "v"]).ends(0);
    let target = Mongod::start(Options::replica_set());
    let url = format!("{}&serverSelectionTimeoutMS=1000", target.url());
    let mut child =
        host.command(&["restore", "v", "--into", &url]).env("REWOUND_IDENTITY", host.path("key.txt")).spawn().unwrap();
    // Once documents arrive, both go: the server at once, then the restore.
    let began = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() && began.elapsed().as_secs() < 20 {
        let listed = target.done(&shop.name, doc! { "listCollections": 1, "nameOnly": true });
        if !listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap().is_empty() {
            break;
        }
    }
    target.kill();
    child.kill().unwrap();
    child.wait().unwrap();
    target.run();
    target.await_primary();
    host.read(&["restore", "v", "--into", &target.url()]).ends(0);
    shop.assert_same(&target, &shop.name);
    let left: Vec<_> = Shop::catalog(&target, &shop.name).into_iter().filter(|(n, ..)| n.contains("rewound")).collect();
    assert!(left.is_empty(), "{left:?}");
    fs::remove_dir_all(host.path("v")).unwrap();
}

#[test]
fn dumps_of_mongodump() {
    let shop = Shop::new();
    let host = Host::ready();
    for gzip in [&["--gzip"][..], &[]] {
        let dump = if gzip.is_empty() { "mongodump:plain" } else { "mongodump:zipped" };
        host.read(&[&["copy", &shop.url(), dump], gzip].concat()).ends(0);
        host.read(&[&["copy", &shop.url(), dump], gzip].concat()).fails(1, "");
        let back = shop.mongod.database_name();
        host.read(&["copy", dump, &shop.mongod.url_of(&back)]).ends(0);
        shop.assert_same(&shop.mongod, &back);
    }
    assert!(host.path(&format!("plain/{}/odd%2Fn%C3%A4me.x.bson", shop.name)).exists());
    assert!(host.path(&format!("zipped/{}/orders.metadata.json.gz", shop.name)).exists());

    // Through a vault, and what is damaged is refused before the target is touched.
    host.run(&["backup", "mongodump:plain", "--to", "v"]).ends(0);
    let other = Mongod::start(Options::default());
    host.read(&["restore", "v", "--into", &other.url()]).ends(0);
    shop.assert_same(&other, &shop.name);
    let orders = host.path(&format!("plain/{}/orders.bson", shop.name));
    let bytes = fs::read(&orders).unwrap();
    fs::write(&orders, &bytes[..bytes.len() - 3]).unwrap();
    let target = other_database(&shop);
    host.read(&["copy", "mongodump:plain", &target]).fails(1, "orders.bson");
    host.run(&["backup", "mongodump:plain", "--to", "v"]).fails(1, "orders.bson");
}

#[test]
fn what_a_server_will_delete_at_once_is_counted() {
    let arguments = vec!["--setParameter".into(), "ttlMonitorEnabled=false".into()];
    let mongod = Mongod::start(Options { arguments, ..Options::replica_set() });
    let database = mongod.database_name();
    let old = bson::DateTime::from_millis(1000);
    let documents = vec![
        doc! { "_id": 1, "when": old },
        doc! { "_id": 2, "when": [bson::DateTime::now(), old] },
        doc! { "_id": 3, "when": bson::DateTime::now() },
        doc! { "_id": 4 },
    ];
    mongod.done(&database, doc! { "insert": "sessions", "documents": documents });
    let index = doc! { "key": { "when": 1 }, "name": "ttl", "expireAfterSeconds": 3600 };
    mongod.done(&database, doc! { "createIndexes": "sessions", "indexes": [index] });
    let host = Host::ready();
    host.run(&["backup", &mongod.url_of(&database), "--to", "v"]).ends(0);
    let plan = host.read(&["restore", "v", "--into", &mongod.url_of("back"), "--dry-run"]).ends(0);
    assert!(plan.out.contains(&format!("deletes up to 2 documents of {database}.sessions")), "{}", plan.out);
}
