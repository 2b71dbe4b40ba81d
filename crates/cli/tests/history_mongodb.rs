//! One document back, what changed, and drills with MongoDB, through the real binary.
#![allow(clippy::unwrap_used)]

mod common;

use bson::{Document, doc};
use common::Host;
use std::sync::Arc;
use testkit::mongod::Mongod;

struct Shop {
    mongod: Arc<Mongod>,
    name: String,
}

impl Shop {
    fn new() -> Shop {
        let mongod = Mongod::shared();
        let name = mongod.database_name();
        let shop = Shop { mongod, name };
        let orders: Vec<Document> = (0..2000).map(|i| doc! { "_id": i, "n": i % 7, "text": "x".repeat(50) }).collect();
        shop.done(doc! { "insert": "orders", "documents": orders });
        shop.done(doc! { "insert": "people", "documents": [{ "_id": "ann", "age": 1.5 }, { "_id": "bob" }] });
        shop.done(doc! { "create": "metrics", "timeseries": { "timeField": "t", "metaField": "m" } });
        let measures: Vec<Document> =
            (0..20).map(|i| doc! { "t": bson::DateTime::from_millis(i * 1000), "m": 1, "v": i }).collect();
        shop.done(doc! { "insert": "metrics", "documents": measures });
        shop
    }

    fn done(&self, command: Document) -> Document {
        self.mongod.done(&self.name, command)
    }

    fn url(&self) -> String {
        self.mongod.url_of(&self.name)
    }

    fn collection(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    fn backup(&self, host: &Host) {
        host.run(&["backup", &self.url(), "--to", "v"]).ends(0);
    }

    fn databases(&self) -> Vec<String> {
        let answer = self.mongod.done("admin", doc! { "listDatabases": 1, "nameOnly": true });
        let all = answer.get_array("databases").unwrap().iter();
        all.map(|d| d.as_document().unwrap().get_str("name").unwrap().to_owned()).collect()
    }
}

#[test]
fn a_document_of_mongodb_through_time_and_back() {
    let shop = Shop::new();
    let host = Host::ready();
    let people = shop.collection("people");
    shop.backup(&host);
    shop.done(doc! { "update": "people", "updates": [{ "q": { "_id": "ann" }, "u": { "$set": { "age": 2.5 } } }] });
    shop.done(doc! { "delete": "orders", "deletes": [{ "q": { "_id": 7 }, "limit": 1 }] });
    shop.done(doc! { "insert": "orders", "documents": [{ "_id": 5000 }] });
    shop.done(doc! { "createIndexes": "orders", "indexes": [{ "key": { "n": 1 }, "name": "n" }] });
    shop.done(doc! { "drop": "metrics" });
    shop.done(doc! { "insert": "new", "documents": [{ "_id": 1 }] });
    shop.backup(&host);
    shop.done(doc! { "delete": "people", "deletes": [{ "q": { "_id": "ann" }, "limit": 1 }] });
    shop.backup(&host);

    let listed = host.read(&["find", "v", &people, "ann", "--json"]).ends(0);
    let deleted: Vec<bool> = listed.of("version").iter().map(|v| v["deleted"].as_bool().unwrap()).collect();
    assert_eq!(deleted, [false, false, true]);
    assert_eq!(listed.of("version")[0]["key"], "ann");
    let shown = host.read(&["find", "v", &people, "ann", "--show", "--version", "2"]).ends(0).out;
    assert_eq!(shown, "{\"_id\":\"ann\",\"age\":2.5}");
    let at = listed.of("version")[0]["at"].as_str().unwrap().to_owned();
    let shown = host.read(&["find", "v", &people, "ann", "--show", "--at", &at]).ends(0).out;
    assert_eq!(shown, "{\"_id\":\"ann\",\"age\":1.5}");

    // Back into the database that lost it.
    let into = shop.url();
    let back = |more: &[&str]| {
        let all = ["find", "v", &people, "ann", "--restore", "--into", &into, "--version", "3", "--json"];
        host.read(&[&all, more].concat())
    };
    let summary = back(&[]).ends(0).summary();
    assert_eq!((&summary["documents"], &summary["proof"]["holds"]), (&1.into(), &true.into()), "{summary}");
    let there = shop.mongod.documents(&shop.name, "people");
    assert_eq!(there.len(), 2);
    assert!(there.contains(&doc! { "_id": "ann", "age": 1.5 }.to_vec().unwrap()));
    shop.done(doc! { "update": "people", "updates": [{ "q": { "_id": "ann" }, "u": { "$set": { "age": 9 } } }] });
    back(&[]).ends(1);
    assert_eq!(back(&["--if-exists", "merge"]).ends(0).summary()["proof"]["holds"], true);

    let points = host.read(&["points", "v", "--json"]).ends(0);
    let id = |i: usize| points.of("point")[i]["id"].as_str().unwrap().to_owned();
    let diff = host.read(&["diff", "v", &id(0), &id(1)]).ends(0).out;
    let name = &shop.name;
    for line in [
        format!("~ {name}.people/ann"),
        format!("- {name}.orders/7"),
        format!("+ {name}.orders/5000"),
        format!("~ collection {name}.orders has other options or indexes"),
        format!("- collection {name}.metrics dropped"),
        format!("+ collection {name}.new created"),
        format!("+ {name}.new/1"),
    ] {
        assert!(diff.lines().any(|l| l == line), "{line} is not in\n{diff}");
    }
    assert!(diff.ends_with("2 added, 1 changed, 2 deleted\n"), "{diff}");
}

#[test]
fn a_drill_of_mongodb_leaves_nothing_behind() {
    let shop = Shop::new();
    let host = Host::ready();
    shop.backup(&host);
    let good = host.read(&["drill", "v", "--json"]).ends(0);
    let report = &good.of("drill")[0];
    assert!(
        report["documents"].as_u64() >= Some(2003) && report["unproven"].as_array().unwrap().is_empty(),
        "{report}"
    );
    // Into databases with names of their own, and into one that does not exist yet.
    let before = shop.databases();
    let server = shop.url().replace(&format!("/{}", shop.name), "/");
    let ours = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|n| n.starts_with("rewound_drill_") || n.starts_with(&shop.name)).collect()
    };
    host.read(&["drill", "v", "--into", &server]).ends(0);
    assert_eq!(ours(shop.databases()), ours(before.clone()));
    let scratch = shop.url().replace(&shop.name, &format!("{}_scratch", shop.name));
    host.read(&["drill", "v", "--into", &scratch]).ends(0);
    assert_eq!(ours(shop.databases()), ours(before));
    // Never into one that holds something.
    host.read(&["drill", "v", "--into", &shop.url()]).fails(1, "is not empty");
    assert_eq!(shop.mongod.documents(&shop.name, "orders").len(), 2000);
    let status = host.read(&["status", "v", "--json"]).ends(0);
    assert_eq!(status.of("source")[0]["drill"]["good"], true);
}

