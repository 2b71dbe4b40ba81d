//! The rows of `_changes`, page by page.

use crate::client::{ANSWER_MAX, Client, Request, segment};
use crate::members::Text;
use crate::server::sequence;
use model::Result;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::value::RawValue;

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

#[derive(Deserialize)]
struct RawRow<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    changes: Vec<RawRev<'a>>,
}

#[derive(Deserialize)]
struct RawRev<'a> {
    #[serde(borrow)]
    rev: Text<'a>,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(borrow)]
    results: Vec<RawRow<'a>>,
    #[serde(borrow)]
    last_seq: &'a RawValue,
}

impl Page {
    pub fn parse(bytes: &[u8], limit: usize) -> serde_json::Result<Page> {
        let page: RawPage<'_> = serde_json::from_slice(bytes)?;
        let more = page.results.len() >= limit;
        let rows = page.results.into_iter().map(|row| Row {
            id: row.id.0.into_owned(),
            revs: row.changes.into_iter().map(|c| c.rev.0.into_owned()).collect(),
        });
        Ok(Page { rows: rows.collect(), last: sequence(page.last_seq), more })
    }
}

/// The page after a sequence. Sequences are opaque, cost the server time, and are only needed at the
/// end of a page.
pub(crate) async fn page(client: &Client, database: &str, since: &str, limit: usize) -> Result<Page> {
    let since = utf8_percent_encode(since, NON_ALPHANUMERIC);
    let path =
        format!("{}/_changes?style=all_docs&limit={limit}&seq_interval={limit}&since={since}", segment(database));
    client.json(&Request::get(path), ANSWER_MAX, |bytes| Page::parse(bytes, limit)).await
}

/// The newest change, as proof later on that it is still the same database.
pub(crate) async fn newest(client: &Client, database: &str) -> Result<Option<(String, String)>> {
    let path = format!("{}/_changes?descending=true&limit=1", segment(database));
    let page = client.json(&Request::get(path), ANSWER_MAX, |bytes| Page::parse(bytes, 1)).await?;
    Ok(page.rows.into_iter().next().and_then(|row| Some((row.id, row.revs.into_iter().next()?))))
}
