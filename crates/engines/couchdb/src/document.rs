//! A document: all its leaf revisions as one body.
//!
//! One leaf is its own text. Several are a JSON array, the winner first. As a document is always an
//! object, the two cannot be confused.

use crate::leaf::{Attached, Leaf};
use model::{Error, Result, limits};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The body of a document with these leaves, which it ranks; at least one. That of a single leaf is its text.
pub(crate) fn body<'a>(leaves: &mut [Leaf<'a>]) -> Result<Cow<'a, [u8]>> {
    leaves.sort_by(Leaf::rank);
    let size: usize = leaves.iter().map(|l| l.text.len() + 1).sum();
    if size + 1 > limits::DOCUMENT_MAX {
        return Err(too_large(leaves.first().map_or("", |l| &l.id), size));
    }
    if let [only] = leaves {
        return Ok(match only.text.clone() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        });
    }
    let mut out = Vec::with_capacity(size + 1);
    for (i, leaf) in leaves.iter().enumerate() {
        out.push(if i == 0 { b'[' } else { b',' });
        out.extend_from_slice(leaf.text.as_bytes());
    }
    out.push(b']');
    Ok(Cow::Owned(out))
}

/// A document that no batch can hold.
pub(crate) fn too_large(id: &str, size: usize) -> Error {
    let max = limits::DOCUMENT_MAX;
    Error::input(format!("document {id} has {size} bytes with all its conflicts, more than {max}"))
        .hint("resolve its conflicts, or leave it out with --skip-bad")
}

/// The leaves of a body.
pub(crate) fn leaves(body: &[u8]) -> Result<Vec<Leaf<'_>>> {
    let bad = |e| Error::corrupt("the body of a document is no JSON").caused_by(e);
    let texts: Vec<&RawValue> = match body.first() {
        Some(b'[') => serde_json::from_slice(body).map_err(bad)?,
        _ => vec![serde_json::from_slice(body).map_err(bad)?],
    };
    texts.into_iter().map(|text| Leaf::parse(text.get(), false)).collect()
}

/// Whether a document's body says that it is deleted: the revision that wins is.
pub fn is_deletion(body: &[u8]) -> bool {
    let winner = || leaves(body).ok()?.into_iter().min_by(Leaf::rank);
    !body.is_empty() && winner().is_some_and(|leaf| leaf.deleted)
}

/// What an attachment entry says: the document that it belongs to, which contents follow one another,
/// and the document's body again, so that the entry can be written by itself.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct About {
    /// The document.
    pub document: String,
    /// What the content is made of, in order.
    pub contents: Vec<Content>,
    /// The document's body.
    pub body: Box<RawValue>,
}

/// A piece of the content of an attachment entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) struct Content {
    /// As the server has it, of the stored bytes.
    pub digest: String,
    /// Stored bytes.
    pub bytes: u64,
    /// How they are encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
}

impl Content {
    /// What a store knows it by, beside the document: its digest, and the revision that it came with. The same
    /// digest that came with another one is fetched again, as somebody may have made two contents that share it.
    pub fn name(&self, leaves: &[Leaf<'_>]) -> String {
        let has_it = |a: &&Attached<'_>| a.digest == self.digest && a.stored == self.bytes;
        let revpos = leaves.iter().flat_map(|leaf| &leaf.attachments).filter(has_it).map(|a| a.revpos).min();
        let revpos = revpos.unwrap_or_default();
        let encoding = self.encoding.as_deref().unwrap_or("identity");
        format!("{} {} {encoding} {revpos}", self.digest, self.bytes)
    }

    /// Whether its digest tells it apart from others.
    pub fn is_told_apart(&self) -> bool {
        self.digest.starts_with("md5-")
    }
}

/// The contents of all attachments of a document, each once, in order.
pub(crate) fn contents(leaves: &[Leaf<'_>]) -> Vec<Content> {
    let all = leaves.iter().flat_map(|leaf| &leaf.attachments);
    let mut all: Vec<Content> = all
        .map(|a| Content {
            digest: a.digest.to_string(),
            bytes: a.stored,
            encoding: a.encoding.as_ref().map(|e| e.to_string()),
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bodies_become_leaves_again() {
        let texts = [
            r#"{"_id":"a","_rev":"2-a","v":[1],"_revisions":{"start":2,"ids":["a","x"]}}"#,
            r#"{"_id":"a","_rev":"2-b","v":"[","_revisions":{"start":2,"ids":["b","x"]}}"#,
        ];
        let mut all: Vec<_> = texts.iter().map(|t| Leaf::parse(t, false).unwrap()).collect();
        let out = body(&mut all).unwrap();
        assert_eq!(out, format!("[{},{}]", texts[1], texts[0]).as_bytes());
        let again: Vec<_> = leaves(&out).unwrap().iter().map(|l| l.text.to_string()).collect();
        assert_eq!(again, [texts[1], texts[0]]);
        assert_eq!(leaves(texts[0].as_bytes()).unwrap()[0].text, texts[0]);
    }
}
