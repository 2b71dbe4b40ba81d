//! The oldest layer of a collection that counts, frame by frame.

use crate::frame::Frame;
use crate::read::ahead;
use crate::read::bodies::FramePlace;
use crate::read::overlay::check_collection;
use crate::read::segments::Segments;
use crate::segment::SegmentEntry;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use model::{CollectionId, EngineTime, Result};
use std::sync::Arc;

/// Groups whose segments are fetched and decrypted meanwhile: about a segment of 16 MiB, so that the next one is
/// there when the last group of one is decoded.
const FETCHED: usize = 8;
/// Frames of one group: with what is ahead, that bounds what is decoded.
const FRAMES: usize = 4;

/// Frames of the oldest layer that counts.
#[derive(Debug)]
pub(crate) struct Base {
    segments: Arc<Segments>,
    id: CollectionId,
    groups: Vec<Group>,
}

/// Frames that are read together.
#[derive(Debug)]
struct Group {
    entry: Arc<SegmentEntry>,
    frames: Vec<u32>,
    /// The time they were read at.
    read: EngineTime,
}

impl Base {
    /// The frames at these places, in order.
    pub fn new(segments: Arc<Segments>, id: CollectionId, places: Vec<FramePlace>) -> Base {
        let mut groups: Vec<Group> = Vec::new();
        for FramePlace { entry, frame, read, .. } in places {
            match groups.last_mut() {
                Some(group)
                    if Arc::ptr_eq(&group.entry, &entry) && group.frames.len() < FRAMES && group.read == read =>
                {
                    group.frames.push(frame);
                }
                _ => groups.push(Group { entry, frames: vec![frame], read }),
            }
        }
        Base { segments, id, groups }
    }

    /// The latest time that any of them was read at.
    pub fn latest(&self) -> EngineTime {
        let none = EngineTime { order: 0, millis: 0 };
        self.groups.iter().map(|group| group.read).max_by_key(|read| read.order).unwrap_or(none)
    }

    /// Where the memory of its frames goes around.
    pub fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// The frames, each with the time it was read at, in order.
    pub fn frames(self) -> BoxStream<'static, Result<(Frame, EngineTime)>> {
        self.each(|frames, read| frames.map(|frame| Ok((frame?, read))).collect::<Result<Vec<_>>>())
            .map_ok(|frames| stream::iter(frames.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    /// What is made of each group of frames that were read at one time, some of them side by side, off the
    /// asynchronous threads; in order.
    pub fn each<T: Send + 'static>(
        self,
        work: impl Fn(&mut dyn Iterator<Item = Result<Frame>>, EngineTime) -> Result<T> + Send + Sync + 'static,
    ) -> BoxStream<'static, Result<T>> {
        let (Base { segments, id, groups }, work) = (self, Arc::new(work));
        stream::iter(groups)
            .map(move |group| {
                let segments = segments.clone();
                async move { segments.fetch(&group.entry).await.map(|fetched| (group, fetched)) }
            })
            .buffered(FETCHED)
            .map(move |group| {
                let (id, work) = (id.clone(), work.clone());
                async move {
                    let (Group { frames, read, .. }, fetched) = group?;
                    let work = move |frames: &mut dyn Iterator<Item = Result<Frame>>| {
                        let mut ours = frames.map(|frame| {
                            let frame = frame?;
                            check_collection(&frame.batch, &id)?;
                            Ok(frame)
                        });
                        work(&mut ours, read)
                    };
                    fetched.read_with(frames, work).await
                }
            })
            .buffered(ahead())
            .boxed()
    }
}
