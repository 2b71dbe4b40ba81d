//! Keys of documents as people write and read them.

use crate::raw;
use bson::oid::ObjectId;
use bson::{Bson, Document, RawDocumentBuf, doc};
use serde_json::Value;

/// What a text may mean as an `_id`: Extended JSON (`{"$oid":"…"}`, `{"a":1}`, `"text"`, `7`) means
/// exactly that, 24 hexadecimal digits also an ObjectId, a whole number each kind of number, and
/// every text that is no JSON the text itself.
pub fn candidates(text: &str) -> Vec<Bson> {
    let mut found = Vec::new();
    if let Ok(id) = ObjectId::parse_str(text) {
        found.push(Bson::ObjectId(id));
    }
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Number(number)) => {
            if let Some(n) = number.as_i64() {
                found.extend(i32::try_from(n).ok().map(Bson::Int32));
                found.push(Bson::Int64(n));
            }
            found.extend(number.as_f64().map(Bson::Double));
            found.push(Bson::String(text.to_owned()));
        }
        Ok(value @ (Value::Object(_) | Value::Array(_))) => found.extend(Bson::try_from(value).ok()),
        Ok(Value::String(inner)) => found.push(Bson::String(inner)),
        Ok(Value::Bool(yes)) => found.extend([Bson::Boolean(yes), Bson::String(text.to_owned())]),
        Ok(Value::Null) => found.extend([Bson::Null, Bson::String(text.to_owned())]),
        Err(_) => found.push(Bson::String(text.to_owned())),
    }
    found
}

/// The keys, as batches have them, that a text may mean; none that cannot be one.
pub fn keys(text: &str) -> Vec<Vec<u8>> {
    candidates(text).into_iter().filter_map(|id| key(&id)).collect()
}

/// The key that batches have for a document with this `_id`.
pub fn key(id: &Bson) -> Option<Vec<u8>> {
    let document = RawDocumentBuf::try_from(&doc! { "_id": id.clone() }).ok()?;
    let bytes = document.as_bytes();
    let element = raw::id_element(bytes)?;
    Some(bytes[element.start..element.end].to_vec())
}

/// A key for people: text as it is where it can mean nothing else, anything else as Extended JSON.
pub fn text(key: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(key.len() + 5);
    bytes.extend_from_slice(&(key.len() as u32 + 5).to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.push(0);
    let id = Document::from_reader(&bytes[..]).ok().and_then(|mut d| d.remove("_id"));
    match id {
        Some(Bson::ObjectId(id)) => id.to_hex(),
        Some(Bson::String(text)) if candidates(&text) == [Bson::String(text.clone())] => text,
        Some(id) => id.into_relaxed_extjson().to_string(),
        None => String::from_utf8_lossy(key).into_owned(),
    }
}

/// A document for people, as relaxed Extended JSON; none if it is no BSON.
pub fn json(document: &[u8]) -> Option<Value> {
    Some(Bson::Document(Document::from_reader(document).ok()?).into_relaxed_extjson())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_shown_finds_the_same_document() {
        let oid = ObjectId::parse_str("0123456789abcdef01234567").unwrap();
        for id in [
            Bson::ObjectId(oid),
            Bson::String("plain".into()),
            Bson::String("0123456789abcdef01234567".into()),
            Bson::String("12".into()),
            Bson::String("{\"a\":1}".into()),
            Bson::String(String::new()),
            Bson::Int32(12),
            Bson::Int64(1 << 40),
            Bson::Double(0.5),
            Bson::Null,
            Bson::Boolean(true),
            Bson::Document(doc! { "z": 1, "a": "x" }),
            Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] }),
        ] {
            let bytes = key(&id).unwrap();
            assert!(keys(&text(&bytes)).contains(&bytes), "{id:?} as {}", text(&bytes));
        }
    }
}
