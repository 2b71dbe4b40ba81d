//! Getting documents into a collection, byte for byte, however often it is tried.

use crate::command;
use crate::connect::Server;
use crate::error;
use crate::keys;
use crate::raw;
use crate::retry::Patience;
use bson::{Bson, Document, RawDocumentBuf};
use model::{Batch, Error, ErrorKind, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of documents in one command: several are under way at once, and each is in memory a few
/// times.
const COMMAND: usize = 1 << 20;
/// Documents in one command: its answer may have to say something of each.
const COMMAND_DOCUMENTS: usize = 10_000;
/// A field of a replacement begins with a dollar: DollarPrefixedFieldName.
const DOLLAR_PREFIXED: i32 = 52;

/// The collection that documents are written to.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    pub server: Arc<Server>,
    pub database: String,
    /// The collection whose documents these are: of a time series, that of its buckets.
    pub collection: String,
    /// What people call it.
    pub shown: String,
}

/// Documents of a batch that go into one command.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub docs: Range<usize>,
    pub bytes: usize,
    /// They hold timestamps of zero, which the server would fill in.
    is_literal: bool,
}

/// Makes the `_id` elements the keys of a batch, and cuts it into commands. A document that no
/// server would keep as it is is refused.
pub(crate) fn cut(batch: &mut Batch, shown: &str) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    for i in 0..batch.len() {
        let body = batch.body_of(i);
        let (id, is_literal) = look(body).map_err(|why| refusal(batch, i, shown, why))?;
        let bytes = body.len();
        let fits =
            |p: &Piece| p.is_literal == is_literal && p.docs.len() < COMMAND_DOCUMENTS && p.bytes + bytes <= COMMAND;
        match pieces.last_mut().filter(|p| fits(p)) {
            Some(piece) => {
                piece.docs.end = i + 1;
                piece.bytes += bytes;
            }
            None => pieces.push(Piece { docs: i..i + 1, bytes, is_literal }),
        }
        let doc = &mut batch.docs[i];
        doc.key_start = doc.start + id.start as u32;
        doc.key_len = (id.end - id.start) as u32;
    }
    batch.keys = None;
    Ok(pieces)
}

/// The `_id` of a document, and whether it has an empty timestamp on its top level.
fn look(body: &[u8]) -> Result<(raw::Element, bool), &'static str> {
    if raw::document_len(body) != Some(body.len()) {
        return Err("it is no BSON");
    }
    let id = raw::element(body, 4).filter(|e| &body[e.name..e.value] == b"_id\0");
    let id = id.ok_or("MongoDB stores no document that does not begin with its _id")?;
    let (mut at, mut is_literal) = (id.end, false);
    while let Some(element) = raw::element(body, at) {
        is_literal |= element.kind == 0x11 && body[element.value..element.end] == [0; 8];
        at = element.end;
    }
    match at + 1 == body.len() {
        true => Ok((id, is_literal)),
        false => Err("it is no BSON"),
    }
}

fn refusal(batch: &Batch, i: usize, shown: &str, why: &str) -> Error {
    let name = match raw::id_element(batch.body_of(i)) {
        Some(id) => keys::text(&batch.body_of(i)[id.start..id.end]),
        None => keys::text(batch.key_of(i)),
    };
    Error::unsupported(format!("{shown}: the document {name:.100} cannot be written: {why}"))
        .hint("leave the collection out with --exclude, or restore into the engine or format that it came from")
}

/// What a command's answer says of its documents.
#[derive(Default)]
struct Verdict {
    /// Those, by their number in the command, whose `_id` is there already.
    there: Vec<usize>,
    /// Those that the server does not take as a replacement.
    dollar: Vec<usize>,
    /// Whether the same command may do better on another try.
    again: Option<Error>,
}

