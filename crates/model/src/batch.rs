//! Batches: many documents of one collection in one buffer.

use crate::{AttachmentRef, Error, Result};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The engine's own, lasting identity of a collection (a UUID, an instance start time, a table
/// id, a folder's name). Its name can change, this cannot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CollectionId(Arc<str>);

impl CollectionId {
    /// An identity as the engine writes it.
    pub fn new(id: impl AsRef<str>) -> Self {
        CollectionId(Arc::from(id.as_ref()))
    }

    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the documents of a batch are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Documents.
    Document,
    /// Revisions: the unit is key and revision together.
    Revision,
    /// Keys that are deleted; bodies are empty, or what the engine keeps of a deleted document.
    Tombstone,
    /// Keys that are deleted of another kind space than documents ([`Kind::space`]).
    TombstoneOf(String),
    /// An incremental change to a document, in the engine's own encoding; only in the change log.
    Patch,
    /// Documents that the engine does not replicate (CouchDB's `_local`).
    Local,
    /// Counters.
    Counter,
    /// Time series.
    TimeSeries,
    /// Attachments: each body is what the engine says of one (owner, name, type) in JSON, and
    /// [`Batch::attachments`] holds the reference to its content.
    Attachment,
    /// Anything else that must be kept, under the engine's name for it.
    Meta(String),
}

impl Kind {
    /// Whether two batches of these kinds speak of the same things: a tombstone deletes a
    /// document, a patch changes one.
    pub fn space(&self) -> &str {
        match self {
            Kind::Document | Kind::Tombstone | Kind::Patch => "document",
            Kind::Revision => "revision",
            Kind::Local => "local",
            Kind::Counter => "counter",
            Kind::TimeSeries => "time-series",
            Kind::Attachment => "attachment",
            Kind::Meta(name) | Kind::TombstoneOf(name) => name,
        }
    }

    /// The kind of deletions in a kind space.
    pub fn tombstone_of(space: &str) -> Kind {
        if space == "document" { Kind::Tombstone } else { Kind::TombstoneOf(space.to_owned()) }
    }

    /// Whether documents of this kind are deletions.
    pub fn is_tombstone(&self) -> bool {
        matches!(self, Kind::Tombstone | Kind::TombstoneOf(_))
    }
}

/// How bodies are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// BSON documents, one after the other.
    Bson,
    /// JSON texts, verbatim.
    Json,
    /// Bytes without a meaning to us.
    Bin,
}

/// Where one document stands in the buffers of its batch. All numbers are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doc {
    /// First byte of the body, in [`Batch::body`].
    pub start: u32,
    /// One past the last byte of the body.
    pub end: u32,
    /// First byte of the key, in [`Batch::keys`] if there is one, else in [`Batch::body`].
    pub key_start: u32,
    /// Length of the key.
    pub key_len: u32,
}

/// Documents of one collection, one kind and one encoding, in one buffer.
///
/// The buffer is the one the engine received: nothing is decoded beyond framing and key, and
/// nothing is copied one by one. Bytes between documents (line ends) belong to no document.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The collection.
    pub collection: CollectionId,
    /// What the documents are.
    pub kind: Kind,
    /// How their bodies are encoded.
    pub encoding: Encoding,
    /// The bodies.
    pub body: Bytes,
    /// The keys, where they are not parts of the bodies.
    pub keys: Option<Bytes>,
    /// Where each document stands.
    pub docs: Vec<Doc>,
    /// For [`Kind::Attachment`]: the content of each document, in the same order; else empty.
    pub attachments: Vec<AttachmentRef>,
}

impl Batch {
    /// The number of documents.
    pub fn len(&self) -> usize {
        self.docs.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.docs.is_empty()
    }

    /// The body of document `i`. Panics if there is no such document.
    pub fn body_of(&self, i: usize) -> &[u8] {
        let doc = self.docs[i];
        &self.body[doc.start as usize..doc.end as usize]
    }

    /// The key of document `i`, in the engine's own bytes. Panics if there is no such document.
    pub fn key_of(&self, i: usize) -> &[u8] {
        let doc = self.docs[i];
        let from = self.keys.as_ref().unwrap_or(&self.body);
        &from[doc.key_start as usize..(doc.key_start + doc.key_len) as usize]
    }

    /// The bytes of all bodies together.
    pub fn raw_bytes(&self) -> u64 {
        self.docs.iter().map(|d| u64::from(d.end - d.start)).sum()
    }

    /// Checks that every span lies inside its buffer (a key that is part of a body inside its own
    /// document) and that attachments match documents, so that the accessors cannot panic.
    pub fn check(&self) -> Result<()> {
        let keys = self.keys.as_ref().unwrap_or(&self.body).len() as u64;
        let inside = self.keys.is_none();
        let sound = self.docs.iter().all(|d| {
            let key_end = u64::from(d.key_start) + u64::from(d.key_len);
            d.start <= d.end
                && d.end as usize <= self.body.len()
                && key_end <= keys
                && (!inside || (d.key_start >= d.start && key_end <= u64::from(d.end)))
        });
        let attachments = if self.kind == Kind::Attachment { self.docs.len() } else { 0 };
        if sound && self.attachments.len() == attachments {
            Ok(())
        } else {
            Err(Error::bug(format!("a batch of collection {} has spans outside its buffers", self.collection)))
        }
    }
}

/// Builds a batch from bodies and keys that do not already lie in one buffer.
#[derive(Debug)]
pub struct BatchBuilder {
    collection: CollectionId,
    kind: Kind,
    encoding: Encoding,
    body: BytesMut,
    keys: BytesMut,
    docs: Vec<Doc>,
    attachments: Vec<AttachmentRef>,
    places: usize,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new(collection: CollectionId, kind: Kind, encoding: Encoding) -> Self {
        BatchBuilder {
            collection,
            kind,
            encoding,
            body: BytesMut::new(),
            keys: BytesMut::new(),
            docs: Vec::new(),
            attachments: Vec::new(),
            places: 0,
        }
    }

    /// Adds a document.
    pub fn push(&mut self, key: &[u8], body: &[u8]) {
        let doc = Doc {
            start: self.body.len() as u32,
            end: (self.body.len() + body.len()) as u32,
            key_start: self.keys.len() as u32,
            key_len: key.len() as u32,
        };
        self.body.extend_from_slice(body);
        self.keys.extend_from_slice(key);
        self.docs.push(doc);
    }

    /// Adds an attachment: what the engine says of it, and its content.
    pub fn push_attachment(&mut self, key: &[u8], body: &[u8], content: AttachmentRef) {
        self.push(key, body);
        self.places += content.place.len();
        self.attachments.push(content);
    }

    /// Bytes of bodies and keys so far, and of contents that references carry with them.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.keys.len() + self.places
    }

    /// Documents so far.
    pub fn len(&self) -> usize {
        self.docs.len()
    }

    /// Whether there is no document yet.
    pub fn is_empty(&self) -> bool {
        self.docs.is_empty()
    }

    /// The batch; the builder is empty afterwards and can be used again.
    pub fn take(&mut self) -> Batch {
        self.places = 0;
        Batch {
            collection: self.collection.clone(),
            kind: self.kind.clone(),
            encoding: self.encoding,
            body: self.body.split().freeze(),
            keys: Some(self.keys.split().freeze()),
            docs: std::mem::take(&mut self.docs),
            attachments: std::mem::take(&mut self.attachments),
        }
    }
}
