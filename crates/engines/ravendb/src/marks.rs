//! Deletions as entries of the change log that stay there: what they delete is in a backup that only the
//! server can look into, and the server is told of them when it restores that.
//!
//! A deletion of a document stands in the document's place; those of attachments and revisions stand beside
//! them. Each holds the tombstone as the server told it. They need not go away when the same is put again:
//! the server is told of all deletions first, and then of what is there.

use crate::contents::owner;
use crate::gather::Tombstone;
use model::Kind;
use serde::Deserialize;

/// What the body of a deleted document begins with.
const BEGIN: &[u8] = b"{\"@tombstone\":";

/// The kind of deletions of attachments and revisions; also the section of dumps that they go into.
pub(crate) fn kind() -> Kind {
    Kind::Meta("Tombstones".into())
}

/// The body of a document that was deleted.
pub(crate) fn of_document(tombstone: &[u8]) -> Vec<u8> {
    [BEGIN, tombstone, b"}"].concat()
}

/// The tombstone of a document that was deleted; none of a document that is there.
pub(crate) fn tombstone(body: &[u8]) -> Option<&[u8]> {
    /// Documents have other members.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Mark {
        #[serde(rename = "@tombstone")]
        _tombstone: Tombstone,
    }
    let inside = body.strip_prefix(BEGIN)?.strip_suffix(b"}")?;
    serde_json::from_slice::<Mark>(body).is_ok().then_some(inside)
}

/// Whether a body says that its document was deleted.
pub fn is_deletion(body: &[u8]) -> bool {
    tombstone(body).is_some()
}

/// The kind space of what an entry of a kind space says to be deleted; none if it is no such entry.
pub fn space_of_deletion(space: &str, key: &[u8]) -> Option<&'static str> {
    if kind().space() != space {
        return None;
    }
    let is_of_attachment = std::str::from_utf8(key).ok().and_then(owner).is_some();
    Some(if is_of_attachment { Kind::Attachment.space() } else { Kind::Revision.space() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_holds_nothing_but_a_tombstone_is_a_deletion() {
        let told = br#"{"Key":"orders/1","Type":"Document","Collection":"Orders","Etag":7}"#;
        let body = of_document(told);
        assert_eq!(tombstone(&body), Some(&told[..]));
        assert!(is_deletion(&body));
        let inner = String::from_utf8_lossy(told);
        for document in [
            format!(r#"{{"@tombstone":{inner},"@metadata":{{"@id":"orders/1"}}}}"#),
            r#"{"@tombstone":{"a":1}}"#.into(),
            r#"{"N":1,"@metadata":{"@id":"orders/1"}}"#.into(),
            String::new(),
        ] {
            assert!(!is_deletion(document.as_bytes()), "{document}");
        }
    }

    #[test]
    fn deletions_say_of_what_they_are() {
        let of = |key: &str| space_of_deletion("Tombstones", key.as_bytes());
        assert_eq!(of("a/1\u{1e}d\u{1e}n\u{1e}h\u{1e}t"), Some("attachment"));
        assert_eq!(of("A:3-me"), Some("revision"));
        assert_eq!(space_of_deletion("document", b"a/1"), None);
    }
}
