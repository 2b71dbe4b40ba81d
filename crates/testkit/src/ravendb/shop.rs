//! A database with an example of each kind of thing, and what of it must be the same elsewhere.

use super::{Database, Raven};
use std::sync::Arc;

impl Raven {
    /// A database with an example of each kind of thing.
    pub fn shop(self: &Arc<Self>) -> Database {
        let db = self.database();
        db.fill("Orders", "orders", 3000);
        db.put("Users/1", r#"{"N":1,"@metadata":{"@collection":"Users"}}"#);
        db.put(
            "users/2 ?#%ü😀",
            r#"{"N":12345678901234567890123456,"Z":1.0,"A":-0.0,"@metadata":{"@collection":"Users","x":"y"}}"#,
        );
        db.put("nowhere", "{\"Text\":\"\\u0001 \u{2028} 😀\"}");
        db.put("odd", r#"{"N":1,"@metadata":{"@collection":"Ünï Cöl"}}"#);
        db.done("POST", "/admin/revisions/config", br#"{"Default":{"Disabled":false}}"#);
        for n in 0..5 {
            db.put("Users/1", &format!(r#"{{"N":{n},"@metadata":{{"@collection":"Users"}}}}"#));
        }
        db.attach("Users/1", "A ä.txt", b"hello");
        db.attach("orders/7", "same.txt", b"hello");
        db.attach("orders/7", "big.bin", &vec![7; 3 << 20]);
        let counters = r#"{"Documents":[{"DocumentId":"Users/1","Operations":[{"Type":"Increment","CounterName":"Likes","Delta":3},{"Type":"Increment","CounterName":"zz","Delta":-4}]}]}"#;
        db.done("POST", "/counters", counters.as_bytes());
        let series = r#"{"Name":"Heart","Appends":[{"Timestamp":"2024-01-01T00:00:00.0000000Z","Values":[70.5],"Tag":"t"}],"Deletes":null}"#;
        db.done("POST", "/timeseries?docId=orders%2F8", series.as_bytes());
        db.done("PUT", "/cmpxchg?key=k1&index=0", br#"{"Object":{"a":1}}"#);
        let index = r#"{"Indexes":[{"Name":"ByN","Maps":["from o in docs.Orders select new { o.N }"]}]}"#;
        db.done("PUT", "/admin/indexes", index.as_bytes());
        db.done("POST", "/queries", br#"{"Query":"from Users where N = 1"}"#);
        db.done("POST", "/identity/next?name=users%7C", b"");
        db.done("PUT", "/subscriptions", br#"{"Name":"S1","Query":"from Users"}"#);
        db
    }
}

impl Database {
    /// Numbers that must be the same after a restore.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let names = [
            "CountOfDocuments",
            "CountOfRevisionDocuments",
            "CountOfAttachments",
            "CountOfUniqueAttachments",
            "CountOfCounterEntries",
            "CountOfTimeSeriesSegments",
            "CountOfIndexes",
        ];
        names.map(|name| (name, self.count(name))).to_vec()
    }

    /// All documents as the server gives them, without what it makes anew.
    pub fn documents(&self) -> Vec<String> {
        let answer: serde_json::Value =
            serde_json::from_slice(&self.done("GET", "/docs?start=0&pageSize=10000", b"")).unwrap();
        let mut all: Vec<_> = answer["Results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|document| {
                let mut document = document.clone();
                let metadata = document["@metadata"].as_object_mut().unwrap();
                metadata.retain(|name, _| !["@change-vector", "@flags", "@last-modified"].contains(&name.as_str()));
                document.to_string()
            })
            .collect();
        all.sort();
        all
    }
}
