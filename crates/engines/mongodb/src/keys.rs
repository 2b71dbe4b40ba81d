//! Keys of documents as people write and read them.

use crate::extjson::{self, Style};
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
        Ok(Value::Object(_) | Value::Array(_)) => found.extend(extended(text)),
        Ok(Value::String(inner)) => found.push(Bson::String(inner)),
        Ok(Value::Bool(yes)) => found.extend([Bson::Boolean(yes), Bson::String(text.to_owned())]),
        Ok(Value::Null) => found.extend([Bson::Null, Bson::String(text.to_owned())]),
        Err(_) => found.push(Bson::String(text.to_owned())),
    }
    found
}

/// The value that Extended JSON means.
fn extended(text: &str) -> Option<Bson> {
    let mut bytes = Vec::new();
    extjson::read(format!("{{\"_id\":{text}}}").as_bytes(), extjson::DEEPEST, &mut bytes).ok()?;
    Document::from_reader(&bytes[..]).ok()?.remove("_id")
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

/// A key as text, different for different keys: an ObjectId as its digits, a text as it is where it
/// can mean nothing else, anything else as Extended JSON, numbers plain where that tells their type.
pub fn text(key: &[u8]) -> String {
    let mut json = Vec::new();
    match key.split_at_checked(5) {
        Some((element, id)) if &element[1..] == b"_id\0" => {
            match (element[0], string(id)) {
                (0x07, _) if id.len() == 12 => return id.iter().map(|b| format!("{b:02x}")).collect(),
                (0x02, Some(text)) if candidates(text) == [Bson::String(text.to_owned())] => return text.to_owned(),
                _ => {}
            }
            extjson::write_value(element[0], id, Style::Short, &mut json);
        }
        // A document without an `_id` is its own key. No `_id` has a text that begins like this.
        _ => {
            json.push(b' ');
            extjson::write(key, Style::Canonical, &mut json);
        }
    }
    String::from_utf8_lossy(&json).into_owned()
}

/// Whether a key's text says that the document has no `_id` and is its own key.
pub fn is_whole(text: &[u8]) -> bool {
    text.starts_with(b" {")
}

/// Puts a text as `_id` at the beginning of a document; says why not if it cannot be one.
pub fn add_id(document: &mut Vec<u8>, text: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(text).map_err(|_| "its key is no text")?;
    let length = (text.len() as u32 + 1).to_le_bytes();
    let id = [b"\x02_id\0", &length[..], text.as_bytes(), b"\0"].concat();
    document.splice(4..4, id);
    let length = document.len() as u32;
    document[..4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// The text of a string in BSON, if its framing is right.
fn string(value: &[u8]) -> Option<&str> {
    let length = value.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize)?;
    let text = value.get(4..value.len().checked_sub(1)?)?;
    if length != text.len() + 1 || value.last() != Some(&0) {
        return None;
    }
    std::str::from_utf8(text).ok()
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
    fn different_keys_have_different_texts() {
        let oid = ObjectId::parse_str("0123456789abcdef01234567").unwrap();
        let ids = [
            Bson::Int32(1),
            Bson::Int64(1),
            Bson::Double(1.0),
            Bson::String("1".into()),
            Bson::String("1.0".into()),
            Bson::String("\"1\"".into()),
            Bson::String("{\"$numberLong\":\"1\"}".into()),
            Bson::Boolean(true),
            Bson::String("true".into()),
            Bson::ObjectId(oid),
            Bson::String(oid.to_hex()),
            Bson::String(oid.to_hex().to_uppercase()),
            Bson::Symbol("1".into()),
            Bson::Document(doc! { "a": 1 }),
            Bson::Document(doc! { "a": 1i64 }),
            Bson::String("{\"a\":1}".into()),
            Bson::String(" {\"a\":1}".into()),
            Bson::Double(f64::NAN),
        ];
        let mut texts: Vec<String> = ids.iter().map(|id| text(&key(id).unwrap())).collect();
        texts.push(text(&RawDocumentBuf::try_from(&doc! { "a": 1 }).unwrap().into_bytes()));
        assert_eq!(texts[..4], ["1", "{\"$numberLong\":\"1\"}", "1.0", "\"1\""]);
        let all = texts.len();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), all, "{texts:?}");
        // No key of any engine makes this panic.
        for odd in [&b""[..], b"\x02_id\0", b"\x02_id\0\xff\xff\xff\xff", b"\x20_id\0abc", b"\x05\0\0\0\0"] {
            assert!(!text(odd).is_empty());
        }
    }

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
