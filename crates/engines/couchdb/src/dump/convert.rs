//! Between documents as dumps have them, their attachments' content as text in them, and ours.

use crate::document::Content;
use crate::leaf::{Attached, Leaf};
use crate::members::{Members, quoted};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use model::{Error, Result};
use std::collections::BTreeMap;
use std::io::Read;

/// Contents by what they are.
pub(crate) type Contents = BTreeMap<Content, Vec<u8>>;

/// Our text of a revision, its content put apart.
pub(crate) fn from_dump(raw: &str, contents: &mut Contents) -> Result<String> {
    let bad = |e| Error::corrupt("a document is no JSON object").caused_by(e);
    let members: Members<'_> = serde_json::from_str(raw).map_err(bad)?;
    let Some(attachments) = members.get("_attachments") else { return Ok(raw.to_owned()) };
    let all: Members<'_> = serde_json::from_str(attachments.get()).map_err(bad)?;
    let mut list = Vec::new();
    for (name, about) in &all.0 {
        let about: Members<'_> = serde_json::from_str(about.get()).map_err(bad)?;
        let missing = || Error::corrupt(format!("the dump does not have the content of attachment {name}"));
        // Where the stored bytes are beside the plain ones, they are what was there.
        let data = about.text("stored").or_else(|| about.text("data")).ok_or_else(missing)?;
        let bytes = STANDARD
            .decode(&*data)
            .map_err(|e| Error::corrupt(format!("attachment {name} is no base64")).caused_by(e))?;
        let stored = about.get("stored").is_some();
        let digest = format!("md5-{}", STANDARD.encode(Md5::digest(&bytes)));
        let encoding = about.text("encoding").filter(|_| stored).map(|e| e.into_owned());
        list.push(if list.is_empty() { b'{' } else { b',' });
        quoted(name, &mut list);
        list.extend_from_slice(b":{\"content_type\":");
        let kind = about.get("content_type").or_else(|| about.get("contentType"));
        list.extend_from_slice(kind.map_or("\"application/octet-stream\"", |k| k.get()).as_bytes());
        if let Some(revpos) = about.get("revpos") {
            list.extend_from_slice(format!(",\"revpos\":{}", revpos.get()).as_bytes());
        }
        let length =
            about.get("length").filter(|_| stored).map_or_else(|| bytes.len().to_string(), |l| l.get().to_owned());
        list.extend_from_slice(format!(",\"digest\":\"{digest}\",\"length\":{length}").as_bytes());
        if let Some(encoding) = &encoding {
            list.extend_from_slice(b",\"encoding\":");
            quoted(encoding, &mut list);
            list.extend_from_slice(format!(",\"encoded_length\":{}", bytes.len()).as_bytes());
        }
        list.extend_from_slice(b",\"stub\":true}");
        contents.insert(Content { digest, bytes: bytes.len() as u64, encoding }, bytes);
    }
    list.extend_from_slice(if list.is_empty() { b"{}" } else { b"}" });
    with(&members, &list)
}

/// The text of a revision as a dump has it.
pub(crate) fn to_dump(leaf: &Leaf<'_>, contents: &Contents) -> Result<String> {
    if leaf.attachments.is_empty() {
        return Ok(leaf.text.clone().into_owned());
    }
    let bad = |e| Error::corrupt("a document is no JSON object").caused_by(e);
    let members: Members<'_> = serde_json::from_str(&leaf.text).map_err(bad)?;
    let mut list = Vec::new();
    for one in &leaf.attachments {
        let key = content_of(one);
        let stored = contents
            .get(&key)
            .ok_or_else(|| Error::corrupt(format!("the content of attachment {} is missing", one.name)))?;
        list.push(if list.is_empty() { b'{' } else { b',' });
        quoted(&one.name, &mut list);
        list.extend_from_slice(format!(":{{{}", one.about).as_bytes());
        let said = format!("{{{}}}", one.about);
        let said: Members<'_> = serde_json::from_str(&said).map_err(bad)?;
        if let Some(kind) = said.get("content_type") {
            // couchbackup's own name for it.
            list.extend_from_slice(format!(",\"contentType\":{}", kind.get()).as_bytes());
        }
        match one.encoding.as_deref() {
            Some("gzip") => {
                let mut plain = Vec::new();
                let unpacked = flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut plain);
                unpacked.map_err(|e| Error::corrupt(format!("attachment {} is no gzip", one.name)).caused_by(e))?;
                list.extend_from_slice(
                    format!(",\"data\":\"{}\",\"stored\":\"{}\"}}", STANDARD.encode(plain), STANDARD.encode(stored))
                        .as_bytes(),
                );
            }
            _ => list.extend_from_slice(format!(",\"data\":\"{}\"}}", STANDARD.encode(stored)).as_bytes()),
        }
    }
    list.push(b'}');
    with(&members, &list)
}

/// Which content an attachment has.
pub(crate) fn content_of(one: &Attached<'_>) -> Content {
    Content {
        digest: one.digest.to_string(),
        bytes: one.stored,
        encoding: one.encoding.as_ref().map(|e| e.to_string()),
    }
}

/// A document with another list of attachments.
fn with(members: &Members<'_>, list: &[u8]) -> Result<String> {
    let mut out = Vec::new();
    for (name, value) in &members.0 {
        out.push(if out.is_empty() { b'{' } else { b',' });
        quoted(name, &mut out);
        out.push(b':');
        out.extend_from_slice(if name == "_attachments" { list } else { value.get().as_bytes() });
    }
    out.push(b'}');
    String::from_utf8(out).map_err(|e| Error::bug("a document is no text").caused_by(e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn documents_go_into_dumps_and_back() {
        let raw = r#"{"_id":"a","_rev":"2-b","n":1.0,"_revisions":{"start":2,"ids":["b","a"]},"_attachments":{"x":{"contentType":"text/plain","revpos":1,"digest":"md5-old","data":"aGVsbG8="}}}"#;
        let mut contents = Contents::new();
        let ours = from_dump(raw, &mut contents).unwrap();
        assert!(ours.contains(r#""x":{"content_type":"text/plain","revpos":1,"digest":"md5-XUFAKrxLKna5cZ2REBfFkg==","length":5,"stub":true}"#), "{ours}");
        let leaf = Leaf::parse(&ours, false).unwrap();
        let dumped = to_dump(&leaf, &contents).unwrap();
        assert!(
            dumped.contains(r#""data":"aGVsbG8=""#) && dumped.contains(r#""contentType":"text/plain""#),
            "{dumped}"
        );
        let mut again = Contents::new();
        assert_eq!(Leaf::parse(&from_dump(&dumped, &mut again).unwrap(), false).unwrap().text, leaf.text);
        assert_eq!(again, contents);
    }
}
