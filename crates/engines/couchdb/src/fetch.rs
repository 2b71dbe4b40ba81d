//! Fetching documents with all their leaves, many at once.

use crate::client::{Client, Request, document_path, segment, too_large};
use crate::leaf::Leaf;
use crate::members::{Text, quoted};
use crate::rows::Row;
use bytes::Bytes;
use model::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that one answer should hold.
const ANSWER: usize = 1 << 20;
/// Bytes from which on an answer about several documents is asked for in halves.
const ANSWER_SPLIT: usize = 16 << 20;
/// Bytes that an answer about one document may have, with all its conflicts.
const ANSWER_ONE: usize = 128 << 20;
/// Documents in one request: more were slower.
const TOGETHER: usize = 500;

/// Learns how large documents are, so that requests ask for about as much each.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes: AtomicUsize,
    /// Whether `_bulk_get` tells how attachments are stored, as `open_revs` does; empty while unknown.
    tells: OnceLock<bool>,
}

impl Default for Pace {
    fn default() -> Self {
        // Small at first: nothing is known yet.
        Pace { bytes: AtomicUsize::new(ANSWER / 50), tells: OnceLock::new() }
    }
}

impl Pace {
    /// How many documents to ask for.
    pub fn count(&self) -> usize {
        (ANSWER / self.bytes.load(Ordering::Relaxed).max(1)).clamp(1, TOGETHER)
    }

    fn learn(&self, documents: usize, bytes: usize) {
        let now = bytes / documents.max(1);
        let before = self.bytes.load(Ordering::Relaxed);
        self.bytes.store((before * 3 + now) / 4, Ordering::Relaxed);
    }
}

/// The leaves of some documents.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The server's answers, which hold the leaves' texts.
    answers: Vec<Bytes>,
    /// For each document that was asked for: which answer, and where in it each leaf is.
    places: Vec<Vec<(usize, usize, usize)>>,
}

impl Fetched {
    /// Takes all leaves of one document as they are now.
    async fn open(&mut self, client: &Client, database: &str, id: &str, i: usize) -> Result<()> {
        let bytes = open(client, database, id).await?;
        let number = self.answers.len();
        self.places[i] = opened(&bytes)?.into_iter().map(|(s, e)| (number, s, e)).collect();
        self.answers.push(bytes);
        Ok(())
    }

    fn texts(&self, i: usize) -> Vec<&[u8]> {
        let mut texts: Vec<_> = self.places[i].iter().map(|(answer, s, e)| &self.answers[*answer][*s..*e]).collect();
        texts.sort_unstable();
        texts
    }

    /// Whether a document may have attachments: a text that only looks so costs a request.
    fn has_attachments(&self, i: usize) -> bool {
        let mut texts = self.places[i].iter().map(|(answer, s, e)| &self.answers[*answer][*s..*e]);
        texts.any(|text| contains(text, b"\"_attachments\":"))
    }

    /// Whether the answer to many questions says as much of a document's attachments as that to a single
    /// one. The first document with packed attachments settles it for all.
    async fn tells_all(&self, client: &Client, database: &str, row: &Row, i: usize, pace: &Pace) -> Result<bool> {
        if let Some(tells) = pace.tells.get() {
            return Ok(*tells);
        }
        let mut alone = Fetched { answers: Vec::new(), places: vec![Vec::new()] };
        alone.open(client, database, &row.id, 0).await?;
        let (here, there) = (self.texts(i), alone.texts(0));
        if there.iter().any(|text| contains(text, b"\"encoding\":")) {
            // Two may find it out at the same time: the same.
            let _ = pace.tells.set(here == there);
        }
        Ok(here == there)
    }

    /// The leaves of the document that was asked for as number `i`; none if it is gone.
    pub fn leaves(&self, i: usize, without: bool) -> Result<Vec<Leaf<'_>>> {
        let texts = self.places[i].iter().map(|(answer, start, end)| &self.answers[*answer][*start..*end]);
        texts
            .map(|text| {
                let text =
                    std::str::from_utf8(text).map_err(|e| Error::corrupt("a document is no text").caused_by(e))?;
                Leaf::parse(text, without)
            })
            .collect()
    }
}

fn contains(text: &[u8], piece: &[u8]) -> bool {
    memchr::memmem::find(text, piece).is_some()
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    results: Vec<OneId<'a>>,
}

#[derive(Deserialize)]
struct OneId<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    docs: Vec<OneRev<'a>>,
}

#[derive(Deserialize)]
struct OneRev<'a> {
    #[serde(borrow, default)]
    ok: Option<&'a RawValue>,
}

