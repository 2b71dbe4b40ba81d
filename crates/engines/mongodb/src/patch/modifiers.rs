//! `{$v: 1, $set: {path: value…}, $unset: {path: …}}`: updates of servers up to 4.4.
//!
//! Paths are field names with dots between them, or places in arrays. What is missing on a path is
//! made; where the path runs into a value that has no fields, nothing is done (a later update
//! replaces that value). New fields come in the order of the update, which is the order in which
//! the server made them.

use super::{ARRAY, DEPTH, DOCUMENT, Field, Fields, Index, NULL, Side, limit, too_large, unsound};
use crate::raw;
use model::{Error, Result};
use std::ops::Range;

/// What `body` becomes.
pub(super) fn apply(body: &[u8], patch: &[u8]) -> Result<Vec<u8>> {
    Fields::of(body, Side::Body)?;
    let limit = limit(body, patch);
    let mut document = Document { bytes: body.to_vec(), around: Vec::new(), is_in_array: false, limit };
    for modifier in Fields::of(patch, Side::Patch)? {
        let modifier = modifier?;
        match modifier.name {
            b"$v" => {}
            b"$set" => {
                for field in Fields::of(modifier.document()?, Side::Patch)? {
                    document.set(field?)?;
                }
            }
            b"$unset" => {
                for field in Fields::of(modifier.document()?, Side::Patch)? {
                    document.unset(field?)?;
                }
            }
            _ => {
                let what = format!("an update with the modifier {}, which no server writes", modifier.shown());
                return Err(Error::unsupported(what).hint("a newer version of this program may know it"));
            }
        }
    }
    Ok(document.bytes)
}

/// A document that is changed in its place.
struct Document {
    bytes: Vec<u8>,
    /// Where the documents begin that hold the place at which a path ends, from the outermost on.
    around: Vec<usize>,
    /// Whether the innermost of them is an array.
    is_in_array: bool,
    limit: usize,
}

/// Where a path ends.
enum End<'a> {
    /// At an element that begins here, with this value.
    At(usize, Range<usize>),
    /// In the innermost document around, where nothing has the first of these names.
    Missing(Vec<&'a [u8]>),
    /// At a value that has no fields, or in an array at something that is no index.
    Blocked,
}

impl Document {
    fn set(&mut self, field: Field<'_>) -> Result<()> {
        match self.follow(field.name)? {
            End::At(start, value) => {
                self.bytes[start] = field.kind;
                self.splice(value, field.value)
            }
            End::Missing(names) => self.add(&names, field),
            End::Blocked => Ok(()),
        }
    }

    fn unset(&mut self, field: Field<'_>) -> Result<()> {
        let End::At(start, value) = self.follow(field.name)? else { return Ok(()) };
        if self.is_in_array {
            // The others keep their places.
            self.bytes[start] = NULL;
            return self.splice(value, &[]);
        }
        self.splice(start..value.end, &[])
    }

    /// Goes along a path as far as it exists.
    fn follow<'p>(&mut self, path: &'p [u8]) -> Result<End<'p>> {
        self.around.clear();
        self.around.push(0);
        self.is_in_array = false;
        let mut names = path.split(|byte| *byte == b'.').peekable();
        while let Some(name) = names.next() {
            let place = self.is_in_array.then(|| Index::parse(name));
            if place == Some(None) {
                return Ok(End::Blocked);
            }
            let document = self.innermost();
            let mut found = None;
            for (at, field) in Fields::of(self.document_at(document)?, Side::Body)?.enumerate() {
                let field = field?;
                if place.map_or(field.name == name, |place| place == Some(at)) {
                    let end = document + field.end;
                    found = Some((field.kind, document + field.start, end - field.value.len()..end));
                    break;
                }
            }
            match found {
                None => return Ok(End::Missing(std::iter::once(name).chain(names).collect())),
                Some((_, start, value)) if names.peek().is_none() => return Ok(End::At(start, value)),
                Some((kind, ..)) if !matches!(kind, DOCUMENT | ARRAY) => return Ok(End::Blocked),
                Some(_) if self.around.len() > DEPTH => return Err(unsound("a path in it is too long")),
                Some((kind, _, value)) => {
                    self.around.push(value.start);
                    self.is_in_array = kind == ARRAY;
                }
            }
        }
        Ok(End::Blocked)
    }

    /// Adds a field at the end of the innermost document, within as many new documents as there are
    /// names before the last.
    fn add(&mut self, names: &[&[u8]], field: Field<'_>) -> Result<()> {
        if names.len() > DEPTH {
            return Err(unsound("a path in it is too long"));
        }
        let mut new = Vec::new();
        let [name, inner @ ..] = names else { return Ok(()) };
        let start = self.innermost();
        if self.is_in_array {
            let place = Index::parse(name).ok_or_else(too_large)?;
            let count = Fields::of(self.document_at(start)?, Side::Body)?.count();
            for missing in count..place {
                put(&mut new, NULL, Index::new(missing).name());
                if new.len() > self.limit {
                    return Err(too_large());
                }
            }
            put(&mut new, if inner.is_empty() { field.kind } else { DOCUMENT }, Index::new(place).name());
        } else {
            put(&mut new, if inner.is_empty() { field.kind } else { DOCUMENT }, name);
        }
        let mut opened = Vec::new();
        for (i, name) in inner.iter().enumerate() {
            opened.push(new.len());
            new.extend_from_slice(&[0; 4]);
            put(&mut new, if i + 1 == inner.len() { field.kind } else { DOCUMENT }, name);
        }
        new.extend_from_slice(field.value);
        for start in opened.into_iter().rev() {
            new.push(0);
            let length = i32::try_from(new.len() - start).map_err(|_| too_large())?;
            new[start..start + 4].copy_from_slice(&length.to_le_bytes());
        }
        let end = start + self.document_at(start)?.len() - 1;
        self.splice(end..end, &new)
    }

    /// Where the innermost document around begins.
    fn innermost(&self) -> usize {
        self.around.last().copied().unwrap_or(0)
    }

    fn document_at(&self, start: usize) -> Result<&[u8]> {
        let rest = self.bytes.get(start..).unwrap_or_default();
        let length = raw::document_len(rest).ok_or_else(|| Side::Body.unsound("a document in it has no length"))?;
        Ok(&rest[..length])
    }

    /// Replaces bytes of the innermost document around.
    fn splice(&mut self, range: Range<usize>, new: &[u8]) -> Result<()> {
        if self.bytes.len() + new.len() - range.len() > self.limit {
            return Err(too_large());
        }
        let difference = new.len() as i64 - range.len() as i64;
        for start in &self.around {
            let length = &mut self.bytes[*start..start + 4];
            let old = i32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            length.copy_from_slice(&((i64::from(old) + difference) as i32).to_le_bytes());
        }
        self.bytes.splice(range, new.iter().copied());
        Ok(())
    }
}

/// The beginning of an element: all but its value.
fn put(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    out.push(kind);
    out.extend_from_slice(name);
    out.push(0);
}
