//! One leaf revision, as the server gave it, brought into one order of its own members.

use crate::members::{Members, quoted};
use model::{Error, Result};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cmp::Ordering;

/// A leaf revision of a document.
#[derive(Debug, Clone)]
pub(crate) struct Leaf<'a> {
    pub id: Cow<'a, str>,
    pub rev: Cow<'a, str>,
    pub deleted: bool,
    /// The revision in our order: `_id`, `_rev`, the user's members as they came, `_deleted`,
    /// `_revisions`, `_attachments` (by name).
    pub text: Cow<'a, str>,
    pub attachments: Vec<Attached<'a>>,
}

/// What a revision says of one of its attachments.
#[derive(Debug, Clone)]
pub(crate) struct Attached<'a> {
    pub name: Cow<'a, str>,
    /// The digest that the server has made of the stored bytes, `md5-…`.
    pub digest: Cow<'a, str>,
    /// The number of the revision that it came with.
    pub revpos: u64,
    /// Bytes as stored.
    pub stored: u64,
    /// How the stored bytes are encoded, if they are.
    pub encoding: Option<Cow<'a, str>>,
    /// What it says, in our order of members, `stub` and `follows` left out.
    pub about: String,
}

impl Attached<'_> {
    /// Its type, as the server has it.
    pub fn content_type(&self) -> Option<String> {
        let about = format!("{{{}}}", self.about);
        let members: Members<'_> = serde_json::from_str(&about).ok()?;
        members.text("content_type").map(|text| text.into_owned())
    }
}

/// What servers and dumps add to say where the content is.
const PLACES: &[&str] = &["stub", "follows", "data", "contentType", "stored"];

impl<'a> Leaf<'a> {
    /// Understands what a server or a dump gave; with `without`, attachments are left out.
    pub fn parse(raw: &'a str, without: bool) -> Result<Leaf<'a>> {
        let members: Members<'a> =
            serde_json::from_str(raw).map_err(|e| Error::corrupt(format!("a document is no JSON object: {e}")))?;
        let (Some(id), Some(rev)) = (members.text("_id"), members.text("_rev")) else {
            return Err(Error::corrupt("a document has no _id or no _rev"));
        };
        generation(&rev)
            .ok_or_else(|| Error::corrupt(format!("document {id} has the revision {rev}, which is none")))?;
        let deleted = members.get("_deleted").is_some_and(|v| v.get() == "true");
        let attachments = match members.get("_attachments") {
            Some(raw) if !without => attached(&id, raw)?,
            _ => Vec::new(),
        };
        let text = match is_in_order(&members) {
            true => Cow::Borrowed(raw.trim()),
            false => Cow::Owned(in_order(&members, &rev, &attachments)?),
        };
        Ok(Leaf { id, rev, deleted, text, attachments })
    }

    /// The order in which CouchDB ranks leaves: the first one wins.
    pub fn rank(&self, other: &Leaf<'_>) -> Ordering {
        self.deleted
            .cmp(&other.deleted)
            .then_with(|| generation(&other.rev).cmp(&generation(&self.rev)))
            .then_with(|| other.rev.cmp(&self.rev))
    }

    /// The ids of the revision's history, newest first, with its generation.
    pub fn history(text: &str) -> Result<(u64, Vec<String>)> {
        #[derive(serde::Deserialize)]
        struct Revisions {
            start: u64,
            ids: Vec<String>,
        }
        #[derive(serde::Deserialize)]
        struct Document {
            _revisions: Revisions,
        }
        let document: Document =
            serde_json::from_str(text).map_err(|e| Error::corrupt("a document has no history").caused_by(e))?;
        Ok((document._revisions.start, document._revisions.ids))
    }
}

/// The number before the dash of a revision.
pub(crate) fn generation(rev: &str) -> Option<u64> {
    rev.split_once('-').and_then(|(number, hash)| number.parse().ok().filter(|n| *n > 0 && !hash.is_empty()))
}

/// Whether the members of the server's own are where we put them, and there are no attachments.
fn is_in_order(members: &Members<'_>) -> bool {
    let all = &members.0;
    if all.len() < 3 || all[0].0 != "_id" || all[1].0 != "_rev" || all[all.len() - 1].0 != "_revisions" {
        return false;
    }
    let between = &all[2..all.len() - 1];
    let users = match between.split_last() {
        Some(((name, value), rest)) if name == "_deleted" && value.get() == "true" => rest,
        _ => between,
    };
    !users.iter().any(|(name, _)| is_servers(name))
}

/// Whether a member is one of the server's own that have their place.
pub(crate) fn is_servers(name: &str) -> bool {
    matches!(name, "_id" | "_rev" | "_deleted" | "_revisions" | "_attachments")
}

fn in_order(members: &Members<'_>, rev: &str, attachments: &[Attached<'_>]) -> Result<String> {
    let mut out = Vec::with_capacity(256);
    let mut put = |name: &str, value: &str| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        quoted(name, &mut out);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    };
    for name in ["_id", "_rev"] {
        put(name, members.get(name).map_or("null", RawValue::get));
    }
    for (name, value) in members.0.iter().filter(|(name, _)| !is_servers(name)) {
        put(name, value.get());
    }
    if members.get("_deleted").is_some_and(|v| v.get() == "true") {
        put("_deleted", "true");
    }
    match members.get("_revisions") {
        Some(history) => put("_revisions", history.get()),
        None => put("_revisions", &only_itself(rev)),
    }
    if !attachments.is_empty() {
        let mut all = Vec::new();
        for one in attachments {
            all.push(if all.is_empty() { b'{' } else { b',' });
            quoted(&one.name, &mut all);
            all.extend_from_slice(format!(":{{{},\"stub\":true}}", one.about).as_bytes());
        }
        all.push(b'}');
        let all = String::from_utf8(all).map_err(|e| Error::bug("names of attachments are no text").caused_by(e))?;
        put("_attachments", &all);
    }
    out.push(b'}');
    String::from_utf8(out).map_err(|e| Error::bug("a document is no text").caused_by(e))
}

