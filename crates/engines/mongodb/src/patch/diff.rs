//! `{$v: 2, diff: …}`: what is different after an update.
//!
//! Of a document: `{d: {deleted…}, u: {updated…}, i: {inserted…}, s<field>: {diff}…}`. Updated
//! fields keep their place, inserted ones go to the end, also if they were there before. Of an
//! array: `{a: true, l: <new length>, u<index>: value…, s<index>: {diff}…}`. Time series add
//! `b: {field: {o: <offset>, d: <bytes>}}`: the new end of a binary.
//!
//! Where the document is not what the diff was made for, this does what members of a replica set do
//! who apply an entry again: null instead of what has the wrong type, nothing where nothing is.

use super::{ARRAY, DEPTH, DOCUMENT, Field, Fields, Index, NULL, Side, limit, too_large, unsound};
use model::{Error, Result};
use std::cmp::Ordering;

/// Appends what `body` becomes.
pub(super) fn apply(body: &[u8], diff: &[u8], into: &mut Vec<u8>) -> Result<()> {
    into.reserve(body.len() + diff.len());
    let limit = into.len() + limit(body, diff);
    let mut writer = Writer { out: std::mem::take(into), edits: Vec::new(), limit };
    let written = writer.document(body, diff, 0);
    *into = writer.out;
    written
}

/// What happens to one field or element.
#[derive(Clone, Copy)]
enum Change<'a> {
    Delete,
    Update(Field<'a>),
    Insert,
    Within(&'a [u8]),
    Binary(&'a [u8]),
}

struct Edit<'a> {
    name: &'a [u8],
    change: Change<'a>,
    is_done: bool,
}

/// Writes the document as it is after the update, from its start to its end, after what is there.
struct Writer<'a> {
    out: Vec<u8>,
    /// The edits of the document that is being written, sorted by name, after those of the
    /// documents around it.
    edits: Vec<Edit<'a>>,
    /// How long `out` may become.
    limit: usize,
}

impl<'a> Writer<'a> {
    fn document(&mut self, before: &[u8], diff: &'a [u8], depth: usize) -> Result<()> {
        let first = self.edits.len();
        let added = self.read(diff, depth)?;
        let start = self.open();
        // What is not changed is copied together, up to the next change.
        let mut kept = 4;
        for field in Fields::of(before, Side::Body)? {
            let field = field?;
            let Some(edit) = self.find(first, field.name) else { continue };
            self.out.extend_from_slice(&before[kept..field.start]);
            kept = field.end;
            match self.edits[edit].change {
                // What is inserted anew leaves its old place.
                Change::Delete | Change::Insert => {}
                Change::Update(new) => {
                    self.edits[edit].is_done = true;
                    self.put(new.kind, field.name, new.value);
                }
                Change::Within(diff) => self.within(field.name, Some(field), diff, depth)?,
                Change::Binary(diff) => self.binary(field, diff)?,
            }
        }
        self.out.extend_from_slice(&before[kept..before.len() - 1]);
        for section in added.into_iter().flatten() {
            for field in Fields::of(section, Side::Patch)? {
                let field = field?;
                if self.find(first, field.name).is_some_and(|edit| !self.edits[edit].is_done) {
                    self.put(field.kind, field.name, field.value);
                }
            }
        }
        self.edits.truncate(first);
        self.close(start)
    }

