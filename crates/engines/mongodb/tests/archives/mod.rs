//! A writer of archives after mongo-tools' `common/archive/spec.md`, for tests only.

use bson::{Bson, Document, doc};
use std::collections::BTreeMap;

const TERMINATOR: [u8; 4] = [0xFF; 4];

/// Writes archives, block by block.
struct Writer {
    bytes: Vec<u8>,
    sums: BTreeMap<(String, String), Vec<u8>>,
}

impl Writer {
    fn new(collections: &[(&str, &str, &str, &str)]) -> Writer {
        let mut bytes = 0x8199_E26D_u32.to_le_bytes().to_vec();
        let header = doc! {
            "concurrent_collections": 4, "version": "0.1", "server_version": "6.0.5", "tool_version": "100.0.0",
        };
        bytes.extend(header.to_vec().unwrap());
        for (db, collection, metadata, kind) in collections {
            let listed = doc! { "db": db, "collection": collection, "metadata": metadata, "size": 0, "type": kind };
            bytes.extend(listed.to_vec().unwrap());
        }
        bytes.extend(TERMINATOR);
        Writer { bytes, sums: BTreeMap::new() }
    }

    fn header(&mut self, db: &str, collection: &str, is_end: bool, crc: u64) {
        let header = doc! { "db": db, "collection": collection, "EOF": is_end, "CRC": Bson::Int64(crc as i64) };
        self.bytes.extend(header.to_vec().unwrap());
    }

    fn block(&mut self, db: &str, collection: &str, documents: &[Vec<u8>]) {
        self.header(db, collection, false, 0);
        let all = documents.concat();
        self.bytes.extend(&all);
        self.sums.entry((db.into(), collection.into())).or_default().extend(all);
        self.bytes.extend(TERMINATOR);
    }

    fn end(&mut self, db: &str, collection: &str) {
        let all = self.sums.remove(&(db.into(), collection.into())).unwrap_or_default();
        self.header(db, collection, true, crc64(&all));
        self.bytes.extend(TERMINATOR);
    }
}

/// CRC-64 bit by bit, from its definition (polynomial of ECMA-182, reflected).
fn crc64(bytes: &[u8]) -> u64 {
    let mut crc = !0u64;
    for byte in bytes {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xC96C_5795_D787_0F42 } else { crc >> 1 };
        }
    }
    !crc
}

/// Three collections in mixed blocks, a view and an oplog; and the documents of each.
pub fn mixed() -> (Vec<u8>, BTreeMap<String, Vec<Vec<u8>>>) {
    let series =
        r#"{"indexes":[],"collectionName":"metrics","type":"timeseries","options":{"timeseries":{"timeField":"t"}}}"#;
    let view = r#"{"indexes":[],"collectionName":"view","type":"view","options":{"viewOn":"a","pipeline":[]}}"#;
    let mut writer = Writer::new(&[
        ("db", "a", "", ""),
        ("db", "b", "", ""),
        ("db", "metrics", series, "timeseries"),
        ("db", "view", view, "view"),
        ("", "oplog", "", ""),
    ]);
    let document = |d: Document| d.to_vec().unwrap();
    let a: Vec<Vec<u8>> = (0..4).map(|i| document(doc! { "_id": i, "a": "alpha" })).collect();
    let b: Vec<Vec<u8>> = (0..3).map(|i| document(doc! { "_id": format!("k{i}"), "b": "beta" })).collect();
    let m = vec![document(doc! { "_id": 1, "control": { "version": 1 } })];
    writer.block("db", "a", &a[..1]);
    writer.end("db", "view");
    writer.block("db", "b", &b[..2]);
    writer.block("db", "a", &a[1..3]);
    writer.block("", "oplog", &[document(doc! { "op": "n" })]);
    writer.block("db", "system.buckets.metrics", &m);
    writer.block("db", "a", &a[3..]);
    writer.end("db", "a");
    writer.end("db", "system.buckets.metrics");
    writer.block("db", "b", &b[2..]);
    writer.end("", "oplog");
    writer.end("db", "b");
    let documents = [("db.a", a), ("db.b", b), ("db.metrics", m)].map(|(name, all)| (name.to_owned(), all));
    (writer.bytes, documents.into())
}