impl Namespace {
    /// Writes the documents of a piece; those that are there already, with other bytes, are
    /// replaced. Gives the number and bytes of those that were not there.
    pub async fn put(&self, batch: &Batch, piece: &Piece, is_ordered: bool) -> Result<(u64, u64)> {
        let mut patience = Patience::new();
        let mut there = Vec::new();
        let mut from = piece.docs.start;
        // An ordered command stops at the first document that is there already.
        while from < piece.docs.end {
            let docs = from..piece.docs.end;
            let command = match piece.is_literal {
                true => command::insert_literally(&self.collection, batch, docs)?,
                false => command::insert(&self.collection, batch, docs, is_ordered)?,
            };
            let Some(verdict) = self.run(command, |n| self.name(batch, from + n), &mut patience).await? else {
                if !is_ordered {
                    there.clear();
                }
                continue;
            };
            there.extend(verdict.there.iter().map(|n| from + n));
            from = match verdict.there.first() {
                Some(n) if is_ordered || piece.is_literal => from + n + 1,
                _ => piece.docs.end,
            };
        }
        // What is there after a second try was written by the first one.
        let new = |i: &usize| patience.has_tried() || there.binary_search(i).is_err();
        let bytes = match there.is_empty() {
            true => piece.bytes,
            false => piece.docs.clone().filter(new).map(|i| batch.body_of(i).len()).sum(),
        };
        let count = if patience.has_tried() { piece.docs.len() } else { piece.docs.len() - there.len() };
        self.replace(batch, there).await?;
        Ok((count as u64, bytes as u64))
    }

    fn name(&self, batch: &Batch, i: usize) -> String {
        format!("{}: the document {:.100}", self.shown, keys::text(batch.key_of(i)))
    }

    /// Runs a write command once; nothing if it failed for a passing reason and is to be run again.
    async fn run(
        &self,
        command: RawDocumentBuf,
        name: impl Fn(usize) -> String,
        patience: &mut Patience,
    ) -> Result<Option<Verdict>> {
        let answer = self.server.client().await?.database(&self.database).run_raw_command(command).await;
        let failed = match answer {
            Ok(answer) => {
                let verdict = verdict(&answer, name)?;
                match verdict.again {
                    None => return Ok(Some(verdict)),
                    Some(error) => error,
                }
            }
            Err(e) if error::is_passing(&e) => error::driver(format!("writing to {}", self.shown), e),
            Err(e) => return Err(error::driver(format!("writing to {}", self.shown), e)),
        };
        tracing::debug!(collection = self.shown, error = %failed, "writing is tried again");
        if patience.again().await { Ok(None) } else { Err(failed) }
    }

    /// Replaces documents that are there already, unless they are the same.
    async fn replace(&self, batch: &Batch, there: Vec<usize>) -> Result<()> {
        let mut from = 0;
        while from < there.len() {
            let mut bytes = 0;
            let fits = |i: &&usize| {
                bytes += batch.body_of(**i).len();
                bytes <= COMMAND
            };
            let until = from + there[from..].iter().take(1000).take_while(fits).count().max(1);
            let (different, other_ids) = self.compare(batch, &there[from..until]).await?;
            self.replace_all(batch, different).await?;
            for i in other_ids {
                self.swap(batch, i).await?;
            }
            from = until;
        }
        Ok(())
    }

    /// Of these documents, those that are there with other bytes, and those whose `_id` is equal to
    /// that of one that is there without being the same (1 and 1.0).
    async fn compare(&self, batch: &Batch, docs: &[usize]) -> Result<(Vec<usize>, Vec<usize>)> {
        let mut patience = Patience::new();
        let error = loop {
            let error = match self.compare_once(batch, docs).await? {
                Ok(found) => return Ok(found),
                Err(e) => e,
            };
            if !error::is_passing(&error) || !patience.again().await {
                break error;
            }
        };
        Err(error::driver(format!("reading {}", self.shown), error))
    }

