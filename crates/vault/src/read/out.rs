//! The documents on their way out, those that were made anew in batches of their own.

use crate::buffers::Buffers;
use crate::direct::stands_alone;
use futures::SinkExt;
use futures::channel::mpsc;
use model::limits::{BATCH, BATCH_DOCUMENTS, FRAME};
use model::{Batch, CollectionId, Doc, Encoding, Error, ErrorKind, Kind, Result};

/// Where documents go.
pub(crate) struct Out {
    sender: mpsc::Sender<Result<Batch>>,
    pub making: Making,
}

/// Batches, the last of them in the making.
pub(crate) struct Making {
    buffers: Buffers,
    ready: Vec<Batch>,
    made: Option<Made>,
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

impl Making {
    /// In memory of these buffers.
    pub fn new(buffers: Buffers) -> Self {
        Making { buffers, ready: Vec::new(), made: None }
    }

    /// Where documents like those of a batch go, with room for one more.
    pub fn like(&mut self, like: &Batch, bytes: usize) -> &mut Made {
        let fits = |made: &Made| {
            let room = made.body.len() + bytes <= BATCH && made.docs.len() < BATCH_DOCUMENTS;
            room && (&made.like.1, made.like.2) == (&like.kind, like.encoding)
        };
        if !self.made.as_ref().is_some_and(fits) {
            self.finish();
        }
        self.made.get_or_insert_with(|| {
            let mut body = self.buffers.take(FRAME);
            body.reserve(bytes);
            let like = (like.collection.clone(), like.kind.clone(), like.encoding);
            Made { like, body, keys: Vec::new(), docs: Vec::new() }
        })
    }

    /// Adds a batch as it is, if there is anything in it.
    pub fn add(&mut self, batch: Batch) {
        if !batch.is_empty() {
            self.ready.push(batch);
        }
    }

    /// Adds the documents of a batch that somebody else has made; few of them beside others.
    pub fn take_in(&mut self, batch: Batch) -> Result<()> {
        if batch.body.len() >= BATCH / 4 {
            self.add(batch);
            return Ok(());
        }
        for i in 0..batch.len() {
            let body = batch.body_of(i);
            self.like(&batch, body.len()).push(batch.key_of(i), |into| {
                into.extend_from_slice(body);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Finishes the batch in the making.
    fn finish(&mut self) {
        self.ready.extend(self.made.take().map(|made| made.batch(&self.buffers)));
    }

    /// The batches that are ready, and the one in the making.
    pub fn end(mut self) -> (Vec<Batch>, Option<Batch>) {
        (self.ready, self.made.take().map(|made| made.batch(&self.buffers)))
    }
}

impl Made {
    fn batch(self, buffers: &Buffers) -> Batch {
        let Made { like: (collection, kind, encoding), body, keys, docs } = self;
        let (body, keys) = (buffers.lend(body), Some(keys.into()));
        Batch { collection, kind, encoding, body, keys, docs, attachments: Vec::new() }
    }
}

impl Out {
    pub fn new(sender: mpsc::Sender<Result<Batch>>, buffers: Buffers) -> Self {
        Out { sender, making: Making::new(buffers) }
    }

    /// Sends a batch, if there is anything in it.
    pub async fn send(&mut self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let gone = |_| Error::new(ErrorKind::Interrupted, "the reader of a collection has gone");
        self.sender.send(Ok(batch)).await.map_err(gone)
    }

    /// Sends the batches that are ready.
    pub async fn send_ready(&mut self) -> Result<()> {
        for batch in std::mem::take(&mut self.making.ready) {
            self.send(batch).await?;
        }
        Ok(())
    }

    /// Sends all that was made.
    pub async fn flush(&mut self) -> Result<()> {
        self.making.finish();
        self.send_ready().await
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
