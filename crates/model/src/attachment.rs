//! Attachments: content that streams past, never whole in memory.

use crate::{CollectionId, Error, Result};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
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

/// What the place of a reference begins with that carries its content with it, in base64.
const INLINE: char = '=';

impl AttachmentRef {
    /// A reference that carries its content with it.
    pub fn inline(content: &[u8]) -> AttachmentRef {
        let mut place = String::with_capacity(content.len() / 3 * 4 + 5);
        place.push(INLINE);
        BASE64.encode_string(content, &mut place);
        AttachmentRef { digest: *blake3::hash(content).as_bytes(), length: content.len() as u64, place: place.into() }
    }

    /// The content that it carries with it; none if it does not.
    pub fn inline_content(&self) -> Option<Result<Bytes>> {
        let text = self.place.strip_prefix(INLINE)?;
        let wrong = || Error::corrupt("the content of an attachment in the change log does not have its digest");
        let content = BASE64
            .decode(text)
            .ok()
            .filter(|content| content.len() as u64 == self.length && *blake3::hash(content).as_bytes() == self.digest);
        Some(content.map(Bytes::from).ok_or_else(wrong))
    }
}

/// Whether a place carries the content with it.
pub fn is_inline(place: &str) -> bool {
    place.starts_with(INLINE)
}

/// Takes the content of attachments, once per content, and gives it back.
#[async_trait]
pub trait AttachmentStore: Send + Sync {
    /// Takes content to its end and returns the reference to it. Content that the store has
    /// already is not stored again.
    async fn put(&self, content: AttachmentStream) -> Result<AttachmentRef>;

    /// The content that a piece of this key had the last time, by its name (see [`Piece`](crate::Piece)): so
    /// that it need not be fetched again. `None` where the store does not know.
    async fn known(&self, _collection: &CollectionId, _key: &[u8], _name: &str) -> Result<Option<AttachmentRef>> {
        Ok(None)
    }

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ErrorKind;
    use futures::executor::block_on;

    #[test]
    fn references_carry_small_content_with_them() {
        let reference = AttachmentRef::inline(b"hello");
        assert_eq!((reference.length, reference.digest), (5, *blake3::hash(b"hello").as_bytes()));
        assert_eq!(reference.inline_content().unwrap().unwrap(), "hello");
        for place in ["=aGVsbG8h", "=?"] {
            let bad = AttachmentRef { place: place.into(), ..reference.clone() };
            assert!(bad.inline_content().unwrap().is_err(), "{place}");
        }
        assert!(AttachmentRef { place: "n7".into(), ..reference }.inline_content().is_none());
    }

    #[test]
    fn large_content_is_refused() {
        let pieces = futures::stream::iter((0..3).map(|_| Ok(Bytes::from_static(&[0; 10])))).boxed();
        assert_eq!(block_on(collect_attachment(pieces, 29)).unwrap_err().kind(), ErrorKind::Input);
    }
}