    async fn compare_once(
        &self,
        batch: &Batch,
        docs: &[usize],
    ) -> Result<Result<(Vec<usize>, Vec<usize>), mongodb::error::Error>> {
        let mut wanted: HashMap<&[u8], usize> = docs.iter().map(|i| (batch.key_of(*i), *i)).collect();
        let find = command::find(&self.collection, batch, docs)?;
        let database = self.server.client().await?.database(&self.database);
        let mut different = Vec::new();
        let read = async {
            let mut cursor = database.run_raw_cursor_command(find).await?;
            while cursor.advance().await? {
                let found = cursor.current().as_bytes();
                let Some(id) = raw::id_element(found) else { continue };
                if let Some(i) = wanted.remove(&found[id.start..id.end])
                    && batch.body_of(i) != found
                {
                    different.push(i);
                }
            }
            Ok(())
        };
        Ok(read.await.map(|()| (different, wanted.into_values().collect())))
    }

    async fn replace_all(&self, batch: &Batch, mut docs: Vec<usize>) -> Result<()> {
        let mut one_by_one = Vec::new();
        docs.retain(|i| {
            let is_literal = look(batch.body_of(*i)).is_ok_and(|(_, is_literal)| is_literal);
            if is_literal {
                one_by_one.push(*i);
            }
            !is_literal
        });
        let mut patience = Patience::new();
        while !docs.is_empty() {
            let command = command::replace(&self.collection, batch, &docs)?;
            if let Some(verdict) = self.run(command, |n| self.name(batch, docs[n]), &mut patience).await? {
                one_by_one.extend(verdict.dollar.iter().map(|n| docs[*n]));
                break;
            }
        }
        for i in one_by_one {
            self.swap(batch, i).await?;
        }
        Ok(())
    }

    /// Deletes what is there and inserts the document: for what no update can write.
    async fn swap(&self, batch: &Batch, i: usize) -> Result<()> {
        let mut patience = Patience::new();
        let name = |_| self.name(batch, i);
        let is_literal = look(batch.body_of(i)).is_ok_and(|(_, is_literal)| is_literal);
        loop {
            let command = command::delete(&self.collection, batch, i)?;
            if self.run(command, name, &mut patience).await?.is_none() {
                continue;
            }
            let command = match is_literal {
                true => command::insert_literally(&self.collection, batch, i..i + 1)?,
                false => command::insert(&self.collection, batch, i..i + 1, true)?,
            };
            match self.run(command, name, &mut patience).await? {
                Some(verdict) if verdict.there.is_empty() => return Ok(()),
                // Somebody else writes it, too.
                Some(_) if !patience.again().await => {
                    return Err(Error::new(ErrorKind::Retry, format!("{}: another program writes it, too", name(0))));
                }
                _ => {}
            }
        }
    }
}

fn verdict(answer: &Document, name: impl Fn(usize) -> String) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for problem in answer.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
        let index = problem.get_i32("index").unwrap_or_default().max(0) as usize;
        let code = problem.get_i32("code").unwrap_or_default();
        let text = problem.get_str("errmsg").unwrap_or_default();
        let is_id = problem.get_document("keyPattern").is_ok_and(|k| k.len() == 1 && k.contains_key("_id"));
        match code {
            error::DUPLICATE_KEY if is_id => verdict.there.push(index),
            error::DUPLICATE_KEY => {
                return Err(Error::input(format!("{} cannot be written: {text}", name(index)))
                    .hint("a document with another _id has what a unique index allows only once: delete it, or restore into another collection"));
            }
            DOLLAR_PREFIXED => verdict.dollar.push(index),
            _ if error::is_passing_code(code) => {
                verdict.again = Some(Error::new(ErrorKind::Retry, format!("{}: {text} ({code})", name(index))));
            }
            _ => {
                let kind = if code == 14031 { ErrorKind::Full } else { ErrorKind::Unsupported };
                return Err(Error::new(kind, format!("{} cannot be written: {text} ({code})", name(index))));
            }
        }
    }
    if let Ok(problem) = answer.get_document("writeConcernError") {
        let code = problem.get_i32("code").unwrap_or_default();
        let text = problem.get_str("errmsg").unwrap_or_default();
        let error = |kind| Error::new(kind, format!("the write is not acknowledged: {text} ({code})"));
        match error::is_passing_code(code) {
            true => verdict.again = Some(error(ErrorKind::Retry)),
            false => return Err(error(ErrorKind::Unsupported)),
        }
    }
    Ok(verdict)
}
