//! Revisions made of others: what a document says apart from its history, and the same as a new revision.

use crate::document;
use crate::leaf::{Attached, Leaf};
use crate::members::{Members, quoted};
use model::{Batch, BatchBuilder, Error, Kind, Result};

/// The content of a revision on top of another one, as the server takes it for a new one.
pub(crate) fn successor<'a>(
    text: &str,
    parent: Option<&str>,
    attachments: impl Iterator<Item = (&'a str, String)>,
) -> Result<Vec<u8>> {
    let members: Members<'_> =
        serde_json::from_str(text).map_err(|e| Error::corrupt("a document is no JSON").caused_by(e))?;
    let mut out = Vec::with_capacity(text.len());
    let mut put = |name: &str, value: &[u8]| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        quoted(name, &mut out);
        out.push(b':');
        out.extend_from_slice(value);
    };
    if let Some(parent) = parent {
        put("_rev", serde_json::json!(parent).to_string().as_bytes());
    }
    let is_history = |name: &str| matches!(name, "_rev" | "_revisions" | "_attachments");
    for (name, value) in members.0.iter().filter(|(name, _)| !is_history(name)) {
        put(name, value.get().as_bytes());
    }
    let mut all = Vec::new();
    for (name, about) in attachments {
        all.push(if all.is_empty() { b'{' } else { b',' });
        quoted(name, &mut all);
        all.push(b':');
        all.extend_from_slice(about.as_bytes());
    }
    if !all.is_empty() {
        all.push(b'}');
        put("_attachments", &all);
    }
    out.push(b'}');
    Ok(out)
}

/// A revision without those before it.
pub(crate) fn without_history(text: &str) -> Result<String> {
    without(text, &["_revisions"])
}

/// A revision without those before it, and without what it says of its attachments.
pub(crate) fn plain(text: &str) -> Result<String> {
    without(text, &["_revisions", "_attachments"])
}

fn without(text: &str, left_out: &[&str]) -> Result<String> {
    let members: Members<'_> =
        serde_json::from_str(text).map_err(|e| Error::corrupt("a document is no JSON").caused_by(e))?;
    let mut out = Vec::with_capacity(text.len());
    for (name, value) in members.0.iter().filter(|(name, _)| !left_out.contains(&&**name)) {
        out.push(if out.is_empty() { b'{' } else { b',' });
        quoted(name, &mut out);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    String::from_utf8(out).map_err(|e| Error::bug("a document is no text").caused_by(e))
}

/// The deletion of a revision.
pub(crate) fn tombstone(id: &str, parent: &str) -> Vec<u8> {
    serde_json::json!({ "_id": id, "_rev": parent, "_deleted": true }).to_string().into_bytes()
}

/// What a revision says, without what tells it from another one that says the same.
pub(crate) fn content(leaf: &Leaf<'_>) -> Result<Vec<u8>> {
    let attachments = leaf.attachments.iter().map(|one| Ok((&*one.name, without_revpos(one)?)));
    let attachments: Vec<_> = attachments.collect::<Result<_>>()?;
    successor(&leaf.text, None, attachments.into_iter())
}

fn without_revpos(one: &Attached<'_>) -> Result<String> {
    let about = format!("{{{}}}", one.about);
    let members: Members<'_> =
        serde_json::from_str(&about).map_err(|e| Error::bug("what an attachment says is no JSON").caused_by(e))?;
    let mut out = Vec::with_capacity(about.len());
    for (name, value) in members.0.iter().filter(|(name, _)| name != "revpos") {
        out.push(if out.is_empty() { b'{' } else { b',' });
        quoted(name, &mut out);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    String::from_utf8(out).map_err(|e| Error::bug("what an attachment says is no text").caused_by(e))
}

/// The revision that wins.
pub(crate) fn winner<'a>(leaves: Vec<Leaf<'a>>) -> Option<Leaf<'a>> {
    leaves.into_iter().min_by(Leaf::rank)
}

/// What new revisions can be proven to be the same in: the content of the winners that are not deleted.
/// Attachments are proven by their digests, which reading back checks.
pub(crate) fn provable(batch: &Batch) -> Option<Batch> {
    if batch.kind != Kind::Document {
        return None;
    }
    let mut proven = BatchBuilder::new(batch.collection.clone(), Kind::Document, batch.encoding);
    for i in 0..batch.len() {
        let said = document::leaves(batch.body_of(i)).map(winner);
        match said {
            Ok(Some(leaf)) if leaf.deleted => {}
            Ok(Some(leaf)) => match content(&leaf) {
                Ok(content) => proven.push(batch.key_of(i), &content),
                Err(_) => proven.push(batch.key_of(i), batch.body_of(i)),
            },
            // What cannot be understood is itself: nothing equals it that is not it.
            _ => proven.push(batch.key_of(i), batch.body_of(i)),
        }
    }
    Some(proven.take()).filter(|b| !b.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_new_revision_says_the_same() {
        let text = r#"{"_id":"a","_rev":"2-x","n":12345678901234567890,"f":1.0,"_revisions":{"start":2,"ids":["x","w"]},"_attachments":{"b":{"content_type":"t","revpos":1,"digest":"md5-y","length":3,"stub":true}}}"#;
        let leaf = Leaf::parse(text, false).unwrap();
        let about = [("b", "{\"follows\":true}".to_owned())];
        let new = successor(&leaf.text, Some("7-z"), about.into_iter()).unwrap();
        let expected =
            r#"{"_rev":"7-z","_id":"a","n":12345678901234567890,"f":1.0,"_attachments":{"b":{"follows":true}}}"#;
        assert_eq!(String::from_utf8(new).unwrap(), expected);
        let later =
            text.replace("2-x", "9-q").replace(r#""revpos":1"#, r#""revpos":9"#).replace("\"x\",\"w\"", "\"q\"");
        let later = Leaf::parse(&later, false).unwrap();
        assert_eq!(content(&leaf).unwrap(), content(&later).unwrap());
        let other = text.replace("md5-y", "md5-z");
        assert_ne!(content(&leaf).unwrap(), content(&Leaf::parse(&other, false).unwrap()).unwrap());
    }
}
