//! What is known of a document, as a record that may wait in a temporary file.

use crate::frame::Frame;
use model::{EngineTime, Kind};

pub(super) const PUT: u8 = 0;
pub(super) const DELETE: u8 = 1;
pub(super) const PATCH: u8 = 2;

/// What there is to know of a document in a frame.
pub(super) struct Seen {
    pub counts: [bool; 2],
    pub time: EngineTime,
    pub is_copy: bool,
    pub number: u32,
}

/// Writes what is known of a document as a record.
pub(super) fn write(record: &mut Vec<u8>, frame: &Frame, i: usize, is_body: bool, seen: Seen) {
    let batch = &frame.batch;
    let op = match &batch.kind {
        kind if kind.is_tombstone() => DELETE,
        Kind::Patch => PATCH,
        _ => PUT,
    };
    let key = batch.key_of(i);
    record.clear();
    record.extend_from_slice(&seen.time.order.to_le_bytes());
    record.push(u8::from(seen.is_copy));
    record.extend_from_slice(&seen.number.to_le_bytes());
    record.push(u8::from(seen.counts[0]) | u8::from(seen.counts[1]) << 1);
    record.push(op | u8::from(is_body) << 4);
    record.extend_from_slice(&(key.len() as u32).to_le_bytes());
    record.extend_from_slice(key);
    match (op, is_body) {
        (DELETE, _) => {}
        (_, true) => record.extend_from_slice(batch.body_of(i)),
        (_, false) => {
            let content = batch.attachments.get(i).map(|a| a.digest);
            record.extend_from_slice(&digest(batch.body_of(i), content.as_ref().map_or(&[], |d| &d[..])));
        }
    }
}

/// What a state knows of a key.
pub(super) struct Entry<'a> {
    pub time: u64,
    /// A copy from a layer stands after log entries of the same time: they are in it already.
    pub is_copy: bool,
    pub number: u32,
    pub counts: [bool; 2],
    pub op: u8,
    pub is_body: bool,
    pub key: &'a [u8],
    pub rest: &'a [u8],
}

impl<'a> Entry<'a> {
    pub fn read(record: &'a [u8]) -> Option<Entry<'a>> {
        let (head, rest) = record.split_at_checked(19)?;
        let length = u32::from_le_bytes(head[15..].try_into().ok()?);
        let (key, rest) = rest.split_at_checked(length as usize)?;
        Some(Entry {
            time: u64::from_le_bytes(head[..8].try_into().ok()?),
            is_copy: head[8] == 1,
            number: u32::from_le_bytes(head[9..13].try_into().ok()?),
            counts: [head[13] & 1 != 0, head[13] & 2 != 0],
            op: head[14] & 15,
            is_body: head[14] >> 4 == 1,
            key,
            rest,
        })
    }
}

/// What stands for a body and a content.
pub(super) fn digest(body: &[u8], content: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(body.len() as u64).to_le_bytes()).update(body).update(content);
    *hasher.finalize().as_bytes()
}
