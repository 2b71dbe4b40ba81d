//! Updates as the oplog tells them, applied to documents byte for byte as members of a replica set
//! apply them.
//!
//! A patch is the `o` document of an oplog entry, verbatim:
//! - `{$v: 2, diff: …}`, since MongoDB 5.0: see [`diff`];
//! - `{$v: 1, $set: …, $unset: …}`, up to 4.4: see [`modifiers`];
//! - a whole document with its `_id`.
//!
//! Neither patches nor documents are trusted: whatever the bytes, nothing here panics.

mod diff;
mod modifiers;
#[cfg(test)]
mod tests;

use crate::raw::{self, Element};
use model::{Error, Patcher, Result};

/// How deep documents and patches may be nested, as the server has it.
const DEPTH: usize = 200;

/// Applies the updates of the oplog to documents.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patches;

impl Patcher for Patches {
    fn apply(&self, body: &[u8], patch: &[u8], into: &mut Vec<u8>) -> Result<()> {
        let start = into.len();
        match Form::of(patch)? {
            Form::Replacement => into.extend_from_slice(patch),
            Form::Diff(diff) => diff::apply(body, diff, into)?,
            Form::Modifiers => into.extend_from_slice(&modifiers::apply(body, patch)?),
        }
        put_id_first(&mut into[start..]);
        Ok(())
    }
}

/// What an update looks like.
enum Form<'a> {
    Replacement,
    Diff(&'a [u8]),
    Modifiers,
}

impl<'a> Form<'a> {
    fn of(patch: &'a [u8]) -> Result<Form<'a>> {
        let (mut version, mut diff, mut is_modifiers) = (None, None, false);
        for field in Fields::of(patch, Side::Patch)? {
            let field = field?;
            match field.name {
                // Nothing but a whole document has one, and it may have fields of any name.
                b"_id" => return Ok(Form::Replacement),
                b"$v" => version = Some(field.integer().ok_or_else(|| unsound("its version is no number"))?),
                b"diff" => diff = Some(field.document()?),
                // The version may be missing where there are modifiers.
                name => is_modifiers |= name.starts_with(b"$"),
            }
        }
        match version {
            Some(2) => diff.map(Form::Diff).ok_or_else(|| unsound("it has no diff")),
            Some(1) => Ok(Form::Modifiers),
            None if is_modifiers => Ok(Form::Modifiers),
            None => Err(unsound("it has neither a version nor an _id")),
            Some(other) => Err(Error::unsupported(format!("an update of the unknown version {other}"))
                .hint("a newer version of this program may know it")),
        }
    }
}

/// Puts `_id` before all other fields, as the server does whenever it has changed a document.
fn put_id_first(document: &mut [u8]) {
    if document.get(5..9) == Some(b"_id\0") {
        return;
    }
    if let Some(id) = raw::id_element(document) {
        document[4..id.end].rotate_right(id.end - id.start);
    }
}

/// What was found to be unsound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Body,
    Patch,
}

impl Side {
    fn unsound(self, why: &str) -> Error {
        match self {
            Side::Body => Error::corrupt(format!("the document that an update changes is unsound: {why}")),
            Side::Patch => Error::corrupt(format!("an update is unsound: {why}")),
        }
        .hint("verify what is stored; the collection can be restored to times before this update")
    }
}

fn unsound(why: &str) -> Error {
    Side::Patch.unsound(why)
}

/// One field of a document.
#[derive(Debug, Clone, Copy)]
struct Field<'a> {
    kind: u8,
    name: &'a [u8],
    value: &'a [u8],
    /// Where it begins and ends in its document.
    start: usize,
    end: usize,
}

impl<'a> Field<'a> {
    /// The value as a document; only of fields of a patch.
    fn document(&self) -> Result<&'a [u8]> {
        if self.kind == DOCUMENT {
            return Ok(self.value);
        }
        Err(unsound(&format!("{} is no document", self.shown())))
    }

    /// The value as a whole number.
    fn integer(&self) -> Option<i64> {
        match self.kind {
            0x01 => Some(f64::from_le_bytes(self.value.try_into().ok()?) as i64),
            0x10 => Some(i32::from_le_bytes(self.value.try_into().ok()?).into()),
            0x12 => Some(i64::from_le_bytes(self.value.try_into().ok()?)),
            _ => None,
        }
    }

    /// The name for messages, not longer than a person would read.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name[..self.name.len().min(100)]).into_owned()
    }
}

/// The type byte of a document within a document.
const DOCUMENT: u8 = 0x03;
/// The type byte of an array.
const ARRAY: u8 = 0x04;
/// The type byte of null.
const NULL: u8 = 0x0A;

/// The fields of a document, in order.
struct Fields<'a> {
    document: &'a [u8],
    at: usize,
    side: Side,
}

impl<'a> Fields<'a> {
    fn of(document: &'a [u8], side: Side) -> Result<Self> {
        if raw::document_len(document) != Some(document.len()) {
            return Err(side.unsound("a document has not the length that it says"));
        }
        Ok(Fields { document, at: 4, side })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at + 1 >= self.document.len() {
            return None;
        }
        let Some(Element { kind, start, name, value, end }) = raw::element(self.document, self.at) else {
            // Ends the walk, whatever the caller does with the error.
            let at = std::mem::replace(&mut self.at, self.document.len());
            return Some(Err(self.side.unsound(&format!("there is no field at byte {at}"))));
        };
        self.at = end;
        let document = self.document;
        Some(Ok(Field { kind, name: &document[name..value - 1], value: &document[value..end], start, end }))
    }
}

/// A number as the name of an array's element.
struct Index {
    digits: [u8; 20],
    start: usize,
}

impl Index {
    fn new(mut number: usize) -> Self {
        let mut index = Index { digits: [0; 20], start: 20 };
        loop {
            index.start -= 1;
            index.digits[index.start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return index;
            }
        }
    }

    fn name(&self) -> &[u8] {
        &self.digits[self.start..]
    }

    /// The number that a name is: digits and nothing else.
    fn parse(name: &[u8]) -> Option<usize> {
        if name.is_empty() {
            return None;
        }
        name.iter().try_fold(0usize, |number, digit| {
            let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
            number.checked_mul(10)?.checked_add(digit.into())
        })
    }
}

/// The most bytes that applying `patch` may make of `body`. What an update adds is in the update:
/// only filling up an array makes more of less, and no server stores what is larger than its limit.
fn limit(body: &[u8], patch: &[u8]) -> usize {
    raw::DOCUMENT_MAX.max(body.len().saturating_add(patch.len())).min(i32::MAX as usize)
}

fn too_large() -> Error {
    unsound("it makes the document larger than a server stores")
}
