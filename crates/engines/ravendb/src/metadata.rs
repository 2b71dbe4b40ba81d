//! What a document's `@metadata` says, as far as Rewound must know it.

use crate::dump::parse;
use crate::keys::{joined, lower};
use model::{Error, Result};
use serde::Deserialize;
use std::borrow::Cow;

/// The collection of documents that name none.
pub(crate) const EMPTY: &str = "@empty";

/// Members of `@metadata`.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata<'a> {
    #[serde(borrow, rename = "@id")]
    pub id: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "@collection")]
    collection: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow, rename = "@change-vector")]
    pub change_vector: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "@attachments", default)]
    attachments: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow, rename = "@counters")]
    pub counters: Option<&'a serde_json::value::RawValue>,
}

/// An attachment as the metadata of its document names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Attached {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "Hash")]
    pub hash: String,
    #[serde(rename = "ContentType", default)]
    pub content_type: String,
    #[serde(rename = "Size", default)]
    pub size: u64,
}

impl Attached {
    /// The key that the server gives it, of a document or of one of its revisions.
    pub fn key(&self, id: &str, revision: Option<&str>) -> String {
        let (name, kind) = (lower(&self.name), lower(&self.content_type));
        match revision {
            None => joined(&[id, "d", &name, &self.hash, &kind]),
            Some(revision) => joined(&[id, "r", revision, &name, &self.hash, &kind]),
        }
    }
}

impl<'a> Metadata<'a> {
    /// The metadata of a body that has some.
    pub fn of(body: &'a [u8], at: Option<usize>) -> Result<Metadata<'a>> {
        let at = at.ok_or_else(|| Error::corrupt("a document of the dump has no @metadata"))?;
        parse(&body[at..], "the metadata of a document")
    }

    /// Its id.
    pub fn id(&self) -> Result<&str> {
        self.id.as_deref().ok_or_else(|| Error::corrupt("a document of the dump has no id"))
    }

    /// Its collection.
    pub fn collection(&self) -> Cow<'a, str> {
        let named = self.collection.and_then(|raw| serde_json::from_str::<Cow<'a, str>>(raw.get()).ok());
        named.filter(|name| !name.is_empty()).unwrap_or(Cow::Borrowed(EMPTY))
    }

    /// Its attachments. In what a revision has, the server may have left out what it deleted.
    pub fn attachments(&self) -> Result<Vec<Attached>> {
        match self.attachments {
            Some(raw) if raw.get().starts_with('[') => parse(raw.get().as_bytes(), "the attachments of a document"),
            _ => Ok(Vec::new()),
        }
    }
}

/// The collection that a conflict says it is in, with its document.
pub(crate) fn conflict_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Conflict {
        #[serde(rename = "Collection")]
        collection: Option<String>,
    }
    serde_json::from_slice::<Conflict>(body).ok()?.collection
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_needed_is_found() {
        let body = br#"{"@metadata":{"@id":"Users\/1","@collection":"U\u00e4","x":{"@id":2},"@attachments":[{"Name":"a","Hash":"h","Size":3}]}}"#;
        let metadata = Metadata::of(body, Some(13)).unwrap();
        assert_eq!((metadata.id().unwrap(), &metadata.collection()[..]), ("Users/1", "Uä"));
        assert_eq!(metadata.attachments().unwrap()[0].size, 3);
        for none in
            [&br#"{"@id":"a"}"#[..], br#"{"@collection":null}"#, br#"{"@collection":""}"#, br#"{"@collection":7}"#]
        {
            assert_eq!(Metadata::of(none, Some(0)).unwrap().collection(), EMPTY);
        }
    }
}
