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
use std::ops::Range;
use std::sync::Arc;

/// Bytes of frames of the log that are read at once.
const GROUP: usize = 4 * FRAME;
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

    /// Whether it puts documents, or what else there is, and neither deletes nor patches them.
    pub fn is_put(&self) -> bool {
        matches!(self, ChangeFrame::Log(frame) if frame.is_put)
    }

    /// Whether another one is of the same object of the log.
    pub fn is_followed(&self, by: Option<&ChangeFrame>) -> bool {
        matches!((self, by), (ChangeFrame::Log(one), Some(ChangeFrame::Log(other))) if one.is_in_object_of(other))
    }

    /// Whether another one stands right after it in the same object of the log.
    fn goes_on_in(&self, other: &ChangeFrame) -> bool {
        matches!((self, other), (ChangeFrame::Log(one), ChangeFrame::Log(other)) if one.goes_on_in(other))
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
        let one = self.read_with(std::slice::from_ref(from), vec![true], |frames| frames.next().transpose()).await?;
        one.ok_or_else(|| Error::bug("a frame was not read"))
    }

    /// What is made of the frames of one group (see [`groups`]), each of which is decoded when it is asked for,
    /// off the asynchronous threads; if they are of the log perhaps without the bodies of their documents, unless
    /// these are wanted.
    pub async fn read_with<T: Send + 'static>(
        &self,
        group: &[ChangeFrame],
        bodies: Vec<bool>,
        work: impl FnOnce(&mut dyn Iterator<Item = Result<Frame>>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let id = self.id.clone();
        let ours = move |frames: &mut dyn Iterator<Item = Result<Frame>>| {
            work(&mut frames.map(|frame| frame.and_then(|f| check_collection(&f.batch, &id).map(|()| f))))
        };
        match group {
            [ChangeFrame::Layer(place)] => self.segments.read_with(&place.entry, vec![place.frame], ours).await,
            [ChangeFrame::Log(first), ..] => {
                first.read_with(&self.objects, self.segments.buffers(), bodies, ours).await
            }
            _ => Err(Error::bug("frames that are not one group")),
        }
    }
}

/// Cuts a part of some frames into groups that are read at once: of the log frames that stand one after the other
/// in the same object, and are not too large together.
pub(crate) fn groups(frames: &[ChangeFrame], part: Range<usize>) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for number in part {
        bytes += frames[number].raw();
        match groups.last_mut() {
            Some(last) if bytes <= GROUP && frames[number - 1].goes_on_in(&frames[number]) => last.end = number + 1,
            _ => {
                groups.push(number..number + 1);
                bytes = frames[number].raw();
            }
        }
    }
    groups
}

/// Cuts frames of the log into those of each object, the last object first.
pub(crate) fn objects(frames: &[ChangeFrame]) -> Vec<Range<usize>> {
    let mut objects: Vec<Range<usize>> = Vec::new();
    for number in 0..frames.len() {
        match objects.last_mut() {
            Some(last) if frames[number - 1].is_followed(frames.get(number)) => last.end = number + 1,
            _ => objects.push(number..number + 1),
        }
    }
    objects.reverse();
    objects
}

/// Bodies of puts, in the frames that hold them.
#[derive(Debug)]
pub(crate) struct Bodies {
    pub reader: Reader,
    frames: Arc<Vec<ChangeFrame>>,
    /// Frames that stay decoded, as many as there is room for.
    kept: HashMap<u32, Arc<Frame>>,
    /// Bytes of frames that may stay decoded.
    pub room: usize,
    recent: VecDeque<(u32, Arc<Frame>)>,
}

impl Bodies {
    /// Bodies in these frames, none of which may stay decoded.
    pub fn new(reader: Reader, frames: Arc<Vec<ChangeFrame>>) -> Self {
        Bodies { reader, frames, kept: HashMap::new(), room: 0, recent: VecDeque::new() }
    }

    /// Which frames are to be decoded whole if those of each object wait for the rest of it: if there is no room
    /// for what an object puts, that is decoded when its bodies are wanted.
    pub fn that_may_wait(frames: &[ChangeFrame], objects: &[Range<usize>], room: usize) -> Vec<bool> {
        let mut wait: Vec<bool> = frames.iter().map(ChangeFrame::is_patch).collect();
        for object in objects {
            let puts = || object.clone().filter(|number| frames[*number].is_put());
            if puts().map(|number| frames[number].raw()).sum::<usize>() <= room {
                puts().for_each(|number| wait[number] = true);
            }
        }
        wait
    }

    /// Which of some frames there is about room for, if they come in this order.
    pub fn that_fit(frames: &[ChangeFrame], order: impl Iterator<Item = usize>, room: usize) -> Vec<bool> {
        let (mut fit, mut left) = (vec![false; frames.len()], room);
        for number in order {
            let frame = &frames[number];
            let size = frame.raw() + frame.count() * 32;
            fit[number] = frame.is_patch() || size <= left;
            left -= if fit[number] && !frame.is_patch() { size } else { 0 };
        }
        fit
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