/// Fetches all leaves of documents.
pub(crate) async fn fetch(client: &Client, database: &str, rows: &[Row], pace: &Pace) -> Result<Fetched> {
    let mut all = Fetched { answers: Vec::new(), places: vec![Vec::new(); rows.len()] };
    let mut waiting: Vec<(usize, usize)> = if rows.is_empty() { vec![] } else { vec![(0, rows.len())] };
    while let Some((from, to)) = waiting.pop() {
        let some = &rows[from..to];
        // Some servers never answer a question about nothing.
        if some.iter().all(|row| row.revs.is_empty()) {
            continue;
        }
        let limit = if some.len() == 1 { ANSWER_ONE } else { ANSWER_SPLIT };
        let path = format!("{}/_bulk_get?revs=true&att_encoding_info=true", segment(database));
        let request = Request::post(path, question(some));
        let answer = client
            .json(&request, limit, |bytes| {
                let found = found(bytes, some)?;
                Ok((bytes.clone(), found))
            })
            .await;
        match answer {
            Ok((bytes, found)) => {
                pace.learn(some.len(), bytes.len());
                let number = all.answers.len();
                for (i, places) in found.into_iter().enumerate() {
                    all.places[from + i] = places.into_iter().map(|(s, e)| (number, s, e)).collect();
                }
                all.answers.push(bytes);
            }
            Err(e) if some.len() > 1 && e.to_string() == too_large(limit).to_string() => {
                let middle = from + some.len() / 2;
                waiting.extend([(from, middle), (middle, to)]);
            }
            Err(e) => return Err(e),
        }
    }
    // A leaf that has gone since the row came: the document has others now, or none.
    for (i, row) in rows.iter().enumerate() {
        let is_old = all.places[i].len() != row.revs.len() || row.revs.is_empty();
        if is_old || (all.has_attachments(i) && !all.tells_all(client, database, row, i, pace).await?) {
            all.open(client, database, &row.id, i).await?;
        }
    }
    Ok(all)
}

fn question(rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * 80);
    out.extend_from_slice(b"{\"docs\":[");
    let mut first = true;
    for row in rows {
        for rev in &row.revs {
            out.extend_from_slice(if first { b"{\"id\":" } else { b",{\"id\":" });
            first = false;
            quoted(&row.id, &mut out);
            out.extend_from_slice(b",\"rev\":");
            quoted(rev, &mut out);
            out.push(b'}');
        }
    }
    out.extend_from_slice(b"]}");
    out
}

/// Where a piece of a text stands in it.
fn place(whole: &[u8], piece: &str) -> (usize, usize) {
    let start = piece.as_ptr() as usize - whole.as_ptr() as usize;
    (start, start + piece.len())
}

fn found(bytes: &[u8], rows: &[Row]) -> serde_json::Result<Vec<Vec<(usize, usize)>>> {
    let answer: Answer<'_> = serde_json::from_slice(bytes)?;
    let mut all = vec![Vec::new(); rows.len()];
    let mut numbers: Option<HashMap<&str, usize>> = None;
    let mut at = 0;
    for one in answer.results {
        // Answers come in the order of the questions; if not, they are looked up.
        while at < rows.len() && rows[at].id != one.id.0 && all[at].len() == rows[at].revs.len() {
            at += 1;
        }
        let number = match rows.get(at).filter(|row| row.id == one.id.0) {
            Some(_) => at,
            None => {
                let numbers =
                    numbers.get_or_insert_with(|| rows.iter().enumerate().map(|(i, r)| (&*r.id, i)).collect());
                match numbers.get(&*one.id.0) {
                    Some(number) => *number,
                    None => continue,
                }
            }
        };
        all[number].extend(one.docs.iter().filter_map(|d| d.ok).map(|ok| place(bytes, ok.get())));
    }
    Ok(all)
}

/// All leaves of one document as they are now.
async fn open(client: &Client, database: &str, id: &str) -> Result<Bytes> {
    let Some(path) = document_path(database, id) else {
        // Such an id cannot be asked for by path: the winner must do.
        let path = format!("{}/_bulk_get?revs=true&att_encoding_info=true", segment(database));
        let body = serde_json::json!({ "docs": [{ "id": id }] }).to_string();
        return client.bytes(&Request::post(path, body), ANSWER_ONE).await;
    };
    let request = Request::get(format!("{path}?open_revs=all&revs=true&att_encoding_info=true"));
    match client.bytes(&request, ANSWER_ONE).await {
        Err(e) if e.kind() == ErrorKind::Missing => Ok(Bytes::from_static(b"[]")),
        other => other,
    }
}

fn opened(bytes: &[u8]) -> Result<Vec<(usize, usize)>> {
    let bad = |e: serde_json::Error| crate::client::garbled("open_revs", &e);
    let revs: Vec<OneRev<'_>> = match bytes.first() {
        Some(b'{') => {
            serde_json::from_slice::<Answer<'_>>(bytes).map_err(bad)?.results.into_iter().flat_map(|r| r.docs).collect()
        }
        _ => serde_json::from_slice(bytes).map_err(bad)?,
    };
    Ok(revs.iter().filter_map(|d| d.ok).map(|ok| place(bytes, ok.get())).collect())
}
