//! JSON documents of other engines as BSON.
//!
//! Extended JSON means what it says (`{"$oid": …}`); numbers become int32, int64 or double, whole
//! numbers beyond these decimal128. Keys keep their order, also those that come twice.

use bson::{Bson, Decimal128, RawBsonRef, RawDocumentBuf};
use model::{Batch, BatchBuilder, Encoding, Error, Kind, Result};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Documents within documents, which a server stores; it refuses more.
const DEPTH: usize = 100;
/// The digits that a decimal128 keeps.
const DECIMAL_DIGITS: usize = 34;

/// The same documents in BSON. One without an `_id` gets its key as `_id`.
pub(crate) fn to_bson(batch: &Batch, shown: &str) -> Result<Batch> {
    let mut built = BatchBuilder::new(batch.collection.clone(), Kind::Document, Encoding::Bson);
    for i in 0..batch.len() {
        let name = || String::from_utf8_lossy(batch.key_of(i)).into_owned();
        let document = document(batch.body_of(i), batch.key_of(i)).map_err(|why| {
            Error::unsupported(format!("{shown}: the document {:.100} cannot be written to MongoDB: {why}", name()))
                .hint("restore into the engine or format that it came from")
        })?;
        built.push(batch.key_of(i), document.as_bytes());
    }
    Ok(built.take())
}

type Converted<T> = Result<T, String>;

fn document(text: &[u8], key: &[u8]) -> Converted<RawDocumentBuf> {
    let fields = fields(serde_json::from_slice(text).map_err(|e| format!("it is no JSON ({e})"))?)?;
    let mut document = RawDocumentBuf::new();
    match fields.iter().position(|(name, _)| name == "_id") {
        Some(i) => append(&mut document, "_id", fields[i].1, 0)?,
        None => {
            let key = std::str::from_utf8(key).map_err(|_| "its key is no text")?;
            document.append(bson::cstr!("_id"), RawBsonRef::String(key));
        }
    }
    // Only the first `_id` is one.
    let mut is_first = true;
    for (name, value) in &fields {
        if name == "_id" && std::mem::take(&mut is_first) {
            continue;
        }
        append(&mut document, name, value, 0)?;
    }
    Ok(document)
}

fn append(document: &mut RawDocumentBuf, name: &str, value: &RawValue, depth: usize) -> Converted<()> {
    let name: &bson::raw::CStr = name.try_into().map_err(|_| format!("the name {name:?} holds a zero byte"))?;
    document.append(name, convert(value, depth)?);
    Ok(())
}

fn convert(value: &RawValue, depth: usize) -> Converted<bson::RawBson> {
    let text = value.get();
    let wrong = |e: serde_json::Error| format!("it is no JSON ({e})");
    if depth > DEPTH {
        return Err(format!("it is nested more than {DEPTH} deep"));
    }
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let fields = fields(value)?;
            if fields.first().is_some_and(|(name, _)| name.starts_with('$'))
                && let Some(extended) = extended(text)
            {
                return extended;
            }
            let mut document = RawDocumentBuf::new();
            for (name, value) in fields {
                append(&mut document, &name, value, depth + 1)?;
            }
            document.into()
        }
        Some(b'[') => {
            let mut array = bson::RawArrayBuf::new();
            for value in elements(value)? {
                array.push(convert(value, depth + 1)?);
            }
            array.into()
        }
        Some(b'"') => bson::RawBson::String(serde_json::from_str(text).map_err(wrong)?),
        Some(b't') => true.into(),
        Some(b'f') => false.into(),
        Some(b'n') => bson::RawBson::Null,
        _ => number(text)?,
    })
}

/// A value that Extended JSON has another way of writing for; none for an object that only looks so.
fn extended(text: &str) -> Option<Converted<bson::RawBson>> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    match Bson::try_from(value) {
        Ok(Bson::Document(_)) | Err(_) => None,
        Ok(value) => Some(value.try_into().map_err(|e| format!("{text:.100}: {e}"))),
    }
}

fn number(text: &str) -> Converted<bson::RawBson> {
    if text.contains(['.', 'e', 'E']) || text == "-0" {
        let number: f64 = text.parse().map_err(|_| format!("{text:.100} is no number"))?;
        return match number.is_finite() {
            true => Ok(number.into()),
            false => Err(format!("no type of number holds {text:.100}")),
        };
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(i32::try_from(number).map_or(number.into(), Into::into));
    }
    let digits = text.trim_start_matches('-').trim_end_matches('0').len();
    match text.parse::<Decimal128>() {
        Ok(number) if digits <= DECIMAL_DIGITS && text.len() <= DECIMAL_DIGITS => Ok(number.into()),
        _ => Err(format!("no type of number holds {text:.100}")),
    }
}

fn fields(value: &RawValue) -> Converted<Vec<(String, &RawValue)>> {
    struct Fields;
    impl<'de> Visitor<'de> for Fields {
        type Value = Vec<(String, &'de RawValue)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(entry) = map.next_entry()? {
                all.push(entry);
            }
            Ok(all)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(value.get());
    reader.deserialize_map(Fields).map_err(|e| format!("it is no object in JSON ({e})"))
}

fn elements(value: &RawValue) -> Converted<Vec<&RawValue>> {
    struct Elements;
    impl<'de> Visitor<'de> for Elements {
        type Value = Vec<&'de RawValue>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(element) = seq.next_element()? {
                all.push(element);
            }
            Ok(all)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(value.get());
    reader.deserialize_seq(Elements).map_err(|e| format!("it is no JSON ({e})"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::{Document, doc};

    fn read(text: &str) -> Document {
        Document::try_from(document(text.as_bytes(), b"key").unwrap()).unwrap()
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
