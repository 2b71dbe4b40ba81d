//! The rows of `_changes`, page by page.

use crate::client::{ANSWER_MAX, Client, Request, segment};
use crate::server::sequence;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Rows of one page: about 1 MB.
pub(crate) const PAGE: usize = 4000;

/// A document that has changed, with its leaf revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub id: String,
    pub revs: Vec<String>,
}

/// Rows, and where to go on after them.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub rows: Vec<Row>,
    pub last: String,
    /// Whether there may be more.
    pub more: bool,
}

/// The revisions of a row, of which there is one most of the time.
struct Revs(Vec<String>);

impl<'de> Deserialize<'de> for Revs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Revs, D::Error> {
        #[derive(Deserialize)]
        struct RawRev {
            rev: String,
        }
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Revs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of revisions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Revs, A::Error> {
                let mut all = Vec::with_capacity(1);
                while let Some(RawRev { rev }) = seq.next_element()? {
                    all.push(rev);
                }
                Ok(Revs(all))
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

#[derive(Deserialize)]
struct RawRow {
    id: String,
    changes: Revs,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    results: Vec<RawRow>,
    #[serde(borrow)]
    last_seq: &'a RawValue,
}

impl Page {
    pub fn parse(bytes: &[u8], limit: usize) -> serde_json::Result<Page> {
        let page: RawPage<'_> = serde_json::from_slice(bytes)?;
        let more = page.results.len() >= limit;
        let rows = page.results.into_iter().map(|row| Row { id: row.id, revs: row.changes.0 });
        Ok(Page { rows: rows.collect(), last: sequence(page.last_seq), more })
    }
}

/// The page after a sequence. Sequences are opaque, cost the server time, and are only needed at the
/// end of a page.
pub(crate) async fn page(client: &Client, database: &str, since: &str, limit: usize) -> model::Result<Page> {
    let since = utf8_percent_encode(since, NON_ALPHANUMERIC);
    let path =
        format!("{}/_changes?style=all_docs&limit={limit}&seq_interval={limit}&since={since}", segment(database));
    client.json(&Request::get(path), ANSWER_MAX, |bytes| Page::parse(bytes, limit)).await
}

/// The newest change, as proof later on that it is still the same database.
pub(crate) async fn newest(client: &Client, database: &str) -> model::Result<Option<(String, String)>> {
    let path = format!("{}/_changes?descending=true&limit=1", segment(database));
    let page = client.json(&Request::get(path), ANSWER_MAX, |bytes| Page::parse(bytes, 1)).await?;
    Ok(page.rows.into_iter().next().and_then(|row| Some((row.id, row.revs.into_iter().next()?))))
}
