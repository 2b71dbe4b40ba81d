//! BSON as bytes: framing and `_id`, without decoding anything else (bsonspec.org, version 1.1).
//!
//! Documents are not trusted: whatever the bytes, nothing here panics.

use model::{Doc, Error, Result};

/// The largest document a server stores, in bytes (16 MiB), and what it adds for its own use.
pub const DOCUMENT_MAX: usize = (16 << 20) + (16 << 10);

/// The length of the document at the start of `bytes`: its own length field, if it lies inside and
/// ends with the byte 0.
pub fn document_len(bytes: &[u8]) -> Option<usize> {
    let length = i32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    let length = usize::try_from(length).ok().filter(|n| *n >= 5 && *n <= bytes.len())?;
    (bytes[length - 1] == 0).then_some(length)
}

/// One element of a document: positions in the document's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// Its type byte.
    pub kind: u8,
    /// Where the type byte stands.
    pub start: usize,
    /// Where the name begins.
    pub name: usize,
    /// Where the value begins; the 0 that ends the name is one before.
    pub value: usize,
    /// One past the value.
    pub end: usize,
}

/// The element that begins at `at`; none at the end of the document or where it is malformed.
pub fn element(document: &[u8], at: usize) -> Option<Element> {
    let kind = *document.get(at)?;
    if kind == 0 {
        return None;
    }
    let name = at + 1;
    let value = name + document.get(name..)?.iter().position(|b| *b == 0)? + 1;
    let end = value.checked_add(value_len(kind, document.get(value..)?)?)?;
    // The document's own last byte is never part of a value.
    (end < document.len()).then_some(Element { kind, start: at, name, value, end })
}

/// The length of a value of this type at the start of `bytes`.
pub fn value_len(kind: u8, bytes: &[u8]) -> Option<usize> {
    let number = || i32::from_le_bytes(bytes.get(..4)?.try_into().ok()?).try_into().ok();
    let text = |from: usize| Some(from + bytes.get(from..)?.iter().position(|b| *b == 0)? + 1);
    let length: usize = match kind {
        // undefined, null, minKey, maxKey
        0x06 | 0x0A | 0xFF | 0x7F => 0,
        0x08 => 1,
        0x10 => 4,
        // double, date, timestamp, int64
        0x01 | 0x09 | 0x11 | 0x12 => 8,
        0x07 => 12,
        0x13 => 16,
        // string, code, symbol
        0x02 | 0x0D | 0x0E => 4usize.checked_add(number()?)?,
        // document, array, code with scope: the length counts itself
        0x03 | 0x04 | 0x0F => number().filter(|n: &usize| *n >= 4)?,
        0x05 => 5usize.checked_add(number()?)?,
        0x0B => text(text(0)?)?,
        0x0C => 16usize.checked_add(number()?)?,
        _ => return None,
    };
    (length <= bytes.len()).then_some(length)
}

/// The `_id` element of a document. It is the first one in everything that a server stored, so that
/// this looks no further as a rule.
pub fn id_element(document: &[u8]) -> Option<Element> {
    let mut at = 4;
    while let Some(element) = element(document, at) {
        if &document[element.name..element.value] == b"_id\0" {
            return Some(element);
        }
        at = element.end;
    }
    None
}

/// Where a document and its key stand, for a batch whose buffer it begins in at `start`. The key is
/// the whole `_id` element (type, name, value), so that 1 and "1" are different keys. A document
/// without `_id` is its own key.
pub fn doc(buffer: &[u8], start: usize) -> Option<Doc> {
    let length = document_len(buffer.get(start..)?)?;
    let end = start + length;
    let (from, to) = match id_element(&buffer[start..end]) {
        Some(id) => (start + id.start, start + id.end),
        None => (start, end),
    };
    Some(Doc {
        start: u32::try_from(start).ok()?,
        end: u32::try_from(end).ok()?,
        key_start: from as u32,
        key_len: (to - from) as u32,
    })
}

