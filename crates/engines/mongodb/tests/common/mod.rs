//! What the tests against real servers share.
#![allow(dead_code, clippy::unwrap_used)]

use bson::{Binary, Bson, Decimal128, Document, RawDocumentBuf, doc, spec::BinarySubtype};
use mongo::Server;
use mongodb::{Client, Database};
use std::sync::Arc;
use testkit::mongod::Mongod;

/// A database that no other test has, on the shared replica set.
pub struct Place {
    pub mongod: Arc<Mongod>,
    pub name: String,
    pub database: Database,
}

impl Place {
    pub async fn new() -> Place {
        Place::on(Mongod::shared()).await
    }

    pub async fn on(mongod: Arc<Mongod>) -> Place {
        let client = Client::with_uri_str(mongod.url()).await.unwrap();
        let name = mongod.database_name();
        let database = client.database(&name);
        Place { mongod, name, database }
    }

    /// This database alone.
    pub fn server(&self) -> Arc<Server> {
        Arc::new(Server::new(self.mongod.url_of(&self.name), None))
    }

    pub async fn run(&self, command: Document) -> Document {
        self.database.run_command(command).await.unwrap()
    }

    pub async fn insert(&self, collection: &str, documents: Vec<Document>) {
        self.database.collection(collection).insert_many(documents).await.unwrap();
    }

    /// Inserts bytes that need not be anything that the driver could write.
    pub async fn insert_raw(&self, collection: &str, document: &[u8]) {
        let mut command = RawDocumentBuf::new();
        command.append(bson::cstr!("insert"), collection);
        let mut array = bson::RawArrayBuf::new();
        array.push(RawDocumentBuf::from_bytes(document.to_vec()).unwrap());
        command.append(bson::cstr!("documents"), array);
        command.append(bson::cstr!("bypassDocumentValidation"), true);
        let answer = self.database.run_raw_command(command).await.unwrap();
        assert!(!answer.contains_key("writeErrors"), "{answer}");
    }
}

/// Every type that documents can hold, and values that are easily lost.
pub fn hard_documents() -> Vec<Vec<u8>> {
    let binary = |subtype: BinarySubtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let documents = [
        doc! { "_id": 1, "double": -0.0, "nan": f64::NAN, "inf": f64::INFINITY, "string": "ü\0x", "empty": "" },
        doc! { "_id": 2i64, "": "empty key", "a.b": 1, "$c": 2, "nested": { "$d": 1, "e.f": { "": [] } } },
        doc! { "_id": "string", "undefined": Bson::Undefined, "symbol": Bson::Symbol("s".into()), "null": null },
        doc! { "_id": { "z": 1, "a": 2.5 }, "code": Bson::JavaScriptCode("f()".into()),
        "scope": bson::JavaScriptCodeWithScope { code: "g".into(), scope: doc! { "x": 1i64 } } },
        doc! { "_id": bson::DateTime::from_millis(-1), "min": Bson::MinKey, "max": Bson::MaxKey,
        "dates": [bson::DateTime::MIN, bson::DateTime::MAX] },
        doc! { "_id": 2.5, "decimal": "NaN".parse::<Decimal128>().unwrap(), "d2": "-Infinity".parse::<Decimal128>().unwrap(),
        "d3": "-0E+3".parse::<Decimal128>().unwrap() },
        doc! { "_id": binary(BinarySubtype::Generic, b"\x00\x01"), "old": binary(BinarySubtype::BinaryOld, b"xy"),
        "uuid3": binary(BinarySubtype::UuidOld, &[1; 16]), "uuid4": binary(BinarySubtype::Uuid, &[2; 16]),
        "sub6": binary(BinarySubtype::Encrypted, b"\x01"), "sub9": binary(BinarySubtype::Vector, b"\x03\x00\x01") },
        doc! { "_id": Bson::Null, "ts": bson::Timestamp { time: 5, increment: 6 }, "t": true },
        doc! { "_id": true, "deep": { "zero": bson::Timestamp { time: 0, increment: 0 } } },
        doc! { "_id": Bson::MinKey, "long": i64::MIN, "int": i32::MAX },
        doc! { "_id": "0.1".parse::<Decimal128>().unwrap() },
        doc! { "_id": Bson::Symbol("id".into()) },
        doc! { "_id": "" },
        doc! { "_id": bson::Timestamp { time: 1, increment: 1 } },
    ];
    let mut all: Vec<Vec<u8>> = documents.iter().map(|d| d.to_vec().unwrap()).collect();
    // The same key twice, array keys out of order, and a DBPointer.
    all.push(document(&[b"\x10_id\0\x09\0\0\0", b"\x10a\0\x01\0\0\0", b"\x02a\0\x02\0\0\0x\0"]));
    let array = document(&[b"\x105\0\x01\0\0\0", b"\x10x\0\x02\0\0\0"]);
    all.push(document(&[b"\x10_id\0\x0a\0\0\0", b"\x04array\0", &array]));
    all.push(document(&[
        b"\x10_id\0\x0b\0\0\0",
        b"\x0cpointer\0\x02\0\0\0c\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c",
    ]));
    all
}

/// A document from the bytes of its elements.
pub fn document(elements: &[&[u8]]) -> Vec<u8> {
    let length: usize = elements.iter().map(|e| e.len()).sum::<usize>() + 5;
    let mut bytes = (length as u32).to_le_bytes().to_vec();
    elements.iter().for_each(|e| bytes.extend_from_slice(e));
    bytes.push(0);
    bytes
}
