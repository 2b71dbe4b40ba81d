//! The contents of attachments that change: small ones stand beside the change in the log, larger ones are
//! objects of their own, each stored once.

use crate::direct::Direct;
use crate::write::contents::RunContents;
use crate::write::pieces::KnownPieces;
use async_trait::async_trait;
use bytes::BytesMut;
use futures::StreamExt;
use model::limits::ATTACHMENT_BESIDE;
use model::{AttachmentRef, AttachmentStore, AttachmentStream, CollectionId, Error, Result};
use std::sync::Arc;

/// Takes the contents that a run's chain refers to.
#[derive(Debug)]
pub(crate) struct ChangedContents {
    contents: Arc<RunContents>,
    pieces: Arc<KnownPieces>,
}

impl ChangedContents {
    pub fn new(contents: Arc<RunContents>, pieces: Arc<KnownPieces>) -> Self {
        ChangedContents { contents, pieces }
    }
}

#[async_trait]
impl AttachmentStore for ChangedContents {
    async fn put(&self, mut content: AttachmentStream) -> Result<AttachmentRef> {
        let mut start = BytesMut::new();
        while let Some(piece) = content.next().await {
            start.extend_from_slice(&piece?);
            if start.len() > ATTACHMENT_BESIDE {
                let (digest, length, parts) = self.contents.put_parts(start, content).await?;
                return Ok(AttachmentRef { digest, length, place: Direct::Parts(parts).place()?.into() });
            }
        }
        Ok(AttachmentRef::inline(&start))
    }

    async fn known(&self, collection: &CollectionId, key: &[u8], name: &str) -> Result<Option<AttachmentRef>> {
        let Some(found) = self.pieces.find(collection, key, name).await? else { return Ok(None) };
        let Some(direct) = found.place.direct() else { return Ok(None) };
        Ok(Some(AttachmentRef { digest: found.digest, length: found.length, place: direct.place()?.into() }))
    }

    async fn open(&self, _: &AttachmentRef) -> Result<AttachmentStream> {
        Err(Error::bug("a run that writes does not read contents back"))
    }
}
