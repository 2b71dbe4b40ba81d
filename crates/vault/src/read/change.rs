//! One change of one key, and how it is written down while changes are gathered.

use model::{Error, Result};

/// Where a change's body is: the frame's number among those given, the document's in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub frame: u32,
    pub doc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Put,
    Delete,
    Patch,
}

/// One change of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    pub key: &'a [u8],
    pub time: u64,
    /// A copy from a layer stands after log entries of the same time: they are in it already.
    pub is_copy: bool,
    pub op: Op,
    pub spot: Spot,
    pub patch: &'a [u8],
}

const OP: u8 = 3;
const COPY: u8 = 4;
/// The key is that of the change before, and left out.
pub(crate) const SAME: u8 = 8;
/// The key is that of the last change of the block before.
pub(crate) const GOES_ON: u8 = 16;

impl Change<'_> {
    /// Writes it with its key.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_as(out, 0);
    }

    /// The same with these flags; [`SAME`] leaves the key out.
    pub fn write_as(&self, out: &mut Vec<u8>, flags: u8) {
        out.push(self.op as u8 | flags | if self.is_copy { COPY } else { 0 });
        out.extend_from_slice(&self.time.to_le_bytes());
        write_number(out, self.spot.frame);
        write_number(out, self.spot.doc);
        if flags & SAME == 0 {
            write_number(out, self.key.len() as u32);
            out.extend_from_slice(self.key);
        }
        if self.op == Op::Patch {
            write_number(out, self.patch.len() as u32);
            out.extend_from_slice(self.patch);
        }
    }
}

/// A number in as many bytes as it needs, 7 bits in each.
fn write_number(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads changes one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Records<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    key: &'a [u8],
}

impl<'a> Records<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Records { bytes, at, key: b"" }
    }

    #[inline]
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    #[inline]
    fn number(&mut self) -> Option<u32> {
        // Most are small.
        match self.bytes.get(self.at) {
            Some(byte) if *byte < 0x80 => {
                self.at += 1;
                Some(u32::from(*byte))
            }
            _ => self.long_number(),
        }
    }

    fn long_number(&mut self) -> Option<u32> {
        let mut number = 0;
        for shift in (0..32).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            number |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// The next change, and its flags.
    #[inline]
    fn record(&mut self) -> Option<(Change<'a>, u8)> {
        let flags = self.take(1)?[0];
        let time = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
        let spot = Spot { frame: self.number()?, doc: self.number()? };
        if flags & SAME == 0 {
            let length = self.number()?;
            self.key = self.take(length as usize)?;
        }
        let op = match flags & OP {
            0 => Op::Put,
            1 => Op::Delete,
            _ => Op::Patch,
        };
        let patch = match op {
            Op::Patch => {
                let length = self.number()?;
                self.take(length as usize)?
            }
            _ => b"",
        };
        Some((Change { key: self.key, time, is_copy: flags & COPY != 0, op, spot, patch }, flags))
    }

    /// The next change, which must be there, and its flags.
    #[inline]
    pub fn expect(&mut self) -> Result<(Change<'a>, u8)> {
        self.record().ok_or_else(|| Error::bug("a block of changes ends within one"))
    }
}

/// Where the changes of a key are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The block, or the slot of a table.
    pub block: u32,
    /// Where the first of them begins in its block.
    pub offset: u32,
    /// How many changes stand before it in all blocks.
    pub ordinal: u64,
}
