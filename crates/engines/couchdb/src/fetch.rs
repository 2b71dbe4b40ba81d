//! Fetching documents with all their leaves, many at once.

use crate::answer::{self, Spot};
use crate::client::{Client, Request, document_path, segment, too_large};
use crate::copies;
use crate::leaf::Leaf;
use crate::members::quoted;
use crate::rows::Row;
use crate::server;
use bytes::{Bytes, BytesMut};
use model::{Batch, CollectionId, Doc, Encoding, Error, ErrorKind, Kind, Result};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes that one answer should hold.
const ANSWER: usize = 1 << 20;
/// Bytes from which on an answer about several documents is asked for in halves.
const ANSWER_SPLIT: usize = 16 << 20;
/// Bytes that an answer about one document may have, with all its conflicts.
const ANSWER_ONE: usize = 128 << 20;
/// Bytes of an answer up to which documents stay in it on their way to the vault: whoever has one of them
/// holds all of it.
const ANSWER_KEPT: usize = 2 * ANSWER;
/// Documents in one request: more were slower.
const TOGETHER: usize = 500;
/// How often a revision that one copy of a database has named is looked for in all of them, and the first
/// pause; each is twice as long as the one before.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

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
        (ANSWER / self.bytes().max(1)).clamp(1, TOGETHER)
    }

    /// Bytes that a document has, as far as is known.
    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn learn(&self, documents: usize, bytes: usize) {
        let now = bytes / documents.max(1);
        let before = self.bytes();
        self.bytes.store((before * 3 + now) / 4, Ordering::Relaxed);
    }
}

/// The leaves of some documents.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The server's answers, which hold the leaves' texts.
    answers: Vec<Bytes>,
    /// Which answer, and where in it each leaf is: those of one document side by side.
    places: Vec<(usize, Spot)>,
    /// For each document that was asked for, which of these are its own.
    own: Vec<Range<usize>>,
}

impl Fetched {
    fn new(documents: usize) -> Fetched {
        Fetched { answers: Vec::new(), places: Vec::new(), own: vec![0..0; documents] }
    }

    /// Takes what an answer says of the documents from this number on.
    fn take(&mut self, from: usize, answer: Bytes, mut found: Vec<(usize, Spot)>) {
        // As they mostly are.
        found.sort_by_key(|(number, _)| *number);
        for (number, spot) in found {
            let (own, next) = (&mut self.own[from + number], self.places.len());
            *own = if own.start == own.end { next..next + 1 } else { own.start..next + 1 };
            self.places.push((self.answers.len(), spot));
        }
        self.answers.push(answer);
    }

    /// Takes all leaves of one document as they are now, in so many copies of the database.
    async fn open(&mut self, client: &Client, database: &str, id: &str, i: usize, copies: Option<u64>) -> Result<()> {
        let (bytes, found) = open(client, database, id, copies).await?;
        let found = found.into_iter().map(|(start, end)| (0, Spot { start, end, is_plain: false })).collect();
        self.own[i] = 0..0;
        self.take(i, bytes, found);
        Ok(())
    }

    /// Looks in all copies of a database for revisions that a row has named: the copy that the row came from
    /// may be the only one that has them yet.
    async fn complete(&mut self, client: &Client, database: &str, row: &Row, i: usize) -> Result<()> {
        let copies = copies::count(client, database).await?;
        let mut pause = PAUSE;
        for _ in 0..TRIES {
            let Some(_) = copies::lacking(&row.revs, &self.texts(i)).filter(|_| copies > 1) else { return Ok(()) };
            tokio::time::sleep(pause).await;
            pause *= 2;
            self.open(client, database, &row.id, i, Some(copies)).await?;
        }
        match copies::lacking(&row.revs, &self.texts(i)) {
            Some(rev) if !server::purged(client, database).await?.is_some_and(|ids| ids.contains(&row.id)) => {
                let what = format!("revision {rev} of document {} in {database}", row.id);
                let text = format!("a node of the cluster has {what}, and none that answers gives it");
                Err(Error::new(ErrorKind::Retry, text).hint("run the command again when all nodes are up"))
            }
            _ => Ok(()),
        }
    }

    fn spots(&self, i: usize) -> &[(usize, Spot)] {
        &self.places[self.own[i].clone()]
    }

    fn text(&self, place: &(usize, Spot)) -> &[u8] {
        &self.answers[place.0][place.1.start..place.1.end]
    }

    fn texts(&self, i: usize) -> Vec<&[u8]> {
        let mut texts: Vec<_> = self.spots(i).iter().map(|place| self.text(place)).collect();
        texts.sort_unstable();
        texts
    }

    /// Whether a document may have attachments: a text that only looks so costs a request.
    fn has_attachments(&self, i: usize) -> bool {
        let mut close = self.spots(i).iter().filter(|place| !place.1.is_plain);
        close.any(|place| contains(self.text(place), b"\"_attachments\":"))
    }

    /// The text of the document that was asked for as number `i`, if there is nothing more to know of it.
    pub fn plain(&self, i: usize) -> Option<&[u8]> {
        match self.spots(i) {
            [only] if only.1.is_plain => Some(self.text(only)),
            _ => None,
        }
    }

