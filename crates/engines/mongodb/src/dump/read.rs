//! Reading documents into batches.

use super::contents::Place;
use super::files::{self, Ranges, Stamp, changed};
use crate::raw;
use bytes::Bytes;
use model::{Batch, CollectionInfo, Encoding, Error, ErrorKind, Kind, Result, ScanItem, Selection};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc::Sender;

/// Bytes of one batch, unless a single document is larger.
const BLOCK: usize = 1 << 20;

/// What a plan tells the reading of one collection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Token {
    pub place: Place,
    /// Which documents; none if all.
    pub selection: Option<Selection>,
}

/// The way to whoever reads.
pub(crate) type Out = Sender<Result<ScanItem>>;

/// Reads a collection of a folder; blocks.
pub(crate) fn file(path: &Path, shown: &str, token: &Token, info: &CollectionInfo, out: &Out) -> Result<()> {
    let Place::File { gzip, until, stamp, .. } = &token.place else {
        return Err(Error::bug("what lies in an archive was read from a folder"));
    };
    let fail = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => changed(shown),
        _ => Error::io(format!("reading {shown}"), e),
    };
    let is_as_planned = || -> Result<()> {
        let now = Stamp::of(&std::fs::metadata(path).map_err(fail)?);
        if *stamp == Some(now) { Ok(()) } else { Err(changed(shown)) }
    };
    let file = File::open(path).map_err(fail)?;
    is_as_planned()?;
    documents(files::content(file, *gzip).take(*until), *until, shown, token, info, out)?;
    is_as_planned()
}

/// Reads a collection of an archive, whose content is in this file; blocks.
pub(crate) fn blocks(content: Arc<File>, shown: &str, token: &Token, info: &CollectionInfo, out: &Out) -> Result<()> {
    let Place::Blocks { ranges, .. } = &token.place else {
        return Err(Error::bug("what lies in a folder was read from an archive"));
    };
    let bytes = ranges.iter().map(|(from, to)| to - from).sum();
    documents(Ranges::new(content, ranges.clone()), bytes, shown, token, info, out)
}

fn documents(
    mut reader: impl Read,
    bytes: u64,
    shown: &str,
    token: &Token,
    info: &CollectionInfo,
    out: &Out,
) -> Result<()> {
    let mut rest: Vec<u8> = Vec::new();
    let mut done = 0;
    while done < bytes {
        let length = rest.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_le_bytes);
        // One document that does not fit: as much as it needs, and no more than the plan found.
        let size = BLOCK.max(usize::try_from(length).unwrap_or(0).min(raw::DOCUMENT_MAX));
        let mut buffer = Vec::with_capacity(size);
        buffer.append(&mut rest);
        let want = size - buffer.len();
        let got = reader.by_ref().take(want as u64).read_to_end(&mut buffer);
        let got = got.map_err(|e| Error::io(format!("reading {shown}"), e))?;
        let mut docs = Vec::new();
        let end = raw::sequence(&buffer, &mut docs).map_err(|_| changed(shown))?;
        if end == 0 && got < want {
            return Err(changed(shown));
        }
        rest = buffer[end..].to_vec();
        buffer.truncate(end);
        done += end as u64;
        let mut batch = Batch {
            collection: info.id.clone(),
            kind: Kind::Document,
            encoding: Encoding::Bson,
            body: Bytes::from(buffer),
            keys: None,
            docs,
            attachments: Vec::new(),
        };
        if let Some(selection) = &token.selection {
            let mut docs = std::mem::take(&mut batch.docs);
            docs.retain(|d| {
                let key = &batch.body[d.key_start as usize..(d.key_start + d.key_len) as usize];
                selection.takes_key(&info.name, key)
            });
            batch.docs = docs;
        }
        if !batch.is_empty() && out.blocking_send(Ok(ScanItem::Batch(batch))).is_err() {
            // Nobody reads any more: the work ends, and nobody hears of it.
            return Err(Error::new(ErrorKind::Interrupted, "reading was given up"));
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(changed(shown)) }
}
