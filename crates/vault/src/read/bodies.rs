//! Frames with changes, and the bodies of puts that stand in them.

use crate::frame::Frame;
use crate::log::LogFrame;
use crate::objects::Objects;
use crate::read::overlay::check_collection;
use crate::read::segments::Segments;
use crate::segment::SegmentEntry;
use model::limits::FRAME;
use model::{CollectionId, EngineTime, Error, Kind, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Decoded frames that are kept of those that an ordered collection goes back to.
const RECENT: usize = 8;

/// A frame of a layer.
#[derive(Debug, Clone)]
pub(crate) struct FramePlace {
    pub layer: usize,
    pub entry: Arc<SegmentEntry>,
    pub frame: u32,
    /// The engine time its documents were read at.
    pub read: EngineTime,
}

/// A frame with changes.
#[derive(Debug, Clone)]
pub(crate) enum ChangeFrame {
    Layer(FramePlace),
    Log(LogFrame),
}

impl ChangeFrame {
    fn layer(&self) -> usize {
        match self {
            ChangeFrame::Layer(place) => place.layer,
            ChangeFrame::Log(_) => 0,
        }
    }

    fn entry(&self) -> (&SegmentEntry, usize) {
        match self {
            ChangeFrame::Layer(place) => (&place.entry, place.frame as usize),
            ChangeFrame::Log(frame) => (&frame.entry, frame.number as usize),
        }
    }

    /// Bytes in memory.
    pub fn raw(&self) -> usize {
        let (entry, number) = self.entry();
        entry.frames.get(number).map(|f| f.raw as usize).filter(|raw| *raw > 0).unwrap_or(FRAME)
    }

    /// How many changes it has.
    pub fn count(&self) -> usize {
        let (entry, number) = self.entry();
        entry.documents_in(number) as usize
    }

    /// Whether it has patches, which are read at once.
    pub fn is_patch(&self) -> bool {
        matches!(self, ChangeFrame::Log(frame) if frame.is_patch)
    }

    /// About so many bytes its changes take in a table: of bodies only those of patches. What the header
    /// of such a frame says of each patch is about as long as what a table needs.
    pub fn gathered(&self) -> usize {
        match self {
            ChangeFrame::Log(frame) if frame.is_patch => self.raw(),
            _ => self.count() * 56,
        }
    }
}

/// Where frames with changes are read from.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    pub objects: Objects,
    pub segments: Arc<Segments>,
    pub id: CollectionId,
}

impl Reader {
    /// Reads a frame.
    pub async fn read(&self, from: &ChangeFrame) -> Result<Frame> {
        self.read_as(from, true).await
    }

    /// Reads a frame; of one in the log perhaps without the bodies of its documents, unless they are wanted.
    pub async fn read_as(&self, from: &ChangeFrame, bodies: bool) -> Result<Frame> {
        let frame = match from {
            ChangeFrame::Log(frame) if !bodies => frame.read_keys(&self.objects).await?,
            ChangeFrame::Log(frame) => frame.read(&self.objects).await?,
            ChangeFrame::Layer(place) => {
                let mut frames = self.segments.read(&place.entry, vec![place.frame]).await?;
                frames.pop().ok_or_else(|| Error::bug("a frame was not read"))?
            }
        };
        check_collection(&frame.batch, &self.id)?;
        Ok(frame)
    }
}

/// Bodies of puts, in the frames that hold them.
#[derive(Debug)]
pub(crate) struct Bodies {
    reader: Reader,
    frames: Arc<Vec<ChangeFrame>>,
    /// Frames that stay decoded, as many as there is room for.
    kept: HashMap<u32, Arc<Frame>>,
    room: usize,
    recent: VecDeque<(u32, Arc<Frame>)>,
}

impl Bodies {
    /// Bodies in these frames, of which so many bytes may stay decoded.
    pub fn new(reader: Reader, frames: Arc<Vec<ChangeFrame>>, room: usize) -> Self {
        Bodies { reader, frames, kept: HashMap::new(), room, recent: VecDeque::new() }
    }

    /// Which of some frames there is about room for, by their places in `order`.
    pub fn that_fit(&self, order: &[u32]) -> Vec<bool> {
        let mut left = self.room;
        let mut fits = |number: &u32| {
            let size = self.frames.get(*number as usize).map_or(0, |f| f.raw() + f.count() * 32);
            let fits = size <= left;
            left -= if fits { size } else { 0 };
            fits
        };
        order.iter().map(|n| self.frames.get(*n as usize).is_none_or(ChangeFrame::is_patch) || fits(n)).collect()
    }

    /// Keeps a frame if it has bodies that may be wanted, and there is room.
    pub fn keep(&mut self, number: u32, frame: Frame) {
        let kind = &frame.batch.kind;
        let contents = frame.batch.attachments.iter().map(|a| a.place.len()).sum::<usize>();
        let size = contents
            + frame.batch.body.len()
            + frame.batch.keys.as_ref().map_or(0, |k| k.len())
            + frame.batch.len() * 32;
        if kind.is_tombstone() || *kind == Kind::Patch || size > self.room {
            return;
        }
        self.room -= size;
        self.kept.insert(number, Arc::new(frame));
    }

    /// Reads a frame, without waiting for it here.
    pub fn read(&self, number: u32) -> impl Future<Output = Result<Arc<Frame>>> + use<> {
        let (kept, reader) = (self.kept.get(&number).cloned(), self.reader.clone());
        let frame = self.frames.get(number as usize).cloned();
        async move {
            match (kept, frame) {
                (Some(kept), _) => Ok(kept),
                (None, Some(frame)) => reader.read(&frame).await.map(Arc::new),
                (None, None) => Err(Error::bug("a change without a frame")),
            }
        }
    }

    /// Reads a frame that is soon wanted again.
    pub async fn fetch(&mut self, number: u32) -> Result<Arc<Frame>> {
        if let Some(at) = self.recent.iter().position(|(n, _)| *n == number) {
            let found = self.recent.remove(at).ok_or_else(|| Error::bug("a frame was not kept"))?;
            let frame = found.1.clone();
            self.recent.push_back(found);
            return Ok(frame);
        }
        let frame = self.read(number).await?;
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((number, frame.clone()));
        Ok(frame)
    }

    pub fn layer(&self, frame: u32) -> usize {
        self.frames.get(frame as usize).map_or(0, ChangeFrame::layer)
    }
}
