//! JSON documents of other engines as BSON.
//!
//! What a text means is what [`extjson`](crate::extjson) says; a document of MongoDB has an `_id`,
//! as its first member.

use crate::{extjson, keys, raw};
use model::{Batch, BatchBuilder, Encoding, Error, Kind, Result};

/// Documents within documents, which a server stores; it refuses more.
const DEPTH: usize = 100;

/// The same documents in BSON. One without an `_id` gets its key as `_id`.
pub(crate) fn to_bson(batch: &Batch, shown: &str) -> Result<Batch> {
    let mut built = BatchBuilder::new(batch.collection.clone(), Kind::Document, Encoding::Bson);
    let mut document = Vec::new();
    for i in 0..batch.len() {
        document.clear();
        to_document(batch.body_of(i), batch.key_of(i), &mut document).map_err(|why| {
            let name = String::from_utf8_lossy(batch.key_of(i));
            Error::unsupported(format!("{shown}: the document {name:.100} cannot be written to MongoDB: {why}"))
                .hint("restore into the engine or format that it came from")
        })?;
        built.push(batch.key_of(i), &document);
    }
    Ok(built.take())
}

fn to_document(text: &[u8], key: &[u8], document: &mut Vec<u8>) -> Result<(), String> {
    extjson::read(text, DEPTH, document)?;
    match raw::id_element(document) {
        Some(id) if id.start == 4 => {}
        // Only the first `_id` is one.
        Some(id) => document[4..id.end].rotate_right(id.end - id.start),
        None => keys::add_id(document, key)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::{Bson, Decimal128, Document, RawDocument, doc};

    fn document(text: &[u8], key: &[u8]) -> Result<Vec<u8>, String> {
        let mut document = Vec::new();
        to_document(text, key, &mut document).map(|()| document)
    }

    fn read(text: &str) -> Document {
        Document::from_reader(&document(text.as_bytes(), b"key").unwrap()[..]).unwrap()
    }

    #[test]
    fn values() {
        let text = r#"{"a":1,"b":-0,"c":1.10,"d":3000000000,"e":12345678901234567890,"f":[true,null,"ü\u0000"],
            "g":{"$date":"2020-01-01T00:00:00Z"},"h":{"$set":1},"i":{"$oid":"no"},"_id":{"$oid":"0123456789abcdef01234567"}}"#;
        let expected = doc! {
            "_id": bson::oid::ObjectId::parse_str("0123456789abcdef01234567").unwrap(),
            "a": 1, "b": -0.0, "c": 1.1, "d": 3_000_000_000i64, "e": "12345678901234567890".parse::<Decimal128>().unwrap(),
            "f": [true, Bson::Null, "ü\0"], "g": bson::DateTime::parse_rfc3339_str("2020-01-01T00:00:00Z").unwrap(),
            "h": { "$set": 1 }, "i": { "$oid": "no" },
        };
        assert_eq!(read(text), expected);
        assert_eq!(read("{}"), doc! { "_id": "key" });
    }

    #[test]
    fn keys_that_come_twice_both_stay() {
        let raw = document(br#"{"b":1,"a":2,"b":3}"#, b"k").unwrap();
        let raw = RawDocument::from_bytes(&raw).unwrap();
        let names: Vec<String> = raw.iter().map(|e| e.unwrap().0.to_string()).collect();
        assert_eq!(names, ["_id", "b", "a", "b"]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(120), "]".repeat(120));
        let long = format!("{{\"a\":{}}}", "1234567890".repeat(5));
        for text in ["[]", "{", r#"{"a\u0000":1}"#, r#"{"a":1e999}"#, &deep, &long] {
            assert!(document(text.as_bytes(), b"k").is_err(), "{text}");
        }
        assert!(document(b"{}", b"\xff").is_err());
    }
}
