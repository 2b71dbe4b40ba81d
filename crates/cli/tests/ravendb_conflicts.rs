//! Conflicts in a RavenDB database, there and back, on a real server. They come about by an import, as one server
//! alone makes none.
#![allow(clippy::unwrap_used)]

mod common;

use common::Host;
use testkit::ravendb::{Database, Raven};

/// One side of a conflict: a document, or that it is deleted.
fn side(id: &str, node: char, number: u32, text: Option<&str>, collection: &str) -> String {
    let vector = format!("{node}:{number}-{}", node.to_string().repeat(21) + "A");
    let document = text
        .map_or("null".to_owned(), |text| format!(r#"{{"N":{text},"@metadata":{{"@collection":"{collection}"}}}}"#));
    format!(
        r#"{{"Id":"{id}","Collection":"{collection}","Flags":"None","ChangeVector":"{vector}","Etag":{number},"LastModified":"2026-01-01T00:00:00.0000000Z","Doc":{document}}}"#
    )
}

/// A database with documents, and conflicts in two collections, one of which holds nothing else.
fn torn() -> Database {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let sides = [
        side("Orders/a", 'A', 1, Some("1.0"), "Orders"),
        side("Orders/a", 'B', 2, Some("12345678901234567890123"), "Orders"),
        side("Orders/a", 'C', 3, Some("3"), "Orders"),
        side("Orders/b", 'A', 4, Some("4"), "Orders"),
        side("Orders/b", 'B', 5, None, "Orders"),
        side("Users/ü", 'A', 6, Some("6"), "Users"),
        side("Users/ü", 'B', 7, Some("7"), "Users"),
    ];
    db.import(&format!(r#"{{"BuildVersion":54106,"Docs":[],"Conflicts":[{}]}}"#, sides.join(",")), "Conflicts");
    assert_eq!((db.count("CountOfDocumentsConflicts"), db.count("CountOfConflicts")), (3, 7));
    db
}

/// What the server says of the conflicts, but for its own numbers.
fn conflicts(db: &Database) -> Vec<String> {
    let of = |id: &str| {
        let answer = db.done("GET", &format!("/replication/conflicts?docId={}", testkit::ravendb::escaped(id)), b"");
        let answer = String::from_utf8(answer).unwrap();
        let (_, results) = answer.split_once("\"Results\":").unwrap();
        results.to_owned()
    };
    let mut all = Vec::new();
    for id in ["Orders/a", "Orders/b", "Users/ü"] {
        all.push(of(id));
    }
    all
}

#[test]
fn conflicts_come_back_as_they_were() {
    let db = torn();
    let host = Host::ready();
    let backup = || host.run(&["backup", &db.url(), "--to", "v", "--json"]).ends(0);
    backup();
    assert_eq!(backup().of("vault")[0]["point"]["changed"], 0, "nothing has changed");
    host.read(&["verify", "v"]).ends(0);
    let restored = || {
        let into = Raven::shared().no_database();
        let ran = host.read(&["restore", "v", "--into", &into.url(), "--json"]).ends(0);
        assert_eq!(ran.summary()["proof"]["holds"], true, "{}", ran.out);
        assert_eq!(db.counts(), into.counts());
        assert_eq!(conflicts(&db), conflicts(&into));
        into
    };
    let into = restored();
    assert!(conflicts(&into)[0].contains("12345678901234567890123"), "{:?}", conflicts(&into));

    // One that is resolved is gone; the others stay.
    db.put("Orders/a", r#"{"N":"resolved","@metadata":{"@collection":"Orders"}}"#);
    backup();
    let into = restored();
    assert_eq!(into.count("CountOfDocumentsConflicts"), 2);

    // By a dump, too, and without them.
    host.read(&["copy", "v", "ravendbdump:out.ravendbdump"]).ends(0);
    let from_dump = Raven::shared().no_database();
    host.run(&["copy", "ravendbdump:out.ravendbdump", &from_dump.url()]).ends(0);
    assert_eq!(conflicts(&db), conflicts(&from_dump));
    let without = Raven::shared().no_database();
    host.read(&["restore", "v", "--into", &without.url(), "--without-kinds", "conflicts"]).ends(0);
    assert_eq!((without.count("CountOfConflicts"), without.count("CountOfDocuments")), (0, 21));
}

#[test]
fn conflicts_come_and_go_while_changes_are_followed() {
    let db = Raven::shared().database();
    db.fill("Orders", "orders", 20);
    let host = Host::ready();
    let backup = |mode: &str| {
        let ran = host.run(&["backup", &db.url(), "--to", "v", "--hold-tombstones", "--json"]).ends(0);
        assert_eq!(ran.summary()["mode"], mode, "{}", ran.out);
        let into = Raven::shared().no_database();
        host.read(&["restore", "v", "--into", &into.url()]).ends(0);
        assert_eq!((db.counts(), db.documents()), (into.counts(), into.documents()));
        assert_eq!(conflicts(&db), conflicts(&into));
    };
    backup("scan");
    let sides = [side("Orders/a", 'A', 1, Some("1"), "Orders"), side("Orders/a", 'B', 2, Some("2"), "Orders")];
    db.import(&format!(r#"{{"BuildVersion":54106,"Docs":[],"Conflicts":[{}]}}"#, sides.join(",")), "Conflicts");
    backup("scan");
    db.delete("orders/5");
    backup("scan");
    db.put("Orders/a", r#"{"N":"resolved","@metadata":{"@collection":"Orders"}}"#);
    backup("scan");
    db.delete("orders/6");
    backup("changes");
}