    /// Takes the edits from the diff of a document. Gives the sections whose fields are added where
    /// they are not yet there.
    fn read(&mut self, diff: &'a [u8], depth: usize) -> Result<[Option<&'a [u8]>; 2]> {
        if depth > DEPTH {
            return Err(unsound("its diffs are nested too deep"));
        }
        let first = self.edits.len();
        let (mut updates, mut inserts) = (None, None);
        let mut sections = Fields::of(diff, Side::Patch)?.peekable();
        if sections.peek().is_none() {
            return Err(unsound("a diff in it is empty"));
        }
        for section in sections {
            let section = section?;
            let fields = section.document()?;
            let (change, seen): (fn(Field<'a>) -> Result<Change<'a>>, _) = match section.name {
                b"d" => (|_| Ok(Change::Delete), None),
                b"u" => (|field| Ok(Change::Update(field)), updates.replace(fields)),
                b"i" => (|_| Ok(Change::Insert), inserts.replace(fields)),
                b"b" => (|field| Ok(Change::Binary(field.document()?)), None),
                [b's', name @ ..] => {
                    self.edits.push(Edit { name, change: Change::Within(fields), is_done: false });
                    continue;
                }
                _ => return Err(unsound(&format!("a diff in it has the unknown section {}", section.shown()))),
            };
            if seen.is_some() {
                return Err(unsound("a diff in it has a section twice"));
            }
            for field in Fields::of(fields, Side::Patch)? {
                let field = field?;
                self.edits.push(Edit { name: field.name, change: change(field)?, is_done: false });
            }
        }
        let edits = &mut self.edits[first..];
        edits.sort_unstable_by(|a, b| order(a.name, b.name));
        if edits.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(unsound("a diff in it changes a field twice"));
        }
        Ok([updates, inserts])
    }

    /// The edit of a field of the document that is being written, whose edits begin at `first`.
    fn find(&self, first: usize, name: &[u8]) -> Option<usize> {
        let edits = &self.edits[first..];
        edits.binary_search_by(|edit| order(edit.name, name)).ok().map(|at| first + at)
    }

    /// A document or an array that changes within.
    fn within(&mut self, name: &[u8], before: Option<Field<'_>>, diff: &'a [u8], depth: usize) -> Result<()> {
        let is_array = match Fields::of(diff, Side::Patch)?.next() {
            Some(field) => field?.name == b"a",
            None => return Err(unsound("a diff in it is empty")),
        };
        match before {
            Some(field) if field.kind == DOCUMENT && !is_array => {
                self.put(DOCUMENT, name, &[]);
                self.document(field.value, diff, depth + 1)
            }
            Some(field) if field.kind == ARRAY && is_array => {
                self.put(ARRAY, name, &[]);
                self.array(field.value, diff, depth + 1)
            }
            _ => {
                self.put(NULL, name, &[]);
                Ok(())
            }
        }
    }

    fn array(&mut self, before: &[u8], diff: &'a [u8], depth: usize) -> Result<()> {
        let mut elements = Elements::of(diff, depth)?;
        let mut edit = elements.next()?;
        let start = self.open();
        let (mut kept, mut end, mut index) = (4, before.len() - 1, 0);
        for field in Fields::of(before, Side::Body)? {
            let field = field?;
            if elements.length == Some(index) {
                end = field.start;
                break;
            }
            let name = Index::new(index);
            match edit {
                Some((at, change)) if at == index => {
                    self.out.extend_from_slice(&before[kept..field.start]);
                    kept = field.end;
                    self.element(name.name(), Some(field), change, depth)?;
                    edit = elements.next()?;
                }
                // Whoever writes an array anew names its elements by their places.
                _ if field.name != name.name() => {
                    self.out.extend_from_slice(&before[kept..field.start]);
                    kept = field.end;
                    self.put(field.kind, name.name(), field.value);
                }
                _ => {}
            }
            index += 1;
        }
        self.out.extend_from_slice(&before[kept..end]);
        while edit.is_some() || elements.length.is_some_and(|length| index < length) {
            let name = Index::new(index);
            match edit {
                Some((at, change)) if at == index => {
                    self.element(name.name(), None, change, depth)?;
                    edit = elements.next()?;
                }
                _ => self.put(NULL, name.name(), &[]),
            }
            if self.out.len() > self.limit {
                return Err(too_large());
            }
            index += 1;
        }
        self.close(start)
    }

    fn element(&mut self, name: &[u8], before: Option<Field<'_>>, change: Change<'a>, depth: usize) -> Result<()> {
        match change {
            Change::Update(new) => self.put(new.kind, name, new.value),
            Change::Within(diff) => self.within(name, before, diff, depth)?,
            Change::Delete | Change::Insert | Change::Binary(_) => {}
        }
        Ok(())
    }

