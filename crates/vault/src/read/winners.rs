//! Documents made of bodies in the changes, in the order in which they are wanted.

use crate::read::change::Spot;
use crate::read::spill::Sorted;
use model::{Error, Result};

/// The place of a body, and what tells of its patches: nothing if it has none.
type Winner = (Spot, Vec<u8>);

/// Documents made of bodies in the changes.
pub(crate) struct Winners {
    sorted: Sorted,
    /// One that was looked at already.
    next: Option<Winner>,
}

/// A frame's number, and its documents that are wanted, with their patches.
type OneFrame = (u32, Vec<(u32, Vec<u8>)>);

impl Winners {
    pub fn new(sorted: Sorted) -> Self {
        Winners { sorted, next: None }
    }

    pub fn next(&mut self) -> Result<Option<Winner>> {
        if let Some(next) = self.next.take() {
            return Ok(Some(next));
        }
        let Some((_, record)) = self.sorted.next()? else { return Ok(None) };
        let (spot, patches) = record.split_at_checked(8).ok_or_else(|| Error::bug("a document without a place"))?;
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| spot[at + i]));
        Ok(Some((Spot { frame: half(0), doc: half(4) }, patches.to_vec())))
    }

    /// The next ones that have their bodies in the same frame: its number, and which they are.
    pub fn of_one_frame(&mut self) -> Result<Option<OneFrame>> {
        let Some((first, patches)) = self.next()? else { return Ok(None) };
        let mut docs = vec![(first.doc, patches)];
        while let Some((spot, patches)) = self.next()? {
            if spot.frame != first.frame {
                self.next = Some((spot, patches));
                break;
            }
            docs.push((spot.doc, patches));
        }
        Ok(Some((first.frame, docs)))
    }
}
