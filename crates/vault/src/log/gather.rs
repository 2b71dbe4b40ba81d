//! Changes on their way into one log object: merged into frames by collection and kind.

use super::CatalogChange;
use crate::direct::can_be_logged;
use crate::frame::{self, ClosedFrame, OpenFrame};
use crate::hash::{HashKeys, key_after};
use model::limits::FRAME;
use model::{BatchBuilder, ChangeBatch, CollectionId, Encoding, EngineTime, Error, Kind, Result};
use std::collections::HashMap;

/// Kind space of changes to collections themselves.
pub(crate) const CATALOG_SPACE: &str = "catalog";

/// Gathers changes. What is given at one engine time stays in the order in which it was given.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    encoding: Option<Encoding>,
    /// The open frames of each kind space, in the order in which they were opened.
    open: HashMap<(CollectionId, String), Vec<Open>>,
    done: Vec<(u32, ClosedFrame)>,
    opened: u32,
    catalog: Vec<CatalogChange>,
    raw: usize,
}

#[derive(Debug)]
struct Open {
    number: u32,
    frame: OpenFrame,
    /// The greatest time in it.
    last: u64,
}

impl Gather {
    /// Bytes gathered so far.
    pub fn raw(&self) -> usize {
        self.raw
    }

    /// The encoding of the bodies; none while there is none.
    pub fn encoding(&self) -> Option<Encoding> {
        self.encoding
    }

    /// Adds changes.
    pub fn push(&mut self, keys: &HashKeys, change: &ChangeBatch) -> Result<()> {
        let ChangeBatch { batch, times } = change;
        batch.check()?;
        if times.len() != batch.len() || *self.encoding.get_or_insert(batch.encoding) != batch.encoding {
            return Err(Error::bug("changes in another encoding than others of the source, or without times"));
        }
        for content in &batch.attachments {
            if !can_be_logged(content)? {
                return Err(Error::bug("the content of an attachment in the change log is in no place of its own"));
            }
        }
        let prefix = keys.key_prefix(&batch.collection, &batch.kind);
        let space = (batch.collection.clone(), batch.kind.space().to_owned());
        let open = self.open.entry(space).or_default();
        for (i, time) in times.iter().enumerate() {
            let at = open.iter().position(|o| o.frame.fits(batch));
            let at = match at {
                // Into an older frame goes only what is later than all in the younger ones.
                Some(at) if open[at + 1..].iter().any(|o| o.last >= time.order) => {
                    close(&mut self.done, open.drain(..))?;
                    None
                }
                Some(at) if open[at].frame.raw() >= FRAME => {
                    close(&mut self.done, open.drain(at..=at))?;
                    None
                }
                at => at,
            };
            let at = match at {
                Some(at) => at,
                None => {
                    open.push(Open { number: self.opened, frame: OpenFrame::like(batch), last: 0 });
                    self.opened += 1;
                    open.len() - 1
                }
            };
            let hash = key_after(&prefix, batch.key_of(i));
            let Open { frame, last, .. } = &mut open[at];
            let before = frame.raw();
            frame.push(batch, i, hash, Some(*time));
            *last = (*last).max(time.order);
            // Keys inside of bodies and the numbers of the header take some room too.
            self.raw += frame.raw() - before + 16;
        }
        Ok(())
    }

    /// Adds a change of a collection itself.
    pub fn push_catalog(&mut self, change: &CatalogChange) {
        self.raw += 256;
        self.catalog.push(change.clone());
    }

    /// The frames, those about collections first, in an encoding that fits them.
    pub fn finish(mut self, otherwise: Encoding) -> Result<(Encoding, Vec<ClosedFrame>)> {
        let encoding = self.encoding.unwrap_or(otherwise);
        let mut frames = Vec::new();
        for (id, info, time) in &self.catalog {
            frames.push(catalog_frame(encoding, id, info.as_ref(), *time)?);
        }
        for (_, mut open) in std::mem::take(&mut self.open) {
            close(&mut self.done, open.drain(..))?;
        }
        self.done.sort_unstable_by_key(|(number, _)| *number);
        frames.extend(self.done.into_iter().map(|(_, frame)| frame));
        Ok((encoding, frames))
    }
}

fn close(done: &mut Vec<(u32, ClosedFrame)>, open: impl Iterator<Item = Open>) -> Result<()> {
    for Open { number, frame, .. } in open {
        done.push((number, frame.close()?));
    }
    Ok(())
}

fn catalog_frame(
    encoding: Encoding,
    id: &CollectionId,
    info: Option<&model::CollectionInfo>,
    time: EngineTime,
) -> Result<ClosedFrame> {
    let (kind, body) = match info {
        Some(info) => {
            let json = serde_json::to_vec(info).map_err(|e| Error::bug(format!("writing JSON failed: {e}")))?;
            let body = if encoding == Encoding::Bson { frame::bson_header(&json) } else { json };
            (Kind::Meta(CATALOG_SPACE.into()), body)
        }
        None => (Kind::tombstone_of(CATALOG_SPACE), Vec::new()),
    };
    let mut builder = BatchBuilder::new(id.clone(), kind, encoding);
    builder.push(id.as_str().as_bytes(), &body);
    let batch = builder.take();
    let mut open = OpenFrame::like(&batch);
    open.push(&batch, 0, 0, Some(time));
    open.close()
}
