//! Attachments on their way from a source to a target without a vault: small ones in memory, large
//! ones in temporary files, until their batch has been written.
//!
//! At most the attachments of the batches under way are here.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use model::{AttachmentRef, AttachmentStore, AttachmentStream, ContentDigest, Error, Result, in_turn};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempPath;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Content up to this size stays in memory.
const IN_MEMORY: usize = 256 << 10;
/// Bytes read from a temporary file at a time.
const PIECE: usize = 256 << 10;

/// Keeps content until it is released.
#[derive(Default)]
pub(crate) struct Spool {
    kept: Mutex<HashMap<Arc<str>, Arc<Kept>>>,
    next: AtomicU64,
}

enum Kept {
    Memory(Bytes),
    File(TempPath),
}

impl Spool {
    /// Forgets content that is no longer needed.
    pub fn release(&self, references: &[AttachmentRef]) {
        let mut kept = self.kept.lock().unwrap_or_else(|e| e.into_inner());
        for reference in references {
            match reference.pieces() {
                Some(pieces) => pieces.iter().flatten().for_each(|p| drop(kept.remove(&p.content.place))),
                None => drop(kept.remove(&reference.place)),
            }
        }
    }

    fn find(&self, place: &str) -> Result<Arc<Kept>> {
        let kept = self.kept.lock().unwrap_or_else(|e| e.into_inner()).get(place).cloned();
        kept.ok_or_else(|| Error::bug("an attachment was asked for that is not kept"))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.kept.lock().unwrap_or_else(|e| e.into_inner()).len()
    }
}

#[async_trait]
impl AttachmentStore for Spool {
    async fn put(&self, mut content: AttachmentStream) -> Result<AttachmentRef> {
        let mut hasher = blake3::Hasher::new();
        let mut length = 0;
        let mut memory = Vec::new();
        let mut file: Option<(tokio::fs::File, TempPath)> = None;
        let failed = |e| Error::io("writing an attachment to a temporary file", e);
        while let Some(piece) = content.next().await {
            let piece = piece?;
            hasher.update(&piece);
            length += piece.len() as u64;
            if file.is_none() && memory.len() + piece.len() > IN_MEMORY {
                let (opened, path) = tempfile::NamedTempFile::new().map_err(failed)?.into_parts();
                let mut opened = tokio::fs::File::from_std(opened);
                opened.write_all(&memory).await.map_err(failed)?;
                memory = Vec::new();
                file = Some((opened, path));
            }
            match &mut file {
                Some((file, _)) => file.write_all(&piece).await.map_err(failed)?,
                None => memory.extend_from_slice(&piece),
            }
        }
        let kept = match file {
            Some((mut file, path)) => {
                file.flush().await.map_err(failed)?;
                Kept::File(path)
            }
            None => Kept::Memory(memory.into()),
        };
        let place: Arc<str> = self.next.fetch_add(1, Ordering::Relaxed).to_string().into();
        self.kept.lock().unwrap_or_else(|e| e.into_inner()).insert(place.clone(), Arc::new(kept));
        Ok(AttachmentRef { digest: *hasher.finalize().as_bytes(), length, place })
    }

    async fn open(&self, reference: &AttachmentRef) -> Result<AttachmentStream> {
        let Some(pieces) = reference.pieces() else {
            return open(self.find(&reference.place)?, reference.digest).await;
        };
        let pieces = pieces?;
        let kept = pieces.iter().map(|p| Ok((p.content.place.clone(), self.find(&p.content.place)?)));
        let kept: HashMap<Arc<str>, Arc<Kept>> = kept.collect::<Result<_>>()?;
        Ok(in_turn(pieces, move |content| {
            let kept = kept.get(&content.place).cloned();
            async move { open(kept.ok_or_else(|| Error::bug("a piece that is not kept"))?, content.digest).await }
        }))
    }
}

async fn open(kept: Arc<Kept>, digest: ContentDigest) -> Result<AttachmentStream> {
    match &*kept {
        Kept::Memory(bytes) => Ok(futures::stream::iter([Ok(bytes.clone())]).boxed()),
        Kept::File(path) => {
            let opened = tokio::fs::File::open(path).await;
            let file = opened.map_err(|e| Error::io("reading an attachment from a temporary file", e))?;
            let reading = Reading { file, hasher: blake3::Hasher::new(), digest, _kept: kept };
            Ok(futures::stream::try_unfold(Some(reading), Reading::next).boxed())
        }
    }
}

/// A temporary file that is being read, and checked on the way.
struct Reading {
    file: tokio::fs::File,
    hasher: blake3::Hasher,
    digest: ContentDigest,
    /// The file is removed when nobody has it any more.
    _kept: Arc<Kept>,
}

impl Reading {
    async fn next(reading: Option<Reading>) -> Result<Option<(Bytes, Option<Reading>)>> {
        let Some(mut reading) = reading else { return Ok(None) };
        let mut piece = vec![0; PIECE];
        let got = reading.file.read(&mut piece).await;
        let n = got.map_err(|e| Error::io("reading an attachment from a temporary file", e))?;
        piece.truncate(n);
        if n == 0 {
            return match *reading.hasher.finalize().as_bytes() == reading.digest {
                true => Ok(None),
                false => Err(Error::corrupt("a temporary file with an attachment changed while it was in use")),
            };
        }
        reading.hasher.update(&piece);
        Ok(Some((piece.into(), Some(reading))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use model::collect_attachment;

    #[tokio::test]
    async fn content_comes_back_until_it_is_released() {
        let spool = Spool::default();
        for size in [0, 1, IN_MEMORY, IN_MEMORY + 1, 3 << 20] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let pieces: Vec<_> = bytes.chunks(100_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let reference = spool.put(futures::stream::iter(pieces).boxed()).await.unwrap();
            assert_eq!((reference.length, reference.digest), (size as u64, *blake3::hash(&bytes).as_bytes()));
            // Twice: writing the same batch again must work.
            for _ in 0..2 {
                let back = collect_attachment(spool.open(&reference).await.unwrap(), 1 << 30).await.unwrap();
                assert!(back == bytes);
            }
            let place = match &*spool.kept.lock().unwrap()[&reference.place] {
                Kept::File(path) => Some(path.to_path_buf()),
                Kept::Memory(_) => None,
            };
            assert_eq!(place.is_some(), size > IN_MEMORY);
            spool.release(std::slice::from_ref(&reference));
            assert!(spool.open(&reference).await.is_err());
            assert!(place.is_none_or(|p| !p.exists()), "the temporary file is gone");
        }
        assert_eq!(spool.len(), 0);
    }

    #[tokio::test]
    async fn pieces_come_one_after_the_other() {
        let spool = Spool::default();
        let mut pieces = Vec::new();
        for (i, size) in [(0, 3), (1, IN_MEMORY + 1), (2, 0)] {
            let content = futures::stream::iter([Ok(Bytes::from(vec![i; size]))]).boxed();
            pieces.push(model::Piece { name: i.to_string(), content: spool.put(content).await.unwrap() });
        }
        let reference = AttachmentRef::of_pieces(&pieces).unwrap();
        let back = collect_attachment(spool.open(&reference).await.unwrap(), 1 << 30).await.unwrap();
        assert!(back == [vec![0; 3], vec![1; IN_MEMORY + 1]].concat());
        spool.release(std::slice::from_ref(&reference));
        assert_eq!(spool.len(), 0);
        assert!(spool.open(&reference).await.is_err());
    }
}
