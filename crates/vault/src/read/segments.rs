//! Reads frames of segments, keeping the last few segments for the collections that share them.

use crate::buffers::Buffers;
use crate::frame::Frame;
use crate::name::stored_hash;
use crate::objects::{Objects, blocking};
use crate::segment::{self, SegmentEntry};
use bytes::Bytes;
use model::{Encoding, Error, Result, ResultExt};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{Mutex, OnceCell};

/// Segments kept: about 5 MiB each.
const KEPT: usize = 4;

/// A segment's frames, still compressed.
type Frames = Arc<Vec<(Bytes, u32)>>;

/// Reads segments of one vault.
#[derive(Debug)]
pub(crate) struct Segments {
    objects: Objects,
    kept: Mutex<VecDeque<(String, Arc<OnceCell<Frames>>)>>,
    /// Where the memory of frames goes around.
    buffers: Buffers,
}

impl Segments {
    pub fn new(objects: Objects) -> Self {
        Segments { objects, kept: Mutex::default(), buffers: Buffers::of_frames() }
    }

    /// All frames of a segment, compressed. Read once when several ask at the same time.
    async fn frames(&self, path: &str) -> Result<Frames> {
        let cell = {
            let mut kept = self.kept.lock().await;
            match kept.iter().position(|(p, _)| p == path) {
                Some(i) => {
                    let found = kept.remove(i).unwrap_or_default();
                    let cell = found.1.clone();
                    kept.push_back(found);
                    cell
                }
                None => {
                    if kept.len() >= KEPT {
                        kept.pop_front();
                    }
                    let cell = Arc::new(OnceCell::new());
                    kept.push_back((path.to_owned(), cell.clone()));
                    cell
                }
            }
        };
        let frames = cell.get_or_try_init(|| async { self.objects.segment(path).await.map(Arc::new) }).await?;
        Ok(frames.clone())
    }

    /// Some frames of a segment, decoded off the asynchronous threads.
    pub async fn read(&self, entry: &SegmentEntry, wanted: Vec<u32>) -> Result<Vec<Frame>> {
        self.read_with(entry, wanted, |frames| frames.collect()).await
    }

    /// What is made there of some frames of a segment, each of which is decoded when it is asked for: then
    /// what is done with it finds it near.
    pub async fn read_with<T: Send + 'static>(
        &self,
        entry: &SegmentEntry,
        wanted: Vec<u32>,
        work: impl FnOnce(&mut dyn Iterator<Item = Result<Frame>>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.fetch(entry).await?.read_with(wanted, work).await
    }

    /// A segment, fetched and decrypted.
    pub async fn fetch(&self, entry: &SegmentEntry) -> Result<Fetched> {
        let path = entry.object.clone();
        let encoding = encoding_of(&path)?;
        let frames = self.frames(&path).await?;
        Ok(Fetched { path, encoding, frames, buffers: self.buffers.clone() })
    }

    /// Where the memory of its frames goes around.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }
}

/// A segment that is here, still compressed.
pub(crate) struct Fetched {
    path: String,
    encoding: Encoding,
    frames: Frames,
    buffers: Buffers,
}

impl Fetched {
    /// What is made of some of its frames, as [`Segments::read_with`] does it.
    pub async fn read_with<T: Send + 'static>(
        self,
        wanted: Vec<u32>,
        work: impl FnOnce(&mut dyn Iterator<Item = Result<Frame>>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Fetched { path, encoding, frames, buffers } = self;
        blocking(move || {
            let mut decoded = wanted.into_iter().map(|number| {
                let (stored, raw) =
                    frames.get(number as usize).ok_or_else(|| Error::corrupt(format!("it has no frame {number}")))?;
                segment::read_frame_into(encoding, stored, *raw, &buffers)
            });
            work(&mut decoded).context(|| format!("reading {path}"))
        })
        .await
    }
}

pub(crate) fn encoding_of(path: &str) -> Result<Encoding> {
    segment::encoding_of(&stored_hash(path)?.1)
}