    /// A binary whose bytes change from an offset to its end.
    fn binary(&mut self, before: Field<'_>, diff: &[u8]) -> Result<()> {
        let (mut offset, mut new) = (None, None);
        for field in Fields::of(diff, Side::Patch)? {
            let field = field?;
            match field.name {
                b"o" => offset = field.integer().and_then(|n| usize::try_from(n).ok()),
                b"d" if field.kind == BINARY => new = field.value.get(5..),
                _ => return Err(unsound(&format!("a binary diff in it has the unknown field {}", field.shown()))),
            }
        }
        let (Some(offset), Some(new)) = (offset, new) else {
            return Err(unsound("a binary diff in it has no offset or no bytes"));
        };
        let old = before.value.get(5..).filter(|_| before.kind == BINARY);
        let Some(old) = old.filter(|old| offset <= old.len()) else {
            return Err(unsound(&format!("{} is no binary as long as its binary diff says", before.shown())));
        };
        if offset + new.len() < old.len() {
            // Never seen, and not told in any documentation: better not guessed.
            return Err(Error::unsupported(format!("an update that makes the binary {} shorter", before.shown())));
        }
        let length = i32::try_from(offset + new.len()).map_err(|_| too_large())?;
        self.put(BINARY, before.name, &length.to_le_bytes());
        self.out.push(before.value[4]);
        self.out.extend_from_slice(&old[..offset]);
        self.out.extend_from_slice(new);
        Ok(())
    }

    fn put(&mut self, kind: u8, name: &[u8], value: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(name);
        self.out.push(0);
        self.out.extend_from_slice(value);
    }

    /// Begins a document, whose length is not known yet.
    fn open(&mut self) -> usize {
        self.out.extend_from_slice(&[0; 4]);
        self.out.len() - 4
    }

    fn close(&mut self, start: usize) -> Result<()> {
        self.out.push(0);
        if self.out.len() > self.limit {
            return Err(too_large());
        }
        let length = (self.out.len() - start) as i32;
        self.out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }
}

/// The order of names among edits: most are told apart by their lengths alone.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// The type byte of a binary.
const BINARY: u8 = 0x05;

/// The diff of an array: its new length, and the elements that change, in order.
struct Elements<'a> {
    fields: std::iter::Peekable<Fields<'a>>,
    length: Option<usize>,
    /// The least index that the next one may have.
    least: usize,
}

impl<'a> Elements<'a> {
    fn of(diff: &'a [u8], depth: usize) -> Result<Self> {
        if depth > DEPTH {
            return Err(unsound("its diffs are nested too deep"));
        }
        let mut fields = Fields::of(diff, Side::Patch)?.peekable();
        let head = fields.next().transpose()?;
        if !head.is_some_and(|head| head.name == b"a" && head.kind == 0x08 && head.value == [1]) {
            return Err(unsound("the diff of an array does not begin with a: true"));
        }
        let length = match fields.next_if(|field| field.as_ref().is_ok_and(|field| field.name == b"l")) {
            None => None,
            Some(field) => {
                let length = field?.integer().and_then(|n| usize::try_from(n).ok());
                Some(length.ok_or_else(|| unsound("the new length of an array is no length"))?)
            }
        };
        Ok(Elements { fields, length, least: 0 })
    }

    fn next(&mut self) -> Result<Option<(usize, Change<'a>)>> {
        let Some(field) = self.fields.next().transpose()? else { return Ok(None) };
        let unknown = || unsound(&format!("the diff of an array has the unknown field {}", field.shown()));
        let (what, index) = field.name.split_first().ok_or_else(unknown)?;
        let index = Index::parse(index).ok_or_else(unknown)?;
        if index < self.least || self.length.is_some_and(|length| index >= length) {
            return Err(unsound(&format!("the diff of an array has {} out of its place", field.shown())));
        }
        self.least = index.saturating_add(1);
        match what {
            b'u' => Ok(Some((index, Change::Update(field)))),
            b's' => Ok(Some((index, Change::Within(field.document()?)))),
            _ => Err(unknown()),
        }
    }
}