#[test]
fn what_came_and_went_between_two_points_is_found_too() {
    let shop = Shop::new();
    let host = Host::ready();
    let people = shop.collection("people");
    shop.backup(&host);
    let set = |age: f64| doc! { "q": { "_id": "bob" }, "u": { "$set": { "age": age } } };
    for age in [1.0, 2.0, 3.0] {
        shop.done(doc! { "update": "people", "updates": [set(age)] });
    }
    shop.done(doc! { "delete": "people", "deletes": [{ "q": { "_id": "bob" }, "limit": 1 }] });
    shop.done(doc! { "insert": "people", "documents": [{ "_id": "bob", "back": true }] });
    shop.backup(&host);
    let found = host.read(&["find", "v", &people, "bob", "--json"]).ends(0);
    let versions = found.of("version");
    let deleted: Vec<bool> = versions.iter().map(|v| v["deleted"].as_bool().unwrap()).collect();
    assert_eq!(deleted, [false, false, false, false, true, false], "{found:?}");
    assert_eq!(versions.iter().filter(|v| v["point"].is_null()).count(), 4, "no point shows four of them");
    assert!(versions[1..].iter().all(|v| v["log"].is_string()));
    for (number, body) in [("5", "{\"_id\":\"bob\",\"age\":1.0}"), ("3", "{\"_id\":\"bob\",\"age\":3.0}")] {
        assert_eq!(host.read(&["find", "v", &people, "bob", "--show", "--version", number]).ends(0).out, body);
    }
    let at = versions[2]["at"].as_str().unwrap();
    let shown = host.read(&["find", "v", &people, "bob", "--show", "--at", at]).ends(0).out;
    assert_eq!(shown, "{\"_id\":\"bob\",\"age\":2.0}");
    // A time that no point has: what changed since, and the document of that time back.
    let diff = host.read(&["diff", "v", at, "--only", &people]).ends(0).out;
    assert_eq!(diff, format!("~ {people}/bob\n0 added, 1 changed, 0 deleted\n"));
    let into = shop.url();
    let args = ["find", "v", &people, "bob", "--restore", "--into", &into, "--at", at, "--if-exists", "merge"];
    host.read(&args).ends(0);
    assert!(shop.mongod.documents(&shop.name, "people").contains(&doc! { "_id": "bob", "age": 2.0 }.to_vec().unwrap()));
    host.read(&["verify", "v"]).ends(0);
    host.read(&["drill", "v"]).ends(0);
}
