//! Applying patches to documents.

use model::{Error, Patcher, Result};
use std::sync::Arc;

/// Applies the patches of one document after the other, in memory that it keeps.
pub(crate) struct Applier {
    patcher: Option<Arc<dyn Patcher>>,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Applier {
    /// With the engine's patcher, if there is one.
    pub fn new(patcher: Option<Arc<dyn Patcher>>) -> Self {
        Applier { patcher, before: Vec::new(), after: Vec::new() }
    }

    /// The engine's patcher.
    pub fn patcher(&self) -> Result<&dyn Patcher> {
        self.patcher.as_deref().ok_or_else(|| Error::unsupported("this engine's patches are not known"))
    }

    /// Applies one patch after the other; the document that `body` becomes is appended.
    pub fn apply<'a>(
        &mut self,
        patches: impl Iterator<Item = &'a [u8]>,
        body: &[u8],
        into: &mut Vec<u8>,
    ) -> Result<()> {
        let (mut before, mut after) = (std::mem::take(&mut self.before), std::mem::take(&mut self.after));
        let patcher = self.patcher()?;
        let mut patches = patches.peekable();
        let mut is_first = true;
        while let Some(patch) = patches.next() {
            let from = if is_first { body } else { &before[..] };
            if patches.peek().is_none() {
                patcher.apply(from, patch, into)?;
                (self.before, self.after) = (before, after);
                return Ok(());
            }
            after.clear();
            after.reserve(from.len() + patch.len());
            patcher.apply(from, patch, &mut after)?;
            std::mem::swap(&mut before, &mut after);
            is_first = false;
        }
        Err(Error::bug("patches that are to be applied are not there"))
    }

    /// Applies patches that were written out by [`write`]; the document that `body` becomes is appended.
    pub fn apply_written(&mut self, written: &[u8], body: &[u8], into: &mut Vec<u8>) -> Result<()> {
        if written.is_empty() {
            into.extend_from_slice(body);
            return Ok(());
        }
        let mut rest = written;
        let patches = std::iter::from_fn(|| {
            let (length, after) = rest.split_first_chunk()?;
            let (patch, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = after;
            Some(patch)
        });
        self.apply(patches, body, into)
    }
}

/// Writes a patch out.
pub(crate) fn write(patch: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(patch.len() as u32).to_le_bytes());
    out.extend_from_slice(patch);
}
