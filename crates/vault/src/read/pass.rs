//! What becomes of documents of the oldest layer, of a collection without an order.

use crate::read::apply::Applier;
use crate::read::out::{Making, renumber};
use crate::read::overlay::{Fate, Overlay, retain};
use model::{Batch, EngineTime, Result};

/// Lets documents of the oldest layer pass by their changes.
pub(crate) struct Pass<'a> {
    overlay: &'a mut Overlay,
    applier: &'a mut Applier,
    /// The number of the oldest layer.
    layer: usize,
    /// Of the documents that are looked at.
    maybe: Vec<usize>,
    fates: Vec<Fate>,
}

impl<'a> Pass<'a> {
    /// By the changes of an overlay.
    pub fn new(overlay: &'a mut Overlay, applier: &'a mut Applier, layer: usize) -> Self {
        Pass { overlay, applier, layer, maybe: Vec::new(), fates: Vec::new() }
    }

    /// Adds the documents of a batch, read at one time, as they are now.
    pub fn batch(&mut self, batch: Batch, hashes: &[u64], read: EngineTime, into: &mut Making) -> Result<()> {
        let Pass { overlay, applier, layer, maybe, fates } = self;
        overlay.may_hold(hashes, maybe);
        fates.clear();
        fates.resize(batch.len(), Fate::Kept);
        for i in &*maybe {
            fates[*i] = overlay.fate(hashes[*i], batch.key_of(*i), read, false)?;
        }
        for i in &*maybe {
            if let Fate::Becomes { patches, .. } = fates[*i] {
                let body = batch.body_of(*i);
                into.like(&batch, body.len())
                    .push(batch.key_of(*i), |made| overlay.apply(patches, body, applier, made))?;
                overlay.take(patches);
            }
        }
        let kept = match fates.iter().all(|f| *f == Fate::Kept) {
            true => batch,
            false => retain(&batch, |i| fates[i] == Fate::Kept),
        };
        into.add(renumber(kept, *layer));
        Ok(())
    }
}
