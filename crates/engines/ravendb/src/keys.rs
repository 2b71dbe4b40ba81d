//! Keys of what a database holds, in the form that RavenDB itself keys them by: ids ignore case, and
//! the server tells of deletions with ids in lower case.

use crate::dump::parse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::{Kind, Result};
use serde::Deserialize;
use std::borrow::Cow;

/// What RavenDB puts between the parts of a key.
pub const SEPARATOR: char = '\u{1e}';

/// An id in lower case, as the server makes it: each UTF-16 unit for itself.
pub fn lower(id: &str) -> String {
    let mut out = String::with_capacity(id.len());
    for c in id.chars() {
        let mut all = c.to_lowercase();
        match (all.next(), all.next()) {
            (Some(one), None) if (c as u32) < 0x1_0000 => out.push(one),
            _ => out.push(c),
        }
    }
    out
}

/// The keys that a text which people write may mean.
pub fn keys(text: &str) -> Vec<Vec<u8>> {
    let lower = lower(text).into_bytes();
    match lower == text.as_bytes() {
        true => vec![lower],
        // Change vectors and names of indexes keep their case.
        false => vec![lower, text.as_bytes().to_vec()],
    }
}

/// A key for people.
pub fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).replace(SEPARATOR, "|")
}

/// A key of several parts.
pub fn joined(parts: &[&str]) -> String {
    let mut key = String::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            key.push(SEPARATOR);
        }
        key.push_str(part);
    }
    key
}

/// The members that the keys of items other than documents are made of.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, rename = "Name")]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "Key")]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "DocId")]
    document: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "SubscriptionName")]
    subscription: Option<Cow<'a, str>>,
    #[serde(rename = "SubscriptionId")]
    subscription_id: Option<u64>,
    #[serde(borrow, rename = "Baseline")]
    baseline: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "From")]
    from: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "To")]
    to: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "@raven-data")]
    data: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow, rename = "IndexDefinition")]
    index: Option<Named<'a>>,
    #[serde(borrow, rename = "Values")]
    values: Option<Values<'a>>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow, rename = "Name")]
    name: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Values<'a> {
    #[serde(borrow, rename = "@vals")]
    values: Option<&'a serde_json::value::RawValue>,
}

/// The key of an item that is neither document, revision, nor tombstone.
pub(crate) fn of_item(body: &[u8]) -> Result<String> {
    let m: Members = parse(body, "an item")?;
    if let Some(data) = m.data {
        return of_item(data.get().as_bytes());
    }
    if let Some(document) = &m.document {
        let document = lower(document);
        if let Some(baseline) = &m.baseline {
            return Ok(joined(&[&document, &lower(m.name.as_deref().unwrap_or_default()), baseline]));
        }
        if let (Some(from), Some(to)) = (&m.from, &m.to) {
            return Ok(joined(&[&document, &lower(m.name.as_deref().unwrap_or_default()), from, to]));
        }
        // The counters of a document lie in groups, each of which begins with a counter of its own.
        let first = m.values.and_then(|v| v.values).and_then(|v| first_member(v.get()));
        let name = first.or_else(|| m.name.as_deref().map(lower)).unwrap_or_default();
        return Ok(joined(&[&document, &name]));
    }
    let name = m.index.and_then(|i| i.name).or(m.subscription).or(m.key).or(m.name);
    match (name, m.subscription_id) {
        (Some(name), _) => Ok(name.into_owned()),
        (None, Some(id)) => Ok(id.to_string()),
        (None, None) => Ok(STANDARD.encode(&blake3::hash(body).as_bytes()[..16])),
    }
}

/// The name of the first member of an object.
fn first_member(object: &str) -> Option<String> {
    let name = object.trim_start().strip_prefix('{')?.trim_start();
    String::deserialize(&mut serde_json::Deserializer::from_str(name)).ok()
}

/// The section of the dump that a kind comes from.
pub(crate) fn section_of(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Document => Some("Docs"),
        Kind::Revision => Some("RevisionDocuments"),
        Kind::Counter => Some("CounterGroups"),
        Kind::TimeSeries => Some("TimeSeries"),
        Kind::Meta(section) => Some(section),
        _ => None,
    }
}

/// What the items of a section are.
pub(crate) fn kind_of(section: &str) -> Kind {
    match section {
        "Docs" => Kind::Document,
        "RevisionDocuments" => Kind::Revision,
        "CounterGroups" => Kind::Counter,
        "TimeSeries" => Kind::TimeSeries,
        "Tombstones" => Kind::Tombstone,
        other => Kind::Meta(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lower_case_is_the_servers() {
        // As tombstones of a real server had them.
        for (id, key) in [("Users/1-A", "users/1-a"), ("ÄÖ\u{130}Σ", "äö\u{130}σ"), ("\u{10400}", "\u{10400}")] {
            assert_eq!(lower(id), key);
        }
    }

    #[test]
    fn items_have_lasting_keys() {
        for (body, key) in [
            (
                r#"{"DocId":"Users/1","ChangeVector":"A","Values":{"@dbIds":[],"@vals":{"likes":[3,18]}}}"#,
                "users/1|likes",
            ),
            (r#"{"@raven-data":{"DocId":"u","Name":"Heart","Baseline":"2024"},"@raven-blob-size":9}"#, "u|heart|2024"),
            (r#"{"DocId":"u","Name":"Likes","Value":3}"#, "u|likes"),
            (r#"{"DocId":"u","Name":"H","From":"a","To":"b"}"#, "u|h|a|b"),
            (r#"{"Type":"Map","IndexDefinition":{"Name":"I/1"}}"#, "I/1"),
            (r#"{"Key":"users|","Value":"1"}"#, "users|"),
            (r#"{"Query":"from X","SubscriptionId":8,"SubscriptionName":"S1"}"#, "S1"),
        ] {
            assert_eq!(text(of_item(body.as_bytes()).unwrap().as_bytes()), key);
        }
        assert_eq!(of_item(b"{\"a\":1}").unwrap(), of_item(b"{\"a\":1}").unwrap());
    }
}
