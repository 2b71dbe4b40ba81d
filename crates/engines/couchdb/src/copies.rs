//! What is different where the nodes of a cluster keep several copies of a database, which are not the
//! same at every moment: each may have changes that others get later.

use crate::client::{ANSWER_MAX, Client, Request, segment};
use crate::leaf::{Leaf, generation};
use crate::rows::Page;
use crate::server::{Database, Info, Server, sequence};
use model::Result;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::time::Duration;

/// How often better copies are looked for than those that were met, and the first pause; each is twice as
/// long as the one before.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// Where to begin reading all of a database, and where to go on with its changes afterwards.
///
/// A sequence tells which copies it is about. Both are of the same ones: if others than those that were
/// read said where to go on, a change that they had first would never be seen. Those that lag behind others
/// are avoided if that is possible, so that what was written just before is there.
pub(crate) async fn beginning(client: &Client, database: &str) -> Result<Option<(String, String)>> {
    #[derive(Deserialize)]
    struct Start<'a> {
        results: Vec<IgnoredAny>,
        #[serde(borrow)]
        last_seq: &'a RawValue,
        /// The documents to come.
        #[serde(default)]
        pending: u64,
    }
    let name = segment(database);
    let (mut most, mut pause) = (0, PAUSE);
    for number in 1.. {
        let info: Option<Info> = client.find(&Request::get(&name)).await?;
        most = most.max(info.map_or(0, |info| info.doc_count + info.doc_del_count.unwrap_or(0)));
        let start = Request::get(format!("{name}/_changes?style=all_docs&limit=0"));
        let (is_none, start, documents) = client
            .json(&start, ANSWER_MAX, |bytes| {
                let start: Start<'_> = serde_json::from_slice(bytes)?;
                Ok((start.results.is_empty(), sequence(start.last_seq), start.pending))
            })
            .await?;
        if !is_none {
            // A server that takes the limit for 1.
            return Ok(None);
        }
        if documents >= most || number == TRIES {
            // The changes of no document end where the copies stand, and nothing is gone through.
            let since = utf8_percent_encode(&start, NON_ALPHANUMERIC);
            let end = format!("{name}/_changes?filter=_doc_ids&since={since}");
            let end = Request::post(end, r#"{"doc_ids":[]}"#);
            let end = client.json(&end, ANSWER_MAX, |bytes| Page::parse(bytes, 1)).await?;
            return Ok(Some((start, end.last)));
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(None)
}

/// How many copies of a database there are; 1 where the server does not tell.
pub(crate) async fn count(client: &Client, database: &str) -> Result<u64> {
    let info: Option<Info> = client.find(&Request::get(segment(database))).await?;
    Ok(info.map_or(1, |info| info.copies()))
}

/// Whether a revision is known. In a cluster, the first copy that answers says so, and may not have it yet.
pub(crate) async fn know(server: &Server, database: &Database, id: &str, rev: &str) -> Result<bool> {
    let mut pause = PAUSE;
    let tries = if database.info.copies() > 1 { TRIES } else { 0 };
    for _ in 0..tries {
        if server.knows(&database.name, id, rev).await? {
            return Ok(true);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    server.knows(&database.name, id, rev).await
}

/// A revision that was named, and that none of these leaves is or comes from.
pub(crate) fn lacking<'a>(named: &'a [String], texts: &[&[u8]]) -> Option<&'a String> {
    let histories: Vec<_> =
        texts.iter().filter_map(|text| Leaf::history(std::str::from_utf8(text).ok()?).ok()).collect();
    named.iter().find(|rev| {
        let Some(number) = generation(rev) else { return false };
        let id = rev.split_once('-').map_or("", |(_, id)| id);
        !histories.iter().any(|(start, ids)| match start.checked_sub(number) {
            // What is older than a history goes back is not known to be missing.
            Some(back) => ids.get(back as usize).is_none_or(|found| found == id),
            None => false,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_superseded_is_not_lacking() {
        let leaf =
            |start: u64, ids: &[&str]| serde_json::json!({"_revisions": {"start": start, "ids": ids}}).to_string();
        let is_lacking = |rev: &str, leaves: &[String]| {
            let texts: Vec<&[u8]> = leaves.iter().map(|leaf| leaf.as_bytes()).collect();
            lacking(&[rev.to_owned()], &texts).is_some()
        };
        let there = [leaf(3, &["c", "b", "a"]), leaf(2, &["x", "a"])];
        for rev in ["3-c", "2-b", "1-a", "2-x"] {
            assert!(!is_lacking(rev, &there), "{rev}");
        }
        for rev in ["4-d", "3-d", "2-c", "1-b"] {
            assert!(is_lacking(rev, &there), "{rev}");
        }
        assert!(is_lacking("1-a", &[]), "nothing is there");
        assert!(!is_lacking("5-e", &[leaf(9, &["i", "h"])]), "the history does not go back to it");
    }
}