/// The documents of a BSON array that begins at `start` of `buffer`; an error if one is malformed
/// or no document.
pub fn array(buffer: &[u8], start: usize, docs: &mut Vec<Doc>) -> Result<()> {
    let broken = || Error::corrupt("the server's answer is no BSON");
    let length = buffer.get(start..).and_then(document_len).ok_or_else(broken)?;
    let end = start + length - 1;
    let mut at = start + 4;
    while at < end {
        let element = element(&buffer[..=end], at).filter(|e| e.kind == 0x03).ok_or_else(broken)?;
        docs.push(doc(buffer, element.value).ok_or_else(broken)?);
        at = element.end;
    }
    Ok(())
}

/// Documents that follow each other without anything between (a `.bson` file): adds those that are
/// whole, and gives where the first one begins that is not.
pub fn sequence(buffer: &[u8], docs: &mut Vec<Doc>) -> Result<usize, usize> {
    let mut at = 0;
    while at < buffer.len() {
        let rest = &buffer[at..];
        let Some(length) = rest.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_le_bytes) else {
            return Ok(at);
        };
        let Some(length) = usize::try_from(length).ok().filter(|n| (5..=DOCUMENT_MAX).contains(n)) else {
            return Err(at);
        };
        if length > rest.len() {
            return Ok(at);
        }
        docs.push(doc(buffer, at).ok_or(at)?);
        at += length;
    }
    Ok(at)
}

