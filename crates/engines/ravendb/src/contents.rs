//! Contents of attachments for changes: those that the export brought and are still at hand, and
//! others from the server one by one.

use crate::gather::hash_bytes;
use crate::keys::SEPARATOR;
use crate::metadata::Attached;
use crate::server::Server;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use model::{AttachmentStream, ErrorKind, Result};
use reqwest::Method;
use std::collections::{HashMap, VecDeque};

/// Bytes of the largest content that is kept (8 MiB): larger ones are asked for by themselves.
pub(crate) const AT_HAND: u64 = 8 << 20;
/// Bytes that are kept of what the export brought: it gives a content just before the first document
/// that names it.
const KEPT: usize = 16 << 20;

/// The last contents that an export brought.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    order: VecDeque<[u8; 32]>,
    contents: HashMap<[u8; 32], Bytes>,
    bytes: usize,
}

impl Recent {
    pub fn add(&mut self, hash: [u8; 32], content: Bytes) {
        self.bytes += content.len();
        if let Some(same) = self.contents.insert(hash, content) {
            self.bytes -= same.len();
            return;
        }
        self.order.push_back(hash);
        while self.bytes > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.contents.remove(&oldest).map_or(0, |c| c.len());
        }
    }

    pub fn get(&self, hash: &str) -> Option<Bytes> {
        self.contents.get(&hash_bytes(hash)).cloned()
    }
}

/// Whether an attachment of a document is the one that it was at an etag already. What the server does
/// not say clearly is new.
pub(crate) async fn is_old(server: &Server, id: &str, name: &str, database: &str, etag: u64) -> Result<bool> {
    let request = server.of_database(Method::HEAD, &["attachments"], &[("id", id), ("name", name)])?;
    let answer = match server.send(request, "asking how old an attachment is").await {
        Ok(answer) => answer,
        Err(e) if e.kind() == ErrorKind::Retry => return Err(e),
        Err(_) => return Ok(false),
    };
    let vector = answer.headers().get("ETag").and_then(|v| v.to_str().ok()).unwrap_or_default();
    Ok(etag_in(vector.trim_matches('"'), database).is_some_and(|is| is <= etag))
}

/// The content of an attachment of a document, or of one of its revisions, as it comes; none if the server no
/// longer has that very one.
pub(crate) async fn fetch(
    server: &Server,
    id: &str,
    revision: Option<&str>,
    attached: &Attached,
) -> Result<Option<AttachmentStream>> {
    let query = [("id", id), ("name", &attached.name)];
    let request = match revision {
        None => server.of_database(Method::GET, &["attachments"], &query)?,
        Some(vector) => server
            .of_database(Method::POST, &["attachments"], &query)?
            .body(serde_json::json!({ "Type": "Revision", "ChangeVector": vector }).to_string()),
    };
    let doing = "reading an attachment";
    let answer = match server.send(request, doing).await {
        Err(e) if e.kind() == ErrorKind::Missing => return Ok(None),
        other => other?,
    };
    let hash = answer.headers().get("Attachment-Hash").and_then(|v| v.to_str().ok()).map(str::to_owned);
    if hash.as_deref() != Some(&attached.hash) || answer.content_length().is_some_and(|n| n != attached.size) {
        return Ok(None);
    }
    Ok(Some(answer.bytes_stream().map_err(move |e| crate::refusal::network(doing, e)).boxed()))
}

/// The etag in a database that a change vector holds.
pub(crate) fn etag_in(vector: &str, database: &str) -> Option<u64> {
    let mine = vector.split(", ").filter_map(|part| part.trim().strip_suffix(database)?.strip_suffix('-'));
    mine.filter_map(|part| part.split_once(':')?.1.parse().ok()).max()
}

/// The owner that the key of an attachment names: a document, and the revision if it is of one.
pub(crate) fn owner(key: &str) -> Option<(&str, Option<&str>)> {
    let mut parts = key.split(SEPARATOR);
    let id = parts.next()?;
    match parts.next()? {
        "d" => Some((id, None)),
        "r" => Some((id, Some(parts.next()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_last_contents_are_kept() {
        let mut recent = Recent::default();
        for n in 0..40u8 {
            recent.add([n; 32], vec![n; 1 << 20].into());
            recent.add([n; 32], vec![n; 1 << 20].into());
        }
        assert_eq!((recent.contents.len(), recent.order.len(), recent.bytes), (16, 16, KEPT));
        assert!(recent.contents.contains_key(&[39; 32]) && !recent.contents.contains_key(&[23; 32]));
    }

    #[test]
    fn keys_name_their_owners() {
        assert_eq!(owner("a/1\u{1e}d\u{1e}n\u{1e}h\u{1e}t"), Some(("a/1", None)));
        assert_eq!(owner("a/1\u{1e}r\u{1e}A:3-me\u{1e}n\u{1e}h\u{1e}t"), Some(("a/1", Some("A:3-me"))));
        assert_eq!(owner("a/1"), None);
        assert_eq!(etag_in("A:31-me, B:99-other", "me"), Some(31));
        assert_eq!(etag_in("B:99-other", "me"), None);
    }
}
