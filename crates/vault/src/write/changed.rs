//! The contents of attachments that change. What is large is stored as a scan does it, once. What is small stands
//! beside its change, as an object each flush would be too many: when flushes are rolled up, all that is small of
//! them is packed together. The first of them packs what it has at once, as it may stay the only one.

use crate::write::contents::RunContents;
use async_trait::async_trait;
use bytes::BytesMut;
use futures::StreamExt;
use model::limits::ATTACHMENT_BESIDE;
use model::{AttachmentRef, AttachmentStore, AttachmentStream, ChangeBatch, CollectionId, Error, Result};

/// Takes the contents that a run's chain refers to.
#[derive(Debug)]
pub(crate) struct ChangedContents {
    contents: RunContents,
}

impl ChangedContents {
    /// In contents that are for this only.
    pub fn new(contents: RunContents) -> Self {
        ChangedContents { contents: contents.trying_again() }
    }

    /// Stores what changes refer to, and says in them where it is.
    pub async fn place(&self, changes: &mut [ChangeBatch]) -> Result<()> {
        match changes.iter().all(|change| change.batch.attachments.is_empty()) {
            true => Ok(()),
            false => self.contents.place_directly(changes).await,
        }
    }

    /// The same, also with pieces that stand beside their changes: then later changes can refer to them.
    pub async fn place_all(&self, changes: &mut [ChangeBatch]) -> Result<()> {
        for reference in changes.iter_mut().flat_map(|change| &mut change.batch.attachments) {
            let Some(pieces) = reference.pieces() else { continue };
            let mut pieces = pieces?;
            for piece in &mut pieces {
                if let Some(content) = piece.content.inline_content() {
                    piece.content = self.contents.put_small(content?).await?;
                }
            }
            *reference = AttachmentRef::of_pieces(&pieces)?;
        }
        self.place(changes).await
    }
}

#[async_trait]
impl AttachmentStore for ChangedContents {
    async fn put(&self, mut content: AttachmentStream) -> Result<AttachmentRef> {
        let mut start = BytesMut::new();
        while let Some(piece) = content.next().await {
            start.extend_from_slice(&piece?);
            if start.len() > ATTACHMENT_BESIDE {
                return self.contents.put_from(start, content).await;
            }
        }
        Ok(AttachmentRef::inline(&start))
    }

    async fn known(&self, collection: &CollectionId, key: &[u8], name: &str) -> Result<Option<AttachmentRef>> {
        self.contents.known(collection, key, name).await
    }

    async fn open(&self, _: &AttachmentRef) -> Result<AttachmentStream> {
        Err(Error::bug("a run that writes does not read contents back"))
    }
}