/// The history of a revision of which no other is known.
fn only_itself(rev: &str) -> String {
    let (number, hash) = rev.split_once('-').unwrap_or(("1", rev));
    let mut out = format!("{{\"start\":{number},\"ids\":[").into_bytes();
    quoted(hash, &mut out);
    out.extend_from_slice(b"]}");
    String::from_utf8(out).unwrap_or_default()
}

fn attached<'a>(id: &str, raw: &'a RawValue) -> Result<Vec<Attached<'a>>> {
    let bad = |name: &str| Error::corrupt(format!("document {id} says something odd of its attachment {name}"));
    let all: Members<'a> = serde_json::from_str(raw.get()).map_err(|_| bad("list"))?;
    let mut attachments = Vec::with_capacity(all.0.len());
    for (name, raw) in all.0 {
        let members: Members<'a> = serde_json::from_str(raw.get()).map_err(|_| bad(&name))?;
        let number = |of: &str| members.get(of).and_then(|v| v.get().parse::<u64>().ok());
        let (Some(digest), Some(length)) = (members.text("digest"), number("length")) else { return Err(bad(&name)) };
        let encoding = members.text("encoding");
        let mut about = Vec::new();
        let known = ["content_type", "revpos", "digest", "length", "encoding", "encoded_length"];
        let first = known.iter().filter_map(|n| Some((*n, members.get(n)?)));
        let others = members.0.iter().filter(|(n, _)| !known.contains(&&**n) && !PLACES.contains(&&**n));
        for (of, value) in first.chain(others.map(|(n, v)| (&**n, *v))) {
            if !about.is_empty() {
                about.push(b',');
            }
            quoted(of, &mut about);
            about.push(b':');
            about.extend_from_slice(value.get().as_bytes());
        }
        attachments.push(Attached {
            digest,
            revpos: number("revpos").unwrap_or(1),
            stored: number("encoded_length").filter(|_| encoding.is_some()).unwrap_or(length),
            encoding,
            about: String::from_utf8(about).map_err(|_| bad(&name))?,
            name,
        });
    }
    attachments.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(attachments)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_in_order_is_not_touched() {
        for text in [
            r#"{"_id":"a","_rev":"1-x","n":12345678901234567890,"f":1.0,"s":"\u00e9é","_revisions":{"start":1,"ids":["x"]}}"#,
            r#"{"_id":"a","_rev":"1-x","_deleted":true,"_revisions":{"start":1,"ids":["x"]}}"#,
        ] {
            let leaf = Leaf::parse(text, false).unwrap();
            assert!(matches!(&leaf.text, Cow::Borrowed(t) if *t == text), "{text}");
        }
    }

    #[test]
    fn other_servers_order_becomes_ours() {
        let leaf = Leaf::parse(
            r#" {"_attachments":{"b":{"digest":"md5-x==","content_type":"t","length":3,"revpos":2,"stub":true},"a":{"content_type":"t","revpos":1,"digest":"md5-y==","length":30,"encoding":"gzip","encoded_length":4,"follows":true}},"z":1.0,"_id":"ü","_deleted":true,"_rev":"2-b","_revisions":{"start":2,"ids":["b","a"]}} "#,
            false,
        )
        .unwrap();
        assert_eq!(
            leaf.text,
            r#"{"_id":"ü","_rev":"2-b","z":1.0,"_deleted":true,"_revisions":{"start":2,"ids":["b","a"]},"_attachments":{"a":{"content_type":"t","revpos":1,"digest":"md5-y==","length":30,"encoding":"gzip","encoded_length":4,"stub":true},"b":{"content_type":"t","revpos":2,"digest":"md5-x==","length":3,"stub":true}}}"#
        );
        assert_eq!((leaf.attachments[0].stored, leaf.attachments[1].stored), (4, 3));
        let again = leaf.text.into_owned();
        assert_eq!(Leaf::parse(&again, false).unwrap().text, again, "our order stays");
        assert!(!Leaf::parse(&again, true).unwrap().text.contains("_attachments"));
    }

    #[test]
    fn leaves_are_ranked_as_the_server_does() {
        let leaf = |rev: &str, deleted| {
            Leaf::parse(&format!(r#"{{"_id":"a","_rev":"{rev}","_deleted":{deleted}}}"#), false)
                .unwrap()
                .text
                .into_owned()
        };
        let texts = [leaf("2-b", false), leaf("10-a", false), leaf("11-c", true), leaf("2-a", false)];
        let mut leaves: Vec<_> = texts.iter().map(|t| Leaf::parse(t, false).unwrap()).collect();
        leaves.sort_by(Leaf::rank);
        let revs: Vec<_> = leaves.iter().map(|l| &*l.rev).collect();
        assert_eq!(revs, ["10-a", "2-b", "2-a", "11-c"]);
    }

    #[test]
    fn what_is_no_revision_is_refused() {
        for bad in [
            "[]",
            "{}",
            r#"{"_id":"a"}"#,
            r#"{"_id":"a","_rev":"x"}"#,
            r#"{"_id":"a","_rev":"0-x"}"#,
            r#"{"_id":"a","_rev":"1-x","_attachments":{"a":1}}"#,
        ] {
            assert_eq!(Leaf::parse(bad, false).unwrap_err().kind(), model::ErrorKind::Corrupt, "{bad}");
        }
    }
}
