//! Batches straight from the server's replies: nothing is copied.

use crate::raw::{self, Element};
use bson::RawBsonRef;
use bytes::Bytes;
use model::{Batch, CollectionId, Doc, Encoding, Error, Kind, Result};
use mongodb::raw_batch_cursor::RawBatch;

/// A reply as the owner of its bytes.
struct Reply(RawBatch);

impl AsRef<[u8]> for Reply {
    fn as_ref(&self) -> &[u8] {
        self.0.as_raw_document().as_bytes()
    }
}

/// What a reply to `find` or `getMore` says.
pub(crate) struct Answer {
    /// The whole reply.
    pub body: Bytes,
    /// Its documents.
    pub docs: Vec<Doc>,
    /// The record that a later query can go on after; none where the server gives none, or at the
    /// end.
    pub resume: Option<bson::Bson>,
    /// Whether this was the last one.
    pub is_last: bool,
}

/// Takes a reply apart.
pub(crate) fn answer(reply: RawBatch) -> Result<Answer> {
    let broken = || Error::corrupt("the server's answer holds no cursor");
    let body = Bytes::from_owner(Reply(reply));
    let cursor = named(&body, 4, b"cursor").filter(|e| e.kind == 0x03).ok_or_else(broken)?;
    let (mut docs, mut resume, mut is_last) = (Vec::new(), None, true);
    let mut at = cursor.value + 4;
    while let Some(field) = raw::element(&body[..cursor.end], at) {
        match (field.kind, &body[field.name..field.value - 1]) {
            (0x04, b"firstBatch" | b"nextBatch") => raw::array(&body, field.value, &mut docs)?,
            (0x12, b"id") => is_last = body[field.value..field.end] == [0; 8],
            (0x03, b"postBatchResumeToken") => resume = record_of(&body[field.value..field.end]),
            _ => {}
        }
        at = field.end;
    }
    Ok(Answer { body, docs, resume, is_last })
}

/// The first element with this name, from position `at` on.
fn named(bytes: &[u8], mut at: usize, name: &[u8]) -> Option<Element> {
    loop {
        let element = raw::element(bytes, at)?;
        if &bytes[element.name..element.value - 1] == name {
            return Some(element);
        }
        at = element.end;
    }
}

fn record_of(token: &[u8]) -> Option<bson::Bson> {
    let token = bson::RawDocument::from_bytes(token).ok()?;
    match token.get("$recordId").ok()?? {
        RawBsonRef::Null => None,
        record => bson::Bson::try_from(record).ok(),
    }
}

impl Answer {
    /// As a batch.
    pub fn into_batch(self, collection: &CollectionId) -> Batch {
        Batch {
            collection: collection.clone(),
            kind: Kind::Document,
            encoding: Encoding::Bson,
            body: self.body,
            keys: None,
            docs: self.docs,
            attachments: Vec::new(),
        }
    }

    /// The documents of a reply that was asked for with `showRecordId`, without those numbers, up
    /// to the record `until`; and whether one came after it. These few are copied.
    pub fn up_to(self, until: i64, after: Option<i64>) -> Result<(Answer, bool)> {
        // An int64 named $recordId at the end of each document: 1 + 10 + 8 bytes.
        const TAIL: usize = 19;
        let mut bytes = Vec::with_capacity(self.body.len());
        let mut docs = Vec::with_capacity(self.docs.len());
        let mut is_past = false;
        let mut last = None;
        for doc in &self.docs {
            let document = &self.body[doc.start as usize..doc.end as usize];
            let split =
                document.len().checked_sub(TAIL + 1).filter(|at| document[*at..].starts_with(b"\x12$recordId\0"));
            let (head, tail) = document.split_at(split.ok_or_else(|| {
                Error::unsupported("the server numbers its records in a way that this version of Rewound does not know")
            })?);
            let record = tail[11..].first_chunk().map(|b| i64::from_le_bytes(*b)).unwrap_or_default();
            if record > until {
                is_past = true;
                break;
            }
            last = Some(bson::Bson::Int64(record));
            if after.is_some_and(|after| record <= after) {
                continue;
            }
            let start = bytes.len();
            bytes.extend_from_slice(&(head.len() as u32 + 1).to_le_bytes());
            bytes.extend_from_slice(&head[4..]);
            bytes.push(0);
            docs.push(raw::doc(&bytes, start).ok_or_else(|| Error::corrupt("the server's answer is no BSON"))?);
        }
        let resume = last.or(self.resume);
        Ok((Answer { body: bytes.into(), docs, resume, is_last: self.is_last || is_past }, is_past))
    }
}