/// Where the structure of a document is not what a server would store: lengths that do not fit into
/// each other, a type that does not exist, a text without its end. None if it is sound. `nested` is
/// room to work in, for whoever checks many.
pub fn flaw(document: &[u8], nested: &mut Vec<usize>) -> Option<usize> {
    if document_len(document) != Some(document.len()) {
        return Some(0);
    }
    nested.clear();
    nested.push(document.len() - 1);
    let mut at = 4;
    // Documents within documents, without recursion: each ends at the byte that `nested` says.
    while let Some(end) = nested.last().copied() {
        let kind = document[at];
        if at == end {
            if kind != 0 {
                return Some(at);
            }
            nested.pop();
            at += 1;
            continue;
        }
        let inside = &document[..end];
        let Some(name) = inside[at + 1..].iter().position(|b| *b == 0).filter(|_| kind != 0) else { return Some(at) };
        let value = at + 1 + name + 1;
        let Some(length) = value_len(kind, &inside[value..]) else { return Some(at) };
        let number = |at: usize| inside.get(at..at + 4)?.try_into().ok().map(i32::from_le_bytes);
        // Where a text of this length would end, counted from its length field.
        let text_end = |at: usize| {
            let length = usize::try_from(number(at)?).ok().filter(|n| *n > 0)?;
            let end = at.checked_add(4)?.checked_add(length)?;
            (inside.get(end - 1) == Some(&0)).then_some(end)
        };
        let inner = match kind {
            0x03 | 0x04 => Some(value),
            0x0F => text_end(value + 4),
            _ => None,
        };
        let is_sound = match kind {
            0x02 | 0x0D | 0x0E | 0x0C => text_end(value).is_some(),
            0x08 => inside[value] <= 1,
            0x03 | 0x04 | 0x0F => inner.is_some_and(|inner| {
                let said = number(inner).and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= 5);
                said.and_then(|said| inner.checked_add(said)) == Some(value + length)
            }),
            _ => true,
        };
        match inner {
            _ if !is_sound => return Some(at),
            Some(inner) => {
                nested.push(value + length - 1);
                at = inner + 4;
            }
            None => at = value + length,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bson::{Bson, RawDocumentBuf, doc as d};
    use proptest::prelude::*;

    fn all_types() -> bson::Document {
        d! {
            "_id": 7i64, "double": -0.0, "string": "ü", "document": { "a": 1 }, "array": [1, "x", { "b": null }],
            "binary": bson::Binary { subtype: bson::spec::BinarySubtype::UuidOld, bytes: vec![1; 16] },
            "undefined": Bson::Undefined, "oid": bson::oid::ObjectId::from_bytes([3; 12]), "true": true,
            "date": bson::DateTime::MAX, "null": null,
            "regex": bson::Regex { pattern: "a.*".try_into().unwrap(), options: "i".try_into().unwrap() },
            "code": Bson::JavaScriptCode("f()".into()), "symbol": Bson::Symbol("s".into()),
            "scope": bson::JavaScriptCodeWithScope { code: "g()".into(), scope: d! { "x": 1 } },
            "int": 1, "ts": bson::Timestamp { time: 1, increment: 2 }, "min": Bson::MinKey, "max": Bson::MaxKey,
            "decimal": "1.5".parse::<bson::Decimal128>().unwrap(),
        }
    }

    #[test]
    fn every_type_is_walked() {
        let document = all_types();
        let bytes = RawDocumentBuf::try_from(&document).unwrap();
        let (mut at, mut names) = (4, Vec::new());
        while let Some(e) = element(bytes.as_bytes(), at) {
            names.push(String::from_utf8(bytes.as_bytes()[e.name..e.value - 1].to_vec()).unwrap());
            at = e.end;
        }
        assert_eq!(names, document.keys().cloned().collect::<Vec<_>>());
        assert_eq!(at, bytes.as_bytes().len() - 1);
        let id = id_element(bytes.as_bytes()).unwrap();
        assert_eq!(&bytes.as_bytes()[id.start..id.end], b"\x12_id\0\x07\0\0\0\0\0\0\0");
    }

    #[test]
    fn sequences_end_where_a_document_is_cut() {
        let one = RawDocumentBuf::try_from(&d! { "x": 1, "_id": "a" }).unwrap().into_bytes();
        let two = [&one[..], &one[..]].concat();
        let mut docs = Vec::new();
        assert_eq!(sequence(&two[..two.len() - 1], &mut docs), Ok(one.len()));
        assert_eq!(docs.len(), 1);
        assert_eq!(&two[docs[0].key_start as usize..][..docs[0].key_len as usize], b"\x02_id\0\x02\0\0\0a\0");
        assert_eq!(sequence(b"\x04\0\0\0\0", &mut docs), Err(0));
    }

    #[test]
    fn structure_is_checked() {
        let document = all_types();
        let bytes = RawDocumentBuf::try_from(&document).unwrap().into_bytes();
        let mut nested = Vec::new();
        assert_eq!(flaw(&bytes, &mut nested), None);
        assert_eq!(flaw(b"\x05\0\0\0\0", &mut nested), None);
        for cut in 0..bytes.len() {
            assert!(flaw(&bytes[..cut], &mut nested).is_some());
        }
        let (mut at, mut refused) = (4, 0);
        while let Some(e) = element(&bytes, at) {
            // A type that does not exist, in the place of each.
            let mut wrong = bytes.clone();
            wrong[at] = 0x20;
            assert_eq!(flaw(&wrong, &mut nested), Some(at));
            refused += 1;
            at = e.end;
        }
        assert_eq!(refused, document.len());
        for (wrong, at) in [
            (&b"\x09\0\0\0\x08a\0\x02\0"[..], 4),
            (b"\x0d\0\0\0\x02a\0\0\0\0\0\0\0", 4),
            (b"\x0d\0\0\0\x03a\0\x04\0\0\0\0\0", 4),
            (b"\x0d\0\0\0\x03a\0\x06\0\0\0\0\0", 4),
            (b"\x06\0\0\0\0\0", 4),
        ] {
            assert_eq!(flaw(wrong, &mut nested), Some(at), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..210) {
            let _ = element(&bytes, at);
            let _ = doc(&bytes, at);
            let _ = array(&bytes, at, &mut Vec::new());
            let _ = sequence(&bytes, &mut Vec::new());
            let _ = flaw(&bytes, &mut Vec::new());
        }

        #[test]
        fn damaged_documents_never_panic(at in 0usize..400, to: u8) {
            let mut bytes = RawDocumentBuf::try_from(&all_types()).unwrap().into_bytes();
            let at = at % bytes.len();
            bytes[at] = to;
            let mut from = 4;
            while let Some(e) = element(&bytes, from) { from = e.end; }
            let _ = sequence(&bytes, &mut Vec::new());
            // What has a sound structure can be walked to its end.
            if flaw(&bytes, &mut Vec::new()).is_none() {
                let mut from = 4;
                while let Some(e) = element(&bytes, from) { from = e.end; }
                assert_eq!(from, bytes.len() - 1);
            }
        }
    }
}
