//! Attachments: content that streams past, never whole in memory.

use crate::{Error, Result};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;

/// The blake3 hash of an attachment's content, as `b3sum` prints it.
pub type ContentDigest = [u8; 32];

/// The content of an attachment, in pieces of any size.
pub type AttachmentStream = BoxStream<'static, Result<Bytes>>;

/// Names the content of an attachment in the store that made the reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentRef {
    /// Hash of the content.
    pub digest: ContentDigest,
    /// Bytes of the content.
    pub length: u64,
    /// Where the store keeps it; means something to that store only.
    pub place: Arc<str>,
}

/// Takes the content of attachments, once per content, and gives it back.
#[async_trait]
pub trait AttachmentStore: Send + Sync {
    /// Takes content to its end and returns the reference to it. Content that the store has
    /// already is not stored again.
    async fn put(&self, content: AttachmentStream) -> Result<AttachmentRef>;

    /// The content of a reference that this store made. The stream fails with
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the content does not have its digest.
    async fn open(&self, reference: &AttachmentRef) -> Result<AttachmentStream>;
}

/// A store that only hashes: for comparing attachments with what they should be.
#[derive(Debug, Default)]
pub struct HashingStore;

#[async_trait]
impl AttachmentStore for HashingStore {
    async fn put(&self, mut content: AttachmentStream) -> Result<AttachmentRef> {
        let mut hasher = blake3::Hasher::new();
        let mut length = 0;
        while let Some(piece) = content.next().await {
            let piece = piece?;
            length += piece.len() as u64;
            hasher.update(&piece);
        }
        Ok(AttachmentRef { digest: *hasher.finalize().as_bytes(), length, place: Arc::from("") })
    }

    async fn open(&self, _: &AttachmentRef) -> Result<AttachmentStream> {
        Err(Error::bug("a hashing store keeps no content"))
    }
}

/// Reads a stream to its end into one buffer of at most `limit` bytes.
pub async fn collect_attachment(mut content: AttachmentStream, limit: usize) -> Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(piece) = content.next().await {
        let piece = piece?;
        if all.len() + piece.len() > limit {
            return Err(Error::input(format!("an attachment is larger than the limit of {limit} bytes")));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}