    /// Batches of the documents of which there is nothing more to know: they stay where they are in the
    /// answers. And the numbers of all others.
    pub fn plain_batches(&self, rows: &[Row], collection: &CollectionId) -> (Vec<Batch>, Vec<usize>) {
        let mut batches: Vec<_> = self.answers.iter().map(|_| (BytesMut::new(), Vec::new())).collect();
        let mut others = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            match self.spots(i) {
                [(answer, spot)] if spot.is_plain && self.answers[*answer].len() <= ANSWER_KEPT => {
                    let (keys, docs) = &mut batches[*answer];
                    docs.push(Doc {
                        start: spot.start as u32,
                        end: spot.end as u32,
                        key_start: keys.len() as u32,
                        key_len: row.id.len() as u32,
                    });
                    keys.extend_from_slice(row.id.as_bytes());
                }
                _ => others.push(i),
            }
        }
        let batches = batches.into_iter().zip(&self.answers).filter(|((_, docs), _)| !docs.is_empty());
        let batches = batches.map(|((keys, docs), answer)| Batch {
            collection: collection.clone(),
            kind: Kind::Document,
            encoding: Encoding::Json,
            body: answer.clone(),
            keys: Some(keys.freeze()),
            docs,
            attachments: Vec::new(),
        });
        (batches.collect(), others)
    }

    /// Whether the answer to many questions says as much of a document's attachments as that to a single
    /// one. The first document with packed attachments settles it for all.
    async fn tells_all(&self, client: &Client, database: &str, row: &Row, i: usize, pace: &Pace) -> Result<bool> {
        if let Some(tells) = pace.tells.get() {
            return Ok(*tells);
        }
        let mut alone = Fetched::new(1);
        alone.open(client, database, &row.id, 0, None).await?;
        let (here, there) = (self.texts(i), alone.texts(0));
        if there.iter().any(|text| contains(text, b"\"encoding\":")) {
            // Two may find it out at the same time: the same.
            let _ = pace.tells.set(here == there);
        }
        Ok(here == there)
    }

    /// The leaves of the document that was asked for as number `i`; none if it is gone.
    pub fn leaves(&self, i: usize, without: bool) -> Result<Vec<Leaf<'_>>> {
        let texts = self.spots(i).iter().map(|place| self.text(place));
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

/// Fetches all leaves of documents.
pub(crate) async fn fetch(client: &Client, database: &str, rows: &[Row], pace: &Pace) -> Result<Fetched> {
    let mut all = Fetched::new(rows.len());
    let mut waiting: Vec<(usize, usize)> = if rows.is_empty() { vec![] } else { vec![(0, rows.len())] };
    while let Some((from, to)) = waiting.pop() {
        let some = &rows[from..to];
        // Some servers never answer a question about nothing.
        if some.iter().all(|row| row.revs.is_empty()) {
            continue;
        }
        let limit = if some.len() == 1 { ANSWER_ONE } else { ANSWER_SPLIT };
        let path = format!("{}/_bulk_get?revs=true&att_encoding_info=true", segment(database));
        let request = Request { expects: some.len() * pace.bytes() * 5 / 4, ..Request::post(path, question(some)) };
        let answer = client
            .json(&request, limit, |bytes| {
                let found = answer::read(bytes, some)?;
                Ok((bytes.clone(), found))
            })
            .await;
        match answer {
            Ok((bytes, found)) => {
                pace.learn(some.len(), bytes.len());
                all.take(from, bytes, found);
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
        let is_old = all.own[i].len() != row.revs.len() || row.revs.is_empty();
        if is_old || (all.has_attachments(i) && !all.tells_all(client, database, row, i, pace).await?) {
            all.open(client, database, &row.id, i, None).await?;
        }
        if is_old && copies::lacking(&row.revs, &all.texts(i)).is_some() {
            all.complete(client, database, row, i).await?;
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

/// All leaves of one document as they are now, in so many copies of the database: the answer, and where in it
/// each of them is.
async fn open(client: &Client, database: &str, id: &str, copies: Option<u64>) -> Result<(Bytes, Vec<(usize, usize)>)> {
    let read = |bytes: &Bytes| Ok((bytes.clone(), answer::one(bytes)?));
    let Some(path) = document_path(database, id) else {
        // Such an id cannot be asked for by path: the winner must do.
        let path = format!("{}/_bulk_get?revs=true&att_encoding_info=true", segment(database));
        let body = serde_json::json!({ "docs": [{ "id": id }] }).to_string();
        return client.json(&Request::post(path, body), ANSWER_ONE, read).await;
    };
    let copies = copies.map(|copies| format!("&r={copies}")).unwrap_or_default();
    let request = Request::get(format!("{path}?open_revs=all&revs=true&att_encoding_info=true{copies}"));
    match client.json(&request, ANSWER_ONE, read).await {
        Err(e) if e.kind() == ErrorKind::Missing => Ok((Bytes::from_static(b"[]"), Vec::new())),
        other => other,
    }
}
