//! The documents on their way out, those that were made anew in batches of their own.

use crate::direct::stands_alone;
use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use model::limits::{BATCH, BATCH_DOCUMENTS};
use model::{Batch, CollectionId, Doc, Encoding, Error, ErrorKind, Kind, Result};
use std::collections::VecDeque;

/// Buffers that are kept until they can be used again: more than wait for a reader.
const SENT: usize = 8;

/// Where documents go.
pub(crate) struct Out {
    sender: mpsc::Sender<Result<Batch>>,
    /// Documents that were made anew.
    made: Option<Made>,
    /// Buffers that went out, to be used again.
    sent: VecDeque<Bytes>,
}

/// A batch in the making, in buffers that need not grow.
pub(crate) struct Made {
    like: (CollectionId, Kind, Encoding),
    body: Vec<u8>,
    keys: Vec<u8>,
    docs: Vec<Doc>,
}

impl Made {
    /// Adds a document, whose body is written by `body`.
    pub fn push(&mut self, key: &[u8], body: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
        let (start, key_start) = (self.body.len() as u32, self.keys.len() as u32);
        body(&mut self.body)?;
        self.keys.extend_from_slice(key);
        self.docs.push(Doc { start, end: self.body.len() as u32, key_start, key_len: key.len() as u32 });
        Ok(())
    }
}

impl Out {
    pub fn new(sender: mpsc::Sender<Result<Batch>>) -> Self {
        Out { sender, made: None, sent: VecDeque::new() }
    }

    /// Sends a batch, if there is anything in it.
    pub async fn send(&mut self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let gone = |_| Error::new(ErrorKind::Interrupted, "the reader of a collection has gone");
        self.sender.send(Ok(batch)).await.map_err(gone)
    }

    /// Where documents like those of a batch go, with room for one more.
    pub async fn like(&mut self, like: &Batch, bytes: usize) -> Result<&mut Made> {
        let fits = |made: &Made| {
            let room = made.body.len() + bytes <= BATCH && made.docs.len() < BATCH_DOCUMENTS;
            room && (&made.like.1, made.like.2) == (&like.kind, like.encoding)
        };
        if !self.made.as_ref().is_some_and(fits) {
            self.flush().await?;
        }
        let made = match self.made.take() {
            Some(made) => made,
            None => Made {
                like: (like.collection.clone(), like.kind.clone(), like.encoding),
                body: self.buffer(bytes),
                keys: Vec::new(),
                docs: Vec::new(),
            },
        };
        Ok(self.made.insert(made))
    }

    /// An empty buffer: one that went out, if its reader is done with it. Memory that was used a moment
    /// ago is near, and need not be asked for.
    fn buffer(&mut self, bytes: usize) -> Vec<u8> {
        let done = self.sent.iter().position(Bytes::is_unique).and_then(|at| self.sent.remove(at));
        match done {
            Some(mut done) => {
                done.clear();
                let mut buffer = Vec::from(done);
                buffer.reserve(BATCH.max(bytes));
                buffer
            }
            None => Vec::with_capacity(BATCH.max(bytes)),
        }
    }

    /// Sends what was made.
    pub async fn flush(&mut self) -> Result<()> {
        let Some(Made { like: (collection, kind, encoding), body, keys, docs }) = self.made.take() else {
            return Ok(());
        };
        let (body, keys) = (Bytes::from(body), Some(keys.into()));
        if self.sent.len() >= SENT {
            self.sent.pop_front();
        }
        if body.len() <= BATCH * 2 {
            self.sent.push_back(body.clone());
        }
        self.send(Batch { collection, kind, encoding, body, keys, docs, attachments: Vec::new() }).await
    }
}

/// Places of attachments mean something in their own layer only: says which.
pub(crate) fn renumber(mut batch: Batch, layer: usize) -> Batch {
    if batch.kind == Kind::Attachment {
        let of_layer = |place: &str| match stands_alone(place) {
            true => Ok(place.into()),
            false => Ok(format!("{layer}/{place}").into()),
        };
        for attachment in &mut batch.attachments {
            // What cannot be read is left as it is: opening it says so.
            if let Ok(placed) = attachment.placed(of_layer) {
                *attachment = placed;
            }
        }
    }
    batch
}
