//! Write commands as bytes, so that documents get into them as they are.

use bson::RawDocumentBuf;
use model::{Batch, Error, Result};
use std::io::Write;
use std::ops::Range;

/// Makes a BSON document of elements and nested documents.
struct Builder {
    bytes: Vec<u8>,
    /// Where the documents begin that are not closed yet.
    open: Vec<usize>,
}

impl Builder {
    fn new(capacity: usize) -> Builder {
        let mut builder = Builder { bytes: Vec::with_capacity(capacity), open: Vec::new() };
        builder.begin();
        builder
    }

    fn begin(&mut self) {
        self.open.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
    }

    fn name(&mut self, kind: u8, name: &str) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
    }

    /// A number as the name, as arrays have it.
    fn index(&mut self, kind: u8, index: usize) {
        self.bytes.push(kind);
        // Writing to a vector does not fail.
        let _ = write!(self.bytes, "{index}");
        self.bytes.push(0);
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(0x02, name);
        self.bytes.extend_from_slice(&(text.len() as u32 + 1).to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn flag(&mut self, name: &str, yes: bool) {
        self.name(0x08, name);
        self.bytes.push(u8::from(yes));
    }

    fn number(&mut self, name: &str, number: i32) {
        self.name(0x10, name);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn document(&mut self, name: &str) {
        self.name(0x03, name);
        self.begin();
    }

    fn array(&mut self, name: &str) {
        self.name(0x04, name);
        self.begin();
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn end(&mut self) {
        self.bytes.push(0);
        if let Some(start) = self.open.pop() {
            let length = (self.bytes.len() - start) as u32;
            self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        }
    }

    fn finish(mut self) -> Result<RawDocumentBuf> {
        while !self.open.is_empty() {
            self.end();
        }
        RawDocumentBuf::from_bytes(self.bytes).map_err(|e| Error::bug("a command is no BSON").caused_by(e))
    }
}

/// Where a command goes, and how its effect is acknowledged.
fn start(command: &str, collection: &str, bytes: usize, is_ordered: bool) -> Builder {
    let mut builder = Builder::new(bytes + 256 + collection.len());
    builder.text(command, collection);
    builder.flag("ordered", is_ordered);
    builder.document("writeConcern");
    // What is acknowledged must survive an election, or it would be missing without a sign.
    builder.text("w", "majority");
    builder.end();
    builder
}

fn bytes_of(batch: &Batch, docs: impl Iterator<Item = usize>) -> usize {
    docs.map(|i| batch.body_of(i).len() + batch.key_of(i).len() + 96).sum()
}

/// Inserts documents.
pub(crate) fn insert(
    collection: &str,
    batch: &Batch,
    docs: impl Iterator<Item = usize> + Clone,
    is_ordered: bool,
) -> Result<RawDocumentBuf> {
    let mut builder = start("insert", collection, bytes_of(batch, docs.clone()), is_ordered);
    builder.flag("bypassDocumentValidation", true);
    builder.array("documents");
    for (n, i) in docs.enumerate() {
        builder.index(0x03, n);
        builder.raw(batch.body_of(i));
    }
    builder.finish()
}

/// Puts documents in the place of those with the same `_id`.
pub(crate) fn replace(collection: &str, batch: &Batch, docs: &[usize]) -> Result<RawDocumentBuf> {
    let mut builder = start("update", collection, bytes_of(batch, docs.iter().copied()), false);
    builder.flag("bypassDocumentValidation", true);
    builder.array("updates");
    for (n, i) in docs.iter().enumerate() {
        builder.index(0x03, n);
        builder.begin();
        builder.document("q");
        builder.raw(batch.key_of(*i));
        builder.end();
        builder.name(0x03, "u");
        builder.raw(batch.body_of(*i));
        builder.flag("upsert", true);
        builder.end();
    }
    builder.finish()
}

/// Inserts documents with empty timestamps, which `insert` would fill in: as what an update makes
/// that finds nothing. It never finds anything: an update of that kind that finds a document with
/// the same field twice stops a whole server (6.0).
pub(crate) fn insert_literally(collection: &str, batch: &Batch, docs: Range<usize>) -> Result<RawDocumentBuf> {
    let mut builder = start("update", collection, bytes_of(batch, docs.clone()), true);
    builder.flag("bypassDocumentValidation", true);
    builder.array("updates");
    for (n, i) in docs.enumerate() {
        builder.index(0x03, n);
        builder.begin();
        builder.document("q");
        builder.raw(batch.key_of(i));
        builder.array("$nor");
        builder.document("0");
        builder.end();
        builder.end();
        builder.end();
        builder.array("u");
        builder.document("0");
        builder.document("$replaceWith");
        builder.name(0x03, "$literal");
        builder.raw(batch.body_of(i));
        builder.end();
        builder.end();
        builder.end();
        builder.flag("upsert", true);
        builder.end();
    }
    builder.finish()
}

/// Deletes the document with the `_id` of this one.
pub(crate) fn delete(collection: &str, batch: &Batch, i: usize) -> Result<RawDocumentBuf> {
    let mut builder = start("delete", collection, bytes_of(batch, [].into_iter()), true);
    builder.array("deletes");
    builder.document("0");
    builder.document("q");
    builder.raw(batch.key_of(i));
    builder.end();
    builder.number("limit", 1);
    builder.finish()
}

/// Finds the documents with the `_id` of these.
pub(crate) fn find(collection: &str, batch: &Batch, docs: &[usize]) -> Result<RawDocumentBuf> {
    let mut builder = Builder::new(docs.iter().map(|i| batch.key_of(*i).len() + 8).sum::<usize>() + 256);
    builder.text("find", collection);
    builder.document("filter");
    builder.document("_id");
    builder.array("$in");
    for (n, i) in docs.iter().enumerate() {
        // A key is type, `_id\0`, value.
        let key = batch.key_of(*i);
        builder.index(key[0], n);
        builder.raw(&key[5..]);
    }
    builder.finish()
}
